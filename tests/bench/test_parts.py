"""What ``make gpu`` runs, without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from orthoopt.bench import gpu


def part(name: str, code: str, seconds: float = 20.0, tmp_path: Path | None = None) -> gpu.Part:
    """A module of its own, for parts are run by ``python -m``."""
    assert tmp_path is not None
    (tmp_path / f"part_{name}.py").write_text(code)
    return gpu.Part(name, (f"part_{name}",), seconds)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda name, code, seconds=20.0: part(name, code, seconds, tmp_path)


def test_one_part_that_fails_does_not_stop_the_others(make, tmp_path: Path, capsys) -> None:
    listed = [
        make("bad", "print('went wrong'); raise SystemExit(3)"),
        make("stuck", "import time; print('waits'); time.sleep(60)", 0.5),
        make("good", "import os, pathlib; pathlib.Path(os.environ['OUT'], 'made.json').write_text('{}')"),
    ]
    assert gpu.run([listed[1]._replace(name="alone"), listed[0], listed[2]], tmp_path, 30.0) == 1
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert [(row["part"], row["status"]) for row in result["parts"]] == [("alone", None), ("bad", 3), ("good", 0)]
    assert "went wrong" in result["parts"][1]["output"] and (tmp_path / "made.json").exists()
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert "(out of time)" in last and "bad" in last and "(status 3)" in last and "good" in last


def test_all_is_well_only_if_all_parts_are(make, tmp_path: Path) -> None:
    assert gpu.run([make("a", "pass"), make("b", "pass")], tmp_path, 30.0) == 0
    assert gpu.run([make("c", "pass")], tmp_path, 0.0) == 1  # no time was left for it


def test_what_runs_fits_nine_minutes_and_eight_files() -> None:
    tests = Path(__file__).resolve().parents[1]
    listed = gpu.parts(tests)
    assert [p.name for p in listed] == ["tests", "step", "orthogonalize", "memory"]
    assert sum(p.seconds for p in listed) <= gpu.TOTAL_SECONDS < 9 * 60
    files = [word for word in listed[0].words if word.endswith(".py")]
    assert str(tests / "test_gpu.py") in files and str(tests / "bench" / "test_gpu_bench.py") in files
    for name in files:
        text = Path(name).read_text()
        assert "hypothesis" not in text and "transformers" not in text and "strategies" not in text, name


def test_the_options_of_the_parts_are_the_benches_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A renamed option would be found out on a GPU alone."""
    from orthoopt.bench import memory, orthogonalize, step_options

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    parsers = {"step": step_options.parse, "orthogonalize": orthogonalize._parse, "memory": memory._parse}
    for listed in gpu.parts(Path("tests"))[1:]:
        assert parsers[listed.name](listed.words[1:]).device == "cuda"


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2 and "no CUDA device" in capsys.readouterr().err

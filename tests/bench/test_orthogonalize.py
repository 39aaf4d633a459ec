from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from orthoopt.bench import orthogonalize

CPU = torch.device("cpu")


def test_every_method_is_right_and_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        status = orthogonalize.main(
            ["--out", str(tmp_path), "--sides", "4", "8", "--repeats", "3", "--seconds", "0.2", "--threads", "1"]
        )
    finally:
        torch.set_num_threads(threads)
    assert status == 0
    result = json.loads((tmp_path / "orthogonalize_cpu.json").read_text())
    assert [(row["rows"], row["cols"]) for row in result["rows"]] == [(4, 4), (4, 16), (8, 8), (8, 32)]
    for row in result["rows"]:
        assert [way["name"] for way in row["ways"]] == [way.name for way in orthogonalize.WAYS]
        assert all(way["correct"] and way["seconds"]["repeats"] == 3 for way in row["ways"])
    assert "of 8x32" in capsys.readouterr().out


def test_a_wrong_method_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = orthogonalize.Way("too few steps", "polar_express", 2, 2e-3)
    monkeypatch.setattr(orthogonalize, "WAYS", (wrong, orthogonalize.WAYS[-1]))
    row = orthogonalize.measure(16, 1, CPU, 3, 0.1)
    assert [(way["correct"], way["seconds"] is None) for way in row["ways"]] == [(False, True), (True, False)]
    assert row["ways"][0]["error"] > 2e-3

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import orthoopt
from orthoopt.bench import machine
from orthoopt.bench.results_file import results_folder, write_json


def test_the_block_says_what_ran() -> None:
    block = machine.describe("cpu")
    assert block["cpu"] and block["cores"] >= 1 and block["torch_threads"] == torch.get_num_threads()
    assert block["versions"]["torch"] == torch.__version__ and block["versions"]["orthoopt"] == orthoopt.__version__
    assert block["gpu"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", block["time"])
    assert re.fullmatch(r"[0-9a-f]{64}", block["sources"])
    assert json.loads(json.dumps(block)) == block
    assert str(Path.home()) not in json.dumps(block)


def test_the_commit_is_gits_or_nothing() -> None:
    state = machine.git_state()
    if state is None:
        pytest.skip("not a checkout")
    assert re.fullmatch(r"[0-9a-f]{40}", state["commit"]) and isinstance(state["dirty"], bool)


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_git(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    machine.git_state.cache_clear()
    try:
        assert machine.git_state() is None
    finally:
        machine.git_state.cache_clear()


def test_the_source_digest_sees_a_change_and_ignores_the_benches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout and a regular install of the same sources have one digest."""
    packages = {"orthoopt": Path(orthoopt.__file__).parent}
    for name in ("kernels", "recipes"):
        packages[f"orthoopt.{name}"] = Path(machine.importlib.util.find_spec(f"orthoopt.{name}").origin).parent
    installed = tmp_path / "orthoopt"
    shutil.copytree(packages["orthoopt"], installed, dirs_exist_ok=True)
    for name in ("kernels", "recipes"):
        shutil.copytree(packages[f"orthoopt.{name}"], installed / name, dirs_exist_ok=True)
    (installed / "bench").mkdir(exist_ok=True)
    (installed / "bench" / "more.py").write_text("1\n")
    before = machine.source_digest()

    def find_copy(name: str) -> object:
        folder = installed.joinpath(*name.split(".")[1:])
        return type("Spec", (), {"submodule_search_locations": [str(folder)]})()

    monkeypatch.setattr(machine.importlib.util, "find_spec", find_copy)
    assert machine.source_digest() == before
    (installed / "kernels" / "reference.py").write_text("changed\n")
    assert machine.source_digest() != before


def test_json_is_strict_and_whole(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"x": float("nan"), "y": [float("inf"), 1.5], "z": (1, None)})
    assert json.loads(path.read_text()) == {"x": None, "y": [None, 1.5], "z": [1, None]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_results_go_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OUT", raising=False)
    assert results_folder(None) == Path("bench/results") and (tmp_path / "bench" / "results").is_dir()
    monkeypatch.setenv("OUT", str(tmp_path / "variable"))
    assert results_folder(None) == tmp_path / "variable"
    assert results_folder(str(tmp_path / "option")) == tmp_path / "option"

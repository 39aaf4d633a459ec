"""The peers that are installed, each against its own definition."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from orthoopt.bench import peers, step
from orthoopt.bench.shapes import Matrix, ShapeSet

CPU = torch.device("cpu")
TINY = ShapeSet("tiny", (Matrix("a", 32, 32), Matrix("b", 32, 48), Matrix("c", 48, 32)), from_model=False)
FOUND = peers.peers(CPU)
# heavyball compiles itself, which takes a minute: the bench runs that.
COMPILED_BY_THEMSELVES = ("heavyball", "heavyball float32")


@pytest.mark.parametrize("name", [v.name for v in FOUND if v.name not in COMPILED_BY_THEMSELVES])
def test_a_peer_does_what_its_definition_says(name: str) -> None:
    variant = next(v for v in FOUND if v.name == name)
    if variant.missing:
        pytest.skip(variant.missing)
    result = step.measure(TINY, [variant], CPU, repeats=3, seconds=0.5, matmul_size=64, copy_mebibytes=1)
    assert not result["skipped"]
    (row,) = result["variants"]
    assert row["correct"], row
    if variant.same_work:
        assert row["error"] < 1e-4  # float32; bfloat16 leaves a hundredth


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED_BY_THEMSELVES)
def test_a_peer_that_compiles_itself_does_what_its_definition_says(name: str) -> None:
    test_a_peer_does_what_its_definition_says(name)


def test_patches_leave_no_trace_and_looking_for_peers_changes_nothing() -> None:
    before = torch.get_float32_matmul_precision()
    for variant in peers.peers(CPU):
        if variant.missing:
            continue
        names = [name for name in ("heavyball.utils", "pytorch_optimizer.optimizer.muon.base") if name in sys.modules]
        contents = {name: dict(vars(sys.modules[name])) for name in names}
        with variant.around():
            pass
        assert all(vars(sys.modules[name]) == contents[name] for name in names), variant.name
    assert torch.get_float32_matmul_precision() == before


def test_a_package_that_is_not_there_or_does_not_import_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_version(package: str) -> str:
        raise peers.PackageNotFoundError(package)

    monkeypatch.setattr(peers, "version", no_version)
    assert {v.missing for v in peers.peers(CPU)} == {"not installed", "needs a GPU"}

    def import_module(name: str) -> types.ModuleType:
        raise RuntimeError(f"{name} is broken")

    monkeypatch.setattr(peers, "version", lambda package: "1")
    monkeypatch.setattr(peers.importlib, "import_module", import_module)
    reasons = {v.missing for v in peers.peers(CPU)} - {"needs a GPU"}
    assert len(reasons) == 3 and all(reason.startswith("does not import: RuntimeError") for reason in reasons)
    result = step.measure(TINY, peers.peers(CPU), CPU, repeats=1, seconds=0.1, matmul_size=64, copy_mebibytes=1)
    assert not result["variants"] and len(result["skipped"]) == len(peers.peers(CPU))

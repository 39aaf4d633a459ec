"""The benches on a GPU; imports nothing that a GPU machine may lack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from orthoopt.bench import allocations, memory, orthogonalize, shapes, step
from orthoopt.bench.shapes import Matrix, ShapeSet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; run with `make gpu`"),
]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight")
    shape_set = ShapeSet("tiny", tuple(Matrix(name, 128, 256) for name in names), from_model=True)
    monkeypatch.setitem(shapes.SETS, "tiny", shape_set)


def test_step(tmp_path: Path) -> None:
    words = [
        "--device",
        "cuda",
        "--shapes",
        "tiny:orthoopt,torch.optim.AdamW",
        "--repeats",
        "5",
        "--out",
        str(tmp_path),
    ]
    assert step.main(words) == 0
    result = json.loads((tmp_path / "step_cuda.json").read_text())
    assert result["machine"]["gpu"]["name"]
    assert all(row["device_seconds"]["median"] > 0 for row in result["shapes"]["tiny"]["variants"])


def test_orthogonalize(tmp_path: Path) -> None:
    words = ["--device", "cuda", "--shapes", "tiny", "--sides", "64", "--repeats", "3", "--out", str(tmp_path)]
    assert orthogonalize.main(words) == 0


def test_memory(tmp_path: Path) -> None:
    words = ["--device", "cuda", "--shapes", "tiny", "--models", "--out", str(tmp_path)]
    assert memory.main(words) == 0
    rows = json.loads((tmp_path / "memory_cuda.json").read_text())["peaks"]
    assert all(row["peak_extra_bytes"] >= 0 for row in rows)


def test_the_peak_is_the_allocators() -> None:
    def call() -> None:
        kept = torch.empty(2**20, dtype=torch.uint8, device="cuda")
        del kept
        torch.empty(2**19, dtype=torch.uint8, device="cuda")

    assert allocations.peak_extra_bytes(call, torch.device("cuda")) == 2**20

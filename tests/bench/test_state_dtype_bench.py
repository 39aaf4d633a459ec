"""The bench of small state: what it compares is the same but for the dtype, and every row is in its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from orthoopt.bench import state_dtype as bench

ROOT = Path(__file__).parents[2]


def test_float32_against_itself_is_no_error_and_bfloat16_is_some() -> None:
    assert bench.errors("row_norm", 0.5, "float32", 8) == {"momentum": 0.0, "update": 0.0}
    found = bench.errors("row_norm", 0.5, "bfloat16", 8)
    assert all(1e-4 < error < 3e-2 for error in found.values())  # a rounding is 2⁻⁹ at most, of some twenty in force


def test_a_run_is_a_function_of_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    text = bench.corpus()[:20000]
    monkeypatch.setattr(bench, "_BATCH", 2)
    settings = {"dtype": torch.bfloat16, "rounding": "stochastic", "state_dtype": "bfloat16"}
    first, size = bench.train("muon", settings, 0, 2, text)
    assert bench.train("muon", settings, 0, 2, text) == (first, size)
    assert bench.train("muon", {}, 0, 2, text)[1] > 1.9 * size


def test_the_page_has_the_files_figures() -> None:
    result = json.loads((ROOT / "bench" / "results" / "state_dtype_cpu.json").read_text())
    page = (ROOT / "docs" / "precision.md").read_text()
    for row in result["training"]:
        cells = f"| {row['arm']} | {row['loss']:.4f} | {row['less_float32']:+.4f} | {row['state_bytes'] / 1e3:.0f} |"
        assert cells in page, cells
    for row in result["updates"]:
        if row["rule"] == "spectral":
            assert f"| {row['spectrum']} | {row['state_dtype']} | {row['momentum']:.1e} | {row['update']:.1e} |" in page

"""The bench behind the cosine transform's cut-over: right before fast, and a file of every length."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from orthoopt.bench import dct as bench


def test_every_length_is_in_the_file_with_both_methods(tmp_path: Path) -> None:
    arguments = ["--sizes", "5", "32", "--seconds", "0.01", "--repeats", "3", "--out", str(tmp_path)]
    assert bench.main(arguments) == 0
    result = json.loads((tmp_path / "dct_cpu.json").read_text())
    assert [row["k"] for row in result["sizes"]] == [5, 32] and result["machine"]["versions"]["torch"]
    for row in result["sizes"]:
        for what in ("transform", "lift"):
            assert row[what]["correct"] and row[what]["error"] < 1e-6
            assert all(row[what][method]["median"] > 0 for method in ("product", "fft"))


def test_a_wrong_result_gets_no_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = bench.dct

    def wrong(x: Tensor, method: str = "auto") -> Tensor:
        return right(x, method) * (1.001 if method == "fft" else 1)

    monkeypatch.setattr(bench, "dct", wrong)
    row = bench.measure(16, torch.device("cpu"), repeats=3, seconds=0.01)
    assert not row["transform"]["correct"] and row["transform"]["fft"] is None and row["lift"]["correct"]
    assert "not timed" in bench._cells(row["transform"], 12)

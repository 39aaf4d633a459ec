from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from orthoopt import buckets
from orthoopt.bench import forms, methods, orthogonalize, shapes, step, timing
from orthoopt.bench.shapes import Matrix, ShapeSet
from orthoopt.coefficients import resolve_coefficients

CPU = torch.device("cpu")
TINY = ShapeSet("tiny", (Matrix("a", 16, 16), Matrix("b", 16, 64), Matrix("c", 64, 16)), from_model=False)


def test_the_command_measures_forms_sets_and_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(shapes.SETS, "tiny", TINY)
    monkeypatch.setitem(step.MATMUL, "cpu", (torch.float32, 64))
    threads = torch.get_num_threads()
    words = ["--sides", "4", "8", "--shapes", "tiny", "--repeats", "3", "--seconds", "0.1", "--threads", "1"]
    monkeypatch.setitem(forms._BATCH_ELEMENTS, "cpu", 512)
    monkeypatch.setattr(methods, "_BATCH_ELEMENTS", 512)
    try:
        status = orthogonalize.main([*words, "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    assert status == 0
    result = json.loads((tmp_path / "orthogonalize_cpu.json").read_text())
    assert [row["name"] for row in result["forms"]][:3] == ["1 of 16x16", "2 of 16x64", "32 of 4x4"]
    assert [row["name"] for row in result["sets"]] == ["tiny, muon"]
    for row in [*result["forms"], *result["sets"]]:
        assert [way["name"] for way in row["ways"]] == [way.name for way in forms.ways("muon")]
        assert all(way["correct"] and way["seconds"]["repeats"] == 3 for way in row["ways"])
        assert row["flops"] == sum(b * shapes.newton_schulz_flops(m, n) for b, m, n in row["stacks"])
    assert [(row["rows"], row["cols"]) for row in result["rows"]] == [(4, 4), (4, 16), (8, 8), (8, 32)]
    for row in result["rows"]:
        assert [way["name"] for way in row["ways"]] == [way.name for way in methods.WAYS]
        assert all(way["correct"] and way["seconds"]["repeats"] == 3 for way in row["ways"])
    stacks = {line["stack"] for line in result["must_show"] if line["what"].startswith("plain")}
    assert stacks == {"2 of 16x64", "8 of 4x16", "2 of 8x32"}  # at an aspect of four
    printed = capsys.readouterr().out
    assert "of 8x32" in printed and max(map(len, printed.splitlines())) <= 140
    assert "2 of 16x64" in (tmp_path / "orthogonalize_cpu.md").read_text()


def test_a_wrong_method_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = methods.Way("too few steps", "polar_express", 2, 2e-3)
    monkeypatch.setattr(methods, "WAYS", (wrong, methods.WAYS[-1]))
    row = methods.measure(16, 1, CPU, 3, 0.1)
    assert [(way["correct"], way["seconds"] is None) for way in row["ways"]] == [(False, True), (True, False)]
    assert row["ways"][0]["error"] > 2e-3


def test_a_wrong_form_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    right = forms.ways("muon")
    wrong = forms.Way("standard", lambda x: right[0].call(x) * 1.01)
    monkeypatch.setattr(forms, "ways", lambda coefficients: (right[0], wrong))
    ceiling = timing.matmul_ceiling(CPU, torch.float32, 16)
    row = forms.measure([(2, 8, 12)], "muon", CPU, ceiling, repeats=3, seconds=0.1)
    assert [(way["correct"], way["seconds"] is None) for way in row["ways"]] == [(True, False), (False, True)]
    assert row["over_standard"] is None and row["ways"][1]["share_of_matmul"] is None
    assert "wrong" in forms.cells("x", row)


@pytest.mark.parametrize("table", ["muon", "polar_express"])
def test_every_form_is_the_same_map(table: str) -> None:
    """Float64, where nothing but the order of products tells them apart; the tables differ in kappa."""
    x = torch.randn(3, 12, 30, dtype=torch.float64)
    results = [way.call(x) for way in forms.ways(table)]
    for result in results[1:]:
        assert torch.allclose(result, results[0], rtol=0, atol=1e-9)  # a few thousand roundings, amplified by 500
    plain = forms.plain_batched(x, resolve_coefficients(table, forms.STEPS))
    assert torch.equal(plain, results[-1])


@pytest.mark.parametrize("aspect", [1, 3])
def test_the_frame_sees_distance_from_the_polar_factor(aspect: int) -> None:
    x = torch.randn(2, 10, 10 * aspect, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    frame = methods.Frame.of(x)
    assert frame.error(u @ vh) < 1e-9  # of eigenvectors of XXᵀ in float64
    assert frame.error(0.75 * u @ vh) == pytest.approx(0.25, abs=1e-9)


def test_stacks_hold_all_matrices_within_a_buckets_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "MAX_ELEMENTS", 5 * 16 * 16)
    shape_set = ShapeSet("many", tuple(Matrix(str(i), 16, 16) for i in range(12)), from_model=False)
    assert forms.stacks_of(shape_set) == [(5, 16, 16), (5, 16, 16), (2, 16, 16)]
    assert forms.stacks_of(TINY) == [(1, 16, 16), (1, 16, 64), (1, 16, 64)]  # one exceeds half a bucket

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import orthoopt
from orthoopt.bench import memory, shapes, variants
from orthoopt.bench.allocations import peak_extra_bytes
from orthoopt.bench.shapes import Matrix, ShapeSet

CPU = torch.device("cpu")
TINY = ShapeSet("tiny", (Matrix("a", 64, 64), Matrix("b", 64, 96), Matrix("c", 96, 64)), from_model=False)


def test_the_peak_is_the_highest_point_not_the_sum() -> None:
    kept = torch.empty(1000)

    def call() -> None:
        first = torch.empty(2**20, dtype=torch.uint8)
        del first
        second = torch.empty(2**19, dtype=torch.uint8)
        third = torch.empty(2**18, dtype=torch.uint8)
        kept.add_(1)
        del second, third

    assert peak_extra_bytes(call, CPU) == 2**20
    held = []
    assert peak_extra_bytes(lambda: held.append(torch.empty(2**16, dtype=torch.uint8)), CPU) == 2**16
    assert peak_extra_bytes(held.clear, CPU) == 0  # what was there before and goes is no need


def test_allocations_inside_operators_count() -> None:
    x = torch.randn(256, 256)
    out = torch.empty(256, 256)

    def call() -> None:
        torch.add(x.t().contiguous(), 1, out=out)

    # The copy is seen, though nobody keeps it; operators' own scratch takes some thousand bytes more.
    assert 0 <= peak_extra_bytes(call, CPU) - 4 * 256 * 256 < 2**16


def test_state_is_what_init_state_made() -> None:
    param = torch.nn.Parameter(torch.zeros(8, 16))
    optimizer = orthoopt.OrthoOpt([{"params": [("w", param)], "rule": "adamw"}])
    optimizer.init_state()
    assert memory.state_bytes(optimizer) == 2 * 4 * 8 * 16 + 4


def test_a_step_needs_no_less_than_what_it_must_hold() -> None:
    rows = memory.measure_set(TINY, variants.VARIANTS, CPU)
    by_name = {row["name"]: row for row in rows}
    assert {v.name for v in variants.OF_OURS if not v.needs_model_names} <= set(by_name)
    # Fused AdamW works in place.
    assert by_name["torch.optim.AdamW fused"]["peak_extra_bytes"] < 4096
    assert by_name["torch.optim.AdamW fused"]["state_bytes"] == 8 * TINY.parameters + 4 * len(TINY.matrices)
    # An iteration out of place holds the largest stack at least once: two of 64x96.
    assert by_name[variants.OURS]["peak_extra_bytes"] >= 4 * 2 * 64 * 96
    assert all(row["state_bytes"] == 4 * TINY.parameters for row in rows if row["name"] in variants.LINEAR)


def test_the_command_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setitem(shapes.SETS, "tiny", TINY)
    words = ["--shapes", "tiny", "--variants", "orthoopt.Muon", "--models", "qwen3-0.6b", "--out", str(tmp_path)]
    assert memory.main(words) == 0
    result = json.loads((tmp_path / "memory_cpu.json").read_text())
    assert {row["plan"] for row in result["state"]} == set(orthoopt.plans.names())
    by_plan = {row["plan"]: row for row in result["state"]}
    # AdamW has two moments of each entry, and a count a parameter. This is what the plan is for: one momentum.
    assert by_plan["adamw"]["of_adamw"] == 1.0
    assert by_plan["symmetry"]["parameters"] == 596_049_920 and by_plan["symmetry"]["of_adamw"] <= 0.52
    held = {line["what"]: line["holds"] for line in result["must_show"]}
    assert held["state over AdamW's"] is True
    page, printed = (tmp_path / "memory_cpu.md").read_text(), capsys.readouterr().out
    assert "symmetry_paper" in page and "qwen3-0.6b, 596M" in printed
    assert max(map(len, printed.splitlines())) <= 140


def test_an_unknown_set_is_a_usage_error(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        memory.main(["--shapes", "gpt3"])
    assert stop.value.code == 2 and "gpt3" in capsys.readouterr().err

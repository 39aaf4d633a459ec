from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import orthoopt
from orthoopt.bench import shapes, step, timing, variants
from orthoopt.bench.shapes import Matrix, ShapeSet

CPU = torch.device("cpu")
TINY = ShapeSet("tiny", (Matrix("a", 32, 32), Matrix("b", 32, 48), Matrix("c", 48, 32)), from_model=False)


def measure(contenders: tuple[variants.Variant, ...], shape_set: ShapeSet = TINY) -> dict:
    return step.measure(shape_set, contenders, CPU, repeats=4, seconds=1.0, matmul_size=64, copy_mebibytes=1)


def counts(name: str) -> Counter:
    return Counter((rows, cols) for _, rows, cols in shapes.SETS[name].matrices)


def test_the_sets_are_the_models() -> None:
    assert counts("cpu_small") == {(256, 256): 16, (256, 1024): 4, (1024, 256): 4}
    assert counts("gpt2") == {(768, 768): 48, (3072, 768): 12, (768, 3072): 12}
    either_way = Counter((min(s), max(s)) for s in counts("qwen3_0.6b").elements())
    assert either_way == {(1024, 1024): 56, (1024, 2048): 56, (1024, 3072): 84}
    either_way = Counter((min(s), max(s)) for s in counts("llama3.2_1b").elements())
    assert either_way == {(2048, 2048): 32, (512, 2048): 32, (2048, 8192): 48}


def test_parameters_are_the_published_ones() -> None:
    # Hidden matrices of GPT-2 124M, Qwen3-0.6B and Llama-3.2-1B, to the tenth of a million.
    wanted = {"gpt2": 84.9, "qwen3_0.6b": 440.4, "llama3.2_1b": 973.1}
    assert {name: round(shapes.SETS[name].parameters / 1e6, 1) for name in wanted} == wanted


@pytest.mark.parametrize("name", shapes.SETS)
def test_every_matrix_is_a_whole_linear_map_to_the_dispatcher(name: str) -> None:
    """Else the optimizers of a row would not do the same work."""
    shape_set = shapes.SETS[name]
    named = [(m.name, torch.nn.Parameter(torch.empty(m.rows, m.cols, device="meta"))) for m in shape_set.matrices]
    roles = orthoopt.roles(named)
    assert {role.view for role in roles} == {"matrix"}
    assert {role.role for role in roles} <= set(orthoopt.plans.MATRIX_ROLES)


def test_flops_by_hand() -> None:
    # One iteration on 2x3: A = XXᵀ has 4 entries of 3 multiply-adds, A² 4 of 2, BX 6 of 2; a multiply-add is two.
    by_hand = 2 * (4 * 3 + 4 * 2 + 6 * 2)
    assert shapes.newton_schulz_flops(2, 3, 1) == shapes.newton_schulz_flops(3, 2, 1) == by_hand


def test_an_unknown_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'gpt3'.*gpt2"):
        shapes.choose(["gpt3"], "cpu")
    assert [s.name for s in shapes.choose([], "cpu")] == ["cpu_small"]
    assert [s.name for s in shapes.choose(["all"], "cpu")] == list(shapes.SETS)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=5))
def test_interleaving_keeps_counts_and_spreads_them(repeats: list[int]) -> None:
    order = timing.interleave(repeats)
    assert [order.count(i) for i in range(len(repeats))] == repeats
    most = max(repeats)
    for i, n in enumerate(repeats):
        places = [k for k, j in enumerate(order) if j == i]
        # Between two turns of one call lie at most the rounds it skips, of at most one turn of each.
        gap = (-(-most // n) + 1) * len(repeats) if n else 0
        assert all(b - a <= gap for a, b in zip(places, places[1:], strict=False))


def test_slow_calls_get_fewer_repeats_but_three() -> None:
    assert timing.repeats_within(60, 0.1, most=40) == 40
    assert timing.repeats_within(60, 10.0, most=40) == 6
    assert timing.repeats_within(60, 1e3, most=40) == 3
    assert timing.repeats_within(60, 1e3, most=2) == 2


def test_summary_by_hand() -> None:
    summary = timing.summarize([4.0, 1.0, 3.0, 2.0, 5.0, 6.0])
    assert summary == {"repeats": 6, "median": 3.5, "p20": 2.0, "p80": 5.0, "halves": [3.0, 5.0]}


def test_every_variant_is_right_and_timed() -> None:
    result = measure(variants.VARIANTS)
    rows = {row["name"]: row for row in result["variants"]}
    assert set(rows) == {v.name for v in variants.VARIANTS if not v.needs_model_names}
    for row in rows.values():
        assert row["correct"] and 0 < row["error"] <= row["tolerance"]
        assert 0 < row["seconds"]["p20"] <= row["seconds"]["median"] <= row["seconds"]["p80"]
        assert row["share_of_ceiling"] > 0
    ratio = rows[variants.BASELINE]["seconds"]["median"] / rows[variants.OURS]["seconds"]["median"]
    assert result["ours_times_faster_than_baseline"] == ratio


def test_a_models_names_bring_the_plan_in() -> None:
    names = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight")
    shape_set = ShapeSet("named", tuple(Matrix(name, 32, 32) for name in names), from_model=True)
    rows = {row["name"]: row for row in measure(variants.VARIANTS, shape_set)["variants"]}
    assert rows["orthoopt.Symmetry"]["correct"]


def _momentum_off(named: variants.Named) -> torch.optim.Optimizer:
    return orthoopt.Muon(named, variants.LR, variants.WEIGHT_DECAY, 0.9, ns_coefficients=variants.NS_COEFFICIENTS)


def _other_coefficients(named: variants.Named) -> torch.optim.Optimizer:
    return orthoopt.Muon(named, variants.LR, variants.WEIGHT_DECAY, ns_coefficients="quintic")


def _no_decay(named: variants.Named) -> torch.optim.Optimizer:
    return orthoopt.Muon(named, variants.LR, 0.0, ns_coefficients=variants.NS_COEFFICIENTS)


class _ToNaN(torch.optim.SGD):
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                param.detach().fill_(float("nan"))


@pytest.mark.parametrize(
    "build", [_momentum_off, _other_coefficients, _no_decay, lambda named: _ToNaN([p for _, p in named], 0.1)]
)
def test_a_wrong_result_gets_no_time(build) -> None:
    ours, baseline = (next(v for v in variants.VARIANTS if v.name == n) for n in (variants.OURS, variants.BASELINE))
    result = measure((replace(ours, build=build), baseline))
    wrong, right = result["variants"]
    assert not wrong["correct"] and wrong["seconds"] is wrong["share_of_ceiling"] is None
    assert wrong["times_faster_than_baseline"] is result["ours_times_faster_than_baseline"] is None
    assert right["seconds"]["repeats"] == 4
    line = next(line for line in step.table(result).splitlines() if line.startswith(variants.OURS))
    assert "wrong result: not timed" in line


def test_the_command_writes_strict_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(shapes.SETS, "tiny", TINY)
    monkeypatch.setitem(step._MATMUL, "cpu", (torch.float32, 64))
    monkeypatch.setitem(step._COPY_MEBIBYTES, "cpu", 1)
    monkeypatch.setenv("OUT", str(tmp_path / "from_variable"))
    assert step.main(["--shapes", "tiny", "--repeats", "3"]) == 0
    written = tmp_path / "from_variable" / "step_cpu.json"
    result = json.loads(written.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert set(result) == {"bench", "machine", "settings", "shapes"}
    assert result["machine"]["versions"]["torch"] == torch.__version__
    row = result["shapes"]["tiny"]
    assert row["baseline"] == variants.BASELINE and row["newton_schulz_flops"] == TINY.newton_schulz_flops()
    assert {"per_second", "seconds", "unit"} <= set(row["ceilings"]["matmul"]) & set(row["ceilings"]["copy"])
    printed = capsys.readouterr().out
    ratio = row["ours_times_faster_than_baseline"]
    assert (
        f"{max(ratio, 1 / ratio):.1f} times {'faster' if ratio >= 1 else 'as long'}" in printed
        and str(written) in printed
    )


def test_the_command_fails_when_a_variant_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SETS, "tiny", TINY)
    monkeypatch.setitem(step._MATMUL, "cpu", (torch.float32, 64))
    monkeypatch.setitem(step._COPY_MEBIBYTES, "cpu", 1)
    wrong = replace(variants.VARIANTS[0], build=_no_decay)
    monkeypatch.setattr(variants, "VARIANTS", (wrong,))
    assert step.main(["--shapes", "tiny", "--repeats", "3", "--out", str(tmp_path)]) == 1
    row = json.loads((tmp_path / "step_cpu.json").read_text())["shapes"]["tiny"]["variants"][0]
    assert row["correct"] is False and row["seconds"] is None


@pytest.mark.parametrize(
    "words", [["--shapes", "gpt3"], ["--repeats", "0"], ["--seconds", "nan"], ["--threads", "0"], ["--device", "tpu"]]
)
def test_a_wrong_option_is_a_usage_error(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        step.main(words)
    assert stop.value.code == 2
    assert words[0] in capsys.readouterr().err


@pytest.mark.gpu
def test_the_cuda_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    names = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight")
    shape_set = ShapeSet("tiny", tuple(Matrix(name, 128, 256) for name in names), from_model=True)
    monkeypatch.setitem(shapes.SETS, "tiny", shape_set)
    assert step.main(["--device", "cuda", "--shapes", "tiny", "--repeats", "5", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "step_cuda.json").read_text())
    assert result["machine"]["gpu"]["name"]
    assert all(row["device_seconds"]["median"] > 0 for row in result["shapes"]["tiny"]["variants"])

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import orthoopt
from orthoopt import polar
from orthoopt.bench import definitions, shapes, step, step_table, timing, variants
from orthoopt.bench.shapes import Matrix, ShapeSet

CPU = torch.device("cpu")
TINY = ShapeSet("tiny", (Matrix("a", 32, 32), Matrix("b", 32, 48), Matrix("c", 48, 32)), from_model=False)


def measure(contenders: tuple[variants.Variant, ...], shape_set: ShapeSet = TINY) -> dict:
    return step.measure(shape_set, contenders, CPU, repeats=4, seconds=1.0, matmul_size=64, copy_mebibytes=1)


def counts(name: str) -> Counter:
    return shapes.SETS[name].counts()


def test_the_sets_are_the_models() -> None:
    assert counts("cpu_small") == {(256, 256): 16, (256, 1024): 4, (1024, 256): 4}
    assert counts("gpt2") == {(768, 768): 48, (3072, 768): 12, (768, 3072): 12}
    either_way = Counter((min(s), max(s)) for s in counts("qwen3_0.6b").elements())
    assert either_way == {(1024, 1024): 56, (1024, 2048): 56, (1024, 3072): 84}
    either_way = Counter((min(s), max(s)) for s in counts("llama3.2_1b").elements())
    assert either_way == {(2048, 2048): 32, (512, 2048): 32, (2048, 8192): 48}
    assert counts("olmoe_layer") == {(2048, 2048): 4, (1024, 2048): 128, (2048, 1024): 64}


def test_parameters_are_the_published_ones() -> None:
    # Hidden matrices of GPT-2 124M, Qwen3-0.6B and Llama-3.2-1B, to the tenth of a million.
    wanted = {"gpt2": 84.9, "qwen3_0.6b": 440.4, "llama3.2_1b": 973.1}
    assert {name: round(shapes.SETS[name].parameters / 1e6, 1) for name in wanted} == wanted


@pytest.mark.parametrize("name", shapes.SETS)
def test_every_matrix_is_a_whole_linear_map_to_the_dispatcher(name: str) -> None:
    """Else the optimizers of a row would not do the same work."""
    shape_set = shapes.SETS[name]
    named = [(m.name, torch.nn.Parameter(torch.empty(m.shape, device="meta"))) for m in shape_set.matrices]
    roles = orthoopt.roles(named)
    wanted = ["matrix" if m.fused == 1 else f"split({','.join([str(m.rows)] * m.fused)})" for m in shape_set.matrices]
    assert [role.view for role in roles] == wanted
    assert {role.role for role in roles} <= set(orthoopt.plans.MATRIX_ROLES)


def test_flops_by_hand() -> None:
    # One iteration on 2x3: A = XXᵀ has 4 entries of 3 multiply-adds, A² 4 of 2, BX 6 of 2; a multiply-add is two.
    by_hand = 2 * (4 * 3 + 4 * 2 + 6 * 2)
    assert shapes.standard_flops(2, 3, 1) == shapes.standard_flops(3, 2, 1) == by_hand
    # Two steps in the Gram form: XXᵀ; Z, and the first Q for nothing; RZ and ZRZ; Z; QZ; QX.
    assert shapes.gram_flops(2, 3, 2) == 2 * (4 * 3 + 5 * 8 + 6 * 2)
    for rows, cols, form in ((8, 8, shapes.standard_flops), (8, 16, shapes.gram_flops), (16, 8, shapes.gram_flops)):
        assert shapes.newton_schulz_flops(rows, cols) == form(rows, cols)
    assert shapes.gram_flops(2, 3) == shapes.standard_flops(2, 3)  # five steps cost the same at an aspect of 1.5


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
def test_the_gram_forms_count_is_the_products_it_makes(steps: int, rows: int, cols: int) -> None:
    """Written out on matrices of ones, counting; every polynomial of one matrix commutes, so the order is free."""
    short, long = min(rows, cols), max(rows, cols)
    x = torch.randn(short, long, dtype=torch.float64)
    r, q, count = x @ x.mT, None, 4 * short * short * long
    expected = definitions.newton_schulz(x, [(1.5, -0.5, 0.1)] * steps)
    r = r / x.norm() ** 2
    for step_number in range(steps):
        z, count = -0.5 * r + 0.1 * r @ r, count + 2 * short**3
        map_ = z + 1.5 * torch.eye(short, dtype=torch.float64)
        q, count = (map_, count) if q is None else (map_ @ q, count + 2 * short**3)
        if step_number + 1 < steps:
            r, count = map_ @ r @ map_, count + 4 * short**3
    assert count == shapes.gram_flops(rows, cols, steps)
    assert torch.allclose(q @ x / x.norm(), expected, rtol=1e-9, atol=1e-12)  # float64, a dozen products


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("beside", [-1e-7, 0.0, 1e-7])
def test_a_definition_keeps_the_directions_that_float32_keeps(seed: int, beside: float) -> None:
    """Of a matrix with a singular value on the very edge of what float32 takes for rounding."""
    x = torch.randn(24, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(x)
    s /= s.norm()
    s[-1] = polar.rank_tolerance(x.float()) * (1 + beside)
    x = (u * s) @ vh
    kept = (torch.linalg.svdvals(x.float()) > polar.rank_tolerance(x.float())).sum()
    assert (torch.linalg.svdvals(x) > definitions._of_float32(x)).sum() == kept >= 23


def test_an_unknown_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'gpt3'.*gpt2"):
        shapes.choose(["gpt3"], "cpu")
    assert [s.name for s in shapes.choose([], "cpu")] == list(shapes.DEFAULTS["cpu"])
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


# Compiling takes longer than everything else here; slow tests and the bench itself do that.
EAGER = tuple(v for v in variants.VARIANTS if not v.compiled)
MODEL = ShapeSet(
    "named",
    (
        Matrix("model.layers.0.self_attn.q_proj.weight", 32, 32),
        Matrix("model.layers.0.mlp.up_proj.weight", 48, 32),
        Matrix("model.layers.0.mlp.down_proj.weight", 32, 48),
        Matrix("model.layers.1.mlp.experts.gate_up_proj", 40, 32, experts=2, fused=2),
        Matrix("model.layers.1.mlp.experts.down_proj", 32, 40, experts=2),
    ),
    from_model=True,
)


def test_every_variant_is_right_and_timed() -> None:
    """With a model's names, for plans have roles; with banks of experts, for some take 2-D parameters alone."""
    result = measure(EAGER, MODEL)
    rows = {row["name"]: row for row in result["variants"]}
    assert set(rows) == {v.name for v in EAGER} and not result["skipped"]
    for row in rows.values():
        assert row["correct"] and 0 < row["error"] <= row["tolerance"], row["name"]
        assert 0 < row["seconds"]["p20"] <= row["seconds"]["median"] <= row["seconds"]["p80"]
        assert (row["share_of_ceiling"] is None) == (row["bound"] == "other")
    assert result["matrices"] == result["checked_matrices"] == 9
    ratio = rows[variants.BASELINE]["seconds"]["median"] / rows[variants.OURS]["seconds"]["median"]
    assert result["ours_times_faster_than_baseline"] == ratio


def test_plans_of_roles_are_left_out_where_there_are_no_names() -> None:
    result = measure(EAGER[:1] + tuple(v for v in EAGER if v.needs_model_names))
    assert [row["name"] for row in result["variants"]] == [variants.OURS]
    assert {row["reason"] for row in result["skipped"]} == {"the set has no model's names"}


def test_every_constructor_of_ours_is_a_variant() -> None:
    names = {v.name.split()[0].removeprefix("orthoopt.") for v in variants.OF_OURS}
    assert names == set(orthoopt.named.__all__)


def test_torchs_muon_in_float32_is_float32_and_leaves_no_trace() -> None:
    cast = torch.Tensor.bfloat16
    result = measure(tuple(v for v in EAGER if v.name.startswith("torch.optim.Muon")))
    errors = {row["name"]: row["error"] for row in result["variants"]}
    # A hundredth in bfloat16, a millionth in float32: the cast was what was patched.
    assert errors["torch.optim.Muon float32"] < 1e-4 < 1e-3 < errors["torch.optim.Muon"]
    assert torch.Tensor.bfloat16 is cast and torch.ones(1).bfloat16().dtype == torch.bfloat16


def test_a_variant_that_writes_gradients_does_so_to_its_own() -> None:
    class Greedy(torch.optim.SGD):
        def step(self, closure: None = None) -> None:
            super().step()
            for group in self.param_groups:
                for param in group["params"]:
                    param.grad.fill_(float("nan"))

    def definition(name: str, parameter: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
        return parameter - 0.1 * sum(gradients)

    greedy = variants.Variant(
        "greedy", lambda named: Greedy([p for _, p in named], 0.1), definition, "other", keeps_gradients=False
    )
    result = measure((greedy, EAGER[0], greedy))
    assert [row["correct"] for row in result["variants"]] == [True, True, True]
    with pytest.warns(RuntimeWarning, match="not finite"):  # given the shared ones, it spoils them for the next
        wrong = measure((replace(greedy, keeps_gradients=True), EAGER[0]))
    assert not any(row["correct"] for row in wrong["variants"])


def test_a_compiler_that_fails_or_takes_too_long_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = next(v for v in variants.VARIANTS if v.compiled)

    def too_long(step: object) -> object:
        return lambda: [time.sleep(0.01) for _ in range(3000)]

    def no_compiler(step: object) -> object:
        raise RuntimeError("no C++ compiler\nand more lines")

    for compile_, reason in ((too_long, "TimeoutError: took more than 0.2 s"), (no_compiler, "no C++ compiler")):
        monkeypatch.setattr(torch, "compile", compile_)
        result = step.measure(
            TINY,
            (EAGER[0], compiled),
            CPU,
            repeats=3,
            seconds=1.0,
            compile_seconds=0.2,
            matmul_size=64,
            copy_mebibytes=1,
        )
        assert [row["name"] for row in result["variants"]] == [variants.OURS]
        (left_out,) = result["skipped"]
        assert left_out["name"] == compiled.name and left_out["reason"].endswith(reason)


def test_the_table_fits_a_terminal() -> None:
    missing = replace(EAGER[0], missing="not installed")
    text = step_table.terminal(
        measure((*EAGER, *[replace(missing, name=f"a peer of long name {i}") for i in range(9)]), MODEL)
    )
    assert max(map(len, text.splitlines())) <= 140
    assert text.count("not installed") == 1


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
    assert right["seconds"]["repeats"] >= 3  # four, or as many as fit on a busy machine
    line = next(line for line in step_table.terminal(result).splitlines() if line.startswith(variants.OURS))
    assert "wrong result: not timed" in line


def test_the_command_writes_strict_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(shapes.SETS, "tiny", TINY)
    monkeypatch.setitem(step.MATMUL, "cpu", (torch.float32, 64))
    monkeypatch.setitem(step.COPY_MEBIBYTES, "cpu", 1)
    monkeypatch.setenv("OUT", str(tmp_path / "from_variable"))
    assert step.main(["--shapes", "tiny:orthoopt,torch.optim.Muon float,torch.optim.AdamW", "--repeats", "3"]) == 0
    written = tmp_path / "from_variable" / "step_cpu.json"
    result = json.loads(written.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert set(result) == {"bench", "machine", "settings", "must_show", "shapes"}
    assert {line["set"] for line in result["must_show"]} == {"tiny"}
    assert len(result["must_show"]) == 2 * len(variants.LINEAR)  # beside fused AdamW, and beside a copy
    page = written.with_suffix(".md").read_text()
    assert all(row["name"] in page for row in result["shapes"]["tiny"]["variants"])
    assert result["machine"]["versions"]["torch"] == torch.__version__
    row = result["shapes"]["tiny"]
    assert row["baseline"] == variants.BASELINE and row["newton_schulz_flops"] == TINY.newton_schulz_flops()
    assert {"per_second", "seconds", "unit"} <= set(row["ceilings"]["matmul"]) & set(row["ceilings"]["copy"])
    printed = capsys.readouterr().out
    assert str(written) in printed


def test_the_command_fails_when_a_variant_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SETS, "tiny", TINY)
    monkeypatch.setitem(step.MATMUL, "cpu", (torch.float32, 64))
    monkeypatch.setitem(step.COPY_MEBIBYTES, "cpu", 1)
    wrong = replace(variants.VARIANTS[0], build=_no_decay)
    monkeypatch.setattr(variants, "VARIANTS", (wrong,))
    monkeypatch.setattr(step, "peers", lambda device: [])
    assert step.main(["--shapes", "tiny", "--repeats", "3", "--out", str(tmp_path)]) == 1
    row = json.loads((tmp_path / "step_cpu.json").read_text())["shapes"]["tiny"]["variants"][0]
    assert row["correct"] is False and row["seconds"] is None


@pytest.mark.parametrize(
    "words",
    [
        ["--shapes", "gpt3"],
        ["--variants", "muom"],
        ["--repeats", "0"],
        ["--seconds", "nan"],
        ["--threads", "0"],
        ["--device", "tpu"],
    ],
)
def test_a_wrong_option_is_a_usage_error(words: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        step.main(words)
    assert stop.value.code == 2
    assert words[0] in capsys.readouterr().err

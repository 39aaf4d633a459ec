"""FLOPs: exactly torch's own count for matrix products, closed forms for the rest, every rule and plan countable."""

from __future__ import annotations

import time
from typing import Any

import models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import orthoopt
from orthoopt import plans, rules
from orthoopt.explain import explain
from orthoopt.flops import FlopCounter, Flops, step_flops
from orthoopt.gram_newton_schulz import gram_newton_schulz
from orthoopt.newton_schulz import newton_schulz

WIDE, TALL, SQUARE = (24, 56), (40, 16), (32, 32)


def group_of(rule: str, **options: Any) -> dict[str, Any]:
    view = "matrix" if rules.get(rule).is_matrix else "vector"
    return {"rule": rule, "view": view, **options}


def counted(function: Any, *tensors: Tensor) -> FlopCounter:
    with FlopCounter() as counter:
        function(*tensors)
    return counter


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def measured_products(shape: tuple[int, ...], group: dict[str, Any], dtype: torch.dtype) -> int:
    """What torch counts in the second step of the optimizer on real tensors."""
    param = nn.Parameter(torch.randn(shape, dtype=dtype))
    param.grad = torch.randn_like(param)
    optimizer = orthoopt.OrthoOpt([{**group, "params": [param]}])
    optimizer.step()
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("shape", [WIDE, TALL, SQUARE, (3, *WIDE)])
@pytest.mark.parametrize("rule", rules.names())
def test_products_are_exactly_what_torch_counts_on_real_tensors(rule: str, shape: tuple[int, ...]) -> None:
    # "auto" is an SVD for small matrices on CPUs, and never on an accelerator, as which the meta device counts.
    exact = {"method": "polar_express"} if rules.get(rule).defaults.get("method") == "auto" else {}
    group = group_of(rule, **exact)
    assert step_flops(shape, group).matmul == measured_products(shape, group, torch.float32)


@pytest.mark.parametrize(
    ("shape", "group"),
    [
        ((24, 90), group_of("spectral", view="transpose split(30,30,30)")),
        ((4, 24, 40), group_of("spectral", view="transpose interleave(2)", second_moment="rows")),
        ((32, 24), group_of("spectral", view="heads(4)")),
        ((16, 4, 3, 3), group_of("spectral", view="flatten")),
        ((24, 56), group_of("hybrid", centre="both", nu_mode="nuclear", axis="cols")),
        ((24, 56), group_of("polargrad", method="gram", order="polar_first")),
        ((24, 56), group_of("ssd", method="qdwh")),
        ((24, 56), group_of("ssd", method="svd")),
        ((24, 56), group_of("spectral", ns_coefficients="aol4", ns_steps=4)),
        ((24, 56), group_of("dct_adamw", error_feedback=True)),
        ((24, 56), group_of("scion", norm="row_norm", weight_decay_mode="cautious")),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_options_and_dtypes_too(shape: tuple[int, ...], group: dict[str, Any], dtype: torch.dtype) -> None:
    assert step_flops(shape, group, dtype).matmul == measured_products(shape, group, dtype)


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 7))
def test_newton_schulz_costs_what_its_formula_says(rows: int, cols: int, steps: int) -> None:
    m, n = sorted((rows, cols))
    flops = counted(lambda x: newton_schulz(x, steps, "muon"), empty(rows, cols)).flops
    assert flops.matmul == steps * (2 * m * m * n + 2 * m**3 + 2 * m * m * n)
    # Magnitude, cast and the first step's scale for X, trace and scale for its Gram matrix, a few numbers; nothing a
    # step: the polynomial's sums are inside the products.
    assert flops.other <= 5 * m * n + m * m + m + 20


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 5))
def test_the_gram_form_costs_what_its_formula_says(rows: int, cols: int, steps: int) -> None:
    m, n = sorted((rows, cols))
    flops = counted(lambda x: gram_newton_schulz(x, steps, "polar_express", restarts=()), empty(rows, cols)).flops
    # 2(4k - 3)m³ + 4m²n: the first Q costs nothing, the last R is not made.
    assert flops.matmul == 2 * (4 * steps - 3) * m**3 + 4 * m * m * n


def test_elementwise_reductions_views_and_copies() -> None:
    x = empty(6, 8)
    for function, expected in (
        (lambda x: x * 2 + x, 2 * 48),
        (lambda x: torch.where(x > 0, x.sqrt(), 0), 3 * 48),
        (lambda x: x.sum(-1), 48),
        (lambda x: torch.linalg.vector_norm(x), 48),
        (lambda x: x - x.mean(-2, keepdim=True), 2 * 48),
        (lambda x: torch._foreach_add_([x, x], 1.0), 2 * 48),
        (lambda x: torch._foreach_norm([x, x]), 2 * 48),
        (lambda x: x.mT.reshape(4, 12).split(6, -1)[0].clone().copy_(torch.cat([x[:2], x[2:4]])[:, :6]), 0),
        (lambda x: x.argsort(-1), 48 * 3),
        (lambda x: x.topk(2).values, 48),
    ):
        counter = counted(function, x)
        assert (counter.flops, counter.unlisted) == (Flops(0, expected), set()), counter.by_operation


def test_products_of_every_kind() -> None:
    a, b, v = empty(5, 7), empty(7, 3), empty(7)
    stack, other = empty(4, 5, 7), empty(4, 7, 3)
    for function, expected in (
        (lambda: a @ b, 2 * 5 * 7 * 3),
        (lambda: torch.addmm(empty(5, 3), a, b, beta=0.5), 2 * 5 * 7 * 3),
        (lambda: stack @ other, 4 * 2 * 5 * 7 * 3),
        (lambda: torch.baddbmm(empty(4, 5, 3), stack, other), 4 * 2 * 5 * 7 * 3),
        (lambda: stack @ b, 4 * 2 * 5 * 7 * 3),
        (lambda: a @ v, 2 * 5 * 7),
        (lambda: v @ v, 2 * 7),
        (lambda: torch.einsum("bij,jk->bik", stack, b), 4 * 2 * 5 * 7 * 3),
    ):
        assert counted(function).flops.matmul == expected


def test_factorizations_and_transforms_have_their_textbook_cost() -> None:
    m, n = 30, 12
    x, square, right = empty(2, m, n), empty(2, n, n), empty(2, n, 5)
    for function, expected in (
        (lambda: torch.linalg.qr(x), 2 * (4 * m * n * n - 4 * n**3 / 3)),
        (lambda: torch.linalg.svd(x, full_matrices=False), 2 * (6 * m * n * n + 20 * n**3)),
        (lambda: torch.ops.aten._linalg_svd(x, False, False), 2 * (2 * m * n * n + 2 * n**3)),
        (lambda: torch.linalg.eigh(square), 2 * 9 * n**3),
        (lambda: torch.linalg.cholesky_ex(square), 2 * n**3 / 3),
        (lambda: torch.cholesky_inverse(square), 2 * 2 * n**3 / 3),
        (lambda: torch.cholesky_solve(right, square), 2 * 2 * n * n * 5),
        (lambda: torch.linalg.solve_triangular(square, right, upper=True), 2 * n * n * 5),
        (lambda: torch.fft.fft(empty(3, 16).to(torch.complex64)), 3 * 5 * 16 * 4),
        (lambda: torch.fft.rfft(empty(3, 16)), 3 * 2.5 * 16 * 4),
        (lambda: torch.fft.irfft(torch.empty(3, 9, dtype=torch.complex64, device="meta"), n=16), 3 * 2.5 * 16 * 4),
    ):
        counter = counted(function)
        other = {name: cost for name, cost in counter.by_operation.items() if name not in ("clone", "mul")}
        assert sum(other.values()) == round(expected), counter.by_operation
        assert not counter.unlisted


@pytest.mark.parametrize("rule", ["row_norm", "auon"])
def test_the_same_on_any_device(rule: str) -> None:
    """Where no value is read and no form is chosen; an iteration on a CPU skips its norm."""
    function = rules.get(rule).direct
    options = dict(rules.get(rule).defaults)
    real = counted(lambda x: function(x, options), torch.randn(8, 20))
    meta = counted(lambda x: function(x, options), empty(8, 20))
    assert real.by_operation == meta.by_operation


def test_what_has_no_values_is_counted_in_standard_form_and_a_cpu_does_no_more() -> None:
    """As on an accelerator, where ``step_flops`` counts; from a side of 64 a CPU takes the form that is cheaper."""
    for shape in ((100, 120), (80, 400), (900, 300)):
        m, n = sorted(shape)
        meta, real = (counted(lambda x: newton_schulz(x, 5, "muon"), x) for x in (empty(*shape), torch.randn(shape)))
        assert meta.flops.matmul == 5 * (4 * m * m * n + 2 * m**3) >= real.flops.matmul
        assert real.flops.other < 0.6 * meta.flops.other  # no pass over the matrix for its norm
        assert not real.unlisted


@pytest.mark.parametrize("rule", rules.names())
def test_every_rule_is_made_of_listed_operations_and_costs_something_everywhere(rule: str) -> None:
    for shape in (WIDE, (600, 300), (3, 40, 24), (5000, 2500)):
        with torch.device("meta"):
            param = nn.Parameter(torch.empty(shape))
            param.grad = torch.empty(shape)
            optimizer = orthoopt.OrthoOpt([{**group_of(rule), "params": [param]}])
            optimizer.step()
            counter = FlopCounter()
            with counter:
                optimizer.step()
        assert not counter.unlisted
        # Read and compare the gradient, move the state, write the parameter; nothing but products is quadratic, but
        # for Fourier transforms of n·log n.
        assert 4 * param.numel() < counter.flops.other < 60 * param.numel()
        assert counter.flops == step_flops(shape, group_of(rule)) == step_flops(shape, group_of(rule))


@pytest.mark.parametrize("plan", plans.names())
def test_every_plan_has_a_cost(plan: str) -> None:
    for model in (models.gpt_oss(), models.gpt2(), models.ConvNet().to("meta")):
        explained = explain(model, plan)
        assert explained.flops and all(row.flops for row in explained.rows)


def test_adamw_costs_its_passes() -> None:
    # finite, gate; m: two products and a sum; v: the same and a square; root, correction, eps; decay; two quotients,
    # times the learning rate, and the difference. The rest is the step's count.
    flops = step_flops((100, 50), {"rule": "adamw", "view": "vector"})
    assert flops.matmul == 0 and flops.other // 5000 == 17 and flops.other % 5000 < 50


def test_costs_of_a_batch_are_those_of_its_matrices() -> None:
    one, many = (step_flops(shape, group_of("spectral")) for shape in (WIDE, (7, *WIDE)))
    assert many.matmul == 7 * one.matmul
    assert abs(many.other - 7 * one.other) < 7 * 50  # numbers of the step, not of a matrix


def test_counting_leaves_the_cached_bases_alone() -> None:
    x = torch.randn(16, 300)
    before = rules.get("trion").update(x)[0]
    step_flops((16, 300), group_of("trion"))
    assert torch.equal(rules.get("trion").update(x)[0], before)


def test_a_large_model_is_counted_quickly() -> None:
    model = models.transformers_model("LlamaForCausalLM", {"num_hidden_layers": 32})
    started = time.perf_counter()
    explained = explain(model)
    assert time.perf_counter() - started < 3  # 0.2 s when the machine is idle
    products = 0
    for row in explained.rows:
        m, n = sorted(row.shape) if row.rule == "spectral" else (0, 0)
        products += 5 * (4 * m * m * n + 2 * m**3)
    assert explained.matmul_flops == products > 0


def test_it_allocates_nothing() -> None:
    assert step_flops((10**6, 10**6), group_of("row_norm")).total > 10**13  # four terabytes


def test_the_mode_of_the_caller_does_not_matter() -> None:
    expected = step_flops(WIDE, group_of("spectral"))
    for mode in (torch.inference_mode(), torch.no_grad(), torch.device("cpu"), torch.autocast("cpu"), FlopCounter()):
        with mode:
            assert step_flops(WIDE, group_of("spectral")) == expected

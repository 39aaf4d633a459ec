"""The choice of a form: its FLOPs are those torch counts, it takes the fewest, and it says why."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from orthoopt.coefficients import resolve_coefficients
from orthoopt.gram_newton_schulz import gram_newton_schulz
from orthoopt.iteration_form import (
    MIN_GRAM_SIDE,
    FormName,
    choose_form,
    gram_flops,
    gram_form,
    is_bounded,
    standard_flops,
)
from orthoopt.kernels import reference, symmetric_share
from orthoopt.newton_schulz import newton_schulz

FIVE = resolve_coefficients("polar_express", 5)


def counted(x: Tensor, steps: int, table: str, form: FormName | None) -> int:
    with FlopCounterMode(display=False) as counter:
        newton_schulz(x, steps, table, form=form)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("shape", [(3, 70, 200), (2, 200, 70), (64, 64), (2, 300, 310), (270, 900), (1, 600, 2400)])
@pytest.mark.parametrize(("table", "steps"), [("polar_express", 5), ("muon", 7), ("cubic5", 5)])
@pytest.mark.parametrize("form", ["standard", "gram", None])
def test_stated_flops_are_what_torch_counts_on_a_cpu(
    shape: tuple[int, ...], table: str, steps: int, form: FormName | None
) -> None:
    rows, cols = shape[-2:]
    with FlopCounterMode(display=False):  # compiled loops leave products to torch where somebody counts them
        share = symmetric_share(min(rows, cols), "cpu", torch.float32)
    chosen = choose_form(rows, cols, resolve_coefficients(table, steps), torch.float32, "cpu", share, form)
    batch = shape[0] if len(shape) > 2 else 1
    assert counted(torch.randn(shape), steps, table, form) == batch * chosen.flops


@given(st.integers(2, 40), st.integers(0, 40), st.integers(2, 7), st.data())
def test_the_gram_form_costs_its_products_for_any_restarts(
    rows: int, extra: int, steps: int, data: st.DataObject
) -> None:
    restarts = data.draw(st.sets(st.integers(1, steps - 1)))
    cols = rows + extra
    with FlopCounterMode(display=False) as counter:
        gram_newton_schulz(torch.empty(rows, cols, device="meta"), steps, "muon", restarts=restarts)
    table = resolve_coefficients("muon", steps)
    assert counter.get_total_flops() == gram_flops(rows, cols, table.rows, sorted(restarts))


def test_the_published_counts() -> None:
    """In units of m³, five steps: the table of arXiv 2608.11612's operations, dense and with symmetric kernels."""
    unit = 64**3
    for aspect, dense, kernels in ((1, 30, 20), (2, 50, 35), (4, 90, 65), (8, 170, 125)):
        assert standard_flops(64, 64 * aspect, FIVE.rows) == dense * unit
        assert standard_flops(64, 64 * aspect, FIVE.rows, 0.5) == kernels * unit
    for aspect, plain, restarted in ((1, 38, 36), (2, 42, 44), (4, 50, 60), (8, 66, 92)):
        assert gram_flops(64, 64 * aspect, FIVE.rows, ()) == plain * unit
        assert gram_flops(64, 64 * aspect, FIVE.rows, (2,)) == restarted * unit


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([0.5, 0.625, 0.75, 1.0]))
def test_the_cheaper_form_is_taken(rows: int, cols: int, share: float) -> None:
    m, n = sorted((rows, cols))
    chosen = choose_form(rows, cols, FIVE, torch.float32, "cpu", share)
    assert chosen == choose_form(cols, rows, FIVE, torch.float32, "cpu", share)
    if m < MIN_GRAM_SIDE["cpu"]:
        assert chosen.name == "standard" and "calls" in chosen.why
        return
    cheapest = min(
        standard_flops(m, n, FIVE.rows, share),
        gram_flops(m, n, FIVE.rows, (), share),
        gram_flops(m, n, FIVE.rows, (2,), share),
    )
    # A restart may cost up to 15 percent, for accuracy.
    assert cheapest <= chosen.flops <= 1.15 * cheapest
    assert chosen.name == ("gram" if n > 1.6 * m else chosen.name if n > 1.2 * m else "standard")
    assert "GFLOP" in chosen.why


@pytest.mark.parametrize(
    ("rows", "cols", "table", "dtype", "device", "name", "restarts", "why"),
    [
        (768, 768, "polar_express", torch.float32, "cpu", "standard", (), "in standard form"),
        (768, 1536, "polar_express", torch.float32, "cpu", "gram", (2,), "nearly null directions"),
        (2048, 768, "muon", torch.float32, "cpu", "gram", (3,), "nearly null directions"),
        (768, 6144, "polar_express", torch.float32, "cpu", "gram", (), "would cost"),
        (768, 3072, "polar_express", torch.float64, "cpu", "gram", (), "float64"),
        (768, 3072, "polar_express", torch.bfloat16, "cpu", "standard", (), "bfloat16"),
        (768, 3072, "polar_express", torch.float16, "cpu", "standard", (), "not safe in float16"),
        (768, 3072, "muon", torch.float16, "cpu", "gram", (3,), "drifts"),
        (768, 3072, "polar_express", torch.bfloat16, "cuda", "standard", (), "bfloat16"),
        (768, 3072, "polar_express", torch.float32, "cuda", "standard", (), "float16 alone"),
        (768, 3072, "polar_express", torch.float32, "meta", "standard", (), "on meta"),
        (768, 3072, "polar_express", torch.float16, "cuda", "standard", (), "not safe in float16"),
        (768, 3072, "polar_express_a_1.05", torch.float16, "cuda", "gram", (2,), "drifts"),
        (768, 1000, "polar_express_a_1.05", torch.float16, "cuda", "standard", (), "aspect of 1.5"),
        (128, 768, "polar_express_a_1.05", torch.float16, "cuda", "standard", (), "side of 256"),
    ],
)
def test_the_choice_and_its_reason(
    rows: int,
    cols: int,
    table: str,
    dtype: torch.dtype,
    device: str,
    name: FormName,
    restarts: tuple[int, ...],
    why: str,
) -> None:
    share = 0.5 if device == "cuda" else reference.symmetric_share(min(rows, cols), device, dtype)
    chosen = choose_form(rows, cols, resolve_coefficients(table, 5), dtype, device, share)
    assert (chosen.name, chosen.restarts) == (name, restarts) and why in chosen.why


def test_float16_never_goes_without_a_restart() -> None:
    for name in ("muon", "quintic", "polar_express_a_1.05"):
        table = resolve_coefficients(name, 5)
        assert is_bounded(table)
        for cols in (128, 512, 100_000):
            assert gram_form(128, cols, table, torch.float16).restarts


def test_what_is_computed_of_a_symmetric_product() -> None:
    for rows, share in ((1, 1.0), (255, 1.0), (256, 0.75), (384, 2 / 3), (512, 0.625), (4096, 0.625)):
        assert reference.symmetric_share(rows, "cpu", torch.float32) == pytest.approx(share)
        assert symmetric_share(rows, "cuda", torch.float32) == symmetric_share(rows, "cpu", torch.bfloat16) == 1

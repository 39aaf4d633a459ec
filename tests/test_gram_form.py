"""``gram``: the same polynomials as ``newton_schulz``, in every dtype within what rounding leaves."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spectra import eps, momentum_like, spectrum
from strategies import SPECTRA, matrices, matrix, relative_error
from torch import Tensor

from orthoopt import coefficients, orthogonalize
from orthoopt.coefficients import resolve_coefficients
from orthoopt.gram_newton_schulz import gram_newton_schulz
from orthoopt.iteration_form import accurate_restarts, default_restarts
from orthoopt.newton_schulz import newton_schulz

SHORT = [name for name in coefficients.names() if name != "aol4"]  # whose cycle is four steps long


@given(
    st.sampled_from(SHORT),
    matrices(batched=True),
    st.sets(st.integers(1, 4)),
)
def test_the_gram_form_is_the_standard_form_for_any_restarts(table: str, x: Tensor, restarts: set[int]) -> None:
    """I2."""
    _, s, _ = spectrum(x)
    result = gram_newton_schulz(x, 5, table, restarts=restarts)
    expected = newton_schulz(x, 5, table, form="standard")
    # R holds squares: a rounding of the largest is one of √eps = 1e-8 in a singular value, and in directions of about
    # the inverse slope, 1e-3, the polynomials of R turn it into 1e-10 of the whole. These two tables are as steep at
    # the upper end of their interval, where a single row lies.
    steep = table in ("cans", "root_2048x2048")
    assert relative_error(result, expected) < (1e-12 if (s > 0.05).all() and not steep else 1e-10)


@given(
    st.sampled_from(["muon", "quintic", "polar_express", "polar_express_a", "deepseekv4"]),
    st.integers(6, 12),
    st.data(),
    st.integers(0, 2**31),
)
def test_the_gram_form_is_the_standard_form_with_more_steps(
    table: str, steps: int, data: st.DataObject, seed: int
) -> None:
    """I2, on matrices of full rank; the default restarts are among those drawn."""
    x = matrix(8, 24, "even", seed)
    rows = resolve_coefficients(table, steps).rows
    some = st.one_of(st.just(set(default_restarts(rows, torch.float64))), st.sets(st.integers(1, steps - 1)))
    result = gram_newton_schulz(x, steps, table, restarts=data.draw(some))
    # muon's map is chaotic around one: each further step doubles what it is given.
    assert relative_error(result, newton_schulz(x, steps, table, form="standard")) < 1e-11


@given(
    st.sampled_from(["muon", "quintic", "polar_express", "polar_express_a", "polar_express_a_1.05", "polar_express_c"]),
    st.integers(5, 8),
    matrices(batched=True),
)
def test_the_gram_form_in_float32(table: str, steps: int, x: Tensor) -> None:
    x = x.float()
    result = orthogonalize(x, steps, table, method="gram")
    expected = orthogonalize(x.double(), steps, table)
    # Whole space: weights that rounding invents below 1e-3. Stated: 5e-3 in five steps, and twice the slope for more.
    assert relative_error(result, expected) < (5e-3 if steps == 5 else 2e-2)
    u, s, vh = spectrum(x)
    kept = (s > 1e-2).double()
    core = (u.mT @ (result.double() - expected) @ vh.mT) * kept.unsqueeze(-1) * kept.unsqueeze(-2)
    assert core.norm() < 5e-4 * expected.norm()


FLOAT16_TABLES = ["muon", "quintic", "polar_express_a_1.05"]


@pytest.mark.parametrize("table", FLOAT16_TABLES)
@pytest.mark.parametrize("kind", ["gaussian", "even", "log", "rank_one", "half_zero", "outlier", "momentum"])
def test_the_gram_form_in_float16_stays_bounded(table: str, kind: str) -> None:
    x = momentum_like(32, 128, 1) if kind == "momentum" else matrix(32, 128, kind, 1)
    result = orthogonalize(x.half(), 5, table, method="gram", dtype=torch.float16)
    assert torch.linalg.matrix_norm(result.double(), 2) < 1.22  # the tables' own largest value is 1.20
    expected = orthogonalize(x, 5, table)
    u, s, vh = spectrum(x)
    kept = (s > 1e-3).double()
    core = (u.mT @ (result.double() - expected) @ vh.mT) * kept.unsqueeze(-1) * kept
    assert core.norm() < 5e-2 * expected.norm()


@given(st.sampled_from(SPECTRA), st.integers(1, 60), st.integers(1, 80), st.integers(0, 2**31))
def test_almost_orthogonal_rescaling_in_float16(kind: str, rows: int, cols: int, seed: int) -> None:
    """Rows a thousand times shorter than the longest have squares that float16 does not hold, and still come out right.

    A few roundings of 2^-11 a step, times the polynomial's slope at zero, 1e2: 3.4e-2 was the most of 1500 draws.
    """
    x = matrix(rows, cols, kind, seed).float()
    x = x / x.abs().amax()
    result = gram_newton_schulz(x, 4, "aol4", torch.float16, restarts=(2,))
    expected = gram_newton_schulz(x.double(), 4, "aol4")
    assert torch.linalg.matrix_norm(result.double(), 2) < 1.15  # 1.05 by the table
    assert relative_error(result, expected) < 5e-2


@pytest.mark.parametrize("kind", ["log", "rank_one", "momentum"])
def test_without_its_restart_float16_explodes(kind: str) -> None:
    x = momentum_like(32, 128, 1) if kind == "momentum" else matrix(32, 128, kind, 1)
    result = gram_newton_schulz(x.half(), 5, "polar_express_a_1.05", torch.float16, restarts=())
    assert not torch.linalg.matrix_norm(result.double().nan_to_num(1e9, 1e9, 1e9), 2) < 2


def test_restarts_follow_the_growth_of_rounding() -> None:
    five = {name: resolve_coefficients(name, 5).rows for name in ("muon", "polar_express", "quintic")}
    # Before ‖Q‖ in null directions passes fifty, the same steps as where float16 would drift.
    for found in (
        {name: default_restarts(rows, torch.float16) for name, rows in five.items()},
        {name: accurate_restarts(rows) for name, rows in five.items()},
    ):
        assert found == {"muon": (3,), "polar_express": (2,), "quintic": (2,)}
    for rows, dtype in itertools.product(five.values(), (torch.float32, torch.float64)):
        assert default_restarts(rows, dtype) == ()
    # Beyond five steps float32 needs one too, and never goes without for longer than its rounding allows.
    rows = resolve_coefficients("polar_express", 30).rows
    starts = (0, *default_restarts(rows, torch.float32), len(rows))
    assert len(starts) > 3
    for first, last in itertools.pairwise(starts):
        growth = math.prod(a * a for a, _, _ in rows[first : last - 1])
        assert growth * 4 * eps(torch.float32) < 0.1
    for first, last in itertools.pairwise((0, *accurate_restarts(rows), len(rows))):
        assert math.prod(a for a, _, _ in rows[first:last]) < 50


@pytest.mark.parametrize("kind", ["half_zero", "log", "rank_one", "momentum", "centred"])
@pytest.mark.parametrize("shape", [(40, 100), (300, 640)])
@pytest.mark.parametrize("table", ["polar_express", "muon", "quintic"])
def test_a_restart_makes_float32_as_accurate_as_the_standard_form(
    table: str, shape: tuple[int, int], kind: str
) -> None:
    """Over the whole space, null directions too. The larger side is one whose symmetric products are mirrored."""
    x = momentum_like(*shape, 1) if kind == "momentum" else matrix(*shape, "even" if kind == "centred" else kind, 1)
    x = (x - x.mean(0) if kind == "centred" else x).float()
    exact = newton_schulz(x.double(), 5, table, form="standard")
    standard = relative_error(newton_schulz(x, 5, table, form="standard"), exact)
    restarts = accurate_restarts(resolve_coefficients(table, 5).rows)
    restarted = relative_error(gram_newton_schulz(x, 5, table, restarts=restarts), exact)
    # Q is 33 in null directions where the standard form multiplies by 8 at most: five times its error, and a floor of
    # some roundings of a result that has no null direction.
    assert restarted < max(5 * standard, 1e-5)
    if kind in ("log", "momentum"):
        # Where squares lose the directions between 1e-4 and 1e-3, which only a new Gram matrix finds again.
        assert relative_error(gram_newton_schulz(x, 5, table, restarts=()), exact) > 2 * restarted

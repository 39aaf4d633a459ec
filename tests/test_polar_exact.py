"""``qdwh`` and ``svd`` against the SVD in float64: working precision, null directions cut."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from spectra import eps, kept_error, spectrum, with_condition
from strategies import generator, matrices, matrix, relative_error
from torch import Tensor

from orthoopt import orthogonalize
from orthoopt.polar import nuclear_norm, polar_factor, rank_tolerance
from orthoopt.qdwh import _cholesky_step, _qr_step, null_tolerance, qdwh, weights

EXACT = ("qdwh", "svd")
ALL_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@given(
    st.sampled_from(EXACT),
    matrices(batched=True),
    st.sampled_from(ALL_DTYPES),
    st.sampled_from([2.0**-40, 1.0, 3e4]),
)
def test_exact_methods_keep_or_cut_every_direction(method: str, x: Tensor, dtype: torch.dtype, scale: float) -> None:
    assume(dtype != torch.float16 or scale == 1.0)  # its range ends at 6e4, and below 6e-5 it loses digits
    x = (x * scale).to(dtype)
    x = x.where(x.isfinite(), 0)
    work = torch.promote_types(dtype, torch.float32)
    result = polar_factor(x, method, 5, "polar_express")
    assert result.dtype == work
    rows, cols = x.shape[-2:]
    tolerance = null_tolerance(rows, cols, work) if method == "qdwh" else rank_tolerance(x.to(work))
    _, s, _ = spectrum(x)
    assume(((s < tolerance / 10) | (s > 10 * tolerance)).all())  # between the two a direction may be half kept
    # Singular values of the result are one or zero to some tens of roundings.
    kept = (s > tolerance).double()
    assert (torch.linalg.svdvals(result.double()) - kept).abs().max() < 50 * eps(work)
    # Rounding the input by eps turns a direction by eps/σ; so does any stable method.
    weakest = torch.where(kept > 0, s, 1).amin()
    assert kept_error(x, result, tolerance) < 50 * eps(work) / weakest


@given(
    st.sampled_from(EXACT),
    st.integers(1, 40),
    st.integers(0, 40),
    st.booleans(),
    st.floats(0, 12),
    st.integers(0, 2**31),
)
def test_orthogonality_at_working_precision_up_to_condition_1e12(
    method: str, short: int, extra: int, tall: bool, power: float, seed: int
) -> None:
    x = with_condition(short, short + extra, 10**power, seed)
    q = polar_factor(x.mT if tall else x, method, 5, "polar_express")
    products = q.mT @ q if tall else q @ q.mT
    # A Frobenius norm over √n columns, each orthogonal to a few roundings.
    assert (products - torch.eye(short, dtype=torch.float64)).norm() < 20 * math.sqrt(short) * eps(torch.float64)


@pytest.mark.parametrize("side", ["rows", "cols"])
@pytest.mark.parametrize("ascending", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_qdwh_on_graded_rows_and_columns(side: str, ascending: bool, dtype: torch.dtype) -> None:
    """Where a QR factorization without pivoting could lose the small rows or columns."""
    grades = torch.logspace(0, -10 if dtype == torch.float64 else -3, 12, dtype=torch.float64)
    grades = grades.flip(0) if ascending else grades
    x = matrix(12, 12, "gaussian", 5) * (grades[:, None] if side == "rows" else grades)
    q = qdwh(x.to(dtype))
    assert (q @ q.mT - torch.eye(12, dtype=dtype)).norm() < 20 * math.sqrt(12) * eps(dtype)


@pytest.mark.parametrize("method", ["svd", "qdwh"])
@pytest.mark.parametrize("shape", [(200, 200), (100, 300), (300, 100)])
@pytest.mark.parametrize("kind", ["ones", "steps", "signs"])
def test_exact_methods_on_structured_matrices_of_low_rank(method: str, shape: tuple[int, int], kind: str) -> None:
    """Roundings do not average out there: factorizations leave more than n·eps/10 in null directions."""
    rows, cols = shape
    x = torch.ones(shape)
    if kind == "steps":
        x[: rows // 2] += 1
        x[:, cols // 3 :] += 1
    elif kind == "signs":
        left, right = (torch.randn(n, 3, generator=generator(n + i)).sign() for i, n in enumerate(shape))
        x = left @ right.T
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    rank = {"ones": 1, "steps": 2, "signs": 3}[kind]
    expected = u[:, :rank] @ vh[:rank]
    # Backward errors of some n·eps, over the relative gap: s_r/s_1 is above 0.05 in all three.
    assert relative_error(polar_factor(x, method, 5, "polar_express"), expected) < 20 * 300 * eps(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_weights_of_qdwh_take_every_singular_value_to_one(dtype: torch.dtype) -> None:
    assert len(weights(dtype)) == {torch.float64: 6, torch.float32: 4}[dtype]
    sigma = torch.logspace(math.log10(eps(dtype)), 0, 100_000, dtype=torch.float64)
    lower = eps(dtype)
    for a, b, c in weights(dtype):
        sigma = sigma * (a + b * sigma**2) / (1 + c * sigma**2)
        lower = lower * (a + b * lower**2) / (1 + c * lower**2)
        # The weights are those that make the image of [l, 1] end at one and begin where l goes.
        assert sigma.max() <= 1 + 1e-12 and sigma.min() >= lower * (1 - 1e-9)
    assert (sigma - 1).abs().max() < 10 * eps(dtype)


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 2**31), st.sampled_from(weights(torch.float64)[2:]))
def test_both_steps_of_qdwh_are_the_same_map(cols: int, extra: int, seed: int, abc: tuple[float, float, float]) -> None:
    """A triangular solve taken from the wrong side, as a peer had it until August 2026, shows here."""
    x = matrix(cols + extra, cols, "gaussian", seed)
    x = x / x.norm()
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    a, b, c = abc
    expected = (u * (s * (a + b * s**2) / (1 + c * s**2))) @ vh
    # Roundings magnified by the condition of I + cXᵀX, at most 74.
    assert relative_error(_qr_step(x, *abc), expected) < 1e-13
    assert relative_error(_cholesky_step(x, *abc), expected) < 1e-13


@given(st.sampled_from(EXACT), matrices(batched=True))
def test_the_nuclear_norm_is_the_sum_of_singular_values(method: str, x: Tensor) -> None:
    norm = nuclear_norm(x, polar_factor(x, method, 5, "polar_express"))
    expected = torch.linalg.svdvals(x).sum(-1)
    torch.testing.assert_close(norm.squeeze((-2, -1)), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", EXACT)
def test_factorizations_are_promoted(method: str, low: torch.dtype) -> None:
    x = torch.randn(5, 7)
    assert torch.equal(orthogonalize(x, method=method, dtype=low), orthogonalize(x, method=method))
    wide = polar_factor(x, method, 5, "polar_express", torch.float64)
    assert wide.dtype == torch.float64
    assert (wide @ wide.mT - torch.eye(5, dtype=torch.float64)).norm() < 1e-14

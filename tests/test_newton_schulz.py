"""Newton-Schulz iteration against the SVD in float64, the published output ranges, and the hazards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import matrices, matrix, relative_error
from torch import Tensor

from orthoopt import coefficients, orthogonalize
from orthoopt.coefficients import resolve_coefficients
from orthoopt.newton_schulz import iteration_dtype, normalize


def scalar_map(table: str, steps: int, sigma: Tensor) -> Tensor:
    """What a table does to singular values of a Frobenius-normalized matrix: the definition, in float64."""
    resolved = resolve_coefficients(table, steps)
    sigma = sigma / resolved.kappa
    for a, b, c in resolved.rows:
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    return sigma


FROBENIUS_TABLES = [name for name in coefficients.names() if coefficients.TABLES[name].start == "frobenius"]


@given(st.sampled_from(FROBENIUS_TABLES), matrices(batched=True))
def test_singular_values_move_as_the_polynomial_says_and_vectors_stay(table: str, x: Tensor) -> None:
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    expected = (u * scalar_map(table, 5, s / s.norm(dim=-1, keepdim=True)).unsqueeze(-2)) @ vh
    # float64 roundings (1e-16) magnified by slopes of at most 1.1e3 a composed map, squared through the Gram matrix.
    assert relative_error(orthogonalize(x, 5, table), expected) < 1e-9


@pytest.mark.parametrize(
    ("table", "steps", "lowest", "low", "high"),
    [
        ("muon", 5, 1e-3, 0.471, 1.202),
        ("muon", 5, 7e-3, 0.682, 1.134),
        ("quintic", 5, 1e-3, 0.475, 1.145),
        ("quintic", 5, 7e-3, 0.978, 1.032),
        ("polar_express_a", 5, 1e-3, 0.840, 1.124),
        ("polar_express_a_1.05", 5, 1e-3, 0.729, 1.124),
        ("polar_express", 5, 1e-3, 0.847, 1.141),
        ("polar_express_c", 5, 1e-3, 0.857, 1.131),
        ("cans", 5, 1e-3, 0.884, 1.120),
        ("cubic5", 5, 1e-3, 0.119, 1.300),
        ("polar_express", 8, 1e-3, 0.998, 1.002),
        ("polar_express_c", 8, 1e-3, 0.998, 1.002),
        ("deepseekv4", 10, 1e-3, 0.998, 1.002),
    ],
)
def test_published_ranges(table: str, steps: int, lowest: float, low: float, high: float) -> None:
    sigma = torch.logspace(torch.tensor(lowest).log10(), 0, 100_000, dtype=torch.float64)
    result = scalar_map(table, steps, sigma)
    # The published figures are rounded to three digits.
    assert low - 5e-4 <= result.min() and result.max() <= high + 5e-4
    if steps == 5:
        assert result.min() <= low + 1e-3 and result.max() >= high - 1e-3


@given(matrices(batched=True))
def test_eight_steps_give_the_polar_factor_on_the_kept_subspace(x: Tensor) -> None:
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    kept = (s > 1e-3 * s.norm(dim=-1, keepdim=True)).double()
    result = u.mT @ orthogonalize(x, 8) @ vh.mT * kept.unsqueeze(-2) * kept.unsqueeze(-1)
    # The 8-step table leaves singular values above 1e-3 within 2e-3 of one.
    assert (result - torch.diag_embed(kept)).abs().max() < 2e-3


@given(
    st.integers(16, 48),
    st.integers(2, 4),
    st.sampled_from([(torch.float32, 2e-4), (torch.float16, 3e-3), (torch.bfloat16, 2e-2)]),
    st.integers(0, 2**31),
)
def test_precisions_on_gaussian_matrices(
    rows: int, aspect: int, precision: tuple[torch.dtype, float], seed: int
) -> None:
    """Against the same polynomial in float64; fifteen products in a row cost about four roundings of the dtype."""
    dtype, tolerance = precision
    x = matrix(rows, aspect * rows, "gaussian", seed)
    assert (
        relative_error(orthogonalize(x.float(), 5, "quintic", dtype=dtype), orthogonalize(x, 5, "quintic")) < tolerance
    )


@given(matrices(batched=True), st.integers(-99, 99), st.sampled_from([torch.float32, torch.bfloat16]))
def test_every_scale_gives_the_same_bits(x: Tensor, exponent: int, dtype: torch.dtype) -> None:
    x = torch.where(x.abs() < 1e-6, 0.0, x).to(dtype)
    assert torch.equal(orthogonalize(x * 2.0**exponent), orthogonalize(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 5, 9])
def test_the_input_is_never_written(dtype: torch.dtype, steps: int) -> None:
    x = torch.randn(2, 6, 4).to(dtype)
    before = x.clone()
    result = orthogonalize(x, steps, dtype=dtype)
    assert torch.equal(x, before)
    assert result.dtype == dtype and result.shape == x.shape


def test_float16_does_not_overflow_in_the_norm() -> None:
    x = torch.full((64, 64), 6e4, dtype=torch.float16)
    assert orthogonalize(x).isfinite().all()


@pytest.mark.parametrize("table", coefficients.names())
@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)])
def test_a_single_row_or_column_keeps_its_direction(table: str, shape: tuple[int, int]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    result = orthogonalize(x, 4 if table == "aol4" else 5, table)
    factor = (result * x).sum() / x.norm()
    assert factor > 0.5
    torch.testing.assert_close(result, factor * x / x.norm(), atol=1e-12, rtol=1e-12)


def test_null_directions_stay_null() -> None:
    x = matrix(12, 20, "half_zero", 0)
    s = torch.linalg.svdvals(orthogonalize(x))
    assert s[6:].max() < 1e-10 and s[:6].min() > 0.8


def test_zero_matrices_beside_others_give_exact_zeros() -> None:
    x = torch.randn(3, 4, 5)
    x[1] = 0
    result = orthogonalize(x)
    assert torch.equal(result[1], torch.zeros(4, 5)) and result[0].norm() > 1


def test_aol_start_orthogonalizes_the_rescaled_matrix() -> None:
    x = matrix(6, 10, "gaussian", 3)
    gram = x @ x.T
    rescaled = gram.abs().sum(-1, keepdim=True).rsqrt() * x
    result = orthogonalize(x, 4, "aol4")
    # The band of the four-step table on singular values above 3e-3.
    s = torch.linalg.svdvals(result)
    assert s.min() > 0.426 and s.max() < 1.051
    u, _, vh = torch.linalg.svd(rescaled, full_matrices=False)
    core = u.T @ result @ vh.T
    assert (core - torch.diag(core.diagonal())).abs().max() < 1e-10


def test_the_iteration_runs_in_float32_on_this_cpu() -> None:
    assert iteration_dtype(torch.zeros(1, dtype=torch.bfloat16)) is torch.float32
    assert iteration_dtype(torch.zeros(1, dtype=torch.float64)) is torch.float64


def test_normalize_divides_by_kappa_and_norm() -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    expected = x / (1.02 * x.norm(dim=(-2, -1), keepdim=True))
    torch.testing.assert_close(normalize(x, 1.02), expected, atol=1e-15, rtol=1e-14)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: orthogonalize(torch.zeros(3)), ValueError, r"\(\.\.\., rows, cols\), got shape \(3,\)"),
        (lambda: orthogonalize(torch.zeros(3, 3, dtype=torch.int64)), TypeError, "int64"),
        (lambda: orthogonalize(torch.zeros(3, 3, dtype=torch.complex64)), TypeError, "complex64"),
        (lambda: orthogonalize(torch.zeros(3, 3), 0), ValueError, "steps must be .* got 0"),
        (lambda: orthogonalize(torch.zeros(3, 3), 5, "muom"), ValueError, "did you mean 'muon'"),
        (lambda: orthogonalize(torch.zeros(3, 3), 5, "aol4_old"), ValueError, "refused"),
        (lambda: orthogonalize(torch.zeros(3, 3), 6, "root_2048x2048"), ValueError, "at most 5 steps"),
        (lambda: orthogonalize(torch.zeros(3, 3), 4, "cubic5"), ValueError, "exactly 5 steps"),
        (lambda: orthogonalize(torch.zeros(3, 3), 5, [(1.0, 2.0)]), ValueError, r"\(a, b, c\)"),
        (lambda: orthogonalize(torch.zeros(3, 3), 5, []), ValueError, "at least one"),
    ],
)
def test_bad_input_is_named(call: Callable[[], Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_tables_repeat_or_cycle_past_their_end() -> None:
    quintic = resolve_coefficients("quintic", 7).rows
    assert quintic[5:] == quintic[:2]
    custom = resolve_coefficients([(3.0, -3.0, 1.0), (2.0, -1.5, 0.5)], 4).rows
    assert custom[1:] == ((2.0, -1.5, 0.5),) * 3
    assert resolve_coefficients((3.4445, -4.775, 2.0315), 5).rows == resolve_coefficients("muon", 5).rows
    # From the sixth step on this table has another fifth row.
    assert resolve_coefficients("polar_express", 6).rows[4] != resolve_coefficients("polar_express", 5).rows[4]

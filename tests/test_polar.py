"""The methods of ``orthogonalize`` against the SVD in float64, each within the accuracy it states."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import generator, matrices, matrix, relative_error
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import orthoopt.polar
from orthoopt import coefficients, orthogonalize, rules
from orthoopt.coefficients import resolve_coefficients
from orthoopt.gram_newton_schulz import gram_newton_schulz
from orthoopt.iteration_form import default_restarts
from orthoopt.newton_schulz import newton_schulz
from orthoopt.polar import METHODS, nuclear_norm, polar_factor, rank_tolerance
from orthoopt.qdwh import _cholesky_step, _qr_step, null_tolerance, qdwh, weights

EXACT = ("qdwh", "svd")
ALL_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHORT = [name for name in coefficients.names() if name != "aol4"]  # whose cycle is four steps long


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def spectrum(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD in float64, singular values relative to the Frobenius norm."""
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    return u, s / s.norm(dim=-1, keepdim=True), vh


def kept_error(x: Tensor, result: Tensor, above: float) -> float:
    """The largest ‖Uᵀ·result·V − 1‖₂ over the directions of x whose relative singular value is above a bound."""
    u, s, vh = spectrum(x)
    kept = (s > above).double()
    core = (u.mT @ result.double() @ vh.mT) * kept.unsqueeze(-1) * kept.unsqueeze(-2)
    return float(torch.linalg.matrix_norm(core - torch.diag_embed(kept), 2).max())


def with_condition(rows: int, cols: int, condition: float, seed: int) -> Tensor:
    """A float64 matrix of full rank whose singular values fall geometrically from 1 to 1/condition."""
    u, s, vh = torch.linalg.svd(matrix(rows, cols, "gaussian", seed), full_matrices=False)
    return (u * torch.logspace(0, -math.log10(condition), s.numel(), dtype=torch.float64)) @ vh


def momentum_like(rows: int, cols: int, seed: int) -> Tensor:
    """A few large singular values and a tail of 1e-1 to 3e-4."""
    u, s, vh = torch.linalg.svd(matrix(rows, cols, "gaussian", seed), full_matrices=False)
    s = torch.logspace(-1, -3.5, s.numel(), dtype=torch.float64)
    s[: max(1, s.numel() // 4)] = 1
    return (u * s) @ vh


# qdwh and svd: working precision.


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


# polar_express: the bands of its table.


@given(matrices(batched=True), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_polar_express_in_five_steps_stays_in_its_band(x: Tensor, dtype: torch.dtype) -> None:
    x = x.to(dtype)
    result = polar_factor(x, "polar_express", 5, "polar_express")
    assert result.dtype == torch.promote_types(dtype, torch.float32)
    u, s, vh = spectrum(x)
    core = u.mT @ result.double() @ vh.mT
    diagonal = core.diagonal(dim1=-2, dim2=-1)
    # The published band, and a float32 rounding magnified by the slope of 990 at zero.
    slack = 5e-4 + 3e3 * eps(result.dtype)
    assert diagonal.max() < 1.141 + slack
    assert ((diagonal > 0.847 - slack) | (s < 1e-3)).all()
    assert (core - torch.diag_embed(diagonal)).abs().max() < slack


@given(matrices(batched=True), st.sampled_from([torch.float64, torch.float32]), st.integers(8, 14))
def test_polar_express_in_eight_steps_or_more_is_within_2e_3(x: Tensor, dtype: torch.dtype, steps: int) -> None:
    x = x.to(dtype)
    # In float32 a relative singular value of 1e-3 is known to 1e-4.
    assert kept_error(x, orthogonalize(x, steps, method="polar_express"), 1e-3) < 2e-3 + 1e3 * eps(dtype)


@pytest.mark.parametrize("steps", [8, 20])
def test_polar_express_with_more_steps_gains_accuracy(steps: int) -> None:
    x = matrix(12, 30, "even", 0)
    assert kept_error(x, orthogonalize(x, steps, method="polar_express"), 1e-3) < {8: 2e-3, 20: 1e-6}[steps]


# gram: the same polynomials as newton_schulz.


@given(
    st.sampled_from(SHORT),
    matrices(batched=True),
    st.sets(st.integers(1, 4)),
)
def test_the_gram_form_is_the_standard_form_for_any_restarts(table: str, x: Tensor, restarts: set[int]) -> None:
    """I2."""
    _, s, _ = spectrum(x)
    result = gram_newton_schulz(x, 5, table, restarts=restarts)
    expected = newton_schulz(x, 5, table)
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
    assert relative_error(result, newton_schulz(x, steps, table)) < 1e-11


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


@pytest.mark.parametrize("kind", ["log", "rank_one", "momentum"])
def test_without_its_restart_float16_explodes(kind: str) -> None:
    x = momentum_like(32, 128, 1) if kind == "momentum" else matrix(32, 128, kind, 1)
    result = gram_newton_schulz(x.half(), 5, "polar_express_a_1.05", torch.float16, restarts=())
    assert not torch.linalg.matrix_norm(result.double().nan_to_num(1e9, 1e9, 1e9), 2) < 5


def test_restarts_follow_the_growth_of_rounding() -> None:
    five = {name: resolve_coefficients(name, 5).rows for name in ("muon", "polar_express", "quintic")}
    assert {name: default_restarts(rows, torch.float16) for name, rows in five.items()} == {
        "muon": (3,),
        "polar_express": (2,),
        "quintic": (2,),
    }
    for rows, dtype in itertools.product(five.values(), (torch.float32, torch.float64)):
        assert default_restarts(rows, dtype) == ()
    # Beyond five steps float32 needs one too, and never goes without for longer than its rounding allows.
    rows = resolve_coefficients("polar_express", 30).rows
    starts = (0, *default_restarts(rows, torch.float32), len(rows))
    assert len(starts) > 3
    for first, last in itertools.pairwise(starts):
        growth = math.prod(a * a for a, _, _ in rows[first : last - 1])
        assert growth * 4 * eps(torch.float32) < 0.1


# auto, and what holds for every method.


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (9, 20), (20, 9)])
def test_auto_is_exact_up_to_a_side_and_polar_express_beyond(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orthoopt.polar, "AUTO_SIDE", 8)
    x = matrix(*shape, "gaussian", 0)
    taken = "svd" if min(shape) <= 8 else "polar_express"
    assert torch.equal(orthogonalize(x, method="auto"), orthogonalize(x, method=taken))


@given(
    st.sampled_from(METHODS),
    matrices(batched=True),
    st.integers(-99, 99),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_every_scale_gives_the_same_bits(method: str, x: Tensor, exponent: int, dtype: torch.dtype) -> None:
    x = torch.where(x.abs() < 1e-6, 0.0, x).to(dtype)
    scaled = orthogonalize(x * 2.0**exponent, method=method)
    assert torch.equal(scaled, orthogonalize(x, method=method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("shape", [(2, 6, 4), (4, 6), (5, 5), (2, 2, 3, 9)])
def test_the_input_is_never_written(method: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).to(dtype)
    before = x.clone()
    result = orthogonalize(x, dtype=dtype if dtype in (torch.float32, torch.float64) else None, method=method)
    assert torch.equal(x, before)
    assert result.dtype == dtype and result.shape == x.shape
    assert result.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@given(st.sampled_from(METHODS), st.integers(1, 9), st.integers(1, 9), st.sampled_from(ALL_DTYPES))
def test_zero_matrices_beside_others_give_exact_zeros(method: str, rows: int, cols: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, rows, cols, generator=generator(rows)).to(dtype)
    x[1] = 0
    result = orthogonalize(x, method=method)
    assert torch.equal(result[1], torch.zeros(rows, cols, dtype=dtype))
    assert result[0].norm() > 0.5 and result[2].norm() > 0.5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (12, 12)])
def test_null_directions_stay_null(method: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x = matrix(*shape, "half_zero", 0).to(dtype)
    s = torch.linalg.svdvals(orthogonalize(x, 8, method=method).double())
    # Iterations magnify the rounding there by their slope, 6363 for these eight steps.
    assert s[6:].max() < (50 if method in ("svd", "qdwh", "auto") else 2e4) * eps(dtype)
    assert s[:6].min() > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_exactly_null_rows_and_columns_stay_exactly_null_or_nearly(method: str) -> None:
    x = torch.randn(9, 6, dtype=torch.float64)
    x[3], x[:, 2] = 0, 0
    result = orthogonalize(x, method=method)
    assert result[3].abs().max() < 1e-14 and result[:, 2].abs().max() < 1e-14


@given(st.sampled_from(METHODS), st.integers(1, 30), st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_a_single_row_or_column_keeps_its_direction(method: str, size: int, tall: bool, dtype: torch.dtype) -> None:
    v = torch.randn(1, size, generator=generator(size), dtype=torch.float64).to(dtype)
    x = v.mT if tall else v
    result = orthogonalize(x, 8, method=method)
    expected = x.double() / x.double().norm()
    # Eight steps take 1/1.02 to within 2e-3 of one; the factorizations are exact.
    assert relative_error(result, expected) < (20 * eps(dtype) if method in ("svd", "qdwh", "auto") else 2e-3)


@given(st.sampled_from(METHODS), matrices(batched=True))
def test_transposing_and_batching_change_nothing(method: str, x: Tensor) -> None:
    assume(x.shape[-2] != x.shape[-1])
    result = orthogonalize(x, method=method)
    assert torch.equal(orthogonalize(x.mT, method=method), result.mT)
    flat, results = x.reshape(-1, *x.shape[-2:]), result.reshape(-1, *x.shape[-2:])
    for one, expected in zip(flat, results, strict=True):
        # Products of a batch may sum in another order; an SVD turns nearly null directions by that much more.
        assert relative_error(orthogonalize(one, method=method), expected) < 1e-9


@given(st.sampled_from(METHODS), st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**31))
def test_orthogonal_matrices_pass_through(method: str, rows: int, cols: int, seed: int) -> None:
    x = matrix(rows, cols, "even", seed)
    left = torch.linalg.qr(matrix(rows, rows, "gaussian", seed + 1))[0]
    right = torch.linalg.qr(matrix(cols, cols, "gaussian", seed + 2))[0]
    moved = orthogonalize(left @ x @ right, method=method)
    # On small sides the first polynomials of Polar Express meet singular values near the norm, where terms cancel.
    assert relative_error(moved, left @ orthogonalize(x, method=method) @ right) < 1e-11


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("svd", "auto")])
def test_nothing_is_read_back_to_the_host(method: str) -> None:
    """Fake tensors have no values: reading one raises."""
    with FakeTensorMode():
        x = torch.empty(3, 12, 20)
        assert orthogonalize(x, method=method).shape == x.shape


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", EXACT)
def test_factorizations_are_promoted(method: str, low: torch.dtype) -> None:
    x = torch.randn(5, 7)
    assert torch.equal(orthogonalize(x, method=method, dtype=low), orthogonalize(x, method=method))
    wide = polar_factor(x, method, 5, "polar_express", torch.float64)
    assert wide.dtype == torch.float64
    assert (wide @ wide.mT - torch.eye(5, dtype=torch.float64)).norm() < 1e-14


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: orthogonalize(x, method="qr"), "method='qr' must be one of 'newton_schulz', 'gram'"),
        (lambda x: orthogonalize(x, 5, "muon", method="polar_express"), "method='polar_express' takes.*got 'muon'"),
        (lambda x: orthogonalize(x, 5, (2.0, -1.5, 0.5), method="auto"), "method='auto' takes.*got \\(2.0"),
        (lambda x: orthogonalize(x, 0, method="polar_express"), "steps must be .* got 0"),
        (lambda x: orthogonalize(x, 6, "root_2048x2048", method="gram"), "at most 5 steps"),
        (lambda x: orthogonalize(x, method="gram", dtype=torch.bfloat16), "'gram' does not run in bfloat16.*float16"),
        (
            lambda x: orthogonalize(x, method="gram", dtype=torch.float16),
            "'gram' in float16 needs.*'polar_express' are not; these are: .*muon, polar_express_a_1.05, quintic",
        ),
        (lambda x: gram_newton_schulz(x, 5, "muon", restarts=[5]), r"restarts=\[5\] must be among the steps 1 to 4"),
        (lambda x: gram_newton_schulz(x, 5, "muon", restarts=[0]), r"restarts=\[0\]"),
        (lambda x: rules.get("scion").validate({**rules.get("scion").defaults, "method": "auto"}), "'scion'.*'auto'"),
    ],
)
def test_bad_input_is_named(call: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3, 3))

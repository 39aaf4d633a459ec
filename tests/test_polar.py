"""What holds for every method of ``orthogonalize``, and the bands of ``polar_express``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from spectra import eps, kept_error, spectrum
from strategies import generator, matrices, matrix, relative_error
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import orthoopt.polar
from orthoopt import orthogonalize, rules
from orthoopt.gram_newton_schulz import gram_newton_schulz
from orthoopt.newton_schulz import newton_schulz
from orthoopt.polar import METHODS, polar_factor

ALL_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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
        (lambda x: newton_schulz(x, 5, "muon", form="wide"), "form='wide' must be 'standard' or 'gram'"),
        (lambda x: newton_schulz(x, 5, "muon", torch.bfloat16, form="gram"), "'gram' does not run in bfloat16"),
        (lambda x: rules.get("scion").validate({**rules.get("scion").defaults, "method": "auto"}), "'scion'.*'auto'"),
    ],
)
def test_bad_input_is_named(call: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(3, 3))

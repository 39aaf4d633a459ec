"""The cosine basis: scipy's transform to rounding, by product and by FFT, for every length."""

from __future__ import annotations

import math

import pytest
import scipy.fft
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import generator, relative_error
from torch import Tensor

import orthoopt.dct
from orthoopt.dct import Basis, Method, dct, dct_basis, from_columns, idct, in_columns, to_coordinates

METHODS: tuple[Method, ...] = ("matmul", "fft")
# Rounding of sums of up to a few hundred terms, relative to the whole: a few units in the last place.
ROUNDING = {torch.float64: 1e-14, torch.float32: 3e-6}


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def scipys(x: Tensor) -> Tensor:
    return torch.from_numpy(scipy.fft.dct(x.double().numpy(), type=2, norm="ortho"))


@given(st.integers(1, 400), st.sampled_from(METHODS), st.sampled_from(tuple(ROUNDING)), st.integers(0, 2**31))
def test_both_methods_are_scipys_orthonormal_dct(size: int, method: Method, dtype: torch.dtype, seed: int) -> None:
    x = gaussian(2, 3, size, seed=seed, dtype=dtype)
    before = x.clone()
    transformed = dct(x, method)
    assert torch.equal(x, before) and transformed.dtype == dtype
    assert relative_error(transformed, scipys(x)) < ROUNDING[dtype]
    assert relative_error(idct(transformed, method), x) < 2 * ROUNDING[dtype]  # there and back


@pytest.mark.parametrize("size", [1009, 1024, 1536])
@pytest.mark.parametrize("method", METHODS)
def test_long_and_prime_lengths_too(size: int, method: Method) -> None:
    x = gaussian(4, size)
    assert relative_error(dct(x, method), scipys(x)) < 1e-14
    assert relative_error(idct(x, method), torch.from_numpy(scipy.fft.idct(x.numpy(), type=2, norm="ortho"))) < 1e-14


@pytest.mark.parametrize("size", [1, 2, 3, 8, 17, 300])
def test_the_basis_has_cosines_for_columns_and_is_orthogonal(size: int) -> None:
    basis = dct_basis(size, torch.float64)
    for j in range(0, size, 7):
        for f in range(size):
            height = math.sqrt((1 if f == 0 else 2) / size)
            # The cosine of an angle up to 1e3 has lost three digits here, which the basis has not.
            assert abs(float(basis[j, f]) - height * math.cos(math.pi * f * (2 * j + 1) / (2 * size))) < 1e-12
    assert (basis.mT @ basis - torch.eye(size)).abs().max() < 1e-14
    assert basis[:, 1:].sum(0).abs().sum() < 1e-12  # all but the constant have mean zero


def test_the_basis_is_cached_by_size_and_dtype_and_not_without_bound() -> None:
    assert dct_basis(12) is dct_basis(12)
    assert dct_basis(12, torch.float64).dtype == torch.float64 and dct_basis(12).dtype == torch.float32
    for size in range(1, 200):
        dct_basis(size)
    for cached in (orthoopt.dct._dct_basis, orthoopt.dct._twiddles):
        info = cached.cache_info()
        assert info.maxsize is not None and info.currsize <= info.maxsize


def test_auto_is_the_product_below_the_cut_over_and_the_fft_from_it_on() -> None:
    edge = orthoopt.dct.CPU_FFT_FROM
    for size, method in ((edge - 1, "matmul"), (edge, "fft")):
        x = gaussian(3, size)
        other: Method = "fft" if method == "matmul" else "matmul"
        assert torch.equal(dct(x), dct(x, method)) and not torch.equal(dct(x), dct(x, other))
        assert torch.equal(idct(x), idct(x, method))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_low_precision_is_transformed_in_float32(dtype: torch.dtype, method: Method) -> None:
    x = gaussian(5, 40, dtype=dtype)
    assert dct(x, method).dtype == idct(x, method).dtype == torch.float32
    assert torch.equal(dct(x, method), dct(x.float(), method))


@pytest.mark.parametrize("method", METHODS)
def test_transposed_memory_is_read_rightly(method: Method) -> None:
    x = gaussian(40, 6)
    assert relative_error(dct(x.mT, method), scipys(x.mT)) < 1e-14


@given(
    st.sampled_from([(), (3,), (2, 2)]),
    st.integers(1, 6),
    st.integers(1, 30),
    st.sampled_from(["dct", "identity"]),
    st.booleans(),
    st.data(),
)
def test_columns_go_out_and_come_back_as_the_dense_basis_says(
    batch: tuple[int, ...], rows: int, size: int, basis: Basis, fft: bool, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(1, size))
    seed = data.draw(st.integers(0, 2**31))
    x = gaussian(*batch, rows, size, seed=seed)
    indices = gaussian(*batch, size, seed=seed + 1).argsort(-1)[..., :rank].sort(-1).values
    dense = dct_basis(size, torch.float64) if basis == "dct" else torch.eye(size, dtype=torch.float64)
    chosen = dense.mT[indices].mT  # D[:, indices], one a matrix
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orthoopt.dct, "CPU_FFT_FROM", 1 if fft else 10**9)
        b = in_columns(x, indices, basis)
        torch.testing.assert_close(b, x @ chosen, atol=1e-13, rtol=1e-13)
        torch.testing.assert_close(from_columns(b, indices, size, basis), b @ chosen.mT, atol=1e-13, rtol=1e-13)
        torch.testing.assert_close(to_coordinates(x, basis), x @ dense, atol=1e-13, rtol=1e-13)

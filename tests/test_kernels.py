"""Kernel ops against float64 loops, over ragged shapes, strides and batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import generator, relative_error
from torch import Tensor

from orthoopt import kernels

LAYOUTS = ("contiguous", "transposed", "sliced", "expanded")


def laid_out(shape: tuple[int, ...], layout: str, dtype: torch.dtype, seed: int) -> Tensor:
    *batch, rows, cols = shape
    source = generator(seed)
    if layout == "transposed":
        return torch.randn(*batch, cols, rows, generator=source).to(dtype).mT
    if layout == "sliced":
        return torch.randn(*batch, rows + 3, 2 * cols, generator=source).to(dtype)[..., 1:-2, ::2]
    if layout == "expanded" and batch:
        return torch.randn(rows, cols, generator=source).to(dtype).expand(shape)
    return torch.randn(*shape, generator=source).to(dtype)


shapes = st.tuples(st.integers(1, 33), st.integers(1, 33))
batches = st.sampled_from([(), (1,), (5,), (2, 3)])
# float32: a dot product of at most 33 terms; float64 is the definition itself, in another order of summation.
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-13}


@given(batches, shapes, st.sampled_from(LAYOUTS), st.sampled_from(tuple(TOLERANCE)), st.integers(0, 2**31))
def test_every_op_against_float64(
    batch: tuple[int, ...], shape: tuple[int, int], layout: str, dtype: torch.dtype, seed: int
) -> None:
    x = laid_out((*batch, *shape), layout, dtype, seed)
    kept = x.clone()
    exact = x.double()
    product = kernels.syrk(x)
    assert relative_error(product, torch.einsum("...ij,...kj->...ik", exact, exact)) < TOLERANCE[dtype]

    symmetric = exact @ exact.mT
    a = symmetric.to(dtype)
    for linear, quadratic in ((-4.775, 2.0315), (1.5, 0.0), (0.0, 1.0)):
        result = kernels.symm_poly(a, linear, quadratic)
        expected = linear * a.double() + quadratic * torch.einsum("...ij,...jk->...ik", a.double(), a.double())
        assert relative_error(result, expected) < 10 * TOLERANCE[dtype]  # the two terms may cancel
    result = kernels.axpy_matmul(x, a, 3.4445)
    expected = 3.4445 * exact + torch.einsum("...ij,...jk->...ik", a.double(), exact)
    assert relative_error(result, expected) < TOLERANCE[dtype]
    assert torch.equal(x, kept)


@pytest.mark.parametrize("op", ["symm_poly", "axpy_matmul"])
def test_results_are_new_tensors(op: str) -> None:
    x = torch.randn(3, 4, 4)
    result = kernels.symm_poly(x, 1.0, 0.0) if op == "symm_poly" else kernels.axpy_matmul(x, x, 1.0)
    assert result.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()

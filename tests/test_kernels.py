"""Kernel ops against float64 loops, over ragged shapes, strides and batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
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
        plus = kernels.symm_poly(a, linear, quadratic, identity=-3.5)
        assert torch.equal(plus, result - 3.5 * torch.eye(a.shape[-1], dtype=dtype))
    result = kernels.axpy_matmul(x, a, 3.4445)
    expected = 3.4445 * exact + torch.einsum("...ij,...jk->...ik", a.double(), exact)
    assert relative_error(result, expected) < TOLERANCE[dtype]
    assert torch.equal(x, kept)


def symmetric(rows: int, seed: int, batch: tuple[int, ...] = (2,)) -> Tensor:
    return kernels.syrk(torch.randn(*batch, rows, rows + 3, generator=generator(seed))) / rows


@given(
    st.sampled_from([1, 7, 128, 255, 256, 300, 513]),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=25)
def test_every_op_into_a_given_tensor_with_a_scalar_a_matrix(
    rows: int, dtype: torch.dtype, per_matrix: bool, strided: bool
) -> None:
    """From a side of 256 symmetric products are computed in bands and mirrored; what stood in ``out`` is ignored."""
    a = symmetric(rows, 1).to(dtype)
    b = 0.5 * a + 2 * torch.eye(rows, dtype=dtype)  # commutes with a
    x = torch.randn(2, rows, 9, generator=generator(2)).to(dtype)
    alpha = torch.tensor([0.75, -2.0], dtype=dtype) if per_matrix else 0.75
    beta = torch.tensor([3.0, 0.5], dtype=dtype) if per_matrix else 3.0
    p, q = (value[:, None, None].double() if isinstance(value, Tensor) else value for value in (alpha, beta))

    def poisoned(cols: int) -> Tensor:
        return torch.full((2, rows, cols + 5 * strided), torch.nan, dtype=dtype)[..., :cols]

    exact_a, exact_b, exact_x = a.double(), b.double(), x.double()
    for result, expected in (
        (kernels.syrk(x, alpha=alpha, out=(out := poisoned(rows))), p * (exact_x @ exact_x.mT)),
        (kernels.symm_poly(a, beta, alpha, out=poisoned(rows)), q * exact_a + p * (exact_a @ exact_a)),
        (kernels.symm_matmul(a, b, alpha=alpha, out=poisoned(rows)), p * (exact_a @ exact_b)),
        (
            kernels.symm_matmul(a, b, c=a, beta=beta, alpha=alpha, out=poisoned(rows)),
            q * exact_a + p * (exact_a @ exact_b),
        ),
        (kernels.axpy_matmul(x, a, beta, alpha=alpha, out=poisoned(9)), q * exact_x + p * (exact_a @ exact_x)),
        (kernels.axpy_matmul(x, a, 0.0, out=poisoned(9)), exact_a @ exact_x),
    ):
        # Sums of at most 513 terms.
        assert relative_error(result, expected) < (5e-6 if dtype == torch.float32 else 1e-13)
    assert out.isfinite().all()


def test_bands_mirror_exactly() -> None:
    product = kernels.syrk(torch.randn(3, 600, 40, generator=generator(0)))
    upper = torch.ones(600, 600).triu(150).bool()  # above the bands' own squares
    assert torch.equal(product[:, upper], product.mT[:, upper])


@pytest.mark.parametrize("op", ["symm_poly", "axpy_matmul", "symm_matmul"])
def test_results_are_new_tensors(op: str) -> None:
    x = torch.randn(3, 4, 4)
    result = {
        "symm_poly": lambda: kernels.symm_poly(x, 1.0, 0.0),
        "axpy_matmul": lambda: kernels.axpy_matmul(x, x, 1.0),
        "symm_matmul": lambda: kernels.symm_matmul(x, x, c=x, beta=1.0),
    }[op]()
    assert result.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@given(
    st.lists(shapes, min_size=1, max_size=4),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([kernels.Moving(0.95, 0.05, 0.05, 0.95), kernels.Moving(0.9, 1.0), kernels.Moving(0.9, -0.1)]),
    st.sampled_from([None, 0.0, 1.0]),
    st.integers(0, 2**31),
)
def test_momenta_move_to_the_same_bits_whether_a_signal_is_wanted_or_not(
    sizes: list[tuple[int, int]], dtype: torch.dtype, moving: kernels.Moving, gate: float | None, seed: int
) -> None:
    """Ranks with the same momenta would drift apart else: one needs the signal, the others do not."""
    source = generator(seed)
    grads = [torch.randn(size, generator=source, dtype=dtype) for size in sizes]
    one, other = ([torch.randn(size, generator=generator(seed + i), dtype=dtype) for i, size in enumerate(sizes)]
                  for _ in range(2))  # fmt: skip
    gated = None if gate is None else torch.tensor(gate, dtype=torch.float64)
    kernels.momentum_into(grads, one, None, moving, gated)
    kernels.momentum_into(grads, other, [torch.empty_like(grad) for grad in grads], moving, gated)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

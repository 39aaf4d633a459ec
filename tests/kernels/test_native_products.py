"""Compiled symmetric products on a CPU: against float64 over ragged shapes and layouts, exact symmetry, same bits."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from operands import LAYOUTS, OUT_LAYOUTS, assert_product, laid_out, poisoned
from spectra import generator
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from orthoopt.kernels import native, native_products, products, reference

pytestmark = pytest.mark.skipif(not native.available(), reason="no C compiler here, or not Linux")

# Around tiles of 6 and 16, blocks of 144 rows, 288 lines that are read in place, and 256 of the inner dimension.
sides = st.one_of(st.integers(16, 60), st.sampled_from([96, 127, 128, 143, 144, 145, 160, 255, 256, 272, 289, 300]))
inners = st.one_of(st.integers(1, 40), st.sampled_from([64, 128, 255, 256, 257, 511, 513]))
batches = st.sampled_from([(), (1,), (2,), (5,)])
scalars = st.floats(-4, 4, width=32)


@settings(max_examples=40)
@given(batches, sides, inners, st.sampled_from(LAYOUTS[:4]), st.sampled_from(OUT_LAYOUTS[:3]), scalars)
def test_gram_matrices(
    batch: tuple[int, ...], rows: int, inner: int, layout: str, out_layout: str, alpha: float
) -> None:
    x = laid_out((*batch, rows, inner), layout, torch.float32, 1)
    kept = x.clone()
    out, check = poisoned((*batch, rows, rows), out_layout, torch.float32)
    result = native_products.syrk(x, alpha=alpha, out=out)
    assert result is out and torch.equal(x, kept)
    check()
    assert_product(result, x, x.mT, None, torch.tensor(alpha), torch.tensor(0.0))
    assert torch.equal(result, result.mT)
    if out.stride(-1) == 1:  # others are the reference's
        assert torch.equal(native_products.syrk(x, alpha=alpha), result)


def commuting(batch: tuple[int, ...], rows: int, padded: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Exactly symmetric, with eigenvectors in common; with rows an odd number of cache lines apart or not."""

    def placed(x: Tensor) -> Tensor:
        width = 16 * (-(-rows // 16) | 1) if padded else rows
        return torch.full((*batch, rows, width), torch.nan)[..., :rows].copy_(x)

    wide = torch.randn(*batch, rows, 2 * rows, generator=generator(rows), dtype=torch.float64)
    a = wide @ wide.mT / (2 * rows)
    square = a @ a
    return placed(a), placed(0.5 * a + 0.25 * square), placed(2 * a - square)


@given(batches, sides, st.booleans(), scalars, scalars, scalars, st.booleans())
@settings(max_examples=40)
def test_products_of_symmetric_matrices(
    batch: tuple[int, ...], rows: int, padded: bool, alpha: float, beta: float, identity: float, adds: bool
) -> None:
    a, b, c = commuting(batch, rows, padded)
    addend = c if adds else None
    out, check = poisoned((*batch, rows, rows), "padded", torch.float32)
    result = native_products.symm_matmul(a, b, c=addend, alpha=alpha, beta=beta, out=out)
    check()
    # What is on or below the diagonal is the product's; rounded matrices commute only nearly, so above it is what is
    # mirrored, not what the product has there.
    lower = torch.ones(rows, rows).tril().bool()
    scale, other = torch.tensor(alpha), torch.tensor(beta if adds else 0.0)
    below = torch.where(lower, result, 0)
    assert_product_in(lower, below, a, b, addend, scale, other)
    assert torch.equal(result, result.mT)
    poly = native_products.symm_poly(a, beta, alpha)
    assert_product_in(lower, torch.where(lower, poly, 0), a, a, a, scale, torch.tensor(beta))
    assert torch.equal(poly, poly.mT)
    more = native_products.symm_poly(a, beta, alpha, identity=identity)
    assert torch.equal(more, reference.add_identity(poly, identity))


def assert_product_in(
    where: Tensor, result: Tensor, a: Tensor, b: Tensor, c: Tensor | None, alpha: Tensor, beta: Tensor
) -> None:
    """As :func:`assert_product`, of the entries that were computed; the rest is set to what is exact."""
    exact = float(alpha) * (a.double() @ b.double())
    if c is not None:
        exact = exact + float(beta) * c.double()
    assert_product(torch.where(where, result, exact.float()), a, b, c, alpha, beta)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """General products by the loops, whatever the machine."""
    monkeypatch.setattr(native_products, "outrun_the_library", lambda: True)


@given(
    batches, sides, inners, st.sampled_from(LAYOUTS[:4]), st.sampled_from(LAYOUTS[:4]),
    st.sampled_from(OUT_LAYOUTS[:3]), scalars, scalars,
)  # fmt: skip
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_general_products(
    always: None, batch: tuple[int, ...], rows: int, cols: int, layout: str, other: str, out_layout: str,
    scalar: float, alpha: float,
) -> None:  # fmt: skip
    x, b = (
        laid_out((*batch, rows, cols), layout, torch.float32, 5),
        laid_out((*batch, rows, rows), other, torch.float32, 6),
    )
    kept = x.clone(), b.clone()
    out, check = poisoned((*batch, rows, cols), out_layout, torch.float32)
    result = native_products.axpy_matmul(x, b, scalar, alpha=alpha, out=out)
    assert result is out and torch.equal(x, kept[0]) and torch.equal(b, kept[1])
    check()
    assert_product(result, b, x, x, torch.tensor(alpha), torch.tensor(scalar))
    if out.stride(-1) == 1:
        assert torch.equal(native_products.axpy_matmul(x, b, scalar, alpha=alpha), result)


# Of (1, 128, 1024) and (1, 200, 600) threads share the columns out.
@pytest.mark.parametrize(
    "shape", [(1, 40, 700), (2, 300, 520), (3, 150, 33), (7, 256, 256), (1, 128, 1024), (1, 200, 600), (1, 144, 517)]
)
def test_a_general_product_depends_on_its_matrices_alone(always: None, shape: tuple[int, ...]) -> None:
    x, b = torch.randn(shape), torch.randn(*shape[:-1], shape[-2])
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(native_products.axpy_matmul(x, b, 0.5))
            alone = torch.stack([native_products.axpy_matmul(*pair, 0.5) for pair in zip(x, b, strict=True)])
            assert torch.equal(alone, results[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_general_products_are_torchs_where_its_library_is_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_products, "outrun_the_library", lambda: False)
    monkeypatch.setattr(native_products, "_product", lambda *args, **options: pytest.fail("the loops"))
    for x in (torch.randn(2, 150, 700), torch.randn(2, 160, 160), torch.randn(300, 300)):
        b = torch.randn(*x.shape[:-1], x.shape[-2])
        assert torch.equal(native_products.axpy_matmul(x, b, 2.0), reference.axpy_matmul(x, b, 2.0))


def test_general_products_are_the_loops_where_those_need_not_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_products, "outrun_the_library", lambda: False)
    monkeypatch.setattr(reference, "axpy_matmul", lambda *args, **options: pytest.fail("the library"))
    for x in (torch.randn(2, 128, 700), commuting((2,), 250, padded=True)[0], torch.randn(40, 50)):
        b = torch.randn(*x.shape[:-1], x.shape[-2])
        assert_product(native_products.axpy_matmul(x, b, 2.0), b, x, x, torch.tensor(1.0), torch.tensor(2.0))


@given(st.sampled_from([1, 2, 3, 5, 7]), st.sampled_from([48, 128, 150, 288, 300]), st.sampled_from([40, 257]))
@settings(max_examples=25)
def test_a_result_depends_on_its_matrix_alone(batch: int, rows: int, inner: int) -> None:
    """Not on how many threads there are, on its neighbours, nor on whether all threads work on it."""
    x = laid_out((batch, rows, inner), "contiguous", torch.float32, 3)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(native_products.syrk(x))
            alone = torch.stack([native_products.syrk(matrix) for matrix in x])
            assert torch.equal(alone, results[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_what_is_not_finite_stays_in_its_matrix() -> None:
    x = laid_out((3, 40, 30), "contiguous", torch.float32, 4)
    x[1, 7, 3] = torch.nan
    result = native_products.syrk(x)
    assert torch.equal(result[1].isnan(), torch.zeros(40, 40, dtype=torch.bool).index_fill_(0, torch.tensor(7), True)
                       | torch.zeros(40, 40, dtype=torch.bool).index_fill_(1, torch.tensor(7), True))  # fmt: skip
    assert result[0].isfinite().all() and result[2].isfinite().all()


def test_it_is_the_loops_that_are_tested(always: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("syrk", "symm_poly", "symm_matmul", "axpy_matmul"):
        monkeypatch.setattr(reference, name, lambda *args, name=name, **options: pytest.fail(name))
    a, b, c = commuting((2,), 40, True)
    native_products.syrk(a)
    native_products.symm_poly(a, 1.0, 2.0)
    native_products.symm_matmul(a, b, c=c, beta=1.0)
    native_products.axpy_matmul(torch.randn(2, 40, 30), a, 1.0)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 20, 20, dtype=torch.float64),
        torch.randn(2, 20, 20).bfloat16(),
        torch.randn(2, 3, 20, 20),
        torch.empty(0, 20, 20),
        torch.empty(2, 20, 0),
        torch.randn(2, 20, 20, device="meta"),
    ],
    ids=["float64", "bfloat16", "two batch dimensions", "no matrix", "no column", "meta"],
)
def test_others_are_left_to_the_reference(x: Tensor) -> None:
    result, expected = native_products.syrk(x), reference.syrk(x)
    assert result.dtype == expected.dtype and result.shape == expected.shape and result.device == expected.device
    if not x.is_meta:
        assert torch.equal(result, expected)


def test_scalars_that_are_tensors_go_to_the_reference() -> None:
    a, b, _ = commuting((3,), 32, False)
    alpha = torch.tensor([1.0, -2.0, 0.5])
    assert torch.equal(native_products.symm_matmul(a, b, alpha=alpha), reference.symm_matmul(a, b, alpha=alpha))


def test_graphs_are_refused_as_by_the_reference() -> None:
    x = torch.randn(2, 20, 20, requires_grad=True)
    for syrk in (native_products.syrk, reference.syrk):
        with pytest.raises(RuntimeError, match="automatic differentiation"):
            syrk(x)


def test_counters_see_what_torch_multiplies() -> None:
    x = torch.randn(3, 64, 70)
    with FlopCounterMode(display=False) as counter:
        products.syrk(x)
        share = products.symmetric_share(64, "cpu", torch.float32)
    assert counter.get_total_flops() == 2 * 3 * 64 * 64 * 70 * share
    assert products.symmetric_share(64, "cpu", torch.float32) < share


def test_writing_is_seen_by_autograd() -> None:
    out = torch.zeros(20, 20)
    version = out._version
    native_products.syrk(torch.randn(20, 7), out=out)
    assert out._version > version
    with torch.inference_mode():
        native_products.syrk(torch.randn(20, 7), out=torch.zeros(20, 20))


@pytest.mark.parametrize("rows", [16, 24, 128, 200, 256, 1000])
def test_the_stated_share_is_what_is_computed(rows: int) -> None:
    """Tiles on or below the diagonal alone: between the exact triangle and what bands of torch products compute."""
    share = native_products.symmetric_share(rows)
    assert (rows + 1) / (2 * rows) <= share <= 1
    assert rows < 128 or share < reference.symmetric_share(rows, "cpu", torch.float32)


def test_the_structure_is_the_one_that_the_loops_read() -> None:
    """Three operands with strides, seven numbers, two factors and a flag, without gaps."""
    assert ctypes.sizeof(native_products._Product) == 12 * 8 + 7 * 8 + 2 * 4 + 4 + 4

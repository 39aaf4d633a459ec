"""The Gram iteration in one kernel against the polynomial in float64, interpreted."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import interpreted, needs_triton
from operands import LAYOUTS, OUT_LAYOUTS, laid_out, poisoned
from strategies import SPECTRA, matrix, relative_error
from torch import Tensor

from orthoopt.coefficients import Table, resolve_coefficients
from orthoopt.gram_newton_schulz import gram_newton_schulz
from orthoopt.kernels.triton_gram import small_gram

pytestmark = [needs_triton, interpreted]

HALF, SINGLE = torch.float16, torch.float32
# Where float16 asks for a restart (arXiv 2608.11612); float32 is judged without.
RESTARTS = {"polar_express_a_1.05": (2,), "muon": (3,), "quintic": (2,), "aol4": (2,)}
FEW = settings.default.max_examples // 5  # type: ignore[attr-defined]  # set at run time


def table_of(name: str) -> Table:
    return resolve_coefficients(name, 4 if name == "aol4" else 5)


def on_chip(x: Tensor, name: str, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    table = table_of(name)
    result = small_gram(
        x,
        table.rows,
        kappa=table.kappa,
        start=table.start,
        dtype=dtype,
        restarts=RESTARTS[name] if dtype == HALF else (),
        out=out,
    )
    assert result is not None
    return result


def exactly(x: Tensor, name: str) -> Tensor:
    """The polynomial in float64, of a matrix brought near one."""
    x = x.double()
    return gram_newton_schulz(x / x.abs().amax().clamp(min=1e-300), len(table_of(name).rows), name)


def assert_as_exact_as_torch(result: Tensor, x: Tensor, name: str, dtype: torch.dtype) -> None:
    """The error is at most what torch loses in the same form and dtype, up to luck: four times that and some roundings.

    What is rounded once in a nearly null direction is amplified by the slope of the polynomial at zero. On spectra over
    many decades what torch loses varies tenfold with the order of rows and columns, which changes the order of sums
    alone: the worst of five orders counts, looked at only while the error is above those before.
    """
    restarts, exact = RESTARTS[name] if dtype == HALF else (), exactly(x, name)
    error, lost = relative_error(result, exact), []
    some = 8 * 2.0**-24 * math.prod(row[0] for row in table_of(name).rows) if dtype == SINGLE else 5e-3
    rows, cols = map(torch.arange, x.shape)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        shuffled = x[rows][:, cols]
        torchs = gram_newton_schulz(shuffled / x.abs().amax(), len(table_of(name).rows), name, dtype, restarts)
        lost.append(relative_error(torchs, exact[rows][:, cols]))
        if error < 4 * lost[-1] + some:
            return
        rows, cols = (torch.randperm(size, generator=generator) for size in x.shape)
    raise AssertionError(f"error {error:.2e}, torch's {lost}")


@settings(max_examples=FEW)
@given(
    st.sampled_from(SPECTRA),
    st.integers(1, 70),
    st.integers(1, 90),
    st.sampled_from([(), (2,)]),
    st.sampled_from(["polar_express_a_1.05", "muon", "quintic", "aol4"]),
    st.sampled_from([SINGLE, HALF]),
    st.integers(0, 2**31),
)
def test_the_polynomial(
    spectrum: str, rows: int, cols: int, batch: tuple[int, ...], name: str, dtype: torch.dtype, seed: int
) -> None:
    x = matrix(rows, cols, spectrum, seed, batch).float()
    kept = x.clone()
    result = on_chip(x, name, dtype)
    for got, of in zip(result.reshape(-1, rows, cols), x.reshape(-1, rows, cols), strict=True):
        assert_as_exact_as_torch(got, of, name, dtype)
    assert torch.equal(x, kept)


@settings(max_examples=FEW)
@given(
    st.sampled_from([(), (3,), (2, 2)]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(LAYOUTS),
    st.sampled_from(OUT_LAYOUTS),
    st.sampled_from([SINGLE, HALF]),
    st.integers(0, 2**31),
)
def test_strides_and_poison(
    batch: tuple[int, ...], rows: int, cols: int, layout: str, stored: str, dtype: torch.dtype, seed: int
) -> None:
    """Bits are those of the same numbers laid out plainly, and nothing is written outside."""
    x = laid_out((*batch, rows, cols), layout, SINGLE, seed)
    out, check = poisoned(x.shape, stored, SINGLE)
    assert on_chip(x, "polar_express_a_1.05", dtype, out) is out
    check()
    assert torch.equal(out, on_chip(x.contiguous(), "polar_express_a_1.05", dtype))


@pytest.mark.parametrize("dtype", [SINGLE, HALF])
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100, 1e-30, 1e30])
def test_scales(scale: float, dtype: torch.dtype) -> None:
    """Powers of two change no bit; others round the input. One chunk's peak is far above another's."""
    x = matrix(20, 200, "gaussian", 0).float()
    x[:, 64:128] *= 1e-4
    x[:, 128:] *= 30
    result = on_chip(x, "polar_express_a_1.05", dtype)
    scaled = on_chip(x * scale, "polar_express_a_1.05", dtype)
    if math.log2(scale).is_integer():
        assert torch.equal(scaled, result)
    # Moved by a unit roundoff each, entries round elsewhere: each result is off by as much as any.
    assert_as_exact_as_torch(scaled, x, "polar_express_a_1.05", dtype)


@pytest.mark.parametrize("dtype", [SINGLE, HALF])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # inf over inf, in NumPy
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_neighbours_of_zeros_and_of_bad_values(bad: float, dtype: torch.dtype) -> None:
    x = matrix(17, 80, "gaussian", 3, (4,)).float()
    alone = on_chip(x, "muon", dtype)
    x[1] = 0
    x[2, 5, 70] = bad
    result = on_chip(x, "muon", dtype)
    assert torch.equal(result[0], alone[0]) and torch.equal(result[3], alone[3])
    assert not result[1].any()
    assert result[2].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_input(dtype: torch.dtype) -> None:
    x = matrix(30, 50, "gaussian", 1, (2,)).to(dtype)
    result = on_chip(x, "quintic", SINGLE)
    assert result.dtype == dtype
    for got, of in zip(result, x, strict=True):
        # The output's own rounding; the interpreter truncates to bfloat16.
        assert relative_error(got, exactly(of, "quintic")) < (5e-4 if dtype == HALF else 8e-3)


@pytest.mark.parametrize("side", [128, 100])
def test_the_largest_side(side: int) -> None:
    x = matrix(side, 150, "gaussian", 2).float()
    result = on_chip(x, "polar_express_a_1.05", HALF)
    assert_as_exact_as_torch(result, x, "polar_express_a_1.05", HALF)


def test_what_is_not_taken() -> None:
    table = table_of("polar_express_a_1.05")
    assert small_gram(torch.zeros(129, 300), table.rows) is None
    assert small_gram(torch.zeros(8, 8, dtype=torch.float64), table.rows) is None
    assert small_gram(torch.zeros(0, 8, 8), table.rows) is None
    assert small_gram(torch.zeros(8, 8), table.rows, restarts=(1, 3)) is None
    assert small_gram(torch.zeros(8, 8, requires_grad=True), table.rows) is None


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("name", ["polar_express", "muon"])
def test_three_products_of_halves_lose_nothing(spectrum: str, name: str) -> None:
    """What the interpreter cannot show: with products of operands split into TF32 parts the result is as near."""

    def short(x: Tensor) -> Tensor:
        return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    def split(a: Tensor, b: Tensor) -> Tensor:
        a_high, b_high = short(a), short(b)
        return a_high @ b_high + (a_high @ short(b - b_high) + short(a - a_high) @ b_high)

    table = table_of(name)
    x = matrix(48, 160, spectrum, 5).float()
    x = x / x.norm() / table.kappa
    exact = gram_newton_schulz(x.double(), 5, name)
    errors = []
    for product in (torch.matmul, split):
        r, q = product(x, x.mT.contiguous()), torch.eye(48)
        for a, b, c in table.rows:
            z = b * r + c * product(r, r)
            q = a * q + product(q, z)
            r = a * r + product(r, z)
            r = a * r + product(r, z)
        errors.append(relative_error(product(q, x), exact))
    assert errors[1] < 2 * errors[0] + 1e-6  # the roundings differ, their size does not

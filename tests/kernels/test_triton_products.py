"""The Triton products against float64, interpreted: shapes that fit no tile, strides, batches, scalars, poison."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import interpreted, needs_triton
from operands import LAYOUTS, OUT_LAYOUTS, assert_product, laid_out, poisoned
from strategies import generator
from torch import Tensor

from orthoopt.kernels import triton_products as products
from orthoopt.kernels.triton_launch import launch_axpy, launch_symmetric
from orthoopt.kernels.triton_tuning import Config, symmetric_tiles

pytestmark = [needs_triton, interpreted]

# A launch costs the interpreter milliseconds; HYPOTHESIS_PROFILE=thorough draws as many times more as elsewhere.
FEW = settings.default.max_examples // 7  # type: ignore[attr-defined]  # set at run time

batches = st.sampled_from([(), (1,), (3,), (2, 2)])
sides = st.integers(1, 50)
layouts = st.sampled_from(LAYOUTS)
out_layouts = st.sampled_from((None, *OUT_LAYOUTS))
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
seeds = st.integers(0, 2**31)
kinds = st.sampled_from(["number", "0-d", "batch"])
# Group 1 and 3 cut a triangle of five blocks into whole groups, and into one that is not.
configs = st.sampled_from([Config(16, 16, 16, 4, 1, 3), Config(16, 16, 32, 4, 1, 1), Config(32, 32, 16, 4, 1, 8)])


def scalar(kind: str, value: float, batch: tuple[int, ...], seed: int) -> float | Tensor:
    if kind == "number":
        return value
    return value * torch.randn(batch if kind == "batch" else (), generator=generator(seed))


def symmetric(shape: tuple[int, ...], layout: str, dtype: torch.dtype, seed: int) -> Tensor:
    """Symmetric with any strides: in "sliced" every other column of a wider one."""
    x = laid_out(shape, layout, torch.float32, seed)
    made = laid_out(shape, layout, dtype, seed)
    half = (x + x.mT) / 2
    return made.copy_(half) if layout != "expanded" else half[(0,) * (len(shape) - 2)].to(dtype).expand(shape)


def target(shape: tuple[int, ...], layout: str | None, dtype: torch.dtype) -> tuple[Tensor | None, Callable[[], None]]:
    return (None, lambda: None) if layout is None else poisoned(shape, layout, dtype)


def rough(dtype: torch.dtype) -> float:
    """The interpreter truncates to bfloat16 where a GPU rounds."""
    return 2.0 if dtype == torch.bfloat16 else 1.0


def tensor(value: float | Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float32)


@settings(max_examples=FEW)
@given(batches, sides, sides, layouts, out_layouts, dtypes, kinds, seeds)
def test_syrk(
    batch: tuple[int, ...],
    rows: int,
    cols: int,
    layout: str,
    stored: str | None,
    dtype: torch.dtype,
    kind: str,
    seed: int,
) -> None:
    x = laid_out((*batch, rows, cols), layout, dtype, seed)
    kept = x.clone()
    alpha = scalar(kind, 0.3, batch, seed)
    out, check = target((*batch, rows, rows), stored, dtype)
    result = products.syrk(x, alpha=alpha, out=out)
    check()
    assert out is None or result is out
    assert torch.equal(result, result.mT)
    assert_product(result, x, x.mT, None, tensor(alpha), tensor(0.0), rough(dtype))
    assert torch.equal(x, kept)


@settings(max_examples=FEW)
@given(batches, sides, layouts, out_layouts, dtypes, kinds, kinds, seeds)
def test_symm_poly(
    batch: tuple[int, ...],
    rows: int,
    layout: str,
    stored: str | None,
    dtype: torch.dtype,
    one: str,
    two: str,
    seed: int,
) -> None:
    a = symmetric((*batch, rows, rows), layout, dtype, seed)
    linear, quadratic = scalar(one, -4.775, batch, seed), scalar(two, 2.0315, batch, seed + 1)
    out, check = target(a.shape, stored, dtype)
    result = products.symm_poly(a, linear, quadratic, out=out)
    check()
    assert torch.equal(result, result.mT)
    assert_product(result, a, a.mT, a, tensor(quadratic), tensor(linear), rough(dtype))
    plus = products.symm_poly(a, linear, quadratic, identity=2.5)
    assert torch.equal(plus, result + 2.5 * torch.eye(rows, dtype=dtype))


@settings(max_examples=FEW)
@given(batches, sides, layouts, layouts, out_layouts, dtypes, kinds, kinds, st.booleans(), seeds)
def test_symm_matmul(
    batch: tuple[int, ...],
    rows: int,
    layout: str,
    other: str,
    stored: str | None,
    dtype: torch.dtype,
    one: str,
    two: str,
    added: bool,
    seed: int,
) -> None:
    """Of two symmetric matrices that do not commute, the lower triangle of the product is computed and mirrored."""
    a, b = symmetric((*batch, rows, rows), layout, dtype, seed), symmetric((*batch, rows, rows), other, dtype, seed + 1)
    c = symmetric((*batch, rows, rows), other, dtype, seed + 2) if added else None
    alpha, beta = scalar(one, 1.5, batch, seed), scalar(two, 3.4445, batch, seed + 3)
    out, check = target(a.shape, stored, dtype)
    result = products.symm_matmul(a, b, c=c, alpha=alpha, beta=beta, out=out)
    check()
    assert torch.equal(result, result.mT)
    # The upper triangle of the reference is not the result's: judge the lower one, by row pairs (i, j <= i).
    for row in range(rows):
        part = slice(row, row + 1), slice(0, row + 1)
        assert_product(
            result[..., part[0], part[1]],
            a[..., part[0], :],
            b[..., part[1], :].mT,
            None if c is None else c[..., part[0], part[1]],
            tensor(alpha),
            tensor(beta),
            rough(dtype),
        )


@settings(max_examples=FEW)
@given(batches, sides, sides, layouts, layouts, out_layouts, dtypes, kinds, kinds, seeds)
def test_axpy_matmul(
    batch: tuple[int, ...],
    rows: int,
    cols: int,
    layout: str,
    other: str,
    stored: str | None,
    dtype: torch.dtype,
    one: str,
    two: str,
    seed: int,
) -> None:
    x = laid_out((*batch, rows, cols), layout, dtype, seed)
    b = laid_out((*batch, rows, rows), other, dtype, seed + 1)
    by, alpha = scalar(one, 3.4445, batch, seed), scalar(two, 0.7, batch, seed + 2)
    out, check = target(x.shape, stored, dtype)
    result = products.axpy_matmul(x, b, by, alpha=alpha, out=out)
    check()
    assert_product(result, b, x, x, tensor(alpha), tensor(by), rough(dtype))


@settings(max_examples=FEW)
@given(configs, st.integers(1, 3), st.integers(1, 66), st.integers(1, 50), layouts, st.sampled_from(OUT_LAYOUTS), seeds)
def test_tiles_of_every_shape(
    config: Config, batch: int, rows: int, cols: int, layout: str, stored: str, seed: int
) -> None:
    x = laid_out((batch, rows, cols), layout, torch.float32, seed)
    out, check = poisoned((batch, rows, rows), stored, torch.float32)
    launch_symmetric(x, x, None, 1.0, 0.0, out, config)
    check()
    assert torch.equal(out, out.mT)
    assert_product(out, x, x.mT, None, tensor(1.0), tensor(0.0))
    long, check = poisoned((batch, rows, cols), stored, torch.float32)
    wide = config._replace(tile_n=2 * config.tile_n)
    launch_axpy(x, out, 2.0, -1.0, long, wide)
    check()
    assert_product(long, out, x, x, tensor(-1.0), tensor(2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_a_matrix_gives_depends_on_no_neighbour(dtype: torch.dtype) -> None:
    x = laid_out((3, 50, 40), "sliced", dtype, 1)
    a = products.syrk(x, alpha=0.7)
    moved = products.axpy_matmul(x, a, 1.5)
    for i in range(3):
        assert torch.equal(products.syrk(x[i], alpha=0.7), a[i])
        assert torch.equal(products.axpy_matmul(x[i], a[i], 1.5), moved[i])


def test_not_a_number_stays_in_its_rows_and_columns() -> None:
    x = laid_out((2, 40, 37), "contiguous", torch.float32, 0)
    clean = products.syrk(x)
    b = laid_out((2, 40, 40), "contiguous", torch.float32, 1)
    moved = products.axpy_matmul(x, b, 1.5)
    x[1, 17, 30] = math.nan
    hit = torch.zeros(2, 40, 40, dtype=torch.bool)
    hit[1, 17, :] = hit[1, :, 17] = True
    result = products.syrk(x)
    assert torch.equal(result.isnan(), hit) and torch.equal(result[~hit], clean[~hit])
    result = products.axpy_matmul(x, b, 1.5)
    assert result[1, :, 30].isnan().all() and int(result.isnan().sum()) == 40
    assert torch.equal(result[0], moved[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_zeros_give_zeros(dtype: torch.dtype) -> None:
    x = torch.zeros(2, 20, 35, dtype=dtype)
    a = products.syrk(x)
    assert not a.any()
    assert not products.symm_poly(a, 3.0, 2.0).any()
    assert not products.symm_matmul(a, a, c=a, beta=1.0).any()
    assert not products.axpy_matmul(x, a, 3.0).any()


def test_beta_zero_ignores_the_addend() -> None:
    a = symmetric((20, 20), "contiguous", torch.float32, 0)
    nothing = torch.full_like(a, math.nan)
    assert torch.equal(products.symm_matmul(a, a, c=nothing), products.symm_matmul(a, a))


def test_a_triangle_has_as_many_programs_as_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from orthoopt.kernels import triton_jit_products as jit

    grids = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            grids.append(grid)
            return lambda *args, **options: None

    monkeypatch.setattr(jit, "symmetric_product_kernel", Recorder())
    x = torch.zeros(5, 70, 20)
    launch_symmetric(x, x, None, 1.0, 0.0, x.new_empty(5, 70, 70), Config(16, 16, 16, 4, 1))
    assert grids == [(5 * 15,)] and symmetric_tiles(5, 70, 16) == 75

"""The Triton products on real hardware: every tile choice, larger ragged shapes, bfloat16, graphs, bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from comparison import relative_error
from interpreter import needs_triton
from operands import assert_product, laid_out, poisoned
from spectra import SPECTRA, matrix
from torch import Tensor

from orthoopt.coefficients import resolve_coefficients
from orthoopt.gram_newton_schulz import gram_newton_schulz
from orthoopt.kernels import triton_products as products
from orthoopt.kernels.triton_cutover import OPS, prefers_library
from orthoopt.kernels.triton_dispatch import plan
from orthoopt.kernels.triton_gram import small_gram
from orthoopt.kernels.triton_launch import launch_axpy, launch_symmetric
from orthoopt.kernels.triton_measure import measure_cutover
from orthoopt.kernels.triton_support import INTERPRETED, gpu_class
from orthoopt.kernels.triton_tuning import CANDIDATES, GRAM_SIDES, SHARED_LIMIT, Config

pytestmark = [
    pytest.mark.gpu,
    needs_triton,
    pytest.mark.skipif(not torch.cuda.is_available() or INTERPRETED, reason="needs a CUDA device; run with `make gpu`"),
]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(3, 1, 1), (2, 17, 300), (1, 130, 257), (4, 200, 96), (2, 511, 1000), (1, 1030, 770), (3, 384, 1536)]


@pytest.fixture(autouse=True)
def kernels_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels at every shape, also where the library is faster."""
    plan.cache_clear()
    monkeypatch.setattr("orthoopt.kernels.triton_dispatch.prefers_library", lambda *_: False)
    yield
    plan.cache_clear()


def on_gpu(shape: tuple[int, ...], layout: str, dtype: torch.dtype, seed: int) -> Tensor:
    """The layout survives the way over."""
    x = laid_out(shape, layout, torch.float32, seed)
    moved = torch.empty_strided(x.size(), x.stride(), dtype=dtype, device="cuda")
    if layout == "expanded":
        return x[0].to("cuda", dtype).expand(shape)
    return moved.copy_(x)


def poisoned_on_gpu(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> tuple[Tensor, Callable[[], None]]:
    with torch.device("cuda"):
        return poisoned(shape, layout, dtype)


def number(value: float) -> Tensor:
    return torch.tensor(value, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "expanded"])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_against_float64(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    batch, rows, _ = shape
    x = on_gpu(shape, layout, dtype, 1)
    scales = torch.rand(batch, device="cuda") / shape[-1]
    for stored in ("padded", "transposed", "strided"):
        a, check = poisoned_on_gpu((batch, rows, rows), stored, dtype)
        products.syrk(x, alpha=scales, out=a)
        check()
        assert torch.equal(a, a.mT)
        assert_product(a, x, x.mT, None, scales, number(0.0))
        b, check = poisoned_on_gpu((batch, rows, rows), stored, dtype)
        products.symm_poly(a, -4.775, 2.0315, out=b)
        check()
        assert torch.equal(b, b.mT)
        # Sums of products of operands that are symmetric themselves: both triangles are bounded alike.
        assert_product(b, a, a.mT, a, number(2.0315), number(-4.775))
        y, check = poisoned_on_gpu(shape, stored, dtype)
        products.axpy_matmul(x, b, 3.4445, alpha=scales, out=y)
        check()
        assert_product(y, b, x, x, scales, number(3.4445))


@pytest.mark.parametrize("dtype", DTYPES)
def test_commuting_products(dtype: torch.dtype) -> None:
    """Polynomials of one matrix commute up to their rounding; the lower triangle is A B's own."""
    a = products.syrk(on_gpu((3, 333, 500), "contiguous", dtype, 2), alpha=1e-3)
    b = products.symm_poly(a, 1.0, -0.5)
    result = products.symm_matmul(a, b, c=a, beta=3.4445)
    assert torch.equal(result, result.mT)
    lower = torch.ones(333, 333, dtype=torch.bool, device="cuda").tril()
    exact = (3.4445 * a.double() + a.double() @ b.double())[:, lower]
    magnitude = (3.4445 * a.double().abs() + a.double().abs() @ b.double().abs())[:, lower]
    unit = torch.finfo(dtype).eps / 2
    allowed = (333 + 8) * 2.0**-24 * magnitude + 1.1 * unit * exact.abs() + 2.0**-24
    assert ((result.double()[:, lower] - exact).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_candidate_is_right_and_bits_follow_tile_k_alone(dtype: torch.dtype) -> None:
    x = on_gpu((2, 300, 520), "contiguous", dtype, 3)
    limit = SHARED_LIMIT[gpu_class(x.device)]
    bits: dict[tuple[str, int], Tensor] = {}
    for kind in ("symmetric", "rectangular"):
        for config in CANDIDATES[kind, dtype.itemsize * 8]:
            if config.shared_bytes(dtype.itemsize) > limit:
                continue
            a = x.new_full((2, 300, 300), math.nan)
            launch_symmetric(x, x, None, 1 / 520, 0.0, a, Config(64, 64, 32, 4, 2))
            if kind == "symmetric":
                out = torch.full_like(a, math.nan)
                launch_symmetric(x, x, None, 1 / 520, 0.0, out, config)
                assert_product(out, x, x.mT, None, number(1 / 520), number(0.0))
            else:
                out = torch.full_like(x, math.nan)
                launch_axpy(x, a, 2.0, 1.0, out, config)
                assert_product(out, a, x, x, number(1.0), number(2.0))
            assert torch.equal(bits.setdefault((kind, config.tile_k), out), out), config


def test_a_matrix_alone_gives_the_same_bits() -> None:
    x = on_gpu((150, 640, 640), "contiguous", torch.bfloat16, 4)
    many = products.syrk(x)  # large tiles
    assert torch.equal(products.syrk(x[70]), many[70])  # small ones
    moved = products.axpy_matmul(x, many, 2.0)
    assert torch.equal(products.axpy_matmul(x[70], many[70], 2.0), moved[70])


def test_more_than_two_gigabytes() -> None:
    """Offsets beyond 2³¹ elements, from the batch and within a matrix."""
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of free GPU memory")
    x = torch.zeros(18, 64, 2**21, dtype=torch.float16, device="cuda")
    x[17] = torch.randn(64, 2**21, device="cuda") / 2**10
    a = products.syrk(x)
    assert_product(a[17], x[17], x[17].mT, None, number(1.0), number(0.0))
    assert not a[:17].any()
    tall = torch.zeros(2**15 * 2 + 40, 2**15 + 8, dtype=torch.float16, device="cuda")
    tall[-3:] = torch.randn(3, 2**15 + 8, device="cuda") / 2**7
    view = tall.mT  # rows run along memory, sums across it
    result = products.syrk(view[-70:])
    assert_product(result, view[-70:], view[-70:].mT, None, number(1.0), number(0.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["polar_express_a_1.05", "muon", "aol4"])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_small_gram_against_float64(spectrum: str, name: str, dtype: torch.dtype) -> None:
    steps = 4 if name == "aol4" else 5
    table = resolve_coefficients(name, steps)
    largest = GRAM_SIDES[gpu_class(torch.device("cuda", 0))][dtype.itemsize * 8]
    for rows, cols in ((largest, 768), (largest - 3, 500), (700, 31), (16, 40), (1, 90)):
        x = matrix(rows, cols, spectrum, 1, (2,)).float()
        for scale in (1.0, 1e-30, 1e30):
            out, check = poisoned_on_gpu(x.shape, "padded", torch.float32)
            restarts = () if dtype == torch.float32 else (3,) if name == "muon" else (2,)
            result = small_gram(
                (x * scale).cuda(), table.rows, kappa=table.kappa, start=table.start, dtype=dtype, restarts=restarts,
                out=out,
            )  # fmt: skip
            assert result is out
            check()
            for i in range(2):
                exact = gram_newton_schulz(x[i].double(), steps, name)
                torchs = relative_error(gram_newton_schulz(x[i], steps, name, dtype, restarts), exact)
                # What torch loses in the same form and dtype, up to luck, and some roundings.
                assert relative_error(out[i].cpu(), exact) < 4 * torchs + (5e-5 if dtype == torch.float32 else 5e-3)


def test_zeros_and_bad_values_keep_to_themselves() -> None:
    x = torch.randn(4, 64, 300, device="cuda")
    table = resolve_coefficients("muon", 5)
    alone = small_gram(x, table.rows, dtype=torch.float32)
    assert alone is not None
    x[1], x[2, 5, 70] = 0, math.nan
    result = small_gram(x, table.rows, dtype=torch.float32)
    assert result is not None
    assert torch.equal(result[0], alone[0]) and torch.equal(result[3], alone[3])
    assert not result[1].any() and result[2].isnan().all()
    a = products.syrk(x)
    assert not a[1].any() and int(a[2].isnan().sum()) == 2 * 64 - 1


def test_a_cuda_graph_holds_the_ops() -> None:
    x, scale = torch.randn(3, 96, 200, device="cuda"), torch.tensor([0.01, 0.02, 0.03], device="cuda")
    table = resolve_coefficients("muon", 5)

    def work() -> tuple[Tensor, Tensor | None]:
        a = products.syrk(x, alpha=scale)
        return products.axpy_matmul(x, products.symm_poly(a, scale, 0.5), 2.0), small_gram(
            x[:, :64], table.rows, dtype=torch.float32
        )

    for _ in range(2):  # compiles, and brings the coefficients over
        work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = work()
    x.normal_()
    scale.mul_(2)
    graph.replay()
    for one, other in zip(got, work(), strict=True):
        assert torch.equal(one, other)


def test_a_compiled_function_holds_the_ops() -> None:
    x = torch.randn(3, 96, 200, device="cuda", dtype=torch.bfloat16)

    def work(x: Tensor) -> Tensor:
        a = products.syrk(x, alpha=0.01)
        return products.axpy_matmul(x, products.symm_matmul(a, a, c=a, beta=2.0), 2.0)

    assert torch.equal(torch.compile(work, fullgraph=True)(x), work(x))


def test_nothing_waits_for_the_host() -> None:
    x, scale = torch.randn(3, 96, 200, device="cuda"), torch.tensor([0.01, 0.02, 0.03], device="cuda")
    products.axpy_matmul(x, products.symm_poly(products.syrk(x, alpha=scale), scale, 0.5), 2.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        products.axpy_matmul(x, products.symm_poly(products.syrk(x, alpha=scale), scale, 0.5), 2.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_measurement_has_every_product() -> None:
    rows = measure_cutover(torch.device("cuda", 0), sizes=[(256, 512)], batches=[2], repeats=3)
    assert {row.op for row in rows} == set(OPS) - {"small_gram"} and len(rows) == 8
    assert all(row.library_us > 0 and row.triton_us > 0 for row in rows)
    assert isinstance(prefers_library("syrk", 2, 256, 512, torch.bfloat16, torch.device("cuda", 0)), bool)

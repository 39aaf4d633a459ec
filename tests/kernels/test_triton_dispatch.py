"""When the Triton products run, with which tiles, and what happens where they cannot."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from interpreter import needs_triton

from orthoopt.kernels import reference, triton_cutover, triton_support, triton_tuning
from orthoopt.kernels import triton_products as products
from orthoopt.kernels.triton_cutover import Row, prefers_library, write_cutover
from orthoopt.kernels.triton_gram import small_gram
from orthoopt.kernels.triton_measure import measure_cutover
from orthoopt.kernels.triton_tuning import CANDIDATES, DEFAULTS, SHARED_LIMIT, Config, default_config

pytestmark = pytest.mark.skipif(triton_support.INTERPRETED, reason="asks what is done without TRITON_INTERPRET")

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
BF16 = torch.bfloat16


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is there in name, and no measurement of it."""
    gpu = SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(triton_cutover, "TABLE", Path("missing.json"))


def test_importing_needs_no_triton() -> None:
    code = """
import builtins, importlib.util
find, load = importlib.util.find_spec, builtins.__import__
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
def blocked(name, *rest, **named):
    if name.split(".")[0] == "triton":
        raise ImportError(name)
    return load(name, *rest, **named)
builtins.__import__ = blocked
import torch
from orthoopt.kernels import triton_gram, triton_measure, triton_products, triton_support
assert triton_support.VERSION is None
assert not triton_products.available(torch.device("cuda", 0))
x = torch.ones(2, 3)
assert torch.equal(triton_products.syrk(x), x @ x.T)
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_a_triton_too_old_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(triton_support, "VERSION", (3, 5))
    monkeypatch.setattr(triton_support, "_warned", False)
    with caplog.at_level(logging.WARNING, logger="orthoopt"):
        assert not triton_support.available(CPU) and not caplog.records
        assert not triton_support.available(CUDA) and not triton_support.available(CUDA)
    assert [record.getMessage() for record in caplog.records] == [
        "Triton 3.5 is installed, the kernels need 3.6 or newer: torch's own ops are used"
    ]


def test_where_the_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "VERSION", (3, 7))
    classes = {}
    for major, minor in ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)):
        gpu = SimpleNamespace(major=major, minor=minor, multi_processor_count=1)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, gpu=gpu: gpu)
        classes[major, minor] = triton_support.gpu_class(CUDA)
        assert triton_support.available(CUDA) is (major >= 8)
    assert list(classes.values()) == [
        "old", "ampere", "ada", "ada", "hopper", "blackwell", "blackwell", "geforce_blackwell",
    ]  # fmt: skip
    assert set(classes.values()) - {"old"} == set(SHARED_LIMIT)
    assert not triton_support.available(CPU)


def test_the_cpu_gets_the_reference() -> None:
    x = torch.randn(2, 20, 30)
    a = products.syrk(x, alpha=0.1)
    assert torch.equal(a, reference.syrk(x, alpha=0.1))
    assert torch.equal(products.symm_poly(a, 2.0, -1.0), reference.symm_poly(a, 2.0, -1.0))
    assert torch.equal(products.symm_matmul(a, a, c=a, beta=2.0), reference.symm_matmul(a, a, c=a, beta=2.0))
    out = torch.empty_like(x)
    assert products.axpy_matmul(x, a, 3.0, out=out) is out
    assert torch.equal(out, reference.axpy_matmul(x, a, 3.0))
    assert small_gram(x, [(1.5, -0.5, 0.0)]) is None
    assert torch.equal(products.symm_poly(a, 2.0, 0), 2 * a)


def test_the_library_where_it_is_reasoned_to_win(h100: None) -> None:
    def library(op: str, batch: int, rows: int, cols: int, dtype: torch.dtype = BF16) -> bool:
        return prefers_library(op, batch, rows, cols, dtype, CUDA)

    for op in ("syrk", "symm_poly", "symm_matmul"):
        assert [library(op, 1, side, side) for side in (256, 512, 1024, 2048, 4096)] == [True] * 4 + [False]
        assert not library(op, 48, 768, 768) and not library(op, 56, 1024, 1024) and library(op, 900, 128, 128)
        assert library(op, 48, 768, 768, torch.float32)
    assert not library("axpy_matmul", 48, 768, 3072) and library("axpy_matmul", 1, 512, 512)
    assert library("axpy_matmul", 4, 4096, 14336)
    assert not library("small_gram", 288, 128, 768) and library("small_gram", 1, 64, 50_000)
    with pytest.raises(ValueError, match=r"op='gram' is not one of: syrk, symm_poly"):
        library("gram", 1, 1, 1)


def test_measurements_overrule(h100: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cutover.json"
    monkeypatch.setattr(triton_cutover, "TABLE", path)
    monkeypatch.setattr(triton_cutover, "VERSION", (3, 7))
    rows = [
        Row("hopper", "3.7", "syrk", "bfloat16", 1, 1024, 1024, 20.0, 10.0),
        Row("hopper", "3.7", "syrk", "bfloat16", 48, 1024, 1024, 20.0, 30.0),
        Row("hopper", "3.6", "symm_poly", "bfloat16", 1, 1024, 1024, 20.0, 10.0),
        Row("ampere", "3.7", "symm_matmul", "bfloat16", 1, 1024, 1024, 20.0, 10.0),
    ]
    write_cutover(rows, path)
    assert triton_cutover.read_cutover(path) == tuple(rows)
    assert not prefers_library("syrk", 1, 1024, 1024, BF16, CUDA)  # measured
    assert not prefers_library("syrk", 2, 600, 1500, BF16, CUDA)  # within a factor of two
    assert prefers_library("syrk", 48, 768, 768, BF16, CUDA)
    assert prefers_library("syrk", 1, 1024, 1024, torch.float16, CUDA)  # not measured: by the rule
    assert prefers_library("symm_poly", 1, 1024, 1024, BF16, CUDA)  # of another Triton
    assert prefers_library("symm_matmul", 1, 1024, 1024, BF16, CUDA)  # of another GPU
    broken = tmp_path / "broken.json"
    broken.write_text('[{"gpu": "hopper"}]')
    with pytest.raises(ValueError, match=r"broken\.json: not a table of rows gpu, triton, op"):
        triton_cutover.read_cutover(broken)


def test_only_a_gpu_is_measured() -> None:
    with pytest.raises(ValueError, match="device='cpu' does not run the Triton kernels"):
        measure_cutover(CPU)


@pytest.mark.parametrize("gpu", DEFAULTS)
def test_tiles_fit(gpu: str) -> None:
    for table in DEFAULTS[gpu].values():
        for (kind, bits, _), config in table.items():
            assert gpu == "interpreter" or config.shared_bytes(bits // 8) <= SHARED_LIMIT[gpu]
            assert kind == "rectangular" or config.tile_m == config.tile_n
            # Sums then run in the same order for any number of matrices.
            assert config.tile_k == table[kind, bits, "large"].tile_k
    assert min(DEFAULTS[gpu]) == triton_support.FLOOR


def test_candidates_are_few_and_some_fit_everywhere() -> None:
    for (kind, bits), configs in CANDIDATES.items():
        assert len(set(configs)) == len(configs) <= 8
        assert any(config.shared_bytes(bits // 8) <= min(SHARED_LIMIT.values()) for config in configs)
        assert kind == "rectangular" or all(config.tile_m == config.tile_n for config in configs)


def test_large_tiles_where_there_are_enough(h100: None) -> None:
    def tile(kind: str, batch: int, rows: int, cols: int) -> tuple[int, int]:
        return default_config(kind, batch, rows, cols, BF16, CUDA)[:2]

    assert tile("symmetric", 48, 768, 768) == (128, 128) and tile("symmetric", 1, 1024, 1024) == (64, 64)
    assert tile("symmetric", 100, 512, 512) == (64, 64)
    assert tile("rectangular", 48, 768, 3072) == (128, 256) and tile("rectangular", 1, 512, 512) == (64, 128)


@needs_triton
def test_autotuning_takes_the_fastest_that_runs(h100: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton.testing
    from triton.runtime.errors import OutOfResources

    tried: list[Config] = []

    def run(config: Config) -> None:
        tried.append(config)

    def bench(call: Callable[[], None], **_: object) -> float:
        call()
        if tried[-1].tile_n == 256:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return {128: 2.0, 64: 3.0}[tried[-1].tile_m] + tried[-1].tile_k / 1000

    monkeypatch.setattr(triton.testing, "do_bench", bench)
    monkeypatch.setattr(triton_tuning, "_tuned", {})
    monkeypatch.setattr(triton_tuning, "SHARED_LIMIT", {"hopper": SHARED_LIMIT["ada"]})
    best = triton_tuning.tuned_config("rectangular", ("a",), BF16, CUDA, run)
    assert best == Config(128, 128, 32, 8, 4)
    assert all(config.shared_bytes(2) <= SHARED_LIMIT["ada"] for config in tried) and len(tried) >= 3
    count = len(tried)
    assert triton_tuning.tuned_config("rectangular", ("a",), BF16, CUDA, run) == best and len(tried) == count
    triton_tuning.tuned_config("rectangular", ("b",), BF16, CUDA, run)
    assert len(tried) == 2 * count
    assert not triton_tuning.wants_autotuning(CPU)


def test_errors_name_what_is_wrong() -> None:
    x, a = torch.zeros(3, 4, 5), torch.zeros(3, 4, 4)
    for call, message in (
        (lambda: products.syrk(x, alpha=torch.ones(4)), r"alpha of shape \(4,\) on cpu must be a number, or a tensor"),
        (lambda: products.syrk(x, out=torch.zeros(3, 5, 5)), r"out of shape \(3, 5, 5\).* must have shape \(3, 4, 4\)"),
        (lambda: products.syrk(x, out=a.double()), r"out of shape.*torch\.float64.* must have .*torch\.float32"),
        (lambda: products.symm_poly(x, 1.0, 1.0), r"a of shape \(3, 4, 5\) must be square"),
        (lambda: products.symm_poly(a, torch.ones(2), 1.0), r"linear of shape \(2,\)"),
        (lambda: products.symm_matmul(a, a[0]), r"b of shape \(4, 4\) must have the shape of a, \(3, 4, 4\)"),
        (lambda: products.symm_matmul(a, a, c=x), r"c of shape \(3, 4, 5\) must have"),
        (lambda: products.axpy_matmul(x, x, 1.0), r"b of shape \(3, 4, 5\) must have the shape \(3, 4, 4\)"),
        (lambda: small_gram(x, []), r"coefficients=\(\) must hold at least one"),
        (lambda: small_gram(x, [(1, 1, 1)], start="norm"), r"start='norm' is not one of: frobenius, aol"),
        (lambda: small_gram(x, [(1, 1, 1)], dtype=BF16), r"dtype=torch.bfloat16 is not one of"),
        (lambda: small_gram(x, [(1, 1, 1)] * 3, restarts=(3,)), r"restarts=\[3\] must be among the steps 1 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            call()

"""The kernels as tuned compile for every GPU class, with none at hand: no crash, no spill, shared memory that fits."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from interpreter import needs_triton

from orthoopt.kernels.triton_launch import OPTIONS
from orthoopt.kernels.triton_support import INTERPRETED
from orthoopt.kernels.triton_tuning import DEFAULTS, GRAM_SIDES, SHARED_LIMIT, Key, gram_config

pytestmark = [needs_triton, pytest.mark.skipif(INTERPRETED, reason="compiles, so not with TRITON_INTERPRET=1")]

ARCHITECTURES = {"ampere": 80, "ada": 89, "hopper": 90, "blackwell": 100, "geforce_blackwell": 120}
QUICK: set[Key] = {("symmetric", 16, "large"), ("rectangular", 16, "small")}

FLOATS = {"alpha", "beta", "scalar", "kappa"}
UNIT_STRIDES = {"left_k", "right_k", "addend_col", "out_col", "x_col", "b_col"}
NOT_ALIGNED = {"blocks", "blocks_m", "blocks_n", "restart", "steps", "alpha_stride", "beta_stride", "scalar_stride"}
POINTERS = {"left", "right", "addend", "out", "x", "b"}


def build(kernel: Any, gpu: str, dtype: str, constants: dict[str, Any], warps: int, stages: int) -> tuple[int, int]:
    """Shared memory and stack of one program, bytes; rows of matrices are aligned."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, dict(constants), {}
    for place, name in enumerate(kernel.arg_names):
        if name in UNIT_STRIDES:
            constants[name] = 1
        signature[name] = (
            "constexpr"
            if name in constants
            else f"*{dtype}"
            if name in POINTERS
            else "*fp32"
            if name == "coefficients"
            else "fp32"
            if name in FLOATS
            else "i32"
        )
        if signature[name] not in ("constexpr", "fp32") and name not in NOT_ALIGNED:
            attributes[place,] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", ARCHITECTURES[gpu], 32),
        options={"num_warps": warps, "num_stages": stages, **OPTIONS},
    )
    return compiled.metadata.shared, stack_bytes(compiled.asm["cubin"])


def stack_bytes(cubin: bytes) -> int:
    """What the assembler could not keep in registers, where the tool that tells comes with Triton; else 0."""
    import tempfile

    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__path__[0], "bin", "cuobjdump")
    if not tool.exists():
        return 0
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"STACK:(\d+)", said)
    assert found, said
    return int(found[1])


def product_cases() -> Iterator[Any]:
    for gpu, architecture in ARCHITECTURES.items():
        for key in DEFAULTS[gpu][max(DEFAULTS[gpu])]:
            quick = gpu == "hopper" and key in QUICK
            name = f"sm_{architecture}-{'-'.join(map(str, key))}"
            yield pytest.param(gpu, key, id=name, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("gpu", "key"), list(product_cases()))
def test_products(gpu: str, key: Key) -> None:
    from orthoopt.kernels.triton_jit_products import axpy_product_kernel, symmetric_product_kernel

    kind, bits, _ = key
    config = DEFAULTS[gpu][max(DEFAULTS[gpu])][key]
    constants = {"ALPHA_TENSOR": False, "EVEN_K": False, "UPCAST": False, "TILE_K": config.tile_k}
    constants["GROUP"] = config.group
    if kind == "symmetric":
        kernel = symmetric_product_kernel
        constants |= {"BETA_TENSOR": False, "ADDEND": True, "TILE": config.tile_m}
    else:
        kernel = axpy_product_kernel
        constants |= {"SCALAR_TENSOR": False, "TILE_M": config.tile_m, "TILE_N": config.tile_n}
    dtype = "bf16" if bits == 16 else "fp32"
    shared, stack = build(kernel, gpu, dtype, constants, config.warps, config.stages)
    assert shared <= SHARED_LIMIT[gpu]
    assert stack == 0


def gram_cases() -> Iterator[Any]:
    for gpu, architecture in ARCHITECTURES.items():
        for bits, largest in GRAM_SIDES[gpu].items():
            for side in (16, 32, 64, 128):
                if side <= largest:
                    yield pytest.param(gpu, bits, side, id=f"sm_{architecture}-{bits}-{side}", marks=pytest.mark.slow)


@pytest.mark.parametrize(("gpu", "bits", "side"), list(gram_cases()))
def test_gram(gpu: str, bits: int, side: int) -> None:
    import triton.language as tl

    from orthoopt.kernels.triton_jit_gram import small_gram_kernel

    config = gram_config(side, bits)
    constants = {"AOL": False, "RESTART": bits == 16, "SIDE": side, "CHUNK": config.chunk}
    constants |= {"OPERAND": tl.float16, "PRECISION": "ieee"} if bits == 16 else {}
    constants |= {"OPERAND": tl.float32, "PRECISION": "tf32x3"} if bits == 32 else {}
    shared, stack = build(small_gram_kernel, gpu, "fp32", constants, config.warps, config.stages)
    assert shared <= SHARED_LIMIT[gpu]
    # A few values that live through the whole program may leave registers once; products may not.
    assert stack <= 512

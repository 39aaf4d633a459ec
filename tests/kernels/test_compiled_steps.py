"""The step kernels compiled for GPUs that need not be here: types, which no interpreter checks, and vector accesses."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
from interpreter import needs_triton

pytestmark = [
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset"),  # Triton 3.9; either choice is right here
    needs_triton,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted in this process"),
]

CAPABILITIES = [pytest.param(80, marks=pytest.mark.slow), 90, pytest.param(100, marks=pytest.mark.slow)]

_FLOATS = ("decay", "weight", "from_grad", "from_buffer", "lr")
_TABLES = ("pointers", "records", "sets")
_CONSTANTS = {
    "HAS_GRAD": True, "ALIGNED": True, "ROW_VECTORS": True, "COL_VECTORS": False, "FIELDS": 13,
    "TILE_R": 32, "TILE_C": 128, "LR_TENSOR": False, "KEEP_TENSOR": True, "TILES": False, "EPS_MODE": "relative",
}  # fmt: skip


def compiled(module: str, name: str, capability: int, **given: Any) -> str:
    """PTX of a kernel; arguments that are not given are pointers to float32, or as their names say."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"orthoopt.kernels.{module}"), name)
    signature, constants, attributes = {}, {}, {}
    for index, argument in enumerate(kernel.arg_names):
        if argument.isupper():
            default = 0 if argument.endswith("ORDER") else tl.float32
            constants[(index,)] = given.get(argument, _CONSTANTS.get(argument, default))
            kind = "constexpr"
        elif argument in _FLOATS:
            kind = "fp32"
        elif argument in _TABLES:
            kind = "*i64"
        elif argument == "owners":
            kind = "*i32"
        elif argument.endswith("stride"):
            kind = "i32"
        else:
            kind = given.get(argument, "*fp32")
            if kind is None:
                constants[(index,)], kind = None, "constexpr"
        signature[argument] = kind
        if kind.startswith("*"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4}).asm["ptx"]


def accesses(ptx: str, kind: str) -> dict[str, int]:
    """How often a kernel reads ("ld") or writes ("st") global memory, by the width of the access."""
    found = re.findall(rf"{kind}\.global(?:\.\w+)*?\.((?:v\d\.)?b\d+)", ptx)
    return {width: found.count(width) for width in set(found)}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_momentum_moves_sixteen_bytes_at_a_time(capability: int) -> None:
    """Also where out is the transpose of what gradient and buffer are: 4096 elements in 128 threads, 32 each."""
    import triton.language as tl

    for tile, order in (((1, 4096), 0), ((32, 128), 0), ((64, 64), 1)):
        ptx = compiled(
            "triton_jit_steps", "momentum_kernel", capability, GRAD=tl.bfloat16, OUT=tl.bfloat16, OUT_ORDER=order,
            TILE_R=tile[0], TILE_C=tile[1], COL_VECTORS=order == 1, gate="*fp64", peaks="*i32",
        )  # fmt: skip
        read, written = accesses(ptx, "ld"), accesses(ptx, "st")
        assert read["v4.b32"] == 4 + 8 and "b16" not in read  # bfloat16 gradient, float32 buffer
        assert written == {"v4.b32": 8 + 4}


KERNELS = {
    "triton_jit_steps": {"subtract_kernel": 16, "finite_kernel": 8},
    "triton_jit_row_norm": {"row_moments_kernel": 16, "row_lengths_kernel": 0, "row_norm_kernel": 24},
    "triton_jit_auon": {
        "sums_kernel": 16, "add_sums_kernel": 0, "schur_kernel": 16, "add_quotients_kernel": 0,
        "spectral_divisor_kernel": 0, "auon_kernel": 24,
    },
    "triton_jit_paper": {"powers_kernel": 16, "add_powers_kernel": 0, "paper_divisor_kernel": 0},
}  # fmt: skip


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("module", KERNELS)
def test_kernels_compile_and_read_tiles_in_vectors(module: str, capability: int) -> None:
    for name, vectors in KERNELS[module].items():
        given = {"sums": "*fp64"} if module.endswith("row_norm") else {}
        read = accesses(compiled(module, name, capability, **given), "ld")
        assert read.get("v4.b32", 0) >= vectors, name


def test_kernels_compile_for_odd_strides_and_no_gate() -> None:
    sides = ("GRAD", "BUFFER", "OUT", "PARAM", "UPDATE")
    for order, name in ((0, "momentum_kernel"), (1, "subtract_kernel"), (2, "momentum_kernel"), (2, "finite_kernel")):
        orders = {f"{side}_ORDER": order for side in sides}
        given = {"ALIGNED": False, "ROW_VECTORS": False, "HAS_GRAD": order == 0, "gate": None, "peaks": None}
        if name == "finite_kernel":
            del given["gate"]
        compiled("triton_jit_steps", name, 90, **given, **orders)

"""Products of float32 matrices on a CPU by compiled loops, which leave out what is above a symmetric result's diagonal.

Torch's products compute all of it, or, in bands of rows, five eighths. Here it is little more than a half, at the rate
of torch's library or above; and of matrices no larger than a cache, without copying operands into panels first. Other
products are torch's own wherever its library makes use of the whole width of the registers.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import Parameter

from orthoopt.kernels import reference
from orthoopt.kernels.native import library
from orthoopt.kernels.reference import Scalar

__all__ = ["axpy_matmul", "symm_matmul", "symm_poly", "symmetric_share", "syrk"]

LEAST_ROWS = 16
"""Below, a call costs more than its product."""

_CACHE_LINE = 16  # numbers

_LANES_OF_512_BITS = 16

_PLAIN = (Tensor, Parameter)


class _View(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("at", "row", "col", "stack")]


class _Product(ctypes.Structure):
    _fields_ = [
        *((name, _View) for name in ("a", "b", "d")),
        *((name, ctypes.c_int64) for name in ("c", "c_row", "c_stack", "stack", "rows", "cols", "inner")),
        *((name, ctypes.c_float) for name in ("alpha", "beta", "identity")),
        ("symmetric", ctypes.c_int),
    ]


def syrk(x: Tensor, *, alpha: Scalar = 1.0, out: Tensor | None = None) -> Tensor:
    """``alpha·X Xᵀ``; see :func:`orthoopt.kernels.reference.syrk`."""
    found = _product(x, x.mT, None, 0.0, alpha, out)
    return reference.syrk(x, alpha=alpha, out=out) if found is None else found


def symm_poly(
    a: Tensor, linear: Scalar, quadratic: Scalar, *, identity: float = 0.0, out: Tensor | None = None
) -> Tensor:
    """``identity·I + linear·A + quadratic·A Aᵀ``; see :func:`orthoopt.kernels.reference.symm_poly`."""
    product = isinstance(quadratic, Tensor) or quadratic != 0
    found = _product(a.mT, a, a, linear, quadratic, out, identity=identity) if product else None
    return reference.symm_poly(a, linear, quadratic, identity=identity, out=out) if found is None else found


def symm_matmul(
    a: Tensor,
    b: Tensor,
    *,
    c: Tensor | None = None,
    beta: Scalar = 0.0,
    alpha: Scalar = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """``beta·C + alpha·A B``, symmetric; see :func:`orthoopt.kernels.reference.symm_matmul`."""
    # A symmetric matrix is its transpose, and the loops read columns of A that lie side by side.
    found = _product(a.mT, b, c, beta, alpha, out)
    return reference.symm_matmul(a, b, c=c, beta=beta, alpha=alpha, out=out) if found is None else found


def axpy_matmul(x: Tensor, b: Tensor, scalar: Scalar, *, alpha: Scalar = 1.0, out: Tensor | None = None) -> Tensor:
    """``scalar·X + alpha·B X``; see :func:`orthoopt.kernels.reference.axpy_matmul`."""
    is_faster = outrun_the_library() or _is_read_in_place(x)
    found = _product(b, x, x, scalar, alpha, out, symmetric=False) if is_faster else None
    return reference.axpy_matmul(x, b, scalar, alpha=alpha, out=out) if found is None else found


@functools.cache
def outrun_the_library() -> bool:
    """Whether the loops are the faster ones for products that are not symmetric, too.

    On AMD's CPUs MKL multiplies in registers of 256 bits, also where there are 512. What the iteration gains there
    stands in bench/results/orthogonalize_cpu_avx512.json, beside the rate of torch's product. It is told from what the
    machine is, not from a clock: results must not differ from run to run.
    """
    loops = library()
    wide = loops is not None and loops.tile[1] == 2 * _LANES_OF_512_BITS
    return wide and torch.backends.mkl.is_available() and b"AuthenticAMD" in Path("/proc/cpuinfo").read_bytes()


def _is_read_in_place(x: Tensor) -> bool:
    """Whether the loops have no need to copy most of such an operand first, as the library does with all of it.

    Few rows of A serve many columns of X at once; an X with rows an odd number of cache lines apart is not copied.
    """
    loops = library()
    if loops is None:
        return False
    few_rows, few_lines = loops.few
    rows, cols = x.shape[-2:]
    lines, rest = divmod(x.stride(-2), _CACHE_LINE)
    return rows <= few_rows or (max(rows, cols) <= few_lines and rest == 0 and lines % 2 == 1)


def takes(x: Tensor) -> bool:
    """Whether the loops multiply such matrices."""
    return x.dtype is torch.float32 and x.is_cpu and x.shape[-2] >= LEAST_ROWS and is_on()


def is_on() -> bool:
    """Whether there are loops, and nobody watches torch's operations, such as a counter of FLOPs or a tracer."""
    return not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() == 0 and library() is not None


@functools.lru_cache(maxsize=4096)
def symmetric_share(rows: int) -> float:
    """The share of a symmetric product's entries that is computed: the tiles that the diagonal passes or are below."""
    loops = library()
    if loops is None or rows < LEAST_ROWS:
        return reference.symmetric_share(rows, "cpu", torch.float32)
    high, across = loops.tile
    tiles = sum(1 for top in range(0, rows, high) for left in range(0, rows, across) if left < top + high)
    return min(1.0, tiles * high * across / (rows * rows))


def _product(
    a: Tensor,
    b: Tensor,
    c: Tensor | None,
    beta: Scalar,
    alpha: Scalar,
    out: Tensor | None,
    *,
    symmetric: bool = True,
    identity: float = 0.0,
) -> Tensor | None:
    """``identity·I + beta·C + alpha·A B``; None, with nothing done, where the loops do not take these tensors."""
    loops = library()
    if isinstance(alpha, Tensor) or isinstance(beta, Tensor) or loops is None or a.ndim not in (2, 3):
        return None
    given = [x for x in (a, b, c, out) if x is not None]
    if not all(_is_plain(x) for x in given) or 0 in a.shape or (torch.is_grad_enabled() and _needs_grad(given)):
        return None
    if c is None or beta == 0:
        c, beta = None, 0.0
    if out is None:
        out = torch.empty((*a.shape[:-1], b.shape[-1]), dtype=a.dtype)
    elif out.stride(-1) != 1:
        return None
    stack = a.shape[0] if a.ndim == 3 else 1
    product = _Product(
        _view(a), _view(b), _view(out if c is None else c),
        out.data_ptr(), out.stride(-2), _stack(out), stack, a.shape[-2], b.shape[-1], a.shape[-1],
        alpha, beta, identity, symmetric,
    )  # fmt: skip
    if loops.product(ctypes.byref(product), torch.get_num_threads()):
        return None
    if not out.is_inference():
        increment_version(out)
    return out


def _view(x: Tensor) -> _View:
    return _View(x.data_ptr(), x.stride(-2), x.stride(-1), _stack(x))


def _stack(x: Tensor) -> int:
    return x.stride(0) if x.ndim == 3 else 0


def _needs_grad(tensors: list[Tensor]) -> bool:
    return any(x.requires_grad for x in tensors)


def _is_plain(x: Tensor) -> bool:
    """Whether there are float32 numbers at ``data_ptr()``."""
    return (
        type(x) in _PLAIN
        and x.dtype is torch.float32
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_neg()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )

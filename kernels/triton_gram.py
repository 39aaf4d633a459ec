"""The whole Gram form of the Newton-Schulz iteration in one kernel, for matrices whose short side is at most 128.

One launch instead of about twenty: a program takes a matrix, keeps R, Z and Q on the chip, reads X for its Gram matrix
and for the result (and for a restart, if there is one), and writes the result once. The maths is that of
:func:`orthoopt.gram_newton_schulz.gram_newton_schulz`, from which it differs in rounding alone:

- X is scaled by its largest magnitude while R is summed, so that no square leaves float32; the trace of R is ‖X‖_F².
- In float32 every product is made of three TF32 ones (operands split in two), which keeps 22 bits; on spectra from flat
  to rank one the result is then as far from the polynomial as with float32 products. Restarts are not needed: R of a
  null direction is off by about 1e-6, five steps raise that to at most a fifth, and only beyond one it would explode
  (:func:`orthoopt.iteration_form.default_restarts`).
- In float16, R, Z and Q are rounded to float16 between products, as where every product is stored, and R is made anew
  where the restart stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from orthoopt.kernels.triton_cutover import prefers_library
from orthoopt.kernels.triton_launch import OPTIONS, as_batch, on_device, stored
from orthoopt.kernels.triton_products import check_out
from orthoopt.kernels.triton_support import INTERPRETED, available, gpu_class
from orthoopt.kernels.triton_tuning import GRAM_SIDES, gram_config

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
STARTS = ("frobenius", "aol")


def small_gram(
    x: Tensor,
    coefficients: Sequence[tuple[float, float, float]],
    *,
    kappa: float = 1.0,
    start: str = "frobenius",
    dtype: torch.dtype = torch.float16,
    restarts: Sequence[int] = (),
    out: Tensor | None = None,
) -> Tensor | None:
    """Polar factors by the Gram form, each matrix in one program.

    Args:
        x: ``(..., rows, cols)``, any strides, tall or wide, float16, bfloat16 or float32; never written.
        coefficients: (a, b, c) of each step.
        kappa: divides the normalized matrix.
        start: "frobenius", or "aol" to scale rows by (Σⱼ|Rᵢⱼ|)^-½.
        dtype: of the iteration, float16 or float32. Float16 only with coefficients that are bounded on [0, 1.05], as
            :func:`orthoopt.iteration_form.check_dtype` says; that is not looked at here.
        restarts: steps, counted from 0, before which R is made anew; at most one.
        out: shaped as ``x``, any strides, the dtype of ``x``; no input.

    Returns:
        A tensor shaped as ``x`` in the dtype of ``x``, or None, with nothing touched, where :func:`takes_small_gram`
        says no.

    Raises:
        ValueError: no step; an unknown ``start``; a ``dtype``, restart or ``out`` that is not as stated.
    """
    steps = len(coefficients)
    if not steps:
        raise ValueError("coefficients=() must hold at least one step's (a, b, c)")
    if start not in STARTS:
        raise ValueError(f"start={start!r} is not one of: {', '.join(STARTS)}")
    if dtype not in (torch.float16, torch.float32):
        raise ValueError(f"dtype={dtype} is not one of: torch.float16, torch.float32")
    if not set(restarts) <= set(range(1, steps)):
        raise ValueError(f"restarts={sorted(restarts)!r} must be among the steps 1 to {steps - 1}")
    check_out(out, x, x.shape)
    if not takes_small_gram(x, dtype, restarts):
        return None
    out = torch.empty_like(x) if out is None else out
    flat = tuple(float(number) for triple in coefficients for number in triple)
    restart = restarts[0] if restarts else 0
    if torch.compiler.is_compiling():
        _small_gram_op(x, flat, kappa, start == "aol", dtype == torch.float16, restart, out)
    else:
        _small_gram_now(x, flat, kappa, start == "aol", dtype == torch.float16, restart, out)
    return out


def takes_small_gram(x: Tensor, dtype: torch.dtype, restarts: Sequence[int] = ()) -> bool:
    """Whether :func:`small_gram` takes ``x`` in an iteration of ``dtype``, and is expected to be faster than products.

    The side that fits is :data:`orthoopt.kernels.triton_tuning.GRAM_SIDES`: on Hopper 128 in float16, 64 in float32.
    """
    if x.ndim < 2 or x.numel() == 0 or x.dtype not in DTYPES or not available(x.device) or len(restarts) > 1:
        return False
    if (torch.is_grad_enabled() and x.requires_grad) or max(x.stride()[-2:]) >= 2**22:
        return False
    short, long = sorted(x.shape[-2:])
    if short > GRAM_SIDES[gpu_class(x.device)][dtype.itemsize * 8]:
        return False
    return not prefers_library("small_gram", x.shape[:-2].numel(), short, long, dtype, x.device)


@lru_cache(maxsize=64)
def _on_device(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Coefficients as the kernel reads them; copied once, so that a captured graph copies nothing."""
    return torch.tensor(numbers, dtype=torch.float32, device=device)


def _small_gram_now(
    x: Tensor, numbers: Sequence[float], kappa: float, aol: bool, half: bool, restart: int, out: Tensor
) -> None:
    import triton.language as tl

    from orthoopt.kernels.triton_jit_gram import small_gram_kernel

    steps = len(numbers) // 3
    source, target = as_batch(x), as_batch(out)
    result = target
    if source.shape[-2] > source.shape[-1]:
        source, target = source.mT, target.mT
    batch, short, long = source.shape
    side = max(16, 1 << (short - 1).bit_length())
    config = gram_config(side, 16 if half else 32)
    with on_device(x.device):
        small_gram_kernel[(batch,)](
            source, target, _on_device(tuple(numbers), x.device), kappa,
            short, long, restart or steps, steps, *source.stride(), *target.stride(),
            AOL=aol, RESTART=restart > 0, OPERAND=tl.float16 if half else tl.float32,
            # The interpreter has one kind of float32 product, and of the names only some versions know this one.
            PRECISION="ieee" if half or INTERPRETED else "tf32x3",
            SIDE=side, CHUNK=config.chunk, num_warps=config.warps, num_stages=config.stages,
            **OPTIONS,
        )  # fmt: skip
    stored(out, result)


@torch.library.custom_op("orthoopt::small_gram", mutates_args=("out",))
def _small_gram_op(
    x: Tensor, numbers: Sequence[float], kappa: float, aol: bool, half: bool, restart: int, out: Tensor
) -> None:
    _small_gram_now(x, numbers, kappa, aol, half, restart, out)


@_small_gram_op.register_fake
def _nothing(*_: object) -> None:
    """All that the op returns is in ``out``."""

"""The orthonormal DCT-II of the last dimension, by a matrix product or by FFT, and its inverse.

The basis has cosines for columns, D[j, f] = √(2/k)·cos(πf(2j+1)/2k) with f = 0 divided by √2, so that ``x @ D`` is what
``scipy.fft.dct(x, type=2, norm="ortho")`` gives. The fast way is Makhoul's (J. Makhoul, A fast cosine transform in one
and two dimensions, IEEE Trans. ASSP 28(1), 1980): one real FFT of the same length over reordered columns.
"""

from __future__ import annotations

import functools
import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Basis: TypeAlias = Literal["dct", "identity"]
Method: TypeAlias = Literal["auto", "matmul", "fft"]

CPU_FFT_FROM = 256
"""On CPUs the FFT is taken from this many computed columns on.

A product costs k multiplications for each element it computes, the FFT about as much whatever k is. Measured in
bench/results/dct_cpu.json, one thread of a busy machine: for all k columns both are even at 192 to 256, and the FFT two
to seven times faster beyond; putting a quarter of k back, they are even around k = 1024, which is 256 columns.
"""

ACCELERATOR_FFT_FROM = 2048
"""The same elsewhere, where products run at a far higher rate; an estimate from arithmetic, not measured."""


def dct_basis(size: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """The orthogonal matrix D of shape (size, size) whose columns are cosines; shared, so never write it."""
    return _dct_basis(size, dtype, torch.device(device))


@functools.lru_cache(maxsize=16)
def _dct_basis(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    j, f = torch.arange(size).unsqueeze(1), torch.arange(size)
    # Whole periods are taken off in integers: a large angle would lose digits.
    angle = (f * (2 * j + 1) % (4 * size)).double() * (math.pi / (2 * size))
    basis = math.sqrt(2 / size) * angle.cos()
    basis[:, 0] = 1 / math.sqrt(size)
    return basis.to(device, dtype)


@functools.lru_cache(maxsize=64)
def _twiddles(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """w_f = √(2/k)·exp(−iπf/2k), w_0 = 1/√k, for the size//2 + 1 frequencies of a real FFT."""
    f = torch.arange(size // 2 + 1, dtype=torch.float64)
    w = torch.polar(torch.full_like(f, math.sqrt(2 / size)), f * (-math.pi / (2 * size)))
    w[0] = 1 / math.sqrt(size)
    return w.to(device, dtype.to_complex())


def dct(x: Tensor, method: Method = "auto") -> Tensor:
    """The orthonormal DCT-II along the last dimension: ``x @ dct_basis(k)``.

    Args:
        x: ``(..., k)``, real; never written. Computed in float32 or wider.
        method: ``matmul``, ``fft``, or by size and device; they agree to rounding.

    Returns:
        A new tensor of the same shape, float32 or wider.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    size = x.shape[-1]
    if x.numel() == 0 or not _by_fft(method, size, x.device):
        return x @ dct_basis(size, x.dtype, x.device)
    reordered = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    z = torch.fft.rfft(reordered) * _twiddles(size, x.dtype, x.device)
    # The upper half of the spectrum is the conjugate of the lower: coefficient k − f is −Im z_f.
    return torch.cat([z.real, z.imag[..., 1 : (size + 1) // 2].flip(-1).neg()], -1)


def idct(x: Tensor, method: Method = "auto") -> Tensor:
    """The inverse of :func:`dct` along the last dimension, a DCT-III: ``x @ dct_basis(k).mT``; arguments as there."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    size = x.shape[-1]
    if x.numel() == 0 or not _by_fft(method, size, x.device):
        return x @ dct_basis(size, x.dtype, x.device).mT
    lower = size // 2 + 1
    mirrored = torch.cat([torch.zeros_like(x[..., :1]), x[..., size - lower + 1 :].flip(-1)], -1)
    z = torch.complex(x[..., :lower], -mirrored) / _twiddles(size, x.dtype, x.device)
    reordered = torch.fft.irfft(z, n=size)
    result = torch.empty_like(x)
    result[..., ::2] = reordered[..., : (size + 1) // 2]
    result[..., 1::2] = reordered[..., (size + 1) // 2 :].flip(-1)
    return result


def to_coordinates(x: Tensor, basis: Basis) -> Tensor:
    """``x @ D``: the rows of ``(..., k)`` in the basis; ``x`` itself under ``identity``."""
    return dct(x) if basis == "dct" else x


def in_columns(x: Tensor, indices: Tensor, basis: Basis) -> Tensor:
    """``x @ D[:, indices]``: some coordinates alone.

    Args:
        x: ``(..., rows, k)``.
        indices: ``(..., r)``, int64, one set a matrix.
        basis: of the k coordinates.
    """
    if basis == "identity" or _by_fft("auto", indices.shape[-1], x.device):
        return take_columns(to_coordinates(x, basis), indices)
    return x @ dct_basis(x.shape[-1], x.dtype, x.device).mT[indices].mT


def from_columns(b: Tensor, indices: Tensor, size: int, basis: Basis) -> Tensor:
    """``b @ D[:, indices].mT``: coordinates back in place, zeros at all others.

    Args:
        b: ``(..., rows, r)``, float32 or wider.
        indices: ``(..., r)``, int64, one set a matrix.
        size: k.
        basis: of the k coordinates.

    Returns:
        ``(..., rows, size)``.
    """
    if basis == "dct" and not _by_fft("auto", indices.shape[-1], b.device):
        return b @ dct_basis(size, b.dtype, b.device).mT[indices]
    spread = b.new_zeros((*b.shape[:-1], size)).scatter(-1, indices.unsqueeze(-2).expand(b.shape), b)
    return idct(spread) if basis == "dct" else spread


def take_columns(x: Tensor, indices: Tensor) -> Tensor:
    """Columns ``(..., rows, r)`` of ``(..., rows, k)``, chosen by ``(..., r)``."""
    return x.gather(-1, indices.unsqueeze(-2).expand(*x.shape[:-1], indices.shape[-1]))


def _by_fft(method: Method, columns: int, device: torch.device) -> bool:
    if method != "auto":
        return method == "fft"
    return columns >= (CPU_FFT_FROM if device.type == "cpu" else ACCELERATOR_FFT_FROM)

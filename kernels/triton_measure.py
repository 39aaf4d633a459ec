"""Measuring where the library's matrix products beat the Triton kernels."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from orthoopt.kernels import triton_products
from orthoopt.kernels.triton_cutover import Row, dtype_name
from orthoopt.kernels.triton_support import VERSION, available, gpu_class

SIZES = ((256, 256), (512, 512), (768, 768), (1024, 1024), (2048, 2048), (4096, 4096), (768, 3072), (2048, 8192))
BATCHES = (1, 4, 16, 48)


def measure_cutover(
    device: torch.device,
    sizes: Iterable[tuple[int, int]] = SIZES,
    batches: Iterable[int] = BATCHES,
    dtypes: Iterable[torch.dtype] = (torch.bfloat16, torch.float16),
    repeats: int = 20,
) -> list[Row]:
    """Time both sides of every product op, interleaved, by CUDA events on random data.

    Args:
        device: a CUDA device.
        sizes: ``(rows, cols)``.
        batches: how many matrices.
        dtypes: of the operands.
        repeats: of each side; the median counts. Both sides warm up first.

    Returns:
        A row a comparison; what needs more than a quarter of the free memory is left out.

    Raises:
        ValueError: a device on which the kernels do not run.
    """
    if device.type != "cuda" or not available(device):
        raise ValueError(f"device={str(device)!r} does not run the Triton kernels: only a CUDA device can be measured")
    gpu, triton = gpu_class(device), ".".join(map(str, VERSION or ()))
    found = []
    for dtype in dtypes:
        for rows, cols in sizes:
            for batch in batches:
                size = batch * (4 * rows * cols + 4 * rows * rows) * dtype.itemsize
                if 4 * size > torch.cuda.mem_get_info(device)[0]:
                    continue
                x = torch.randn(batch, rows, cols, device=device, dtype=dtype) / cols**0.5
                for op, sides in triton_products.both_sides(x).items():
                    library, kernel = _medians(sides, repeats)
                    length = cols if op in ("syrk", "axpy_matmul") else rows
                    found.append(Row(gpu, triton, op, dtype_name(dtype), batch, rows, length, library, kernel))
    return found


def _medians(sides: triton_products.Sides, repeats: int) -> tuple[float, float]:
    """Median microseconds of each side, taking turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 3):
        for run, kept in zip(sides, times, strict=True):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            if repeat >= 3:
                kept.append(1000 * begin.elapsed_time(end))
    return tuple(sorted(kept)[len(kept) // 2] for kept in times)  # type: ignore[return-value]  # of two lists

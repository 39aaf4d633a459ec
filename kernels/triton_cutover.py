"""Where the library's matrix products beat the Triton kernels: by rules, until measurements are there."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from orthoopt.kernels.triton_support import VERSION, gpu_class, multiprocessors
from orthoopt.kernels.triton_tuning import symmetric_tiles

OPS = ("syrk", "symm_poly", "symm_matmul", "axpy_matmul", "small_gram")

TABLE = Path(os.environ.get("ORTHOOPT_CUTOVER", Path(__file__).with_name("cutover.json")))
"""Where measurements are read from, if there are any."""


class Row(NamedTuple):
    """One measured comparison; times in microseconds."""

    gpu: str
    triton: str
    op: str
    dtype: str
    batch: int
    rows: int
    cols: int
    library_us: float
    triton_us: float


def prefers_library(op: str, batch: int, rows: int, cols: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the library is expected to be faster than the Triton kernel.

    The nearest measurement on this GPU class, Triton version, op and dtype decides, where one within a factor of two in
    every size is in :data:`TABLE`. No GPU is there yet, and these rules are reasoned from others' figures:

    - float32: the library, whose kernels without tensor cores are better; but ``small_gram``, which saves launches.
    - Symmetric products: the library where the triangle makes fewer than two waves of 128 x 128 tiles (one matrix up to
      2048 rows), or has fewer than 256 rows, where the triangle is no smaller than the square.
    - ``axpy_matmul``: the kernel up to 2048 rows, where the copy that the library makes of its addend costs a quarter
      of the product or more; but not for less than one wave of tiles.
    - ``small_gram``: the kernel, unless few matrices are so long that one multiprocessor each is not enough.

    Args:
        op: one of :data:`OPS`.
        batch: how many matrices.
        rows: of each.
        cols: of each; for products of square matrices, again ``rows``.
        dtype: of the operands.
        device: where they are.

    Raises:
        ValueError: an unknown op.
    """
    if op not in OPS:
        raise ValueError(f"op={op!r} is not one of: {', '.join(OPS)}")
    gpu = gpu_class(device)
    if gpu == "interpreter":
        return False
    if not torch.compiler.is_compiling():  # which follows no reading of files; products decide when the graph runs
        measured = _nearest(read_cutover(TABLE), gpu, op, batch, rows, cols, dtype)
        if measured is not None:
            return measured.library_us < measured.triton_us
    programs = multiprocessors(device)
    if op == "small_gram":
        return rows * cols > 2**19 and 4 * batch < programs
    if dtype == torch.float32:
        return True
    if op == "axpy_matmul":
        return rows > 2048 or batch * -(-rows // 128) * -(-cols // 128) < programs
    return rows < 256 or symmetric_tiles(batch, rows, 128) < 2 * programs


def _nearest(
    table: Sequence[Row], gpu: str, op: str, batch: int, rows: int, cols: int, dtype: torch.dtype
) -> Row | None:
    """The closest measurement, by the largest ratio of a size; None beyond a factor of two."""
    triton = ".".join(map(str, VERSION or ()))
    fits = [row for row in table if (row.gpu, row.triton, row.op, row.dtype) == (gpu, triton, op, dtype_name(dtype))]

    def distance(row: Row) -> float:
        pairs = ((row.batch, batch), (row.rows, rows), (row.cols, cols))
        return max(abs(math.log2(measured / wanted)) for measured, wanted in pairs)

    best = min(fits, key=distance, default=None)
    return best if best is not None and distance(best) <= 1 else None


@functools.cache
def read_cutover(path: Path) -> tuple[Row, ...]:
    """The rows that :func:`write_cutover` wrote; none where the file is missing.

    Raises:
        ValueError: an entry that is no row, with the file's name.
    """
    if not path.exists():
        return ()
    try:
        return tuple(Row(**entry) for entry in json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a table of rows {', '.join(Row._fields)}: {error}") from error


def write_cutover(rows: Iterable[Row], path: Path) -> None:
    """Store measurements, one a line; :data:`TABLE` is read once a process."""
    lines = ",\n".join(json.dumps(row._asdict()) for row in rows)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def dtype_name(dtype: torch.dtype) -> str:
    """As :class:`Row` has it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")

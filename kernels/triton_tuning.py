"""Tile sizes of the Triton kernels: a static default for each GPU class, Triton version, shape class and dtype.

None of them was measured yet. They are reasoned: from accumulators that leave no spills and shared memory that fits
(both checked by compiling for each GPU class), and from published choices. ``ORTHOOPT_AUTOTUNE=1`` times a short list
instead, once a key and process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import torch

from orthoopt.kernels.triton_support import VERSION, gpu_class, multiprocessors


class Config(NamedTuple):
    """How a product is cut: output tiles of ``tile_m`` x ``tile_n``, sums in steps of ``tile_k``.

    ``group`` rows of tiles share their columns while these are in L2. Results depend on ``tile_k`` alone.
    """

    tile_m: int
    tile_n: int
    tile_k: int
    warps: int
    stages: int
    group: int = 8

    def shared_bytes(self, itemsize: int) -> int:
        """Shared memory that the pipelined operands need."""
        return (self.tile_m + self.tile_n) * self.tile_k * itemsize * self.stages


class GramConfig(NamedTuple):
    """How the Gram iteration on chip reads its matrix: ``chunk`` columns at a time."""

    chunk: int
    warps: int
    stages: int


SHARED_LIMIT = {"ampere": 163 * 1024, "ada": 99 * 1024, "hopper": 227 * 1024, "blackwell": 227 * 1024}
SHARED_LIMIT["geforce_blackwell"] = SHARED_LIMIT["ada"]
"""Shared memory of one program, bytes (CUDA programming guide, compute capabilities)."""

# (kind, bits, size): kind of product, bits of an operand, and whether there are tiles enough to fill the GPU with large
# ones. Symmetric tiles are square: others would store cells near the diagonal twice. tile_k is the same for both sizes,
# so that what a matrix gives does not depend on how many there are.
Key = tuple[str, int, str]

_HOPPER: dict[Key, Config] = {
    ("symmetric", 16, "large"): Config(128, 128, 64, 8, 4),
    ("symmetric", 16, "small"): Config(64, 64, 64, 4, 4),
    ("rectangular", 16, "large"): Config(128, 256, 64, 8, 3),
    ("rectangular", 16, "small"): Config(64, 128, 64, 4, 4),
    # Exact float32 has no tensor cores: larger tiles spill.
    ("symmetric", 32, "large"): Config(64, 64, 16, 4, 3),
    ("symmetric", 32, "small"): Config(32, 32, 16, 4, 3),
    ("rectangular", 32, "large"): Config(64, 64, 16, 4, 3),
    ("rectangular", 32, "small"): Config(32, 64, 16, 4, 3),
}
_AMPERE: dict[Key, Config] = {
    **_HOPPER,
    ("symmetric", 16, "large"): Config(128, 128, 32, 8, 4),
    ("symmetric", 16, "small"): Config(64, 64, 32, 4, 4),
    ("rectangular", 16, "large"): Config(128, 128, 32, 8, 4),
    ("rectangular", 16, "small"): Config(64, 128, 32, 4, 4),
}
_INTERPRETER: dict[Key, Config] = {
    (kind, bits, size): Config(32, 32, 32, 4, 1)
    for kind in ("symmetric", "rectangular")
    for bits in (16, 32)
    for size in ("large", "small")
}

DEFAULTS: dict[str, dict[tuple[int, int], dict[Key, Config]]] = {
    "interpreter": {(3, 6): _INTERPRETER},
    "ampere": {(3, 6): _AMPERE},
    "ada": {(3, 6): _AMPERE},
    "hopper": {(3, 6): _HOPPER},
    "blackwell": {(3, 6): {**_HOPPER, ("rectangular", 16, "large"): Config(128, 128, 64, 8, 4)}},
    "geforce_blackwell": {(3, 6): _AMPERE},
}
"""GPU class -> the Triton version from which a table holds -> the table."""

CANDIDATES: dict[tuple[str, int], tuple[Config, ...]] = {
    ("symmetric", 16): (
        Config(128, 128, 64, 8, 3),
        Config(128, 128, 64, 8, 4),
        Config(128, 128, 64, 4, 3),
        Config(128, 128, 128, 8, 2),
        Config(128, 128, 32, 8, 4),
        Config(64, 64, 64, 4, 4),
        Config(64, 64, 128, 4, 3),
        Config(64, 64, 32, 4, 4),
    ),
    ("rectangular", 16): (
        Config(128, 256, 64, 8, 3),
        Config(128, 256, 64, 8, 4),
        Config(128, 128, 64, 8, 4),
        Config(128, 128, 64, 4, 3),
        Config(128, 128, 32, 8, 4),
        Config(64, 128, 64, 4, 4),
        Config(64, 256, 64, 8, 3),
        Config(64, 128, 32, 4, 4),
    ),
    ("symmetric", 32): (Config(64, 64, 16, 4, 3), Config(64, 64, 32, 4, 2), Config(32, 32, 32, 4, 3)),
    ("rectangular", 32): (Config(64, 64, 16, 4, 3), Config(64, 64, 32, 4, 2), Config(32, 64, 16, 4, 3)),
}
"""What autotuning tries; what does not fit a GPU's shared memory is left out there."""

GRAM_SIDES: dict[str, dict[int, int]] = {
    "interpreter": {16: 128, 32: 128},
    "ampere": {16: 64, 32: 32},
    "ada": {16: 64, 32: 32},
    "hopper": {16: 128, 32: 64},
    "blackwell": {16: 128, 32: 64},
    "geforce_blackwell": {16: 64, 32: 32},
}
"""The largest side whose R, Z and Q stay in registers without heavy spills, by the bits of an operand.

Asynchronous tensor-core instructions read operands from shared memory, older ones hold them in registers as well.
"""


def gram_config(side: int, bits: int) -> GramConfig:
    """For matrices of ``side`` rows, padded."""
    return GramConfig(32, 8, 2) if side == 128 or (side == 64 and bits == 32) else GramConfig(64, 4, 2)


def symmetric_tiles(batch: int, rows: int, tile: int) -> int:
    """Programs of a symmetric product: the lower triangle's tiles of every matrix."""
    blocks = -(-rows // tile)
    return batch * blocks * (blocks + 1) // 2


def default_config(kind: str, batch: int, rows: int, cols: int, dtype: torch.dtype, device: torch.device) -> Config:
    """The static choice.

    Args:
        kind: "symmetric" (rows x rows, sums over cols) or "rectangular" (rows x cols, sums over rows).
        batch: how many matrices.
        rows: of each.
        cols: of each.
        dtype: of the operands.
        device: where they are.
    """
    table = _table(gpu_class(device))
    bits = dtype.itemsize * 8
    large = table[kind, bits, "large"]
    if kind == "symmetric":
        tiles = symmetric_tiles(batch, rows, large.tile_m)
    else:
        tiles = batch * -(-rows // large.tile_m) * -(-cols // large.tile_n)
    # Half a wave of large tiles is slower than a whole one of small tiles; a side of few tiles is mostly their rims.
    few = tiles < multiprocessors(device) or (kind == "symmetric" and rows <= 4 * large.tile_m)
    return table[kind, bits, "small"] if few else large


def _table(gpu: str) -> dict[Key, Config]:
    versions = DEFAULTS[gpu]
    return versions[max(since for since in versions if VERSION is None or since <= VERSION)]


AUTOTUNE = os.environ.get("ORTHOOPT_AUTOTUNE") == "1"


def wants_autotuning(device: torch.device) -> bool:
    """Whether ``ORTHOOPT_AUTOTUNE`` asks for it; not while a CUDA graph is captured, which allows no timing."""
    return AUTOTUNE and device.type == "cuda" and not torch.cuda.is_current_stream_capturing()


_tuned: dict[tuple[object, ...], Config] = {}


def tuned_config(
    kind: str, key: tuple[object, ...], dtype: torch.dtype, device: torch.device, run: Callable[[Config], None]
) -> Config:
    """The fastest of :data:`CANDIDATES` by the clock, remembered for ``key``.

    Args:
        kind: "symmetric" or "rectangular".
        key: everything that the time depends on.
        dtype: of the operands.
        device: where they are.
        run: launches the kernel once; it must be repeatable, so the output is no input.
    """
    if key not in _tuned:
        from triton.errors import TritonError
        from triton.testing import do_bench

        limit = SHARED_LIMIT[gpu_class(device)]
        times: dict[Config, float] = {}
        for config in CANDIDATES[kind, dtype.itemsize * 8]:
            if config.shared_bytes(dtype.itemsize) > limit:
                continue
            try:
                times[config] = do_bench(lambda config=config: run(config), warmup=5, rep=25, return_mode="median")
            except TritonError:  # more registers or shared memory than there are
                continue
        if not times:
            raise RuntimeError(f"no configuration of the {kind} product runs on {device}")
        _tuned[key] = min(times, key=lambda config: times[config])
    return _tuned[key]

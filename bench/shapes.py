"""The matrices of real models, as lists of named shapes. Rows are output features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Matrix(NamedTuple):
    """One parameter of a set."""

    name: str
    rows: int
    cols: int


@dataclass(frozen=True)
class ShapeSet:
    """The hidden matrices of one model."""

    name: str
    matrices: tuple[Matrix, ...]
    from_model: bool
    """Whether names are a model's, so that a plan's roles mean something."""

    @property
    def parameters(self) -> int:
        """Elements in all matrices."""
        return sum(rows * cols for _, rows, cols in self.matrices)

    def newton_schulz_flops(self, steps: int = 5) -> int:
        """Floating point operations of the dense standard iteration over the whole set, a multiply-add being two."""
        return sum(newton_schulz_flops(rows, cols, steps) for _, rows, cols in self.matrices)

    def describe(self) -> str:
        """Counts and shapes, for people: ``16(256x256) + 4(256x1024)``."""
        counts = Counter((rows, cols) for _, rows, cols in self.matrices)
        return " + ".join(f"{count}({rows}x{cols})" for (rows, cols), count in counts.items())


def newton_schulz_flops(rows: int, cols: int, steps: int = 5) -> int:
    """Operations of ``steps`` dense standard iterations on one matrix: steps·(4m²n + 2m³), m the shorter side.

    An iteration is A = XXᵀ (2m²n), A² (2m³) and BX (2m²n).
    """
    short, long = min(rows, cols), max(rows, cols)
    return steps * (4 * short * short * long + 2 * short**3)


def _plain(name: str, *counts: tuple[int, int, int]) -> ShapeSet:
    shapes = [(rows, cols) for count, rows, cols in counts for _ in range(count)]
    matrices = (Matrix(f"hidden.{i}.weight", rows, cols) for i, (rows, cols) in enumerate(shapes))
    return ShapeSet(name, tuple(matrices), from_model=False)


def _decoder(name: str, layers: int, hidden: int, queries: int, keys: int, ff: int, *, gated: bool) -> ShapeSet:
    """A decoder's linear maps, fused ones taken apart; ``queries`` and ``keys`` are heads times head size."""
    layer = [
        ("self_attn.q_proj", queries, hidden), ("self_attn.k_proj", keys, hidden),
        ("self_attn.v_proj", keys, hidden), ("self_attn.o_proj", hidden, queries),
        ("mlp.up_proj", ff, hidden), ("mlp.down_proj", hidden, ff),
    ]  # fmt: skip
    if gated:
        layer.append(("mlp.gate_proj", ff, hidden))
    matrices = (
        Matrix(f"model.layers.{i}.{part}.weight", rows, cols) for i in range(layers) for part, rows, cols in layer
    )
    return ShapeSet(name, tuple(matrices), from_model=True)


SETS: dict[str, ShapeSet] = {
    shapes.name: shapes
    for shapes in (
        _plain("cpu_small", (16, 256, 256), (4, 256, 1024), (4, 1024, 256)),
        _decoder("gpt2", 12, hidden=768, queries=768, keys=768, ff=3072, gated=False),
        _decoder("qwen3_0.6b", 28, hidden=1024, queries=2048, keys=1024, ff=3072, gated=True),
        _decoder("llama3.2_1b", 16, hidden=2048, queries=2048, keys=512, ff=8192, gated=True),
    )
}
DEFAULTS = {"cpu": ("cpu_small",), "cuda": tuple(name for name in SETS if name != "cpu_small")}
"""Sets of a bench that names none, by device type."""


def choose(names: Iterable[str], device_type: str) -> list[ShapeSet]:
    """The sets named; none named: the device's default; ``all``: every set.

    Raises:
        ValueError: an unknown name, with the known ones.
    """
    wanted = list(names) or list(DEFAULTS[device_type])
    if "all" in wanted:
        wanted = list(SETS)
    for name in wanted:
        if name not in SETS:
            raise ValueError(f"unknown shape set {name!r}; known: {', '.join(SETS)}, all")
    return [SETS[name] for name in dict.fromkeys(wanted)]

"""The matrices of real models, as lists of named shapes. Rows are output features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Matrix(NamedTuple):
    """One parameter of a set: a matrix, or a bank of ``experts`` of ``fused`` matrices one upon the other."""

    name: str
    rows: int
    cols: int
    experts: int = 0
    """0: the parameter is 2-D. Else it is ``(experts, fused·rows, cols)``."""
    fused: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""
        one = (self.fused * self.rows, self.cols)
        return (self.experts, *one) if self.experts else one

    @property
    def held(self) -> int:
        """How many matrices of rows × cols it holds."""
        return max(1, self.experts) * self.fused


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
        return sum(matrix.held * matrix.rows * matrix.cols for matrix in self.matrices)

    def counts(self) -> Counter[tuple[int, int]]:
        """How many matrices there are of each (rows, cols)."""
        counts: Counter[tuple[int, int]] = Counter()
        for matrix in self.matrices:
            counts[matrix.rows, matrix.cols] += matrix.held
        return counts

    def newton_schulz_flops(self, steps: int = 5) -> int:
        """Operations of the cheapest dense iteration over the whole set, see :func:`newton_schulz_flops`."""
        return sum(n * newton_schulz_flops(rows, cols, steps) for (rows, cols), n in self.counts().items())

    def describe(self) -> str:
        """Counts and shapes, for people: ``16(256x256) + 4(256x1024)``."""
        return " + ".join(f"{count}({rows}x{cols})" for (rows, cols), count in self.counts().items())


def standard_flops(rows: int, cols: int, steps: int = 5) -> int:
    """Operations of ``steps`` dense standard iterations on one matrix, a multiply-add being two.

    An iteration is A = XXᵀ (2m²n), A² (2m³) and BX (2m²n), m the shorter side.
    """
    short, long = min(rows, cols), max(rows, cols)
    return steps * (4 * short * short * long + 2 * short**3)


def gram_flops(rows: int, cols: int, steps: int = 5) -> int:
    """Operations of the same map in the Gram form without restart, in dense products.

    XXᵀ and QX (4m²n), and 4k − 3 products of m×m matrices: four a step, of which the first Q and the last R are free.
    """
    short, long = min(rows, cols), max(rows, cols)
    return 2 * (4 * steps - 3) * short**3 + 4 * short * short * long


def newton_schulz_flops(rows: int, cols: int, steps: int = 5) -> int:
    """Operations of the cheaper of the two dense forms; at 5 steps the Gram form is from an aspect of 1.5 on."""
    return min(standard_flops(rows, cols, steps), gram_flops(rows, cols, steps))


def _plain(name: str, *counts: tuple[int, int, int]) -> ShapeSet:
    shapes = [(rows, cols) for count, rows, cols in counts for _ in range(count)]
    matrices = (Matrix(f"hidden.{i}.weight", rows, cols) for i, (rows, cols) in enumerate(shapes))
    return ShapeSet(name, tuple(matrices), from_model=False)


def _decoder(
    name: str, layers: int, hidden: int, queries: int, keys: int, ff: int, *, gated: bool, experts: int = 0
) -> ShapeSet:
    """A decoder's linear maps, fused ones taken apart; ``queries`` and ``keys`` are heads times head size.

    Experts are stacked as transformers stores them: a bank of gate and up together, and one of down.
    """
    layer = [
        Matrix("self_attn.q_proj.weight", queries, hidden), Matrix("self_attn.k_proj.weight", keys, hidden),
        Matrix("self_attn.v_proj.weight", keys, hidden), Matrix("self_attn.o_proj.weight", hidden, queries),
    ]  # fmt: skip
    if experts:
        layer.append(Matrix("mlp.experts.gate_up_proj", ff, hidden, experts, fused=2))
        layer.append(Matrix("mlp.experts.down_proj", hidden, ff, experts))
    else:
        layer.append(Matrix("mlp.up_proj.weight", ff, hidden))
        layer.append(Matrix("mlp.down_proj.weight", hidden, ff))
        if gated:
            layer.append(Matrix("mlp.gate_proj.weight", ff, hidden))
    matrices = (matrix._replace(name=f"model.layers.{i}.{matrix.name}") for i in range(layers) for matrix in layer)
    return ShapeSet(name, tuple(matrices), from_model=True)


SETS: dict[str, ShapeSet] = {
    shapes.name: shapes
    for shapes in (
        _plain("cpu_small", (16, 256, 256), (4, 256, 1024), (4, 1024, 256)),
        # Many small ones, square and six times as long as wide: what heads or a narrow model bring.
        _plain("cpu_batch", (48, 128, 128), (24, 128, 768), (24, 768, 128)),
        # A layer of GPT-2: few matrices, each large enough for a core of its own.
        _decoder("gpt2_layer", 1, hidden=768, queries=768, keys=768, ff=3072, gated=False),
        _decoder("gpt2", 12, hidden=768, queries=768, keys=768, ff=3072, gated=False),
        _decoder("qwen3_0.6b", 28, hidden=1024, queries=2048, keys=1024, ff=3072, gated=True),
        _decoder("llama3.2_1b", 16, hidden=2048, queries=2048, keys=512, ff=8192, gated=True),
        # One layer of its sixteen: 64 experts are 403M parameters.
        _decoder("olmoe_layer", 1, hidden=2048, queries=2048, keys=2048, ff=1024, gated=True, experts=64),
    )
}
DEFAULTS = {
    "cpu": ("cpu_small", "cpu_batch", "gpt2_layer"),
    "cuda": ("gpt2", "qwen3_0.6b", "llama3.2_1b", "olmoe_layer"),
}
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

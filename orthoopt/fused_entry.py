"""How an entry of ``fused_layers`` and ``fused_kernels`` tells what is fused in a layer's outputs.

An entry speaks for layers of some names inside modules of some classes, written as endings of class names, and gives
the sizes of the blocks from the module's attributes or the model's config. It holds only if the sizes add up to the
rows. Each was read in the forward passes of transformers' models of that kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from orthoopt.census import Candidate
from orthoopt.layouts import HEADS, Layout, blocks
from orthoopt.views import parse_view


class Unknown(LookupError):
    """An attribute that the module and its config do not have."""


class Sizes:
    """The whole numbers of a layer's module, its ancestors and their configs."""

    def __init__(self, candidate: Candidate, rows: int) -> None:
        self._candidate = candidate
        self.rows = rows

    def __call__(self, *names: str) -> int:
        """The first of these attributes."""
        value = self._candidate.attribute(*names)
        if value is None:
            raise Unknown(names)
        return value

    def beside(self, layer: str) -> tuple[int, ...] | None:
        """Shape of the weight of another layer of the same module."""
        return self._candidate.beside(layer)

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self(*HEADS)


@dataclass(frozen=True)
class Fused:
    """Which layers, and how their rows are cut."""

    layers: frozenset[str]
    """Names of the layers."""
    modules: tuple[str, ...]
    """Endings of the class names of the module around them; empty where names and sizes are evidence enough."""
    sizes: Callable[[Sizes], Sequence[int]]
    """Rows of each block, in order; within a head where there are heads."""
    words: str
    heads: Callable[[Sizes], int] | None = None
    """How many times the blocks repeat, head after head."""

    def layout(self, candidate: Candidate, rows: int) -> Layout | None:
        """The view and its words; None where the entry does not apply."""
        name, module = _holder(candidate)
        if name not in self.layers or (self.modules and not module.endswith(self.modules)):
            return None
        said = Sizes(candidate, rows)
        try:
            sizes = list(self.sizes(said))
            heads = self.heads(said) if self.heads is not None else None
        except (Unknown, ZeroDivisionError):
            return None
        if min(sizes) < 1 or sum(sizes) * (heads or 1) != rows:
            return None
        view = blocks(sizes) if heads is None else f"heads({heads}) {blocks(sizes)} join"
        flat = (rows, candidate.param.numel() // rows)  # a kernel too is (out, in * k)
        if any(min(shape[-2:]) < 2 for shape in parse_view(view).piece_shapes(flat)):
            return None
        return view, self.words


def _holder(candidate: Candidate) -> tuple[str, str]:
    """The layer's name in the innermost module that is no list, that of its list if it is in one; and that class."""
    lists = (nn.ModuleList, nn.ModuleDict)
    depth = next((i for i, m in enumerate(candidate.modules) if i > 0 and not isinstance(m, lists)), None)
    if depth is None:
        return candidate.last, ""
    return candidate.path[-depth] if depth <= len(candidate.path) else "", type(candidate.modules[depth]).__name__


def thirds(said: Sizes) -> list[int]:
    """Three equal blocks."""
    return [said.rows // 3] * 3


def halves(said: Sizes) -> list[int]:
    """Two equal blocks."""
    return [said.rows // 2] * 2

"""The steps that views are made of: bijections between a tensor and its pieces; the words are in ``views``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Step(Protocol):
    """One link of a view: a bijection between a tensor and the pieces it is made of."""

    def shapes(self, shape: Shape) -> list[Shape]:
        """Shapes of the pieces of a tensor of this shape; ValueError with the bare reason if it cannot."""

    def apply(self, tensor: Tensor) -> list[Tensor]:
        """The pieces, as torch views of the tensor wherever its strides allow."""

    def invert(self, pieces: list[Tensor], shape: Shape) -> Tensor:
        """The tensor of this shape that has these pieces."""

    def describe(self) -> str:
        """A few words for people."""


def needs_matrix(shape: Shape) -> None:
    if len(shape) < 2:
        raise ValueError(f"it needs at least 2 dimensions, not {len(shape)}")


@dataclass(frozen=True)
class Transpose:
    """``transpose``: (..., cols, rows) -> (..., rows, cols)."""

    def shapes(self, shape: Shape) -> list[Shape]:
        needs_matrix(shape)
        return [(*shape[:-2], shape[-1], shape[-2])]

    def apply(self, tensor: Tensor) -> list[Tensor]:
        return [tensor.mT]

    def invert(self, pieces: list[Tensor], shape: Shape) -> Tensor:
        return pieces[0].mT

    def describe(self) -> str:
        return "transposed"


@dataclass(frozen=True)
class Column:
    """``column``: (..., n) -> (..., n, 1)."""

    def shapes(self, shape: Shape) -> list[Shape]:
        if not shape:
            raise ValueError("a column needs at least 1 dimension, not 0")
        return [(*shape, 1)]

    def apply(self, tensor: Tensor) -> list[Tensor]:
        return [tensor.unsqueeze(-1)]

    def invert(self, pieces: list[Tensor], shape: Shape) -> Tensor:
        return pieces[0].squeeze(-1)

    def describe(self) -> str:
        return "a column"


@dataclass(frozen=True)
class Flatten:
    """``flatten``: (out, in, k...) -> (out, in * k...).

    The order of the columns never depends on strides: a gradient, its momentum and the parameter may differ
    in memory format and must still meet column by column. So a channels_last kernel is copied, not reordered.
    """

    def shapes(self, shape: Shape) -> list[Shape]:
        if len(shape) < 3:
            raise ValueError(f"a convolution kernel has at least 3 dimensions, not {len(shape)}")
        return [(shape[0], math.prod(shape[1:]))]

    def apply(self, tensor: Tensor) -> list[Tensor]:
        return [tensor.flatten(1)]

    def invert(self, pieces: list[Tensor], shape: Shape) -> Tensor:
        return pieces[0].reshape(shape)

    def describe(self) -> str:
        return "flattened kernel"


@dataclass(frozen=True)
class Split:
    """``split(a,b,c)``: rows cut into consecutive blocks."""

    sizes: tuple[int, ...]

    def shapes(self, shape: Shape) -> list[Shape]:
        needs_matrix(shape)
        if shape[-2] != sum(self.sizes):
            raise ValueError(f"the blocks have {sum(self.sizes)} rows together, the matrix has {shape[-2]}")
        return [(*shape[:-2], size, shape[-1]) for size in self.sizes]

    def apply(self, tensor: Tensor) -> list[Tensor]:
        return list(tensor.split(list(self.sizes), dim=-2))

    def invert(self, pieces: list[Tensor], shape: Shape) -> Tensor:
        return torch.cat(pieces, dim=-2)

    def describe(self) -> str:
        return f"{len(self.sizes)} fused matrices ({'+'.join(map(str, self.sizes))} rows)"


@dataclass(frozen=True)
class Interleave:
    """``interleave(k)``: rows i, i + k, i + 2k, ... are piece i."""

    count: int

    def shapes(self, shape: Shape) -> list[Shape]:
        needs_matrix(shape)
        if shape[-2] % self.count:
            raise ValueError(f"{shape[-2]} rows cannot be dealt out to {self.count} matrices")
        return [(*shape[:-2], shape[-2] // self.count, shape[-1])] * self.count

    def apply(self, tensor: Tensor) -> list[Tensor]:
        return [tensor[..., i :: self.count, :] for i in range(self.count)]

    def invert(self, pieces: list[Tensor], shape: Shape) -> Tensor:
        return torch.stack(pieces, dim=-2).reshape(shape)

    def describe(self) -> str:
        return f"{self.count} fused matrices (rows interleaved)"


@dataclass(frozen=True)
class Heads:
    """``heads(h)``: (..., h * d, cols) -> (..., h, d, cols)."""

    count: int

    def shapes(self, shape: Shape) -> list[Shape]:
        needs_matrix(shape)
        if shape[-2] % self.count:
            raise ValueError(f"{shape[-2]} rows cannot be cut into {self.count} heads")
        return [(*shape[:-2], self.count, shape[-2] // self.count, shape[-1])]

    def apply(self, tensor: Tensor) -> list[Tensor]:
        return [tensor.unflatten(-2, (self.count, tensor.shape[-2] // self.count))]

    def invert(self, pieces: list[Tensor], shape: Shape) -> Tensor:
        return pieces[0].reshape(shape)

    def describe(self) -> str:
        return f"{self.count} heads of rows"


@dataclass(frozen=True)
class HeadSize:
    """``head_size(d)``: (..., h * d, cols) -> (..., h, d, cols)."""

    size: int

    def shapes(self, shape: Shape) -> list[Shape]:
        needs_matrix(shape)
        if shape[-2] % self.size:
            raise ValueError(f"{shape[-2]} rows cannot be cut into heads of {self.size}")
        return [(*shape[:-2], shape[-2] // self.size, self.size, shape[-1])]

    def apply(self, tensor: Tensor) -> list[Tensor]:
        return [tensor.unflatten(-2, (tensor.shape[-2] // self.size, self.size))]

    def invert(self, pieces: list[Tensor], shape: Shape) -> Tensor:
        return pieces[0].reshape(shape)

    def describe(self) -> str:
        return f"heads of {self.size} rows"


@dataclass(frozen=True)
class HeadsIn:
    """``heads_in(h)``: (..., rows, h * d) -> (..., h, rows, d)."""

    count: int

    def shapes(self, shape: Shape) -> list[Shape]:
        needs_matrix(shape)
        if shape[-1] % self.count:
            raise ValueError(f"{shape[-1]} columns cannot be cut into {self.count} heads")
        return [(*shape[:-2], self.count, shape[-2], shape[-1] // self.count)]

    def apply(self, tensor: Tensor) -> list[Tensor]:
        return [tensor.unflatten(-1, (self.count, tensor.shape[-1] // self.count)).movedim(-2, -3)]

    def invert(self, pieces: list[Tensor], shape: Shape) -> Tensor:
        return pieces[0].movedim(-3, -2).reshape(shape)

    def describe(self) -> str:
        return f"{self.count} heads of columns"


@dataclass(frozen=True)
class Join:
    """``join``: (..., h, d, cols) -> (..., h * d, cols).

    No strides show heads that lie apart as one matrix, so the pieces are copies; :meth:`View.targets` are not.
    """

    def shapes(self, shape: Shape) -> list[Shape]:
        if len(shape) < 3:
            raise ValueError(f"there are no heads to join in {len(shape)} dimensions")
        return [(*shape[:-3], shape[-3] * shape[-2], shape[-1])]

    def apply(self, tensor: Tensor) -> list[Tensor]:
        return [tensor.flatten(-3, -2)]

    def invert(self, pieces: list[Tensor], shape: Shape) -> Tensor:
        return pieces[0].reshape(shape)

    def describe(self) -> str:
        return "heads joined"

"""How a parameter is seen as matrices ``(..., rows, cols)`` with rows = output features.

A view is written as a plain string, so that a param group stays strings and numbers. It is a chain of steps,
separated by one space and applied left to right:

=================  =====================================================================================
``matrix``         the tensor as it is, ``(..., rows, cols)``; leading dimensions are a batch
``vector``         not a matrix: for elementwise rules only, there are no pieces
``transpose``      swap the last two dimensions (GPT-2's Conv1D, gpt-oss' experts store ``(in, out)``)
``column``         ``(..., n)`` -> ``(..., n, 1)``: biases, the columns of inputs that are always one
``flatten``        convolution kernel ``(out, in, k...)`` -> ``(out, in * k...)``
``split(a,b,c)``   cut the rows into blocks of a, b and c rows (fused q, k, v; fused gate and up)
``interleave(k)``  rows ``i::k`` are piece i (gpt-oss' gate and up)
``heads(h)``       ``(..., h * d, cols)`` -> ``(..., h, d, cols)``, one matrix per head of output features
``heads_in(h)``    ``(..., rows, h * d)`` -> ``(..., h, rows, d)``, one matrix per head of input features
``head_size(d)``   ``(..., h * d, cols)`` -> ``(..., h, d, cols)`` for whatever h, after a split into blocks of
                   different head counts (fused q, k, v with grouped queries)
``join``           ``(..., h, d, cols)`` -> ``(..., h * d, cols)``, the last step: the heads of one kind as the one
                   matrix they are, where q, k, v are fused head after head (NeoX, Bloom, Falcon)
=================  =====================================================================================

For example GPT-2's ``c_attn.weight`` of shape (768, 2304) is ``"transpose split(768,768,768)"``, and a NeoX
``query_key_value.weight`` with 4 heads of 8 is ``"heads(4) split(8,8,8) join"``.
"""

from __future__ import annotations

import difflib
import functools
import re
from dataclasses import dataclass

from torch import Tensor

from orthoopt._view_steps import (
    Column,
    Flatten,
    Heads,
    HeadsIn,
    HeadSize,
    Interleave,
    Join,
    Shape,
    Split,
    Step,
    Transpose,
    needs_matrix,
)

_STEP = re.compile(r"(?P<name>[a-z_]+)(?:\((?P<arguments>\d+(?:,\d+)*)\))?")


_KNOWN = {
    "matrix": "matrix",
    "vector": "vector",
    "transpose": "transpose",
    "column": "column",
    "flatten": "flatten",
    "split": "split(a,b,...)",
    "interleave": "interleave(k)",
    "heads": "heads(h)",
    "heads_in": "heads_in(h)",
    "head_size": "head_size(d)",
    "join": "join",
}


@dataclass(frozen=True)
class View:
    """A parsed view: ``pieces`` takes a tensor apart, ``merge`` puts it together again."""

    spec: str
    is_matrix: bool
    steps: tuple[Step, ...]

    def pieces(self, tensor: Tensor) -> list[Tensor]:
        """The matrices of a tensor, each ``(..., rows, cols)``, in the order of the view.

        They share memory with the tensor, so that writing to a piece in place writes the tensor. The only
        exceptions are ``flatten`` on a kernel whose strides forbid it (channels_last), see ``shares_memory``, and
        ``join``, see ``targets``. ValueError naming view and shape when they do not fit.
        """
        return self._apply(self.steps, tensor)

    def targets(self, tensor: Tensor) -> list[Tensor]:
        """For each piece what to write so that the tensor changes: its elements in its order, perhaps not its shape.

        The pieces themselves, but before they are joined: those are torch views.
        """
        return self._apply(tuple(step for step in self.steps if not isinstance(step, Join)), tensor)

    def _apply(self, steps: tuple[Step, ...], tensor: Tensor) -> list[Tensor]:
        _piece_shapes(self, tuple(tensor.shape))  # raises when it does not fit; cached
        pieces = [tensor]
        for step in steps:
            pieces = [part for piece in pieces for part in step.apply(piece)]
        return pieces

    def piece_shapes(self, shape: Shape) -> list[Shape]:
        """Shapes of the pieces of a tensor of this shape; ValueError naming both when they do not fit."""
        return list(_piece_shapes(self, tuple(shape)))

    def merge(self, pieces: list[Tensor], shape: Shape) -> Tensor:
        """The tensor of this shape whose pieces these are (inverse of ``pieces``); may share their memory."""
        expected = _piece_shapes(self, tuple(shape))
        actual = tuple(tuple(piece.shape) for piece in pieces)
        if actual != expected:
            raise ValueError(
                f"view {self.spec!r} of a tensor of shape {tuple(shape)} has pieces of shapes "
                f"{list(expected)}, got {list(actual)}"
            )
        return _merge(self.steps, pieces, tuple(shape))

    def shares_memory(self, tensor: Tensor) -> bool:
        """Whether writing to ``targets`` writes this tensor (not so for a kernel flattened by copying)."""
        if not self.is_matrix:
            return False
        storage = tensor.untyped_storage()._cdata  # identity of the storage; data_ptr() is 0 for every meta tensor
        return all(target.untyped_storage()._cdata == storage for target in self.targets(tensor))

    def describe(self) -> str:
        """The view in words, such as ``transposed, 3 fused matrices (768+768+768 rows)``."""
        return ", ".join(step.describe() for step in self.steps) or self.spec


@functools.cache
def parse_view(spec: str) -> View:
    """Parse a view written as in the module's table.

    ValueError naming the bad step, the nearest known one and all known ones.
    """
    if spec in ("matrix", "vector"):
        return View(spec, is_matrix=spec == "matrix", steps=())
    steps = tuple(_parse_step(word, spec) for word in spec.split(" "))
    if any(isinstance(step, Join) for step in steps[:-1]):
        raise ValueError(f"view {spec!r}: 'join' is the last step, nothing follows it")
    return View(spec, is_matrix=True, steps=steps)


def _parse_step(word: str, spec: str) -> Step:
    match = _STEP.fullmatch(word)
    name = match["name"] if match else ""
    numbers = tuple(int(number) for number in match["arguments"].split(",")) if match and match["arguments"] else ()
    if name in ("matrix", "vector"):
        raise ValueError(f"view {spec!r}: {name!r} stands alone, it does not combine with other steps")
    if all(number > 0 for number in numbers):
        if name == "transpose" and not numbers:
            return Transpose()
        if name == "column" and not numbers:
            return Column()
        if name == "flatten" and not numbers:
            return Flatten()
        if name == "join" and not numbers:
            return Join()
        if name == "split" and numbers:
            return Split(numbers)
        if name == "interleave" and len(numbers) == 1:
            return Interleave(numbers[0])
        if name == "heads" and len(numbers) == 1:
            return Heads(numbers[0])
        if name == "heads_in" and len(numbers) == 1:
            return HeadsIn(numbers[0])
        if name == "head_size" and len(numbers) == 1:
            return HeadSize(numbers[0])
    near = difflib.get_close_matches(word.split("(")[0], _KNOWN, n=1)
    hint = f" (did you mean {_KNOWN[near[0]]!r}?)" if near else ""
    raise ValueError(
        f"view {spec!r}: unknown step {word!r}{hint}. "
        f"Known steps, separated by one space, with positive whole numbers: {', '.join(_KNOWN.values())}"
    )


@functools.lru_cache(maxsize=4096)
def _piece_shapes(view: View, shape: Shape) -> tuple[Shape, ...]:
    if not view.is_matrix:
        raise ValueError(f"view {view.spec!r} has no pieces: it is for elementwise rules (shape {shape})")
    shapes = [shape]
    try:
        if not view.steps:
            needs_matrix(shape)
        for step in view.steps:
            shapes = [part for piece in shapes for part in step.shapes(piece)]
    except ValueError as error:
        raise ValueError(f"view {view.spec!r} does not fit a tensor of shape {shape}: {error}") from None
    return tuple(shapes)


def _merge(steps: tuple[Step, ...], pieces: list[Tensor], shape: Shape) -> Tensor:
    """Undo the steps from the last to the first; each child of the first step owns an equal run of pieces."""
    if not steps:
        return pieces[0]
    first, rest = steps[0], steps[1:]
    children = first.shapes(shape)
    run = len(pieces) // len(children)
    merged = [_merge(rest, pieces[i * run : (i + 1) * run], child) for i, child in enumerate(children)]
    return first.invert(merged, shape)

"""Parameters whose matrices are computed elsewhere: what leaves this rank, what arrives, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orthoopt import buckets, matrix_state
from orthoopt.buckets import Item, Terms
from orthoopt.distributed.layout import Box, Layout, extent, slices
from orthoopt.distributed.owners import Unit
from orthoopt.elementwise import measured
from orthoopt.kernels import momentum_into
from orthoopt.rules import Rule, Signal
from orthoopt.scale import scale_factor
from orthoopt.views import View


@dataclass(slots=True, eq=False)
class Kept:
    """What is remembered of a parameter from step to step; follows from its shape and its group."""

    rule: Rule
    options: dict[str, Any]
    view: View
    layout: Layout
    wire: torch.dtype
    """Of signals: what the rule would round them to first of all, or that of the arithmetic."""
    returned: torch.dtype
    """Of updates."""
    scales: list[float]
    """Of the pieces."""
    padding_row: int | None
    viewed_dtypes: dict[str, torch.dtype]
    """Of state that is shaped as the parameter and moves with its matrices."""
    owned: dict[str, Tensor]
    """State of its matrices: key -> a tensor without memory, of the whole's shape."""

    @property
    def viewed(self) -> tuple[str, ...]:
        """Its keys."""
        return tuple(self.viewed_dtypes)

    @property
    def scale(self) -> float | None:
        """Of the update if all pieces have one; it is then left to those who apply it."""
        return self.scales[0] if len(set(self.scales)) == 1 else None


@dataclass(slots=True, eq=False)
class Carried:
    """A parameter on its way through a step."""

    kept: Kept
    local: Tensor
    """This rank's part of the parameter."""
    source: Tensor
    """Of its gradient or signal."""
    state: dict[str, Any]
    """This rank's parts of state that is shaped as the parameter, and all that belongs to matrices."""
    terms: Terms

    def part(self, tensor: Tensor, box: Box) -> Tensor:
        """The part of something local that lies in a box."""
        origin = self.kept.layout.box
        return tensor if box == origin else tensor[slices(box, origin)]

    def matrix_state(self, unit: Unit) -> dict[str, Tensor]:
        """State of the unit's matrices."""
        rows = slice(None) if unit.rows is None else slice(*unit.rows)
        return {key: self.state[key][rows] if unit.rows else self.state[key] for key in self.kept.owned}


def kept_of(
    rule: Rule, options: dict[str, Any], view: View, layout: Layout, group: Mapping[str, Any], local: Tensor,
    state: Mapping[str, Any],
) -> Kept:  # fmt: skip
    """What is to be remembered of a parameter.

    Args:
        rule: its rule.
        options: the rule's.
        view: how it is seen as matrices.
        layout: how it lies.
        group: its param group.
        local: this rank's part of it.
        state: its state, whole or in parts.
    """
    wide = torch.promote_types(local.dtype, torch.float32)
    padding = group.get("padding_row")
    if not rule.is_matrix:
        return Kept(rule, options, view, layout, wide, wide, [1.0], padding, {}, {})
    shapes = view.piece_shapes(layout.shape)
    assert rule.rms is not None
    scales = [scale_factor(group["scale"], *shape[-2:], rule.rms(*shape[-2:], options)) for shape in shapes]
    viewed = {key: state[key].dtype for key in rule.viewed if key in state}
    moving = rule.moving(options)
    if moving is not None and moving.remembers and moving.from_grad == 0 and moving.from_buffer == 1:
        viewed.pop("momentum_buffer", None)  # the signal is it already, and has moved
    like = torch.empty(layout.shape, dtype=wide, device="meta")
    owned = {
        key: value.to(dtype=state[key].dtype)
        for key, value in matrix_state.expected_state(rule, like, view, options).items()
        if isinstance(value, Tensor) and key not in rule.init(like, options)
    }
    wire = wide
    if wide == torch.float32 and not owned and not viewed:
        wire = _signal_dtype(rule, options, shapes, local.device) or wide
    returned = wire if len(set(scales)) == 1 else wide
    return Kept(rule, options, view, layout, wire, returned, scales, padding, viewed, owned)


def _signal_dtype(
    rule: Rule, options: dict[str, Any], shapes: Sequence[tuple[int, ...]], device: torch.device
) -> torch.dtype | None:
    lies_down = rule.transposable(options)
    sides = {(min(shape[-2:]), max(shape[-2:])) if lies_down else shape[-2:] for shape in shapes}
    wanted = {rule.signal_dtype(options, rows, cols, device) for rows, cols in sides}
    return wanted.pop() if len(wanted) == 1 else None


def write_signals(places: Sequence[tuple[Carried, Box, Tensor | None]]) -> None:
    """Move momenta, and write what the rules get.

    Args:
        places: parameter, the box of it that is moved, and where its signal goes; None where another makes it.
    """
    together: dict[tuple[Any, ...], list[tuple[Carried, Box, Tensor | None]]] = {}
    for carried, box, out in places:
        gate = carried.terms.gate
        together.setdefault((carried.terms.moving, id(gate), out is None), []).append((carried, box, out))
    for (moving, _, nowhere), some in together.items():
        gate = some[0][0].terms.gate
        sources = [carried.part(carried.source, box) for carried, box, _ in some]
        outs = [out for _, _, out in some if out is not None]
        if moving.remembers:
            buffers = [carried.part(carried.state["momentum_buffer"], box) for carried, box, _ in some]
            momentum_into(sources, buffers, None if nowhere else outs, moving, gate)
        elif not nowhere:
            for source, out in zip(sources, outs, strict=True):
                source = source if gate is None else torch.where(gate > 0, source, 0)
                out.copy_(source if moving.from_grad == 1 else source * moving.from_grad)


class Gathered:
    """The whole of a unit on its owner."""

    def __init__(self, carried: Carried, unit: Unit) -> None:
        kept = carried.kept
        shape, device = extent(unit.whole), carried.local.device
        self.carried, self.unit = carried, unit
        self.signal = torch.empty(shape, dtype=kept.wire, device=device)
        # The update is written over the signal that it is made of, where it has its dtype.
        same = kept.returned == kept.wire
        self.update = self.signal if same else torch.empty(shape, dtype=kept.returned, device=device)
        self.viewed = {key: torch.empty(shape, dtype=carried.state[key].dtype, device=device) for key in kept.viewed}

    @property
    def bytes(self) -> int:
        """Of what is held of it."""
        tensors = {id(tensor): tensor.nbytes for tensor in (self.signal, self.update, *self.viewed.values())}
        return sum(tensors.values())

    def at(self, tensor: Tensor, box: Box) -> Tensor:
        """The part of something whole that lies in a box."""
        return tensor[slices(box, self.unit.whole)]

    def items(self) -> list[Item]:
        """Its matrices, as buckets take them; their targets are where updates go."""
        carried, kept = self.carried, self.carried.kept
        terms = Terms(1.0, gate=carried.terms.gate)
        state = {**carried.matrix_state(self.unit), **self.viewed}
        state |= {key: self.signal for key in kept.rule.viewed if key in carried.state and key not in state}
        own = matrix_state.of_pieces(kept.rule, state, self.signal, kept.view, kept.options)
        shapes = kept.view.piece_shapes(tuple(self.signal.shape))
        targets, sources = kept.view.targets(self.update), kept.view.targets(self.signal)
        found: list[Item] = []
        for index, shape in enumerate(shapes):
            item = Item(
                kept.rule, kept.options, shape, targets[index], sources[index], terms,
                1.0 if kept.scale is not None else kept.scales[index], None, own[index], kept.padding_row, piece=index,
            )  # fmt: skip
            found += buckets.bounded(item)
        return found


def compute(gathered: Sequence[Gathered]) -> list[int | None]:
    """Let every unit have its update; returns what each bucket needed, see :func:`orthoopt.buckets.bytes_needed`."""
    items: list[Item] = []
    for one in gathered:
        kept = one.carried.kept
        if kept.rule.is_matrix:
            items += one.items()
            continue
        signal = measured(kept.rule, Signal([one.signal]), kept.view, kept.options)
        one.update.copy_(signal.numerators[0])
    needs = []
    for chunk in buckets.chunks(items):
        needs.append(buckets.bytes_needed(chunk))
        for item, update in zip(chunk, buckets.updates_of(chunk), strict=True):
            item.target.copy_(update if item.scale == 1 else update * item.scale)
    return needs


def apply(updates: Sequence[tuple[Carried, Box, Tensor]]) -> None:
    """Subtract updates from this rank's parts of parameters.

    Args:
        updates: parameter, the box that is written, and its update.
    """
    items, values = [], []
    for carried, box, update in updates:
        kept = carried.kept
        target = carried.part(carried.local, box)
        scale = 1.0 if kept.scale is None else kept.scale
        items.append(Item(kept.rule, kept.options, extent(box), target, update, carried.terms, scale))
        values.append(update)
    buckets.subtract(items, values)

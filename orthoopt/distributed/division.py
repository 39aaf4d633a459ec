"""Which way each parameter of a step goes: it stays here, its rule works on shards, or its matrices go to an owner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from orthoopt import rules
from orthoopt._work import Work
from orthoopt.distributed.cuts import Cutting, cutting_of
from orthoopt.distributed.layout import Layout, keeps_batch
from orthoopt.distributed.owners import cost_of

MIN_COST = 64
"""Operations an element below which replicas compute an update themselves: to send one would take longer."""
_CYCLED = ("momentum", "betas", "beta2")
"""Options that schedulers may move, and that no exchange rests on."""


class Lot:
    """The parameters of one part of the work that go one way."""

    def __init__(self, part: Work) -> None:
        self.part = part
        self.indices: list[int] = []
        self.layouts: list[Layout | None] = []
        self.cuttings: list[Cutting | None] = []

    def add(self, index: int, layout: Layout | None, cutting: Cutting | None = None) -> None:
        """Take one parameter in."""
        self.indices.append(index)
        self.layouts.append(layout)
        self.cuttings.append(cutting)

    @property
    def names(self) -> list[str]:
        """Of its parameters."""
        return [self.part.names[index] for index in self.indices]

    def key(self) -> tuple[Any, ...]:
        """Equal where :meth:`text` is, for as long as these parameters and layouts live."""
        return (*key_of(self.part), *((id(self.part.params[i]), id(layout)) for i, layout in self._pairs()))

    def text(self) -> str:
        """What ranks must have in common to exchange these."""
        entries = [
            (self.part.names[i], str(self.part.params[i].dtype), sorted(layout.sharded), layout.shape, layout.boxes)
            for i, layout in self._pairs()
            if layout is not None
        ]
        return repr((key_of(self.part), entries))

    def _pairs(self) -> list[tuple[int, Layout | None]]:
        return list(zip(self.indices, self.layouts, strict=True))


def key_of(part: Work) -> tuple[Any, ...]:
    """What an exchange of a part rests on."""
    options = {name: value for name, value in part.options.items() if name not in _CYCLED}
    return part.rule.name, rules.key_of(options), part.view.spec


def stays(part: Work, param: Tensor, layout: Layout) -> bool:
    """Whether a distributed parameter's update can be computed of this rank's part alone."""
    if layout.is_whole or not (part.rule.is_matrix or part.rule.measure is not None):
        return True
    return part.rule.is_matrix and layout.sharded == {0} and keeps_batch(part.view, layout.shape)


def is_worth_sharing(part: Work, param: Tensor) -> bool:
    """Whether one rank should compute what all could, and send it to the others."""
    if not part.rule.is_matrix or part.group["share"] == "off":
        return False
    shapes = part.view.piece_shapes(tuple(param.shape))
    return cost_of(part.rule, shapes, part.options) >= MIN_COST * max(1, param.numel())


def cut_for(part: Work, param: Tensor, layout: Layout) -> Cutting | None:
    """How the rule works on shards of it; None where it has to be gathered."""
    if layout.is_whole:
        return None
    return cutting_of(part.rule, part.options, part.view, layout, torch.promote_types(param.dtype, torch.float32))


def laid_out_alike(name: str, param: DTensor, grad: Tensor) -> DTensor:
    """The gradient laid out as its parameter: that of a replica may still be a sum that nobody has made."""
    if not isinstance(grad, DTensor) or grad.device_mesh != param.device_mesh:
        has = f"one on {grad.device_mesh}" if isinstance(grad, DTensor) else f"a {type(grad).__name__}"
        raise RuntimeError(f"{name} is a DTensor on {param.device_mesh} and its gradient {has}: give it one alike")
    return grad if grad.placements == param.placements else grad.redistribute(placements=param.placements)


def names_of(lots: Sequence[Lot]) -> list[str]:
    """Of all their parameters."""
    return [name for lot in lots for name in lot.names]

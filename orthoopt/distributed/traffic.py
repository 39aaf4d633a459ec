"""What a step sends, by a formula: what tests count on the wire, and what a user can plan a network for.

For a matrix of n elements of b bytes on W ranks with even shards, all ranks together send

===================================  ========================================================================
gathered to its owner and back       2·n·b·(1 − 1/W)
shared under DistributedDataParallel  n·b·(W − 1)
computed where it is                 0: experts cut along their batch, replicas, elementwise rules
on shards                            what the rule asks for, see ``Rule.on_shards``
===================================  ========================================================================

State that is shaped as the parameter and moves with its matrices travels like the matrix; state of matrices
(``row_exp_avg_sq``) goes from the owner to the others, W − 1 times. b is that of float32, or of the iteration (two
bytes where that is bfloat16). One vector of 40 bytes is reduced over every dimension of every mesh beside that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from orthoopt import matrix_state
from orthoopt._work import Work, collect
from orthoopt.distributed.agreement import Agreement
from orthoopt.distributed.layout import elements
from orthoopt.distributed.waves import Wave
from orthoopt.rules._exchange import Gather, OnWhole

if TYPE_CHECKING:
    from orthoopt.distributed.cuts import CutParam
    from orthoopt.optimizer import OrthoOpt


class Traffic(NamedTuple):
    """Bytes that this rank sends in one step, where every parameter has a gradient."""

    exchanged: int
    """To owners and back, to other ranks alone."""
    reduced: int
    """The vectors that it brings to reductions and gathers of rules that work on shards."""
    agreed: int
    """The vectors of the decision whether the step happens."""

    @property
    def total(self) -> int:
        """All together."""
        return sum(self)


def bytes_per_step(optimizer: OrthoOpt) -> Traffic:
    """What this rank sends in one step of the optimizer, by the formula of the module; nothing is sent now.

    Every rank calls it, for groups of ranks may have to be made.

    Args:
        optimizer: over distributed parameters, or those of a DistributedDataParallel.
    """
    from orthoopt.distributed.engine import Engine

    engine = Engine()
    work = [part for group in optimizer.param_groups for part in _work_of(group)]
    step = engine.begin(optimizer.param_groups, work)
    if step is None:
        return Traffic(0, 0, 0)
    waves, cut = step.planned(_state_of)
    exchanged = sum(_sent(wave, kept) for wave, kept in waves)
    return Traffic(exchanged, sum(map(_asked, cut)), Agreement.BYTES * step.reductions)


def _work_of(group: dict[str, Any]) -> Iterator[Work]:
    yield from collect(group, {param: param.detach() for param in group["params"]})


def _state_of(param: Tensor, part: Work) -> dict[str, Any]:
    wide = param.detach().to(torch.promote_types(param.dtype, torch.float32))
    return matrix_state.new_state(part.rule, wide, part.view, part.options)


def _sent(wave: Wave, kept: list[Any]) -> int:
    """Of one wave."""
    sent = 0
    for unit, owner in wave.owned:
        of, place = kept[unit.param], unit.layout.place
        others = [peer for peer in range(len(unit.layout.ranks)) if peer != owner]
        moved = sum(dtype.itemsize for dtype in of.viewed_dtypes.values())
        if place == owner:
            sent += sum(elements(unit.box(peer)) for peer in others) * (of.returned.itemsize + moved)
            share = 1.0 if unit.rows is None else (unit.rows[1] - unit.rows[0]) / unit.layout.shape[0]
            sent += len(others) * round(share * sum(like.nbytes for like in of.owned.values()))
        elif not unit.layout.is_whole:
            sent += elements(unit.box(place)) * (of.wire.itemsize + moved)
    return sent


def _asked(param: CutParam) -> int:
    """What one parameter's rule brings to its rounds, by running it on zeros."""
    wide = torch.promote_types(param.local.dtype, torch.float32)
    zeros = torch.zeros(param.local.shape, dtype=wide)
    sent = 0
    for part, extents in zip(param.cutting.parts, param.cutting.extents, strict=True):
        state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in param.state_of(part).items()}
        generator = param.rule.move_part(part.of(zeros), part.shard, param.options, state)
        assert generator is not None
        try:
            asked = next(generator)
            while True:
                sent += sum(_of_one(one, len(extents)) for one in asked)
                asked = generator.send([_answer(one) for one in asked])
        except StopIteration:
            continue
    return sent


def _of_one(asked: Any, count: int) -> int:
    if isinstance(asked, Gather):
        return asked.tensor.nbytes * (count - 1)
    if isinstance(asked, OnWhole):
        return 2 * asked.tensor.nbytes * (count - 1) // count
    return asked.nbytes if isinstance(asked, Tensor) else asked.tensor.nbytes


def _answer(asked: Any) -> Tensor:
    if isinstance(asked, Gather):
        shape = list(asked.tensor.shape)
        shape[asked.dim] = asked.whole
        return asked.tensor.new_zeros(shape)
    return torch.zeros_like(asked if isinstance(asked, Tensor) else asked.tensor)

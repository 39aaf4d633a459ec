"""A step in two halves: what a rule makes of gradients, beside parameters and state; and its taking effect.

Groups whose state is not kept as a step computes it, whose parameters are rounded stochastically, whose updates have
a limit or are looked at take their steps so, in portions that bound the copies: momenta are widened, the ordinary step
runs on them and on zeros in place of parameters with a learning rate of 1, which leaves the updates there, and what
comes of it is written once everybody has had a look. All others never come here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orthoopt import buckets, eight_bit
from orthoopt._work import Work
from orthoopt.kernels import subtract_updates
from orthoopt.nonfinite import local_part
from orthoopt.stochastic_rounding import first_position
from orthoopt.stored_state import POSITION, closed, opened, rounded
from orthoopt.taking import rate_and_decay
from orthoopt.weight_decay import Decay, shrink_cautiously

States = MutableMapping[Tensor, dict[str, Any]]
Gates = Mapping[torch.device, Tensor]


@dataclass(slots=True, eq=False)
class Entry:
    """A parameter between the halves of its step."""

    part: Work
    name: str
    param: Tensor
    grad: Tensor
    state: dict[str, Any]
    """Its state after the step, as it is to lie; its tensors are shared with nobody."""
    negative: Tensor | None
    """Minus the update, shaped as the parameter, scale included and learning rate not; None if it has happened."""
    allowed: bool | Tensor = True
    """Whether the step takes effect; a 0-d tensor, 1 or 0, where the host must not wait to know."""


def split(
    work: Iterable[Work], states: Mapping[Tensor, dict[str, Any]], looking: bool
) -> tuple[list[Work], list[Work]]:
    """The parts that take their steps as ever, and those that take it in halves.

    Args:
        work: what the step has to do.
        states: the optimizer's state.
        looking: whether somebody wants to see the updates.

    Raises:
        RuntimeError: eight bits for a sharded parameter, by name.
    """
    plain: list[Work] = []
    staged: list[Work] = []
    for part in work:
        if part.group["state_dtype"] == "int8":
            _check_whole(part)
        chosen = staged if looking or _is_apart(part.group) or _is_kept(part, states) else plain
        chosen.append(part)
    return plain, staged


def portions(parts: Iterable[Work]) -> Iterator[list[Work]]:
    """The parts, cut so that each portion has at most as many elements as a bucket, or one parameter."""
    portion: list[Work] = []
    elements = 0
    for part in parts:
        start = 0
        for index, param in enumerate(part.params):
            if elements and elements + param.numel() > buckets.MAX_ELEMENTS:
                portion += _cut(part, start, index)
                yield portion
                portion, elements, start = [], 0, index
            elements += param.numel()
        portion += _cut(part, start, len(part.params))
    if portion:
        yield portion


def compute(
    parts: Sequence[Work], states: States, gates: Gates, looking: bool, step: Callable[[list[Work]], None]
) -> list[Entry]:
    """The first half: nothing of parameters and state is written.

    Args:
        parts: a portion.
        states: the optimizer's state; has working copies while ``step`` runs.
        gates: of each device that has one, as for :class:`orthoopt.buckets.Terms`.
        looking: whether somebody wants to see the updates.
        step: the ordinary step.
    """
    entries: list[Entry] = []
    ready: list[Work] = []
    lying: list[tuple[Tensor, dict[str, Any] | None]] = []
    working: list[Tensor] = []
    try:
        for part in parts:
            apart = looking or _is_apart(part.group)
            here: list[Tensor] = []
            for name, param, grad in zip(part.names, part.params, part.grads, strict=True):
                wide = torch.promote_types(param.dtype, torch.float32)
                target = torch.zeros_like(param, dtype=wide, requires_grad=False) if apart else param
                state = states.get(param)
                lying.append((param, state))
                entries.append(Entry(part, name, param, grad, opened(state or {}, wide), target if apart else None))
                here.append(target)
                _move_position(entries[-1], states, gates.get(param.device))
                states[target] = entries[-1].state
            working += here
            group = {**part.group, "lr": 1.0, "weight_decay": 0.0} if apart else part.group
            ready.append(part._replace(group=group, params=here))
        step(ready)
    finally:
        for target in working:
            states.pop(target, None)
        for param, state in lying:
            states.pop(param, None)
            if state is not None:
                states[param] = state
    for entry in entries:
        part = entry.part
        entry.state = closed(entry.state, part.rule, part.options, entry.param.shape, part.group["state_dtype"])
        if not _needs_position(part.group, entry.param):
            entry.state.pop(POSITION, None)
    return entries


def commit(entries: Iterable[Entry], states: States, gates: Gates) -> None:
    """The second half: parameters take their updates and state its place, where that is allowed.

    Args:
        entries: of :func:`compute`.
        states: the optimizer's state.
        gates: as there.
    """
    together: dict[int, list[Entry]] = {}
    for entry in entries:
        if entry.allowed is False:
            continue
        gate = gates.get(entry.param.device)
        if isinstance(entry.allowed, Tensor):
            if entry.negative is not None:  # a product would keep NaNs
                local = local_part(entry.negative)
                local.copy_(torch.where(entry.allowed > 0, local, 0))
            gate = entry.allowed if gate is None else gate * entry.allowed
            _subtract([entry], *rate_and_decay(entry.part, gate))
        else:
            together.setdefault(id(entry.part), []).append(entry)
        _lay(entry, states, gate)
    for some in together.values():
        _subtract(some, *rate_and_decay(some[0].part, gates.get(some[0].param.device)))


def _subtract(entries: list[Entry], lr: float | Tensor, decay: Decay) -> None:
    pairs = [(entry, entry.negative) for entry in entries if entry.negative is not None]
    if not pairs:
        return
    targets: list[Tensor] = []
    for entry, negative in pairs:
        stochastic = _rounds(entry.part.group, entry.param)
        low = entry.param.dtype != negative.dtype
        wide = entry.param.to(negative.dtype) if stochastic or (low and decay.is_cautious) else entry.param
        if decay.is_cautious:
            shrink_cautiously(wide, -negative, decay.cautious)
        targets.append(wide)
    # As Work's parameters may be, these are DTensors or not; nothing of this communicates.
    local = [local_part(target) for target in targets]
    subtract_updates(local, [local_part(negative) for _, negative in pairs], [-1.0] * len(pairs), lr, decay.keep)
    for (entry, _), target in zip(pairs, targets, strict=True):
        if target is not entry.param:
            stochastic = _rounds(entry.part.group, entry.param)
            entry.param.copy_(rounded(target, entry.state[POSITION], "parameter") if stochastic else target)


def _lay(entry: Entry, states: States, gate: Tensor | None) -> None:
    """Put the state where it belongs: into the tensors that are there already, if they can hold it."""
    lying = states.setdefault(entry.param, {})
    for key in [key for key in lying if key not in entry.state]:
        del lying[key]
    for key, value in entry.state.items():
        old = lying.get(key)
        if not isinstance(value, Tensor):
            lying[key] = value
        elif isinstance(old, Tensor) and (old.shape, old.dtype, old.device) == (value.shape, value.dtype, value.device):
            mine, theirs = local_part(old), local_part(value)
            mine.copy_(theirs if gate is None else torch.where(gate.to(mine.device) > 0, theirs, mine))
        elif gate is None or old is not None or key == POSITION:
            lying[key] = value  # in a new dtype: a step that must not happen has left the values as they were
        else:
            local = local_part(value)
            local.copy_(torch.where(gate.to(local.device) > 0, local, 0))  # all state begins as zeros
            lying[key] = value


def _move_position(entry: Entry, states: Mapping[Tensor, Any], gate: Tensor | None) -> None:
    if not _needs_position(entry.part.group, entry.param):
        return
    position = entry.state.get(POSITION)
    if position is None:
        unnamed = "" if entry.part.group.get("param_names") else f", after {len(states)} others"
        position = first_position(entry.name + unnamed, entry.param.device)
    entry.state[POSITION] = position + (1 if gate is None else gate.to(torch.int64))


def _cut(part: Work, start: int, end: int) -> list[Work]:
    if start == end:
        return []
    return [part._replace(names=part.names[start:end], params=part.params[start:end], grads=part.grads[start:end])]


def _is_apart(group: Mapping[str, Any]) -> bool:
    """Whether updates are to be had before parameters move."""
    return group["rounding"] == "stochastic" or group["max_update_rms"] is not None


def _is_kept(part: Work, states: Mapping[Tensor, dict[str, Any]]) -> bool:
    """Whether state lies, or is to lie, otherwise than a step computes it."""
    wanted = part.group["state_dtype"]
    if wanted in ("bfloat16", "int8"):
        return True
    found = [states[param] for param in part.params if param in states]
    if any(POSITION in state for state in found):
        return True  # an option that was taken back
    return wanted == "float32" and any(
        value.is_floating_point() and value.dtype is not torch.float32
        for state in found
        for value in state.values()
        if isinstance(value, Tensor)
    )


def _rounds(group: Mapping[str, Any], param: Tensor) -> bool:
    return group["rounding"] == "stochastic" and param.dtype is torch.bfloat16


def _needs_position(group: Mapping[str, Any], param: Tensor) -> bool:
    return group["state_dtype"] in ("bfloat16", "int8") or _rounds(group, param)


def _check_whole(part: Work) -> None:
    for name, param in zip(part.names, part.params, strict=True):
        if local_part(param) is not param:
            raise RuntimeError(
                f"state_dtype='int8' is for whole parameters, {name} is a DTensor: blocks of {eight_bit.BLOCK} entries "
                "could not be saved and cut anew. Use state_dtype='bfloat16'"
            )

"""A step like the last one: what held then, and what has not been touched since, is not looked at one by one again.

Between two steps anybody may have changed anything, and nearly always gradients and learning rates are all that is new.
So a step leaves a picture of what it saw, and the next one compares with it in a few passes over all parameters, which
costs a fraction of finding everything out anew. Whatever differs, the step goes its ordinary way, with its checks.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from orthoopt._work import Work
from orthoopt.checks import check_rate
from orthoopt.rules import hashable

_MOVING = ("params", "param_names", "lr", "weight_decay", "initial_lr")
"""Keys of a group that are looked at otherwise, or read anew at every step."""
_FIXED = (str, int, float, bool, type(None))
_PLAIN = (Tensor, torch.nn.Parameter)
_LONGEST_PAUSE = 64

Groups = Sequence[dict[str, Any]]
States = Mapping[Tensor, dict[str, Any]]


class Settled:
    """The picture of the last step, if there is one that the next may be compared with."""

    def __init__(self) -> None:
        self._picture: _Picture | None = None
        self._missed = self._pause = 0
        self._asked = False

    def forget(self) -> None:
        """Let the next step go its ordinary way."""
        self._picture = None

    def again(self, groups: Groups, states: States) -> list[Work] | None:
        """The work of this step, if it is that of the last one with other gradients and rates; else None.

        Raises:
            ValueError: a learning rate or weight decay that no step can use.
        """
        self._asked = True
        if self._picture is None:
            return None
        work = self._picture.work_with(groups, states)
        if work is None:
            self._picture = None
            self._missed = min(2 * self._missed + 1, _LONGEST_PAUSE)
            self._pause = self._missed
        else:
            self._missed = 0
        return work

    def let_go(self) -> None:
        """Hold the gradients of :meth:`again` no longer."""
        if self._picture is not None:
            for part in self._picture.work:
                part.grads.clear()

    def wants_picture(self) -> bool:
        """Whether one is worth making: somebody asked for it, and not soon after others that did not hold."""
        asked, self._asked = self._asked, False
        self._pause -= asked
        return asked and self._pause < 0

    def take(self, groups: Groups, work: Sequence[Work], states: States) -> list[Work]:
        """Make a picture of a step that has been taken; returns its work as :meth:`again` does, or nothing."""
        self._picture = None
        if _can_be_compared(work, states) and all(map(_has_fixed_values, groups)):
            self._picture = _Picture(groups, work, states)
        return [] if self._picture is None else self._picture.work


class _Group:
    """A param group as it was."""

    def __init__(self, group: dict[str, Any], number: int) -> None:
        self.group, self.where = group, f"param group {number}"
        self.keys, self.values = list(group), list(group.values())
        self.changeable = {
            key: hashable(value) for key, value in group.items() if key not in _MOVING and not _is_fixed(value)
        }

    def holds(self, group: dict[str, Any]) -> bool:
        if group is not self.group or list(group) != self.keys:
            return False
        same = list(map(operator.is_, group.values(), self.values))
        if not all(same):
            changed = (key for key, is_same in zip(self.keys, same, strict=True) if not is_same)
            if any(key not in _MOVING for key in changed):
                return False
        if any(hashable(group[key]) != value for key, value in self.changeable.items()):
            return False
        check_rate("lr", group["lr"], self.where)
        check_rate("weight_decay", group["weight_decay"], self.where)
        return True


class _Picture:
    """Groups, parameters and state as they were, by attribute: lists compare faster than tensors one by one."""

    def __init__(self, groups: Groups, work: Sequence[Work], states: States) -> None:
        self._groups = [_Group(group, number) for number, group in enumerate(groups)]
        self._all = [param for group in groups for param in group["params"]]
        seen = {param for part in work for param in part.params}
        self._idle = [param not in seen for param in self._all]
        self._params = [param for param in self._all if param in seen]
        place = {param: index for index, param in enumerate(self._params)}
        self.work = [_with_states(part, states) for part in work]
        self._places = [[place[param] for param in part.params] for part in work]
        self._looks = _looks_of(self._params)
        self._grads = _kinds_of([part.grads[i] for part, i in _in_order(work, self._params)])
        self._owners, self._states = list(states), list(states.values())
        self._held = [value for state in self._states for value in state.values()]
        self._sizes = list(map(len, self._states))
        self._held_at = [value.data_ptr() for value in self._held]

    def work_with(self, groups: Groups, states: States) -> list[Work] | None:
        if len(groups) != len(self._groups) or not all(a.holds(b) for a, b in zip(self._groups, groups, strict=True)):
            return None
        params = [param for group in groups for param in group["params"]]
        if len(params) != len(self._all) or not all(map(operator.is_, params, self._all)):
            return None
        grads = [param.grad for param in params]
        if [grad is None for grad in grads] != self._idle:
            return None
        grads = [grad for grad in grads if grad is not None]
        if len(states) != len(self._states) or list(map(len, self._states)) != self._sizes:
            return None
        if not all(map(operator.is_, states, self._owners)) or not all(
            map(operator.is_, states.values(), self._states)
        ):
            return None
        held = [value for state in self._states for value in state.values()]
        if not all(map(operator.is_, held, self._held)) or [value.data_ptr() for value in held] != self._held_at:
            return None
        if _looks_of(self._params) != self._looks or _kinds_of(grads) != self._grads:
            return None
        for part, places in zip(self.work, self._places, strict=True):
            part.grads[:] = [grads[place] for place in places]
        return self.work


def _looks_of(params: Sequence[Tensor]) -> tuple[list[Any], ...]:
    """What of parameters an update depends on, beside their values; who has an address has a device."""
    return (
        list(map(type, params)),
        [param.data_ptr() for param in params],
        [param.shape for param in params],
        [param.stride() for param in params],
        [param.dtype for param in params],
    )


def _kinds_of(grads: Sequence[Tensor]) -> tuple[list[Any], ...]:
    """What of gradients an update depends on, beside their values and where they lie; sparse ones have strides of 0."""
    return (
        list(map(type, grads)),
        [grad.shape for grad in grads],
        [grad.stride() for grad in grads],
        [grad.dtype for grad in grads],
        [grad.device for grad in grads],
        [grad.is_neg() for grad in grads],
    )


def _in_order(work: Sequence[Work], params: Sequence[Tensor]) -> list[tuple[Work, int]]:
    """For each parameter the part that it is in, and its place there."""
    where = {param: (part, index) for part in work for index, param in enumerate(part.params)}
    return [where[param] for param in params]


def _with_states(part: Work, states: States) -> Work:
    """The part without its gradients, with the state that its rule moves by itself."""
    itself = not part.rule.is_matrix or part.moving is None
    own = [states[param] for param in part.params] if itself else None
    return part._replace(grads=[], states=own, alike=True)


def _can_be_compared(work: Sequence[Work], states: States) -> bool:
    """Whether all are ordinary tensors, and all state is there."""
    tensors = [tensor for part in work for tensor in (*part.params, *part.grads)]
    tensors += [value for state in states.values() for value in state.values()]
    is_there = all(param in states for part in work for param in part.params)
    return is_there and all(type(x) in _PLAIN and x.layout is torch.strided for x in tensors)


def _is_fixed(value: Any) -> bool:
    return isinstance(value, _FIXED) or (isinstance(value, tuple) and all(isinstance(x, _FIXED) for x in value))


def _has_fixed_values(group: Mapping[str, Any]) -> bool:
    """Whether what options hold can be told from what they held: not of sets and such."""
    others = (value for key, value in group.items() if key not in _MOVING)
    return all(_is_fixed(value) or isinstance(value, list | tuple) for value in others)

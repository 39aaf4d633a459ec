"""What a step or a load needs of groups, gradients and state, checked before anything moves.

Schedulers, frameworks and people write into ``param_groups`` and ``state`` while an optimizer lives, and replace what
parameters hold. A step that finds a mistake halfway would leave one half of a model updated, so it looks first: at values
that it has not seen yet, for what it has seen is remembered.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from orthoopt import matrix_state, rules
from orthoopt._work import Work
from orthoopt.groups import MOST_RATE, check_options
from orthoopt.nonfinite import host_can_read
from orthoopt.views import parse_view

_UNSEEN = ("params", "param_names", "lr", "weight_decay")
"""Keys that are no options, or that schedules move at every step: looked at anew each time."""


def check_group(group: Mapping[str, Any], number: int, seen: set[Any]) -> None:
    """Raise unless a step can read this group, which others may have written to since it was added.

    Args:
        group: the live param group.
        number: its place, for messages.
        seen: what has passed before; added to.

    Raises:
        ValueError: a missing or a bad value, naming the key.
        TypeError: a value of a wrong type.
    """
    where = f"param group {number}"
    for key in ("params", "rule", "lr", "weight_decay", "weight_decay_mode", "maximize", "nonfinite", "view"):
        if key not in group:
            raise ValueError(f"{where} has no {key!r} any more")
    for key in ("lr", "weight_decay"):
        _check_rate(key, group[key], where)
    try:
        values = tuple((k, type(v), rules.hashable(v)) for k, v in group.items() if k not in _UNSEEN)
        if values in seen:
            return
    except (TypeError, RuntimeError):  # something that cannot be a key, such as a set: no option is
        check_options(group, where)
        return
    check_options(group, where)
    if len(seen) > 1000:
        seen.clear()
    seen.add(values)


def _check_rate(key: str, value: Any, where: str) -> None:
    """As written by a schedule: a number of any kind, which may dip below 0 by a rounding error."""
    if isinstance(value, Tensor) and key == "lr":
        if value.numel() != 1:
            raise ValueError(f"{where}: Tensor lr must be 1-element, got shape {tuple(value.shape)}")
        if not host_can_read(value.device) or torch.compiler.is_compiling():
            return  # to look would wait for the device
        value = value.item()
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or abs(value) > MOST_RATE:
        raise ValueError(f"{where}: {key} must be a number from 0 to {MOST_RATE:g}, got {value!r}")


class SeenState:
    """Which state has been looked at: the very tensors, so that a look costs a step next to nothing."""

    def __init__(self) -> None:
        self._seen: dict[Tensor, tuple[Any, ...]] = {}

    def check(self, work: Iterable[Work], states: Mapping[Tensor, Any]) -> None:
        """Raise unless the state of these parameters is what their rules left there, or is missing.

        Raises:
            RuntimeError: state of another shape, layout, device or kind than the parameter needs, or a view that does
                not fit the parameter any more; naming the parameter and the key.
        """
        for part in work:
            kind = (part.rule.name, part.view.spec, rules.hashable(part.options))
            for name, param in zip(part.names, part.params, strict=True):
                state = states.get(param)
                values = () if state is None else tuple(state.values())
                now = (kind, param.shape, param.device, values)
                then = self._seen.get(param)
                if then is not None and _are_same(then, now):
                    continue
                check_state(part.rule, part.view.spec, part.options, name, param, {} if state is None else state)
                self._seen[param] = now


def _are_same(then: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    return then[:3] == now[:3] and len(then[3]) == len(now[3]) and all(map(operator.is_, then[3], now[3]))


def check_state(
    rule: rules.Rule, spec: str, options: Mapping[str, Any], name: str, param: Tensor, state: Mapping[str, Any]
) -> None:
    """Raise RuntimeError unless this state, as far as there is any, fits the parameter; see :class:`SeenState`."""
    view = parse_view(spec)
    if view.is_matrix:
        try:
            view.piece_shapes(tuple(param.shape))
        except ValueError as error:
            raise RuntimeError(f"{name} has another shape than when its group was added: {error}") from None
    if not state:
        return
    for key, like in matrix_state.expected_state(rule, param, view, dict(options)).items():
        if key not in state or not isinstance(like, Tensor):
            continue
        value = state[key]
        wanted = f"a {_kind(like.dtype)} tensor of shape {tuple(like.shape)}"
        if not isinstance(value, Tensor):
            if key == "step" and isinstance(value, int | float):
                continue  # as old state dicts have it
            raise RuntimeError(f"state {key!r} of {name} must be {wanted}, got {value!r:.80}")
        plain = type(value) is Tensor
        host = key == "step" and value.numel() == 1 and value.device.type == "cpu"
        if (
            (value.shape != like.shape and not (key == "step" and value.numel() == like.numel() == 1))
            or (plain and value.layout is not torch.strided)
            or (plain and _kind(value.dtype) != _kind(like.dtype))
            or (value.device != param.device and not host)
        ):
            raise RuntimeError(
                f"state {key!r} of {name} must be {wanted} on {param.device}, got {value.dtype}, "
                f"shape {tuple(value.shape)}, {value.layout}, on {value.device}"
            )


def _kind(dtype: torch.dtype) -> str:
    return "complex" if dtype.is_complex else "floating point" if dtype.is_floating_point else "whole number"


def check_loaded(groups: Sequence[Mapping[str, Any]], states: MutableMapping[Tensor, Any]) -> None:
    """Raise unless groups and state that were loaded are such that a step can be taken with them.

    Raises:
        ValueError: naming the group and key, or the parameter and key.
    """
    for number, group in enumerate(groups):
        try:
            check_group(group, number, set())
        except TypeError as error:
            raise ValueError(str(error)) from None
        rule = rules.get(group["rule"])
        names = group.get("param_names") or [f"parameter {i} of its group" for i in range(len(group["params"]))]
        for name, param in zip(names, group["params"], strict=True):
            state = states.get(param, {})
            if not isinstance(state, Mapping):
                raise ValueError(f"the state of {name} must be a dict, got {state!r:.80}")
            try:
                check_state(rule, group["view"], rule.options(group), name, param, state)
            except RuntimeError as error:
                raise ValueError(str(error)) from None

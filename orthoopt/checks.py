"""What a step or a load needs of groups, gradients and state, checked before anything moves.

Schedulers, frameworks and people write into ``param_groups`` and ``state`` while an optimizer lives, and replace what
parameters hold. A step that finds a mistake halfway would leave one half of a model updated, so it looks first: at
values that it has not seen yet, for what it has seen is remembered.
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
from orthoopt.groups import MOST_RATE, check_values
from orthoopt.nonfinite import host_can_read
from orthoopt.step_options import DEFAULTS as STEP_DEFAULTS
from orthoopt.stored_state import SCALE
from orthoopt.views import parse_view

_NEEDED = (
    "params", "rule", "lr", "weight_decay", "weight_decay_mode", "maximize", "nonfinite", "view", *STEP_DEFAULTS
)  # fmt: skip
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
    for key in _NEEDED:
        if key not in group:
            raise ValueError(f"{where} has no {key!r} any more")
    for key in ("lr", "weight_decay"):
        check_rate(key, group[key], where)
    try:
        values = tuple((k, type(v), rules.hashable(v)) for k, v in group.items() if k not in _UNSEEN)
        if values in seen:
            return
    except (TypeError, RuntimeError):  # something that cannot be a key, such as a set: no option is
        check_values(group, where)
        return
    check_values(group, where)
    if len(seen) > 1000:
        seen.clear()
    seen.add(values)


def check_rate(key: str, value: Any, where: str) -> None:
    """Raise ValueError unless a step can use this lr or weight_decay, as a schedule may have written it.

    A number of any kind will do, which may dip below 0 by a rounding error.
    """
    if type(value) is float and 0 <= value <= MOST_RATE:
        return  # as nearly always
    if isinstance(value, Tensor) and key == "lr":
        if value.numel() != 1:
            raise ValueError(f"{where}: Tensor lr must be 1-element, got shape {tuple(value.shape)}")
        if value.is_meta:
            raise ValueError(f"{where}: Tensor lr must hold a number, got one without memory, on the device meta")
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

        State follows a parameter that has moved to another device, or to or from float64.

        Raises:
            RuntimeError: state of another shape, layout or kind than the parameter needs, or a view that does not fit
                the parameter any more; naming the parameter and the key. Nothing is changed then.
        """
        moves: list[tuple[dict[str, Any], dict[str, Tensor]]] = []
        for part in work:
            kind = (part.rule.name, part.view.spec, rules.key_of(part.options))
            for name, param in zip(part.names, part.params, strict=True):
                state = states.get(param)
                values = () if state is None else tuple(state.values())
                now = (kind, param.shape, param.dtype, param.device, values)
                then = self._seen.get(param)
                if then is not None and _are_same(then, now):
                    continue
                moved = check_state(part.group, part.rule, name, param, {} if state is None else state)
                if state is not None and moved:
                    moves.append((state, moved))
                else:
                    self._seen[param] = now
        for state, moved in moves:
            state.update(moved)


def _are_same(then: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    return then[:-1] == now[:-1] and len(then[-1]) == len(now[-1]) and all(map(operator.is_, then[-1], now[-1]))


def check_state(
    group: Mapping[str, Any], rule: rules.Rule, name: str, param: Tensor, state: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Raise RuntimeError unless this state, as far as there is any, fits the parameter; see :class:`SeenState`.

    Returns:
        What must stand in its place: the same numbers where the parameter has them, each in memory of its own.
    """
    view = parse_view(group["view"])
    if _overlaps(param):
        raise RuntimeError(f"{name} has elements that share memory (strides {param.stride()}): it cannot be updated")
    if view.is_matrix:
        try:
            view.piece_shapes(tuple(param.shape))
        except ValueError as error:
            raise RuntimeError(f"{name} has another shape than when its group was added: {error}") from None
    moved: dict[str, Tensor] = {}
    if not state:
        return moved
    for key, like in matrix_state.expected_state(rule, param, view, rule.options(group)).items():
        if key not in state or not isinstance(like, Tensor):
            continue
        value = state[key]
        wanted = f"a {_kind(like.dtype)} tensor of shape {tuple(like.shape)}"
        if not isinstance(value, Tensor):
            if key == "step" and isinstance(value, int | float) and not isinstance(value, bool):
                moved[key] = torch.full_like(like, float(value), device="cpu")  # as old state dicts have it
                continue
            raise RuntimeError(f"state {key!r} of {name} must be {wanted}, got {value!r:.80}")
        plain, count = type(value) is Tensor, key == "step" and not rule.is_matrix
        if value.shape != like.shape and not (count and value.numel() == like.numel() == 1):
            raise RuntimeError(
                f"state {key!r} of {name} has shape {tuple(value.shape)}, it needs {tuple(like.shape)} (the parameter "
                f"is {tuple(param.shape)})"
            )
        if key + SCALE in state:  # codes of eight bits
            continue
        is_other = plain and (value.layout is not torch.strided or _kind(value.dtype) != _kind(like.dtype))
        if is_other or (value.is_meta and not param.is_meta):
            raise RuntimeError(
                f"state {key!r} of {name} must be {wanted} on {param.device}, got {value.dtype}, "
                f"shape {tuple(value.shape)}, {value.layout}, on {value.device}"
            )
        device = value.device if count else param.device  # a count may lie with the host
        dtype = value.dtype if _may_keep(value, like, group) else like.dtype
        if plain and (value.device != device or value.dtype != dtype or _overlaps(value)):
            moved[key] = value.to(device, dtype).contiguous()
    return moved


def _may_keep(value: Tensor, like: Tensor, group: Mapping[str, Any]) -> bool:
    """Whether state may stay in its dtype: a step that knows of small state widens what lies in bfloat16 itself."""
    return value.dtype is torch.bfloat16 and "state_dtype" in group and like.dtype is torch.float32


def _overlaps(tensor: Tensor) -> bool:
    """Whether elements share memory, as those of an expanded tensor do."""
    if tensor.layout is not torch.strided:
        return False
    return any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


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
        names = group.get("param_names") or [f"parameter {i} of its group" for i in range(len(group["params"]))]
        for name, param in zip(names, group["params"], strict=True):
            check_saved(group, name, param, states.get(param, {}))


def check_saved(group: Mapping[str, Any], name: str, param: Tensor, state: Any) -> None:
    """Raise ValueError unless this is the state of the parameter, somewhere."""
    if not isinstance(state, Mapping):
        raise ValueError(f"the state of {name} must be a dict, got {state!r:.80}; nothing was loaded")
    rule = rules.get(group["rule"])
    options = {key: group.get(key, default) for key, default in rule.defaults.items()}
    try:
        check_state({**group, **options}, rule, name, param, state)
    except RuntimeError as error:
        raise ValueError(f"{error}; nothing was loaded") from None


def check_structure(state_dict: Any) -> None:
    """Raise ValueError unless this is built as ``state_dict()`` builds one; the message says what is missing where."""
    parts = {"state": Mapping, "param_groups": Sequence}
    if not isinstance(state_dict, Mapping) or not all(isinstance(state_dict.get(k), t) for k, t in parts.items()):
        what = dict.fromkeys(state_dict) if isinstance(state_dict, Mapping) else state_dict
        raise ValueError(
            f"a state dict holds 'state' and 'param_groups', a dict and a list, got {what!r:.200}; nothing was loaded"
        )
    for number, group in enumerate(state_dict["param_groups"]):
        where = f"param group {number} of the state dict"
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), Sequence):
            raise ValueError(f"{where} must be a dict with a list of 'params', got {group!r:.200}; nothing was loaded")
        names = group.get("param_names")
        if names is not None and len(names) != len(group["params"]):
            raise ValueError(
                f"{where} has {len(group['params'])} params but {len(names)} param_names; nothing was loaded"
            )
    for index, state in state_dict["state"].items():
        if not isinstance(state, Mapping):
            raise ValueError(f"the state of parameter {index} must be a dict, got {state!r:.80}; nothing was loaded")


def completed(group: Mapping[str, Any], saved: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A saved group with what it lacks: view and scale of the optimizer's own group, other options as by default.

    Raises:
        ValueError: it has no rule, or a value that its key cannot have.
    """
    where = f"param group {number} of the state dict"
    if "rule" not in saved:
        raise ValueError(f"{where} has no 'rule'; nothing was loaded")
    own = {key: group[key] for key in ("view", "scale") if key in group and saved["rule"] == group["rule"]}
    filled = {**own, **saved}
    try:
        defaults = rules.get(saved["rule"]).defaults if isinstance(saved["rule"], str) else {}
        modes = {"weight_decay_mode": "decoupled", "maximize": False, "nonfinite": "skip", "view": "vector"}
        check_values({**modes, **defaults, **filled}, where)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error}; nothing was loaded") from None
    return filled

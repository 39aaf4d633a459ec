"""State of torch.optim.AdamW and torch.optim.Muon, taken over in the middle of a run, and given back.

What the two hold for a parameter is one or two averages of gradients, and so is most of what rules here remember:

=====================================  ==========================  =====================================
here                                   from AdamW                  from Muon
=====================================  ==========================  =====================================
``step, exp_avg, exp_avg_sq``          the same, exact             begins anew
``momentum_buffer``, an average        ``exp_avg``                 ``momentum_buffer``, exact
``momentum_buffer``, a sum             ``exp_avg`` / (1 − β)       ``momentum_buffer`` / (1 − β)
of other things, or of matrices        begins anew                 begins anew
=====================================  ==========================  =====================================

An average goes on under another coefficient; a sum would have another length, so both must have the same β. Options
stay those of the optimizer that takes over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from orthoopt import rules
from orthoopt._torch_sources import ADAMW, MUON, Saved, Source, check_options, entries_of, kind_of
from orthoopt.checkpoint import layouts_of, placed
from orthoopt.matching import some
from orthoopt.matrix_state import new_state
from orthoopt.rules import Rule
from orthoopt.rules._momentum import moving_of
from orthoopt.views import parse_view

_ADAMW_KEYS = ("step", "exp_avg", "exp_avg_sq")


class Carried(NamedTuple):
    """What became of one parameter's state."""

    name: str
    """The parameter's."""
    how: str
    """``"exact"``: it goes on as if nothing had happened, if the options are the same. ``"momentum"``: an average of
    gradients is the new momentum. ``"anew"``: it begins again. ``"none"``: there was no state."""
    note: str
    """Why, and from which key."""


class _Average(NamedTuple):
    """How a rule's ``momentum_buffer`` follows the gradients."""

    beta: float
    is_sum: bool


def load_torch_state(
    optimizer: Optimizer,
    source: Source | Sequence[Source],
    names: Sequence[str] | Sequence[Sequence[str]] | None = None,
    *,
    strict: bool = True,
) -> list[Carried]:
    """Take over the state of torch.optim.AdamW, torch.optim.Muon, or of several such optimizers.

    Options, learning rates among them, stay as they are: give them to this optimizer, and let a scheduler continue
    from its own state or with ``last_epoch``.

    Args:
        optimizer: an :class:`orthoopt.OrthoOpt`; all its state is replaced.
        source: an optimizer over the same parameters, or a state dict of one, its parameters numbered, as from
            ``state_dict()``, or named, as from ``torch.distributed.checkpoint``; or several.
        names: the names of the parameters of a state dict that has none, in the order in which its optimizer got them;
            for several sources one list each, or None for those that need none. Shapes are checked.
        strict: raise where something cannot be converted or a parameter is in no source; else its state begins anew.

    Returns:
        What became of each parameter's state, in the optimizer's order.

    Raises:
        ValueError: a name, a shape, ``amsgrad``, ``maximize`` or a coefficient does not fit, named with its parameter;
            nothing has changed then.
        TypeError: a source is neither an optimizer nor a state dict.
    """
    several = [source] if isinstance(source, Optimizer | Mapping) else list(source)
    lists: Sequence[Any] = [names] * len(several) if names is None or len(several) == 1 else names
    if len(several) == 1 and names is not None and len(names) == 1 and not isinstance(names[0], str):
        lists = [names[0]]
    if len(lists) != len(several):
        raise ValueError(f"names has {len(lists)} lists for {len(several)} sources")
    ours = _named_params(optimizer)
    saved: dict[Tensor, Saved] = {}
    for one, some_names in zip(several, lists, strict=True):
        for param, entry in entries_of(one, some_names, ours):
            if param in saved:
                raise ValueError(f"{ours[param]} is in the sources twice; nothing was loaded")
            saved[param] = entry
    missing = [name for param, name in ours.items() if param not in saved]
    if missing and strict:
        raise ValueError(
            f"no source has {some(missing)}; nothing was loaded. With strict=False their state begins anew"
        )
    report: list[Carried] = []
    states: dict[Tensor, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        for param in group["params"]:
            entry = saved.get(param, Saved({}, {}))
            carried, state = _taken_over(ours[param], param, group, entry, strict)
            report.append(carried)
            if state:
                states[param] = state
    for param in ours:
        optimizer.state.pop(param, None)
    optimizer.state.update(states)
    return report


def to_torch_state(optimizer: Optimizer, target: Optimizer, *, strict: bool = True) -> dict[str, Any]:
    """The state as a state dict that ``target.load_state_dict`` takes: the way back of :func:`load_torch_state`.

    ``target`` keeps its options. Its ``load_state_dict`` casts state to the parameters' dtype, as torch does.

    Args:
        optimizer: an :class:`orthoopt.OrthoOpt`.
        target: a torch.optim.AdamW or torch.optim.Muon over the same parameters or some of them; matched by identity,
            or by name where both sides have names. It is not changed.
        strict: raise for a parameter that only ``target`` has; else it is left without state.

    Returns:
        ``target.state_dict()`` with the state of this optimizer. AdamW gets its moments where they are here; what has a
        momentum alone begins anew there, and is left out. Muon gets momenta, and first moments for those.

    Raises:
        ValueError: names do not match, ``target`` is another optimizer, or has ``amsgrad`` or another ``maximize``.
    """
    names = _named_params(optimizer)
    groups = {param: group for group in optimizer.param_groups for param in group["params"]}
    by_name = {name: param for param, name in names.items()}
    result = target.state_dict()
    result["state"] = {}
    for group, packed in zip(target.param_groups, result["param_groups"], strict=True):
        kind = kind_of(group)
        theirs = group.get("param_names") or [None] * len(group["params"])
        for param, name, index in zip(group["params"], theirs, packed["params"], strict=True):
            source = param if param in groups else by_name.get(name)
            if source is None:
                if strict:
                    raise ValueError(f"{name or f'parameter {index} of the target'} is not in this optimizer")
                continue
            own, state = groups[source], optimizer.state.get(source, {})
            check_options(names[source], own, group)
            given = _given_back(kind, rules.get(own["rule"]), own, state)
            if any(value.ndim and value.shape != param.shape for value in given.values()):
                raise ValueError(f"{names[source]} has another shape in the target, {tuple(param.shape)}")
            if given:
                result["state"][index] = {key: value.detach().clone() for key, value in given.items()}
    return result


def _named_params(optimizer: Optimizer) -> dict[Tensor, str]:
    found: dict[Tensor, str] = {}
    for number, group in enumerate(optimizer.param_groups):
        if "rule" not in group:
            raise TypeError(f"optimizer must be an orthoopt.OrthoOpt, got {type(optimizer).__name__}")
        names = group.get("param_names") or [f"parameter {i} of group {number}" for i in range(len(group["params"]))]
        found |= dict(zip(group["params"], names, strict=True))
    return found


def _average_of(rule: Rule, options: Mapping[str, Any], state: Iterable[str]) -> _Average | None:
    """How the rule's buffer follows the gradients, or None where it has none or fills it with something else."""
    if "momentum_buffer" not in state:
        return None
    moving = rule.moving(options)
    if moving is None and {"momentum", "momentum_form"} <= options.keys():
        moving = moving_of(options)
    if moving is None or not moving.remembers:
        return None
    if moving.weight == 1 - moving.decay:
        return _Average(moving.decay, False)
    return _Average(moving.decay, True) if moving.weight == 1 else None


def _taken_over(
    name: str, param: Tensor, group: Mapping[str, Any], saved: Saved, strict: bool
) -> tuple[Carried, dict[str, Any]]:
    """What becomes of one parameter's state, and the new one; empty where the first step shall create it."""
    if not saved.state:
        return Carried(name, "none", "no state there"), {}
    kind, rule = kind_of(saved.group), rules.get(group["rule"])
    try:
        check_options(name, group, saved.group)
    except ValueError as error:
        if strict:
            raise
        return Carried(name, "anew", str(error).removesuffix("; nothing was loaded")), {}
    options = rule.options(group)
    wide = param.detach().to(torch.promote_types(param.dtype, torch.float32))
    fresh = new_state(rule, wide, parse_view(group["view"]), options)
    layouts = layouts_of(group, param)
    if not rule.is_matrix and fresh.keys() == set(_ADAMW_KEYS):
        if kind != ADAMW:
            return Carried(name, "anew", f"{rule.name} needs moments, {kind} has a momentum"), {}
        moments = {key: _fitted(name, param, key, saved.state, fresh[key], layouts) for key in _ADAMW_KEYS[1:]}
        step = torch.tensor(float(saved.state["step"]), dtype=fresh["step"].dtype, device=fresh["step"].device)
        note = _differences(saved.group, group, ("betas", "eps"))
        return Carried(name, "exact" if not note else "momentum", note or "AdamW's moments"), {"step": step, **moments}
    average = _average_of(rule, options, fresh)
    if average is None:
        return Carried(name, "anew", f"rule {rule.name!r} remembers something else"), {}
    key = "momentum_buffer" if kind == MUON else "exp_avg"
    beta = saved.group["momentum"] if kind == MUON else saved.group["betas"][0]
    if average.is_sum and average.beta != beta:
        text = (
            f"{name} has momentum_form='heavy_ball' with momentum={average.beta} here, and {key} averages with {beta}: "
            "the sum would have another length"
        )
        if strict:
            raise ValueError(f"{text}; nothing was loaded. Give momentum={beta}, momentum_form='ema', or strict=False")
        return Carried(name, "anew", text), {}
    buffer = _fitted(name, param, key, saved.state, fresh["momentum_buffer"], layouts, "momentum_buffer")
    if average.is_sum:
        buffer = buffer / (1 - beta)
    others = [other for other in fresh if other != "momentum_buffer"]
    note = f"from {key}" + (f", {', '.join(others)} begins anew" if others else "")
    note += f"; averaged with {beta} there, {average.beta} here" if beta != average.beta else ""
    exact = kind == MUON and beta == average.beta and not others
    return Carried(name, "exact" if exact else "momentum", note), {**fresh, "momentum_buffer": buffer}


def _fitted(
    name: str,
    param: Tensor,
    key: str,
    state: Mapping[str, Any],
    like: Tensor,
    layouts: Mapping[str, Any],
    own_key: str | None = None,
) -> Tensor:
    """A saved tensor in the dtype, place and layout of ours; checked."""
    value = state.get(key)
    if not isinstance(value, Tensor) or value.shape != param.shape:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{key!r} of {name} has {found}, the parameter {tuple(param.shape)}; nothing was loaded")
    return placed(value, param, layouts.get(own_key or key)).to(like.dtype)


def _given_back(kind: str, rule: Rule, group: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a torch optimizer's state for a parameter is; empty where it begins anew."""
    has_moments = not rule.is_matrix and set(_ADAMW_KEYS) <= state.keys()
    if kind == ADAMW:
        return {key: state[key] for key in _ADAMW_KEYS} if has_moments else {}
    if has_moments:
        return {"momentum_buffer": state["exp_avg"]}
    average = _average_of(rule, rule.options(group), state)
    if average is None:
        return {}
    buffer = state["momentum_buffer"]
    return {"momentum_buffer": buffer * (1 - average.beta) if average.is_sum else buffer}


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], keys: Iterable[str]) -> str:
    different = [key for key in keys if theirs[key] != ours[key]]
    return "; ".join(f"{key}={theirs[key]} there, {ours[key]} here" for key in different)

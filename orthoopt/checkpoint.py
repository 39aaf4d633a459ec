"""Loading optimizer state: matched by name, checked before anything changes, in the dtype it was saved in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from orthoopt import rules
from orthoopt.checks import check_saved, check_structure, completed
from orthoopt.matrix_state import expected_state
from orthoopt.views import parse_view

Loader = Callable[[dict[str, Any]], None]


def load(optimizer: Optimizer, state_dict: dict[str, Any], torch_load: Loader) -> None:
    """Run torch's own ``load_state_dict`` on a state dict brought into this optimizer's order, then undo its casts.

    torch matches by position, and casts state to the dtype of the parameter: float32 moments of bfloat16 parameters
    would come back rounded (pytorch/pytorch#43706), indices as floating point numbers.
    """
    matched: dict[str, Any] = {}

    def match(_: Optimizer, incoming: dict[str, Any]) -> dict[str, Any]:
        matched.update(arrange(optimizer.param_groups, incoming))
        return matched

    # As the last pre-hook, so that hooks of others have had their say on the state dict.
    handle = optimizer.register_load_state_dict_pre_hook(match)
    try:
        torch_load(state_dict)
    finally:
        handle.remove()
    for group, saved_group in zip(optimizer.param_groups, matched["param_groups"], strict=True):
        # torch leaves a step where it was saved: right for a number, not for one that lies with its matrices.
        own_step = () if rules.get(group["rule"]).is_matrix else ("step",)
        for param, index in zip(group["params"], saved_group["params"], strict=True):
            for key, value in matched["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    # A copy in any case: torch would share a step with the optimizer that the state came from.
                    value = value if key in own_step else value.detach().to(param.device)
                    optimizer.state[param][key] = value.detach().clone()


def arrange(groups: list[dict[str, Any]], state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict with its groups and parameters in the order of ``groups``; nothing given is changed.

    Raises:
        ValueError: names differ, parameters are grouped in another way, or a state's shape does not fit.
    """
    check_structure(state_dict)
    saved_groups = state_dict["param_groups"]
    ours = [group.get("param_names") for group in groups]
    theirs = [group.get("param_names") for group in saved_groups]
    if all(names is not None for names in (*ours, *theirs)):
        saved_groups = _by_name(groups, saved_groups)
    else:
        _check_positions(groups, saved_groups)
    pairs = enumerate(zip(groups, saved_groups, strict=True))
    saved_groups = [completed(group, saved, number) for number, (group, saved) in pairs]
    for group, saved in zip(groups, saved_groups, strict=True):
        names = group.get("param_names") or [f"parameter {i}" for i in range(len(group["params"]))]
        for name, param, index in zip(names, group["params"], saved["params"], strict=True):
            _check_shapes(name, param, {**group, **saved}, state_dict["state"].get(index, {}))
            check_saved({**group, **saved}, name, param, state_dict["state"].get(index, {}))
    return {**state_dict, "param_groups": saved_groups}


def _by_name(groups: list[dict[str, Any]], saved_groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    index = {
        name: (saved, number)
        for saved in saved_groups
        for name, number in zip(saved["param_names"], saved["params"], strict=True)
    }
    present = [name for group in groups for name in group["param_names"]]
    missing = [name for name in present if name not in index]
    extra = sorted(set(index) - set(present))
    if missing or extra:
        raise ValueError(
            "the parameter names of the state dict do not match the optimizer's; nothing was loaded. "
            f"In the optimizer alone: {_some(missing)}. In the state dict alone: {_some(extra)}"
        )
    arranged = []
    for group in groups:
        holders = [index[name][0] for name in group["param_names"]]
        if any(holder is not holders[0] for holder in holders) or len(holders[0]["params"]) != len(holders):
            other = next((n for n, h in zip(group["param_names"], holders, strict=True) if h is not holders[0]), None)
            reason = (
                f"{group['param_names'][0]} and {other} share a group here and not there"
                if other
                else f"the saved group of {group['param_names'][0]} holds further parameters"
            )
            raise ValueError(
                f"the state dict groups parameters in another way ({reason}); nothing was loaded. Build the optimizer "
                "with the plan and the overrides that the state was saved with"
            )
        numbers = [index[name][1] for name in group["param_names"]]
        arranged.append({**holders[0], "params": numbers, "param_names": list(group["param_names"])})
    return arranged


def _check_positions(groups: list[dict[str, Any]], saved_groups: list[dict[str, Any]]) -> None:
    ours, theirs = ([len(g["params"]) for g in some] for some in (groups, saved_groups))
    if ours != theirs:
        raise ValueError(
            "loaded state dict has a different number of parameter groups or parameters than the optimizer: group "
            f"sizes {theirs} against {ours}; nothing was loaded"
        )


def _check_shapes(name: str, param: Tensor, group: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    rule = rules.get(group["rule"])
    expected = expected_state(rule, param, parse_view(group["view"]), rule.options(group))
    for key, like in expected.items():
        value = state.get(key)
        if isinstance(value, Tensor) and isinstance(like, Tensor) and value.shape != like.shape and key != "step":
            raise ValueError(
                f"state {key!r} of {name} has shape {tuple(value.shape)}, this optimizer's {tuple(like.shape)} (the "
                f"parameter is {tuple(param.shape)}); nothing was loaded"
            )


def _some(names: list[str], most: int = 5) -> str:
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

"""Loading optimizer state: matched by name, checked before anything changes, in the dtype it was saved in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from orthoopt import rules
from orthoopt.checks import check_saved, check_structure, completed
from orthoopt.matching import match_groups
from orthoopt.matrix_state import new_state
from orthoopt.nonfinite import local_part
from orthoopt.state_format import check_format
from orthoopt.views import parse_view

Loader = Callable[[dict[str, Any]], None]


def only_creates_state(groups: list[dict[str, Any]], grads: Mapping[Tensor, Tensor]) -> bool:
    """Whether a step, the optimizer's first, is there to create state: every learning rate and gradient is zero.

    So ``torch.distributed.checkpoint`` asks for state before there is any. Counting it as a step would make a run that
    is saved before its first step differ from one that is not. The ranks that share gradients agree.
    """
    for group in groups:
        lr = group["lr"]
        if (isinstance(lr, Tensor) and lr.device.type != "cpu") or lr != 0:
            return False
    moved = any(bool(local_part(grad).any()) for grad in grads.values() if grad.layout is torch.strided)
    return bool(grads) and not _anywhere(moved, list(grads))


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
        is_matrix = rules.get(group["rule"]).is_matrix
        for param, index in zip(group["params"], saved_group["params"], strict=True):
            saved = matched["state"].get(index, {})
            layouts = layouts_of(group, param) if saved else {}
            for key, value in saved.items():
                if not isinstance(value, Tensor):
                    continue
                if key == "step" and not is_matrix:
                    # Where torch leaves it, if not the very tensor, which two optimizers would then count with.
                    optimizer.state[param][key] = optimizer.state[param][key].detach().clone()
                else:
                    optimizer.state[param][key] = placed(value, param, layouts.get(key))


def arrange(groups: list[dict[str, Any]], state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict with its groups and parameters in the order of ``groups``; nothing given is changed.

    Raises:
        ValueError: it is another optimizer's or a later version's, names differ, parameters are grouped in another
            way, or a state's shape does not fit.
    """
    check_structure(state_dict)
    _check_ours(state_dict["param_groups"])
    check_format(state_dict["param_groups"])
    matched = [_with_tuples(saved) for saved in match_groups(groups, state_dict["param_groups"])]
    pairs = enumerate(zip(groups, matched, strict=True))
    saved_groups = [completed(group, saved, number) for number, (group, saved) in pairs]
    for group, saved in zip(groups, saved_groups, strict=True):
        names = group.get("param_names") or [f"parameter {i}" for i in range(len(group["params"]))]
        for name, param, index in zip(names, group["params"], saved["params"], strict=True):
            check_saved({**group, **saved}, name, param, state_dict["state"].get(index, {}))
    return {**state_dict, "param_groups": saved_groups}


def layouts_of(group: Mapping[str, Any], param: Tensor) -> dict[str, Any]:
    """Fresh state whose placements what is loaded must have, for a distributed parameter; nothing for a plain one."""
    if not is_distributed(param):
        return {}
    rule = rules.get(group["rule"])
    options = {name: group.get(name, default) for name, default in rule.defaults.items()}
    wide = param.detach().to(torch.promote_types(param.dtype, torch.float32))
    return new_state(rule, wide, parse_view(group["view"]), options)


def placed(value: Any, param: Tensor, like: Any) -> Tensor:
    """A copy of ``value`` on the parameter's device, distributed as ``like`` is; plain where that is plain or None.

    What is distributed in another way is communicated, so all ranks must load together.

    Args:
        value: a tensor or DTensor of any device.
        param: the parameter whose state it is.
        like: state of the parameter with the placements that are wanted, a tensor, a DTensor or None.
    """
    value = value.detach()
    if like is None or not is_distributed(like):
        return whole(value).to(param.device, copy=True)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements
    if is_distributed(value):
        if value.device_mesh == mesh and tuple(value.placements) == tuple(placements):
            return value.to(param.device).clone()
        value = whole(value)
    # Every rank has all of it, so nothing is sent.
    return distribute_tensor(value.to(param.device), mesh, placements, src_data_rank=None)


def whole(value: Any) -> Tensor:
    """All of a DTensor, for which its ranks communicate; any other tensor itself."""
    return value.full_tensor() if is_distributed(value) else value


def is_distributed(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor; imports nothing to find out."""
    return type(tensor) is not Tensor and hasattr(tensor, "placements")


def _anywhere(moved: bool, params: list[Tensor]) -> bool:
    """Whether it is so on any rank that has shards of these parameters; replicas have the same gradients."""
    if not any(map(is_distributed, params)):
        return moved
    from orthoopt.distributed.agreement import code_of
    from orthoopt.distributed.teams import Team

    agreement = Team(params).agreement
    return moved if agreement is None else agreement.reach(code_of("create state"), moved, None).bad


def _check_ours(saved_groups: Iterable[Mapping[str, Any]]) -> None:
    for saved in saved_groups:
        if "rule" in saved:
            continue
        known = {"amsgrad": "torch.optim.AdamW", "adjust_lr_fn": "torch.optim.Muon"}
        origin = next((origin for key, origin in known.items() if key in saved), "another optimizer")
        raise ValueError(
            f"this state dict is of {origin}, its groups have no 'rule'; nothing was loaded. "
            "orthoopt.load_torch_state(optimizer, state_dict) takes over the state of torch.optim.AdamW and "
            "torch.optim.Muon"
        )


def _with_tuples(saved: dict[str, Any]) -> dict[str, Any]:
    """The group with its rule's options as tuples where ``torch.distributed.checkpoint`` made lists of them."""
    options = rules.get(saved["rule"]).defaults
    return {key: _as_tuple(value) if key in options else value for key, value in saved.items()}


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value

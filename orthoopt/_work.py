"""What one step has to do: the parameters of a group that have gradients, by device, checked before anything moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthoopt import rules
from orthoopt.kernels import Moving
from orthoopt.rules import Rule
from orthoopt.views import View, parse_view


class Work(NamedTuple):
    """One group's part of one step, on one device."""

    group: dict[str, Any]
    rule: Rule
    options: dict[str, Any]
    moving: Moving | None
    """How momenta move; None where the rule moves its state by itself."""
    view: View
    device: torch.device
    names: list[str]
    params: list[Tensor]
    grads: list[Tensor]
    states: list[dict[str, Any]] | None = None
    """Of parts of distributed parameters, this rank's parts of their state; None: the optimizer has it."""
    alike: bool = False
    """Whether all is as in the last step, but for values, and addresses of gradients; see :mod:`orthoopt.settled`."""


def collect(group: dict[str, Any], grads: Mapping[Tensor, Tensor]) -> Iterable[Work]:
    """The work of a group, a part a device.

    Args:
        group: the param group.
        grads: parameter -> gradient.

    Raises:
        RuntimeError: a sparse, complex, flattened or sharded parameter that its rule cannot take, by name.
    """
    rule = rules.get(group["rule"])
    view = parse_view(group["view"])
    names = group.get("param_names") or [f"parameter {i} of its group" for i in range(len(group["params"]))]
    parts: dict[torch.device, Work] = {}
    for name, param in zip(names, group["params"], strict=True):
        grad = grads.get(param)
        if grad is None:
            continue
        _check_gradient(name, param, grad, rule)
        if param.device not in parts:
            options = rule.options(group)
            parts[param.device] = Work(group, rule, options, rule.moving(options), view, param.device, [], [], [])
        part = parts[param.device]
        part.names.append(name)
        part.params.append(param)
        part.grads.append(grad)
    return parts.values()


def _check_gradient(name: str, param: Tensor, grad: Tensor, rule: Rule) -> None:
    complex_ = grad.dtype.is_complex or param.dtype.is_complex
    whole = type(param) is torch.nn.Parameter and (not rule.is_matrix or param.ndim >= 2)
    is_flat = param.ndim == 1 and getattr(param, "_is_flat_param", False)
    fits = grad.shape == param.shape and grad.device == param.device and grad.dtype.is_floating_point
    if whole and fits and not is_flat and type(grad) is Tensor and grad.layout is torch.strided and not complex_:
        return  # as nearly always
    if grad.is_sparse or grad.layout is not torch.strided:
        raise RuntimeError(f"orthoopt does not support sparse gradients; {name} has layout {grad.layout}")
    if complex_:
        raise RuntimeError(f"orthoopt does not support complex parameters; {name} is {param.dtype}")
    if is_flat:
        raise RuntimeError(
            f"{name} is a FlatParameter: FSDP1 makes one of many, and which is which cannot be seen. Shard the model "
            "with FSDP2 (torch.distributed.fsdp.fully_shard), or use DistributedDataParallel"
        )
    if not fits:
        raise RuntimeError(
            f"the gradient of {name} must be a floating point tensor of shape {tuple(param.shape)} on {param.device}, "
            f"got {grad.dtype}, shape {tuple(grad.shape)}, on {grad.device}"
        )
    if not rule.is_matrix:
        return
    if param.ndim < 2:
        raise RuntimeError(
            f"{name} has shape {tuple(param.shape)} but its rule {rule.name!r} needs whole matrices: it was flattened "
            "or sliced after the groups were made, as FSDP1 and ZeRO do. Shard the model with FSDP2 "
            "(torch.distributed.fsdp.fully_shard), which keeps parameters as they are, or use DistributedDataParallel"
        )

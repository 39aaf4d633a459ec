"""A small optimizer in the middle of its training, and whether something left it untouched."""

from __future__ import annotations

import copy
from typing import Any

import torch
from errors_page import is_listed
from torch import Tensor, nn

from orthoopt import OrthoOpt

SHAPES = {"wide": (4, 9), "tall": (9, 4), "stack": (3, 5, 2), "bias": (6,)}


class Training:
    """Three groups: two of one matrix rule, one of an elementwise rule; two steps taken."""

    def __init__(self, rule: str, vector: str = "adamw", steps: int = 2, **options: Any) -> None:
        source = torch.Generator().manual_seed(0)
        self.params = {name: nn.Parameter(torch.randn(shape, generator=source)) for name, shape in SHAPES.items()}
        self.optimizer = OrthoOpt(self.groups(rule, vector), lr=0.01, **options)
        for step in range(steps):
            self.set_gradients(step)
            self.optimizer.step()
        self.set_gradients(steps)

    def groups(self, rule: str, vector: str = "adamw") -> list[dict[str, Any]]:
        named = list(self.params.items())
        return [
            {"params": named[:2], "rule": rule},
            {"params": named[2:3], "rule": rule, "lr": 0.003, "weight_decay": 0.0},
            {"params": named[3:], "rule": vector},
        ]

    def set_gradients(self, step: int) -> None:
        source = torch.Generator().manual_seed(100 + step)
        for param in self.params.values():
            param.grad = torch.randn(param.shape, generator=source).to(param)

    def all_bits(self) -> list[Any]:
        """Everything a step or a load may change, as it is now."""
        groups = [
            {key: value for key, value in group.items() if key not in ("params", "param_names")}
            for group in self.optimizer.param_groups
        ]
        found: list[Any] = [[(k, type(v), repr(v)) for k, v in sorted(group.items())] for group in groups]
        found.append([[id(param) for param in group["params"]] for group in self.optimizer.param_groups])
        for name, param in self.params.items():
            state = self.optimizer.state.get(param, {})
            found.append([name, bits(param), *((key, bits(state[key])) for key in sorted(state))])
        return found


def bits(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return repr(value)
    kind = (value.dtype, tuple(value.shape), value.device.type, value.layout)
    if value.is_meta or value.layout is not torch.strided:
        return kind
    dense = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())  # strides of 0 have no bytes to view
    return (*kind, dense.reshape(-1).view(torch.uint8).tolist())


def happens(training: Training, act: Any, name: str) -> bool:
    """Whether ``act()`` goes through; if not, its error is on the list and has ``name`` in it, and nothing changed."""
    before = training.all_bits()
    try:
        act()
    except Exception as error:
        assert is_listed(error), f"not in docs/errors.md: {type(error).__name__}: {error}"
        assert name in str(error), f"{name!r} is not named: {error}"
        assert training.all_bits() == before, f"something moved before: {error}"
        return False
    return True


def fresh(training: Training) -> Training:
    """Another training with the same parameters, gradients, groups and state, built from the outside."""
    twin = copy.copy(training)
    twin.params = {name: nn.Parameter(param.detach().clone()) for name, param in training.params.items()}
    groups = []
    for group in training.optimizer.param_groups:
        names = group["param_names"]
        values = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        groups.append({**copy.deepcopy(values), "params": [(name, twin.params[name]) for name in names]})
    twin.optimizer = OrthoOpt(groups)
    for name, param in training.params.items():
        if param.grad is not None:
            grad = param.grad.detach()
            twin.params[name].grad = (grad.to_dense() if grad.is_sparse else grad).clone().contiguous()
        state = training.optimizer.state.get(param, {})
        if state:
            kept = {
                k: v.clone().contiguous() if isinstance(v, Tensor) and v.layout is torch.strided else v
                for k, v in state.items()
            }
            twin.optimizer.state[twin.params[name]] = kept
    return twin


def steps_equally(training: Training, twin: Training, exactly: bool = True) -> None:
    """Both take a step, and have the same parameters and state then."""
    training.optimizer.step()
    twin.optimizer.step()
    for name, param in training.params.items():
        other = twin.params[name]
        if exactly:
            assert bits(param) == bits(other), name
        else:
            torch.testing.assert_close(param, other, atol=1e-5, rtol=1e-5)

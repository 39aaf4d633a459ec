"""Small optimizers over every rule, for tests that must hold for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from orthoopt import OrthoOpt, rules

SHAPES = {"wide": (4, 9), "tall": (9, 4), "wide_too": (4, 9), "stack": (3, 5, 2), "one": (1, 1)}


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, nn.Parameter]:
    source = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=source).to(dtype)) for name, shape in SHAPES.items()}


def groups_of(rule: str, params: dict[str, nn.Parameter], **options: Any) -> list[dict[str, Any]]:
    """Two groups of one rule, with different learning rates."""
    pairs = list(params.items())
    return [
        {"params": pairs[:2], "rule": rule, **options},
        {"params": pairs[2:], "rule": rule, "lr": 0.003, "weight_decay": 0.0, **options},
    ]


def optimizer_of(rule: str, params: dict[str, nn.Parameter], **options: Any) -> OrthoOpt:
    return OrthoOpt(groups_of(rule, params), lr=0.01, weight_decay=0.1, **options)


def set_gradients(params: dict[str, nn.Parameter], step: int, scale: float = 1.0) -> None:
    source = torch.Generator().manual_seed(1000 + step)
    for param in params.values():
        param.grad = (scale * torch.randn(param.shape, generator=source)).to(param.device, param.dtype)


def run(optimizer: OrthoOpt, params: dict[str, nn.Parameter], first: int, last: int) -> None:
    for step in range(first, last):
        set_gradients(params, step)
        optimizer.step()


def snapshot(optimizer: OrthoOpt) -> list[Tensor]:
    """Copies of every parameter and every state tensor, in order."""
    tensors = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            tensors.append(param.detach().clone())
            state = optimizer.state.get(param, {})
            tensors += [state[key].clone() for key in sorted(state) if isinstance(state[key], Tensor)]
    return tensors


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    """The same number of tensors, of the same dtypes, with the same bits."""
    return len(left) == len(right) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(left, right, strict=True)
    )


ALL_RULES = rules.names()
MATRIX_RULES = [name for name in ALL_RULES if rules.get(name).is_matrix]


def regression_losses(build: Callable[[Iterable[nn.Parameter]], Optimizer]) -> list[float]:
    """Losses of sixty steps of a small network, whose bare parameters are handed to ``build``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer = build(model.parameters())
    x, y = torch.randn(64, 8), torch.randn(64, 4)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses

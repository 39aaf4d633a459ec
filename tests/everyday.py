"""A small model that trains to the same bits every time, for tests of everyday situations."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from orthoopt import OrthoOpt, param_groups


class Tower(nn.Module):
    """Two hidden matrices that transpose into one stack, norms, biases and a head."""

    def __init__(
        self, dtype: torch.dtype = torch.float32, width: int = 10, seed: int = 0, square: bool = False
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inner = width if square else 6
            self.stem = nn.Linear(6, inner)
            self.first = nn.Linear(inner, width)
            self.middle = nn.Linear(width, inner)
            self.norm = nn.LayerNorm(inner)
            self.head = nn.Linear(inner, 3)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.middle(torch.tanh(self.first(self.stem(x)))))
        return self.head(x)

    def loss(self, step: int, forward: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        return (forward or self)(x.to(self.head.weight.dtype)).square().mean()


def optimizer_of(model: nn.Module, plan: str) -> OrthoOpt:
    return OrthoOpt(param_groups(model, plan, lr=0.01), lr=0.01)


def train(model: nn.Module, optimizer: OrthoOpt, steps: int, first: int = 0, set_to_none: bool = True) -> None:
    """Steps with gradients out of a generator: a product's last bits depend on where its operands lie in memory."""
    for step in range(first, first + steps):
        source = torch.Generator().manual_seed(step)
        optimizer.zero_grad(set_to_none)
        for param in model.parameters():
            drawn = torch.randn(param.shape, generator=source, dtype=torch.float32).to(param.dtype)
            if not param.requires_grad:
                continue
            if param.grad is None:
                param.grad = drawn
            else:
                param.grad.add_(drawn)
        optimizer.step()
    optimizer.zero_grad(set_to_none)


def train_backwards(
    model: Any, optimizer: OrthoOpt, steps: int, first: int = 0, forward: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Steps with the gradients of ``model.loss``."""
    for step in range(first, first + steps):
        optimizer.zero_grad()
        model.loss(step, forward).backward()
        optimizer.step()
    optimizer.zero_grad()


def assert_near(one: nn.Module, other: nn.Module) -> None:
    """Trained in float64 to the same weights: sums in another order, times the slopes of AdamW and the iterations."""
    for name, param in one.named_parameters():
        torch.testing.assert_close(other.get_parameter(name), param, atol=1e-9, rtol=1e-9)


def everything(optimizer: OrthoOpt, param: Tensor) -> list[Any]:
    """The bits of a parameter and of its state."""
    state = optimizer.state.get(param, {})
    return [param.detach().tolist(), *((key, value.tolist()) for key, value in sorted(state.items()))]


def same(one: OrthoOpt, other: OrthoOpt) -> bool:
    """Whether parameters and state have the same bits."""
    return [everything(one, p) for p in one.all_params] == [everything(other, p) for p in other.all_params]


def step_in_a_child(pipe: Connection, given: Any) -> None:
    torch.set_num_threads(1)
    model, optimizer = given
    train(model, optimizer, 3, first=2)
    pipe.send([param.detach().tolist() for param in model.parameters()])
    pipe.close()

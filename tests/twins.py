"""Twins: one network stored in two layouts. Whatever trains the one must train the other to the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from strategies import generator, relative_error
from torch import Tensor, nn

from orthoopt import OrthoOpt, param_groups, plans, rules
from orthoopt.dispatch import assign
from orthoopt.views import parse_view

Tensors = Mapping[str, Tensor]
VOCABULARY, STEPS = 96, 10
PLANS = plans.names()
# Scion's radii go with a learning rate near 2^-12: larger ones make training magnify every rounding.
RATES = {"scion": 2.0**-12}


class Twins(NamedTuple):
    """Two models and what makes the second's tensors, by name, out of the first's."""

    first: nn.Module
    second: nn.Module
    stored_anew: Callable[[Tensors], dict[str, Tensor]]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: param.detach() for name, param in model.named_parameters()}


def made_equal(twins: Twins, dtype: torch.dtype = torch.float64, seed: int = 0) -> Twins:
    """The second takes the first's weights, which are drawn anew: vectors would else be ones and zeros."""
    source = generator(seed)
    twins.first.to(dtype)
    twins.second.to(dtype)
    with torch.no_grad():
        for name, param in twins.first.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            param.copy_(centre + 0.2 * torch.randn(param.shape, generator=source, dtype=torch.float64))
        stored = twins.stored_anew(weights(twins.first))
        assert stored.keys() == weights(twins.second).keys()
        for name, value in stored.items():
            twins.second.get_parameter(name).copy_(value)
    return twins


def batches(steps: int = STEPS) -> Tensor:
    """Tokens, ``(steps, 4, 13)``: enough for gradients of full rank at a width of 32."""
    return torch.randint(0, VOCABULARY, (steps, 4, 13), generator=generator(7))


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens[:, :-1])
    logits = getattr(logits, "logits", logits)
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def optimizer_of(model: nn.Module, plan: str) -> OrthoOpt:
    return OrthoOpt(param_groups(model, plan, lr=RATES.get(plan, 0.01), weight_decay=0.1))


def stepped(twins: Twins, plan: str, tokens: Tensor) -> float:
    """The optimizers alone: both get the first's gradients. How far apart their weights end, the worst tensor's."""
    before = {name: value.clone() for name, value in weights(twins.second).items()}
    first, second = (optimizer_of(model, plan) for model in twins[:2])
    for batch in tokens:
        first.zero_grad()
        loss(twins.first, batch).backward()
        gradients = {name: param.grad for name, param in twins.first.named_parameters() if param.grad is not None}
        for name, value in twins.stored_anew(gradients).items():
            twins.second.get_parameter(name).grad = value.clone()
        first.step()
        second.step()
    return distance(twins, before)


def everything(name: str, value: Tensor) -> Tensor:
    return value


def trained(twins: Twins, plan: str, tokens: Tensor, seen: Callable[[str, Tensor], Tensor] = everything) -> float:
    """Training: each computes its own gradients. How far apart the weights end, the worst tensor's.

    ``seen`` is what of a tensor of the second is compared.
    """
    before = {name: value.clone() for name, value in weights(twins.second).items()}
    for model in twins[:2]:
        optimizer = optimizer_of(model, plan)
        for batch in tokens:
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    return distance(twins, before, seen)


def distance(twins: Twins, before: Tensors, seen: Callable[[str, Tensor], Tensor] = everything) -> float:
    """‖difference‖/‖weights‖ of the worst tensor; every tensor must have moved."""
    expected, actual = twins.stored_anew(weights(twins.first)), weights(twins.second)
    assert all(not torch.equal(actual[name], value) for name, value in before.items())
    return max(relative_error(seen(name, actual[name]), seen(name, value)) for name, value in expected.items())


def matrices(model: nn.Module, plan: Any) -> list[tuple[str, str, tuple[int, ...]]]:
    """Role, rule and logical shape of every matrix of a model, however it is stored; sorted."""
    found = []
    for item in assign(model, plan):
        if rules.get(item.group["rule"]).is_matrix:
            for shape in parse_view(item.view).piece_shapes(tuple(item.param.shape)):
                count = torch.Size(shape[:-2]).numel()
                found += [(item.role, item.group["rule"], shape[-2:])] * count
    return sorted(found)


def check_computation(twins: Twins) -> None:
    """Both compute the same loss."""
    pair = made_equal(twins)
    tokens = batches()[0]
    torch.testing.assert_close(loss(pair.second, tokens), loss(pair.first, tokens), rtol=1e-13, atol=0)  # summation


def check_matrices(twins: Twins, plan: str) -> None:
    """Both have the same matrices in the same roles."""
    assert matrices(twins.first, plan) == matrices(twins.second, plan)


def check_steps(twins: Twins, plan: str, dtype: torch.dtype) -> None:
    """The same gradients move both alike.

    Elementwise arithmetic does not see how elements lie. Sums and products over a strided or a batched matrix may be
    ordered otherwise than over one of its own, a last bit that the slope of five Newton-Schulz steps, 500, magnifies.
    """
    error = stepped(made_equal(twins, dtype), plan, batches(4))
    assert error <= (0 if plan == "adamw" else 1e3 * torch.finfo(dtype).eps)

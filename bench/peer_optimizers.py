"""Other optimizers as arms of a training comparison: torch's, and those of packages from PyPI, as their users run them.

Each function is what `orthoopt pretrain --optimizer orthoopt.bench.peer_optimizers:NAME` calls. Parameters are told
apart as a plan of ours would: hidden matrices go to the method where it takes their shape, everything else to AdamW at
the same learning rate; vectors are not decayed. What iterates in bfloat16 does so in float32 on a CPU that has no
bfloat16 in hardware, where it would take many times as long.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from orthoopt import roles
from orthoopt.bench.definitions import MOMENTUM, NS_COEFFICIENTS, NS_STEPS
from orthoopt.bench.machine import bfloat16_in_hardware
from orthoopt.bench.peers import pytorch_optimizer_in_float32
from orthoopt.bench.variants import without_bfloat16

BETAS = (0.9, 0.95)
_NOT_HIDDEN = ("embedding", "tied_embedding", "lm_head", "router", "vector", "unknown", "conv")


class Peer(NamedTuple):
    """An arm's optimizer."""

    function: str
    """Its name here."""
    like: str
    """The plan of ours whose learning rates it has, more or less."""


PEERS = {
    "torch.optim.AdamW": Peer("torch_adamw", "adamw"),
    "torch.optim.Muon": Peer("torch_muon", "muon"),
    "pytorch_optimizer.Muon": Peer("pytorch_optimizer_muon", "muon"),
    "pytorch_optimizer.SOAP": Peer("pytorch_optimizer_soap", "adamw"),
}
"""An arm's name -> its optimizer."""

Groups = list[dict[str, Any]]


def torch_adamw(
    model: nn.Module, *, lr: float, weight_decay: float, embedding_lr_multiplier: float = 1.0, fused: bool = True
) -> Optimizer:
    """`torch.optim.AdamW`."""
    _, others = split(model, lr, weight_decay, embedding_lr_multiplier, hidden=lambda parameter: False)
    return torch.optim.AdamW(others, lr=lr, betas=BETAS, fused=fused)


def torch_muon(model: nn.Module, *, lr: float, weight_decay: float, embedding_lr_multiplier: float = 1.0) -> Optimizer:
    """`torch.optim.Muon` on hidden matrices, which must be 2-D: stacks of experts go to AdamW."""
    hidden, others = split(model, lr, weight_decay, embedding_lr_multiplier, hidden=lambda p: p.ndim == 2)
    muon = torch.optim.Muon(hidden, lr=lr, weight_decay=weight_decay, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=lr, betas=BETAS, fused=True)
    return Together(muon, adamw, around=_around(model, without_bfloat16))


def pytorch_optimizer_muon(
    model: nn.Module, *, lr: float, weight_decay: float, embedding_lr_multiplier: float = 1.0
) -> Optimizer:
    """`pytorch_optimizer.Muon`, which has AdamW for the rest built in; a stack of experts is one matrix to it."""
    package = importlib.import_module("pytorch_optimizer")
    hidden, others = split(model, lr, weight_decay, embedding_lr_multiplier, hidden=lambda p: p.ndim >= 2)
    rest = [{"use_muon": False, "betas": BETAS, "eps": 1e-8, **group} for group in others]
    muon = package.Muon(
        [*({"use_muon": True, **group} for group in hidden), *rest],
        lr=lr, momentum=MOMENTUM, weight_decay=weight_decay,
        ns_steps=NS_STEPS, ns_coeffs=[NS_COEFFICIENTS], use_adjusted_lr=True,
    )  # fmt: skip
    return Together(muon, around=_around(model, pytorch_optimizer_in_float32))


def pytorch_optimizer_soap(
    model: nn.Module, *, lr: float, weight_decay: float, embedding_lr_multiplier: float = 1.0
) -> Optimizer:
    """`pytorch_optimizer.SOAP` on hidden matrices with its own defaults; AdamW on the rest."""
    package = importlib.import_module("pytorch_optimizer")
    hidden, others = split(model, lr, weight_decay, embedding_lr_multiplier, hidden=lambda p: p.ndim == 2)
    soap = package.SOAP(hidden, lr=lr, betas=(0.95, 0.95), weight_decay=weight_decay)
    return Together(soap, torch.optim.AdamW(others, lr=lr, betas=BETAS, fused=True))


def split(
    model: nn.Module, lr: float, weight_decay: float, embedding: float, *, hidden: Callable[[nn.Parameter], bool]
) -> tuple[Groups, Groups]:
    """Groups of hidden matrices that the method takes, and of all other parameters.

    Args:
        model: its trainable parameters are told apart by `orthoopt.roles`.
        lr: of every group but the embedding's.
        weight_decay: of every group but the vectors'.
        embedding: multiplier of the learning rate of an untied embedding.
        hidden: whether the method takes a hidden parameter of this shape.
    """
    named = dict(model.named_parameters())
    matrices: list[nn.Parameter] = []
    rest: dict[str, list[nn.Parameter]] = {"embedding": [], "vector": [], "other": []}
    for item in roles(model):
        parameter = named[item.name]
        if not parameter.requires_grad:
            continue
        if item.role not in _NOT_HIDDEN and hidden(parameter):
            matrices.append(parameter)
        else:
            rest[item.role if item.role in rest else "other"].append(parameter)
    rates = {"embedding": lr * embedding, "vector": lr, "other": lr}
    decays = {"embedding": weight_decay, "vector": 0.0, "other": weight_decay}
    others = [
        {"params": parameters, "lr": rates[kind], "weight_decay": decays[kind], "role": kind}
        for kind, parameters in rest.items()
        if parameters
    ]
    return (
        [{"params": matrices, "lr": lr, "weight_decay": weight_decay, "role": "hidden"}] if matrices else []
    ), others


class Together(Optimizer):
    """Several optimizers as one: a step steps each, and the groups are theirs, so schedulers reach them.

    Args:
        parts: they share no parameter.
        around: makes the context that a step runs in.
    """

    def __init__(self, *parts: Optimizer, around: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        self.parts, self.around = parts, around
        super().__init__([dict(group) for part in parts for group in part.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """Let this object's groups be the parts' own, which their steps read."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch's types also return a loss
        """Step each."""
        if closure is not None:
            raise ValueError("several optimizers cannot share a closure")
        with self.around():
            for part in self.parts:
                part.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of each, in their order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of each."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def _around(model: nn.Module, in_float32: Callable[[], AbstractContextManager[Any]]) -> Any:
    """The context of a step: ``in_float32`` on a CPU that multiplies bfloat16 in software."""
    fast = bfloat16_in_hardware() or next(model.parameters()).device.type != "cpu"
    return nullcontext if fast else in_float32

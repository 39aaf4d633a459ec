"""What the ranks of test_dcp.py run: a small network trained, saved by torch.distributed.checkpoint, and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import orthoopt
from orthoopt import OrthoOpt

VOCABULARY, WIDTH, EXPERTS = 13, 6, 3
BEFORE, AFTER = 3, 10
WAYS: list[dict[str, Any]] = [
    {"flatten_optimizer_state_dict": True},
    {"flatten_optimizer_state_dict": False},
    {"full_state_dict": True},
]
"""Of asking ``torch.distributed.checkpoint`` for state."""


class Experts(nn.Module):
    """A dense mixture of stacked experts, gate and up fused, as transformers stores them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, 10, WIDTH) / 3)
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, WIDTH, 5) / 3)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = torch.einsum("eof,bf->beo", self.gate_up_proj, x).chunk(2, -1)
        return torch.einsum("efo,beo->bf", self.down_proj, gate.sigmoid() * up)


class Network(nn.Module):
    """Every kind of role: an embedding, fused projections, a matrix with fewer rows than ranks, experts, vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.qkv_proj = nn.Linear(WIDTH, 3 * WIDTH)
        self.up_proj = nn.Linear(3 * WIDTH, 3)
        self.down_proj = nn.Linear(3, WIDTH)
        self.experts = Experts()
        self.norm = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        x = x + self.down_proj(self.up_proj(self.qkv_proj(x).tanh()).tanh())
        return self.lm_head(self.norm(x + self.experts(x)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return Network()


def wrapped(kind: str, mesh: Any = None) -> nn.Module:
    """The network ``"plain"``, in ``"ddp"``, or ``"fsdp"`` over all ranks."""
    model = network()
    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "fsdp":
        fully_shard(model, mesh=mesh or init_device_mesh("cpu", (dist.get_world_size(),)))
    return model


def optimizer_of(model: nn.Module, plan: str) -> OrthoOpt:
    # Scion's balls are of radius 50 and 3000: at AdamW's rate the network would be thrown about.
    return OrthoOpt(orthoopt.param_groups(model, plan, lr=1e-4 if plan == "scion" else 0.02, weight_decay=0.1))


def train(model: nn.Module, optimizer: OrthoOpt, first: int, last: int) -> None:
    for step in range(first, last):
        optimizer.zero_grad()
        tokens = torch.randint(VOCABULARY, (8,), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, -2), (tokens * 5 + 1) % VOCABULARY)
        loss.backward()
        optimizer.step()


def whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Whole copies, by their names without wrappers."""
    return {name.removeprefix("module."): whole(param.detach()).clone() for name, param in model.named_parameters()}


def state_of(model: nn.Module, optimizer: OrthoOpt) -> dict[str, Tensor]:
    """Whole copies of every state tensor, ``name/key``."""
    found = {}
    for name, param in model.named_parameters():
        for key, value in sorted(optimizer.state.get(param, {}).items()):
            found[f"{name.removeprefix('module.')}/{key}"] = whole(value).clone()
    return found


def contents(model: nn.Module, optimizer: OrthoOpt, **options: Any) -> dict[str, Any]:
    weights, state = get_state_dict(model, optimizer, options=StateDictOptions(**options))
    return {"model": weights, "optimizer": state}


def set_contents(model: nn.Module, optimizer: OrthoOpt, found: dict[str, Any], **options: Any) -> None:
    set_state_dict(
        model,
        optimizer,
        model_state_dict=found["model"],
        optim_state_dict=found["optimizer"],
        options=StateDictOptions(**options),
    )


def save(folder: str, plans: list[str], kind: str, how: list[dict[str, Any]]) -> dict[str, Any]:
    """Train, save once for every way in ``how``, and go on; what there was at the save and at the end."""
    results: dict[str, Any] = {}
    for plan in plans:
        model = wrapped(kind)
        optimizer = optimizer_of(model, plan)
        train(model, optimizer, 0, BEFORE)
        for number, options in ((WAYS.index(one), one) for one in how):
            path = Path(folder, f"{plan}-{number}")
            dcp.save(contents(model, optimizer, **options), checkpoint_id=path)
        middle = state_of(model, optimizer)
        train(model, optimizer, BEFORE, BEFORE + AFTER)
        results[plan] = middle, parameters_of(model), state_of(model, optimizer)
    return results


def resume(folder: str, plans: list[str], kind: str, how: list[dict[str, Any]]) -> dict[str, Any]:
    """Load what :func:`save` saved, each way, into a fresh optimizer, and go on; the same things."""
    results: dict[str, Any] = {}
    for plan in plans:
        for number, options in ((WAYS.index(one), one) for one in how):
            model = wrapped(kind)
            with torch.no_grad():
                for param in model.parameters():
                    param.mul_(0.5)  # nothing of the fresh network may be in the result
            optimizer = OrthoOpt(orthoopt.param_groups(model, plan, lr=0.5, weight_decay=0.3))
            found = contents(model, optimizer, **options)
            dcp.load(found, checkpoint_id=Path(folder, f"{plan}-{number}"))
            set_contents(model, optimizer, found, **options)
            middle = state_of(model, optimizer)
            train(model, optimizer, BEFORE, BEFORE + AFTER)
            results[f"{plan}-{number}"] = middle, parameters_of(model), state_of(model, optimizer)
    return results

"""What the ranks of test_dcp.py run: a small network trained, saved by torch.distributed.checkpoint, and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import orthoopt
from orthoopt import OrthoOpt, state_files

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


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Steps with gradients that are given, not computed.

    Torch's products round by where their operands lie, and DDP lays its buckets anew after the first backward pass, so
    the gradients of a resumed run need not have the bits of those before.
    """
    for step in range(first, last):
        source = torch.Generator().manual_seed(step)
        for param in model.parameters():
            grad = torch.randn(param.shape, generator=source, dtype=torch.float32).to(param.dtype)
            if isinstance(param, DTensor):
                grad = distribute_tensor(grad, param.device_mesh, param.placements, src_data_rank=None)
            param.grad = grad if param.requires_grad else None
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


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], what: str) -> None:
    assert one.keys() == other.keys() and one, what
    for key, value in one.items():
        assert value.dtype == other[key].dtype and torch.equal(value, other[key]), (what, key)


def shards_take_state_from_everywhere(folder: str, plans: list[str]) -> None:
    """State of one process, of a file, and of sharded bfloat16 parameters: each rank has its part, bit by bit."""
    for plan in plans:
        alone = network().bfloat16()
        single = optimizer_of(alone, plan)
        train(alone, single, 0, BEFORE)
        expected = state_of(alone, single)

        def sharded(plan: str = plan) -> tuple[nn.Module, OrthoOpt]:
            model = network().bfloat16()
            fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
            return model, optimizer_of(model, plan)

        model, optimizer = sharded()
        fresh = parameters_of(model)
        get_optimizer_state_dict(model, optimizer)  # DCP's step with zero gradients
        assert_same(fresh, parameters_of(model), f"{plan}: asked for state")
        layouts = layouts_of(model, optimizer)
        optimizer.load_state_dict(single.state_dict())
        assert_same(expected, state_of(model, optimizer), f"{plan}: state of one process")
        assert layouts == layouts_of(model, optimizer), plan

        path = Path(folder, f"{plan}.safetensors")
        state_files.save_state(optimizer, path)
        dist.barrier()
        train(model, optimizer, BEFORE, BEFORE + 1)
        state_files.load_state(optimizer, path)
        assert_same(expected, state_of(model, optimizer), f"{plan}: a file")
        assert layouts == layouts_of(model, optimizer), plan

        for way in WAYS:
            options = StateDictOptions(**way)
            found = get_optimizer_state_dict(model, optimizer, options=options)
            other, resumed = sharded()
            set_optimizer_state_dict(other, resumed, found, options=options)
            assert_same(expected, state_of(other, resumed), f"{plan}: {way}")
            assert layouts == layouts_of(other, resumed), plan


def shards_of_torchs_adamw_are_taken_over_and_given_back() -> None:
    """A sharded run switches over and back without a tensor being gathered, and is what it would have been."""
    straight, model = wrapped("fsdp"), wrapped("fsdp")
    options = {"lr": 0.02, "betas": (0.9, 0.95), "weight_decay": 0.0}
    never, before = (torch.optim.AdamW(one.named_parameters(), **options) for one in (straight, model))
    train(straight, never, 0, 6)
    train(model, before, 0, 2)
    optimizer = OrthoOpt(orthoopt.param_groups(model, "adamw", lr=0.02, weight_decay=0.0))
    report = orthoopt.load_torch_state(optimizer, before.state_dict())
    assert {carried.how for carried in report} == {"exact"}, report
    train(model, optimizer, 2, 4)
    after = torch.optim.AdamW(model.named_parameters(), **options)
    after.load_state_dict(orthoopt.to_torch_state(optimizer, after))
    train(model, after, 4, 6)
    for (name, param), other in zip(straight.named_parameters(), model.parameters(), strict=True):
        # torch's loop and ours may differ in the last bit of a quotient; ten bits of float32 are left.
        torch.testing.assert_close(whole(param), whole(other), atol=1e-6, rtol=1e-5, msg=name)


def layouts_of(model: nn.Module, optimizer: OrthoOpt) -> dict[str, Any]:
    """How each state tensor lies: its placements, or its shape where it is whole on every rank."""
    return {
        f"{name}/{key}": tuple(map(str, getattr(value, "placements", value.shape)))
        for name, param in model.named_parameters()
        for key, value in optimizer.state[param].items()
    }

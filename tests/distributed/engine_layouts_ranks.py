"""What the ranks of test_engine_layouts.py run: meshes of two dimensions, tensor parallelism, experts; and the wire."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from engine_models import Model, Spec, gradients, optimizer_of
from engine_ranks import assert_equal_on_all, shard, take_steps, trained, trained_alone
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode

from orthoopt import OrthoOpt, param_groups
from orthoopt.distributed import bytes_per_step

MIXED = [
    Spec("hidden", "matrix", (6, 10)),
    Spec("hidden", "matrix", (7, 5)),
    Spec("attention", "split(4,2,2)", (8, 6)),
    Spec("attention", "transpose split(4,4,4)", (6, 12)),
    Spec("expert_in", "matrix", (4, 6, 4)),
    Spec("embedding", "matrix", (9, 4)),
    Spec("vector", "vector", (6,)),
]


class Wire(TorchDispatchMode):
    """Counts collectives, and the bytes that they take to other ranks, as c10d is asked for them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # DTensor then calls what it is made of, and that is seen
        space, name = func._schema.name.split("::")
        if space in ("c10d", "_c10d_functional") and not name.startswith("wait"):
            self.calls[name] += 1
            self.bytes[name] += self._sent(name, args)
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _sent(name: str, args: tuple[Any, ...]) -> int:
        if name == "alltoall_base_":
            _, sent, _, _, splits = args[:5]
            return (sum(splits) - splits[dist.get_rank()]) * sent.element_size()
        tensors = args[0] if isinstance(args[0], list) else [args[0]]
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))


def by_placements(
    model: nn.Module, mesh: DeviceMesh, placements: Callable[[Spec], list[Any]], specs: list[Spec]
) -> nn.Module:
    for (name, param), spec in zip(list(model.named_parameters()), specs, strict=True):
        spread = distribute_tensor(param.detach(), mesh, placements(spec), src_data_rank=None)
        setattr(model, name, nn.Parameter(spread))
    return model


def meshes_of_two_dimensions(plans: Sequence[str]) -> None:
    """HSDP, tensor parallelism along either side, both, expert parallelism with shards inside."""
    flat, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    ways: dict[str, tuple[DeviceMesh, Callable[[Spec], list[Any]]]] = {
        "HSDP": (square, lambda spec: [Replicate(), Shard(0)]),
        "columns": (flat, lambda spec: [Shard(len(spec.shape) - 1)]),
        "rows and columns": (square, lambda spec: [Shard(0), Shard(len(spec.shape) - 1)]),
        "twice the same": (square, lambda spec: [Shard(0), Shard(0)]),
        "inside experts": (square, lambda spec: [Shard(0), Shard(min(1, len(spec.shape) - 1))]),
        "replicas": (square, lambda spec: [Replicate(), Replicate()]),
    }
    for plan in plans:
        alone = trained_alone(MIXED, plan)
        for way, (mesh, placements) in ways.items():
            model = trained(by_placements(Model(MIXED), mesh, placements, MIXED), MIXED, plan)
            assert_equal_on_all(model, alone, (plan, way))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


BLOCK = [Spec("mlp_in", "matrix", (12, 8)), Spec("vector", "vector", (12,))] + [
    Spec("mlp_out", "matrix", (8, 12)),
    Spec("vector", "vector", (8,)),
]


def tensor_parallel_with_fsdp2() -> None:
    """What torch's own parallel styles and fully_shard make of a model, strided shards included; real gradients."""
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))

    def made() -> nn.Module:
        torch.manual_seed(0)
        return Block()

    for two in (False, True):
        model, alone = made(), made()
        mesh = square["model"]
        parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
        if two:
            fully_shard(model, mesh=square["data"])
        several, one = (OrthoOpt(param_groups(m, "muon", lr=0.02)) for m in (model, alone))
        for _ in range(3):
            for network, optimizer in ((model, several), (alone, one)):
                optimizer.zero_grad()
                (network(x) - x).square().sum().backward()
                optimizer.step()
        # The passes of the model round differently, and the iteration magnifies that, by up to 500 in weak directions.
        assert_equal_on_all(model, alone, two, close=1e-4)


def large() -> list[Spec]:
    return [Spec("mlp_in", "matrix", (64, 48))] * 4 + [Spec("mlp_out", "matrix", (48, 64))] * 4


def bytes_are_as_stated() -> list[dict[str, Any]]:
    """Of one step: what was sent, what the function says, and the collectives beside those of torch's Muon."""
    found = []
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    experts = [Spec("expert_in", "matrix", (8, 6, 4)), Spec("expert_out", "transpose", (8, 4, 6))]
    for name, described, plan in (
        ("even", large(), "muon"),
        ("mixed", MIXED, "muon"),
        ("state", MIXED, "dct_adamw"),
        ("linear", MIXED, "auon"),
        ("experts", experts, "muon"),
    ):
        model = shard(Model(described), mesh)
        optimizer = optimizer_of(model, described, plan)
        take_steps(optimizer, model, described, 0, 1)
        stated = bytes_per_step(optimizer)
        with Wire() as wire:
            optimizer.step()
        found.append({"name": name, "stated": stated._asdict(), "calls": dict(wire.calls), "bytes": dict(wire.bytes)})
    model = nn.ParameterList([p for p in shard(Model(large()), mesh).parameters()])
    theirs = torch.optim.Muon(model.parameters())
    for param, gradient in zip(model.parameters(), gradients(large(), 0), strict=True):
        assert isinstance(param, DTensor)
        param.grad = distribute_tensor(gradient, mesh, param.placements, src_data_rank=None)
    with Wire() as wire:
        theirs.step()
    found.append({"name": "torch", "calls": dict(wire.calls), "bytes": dict(wire.bytes)})
    replicas = nn.parallel.DistributedDataParallel(Model(large()))
    optimizer = optimizer_of(replicas.module, large(), "muon")
    take_steps(optimizer, replicas.module, large(), 0, 1)
    stated = bytes_per_step(optimizer)
    with Wire() as wire:
        optimizer.step()
    found.append({"name": "ddp", "stated": stated._asdict(), "calls": dict(wire.calls), "bytes": dict(wire.bytes)})
    return found

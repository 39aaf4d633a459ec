"""What the ranks of test_sharing.py run."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import orthoopt
from orthoopt import OrthoOpt, param_groups


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 8), nn.LayerNorm(8))


def batch(step: int) -> torch.Tensor:
    return torch.randint(16, (8,), generator=torch.Generator().manual_seed(step))


def loss_of(network: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return (network(tokens) * torch.linspace(-1, 1, 8)).square().mean()


def alone(plan: str) -> dict[str, torch.Tensor]:
    network = model()
    optimizer = OrthoOpt(param_groups(network, plan, lr=0.02))
    for step in range(4):
        optimizer.zero_grad()
        loss_of(network, batch(step)).backward()
        optimizer.step()
    return dict(network.state_dict())


def ddp_equals_one_process() -> None:
    """Averaged gradients of half batches are the gradient of the whole: the same parameters, on every rank."""
    rank, size = dist.get_rank(), dist.get_world_size()
    for plan in orthoopt.plans.names():
        network = DistributedDataParallel(model())
        optimizer = OrthoOpt(param_groups(network, plan, lr=0.02))
        for step in range(4):
            optimizer.zero_grad()
            loss_of(network, batch(step).chunk(size)[rank]).backward()
            optimizer.step()
        for name, expected in alone(plan).items():
            # float32 sums of another order, magnified by AdamW's division and by the iteration in weak directions.
            torch.testing.assert_close(network.module.state_dict()[name], expected, atol=2e-5, rtol=2e-4)


def a_bad_gradient_on_one_rank_skips_on_every_rank() -> None:
    """Under FSDP2 one rank alone may hold the NaN; all must skip, or the shards of one step would disagree."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    network = model()
    fully_shard(network, mesh=mesh)
    optimizer = OrthoOpt(param_groups(network, "adamw", lr=0.02))
    loss_of(network, batch(0)).backward()
    if dist.get_rank() == 1:
        gradient = network[1].weight.grad
        assert gradient is not None
        gradient.to_local()[0, 0] = float("nan")
    before = [param.detach().to_local().clone() for param in network.parameters()]
    optimizer.step()
    after = [param.detach().to_local() for param in network.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert optimizer.skipped_steps == 1

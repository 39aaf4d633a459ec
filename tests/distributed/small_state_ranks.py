"""What the ranks of test_small_state.py run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

import orthoopt
from orthoopt import OrthoOpt, param_groups

SHAPES = {"0.weight": (13, 8), "0.bias": (13,), "1.weight": (5, 13), "1.bias": (5,)}  # nothing divides evenly


def network(dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 13), nn.Linear(13, 5)).to(dtype)


def gradient(name: str, step: int, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(1000 * step + sum(map(ord, name)))
    return torch.randn(SHAPES[name]).to(dtype)


def run(model: nn.Module, optimizer: OrthoOpt, steps: int = 3) -> None:
    for step in range(steps):
        for name, param in model.named_parameters():
            grad = gradient(name, step, param.dtype)
            if isinstance(param, DTensor):
                grad = distribute_tensor(grad, param.device_mesh, param.placements)
            param.grad = grad
        optimizer.step()


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded(dtype: torch.dtype = torch.bfloat16, **options: Any) -> tuple[nn.Module, OrthoOpt]:
    model = network(dtype)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model, OrthoOpt(param_groups(model, "adamw", lr=0.02), **options)


def shards_round_as_the_whole_does() -> None:
    """The same noise at every place of the whole, so that a run does not depend on how it is sharded."""
    alone, model = network(), None
    options: dict[str, Any] = {"state_dtype": "bfloat16", "rounding": "stochastic"}
    one = OrthoOpt(param_groups(alone, "adamw", lr=0.02), **options)
    model, other = sharded(**options)
    run(alone, one)
    run(model, other)
    equal = total = 0
    for (_, a), (_, b) in zip(alone.named_parameters(), model.named_parameters(), strict=True):
        state = other.state[b]
        assert isinstance(state["exp_avg"], DTensor) and state["exp_avg"].dtype is torch.bfloat16
        assert type(state["rounding"]) is Tensor
        for mine, theirs in [(a, b), *((one.state[a][key], state[key]) for key in ("exp_avg", "exp_avg_sq"))]:
            x, y = mine.detach().double(), whole(theirs.detach()).double()
            # float32 arithmetic may differ in a last bit by where vectors end, and flip one rounding in thousands; with
            # other noise every second entry would be another.
            assert bool(((x - y).abs() <= 2**-6 * x.abs() + 1e-30).all())
            equal, total = equal + int((x == y).sum()), total + x.numel()
    assert equal > 0.98 * total


def limits_and_figures_are_those_of_the_whole() -> None:
    alone = network(torch.float32)
    one = OrthoOpt(param_groups(alone, "adamw", lr=0.02), max_update_rms=100.0)
    model, other = sharded(torch.float32, max_update_rms=100.0)
    with orthoopt.recording(one), orthoopt.recording(other):
        run(alone, one)
        run(model, other)
    mine, theirs = one.diagnostics(), other.diagnostics()
    for key in mine:
        if not key.endswith("bytes"):
            assert math.isclose(mine[key], theirs[key], rel_tol=1e-5), key  # float32 sums in another order
    assert theirs["state_bytes"] < mine["state_bytes"]  # of this rank
    # On no rank does a shard decide for itself.
    for optimizer in (one, other):
        for group in optimizer.param_groups:
            group["max_update_rms"] = 0.3
    with pytest.warns(RuntimeWarning, match="update of"):
        run(alone, one, 1)
    with pytest.warns(RuntimeWarning, match="update of"):
        run(model, other, 1)
    assert [r.parameter for r in one.large_updates] == [r.parameter for r in other.large_updates]
    for (_, a), (_, b) in zip(alone.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(whole(b.detach()), a.detach(), rtol=1e-5, atol=1e-6)


def eight_bits_of_a_shard_are_refused(installed: bool) -> None:
    if not installed:
        with pytest.raises(ImportError, match="pip install torchao"):
            sharded(state_dtype="int8")
        return
    model, optimizer = sharded(state_dtype="int8")
    before = [whole(param.detach()).clone() for param in model.parameters()]
    with pytest.raises(RuntimeError, match=r"state_dtype='int8' is for whole parameters, 0.weight is a DTensor"):
        run(model, optimizer)
    assert all(torch.equal(whole(p.detach()), old) for p, old in zip(model.parameters(), before, strict=True))


def mixed_precision_of_fsdp_leaves_state_alone() -> None:
    """Parameters are gathered in bfloat16 for the forward pass; the shards, and what is kept of them, stay float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 5))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)), mp_policy=policy)
    optimizer = OrthoOpt(param_groups(model, "adamw", lr=0.02))
    for step in range(2):
        torch.manual_seed(step)
        model(torch.randn(4, 8)).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    tensors = [*model.parameters(), *(value for state in optimizer.state.values() for value in state.values())]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def heads_are_clipped_in_shards() -> None:
    """The largest logits of all ranks count, and every shard is scaled by its rows' factors."""
    torch.manual_seed(0)
    q, k = nn.Linear(6, 12), nn.Linear(6, 12)
    model = nn.Sequential(q, k)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    clip = orthoopt.QKClip(1.0)
    clip.add("layer", query=q, key=k, heads=3)
    clip.observe("layer", torch.tensor([0.5, 4.0, 0.5]) if dist.get_rank() else torch.tensor([0.5, 0.5, 16.0]))
    assert clip()["layer"].tolist() == [1.0, 0.25, 0.0625]
    factors = torch.tensor([1.0, 0.5, 0.25]).repeat_interleave(4)  # √γ, powers of two
    for name, param in model.named_parameters():
        old = before[name]
        assert torch.equal(whole(param.detach()), old * (factors if old.ndim == 1 else factors.unsqueeze(1))), name

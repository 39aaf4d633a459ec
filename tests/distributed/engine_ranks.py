"""What the ranks of test_engine.py run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from engine_models import Model, Spec, gradients, optimizer_of, specs
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from orthoopt import OrthoOpt, buckets

STEPS = 10
CLOSE = 1e-5
"""Relative in the Frobenius norm, after ten steps in float32: a hundred roundings of 6e-8."""


def drawn(examples: int) -> Callable[[Any], Any]:
    """Settings under which every rank draws the same, and none makes a failure smaller: others would wait for it."""
    return settings(
        derandomize=True, database=None, deadline=None, max_examples=examples, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def whole(tensor: Tensor) -> Tensor:
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def laid_out(gradient: Tensor, like: Tensor) -> Tensor:
    if isinstance(like, DTensor):
        return distribute_tensor(gradient, like.device_mesh, like.placements, src_data_rank=None)
    return gradient.clone()


def take_steps(optimizer: OrthoOpt, model: nn.Module, described: list[Spec], first: int, last: int) -> None:
    for step in range(first, last):
        for param, gradient in zip(model.parameters(), gradients(described, step), strict=True):
            param.grad = laid_out(gradient, param)
        optimizer.step()


def assert_equal_on_all(model: nn.Module, alone: nn.Module, what: Any, close: float = CLOSE) -> None:
    """On no rank may a parameter differ; every rank learns it of every other, so that none waits."""
    errors = [
        float((whole(a) - b.detach()).norm() / b.detach().norm().clamp_min(1e-30))
        for a, b in zip(model.parameters(), alone.parameters(), strict=True)
    ]
    worst = torch.tensor([error if error == error else 1e9 for error in errors])
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    bad = {f"p{i}": float(error) for i, error in enumerate(worst) if error > close}
    assert not bad, (what, bad)


@contextmanager
def buckets_of(elements: int) -> Iterator[None]:
    """Small buckets, so that a step takes several waves."""
    before, buckets.MAX_ELEMENTS = buckets.MAX_ELEMENTS, elements
    try:
        yield
    finally:
        buckets.MAX_ELEMENTS = before


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """By FSDP2 where it takes all parameters (it has none without dimensions)."""
    ignored = {param for param in model.parameters() if param.ndim == 0}
    fully_shard(model, mesh=mesh, ignored_params=ignored)
    return model


def trained(model: nn.Module, described: list[Spec], plan: str, **options: Any) -> nn.Module:
    take_steps(optimizer_of(model, described, plan, **options), model, described, 0, STEPS)
    return model


def trained_alone(described: list[Spec], plan: str, **options: Any) -> nn.Module:
    """What one process makes of it: computed by the first rank, for all."""
    model = Model(described)
    if dist.get_rank() == 0:
        trained(model, described, plan, **options)
    for param in model.parameters():
        dist.broadcast(param.detach(), 0)
    return model


def compared(plan: str, described: list[Spec], mesh: DeviceMesh, **options: Any) -> None:
    alone = trained_alone(described, plan, **options)
    sharded = trained(shard(Model(described), mesh), described, plan, **options)
    assert_equal_on_all(sharded, alone, ("FSDP2", plan, described, options))
    replicas = DistributedDataParallel(Model(described))
    trained(replicas.module, described, plan, **options)
    assert_equal_on_all(replicas.module, alone, ("DDP", plan, described, options))


def every_plan(plans: Sequence[str], examples: int) -> None:
    """Ten steps of drawn models under each plan, in one wave and in several."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    @drawn(examples)
    @given(specs(), st.sampled_from((2**25, 64)))
    def check(described: list[Spec], most: int) -> None:
        assume(sum(math.prod(spec.shape) for spec in described) >= 100)  # the simplest is drawn first, and says little
        for plan in plans:
            with buckets_of(most):
                compared(plan, described, mesh)

    check()

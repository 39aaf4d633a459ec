"""What the ranks of test_engine_trouble.py run: what can go wrong among many processes."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from engine_layouts_ranks import MIXED, Wire, by_placements
from engine_models import Model, gradients, optimizer_of
from engine_ranks import assert_equal_on_all, laid_out, shard, take_steps, trained, trained_alone, whole
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.nn.parallel import DistributedDataParallel

from orthoopt import OrthoOpt


def _mesh() -> Any:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def _snapshot(optimizer: OrthoOpt) -> list[Tensor]:
    found = [param for group in optimizer.param_groups for param in group["params"]]
    states = [value for param in found for value in optimizer.state.get(param, {}).values()]
    return [(t.to_local() if isinstance(t, DTensor) else t).detach().clone() for t in (*found, *states)]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _all_to_alls(optimizer: OrthoOpt) -> int:
    with Wire() as wire:
        optimizer.step()
    return wire.calls["alltoall_base_"]


def one_bad_gradient_skips_on_every_rank() -> None:
    """Under FSDP2 and DDP, with the host looking and, as on accelerators, without."""
    from orthoopt import nonfinite

    looks = nonfinite.host_can_read
    for blind in (False, True):
        nonfinite.host_can_read = (lambda device: False) if blind else looks
        wrapper = DistributedDataParallel(Model(MIXED))
        for model in (shard(Model(MIXED), _mesh()), wrapper.module):
            optimizer = optimizer_of(model, MIXED, "trion")
            take_steps(optimizer, model, MIXED, 0, 2)
            before = _snapshot(optimizer)
            if dist.get_rank() == 1:
                gradient = next(iter(model.parameters())).grad
                assert gradient is not None
                (gradient.to_local() if isinstance(gradient, DTensor) else gradient)[0, 0] = float("nan")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                optimizer.step()
            assert _same(before, _snapshot(optimizer)), blind
            assert optimizer.skipped_steps == 1
            take_steps(optimizer, model, MIXED, 3, 4)
            assert not _same(before, _snapshot(optimizer))
    nonfinite.host_can_read = looks


def gates_and_tensor_rates_equal_one_process() -> None:
    """As on accelerators: a gate that no host reads, a learning rate that is a tensor; and every kind of decay."""
    from orthoopt import nonfinite

    looks = nonfinite.host_can_read
    for mode in ("decoupled", "independent", "cautious"):
        options = {"lr": torch.tensor(0.02), "weight_decay": 0.3, "weight_decay_mode": mode, "maximize": True}
        alone = trained_alone(MIXED, "muon", **options)
        nonfinite.host_can_read = lambda device: False
        sharded = trained(shard(Model(MIXED), _mesh()), MIXED, "muon", **options)
        wrapper = DistributedDataParallel(Model(MIXED))
        replicas = trained(wrapper.module, MIXED, "muon", **options)
        nonfinite.host_can_read = looks
        assert_equal_on_all(sharded, alone, mode)
        assert_equal_on_all(replicas, alone, mode)


def a_missing_gradient_is_named() -> None:
    """Shards: all ranks raise, and name it. Replicas: each computes everything itself in that step."""
    model = shard(Model(MIXED), _mesh())
    optimizer = optimizer_of(model, MIXED, "muon")
    take_steps(optimizer, model, MIXED, 0, 1)
    before = _snapshot(optimizer)
    if dist.get_rank() == 1:
        model.get_parameter("p1").grad = None
    try:
        optimizer.step()
    except RuntimeError as error:
        assert "p1 has a gradient on rank 0 and none on rank 1" in str(error), error
    else:
        raise AssertionError("a step without a gradient on one rank")
    assert _same(before, _snapshot(optimizer))
    take_steps(optimizer, model, MIXED, 1, 2)  # and on it goes

    wrapper = DistributedDataParallel(Model(MIXED))
    replicas = wrapper.module
    optimizer = optimizer_of(replicas, MIXED, "muon")
    take_steps(optimizer, replicas, MIXED, 0, 1)
    if dist.get_rank() == 1:
        replicas.get_parameter("p1").grad = None
    assert _all_to_alls(optimizer) == 0
    for param, gradient in zip(replicas.parameters(), gradients(MIXED, 1), strict=True):
        param.grad = gradient
    assert _all_to_alls(optimizer) == 1


def other_orders_and_models_do_not_mix() -> None:
    """Without a DDP over them, models have nothing to do with each other; parameters in another order neither hang."""
    rank = dist.get_rank()
    own = MIXED[rank:]
    model = Model(own)
    for _ in range(rank):  # not even as many steps
        optimizer_of(model, own, "muon").step()
    optimizer = optimizer_of(model, own, "muon")
    take_steps(optimizer, model, own, 0, 1)
    assert _all_to_alls(optimizer) == 0

    wrapper = DistributedDataParallel(Model(MIXED))
    replicas = wrapper.module
    groups = [{"params": [(n, p)], "rule": "spectral"} for n, p in replicas.named_parameters() if p.ndim == 2]
    optimizer = OrthoOpt(groups[:: 1 if rank else -1], lr=0.02)
    for param, gradient in zip(replicas.parameters(), gradients(MIXED, 0), strict=True):
        param.grad = gradient
    assert _all_to_alls(optimizer) == 0

    sharded = by_placements(Model(MIXED), _mesh(), lambda spec: [Shard(0)], MIXED)
    named = [(n, p) for n, p in sharded.named_parameters() if p.ndim == 2]
    optimizer = OrthoOpt([{"params": named[:: 1 if rank else -1], "rule": "spectral"}], lr=0.02)
    for (_, param), gradient in zip(sharded.named_parameters(), gradients(MIXED, 0), strict=True):
        param.grad = laid_out(gradient, param)
    try:
        optimizer.step()
    except RuntimeError as error:
        assert "not in one order" in str(error), error
    else:
        raise AssertionError("shards in different orders")


def replicas_share_only_what_is_the_same() -> None:
    """No sharing where gradients may differ: no_sync, unknown hooks, join, share='off', or not equal from the start."""
    from torch.distributed.algorithms.ddp_comm_hooks import debugging_hooks, default_hooks

    def case(**options: Any) -> tuple[DistributedDataParallel, OrthoOpt]:
        replicas = DistributedDataParallel(Model(MIXED))
        optimizer = optimizer_of(replicas.module, MIXED, "muon", **options)
        for param, gradient in zip(replicas.module.parameters(), gradients(MIXED, 0), strict=True):
            param.grad = gradient
        return replicas, optimizer

    replicas, optimizer = case()
    assert _all_to_alls(optimizer) == 1  # updates alone: signals are everywhere
    with replicas.no_sync():
        assert _all_to_alls(optimizer) == 0
        replicas(torch.ones(1)).sum().backward()
    assert _all_to_alls(optimizer) == 0  # the gradients are still this rank's own
    optimizer.zero_grad()
    replicas(torch.ones(1)).sum().backward()
    assert _all_to_alls(optimizer) == 1
    with replicas.join():
        assert _all_to_alls(optimizer) == 0

    replicas, optimizer = case(share="off")
    assert _all_to_alls(optimizer) == 0
    replicas, optimizer = case()
    replicas.register_comm_hook(None, debugging_hooks.noop_hook)
    assert _all_to_alls(optimizer) == 0
    replicas, optimizer = case()
    replicas.register_comm_hook(None, default_hooks.fp16_compress_hook)
    assert _all_to_alls(optimizer) == 1
    replicas, optimizer = case()
    gradient = replicas.module.get_parameter("p0").grad
    assert gradient is not None
    gradient += dist.get_rank()
    assert _all_to_alls(optimizer) == 0
    replicas, optimizer = case()
    del replicas
    import gc

    gc.collect()
    assert _all_to_alls(optimizer) == 0


def zero_redundancy_passes_whole_parameters() -> None:
    """Every rank's own parameters are stepped by it alone; empty groups do no harm."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    alone = trained_alone(MIXED[:2], "muon", lr=0.02, weight_decay=0.1)
    wrapper = DistributedDataParallel(Model(MIXED[:2]))
    replicas = wrapper.module
    optimizer = ZeroRedundancyOptimizer(
        [{"params": list(replicas.parameters()), "rule": "spectral"}], OrthoOpt, lr=0.02, weight_decay=0.1
    )
    for step in range(10):
        for param, gradient in zip(replicas.parameters(), gradients(MIXED[:2], step), strict=True):
            param.grad = gradient.clone()
        optimizer.step()
    assert_equal_on_all(replicas, alone, "ZeRO")


def compiled_steps_equal_one_process() -> None:
    """A compiled step is one operation, whose gradients are this rank's parts."""
    alone = trained_alone(MIXED, "muon")
    wrapper = DistributedDataParallel(Model(MIXED))
    for model in (shard(Model(MIXED), _mesh()), wrapper.module):
        step = torch.compile(optimizer_of(model, MIXED, "muon").step, backend="eager", fullgraph=True)
        for number in range(10):
            for param, gradient in zip(model.parameters(), gradients(MIXED, number), strict=True):
                param.grad = laid_out(gradient, param)
            step()
        assert_equal_on_all(model, alone, "compiled")


def what_cannot_be_done_right_raises() -> list[str]:
    """Sums that nobody has made, and FSDP1, which flattens; nothing has moved then."""
    said = []
    weight = nn.Parameter(DTensor.from_local(torch.ones(4, 4), _mesh(), [Partial()]))
    weight.grad = DTensor.from_local(torch.ones(4, 4), _mesh(), [Partial()])
    flat = FullyShardedDataParallel(nn.Linear(8, 8), device_id=torch.device("cpu"), use_orig_params=False)
    for group in (
        {"params": [("weight", weight)], "rule": "spectral"},
        {"params": list(flat.named_parameters()), "rule": "adamw"},
    ):
        optimizer = OrthoOpt([group])
        for _, param in group["params"]:
            param.grad = torch.ones_like(param) if param.grad is None else param.grad
        before = [whole(param).clone() for _, param in group["params"] if not isinstance(param, DTensor)]
        try:
            optimizer.step()
        except RuntimeError as error:
            said.append(str(error))
        assert not before or _same(before, [param.detach() for _, param in group["params"]])
        assert not optimizer.state
    return said

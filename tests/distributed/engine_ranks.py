from __future__ import annotations
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
import orthoopt
from orthoopt import OrthoOpt, param_groups
from sharing_ranks import model


def grads(step, shapes):
    g = torch.Generator().manual_seed(step)
    return {n: torch.randn(s, generator=g) for n, s in shapes.items()}


def first():
    out = {}
    for plan in orthoopt.plans.names():
        net, ref = model(), model()
        shapes = {n: p.shape for n, p in ref.named_parameters()}
        fully_shard(net, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        a, b = OrthoOpt(param_groups(net, plan, lr=0.02)), OrthoOpt(param_groups(ref, plan, lr=0.02))
        for step in range(10):
            for n, g in grads(step, shapes).items():
                ref.get_parameter(n).grad = g.clone()
                p = net.get_parameter(n)
                p.grad = distribute_tensor(g, p.device_mesh, p.placements)
            a.step()
            b.step()
        worst = 0.0
        for n, p in net.named_parameters():
            q = ref.get_parameter(n)
            worst = max(worst, float((p.full_tensor() - q).norm() / q.norm()))
        out[plan] = worst
    return out


def polar():
    plan = "polargrad"
    net, ref = model(), model()
    shapes = {n: p.shape for n, p in ref.named_parameters()}
    fully_shard(net, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    a, b = OrthoOpt(param_groups(net, plan, lr=0.02)), OrthoOpt(param_groups(ref, plan, lr=0.02))
    out = []
    for step in range(3):
        for n, g in grads(step, shapes).items():
            ref.get_parameter(n).grad = g.clone()
            p = net.get_parameter(n)
            p.grad = distribute_tensor(g, p.device_mesh, p.placements)
        a.step()
        b.step()
        for n, p in net.named_parameters():
            q = ref.get_parameter(n)
            out.append((step, n, a_rule(a, n), float((p.full_tensor() - q).detach().norm() / q.detach().norm())))
    return out


def a_rule(o, n):
    for g in o.param_groups:
        if n in g["param_names"]:
            return g["rule"], g["view"], g["scale"] if "scale" in g else None

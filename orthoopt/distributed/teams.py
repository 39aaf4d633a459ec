"""Which processes a step concerns: those of parameters' meshes, or those DistributedDataParallel keeps equal."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from orthoopt.distributed import ddp
from orthoopt.distributed.agreement import Agreement

_GROUPS: WeakKeyDictionary[Any, dict[tuple[int, ...], Any]] = WeakKeyDictionary()


class Team:
    """The processes that take steps of one set of parameters together."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = list(params)
        """Kept alive, so that no other takes one's identity."""
        self.shared: frozenset[int] = frozenset()
        """The identities of plain parameters of which all ranks have the same gradients, while :meth:`shares`."""
        self.wrapper: weakref.ref[DistributedDataParallel] | None = None
        meshes = dict.fromkeys(param.device_mesh for param in params if isinstance(param, DTensor))
        groups = [mesh.get_group(i) for mesh in meshes for i in range(mesh.ndim) if mesh.size(i) > 1]
        self.agreement: Agreement | None = None
        if meshes:
            device = torch.device(next(iter(meshes)).device_type)
            self.agreement = Agreement(list(dict.fromkeys(groups)), device)
            return
        self.wrapper = ddp.wrapper_of(params) if dist.get_world_size() > 1 else None
        wrapper = self.wrapper and self.wrapper()
        if wrapper is not None:
            self.shared = frozenset(ddp.reduced_by(wrapper) & {id(param) for param in params})
            self.agreement = Agreement([wrapper.process_group], ddp.device_of(wrapper))

    @functools.cached_property
    def ring(self) -> tuple[tuple[int, ...], int]:
        """The global ranks that :meth:`shares` is about, and this one's place among them."""
        assert self.agreement is not None
        ranks = tuple(dist.get_process_group_ranks(self.agreement.groups[0]))
        return ranks, ranks.index(dist.get_rank())

    @property
    def is_sharded(self) -> bool:
        """Whether there are distributed tensors among the parameters."""
        return self.agreement is not None and self.wrapper is None

    def shares(self) -> bool:
        """Whether ranks may share the work of plain parameters in this step."""
        wrapper = self.wrapper and self.wrapper()
        return wrapper is not None and ddp.are_gradients_same(wrapper)

    def part(self) -> None:
        """Share no more."""
        self.wrapper, self.shared, self.agreement = None, frozenset(), None


def group_of(ranks: tuple[int, ...]) -> Any:
    """The process group of these global ranks, in that order; made once, by all of them."""
    world = dist.group.WORLD
    if ranks == tuple(range(dist.get_world_size())):
        return world
    known = _GROUPS.setdefault(world, {})
    if ranks not in known:
        known[ranks] = dist.new_group(sorted(ranks), use_local_synchronization=True)
    return known[ranks]

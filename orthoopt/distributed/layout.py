"""Who holds what of a parameter that is spread over ranks.

A DTensor's placements cut its dimensions into ranges, so that every rank of a *ring*, the ranks that together hold one
copy, has one box of the tensor, perhaps an empty one. Replicas have rings of their own: nothing crosses them.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement

from orthoopt.views import View

Box: TypeAlias = tuple[tuple[int, int], ...]
"""(start, stop) along each dimension."""


class Layout(NamedTuple):
    """How one parameter lies on the ranks of a ring."""

    shape: tuple[int, ...]
    """Of the whole."""
    ranks: tuple[int, ...]
    """The ring: global ranks; everything else counts by place among them."""
    place: int
    """This rank's."""
    boxes: tuple[Box, ...]
    """What each of them holds."""
    sharded: frozenset[int]
    """The dimensions that are cut."""

    @property
    def is_whole(self) -> bool:
        """Whether every rank of the ring has all of it."""
        return not self.sharded

    @property
    def box(self) -> Box:
        """What this rank holds."""
        return self.boxes[self.place]


def layout_of(name: str, param: DTensor) -> Layout:
    """The layout of a distributed parameter.

    Args:
        name: for messages.
        param: with any placements on a mesh that this rank is part of.

    Raises:
        RuntimeError: a placement that is neither a shard nor a replica, or a local part that is not what the placements
            say.
    """
    layout = _layout(tuple(param.shape), param.device_mesh, tuple(param.placements))
    if layout is None:
        raise RuntimeError(
            f"{name} has placements {param.placements}: orthoopt takes shards and replicas; redistribute it"
        )
    with torch.no_grad():
        local = tuple(param.to_local().shape)
    if local != extent(layout.box):
        raise RuntimeError(
            f"{name} of shape {layout.shape} has a local part of shape {local} where its placements {param.placements} "
            f"give {extent(layout.box)}: orthoopt does not know this layout"
        )
    return layout


@functools.lru_cache(maxsize=4096)
def replicated(shape: tuple[int, ...], ranks: tuple[int, ...], place: int) -> Layout:
    """The layout of a plain tensor of which every rank has all."""
    box = tuple((0, size) for size in shape)
    return Layout(shape, ranks, place, (box,) * len(ranks), frozenset())


@functools.lru_cache(maxsize=4096)
def _layout(shape: tuple[int, ...], mesh: DeviceMesh, placements: tuple[Placement, ...]) -> Layout | None:
    mine = mesh.get_coordinate()
    if mine is None or not all(_is_shard(placement) or placement.is_replicate() for placement in placements):
        return None
    cut = [(i, placement.dim % len(shape)) for i, placement in enumerate(placements) if _is_shard(placement)]
    ring = mesh.mesh[tuple(slice(None) if _is_shard(p) else mine[i] for i, p in enumerate(placements))]
    # FSDP cuts what tensor parallelism has cut already, though its mesh dimension comes first: a strided shard.
    order = [entry for entry in cut if not _is_strided(placements[entry[0]])]
    order += [entry for entry in reversed(cut) if _is_strided(placements[entry[0]])]
    boxes = []
    for coordinates in itertools.product(*(range(mesh.size(i)) for i, _ in cut)):
        at = {i: coordinate for (i, _), coordinate in zip(cut, coordinates, strict=True)}
        box = [(0, size) for size in shape]
        for i, dim in order:
            box[dim] = _chunk(box[dim], at[i], mesh.size(i))
        boxes.append(tuple(box))
    ranks = tuple(ring.reshape(-1).tolist())
    return Layout(shape, ranks, ranks.index(dist.get_rank()), tuple(boxes), frozenset(dim for _, dim in cut))


def _is_shard(placement: Any) -> bool:
    return placement.is_shard() or _is_strided(placement)


def _is_strided(placement: Any) -> bool:
    return hasattr(placement, "split_factor")


def _chunk(bounds: tuple[int, int], index: int, count: int) -> tuple[int, int]:
    """As torch.chunk cuts: parts of one size, then a smaller one, then none."""
    start, stop = bounds
    size = -(-(stop - start) // count)
    first = min(start + index * size, stop)
    return first, min(first + size, stop)


@functools.lru_cache(maxsize=4096)
def keeps_batch(view: View, shape: tuple[int, ...]) -> bool:
    """Whether the first dimension is a batch of matrices, which may be taken apart: one more makes one more of each."""
    if not view.is_matrix or len(shape) < 2:
        return False
    try:
        some, more = (view.piece_shapes((size, *shape[1:])) for size in (shape[0], shape[0] + 1))
    except ValueError:
        return False
    return all(len(a) > 2 and a[0] == shape[0] and b == (shape[0] + 1, *a[1:]) for a, b in zip(some, more, strict=True))


def extent(box: Box) -> tuple[int, ...]:
    """The shape of a box."""
    return tuple(stop - start for start, stop in box)


def elements(box: Box) -> int:
    """How many there are in a box."""
    return math.prod(extent(box))


def within(box: Box, rows: tuple[int, int] | None) -> Box:
    """The part of a box that lies in a range of the first dimension; None is all of it."""
    if rows is None:
        return box
    (start, stop), *rest = box
    first = min(max(start, rows[0]), stop)
    return ((first, max(first, min(stop, rows[1]))), *rest)


def slices(box: Box, origin: Box) -> tuple[slice, ...]:
    """A box as an index into the tensor that lies at ``origin``."""
    return tuple(slice(start - base, stop - base) for (start, stop), (base, _) in zip(box, origin, strict=True))


def plain(tensor: Tensor) -> Tensor:
    """This rank's part of a distributed tensor; any other tensor itself."""
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()

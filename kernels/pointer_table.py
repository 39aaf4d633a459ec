"""Tables in device memory by which one launch walks many tensors: addresses, strides, and which program does what.

A training loop whose tensors stay where they are builds them in its first step; where only addresses change, only those
are copied again (:mod:`orthoopt.kernels.device_cache`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from orthoopt.kernels.blocks import Block, elementwise_blocks, matrix_blocks
from orthoopt.kernels.device_cache import Cache, Upload

STORED = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes that kernels read and write; they compute in float32."""

Lines = Literal["none", "rows", "both", "tiles"]
"""What a kernel leaves partial results of: rows, rows and columns, or tiles; "none" where elements stand alone."""

_PLAIN = {Tensor, torch.nn.Parameter}

LINES_A_PROGRAM = 512
"""Lines whose partial results one program adds up."""


class LineSets(NamedTuple):
    """The lines of all matrices of a launch. Line by line their partial results are added up, block by block of lines.

    A set is what the rows (or the columns, or the tiles) of one entry's matrices are; its record is: first program,
    lines, parts, first line, first partial result, and the first program and the lines of the same entry's rows (of
    tiles: 0, and the elements of a matrix).
    """

    records: Tensor
    """int64, ``(sets, 7)``."""
    owners: Tensor
    """int32, the set of each program; a program adds up one block of lines of one matrix."""
    programs: int
    lines: int
    """How many in all."""
    partials: int
    """How many partial results in all; those of a matrix are ``(parts, lines)``."""


class Launch(NamedTuple):
    """What one launch needs: entries whose sides agree in dtype, storage order and alignment.

    An entry's record: first program, rows, cols, item, then of each side the strides (batch, row, col); of matrices
    further first row line, first column line, first partial result of rows, of columns, and the first program that adds
    up rows (or tiles). Programs walk batch, then tile rows, then tile columns.
    """

    dtypes: tuple[torch.dtype, ...]
    orders: tuple[int, ...]
    aligned: bool
    tile: tuple[int, int]
    programs: int
    records: Tensor
    """int64, ``(entries, fields)``."""
    owners: Tensor
    """int32, the entry of each program."""
    pointers: Tensor
    """int64, ``(entries, sides)``."""
    sets: LineSets | None


class _Plan(NamedTuple):
    """Launches without addresses, and where these come from: (side, item, offset in bytes), launch by launch."""

    launches: list[Launch]
    addresses: list[tuple[int, int, int]]
    upload: Upload


# A step makes a table for each of its calls; where gradients move, the old ones must age out.
_tables, _plans = Cache(256), Cache(64)


def launches(
    sides: Mapping[str, Sequence[Tensor]], *, written: Sequence[str] = (), primary: int = 0, lines: Lines = "none"
) -> list[Launch]:
    """The launches that walk all items of all sides, cached.

    Args:
        sides: lists of one length, at least one, by their names; the n-th tensors of all lists have one shape. All on
            one device, dtypes in :data:`STORED`, those of ``buffers`` float32.
        written: the sides whose elements must not share memory.
        primary: the side whose storage order elementwise kernels follow.
        lines: other than "none": items are matrices ``(..., rows, cols)``, and of these lines partial results are kept.

    Raises:
        ValueError: sides that differ in length or shape.
        TypeError: a tensor that kernels do not take, naming side and item.
        RuntimeError: unseen tensors during the capture of a CUDA graph.
    """
    tensors = [tensor for side in sides.values() for tensor in side]
    _check_kinds(sides, tensors)
    layouts = tuple((t.data_ptr(), t.dtype, t.shape, t.stride()) for t in tensors)
    device = tensors[0].device
    kind = (primary, lines, device, *sides)

    def make() -> tuple[list[Launch] | str, list[Upload]]:
        refusal = _refusal(sides, written, device)
        if refusal is not None:
            return refusal, []
        outline = (kind, tuple((pointer % 16, *layout) for pointer, *layout in layouts))
        return _with_addresses(list(sides.values()), outline)

    found = _tables.get((kind, layouts), device, make)
    if isinstance(found, str):  # cached like a table: who falls back asks again at every step
        raise TypeError(found)
    return found


def _with_addresses(
    sides: Sequence[Sequence[Tensor]], outline: tuple[tuple[Any, ...], tuple[Any, ...]]
) -> tuple[list[Launch], list[Upload]]:
    """The plan of this outline, made if need be, with the tensors' addresses filled in."""
    primary, lines, device, *_ = outline[0]
    plan = _plans.get(outline, device, lambda: _with_uploads(_make_plan(sides, primary, lines, device)))
    if not plan.launches:  # no elements at all
        return [], []
    addresses = [sides[side][item].data_ptr() + offset for side, item, offset in plan.addresses]
    upload = Upload([torch.tensor(addresses, dtype=torch.int64)], device)
    parts = upload.tensors[0].split([launch.records.shape[0] * len(sides) for launch in plan.launches])
    filled = [launch._replace(pointers=part) for launch, part in zip(plan.launches, parts, strict=True)]
    return filled, [upload, plan.upload]


def _with_uploads(plan: _Plan) -> tuple[_Plan, list[Upload]]:
    return plan, [plan.upload]


def _check_kinds(sides: Mapping[str, Sequence[Tensor]], tensors: Sequence[Tensor]) -> None:
    """What must hold before addresses are asked for."""
    if len({len(side) for side in sides.values()}) != 1:
        lengths = ", ".join(f"{len(side)} {name}" for name, side in sides.items())
        raise ValueError(f"as many tensors on every side are needed, got {lengths}")
    # As sets: this is asked of every tensor at every step.
    if {type(tensor) for tensor in tensors} <= _PLAIN and {tensor.layout for tensor in tensors} == {torch.strided}:
        return
    for tensor in tensors:
        if type(tensor) not in _PLAIN or tensor.layout is not torch.strided:
            raise TypeError(f"kernels take dense torch.Tensor alone, got {type(tensor).__name__}, {tensor.layout}")


def _refusal(sides: Mapping[str, Sequence[Tensor]], written: Sequence[str], device: torch.device) -> str | None:
    """Why kernels do not take these tensors; None where they do."""
    for index, item in enumerate(zip(*sides.values(), strict=True)):
        if len({tensor.shape for tensor in item}) != 1:
            shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in zip(sides, item, strict=True))
            raise ValueError(f"tensors {index} differ in shape: {shapes}")
    for name, side in sides.items():
        allowed = (torch.float32,) if name == "buffers" else STORED
        for index, tensor in enumerate(side):
            if tensor.dtype not in allowed:
                return f"{name}[{index}] must be {' or '.join(map(str, allowed))}, got {tensor.dtype}"
            if tensor.device != device:
                return f"{name}[{index}] is on {tensor.device}, the first tensor on {device}"
            if name in written and _may_overlap(tensor):
                return f"{name}[{index}] is written, but its elements share memory: strides {tensor.stride()}"
    return None


def _may_overlap(tensor: Tensor) -> bool:
    """Whether elements may share memory: some step does not leave behind what the shorter ones reach."""
    reach = 0
    dims = sorted((step, size) for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    for step, size in dims:
        if step <= reach:
            return tensor.numel() > 0
        reach += step * (size - 1)
    return False


def _make_plan(sides: Sequence[Sequence[Tensor]], primary: int, lines: Lines, device: torch.device) -> _Plan:
    groups: dict[tuple[tuple[torch.dtype, ...], tuple[int, ...], bool, tuple[int, int]], list[tuple[int, Block]]] = {}
    for index, item in enumerate(zip(*sides, strict=True)):
        strides = [tensor.stride() for tensor in item]
        shape = item[0].shape
        blocks = elementwise_blocks(shape, strides, primary) if lines == "none" else matrix_blocks(shape, strides)
        for block in blocks:
            aligned = block.aligned([t.data_ptr() % 16 for t in item], [t.element_size() for t in item])
            kind = (tuple(t.dtype for t in item), block.orders, aligned, block.tile)
            groups.setdefault(kind, []).append((index, block))
    made: list[Launch] = []
    addresses: list[tuple[int, int, int]] = []
    for (dtypes, orders, aligned, tile), entries in groups.items():
        made.append(_make_launch(entries, tile, lines)._replace(dtypes=dtypes, orders=orders, aligned=aligned))
        for index, block in entries:
            addresses += [(s, index, block.offsets[s] * sides[s][index].element_size()) for s in range(len(sides))]
    upload = Upload([tensor for launch in made for tensor in _tensors(launch)], device)
    uploaded = iter(upload.tensors)
    there = [
        launch._replace(
            records=next(uploaded),
            owners=next(uploaded),
            sets=launch.sets and launch.sets._replace(records=next(uploaded), owners=next(uploaded)),
        )
        for launch in made
    ]
    return _Plan(there, addresses, upload)


def _tensors(launch: Launch) -> list[Tensor]:
    sets = [] if launch.sets is None else [launch.sets.records, launch.sets.owners]
    return [launch.records, launch.owners, *sets]


def _make_launch(entries: list[tuple[int, Block]], tile: tuple[int, int], lines: Lines) -> Launch:
    records: list[list[int]] = []
    counts: list[int] = []
    programs = 0
    sets = _SetsMaker()
    for index, block in entries:
        batch, rows, cols = block.shape
        blocks = -(-rows // tile[0]), -(-cols // tile[1])
        record = [programs, rows, cols, index, *(step for side in block.strides for step in side)]
        if lines == "tiles":
            record += [0, 0, 0, 0, sets.add(batch, blocks[0] * blocks[1], 1, (0, rows * cols))[2]]
        elif lines != "none":
            of_rows = sets.add(batch, rows, blocks[1])
            of_cols = sets.add(batch, cols, blocks[0], (of_rows[2], rows)) if lines == "both" else (0, 0, 0)
            record += [of_rows[0], of_cols[0], of_rows[1], of_cols[1], of_rows[2]]
        records.append(record)
        counts.append(batch * blocks[0] * blocks[1])
        programs += counts[-1]
    table, owners = torch.tensor(records, dtype=torch.int64), _owners(counts)
    made = sets.made() if lines != "none" else None
    return Launch((), (), False, tile, programs, table, owners, torch.empty(0, dtype=torch.int64), made)


class _SetsMaker:
    def __init__(self) -> None:
        self.records: list[list[int]] = []
        self.counts: list[int] = []
        self.programs = self.lines = self.partials = 0

    def add(
        self, matrices: int, lines: int, parts: int, of_rows: tuple[int, int] | None = None
    ) -> tuple[int, int, int]:
        """A set; returns its first line, first partial result and first program."""
        first = self.lines, self.partials, self.programs
        self.records.append([first[2], lines, parts, first[0], first[1], *(of_rows or (first[2], lines))])
        self.counts.append(matrices * -(-lines // LINES_A_PROGRAM))
        self.programs += self.counts[-1]
        self.lines += matrices * lines
        self.partials += matrices * lines * parts
        return first

    def made(self) -> LineSets:
        records = torch.tensor(self.records, dtype=torch.int64)
        return LineSets(records, _owners(self.counts), self.programs, self.lines, self.partials)


def _owners(counts: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts), dtype=torch.int32), torch.tensor(counts))

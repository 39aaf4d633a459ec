"""Tables in device memory by which one launch walks many tensors: addresses, strides, and which program does what.

They are made on the host and copied once, without waiting. A training loop whose tensors stay where they are builds
them in its first step; where only addresses change, only those are copied again. Tables are kept in small caches, and
for good once a CUDA graph has been captured over them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from orthoopt.kernels.blocks import Block, elementwise_blocks, matrix_blocks

Lines = Literal["none", "rows", "both", "tiles"]
"""What a kernel leaves partial results of: rows, rows and columns, or tiles; "none" where elements stand alone."""

LINES_A_PROGRAM = 512
"""Lines whose partial results one program adds up."""

SET_FIELDS = 7
_CACHED = 32


class LineSets(NamedTuple):
    """The lines of all matrices of a launch. Line by line their partial results are added up, block by block of lines.

    A set is what the rows (or the columns, or the tiles) of one entry's matrices are; its record is: first program,
    lines, parts, first line, first partial result, and the first program and the lines of the same entry's rows (of
    tiles: 0, and the elements of a matrix).
    """

    records: Tensor
    """int64, ``(sets, SET_FIELDS)``."""
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
    upload: _Upload


class _Upload:
    """Tensors copied to a device on some stream, and other streams' right to use them."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        self.streams: set[int] = set()
        if device.type != "cuda":
            self.tensors = [tensor.to(device) for tensor in tensors]
            return
        self.tensors = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
        stream = torch.cuda.current_stream(device)
        self.copied = stream.record_event()
        self.streams.add(stream.cuda_stream)

    def use(self, stream: torch.cuda.Stream) -> None:
        """Make ``stream`` wait for the copy, if it is not the one that copied."""
        if stream.cuda_stream in self.streams:
            return
        stream.wait_event(self.copied)
        for tensor in self.tensors:
            tensor.record_stream(stream)
        self.streams.add(stream.cuda_stream)


Made = TypeVar("Made")


class _Cache:
    """The last few things made for a key, those of captured graphs for good; ready for the current stream."""

    def __init__(self) -> None:
        self.recent: OrderedDict[Hashable, tuple[object, list[_Upload]]] = OrderedDict()
        self.kept: dict[Hashable, tuple[object, list[_Upload]]] = {}

    def get(self, key: Hashable, device: torch.device, make: Callable[[], tuple[Made, list[_Upload]]]) -> Made:
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        found = self.kept.get(key) or self.recent.get(key)
        if found is None:
            if capturing:
                raise RuntimeError(
                    "a CUDA graph is being captured over tensors that no step has seen: make a step with the same "
                    "parameters, gradients and work buffers before the capture"
                )
            found = self.recent[key] = make()
            if len(self.recent) > _CACHED:
                self.recent.popitem(last=False)
        elif key in self.recent:
            self.recent.move_to_end(key)
        if capturing:
            self.kept[key] = found  # whoever captures has waited for earlier work, so the copies are done
        elif device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            for upload in found[1]:
                upload.use(stream)
        return found[0]  # type: ignore[return-value]  # made by this key's own ``make``


_tables, _plans, _constants = _Cache(), _Cache(), _Cache()


def launches(sides: Sequence[Sequence[Tensor]], *, primary: int = 0, lines: Lines = "none") -> list[Launch]:
    """The launches that walk all items of all sides, cached.

    Args:
        sides: lists of one length; the n-th tensors of all lists have one shape. All on one device.
        primary: the side whose storage order elementwise kernels follow.
        lines: other than "none": items are matrices ``(..., rows, cols)``, and of these lines partial results are kept.

    Raises:
        ValueError: sides that differ in length or shape, naming the item.
        RuntimeError: unseen tensors during the capture of a CUDA graph.
    """
    key = (primary, lines, tuple((t.data_ptr(), t.dtype, t.shape, t.stride()) for side in sides for t in side), len(sides))
    device = sides[0][0].device

    def make() -> tuple[list[Launch], list[_Upload]]:
        _check(sides)
        outline = (
            (primary, lines, device, len(sides)),
            tuple((t.data_ptr() % 16, t.dtype, t.shape, t.stride()) for side in sides for t in side),
        )
        plan = _plans.get(outline, device, lambda: _with_uploads(_make_plan(sides, primary, lines, device)))
        addresses = [sides[side][item].data_ptr() + offset for side, item, offset in plan.addresses]
        upload = _Upload([torch.tensor(addresses, dtype=torch.int64)], device)
        counts = [launch.records.shape[0] * len(sides) for launch in plan.launches]
        parts = upload.tensors[0].split(counts)
        filled = [launch._replace(pointers=part) for launch, part in zip(plan.launches, parts, strict=True)]
        return filled, [upload, plan.upload]

    return _tables.get((device, key), device, make)


def constants(values: Sequence[float], device: torch.device) -> Tensor:
    """Numbers in float32 on a device, cached by their values."""
    key = tuple(values)

    def make() -> tuple[Tensor, list[_Upload]]:
        upload = _Upload([torch.tensor(key, dtype=torch.float32)], device)
        return upload.tensors[0], [upload]

    return _constants.get((device, key), device, make)


def _with_uploads(plan: _Plan) -> tuple[_Plan, list[_Upload]]:
    return plan, [plan.upload]


def _check(sides: Sequence[Sequence[Tensor]]) -> None:
    if len({len(side) for side in sides}) != 1:
        raise ValueError(f"as many tensors on every side are needed, got {[len(side) for side in sides]}")
    for index, item in enumerate(zip(*sides, strict=True)):
        if len({tensor.shape for tensor in item}) != 1:
            raise ValueError(f"tensors {index} differ in shape: {[tuple(tensor.shape) for tensor in item]}")


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
    upload = _Upload([tensor for launch in made for tensor in _tensors(launch)], device)
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

"""What each parameter is, told by one forward pass: no names, no module classes, no shapes of known models.

``watch`` runs a model once on the CPU and looks at every operation that torch carries out. Beside the numbers it
carries labels (``shadow.py``): the entries of a parameter are labelled as such, and so are the output features of
every linear map that is made from them. What an operation does with a label is then evidence:

- a matrix product whose one operand is entries of a parameter is a **linear map**. Which axes of the parameter run
  along the outputs and which along the inputs is read from the labels, so an einsum, an expert picked from a stack,
  or ``x @ weight`` need no case of their own. The product's output gets new labels: feature i, made by row i.
- operations that only move numbers (cat, index, copies) move the labels with them.
- operations entry by entry keep the labels of features: a bias, an activation, a rotation by positions change the
  numbers, not which row of the weight made them. Where a parameter takes part in one, it is **used entry by entry**.
- any other operation takes a tensor as a whole (attention, a sum, the next linear map, a norm's mean), and so do
  products of features. The rows whose features meet in one operand there belong together. After the pass, the rows
  of a weight fall into **pieces** that never met: q, k and v, or gate and up, wherever the model cuts them apart.
- ``embedding`` and indexing are **lookups**; whether by the input ids, by positions or by something else is told
  from the values of the indices.
- features that arrive at topk, sort or argmax **choose**; features that arrive in the logits are the **logits**.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from shadow import (
    COMPUTED,
    NOTHING,
    Shadow,
    entries,
    entry_labels,
    feature_labels,
    features,
    gate,
    gated,
    index_of,
    owner_of,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Axes = tuple[int, ...]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operations that put numbers elsewhere without changing them: what they do to numbers, they do to labels.
_MOVES = _names(
    "clone _to_copy copy cat stack index index_select gather repeat constant_pad_nd roll flip "
    "masked_select tril triu slice_scatter select_scatter index_put _index_put_impl_ index_copy scatter "
    "take repeat_interleave _unsafe_index"
)
_PRODUCTS = _names("mm bmm addmm baddbmm addbmm mv addmv dot _grouped_mm grouped_mm_fallback")
_SUMS = _names("add sub rsub where")  # features that are added are one: rows i and i + half of a rotation
_KEEPS_SHAPE = _names("_softmax _log_softmax cumsum native_layer_norm _fused_rms_norm")
_NORMS = _names("native_layer_norm _fused_rms_norm native_group_norm native_batch_norm _native_batch_norm_legit")
_NEW = _names("new_empty new_zeros new_ones new_full empty_like zeros_like ones_like full_like rand_like")
_CHOICES = _names("topk sort argmax")


@dataclass(eq=False)
class Linear:
    """One parameter as the weight of a linear map."""

    name: str
    outputs: Axes  # the axes of the parameter that run along the map's outputs
    inputs: Axes
    shape: tuple[int, ...]
    site: str
    convolution: bool = False
    depthwise: bool = False
    chooses: bool = False  # its outputs arrive at topk, sort or argmax
    picked: bool = False  # some of its outputs are picked by a gather
    logits: bool = False
    pieces: list[frozenset[int]] = field(default_factory=list)  # rows that are used together

    @property
    def sides(self) -> tuple[int, int]:
        """How many output and input features the map has."""
        return (
            math.prod(self.shape[axis] for axis in self.outputs),
            math.prod(self.shape[axis] for axis in self.inputs),
        )

    def rows(self, coordinates: Sequence[Tensor]) -> Tensor:
        """Which output the entries of these coordinates, one tensor for each axis, belong to."""
        found = torch.zeros_like(coordinates[0])
        for axis in self.outputs:
            found = found * self.shape[axis] + coordinates[axis]
        return found

    @property
    def in_out(self) -> bool | None:
        """Whether the parameter is stored (in, out); None where its axes are not two."""
        if len(self.outputs) != 1 or len(self.inputs) != 1:
            return None
        return self.outputs[0] > self.inputs[0]


@dataclass
class Evidence:
    """What the pass did with one parameter."""

    name: str
    linear: list[Linear] = field(default_factory=list)
    lookups: set[tuple[str, str]] = field(default_factory=set)  # ("input ids" or "positions" or "other", site)
    entrywise: set[tuple[str, str]] = field(default_factory=set)  # (operation, site)
    other: set[tuple[str, str]] = field(default_factory=set)  # operations that nothing here knows

    @property
    def maps(self) -> list[Linear]:
        """Its uses as a linear map that mixes features."""
        return [use for use in self.linear if not use.depthwise]

    @property
    def by_input_ids(self) -> bool:
        """Whether it was looked up by the input ids."""
        return any(by == "input ids" for by, _ in self.lookups)

    @property
    def used(self) -> bool:
        """Whether anything happened to it at all."""
        return bool(self.linear or self.lookups or self.entrywise or self.other)


def watch(
    model: nn.Module, input_ids: Tensor, call: Callable[[], Any], logits: Callable[[Any], Tensor] | None = None
) -> dict[str, Evidence]:
    """Run ``call``, one forward pass of the model on these input ids, and tell what became of every parameter.

    ``logits`` takes the logits out of what ``call`` returns (``.logits``, or the whole when there is none).
    The input ids should be no run of positions, or a table of positions could not be told from an embedding.
    """
    witness = _Witness(model, input_ids)
    with torch.no_grad(), witness:
        result = call()
    witness.close(logits(result) if logits is not None else getattr(result, "logits", result))
    return witness.evidence


class _Meetings:
    """Which rows of which linear maps have met: a partition of all rows of all maps."""

    def __init__(self) -> None:
        self.starts: list[int] = []  # of each map's rows, in the two below
        self.piece = torch.zeros(0, dtype=torch.int64)
        self.used = torch.zeros(0, dtype=torch.bool)

    def add(self, rows: int) -> None:
        """Another map, with this many rows."""
        start = len(self.piece)
        self.starts.append(start)
        self.piece = torch.cat([self.piece, torch.arange(start, start + rows)])
        self.used = torch.cat([self.used, torch.zeros(rows, dtype=torch.bool)])

    def _places(self, labels: Tensor) -> Tensor:
        return torch.tensor(self.starts)[owner_of(labels)] + index_of(labels)

    def _join(self, places: Tensor) -> None:
        pieces = self.piece[places].unique()
        if len(pieces) > 1:
            self.piece[torch.isin(self.piece, pieces)] = pieces[0]

    def together(self, labels: Tensor | None) -> None:
        """These features are taken together: the rows of each map among them have met."""
        if labels is not None and features(labels).any():
            found = labels[features(labels)].unique()
            places = self._places(found)
            self.used[places] = True
            for owner in owner_of(found).unique():
                self._join(places[owner_of(found) == owner])

    def one_by_one(self, first: Tensor, second: Tensor) -> None:
        """These features are added: each of the first is one with its counterpart."""
        pairs = torch.stack([self._places(first), self._places(second)]).unique(dim=1)
        for pair in pairs[:, self.piece[pairs[0]] != self.piece[pairs[1]]].T:
            self._join(pair)

    def pieces(self, number: int, rows: int) -> list[frozenset[int]]:
        """The rows of a map that were used, by piece."""
        start = self.starts[number]
        piece = self.piece[start : start + rows]
        used = torch.isin(
            piece, self.piece[self.used]
        )  # taken as a whole themselves, or through what they are one with
        return [frozenset((piece == p).nonzero().flatten().tolist()) for p in piece[used].unique()]


class _Witness(TorchDispatchMode):
    def __init__(self, model: nn.Module, input_ids: Tensor) -> None:
        super().__init__()
        self.shadow = Shadow()
        self.names: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        self.input_ids = input_ids.flatten()
        self.uses: list[Linear] = []
        self.meetings = _Meetings()
        for owner, (name, param) in enumerate(model.named_parameters()):
            self.names.append(name)
            self.shapes.append(tuple(param.shape))
            self.shadow.write(param, entry_labels(owner, torch.arange(param.numel())).view(param.shape))
        self.evidence = {name: Evidence(name) for name in self.names}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.rpartition("::")[2]
        mutable = func._schema.is_mutable
        base = name.rstrip("_") if mutable else name
        given = [t for t in _tensors((args, kwargs))]
        labels = [self.shadow.read(t) for t in given]
        before = {t.untyped_storage()._cdata for t in given if t.layout == torch.strided}
        # The labels of what is written in place are read as they were before.
        labels = [label.clone() if label is not None and mutable else label for label in labels]
        out = func(*args, **kwargs)
        made = [t for t in _tensors(out) if t.layout == torch.strided]
        if not mutable and made and all(t.untyped_storage()._cdata in before for t in made):
            if base == "view_as_complex":
                self._together(labels)
            return out  # a view
        if base in _NEW or all(label is None for label in labels):
            for tensor in made:
                self.shadow.write(tensor, None)
            return out
        result: Tensor | None = None
        if base in _MOVES:
            result = self._move(func, base, args, kwargs, labels, given)
        elif base in _PRODUCTS:
            result = self._product(args, labels, made)
        elif base == "convolution":
            result = self._convolution(args, labels, made)
        elif base == "embedding":
            self._lookup(labels[0], given[1])
        elif torch.Tag.pointwise in func.tags:
            result = self._pointwise(base, labels, given, made)
        else:
            self._whole(base, labels)
            if base in _KEEPS_SHAPE and labels[0] is not None and features(labels[0]).any():
                result = torch.where(features(labels[0]), labels[0], COMPUTED)
        for position, tensor in enumerate(made):
            numbers = tensor.is_floating_point() or tensor.is_complex()
            found = result if position == 0 and result is not None else torch.full((), COMPUTED)
            self.shadow.write(tensor, found if numbers else None)
        return out

    def close(self, logits: Tensor) -> None:
        """The pass is over: its result is used as a whole."""
        labels = self.shadow.read(logits)
        self.meetings.together(labels)
        for use in self._maps(labels):
            use.logits = True
        for number, use in enumerate(self.uses):
            use.pieces = self.meetings.pieces(number, use.sides[0])

    def _maps(self, labels: Tensor | None) -> list[Linear]:
        """The linear maps that have features among these labels."""
        return [] if labels is None else [self.uses[o] for o in owner_of(labels[features(labels)]).unique().tolist()]

    def _by_parameter(self, labels: Tensor | None) -> list[str]:
        if labels is None:
            return []
        return [self.names[owner] for owner in owner_of(labels[entries(labels)]).unique().tolist()]

    def _together(self, labels: list[Tensor | None]) -> None:
        for label in labels:
            self.meetings.together(label)

    def _whole(self, name: str, labels: list[Tensor | None]) -> None:
        """An operation that takes its operands as wholes."""
        self._together(labels)
        for label in labels:
            for use in self._maps(label):
                use.chooses |= name in _CHOICES
            for parameter in self._by_parameter(label):
                seen = self.evidence[parameter]
                (seen.entrywise if name in _NORMS else seen.other).add((name, _site()))

    def _lookup(self, table: Tensor | None, indices: Tensor) -> None:
        for parameter in self._by_parameter(table):
            self.evidence[parameter].lookups.add((self._kind_of(indices), _site()))

    def _kind_of(self, indices: Tensor) -> str:
        row = indices.reshape(-1, indices.shape[-1]) if indices.ndim else indices.reshape(1, 1)
        if row.shape[-1] > 1 and bool((row.diff(dim=-1) == 1).all()):
            return "positions"
        if indices.numel() > 1 and bool(torch.isin(indices, self.input_ids).all()):
            return "input ids"
        return "other"

    def _move(
        self, func: Any, name: str, args: Any, kwargs: Any, labels: list[Tensor | None], given: list[Tensor]
    ) -> Tensor | None:
        table = labels[0]
        indexed = name in ("index", "index_select", "gather", "_unsafe_index") and table is not None
        if indexed and entries(table).any() and table.ndim <= 2:
            self._lookup(table, given[1])
            return None
        if name == "gather":
            for use in self._maps(table):
                use.picked = True
        shadows = iter(
            [torch.full(t.shape, NOTHING) if label is None else label for t, label in zip(given, labels, strict=True)]
        )
        moved = frozenset({"index", "index_select", "gather", "masked_select", "repeat_interleave", "_unsafe_index"})

        def swap(value: Any, keep: bool = False) -> Any:
            if isinstance(value, Tensor):
                shadow = next(shadows)
                is_index = value.dtype in (torch.bool, torch.int64, torch.int32) and keep
                return value if is_index else shadow
            if isinstance(value, list | tuple):
                return type(value)(swap(v, keep) for v in value)
            return value

        first = swap(args[0])
        keep = name in moved or name.startswith(("index", "_index", "scatter", "take"))
        rest = [swap(value, keep) for value in args[1:]]
        options = {key: swap(value, keep) for key, value in kwargs.items() if key in ("accumulate", "memory_format")}
        if name in ("copy", "_to_copy", "clone"):
            source = rest[0] if name == "copy" else first
            return source if source.shape == given[0].shape else source.expand(given[0].shape)
        if name == "constant_pad_nd":
            rest = [rest[0], NOTHING]
        if name in ("tril", "triu") or (name == "scatter" and not isinstance(args[-1], Tensor)):
            return first  # numbers written over features keep the label of what they replace
        return func(first, *rest, **options)

    def _pointwise(
        self, name: str, labels: list[Tensor | None], given: list[Tensor], made: list[Tensor]
    ) -> Tensor | None:
        shape = made[0].shape
        kept = torch.full(shape, NOTHING)
        for tensor, label in zip(given, labels, strict=True):
            if label is None:
                continue
            for parameter in self._by_parameter(label):
                self.evidence[parameter].entrywise.add((name, _site()))
            if tensor.numel() != made[0].numel():  # scaled or normalised weights are still the weights, gains are not
                label = torch.where(entries(label), NOTHING, label)
            kept = self._two(name, kept, label.expand(shape))
        return kept

    def _two(self, name: str, first: Tensor, second: Tensor) -> Tensor:
        """The labels of two operands that meet entry by entry."""
        both = features(first) & features(second)
        sums = both & ~gated(first) & ~gated(second) & (name in _SUMS)
        if sums.any():
            self.meetings.one_by_one(first[sums], second[sums])
        apart = both & ~sums
        if apart.any():
            self._together([torch.where(apart, label, NOTHING) for label in (first, second)])
        any_computed = (first == COMPUTED) | (second == COMPUTED)
        kept = torch.where(features(first), first, second)
        kept = torch.where(first == NOTHING, second, torch.where(second == NOTHING, first, kept))
        if name not in _SUMS:
            kept = torch.where(any_computed & features(kept), gate(kept), kept)
        return torch.where(apart | (any_computed & ~features(kept)), COMPUTED, kept)

    def _product(self, args: Any, labels: list[Tensor | None], made: list[Tensor]) -> Tensor | None:
        operands = [a for a in args if isinstance(a, Tensor)]
        is_sum = len(operands) == 3 and operands[2].is_floating_point()
        left = 1 if is_sum else 0
        if is_sum:
            for parameter in self._by_parameter(labels[0]):
                self.evidence[parameter].entrywise.add(("add", _site()))
        self._together(labels)
        sides = [labels[left], labels[left + 1]]
        weights = [label is not None and bool(entries(label).all()) for label in sides]
        if sum(weights) != 1:
            for label in sides:
                for parameter in self._by_parameter(label):
                    self.evidence[parameter].other.add(("product", _site()))
            return None
        on_left = weights[0]
        weight = sides[0] if on_left else sides[1]
        assert weight is not None
        if on_left:
            weight = weight.mT if weight.ndim > 1 else weight
        matrix = weight if weight.ndim > 1 else weight[:, None]  # (..., in, out)
        use, rows = self._map(matrix)
        if use is None or rows is None:
            return None
        made_labels = feature_labels(use, rows)
        if weight.ndim == 1:
            return made_labels.reshape(()).expand(made[0].shape)
        if matrix.ndim == 3 and made[0].ndim == 2:  # grouped: the same rows for each group
            return made_labels[0].expand(made[0].shape)
        if on_left:
            turned = made_labels.unsqueeze(-1)
            return turned.expand(made[0].shape) if made[0].ndim >= 2 else made_labels
        return made_labels.unsqueeze(-2).expand(made[0].shape)

    def _map(self, matrix: Tensor, convolution: bool = False, depthwise: bool = False) -> tuple[int | None, Any]:
        """The linear map with these entries as its matrix (..., in, out): its number, and the row of each output."""
        owners = owner_of(matrix).unique()
        if len(owners) > 1:
            for parameter in self._by_parameter(matrix):
                self.evidence[parameter].other.add(("product", _site()))
            return None, None
        owner = int(owners)
        shape = self.shapes[owner]
        coordinates = torch.unravel_index(index_of(matrix), shape)
        outputs = tuple(a for a, c in enumerate(coordinates) if bool((c != c[..., :, :1]).any()))
        inputs = tuple(a for a, c in enumerate(coordinates) if bool((c != c[..., :1, :]).any()))
        name = self.names[owner]
        numbers = {(use.name, use.outputs, use.inputs): number for number, use in enumerate(self.uses)}
        number = numbers.get((name, outputs, inputs), len(self.uses))
        if number == len(self.uses):
            self.uses.append(Linear(name, outputs, inputs, shape, _site(), convolution, depthwise))
            self.evidence[name].linear.append(self.uses[-1])
            self.meetings.add(self.uses[-1].sides[0])
        return number, self.uses[number].rows([c[..., 0, :] for c in coordinates])

    def _convolution(self, args: Any, labels: list[Tensor | None], made: list[Tensor]) -> Tensor | None:
        tensors = [a for a in args[:3] if isinstance(a, Tensor)]
        transposed, groups = args[6], args[8]
        data, weight = labels[0], labels[1]
        if len(tensors) == 3:
            for parameter in self._by_parameter(labels[2]):
                self.evidence[parameter].entrywise.add(("add", _site()))
        channels = tensors[0].shape[1]
        depthwise = groups == channels and groups > 1
        if weight is None or not bool(entries(weight).all()):
            self._together(labels)
            return None
        flat = weight.flatten(1) if not transposed else weight.transpose(0, 1).flatten(1)
        use, rows = self._map(flat.T, convolution=True, depthwise=depthwise)
        if depthwise and made[0].shape[1] == channels:  # one filter for each feature: the features stay
            return None if data is None else data[:, :, *([slice(0, 1)] * (data.ndim - 2))].expand(made[0].shape)
        self.meetings.together(data)
        if use is None or transposed:
            return None
        return feature_labels(use, rows).view(1, -1, *([1] * (made[0].ndim - 2))).expand(made[0].shape)


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)


def _site() -> str:
    """Where in the model's code this happens: the innermost frame outside torch and outside this file."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/torch/" not in file and file != __file__:
            return f"{file.rpartition('/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""

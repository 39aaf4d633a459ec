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
  The columns of a weight fall into **blocks** in the same way, by the products they take part in.
- features that are added to others are one with them from then on, row by row: the halves of a rotation, a LoRA
  adapter and what it adapts. Not so once they were multiplied by something computed, such as a decay: that a scan's
  output is added to its input does not make dt and x one matrix.
- ``embedding`` and indexing are **lookups**; whether by the input ids, by positions or by something else is told
  from the values of the indices.
- features that arrive at topk, sort or argmax **choose**; features that arrive in the logits are the **logits**.

What it cannot see: inside an operation that does a whole layer (``Evidence.other`` then says which one took the
parameter), and in parts of the model that this pass does not reach (``Evidence.used`` is False).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from evidence import Evidence, Linear, Meetings
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
from torch_operations import CHOICES, KEEPS_SHAPE, MOVES, NEW, NORMS, PRODUCTS, SUMS, site, tensors


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


class _Witness(TorchDispatchMode):
    def __init__(self, model: nn.Module, input_ids: Tensor) -> None:
        super().__init__()
        self.shadow = Shadow()
        self.names: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        self.input_ids = input_ids.flatten()
        self.uses: list[Linear] = []
        self.rows, self.cols = Meetings(), Meetings()
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
        given = [t for t in tensors((args, kwargs))]
        labels = [self.shadow.read(t) for t in given]
        before = {t.untyped_storage()._cdata for t in given if t.layout == torch.strided}
        # The labels of what is written in place are read as they were before.
        labels = [label.clone() if label is not None and mutable else label for label in labels]
        out = func(*args, **kwargs)
        made = [t for t in tensors(out) if t.layout == torch.strided]
        if not mutable and made and all(t.untyped_storage()._cdata in before for t in made):
            if base == "view_as_complex":
                self._together(labels)
            return out  # a view
        if base in NEW or all(label is None for label in labels):
            for tensor in made:
                self.shadow.write(tensor, None)
            return out
        result: Tensor | None = None
        adds = base == "index_put" and (kwargs.get("accumulate") or args[3:4] == (True,))
        if base in MOVES and not adds:
            result = self._move(func, base, args, labels, given)
        elif base in PRODUCTS:
            result = self._product(args, labels, made[0])
        elif base == "convolution":
            result = self._convolution(args, labels, made[0])
        elif base == "embedding":
            self._lookup(labels[0], given[1])
        elif torch.Tag.pointwise in func.tags:
            result = self._pointwise(base, labels, given, made[0])
        else:
            self._whole(base, labels)
            if base in KEEPS_SHAPE and labels[0] is not None and features(labels[0]).any():
                result = torch.where(features(labels[0]), labels[0], COMPUTED)
        for position, tensor in enumerate(made):
            numbers = tensor.is_floating_point() or tensor.is_complex()
            found = result if position == 0 and result is not None else torch.full((), COMPUTED)
            self.shadow.write(tensor, found if numbers else None)
        return out

    def close(self, logits: Tensor) -> None:
        """The pass is over: its result is used as a whole."""
        labels = self.shadow.read(logits)
        self.rows.together(labels)
        for use in self._maps(labels):
            use.logits = True
        for number, use in enumerate(self.uses):
            use.pieces, use.blocks = self.rows.pieces(number), self.cols.pieces(number)

    def _maps(self, labels: Tensor | None) -> list[Linear]:
        """The linear maps that have features among these labels."""
        return [] if labels is None else [self.uses[o] for o in owner_of(labels[features(labels)]).unique().tolist()]

    def _parameters(self, labels: Tensor | None) -> list[str]:
        if labels is None:
            return []
        return [self.names[owner] for owner in owner_of(labels[entries(labels)]).unique().tolist()]

    def _entrywise(self, labels: Tensor | None, operation: str) -> None:
        for parameter in self._parameters(labels):
            self.evidence[parameter].entrywise.add((operation, site()))

    def _together(self, labels: list[Tensor | None]) -> None:
        for label in labels:
            self.rows.together(label)

    def _whole(self, name: str, labels: list[Tensor | None]) -> None:
        """An operation that takes its operands as wholes."""
        self._together(labels)
        for label in labels:
            for use in self._maps(label):
                use.chooses |= name in CHOICES
            for parameter in self._parameters(label):
                seen = self.evidence[parameter]
                (seen.entrywise if name in NORMS else seen.other).add((name, site()))

    def _lookup(self, table: Tensor | None, indices: Tensor) -> None:
        for parameter in self._parameters(table):
            self.evidence[parameter].lookups.add((self._kind_of(indices), site()))

    def _kind_of(self, indices: Tensor) -> str:
        row = indices.reshape(-1, indices.shape[-1]) if indices.ndim else indices.reshape(1, 1)
        if row.shape[-1] > 1 and bool((row.diff(dim=-1) == 1).all()):
            return "positions"
        some = bool(torch.isin(indices, self.input_ids).all())  # one codebook's, of an audio decoder
        more = bool(torch.isin(self.input_ids, indices).all())  # a prompt's, before them
        return "input ids" if indices.numel() > 1 and (some or more) else "other"

    def _move(self, func: Any, name: str, args: Any, labels: list[Tensor | None], given: list[Tensor]) -> Tensor | None:
        table = labels[0]
        indexed = name in ("index", "index_select", "gather", "_unsafe_index") and table is not None
        if indexed and entries(table).any() and table.ndim <= 2:
            self._lookup(table, given[1])
            return None
        if name == "gather":
            for use in self._maps(table):
                use.picked = True
        if name in ("tril", "triu") or (name == "scatter" and not isinstance(args[-1], Tensor)):
            return labels[0]  # numbers written over features keep the label of what they replace
        if name in ("copy", "_to_copy", "clone"):
            source = labels[1] if name == "copy" else labels[0]
            return torch.full((), NOTHING) if source is None else source.expand(given[0].shape)
        if name == "constant_pad_nd":
            return func(labels[0], args[1], NOTHING)
        shadows = iter(
            [torch.full(t.shape, NOTHING) if label is None else label for t, label in zip(given, labels, strict=True)]
        )

        def swap(value: Any) -> Any:
            """The labels instead of the numbers, but indices and masks as they are."""
            if isinstance(value, Tensor):
                shadow = next(shadows)
                return shadow if value.is_floating_point() or value.is_complex() else value
            return type(value)(map(swap, value)) if isinstance(value, list | tuple) else value

        return func(*swap(args))

    def _pointwise(self, name: str, labels: list[Tensor | None], given: list[Tensor], made: Tensor) -> Tensor:
        """The labels of an operation entry by entry: features stay features."""
        kept = torch.full(made.shape, NOTHING)
        for tensor, label in zip(given, labels, strict=True):
            if label is None:
                continue
            self._entrywise(label, name)
            if tensor.numel() != made.numel():  # scaled or normalised weights are still the weights, gains are not
                label = torch.where(entries(label), NOTHING, label)
            kept = self._two(name, kept, label.expand(made.shape))
        return kept

    def _two(self, name: str, first: Tensor, second: Tensor) -> Tensor:
        """The labels of two operands that meet entry by entry."""
        both = features(first) & features(second)
        sums = both & ~gated(first) & ~gated(second) & (name in SUMS)
        if sums.any():
            self.rows.one_by_one(first[sums], second[sums])
        apart = both & ~sums
        if apart.any():
            self._together([torch.where(apart, label, NOTHING) for label in (first, second)])
        any_computed = (first == COMPUTED) | (second == COMPUTED)
        kept = torch.where(features(first), first, second)
        kept = torch.where(first == NOTHING, second, torch.where(second == NOTHING, first, kept))
        if name not in SUMS:
            kept = torch.where(any_computed & features(kept), gate(kept), kept)
        return torch.where(apart | (any_computed & ~features(kept)), COMPUTED, kept)

    def _product(self, args: Any, labels: list[Tensor | None], made: Tensor) -> Tensor | None:
        """The labels of a matrix product: features of the operand that is a weight, if one is."""
        operands = [a for a in args if isinstance(a, Tensor)]
        left = 1 if len(operands) == 3 and operands[2].is_floating_point() else 0  # addmm: the first is added
        if left:
            self._entrywise(labels[0], "add")
        self._together(labels)
        sides = labels[left : left + 2]
        weights = [label for label in sides if label is not None and bool(entries(label).all())]
        if len(weights) != 1 or len(owner_of(weights[0]).unique()) > 1:
            for label in sides:
                for parameter in self._parameters(label):
                    self.evidence[parameter].other.add(("product", site()))
            return None
        weight, on_left = weights[0], weights[0] is sides[0]
        if weight.ndim == 1:
            weight = weight[None, :] if on_left else weight[:, None]
        number, rows = self._map(weight.mT if on_left else weight)
        found = feature_labels(number, rows)
        if operands[left + 1 - on_left].ndim == 1:  # a vector: one number for each row of the weight
            return found.reshape(made.shape)
        if found.ndim == made.ndim:  # grouped: (experts, in, out) for (tokens, in), every expert has the same rows
            found = found[0]
        return (found.unsqueeze(-1) if on_left else found.unsqueeze(-2)).expand(made.shape)

    def _map(self, matrix: Tensor, convolution: bool = False, depthwise: bool = False) -> tuple[int, Tensor]:
        """The linear map with these entries as its matrix (..., in, out): its number, and the row of each output."""
        owner = int(owner_of(matrix.flatten()[0]))
        name, shape = self.names[owner], self.shapes[owner]
        coordinates = torch.unravel_index(index_of(matrix), shape)
        outputs = tuple(a for a, c in enumerate(coordinates) if bool((c != c[..., :, :1]).any()))
        inputs = tuple(a for a, c in enumerate(coordinates) if bool((c != c[..., :1, :]).any()))
        numbers = {(use.name, use.outputs, use.inputs): number for number, use in enumerate(self.uses)}
        number = numbers.get((name, outputs, inputs), len(self.uses))
        if number == len(self.uses):
            use = Linear(name, outputs, inputs, shape, site(), convolution, depthwise)
            self.uses.append(use)
            self.evidence[name].linear.append(use)
            self.rows.add(use.sides[0])
            self.cols.add(use.sides[1])
        self.cols.meet(number, self.uses[number].cols([c[..., :, 0] for c in coordinates]))
        return number, self.uses[number].rows([c[..., 0, :] for c in coordinates])

    def _convolution(self, args: Any, labels: list[Tensor | None], made: Tensor) -> Tensor | None:
        """The labels of a convolution (data, weight, bias, ...): features by channel."""
        transposed, groups, channels = args[6], args[8], args[0].shape[1]
        data, weight = labels[:2]
        if args[2] is not None:
            self._entrywise(labels[2], "add")
        if weight is None or not bool(entries(weight).all()):
            self._together(labels)
            return None
        depthwise = groups == channels and groups > 1
        kernels = weight.transpose(0, 1) if transposed else weight
        number, rows = self._map(kernels.flatten(1).T, convolution=True, depthwise=depthwise)
        rest = [1] * (made.ndim - 2)
        if depthwise and made.shape[1] == channels:  # one filter for each feature: the features stay
            return None if data is None else data[(..., *(slice(1),) * len(rest))].expand(made.shape)
        self.rows.together(data)
        return None if transposed else feature_labels(number, rows).view(1, -1, *rest).expand(made.shape)

"""Shadow memory: a second memory beside every tensor's own, which says for each of its numbers what it is.

A number of a tensor is an entry of a parameter, an output feature of a linear map, computed from some of these, or
nothing that depends on them (positions, masks). Labels belong to the storage, not to the tensor, so every view
(slice, transpose, expand) shows them without being tracked, and a write in place changes them for all views, as it
changes the numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

NOTHING = -1
COMPUTED = -2
_INDEX_BITS = 40
_GATED = 1 << 60
_FEATURE = 1 << 61


def entry_labels(owner: int, indices: Tensor) -> Tensor:
    """Labels of the entries with these flat indices of parameter number ``owner``."""
    return indices + (owner << _INDEX_BITS)


def feature_labels(owner: int, rows: Tensor) -> Tensor:
    """Labels of the output features with these row numbers of linear map number ``owner``."""
    return entry_labels(owner, rows) + _FEATURE


def owner_of(labels: Tensor) -> Tensor:
    """The number of the parameter or of the linear map, of labels of entries or features."""
    return (labels & (_GATED - 1)) >> _INDEX_BITS


def index_of(labels: Tensor) -> Tensor:
    """The flat index of the entry, or the row of the output feature."""
    return labels & ((1 << _INDEX_BITS) - 1)


def features(labels: Tensor) -> Tensor:
    """Which of these labels are output features."""
    return labels >= _FEATURE


def entries(labels: Tensor) -> Tensor:
    """Which of these labels are entries of a parameter."""
    return (labels >= 0) & (labels < _FEATURE)


def gated(labels: Tensor) -> Tensor:
    """Which of these labels are features that were multiplied by something computed."""
    return features(labels) & (labels & _GATED != 0)


def gate(labels: Tensor) -> Tensor:
    """The labels of these features after a multiplication by something computed."""
    return labels | _GATED


class Shadow:
    """The labels of all storages of one run.

    It keeps every labelled storage alive, so that the address of one is never given to another.
    """

    def __init__(self) -> None:
        self._labels: dict[int, tuple[torch.UntypedStorage, Tensor]] = {}

    def read(self, tensor: Tensor) -> Tensor | None:
        """The labels of a tensor, in its shape; None when it has none. A complex number has its real part's."""
        if tensor.layout != torch.strided or tensor.numel() == 0:
            return None
        found = self._labels.get(tensor.untyped_storage()._cdata)
        if found is None:
            return None
        seen = _over(found[1], _real(tensor))
        return seen if bool((seen != NOTHING).any()) else None

    def write(self, tensor: Tensor, labels: Tensor | None) -> None:
        """Set the labels of a tensor, in its storage; None forgets what is there."""
        if tensor.layout != torch.strided or tensor.numel() == 0:
            return
        storage = tensor.untyped_storage()
        if storage._cdata not in self._labels:
            if labels is None:
                return
            size = _real(tensor).element_size()
            self._labels[storage._cdata] = storage, torch.full((storage.nbytes() // size,), NOTHING)
        parts = (tensor.real, tensor.imag) if tensor.is_complex() else (tensor,)
        for part in parts:
            _over(self._labels[storage._cdata][1], part).copy_(torch.full((), NOTHING) if labels is None else labels)


def _real(tensor: Tensor) -> Tensor:
    return tensor.detach().real if tensor.is_complex() else tensor


def _over(flat: Tensor, tensor: Tensor) -> Tensor:
    """The part of a storage's labels that lies under this tensor."""
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

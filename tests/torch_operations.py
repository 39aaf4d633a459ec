"""The torch operations that the forward witness tells apart, by their names below autograd."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operations that put numbers elsewhere without changing them: what they do to numbers, they do to labels.
MOVES = _names(
    "clone _to_copy copy cat stack index index_select gather repeat constant_pad_nd roll flip "
    "masked_select tril triu slice_scatter select_scatter index_put _index_put_impl_ index_copy scatter "
    "take repeat_interleave _unsafe_index"
)
# Matrix products, of two operands or of two after one that is added.
PRODUCTS = _names("mm bmm addmm baddbmm addbmm mv addmv dot _grouped_mm grouped_mm_fallback")
# Features that are added are one from then on: rows i and i + half of a rotation by positions.
SUMS = _names("add sub rsub where")
# They take their operand as a whole, and feature i of the result is still feature i.
KEEPS_SHAPE = _names("_softmax _log_softmax cumsum native_layer_norm _fused_rms_norm")
# Their gains and biases are used entry by entry.
NORMS = _names("native_layer_norm _fused_rms_norm native_group_norm native_batch_norm _native_batch_norm_legit")
# Nothing of their operand but its shape matters.
NEW = _names("new_empty new_zeros new_ones new_full empty_like zeros_like ones_like full_like rand_like")
# They choose: what is sorted here are scores.
CHOICES = _names("topk sort argmax")


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors among an operation's arguments, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors(value)
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors(value)


def site() -> str:
    """Where in the model's code this happens: the innermost frame outside torch and outside the witness."""
    frame = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if "torch" not in file.parts and file.name not in ("forward_witness.py", "torch_operations.py"):
            return f"{file.name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""

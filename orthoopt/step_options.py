"""Options of a step that any rule can have: how state is kept, how parameters are rounded, how far
they may move, who computes.

==================  =================================================================================================
``state_dtype``     in what momenta and moments shaped as their parameter lie between steps: ``"auto"``, float32, or
                    float64 for float64 parameters, where this optimizer made them, and as they were saved where it
                    loaded them; ``"float32"``; ``"bfloat16"``, rounded stochastically; ``"int8"``, see
                    :mod:`orthoopt.eight_bit`
``rounding``        of bfloat16 parameters after their update: ``"nearest"`` or ``"stochastic"``
``max_update_rms``  how long an update may be, in multiples of what its rule promises, see :mod:`orthoopt.guard`
``large_update``    what becomes of one that is longer: ``"skip"`` or ``"raise"``
``share``           whether ranks of DistributedDataParallel compute each matrix once and send its update: ``"auto"``,
                    where it is certain that they have the same gradients, see docs/distributed.md, or ``"off"``. Shards
                    of FSDP2 and tensor parallelism are gathered either way
==================  =================================================================================================

They are keys of param groups, so they differ from group to group where that is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor

from orthoopt.spelling import near

STATE_DTYPES = ("auto", "float32", "bfloat16", "int8")
ROUNDINGS = ("nearest", "stochastic")
LARGE_UPDATES = ("skip", "raise")
SHARES = ("auto", "off")


class StepOptions(TypedDict, total=False):
    """What constructors take by keyword and pass on."""

    state_dtype: str
    rounding: str
    max_update_rms: float | None
    large_update: str
    share: str


DEFAULTS: StepOptions = {
    "state_dtype": "auto", "rounding": "nearest", "max_update_rms": None, "large_update": "skip", "share": "auto",
}  # fmt: skip

_CHOICES = {"state_dtype": STATE_DTYPES, "rounding": ROUNDINGS, "large_update": LARGE_UPDATES, "share": SHARES}


def check_options(options: Mapping[str, Any], where: str = "") -> None:
    """Check those of the options that are there.

    Raises:
        ValueError: a bad value; names the option, the value and what is allowed.
        ImportError: ``state_dtype="int8"`` without torchao.
    """
    place = f" ({where})" if where else ""
    for name, allowed in _CHOICES.items():
        value = options.get(name, allowed[0])
        if not (isinstance(value, str) and value in allowed):
            hint = near(value, allowed).removesuffix(".")
            raise ValueError(f"{name}={value!r}{place} must be one of {', '.join(map(repr, allowed))}{hint}")
    limit = options.get("max_update_rms")
    if limit is not None and (
        isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < math.inf
    ):
        raise ValueError(f"max_update_rms={limit!r}{place} must be a positive number, or None for no limit")
    if options.get("state_dtype") == "int8":
        from orthoopt.eight_bit import require_torchao

        require_torchao(f"state_dtype='int8'{place}")


def check_dtype(options: Mapping[str, Any], param: Tensor, name: str | None, where: str) -> None:
    """Raise ValueError for a parameter that cannot be rounded as its group says."""
    if options.get("rounding") == "stochastic" and param.dtype is torch.float16:
        raise ValueError(
            f"{where}: rounding='stochastic' is for bfloat16 parameters, {name or 'a parameter'} is float16; "
            "options: 'nearest', or bfloat16"
        )

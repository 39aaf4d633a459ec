"""An optimizer's state as a safetensors file: tensors that any language reads, without pickle.

A tensor is named ``parameter/key``, such as ``layers.0.mlp.up_proj.weight/momentum_buffer``. The file's metadata hold,
as JSON, the groups with rule, view and options (``groups``) and the numbers among the state (``numbers``), and
``state_format``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from orthoopt.checkpoint import whole
from orthoopt.state_format import STATE_FORMAT

_WRITTEN_BY = "orthoopt"


def save_state(optimizer: Optimizer, path: str | os.PathLike[str]) -> None:
    """Write the state of an :class:`orthoopt.OrthoOpt` and its groups into a safetensors file.

    Under torch.distributed every rank calls it, distributed tensors are gathered one by one, and rank 0 writes.

    Args:
        optimizer: its parameters must have names.
        path: the file; replaced at once, so that no half of it is ever there.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: parameters have no names, or an option cannot be written as JSON, by name.
    """
    save_file = _safetensors().torch.save_file
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    groups = [_described(group, number) for number, group in enumerate(optimizer.param_groups)]
    for group in optimizer.param_groups:
        for name, param in zip(group["param_names"], group["params"], strict=True):
            for key, value in optimizer.state.get(param, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{name}/{key}"] = whole(value).detach().cpu().contiguous().clone()
                elif isinstance(value, int | float | bool):
                    numbers[f"{name}/{key}"] = value
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
        return
    metadata = {
        "written_by": _WRITTEN_BY,
        "state_format": str(STATE_FORMAT),
        "groups": json.dumps(groups),
        "numbers": json.dumps(numbers),
    }
    unfinished = f"{os.fspath(path)}.tmp"
    save_file(tensors, unfinished, metadata)
    os.replace(unfinished, path)


def load_state(optimizer: Optimizer, path: str | os.PathLike[str]) -> None:
    """Load what :func:`save_state` wrote, as ``optimizer.load_state_dict`` does: by name, options included.

    Args:
        optimizer: an :class:`orthoopt.OrthoOpt` over parameters of the same names; sharded ones take their parts.
        path: the file.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: another program wrote the file, or it does not fit, see :meth:`orthoopt.OrthoOpt.load_state_dict`;
            nothing has been loaded then.
    """
    with _safetensors().safe_open(os.fspath(path), framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("written_by") != _WRITTEN_BY or "groups" not in metadata:
            raise ValueError(f"{os.fspath(path)} holds no state of an orthoopt optimizer; nothing was loaded")
        entries = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    entries |= json.loads(metadata["numbers"])
    groups = [_with_tuples(group) for group in json.loads(metadata["groups"])]
    state: dict[int, dict[str, Any]] = {}
    number = {name: index for index, name in enumerate(name for group in groups for name in group["param_names"])}
    for entry, value in entries.items():
        name, _, key = entry.rpartition("/")
        state.setdefault(number[name], {})[key] = value
    for group in groups:
        group["params"] = [number[name] for name in group["param_names"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _described(group: Mapping[str, Any], number: int) -> dict[str, Any]:
    if group.get("param_names") is None:
        raise ValueError(f"param group {number} has no parameter names, and a file needs them; build with names")
    described = {}
    for key, value in group.items():
        if key == "params":
            continue
        value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError(f"param group {number}: {key}={value!r} cannot be written as JSON") from None
        described[key] = value
    return described


def _with_tuples(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if key == "param_names" else _as_tuple(value) for key, value in group.items()}


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError:
        raise ImportError("orthoopt.state_files needs safetensors: pip install safetensors") from None
    return safetensors

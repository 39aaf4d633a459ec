"""Momenta out of what a training run left behind: a Trainer checkpoint's folder, or a file of torch.save."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orthoopt.adanewton import Shape, key_of, spell_shape
from orthoopt.views import parse_view

TRAINER_FILE = "optimizer.pt"


class Momentum(NamedTuple):
    """One matrix and whose momentum it is."""

    name: str
    matrix: Tensor


def momenta_of_shape(source: str | Path, shape: Shape) -> list[Momentum]:
    """All momenta in a checkpoint that are matrices of a shape, either way round.

    Args:
        source: a folder with ``optimizer.pt``, as transformers' Trainer writes it, or a file of ``torch.save``: an
            optimizer's state dict, whose ``momentum_buffer`` are seen through their group's view, or tensors, alone or
            in dicts and lists. Loaded with ``weights_only=True``.
        shape: (shorter side, longer side).

    Raises:
        ValueError: there is no such file, it cannot be read, or nothing in it has the shape; the message says what has.
    """
    path = Path(source)
    if path.is_dir():
        path = path / TRAINER_FILE
        if not path.is_file():
            found = sorted(item.name for item in Path(source).iterdir())
            raise ValueError(f"{source} has no {TRAINER_FILE}; it holds {', '.join(found) or 'nothing'}")
    if not path.is_file():
        raise ValueError(f"{source}: there is no such file or folder")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as tensors: {str(error).splitlines()[0]}") from None
    momenta = list(_from_state_dict(content) if _is_state_dict(content) else _from_tensors(content, ""))
    fitting = [momentum for momentum in momenta if key_of(*momentum.matrix.shape) == shape and momentum.matrix.any()]
    if not fitting:
        counts = Counter(key_of(*momentum.matrix.shape) for momentum in momenta)
        there = ", ".join(f"{count} of {spell_shape(key)}" for key, count in sorted(counts.items()))
        what = "momenta" if _is_state_dict(content) else "matrices"
        raise ValueError(
            f"{path} has no {what} of {spell_shape(shape)} that are not zero; it has {there or f'no {what} at all'}"
        )
    return fitting


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and {"state", "param_groups"} <= content.keys()


def _from_state_dict(state_dict: Mapping[str, Any]) -> Iterator[Momentum]:
    for group in state_dict["param_groups"]:
        names = group.get("param_names") or [f"parameter {index}" for index in group["params"]]
        for name, index in zip(names, group["params"], strict=True):
            buffer = state_dict["state"].get(index, {}).get("momentum_buffer")
            if not isinstance(buffer, Tensor) or buffer.ndim < 2:
                continue
            view = parse_view(group.get("view") or ("flatten" if buffer.ndim > 3 else "matrix"))
            if view.is_matrix and not view.spec.startswith("column"):  # stacked biases are no matrices
                for piece in view.pieces(buffer):
                    yield from _matrices(piece, name)


def _from_tensors(content: Any, name: str) -> Iterator[Momentum]:
    """Every tensor of two or more dimensions, wherever it is in dicts and lists."""
    if isinstance(content, Tensor):
        if content.ndim >= 2 and content.is_floating_point():
            yield from _matrices(content, name)
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _from_tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            yield from _from_tensors(value, f"{name}.{number}" if name else str(number))


def _matrices(tensor: Tensor, name: str) -> Iterator[Momentum]:
    for matrix in tensor.reshape(-1, *tensor.shape[-2:]):
        yield Momentum(name, matrix)

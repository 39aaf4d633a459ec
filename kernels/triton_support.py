"""Whether Triton kernels can run: the one place that asks. Importing this never fails and never imports Triton."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from importlib import metadata

import torch

OLDEST = (3, 6)
"""The oldest Triton that the kernels are tested with."""

_log = logging.getLogger("orthoopt")


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU (``TRITON_INTERPRET=1``); kernels then take CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def available(device: torch.device | str) -> bool:
    """Whether Triton kernels run on tensors of this device: an NVIDIA GPU from Ampere on, or the interpreter's CPU.

    Where Triton is older than :data:`OLDEST`, one log line says so.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return interpreted() and _recent()
    return device.type == "cuda" and not interpreted() and _capable(device.index) and _recent()


@functools.cache
def version() -> tuple[int, ...] | None:
    """Triton's version as (major, minor); None where there is no Triton."""
    if importlib.util.find_spec("triton") is None:
        return None
    for name in ("triton", "pytorch-triton", "triton-windows"):
        try:
            return tuple(int(part) for part in metadata.version(name).split(".")[:2])
        except metadata.PackageNotFoundError:
            continue
        except ValueError:
            break
    return None


@functools.cache
def _recent() -> bool:
    found = version()
    if found is None:
        return False
    if found < OLDEST:
        spelled, oldest = ".".join(map(str, found)), ".".join(map(str, OLDEST))
        _log.warning(
            "Triton %s is older than %s: orthoopt uses torch operations instead of its kernels", spelled, oldest
        )
        return False
    return True


@functools.cache
def _capable(index: int | None) -> bool:
    if torch.version.hip is not None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(index) >= (8, 0)

"""Whether the Triton kernels can run on a device, and what that device is. Imports no Triton."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import re

import torch

logger = logging.getLogger(__name__)

FLOOR = (3, 6)
"""The oldest Triton whose kernels were checked; torch 2.9 brings 3.5."""

INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
"""Whether Triton interprets its kernels on the CPU. Triton reads the variable too, once, when a kernel is defined."""

_warned = False


def _installed() -> tuple[int, int] | None:
    """Version of the installed Triton; None without one. Importing it would cost every CPU user half a second."""
    if importlib.util.find_spec("triton") is None:
        return None
    for name in ("triton", "pytorch-triton", "triton-windows"):
        try:
            found = re.match(r"(\d+)\.(\d+)", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
        if found:
            return int(found[1]), int(found[2])
    return None


VERSION = _installed()
"""``(major, minor)`` of Triton; None where it is missing."""


def available(device: torch.device) -> bool:
    """Whether the Triton kernels run on ``device``.

    True on NVIDIA GPUs of compute capability 8.0 or more with Triton 3.6 or newer, and on a CPU under Triton's
    interpreter. A Triton that is too old is logged once, where a GPU asks for it.
    """
    global _warned
    if device.type != ("cpu" if INTERPRETED else "cuda") or VERSION is None:
        return False
    if VERSION < FLOOR:
        if not _warned and not torch.compiler.is_compiling():
            _warned = True
            have, need = (".".join(map(str, version)) for version in (VERSION, FLOOR))
            logger.warning("Triton %s is installed, the kernels need %s or newer: torch's own ops are used", have, need)
        return False
    return INTERPRETED or (torch.version.hip is None and gpu_class(device) != "old")


def gpu_class(device: torch.device) -> str:
    """The kind of GPU that tables are keyed by; "interpreter" for a CPU.

    "ampere" is 8.0 alone. 8.6 to 8.9 are "ada", and 12.x is "geforce_blackwell": both have 99 KiB of shared memory a
    program and no asynchronous tensor-core instructions. 9.x is "hopper", 10.x and 11.x are "blackwell".
    """
    if device.type != "cuda":
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if properties.major == 8:
        return "ampere" if properties.minor == 0 else "ada"
    if properties.major < 8:
        return "old"
    return "hopper" if properties.major == 9 else "blackwell" if properties.major < 12 else "geforce_blackwell"


def multiprocessors(device: torch.device) -> int:
    """How many programs of one block run at a time."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1

"""Momenta in eight bits an entry: blocks of 256 with a scale each, by torchao's codes and tables.

Source: Dettmers et al., arXiv 2110.02861 (block-wise dynamic quantization); ``torchao.optim.quant_utils``. The codes
lie in the state under the momentum's own key, shaped as the parameter, the scales under ``KEY.scale``: plain tensors,
which load without torchao's classes.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 256
"""Entries that share a scale, in the order of memory of a contiguous tensor."""
MIN_ELEMENTS = 4096
"""Smaller tensors stay in float32, as torchao has it: they cost next to nothing."""


def require_torchao(what: str) -> None:
    """Raise ImportError, naming the option and the command that installs it, where torchao is missing."""
    if importlib.util.find_spec("torchao") is None:
        raise ImportError(f"{what} needs torchao, which is not installed: pip install torchao")


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, uint8 and shaped as ``x``, and the scales of its blocks, float32; the nearest code for every entry."""
    blocks = functional.pad(x.reshape(-1).to(torch.float32), (0, -x.numel() % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(-1)
    # Not torchao's own scale_tensor, whose floor of 1e-12 would make zeros of small gradients' momenta.
    codes = _torchao().quantize_8bit_with_qmap(blocks / scales.where(scales > 0, 1).unsqueeze(-1), _table(x.device))
    return codes.reshape(-1)[: x.numel()].view(x.shape), scales


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """What :func:`quantize` was given, to within half a step of the table: float32."""
    blocks = functional.pad(codes.reshape(-1), (0, -codes.numel() % BLOCK)).view(-1, BLOCK)
    values = _torchao().dequant_with_qmap(blocks, _table(codes.device), scales)
    return values.reshape(-1)[: codes.numel()].view(codes.shape)


def _torchao() -> Any:
    require_torchao("state in eight bits")
    return importlib.import_module("torchao.optim.quant_utils")


@functools.cache
def _table(device: torch.device) -> Tensor:
    return torch.tensor(_torchao().create_dynamic_map(signed=True), dtype=torch.float32, device=device)

"""Scales: the factor between a direction and an update, from the logical (rows, cols) = (out, in) shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from orthoopt.spelling import near

DEFAULT_SCALE = "match_rms_adamw"

TARGET_RMS = 0.2
"""Root mean square of a typical AdamW update (Moonlight, arXiv 2502.16982, section 2.2)."""

_SCALES: dict[str, Callable[[int, int, float], float]] = {
    "none": lambda rows, cols, rms: 1.0,
    # The update has the RMS of AdamW's, so AdamW's learning rate carries over; 0.2·√max(rows, cols) for polar factors.
    "match_rms_adamw": lambda rows, cols, rms: TARGET_RMS / rms,
    # KellerJordan/Muon; torch.optim.Muon's "original".
    "shape_scaling": lambda rows, cols, rms: math.sqrt(max(1.0, rows / cols)),
    # Scion (arXiv 2502.07529): maps unit-RMS inputs to unit-RMS outputs.
    "unit_rms_norm": lambda rows, cols, rms: math.sqrt(rows / cols),
    # NVIDIA-NeMo/Emerging-Optimizers: unit-RMS entries for polar factors.
    "spectral": lambda rows, cols, rms: math.sqrt(max(rows, cols)),
}


def names() -> list[str]:
    """The names of the scales."""
    return sorted(_SCALES)


def check_scale(name: Any, where: str = "") -> None:
    """Raise ValueError unless ``name`` is a scale."""
    if name not in names():
        place, hint = f" ({where})" if where else "", near(name, _SCALES).removesuffix(".")
        raise ValueError(f"scale={name!r}{place} must be one of {', '.join(map(repr, names()))}{hint}")


def scale_factor(name: str, rows: int, cols: int, rms: float) -> float:
    """The factor s in ``W ← W − lr·s·U``.

    Args:
        name: one of :func:`names`.
        rows: output features of the matrix as viewed.
        cols: input features of the matrix as viewed.
        rms: root mean square of the rule's direction for a full-rank matrix of this shape.
    """
    return _SCALES[name](rows, cols, rms)

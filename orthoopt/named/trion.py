"""Trion: the polar factor of a few columns of the momentum in a cosine basis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

from torch import Tensor

from orthoopt.dispatch import Overrides, Params
from orthoopt.named._groups import Coefficients, groups_from
from orthoopt.optimizer import OrthoOpt
from orthoopt.scale import DEFAULT_SCALE
from orthoopt.step_options import StepOptions


class Trion(OrthoOpt):
    """Trion on linear maps, AdamW elsewhere (plan ``trion``, arXiv 2505.17967).

    Args:
        params: a model, named parameters, bare parameters (shapes decide, with a warning), or param groups.
        lr: learning rate.
        weight_decay: decoupled weight decay; vectors are not decayed.
        momentum: share of the used columns that stays in the momentum.
        rank: columns kept of each matrix: a whole number, or a fraction of the shorter side.
        selection: the norm by which columns are chosen, ``"l2"`` or ``"l1"`` (published).
        basis: ``"dct"``, or ``"identity"`` for the matrix's own coordinates.
        side: choose columns (``"right"``) or rows (``"left"``); ``"auto"``: of the shorter side, columns if
            square.
        ns_coefficients: a table of :mod:`orthoopt.coefficients`, one (a, b, c), or several.
        ns_steps: Newton-Schulz iterations.
        ns_dtype: dtype of the iteration; ``"auto"`` chooses by device.
        scale: one of ``orthoopt.scale.names()``; published is ``"shape_scaling"``.
        betas: AdamW's, for the other parameters.
        eps: AdamW's eps.
        weight_decay_mode: ``"decoupled"``, ``"independent"`` or ``"cautious"``, see :mod:`orthoopt.weight_decay`.
        overrides: (pattern, entry) pairs, see :func:`orthoopt.param_groups`.
        maximize: ascend.
        nonfinite: ``"skip"``, ``"raise"`` or ``"ignore"``, see :class:`OrthoOpt`.
        step_options: ``state_dtype``, ``rounding``, ``max_update_rms`` ..., see :mod:`orthoopt.step_options`.
    """

    def __init__(
        self,
        params: Params | Iterable[Mapping[str, Any]],
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        *,
        rank: int | float = 0.25,
        selection: str = "l2",
        basis: str = "dct",
        side: str = "auto",
        ns_coefficients: Coefficients = "muon",
        ns_steps: int = 5,
        ns_dtype: str = "auto",
        scale: str = DEFAULT_SCALE,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay_mode: str = "decoupled",
        overrides: Overrides = (),
        maximize: bool = False,
        nonfinite: str = "skip",
        **step_options: Unpack[StepOptions],
    ) -> None:
        options = {
            "momentum": momentum, "rank": rank, "selection": selection, "basis": basis, "side": side,
            "ns_coefficients": ns_coefficients, "ns_steps": ns_steps, "ns_dtype": ns_dtype, "scale": scale,
            "betas": betas, "eps": eps,
            "weight_decay_mode": weight_decay_mode,
        }  # fmt: skip
        groups = groups_from(params, "trion", lr, weight_decay, overrides, options)
        super().__init__(
            groups,
            lr,
            weight_decay,
            weight_decay_mode=weight_decay_mode,
            maximize=maximize,
            nonfinite=nonfinite,
            **step_options,
        )

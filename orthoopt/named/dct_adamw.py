"""DCT-AdamW: AdamW with moments for a few cosine coordinates of each matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

from torch import Tensor

from orthoopt.dispatch import Overrides, Params
from orthoopt.named._groups import groups_from
from orthoopt.optimizer import OrthoOpt
from orthoopt.step_options import StepOptions


class DCTAdamW(OrthoOpt):
    """DCT-AdamW on linear maps, AdamW elsewhere (plan ``dct_adamw``, arXiv 2505.17967); torch.optim.AdamW's order.

    Args:
        params: a model, named parameters, bare parameters (shapes decide, with a warning), or param groups.
        lr: learning rate; AdamW's carries over.
        betas: decay of both moments, for every parameter.
        eps: AdamW's eps, for every parameter.
        weight_decay: decoupled weight decay; vectors are not decayed.
        rank: columns that have moments: a whole number, or a fraction of the shorter side.
        update_interval: how often columns are chosen, in steps.
        selection: the norm by which columns are chosen, ``"l2"`` or ``"l1"`` (published).
        basis: ``"dct"``, or ``"identity"`` for the matrix's own coordinates.
        side: choose columns (``"right"``) or rows (``"left"``); ``"auto"``: of the shorter side, columns if
            square.
        error_feedback: add what was left out of one gradient to the next; a buffer of the parameter's size.
        rotate: moments follow their columns when others are chosen; False as published.
        scale: one of ``orthoopt.scale.names()``; ``"none"`` leaves the update as long as Adam makes it.
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
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        *,
        rank: int | float = 0.25,
        update_interval: int = 1,
        selection: str = "l2",
        basis: str = "dct",
        side: str = "auto",
        error_feedback: bool = False,
        rotate: bool = True,
        scale: str = "none",
        weight_decay_mode: str = "decoupled",
        overrides: Overrides = (),
        maximize: bool = False,
        nonfinite: str = "skip",
        **step_options: Unpack[StepOptions],
    ) -> None:
        options = {
            "betas": betas, "eps": eps, "rank": rank, "update_interval": update_interval, "selection": selection,
            "basis": basis, "side": side, "error_feedback": error_feedback, "rotate": rotate, "scale": scale,
            "weight_decay_mode": weight_decay_mode,
        }  # fmt: skip
        groups = groups_from(params, "dct_adamw", lr, weight_decay, overrides, options)
        super().__init__(
            groups,
            lr,
            weight_decay,
            weight_decay_mode=weight_decay_mode,
            maximize=maximize,
            nonfinite=nonfinite,
            **step_options,
        )

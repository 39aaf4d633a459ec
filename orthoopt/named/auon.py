"""AuON: the momentum divided by a bound on its spectral norm on linear maps, AdamW elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

from torch import Tensor

from orthoopt.dispatch import Overrides, Params
from orthoopt.named._groups import groups_from
from orthoopt.optimizer import OrthoOpt
from orthoopt.scale import DEFAULT_SCALE
from orthoopt.step_options import StepOptions


class AuON(OrthoOpt):
    """Linear maps' momentum divided by a bound on its spectral norm, AdamW elsewhere (plan ``auon``); linear time.

    Args:
        params: a model, named parameters, bare parameters (shapes decide, with a warning), or param groups.
        lr: learning rate. The published 0.055 is for ``variant="paper", scale="shape_scaling"``, 0.24 for
            ``"repository"``, which takes its scale from the gradients.
        weight_decay: decoupled weight decay; vectors are not decayed.
        momentum: coefficient of the gradient average.
        nesterov: blend the gradient into the average once more.
        variant: ``"spectral_bound"``, or a published form, ``"paper"`` or ``"repository"``; see
            :mod:`orthoopt.rules.auon` for what these come to.
        scale: one of ``orthoopt.scale.names()``.
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
        nesterov: bool = True,
        *,
        variant: str = "spectral_bound",
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
            "momentum": momentum, "nesterov": nesterov, "variant": variant, "scale": scale, "betas": betas, "eps": eps,
            "weight_decay_mode": weight_decay_mode,
        }  # fmt: skip
        groups = groups_from(params, "auon", lr, weight_decay, overrides, options)
        super().__init__(
            groups,
            lr,
            weight_decay,
            weight_decay_mode=weight_decay_mode,
            maximize=maximize,
            nonfinite=nonfinite,
            **step_options,
        )

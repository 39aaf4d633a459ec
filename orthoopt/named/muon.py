"""Muon: the polar factor of the momentum on linear maps, AdamW elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Unpack

from torch import Tensor

from orthoopt.dispatch import Overrides, Params
from orthoopt.named._groups import Coefficients, groups_from
from orthoopt.optimizer import OrthoOpt
from orthoopt.scale import DEFAULT_SCALE
from orthoopt.step_options import StepOptions

_TORCH_EPS = 1e-7


class Muon(OrthoOpt):
    """Muon on linear maps, AdamW elsewhere (plan ``muon``). The arguments of ``torch.optim.Muon`` mean the same here.

    Args:
        params: a model, named parameters, bare parameters (shapes decide, with a warning), or param groups.
        lr: learning rate.
        weight_decay: decoupled weight decay; vectors are not decayed.
        momentum: coefficient of the gradient average.
        nesterov: blend the gradient into the average once more.
        ns_coefficients: a table of :mod:`orthoopt.coefficients`, one (a, b, c), or several.
        eps: torch's floor under the norm. Accepted for its signature; the norm here is exact at every scale, so other
            values have no effect and say so.
        ns_steps: Newton-Schulz iterations.
        adjust_lr_fn: torch's name for ``scale``: ``"original"`` is ``"shape_scaling"``.
        scale: one of ``orthoopt.scale.names()``; torch's own default is ``"shape_scaling"``.
        ns_dtype: dtype of the iteration; ``"auto"`` chooses by device.
        betas: AdamW's, for the other parameters.
        adam_eps: AdamW's eps.
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
        ns_coefficients: Coefficients = "muon",
        eps: float = _TORCH_EPS,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        scale: str = DEFAULT_SCALE,
        ns_dtype: str = "auto",
        betas: tuple[float, float] = (0.9, 0.95),
        adam_eps: float = 1e-8,
        weight_decay_mode: str = "decoupled",
        overrides: Overrides = (),
        maximize: bool = False,
        nonfinite: str = "skip",
        **step_options: Unpack[StepOptions],
    ) -> None:
        if eps != _TORCH_EPS:
            warnings.warn(f"eps={eps!r} has no effect: the norm is exact at every scale", stacklevel=2)
        if adjust_lr_fn is not None:
            known = {"original": "shape_scaling", "match_rms_adamw": "match_rms_adamw"}
            if adjust_lr_fn not in known:
                raise ValueError(f"adjust_lr_fn={adjust_lr_fn!r} must be None or one of {', '.join(map(repr, known))}")
            scale = known[adjust_lr_fn]
        options = {
            "momentum": momentum, "nesterov": nesterov, "ns_coefficients": ns_coefficients, "ns_steps": ns_steps,
            "ns_dtype": ns_dtype, "scale": scale, "betas": betas, "eps": adam_eps,
            "weight_decay_mode": weight_decay_mode,
        }  # fmt: skip
        groups = groups_from(params, "muon", lr, weight_decay, overrides, options)
        super().__init__(
            groups,
            lr,
            weight_decay,
            weight_decay_mode=weight_decay_mode,
            maximize=maximize,
            nonfinite=nonfinite,
            **step_options,
        )

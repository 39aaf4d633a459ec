"""ROOT: Muon on momentum clipped at a quantile, with coefficients fitted to each matrix shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

from torch import Tensor

from orthoopt.dispatch import Overrides, Params
from orthoopt.named._groups import Coefficients, groups_from
from orthoopt.optimizer import OrthoOpt
from orthoopt.scale import DEFAULT_SCALE
from orthoopt.step_options import StepOptions


class Root(OrthoOpt):
    """ROOT on linear maps, AdamW elsewhere (plan ``root``, arXiv 2511.20626); the defaults are the published ones.

    Args:
        params: a model, named parameters, bare parameters (shapes decide, with a warning), or param groups.
        lr: learning rate, of all parameters.
        weight_decay: decoupled weight decay; vectors are not decayed.
        momentum: coefficient of the gradient sum.
        nesterov: add the gradient to the sum once more.
        momentum_form: ``"heavy_ball"`` or ``"ema"``; the update is the same to rounding.
        threshold: ``"quantile"``, or ``"rms"`` for a constant multiple of the root mean square entry.
        quantile: entries beyond this quantile of a matrix's magnitudes are clipped to it; 1 clips nothing.
        rms_multiple: the multiple under ``threshold="rms"``.
        ns_coefficients: ``"fitted"`` (to the shape, :mod:`orthoopt.adanewton`), ``"released"`` (the authors' four
            shapes, Muon's elsewhere), a table of :mod:`orthoopt.coefficients`, one (a, b, c), or several.
        ns_steps: Newton-Schulz iterations.
        ns_dtype: dtype of the iteration; ``"auto"`` chooses by device.
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
        momentum_form: str = "heavy_ball",
        threshold: str = "quantile",
        quantile: float = 0.9,
        rms_multiple: float = 2.0,
        ns_coefficients: Coefficients = "fitted",
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
            "momentum": momentum, "nesterov": nesterov, "momentum_form": momentum_form, "threshold": threshold,
            "quantile": quantile, "rms_multiple": rms_multiple, "ns_coefficients": ns_coefficients,
            "ns_steps": ns_steps, "ns_dtype": ns_dtype, "scale": scale, "betas": betas, "eps": eps,
            "weight_decay_mode": weight_decay_mode,
        }  # fmt: skip
        groups = groups_from(params, "root", lr, weight_decay, overrides, options)
        super().__init__(
            groups,
            lr,
            weight_decay,
            weight_decay_mode=weight_decay_mode,
            maximize=maximize,
            nonfinite=nonfinite,
            **step_options,
        )

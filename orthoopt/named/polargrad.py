"""PolarGrad: the polar factor of the momentum times its nuclear norm on linear maps, AdamW elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

from torch import Tensor

from orthoopt.dispatch import Overrides, Params
from orthoopt.named._groups import Coefficients, groups_from, in_own_units
from orthoopt.optimizer import OrthoOpt
from orthoopt.step_options import StepOptions


class PolarGrad(OrthoOpt):
    """PolarGrad on linear maps, AdamW elsewhere (plan ``polargrad``, arXiv 2505.21799).

    The update is ν·polar of the momentum, ν its nuclear norm: it shrinks with the gradient, and so its learning rate
    has units of its own.

    Args:
        params: a model, named parameters, bare parameters (shapes decide, with a warning), or param groups.
        lr: AdamW's learning rate; the matrices get the plan's multiple of it, since their updates are as long as a
            gradient. With ``adam_lr`` PolarGrad's own learning rate instead, of which 0.02
            was published for the authors' toy problems.
        weight_decay: decoupled weight decay of AdamW's groups; vectors are not decayed.
        momentum: coefficient of the gradient average.
        order: ``"momentum_first"``: ν and polar factor of the average; ``"polar_first"``: average of polar factors,
            times ν of the gradient.
        method: how the polar factor is computed, see :func:`orthoopt.orthogonalize`; ``"auto"`` is exact for small
            matrices on CPUs and five steps of Polar Express elsewhere.
        ns_steps: iterations of the iterative methods.
        ns_coefficients: their table, see :mod:`orthoopt.coefficients`.
        ns_dtype: dtype of the computation; ``"auto"`` chooses by device and method.
        matrix_weight_decay: decoupled weight decay of the matrices, ``W ← (1 − lr·λ)·W`` with their own learning rate,
            multiplier included.
        scale: one of ``orthoopt.scale.names()``; ``"match_rms_adamw"`` gives ν times Muon's update.
        adam_lr: learning rate of AdamW's groups; makes ``lr`` PolarGrad's own.
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
        *,
        order: str = "momentum_first",
        method: str = "auto",
        ns_steps: int = 5,
        ns_coefficients: Coefficients = "polar_express",
        ns_dtype: str = "auto",
        matrix_weight_decay: float = 0.0,
        scale: str = "none",
        adam_lr: float | Tensor | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        adam_eps: float = 1e-8,
        weight_decay_mode: str = "decoupled",
        overrides: Overrides = (),
        maximize: bool = False,
        nonfinite: str = "skip",
        **step_options: Unpack[StepOptions],
    ) -> None:
        options = {
            "momentum": momentum, "order": order,
            "method": method, "ns_steps": ns_steps, "ns_coefficients": ns_coefficients, "ns_dtype": ns_dtype,
            "scale": scale, "betas": betas, "eps": adam_eps, "weight_decay_mode": weight_decay_mode,
        }  # fmt: skip
        plan = in_own_units("polargrad", adam_lr, matrix_weight_decay)
        groups = groups_from(params, plan, lr, weight_decay, overrides, options)
        super().__init__(
            groups,
            lr,
            weight_decay,
            weight_decay_mode=weight_decay_mode,
            maximize=maximize,
            nonfinite=nonfinite,
            **step_options,
        )

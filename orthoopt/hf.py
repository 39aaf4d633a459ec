"""Hugging Face Trainer, TRL and Axolotl: the optimizer factory they call with the model.

Nothing of transformers is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from torch import nn

from orthoopt.dispatch import Overrides, param_groups
from orthoopt.optimizer import OrthoOpt
from orthoopt.plan_files import AnyPlan
from orthoopt.step_options import StepOptions

__all__ = ["OptimizerFactory"]


class OptimizerFactory:
    """Builds the optimizer once Trainer has the model, so that roles and names are known.

    ``Trainer(..., optimizer_cls_and_kwargs=(OptimizerFactory, {"plan": "symmetry", "lr": 3e-4}))``.
    transformers calls a class that is no Optimizer as ``cls()(model, **kwargs)``; Axolotl adds its training
    arguments after the model. Trainer itself logs the learning rate of the first group only.
    """

    def __call__(
        self,
        model: nn.Module,
        training_args: Any = None,
        *,
        plan: AnyPlan = "symmetry",
        lr: float | None = None,
        weight_decay: float | None = None,
        overrides: Overrides = (),
        options: Mapping[str, Any] | None = None,
        weight_decay_mode: str = "decoupled",
        maximize: bool = False,
        nonfinite: str = "skip",
        **step_options: Unpack[StepOptions],
    ) -> OrthoOpt:
        """Return an `OrthoOpt` over `model`'s trainable parameters.

        `lr` and `weight_decay`, where they are not given, are `training_args`' own, without those 1e-3 and
        0.1. `plan`, `overrides` and `options` are those of `orthoopt.param_groups`, the rest those of `OrthoOpt`.
        Raises what `orthoopt.param_groups` raises: an unknown plan, or an override that matches nothing.
        """
        if lr is None:
            lr = 1e-3 if training_args is None else float(training_args.learning_rate)
        if weight_decay is None:
            weight_decay = 0.1 if training_args is None else float(training_args.weight_decay)
        if weight_decay_mode != "decoupled":
            options = {"weight_decay_mode": weight_decay_mode, **(options or {})}
        groups = param_groups(model, plan, lr=lr, weight_decay=weight_decay, overrides=overrides, options=options)
        return OrthoOpt(
            groups,
            lr,
            weight_decay,
            weight_decay_mode=weight_decay_mode,
            maximize=maximize,
            nonfinite=nonfinite,
            **step_options,
        )

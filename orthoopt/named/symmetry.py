"""Symmetry: the rule that each parameter's symmetry asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

from torch import Tensor

from orthoopt.dispatch import Overrides, Params
from orthoopt.named._groups import Coefficients, groups_from
from orthoopt.optimizer import OrthoOpt
from orthoopt.plan_files import AnyPlan, PlanFile, is_file
from orthoopt.spelling import near
from orthoopt.step_options import StepOptions

_PLANS = ("symmetry", "symmetry_hybrid", "symmetry_paper", "symmetry_paper_hybrid")


class Symmetry(OrthoOpt):
    """The rule that each parameter's symmetry asks for (arXiv 2605.18106).

    Linear maps get the polar factor of their momentum, embeddings, heads and routers their rows normalized, vectors
    AdamW (plan ``symmetry``). Other plans of the family choose otherwise, see ``docs/rules/symmetry.md``.

    Args:
        params: a model, named parameters, bare parameters (shapes decide, with a warning), or param groups.
        lr: learning rate.
        weight_decay: decoupled weight decay of the linear maps; embeddings, heads, routers and vectors have none. The
            published plans have their own.
        momentum: coefficient of the gradient average, in every matrix rule. Of this and the options below, None leaves
            each entry the plan's: 0.95 but where a plan file says otherwise.
        plan: ``"symmetry"``; ``"symmetry_hybrid"``, hybrid rules on mlps, experts, embeddings and heads; or the
            published assignment and numbers, for lr=2e-2: ``"symmetry_paper"`` with Muon on mlps and experts,
            ``"symmetry_paper_hybrid"`` with hybrid rules there. Or a plan file of any base, see ``docs/plan_files.md``.
        ns_coefficients: a table of :mod:`orthoopt.coefficients`, one (a, b, c), or several, for every rule that
            iterates; the plan's is ``"muon"`` in plan ``symmetry``.
        ns_steps: Newton-Schulz iterations; the plan's are 5.
        ns_dtype: dtype of the iteration; the plan's is ``"auto"``, which chooses by device.
        scale: one of ``orthoopt.scale.names()``, for every matrix; the plan's is ``"match_rms_adamw"``, but the
            published ones.
        betas: AdamW's, for vectors; the plan's are (0.9, 0.95).
        eps: AdamW's eps; the plan's is 1e-8.
        weight_decay_mode: ``"decoupled"``, the plan's, ``"independent"`` or ``"cautious"``, see
            :mod:`orthoopt.weight_decay`.
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
        momentum: float | None = None,
        *,
        plan: AnyPlan = "symmetry",
        ns_coefficients: Coefficients | None = None,
        ns_steps: int | None = None,
        ns_dtype: str | None = None,
        scale: str | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay_mode: str | None = None,
        overrides: Overrides = (),
        maximize: bool = False,
        nonfinite: str = "skip",
        **step_options: Unpack[StepOptions],
    ) -> None:
        if not (is_file(plan) or isinstance(plan, PlanFile) or plan in _PLANS):
            known, hint = ", ".join(map(repr, _PLANS)), near(plan, _PLANS).removesuffix(".")
            raise ValueError(f"plan={plan!r} must be one of {known}, or a plan file{hint}")
        options = {
            "momentum": momentum, "ns_coefficients": ns_coefficients, "ns_steps": ns_steps, "ns_dtype": ns_dtype,
            "scale": scale, "betas": betas, "eps": eps,
            "weight_decay_mode": weight_decay_mode,
        }  # fmt: skip
        given = {name: value for name, value in options.items() if value is not None}
        groups = groups_from(params, plan, lr, weight_decay, overrides, given)
        mode = weight_decay_mode or "decoupled"
        super().__init__(
            groups, lr, weight_decay, weight_decay_mode=mode, maximize=maximize, nonfinite=nonfinite, **step_options
        )

"""Scion: every parameter in a norm ball of its role."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

from torch import Tensor, nn

from orthoopt import plans
from orthoopt.dispatch import Overrides, Params
from orthoopt.named._groups import Coefficients, groups_from
from orthoopt.optimizer import OrthoOpt
from orthoopt.step_options import StepOptions

OUTPUT_ROLES = ("lm_head", "tied_embedding")

_NO_DECAY = (
    "weight_decay={!r}: Scion has no weight decay to set. Constrained, its shrinkage is W <- (1 - lr) W and radii say "
    "how far weights may grow; unconstrained (constrained=False) nothing shrinks"
)


class Scion(OrthoOpt):
    """Every parameter in a norm ball of its role (plan ``scion``, arXiv 2502.07529), in the paper's own units.

    ``W ← (1 − lr)·W − lr·ρ·u(d)`` constrained, ``W ← W − lr·ρ·u(d)`` unconstrained. ``lr`` is the paper's γ, not
    AdamW's learning rate. Weights should start inside their balls; outside, they shrink towards them.

    Args:
        params: a model, named parameters, bare parameters (shapes decide, with a warning), or param groups.
        lr: γ. The default is the one published with the default radii (nanoGPT).
        momentum: coefficient of the gradient average, 1 − α: the authors' ``momentum=0.1`` is 0.9 here. 0 keeps no
            state.
        constrained: stay in the balls (Frank and Wolfe); False is steepest descent in the same norms.
        radius: ρ of every role but the next one's. Published: 50 for nanoGPT, 8 for a CNN, 1 for an MLP.
        output_radius: ρ of the head, tied or untied. Published: 3000 for nanoGPT.
        norms: role to norm, for roles that shall have another than the plan's, such as ``{"lm_head": "row_norm"}``; or
            role to several options of the rule, such as ``{"mlp_in": {"scaling": "max", "radius": 10.0}}``.
        method: how polar factors are computed, see :func:`orthoopt.orthogonalize`.
        ns_coefficients: a table of :mod:`orthoopt.coefficients`, one (a, b, c), or several.
        ns_steps: Newton-Schulz iterations.
        ns_dtype: dtype of the iteration; ``"auto"`` chooses by device.
        weight_decay: not to be given; says so.
        overrides: (pattern, entry) pairs, see :func:`orthoopt.param_groups`.
        maximize: ascend.
        nonfinite: ``"skip"``, ``"raise"`` or ``"ignore"``, see :class:`OrthoOpt`.

    Raises:
        ValueError: a weight decay, here or in a param group without a rule; an unknown role or norm.
    """

    def __init__(
        self,
        params: Params | Iterable[Mapping[str, Any]],
        lr: float | Tensor = 2**-12,
        momentum: float = 0.9,
        constrained: bool = True,
        *,
        radius: float = 50.0,
        output_radius: float = 3000.0,
        norms: Mapping[str, str | Mapping[str, Any]] | None = None,
        method: str = "newton_schulz",
        ns_coefficients: Coefficients = "muon",
        ns_steps: int = 5,
        ns_dtype: str = "auto",
        weight_decay: float | None = None,
        overrides: Overrides = (),
        maximize: bool = False,
        nonfinite: str = "skip",
        **step_options: Unpack[StepOptions],
    ) -> None:
        if weight_decay is not None:
            raise ValueError(_NO_DECAY.format(weight_decay))
        if not isinstance(params, nn.Module | Tensor):
            entries: list[Any] = list(params)
            for group in entries:
                if isinstance(group, Mapping) and "rule" not in group and "weight_decay" in group:
                    raise ValueError(_NO_DECAY.format(group["weight_decay"]))
            params = entries
        decay = 1.0 if constrained else 0.0
        plan = _plan(decay, radius, output_radius, norms or {})
        options = {
            "momentum": momentum, "method": method, "ns_coefficients": ns_coefficients, "ns_steps": ns_steps,
            "ns_dtype": ns_dtype,
        }  # fmt: skip
        groups = groups_from(params, plan, lr, decay, overrides, options)
        super().__init__(groups, lr, decay, maximize=maximize, nonfinite=nonfinite, **step_options)


def _plan(
    decay: float, radius: float, output_radius: float, norms: Mapping[str, str | Mapping[str, Any]]
) -> plans.Plan:
    """Plan ``scion`` with these radii and norms."""
    plan = plans.get("scion")
    for role, entry in plan.items():
        entry["weight_decay"] = decay
        if "radius" in entry:
            entry["radius"] = output_radius if role in OUTPUT_ROLES else radius
    for role, choice in norms.items():
        own = {"norm": choice} if isinstance(choice, str) else dict(choice)
        plan[role] = {**plan.get(role, {"rule": "scion"}), **own}  # plans.get refuses a role that is none
    return plan

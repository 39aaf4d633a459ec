"""One constructor a system: :class:`OrthoOpt` with the groups of a ready plan.

Each takes a model, named parameters, bare parameters, or param groups, in torch's argument order; ours follow as
keywords. A learning rate tuned for AdamW carries over, for updates are scaled to the size of AdamW's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from orthoopt.coefficients import Triple
from orthoopt.dispatch import Overrides, Params, param_groups
from orthoopt.groups import DEFAULT_SCALE
from orthoopt.optimizer import OrthoOpt

Plan: TypeAlias = str | Mapping[str, Mapping[str, Any]]
Coefficients: TypeAlias = str | Triple | Sequence[Triple]

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
        overrides: (pattern, entry) pairs, see :func:`orthoopt.param_groups`.
        maximize: ascend.
        nonfinite: ``"skip"`` or ``"raise"``, see :class:`OrthoOpt`.
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
        overrides: Overrides = (),
        maximize: bool = False,
        nonfinite: str = "skip",
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
        }  # fmt: skip
        groups = groups_from(params, "muon", lr, weight_decay, overrides, options)
        super().__init__(groups, lr, weight_decay, maximize=maximize, nonfinite=nonfinite)


class Symmetry(OrthoOpt):
    """The rule that each parameter's symmetry asks for (plan ``symmetry``, arXiv 2605.18106).

    Linear maps get the polar factor of their momentum, embeddings, heads and routers their rows normalized, vectors
    AdamW.

    Args:
        params: a model, named parameters, bare parameters (shapes decide, with a warning), or param groups.
        lr: learning rate.
        weight_decay: decoupled weight decay of the linear maps; embeddings, heads, routers and vectors have none.
        momentum: coefficient of the gradient average, in every matrix rule.
        ns_coefficients: a table of :mod:`orthoopt.coefficients`, one (a, b, c), or several.
        ns_steps: Newton-Schulz iterations.
        ns_dtype: dtype of the iteration; ``"auto"`` chooses by device.
        scale: one of ``orthoopt.scale.names()``.
        betas: AdamW's, for vectors.
        eps: AdamW's eps.
        overrides: (pattern, entry) pairs, see :func:`orthoopt.param_groups`.
        maximize: ascend.
        nonfinite: ``"skip"`` or ``"raise"``, see :class:`OrthoOpt`.
    """

    def __init__(
        self,
        params: Params | Iterable[Mapping[str, Any]],
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        *,
        ns_coefficients: Coefficients = "muon",
        ns_steps: int = 5,
        ns_dtype: str = "auto",
        scale: str = DEFAULT_SCALE,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        overrides: Overrides = (),
        maximize: bool = False,
        nonfinite: str = "skip",
    ) -> None:
        options = {
            "momentum": momentum, "ns_coefficients": ns_coefficients, "ns_steps": ns_steps, "ns_dtype": ns_dtype,
            "scale": scale, "betas": betas, "eps": eps,
        }  # fmt: skip
        groups = groups_from(params, "symmetry", lr, weight_decay, overrides, options)
        super().__init__(groups, lr, weight_decay, maximize=maximize, nonfinite=nonfinite)


class RowNorm(OrthoOpt):
    """Rows of every matrix's momentum brought to length one, AdamW on vectors (plan ``row_norm``); linear time.

    Args:
        params: a model, named parameters, bare parameters (shapes decide, with a warning), or param groups.
        lr: learning rate.
        weight_decay: decoupled weight decay of the linear maps.
        momentum: coefficient of the gradient average.
        nesterov: blend the gradient into the average once more.
        axis: normalize ``"rows"`` (output features) or ``"cols"``.
        eps_mode: how short rows are damped, see :mod:`orthoopt.rules.row_norm`.
        scale: one of ``orthoopt.scale.names()``.
        betas: AdamW's, for vectors.
        eps: AdamW's eps.
        overrides: (pattern, entry) pairs, see :func:`orthoopt.param_groups`.
        maximize: ascend.
        nonfinite: ``"skip"`` or ``"raise"``, see :class:`OrthoOpt`.
    """

    def __init__(
        self,
        params: Params | Iterable[Mapping[str, Any]],
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = False,
        *,
        axis: str = "rows",
        eps_mode: str = "relative",
        scale: str = DEFAULT_SCALE,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        overrides: Overrides = (),
        maximize: bool = False,
        nonfinite: str = "skip",
    ) -> None:
        options = {
            "momentum": momentum, "nesterov": nesterov, "axis": axis, "eps_mode": eps_mode, "scale": scale,
            "betas": betas, "eps": eps,
        }  # fmt: skip
        groups = groups_from(params, "row_norm", lr, weight_decay, overrides, options)
        super().__init__(groups, lr, weight_decay, maximize=maximize, nonfinite=nonfinite)


def groups_from(
    params: Params | Iterable[Mapping[str, Any]],
    plan: Plan,
    lr: float | Tensor,
    weight_decay: float,
    overrides: Overrides,
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Param groups under a plan from whatever a constructor was given.

    Groups that have a ``rule`` stay as they are; others are routed by names or shapes, with their own lr and decay.
    """
    if isinstance(params, nn.Module):
        return param_groups(params, plan, lr=lr, weight_decay=weight_decay, overrides=overrides, options=options)
    if isinstance(params, Tensor):
        raise TypeError("params must be a model, an iterable of parameters or param groups, got a single Tensor")
    entries: list[Any] = list(params)
    if not entries:
        raise ValueError("optimizer got an empty parameter list")
    if not isinstance(entries[0], Mapping):
        return param_groups(entries, plan, lr=lr, weight_decay=weight_decay, overrides=overrides, options=options)
    groups: list[dict[str, Any]] = []
    for group in entries:
        if "rule" in group:
            groups.append(dict(group))
            continue
        rest = {k: v for k, v in group.items() if k not in ("params", "param_names", "lr", "weight_decay")}
        inner = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        if group.get("param_names") is not None:
            inner = list(zip(group["param_names"], inner, strict=True))
        groups += param_groups(
            inner,
            plan,
            lr=group.get("lr", lr),
            weight_decay=group.get("weight_decay", weight_decay),
            overrides=overrides,
            options={**options, **rest},
        )
    return groups

"""Rules that apply a direction to a momentum of the gradient; most rules are one."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from orthoopt.rules._base import Equivariance, Gate, Options, Rule, Signal, State, Tensors
from orthoopt.rules._options import first_line, keyword_options

MOMENTUM_HINTS: dict[str, Any] = {
    "momentum": float,
    "nesterov": bool,
    "momentum_form": Literal["ema", "heavy_ball"],
}


def momentum_rule(
    name: str,
    direction: Callable[..., Any],
    *,
    rms: Callable[[int, int, Options], float],
    equivariance: Callable[[Options, int, int], Equivariance] | Equivariance,
    transposable: bool | Callable[[Options], bool] = False,
    momentum: float = 0.95,
    nesterov: bool = True,
    momentum_form: str = "ema",
    check: Callable[[Options], None] = lambda options: None,
    **further: Any,
) -> Rule:
    """A rule that applies ``direction`` to a momentum of the gradient; most rules are one.

    Args:
        name: the rule's name.
        direction: what is done to the momentum. Its keyword-only arguments are the rule's options, their annotations
            what is allowed, and the first line of its docstring the rule's summary. One that takes a state too, and is
            annotated to return a pair, is the rule's ``advance``.
        rms: see :class:`Rule`.
        equivariance: see :class:`Rule`; a constant where it depends on nothing.
        transposable: see :class:`Rule`; a constant where it depends on nothing.
        momentum: default of the option.
        nesterov: default of the option.
        momentum_form: default of the option.
        check: raises ValueError on bad values of the direction's own options.
        further: other fields of :class:`Rule`.
    """
    own = keyword_options(direction)
    hints = typing.get_type_hints(direction)
    promise = equivariance if callable(equivariance) else (lambda options, rows, cols: equivariance)
    swaps = transposable if callable(transposable) else (lambda options: transposable)
    further["direction" if hints["return"] is Tensor else "advance"] = direction

    def check_all(options: Options) -> None:
        check_momentum(options)
        check(options)

    return Rule(
        name=name,
        summary=first_line(direction),
        defaults={"momentum": momentum, "nesterov": nesterov, "momentum_form": momentum_form, **own},
        hints={**MOMENTUM_HINTS, **{option: hints[option] for option in own}},
        init=init_momentum,
        accumulate=accumulate_momentum,
        equivariance=promise,
        direction_options=tuple(own),
        rms=rms,
        transposable=swaps,
        check=check_all,
        **further,
    )


def check_momentum(options: Options) -> None:
    """Raise ValueError unless ``momentum`` is a coefficient of a decaying average."""
    if not 0 <= options["momentum"] < 1:
        raise ValueError(f"momentum must be at least 0 and below 1, got {options['momentum']!r}")


def init_momentum(param: Tensor, options: Options) -> State:
    """A zero ``momentum_buffer`` shaped as the parameter."""
    return {"momentum_buffer": torch.zeros_like(param, memory_format=torch.preserve_format)}


def accumulate_nothing(grads: Tensors, states: Sequence[State], options: Options, gate: Gate) -> Signal:
    """The gradients themselves, for rules whose momentum moves per matrix or that have none."""
    return Signal(grads)


def accumulate_momentum(grads: Tensors, states: Sequence[State], options: Options, gate: Gate) -> Signal:
    """B ← βB + (1−β)G (``ema``) or B ← βB + G (``heavy_ball``); returns B, or the Nesterov blend of G and B."""
    beta = options["momentum"]
    buffers = [state["momentum_buffer"] for state in states]
    ema = options["momentum_form"] == "ema"
    if gate is not None:
        move_average(buffers, grads, beta, 1 - beta if ema else 1.0, gate)
    elif ema:
        torch._foreach_lerp_(buffers, grads, 1 - beta)
    else:
        torch._foreach_mul_(buffers, beta)
        torch._foreach_add_(buffers, grads)
    if not options["nesterov"]:
        return Signal(buffers)
    if ema:
        return Signal(torch._foreach_lerp(grads, buffers, beta))
    return Signal(torch._foreach_add(grads, buffers, alpha=beta))


def move_average(averages: Tensors, values: Tensors, decay: float, weight: float, gate: Tensor) -> None:
    """``average ← decay·average + weight·value`` where ``gate`` is 1; no change at all where it is 0.

    The gate stays on its device: no host synchronisation.
    """
    torch._foreach_mul_(averages, 1 - (1 - decay) * gate)
    torch._foreach_add_(averages, torch._foreach_mul(values, weight * gate))

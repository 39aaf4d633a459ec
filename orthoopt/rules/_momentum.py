"""Rules that apply a direction to a momentum of the gradient; most rules are one."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from orthoopt.kernels import Moving, momentum_into
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
        moving=moving_of,
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
    """Move the buffers as :func:`moving_of` says; returns them, or the Nesterov blends of gradient and buffer."""
    moving = moving_of(options)
    buffers = [state["momentum_buffer"] for state in states]
    if moving.from_grad == 0:
        momentum_into(grads, buffers, None, moving, gate)
        return Signal(buffers)
    signals = [torch.empty_like(buffer) for buffer in buffers]
    momentum_into(grads, buffers, signals, moving, gate)
    return Signal(signals)


def moving_of(options: Options) -> Moving:
    """B ← βB + (1−β)G (``ema``) or B ← βB + G (``heavy_ball``); the signal is B, or Nesterov's blend.

    That blend is βB + (1−β)G (``ema``) or βB + G.
    """
    beta = options["momentum"]
    weight = 1 - beta if options["momentum_form"] == "ema" else 1.0
    return Moving(beta, weight, weight, beta) if options["nesterov"] else Moving(beta, weight)


def move_average(averages: Tensors, values: Tensors, decay: float, weight: float, gate: Tensor) -> None:
    """``average ← decay·average + weight·value`` where ``gate`` is 1; no change at all where it is 0.

    The gate stays on its device: no host synchronisation.
    """
    torch._foreach_mul_(averages, 1 - (1 - decay) * gate)
    torch._foreach_add_(averages, torch._foreach_mul(values, weight * gate))

"""What a rule is, and how a file becomes one.

A rule makes an update out of gradients and state. It never sees a parameter's value, its learning rate or its
weight decay: those belong to :class:`orthoopt.OrthoOpt`. It has two halves. ``accumulate`` is elementwise: it takes
the gradients of many parameters at once, moves their state and returns what the update is made of. ``direction``,
which only matrix rules have, maps a batch of matrices to a batch of updates and writes neither its input nor state.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

Options: TypeAlias = Mapping[str, Any]
State: TypeAlias = dict[str, Any]
Tensors: TypeAlias = list[Tensor] | tuple[Tensor, ...]
Gate: TypeAlias = Tensor | None
Group: TypeAlias = Literal["orthogonal", "permutation", "signed_permutation", "none"]


class Signal(NamedTuple):
    """What ``accumulate`` returns: one tensor a gradient, and for a quotient rule what it is divided by.

    The update is ``numerators / (denominators · divisors)``. Keeping the three apart lets the optimizer apply a
    quotient in one pass and in torch's own order of operations. Numerators may be state tensors: read, never write.
    """

    numerators: Tensors
    denominators: Tensors | None = None
    divisors: Sequence[Any] | None = None
    """Numbers, or 0-d tensors on a device that must not be waited for."""


class Equivariance(NamedTuple):
    """The symmetry a rule promises: U(L G R) = L U(G) R for L and R from these groups, and what must not hold.

    ``shift``: U does not change when one row vector is added to all rows of the gradient, and its columns sum to zero.
    ``breaks``: (side, group) pairs under which the update must visibly fail to follow.
    """

    left: Group
    right: Group
    breaks: tuple[tuple[Literal["left", "right"], Group], ...] = ()
    shift: bool = False


@dataclass(frozen=True)
class Rule:
    """A way to make updates; see the module's docstring. Made with :func:`register`."""

    name: str
    """The string that a param group holds under ``"rule"``."""
    summary: str
    """One line for people."""
    defaults: Options
    """Option -> default. These become keys of the param group."""
    hints: Mapping[str, Any]
    """Option -> type, as annotated."""
    init: Callable[[Tensor, Options], State]
    """State for a parameter-shaped tensor; tensors take its device, and the dtype the optimizer computes in."""
    accumulate: Callable[[Tensors, Sequence[State], Options, Gate], Signal]
    """Move the state by one step. With ``gate`` (0-d, 1 or 0) every change of state is multiplied by it."""
    equivariance: Callable[[Options], Equivariance]
    """The promised symmetry under given options."""
    direction: Callable[..., Tensor] | None = None
    """``(..., rows, cols)`` and the rule's own options -> the update, same shape; None for elementwise rules."""
    direction_options: tuple[str, ...] = ()
    rms: Callable[[int, int, Options], float] | None = None
    """Root mean square of a direction of a full-rank (rows, cols) matrix, from which scales are computed."""
    transposable: bool = False
    """direction(Xᵀ) = direction(X)ᵀ, so that a tall matrix may share a bucket with a wide one."""
    scale_invariant: Callable[[Options], bool] = field(default=lambda options: True)
    """Whether under given options U(cG) = U(G) for c > 0."""
    check: Callable[[Options], None] = field(default=lambda options: None)
    """Raises ValueError on values that the annotations cannot exclude."""

    @property
    def is_matrix(self) -> bool:
        """Whether the rule needs its parameters seen as matrices."""
        return self.direction is not None

    @functools.cached_property
    def state_keys(self) -> frozenset[str]:
        """The keys that ``init`` gives with the default options."""
        return frozenset(self.init(torch.empty(1, 1, device="meta"), self.defaults))

    def options(self, group: Options) -> dict[str, Any]:
        """This rule's options out of a param group."""
        return {name: group[name] for name in self.defaults}

    def direct(self, x: Tensor, options: Options) -> Tensor:
        """The direction of a batch of matrices ``(..., rows, cols)`` under ``options``."""
        assert self.direction is not None
        return self.direction(x, **{name: options[name] for name in self.direction_options})

    def update(self, grad: Tensor, state: State | None = None, **options: Any) -> tuple[Tensor, State]:
        """One step on one matrix or batch of matrices, as a pure function: nothing passed in is written.

        Args:
            grad: the gradient, ``(..., rows, cols)``; any shape for an elementwise rule.
            state: what the last call returned; None starts afresh.
            options: the rule's options; the rest take their defaults.

        Returns:
            The update, before scale, learning rate and weight decay, and the new state.
        """
        options = {**self.defaults, **options}
        self.validate(options)
        state = self.init(grad, options) if state is None else dict(state)
        state = {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}
        signal = self.accumulate([grad], [state], options, None)
        update = signal.numerators[0]
        if self.is_matrix:
            return self.direct(update, options), state
        if signal.denominators is not None:
            update = update / signal.denominators[0]
        if signal.divisors is not None:
            update = update / signal.divisors[0]
        return update.clone() if signal.denominators is None and signal.divisors is None else update, state

    def validate(self, options: Options, where: str = "") -> None:
        """Check the values of this rule's options.

        Raises:
            ValueError: naming the option, its value and what is allowed; ``where`` says whose options they are.
        """
        place = f" ({where})" if where else ""
        for name in self.defaults:
            value, allowed = options[name], self.hints[name]
            if not _matches(value, allowed):
                raise ValueError(f"option {name}={value!r} of rule {self.name!r}{place} must be {_spell(allowed)}")
        try:
            self.check(options)
        except ValueError as error:
            raise ValueError(f"rule {self.name!r}{place}: {error}") from None

    def reject_unknown(self, given: Sequence[str], also: Sequence[str] = (), where: str = "") -> None:
        """Raise TypeError for an option that neither the rule nor ``also`` knows, naming the nearest known one."""
        known = [*self.defaults, *also]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                place = f" ({where})" if where else ""
                raise TypeError(
                    f"rule {self.name!r}{place} has no option {name!r}{hint} Its options: {', '.join(self.defaults)}"
                )


_RULES: dict[str, Rule] = {}


def register(rule: Rule) -> Rule:
    """Make a rule known by its name; returns it.

    Raises:
        ValueError: another rule has the name already.
    """
    if rule.name in _RULES:
        raise ValueError(f"a rule named {rule.name!r} is registered already")
    _RULES[rule.name] = rule
    return rule


def names() -> list[str]:
    """The names of all registered rules, sorted."""
    return sorted(_RULES)


def get(name: str) -> Rule:
    """The rule of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in _RULES:
        near = difflib.get_close_matches(str(name), _RULES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown rule {name!r}{hint} Known rules: {', '.join(names())}")
    return _RULES[name]


def momentum_rule(
    name: str,
    direction: Callable[..., Tensor],
    *,
    rms: Callable[[int, int, Options], float],
    equivariance: Callable[[Options], Equivariance] | Equivariance,
    transposable: bool = False,
    nesterov: bool = True,
    scale_invariant: Callable[[Options], bool] = lambda options: True,
    check: Callable[[Options], None] = lambda options: None,
) -> Rule:
    """A rule that applies ``direction`` to a momentum of the gradient; most rules are one.

    The keyword-only arguments of ``direction`` are its options, their annotations what is allowed, and the first
    line of its docstring the rule's summary.
    """
    own = _keyword_options(direction)
    hints = typing.get_type_hints(direction)
    promise = equivariance if callable(equivariance) else (lambda options: equivariance)

    def check_all(options: Options) -> None:
        _check_momentum(options)
        check(options)

    return Rule(
        name=name,
        summary=_first_line(direction),
        defaults={"momentum": 0.95, "nesterov": nesterov, "momentum_form": "ema", **own},
        hints={**_MOMENTUM_HINTS, **{option: hints[option] for option in own}},
        init=init_momentum,
        accumulate=accumulate_momentum,
        equivariance=promise,
        direction=direction,
        direction_options=tuple(own),
        rms=rms,
        transposable=transposable,
        scale_invariant=scale_invariant,
        check=check_all,
    )


_MOMENTUM_HINTS: dict[str, Any] = {
    "momentum": float,
    "nesterov": bool,
    "momentum_form": Literal["ema", "heavy_ball"],
}


def _check_momentum(options: Options) -> None:
    if not 0 <= options["momentum"] < 1:
        raise ValueError(f"momentum must be at least 0 and below 1, got {options['momentum']!r}")


def init_momentum(param: Tensor, options: Options) -> State:
    """A zero ``momentum_buffer`` shaped as the parameter."""
    return {"momentum_buffer": torch.zeros_like(param, memory_format=torch.preserve_format)}


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


def _keyword_options(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _first_line(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").split("\n", 1)[0]


def _matches(value: Any, allowed: Any) -> bool:
    """Whether a value fits a type annotation of the few kinds that options use."""
    origin = typing.get_origin(allowed)
    if origin is Literal:
        return value in typing.get_args(allowed) and isinstance(value, str)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, option) for option in typing.get_args(allowed))
    if origin is tuple:
        inner = typing.get_args(allowed)
        if not isinstance(value, tuple | list):
            return False
        if len(inner) == 2 and inner[1] is Ellipsis:
            return all(_matches(item, inner[0]) for item in value)
        return len(value) == len(inner) and all(_matches(v, t) for v, t in zip(value, inner, strict=True))
    if allowed is bool:
        return isinstance(value, bool)
    if allowed is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if allowed is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, allowed)


def _spell(allowed: Any) -> str:
    """A type annotation in words."""
    origin = typing.get_origin(allowed)
    if origin is Literal:
        return "one of " + ", ".join(repr(value) for value in typing.get_args(allowed))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_spell(option) for option in typing.get_args(allowed))
    if origin is tuple:
        return "a tuple of numbers"
    return {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}[allowed]

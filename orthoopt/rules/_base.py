"""What a rule is, and how a file becomes one.

A rule makes an update out of gradients and state. It never sees a parameter's value, its learning rate or its
weight decay: those belong to :class:`orthoopt.OrthoOpt`. It has two halves. ``accumulate`` is elementwise: it takes
the gradients of many parameters at once, moves their state and returns what the update is made of. The other half,
which only matrix rules have, maps a batch of matrices to a batch of updates, and writes neither its input nor state:
``direction`` where nothing is remembered, ``advance`` where matrices have a state of their own, which it returns anew.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from orthoopt.kernels import Moving
from orthoopt.rules._exchange import Asked
from orthoopt.rules._exchange import Rounds as Rounds
from orthoopt.rules._exchange import Shard as Shard
from orthoopt.rules._options import choices, matches, spell
from orthoopt.scale import DEFAULT_SCALE
from orthoopt.spelling import near

Options: TypeAlias = Mapping[str, Any]
State: TypeAlias = dict[str, Any]
Tensors: TypeAlias = list[Tensor] | tuple[Tensor, ...]
Gate: TypeAlias = Tensor | None
Group: TypeAlias = Literal["orthogonal", "permutation", "signed_permutation", "dct_signed_permutation", "none"]
"""``dct_signed_permutation``: D S Dᵀ for the orthonormal DCT-II basis D and a signed permutation S."""
Breaks: TypeAlias = tuple[tuple[Literal["left", "right"], Group | Literal["shift"]], ...]
SHIFT: tuple[Literal["left"], Literal["shift"]] = ("left", "shift")
"""Among ``Equivariance.breaks``: the update must visibly change when one row vector is added to all rows."""


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
    ``breaks``: (side, group) pairs under which the update must visibly fail to follow; see also ``SHIFT``.
    """

    left: Group
    right: Group
    breaks: Breaks = ()
    shift: bool = False


def _no_state(matrix: Tensor, options: Options) -> State:
    return {}


def _as_computed(options: Options, rows: int, cols: int, device: torch.device) -> torch.dtype | None:
    return None


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
    equivariance: Callable[[Options, int, int], Equivariance]
    """The promised symmetry under given options, for matrices of so many rows and columns."""
    measure: Callable[[Tensor, Options, tuple[int, ...] | None], Tensor] | None = None
    """Of an elementwise rule whose update depends on a vector's length: what becomes of ``accumulate``'s numerators.

    It gets a tensor, the options, and the dimensions of a vector in it: (-2, -1) for ``(..., rows, cols)``, as the
    group's view shows a fused or stacked parameter, or None where the whole tensor is one.
    """
    moving: Callable[[Options], Moving | None] = field(default=lambda options: None)
    """What ``accumulate`` does, where that is to move ``momentum_buffer`` alone (``STILL``: not even that); else None.

    It says nothing that ``accumulate`` does not do: with it, the optimizer moves matrix after matrix, straight into the
    stack that ``direction`` or ``advance`` gets, and need not hold the signals of all parameters at once.
    """
    direction: Callable[..., Tensor] | None = None
    """``(..., rows, cols)`` and the rule's own options -> the update, same shape; a rule without matrix state."""
    advance: Callable[..., tuple[Tensor, State]] | None = None
    """``(..., rows, cols)``, the matrices' state and the rule's own options -> the update and the new state.

    Leading dimensions are a batch in matrix and state alike. What the returned state leaves out stays as it is.
    """
    on_shards: Callable[..., Rounds | None] | None = None
    """The update of a part of cut matrices, with small reductions in place of the whole: ``move`` on every rank's part.

    ``(part, shard, options)``, and as a fourth argument the state where there is an ``advance``: a generator, or None
    where these options or this cut need the matrix as a whole. ``part`` is ``(..., rows, cols)`` of a :class:`Shard`,
    perhaps empty; ``options`` are those of the whole group.

    It yields lists of what ranks exchange, see :mod:`orthoopt.rules._exchange`: plain tensors to be summed, and
    others. It is sent the results in the same order, and returns the update of its part; with an ``advance`` the update
    and the changed state: what is ``viewed`` is this rank's part in argument and result, the rest is whole and comes
    out alike on every rank. Nothing given is written. How often it yields, and in which shapes and dtypes, depends on
    nothing that differs between ranks; parts of :class:`Gather` and :class:`OnWhole` alone may differ along their
    dimension. Vectors without a view (``measure`` of None) are parts (1, n) of one row.
    """
    prepare_step: Callable[..., Callable[[], bool] | None] | None = None
    """The whole step of many parameters in one pass over memory, where a kernel op has that for them.

    ``(params, grads, buffers, moving, options, *, scales, lr, keep, gate, memo, alike)``, lists of tensors
    ``(..., rows, cols)`` of any shapes, gives what does ``moving``, ``direction`` and ``subtract_updates`` one after
    the other when it is called, or None; the call gives True if it is done, and False if not, with nothing touched.
    ``memo`` is a dict that stays with these ``params`` and ``buffers``, for what is worth keeping; ``alike`` says that
    the gradients are as in the last call with it, but for values and addresses. Never under ``torch.compile``.
    """
    fused_update: Callable[..., bool] | None = None
    """Of an elementwise rule: its whole step in one pass over memory, where torch has that.

    ``(params, grads, states, options, *, lr, keep, coefficient, maximize, gate)``; ``keep`` is what weight decay
    leaves, and ``coefficient`` λ where that is 1 − lr·λ, else 0. True if it is done; False if not, with nothing
    touched.
    """
    signal_dtype: Callable[[Options, int, int, torch.device], torch.dtype | None] = _as_computed
    """The dtype in which ``direction`` or ``advance`` wants signals of (rows, cols) on a device; None: as they are.

    What an iteration rounds first of all, the momentum can round while it is written.
    """
    workspace: Callable[[int, int, int, Options, torch.dtype, torch.device], int] | None = None
    """Bytes that ``direction`` or ``advance`` holds beside its input, its result included; None: the rule does not say.

    Of (batch, rows, cols, options, dtype of the input, device).
    """
    init_matrix: Callable[[Tensor, Options], State] = _no_state
    """State of a batch of matrices ``(..., rows, cols)`` for ``advance``; every tensor begins with the batch's dims."""
    viewed: tuple[str, ...] = ()
    """Keys of ``init``'s state, shaped as the parameter, that ``advance`` gets too, seen as matrices."""
    direction_options: tuple[str, ...] = ()
    """The options that ``direction`` or ``advance`` takes."""
    rms: Callable[[int, int, Options], float] | None = None
    """Root mean square of a direction of a full-rank (rows, cols) matrix, from which scales are computed."""
    transposable: Callable[[Options], bool] = field(default=lambda options: False)
    """direction(Xᵀ) = direction(X)ᵀ, so that a tall matrix may share a bucket with a wide one; without matrix state."""
    scale_invariant: Callable[[Options], bool] = field(default=lambda options: True)
    """Whether under given options U(cG) = U(G) for c > 0."""
    descends: Callable[[Options], bool] = field(default=lambda options: True)
    """Whether the first update has a positive inner product with its gradient, whatever that is."""
    default_scale: str = DEFAULT_SCALE
    """The scale of groups that name none; ``"none"`` for a rule whose length means something."""
    of_shape: Callable[[tuple[int, ...], Options], Options] = field(default=lambda shape, options: {})
    """Options that follow from the shape of a parameter, which its view may hide; values that are given win."""
    note: Callable[[int, int, Options], str] = field(default=lambda rows, cols, options: "")
    """What ``explain`` adds about a matrix of this shape, "" for nothing."""
    check: Callable[[Options], None] = field(default=lambda options: None)
    """Raises ValueError on values that the annotations cannot exclude."""

    @property
    def is_matrix(self) -> bool:
        """Whether the rule needs its parameters seen as matrices."""
        return self.direction is not None or self.advance is not None

    @property
    def uses_views(self) -> bool:
        """Whether the rule sees its parameters through their views, as a matrix rule does or to measure vectors."""
        return self.is_matrix or self.measure is not None

    def options(self, group: Options) -> dict[str, Any]:
        """This rule's options out of a param group."""
        return {name: group[name] for name in self.defaults}

    def move(self, x: Tensor, state: State, options: Options) -> tuple[Tensor, State]:
        """The update of a batch of matrices ``(..., rows, cols)``, and their new state; nothing given is written."""
        own = {name: options[name] for name in self.direction_options}
        if self.advance is not None:
            update, changed = self.advance(x, state, **own)
            return update, {**state, **changed}
        assert self.direction is not None
        return self.direction(x, **own), state

    def move_part(
        self, part: Tensor, shard: Shard, options: Options, state: State
    ) -> Generator[list[Asked], list[Tensor], tuple[Tensor, State]] | None:
        """Like :meth:`move`, of a part of cut matrices: the generator of ``on_shards``, which returns what that does.

        None where the matrix is needed whole. See ``on_shards`` for what is exchanged, and
        :func:`orthoopt.distributed.rounds.run` for who drives it.
        """
        if self.on_shards is None:
            return None
        given = (part, shard, options) if self.advance is None else (part, shard, options, state)
        rounds = self.on_shards(*given)
        return None if rounds is None else self._with_state(rounds, state)

    def _with_state(self, rounds: Rounds, state: State) -> Generator[list[Asked], list[Tensor], tuple[Tensor, State]]:
        result = yield from rounds
        if self.advance is None:
            return result, state
        update, changed = result
        return update, {**state, **changed}

    def direct(self, x: Tensor, options: Options) -> Tensor:
        """The update of a batch of matrices ``(..., rows, cols)`` that have no history."""
        fresh = {key: value for key, value in self.init(x, options).items() if key in self.viewed}
        return self.move(x, {**fresh, **self.init_matrix(x, options)}, options)[0]

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
        if state is None:
            state = {**self.init(grad, options), **(self.init_matrix(grad, options) if self.is_matrix else {})}
        state = {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}
        signal = self.accumulate([grad], [state], options, None)
        update = signal.numerators[0]
        if self.is_matrix:
            own = {*self.viewed, *self.init_matrix(grad, options)}
            update, moved = self.move(update, {key: state[key] for key in own if key in state}, options)
            return update, {**state, **moved}
        if self.measure is not None:
            update = self.measure(update, options, None)
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
            if not matches(value, allowed):
                hint = near(value, choices(allowed)).removesuffix(".")
                raise ValueError(f"option {name}={value!r} of rule {self.name!r}{place} must be {spell(allowed)}{hint}")
        try:
            self.check(options)
        except ValueError as error:
            raise ValueError(f"rule {self.name!r}{place}: {error}") from None

    def reject_unknown(self, given: Sequence[str], also: Sequence[str] = (), where: str = "") -> None:
        """Raise TypeError for an option that neither the rule nor ``also`` knows, naming the nearest known one."""
        known = [*self.defaults, *also]
        for name in given:
            if name not in known:
                place = f" ({where})" if where else ""
                raise TypeError(
                    f"rule {self.name!r}{place} has no option {name!r}{near(name, known)} "
                    f"Its options: {', '.join(self.defaults)}"
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
        raise ValueError(f"unknown rule {name!r}{near(name, _RULES)} Known rules: {', '.join(names())}")
    return _RULES[name]

"""A step that may happen: state moves, matrices get directions, and parameters their updates."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orthoopt import matrix_state, nonfinite
from orthoopt._work import Work
from orthoopt.buckets import Item, Terms
from orthoopt.elementwise import apply_elementwise, measured
from orthoopt.kernels import STILL, Moving
from orthoopt.nonfinite import without_nonfinite
from orthoopt.prepared import Matrices
from orthoopt.rules import Rule, Tensors
from orthoopt.views import View
from orthoopt.weight_decay import Decay, decay_of

if TYPE_CHECKING:
    from orthoopt.distributed.step import Step

Copies = list[tuple[Tensor, Tensor]]
"""(parameter, what is written in its place) where a view cannot share its memory."""


class Taking:
    """What one step does with its work.

    Args:
        states: the optimizer's, in which what a parameter lacks is created.
        gates: of each device where the host does not wait to know, 0-d: 1, or 0 for a step that changes nothing.
    """

    def __init__(self, states: MutableMapping[Tensor, dict[str, Any]], gates: Mapping[torch.device, Tensor]) -> None:
        self._states, self._gates = states, gates

    def take(self, work: Sequence[Work], matrices: Matrices, team: Step | None) -> None:
        """Move state, and parameters by their updates.

        Args:
            work: what there is to do.
            matrices: what remembers them.
            team: the ranks among which it is divided; None where this process does all of it.
        """
        if team is not None:
            work = self._send(team, work)
        items, copies = self.items(work, matrices)
        self.update(work, matrices, items)
        for param, written in copies:
            param.copy_(written)
        if team is not None:
            team.finish()

    def items(self, work: Sequence[Work], matrices: Matrices) -> tuple[list[Item], Copies]:
        """The matrices of all parts, with what is to become of them; see :meth:`Matrices.of`."""
        items: list[Item] = []
        copies: Copies = []
        for part in work:
            if part.rule.is_matrix:
                ready, apart = self._matrices_of(part, matrices)
                items += ready
                copies += apart
        return items, copies

    def update(self, work: Sequence[Work], matrices: Matrices, items: Sequence[Item]) -> None:
        """Give all their updates: parts of elementwise rules as they come, and of matrix rules these items."""
        for part in work:
            if not part.rule.is_matrix:
                self._update_elementwise(part)
        matrices.apply(items)

    def _send(self, team: Step, work: Sequence[Work]) -> list[Work]:
        """Let what is computed on other ranks too be on its way; returns what is left to this one."""

        def state_of(param: Tensor, part: Work) -> dict[str, Any]:
            return complete_state(self._states, param, part.rule, part.view, part.options)

        for index in range(len(work)):
            part = team.there(index, state_of)
            if part is not None:
                moving, sources = self._signals_of(part)
                team.take(index, part, sources, self._terms_of(part, moving))
        team.start()
        return [part for index in range(len(work)) if (part := team.here(index, state_of)) is not None]

    def _update_elementwise(self, part: Work) -> None:
        gate, states = self._gates.get(part.device), self._states_of(part)
        lr, decay = rate_and_decay(part, gate)
        if part.rule.fused_update is not None and not decay.is_cautious and part.rule.fused_update(
            part.params, part.grads, states, part.options, lr=lr, keep=decay.keep, coefficient=decay.coefficient,
            maximize=part.group["maximize"], gate=gate,
        ):  # fmt: skip
            return
        masters = [_computed(param) for param in part.params]
        signal = part.rule.accumulate(_computed_gradients(part, gate), states, part.options, gate)
        signal = measured(part.rule, signal, part.view, part.options)
        apply_elementwise(masters, signal, lr, decay)
        for param, master in zip(part.params, masters, strict=True):
            if master is not param:
                param.copy_(master)

    def _matrices_of(self, part: Work, matrices: Matrices) -> tuple[list[Item], Copies]:
        moving, sources = self._signals_of(part)
        terms = self._terms_of(part, moving)
        if part.states is not None:
            states = dict(zip(part.params, part.states, strict=True))
            return matrices.of(part, sources, terms, states, states.__getitem__)

        def state_of(param: Tensor) -> dict[str, Any]:
            return complete_state(self._states, param, part.rule, part.view, part.options)

        return matrices.of(part, sources, terms, self._states, state_of)

    def _signals_of(self, part: Work) -> tuple[Moving, Sequence[Tensor]]:
        """How momenta move, and of what; ``STILL`` and the signals where ``accumulate`` has moved them already."""
        moving = part.moving
        if moving is None:
            gate, states = self._gates.get(part.device), self._states_of(part)
            signal = part.rule.accumulate(_computed_gradients(part, gate), states, part.options, gate)
            return STILL, list(signal.numerators)
        return moving.negated() if part.group["maximize"] else moving, part.grads

    def _terms_of(self, part: Work, moving: Moving) -> Terms:
        gate = self._gates.get(part.device)
        lr, decay = rate_and_decay(part, gate)
        return Terms(lr, decay, moving, gate, part.alike)

    def _states_of(self, part: Work) -> list[dict[str, Any]]:
        if part.states is not None:
            return part.states
        return [complete_state(self._states, param, part.rule, part.view, part.options) for param in part.params]


def complete_state(
    states: MutableMapping[Tensor, dict[str, Any]], param: Tensor, rule: Rule, view: View, options: dict[str, Any]
) -> dict[str, Any]:
    """The parameter's state, created at first sight; keys that others put there are left alone.

    Args:
        states: the optimizer's.
        param: the parameter.
        rule: its rule.
        view: how it is seen as matrices.
        options: the rule's options.
    """
    state = states.setdefault(param, {})
    if not matrix_state.state_keys(rule, tuple(param.shape), view, options) <= state.keys():
        for key, value in matrix_state.new_state(rule, _computed(param.detach()), view, options).items():
            state.setdefault(key, value)
    return state


def rate_and_decay(part: Work, gate: Tensor | None) -> tuple[float | Tensor, Decay]:
    """Learning rate and weight decay of a part, nothing of either where the gate is 0."""
    lr = part.group["lr"]
    if isinstance(lr, Tensor):
        lr = lr.reshape(()).to(part.device, non_blocking=True)
    lr = lr if gate is None else gate * lr
    return lr, decay_of(part.group, lr)


def asks_the_host(work: Sequence[Work]) -> bool:
    """Whether the host itself decides if a step may happen, and no rule moves state before it says what it will do."""
    return all(
        nonfinite.host_can_read(part.device) and (not part.rule.is_matrix or part.moving is not None) for part in work
    )


def _computed(tensor: Tensor) -> Tensor:
    """The tensor in the dtype of state and arithmetic, float32 or float64; itself if it is so already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _computed_gradients(part: Work, gate: Tensor | None) -> Tensors:
    """What ``accumulate`` gets: float32 or wider, finite where the gate is 0, and of the function that is minimized."""
    pairs = zip(part.params, part.grads, strict=True)  # a gradient may be wider than its parameter, state is not
    grads = [grad.to(torch.promote_types(param.dtype, torch.float32)) for param, grad in pairs]
    if gate is not None:
        grads = without_nonfinite(grads, gate)
    return torch._foreach_neg(grads) if part.group["maximize"] else grads

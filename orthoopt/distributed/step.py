"""One step among many processes: what is computed here and what elsewhere, and that all agree on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from orthoopt._work import Work
from orthoopt.buckets import Terms
from orthoopt.distributed import cuts
from orthoopt.distributed.agreement import code_of, fingerprint
from orthoopt.distributed.carried import Carried, Kept, kept_of
from orthoopt.distributed.cuts import CutParam
from orthoopt.distributed.division import Lot, cut_for, is_worth_sharing, key_of, laid_out_alike, names_of, stays
from orthoopt.distributed.layout import Layout, plain, replicated
from orthoopt.distributed.planning import Entry, plan_waves
from orthoopt.distributed.state import local_state, write_back
from orthoopt.distributed.teams import Team, group_of
from orthoopt.distributed.waves import Wave, WaveStep, run_waves

if TYPE_CHECKING:
    from orthoopt.distributed.engine import Engine

_MOST_CODES = 64
StateOf = Callable[[Tensor, Work], dict[str, Any]]


class _Leaving(NamedTuple):
    """A parameter that is gathered in this step."""

    part: Work
    layout: Layout
    terms: Terms
    local: Tensor
    source: Tensor
    state: dict[str, Any]


class Step:
    """One step.

    Args:
        engine: the optimizer's.
        team: the processes.
        work: what there is to do; gradients are brought to the layout of their parameters.
    """

    def __init__(self, engine: Engine, team: Team, work: Sequence[Work]) -> None:
        assert team.agreement is not None
        self._engine, self._team, self._agreement = engine, team, team.agreement
        self._here = [Lot(part) for part in work]
        self._there = [Lot(part) for part in work]
        self._written: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._leaving: list[_Leaving] = []
        self._cut: list[CutParam] = []
        self._carried: list[Carried] = []
        self._waves: list[Wave] = []
        self._first: WaveStep | None = None
        for here, there in zip(self._here, self._there, strict=True):
            self._divide(here, there)

    def _divide(self, here: Lot, there: Lot) -> None:
        part = here.part
        for index, (name, param) in enumerate(zip(part.names, part.params, strict=True)):
            if isinstance(param, DTensor):
                local, layout = self._engine.local(param, name)
                part.grads[index] = laid_out_alike(name, param, part.grads[index])
                if stays(part, param, layout):
                    here.add(index, layout)
                else:
                    there.add(index, layout, cut_for(part, local, layout))
            elif id(param) in self._team.shared and is_worth_sharing(part, param):
                there.add(index, replicated(tuple(param.shape), *self._team.ring))
            else:
                here.add(index, None)

    def agree(self, bad: bool, gate: Tensor | None, read: bool) -> tuple[bool, Tensor | None]:
        """Ask all ranks whether a gradient was bad, and whether they are about to do the same.

        Args:
            bad: whether this host has seen a gradient that is not finite.
            gate: 0-d, 0 where an accelerator has.
            read: whether values must be read.

        Returns:
            The same two for all ranks together.

        Raises:
            RuntimeError: ranks would do different things, naming what differs as far as it is known here.
        """
        code, agreement = self._code(), self._agreement
        shared = [lot.part.grads[i] for lot in self._there for i in lot.indices]
        evidence: Tensor | float = 0.0
        if code != agreement.last and not self._team.is_sharded and shared:
            evidence = fingerprint(shared)
        is_first = agreement.last is None
        verdict = agreement.reach(code, bad, None if gate is None else 1 - gate, evidence, read)
        if not verdict.agreed:
            everyone_knows = is_first or agreement.device.type == "cpu"
            if self._team.is_sharded or not everyone_knows:
                self._refuse(everyone_knows)
            self._part(for_good=is_first)
        return verdict.bad, None if verdict.unsure is None else 1 - verdict.unsure

    def _code(self) -> int:
        codes, lots = self._engine.codes, [lot for lot in self._there if lot.indices]
        key = tuple(lot.key() for lot in lots)
        if key not in codes:
            if len(codes) >= _MOST_CODES:
                codes.clear()
            codes[key] = code_of("\n".join(lot.text() for lot in lots)), [lot.layouts for lot in lots]
        return codes[key][0]

    def _part(self, for_good: bool) -> None:
        """Let every rank go on alone, as all have read that they differ."""
        if for_good:
            self._team.part()
        for here, there in zip(self._here, self._there, strict=True):
            for index in there.indices:
                here.add(index, None)
            there.indices, there.layouts, there.cuttings = [], [], []

    def _refuse(self, everyone_knows: bool) -> None:
        what = "the ranks do not have gradients of the same parameters, or not in one order and layout"
        mine, group = names_of(self._there), self._agreement.groups[0]
        if everyone_knows:
            theirs: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(theirs, mine, group)
            here = dist.get_rank(group)
            for rank, names in enumerate(theirs):
                for name in [*(n for n in mine if n not in names), *(n for n in names if n not in mine)][:1]:
                    has, lacks = (here, rank) if name in mine else (rank, here)
                    what = f"{name} has a gradient on rank {has} and none on rank {lacks} of its group"
        raise RuntimeError(
            f"{what}: a step would wait for ever. Give every rank the same: set zeros where a gradient is missing"
        )

    def here(self, index: int, state_of: StateOf) -> Work | None:
        """What is computed on this rank alone of part ``index`` of the work, of this rank's own tensors."""
        return self._localized(self._here[index], state_of, with_empty=not self._here[index].part.rule.is_matrix)

    def there(self, index: int, state_of: StateOf) -> Work | None:
        """What is exchanged of it: this rank's parts."""
        return self._localized(self._there[index], state_of, with_empty=True)

    def _localized(self, lot: Lot, state_of: StateOf, with_empty: bool) -> Work | None:
        part = lot.part
        names, params, grads, states = [], [], [], []
        for index in lot.indices:
            param, grad, name = part.params[index], part.grads[index], part.names[index]
            state = state_of(param, part)
            if isinstance(param, DTensor):
                param, grad, whole = self._engine.local(param, name)[0], plain(grad), state
                if param.numel() == 0 and not with_empty:
                    continue
                state = local_state(whole)
                self._written.append((whole, state))
            names.append(name)
            params.append(param)
            grads.append(grad)
            states.append(state)
        return part._replace(names=names, params=params, grads=grads, states=states) if names else None

    def take(self, index: int, part: Work, sources: Sequence[Tensor], terms: Terms) -> None:
        """Take over parameters from :meth:`there`.

        Args:
            index: of the part.
            part: what :meth:`there` gave.
            sources: gradients or signals, as ``terms.moving`` takes them.
            terms: what they share.
        """
        assert part.states is not None
        lot = self._there[index]
        for layout, cutting, param, source, state in zip(
            lot.layouts, lot.cuttings, part.params, sources, part.states, strict=True
        ):
            assert layout is not None
            if cutting is None:
                self._leaving.append(_Leaving(part, layout, terms, param, source, state))
            else:
                ring = group_of(layout.ranks)
                self._cut.append(
                    CutParam(part.rule, part.options, cutting, part.group, ring, param, source, state, terms)
                )

    @property
    def reductions(self) -> int:
        """How many times the vector of :meth:`agree` is reduced."""
        return len(self._agreement.groups)

    def planned(self, state_of: StateOf) -> tuple[list[tuple[Wave, list[Kept]]], list[CutParam]]:
        """The waves of the step with what is kept of their parameters, and what is cut; nothing moves.

        Args:
            state_of: the state that a parameter has, or would have.
        """
        for index in range(len(self._there)):
            part = self.there(index, state_of)
            if part is not None:
                self.take(index, part, part.grads, Terms(0.0))
        kept, waves = self._plan()
        return [(wave, kept) for wave in waves], self._cut

    def start(self) -> None:
        """Send the first signals; what this rank computes alone can follow while they travel."""
        if not self._leaving:
            return
        kept, self._waves = self._engine.planned(tuple(map(_key_of, self._leaving)), self._plan)
        self._carried = [
            Carried(of, one.local, one.source, one.state, one.terms)
            for of, one in zip(kept, self._leaving, strict=True)
        ]
        if self._waves:
            self._first = WaveStep(self._waves[0], self._carried)
            self._first.send_signals()

    def _plan(self) -> tuple[list[Kept], list[Wave]]:
        entries = []
        for part, layout, _, local, _, state in self._leaving:
            kept = kept_of(part.rule, part.options, part.view, layout, part.group, local, state)
            ring = group_of(layout.ranks) if self._team.is_sharded else self._agreement.groups[0]
            entries.append(Entry(kept, local.device, ring))
        return [entry.kept for entry in entries], plan_waves(entries)

    def finish(self) -> None:
        """Compute what this rank owns, and take the updates of its parts."""
        cuts.run(self._cut)
        self._engine.need = run_waves(self._waves, self._carried, self._first)
        for state, local in self._written:
            write_back(state, local)


def _key_of(one: _Leaving) -> tuple[Any, ...]:
    scale = one.part.group["scale"] if one.part.rule.is_matrix else None
    return (*key_of(one.part), id(one.local), one.layout, scale, one.part.group.get("padding_row"), _held(one))


def _held(one: _Leaving) -> tuple[Any, ...]:
    if one.part.rule.advance is None:
        return ()
    return tuple((key, value.dtype) for key, value in one.state.items() if isinstance(value, Tensor))

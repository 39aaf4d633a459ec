"""A step among many processes: what is computed here, what elsewhere, and that all agree on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from orthoopt import buckets
from orthoopt._work import Work
from orthoopt.buckets import Terms
from orthoopt.distributed.agreement import code_of, fingerprint
from orthoopt.distributed.carried import Carried, Kept, kept_of
from orthoopt.distributed.layout import Layout, keeps_batch, layout_of, plain, replicated
from orthoopt.distributed.owners import cost_of
from orthoopt.distributed.planning import MIN_COST, Entry, plan_waves
from orthoopt.distributed.state import local_state, write_back
from orthoopt.distributed.teams import Team, group_of, place_in
from orthoopt.distributed.waves import Wave, WaveStep, run_waves
from orthoopt.rules import hashable

_CYCLED = ("momentum", "betas", "beta2")
"""Options that schedulers may move, and that nothing here rests on."""

StateOf = Callable[[Tensor, Work], dict[str, Any]]


class Engine:
    """What an optimizer remembers about the processes it shares its steps with."""

    def __init__(self) -> None:
        self._team: Team | None = None
        self._key: tuple[Any, ...] = ()
        self._kept: list[Kept] = []
        self._waves: list[Wave] = []
        self._texts: dict[Any, str] = {}
        self._places: dict[Tensor, tuple[Tensor, Any, Layout]] = {}
        self.chunks: list[list[buckets.Item]] = []
        """The buckets that this rank computed for others and itself in the last step, without their tensors."""

    def begin(self, groups: Sequence[Mapping[str, Any]], work: Sequence[Work]) -> Step | None:
        """The coming step; None where no other process has to do with it.

        Args:
            groups: the optimizer's param groups.
            work: what the step has to do.
        """
        params = [param for group in groups for param in group["params"]]
        team = self._team
        if team is None or len(team.params) != len(params) or any(
            a is not b for a, b in zip(team.params, params, strict=True)
        ):  # fmt: skip
            team = self._team = Team(params)
            self._places = {}
        if team.agreement is None or not (team.is_sharded or team.shares()):
            return None
        return Step(self, team, work)

    def local(self, param: DTensor, name: str) -> tuple[Tensor, Layout]:
        """This rank's part of a parameter, the same object for as long as its memory is, and how it lies."""
        part, placements = plain(param), (param.device_mesh, param.placements)
        known = self._places.get(param)
        if (
            known is None
            or known[1] != placements
            or known[0].data_ptr() != part.data_ptr()
            or known[0].shape != part.shape
            or known[0].stride() != part.stride()
        ):
            known = self._places[param] = (part, placements, layout_of(name, param))
        return known[0], known[2]

    def waves(self, key: tuple[Any, ...], make: Callable[[], tuple[list[Kept], list[Wave]]]) -> list[Wave]:
        """The waves of the last step if they were made for the same, else new ones."""
        if key != self._key:
            self._kept, self._waves = make()
            self._key = key
        return self._waves

    @property
    def kept(self) -> list[Kept]:
        """What belongs to :meth:`waves`, by number."""
        return self._kept


class _Lot:
    """The parameters of one part of the work that go one way."""

    def __init__(self, part: Work) -> None:
        self.part = part
        self.layouts: list[Layout | None] = []
        self.indices: list[int] = []


class Step:
    """One step among many processes.

    Args:
        engine: the optimizer's.
        team: the processes.
        work: what there is to do.
    """

    def __init__(self, engine: Engine, team: Team, work: Sequence[Work]) -> None:
        assert team.agreement is not None
        self._engine, self._team, self._agreement = engine, team, team.agreement
        self._here: list[_Lot] = []
        self._there: list[_Lot] = []
        self._written: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._entries: list[tuple[Work, Layout, Terms, Tensor, Tensor, dict[str, Any]]] = []
        self._carried: list[Carried] = []
        self._waves: list[Wave] = []
        self._first: WaveStep | None = None
        for part in work:
            self._divide(part)

    def _divide(self, part: Work) -> None:
        here, there = _Lot(part), _Lot(part)
        for index, (name, param) in enumerate(zip(part.names, part.params, strict=True)):
            layout: Layout | None = None
            if isinstance(param, DTensor):
                layout = self._engine.local(param, name)[1]
                part.grads[index] = _laid_out_alike(name, param, part.grads[index])
            elif self._is_shared(part, param):
                ranks, place = place_in(self._agreement.groups[0])
                layout = replicated(param.shape, ranks, place)
            lot = there if layout is not None and self._leaves(part, param, layout) else here
            lot.indices.append(index)
            lot.layouts.append(layout)
        self._here.append(here)
        self._there.append(there)

    def _is_shared(self, part: Work, param: Tensor) -> bool:
        if not part.rule.is_matrix or id(param) not in self._team.shared or part.group["share"] == "off":
            return False
        shapes = part.view.piece_shapes(tuple(param.shape))
        return cost_of(part.rule, shapes, part.options) >= MIN_COST * param.numel()

    @staticmethod
    def _leaves(part: Work, param: Tensor, layout: Layout) -> bool:
        """Whether its matrices are not computed where they are."""
        if not isinstance(param, DTensor):
            return True
        if layout.is_whole or not (part.rule.is_matrix or part.rule.measure is not None):
            return False
        return not (layout.sharded == {0} and part.rule.is_matrix and keeps_batch(part.view, layout.shape))

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

    def _part(self, for_good: bool) -> None:
        """Let every rank go on alone, as all have read that they differ."""
        if for_good:
            self._team.part()
        for here, there in zip(self._here, self._there, strict=True):
            here.indices += there.indices
            here.layouts += [None] * len(there.indices)
            there.indices, there.layouts = [], []

    def _refuse(self, everyone_knows: bool) -> None:
        mine = [lot.part.names[i] for lot in self._there for i in lot.indices]
        what = "the ranks do not have gradients of the same parameters, or not in the same order and layout"
        if everyone_knows:
            theirs: list[Any] = [None] * dist.get_world_size(self._agreement.groups[0])
            dist.all_gather_object(theirs, mine, self._agreement.groups[0])
            here = dist.get_rank(self._agreement.groups[0])
            for rank, names in enumerate(theirs):
                for name in [*(n for n in mine if n not in names), *(n for n in names if n not in mine)][:1]:
                    has, lacks = (here, rank) if name in mine else (rank, here)
                    what = f"{name} has a gradient on rank {has} and none on rank {lacks} of its group"
        raise RuntimeError(
            f"{what}: a step would wait for ever. Give every rank the same: set zeros where a gradient is missing"
        )

    def _code(self) -> int:
        parts: list[str] = []
        for lot in self._there:
            if lot.indices:
                key = (*_key_of(lot.part), *((id(lot.part.params[i]), lot.layouts[i]) for i in lot.indices))
                text = self._engine._texts.get(key)
                if text is None:
                    text = self._engine._texts[key] = _text_of(lot)
                parts.append(text)
        return code_of("\n".join(parts))

    def here(self, index: int, state_of: StateOf) -> Work | None:
        """What is computed on this rank alone: part ``index`` of the work, of this rank's own tensors."""
        return self._localized(self._here[index], state_of)

    def there(self, index: int, state_of: StateOf) -> Work | None:
        """What is exchanged: this rank's part of it."""
        return self._localized(self._there[index], state_of)

    def _localized(self, lot: _Lot, state_of: StateOf) -> Work | None:
        part = lot.part
        if not lot.indices:
            return None
        names, params, grads, states = [], [], [], []
        for index in lot.indices:
            param, name = part.params[index], part.names[index]
            local, grad, state = param, part.grads[index], state_of(param, part)
            if isinstance(param, DTensor):
                local = self._engine.local(param, name)[0]
                if lot is not None and part.rule.is_matrix and local.numel() == 0 and lot in self._here:
                    continue
                grad, whole = plain(grad), state
                state = local_state(whole)
                self._written.append((whole, state))
            names.append(name)
            params.append(local)
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
        layouts = [layout for layout in self._there[index].layouts if layout is not None]
        for layout, param, source, state in zip(layouts, part.params, sources, part.states, strict=True):
            self._entries.append((part, layout, terms, param, source, state))

    def start(self) -> None:
        """Send the first signals; what this rank computes alone can follow while they travel."""
        if not self._entries:
            return
        key = tuple(
            (
                *_key_of(part),
                id(param),
                layout,
                part.group["scale"] if part.rule.is_matrix else None,
                _held(part, state),
            )
            for part, layout, _, param, _, state in self._entries
        )
        self._waves = self._engine.waves(key, self._plan)
        self._carried = [
            Carried(kept, param, source, state, terms)
            for kept, (_, _, terms, param, source, state) in zip(self._engine.kept, self._entries, strict=True)
        ]
        if self._waves:
            self._first = WaveStep(self._waves[0], self._carried)
            self._first.send_signals()

    def _plan(self) -> tuple[list[Kept], list[Wave]]:
        entries = [
            Entry(
                kept_of(part.rule, part.options, part.view, layout, part.group, param, state),
                param.device,
                group_of(layout.ranks) if self._team.is_sharded else self._agreement.groups[0],
            )
            for part, layout, _, param, _, state in self._entries
        ]
        return [entry.kept for entry in entries], plan_waves(entries)

    def finish(self) -> None:
        """Compute what this rank owns, and take the updates of its parts."""
        self._engine.chunks = run_waves(self._waves, self._carried, self._first)
        for state, local in self._written:
            write_back(state, local)


def _key_of(part: Work) -> tuple[Any, ...]:
    options = {name: value for name, value in part.options.items() if name not in _CYCLED}
    return part.rule.name, hashable(options), part.view.spec


def _held(part: Work, state: Mapping[str, Any]) -> tuple[Any, ...]:
    if part.rule.advance is None:
        return ()
    return tuple((key, value.dtype) for key, value in state.items() if isinstance(value, Tensor))


def _text_of(lot: _Lot) -> str:
    shapes = [(lot.part.names[i], str(lot.part.params[i].dtype), lot.layouts[i]) for i in lot.indices]
    return repr((_key_of(lot.part), [(*some, sorted(l.sharded), l.shape, l.boxes) for *some, l in shapes if l]))


def _laid_out_alike(name: str, param: DTensor, grad: Tensor) -> DTensor:
    """The gradient laid out as its parameter: that of a replica may still be a sum that nobody has made."""
    if not isinstance(grad, DTensor) or grad.device_mesh != param.device_mesh:
        has = f"one on {grad.device_mesh}" if isinstance(grad, DTensor) else f"a {type(grad).__name__}"
        raise RuntimeError(f"{name} is a DTensor on {param.device_mesh} and its gradient {has}: give it one alike")
    return grad if grad.placements == param.placements else grad.redistribute(placements=param.placements)

"""The exchange of one step: signals to owners, updates back, wave after wave, the next one's signals under way."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch

from orthoopt.distributed.carried import Carried, Gathered, Kept, apply, compute, write_signals
from orthoopt.distributed.exchange import Mail, Parcel, Route
from orthoopt.distributed.layout import Box, elements, extent
from orthoopt.distributed.owners import Owned


class Wave(NamedTuple):
    """Units that are computed at the same time."""

    owned: list[Owned]
    signals: Route
    updates: Route
    device: torch.device
    group: Any

    @property
    def bytes(self) -> int:
        """Of the buffers of its exchanges on this rank, at their largest."""
        return max(side.out.total + side.into.total for side in (self.signals, self.updates))


def wave_of(owned: list[Owned], kept: Sequence[Kept], device: torch.device, group: Any) -> Wave:
    """Make the routes of a wave.

    Args:
        owned: its units.
        kept: of every parameter, by number.
        device: where its tensors are.
        group: the ring's process group.
    """
    layout = owned[0].unit.layout
    place, count = layout.place, len(layout.ranks)
    to_owner: list[Parcel] = []
    back: list[Parcel] = []
    no_signals = no_updates = True
    for number, (unit, owner) in enumerate(owned):
        of = kept[unit.param]
        holders = unit.holders()
        gathers = not unit.layout.is_whole and holders != [owner]
        no_signals = no_signals and not gathers
        no_updates = no_updates and holders == [owner] and (count == 1 or not of.owned)
        peers = [peer for peer in range(count) if peer != owner] if place == owner else [place]
        for peer in [] if place == owner and count == 1 else peers:
            if peer == owner:
                continue
            box = unit.box(peer)
            shaped = [(("viewed", key), extent(box)) for key in of.viewed] if elements(box) else []
            if elements(box):
                if gathers:
                    to_owner.append(Parcel(peer, owner, (number, "signal"), extent(box), of.wire))
                    to_owner += [Parcel(peer, owner, (number, k), s, _dtype(of, k)) for k, s in shaped]
                back.append(Parcel(owner, peer, (number, "update"), extent(box), of.returned))
                back += [Parcel(owner, peer, (number, k), s, _dtype(of, k)) for k, s in shaped]
            for key, like in of.owned.items():
                shape = tuple(like.shape) if unit.rows is None else (unit.rows[1] - unit.rows[0], *like.shape[1:])
                back.append(Parcel(owner, peer, (number, ("owned", key)), shape, like.dtype))
    return Wave(
        owned, Route(to_owner, place, count, no_signals), Route(back, place, count, no_updates), device, group
    )  # fmt: skip


def _dtype(kept: Kept, key: Hashable) -> torch.dtype:
    assert isinstance(key, tuple)
    return kept.viewed_dtypes[key[1]]


class WaveStep:
    """One wave in one step."""

    def __init__(self, wave: Wave, carried: Sequence[Carried]) -> None:
        self.wave, self._carried = wave, carried
        self._place = wave.owned[0].unit.layout.place
        self._gathered: dict[int, Gathered] = {}
        self._signals = Mail(wave.signals, wave.group, wave.device)
        self._updates: Mail | None = None
        self.need: int | None = 0
        """Bytes beside parameters, gradients and state; None where a rule does not say what it works in."""

    def send_signals(self) -> None:
        """Move momenta, and send what they make to the owners."""
        places: list[tuple[Carried, Box, Any]] = []
        for number, (unit, owner) in enumerate(self.wave.owned):
            carried, box = self._carried[unit.param], unit.box(self._place)
            if owner == self._place:
                gathered = self._gathered[number] = Gathered(carried, unit)
                places.append((carried, box, gathered.at(gathered.signal, box)))
            elif elements(box):
                out = None if unit.layout.is_whole else self._signals.outgoing(owner, (number, "signal"))
                places.append((carried, box, out))
        write_signals(places)
        for number, (unit, owner) in enumerate(self.wave.owned):
            carried, box = self._carried[unit.param], unit.box(self._place)
            for key in carried.kept.viewed if elements(box) else ():
                part = carried.part(carried.state[key], box)
                if owner == self._place:
                    gathered = self._gathered[number]
                    gathered.at(gathered.viewed[key], box).copy_(part)
                elif not unit.layout.is_whole:
                    self._signals.outgoing(owner, (number, ("viewed", key))).copy_(part)
        self._signals.start()

    def compute(self) -> None:
        """Receive, let the matrices that this rank owns have their updates, and send them."""
        self._signals.wait()
        for number, gathered in self._gathered.items():
            unit = gathered.unit
            for peer in [] if unit.layout.is_whole else unit.holders():
                if peer != self._place:
                    box = unit.box(peer)
                    gathered.at(gathered.signal, box).copy_(self._signals.incoming(peer, (number, "signal")))
                    for key, whole in gathered.viewed.items():
                        gathered.at(whole, box).copy_(self._signals.incoming(peer, (number, ("viewed", key))))
        del self._signals
        needs = compute(list(self._gathered.values()))
        mail = self._updates = Mail(self.wave.updates, self.wave.group, self.wave.device)
        for (peer, key), _ in self.wave.updates.out.places.items():
            assert isinstance(key, tuple)
            number, what = key
            gathered = self._gathered[number]
            unit = gathered.unit
            if what == "update":
                value = gathered.at(gathered.update, unit.box(peer))
            elif what[0] == "viewed":
                value = gathered.at(gathered.viewed[what[1]], unit.box(peer))
            else:
                value = gathered.carried.matrix_state(unit)[what[1]]
            mail.outgoing(peer, key).copy_(value)
        mail.start()
        if None not in needs:
            held = sum(gathered.bytes for gathered in self._gathered.values())
            self.need = held + self.wave.bytes + max((need for need in needs if need is not None), default=0)
        else:
            self.need = None

    def apply(self) -> None:
        """Receive the updates of this rank's parts, and subtract them."""
        assert self._updates is not None
        self._updates.wait()
        updates: list[tuple[Carried, Box, torch.Tensor]] = []
        for number, (unit, owner) in enumerate(self.wave.owned):
            carried, box = self._carried[unit.param], unit.box(self._place)
            gathered = self._gathered.get(number)
            if gathered is None:
                for key, value in carried.matrix_state(unit).items():
                    value.copy_(self._updates.incoming(owner, (number, ("owned", key))))
            if not elements(box):
                continue
            for key in carried.kept.viewed:
                new = (
                    self._updates.incoming(owner, (number, ("viewed", key))) if gathered is None
                    else gathered.at(gathered.viewed[key], box)
                )  # fmt: skip
                carried.part(carried.state[key], box).copy_(new)
            update = (
                self._updates.incoming(owner, (number, "update")) if gathered is None
                else gathered.at(gathered.update, box)
            )  # fmt: skip
            updates.append((carried, box, update))
        apply(updates)
        self._gathered = {}
        self._updates = None


def run_waves(waves: Sequence[Wave], carried: Sequence[Carried], first: WaveStep | None) -> int | None:
    """Run the waves; the first one's signals may be under way already.

    Returns:
        What the largest wave needed, see :attr:`WaveStep.need`.
    """
    needs: list[int | None] = [0]
    current, behind = first, None
    for index in range(len(waves)):
        ahead = None
        if index + 1 < len(waves):
            ahead = WaveStep(waves[index + 1], carried)
            ahead.send_signals()
        assert current is not None
        current.compute()
        needs.append(current.need)
        if behind is not None:
            behind.apply()
        current, behind = ahead, current
    if behind is not None:
        behind.apply()
    return None if None in needs else max(need for need in needs if need is not None)

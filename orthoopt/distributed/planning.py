"""From the parameters of a step to its waves; worked out once, and again when what it rests on has changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from orthoopt.distributed.carried import Kept
from orthoopt.distributed.layout import keeps_batch
from orthoopt.distributed.owners import Unit, cost_of, units_of, waves
from orthoopt.distributed.waves import Wave, wave_of


class Entry(NamedTuple):
    """A parameter that takes part in an exchange."""

    kept: Kept
    device: torch.device
    group: Any
    """The ring's process group."""


def plan_waves(entries: Sequence[Entry]) -> list[Wave]:
    """The waves of these parameters, ring after ring."""
    rings: dict[tuple[tuple[int, ...], torch.device], list[Unit]] = {}
    for number, entry in enumerate(entries):
        kept = entry.kept
        layout = kept.layout
        is_batch = kept.rule.is_matrix and keeps_batch(kept.view, layout.shape)
        kind = (kept.rule.name, kept.view.spec, layout.shape[int(is_batch) :], kept.wire)
        found = units_of(number, layout, is_batch, cost(kept), kind)
        rings.setdefault((layout.ranks, entry.device), []).extend(found)
    kept_ones = [entry.kept for entry in entries]
    return [
        wave_of(owned, kept_ones, device, entries[owned[0].unit.param].group)
        for (ranks, device), units in rings.items()
        for owned in waves(units, len(ranks))
    ]


def cost(kept: Kept) -> float:
    """Operations of a parameter's update."""
    if not kept.rule.is_matrix:
        return float(torch.Size(kept.layout.shape).numel())
    return cost_of(kept.rule, kept.view.piece_shapes(kept.layout.shape), kept.options)


def bytes_of(waves: Iterable[Wave]) -> int:
    """What this rank sends."""
    return sum(wave.signals.out.total + wave.updates.out.total for wave in waves)

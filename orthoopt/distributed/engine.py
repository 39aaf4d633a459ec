"""What an optimizer remembers, from step to step, about the processes that it shares its steps with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from orthoopt._work import Work
from orthoopt.distributed.carried import Kept
from orthoopt.distributed.layout import Layout, layout_of, plain
from orthoopt.distributed.step import Step
from orthoopt.distributed.teams import Team
from orthoopt.distributed.waves import Wave


class Engine:
    """An optimizer's; empty after loading, and as long as it is alone."""

    def __init__(self) -> None:
        self._team: Team | None = None
        self._key: tuple[Any, ...] = ()
        self._kept: list[Kept] = []
        self._waves: list[Wave] = []
        self._places: dict[Tensor, tuple[Tensor, Any, Layout]] = {}
        self.codes: dict[Any, tuple[int, Any]] = {}
        """The codes of steps, and what keeps their keys alive."""
        self.need: int | None = 0
        """Bytes that the last step's largest wave held beside parameters, gradients and state."""

    def begin(self, groups: Sequence[Mapping[str, Any]], work: Sequence[Work]) -> Step | None:
        """The coming step; None where no other process has to do with it.

        Args:
            groups: the optimizer's param groups.
            work: what the step has to do.
        """
        params = [param for group in groups for param in group["params"]]
        team, self.need = self._team, 0
        if team is None or [*map(id, team.params)] != [*map(id, params)]:
            team = self._team = Team(params)
            self._places, self.codes = {}, {}
        if team.agreement is None or not (team.is_sharded or team.shares()):
            return None
        return Step(self, team, work)

    def local(self, param: DTensor, name: str) -> tuple[Tensor, Layout]:
        """This rank's part of a parameter, the same object for as long as its memory is, and how it lies."""
        part, placed = plain(param), (param.device_mesh, param.placements)
        known = self._places.get(param)
        if known is None or known[1] != placed or not _is_same(known[0], part):
            known = self._places[param] = (part, placed, layout_of(name, param))
        return known[0], known[2]

    def planned(
        self, key: tuple[Any, ...], make: Callable[[], tuple[list[Kept], list[Wave]]]
    ) -> tuple[list[Kept], list[Wave]]:
        """What is kept of every parameter, and the waves: the last step's, if they were made for the same."""
        if key != self._key:
            self._kept, self._waves = make()
            self._key = key
        return self._kept, self._waves


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()

"""Each arm's own sweep with Optuna: a Gaussian process over the learning rate, and the weight decay where asked.

A study an arm, in one SQLite file: an interrupted sweep goes on where it stopped. Arms take turns, one trial of each
at a time, so that several runs are at work while every study stays a sequence: which run ends first changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

RATE, DECAY = "learning_rate", "weight_decay"
TUNABLE = (RATE, DECAY)
FIRST_FACTORS = (1.0, 1 / 3, 3.0)
"""The first trials of an arm: these times the middle of its range."""

MOST_EXTENSIONS = 8
_WIDTH = 16.0  # a study's range is the middle over this to the middle times this
_DECAY_RANGE = (1e-3, 1.0)


class SweepError(RuntimeError):
    """No best learning rate was found between worse ones."""


class Point(NamedTuple):
    """One setting of one arm."""

    arm: str
    learning_rate: float
    weight_decay: float | None
    """None: the config's."""


@dataclass(frozen=True)
class Trial:
    """A setting that was tried; a loss that is not finite is infinite here."""

    learning_rate: float
    weight_decay: float | None
    loss: float


def search(
    middles: Mapping[str, float],
    keys: Mapping[str, Any],
    evaluate: Callable[[list[Point]], list[float]],
    *,
    trials: int,
    storage: Path,
    tune: Sequence[str] = (RATE,),
    weight_decay: float = 0.1,
    seed: int = 0,
) -> dict[str, list[Trial]]:
    """Try ``trials`` settings of each arm, and more while its best learning rate is not between worse ones.

    The first three are the middle, a third of it and three times it; then a step beyond an edge whose trial is the best
    so far, else what a Gaussian process expects most of.

    Args:
        middles: arm -> learning rate to begin with.
        keys: arm -> everything that decides its losses, as plain data; another key is another study.
        evaluate: losses of the points that are due, called with one of every arm that is not done.
        trials: settings of each arm, at least 3.
        storage: the SQLite file.
        tune: ``learning_rate``, and ``weight_decay`` beside it if asked.
        weight_decay: where its sweep begins.
        seed: of the sampler.

    Returns:
        arm -> its trials, in order of learning rate.

    Raises:
        SweepError: an arm's best was still at an edge after 8 more trials.
    """
    storage.parent.mkdir(parents=True, exist_ok=True)
    studies = {
        arm: _Study(arm, middle, keys[arm], storage, DECAY in tune, weight_decay, seed)
        for arm, middle in middles.items()
    }
    while due := [(study, study.ask()) for study in studies.values() if not study.is_done(trials)]:
        points = [point for _, point in due]
        for (study, _), loss in zip(due, evaluate(points), strict=True):
            study.tell(loss)
    return {arm: sorted(study.trials, key=lambda trial: trial.learning_rate) for arm, study in studies.items()}


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The trial of the lowest loss."""
    return min(trials, key=lambda trial: trial.loss)


def edge(trials: Sequence[Trial]) -> int:
    """-1 or 1 when the best learning rate is the lowest or highest tried, 0 between; if nothing was finite, -1."""
    best = best_trial(trials)
    rates = [trial.learning_rate for trial in trials]
    if not math.isfinite(best.loss) or best.learning_rate == min(rates):
        return -1
    return 1 if best.learning_rate == max(rates) else 0


class _Study:
    """One arm's study."""

    def __init__(
        self, arm: str, middle: float, key: Any, storage: Path, tunes_decay: bool, weight_decay: float, seed: int
    ) -> None:
        self.arm, self.middle, self.decay = arm, middle, weight_decay if tunes_decay else None
        self._space: dict[str, Any] = {RATE: FloatDistribution(middle / _WIDTH, middle * _WIDTH, log=True)}
        if tunes_decay:
            self._space[DECAY] = FloatDistribution(*_DECAY_RANGE, log=True)
        digest = hashlib.sha256(json.dumps([key, middle, tunes_decay, seed], sort_keys=True).encode()).hexdigest()
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self._study = optuna.create_study(
                storage=f"sqlite:///{storage}", study_name=f"{arm} {digest[:12]}", load_if_exists=True
            )
        finally:
            optuna.logging.set_verbosity(verbosity)
        self._seed = seed
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)  # of a sweep that was cut off

    @property
    def trials(self) -> list[Trial]:
        """What was tried, in order."""
        return [self._read(trial) for trial in self._complete]

    @property
    def _complete(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def _read(self, trial: FrozenTrial) -> Trial:
        assert trial.value is not None
        return Trial(trial.params[RATE], trial.params.get(DECAY), trial.value)

    def is_done(self, wanted: int) -> bool:
        """Whether enough was tried, and the best is between worse ones."""
        tried = self.trials
        if len(tried) < wanted:
            return False
        if not edge(tried):
            return True
        if len(tried) >= wanted + MOST_EXTENSIONS:
            losses = {trial.learning_rate: trial.loss for trial in tried}
            raise SweepError(
                f"{self.arm}: the best learning rate is still at the edge of {len(tried)} trials after "
                f"{MOST_EXTENSIONS} extensions; losses by rate: {dict(sorted(losses.items()))}"
            )
        return False

    def ask(self) -> Point:
        """The next setting to try."""
        tried = self.trials
        side = edge(tried) if len(tried) >= len(FIRST_FACTORS) else 0
        if len(tried) < len(FIRST_FACTORS):
            self._enqueue(self.middle * FIRST_FACTORS[len(tried)])
        elif side:
            rates = [trial.learning_rate for trial in tried]
            self._enqueue(min(rates) / 2 if side < 0 else max(rates) * 2)
        self._study.sampler = self._sampler(len(tried))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Clip non-finite values")  # a diverged trial counts as the worst finite
            self._asked = self._study.ask(self._space)
        return Point(self.arm, self._asked.params[RATE], self._asked.params.get(DECAY))

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """A seed a trial, not a stream: a resumed study proposes what an uninterrupted one would have."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.GPSampler(
                seed=self._seed + number, n_startup_trials=len(FIRST_FACTORS), deterministic_objective=True
            )

    def _enqueue(self, rate: float) -> None:
        low, high = self._space[RATE].low, self._space[RATE].high
        params = {RATE: min(max(rate, low), high)}
        if self.decay is not None:
            best = best_trial(self.trials) if self.trials else None
            params[DECAY] = self.decay if best is None or best.weight_decay is None else best.weight_decay
        self._study.enqueue_trial(params)

    def tell(self, loss: float) -> None:
        """What the setting that was asked for came to."""
        self._study.tell(self._asked, loss if math.isfinite(loss) else math.inf)

"""Training runs as subprocesses, several at a time, each kept in its own folder and never made twice."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orthoopt.bench import machine
from orthoopt.bench.arms import Arm, read_plan_file
from orthoopt.bench.processes import Command, Forked, Handle, Launcher
from orthoopt.bench.results_file import write_json

_FINISHED, _LOG = "finished.json", "log.txt"
_LOG_TAIL = 2000  # characters shown of a failed run
_KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "8000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}
"""glibc else returns every large tensor to the kernel, and clearing the pages anew costs a fifth of a small run."""
_EQUAL = (
    "model", "parameters", "corpus", "scored", "steps", "tokens", "weight_decay", "world_size", "device", "versions",
)  # fmt: skip
"""What rows must share to be compared."""


class BenchError(RuntimeError):
    """A run failed, or runs cannot be compared."""


@dataclass(frozen=True)
class Run:
    """One training: an arm at a learning rate with a seed, of initialization and of data order."""

    arm: Arm
    learning_rate: float
    seed: int
    weight_decay: float | None = None
    """None: the config's."""

    def flags(self) -> list[str]:
        """The recipe's options that say so."""
        seed = str(self.seed)
        decay = [] if self.weight_decay is None else ["--weight_decay", repr(self.weight_decay)]
        return [
            *self.arm.flags(), "--learning_rate", repr(self.learning_rate), *decay, "--seed", seed, "--data_seed", seed,
        ]  # fmt: skip

    def __str__(self) -> str:
        decay = "" if self.weight_decay is None else f" weight decay {self.weight_decay:g}"
        return f"{self.arm.name} lr {self.learning_rate:.4g}{decay} seed {self.seed}"


@dataclass
class Runner:
    """Makes runs, ``jobs`` at a time, and remembers finished ones in ``folder``.

    A run's key is the sha256 of everything that decides its result: the config's content and all flags, a plan file's
    content, the corpus's digest, the digest of the package's sources, the releases, the processor and the threads.
    Another key is another folder, so rows of different code or text never meet.
    """

    folder: Path
    config: str
    settings: Mapping[str, Any]
    """Content of the config."""
    flags: Sequence[str]
    """Options that all runs share."""
    corpus_digest: str
    jobs: int
    threads: int
    command: Sequence[str] | None = None
    """What makes a run instead of the recipe in a forked process."""
    tuned: Sequence[str] = ()
    """What runs may differ in besides their arms, learning rates and seeds."""
    _sources: str = field(default_factory=machine.source_digest)
    _running: set[Handle] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def __post_init__(self) -> None:
        threads = str(self.threads)
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **_KEEP_MEMORY}
        command = self.command
        self._launch: Launcher = Forked(environment) if command is None else Command(command, environment)

    def run_all(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """The rows of these runs, in their order; those that have finished before are read.

        Raises:
            BenchError: a run failed, or the sources changed meanwhile. Runs at work are ended first.
        """
        pool = ThreadPoolExecutor(self.jobs)
        try:
            futures = [pool.submit(self.run, run) for run in runs]
            wait(futures, return_when=FIRST_EXCEPTION)
            failed = next((f for f in futures if f.done() and f.exception() is not None), None)
            rows = [f.result() for f in ([failed] if failed else futures)]
        except BaseException:
            self._stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        check_comparable(rows, but=self.tuned)
        return rows

    def run(self, run: Run) -> dict[str, Any]:
        """One run's row, made or read."""
        key = self.key_of(run)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        name = run.arm.name.replace(os.sep, "_")  # a plan file's path
        folder = self.folder / f"{name}-lr{run.learning_rate:.4g}-seed{run.seed}-{digest[:12]}"
        cached = _read(folder / _FINISHED) == {"key": key}
        if not cached:
            self._make(run, folder)
            _check_plan_file(run.arm)
            if machine.source_digest() != self._sources:
                raise BenchError("the package's sources changed while the bench ran: start it again")
            write_json(folder / _FINISHED, {"key": key})
        row = _row(run, folder)
        if row["corpus"]["digest"] != self.corpus_digest:
            raise BenchError(f"{folder} was trained on the corpus {row['corpus']['digest']}, not {self.corpus_digest}")
        loss = f"validation loss {row['validation_loss']:.4f}, {row['bits_per_byte']:.4f} bits per byte"
        print(f"  {run}: {loss}, {row['seconds']:.0f} s{' (kept)' if cached else ''}", flush=True)
        return row

    def key_of(self, run: Run) -> dict[str, Any]:
        """Everything that decides the result of a run, as plain data."""
        return {
            "plan_file": run.arm.plan_file,
            "config": dict(self.settings),
            "flags": [*self.flags, *run.flags()],
            "corpus": self.corpus_digest,
            "sources": self._sources,
            "versions": machine.versions(),
            "cpu": machine.cpu_model(),
            "threads": self.threads,
        }

    def _make(self, run: Run, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _FINISHED).unlink(missing_ok=True)
        words = [self.config, *self.flags, *run.flags(), "--output_dir", str(folder)]
        start = time.perf_counter()
        with self._lock:
            if self._stopped:
                raise BenchError(f"{run}: not started, another run failed")
            process = self._launch(words, folder / _LOG)
            self._running.add(process)
        status = process.wait()
        with self._lock:
            self._running.discard(process)
        if status:
            tail = (folder / _LOG).read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:]
            seconds = time.perf_counter() - start
            raise BenchError(f"{run}: the recipe ended with status {status} after {seconds:.0f} s\n{tail}")

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def _check_plan_file(arm: Arm) -> None:
    """Raise BenchError unless the arm's plan file still says what the arm's name stands for."""
    try:
        now = read_plan_file(arm.plan)
    except (TypeError, ValueError, OSError) as error:
        raise BenchError(f"the plan file changed while the bench ran: {error}") from error
    if now != arm.plan_file:
        raise BenchError(f"the plan file {arm.plan} changed while the bench ran: start it again")


def check_comparable(rows: Sequence[Mapping[str, Any]], but: Sequence[str] = ()) -> None:
    """Raise BenchError unless the rows differ in plan, learning rate, seed and what is tuned alone."""
    for row in rows[1:]:
        for key in _EQUAL:
            if key not in but and row[key] != rows[0][key]:
                raise BenchError(
                    f"{row['arm']} seed {row['seed']} has {key} {row[key]!r}, but {rows[0]['arm']} seed "
                    f"{rows[0]['seed']} has {rows[0][key]!r}: these cannot be compared"
                )


def _row(run: Run, folder: Path) -> dict[str, Any]:
    results = _read(folder / "results.json")
    if results is None:
        raise BenchError(f"{run}: {folder} has no results.json")
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "arm": run.arm.name,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "validation_loss": _number(results["eval_loss"]),
        "bits_per_byte": _number(results["eval_bits_per_byte"]),
        "seconds": results["train_seconds"],
        "optimizer_seconds": results["optimizer_seconds"],
        "training_curve": _curve(metrics, "loss"),
        "validation_curve": _curve(metrics, "eval_loss"),
        **{key: results[key] for key in _EQUAL},
    }


def _curve(metrics: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(row["step"], _number(row[key])) for row in metrics if key in row]


def _number(value: float | None) -> float:
    """The recipe writes null for a loss that is not finite."""
    return float("nan") if value is None else float(value)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None

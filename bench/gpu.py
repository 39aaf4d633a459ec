"""What ``make gpu`` runs: the tests that need a GPU and the benches, one after the other, within nine minutes.

A part that fails or runs out of time does not stop the others; the status says that one did. No network is needed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from orthoopt.bench import machine
from orthoopt.bench.results_file import results_folder, write_json
from orthoopt.bench.step_options import positive

TOTAL_SECONDS = 500.0  # of nine minutes; the rest is for installing and for what stops late
_TAIL = 4000  # characters of a part's output that are kept


class Part(NamedTuple):
    """A command of Python's, and the most seconds it may take."""

    name: str
    words: tuple[str, ...]
    seconds: float


def parts(tests: Path) -> list[Part]:
    """The parts in order; a part may also use what those before it left of their time.

    Args:
        tests: the folder of tests. Those for GPUs stand in files ``test_gpu*.py``, which import nothing beyond torch,
            Triton, NumPy and pytest.
    """
    files = sorted(str(path) for path in tests.rglob("test_gpu*.py"))
    sets = ("gpt2:all", "qwen3_0.6b:main", "llama3.2_1b:main", "olmoe_layer:main")
    bench = ("--device", "cuda")
    return [
        # pyproject.toml has options of plugins that may be missing; the warning about those would end the run.
        Part("tests", ("pytest", "-q", "-m", "gpu", "-W", "ignore::pytest.PytestConfigWarning", *files), 170),
        Part(
            "step",
            (
                "orthoopt.bench.step", *bench, *(word for name in sets for word in ("--shapes", name)),
                "--seconds", "1.5", "--repeats", "60", "--compile-seconds", "60",
            ),
            190,
        ),
        Part(
            "orthogonalize",
            ("orthoopt.bench.orthogonalize", *bench, "--parts", "sets", "forms", "--seconds", "0.25"),
            100,
        ),
        Part("memory", ("orthoopt.bench.memory", *bench, "--models"), 40),
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts, write gpu.json beside their results; 0, or 1 if a part failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m orthoopt.bench.gpu", description=__doc__)
    parser.add_argument("--out", help="folder of the results; default $OUT, else bench/results")
    parser.add_argument("--tests", type=Path, default=Path("tests"), help="folder of the tests")
    parser.add_argument("--total-seconds", type=positive(float), default=TOTAL_SECONDS, help="for all parts together")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("make gpu: torch sees no CUDA device", file=sys.stderr)
        return 2
    return run(parts(options.tests), results_folder(options.out), options.total_seconds)


def run(listed: Sequence[Part], folder: Path, total_seconds: float) -> int:
    """Run parts one after the other and say what became of each; 0 if all succeeded, else 1."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = {"bench": "gpu", "machine": machine.describe(device), "parts": []}
    begun, spare = time.monotonic(), 0.0
    for part in listed:
        left = total_seconds - (time.monotonic() - begun)
        limit = min(part.seconds + spare, left)
        print(f"\n== {part.name}, at most {limit:.0f} s", flush=True)
        row = _run(part, folder, limit)
        spare = max(0.0, limit - row["seconds"])
        result["parts"].append(row)
        write_json(folder / "gpu.json", result)
    line = ", ".join(f"{row['part']} {row['seconds']:.0f} s{_ending(row)}" for row in result["parts"])
    print(f"\n{line}; all {time.monotonic() - begun:.0f} s")
    return 0 if all(row["status"] == 0 for row in result["parts"]) else 1


def _ending(row: dict[str, Any]) -> str:
    return {0: "", None: " (out of time)"}.get(row["status"], f" (status {row['status']})")


def _run(part: Part, folder: Path, limit: float) -> dict[str, Any]:
    """One part in a process of its own, its output shown as it comes."""
    command = [sys.executable, "-P", "-u", "-m", *part.words]
    begun = time.monotonic()
    status: int | None = None
    kept: list[str] = []
    if limit > 0:
        environment = {**os.environ, "OUT": str(folder)}
        bounded = ["timeout", "--kill-after=5", f"{limit:.1f}", *command]
        with subprocess.Popen(
            bounded, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                kept.append(line)
        status = process.returncode
        status = None if status in (124, 137) else status
    seconds = time.monotonic() - begun
    return {"part": part.name, "status": status, "seconds": seconds, "limit": limit, "output": "".join(kept)[-_TAIL:]}


if __name__ == "__main__":
    raise SystemExit(main())

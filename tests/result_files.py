"""Result files of a tuned comparison with everything that such a file can have, and files that are none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from orthoopt.bench import intervals

ARMS = ("adamw", "symmetry", "muon", "root", "scion", "auon", "torch.optim.Muon + AdamW", "pytorch-optimizer",
        "adamw+embedding_x10", "trion")  # fmt: skip


def tuned(arms: tuple[str, ...] = ARMS, seeds: int = 3) -> dict[str, Any]:
    """A comparison with a sweep of two dimensions, timing, and tokens to the reference; one arm never gets there."""
    plans = {name: _arm(place, seeds) for place, name in enumerate(arms)}
    losses = {name: {seed["seed"]: seed["validation_loss"] for seed in plan["seeds"]} for name, plan in plans.items()}
    return {
        "bench": "pretrain",
        "title": "A dense model, tuned",
        "machine": {"time": "2026-12-01T00:00:00+00:00", "cpu": "a CPU", "cores": 2, "torch_threads": 1, "gpu": None,
                    "versions": {"python": "3.11.7", "torch": "2.13.0"}, "git": {"commit": "0" * 40, "dirty": True}},
        "settings": {"jobs": 2},
        "model": "Qwen3ForCausalLM",
        "parameters": 1_000_000,
        "corpus": {"name": "builtin:stdlib"},
        "steps": 200,
        "tokens": 400_000,
        "reference": arms[0],
        "plans": plans,
        "differences": [intervals.compare(arms[0], name, losses) for name in arms[1:]],
        "winner": None,
    }  # fmt: skip


def _arm(place: int, seeds: int) -> dict[str, Any]:
    final = 4.2 - 0.07 * place

    def curve(seed: int) -> list[list[float]]:
        shift = 0.004 * ((seed * 7 + place * 3) % 5)
        return [[step, final + shift + 4 * math.exp(-step / 30)] for step in range(20, 201, 20)]

    runs = [
        {"seed": seed, "validation_loss": curve(seed)[-1][1], "validation_curve": curve(seed), "optimizer_seconds": 2.0}
        for seed in range(seeds)
    ]
    trials = [(rate, decay) for decay in (0.0, 0.1) for rate in (1e-3, 2e-3, 4e-3, 8e-3)]
    sweep = [
        {"learning_rate": rate, "weight_decay": decay, "state": "complete",
         "validation_loss": final + 0.2 * math.log2(rate / 2e-3) ** 2 + decay}
        for rate, decay in trials
    ]  # fmt: skip
    sweep.append({"learning_rate": 0.064, "weight_decay": 0.1, "state": "failed", "validation_loss": None})
    spent = {"median": 5.0 + 3 * place, "p20": 4.5 + 3 * place, "p80": 6.5 + 3 * place}
    return {
        "sweep": sweep,
        "grid": sweep,
        "best_learning_rate": 2e-3,
        "best_weight_decay": 0.0,
        "seeds": runs,
        "validation_loss": intervals.summarize([run["validation_loss"] for run in runs]),
        "bits_per_byte": {"mean": final / 3},
        "to_reference": None if place == 9 else {"tokens": 3e5, "steps": 150, "seconds": 60.0, "share": 0.95**place},
        "timing": {"step_ms": {key: 100 + value for key, value in spent.items()}, "optimizer_ms": spent,
                   "peak_extra_bytes": 3e6, "state_bytes": 8e6 - 4e5 * place},
    }  # fmt: skip


def fill(folder: Path) -> Path:
    """Write files of every kind that a folder of results may hold."""
    unknown = {"bench": "unheard_of", "rows": [{"source": "text", "tokens_per_second": 1.2e6}, {"source": "stream"}]}
    evil = {"bench": "<script>alert(1)</script>", "rows": [{"name": "</script><b>", "value": 1.0}]}
    cuda = {"bench": "dct", "machine": {"gpu": {"name": "NVIDIA H100"}}, "sizes": []}
    files: dict[str, Any] = {
        "pretrain_dense_cpu": tuned(), "unheard_of_cpu": unknown, "evil": evil, "dct_cuda": cuda,
        "broken_cpu": {"bench": "step"},
        "two_cpu": {**tuned(ARMS[:2], seeds=1), "title": "Two arms, one seed"}, "list": [1, 2],
    }  # fmt: skip
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    (folder / "half.json").write_text('{"bench": "st', encoding="utf-8")
    return folder

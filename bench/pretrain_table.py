"""The outcome of a training comparison for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orthoopt.bench.tables import aligned


def table(result: Mapping[str, Any]) -> str:
    """One line an arm, one a difference."""
    head = (
        f"{result['model']}, {result['parameters']:,} parameters, {result['steps']} steps, {result['tokens']:,} "
        f"tokens of {result['corpus']['name']}"
    )
    columns = ["arm", "best lr", "validation loss", "bits per byte", "step", "optimizer", "state",
               f"tokens to {result['reference']}'s loss", "seconds"]  # fmt: skip
    rows = [[name, *_cells(plan)] for name, plan in result["plans"].items()]
    return "\n".join([head, aligned(columns, rows), *(row["verdict"] for row in result["differences"])])


def _cells(plan: Mapping[str, Any]) -> list[str]:
    loss, interval = plan["validation_loss"]["mean"], plan["validation_loss"]["ci95"]
    spread = f" +- {(interval[1] - interval[0]) / 2:.4f} (n={len(plan['seeds'])})" if interval else ""
    timing, reached = plan["timing"], plan["to_reference"]
    times = ["", "", ""]
    if timing is not None:
        times = [f"{timing['step_ms']['median']:.1f} ms", f"{timing['optimizer_ms']['median']:.2f} ms",
                 f"{timing['state_bytes'] / 1e6:.2f} MB"]  # fmt: skip
    needs = ["never", ""]
    if reached is not None:
        needs = [f"{reached['share']:.0%}", f"{reached['seconds']:.0f}" if "seconds" in reached else ""]
    return [f"{plan['best_learning_rate']:.3g}", f"{loss:.4f}{spread}", f"{plan['bits_per_byte']['mean']:.4f}",
            *times, *needs]  # fmt: skip

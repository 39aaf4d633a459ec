"""The rows of a step bench, for people."""

from __future__ import annotations

import textwrap
from typing import Any

from orthoopt.bench import tables
from orthoopt.bench.definitions import NS_STEPS
from orthoopt.bench.variants import BASELINE, OURS

_HEADER = ("one step()", "ms", "p20", "p80", "n", "speed", "error", "allowed", "share of ceiling")


def terminal(result: dict[str, Any]) -> str:
    """One set: milliseconds, ratio to the baseline, error, share of the machine's rate, and what was left out."""
    lines = [*_facts(result), tables.aligned(_HEADER, _cells(result))]
    skipped: dict[str, list[str]] = {}
    for row in result["skipped"]:
        skipped.setdefault(row["reason"], []).append(row["name"])
    for reason, names in skipped.items():
        lines.append(textwrap.fill(f"left out, {reason}: {', '.join(names)}", 120, subsequent_indent="  "))
    ratio = result["ours_times_faster_than_baseline"]
    if ratio is not None:
        at_p20 = compared(result["ours_times_faster_at_p20"])
        lines.append(f"{OURS} {compared(ratio)} {BASELINE} in this run (medians; at p20 {at_p20} it)")
    return "\n".join(lines)


def markdown(result: dict[str, Any]) -> str:
    """The same as a section of a page, with each variant's note."""
    table = tables.markdown((*_HEADER, "note"), [(*cells, note) for cells, note in _noted(result)])
    skipped = [f"- left out: {row['name']}, {row['reason']}" for row in result["skipped"]]
    facts = ". ".join(_facts(result)[:2])
    return "\n\n".join([f"## {result['set']}", facts, table, *(["\n".join(skipped)] if skipped else [])])


def _facts(result: dict[str, Any]) -> list[str]:
    matmul, copy = result["ceilings"]["matmul"], result["ceilings"]["copy"]
    return [
        f"{result['set']}: {result['describe']}, {result['parameters'] / 1e6:.1f}M parameters, "
        f"{result['newton_schulz_flops'] / 1e9:.1f} GFLOP in {NS_STEPS} iterations of the cheapest dense form",
        f"ceilings: {matmul['dtype']} matmul of {matmul['size']} at {matmul['per_second'] / 1e9:.0f} GFLOP/s, "
        f"copy at {copy['per_second'] / 1e9:.1f} GB/s; errors on {result['checked_matrices']} of "
        f"{result['matrices']} matrices",
    ]


def _noted(result: dict[str, Any]) -> list[tuple[tuple[str, ...], str]]:
    return [(cells, row["note"]) for cells, row in zip(_cells(result), result["variants"], strict=True)]


def _cells(result: dict[str, Any]) -> list[tuple[str, ...]]:
    return [_line(row) for row in result["variants"]]


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    check = (f"{row['error']:.1e}", f"{row['tolerance']:.0e}")
    if row["seconds"] is None:
        return (row["name"], "-", "-", "-", "-", "-", *check, "wrong result: not timed")
    times = [tables.milliseconds(row["seconds"][key]) for key in ("median", "p20", "p80")]
    ratio, share = row["times_faster_than_baseline"], row["share_of_ceiling"]
    ceiling = "matmul" if row["bound"] == "matmul" else "copy"
    return (
        row["name"], *times, str(row["seconds"]["repeats"]), "" if ratio is None else f"{ratio:.3g}x", *check,
        "" if share is None else f"{share:.0%} of {ceiling}",
    )  # fmt: skip


def compared(ratio: float) -> str:
    """A ratio of times in words."""
    return f"is {ratio:.1f} times faster than" if ratio >= 1 else f"takes {1 / ratio:.1f} times as long as"

"""What a comparison by training says of cost: tokens to the reference's loss, time and memory of the optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orthoopt.bench.report_html import ANY, Figure, Table, where
from orthoopt.bench.report_rows import Row, rows_chart
from orthoopt.bench.report_svg import short


def to_reference(plans: Mapping[str, Any], order: Sequence[str], reference: str) -> Iterator[Figure]:
    """Share of the tokens that each arm needs to reach the reference's final loss; no figure where none is given."""
    if not any("to_reference" in plan for plan in plans.values()):
        return
    rows, cells = [], []
    for name in order:
        found = plans[name].get("to_reference")
        if not found or found.get("share") is None:
            rows.append(Row(name, "not reached"))
            cells.append([name, "not reached", "", "", ""])
            continue
        share, seconds = found["share"], found.get("seconds")
        figures = [f"{found[key]:,.0f}" if found.get(key) is not None else "" for key in ("tokens", "steps")]
        spent = f"{seconds:,.0f}" if seconds is not None else ""
        tip = f"{name} reaches {reference}'s final loss with {share:.1%} of its tokens"
        tip += f"\n{figures[0]} tokens, {figures[1]} steps" + (f", {spent} s" if spent else "")
        rows.append(Row(name, f"{share:.0%}", "c0" if name == reference else "c1", bar=100 * share, tip=tip))
        cells.append([name, f"{share:.1%}", *figures, spent])
    yield Figure(
        f"Tokens to reach {reference}'s final loss",
        [where("plans", ANY, "to_reference")],
        "Share of the whole run. A schedule ends in a decay of the learning rate, which lowers the loss late; an arm "
        "in the middle of its schedule is held against the reference at the end of its own.",
        lambda width: rows_chart(
            rows, width, axis="% of the run's tokens", refs=[(100.0, "whole run")],
            label=f"Tokens to {reference}'s loss",
        ),
        table=Table(("arm", "share", "tokens", "steps", "seconds"), cells),
    )  # fmt: skip


def costs(value: Mapping[str, Any], plans: Mapping[str, Any], order: Sequence[str], reference: str) -> Iterator[Figure]:
    """Time of the optimizer and of a step, and memory, as far as they were measured."""
    timed = {name: plans[name]["timing"] for name in order if plans[name].get("timing")}
    if any((timing.get("optimizer_ms") or {}).get("median") is not None for timing in timed.values()):
        yield _timed(timed, reference, "optimizer_ms", "Time of the optimizer in a step")
        if any((timing.get("step_ms") or {}).get("median") is not None for timing in timed.values()):
            yield _timed(timed, reference, "step_ms", "Time of a whole training step")
    elif any(plans[name].get("optimizer_seconds") is not None for name in order) and value.get("steps"):
        yield _by_run(plans, order, reference, value["steps"])
    if any(timing.get("state_bytes") is not None for timing in timed.values()):
        yield _memory(timed, reference)


def _timed(timed: Mapping[str, Any], reference: str, key: str, title: str) -> Figure:
    rows, cells = [], []
    known = {name: timing[key] for name, timing in timed.items() if (timing.get(key) or {}).get("median") is not None}
    for name in sorted(known, key=lambda arm: known[arm]["median"]):
        spent = known[name]
        interval = (spent["p20"], spent["p80"]) if None not in (spent.get("p20"), spent.get("p80")) else None
        between = f"{short(interval[0])} to {short(interval[1])}" if interval else ""
        tip = f"{name}: {short(spent['median'])} ms" + (f"\np20 to p80: {between} ms" if between else "")
        hue = "c0" if name == reference else "c1"
        rows.append(Row(name, f"{short(spent['median'])} ms", hue, spent["median"], interval=interval, tip=tip))
        cells.append([name, short(spent["median"]), between])
    return Figure(
        title,
        [where("plans", ANY, "timing", key)],
        "Bars are medians, whiskers the 20th and 80th percentile.",
        lambda width: rows_chart(rows, width, axis="ms", label=title),
        table=Table(("arm", "median, ms", "p20 to p80, ms"), cells),
    )


def _by_run(plans: Mapping[str, Any], order: Sequence[str], reference: str, steps: int) -> Figure:
    """The optimizer's part of a step, as the runs counted it."""
    rows, cells = [], []
    for name in order:
        spent = [seed.get("optimizer_seconds") for seed in plans[name].get("seeds", [])]
        each = [1e3 * seconds / steps for seconds in spent if seconds is not None]
        if not each:
            continue
        mean, whole = sum(each) / len(each), plans[name].get("seconds")
        share = f"{mean * steps / 1e3 / whole:.1%} of the training time" if whole else ""
        tip = f"{name}: {short(mean)} ms a step\nruns: {', '.join(map(short, each))}\n{share}"
        hue = "c0" if name == reference else "c1"
        rows.append(Row(name, f"{short(mean)} ms", hue, mean, interval=(min(each), max(each)), tip=tip))
        cells.append([name, short(mean), f"{short(min(each))} to {short(max(each))}", share])
    rows.sort(key=lambda row: row.bar or 0.0)
    cells.sort(key=lambda cell: float(cell[1].replace(",", "")))
    return Figure(
        "Time of the optimizer in a step",
        [where("plans", ANY, "seeds", ANY, "optimizer_seconds"), where("steps")],
        "Seconds in the optimizer over steps: means of seeds, whiskers from the lowest to the highest. Runs shared the "
        "machine; the step benches below are the place for the cost of an optimizer alone.",
        lambda width: rows_chart(rows, width, axis="ms a step", label="Time of the optimizer in a step, by arm"),
        table=Table(("arm", "mean, ms", "lowest to highest, ms", "share"), cells, left=1),
    )


def _memory(timed: Mapping[str, Any], reference: str) -> Figure:
    rows, cells = [], []
    for name in sorted(timed, key=lambda arm: timed[arm].get("state_bytes") or 0):
        state, extra = timed[name].get("state_bytes"), timed[name].get("peak_extra_bytes")
        if state is None:
            continue
        also = "" if extra is None else f"{extra / 1e6:.3g}"
        tip = f"{name}: state {state / 1e6:.4g} MB" + (f"\na step needs {also} MB more at its peak" if also else "")
        hue = "c0" if name == reference else "c1"
        rows.append(Row(name, f"{state / 1e6:.3g} MB", hue, state / 1e6, tip=tip))
        cells.append([name, f"{state / 1e6:.4g}", also])
    return Figure(
        "Memory of the optimizer's state",
        [where("plans", ANY, "timing")],
        "In MB of 10⁶ bytes; what a step needs beside it is in the table.",
        lambda width: rows_chart(rows, width, axis="MB", label="Memory of the state, by arm"),
        table=Table(("arm", "state, MB", "peak of a step beside it, MB"), cells),
    )

"""The report on learning rates: how the final loss of each arm depends on its own."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orthoopt.bench.report_html import ANY, PANEL, Figure, Table, where
from orthoopt.bench.report_svg import short
from orthoopt.bench.report_xy import Series, xy_chart

LOSS = "validation loss, nats per token"
_TOGETHER = 4  # arms that share one picture


def rates(
    plans: Mapping[str, Any], order: Sequence[str], reference: str, looks: Mapping[str, tuple[str, str]]
) -> Iterator[Figure]:
    """Loss over learning rate: all arms in one picture if they are few, else one a panel.

    Args:
        plans: the arms of a file.
        order: from the best arm to the worst.
        reference: drawn behind every panel.
        looks: hue and shape of each arm.
    """
    key = "sweep" if all(plans[name].get("sweep") for name in order) else "grid"
    trials = {name: _trials(plans[name][key]) for name in order}
    all_losses = [loss for rows in trials.values() for _, loss, _ in rows]
    low = min(all_losses)
    span = min(max(all_losses) - low, max(4 * (statistics.median(all_losses) - low), 0.5))
    y_range = (low - 0.06 * span, low + 1.06 * span)
    tried = [rate for rows in trials.values() for rate, _, _ in rows]
    every = {name: _sensitivity(name, trials[name], plans[name], *looks[name]) for name in order}
    label = "validation loss of every trial over its learning rate"
    note = (
        "Each point is a trial on one seed; the best is ringed. Learning rates mean AdamW's. "
        "Trials above the axis are left out of the picture, not of the table."
    )
    cells = [
        [
            name,
            short(rate),
            "" if decay is None else short(decay),
            f"{loss:.4f}",
            "best" if k == every[name].ringed else "",
        ]
        for name in order
        for k, (rate, loss, decay) in enumerate(trials[name])
    ]
    table = Table(("arm", "learning rate", "weight decay", "loss", ""), cells)
    title, places = "Sensitivity to the learning rate", [where("plans", ANY, key)]
    ends = (min(tried), max(tried))
    if len(order) <= _TOGETHER:
        series = [every[name] for name in reversed(order)]
        yield Figure(
            title, places, note,
            lambda width: xy_chart(
                series, width, 360 if width > 500 else 300, x="learning rate", y=LOSS, log_x=True, y_range=y_range,
                x_range=ends, label=label, direct=width > 500, x_ticks=sorted(set(tried)),
            ),
            legend=[(name, *looks[name]) for name in order], table=table,
        )  # fmt: skip
        return
    lines = every[reference].line
    behind = Series(
        reference, every[reference].points, "c-faint", shape=None if lines else "circle", line=lines, thin=True
    )
    panels = [
        xy_chart(
            [every[name]] if name == reference else [behind, every[name]], *PANEL, x="learning rate", y="loss",
            log_x=True, y_range=y_range, x_range=ends, label=f"{name}: {label}", title=name, direct=False,
        )
        for name in order
    ]  # fmt: skip
    yield Figure(title, places, f"{note} {reference} is drawn in grey behind the others.", panels=panels, table=table)


def _trials(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float, float | None]]:
    """Learning rate, loss and weight decay of the trials that ended with a loss, by learning rate."""
    found = [
        (row["learning_rate"], row["validation_loss"], row.get("weight_decay"))
        for row in rows
        if isinstance(row.get("validation_loss"), (int, float)) and math.isfinite(row["validation_loss"])
    ]
    return sorted(found, key=lambda trial: trial[:2])


def _sensitivity(
    name: str, trials: Sequence[tuple[float, float, float | None]], plan: Mapping[str, Any], hue: str, shape: str
) -> Series:
    """A line through one trial a rate; marks alone where a rate was tried with several decays, or at random."""
    rates = [rate for rate, _, _ in trials]
    decays = {decay for _, _, decay in trials}
    best = plan.get("best_learning_rate")
    at_best = [k for k, rate in enumerate(rates) if best is not None and math.isclose(rate, best, rel_tol=1e-6)]
    ringed = min(at_best or range(len(trials)), key=lambda k: trials[k][1], default=None)
    tips = tuple(
        f"{name}\nlr {short(rate)}: {loss:.4f}" + (f", decay {short(decay)}" if decay is not None else "")
        for rate, loss, decay in trials
    )
    line = len(set(rates)) == len(rates) and len(decays) == 1
    hue = "c1" if hue == "c-faint" else hue
    points = tuple((rate, loss) for rate, loss, _ in trials)
    return Series(name, points, hue, shape=shape, line=line, ringed=ringed, tips=tips)

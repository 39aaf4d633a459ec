"""The picture of a pretraining comparison: loss against learning rate, and loss curves over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

_TALLEST = 2.0  # nats that the picture of the grid spans at most


def draw(result: Mapping[str, Any], path: Path) -> str:
    """Draw ``result`` as ``orthoopt.bench.pretrain.compare`` gives it; the path, or why there is no picture."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no plot: matplotlib is not installed"
    title = (
        f"{result['model']}, {result['parameters'] / 1e6:.1f}M parameters, {result['steps']} steps, "
        f"{result['tokens'] / 1e6:.2g}M tokens of {result['corpus']['name']}"
    )
    if len(result["plans"]) > len(_COLOURS):
        figure = _ranking(Figure, result["plans"])
    else:
        figure = _curves_and_rates(Figure, result)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)
    return str(path)


def _ranking(figure_class: Any, plans: Mapping[str, Any]) -> Any:
    """Arms by their loss, best at the top: each seed, their mean, and the neighbouring learning rates of the grid."""
    order = sorted(plans, key=lambda name: plans[name]["validation_loss"]["mean"])
    figure = figure_class(figsize=(9, 1.2 + 0.34 * len(order)), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(order):
        plan = plans[name]
        losses = [seed["validation_loss"] for seed in plan["seeds"]]
        best = plan["best_learning_rate"]
        rates = sorted(plan["grid"], key=lambda row: row["learning_rate"])
        at = next(i for i, row in enumerate(rates) if row["learning_rate"] == best)
        beside = [rates[i]["validation_loss"] for i in (at - 1, at + 1) if 0 <= i < len(rates)]
        beside = [loss for loss in beside if math.isfinite(loss)]
        axes.plot(beside, [place] * len(beside), "|", color="0.55", markersize=9)
        axes.plot(losses, [place] * len(losses), "o", color=_COLOURS[0], markersize=4, alpha=0.6)
        axes.plot(statistics.fmean(losses), place, "D", color=_COLOURS[1], markersize=5)
    lowest = plans[order[0]]["validation_loss"]["mean"]
    highest = max(seed["validation_loss"] for plan in plans.values() for seed in plan["seeds"])
    axes.set_xlim(lowest - 0.05 * (highest - lowest), highest + 0.05 * (highest - lowest))
    axes.set_yticks(range(len(order)), [f"{name}, lr {plans[name]['best_learning_rate']:.3g}" for name in order])
    axes.invert_yaxis()
    axes.set_xlabel("validation loss (nats per token)")
    figure.supxlabel(
        "diamonds: means over seeds; dots: seeds; bars: the neighbouring learning rates, one seed", fontsize=9
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _curves_and_rates(figure_class: Any, result: Mapping[str, Any]) -> Any:
    """Loss against learning rate beside the curves over seeds."""
    figure = figure_class(figsize=(11, 4.4), layout="constrained")
    rates, curves = figure.subplots(1, 2)
    for i, (name, plan) in enumerate(result["plans"].items()):
        colour = _COLOURS[i % len(_COLOURS)]
        _draw_grid(rates, name, plan, colour)
        _draw_curves(curves, name, plan, colour)
    losses = [row["validation_loss"] for plan in result["plans"].values() for row in plan["grid"]]
    losses = [loss for loss in losses if math.isfinite(loss)]
    if max(losses) - min(losses) > _TALLEST:  # a rate that all but diverged must not flatten the rest
        rates.set_ylim(min(losses) - 0.05 * _TALLEST, min(losses) + _TALLEST)
    rates.set_xscale("log")
    ticks = sorted({row["learning_rate"] for plan in result["plans"].values() for row in plan["grid"]})
    rates.set_xticks(ticks, [f"{rate:g}" for rate in ticks], rotation=45, ha="right")
    rates.minorticks_off()
    rates.set(xlabel="learning rate (AdamW's scale)", ylabel="validation loss (nats per token)",
              title="one seed per learning rate; circled: the best")  # fmt: skip
    curves.set(xlabel="step", ylabel="loss (nats per token)", title=_curves_title(result))
    curves.set_ylim(*_loss_range(result["plans"].values()))
    for axes in (rates, curves):
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    curves.legend(frameon=False)  # one for both: colours are the same, and here no line is in its way
    return figure


def _draw_grid(axes: Any, name: str, plan: Mapping[str, Any], colour: str) -> None:
    points = [(row["learning_rate"], row["validation_loss"]) for row in plan["grid"]]
    points = [point for point in points if math.isfinite(point[1])]  # diverged runs have no place on the axis
    axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name, markersize=4)
    best = [point for point in points if point[0] == plan["best_learning_rate"]]
    axes.plot(*zip(*best, strict=True), "o", color=colour, markersize=11, fillstyle="none")


def _draw_curves(axes: Any, name: str, plan: Mapping[str, Any], colour: str) -> None:
    steps, low, middle, high = _band([seed["training_curve"] for seed in plan["seeds"]])
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(steps, middle, color=colour, alpha=0.6, linewidth=1)
    steps, low, middle, high = _band([seed["validation_curve"] for seed in plan["seeds"]])
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(steps, middle, "o-", color=colour, markersize=4, label=f"{name}, lr {plan['best_learning_rate']:.3g}")


def _band(
    seeds: Sequence[Sequence[tuple[int, float]]],
) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps, and the lowest, mean and highest loss over seeds at each."""
    by_step: dict[int, list[float]] = {}
    for curve in seeds:
        for step, loss in curve:
            by_step.setdefault(step, []).append(loss)
    values = list(by_step.values())
    return list(by_step), list(map(min, values)), list(map(statistics.fmean, values)), list(map(max, values))


def _loss_range(plans: Any) -> tuple[float, float]:
    """From just under the lowest loss to where the slowest plan is after a tenth of its steps."""
    lowest, start = math.inf, -math.inf
    for plan in plans:
        for seed in plan["seeds"]:
            curve = [point for point in seed["training_curve"] + seed["validation_curve"] if math.isfinite(point[1])]
            last = max((step for step, _ in curve), default=0)
            lowest = min([lowest, *(loss for _, loss in curve)])
            start = max([start, *(loss for step, loss in curve if step >= last / 10)])
    if not lowest < start:
        return 0.0, 1.0
    margin = 0.05 * (start - lowest)
    return lowest - margin, start + margin


def _curves_title(result: Mapping[str, Any]) -> str:
    seeds = max(len(plan["seeds"]) for plan in result["plans"].values())
    spread = f"; bands: range of {seeds} seeds" if seeds > 1 else ""
    return f"points: validation, thin: training{spread}"

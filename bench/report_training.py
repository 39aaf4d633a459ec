"""The report on a comparison by training: final losses, curves, learning rates, differences, cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from orthoopt.bench.report_costs import costs, to_reference
from orthoopt.bench.report_html import ANY, Figure, Part, Result, Section, Table, hue_and_shape, where
from orthoopt.bench.report_rates import LOSS, rates
from orthoopt.bench.report_rows import Dot, Row, rows_chart
from orthoopt.bench.report_svg import short
from orthoopt.bench.report_xy import Series, xy_chart

_FAMILIAR = ("symmetry", "muon", "adamw+embedding_x10", "root", "scion", "auon")
_COLOURED = 8


def training(result: Result) -> Iterator[Part]:
    """The section, then what draws its figures."""
    value = result.value
    plans = {name: plan for name, plan in value["plans"].items() if _mean(plan) is not None}
    order = sorted(plans, key=lambda name: _mean(plans[name]) or math.inf)
    reference = value.get("reference") or ("adamw" if "adamw" in plans else order[0])
    looks = _looks(order, reference)
    section = Section(value.get("title") or _title(value), result, [_described(value, plans)])
    section.verdicts = [str(row["verdict"]) for row in value.get("differences") or [] if row.get("verdict")]
    if value.get("winner"):
        section.verdicts.insert(0, f"{value['winner']} wins every comparison it is in")
    section.brief = brief(value, plans, reference)
    yield section
    yield partial(_final, plans, order, reference)
    if value.get("differences"):
        yield partial(_differences, value["differences"], reference)
    yield partial(_curves, value, plans, order, looks)
    yield partial(rates, plans, order, reference, looks)
    yield partial(to_reference, plans, order, reference)
    yield partial(costs, value, plans, order, reference)


def brief(value: Mapping[str, Any], plans: Mapping[str, Any], reference: str) -> list[str]:
    """What the file states of the symmetry plans against the reference."""
    between = {frozenset(row["between"]): row for row in value.get("differences") or []}
    found = [between.get(frozenset((name, reference))) for name in plans if name.split("+")[0].startswith("symmetry")]
    return [str(row["verdict"]) for row in found if row and row.get("verdict")]


def _mean(plan: Mapping[str, Any]) -> float | None:
    mean = (plan.get("validation_loss") or {}).get("mean")
    return mean if isinstance(mean, (int, float)) and math.isfinite(mean) else None


def _looks(order: Sequence[str], reference: str) -> dict[str, tuple[str, str]]:
    """A hue and shape for the reference, the familiar arms and the best of the others; grey for the rest."""
    looks = {reference: hue_and_shape(0)}
    looks |= {name: hue_and_shape(k) for k, name in enumerate(_FAMILIAR, 1) if name in order and name != reference}
    taken = {hue for hue, _ in looks.values()}
    free = [k for k in range(1, _COLOURED + 1) if f"c{k}" not in taken]
    for name in order:
        if name not in looks:
            looks[name] = hue_and_shape(free.pop(0)) if free else ("c-faint", "circle")
    return looks


def _title(value: Mapping[str, Any]) -> str:
    model, count = value.get("model", "a model"), value.get("parameters")
    size = f", {count / 1e6:.1f}M parameters" if count else ""
    steps = f", {value['steps']} steps" if value.get("steps") else ""
    return f"Training: {len(value['plans'])} optimizers, {model}{size}{steps}"


def _described(value: Mapping[str, Any], plans: Mapping[str, Any]) -> str:
    corpus, settings = value.get("corpus") or {}, value.get("settings") or {}
    seeds = sorted({len(plan.get("seeds", [])) for plan in plans.values()})
    trials = sorted({len(plan.get("sweep") or plan.get("grid") or []) for plan in plans.values()})
    parts = [
        f"{value['tokens']:,} tokens of {corpus.get('name', 'a corpus')}" if value.get("tokens") else "",
        f"{len(plans)} optimizers, each tuned by its own sweep of {_span(trials)} trials on one seed",
        f"then {_span(seeds)} seeds at its best",
        "equal tokens, batches and schedule, compared at the end of the schedule",
    ]
    text = "; ".join(part for part in parts if part) + "."
    jobs = settings.get("jobs")
    return text + (f" {jobs} runs at a time shared the machine." if jobs and jobs > 1 else "")


def _span(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _final(plans: Mapping[str, Any], order: Sequence[str], reference: str) -> Figure:
    rows, cells = [], []
    for name in order:
        plan, hue = plans[name], "c0" if name == reference else "c1"
        loss, best = plan["validation_loss"], plan.get("best_learning_rate")
        interval = loss.get("ci95")
        seeds = [seed for seed in plan.get("seeds", []) if seed.get("validation_loss") is not None]
        dots = [
            Dot(seed["validation_loss"], hue, "bar", f"{name}, seed {seed.get('seed')}: {seed['validation_loss']:.4f}")
            for seed in seeds
        ]
        spread = f" ± {(interval[1] - interval[0]) / 2:.3f}" if interval else ""
        tip = f"{name}\nmean {loss['mean']:.4f}{spread}\n{len(seeds)} seeds"
        tip += f", learning rate {short(best)}" if best else ""
        dots.append(Dot(loss["mean"], hue, "diamond", tip))
        rows.append(Row(name, f"{loss['mean']:.3f}{spread}", hue, dots=tuple(dots), tip=tip))
        decay, bits = plan.get("best_weight_decay"), (plan.get("bits_per_byte") or {}).get("mean")
        cells.append(
            [name, short(best) if best else "", "" if decay is None else short(decay), f"{loss['mean']:.4f}",
             f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "", f"{bits:.4f}" if bits else "",
             str(len(seeds))]
        )  # fmt: skip
    header = ("arm", "best lr", "weight decay", "loss", "95% interval", "bits per byte", "seeds")
    return Figure(
        "Loss at the end of the schedule",
        [where("plans", ANY, "validation_loss"), where("plans", ANY, "seeds", ANY, "validation_loss")],
        "Diamonds are means, bars single seeds; the figure is the mean with half its 95% interval over seeds. "
        "Best at the top, the reference in grey. A seed decides initialization and data order alike in all arms, so "
        "differences within a seed, below, are known better than these means.",
        lambda width: rows_chart(rows, width, axis=LOSS, label=f"Final losses of {len(rows)} arms, best first"),
        table=Table(header, cells),
    )


def _differences(differences: Sequence[Mapping[str, Any]], reference: str) -> Figure:
    rows, cells = [], []
    turned = [_turned(row, reference) for row in differences]
    for (first, second), mean, interval, winner in sorted(turned, key=lambda row: (row[0][1] != reference, row[1])):
        label = f"{first} − {second}"
        word = {None: "inside the noise", first: f"{first} is lower", second: f"{second} is lower"}[winner]
        span = f", 95% interval {interval[0]:+.4f} to {interval[1]:+.4f}" if interval else ", no interval"
        tip = f"{label} = {mean:+.4f}{span}\n{word}"
        hue = "c-faint" if winner is None else "c1" if mean < 0 else "c2"
        dots = (Dot(mean, hue, "diamond", tip),)
        rows.append(Row(label, f"{mean:+.3f}", hue, interval=interval, dots=dots, tip=tip))
        cells.append([label, f"{mean:+.4f}", f"{interval[0]:+.4f} to {interval[1]:+.4f}" if interval else "", word])
    return Figure(
        "Differences within a seed, with 95% intervals",
        [where("differences", ANY, "difference")],
        "Left of zero the first arm has the lower loss. Grey: the interval includes zero, so there is no winner. "
        "Student's t over seeds; not corrected for the number of comparisons.",
        lambda width: rows_chart(
            rows, width, axis="difference of validation losses, nats per token", refs=[(0.0, "equal")],
            label=f"{len(rows)} differences of losses with their intervals",
        ),
        table=Table(("difference", "mean", "95% interval", "verdict"), cells),
    )  # fmt: skip


def _turned(row: Mapping[str, Any], reference: str) -> tuple[tuple[str, str], float, tuple[float, float] | None, Any]:
    """A difference as (arms, mean, interval, winner), the reference being what is subtracted."""
    (first, second), found = row["between"], row["difference"]
    mean, interval = found["mean"], found.get("ci95")
    if first == reference:
        first, second, mean = second, first, -mean
        interval = None if interval is None else (-interval[1], -interval[0])
    return (first, second), mean, None if interval is None else (interval[0], interval[1]), row.get("winner")


def _curves(
    value: Mapping[str, Any], plans: Mapping[str, Any], order: Sequence[str], looks: Mapping[str, tuple[str, str]]
) -> Figure:
    longest = max(len(seed.get("validation_curve") or ()) for plan in plans.values() for seed in plan["seeds"])
    key, what = ("validation_curve", "validation") if longest >= 3 else ("training_curve", "training")
    series = []
    for name in reversed(order):
        hue, shape = looks[name]
        band = _band([seed[key] for seed in plans[name]["seeds"]])
        tips = tuple(f"{name}\nstep {step:g}: {mean:.4f} ({low:.4f} to {high:.4f})" for step, low, mean, high in band)
        series.append(
            Series(
                name, tuple((step, mean) for step, _, mean, _ in band), hue,
                shape=None if hue == "c-faint" or len(band) > 60 else shape, thin=hue == "c-faint",
                band=tuple((step, low, high) for step, low, _, high in band), tips=tips, named=hue != "c-faint",
            )
        )  # fmt: skip
    grey = sum(1 for one in series if not one.named)
    note = (
        "Means of seeds; bands from the lowest to the highest. The axis begins where the slowest is after a tenth of "
    )
    note += f"the steps. {f'Thin and grey, named where one points: {grey} more.' if grey else ''}"
    header = ("arm", "first step", "loss", "half way", "last step", "loss")
    cells = [
        [one.name, f"{one.points[0][0]:g}", f"{one.points[0][1]:.3f}", f"{one.points[len(one.points) // 2][1]:.3f}",
         f"{one.points[-1][0]:g}", f"{one.points[-1][1]:.3f}"]
        for one in reversed(series)
    ]  # fmt: skip
    return Figure(
        f"Loss curves ({what})",
        [where("plans", ANY, "seeds", ANY, key)],
        note.strip(),
        lambda width: xy_chart(
            series, width, 420 if width > 500 else 330, x=_steps(value), y=f"{what} loss, nats per token",
            y_range=_loss_range(series), label=f"{what} losses of {len(series)} arms over steps", direct=width > 500,
        ),
        legend=[(name, *looks[name]) for name in order if looks[name][0] != "c-faint"],
        table=Table(header, cells),
    )  # fmt: skip


def _steps(value: Mapping[str, Any]) -> str:
    steps, tokens = value.get("steps"), value.get("tokens")
    return f"step, of {tokens / steps:,.0f} tokens each" if steps and tokens else "step"


def _band(curves: Sequence[Sequence[Sequence[float]]]) -> list[tuple[float, float, float, float]]:
    """Step, and lowest, mean and highest loss over seeds, where all are finite."""
    by_step: dict[float, list[float]] = {}
    for curve in curves:
        for step, loss in curve:
            by_step.setdefault(step, []).append(math.nan if loss is None else loss)
    finite = {step: losses for step, losses in by_step.items() if all(map(math.isfinite, losses))}
    return [(step, min(v), statistics.fmean(v), max(v)) for step, v in sorted(finite.items())]


def _loss_range(series: Sequence[Series]) -> tuple[float, float]:
    """From just under the lowest loss to where the slowest arm is after a tenth of its steps."""
    lowest = min(y for one in series for _, y in one.points)
    last = max(x for one in series for x, _ in one.points)
    start = max((y for one in series for x, y in one.points if x >= last / 10), default=lowest)
    margin = 0.04 * (start - lowest) or 0.5
    return lowest - margin, start + margin

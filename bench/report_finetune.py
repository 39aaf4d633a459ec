"""The report on plans in fine-tuning: the new text's loss, what is forgotten of the old, and rates that were tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from orthoopt.bench.report_html import ANY, Figure, Part, Result, Section, Table, where
from orthoopt.bench.report_rows import Dot, Row, rows_chart
from orthoopt.bench.report_svg import short

_MEASURES = {
    "new_loss": ("Loss on the new text", "nats per token"),
    "forgotten": ("Rise of the loss on the old text", "nats per token; less is better"),
}


def finetune(result: Result) -> Iterator[Part]:
    """Both measures on every base, one picture each."""
    yield Section("Fine-tuning, plan against plan", result)
    for base, found in result.value.get("bases", {}).items():
        for measure in _MEASURES:
            yield partial(_measured, base, found, measure)


def _measured(base: str, found: Mapping[str, Any], measure: str) -> Figure:
    title, unit = _MEASURES[measure]
    arms = {name: arm for name, arm in found["arms"].items() if arm.get(measure)}
    verdicts = {
        name: row["verdict"]
        for row in found.get("differences", {}).get(measure, [])
        for name in row["between"]
        if name not in ("adamw", "lora:adamw")
    }
    rows, cells = [], []
    for name in sorted(arms, key=lambda arm: arms[arm][measure]["mean"]):
        arm, best = arms[name], arms[name].get("best_learning_rate")
        hue = "c0" if name == "adamw" else "c2" if arm.get("lora_rank") else "c1"
        mean, interval = arm[measure]["mean"], arm[measure].get("ci95")
        dots = [Dot(seed[measure], hue, "bar", f"{name}, seed {seed['seed']}: {seed[measure]:.4f}")
                for seed in arm.get("seeds", []) if seed.get(measure) is not None]  # fmt: skip
        spread = f" ± {(interval[1] - interval[0]) / 2:.3f}" if interval else ""
        tip = f"{name}\nmean {mean:.4f}{spread}" + (f", learning rate {short(best)}" if best else "")
        dots.append(Dot(mean, hue, "diamond", tip))
        rows.append(Row(name, f"{mean:.3f}{spread}", hue, dots=tuple(dots), tip=tip))
        between = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        cells.append([name, "" if best is None else short(best), f"{mean:.4f}", between, verdicts.get(name, "")])
    return Figure(
        f"{title}, on a model pretrained with {base}",
        [where("bases", base, "arms", ANY, measure), where("bases", base, "arms", ANY, "seeds", ANY, measure)],
        "Each arm at its own best rate for the new text; diamonds are means, bars single seeds, AdamW in grey, "
        "adapters in a colour of their own.",
        lambda width: rows_chart(rows, width, axis=unit, label=f"{title} by arm, base {base}"),
        legend=[("AdamW", "c0", "diamond"), ("all weights", "c1", "diamond"), ("LoRA", "c2", "diamond")],
        legend_always=True,
        table=Table(("arm", "best lr", "mean", "95% interval", "against AdamW"), cells),
    )

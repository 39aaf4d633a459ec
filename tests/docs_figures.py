"""The tables of figures in the README and the pages of rules, made from bench/results.

python tests/docs_figures.py    writes those of every page anew
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RULES = sorted((ROOT / "docs" / "rules").glob("*.md"))
MARKER = re.compile(r"^<!-- measured: (?P<arms>.+) -->\n(?P<shown>(?:(?!<!--|#).*\n)*?)<!-- end -->$", re.M)
README = ROOT / "README.md"
TRAINED = re.compile(r"^<!-- trained: (?P<file>\w+) -->\n(?P<shown>(?:(?!<!--|#).*\n)*?)<!-- end -->$", re.M)
STEPPED = re.compile(r"^<!-- steps: (?P<file>\w+) -->\n(?P<shown>(?:(?!<!--|#).*\n)*?)<!-- end -->$", re.M)
_TIMED = {
    "orthoopt.Muon": "`orthoopt.Muon`",
    "torch.optim.Muon": "`torch.optim.Muon` (bfloat16 iteration)",
    "torch.optim.Muon float32": "`torch.optim.Muon`, float32",
    "pytorch-optimizer gram, no restart, float32": "pytorch-optimizer, Gram form, float32",
    "pytorch-optimizer float32": "pytorch-optimizer, float32",
    "heavyball float32": "heavyball, float32, compiled",
    "orthoopt.RowNorm": "`orthoopt.RowNorm`",
    "orthoopt.RowNorm unchecked": 'the same with `nonfinite="ignore"`',
    "orthoopt.AuON": "`orthoopt.AuON`",
    "orthoopt.AuON unchecked": 'the same with `nonfinite="ignore"`',
    "torch.optim.AdamW foreach": "`torch.optim.AdamW`, foreach",
    "torch.optim.AdamW fused": "`torch.optim.AdamW`, fused",
    "torch.optim.SGD fused": "`torch.optim.SGD` with a momentum, fused",
}
"""The variants that the README shows, and how it calls them."""
_ADAMW = ("torch.optim.AdamW", "torch.optim.AdamW+embedding_x10")
_STEPS = {
    "adamw": "torch.optim.AdamW fused", "muon": "orthoopt.Muon", "scion": "orthoopt.Scion", "trion": "orthoopt.Trion",
    "row_norm": "orthoopt.RowNorm", "auon": "orthoopt.AuON",
}  # fmt: skip
"""Plans whose rule for matrices is timed, and under which name."""
_HEAD = """
At equal tokens, each arm at its own best learning rate, mean of three seeds, differences within seeds with 95%
intervals ([plans_cpu.json](../../bench/results/plans_cpu.json): 120 steps of a small model, see
[how far it carries](../plans.md#one-comparison)); state on Qwen3-0.6B
([memory_cpu.json](../../bench/results/memory_cpu.json)); a step on 24 small matrices on two CPU cores
([step_cpu.json](../../bench/results/step_cpu.json)).

| arm | best lr | validation loss | lower than `adamw` by | state, of AdamW's | a step, ms |
|---|---|---|---|---|---|
"""


@functools.cache
def _result(name: str) -> Any:
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def table(arms: list[str]) -> str:
    """The text between the marker of these arms and its end. Raises KeyError for an arm that was not measured."""
    plans = _result("plans_cpu")
    differences = {frozenset(row["between"]): row for row in plans["differences"]}
    states = {row["plan"]: row["of_adamw"] for row in _result("memory_cpu")["state"] if row["model"] == "qwen3-0.6b"}
    sets = _result("step_cpu")["shapes"]
    steps = {row["name"]: 1e3 * row["seconds"]["median"] for row in sets["cpu_small"]["variants"] if row["seconds"]}
    lines = []
    for arm in arms:
        trained = plans["plans"][arm]
        lower, state, step = "", states.get(arm), steps.get(_STEPS.get(arm, ""))
        if arm != "adamw":
            row = differences[frozenset(("adamw", arm))]
            sign = 1 if row["between"][0] == "adamw" else -1
            mean, *ends = (sign * x for x in (row["difference"]["mean"], *row["difference"]["ci95"]))
            lower = f"{mean:.3f}, {min(ends):.3f} to {max(ends):.3f}"
        cells = [
            f"`{arm}`",
            f"{trained['best_learning_rate']:g}",
            f"{trained['validation_loss']['mean']:.3f}",
            lower,
            "" if state is None else f"{state:.2f}",
            "" if step is None else f"{step:.3g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return _HEAD + "\n".join(lines) + "\n\n"


def trained_table(name: str) -> str:
    """A training comparison: each arm's loss, and how much lower it is than AdamW's two."""
    result = _result(name)
    lines = [
        "",
        "| arm | best lr | validation loss | lower than AdamW by | than AdamW, embedding x10, by "
        "| tokens to AdamW's loss | optimizer, ms | state, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, trained in sorted(result["plans"].items(), key=lambda item: item[1]["validation_loss"]["mean"]):
        timing, reached = trained["timing"], trained["to_reference"]
        cells = [
            f"`{arm}`", f"{trained['best_learning_rate']:.2g}", f"{trained['validation_loss']['mean']:.3f}",
            *(_lower(result["differences"], adamw, arm) for adamw in _ADAMW),
            "never" if reached is None else f"{reached['share']:.0%}",
            f"{timing['optimizer_ms']['median']:.1f}", f"{timing['state_bytes'] / 1e6:.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n"


def _lower(differences: list[Any], than: str, arm: str) -> str:
    row = next((row for row in differences if set(row["between"]) == {than, arm}), None)
    if row is None:
        return ""
    sign = 1 if row["between"][0] == than else -1
    mean, *ends = (sign * x for x in (row["difference"]["mean"], *row["difference"]["ci95"]))
    return f"{mean:.3f}, {min(ends):.3f} to {max(ends):.3f}"


def steps_table(name: str) -> str:
    """The step times of a result file on the CPU-sized set."""
    rows = {row["name"]: row for row in _result(name)["shapes"]["cpu_small"]["variants"]}
    lines = ["", "| | ms, median | times as fast as `torch.optim.Muon` | error against float64 |", "|---|---|---|---|"]
    baseline = rows["torch.optim.Muon"]["seconds"]["median"]
    for variant, title in _TIMED.items():
        if variant not in rows:  # an older file
            continue
        seconds = rows[variant]["seconds"]["median"]
        figures = (_three_digits(1e3 * seconds), _three_digits(baseline / seconds), f"{rows[variant]['error']:.1e}")
        lines.append(f"| {' | '.join((title, *figures))} |")
    return "\n".join(lines) + "\n\n"


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def step_times() -> list[str]:
    """What the questions say of step times: ours, torch's, and how much faster than the fastest peer."""
    said = []
    for name in ("step_cpu", "step_cpu_avx512"):
        rows = _result(name)["shapes"]["cpu_small"]["variants"]
        milliseconds = {row["name"]: 1e3 * row["seconds"]["median"] for row in rows if row["seconds"]}
        said.append(f"a step of `orthoopt.Muon` takes {milliseconds['orthoopt.Muon']:.0f} ms where")
        said.append(f"`torch.optim.Muon` takes {milliseconds['torch.optim.Muon']:.0f}")
    claims = _claims("step_cpu")
    ahead = claims["fastest peer over orthoopt.Muon"]
    return [*said, f"{ahead:.2f} times as fast as the fastest float32 implementation of another package"]


def step_ratios() -> list[str]:
    """What the README says of them."""
    claims, with_bfloat16 = _claims("step_cpu"), _claims("step_cpu_avx512")
    of_adamw = [f"orthoopt.{rule}{kind} over torch.optim.AdamW fused" for kind in ("", " unchecked")
                for rule in ("RowNorm", "AuON")]  # fmt: skip
    row_norm, auon, unchecked, auon_unchecked = (claims[what] for what in of_adamw)
    alone = next(row["momentum_alone"] for row in _result("step_cpu")["must_show"] if row["what"] == of_adamw[2])
    return [
        f"{claims['torch.optim.Muon over orthoopt.Muon']:.2g} times as fast as torch's in bfloat16",
        f"{claims['fastest peer over orthoopt.Muon']:.2f} times as fast as the fastest peer in float32",
        f"take {row_norm:.2f} and {auon:.2f} of fused AdamW's time, {unchecked:.2f} and {auon_unchecked:.2f} without",
        f"which only moves a momentum, takes {alone:.2f}",
        f"{with_bfloat16['torch.optim.Muon over orthoopt.Muon']:.2g} times as fast as torch's",
    ]


def shares_of_product() -> list[str]:
    """The least and the most of the product's rate that the iteration reaches, as the README says it."""
    shares = {
        name: [row["value"] for row in _result(name)["must_show"] if row["what"] == "share of the product's rate"]
        for name in ("orthogonalize_cpu", "orthogonalize_cpu_avx512")
    }
    here, there = shares["orthogonalize_cpu"], shares["orthogonalize_cpu_avx512"]
    return [
        f"at {min(here):.2f} to {max(here):.2f} times the rate of torch's matrix product",
        f"at {min(there):.1f} to {max(there):.1f} times that rate",
    ]


def _claims(name: str) -> dict[str, float]:
    return {row["what"]: row["value"] for row in _result(name)["must_show"] if row.get("set") == "cpu_small"}


def with_tables(text: str) -> str:
    """A page with the tables that its markers ask for."""

    def filled(found: re.Match[str]) -> str:
        return f"<!-- measured: {found['arms']} -->\n{table(found['arms'].split(', '))}<!-- end -->"

    def compared(found: re.Match[str]) -> str:
        return f"<!-- trained: {found['file']} -->\n{trained_table(found['file'])}<!-- end -->"

    def stepped(found: re.Match[str]) -> str:
        return f"<!-- steps: {found['file']} -->\n{steps_table(found['file'])}<!-- end -->"

    return STEPPED.sub(stepped, TRAINED.sub(compared, MARKER.sub(filled, text)))


if __name__ == "__main__":
    for page in (README, *RULES):
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")

"""The report on steps: their time, their share of the machine's limit, their memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from orthoopt.bench.report_html import ANY, Figure, Legend, Part, Result, Section, Table, where
from orthoopt.bench.report_rows import Dot, Row, is_cut, rows_chart
from orthoopt.bench.report_svg import short
from orthoopt.units import spell_bytes

_HUES = {"ours": "c1", "torch": "c0", "peer": "c5"}
_BOUNDS = (("matmul", "the square matrix product's rate"), ("memory", "the rate of a large copy"))


def steps(result: Result) -> Iterator[Part]:
    """A section for the file, then two figures for each of its sets."""
    sets = result.value["shapes"]
    lines = [f"{name}: {found.get('describe', '')}." for name, found in sets.items()]
    section = Section("One optimizer step" + (" on a GPU" if result.on_gpu else ""), result, lines)
    for name, found in sets.items():
        skipped = [(row["name"], row.get("reason", "")) for row in found.get("skipped", [])]
        if skipped:
            section.tables.append((f"Left out of {name}", Table(("variant", "reason"), skipped, left=2)))
    yield section
    for name, found in sets.items():
        timed = [row for row in found["variants"] if row.get("seconds")]
        yield partial(_times, name, timed)
        yield partial(_shares, name, timed, found.get("ceilings", {}))


def _family(row: Mapping[str, Any]) -> str:
    """The family a row states; of earlier files, by name."""
    known = "ours" if row["name"].startswith("orthoopt.") else "torch" if row["name"].startswith("torch.") else "peer"
    return str(row.get("family") or known)


def _legend(rows: Sequence[Mapping[str, Any]]) -> Legend:
    names = {"ours": "orthoopt", "torch": "torch", "peer": "other packages"}
    there = {_family(row) for row in rows}
    return [(name, _HUES[family], "square") for family, name in names.items() if family in there]


def _times(name: str, timed: Sequence[Mapping[str, Any]]) -> Iterator[Figure]:
    """Two pictures: what matrix products decide, and what takes a hundredth of that."""
    products = [row for row in timed if row.get("bound") != "memory"]
    linear = [row for row in timed if row.get("bound") == "memory"]
    for what, members in (("Muon and kin", products), ("linear time", linear)):
        if members:
            yield _time(f"Time of a step, {name}: {what}", name, members)


def _time(title: str, name: str, members: Sequence[Mapping[str, Any]]) -> Figure:
    rows, cells = [], []
    for row in sorted(members, key=lambda row: row["seconds"]["median"]):
        seconds = row["seconds"]
        median, low, high = (1e3 * seconds[key] for key in ("median", "p20", "p80"))
        tip = f"{row['name']}: {short(median)} ms, p20 to p80 {short(low)} to {short(high)}"
        tip += f"\n{seconds.get('repeats', '?')} repeats" + (f"\n{row['note']}" if row.get("note") else "")
        rows.append(Row(row["name"], f"{short(median)} ms", _HUES[_family(row)], median, (low, high), tip=tip))
        ratio, error = row.get("times_faster_than_baseline"), row.get("error")
        cells.append(
            [row["name"], row.get("note") or "", short(median), f"{short(low)} to {short(high)}",
             str(seconds.get("repeats", "")), short(ratio) if ratio else "", short(error) if error else ""]
        )  # fmt: skip
    header = ("variant", "note", "median, ms", "p20 to p80, ms", "repeats", "torch's Muon over it", "error")
    cut = " A bar with a cut through it is far longer than drawn: its figure stands beside it." if is_cut(rows) else ""
    return Figure(
        title,
        [where("shapes", name, "variants", ANY, "seconds")],
        "Bars are medians, whiskers the 20th and 80th percentile. All variants took turns in one process." + cut,
        lambda width: rows_chart(rows, width, axis="ms a step", label=title),
        legend=_legend(members), legend_always=True, table=Table(header, cells, left=2),
    )  # fmt: skip


def _shares(name: str, timed: Sequence[Mapping[str, Any]], ceilings: Mapping[str, Any]) -> Figure:
    rows, cells = [], []
    for bound, spelled in _BOUNDS:
        members = [row for row in timed if row.get("bound") == bound and row.get("share_of_ceiling") is not None]
        if not members:
            continue
        ceiling = ceilings.get(bound if bound == "matmul" else "copy") or {}
        rate = f", {ceiling['per_second'] / 1e9:.3g} G{ceiling.get('unit', '')}" if ceiling.get("per_second") else ""
        rows.append(Row(f"Of {spelled}{rate}", heading=True))
        for row in sorted(members, key=lambda row: -row["share_of_ceiling"]):
            share = 100 * row["share_of_ceiling"]
            tip = f"{row['name']}: {share:.3g}% of {spelled}"
            rows.append(Row(row["name"], f"{share:.3g}%", _HUES[_family(row)], share, tip=tip))
            cells.append([row["name"], spelled, f"{share:.3g}"])
    return Figure(
        f"Share of the limit, {name}",
        [where("shapes", name, "variants", ANY, "share_of_ceiling"), where("shapes", name, "ceilings")],
        "Operations of the cheapest dense iteration, or least bytes moved, per second, over what the machine reached "
        "in the same turns. Symmetric products and data that fits a cache can pass 100%.",
        lambda width: rows_chart(
            rows, width, axis="% of the limit", refs=[(100.0, "limit")], label=f"Share of the machine's limit, {name}"
        ),
        legend=_legend(timed), legend_always=True, table=Table(("variant", "of", "share, %"), cells, left=2),
    )  # fmt: skip


def memory(result: Result) -> Iterator[Part]:
    """A section, a figure of peaks for each set, one of states."""
    value = result.value
    section = Section("Memory" + (" on a GPU" if result.on_gpu else ""), result)
    left_out = [(str(row.get("name", row)), str(row.get("reason", ""))) for row in value.get("left_out", [])]
    if left_out:
        section.tables.append(("Left out", Table(("variant", "reason"), left_out, left=2)))
    yield section
    for name in dict.fromkeys(row["set"] for row in value.get("peaks", [])):
        yield partial(_peaks, name, [row for row in value["peaks"] if row["set"] == name])
    if value.get("state"):
        yield partial(_states, value["state"])


def _peaks(name: str, peaks: Sequence[Mapping[str, Any]]) -> Figure:
    rows, cells = [], []
    for row in sorted(peaks, key=lambda row: row["peak_extra_bytes"]):
        peak, need = row["peak_extra_bytes"] / 1e6, row.get("stated_need_bytes")
        tip = f"{row['name']}: {spell_bytes(row['peak_extra_bytes'])} above where the step began"
        tip += f"\nstated need {spell_bytes(need)}" if need is not None else ""
        marks = (Dot(need / 1e6, "c2", "bar", tip, radius=6),) if need else ()
        rows.append(
            Row(row["name"], spell_bytes(row["peak_extra_bytes"]), _HUES[_family(row)], peak, dots=marks, tip=tip)
        )
        cells.append(
            [row["name"], f"{peak:.4g}", "" if need is None else f"{need / 1e6:.4g}", f"{row['state_bytes'] / 1e6:.4g}"]
        )
    parameters = peaks[0].get("parameter_bytes")
    note = f"Above parameters ({spell_bytes(parameters)}), gradients and state. " if parameters else ""
    return Figure(
        f"Peak of a step, {name}",
        [where("peaks", ANY, "peak_extra_bytes"), where("peaks", ANY, "stated_need_bytes")],
        note + "Orange marks: the need that the library itself states for its largest bucket.",
        lambda width: rows_chart(rows, width, axis="MB of 10⁶ bytes", label=f"Peak memory of a step, {name}"),
        legend=[*_legend(peaks), ("stated need", "c2", "bar")], legend_always=True,
        table=Table(("variant", "peak, MB", "stated need, MB", "state, MB"), cells),
    )  # fmt: skip


def _states(states: Sequence[Mapping[str, Any]]) -> Figure:
    models = list(dict.fromkeys(row["model"] for row in states))
    looks = dict(zip(models, (("c1", "circle"), ("c2", "square"), ("c3", "triangle"), ("c4", "diamond")), strict=False))
    looks |= {model: ("c0", "down") for model in models if model not in looks}
    lifts = {model: 6.0 - 12.0 * place / max(len(models) - 1, 1) for place, model in enumerate(models)}
    by_plan: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in states:
        by_plan.setdefault(row["plan"], {})[row["model"]] = row
    order = sorted(by_plan, key=lambda plan: min(row["of_adamw"] for row in by_plan[plan].values()))
    rows, cells = [], []
    for plan in order:
        found = by_plan[plan]
        dots = tuple(
            Dot(
                row["of_adamw"], looks[model][0], looks[model][1], lift=lifts[model], radius=3.6,
                tip=f"{plan} on {model}: {row['of_adamw']:.3f} of AdamW's\n{spell_bytes(row['state_bytes'])}",
            )
            for model, row in found.items()
        )  # fmt: skip
        shares = [row["of_adamw"] for row in found.values()]
        ends = sorted({f"{min(shares):.2f}", f"{max(shares):.2f}"})
        rows.append(Row(plan, " to ".join(ends), dots=dots))
        cells.append([plan, *(f"{found[model]['of_adamw']:.3f}" if model in found else "" for model in models)])
    return Figure(
        "State of every plan over AdamW's, whole models",
        [where("state", ANY, "of_adamw")],
        "Bytes of the state of all parameters over those that torch.optim.AdamW makes for them.",
        lambda width: rows_chart(
            rows, width, axis="of AdamW's bytes", refs=[(1.0, "AdamW")], limits=(0.0, 1.1),
            label="State of every plan over AdamW's, by model",
        ),
        legend=[(model, *looks[model]) for model in models], legend_always=True, table=Table(("plan", *models), cells),
    )  # fmt: skip

"""The report on momenta in few bits, on the loader, and on files that no part of the report is written for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from orthoopt.bench.report_html import ANY, Figure, Part, Result, Section, Table, where
from orthoopt.bench.report_rows import Dot, Row, rows_chart
from orthoopt.bench.report_svg import short

_MOST_ROWS, _MOST_COLUMNS = 40, 9


def state_dtype(result: Result) -> Iterator[Part]:
    """What momenta in bfloat16 and eight bits cost: in training, and in an update."""
    value = result.value
    yield Section("Momenta in few bits", result)
    plans = list(dict.fromkeys(row["plan"] for row in value.get("training", [])))
    for plan in plans:
        yield partial(_losses, plan, [row for row in value["training"] if row["plan"] == plan])
    if value.get("updates"):
        yield partial(_updates, value["updates"])


def _losses(plan: str, arms: Sequence[Mapping[str, Any]]) -> Figure:
    rows, cells = [], []
    for row in arms:
        if row["arm"] == "float32":
            continue
        dots = [Dot(1e3 * each, "c1", "bar", f"{row['arm']}, a seed: {each:+.5f}") for each in row["differences"]]
        tip = f"{row['arm']}: {row['less_float32']:+.5f} nats\nstate {row['state_bytes'] / 1e3:.4g} kB"
        dots.append(Dot(1e3 * row["less_float32"], "c1", "diamond", tip))
        rows.append(Row(row["arm"], f"{1e3 * row['less_float32']:+.2f}", dots=tuple(dots), tip=tip))
        cells.append([row["arm"], f"{row['less_float32']:+.5f}", f"{row['state_bytes'] / 1e3:.4g}"])
    return Figure(
        f"Final loss less that of float32, plan {plan}",
        [where("training", ANY, "differences"), where("training", ANY, "less_float32")],
        "In thousandths of a nat: diamonds are means, bars single seeds, each less the float32 run of the same seed.",
        lambda width: rows_chart(
            rows, width, axis="thousandths of a nat per token", refs=[(0.0, "float32")],
            label="Differences of final losses by precision of the state",
        ),
        table=Table(("arm", "nats", "state, kB"), cells),
    )  # fmt: skip


def _updates(updates: Sequence[Mapping[str, Any]]) -> Figure:
    looks = {"bfloat16": ("c1", "circle"), "int8": ("c2", "square")}
    by_row: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in updates:
        by_row.setdefault((row["rule"], row["spectrum"]), {})[row["state_dtype"]] = row
    rows, cells = [], []
    for (rule, spectrum), found in by_row.items():
        name = f"{rule}, {spectrum}"
        dots = tuple(
            Dot(100 * row["update"], *looks.get(dtype, ("c3", "triangle")), tip=f"{name}, {dtype}: {row['update']:.2%}")
            for dtype, row in found.items()
        )
        rows.append(Row(name, " / ".join(f"{100 * row['update']:.2g}" for row in found.values()), dots=dots))
        cells += [
            [name, dtype, f"{100 * row['momentum']:.3g}", f"{100 * row['update']:.3g}"] for dtype, row in found.items()
        ]
    return Figure(
        "Error of an update by the precision of its momentum",
        [where("updates", ANY, "update")],
        "Relative to the update from a float32 momentum, by rule and by spectrum of the gradients.",
        lambda width: rows_chart(
            [Row(row.label, row.text + " %", dots=row.dots) for row in rows], width, axis="% of the update's norm",
            limits=(0.0, 100 * max(row["update"] for row in updates) * 1.08), label="Errors of updates by precision",
        ),
        legend=[(dtype, *look) for dtype, look in looks.items()], legend_always=True,
        table=Table(("rule and spectrum", "state", "momentum, %", "update, %"), cells, left=2),
    )  # fmt: skip


def loader(result: Result) -> Iterator[Part]:
    """How fast data are read, encoded and packed, beside a training step on the same machine."""
    yield Section("The loader beside a training step", result)
    yield partial(_rates, result.value["rates"], result.value.get("wait_share", {}))


def _rates(rates: Mapping[str, Any], waits: Mapping[str, float]) -> Figure:
    step = rates["training step"]["tokens_per_second"]
    rows, cells = [], []
    for name, row in sorted(rates.items(), key=lambda item: -item[1]["tokens_per_second"]):
        rate, share = row["tokens_per_second"], waits.get(name)
        waited = "" if share is None else f"{share:.1%}"
        tip = f"{name}: {rate:,.0f} tokens a second" + (
            f"\ntraining on it waits {waited} of the time" if waited else ""
        )
        hue = "c0" if name == "training step" else "c1"
        rows.append(Row(name, f"{rate:,.0f}", hue, dots=(Dot(math.log10(rate / step), hue, "diamond", tip),), tip=tip))
        cells.append([name, f"{rate:,.0f}", f"{rate / step:,.3g}", waited])
    return Figure(
        "Tokens a second, loader and model",
        [where("rates", ANY, "tokens_per_second"), where("wait_share")],
        "In powers of ten over the training step of the default recipe, in grey; the figures are tokens a second.",
        lambda width: rows_chart(
            rows, width, axis="powers of ten over a training step", refs=[(0.0, "training step")],
            label="Rates of the loader over that of a training step",
        ),
        table=Table(("what", "tokens a second", "times the step", "training waits"), cells),
    )  # fmt: skip


def anything(result: Result) -> Iterator[Part]:
    """A file of a bench that is not known here: its differences as a picture, its lists of records as tables."""
    value = result.value
    section = Section(str(value.get("title") or value.get("bench") or result.name), result)
    verdicts = [row.get("verdict") for row in _records(value.get("differences"))]
    section.verdicts = [str(verdict) for verdict in verdicts if verdict]
    for key, found in _tables(value, ()):
        section.tables.append((key, found))
    yield section


def _records(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def _tables(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Table]]:
    """Lists of flat records, and flat records of one shape by name, wherever they stand."""
    skipped = ("machine", "settings", "must_show")
    if isinstance(value, Mapping):
        inner = list(value.values())
        if len(inner) > 1 and all(isinstance(item, Mapping) for item in inner) and len(set(map(frozenset, inner))) == 1:
            yield from _table(path, [{"": name, **item} for name, item in value.items()])
            return
        for key, item in value.items():
            if not path and key in skipped:
                continue
            yield from _tables(item, (*path, str(key)))
    elif rows := _records(value):
        yield from _table(path, rows)


def _table(path: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Table]]:
    spelled = [{key: _cell(item) for key, item in row.items()} for row in rows]
    keys = [key for key in dict.fromkeys(key for row in spelled for key in row) if any(row.get(key) for row in spelled)]
    keys = keys[:_MOST_COLUMNS]
    if not keys:
        return
    left = 0
    while left < len(keys) and not any(isinstance(row.get(keys[left]), (int, float)) for row in rows):
        left += 1
    more = f", the first {_MOST_ROWS} of {len(rows)} rows" if len(rows) > _MOST_ROWS else ""
    cells = [[row.get(key) or "" for key in keys] for row in spelled[:_MOST_ROWS]]
    yield where(*path) + more, Table(keys, cells, left=max(left, 1))


def _cell(value: Any) -> str | None:
    """A plain value, the mean or median of a summary, or nothing."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("mean", "median") if key in value), None)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: None}[value]
    if isinstance(value, (int, float)):
        return short(float(value))
    return value if isinstance(value, str) and len(value) <= 200 else None

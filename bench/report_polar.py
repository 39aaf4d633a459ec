"""The report on matrices: polar factors by every method, forms of the iteration, coefficients, cosine transforms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from orthoopt.bench.report_html import ANY, PANEL, Figure, Part, Result, Section, Table, hue_and_shape, where
from orthoopt.bench.report_rows import Dot, Row, rows_chart
from orthoopt.bench.report_svg import short
from orthoopt.bench.report_xy import Series, xy_chart

_WAYS = {"default": 1, "standard": 2, "gram": 3, "plain batched": 0}


def orthogonalize(result: Result) -> Iterator[Part]:
    """A section, methods by accuracy and time, and shares of the product's rate."""
    value = result.value
    yield Section("Orthogonalization" + (" on a GPU" if result.on_gpu else ""), result)
    if value.get("rows"):
        yield partial(_methods, value["rows"])
    for key, title in (("forms", "by stack of matrices"), ("sets", "by whole set")):
        if value.get(key):
            yield partial(_forms, key, title, value[key])


def _methods(sizes: Sequence[Mapping[str, Any]]) -> Figure:
    names = list(dict.fromkeys(way["name"] for size in sizes for way in size["ways"]))
    looks = {name: hue_and_shape(k) for k, name in enumerate(names, 1)}
    panels, cells = [], []
    timed = [(way, size) for size in sizes for way in size["ways"] if way.get("seconds")]
    errors = [way["error"] for way, _ in timed if way["error"] > 0]
    y_range = (min(errors) / 2, max(errors) * 2)
    for size in sizes:
        title, batch = f"{size['rows']}×{size['cols']}", size.get("batch", 1)
        series = []
        for way in size["ways"]:
            if not way.get("seconds"):
                cells.append([title, way["name"], "", "", short(way["error"]) if way.get("error") else "not right"])
                continue
            each = {key: 1e3 * way["seconds"][key] / batch for key in ("median", "p20", "p80")}
            tip = f"{way['name']}, {title}\n{short(each['median'])} ms a matrix ({short(each['p20'])} to "
            tip += f"{short(each['p80'])})\nlargest |σ − 1| {short(way['error'])}"
            point = ((each["median"], max(way["error"], y_range[0])),)
            hue, shape = looks[way["name"]]
            series.append(Series(way["name"], point, hue, shape, line=False, tips=(tip,)))
            cells.append(
                [title, way["name"], short(each["median"]), f"{short(each['p20'])} to {short(each['p80'])}",
                 short(way["error"])]
            )  # fmt: skip
        if series:
            panels.append(
                xy_chart(
                    series, *PANEL, x="ms a matrix", y="largest |σ − 1|", log_x=True, log_y=True, y_range=y_range,
                    title=title, direct=False, label=f"Error of each method over its time, {title}",
                )
            )  # fmt: skip
    return Figure(
        "Accuracy against time of every method",
        [where("rows", ANY, "ways", ANY, "error"), where("rows", ANY, "ways", ANY, "seconds")],
        "One picture a matrix size; lower is nearer to the polar factor, further left is faster; both axes are "
        "logarithmic, times of a matrix within a batch. Where two marks coincide, one covers the other.",
        panels=panels, legend=[(name, *looks[name]) for name in names], legend_always=True,
        table=Table(("matrix", "method", "ms, median", "p20 to p80", "largest |σ − 1|"), cells, left=2),
    )  # fmt: skip


def _forms(key: str, title: str, forms: Sequence[Mapping[str, Any]]) -> Figure:
    names = list(dict.fromkeys(way["name"] for form in forms for way in form["ways"]))
    looks = {name: hue_and_shape(_WAYS.get(name, 4 + k)) for k, name in enumerate(names)}
    rows, cells = [], []
    for form in forms:
        dots, chosen = [], None
        for way in form["ways"]:
            share, seconds = way.get("share_of_matmul"), way.get("seconds")
            if share is None or not seconds:
                cells.append([form["name"], way["name"], "", "", short(way["error"]) if way.get("error") else ""])
                continue
            chosen = share if way["name"] == "default" else chosen
            tip = f"{form['name']}, {way['name']}: {share:.0%}\n{short(1e3 * seconds['median'])} ms"
            hue, shape = looks[way["name"]]
            # The default is often one of the others: it is drawn first, larger, and hollow.
            dots.append(
                Dot(
                    100 * share,
                    hue,
                    shape,
                    tip,
                    hollow=way["name"] == "default",
                    radius=6.5 if way["name"] == "default" else 3.8,
                )
            )
            cells.append(
                [form["name"], way["name"], f"{100 * share:.3g}", short(1e3 * seconds["median"]), short(way["error"])]
            )
        rows.append(Row(form["name"], "" if chosen is None else f"{chosen:.0%}", dots=tuple(dots)))
    header = ("matrices", "way", "share, %", "ms, median", "error to the polynomial")
    return Figure(
        f"Share of the product's rate, {title}",
        [where(key, ANY, "ways", ANY, "share_of_matmul")],
        "Operations of the cheapest dense form per second, over the rate of a large square product in the same turns. "
        "The figure is the share of what the library chooses by itself. Symmetric products can pass 100%.",
        lambda width: rows_chart(
            rows, width, axis="% of the square product's rate", refs=[(100.0, "product")],
            label=f"Share of the product's rate, {title}",
        ),
        legend=[("chosen by the library", f"{looks[name][0]} ring", looks[name][1]) if name == "default" else
                (name, *looks[name]) for name in names], legend_always=True,
        table=Table(header, cells, left=2),
    )  # fmt: skip


def coefficients(result: Result) -> Iterator[Part]:
    """Fitted triples against Muon's: error on held-out momenta by shape, for every number of steps."""
    value = result.value
    section = Section("Fitted Newton-Schulz coefficients", result)
    for steps, found in (value.get("summary") or {}).items():
        better = f"{found['lower_error_on_held_out_momenta']} of {found['shapes']} shapes"
        section.verdicts.append(
            f"{steps} steps: a lower error than Muon's on held-out momenta for {better}, largest singular value "
            f"{found['largest']:.3f}: {'holds' if found['holds'] else 'DOES NOT HOLD'}"
        )
    yield section
    for steps in dict.fromkeys(row["steps"] for row in value["rows"]):
        if steps == 5 or len(value["rows"]) <= 20:
            yield partial(_triples, steps, [row for row in value["rows"] if row["steps"] == steps])


def _triples(steps: int, found: Sequence[Mapping[str, Any]]) -> Figure:
    looks = {"muon": ("c0", "circle"), "fitted": ("c1", "diamond"), "released": ("c2", "bar")}
    rows, cells = [], []
    for row in found:
        errors = {name: triple["errors"]["real_held_out"] for name, triple in row["triples"].items()}
        dots = []
        for name, error in sorted(errors.items(), key=lambda item: item[0] in ("muon", "fitted")):
            hue, shape = looks.get(name, looks["released"])
            dots.append(Dot(error, hue, shape, f"{row['shape']}, {name}: {error:.4f}"))
        rows.append(Row(row["shape"], f"{errors['fitted'] / errors['muon']:.2f}", dots=tuple(dots)))
        cells.append([row["shape"], *(f"{errors[name]:.4f}" for name in ("fitted", "muon"))])
    return Figure(
        f"Error on held-out momenta, {steps} steps",
        [where("rows", ANY, "triples", ANY, "errors", "real_held_out")],
        "Root mean square of σ − 1 over the singular values of an update, mean over matrices. The figure is the fitted "
        "triple's over that of Muon's.",
        lambda width: rows_chart(rows, width, axis="error", label=f"Errors of coefficients by shape, {steps} steps"),
        legend=[("fitted to the shape", *looks["fitted"]), ("Muon's", *looks["muon"]),
                ("the four that ROOT's authors released", *looks["released"])],
        legend_always=True, table=Table(("shape", "fitted", "Muon's"), cells),
    )  # fmt: skip


def dct(result: Result) -> Iterator[Part]:
    """Cosine transforms by product and by FFT over lengths."""
    sizes = result.value["sizes"]
    yield Section("Cosine transforms" + (" on a GPU" if result.on_gpu else ""), result)
    for kind, title in (("transform", "a transform of k by k"), ("lift", "putting k/4 columns back")):
        if known := [size for size in sizes if size.get(kind)]:
            yield partial(_transforms, kind, title, known)


def _transforms(kind: str, title: str, sizes: Sequence[Mapping[str, Any]]) -> Figure:
    series, cells = [], []
    for (way, spelled), place in zip(
        (("product", "matrix product"), ("fft", "Fourier transform")), (1, 2), strict=True
    ):
        known = [(size["k"], size[kind][way]) for size in sizes if size[kind].get(way)]
        if not known:
            continue
        hue, shape = hue_and_shape(place)
        tips = tuple(f"{spelled}, k = {k}\n{short(1e3 * found['median'])} ms" for k, found in known)
        series.append(
            Series(
                spelled, tuple((k, 1e3 * found["median"]) for k, found in known), hue, shape,
                band=tuple((k, 1e3 * found["p20"], 1e3 * found["p80"]) for k, found in known), tips=tips,
            )
        )  # fmt: skip
        cells += [
            [
                spelled,
                str(k),
                short(1e3 * found["median"]),
                f"{short(1e3 * found['p20'])} to {short(1e3 * found['p80'])}",
            ]
            for k, found in known
        ]
    return Figure(
        f"Time of {title}",
        [where("sizes", ANY, kind)],
        "Medians; bands are the 20th to the 80th percentile. Both axes are logarithmic.",
        lambda width: xy_chart(
            series, width, 340 if width > 500 else 300, x="length k", y="ms", log_x=True, log_y=True,
            label=f"Time of {title} over k", direct=width > 500,
            x_ticks=[k for k in (64, 128, 256, 512, 1024, 2048, 4096, 8192) if sizes[0]["k"] <= k <= sizes[-1]["k"]],
            spell_x=lambda k: f"{k:.0f}",
        ),
        legend=[(one.name, one.hue, one.shape or "circle") for one in series],
        table=Table(("way", "k", "ms, median", "p20 to p80"), cells),
    )  # fmt: skip

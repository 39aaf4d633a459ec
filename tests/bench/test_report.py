"""The report without a browser: well formed, self-contained, traceable to its files, whole whatever stands in them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import result_files
from hypothesis import given, settings
from hypothesis import strategies as st
from test_explain_html import Page

from orthoopt.bench import report, report_page
from orthoopt.bench.report_rows import Dot, Row, rows_chart
from orthoopt.bench.report_svg import Scale, Svg, fitted, number, text_width
from orthoopt.bench.report_xy import Series, clipped, spread, xy_chart

RESULTS = Path(__file__).parents[2] / "bench" / "results"


def made(folder: Path, *results: Path) -> str:
    out = folder / "report.html"
    assert report.main(["--results", *map(str, results), "--out", str(out)]) == 0
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made(tmp_path_factory.mktemp("real"), RESULTS)


def resolve(value: Any, path: str) -> list[Any]:
    """The values at a JSONPath of names, `[*]` and quoted names."""
    found = [value]
    for step in re.findall(r'\.\w+|\[\*\]|\["[^"]*"\]|\[\d+\]', path.removeprefix("$")):
        if step == "[*]":
            found = [item for inner in found for item in (inner.values() if isinstance(inner, dict) else inner)]
        else:
            key = step.strip('.[]"')
            found = [inner[key] for inner in found if key in inner]
    return found


def test_every_figure_names_data_that_are_there(real: str) -> None:
    sources = re.findall(r'Data: <a href="([^"]+)">([^<]+)</a> (<code>.*?)</p>', real)
    assert len(sources) > 25
    for link, name, places in sources:
        assert link.endswith(name)
        value = json.loads((RESULTS / name).read_text())
        for place in re.findall("<code>(.*?)</code>", places):
            values = resolve(value, place.replace("&quot;", '"'))
            assert any(item not in (None, [], {}) for item in values), (name, place)
    names = {path.name for path in RESULTS.glob("*.json")}
    assert {name for _, name, _ in sources} | {"coefficients_cpu.json"} >= names


def test_links_lead_to_the_files_from_where_the_page_stands(tmp_path: Path) -> None:
    results = tmp_path / "some results"
    results.mkdir()
    result_files.fill(results)
    page = Page(made(tmp_path / "pages", results))
    links = [link["href"] or "" for link in page.named("a") if not (link["href"] or "").startswith("#")]
    assert links and {link.rpartition("/")[0] for link in links} == {"../some%20results"}


def test_the_page_is_well_formed_and_needs_nothing_from_anywhere(real: str) -> None:
    page = Page(real)
    assert real.isascii() and not re.search(r"https?:|@import|url\(|fetch\(|XMLHttp", real.partition("<main>")[0])
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed") and "src" not in attributes
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "prefers-color-scheme: dark" in real and "width=device-width" in real


def test_the_page_carries_each_file_whole(real: str) -> None:
    copies = re.findall(r'<script type="application/json" id="data-\d+">(.*?)</script>', real)
    by_time = [json.loads(copy) for copy in copies]
    originals = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    assert len(by_time) == len(originals) and all(value in originals for value in by_time)


def test_the_same_files_give_the_same_page(real: str, tmp_path: Path) -> None:
    again = made(tmp_path, RESULTS)
    assert re.sub('href="[^"]*/', 'href="', again) == re.sub('href="[^"]*/', 'href="', real)


def test_stated_verdicts_and_limits_are_on_the_page(real: str) -> None:
    words = Page(real).text
    for path in RESULTS.glob("*.json"):
        value = json.loads(path.read_text())
        for row in value.get("differences", []):
            assert row["verdict"] in words
    claims = [claim for path in RESULTS.glob("*.json") for claim in json.loads(path.read_text()).get("must_show", [])]
    kept = sum(claim["holds"] is True for claim in claims)
    assert f"{kept} of {len(claims)} kept" in words and words.count("not kept") == sum(
        claim["holds"] is False for claim in claims
    ) + 1  # fmt: skip


def test_a_gpu_is_measured_only_where_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "step_cpu.json").write_bytes((RESULTS / "step_cpu.json").read_bytes())
    assert "GPU: not measured" in made(tmp_path, tmp_path)
    value = json.loads((RESULTS / "step_cpu.json").read_text())
    value["machine"]["gpu"] = {"name": "NVIDIA H100"}
    (tmp_path / "step_cuda.json").write_text(json.dumps(value))
    page = made(tmp_path, tmp_path)
    assert "GPU: NVIDIA H100" in page and "One optimizer step on a GPU" in page


def test_files_of_others_and_broken_ones_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result_files.fill(tmp_path)
    html = made(tmp_path / "out", tmp_path)
    page = Page(html)
    said = capsys.readouterr().err
    assert "broken_cpu.json: a figure could not be drawn: there is no 'shapes'" in said
    assert "half.json" in page.text and "list.json" in page.text and "tokens_per_second" in page.text
    assert "<script>alert(1)</script>" in page.text and "</script><b>" in page.text
    assert sum("type" not in script for script in page.named("script")) == 1


DELETABLE = json.loads(json.dumps(result_files.tuned(result_files.ARMS[:2], seeds=2)))


def _keys(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [deeper for key, item in inner for deeper in [(*path, key), *_keys(item, (*path, key))]]


@settings(max_examples=25)  # each makes a page
@given(st.sampled_from(_keys(DELETABLE)), st.sampled_from(["missing", None, [], "text", -1.0]))
def test_no_missing_or_strange_value_stops_the_page(path: tuple[Any, ...], put: Any) -> None:
    value = json.loads(json.dumps(DELETABLE))
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    if put == "missing":
        del holder[path[-1]]
    else:
        holder[path[-1]] = put
    result = report.Result("a.json", Path("a.json"), {**value, "bench": "pretrain"})
    html, _ = report.page([result], [], Path("report.html"))
    assert "NaN" not in html and "a.json" in html


@pytest.mark.parametrize("given_", [["--results", "nowhere"], ["--results", "."]])
def test_a_folder_without_results_is_an_error(
    given_: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report.main([*given_, "--out", "page.html"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--results" in said and given_[1] in said
    assert not list(tmp_path.iterdir())


# Viénot, Brettel and Mollon (1999): linear RGB as protanopes and deuteranopes see it.
DICHROMATS = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanope": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deuteranope": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}


def _linear(color: str) -> list[float]:
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]


def _lab(rgb: list[float]) -> list[float]:
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = [
        sum(m * c for m, c in zip(row, rgb, strict=True)) / w for row, w in zip(to_xyz, (0.9505, 1, 1.089), strict=True)
    ]
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (max(v, 0.0) for v in xyz))
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


@pytest.mark.parametrize("eye", DICHROMATS)
@pytest.mark.parametrize(("colors", "card"), [(report_page.LIGHT, "#ffffff"), (report_page.DARK, "#171c22")])
def test_hues_are_told_apart_and_stand_out(colors: tuple[str, ...], card: str, eye: str) -> None:
    def seen(color: str) -> list[float]:
        rgb = _linear(color)
        return _lab([sum(m * c for m, c in zip(row, rgb, strict=True)) for row in DICHROMATS[eye]])

    def luminance(color: str) -> float:
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), _linear(color), strict=True))

    for place, color in enumerate(colors):
        bright, dark = sorted((luminance(color), luminance(card)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 3, color  # WCAG 2.1, 1.4.11: what is not text
        for other in colors[:place]:
            # A difference of 2.3 is just seen (CIE76); small marks need several times that.
            assert math.dist(seen(color), seen(other)) > 10, (color, other)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8),
    st.sampled_from([340, 880]),
    st.booleans(),
)
def test_a_chart_of_rows_stays_in_its_frame(values: list[float], width: int, bars: bool) -> None:
    rows = [
        Row(f"a rather long name {k}" * 3, "1.0", bar=abs(v)) if bars else Row("x", dots=(Dot(v),))
        for k, v in enumerate(values)
    ]
    svg = rows_chart(rows, width, axis="unit", label="rows")
    assert "nan" not in svg and svg.count("<rect") == len(values) * bars
    height = float(re.findall(r'viewBox="0 0 [\d.]+ ([\d.]+)"', svg)[0])
    for x in map(float, re.findall(r' (?:x|x1|x2|cx)="([-\d.]+)"', svg)):
        assert -0.01 <= x <= width + 0.01
    for y in map(float, re.findall(r' (?:y|y1|y2|cy)="([-\d.]+)"', svg)):
        assert -0.01 <= y <= height + 0.01


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(-10, 10)), min_size=2, max_size=9),
    st.floats(-5, 0),
    st.floats(1, 5),
)
def test_lines_are_cut_at_the_frame_and_nowhere_else(
    points: list[tuple[float, float]], low: float, high: float
) -> None:
    pieces = clipped(points, low, high)
    spots = [spot for piece in pieces for spot in piece]
    assert all(low <= y <= high for _, y in spots)
    inside = [p for p, q in zip(points, points[1:], strict=False) if low < p[1] < high and p != q]
    for x, y in inside:
        assert any(abs(x - a) < 1e-6 and abs(y - b) < 1e-6 for a, b in spots)


@given(st.lists(st.floats(0, 300), min_size=1, max_size=12).map(sorted))
def test_names_at_the_ends_of_lines_keep_apart(wanted: list[float]) -> None:
    places = spread(wanted, 15.0, 0.0, 300.0)
    assert all(b - a >= 15 - 1e-6 for a, b in zip(places, places[1:], strict=False))


@given(st.floats(1e-9, 1e9), st.floats(1.001, 1e6), st.booleans())
def test_ticks_are_round_few_and_within(low: float, ratio: float, log: bool) -> None:
    scale = Scale(low, low * ratio, 0.0, 100.0, log)
    ticks = scale.ticks(5)
    assert len(ticks) <= 13 and all(-1 <= scale(tick) <= 101 for tick in ticks)
    assert len(ticks) >= 2


def test_what_is_no_number_never_gets_onto_a_page() -> None:
    svg = Svg(10, 10, "")
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="is no coordinate"):
            svg.line(0, value, 1, 1, "grid")
        with pytest.raises(ValueError, match="is no coordinate"):
            number(value)
    with pytest.raises(ValueError):
        xy_chart([Series("a", ((1.0, math.nan), (2.0, 3.0)))], 880, 300, x="x", y="y", label="")
    assert "<path" not in str(svg)


def test_texts_are_cut_to_their_room() -> None:
    for room in (20.0, 60.0, 200.0):
        cut = fitted("a name that is far too long for its place", room)
        assert text_width(cut) <= room and (cut.endswith("…") or room > 199)

"""The shipped triples: what they do to [0, 1] on a dense grid, how they are looked up and interpolated."""

from __future__ import annotations

import json
import math
from importlib import resources

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orthoopt import adanewton
from orthoopt.adanewton import choose, key_of, released, shipped, shipped_table
from orthoopt.coefficients import TABLES, Triple
from orthoopt.invariance import CLEARANCE, LARGEST, bounds

MUON = TABLES["muon"].rows[0]
DATA = json.loads(resources.files("orthoopt").joinpath(adanewton.FILE).read_text(encoding="utf-8"))
ENTRIES = DATA["entries"]
RECIPE = {(128, 128), (64, 128), (128, 352)}
WIDE = {(1024, 1024), (1024, 2048), (1024, 3072), (768, 768), (768, 3072)}
PUBLISHED = set(adanewton.RELEASED)
GRID = np.linspace(0, 1, 200_001)


def f(triple: Triple, x: np.ndarray) -> np.ndarray:
    a, b, c = triple
    s = x * x
    return x * (a + s * (b + c * s))


def keeps_its_interval(triple: Triple) -> bool:
    """The constraints by their definition, on a dense grid; no closed form."""
    top = max(1.0, f(triple, GRID).max())
    inside = f(triple, GRID * top)
    a, b, c = triple
    fixed = [math.sqrt(r.real) for r in np.roots([c, b, a - 1]) if abs(r.imag) < 1e-9 and r.real > 0]
    # The grid may miss a maximum of f by its spacing squared, 1e-10.
    return bool(
        inside[1:].min() > 0
        and inside.max() <= top + 1e-8
        and top <= LARGEST + 1e-8
        and top <= CLEARANCE * max(fixed, default=math.inf) + 1e-8
    )


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e['shape'][0]}x{e['shape'][1]}-{e['steps']}")
def test_every_shipped_triple_keeps_its_interval_for_good(entry: dict) -> None:
    triple = tuple(entry["triple"])
    assert keeps_its_interval(triple) and bounds(triple).hold
    x = GRID
    for _ in range(40):  # any number of steps, not only those it was fitted for
        x = f(triple, x)
        assert x.min() >= 0 and x.max() <= LARGEST
    # What is recorded: the interval, and the largest output seen after its own number of steps.
    assert entry["interval"] == pytest.approx(bounds(triple).top, abs=1e-4)
    assert entry["largest"] <= entry["interval"] + 1e-4


def test_the_promised_shapes_and_steps_are_there() -> None:
    table = shipped_table()
    assert set(table[5]) >= RECIPE | WIDE | PUBLISHED
    for steps in (3, 4, 6, 7, 8):
        assert set(table[steps]) >= RECIPE


@pytest.mark.parametrize("steps", [3, 4, 5, 6, 7, 8])
def test_the_file_records_a_lower_error_on_held_out_momenta(steps: int) -> None:
    """What the bench wrote: on momenta from another seed than those fitted to, for at least nine shapes in ten."""
    errors = [entry["errors"] for entry in ENTRIES if entry["steps"] == steps]
    lower = [e["fitted"]["real_held_out"] < e["muon"]["real_held_out"] for e in errors]
    assert sum(lower) >= 0.9 * len(lower)
    for e in errors:  # the guards, to the penalty's and the file's rounding
        for kind in ("real_fit", "gaussian_fit", "power_law_0.5", "power_law_0.75", "power_law_1"):
            assert e["fitted"][kind] <= e["muon"][kind] + 1e-3


@given(st.integers(1500, 4500), st.integers(-9000, 0), st.integers(0, 5000))
def test_the_closed_form_agrees_with_the_grid(a: int, b: int, c: int) -> None:
    triple = (a / 1000, b / 1000, c / 1000)
    found = bounds(triple)
    top = max(1.0, f(triple, GRID).max())
    # Between points of the grid f may be higher by its curvature times the spacing squared.
    assert found.top == pytest.approx(top, abs=1e-7)
    inside = GRID[1:] * found.top
    assert found.highest == pytest.approx(f(triple, inside).max(), abs=1e-6 * (1 + abs(found.highest)))
    assert found.least_slope == pytest.approx((f(triple, inside) / inside).min(), abs=1e-6 * (1 + found.top**4))
    assume(all(abs(miss) > 1e-6 for miss in (found.least_slope, found.top - LARGEST)))
    assume(abs(found.highest - found.top) > 1e-6 or found.highest == found.top)
    assume(abs(found.top - CLEARANCE * found.repelling) > 1e-6)
    assert found.hold == keeps_its_interval(triple)


def test_known_triples() -> None:
    """The authors' 2048x2048 leaves its interval, and Muon's tops 1.2 by a hair."""
    diverging = bounds(TABLES["root_2048x2048"].rows[0])
    assert diverging.top == pytest.approx(1.2246, abs=1e-4) and diverging.repelling == pytest.approx(1.22355, abs=1e-5)
    assert not diverging.hold
    assert [text for text, miss in bounds(MUON).violations().items() if miss > 1e-12] == [f"M is at most {LARGEST}"]
    assert bounds((1.875, -1.25, 0.375)).hold  # one is a fixed point and the maximum
    assert not bounds((1.5, 0.5, 0.0)).hold and not bounds((-1.0, 0.0, 0.0)).hold


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e['shape'][0]}x{e['shape'][1]}-{e['steps']}")
def test_listed_shapes_return_themselves_either_way_round(entry: dict) -> None:
    rows, cols = entry["shape"]
    choice = shipped(rows, cols, entry["steps"])
    assert choice.triple == tuple(entry["triple"]) == shipped(cols, rows, entry["steps"]).triple
    assert choice.exact and f"fitted for {rows}x{cols}" in choice.describe()


@given(st.integers(1, 30_000), st.integers(1, 30_000), st.integers(1, 12))
def test_every_shape_gets_a_triple_within_the_constraints(rows: int, cols: int, steps: int) -> None:
    choice = shipped(rows, cols, steps)
    assert keeps_its_interval(choice.triple)
    assert shipped(cols, rows, steps).triple == choice.triple
    entries = shipped_table()[choice.steps]
    assert choice.steps == min(max(steps, 3), 8) and all(shape in entries for shape in choice.shapes)
    for i in range(3):  # between its neighbours
        values = [entries[shape][i] for shape in choice.shapes]
        assert min(values) - 1e-9 <= choice.triple[i] <= max(values) + 1e-9
    assert choice.describe().startswith("AdaNewton ")
    if not choice.exact and not choice.interpolated:
        assert "nearest" in choice.describe() and len(choice.shapes) == 1


@given(st.sampled_from(sorted(shipped_table()[5])), st.integers(-1, 1), st.integers(-1, 1))
def test_beside_a_listed_shape_the_triple_is_nearly_its_own(shape: tuple[int, int], down: int, right: int) -> None:
    rows, cols = shape[0] + down, shape[1] + right
    assume(rows <= cols)
    # Weights fall as the square of the distance, at most 0.03 here against 0.8 to the nearest neighbour.
    assert shipped(rows, cols, 5).triple == pytest.approx(shipped(*shape, 5).triple, abs=0.02)


def test_interpolation_by_hand() -> None:
    """Two shapes, one step apart on the side's logarithm; a quarter of the way, weights are as 16 : 16/9."""
    a, b = (2.0, -1.5, 0.5), (1.875, -1.25, 0.375)
    table = {5: {(16, 16): a, (256, 256): b}}
    choice = choose(table, 32, 32, 5)
    assert choice.interpolated and choice.shapes == ((16, 16), (256, 256))
    assert choice.triple == pytest.approx([0.9 * x + 0.1 * y for x, y in zip(a, b, strict=True)])
    assert choose(table, 32, 32, 9).steps == 5


def test_a_mean_outside_the_constraints_gives_way_to_the_nearest() -> None:
    """Both triples hold; halfway between them the interval is not mapped into itself."""
    x, y = (2.8032, -2.7737, 1.0458), (3.1309, -5.1447, 2.9359)
    a, b, c = ((p + q) / 2 for p, q in zip(x, y, strict=True))
    assert bounds(x).hold and bounds(y).hold and not bounds((a, b, c)).hold and not keeps_its_interval((a, b, c))
    choice = choose({5: {(64, 64): x, (128, 128): y}}, 90, 90, 5)
    assert not choice.interpolated and choice.triple == x and choice.shapes == ((64, 64),)
    assert "of 64x64, the nearest fitted shape" in choice.describe()
    assert choose({5: {(64, 64): x}}, 90, 90, 5).triple == x


def test_released_shapes() -> None:
    assert released(16384, 2048) == released(2048, 16384) == "root_2048x16384"
    assert released(1024, 1024) == "muon"
    assert key_of(7, 3) == (3, 7)


def test_the_file_says_how_it_was_made() -> None:
    how = DATA["how"]
    assert "orthoopt bench coefficients" in how["made_by"]
    assert {"objective", "guards", "constraints", "models", "corpus", "versions"} <= how.keys()
    assert all(model["seeds"]["fit"] != model["seeds"]["held_out"] for model in how["models"])

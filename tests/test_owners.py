"""Who owns what: every matrix once, by a rank that holds part of it, with loads that differ by one matrix at most."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from orthoopt.distributed.layout import Layout, elements, keeps_batch, replicated
from orthoopt.distributed.owners import units_of, waves
from orthoopt.views import parse_view


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.booleans()), min_size=1, max_size=12
    ),
    st.integers(2, 6),
)
def test_replicas_are_balanced_to_one_unit(shapes: list[tuple[int, int, int, bool]], count: int) -> None:
    units = []
    for number, (*shape, is_batch) in enumerate(shapes):
        layout = replicated(tuple(shape), tuple(range(count)), 0)
        units += units_of(number, layout, is_batch, float(elements(layout.box)), tuple(shape[1:]))
    found = waves(units, count)
    assert len(found) == 1  # they are small
    assert sorted(map(repr, (unit for unit, _ in found[0]))) == sorted(map(repr, units))
    for number, (*shape, _) in enumerate(shapes):
        mine = [unit for unit in units if unit.param == number]
        assert sum(elements(unit.whole) for unit in mine) == shape[0] * shape[1] * shape[2]
    loads = [sum(unit.cost for unit, owner in found[0] if owner == place) for place in range(count)]
    # Of greedy lists: when the busiest rank got its last unit it had the least to do, so no more than the mean.
    assert max(loads) <= sum(loads) / count + max(unit.cost for unit in units) + 1e-9


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 5))
def test_owners_hold_part_of_what_they_own(rows: int, cols: int, batch: int, count: int) -> None:
    size = -(-rows // count)
    cuts = [(min(i * size, rows), min((i + 1) * size, rows)) for i in range(count)]
    boxes = tuple(((0, batch), cut, (0, cols)) for cut in cuts)
    layout = Layout((batch, rows, cols), tuple(range(count)), 0, boxes, frozenset({1}))
    for unit, owner in waves(units_of(0, layout, True, 1.0, None), count)[0]:
        assert owner in unit.holders()
        assert sum(elements(unit.box(place)) for place in range(count)) == elements(unit.whole)


def test_a_batch_is_what_may_be_taken_apart() -> None:
    for spec, shape, expected in (
        ("matrix", (4, 3, 2), True),
        ("matrix", (4, 3), False),
        ("transpose split(2,2)", (3, 5, 4), True),
        ("heads(4)", (4, 3), False),
        ("heads(1)", (1, 3), False),
        ("flatten", (4, 3, 2), False),
        ("heads(2)", (5, 4, 3), True),
        ("vector", (4, 3, 2), False),
    ):
        assert keeps_batch(parse_view(spec), shape) is expected, spec


def test_one_process_imports_nothing_of_this() -> None:
    late = ("torch.distributed.tensor", "orthoopt.distributed")
    code = f"import sys, orthoopt; print([name for name in sys.modules if name.startswith({late})])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"

"""Polar factors of long matrices by sums of products of their parts."""

from __future__ import annotations

import pytest
import torch
from cuts import cuts, moved_in_parts, parts_of
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SPECTRA, matrix, options_of, relative_error

from orthoopt import rules
from orthoopt.distributed.traffic import traffic
from orthoopt.rules import _polar_parts
from orthoopt.rules._polar_parts import ASPECT

NAMES = ["right_spectral", "left_spectral", "hybrid"]


@pytest.mark.parametrize("name", ["right_spectral", "hybrid"])
@given(st.data())
@settings(max_examples=80)
def test_parts_equal_the_whole(name: str, data: st.DataObject) -> None:
    """Drawn options, shapes, batches, spectra and scales; cuts along the long side, which may be either."""
    rule = rules.get(name)
    options = data.draw(options_of(rule), label="options")
    short = data.draw(st.integers(1, 4), label="short")
    long = short * ASPECT + data.draw(st.integers(-1, 9), label="more")
    tall = data.draw(st.booleans(), label="tall")
    rows, cols = (long, short) if tall else (short, long)
    batch = data.draw(st.sampled_from([(), (2,), (2, 1)]), label="batch")
    x = matrix(rows, cols, data.draw(st.sampled_from(SPECTRA), label="spectrum"), data.draw(st.integers(0, 99)), batch)
    x = x * data.draw(st.sampled_from((1e-30, 1.0, 1e30)), label="scale")
    edges = data.draw(cuts(rows, cols, "rows" if tall else "cols"), label="cuts")
    found = moved_in_parts(rule, x, parts_of(tuple(x.shape), edges), options)
    assert (found is None) == (options["method"] in ("svd", "qdwh", "auto") or long < ASPECT * short)
    if found is not None:
        # float64: the Gram form rounds relative to ‖Q‖ ≤ 50 of the whole, and steps magnify by at most 1e3; a row
        # normalization after that does so again for rows that are 1e3 times shorter than the others.
        assert relative_error(found[0], rule.move(x, {}, options)[0]) < 1e-8


@pytest.mark.parametrize("name", NAMES)
def test_float32_parts_equal_the_whole(name: str) -> None:
    """An embedding in float32, its rows over five ranks, one without any."""
    rule = rules.get(name)
    x = torch.randn(1000, 40)
    found = moved_in_parts(rule, x, parts_of((1000, 40), ([0, 300, 300, 301, 700, 1000], [0, 40])), dict(rule.defaults))
    assert found is not None
    # float32 sums of 1000 products, 3e-6, magnified at most 50 in a segment in directions that are weak; here none is.
    assert relative_error(found[0], rule.move(x, {}, dict(rule.defaults))[0]) < 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_other_cuts_and_dtypes_need_the_whole(name: str) -> None:
    rule, x = rules.get(name), torch.randn(64, 4)
    across, along = parts_of((64, 4), ([0, 64], [0, 2, 4])), parts_of((64, 4), ([0, 32, 64], [0, 4]))
    assert moved_in_parts(rule, x, across, dict(rule.defaults)) is None
    assert moved_in_parts(rule, x, along, {**rule.defaults, "ns_dtype": "bfloat16"}) is None
    assert moved_in_parts(rule, x, along, dict(rule.defaults)) is not None


def test_an_embedding_sends_a_fraction_of_itself() -> None:
    """Twice n(n+1)/2 numbers to be summed, and float64 sums beside; the matrix there and back is m/(p·n) as much."""
    rows, cols, ranks = 3200, 32, 4
    stated = traffic(rules.get("right_spectral"), rows, cols, ranks, ns_coefficients="polar_express")
    assert stated is not None and stated.gathered == stated.moved == 0
    assert 4 * cols * (cols + 1) <= stated.reduced <= 4 * cols * (cols + 1) + 64
    whole = 2 * (ranks - 1) / ranks * 4 * rows * cols
    assert stated.sent < 1.1 * whole * ranks * cols / rows


def test_the_triangle_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are sent as one triangle; what every rank iterates is symmetric to the last bit."""
    seen = []

    def looking(products: torch.Tensor, steps: object) -> torch.Tensor:
        seen.append(products)
        return own(products, steps)

    own = _polar_parts.gram_factor
    monkeypatch.setattr(_polar_parts, "gram_factor", looking)
    rule = rules.get("right_spectral")
    moved_in_parts(rule, torch.randn(100, 5), parts_of((100, 5), ([0, 40, 100], [0, 5])), dict(rule.defaults))
    assert len(seen) == 4 and all(torch.equal(products, products.mT) for products in seen)

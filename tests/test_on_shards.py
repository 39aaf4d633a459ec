"""Rules that work on shards: whatever the cut, the parts' updates are the rule's own on the whole matrix."""

from __future__ import annotations

import pytest
from cuts import cuts, moved_in_parts, parts_of
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import matrices, options_of, relative_error

from orthoopt import rules

STATELESS = ["row_norm", "auon", "scion"]
SCALES = (1e-30, 1e-12, 1.0, 1e12, 1e30)


@pytest.mark.parametrize("name", STATELESS)
@given(st.data())
@settings(max_examples=150)
def test_parts_equal_the_whole(name: str, data: st.DataObject) -> None:
    """Drawn options, shapes, batches, spectra, cuts and scales."""
    rule = rules.get(name)
    options = data.draw(options_of(rule), label="options")
    x = (data.draw(matrices(largest=12, batched=True)) * data.draw(st.sampled_from(SCALES), label="scale")).float()
    parts = parts_of(tuple(x.shape), data.draw(cuts(*x.shape[-2:]), label="cuts"))
    found = moved_in_parts(rule, x, parts, options)
    if found is None:
        assert options.get("norm") in ("spectral", "spectral_conv")
        return
    whole = rule.move(x, {}, options)[0]
    # float32 sums of up to 144 products in another order, 1e-6 each; centring leaves differences of numbers near one,
    # of which 32 roundings count as zero: what is just above has one digit less for each it is smaller.
    assert relative_error(found[0], whole) < 2e-5

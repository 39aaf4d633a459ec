"""Rules that work on shards: whatever the cut, the parts' updates are the rule's own on the whole matrix."""

from __future__ import annotations

import pytest
import torch
from cuts import cuts, moved_in_parts, parts_of
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import matrices, options_of, relative_error

from orthoopt import rules

STATELESS = ["row_norm", "auon", "scion"]
SCALES = (1e-30, 1e-12, 1.0, 1e12, 1e30)


@pytest.mark.parametrize("name", STATELESS)
@given(st.data())
@settings(max_examples=80)
def test_parts_equal_the_whole(name: str, data: st.DataObject) -> None:
    """Drawn options, shapes, batches, spectra, cuts, dtypes and scales."""
    rule = rules.get(name)
    options = data.draw(options_of(rule), label="options")
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), label="dtype")
    x = (data.draw(matrices(largest=12, batched=True)) * data.draw(st.sampled_from(SCALES), label="scale")).to(dtype)
    parts = parts_of(tuple(x.shape), data.draw(cuts(*x.shape[-2:]), label="cuts"))
    found = moved_in_parts(rule, x, parts, options)
    if found is None:
        assert options.get("norm") in ("spectral", "spectral_conv")
        return
    whole = rule.move(x, {}, options)[0]
    assert found[0].dtype == whole.dtype
    # float32 sums of up to 144 products in another order, 1e-6 each; centring leaves differences of numbers near one,
    # of which 32 roundings count as zero: what is just above has one digit less for each it is smaller.
    assert relative_error(found[0], whole) < (1e-13 if dtype == torch.float64 else 2e-5)


@given(st.data())
@settings(max_examples=80)
def test_vectors_in_parts_equal_the_whole(data: st.DataObject) -> None:
    """Scion's vectors: one number a vector, whether it lies as one row or as a matrix of a stack."""
    rule = rules.get("scion_vector")
    options = {**rule.defaults, "radius": data.draw(st.sampled_from([1.0, 0.5, 50.0]))}
    x = (data.draw(matrices(largest=12, batched=True)) * data.draw(st.sampled_from(SCALES), label="scale")).float()
    parts = parts_of(tuple(x.shape), data.draw(cuts(*x.shape[-2:]), label="cuts"))
    found = moved_in_parts(rule, x, parts, options)
    assert found is not None and rule.measure is not None
    # float32 sums of up to 144 squares in another order.
    assert relative_error(found[0], rule.measure(x, options, (-2, -1))) < 1e-6


@pytest.mark.parametrize("name", ["row_norm", "auon", "scion_vector"])
def test_parts_of_very_different_sizes(name: str) -> None:
    """One part 1e20 times another: squares of neither leave float32, and a zero part stays zero."""
    rule = rules.get(name)
    x = torch.randn(9, 6)
    x[3:6] *= 1e20
    x[6:] = 0
    found = moved_in_parts(rule, x, parts_of((9, 6), ([0, 3, 6, 9], [0, 6])), dict(rule.defaults))
    whole = (rule.measure or (lambda x, options, dims: rule.move(x, {}, options)[0]))(x, dict(rule.defaults), None)
    assert found is not None
    for rows in (slice(0, 3), slice(3, 6)):
        assert relative_error(found[0][rows], whole[rows]) < 1e-5  # float32 sums of 54 terms
    assert not found[0][6:].any()


@pytest.mark.parametrize("name", ["row_norm", "right_spectral", "hybrid"])
@pytest.mark.parametrize("centre", ["pre", "both"])
def test_equal_rows_centre_to_zero_in_parts(name: str, centre: str) -> None:
    """Of rows that are equal to a few roundings nothing is left, and must not be brought to length one."""
    rule = rules.get(name)
    options = {**rule.defaults, "centre": centre}
    x = torch.full((80, 5), 0.1) * torch.tensor([1.0, 3.0, 1e-3, 7.0, 0.3])
    x = x * (1 + torch.finfo(torch.float32).eps * torch.randint(-1, 2, x.shape))
    assert not rule.move(x, {}, options)[0].any()
    found = moved_in_parts(rule, x, parts_of((80, 5), ([0, 3, 80], [0, 5])), options)
    assert found is not None and not found[0].any()

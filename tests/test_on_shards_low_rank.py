"""Low-rank rules on shards: over several steps, parts of state and of updates are those of the whole matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuts import cuts, inside, moved_in_parts, parts_of
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import generator, matrices, options_of, relative_error
from torch import Tensor

from orthoopt import rules
from orthoopt.distributed.shard_views import Part
from orthoopt.rules import Rule

NAMES = ["trion", "dion2", "dct_adamw"]
SCALES = (1e-30, 1.0, 1e30)


def fresh(rule: Rule, like: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
    return {**rule.init(like, options), **rule.init_matrix(like, options)}


def in_parts(rule: Rule, state: dict[str, Tensor], parts: list[Part]) -> list[dict[str, Tensor]]:
    """What is viewed lies cut beside the parameter, the rest whole on every rank."""
    return [
        {key: value[inside(part)] if key in rule.viewed else value for key, value in state.items()} for part in parts
    ]


@pytest.mark.parametrize("name", NAMES)
@given(st.data())
@settings(max_examples=80)
def test_parts_follow_the_whole(name: str, data: st.DataObject) -> None:
    """Drawn options, shapes, batches, spectra, cuts and scales, three steps each."""
    rule = rules.get(name)
    options = data.draw(options_of(rule), label="options")
    first = data.draw(matrices(largest=12, batched=True)) * data.draw(st.sampled_from(SCALES), label="scale")
    parts = parts_of(tuple(first.shape), data.draw(cuts(*first.shape[-2:]), label="cuts"))
    state = fresh(rule, first, options)
    states = in_parts(rule, state, parts)
    for step in range(3):
        grad = first if step == 0 else first.abs().amax() * torch.randn(first.shape, generator=generator(step)).double()
        whole, state = rule.move(grad, state, options)
        found = moved_in_parts(rule, grad, parts, options, states)
        if found is None:
            assert any(needs_whole(part, options, name, first.ndim) for part in parts)
            return
        update, states = found
        # float64: iterations magnify 1e-15 by at most the product of their first coefficients, 1e3, and ties between
        # norms of columns, which sums in another order could break otherwise, are not drawn.
        assert relative_error(update, whole) < 1e-10
        for part, own in zip(parts, states, strict=True):
            for key, value in own.items():
                if key in rule.viewed:  # where nearly all was taken off, rounding of the gradient's size is left
                    assert bool(((value - state[key][inside(part)]).abs() <= 1e-10 * grad.abs().amax()).all())
                else:
                    assert relative_error(value, state[key]) < 1e-10
                    assert torch.equal(value, states[0][key])


def needs_whole(part: Part, options: dict[str, Any], name: str, ndim: int) -> bool:
    """Columns cut on the chosen side: what a basis mixes, what is cut both ways, and batches of such."""
    rows, cols, *_, cut_rows, cut_cols = part.shard
    right = options["side"] == "right" or (
        options["side"] == "auto" and (rows > cols or (rows == cols and name != "dion2"))
    )
    along, across = (cut_cols, cut_rows) if right else (cut_rows, cut_cols)
    identity = name == "dion2" or options["basis"] == "identity"
    return along and (not identity or name == "dct_adamw" or across or ndim > 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", SCALES)
def test_float32_at_any_scale(name: str, scale: float) -> None:
    """Norms of parts in float64, so squares neither vanish nor overflow; absolute eps is left out of this."""
    rule = rules.get(name)
    options = {**rule.defaults, **({"eps": 0.0} if "eps" in rule.defaults else {}), "side": "right"}
    x = torch.randn(40, 16) * scale
    parts = parts_of((40, 16), ([0, 13, 13, 40], [0, 16]))
    state = fresh(rule, x, options)
    found = moved_in_parts(rule, x, parts, options, in_parts(rule, state, parts))
    assert found is not None
    whole, _ = rule.move(x, state, options)
    # float32: sums of 40 products in another order, magnified at most 1e3 in the weakest of directions near 0.3.
    assert relative_error(found[0], whole) < 1e-4

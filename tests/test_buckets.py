"""Buckets: one call a shape, bounded memory, the same results whatever else is in the stack."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from orthoopt import buckets, rules
from orthoopt.buckets import Item, Terms
from orthoopt.rules import Rule


def recording(rule: Rule, calls: list[tuple[int, ...]]) -> Rule:
    """The rule, noting the shapes of the batches that its direction is called with."""
    half = "direction" if rule.advance is None else "advance"
    function = getattr(rule, half)

    def noted(x: Tensor, *arguments: Any, **options: Any) -> Any:
        calls.append(tuple(x.shape))
        return function(x, *arguments, **options)

    return dataclasses.replace(rule, **{half: noted})


def items_of(rule: Rule, matrices: list[Tensor], factor: float | Tensor = 0.5) -> list[Item]:
    return [Item(rule, dict(rule.defaults), tuple(m.shape), torch.zeros_like(m), m, Terms(factor)) for m in matrices]


def test_same_shaped_matrices_share_one_call_and_tall_ones_lie_down() -> None:
    calls: list[tuple[int, ...]] = []
    rule = recording(rules.get("spectral"), calls)
    matrices = [torch.randn(4, 6), torch.randn(6, 4), torch.randn(4, 6), torch.randn(5, 5), torch.randn(3, 4, 6)]
    items = items_of(rule, [m.double() for m in matrices])
    buckets.apply(items)
    assert sorted(calls) == [(1, 5, 5), (6, 4, 6)]
    for item in items:
        expected = -0.5 * rules.get("spectral").direct(item.source, dict(rule.defaults))
        torch.testing.assert_close(item.target, expected, atol=1e-12, rtol=1e-12)


def test_rules_that_are_not_transposable_keep_orientations_apart() -> None:
    calls: list[tuple[int, ...]] = []
    rule = recording(rules.get("row_norm"), calls)
    buckets.apply(items_of(rule, [torch.randn(4, 6), torch.randn(6, 4)]))
    assert sorted(calls) == [(1, 4, 6), (1, 6, 4)]


def test_options_and_dtypes_are_kept_apart() -> None:
    calls: list[tuple[int, ...]] = []
    rule = recording(rules.get("spectral"), calls)
    items = items_of(rule, [torch.randn(4, 6) for _ in range(3)])
    items[1].options = {**items[1].options, "ns_steps": 3}
    items[2] = items_of(rule, [torch.randn(4, 6, dtype=torch.float64)])[0]
    buckets.apply(items)
    assert len(calls) == 3


def test_batches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "MAX_ELEMENTS", 100)
    calls: list[tuple[int, ...]] = []
    rule = recording(rules.get("spectral"), calls)
    matrices = [torch.randn(4, 6, dtype=torch.float64) for _ in range(6)] + [torch.randn(11, 4, 6, dtype=torch.float64)]
    items = items_of(rule, matrices)
    buckets.apply(items)
    assert all(torch.Size(shape).numel() <= 100 for shape in calls)
    assert sum(torch.Size(shape[:-2]).numel() for shape in calls) == 17
    for item in items:
        expected = -0.5 * rules.get("spectral").direct(item.source, dict(rule.defaults))
        torch.testing.assert_close(item.target, expected, atol=1e-12, rtol=1e-12)


def test_each_item_has_its_own_factor() -> None:
    rule = rules.get("row_norm")
    factors: list[float | Tensor] = [0.1, 0.2, torch.tensor(0.3), 0.1]
    items = [items_of(rule, [torch.ones(2, 4)], factor)[0] for factor in factors]
    buckets.apply(items)
    # The row of ones has length 2; damping takes 1e-5 off.
    for item, factor in zip(items, (0.1, 0.2, 0.3, 0.1), strict=True):
        torch.testing.assert_close(item.target, torch.full((2, 4), -factor / 2), atol=1e-5, rtol=1e-4)


def test_signals_are_stacked_in_the_dtype_that_the_rule_wants() -> None:
    seen: list[Tensor] = []

    def noted(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    plain = dataclasses.replace(
        rules.get("ssd"), direction=noted, direction_options=(), signal_dtype=lambda *_: torch.bfloat16
    )
    matrices = [torch.randn(3, 5), torch.randn(3, 5)]
    items = items_of(plain, matrices, 1.0)
    buckets.apply(items)
    assert [x.dtype for x in seen] == [torch.bfloat16]
    for item, matrix in zip(items, matrices, strict=True):
        assert torch.equal(item.target, -matrix.bfloat16().float())

"""Elementwise rules: what becomes of their signal, and how it is subtracted from parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthoopt import rules
from orthoopt.buckets import subtract
from orthoopt.rules import Rule
from orthoopt.views import View
from orthoopt.weight_decay import shrink_cautiously


def measured(rule: Rule, signal: rules.Signal, view: View, options: dict[str, Any]) -> rules.Signal:
    """The signal of a rule that measures vectors: those that are fused or stacked in one parameter, each by itself."""
    if rule.measure is None:
        return signal
    if not view.is_matrix:
        return signal._replace(numerators=[rule.measure(x, options, None) for x in signal.numerators])
    taken_apart = (([rule.measure(piece, options, (-2, -1)) for piece in view.pieces(x)], x) for x in signal.numerators)
    return signal._replace(numerators=[view.merge(pieces, tuple(x.shape)) for pieces, x in taken_apart])


def apply_elementwise(
    masters: list[Tensor], signal: rules.Signal, lr: float | Tensor, cautious: float | Tensor
) -> None:
    """``master ← master − lr · numerator / (denominator · divisor)``, what the signal does not have left out.

    Args:
        masters: parameters in the dtype of the arithmetic, written in place.
        signal: from the rule's ``accumulate``.
        lr: learning rate, a 0-d tensor where it lives on the device.
        cautious: cautious weight decay, learning rate times coefficient.
    """
    numerators, denominators, divisors = signal
    if isinstance(cautious, Tensor) or cautious != 0:
        for master, numerator in zip(masters, numerators, strict=True):
            shrink_cautiously(master, numerator, cautious)  # denominators are positive: the sign is the update's
    if denominators is not None and not isinstance(lr, Tensor):
        # torch.optim.AdamW's own last operation, so that results agree to the last bit.
        scalars = [-(lr / divisor) for divisor in divisors or [1.0] * len(masters)]
        torch._foreach_addcdiv_(masters, list(numerators), list(denominators), scalars)
        return
    updates = list(numerators)
    if denominators is not None:
        updates = list(torch._foreach_div(updates, list(denominators)))
    if divisors is not None:
        updates = [update / divisor for update, divisor in zip(updates, divisors, strict=True)]
    subtract(masters, updates, [lr] * len(masters))

"""Elementwise rules: what becomes of their signal, and how it is subtracted from parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthoopt import rules
from orthoopt.kernels import subtract_updates
from orthoopt.rules import Rule
from orthoopt.views import View
from orthoopt.weight_decay import Decay, shrink_cautiously


def measured(rule: Rule, signal: rules.Signal, view: View, options: dict[str, Any]) -> rules.Signal:
    """The signal of a rule that measures vectors: those that are fused or stacked in one parameter, each by itself."""
    if rule.measure is None:
        return signal
    if not view.is_matrix:
        return signal._replace(numerators=[rule.measure(x, options, None) for x in signal.numerators])
    taken_apart = (([rule.measure(piece, options, (-2, -1)) for piece in view.pieces(x)], x) for x in signal.numerators)
    return signal._replace(numerators=[view.merge(pieces, tuple(x.shape)) for pieces, x in taken_apart])


def apply_elementwise(masters: list[Tensor], signal: rules.Signal, lr: float | Tensor, decay: Decay) -> None:
    """``master ← keep·master − lr · numerator / (denominator · divisor)``, what the signal does not have left out.

    Args:
        masters: parameters in the dtype of the arithmetic, written in place.
        signal: from the rule's ``accumulate``.
        lr: learning rate, a 0-d tensor where it lives on the device.
        decay: what weight decay does.
    """
    numerators, denominators, divisors = signal
    if decay.is_cautious:
        for master, numerator in zip(masters, numerators, strict=True):
            shrink_cautiously(master, numerator, decay.cautious)  # denominators are positive: the sign is the update's
    if denominators is not None and not isinstance(lr, Tensor):
        # torch.optim.AdamW's own last operation, so that results agree to the last bit.
        if isinstance(decay.keep, Tensor) or decay.keep != 1:
            torch._foreach_mul_(masters, decay.keep)
        scalars = [-(lr / divisor) for divisor in divisors or [1.0] * len(masters)]
        torch._foreach_addcdiv_(masters, list(numerators), list(denominators), scalars)
        return
    updates = list(numerators)
    if denominators is not None:
        updates = list(torch._foreach_div(updates, list(denominators)))
    if divisors is not None:
        updates = [update / divisor for update, divisor in zip(updates, divisors, strict=True)]
    subtract_updates(masters, updates, [1.0] * len(masters), lr, decay.keep)

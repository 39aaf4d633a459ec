"""What the optimizers of the step bench should compute, in float64, one matrix at a time.

Those of Muon, row norms, AuON, AdamW and SGD are written out here. The rest take the rule's own ``update`` in float64,
which tests hold to its theory, with learning rate, scale and decay written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias
from unittest import mock

import torch
from torch import Tensor

from orthoopt import polar, rules

LR, WEIGHT_DECAY, MOMENTUM, BETAS, EPS = 1e-3, 0.1, 0.95, (0.9, 0.95), 1e-8
SGD_LR = 1.0  # its steps are as long as gradients, and what is as short as rounding cannot be checked
NS_STEPS, NS_COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)  # those of torch.optim.Muon

Definition: TypeAlias = Callable[[str, Tensor, Sequence[Tensor]], Tensor]
"""(name, parameter, gradients of successive steps) -> the parameter after them; one matrix, float64."""


def _decayed(parameter: Tensor, lr: float = LR, decay: float = WEIGHT_DECAY) -> Tensor:
    return parameter * (1 - lr * decay)


@dataclass(frozen=True)
class Muon:
    """``torch.optim.Muon``, and what else differs from it by these settings alone."""

    coefficients: tuple[tuple[float, float, float], ...] = (NS_COEFFICIENTS,) * NS_STEPS
    scale: str = "match_rms_adamw"
    """``match_rms_adamw``: 0.2·√max(rows, cols). ``shape_scaling``: √max(1, rows/cols)."""
    plain_sum: bool = False
    """The gradient and its average are added as they are, where Nesterov's blend weighs them 1 − β and β."""

    def __call__(self, name: str, parameter: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """See :data:`Definition`."""
        rows, cols = parameter.shape
        scale = 0.2 * math.sqrt(max(rows, cols)) if self.scale == "match_rms_adamw" else math.sqrt(max(1, rows / cols))
        average = torch.zeros_like(parameter)
        for gradient in gradients:
            average = MOMENTUM * average + (1 - MOMENTUM) * gradient
            x = average + gradient if self.plain_sum else MOMENTUM * average + (1 - MOMENTUM) * gradient
            parameter = _decayed(parameter) - LR * scale * newton_schulz(x, self.coefficients)
        return parameter


def newton_schulz(x: Tensor, coefficients: Sequence[tuple[float, float, float]], kappa: float = 1.0) -> Tensor:
    """The iteration as published, on X/(κ‖X‖_F), in the dtype of ``x``, ``(..., rows, cols)``."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (kappa * x.norm(dim=(-2, -1), keepdim=True))
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def row_norm(name: str, parameter: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """Rows of the momentum brought to length one, with the relative damping of 1e-5 and AdamW's size of update."""
    average = torch.zeros_like(parameter)
    for gradient in gradients:
        average = MOMENTUM * average + (1 - MOMENTUM) * gradient
        length = average.norm(dim=1, keepdim=True)
        update = average / (length + 1e-5 * length.square().mean().sqrt()) * 0.2 * math.sqrt(parameter.shape[1])
        parameter = _decayed(parameter) - LR * update
    return parameter


def auon(name: str, parameter: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """The momentum over the smaller of its Frobenius norm and Schur's bound, at AdamW's size of update."""
    average = torch.zeros_like(parameter)
    for gradient in gradients:
        average = MOMENTUM * average + (1 - MOMENTUM) * gradient
        x = MOMENTUM * average + (1 - MOMENTUM) * gradient
        rows, cols = x.abs().sum(1), x.abs().sum(0)
        bound = (((x.abs() @ cols) / rows).max() * ((rows @ x.abs()) / cols).max()).sqrt()
        rms = math.sqrt(math.pi / 2 / parameter.numel())
        parameter = _decayed(parameter) - LR * 0.2 / rms * x / torch.minimum(bound, x.norm())
    return parameter


def adamw(name: str, parameter: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """AdamW (arXiv 1711.05101), bias-corrected."""
    first, second = torch.zeros_like(parameter), torch.zeros_like(parameter)
    for step, gradient in enumerate(gradients, start=1):
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
        root = (second / (1 - BETAS[1] ** step)).sqrt() + EPS
        parameter = _decayed(parameter) - LR * first / (1 - BETAS[0] ** step) / root
    return parameter


def sgd(name: str, parameter: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """SGD with an averaged momentum, as torch begins it: with the first gradient, whole. No decay."""
    average = gradients[0]
    for step, gradient in enumerate(gradients):
        average = MOMENTUM * average + (1 - MOMENTUM) * gradient if step else average
        parameter = parameter - SGD_LR * average
    return parameter


@dataclass(frozen=True)
class OfRule:
    """A rule's own ``update`` in float64, with what the optimizer does around it written out."""

    rule: str
    options: tuple[tuple[str, Any], ...] = ()
    lr: float = LR
    decay: float = WEIGHT_DECAY
    scaled: bool = True
    """Brought to AdamW's size, 0.2 over the root mean square that the rule states; else left as it is."""
    float32_null: bool = False
    """Null directions are those of float32, which an exact method leaves out: a Gaussian matrix may have some."""

    def __call__(self, name: str, parameter: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """See :data:`Definition`."""
        rule, options, state = rules.get(self.rule), dict(self.options), None
        scale = 1.0
        if self.scaled:
            assert rule.rms is not None
            rows, cols = parameter.shape
            scale = 0.2 / rule.rms(rows, cols, {**rule.defaults, **options})
        with mock.patch.object(polar, "rank_tolerance", _of_float32) if self.float32_null else nullcontext():
            for gradient in gradients:
                update, state = rule.update(gradient, state, **options)
                parameter = _decayed(parameter, self.lr, self.decay) - self.lr * scale * update
        return parameter


def _of_float32(x: Tensor, tolerance: Callable[[Tensor], float] = polar.rank_tolerance) -> float:
    """What lies between the singular values that float32 keeps of this matrix and those that it leaves out.

    Not float32's tolerance itself: a singular value within rounding of it would be kept here and left out there.
    """
    kept = int((torch.linalg.svdvals(x.float()) > tolerance(x.float())).sum())
    values = [torch.inf, *torch.linalg.svdvals(x).tolist(), 0.0]
    return (values[kept] + values[kept + 1]) / 2


_HYBRID = {"cols": OfRule("hybrid", (("axis", "cols"),)), "rows": OfRule("hybrid")}


def symmetry_hybrid(name: str, parameter: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """Muon on attention; on an mlp the hybrid rule, whose units are the rows of the way in, the columns of that out."""
    if "mlp" not in name:
        return OfRule("spectral")(name, parameter, gradients)
    return _HYBRID["cols" if "down_proj" in name else "rows"](name, parameter, gradients)

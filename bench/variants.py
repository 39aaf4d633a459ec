"""The optimizers of the step bench, each with the float64 definition that its result is held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

import orthoopt
from orthoopt.newton_schulz import iteration_dtype

LR, WEIGHT_DECAY, MOMENTUM, BETAS, EPS = 1e-3, 0.1, 0.95, (0.9, 0.95), 1e-8
NS_STEPS, NS_COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)  # those of torch.optim.Muon

# Of the whole change of a matrix, relative, on Gaussian gradients. The iteration amplifies rounding of its products:
# measured 1e-6 to 3e-6 in float32, 1.1e-2 to 1.5e-2 in bfloat16; a wrong coefficient or momentum costs 1e-1 or more.
TOLERANCES = {torch.float32: 2e-4, torch.bfloat16: 3e-2}

Named = Sequence[tuple[str, Tensor]]
Definition = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""(parameter, gradients of successive steps) -> the parameter after them; one matrix, float64."""


@dataclass(frozen=True)
class Variant:
    """One optimizer to be timed."""

    name: str
    build: Callable[[Named], Optimizer]
    definition: Definition
    bound: str
    """What limits it: ``"matmul"`` or ``"memory"``."""
    bytes_per_element: int = 0
    """Least traffic of a memory-bound step with float32 state."""
    needs_model_names: bool = False
    iteration: Callable[[Tensor], torch.dtype] = lambda parameter: torch.float32
    """Dtype of its arithmetic on a parameter like this; decides the tolerance."""


def muon_definition(parameter: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """``torch.optim.Muon`` with Nesterov momentum and ``adjust_lr_fn="match_rms_adamw"``, written out."""
    a, b, c = NS_COEFFICIENTS
    buffer = torch.zeros_like(parameter)
    scale = 0.2 * math.sqrt(max(parameter.shape))
    for gradient in gradients:
        buffer = MOMENTUM * buffer + (1 - MOMENTUM) * gradient
        x = MOMENTUM * buffer + (1 - MOMENTUM) * gradient
        tall = x.shape[0] > x.shape[1]
        x = x.mT if tall else x
        x = x / x.norm()
        for _ in range(NS_STEPS):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        parameter = parameter * (1 - LR * WEIGHT_DECAY) - LR * scale * (x.mT if tall else x)
    return parameter


def row_norm_definition(parameter: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """Rows of the momentum brought to length one, with the relative damping of 1e-5 and AdamW's size of update."""
    buffer = torch.zeros_like(parameter)
    for gradient in gradients:
        buffer = MOMENTUM * buffer + (1 - MOMENTUM) * gradient
        length = buffer.norm(dim=1, keepdim=True)
        update = buffer / (length + 1e-5 * length.square().mean().sqrt()) * 0.2 * math.sqrt(parameter.shape[1])
        parameter = parameter * (1 - LR * WEIGHT_DECAY) - LR * update
    return parameter


def adamw_definition(parameter: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """AdamW (arXiv 1711.05101), bias-corrected."""
    first, second = torch.zeros_like(parameter), torch.zeros_like(parameter)
    for step, gradient in enumerate(gradients, start=1):
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
        root = (second / (1 - BETAS[1] ** step)).sqrt() + EPS
        parameter = parameter * (1 - LR * WEIGHT_DECAY) - LR * first / (1 - BETAS[0] ** step) / root
    return parameter


def _torch_muon(named: Named) -> Optimizer:
    return torch.optim.Muon(
        [p for _, p in named], LR, WEIGHT_DECAY, MOMENTUM, True, NS_COEFFICIENTS, ns_steps=NS_STEPS,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip


def _adamw(named: Named, **kind: bool) -> Optimizer:
    params = [p for _, p in named]
    return torch.optim.AdamW(params, LR, BETAS, EPS, WEIGHT_DECAY, **kind)


BASELINE = "torch.optim.Muon"
OURS = "orthoopt.Muon"

VARIANTS: tuple[Variant, ...] = (
    Variant(
        OURS,
        lambda named: orthoopt.Muon(
            named, LR, WEIGHT_DECAY, MOMENTUM, ns_coefficients=NS_COEFFICIENTS, ns_steps=NS_STEPS
        ),
        muon_definition,
        "matmul",
        iteration=iteration_dtype,
    ),
    Variant(
        "orthoopt.Symmetry",
        lambda named: orthoopt.Symmetry(
            named, LR, WEIGHT_DECAY, MOMENTUM, ns_coefficients=NS_COEFFICIENTS, ns_steps=NS_STEPS
        ),
        muon_definition,  # the sets hold linear maps alone, which get the spectral rule
        "matmul",
        needs_model_names=True,
        iteration=iteration_dtype,
    ),
    # Gradient and buffer and parameter read, buffer and parameter written.
    Variant(
        "orthoopt.RowNorm",
        lambda named: orthoopt.RowNorm(named, LR, WEIGHT_DECAY, MOMENTUM),
        row_norm_definition,
        "memory",
        bytes_per_element=20,
    ),
    Variant(BASELINE, _torch_muon, muon_definition, "matmul", iteration=lambda parameter: torch.bfloat16),
    # Gradient, two moments and parameter read, the last three written.
    Variant(
        "torch.optim.AdamW foreach",
        lambda named: _adamw(named, foreach=True),
        adamw_definition,
        "memory",
        bytes_per_element=28,
    ),
    Variant(
        "torch.optim.AdamW fused",
        lambda named: _adamw(named, fused=True),
        adamw_definition,
        "memory",
        bytes_per_element=28,
    ),
)

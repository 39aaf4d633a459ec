"""AdamW: the elementwise rule for parameters with no matrix symmetry, in torch's own order of operations.

Source: Loshchilov and Hutter, arXiv 1711.05101; torch.optim.AdamW, whose state keys it shares. Decoupled weight decay
is the optimizer's business, as for every rule.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from orthoopt.rules._base import Equivariance, Gate, Options, Rule, Signal, State, Tensors, register
from orthoopt.rules._momentum import move_average

_FUSED_ON = ("cuda",)


def _init(param: Tensor, options: Options) -> State:
    """Zero moments shaped as the parameter, and a 0-d float32 ``step`` on the CPU, as torch has it."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device="meta" if param.is_meta else "cpu"),
        "exp_avg": torch.zeros_like(param, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(param, memory_format=torch.preserve_format),
    }


def _accumulate(grads: Tensors, states: Sequence[State], options: Options, gate: Gate) -> Signal:
    """m ← β₁m + (1−β₁)G, v ← β₂v + (1−β₂)G²; the update is (m/(1−β₁ᵗ)) / (√(v/(1−β₂ᵗ)) + eps)."""
    beta1, beta2 = options["betas"]
    averages = [state["exp_avg"] for state in states]
    squares = [state["exp_avg_sq"] for state in states]
    if gate is None:
        torch._foreach_lerp_(averages, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    else:
        move_average(averages, grads, beta1, 1 - beta1, gate)
        move_average(squares, torch._foreach_mul(grads, grads), beta2, 1 - beta2, gate)
    roots = torch._foreach_sqrt(squares)
    corrections1: list[Any] = []
    corrections2: list[Any] = []
    for state in states:
        if gate is None:
            state["step"] += 1
            step = state["step"].item()
        else:
            # The count must not wait for the host, so it lives where the gate is known.
            state["step"] = state["step"].to(gate.device, non_blocking=True)
            step = state["step"].add_(gate).clamp(min=1).to(gate.dtype)
        corrections1.append(1 - beta1**step)
        corrections2.append((1 - beta2**step) ** 0.5)
    torch._foreach_div_(roots, corrections2)
    torch._foreach_add_(roots, options["eps"])
    return Signal(averages, roots, corrections1)


def _fused(
    params: Tensors,
    grads: Tensors,
    states: Sequence[State],
    options: Options,
    *,
    lr: float | Tensor,
    keep: float | Tensor,
    coefficient: float,
    maximize: bool,
    gate: Gate,
) -> bool:
    """torch's own fused kernel, which moves 28 bytes an element where the operations above move some 100.

    Not on CPUs, where it rounds differently for elements that its vectors do not reach.
    """
    averages = [state["exp_avg"] for state in states]
    squares = [state["exp_avg_sq"] for state in states]
    device = params[0].device
    if device.type not in _FUSED_ON or {tensor.dtype for tensor in (*params, *grads, *averages, *squares)} != {
        torch.float32
    }:
        return False
    steps = []
    for state in states:
        state["step"] = state["step"].to(device, non_blocking=True)
        steps.append(state["step"])
    counted = 1.0 if gate is None else gate.to(torch.float32)
    torch._foreach_add_(steps, counted)
    if coefficient == 0 and (isinstance(keep, Tensor) or keep != 1):
        torch._foreach_mul_(params, keep)
    beta1, beta2 = options["betas"]
    torch._fused_adamw_(
        params, grads, averages, squares, [], steps,
        lr=lr.to(torch.float32) if isinstance(lr, Tensor) else lr,
        beta1=beta1, beta2=beta2, weight_decay=coefficient, eps=options["eps"], amsgrad=False, maximize=maximize,
        grad_scale=None, found_inf=None if gate is None else 1 - gate.to(torch.float32),
    )  # fmt: skip
    return True


def check_adamw(options: Options) -> None:
    """Raise ValueError on betas or an eps that Adam cannot have."""
    for index, beta in enumerate(options["betas"]):
        if not 0 <= beta < 1:
            raise ValueError(f"betas[{index}] must be at least 0 and below 1, got {beta!r}")
    if options["eps"] < 0:
        raise ValueError(f"eps must not be negative, got {options['eps']!r}")


adamw = register(
    Rule(
        name="adamw",
        summary="AdamW, elementwise.",
        defaults={"betas": (0.9, 0.95), "eps": 1e-8},
        hints={"betas": tuple[float, float], "eps": float},
        init=_init,
        accumulate=_accumulate,
        equivariance=lambda options, rows, cols: Equivariance(
            "signed_permutation",
            "signed_permutation",
            breaks=(("left", "orthogonal"), ("right", "orthogonal")),
        ),
        fused_update=_fused,
        scale_invariant=lambda options: False,
        check=check_adamw,
    )
)

"""What torch's own optimizer tests need to know of our constructors: their options, their mistakes, every scheduler.

torch's bodies live in its repository and not in its wheel, so ``test_torch_suite*.py`` have bodies of their own, under
torch's names; the machinery that spreads them over optimizers, devices and dtypes is torch's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler, swa_utils

import orthoopt
from orthoopt import OrthoOpt, named

pytest.importorskip("expecttest")  # of torch.testing's, not of ours
# The import would forbid the whole process to set torch.backends' flags.
with mock.patch.object(torch.backends, "disable_global_flags", lambda: None):
    common = pytest.importorskip("torch.testing._internal.common_optimizers")  # no public interface

Schedulers = list[Any]


def build(constructor: type[OrthoOpt], params: Any, **options: Any) -> OrthoOpt:
    """The optimizer over what torch's tests give: tensors, (name, tensor) pairs or groups, none with a rule."""
    if constructor is not OrthoOpt or isinstance(params, Tensor):
        return constructor(params, **options)
    params = list(params)
    if params and isinstance(params[0], dict):
        return OrthoOpt([group for one in params for group in _ruled(one)], **options)
    return OrthoOpt(_ruled({"params": params}) if params else [], **options)


def _ruled(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The group with rules that its parameters' dimensions choose."""
    entries = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    matrices = [entry for entry in entries if (entry[1] if isinstance(entry, tuple) else entry).ndim >= 2]
    vectors = [entry for entry in entries if not any(entry is matrix for matrix in matrices)]
    return [
        {**group, "params": some, "rule": rule} for some, rule in ((matrices, "spectral"), (vectors, "adamw")) if some
    ]


_DECAYS: list[dict[str, Any]] = [
    {"weight_decay": 0.2},
    {"lr": 0.01, "weight_decay": 0.05, "maximize": True},
    {"weight_decay": 0.2, "weight_decay_mode": "cautious"},
    {"weight_decay": 0.2, "weight_decay_mode": "independent"},
]


def _inputs(constructor: type[OrthoOpt]) -> Callable[..., list[Any]]:
    own: dict[str, list[dict[str, Any]]] = {
        "Muon": [{"ns_steps": 6}, {"ns_coefficients": (3.4, -4.7, 2.0)}, {"adjust_lr_fn": "original"}],
        "Root": [{"threshold": "rms"}, {"momentum_form": "ema"}],
        "AuON": [{"variant": "paper"}],
        "Symmetry": [{"plan": "symmetry_hybrid"}],
        "PolarGrad": [{"order": "polar_first"}, {"adam_lr": 0.002}],
        "Scion": [{"constrained": False}, {"norms": {"hidden": "row_norm"}}],
        "Trion": [{"rank": 2}],
        "DCTAdamW": [{"rank": 3, "error_feedback": True}],
        "RowNorm": [{"axis": "cols"}],
    }
    scion = constructor.__name__ == "Scion"  # in units of its own, where 0.01 is a long step, and without weight decay
    options = [
        {}, *([] if scion else [{"lr": 0.01}]), {"lr": torch.tensor(0.001)}, {"maximize": True}, {"nonfinite": "raise"},
        *([] if scion else _DECAYS),
        *own.get(constructor.__name__, []),
    ]  # fmt: skip

    def inputs(device: Any, dtype: Any = None) -> list[Any]:
        return [common.OptimizerInput(None, copy.deepcopy(one), repr(one)) for one in options]

    return inputs


def _errors(constructor: type[OrthoOpt]) -> Callable[..., list[Any]]:
    """torch's mistakes for all optimizers, then those that torch tests in each one, with our words."""

    def mistakes(device: Any, dtype: Any) -> list[Any]:
        def param() -> nn.Parameter:
            return nn.Parameter(torch.randn(2, 3, device=device, dtype=dtype))

        def error(kind: type[Exception], text: str, params: Any = None, step: bool = False, **options: Any) -> Any:
            when = common.OptimizerErrorEnum.STEP_ERROR if step else common.OptimizerErrorEnum.CONSTRUCTION_ERROR
            given = [param()] if params is None else params
            wrong = common.OptimizerInput(given, options, text)
            return common.ErrorOptimizerInput(wrong, error_on=when, error_type=kind, error_regex=text)

        sparse = param()
        sparse.grad = torch.eye(2, 3, device=device, dtype=dtype).to_sparse()
        complex_ = nn.Parameter(torch.randn(2, 3, device=device, dtype=torch.complex64))
        scion = constructor.__name__ == "Scion"
        decay = "Scion has no weight decay" if scion else "weight_decay must be a number of at least 0, got -1"
        # The others take what can be trained, which integers cannot.
        integers = (
            (TypeError, "got torch.int64") if constructor is OrthoOpt else (ValueError, "no trainable parameters")
        )
        # What torch warns of, and will refuse, is refused, or taken once where parameters are routed.
        shared = [e for e in common.get_error_inputs_for_all_optims(device, dtype) if e.error_type is not UserWarning]
        return [
            *shared,
            error(ValueError, "lr must be a number of at least 0, got -0.01", lr=-1e-2),
            error(ValueError, "lr must be a number of at least 0, got nan", lr=float("nan")),
            error(ValueError, decay, weight_decay=-1),
            error(ValueError, "nonfinite='sikp'.*did you mean 'skip'", nonfinite="sikp"),
            error(TypeError, "momentun", momentun=0.9),
            error(RuntimeError, "does not support sparse gradients", [sparse], step=True),
            error(RuntimeError, "does not support complex parameters", [complex_]),
            error(*integers, [torch.arange(6)]),
            error(ValueError, "can't optimize a non-leaf Tensor", [param() * 2]),
            error(ValueError, "empty parameter list", []),
        ]

    return mistakes


def has_momentum(optimizer: Optimizer) -> bool:
    """Whether CyclicLR and OneCycleLR find one to cycle; a plan over rules without any has none."""
    return bool({"momentum", "betas"} & optimizer.defaults.keys())


SCHEDULERS: dict[str, Callable[[Optimizer], Schedulers]] = {
    "LambdaLR": lambda o: [lr_scheduler.LambdaLR(o, lambda step: 0.95**step)],
    "MultiplicativeLR": lambda o: [lr_scheduler.MultiplicativeLR(o, lambda step: 0.95)],
    "StepLR": lambda o: [lr_scheduler.StepLR(o, gamma=0.9, step_size=10)],
    "MultiStepLR": lambda o: [lr_scheduler.MultiStepLR(o, [3, 6], gamma=0.5)],
    "ConstantLR": lambda o: [lr_scheduler.ConstantLR(o, factor=0.4, total_iters=4)],
    "LinearLR": lambda o: [lr_scheduler.LinearLR(o, start_factor=0.4, total_iters=4)],
    "ExponentialLR": lambda o: [lr_scheduler.ExponentialLR(o, gamma=0.99)],
    "PolynomialLR": lambda o: [lr_scheduler.PolynomialLR(o, power=0.9, total_iters=20)],
    "CosineAnnealingLR": lambda o: [lr_scheduler.CosineAnnealingLR(o, 20)],
    "CosineAnnealingWarmRestarts": lambda o: [lr_scheduler.CosineAnnealingWarmRestarts(o, 4)],
    "ReduceLROnPlateau": lambda o: [lr_scheduler.ReduceLROnPlateau(o)],
    "CyclicLR": lambda o: [lr_scheduler.CyclicLR(o, 1e-4, 1e-3, step_size_up=3, cycle_momentum=has_momentum(o))],
    "OneCycleLR": lambda o: [lr_scheduler.OneCycleLR(o, 1e-3, total_steps=25, cycle_momentum=has_momentum(o))],
    "SequentialLR": lambda o: [
        lr_scheduler.SequentialLR(o, [lr_scheduler.ConstantLR(o, 0.5, 3), lr_scheduler.ExponentialLR(o, 0.97)], [3])
    ],
    "ChainedScheduler": lambda o: [
        lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(o, 0.5, 3), lr_scheduler.ExponentialLR(o, 0.97)])
    ],
    "SWALR": lambda o: [swa_utils.SWALR(o, swa_lr=1e-3, anneal_epochs=5)],
    "two of them": lambda o: [lr_scheduler.ExponentialLR(o, gamma=0.99), lr_scheduler.ReduceLROnPlateau(o)],
}

CONSTRUCTORS: list[type[OrthoOpt]] = [OrthoOpt, *(getattr(orthoopt, name) for name in named.__all__)]
INFOS = [
    common.OptimizerInfo(
        constructor,
        optim_inputs_func=_inputs(constructor),
        optim_error_inputs_func=_errors(constructor),
        scheduler_inputs=list(SCHEDULERS.values()),
        supported_impls=(),  # one way to compute: no foreach, fused or differentiable to choose
        not_og_supported_flags=("maximize", "nonfinite", "weight_decay_mode"),
        supports_complex=False,
    )
    for constructor in CONSTRUCTORS
]


def run_schedulers(schedulers: Schedulers, loss: Tensor) -> None:
    for scheduler in schedulers:
        plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
        scheduler.step(loss.detach()) if plateau else scheduler.step()


def quadratic(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return (weight.mv(x) + bias).square().sum()

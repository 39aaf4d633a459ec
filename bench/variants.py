"""The optimizers of the step bench, each with the float64 definition that its result is held against."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

import orthoopt
from orthoopt.bench import definitions
from orthoopt.bench.definitions import (
    BETAS,
    EPS,
    LR,
    MOMENTUM,
    NS_COEFFICIENTS,
    NS_STEPS,
    SGD_LR,
    WEIGHT_DECAY,
    Definition,
    OfRule,
)
from orthoopt.newton_schulz import iteration_dtype

# Of the whole change of a matrix, relative, on Gaussian gradients. The iteration amplifies rounding of its products:
# measured 1e-6 to 3e-6 in float32, 1.1e-2 to 1.5e-2 in bfloat16; a wrong coefficient or momentum costs 1e-1 or more.
TOLERANCES = {torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}

Named: TypeAlias = Sequence[tuple[str, Tensor]]


def _float32(parameter: Tensor) -> torch.dtype:
    return torch.float32


def bfloat16(parameter: Tensor) -> torch.dtype:
    """The dtype of an iteration that is bfloat16 on every device."""
    return torch.bfloat16


@dataclass(frozen=True)
class Variant:
    """One optimizer to be timed."""

    name: str
    build: Callable[[Named], Optimizer]
    definition: Definition
    bound: str
    """What limits it: ``"matmul"``, ``"memory"``, or ``"other"``, of which no share is told."""
    bytes_per_element: int = 0
    """Least traffic of a memory-bound step with float32 state."""
    needs_model_names: bool = False
    iteration: Callable[[Tensor], torch.dtype] = _float32
    """Dtype of its arithmetic on a parameter like this; decides the tolerance."""
    family: str = "ours"
    """``"ours"``, ``"torch"`` or ``"peer"``."""
    main: bool = False
    """Whether it stays where few variants are asked for."""
    matrices_alone: bool = False
    """It takes 2-D parameters alone: banks of experts are handed to it matrix by matrix."""
    keeps_gradients: bool = True
    """Whether a step leaves ``.grad`` as it was; else each gets its own copies, made untimed."""
    same_work: bool = False
    """A peer whose arithmetic is ours on the CPU: float32, the same coefficients, steps and form of momentum."""
    compiled: bool = False
    """The step goes through ``torch.compile``."""
    around: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    """What every step happens in: patches of a peer, say."""
    note: str = ""
    """What differs from the others' work, for people."""
    missing: str = ""
    """Why it cannot run here; "" where it can."""


_MUON = definitions.Muon()
_NS: dict[str, Any] = {"ns_coefficients": NS_COEFFICIENTS, "ns_steps": NS_STEPS}
_SCION_LR, _SCION_MOMENTUM = 2.0**-12, 0.9
# The plans' multipliers, and no decay, for these two steps are as long as gradients.
_POLARGRAD_LR, _SSD_LR = 30 * LR, 10 * LR


def _matmul(name: str, build: Callable[[Named], Optimizer], definition: Definition, **more: Any) -> Variant:
    return Variant(name, build, definition, "matmul", iteration=iteration_dtype, **more)


def _other(name: str, build: Callable[[Named], Optimizer], definition: Definition, **more: Any) -> Variant:
    return Variant(name, build, definition, "other", iteration=iteration_dtype, **more)


def _torch_muon(named: Named) -> Optimizer:
    return torch.optim.Muon(
        [p for _, p in named], LR, WEIGHT_DECAY, MOMENTUM, True, NS_COEFFICIENTS, ns_steps=NS_STEPS,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip


@contextlib.contextmanager
def without_bfloat16() -> Any:
    """Let ``tensor.bfloat16()`` give the tensor itself: what torch.optim.Muon casts with."""
    try:
        torch.Tensor.bfloat16 = lambda self: self  # type: ignore[method-assign,assignment,return-value]  # a patch
        yield
    finally:
        del torch.Tensor.bfloat16


def _adamw(named: Named, **kind: bool) -> Optimizer:
    params = [p for _, p in named]
    return torch.optim.AdamW(params, LR, BETAS, EPS, WEIGHT_DECAY, **kind)


def _sgd(named: Named) -> Optimizer:
    return torch.optim.SGD([p for _, p in named], SGD_LR, MOMENTUM, dampening=MOMENTUM, fused=True)


BASELINE = "torch.optim.Muon"
OURS = "orthoopt.Muon"
FLOOR = "torch.optim.AdamW fused"
MOMENTUM_ALONE = "torch.optim.SGD fused"
LINEAR = ("orthoopt.RowNorm", "orthoopt.RowNorm unchecked", "orthoopt.AuON", "orthoopt.AuON unchecked")


def _linear(constructor: Callable[..., Optimizer], policy: str, named: Named) -> Optimizer:
    return constructor(named, LR, WEIGHT_DECAY, MOMENTUM, nonfinite=policy)


OF_OURS: tuple[Variant, ...] = (
    _matmul(OURS, lambda named: orthoopt.Muon(named, LR, WEIGHT_DECAY, MOMENTUM, **_NS), _MUON, main=True),
    _matmul("orthoopt.Root", lambda named: orthoopt.Root(named, LR, WEIGHT_DECAY, MOMENTUM), OfRule("root")),
    _matmul(
        "orthoopt.HybridAuON",
        lambda named: orthoopt.HybridAuON(named, LR, WEIGHT_DECAY, MOMENTUM),
        OfRule("hybrid_auon"),
    ),
    _matmul(
        "orthoopt.Symmetry",
        lambda named: orthoopt.Symmetry(named, LR, WEIGHT_DECAY, MOMENTUM, **_NS),
        _MUON,  # the sets hold linear maps alone, which get the spectral rule
        needs_model_names=True,
    ),
    _matmul(
        "orthoopt.Symmetry hybrid",
        lambda named: orthoopt.Symmetry(named, LR, WEIGHT_DECAY, plan="symmetry_hybrid"),
        definitions.symmetry_hybrid,
        needs_model_names=True,
    ),
    _matmul(
        "orthoopt.Scion",
        lambda named: orthoopt.Scion(named, _SCION_LR, _SCION_MOMENTUM),
        OfRule("scion", (("radius", 50.0), ("momentum", _SCION_MOMENTUM)), lr=_SCION_LR, decay=1.0, scaled=False),
    ),
    _other(
        "orthoopt.PolarGrad",
        lambda named: orthoopt.PolarGrad(named, LR, WEIGHT_DECAY, MOMENTUM),
        OfRule("polargrad", lr=_POLARGRAD_LR, decay=0.0, scaled=False, float32_null=True),
        note="polar factor to rounding up to a side of 512 on CPUs",
    ),
    _other(
        "orthoopt.SSD",
        lambda named: orthoopt.SSD(named, LR, WEIGHT_DECAY),
        OfRule("ssd", lr=_SSD_LR, decay=0.0, scaled=False, float32_null=True),
        note="as PolarGrad",
    ),
    _other(
        "orthoopt.Trion",
        lambda named: orthoopt.Trion(named, LR, WEIGHT_DECAY, MOMENTUM),
        OfRule("trion"),
        note="a quarter of the columns",
    ),
    _other(
        "orthoopt.Dion2",
        lambda named: orthoopt.Dion2(named, LR, WEIGHT_DECAY, MOMENTUM),
        OfRule("dion2"),
        note="a quarter of the rows",
    ),
    _other(
        "orthoopt.DCTAdamW",
        lambda named: orthoopt.DCTAdamW(named, LR, BETAS, EPS, WEIGHT_DECAY),
        OfRule("dct_adamw", (("betas", BETAS), ("eps", EPS)), scaled=False),
        note="a quarter of the columns",
    ),
    *(
        # Gradient and buffer and parameter read, buffer and parameter written.
        Variant(
            f"{name} unchecked" if policy == "ignore" else name,
            partial(_linear, constructor, policy),
            definition,
            "memory",
            bytes_per_element=20,
            main=True,
            note="nonfinite='ignore': as torch's optimizers, it does not look for bad gradients" * (policy == "ignore"),
        )
        for name, constructor, definition in (
            ("orthoopt.RowNorm", orthoopt.RowNorm, definitions.row_norm),
            ("orthoopt.AuON", orthoopt.AuON, definitions.auon),
        )
        for policy in ("skip", "ignore")
    ),
)
OF_TORCH: tuple[Variant, ...] = (
    Variant(
        BASELINE, _torch_muon, _MUON, "matmul",
        iteration=bfloat16, family="torch", main=True, matrices_alone=True, note="iterates in bfloat16",
    ),
    Variant(
        "torch.optim.Muon compiled", _torch_muon, _MUON, "matmul",
        iteration=bfloat16, family="torch", matrices_alone=True, compiled=True, note="iterates in bfloat16",
    ),
    Variant(
        "torch.optim.Muon float32", _torch_muon, _MUON, "matmul",
        family="torch", matrices_alone=True, around=without_bfloat16, note="its cast to bfloat16 patched out",
    ),
    # Gradient, two moments and parameter read, the last three written.
    Variant(
        "torch.optim.AdamW foreach", lambda named: _adamw(named, foreach=True), definitions.adamw, "memory",
        bytes_per_element=28, family="torch", main=True,
    ),
    Variant(
        FLOOR, lambda named: _adamw(named, fused=True), definitions.adamw, "memory",
        bytes_per_element=28, family="torch", main=True,
    ),
    # The bytes of RowNorm and AuON.
    Variant(
        MOMENTUM_ALONE, _sgd, definitions.sgd, "memory",
        bytes_per_element=20, family="torch", main=True, note="a momentum and nothing else",
    ),
)  # fmt: skip
VARIANTS: tuple[Variant, ...] = OF_OURS + OF_TORCH
"""What runs everywhere; :mod:`orthoopt.bench.peers` adds what is installed."""

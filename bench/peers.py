"""Muons of other packages, with what each does in float64. A package that is not installed is listed as missing.

Where a peer's iteration is bfloat16 by construction it runs twice: as it is, and with that patched out here, which is
what its name then says. The patched one does our work on a CPU: float32, torch's coefficients, five steps.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from orthoopt.bench import definitions
from orthoopt.bench.definitions import LR, MOMENTUM, NS_COEFFICIENTS, NS_STEPS, WEIGHT_DECAY
from orthoopt.bench.variants import Named, Variant, bfloat16

_MUON = definitions.Muon()
_HEAVYBALL_OWN = definitions.Muon(
    coefficients=(
        (4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    scale="shape_scaling",
    plain_sum=True,
)  # fmt: skip
_PYTORCH_OPTIMIZER = "pytorch_optimizer.optimizer.muon.base"
_FLOAT32 = "its bfloat16 patched out"


def peers(device: torch.device) -> list[Variant]:
    """All of them; those that cannot run here say why in ``missing``."""
    # Importing heavyball lets products of float32 matrices run in TF32 in the whole process.
    precision = torch.get_float32_matmul_precision()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [*_pytorch_optimizer(), *_heavyball(), *_emerging(device), *_gram_newton_schulz(device)]
    finally:
        torch.set_float32_matmul_precision(precision)


def _peer(package: str, module: str, name: str, **fields: Any) -> Variant:
    """A variant of an importable package; ``missing`` where it is not there, or does not import."""
    fields.setdefault("missing", _why_missing(package, module))
    return Variant(
        name, definition=fields.pop("definition", _MUON), bound="matmul", family="peer", matrices_alone=True, **fields
    )


def _why_missing(package: str, module: str) -> str:
    try:
        version(package)
        importlib.import_module(module)
    except (PackageNotFoundError, ModuleNotFoundError) as error:
        gone = getattr(error, "name", None)
        return "not installed" if gone in (None, package, module) else f"{gone} is not installed"
    except Exception as error:  # whatever a foreign package does when it is imported is its affair
        return f"does not import: {type(error).__name__}: {error}"
    return ""


@contextlib.contextmanager
def _replaced(module: str, **values: Any) -> Iterator[None]:
    """Module attributes set to these values for a while."""
    target = sys.modules[module]
    before = {name: getattr(target, name) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


def pytorch_optimizer_in_float32() -> contextlib.AbstractContextManager[None]:
    """Let pytorch_optimizer's Muon iterate in float32; it must have been imported."""
    functions = ("zero_power_via_newton_schulz_5", "zero_power_via_gram_newton_schulz")
    matrix = sys.modules["pytorch_optimizer.optimizer.utils.matrix"]
    in_float32 = {name: partial(getattr(matrix, name), dtype=torch.float32) for name in functions}
    return _replaced(_PYTORCH_OPTIMIZER, **in_float32)


def _pytorch_optimizer() -> list[Variant]:
    """kozistr/pytorch_optimizer: batched by shape, momentum written into the gradients."""

    def build(named: Named, **options: Any) -> Optimizer:
        group = {"params": [p for _, p in named], "use_muon": True}
        return importlib.import_module("pytorch_optimizer").Muon(
            [group], lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, ns_steps=NS_STEPS,
            ns_coeffs=[NS_COEFFICIENTS], use_adjusted_lr=True, **options,
        )  # fmt: skip

    make = partial(_peer, "pytorch_optimizer", _PYTORCH_OPTIMIZER, keeps_gradients=False)
    in_float32 = {"around": pytorch_optimizer_in_float32, "same_work": True, "note": _FLOAT32}
    gram = partial(build, ns_method="gram_newton_schulz")
    return [
        make("pytorch-optimizer", build=build, iteration=bfloat16, note="iterates in bfloat16"),
        make("pytorch-optimizer float32", build=build, **in_float32),
        make("pytorch-optimizer gram float32", build=gram, **in_float32),
        make(
            "pytorch-optimizer gram, no restart, float32", build=partial(gram, ns_reset_steps=()), **in_float32,
        ),
    ]  # fmt: skip


def _heavyball() -> list[Variant]:
    """HomebrewML/HeavyBall: one matrix after another, compiled by default; scale √max(1, rows/cols)."""
    module = "heavyball.utils"

    def build(named: Named, **options: Any) -> Optimizer:
        return importlib.import_module("heavyball").Muon(
            [p for _, p in named], lr=LR, betas=(MOMENTUM, MOMENTUM), weight_decay=WEIGHT_DECAY, **options
        )

    def in_float32(**further: Any) -> contextlib.AbstractContextManager[None]:
        utils = sys.modules[module]
        rounding = _original("heavyball", utils, "stochastic_round_")

        def round_where_asked(ref: Tensor, source: Tensor | None = None) -> Tensor:
            return ref if source is None else rounding(ref, source)

        # The coefficients are constants inside functions; its older function has torch's.
        legacy = _original("heavyball", utils, "legacy_zeropower_via_newtonschulz5")
        return _replaced(
            module,
            stochastic_round_=_kept("heavyball.round", round_where_asked),
            zeropower_via_newtonschulz5=legacy,
            **further,
        )

    make = partial(_peer, "heavyball", module, keeps_gradients=False)
    forced = partial(build, heavyball_momentum=True)
    shaped = definitions.Muon(scale="shape_scaling")
    note = f"{_FLOAT32}, its older coefficients"
    return [
        make(
            "heavyball", build=build, iteration=bfloat16, definition=_HEAVYBALL_OWN,
            note="bfloat16 by stochastic rounding, its own coefficients, compiled by itself",
        ),
        make(
            "heavyball float32", build=forced, around=in_float32, definition=shaped, same_work=True,
            note=f"{note}, compiled by itself",
        ),
        make(
            "heavyball float32 eager", build=forced, around=partial(in_float32, compile_mode=None), definition=shaped,
            same_work=True, note=f"{note}, not compiled",
        ),
    ]  # fmt: skip


_ORIGINALS: dict[tuple[str, str], Any] = {}
_KEPT: dict[str, Any] = {}


def _original(package: str, module: Any, name: str) -> Any:
    """The attribute as it was before anything was replaced."""
    return _ORIGINALS.setdefault((package, name), getattr(module, name))


def _kept(name: str, value: Callable[..., Any]) -> Callable[..., Any]:
    """The first function made under this name: a new one every step would be compiled every step."""
    return _KEPT.setdefault(name, value)


def _emerging(device: torch.device) -> list[Variant]:
    """NVIDIA-NeMo/Emerging-Optimizers: one matrix after another; its precision says in what it iterates."""

    def build(named: Named, **options: Any) -> Optimizer:
        return importlib.import_module("emerging_optimizers.orthogonalized_optimizers").Muon(
            [p for _, p in named], lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True,
            coefficient_type="simple", num_ns_steps=NS_STEPS, scale_mode="spectral", extra_scale_factor=0.2, **options,
        )  # fmt: skip

    module = "emerging_optimizers.orthogonalized_optimizers"
    make = partial(_peer, "emerging-optimizers", module)
    found = [
        make("emerging-optimizers", build=build, iteration=bfloat16, note="iterates in bfloat16"),
        make(
            "emerging-optimizers float32", build=partial(build, fp32_matmul_prec="highest"), same_work=True,
            note="its option",
        ),
    ]  # fmt: skip
    if device.type == "cuda":
        found.append(
            make("emerging-optimizers syrk", build=partial(build, use_syrk=True), iteration=bfloat16, note="its option")
        )
    return found


def _gram_newton_schulz(device: torch.device) -> list[Variant]:
    """Dao-AILab/gram-newton-schulz: float16 Gram form with quack's kernels; GPUs alone."""

    def build(named: Named) -> Optimizer:
        return importlib.import_module("gram_newton_schulz").Muon(
            [{"params": [p for _, p in named]}], lr=LR, weight_decay=WEIGHT_DECAY, momentum=MOMENTUM,
            ns_coefficients=[NS_COEFFICIENTS] * NS_STEPS, gram_newton_schulz_restart_iterations=[2],
        )  # fmt: skip

    fields: dict[str, Any] = {} if device.type == "cuda" else {"missing": "needs a GPU"}
    return [
        _peer(
            "gram-newton-schulz", "gram_newton_schulz", "gram-newton-schulz", build=build, iteration=bfloat16,
            note="float16 iteration of a bfloat16 momentum", **fields,
        )
    ]  # fmt: skip

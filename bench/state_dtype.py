"""`orthoopt bench state_dtype`: what it costs in accuracy to keep momenta in bfloat16 or eight bits.

Two parts. ``updates``: the same sequences of gradients to an optimizer of each state dtype, and how far its updates
are from those of float32 state. ``training``: a small byte-level transformer trained from the same seeds, with
parameters in float32 and in bfloat16, and its loss on held-out text. Needs torch alone; eight bits need torchao, and
are left out with a word where it is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import math
import statistics
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import orthoopt
from orthoopt import OrthoOpt
from orthoopt.bench import machine
from orthoopt.bench.results_file import results_folder, write_json

RULES = ("spectral", "row_norm", "auon", "adamw")
SPECTRA = {"flat": 0.0, "power 1/2": 0.5, "power 1": 1.0}
"""Singular values of what is common to all gradients of a sequence: k^(−p)."""
ARMS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"state_dtype": "bfloat16"},
    "int8": {"state_dtype": "int8"},
    "bfloat16 parameters": {"dtype": torch.bfloat16},
    "bfloat16 parameters, stochastic": {"dtype": torch.bfloat16, "rounding": "stochastic"},
    "bfloat16 parameters and state, stochastic": {
        "dtype": torch.bfloat16, "rounding": "stochastic", "state_dtype": "bfloat16",
    },
}  # fmt: skip
PLANS = {"muon": 6e-3, "adamw": 2e-3}
"""Plan -> learning rate, as in the recipe's default."""
_WIDTH, _LAYERS, _HEADS, _LENGTH, _BATCH = 64, 2, 4, 64, 16


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, write state_dtype_cpu.json."""
    parser = argparse.ArgumentParser(prog="orthoopt bench state_dtype", description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="of training; the sequences of gradients have 100")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plans", nargs="+", choices=list(PLANS), default=list(PLANS))
    parser.add_argument("--size", type=int, default=128, help="rows of the matrices of updates; columns are twice that")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", help="folder of the result")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    path = results_folder(options.out) / "state_dtype_cpu.json"
    has_torchao = importlib.util.find_spec("torchao") is not None
    if not has_torchao:
        print("torchao is not installed: no figures for int8")
    text = corpus()
    result: dict[str, Any] = {
        "bench": "state_dtype",
        "machine": machine.describe("cpu"),
        "torchao": importlib.metadata.version("torchao") if has_torchao else None,
        "settings": {
            "steps": options.steps, "seeds": options.seeds, "size": options.size,
            "learning_rates": {plan: PLANS[plan] for plan in options.plans},
            "corpus_sha256": hashlib.sha256(text.numpy().tobytes()).hexdigest(), "corpus_bytes": len(text),
            "model": {"width": _WIDTH, "layers": _LAYERS, "heads": _HEADS, "length": _LENGTH, "batch": _BATCH},
        },
        "updates": [],
        "training": [],
    }  # fmt: skip
    print(
        f"{'rule':<10}{'spectrum':<12}{'state':<10}{'momentum':>10}{'update':>10}   relative error, last of 100 steps"
    )
    for rule in RULES:
        for spectrum, power in SPECTRA.items():
            for dtype in ("bfloat16", "int8") if has_torchao else ("bfloat16",):
                row: dict[str, Any] = {"rule": rule, "spectrum": spectrum, "state_dtype": dtype}
                row |= errors(rule, power, dtype, options.size)
                result["updates"].append(row)
                print(f"{rule:<10}{spectrum:<12}{dtype:<10}{row['momentum']:>10.1e}{row['update']:>10.1e}", flush=True)
                write_json(path, result)
    print(f"{'plan':<10}{'arm':<44}{'loss':>8}{'less float32':>14}   mean of {options.seeds} seeds")
    for plan in options.plans:
        losses: dict[str, list[float]] = {}
        for arm, settings in ARMS.items():
            if settings.get("state_dtype") == "int8" and not has_torchao:
                continue
            found = [train(plan, settings, seed, options.steps, text) for seed in range(options.seeds)]
            losses[arm] = [loss for loss, _ in found]
            differences = [a - b for a, b in zip(losses[arm], losses["float32"], strict=True)]
            row = {
                "plan": plan, "arm": arm, "losses": losses[arm], "loss": statistics.mean(losses[arm]),
                "less_float32": statistics.mean(differences), "differences": differences, "state_bytes": found[0][1],
            }  # fmt: skip
            result["training"].append(row)
            print(f"{plan:<10}{arm:<44}{row['loss']:>8.4f}{row['less_float32']:>+14.4f}", flush=True)
            write_json(path, result)
    print(path)
    return 0


def errors(rule: str, power: float, state_dtype: str, size: int) -> dict[str, float]:
    """‖M − M₃₂‖/‖M₃₂‖ of momenta and of updates after 100 gradients, the same for both dtypes."""
    parameters, momenta = [], []
    key = "exp_avg" if rule == "adamw" else "momentum_buffer"
    for dtype in ("float32", state_dtype):
        param = nn.Parameter(torch.zeros(size, 2 * size))
        optimizer = OrthoOpt([{"params": [("w", param)], "rule": rule, "state_dtype": dtype}], lr=1.0, weight_decay=0.0)
        for grad in gradients(power, size):
            param.data.zero_()
            param.grad = grad
            with orthoopt.recording(optimizer):  # so that both take the same way
                optimizer.step()
        parameters.append(param.detach().clone())
        held = optimizer.state[param]
        if key + ".scale" in held:
            from orthoopt.eight_bit import dequantize

            momenta.append(dequantize(held[key], held[key + ".scale"]))
        else:
            momenta.append(held[key].float())
    return {
        name: float((small - wide).norm() / wide.norm())
        for name, (wide, small) in {"momentum": momenta, "update": parameters}.items()
    }


def gradients(power: float, size: int, count: int = 100) -> Iterator[Tensor]:
    """A common part with singular values k^(−power), turning slowly, and as much noise as its root mean square."""
    source = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(size, size, generator=source))[0]
    right = torch.linalg.qr(torch.randn(2 * size, size, generator=source))[0]
    values = torch.arange(1, size + 1).float() ** -power
    common = (left * values) @ right.mT
    drift = torch.randn(size, 2 * size, generator=source) * common.square().mean().sqrt()
    for step in range(count):
        noise = torch.randn(size, 2 * size, generator=source) * common.square().mean().sqrt()
        yield common * math.cos(step / count) + drift * math.sin(step / count) + noise


def corpus() -> Tensor:
    """The modules at the top of the standard library, as bytes."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8)


class Block(nn.Module):
    """Attention and a gated layer, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(_WIDTH, _WIDTH, False) for _ in range(4))
        self.gate_proj, self.up_proj = (nn.Linear(_WIDTH, 3 * _WIDTH, False) for _ in range(2))
        self.down_proj = nn.Linear(3 * _WIDTH, _WIDTH, False)
        self.first_norm, self.second_norm = nn.RMSNorm(_WIDTH), nn.RMSNorm(_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, length, width)`` to the same."""
        y = self.first_norm(x)
        heads = [
            part(y).unflatten(-1, (_HEADS, -1)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
        ]
        mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.o_proj(mixed.transpose(1, 2).flatten(-2))
        y = self.second_norm(x)
        return x + self.down_proj(functional.silu(self.gate_proj(y)) * self.up_proj(y))


class Bytes(nn.Module):
    """A small transformer over bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.positions = nn.Embedding(256, _WIDTH), nn.Embedding(_LENGTH, _WIDTH)
        self.layers = nn.Sequential(*(Block() for _ in range(_LAYERS)))
        self.norm, self.lm_head = nn.RMSNorm(_WIDTH), nn.Linear(_WIDTH, 256, False)
        for param in self.parameters():
            if param.ndim == 2:
                nn.init.normal_(param, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, ``(batch, length, 256)``."""
        places = torch.arange(tokens.shape[1])
        return self.lm_head(self.norm(self.layers(self.embed_tokens(tokens) + self.positions(places))))


def train(plan: str, settings: dict[str, Any], seed: int, steps: int, text: Tensor) -> tuple[float, float]:
    """Loss on held-out text after a run with a linear decay to nothing, nats a byte, and bytes of state.

    Activations are float32 in every arm: weights are widened for the products, so that the arms differ in what the
    optimizer keeps and writes alone.
    """
    torch.manual_seed(seed)
    options = {key: value for key, value in settings.items() if key != "dtype"}
    model, wide = Bytes().to(settings.get("dtype", torch.float32)), Bytes()
    optimizer = OrthoOpt(orthoopt.param_groups(model, plan, lr=PLANS[plan]), **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20) * (1 - step / steps))
    held_out, trained = text[: len(text) // 20], text[len(text) // 20 :]
    source = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        _copy(model, wide)
        batch = _batch(trained, source, _BATCH)
        loss = _loss(wide, batch)
        loss.backward()
        for param, copy in zip(model.parameters(), wide.parameters(), strict=True):
            assert copy.grad is not None
            param.grad = copy.grad.to(param.dtype)
        optimizer.step()
        schedule.step()
    _copy(model, wide)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        losses = [float(_loss(wide, _batch(held_out, source, 64))) for _ in range(16)]
    return statistics.mean(losses), optimizer.diagnostics()["state_bytes"]


def _loss(model: nn.Module, batch: Tensor) -> Tensor:
    return functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def _batch(text: Tensor, source: torch.Generator, size: int) -> Tensor:
    starts = torch.randint(len(text) - _LENGTH - 1, (size, 1), generator=source)
    return text[starts + torch.arange(_LENGTH + 1)].long()


def _copy(model: nn.Module, wide: nn.Module) -> None:
    with torch.no_grad():
        for param, copy in zip(model.parameters(), wide.parameters(), strict=True):
            copy.copy_(param)
            copy.grad = None


if __name__ == "__main__":
    sys.exit(main())

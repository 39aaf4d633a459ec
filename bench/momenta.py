"""Singular values of real momenta: small models trained for a few steps, what ROOT orthogonalizes measured on the way.

Only spectra are kept: Newton-Schulz leaves singular vectors alone, so every error follows from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import orthoopt
from orthoopt.adanewton import Shape, key_of
from orthoopt.fit_coefficients import clipped_spectrum
from orthoopt.optimizer import OrthoOpt
from orthoopt.recipes.corpus import Corpus
from orthoopt.recipes.data import encoded
from orthoopt.recipes.models import build_model
from orthoopt.recipes.tokenizer import load_tokenizer
from orthoopt.views import parse_view

MOMENTUM = 0.95
_LR = {"root": 6e-3, "adamw": 1e-3}
_CLIP_NORM, _WARM_UP = 1.0, 5


@dataclass(frozen=True)
class Source:
    """A model to train, and when to look at its momenta."""

    name: str
    model: str
    config: dict[str, Any]
    plan: str
    """``root`` with Muon's coefficients, so that no momentum depends on a fitted triple; ``adamw`` where a step of
    that would take ten times as long as the gradient."""
    batch: int
    length: int
    fit_at: tuple[int, ...]
    """Steps after which momenta are kept for fitting."""
    held_out_at: tuple[int, ...]
    """Steps after which they are kept for judging, in a run from another seed."""
    vocabulary: int = 1024


def _qwen3(hidden: int, ff: int, heads: int, keys: int, head: int, layers: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "intermediate_size": ff, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": keys, "head_dim": head, "tie_word_embeddings": False,
    }  # fmt: skip


_WIDE: dict[str, Any] = {"plan": "adamw", "batch": 16, "length": 64, "fit_at": (14, 20), "held_out_at": (17, 20)}
_WIDEST: dict[str, Any] = {"plan": "adamw", "batch": 8, "length": 64, "fit_at": (10, 12), "held_out_at": (11, 12)}

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        # The model, batch and vocabulary of the default recipe.
        Source(
            "recipe", "Qwen3Config", _qwen3(128, 352, 4, 2, 32, layers=4), "root", 16, 128,
            (20, 50, 80, 110), (35, 65, 95, 120), 4096,
        ),
        Source(
            "gpt2", "GPT2Config",
            {"n_embd": 768, "n_head": 12, "n_layer": 1, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
            **_WIDE,
        ),
        Source("qwen3_0.6b", "Qwen3Config", _qwen3(1024, 3072, 16, 8, 128, layers=1), **_WIDE),
        Source("2048_3072", "Qwen3Config", _qwen3(2048, 3072, 16, 16, 128, layers=1), **_WIDEST),
        Source("2048_8192", "Qwen3Config", _qwen3(2048, 8192, 16, 16, 128, layers=1), **_WIDEST),
        Source("2048_16384", "Qwen3Config", _qwen3(2048, 16384, 16, 16, 128, layers=1), **_WIDEST),
    )
}  # fmt: skip


def train(
    source: Source, corpus: Corpus, cache: Path, seed: int, collect_at: Sequence[int], most_per_shape: int = 16
) -> dict[Shape, list[Tensor]]:
    """Train from a seed to the last of ``collect_at``; the spectra of clipped momenta seen on the way.

    Args:
        source: the model and how it is trained.
        corpus: the text.
        cache: folder that keeps its tokenizer and tokens.
        seed: of initialization and of the choice of batches.
        collect_at: the steps after which momenta are looked at, counted from 1.
        most_per_shape: a look keeps at most so many matrices of one shape, evenly spread over the layers.

    Returns:
        Shape (shorter side first) -> one vector of singular values a matrix, Frobenius norm 1, float64.
    """
    model, batches = _start(source, corpus, cache, seed)
    coefficients = {"ns_coefficients": "muon"} if source.plan == "root" else {}
    groups = orthoopt.param_groups(model, source.plan, lr=_LR[source.plan], options=coefficients)
    optimizer = OrthoOpt(groups)
    rates = [group["lr"] for group in optimizer.param_groups]
    pieces = _matrix_views(model)
    buffers = {name: torch.zeros_like(param) for name, (param, _) in pieces.items()}
    found: dict[Shape, list[Tensor]] = {}
    model.train()
    for step in range(1, max(collect_at) + 1):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, step / _WARM_UP)
        tokens = next(batches)
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
        for name, (param, _) in pieces.items():
            assert param.grad is not None
            buffers[name].mul_(MOMENTUM).add_(param.grad)
        if step in collect_at:
            _look(pieces, buffers, found, most_per_shape)
        optimizer.step()
        optimizer.zero_grad()
    return found


def _look(
    pieces: Mapping[str, tuple[torch.nn.Parameter, str]],
    buffers: Mapping[str, Tensor],
    found: dict[Shape, list[Tensor]],
    most: int,
) -> None:
    """Add the spectra of what ROOT would be given now: heavy-ball momentum, Nesterov, seen through the views."""
    matrices: dict[Shape, list[Tensor]] = {}
    for name, (param, view) in pieces.items():
        assert param.grad is not None
        for piece in parse_view(view).pieces(param.grad + MOMENTUM * buffers[name]):
            matrices.setdefault(key_of(piece.shape[-2], piece.shape[-1]), []).append(piece)
    for shape, some in matrices.items():
        found.setdefault(shape, []).extend(clipped_spectrum(matrix) for matrix in some[:: -(-len(some) // most)])


def _matrix_views(model: torch.nn.Module) -> dict[str, tuple[torch.nn.Parameter, str]]:
    """The parameters that the plan ``root`` gives to ROOT, with their views."""
    groups = orthoopt.param_groups(model, "root")
    return {name: (param, g["view"]) for g in groups if g["rule"] == "root" for name, param in g["params"]}


def _start(source: Source, corpus: Corpus, cache: Path, seed: int) -> tuple[torch.nn.Module, Iterator[Tensor]]:
    """A new model, and random batches of the corpus without end."""
    tokenizer = load_tokenizer(None, corpus, vocab_size=source.vocabulary, cache=cache)
    text, _, _ = encoded(corpus, tokenizer, cache=cache)
    model = build_model(source.model, source.config, tokenizer, block_size=source.length, seed=seed)
    draw = torch.Generator().manual_seed(seed)

    def batches() -> Iterator[Tensor]:
        while True:
            starts = torch.randint(len(text) - source.length, (source.batch,), generator=draw).tolist()
            rows = [torch.from_numpy(text[start : start + source.length].astype("int64")) for start in starts]
            yield torch.stack(rows)

    return model, batches()

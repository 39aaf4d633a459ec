"""Documents in one block: where each begins, what is scored, and whether a model keeps them apart.

Positions that start again at every document are all that transformers' models are told: they build the mask that
keeps attention within documents from them, when there is neither an attention mask nor a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from orthoopt.recipes.errors import RecipeError

IGNORED = -100
"""The label that transformers' losses leave out."""


def document_positions(input_ids: Tensor, end_of_text: int) -> Tensor:
    """The position of every token in its document.

    Args:
        input_ids: (batch, length). A document ends with `end_of_text`; what is cut off by the block's beginning
            counts from there.

    Returns:
        (batch, length), 0 at the first token of every document and of every block.
    """
    place = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    begins = torch.zeros_like(input_ids, dtype=torch.bool)
    begins[:, 1:] = input_ids[:, :-1] == end_of_text
    return place - torch.where(begins, place, 0).cummax(dim=1).values


@dataclass(frozen=True)
class Collate:
    """Stack blocks into (batch, block_size); the labels are the inputs, which the model shifts by one.

    With `end_of_text` documents are kept apart: `position_ids` start again with each, and its first token, which
    nothing before it in its own document announces, is not scored.
    """

    end_of_text: int | None = None

    def __call__(self, blocks: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The batch that a causal language model is called with."""
        inputs = torch.stack([block["input_ids"] for block in blocks])
        batch = {"input_ids": inputs, "labels": inputs.clone()}
        if self.end_of_text is not None:
            batch["position_ids"] = document_positions(inputs, self.end_of_text)
            batch["labels"].masked_fill_(batch["position_ids"] == 0, IGNORED)
        return batch


def check_boundaries(model: PreTrainedModel, batch_size: int) -> None:
    """Raise `RecipeError` unless attention in packed blocks of this model stays within documents.

    Found out by trying: the logits of a document must be the same alone and after another one. They are compared
    to what the other one changes in them where nothing is said about documents.

    Args:
        model: with any weights, on any device.
        batch_size: how many blocks it will be given at once.
    """
    name = f"--document_boundaries: {type(model).__name__}"
    attention = model.config._attn_implementation or ""
    if attention.startswith("flash") and batch_size > 1:
        raise RecipeError(
            f"{name} with {attention} keeps documents apart in batches of one block alone: "
            "--per_device_train_batch_size 1 with a larger --block_size, or another attention"
        )
    if attention.startswith("flash"):
        return  # transformers' own varlen path; it does not run on every device
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (2, 18), generator=draw).to(model.device)
    positions = torch.cat([torch.arange(11), torch.arange(7)]).expand(2, -1).to(model.device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = model(input_ids=tokens[:, 11:], use_cache=False).logits
            mixed = model(input_ids=tokens, use_cache=False).logits[:, 11:]
            packed = model(input_ids=tokens, position_ids=positions, use_cache=False).logits[:, 11:]
    except TypeError as error:
        raise RecipeError(f"{name} takes no position_ids") from error
    finally:
        model.train(was_training)
    # Float32 rounds 1e-6 of a logit away; what the document before changes is larger by orders of magnitude.
    allowed = max(0.01 * _largest(mixed - alone), 1e-5 * _largest(alone))
    if not _largest(packed - alone) <= allowed:
        raise RecipeError(
            f"{name} does not keep documents apart: one packed after another has other logits than alone "
            f"(by up to {_largest(packed - alone):.1e})"
        )


def _largest(values: Tensor) -> float:
    return float(values.abs().max())

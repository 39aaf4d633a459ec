"""What a corpus becomes: blocks of tokens to train on, blocks to score, and how they are put into batches.

A batch is `{"input_ids": x, "labels": x}`: transformers' causal models shift the labels by one themselves, so
nothing here shifts them. Documents are packed: each ends with the end-of-text token, and a block may hold
several, which see each other unless `document_boundaries` keeps them apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from orthoopt.recipes.blocks import JoinedTokens, TokenBlocks, ValidationBlocks
from orthoopt.recipes.corpus import Corpus
from orthoopt.recipes.encoding import encode, encoded, take_tokens, token_bytes
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.packing import Collate
from orthoopt.recipes.stream import Order, Shards, TokenStream

__all__ = [
    "Collate",
    "PretrainData",
    "TokenBlocks",
    "TokenStream",
    "ValidationBlocks",
    "collate",
    "encode",
    "encoded",
    "prepare_data",
    "token_bytes",
]

collate = Collate()
"""Stacks blocks into (batch, block_size); the labels are the inputs, which the model shifts by one."""


@dataclass(frozen=True)
class PretrainData:
    """What Trainer is given, and what turns nats per token into bits per byte."""

    train: Dataset[dict[str, Tensor]]
    validation: ValidationBlocks
    train_tokens: int | None  # None for a stream
    collate: Collate = field(default_factory=Collate)


def prepare_data(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    *,
    block_size: int,
    eval_blocks: int,
    cache: Path,
    shares: int = 1,
    share: int = 0,
    seed: int = 0,
    shuffle_window: int = 10_000,
    prefetch: int = 64,
    document_boundaries: bool = False,
) -> PretrainData:
    """Encode a corpus, or take its tokens from `cache`, and cut them into blocks.

    Args:
        corpus: text or tokens.
        tokenizer: whose tokens they are or become.
        block_size: tokens a block.
        eval_blocks: the most held-out blocks.
        cache: where the tokens of text that is not streamed are kept.
        shares: processes among which held-out blocks and a stream are divided.
        share: this process among them.
        seed: orders a stream; Trainer orders what is not streamed.
        shuffle_window: documents of a stream that are shuffled among themselves.
        prefetch: blocks of a stream made ahead.
        document_boundaries: keep documents apart.

    Raises:
        RecipeError: training or held-out text fills no block, or documents cannot be told apart.
    """
    end_of_text = tokenizer.eos_token_id if document_boundaries else None
    if document_boundaries and end_of_text is None:
        raise RecipeError("--document_boundaries needs a tokenizer with an end-of-text token")
    train: Any
    row: np.ndarray | JoinedTokens
    tokens: np.ndarray | JoinedTokens
    sizes: np.ndarray | None
    if corpus.streaming:
        tokens, sizes = _held_out(corpus.validation, tokenizer, block_size * eval_blocks)
        # In a stream the training text is a data set in shards.
        order = Order(cast(Shards, corpus.train), seed=seed, window=shuffle_window, share=share, shares=shares)
        train, count = TokenStream(order, tokenizer, block_size, prefetch=prefetch), None
    elif corpus.tokens is not None:
        corpus.tokens.check(tokenizer)
        tokens, sizes, row = corpus.tokens.validation, corpus.tokens.validation_bytes, corpus.tokens.train
        train, count = TokenBlocks(row, block_size, vocabulary=len(tokenizer)), len(row)
    else:
        row, tokens, sizes = encoded(corpus, tokenizer, cache=cache)
        train, count = TokenBlocks(row, block_size), len(row)
    if count is not None:
        _check_length("training", count, block_size)
    _check_length("held-out", len(tokens), block_size)
    held = ValidationBlocks(tokens, sizes, block_size, eval_blocks, shares, end_of_text)
    return PretrainData(train, held, count, Collate(end_of_text))


def _held_out(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` tokens of a stream's held-out documents, a few more or all there are, and their bytes."""
    held = list(take_tokens(encode(documents, tokenizer, count_bytes=True), count))
    tokens = [np.asarray(ids, dtype=np.int64) for ids, _ in held]
    sizes = [size for _, size in held if size is not None]
    return (np.concatenate(tokens), np.concatenate(sizes)) if held else (np.zeros(0, np.int64), np.zeros(0, np.int64))


def _check_length(what: str, tokens: int, block_size: int) -> None:
    if tokens < block_size:
        raise RecipeError(f"the {what} text holds {tokens} tokens, fewer than one block of {block_size}")

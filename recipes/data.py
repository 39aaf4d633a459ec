"""Tokens: documents become one long row of tokens, kept on disk, cut into blocks of `block_size`.

A batch is `{"input_ids": x, "labels": x}`: transformers' causal models shift the labels by one themselves, so
nothing here shifts them. Documents are packed: each ends with the end-of-text token, and a block may hold
several.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset
from transformers import PreTrainedTokenizerFast

from orthoopt.recipes.corpus import Corpus
from orthoopt.recipes.errors import RecipeError

_ENCODE_BATCH = 128  # documents encoded at once, in parallel
_FORMAT = 1  # of the token files; part of their key


@dataclass(frozen=True)
class PretrainData:
    """What Trainer is given, and what turns nats per token into bits per byte."""

    train: Dataset[dict[str, Tensor]]
    validation: ValidationBlocks
    train_tokens: int | None  # None for a stream


class TokenBlocks(Dataset[dict[str, Tensor]]):
    """Equal blocks cut from one row of tokens; the tail that does not fill a block is left out."""

    def __init__(self, tokens: np.ndarray, block_size: int) -> None:
        self.tokens, self.block_size = tokens, block_size

    def __len__(self) -> int:
        return len(self.tokens) // self.block_size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = index * self.block_size
        block = np.array(self.tokens[start : start + self.block_size], dtype=np.int64)
        return {"input_ids": torch.from_numpy(block)}


class ValidationBlocks(Dataset[dict[str, Tensor]]):
    """A fixed set of held-out blocks, spread evenly over the held-out documents.

    The first token of a block is context: `scored_tokens` and `scored_bytes` count all the others. There are
    at most `limit` blocks, and a multiple of `shares`, the processes among which they are divided.
    """

    def __init__(
        self, tokens: np.ndarray, token_bytes: np.ndarray, block_size: int, limit: int, shares: int = 1
    ) -> None:
        blocks = len(tokens) // block_size
        count = min(limit, blocks) // shares * shares
        if not count:
            raise RecipeError(f"{min(limit, blocks)} held-out blocks cannot be divided among {shares} processes")
        chosen = np.arange(count) * blocks // count
        self.blocks = np.stack([tokens[i * block_size : (i + 1) * block_size] for i in chosen]).astype(np.int64)
        scored = np.stack([token_bytes[i * block_size + 1 : (i + 1) * block_size] for i in chosen])
        self.scored_tokens = int(scored.size)
        self.scored_bytes = int(scored.sum())

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": torch.from_numpy(self.blocks[index])}

    def batch_size(self, wanted: int, shares: int) -> int:
        """The largest batch of at most `wanted` blocks that divides the blocks of one of `shares` processes.

        With several processes Trainer fills the last batch with repeated blocks, which would weigh twice.
        """
        if shares == 1:
            return wanted
        return max(size for size in range(1, wanted + 1) if len(self) // shares % size == 0)

    def bits_per_byte(self, loss: float) -> float:
        """Total nats over ln 2 times the bytes scored; `loss` is the mean nats per token of these blocks."""
        return loss * self.scored_tokens / (math.log(2.0) * self.scored_bytes)


class TokenStream(IterableDataset[dict[str, Tensor]]):
    """Blocks packed while documents arrive; starts again when they run out."""

    def __init__(self, documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, block_size: int) -> None:
        self.documents, self.tokenizer, self.block_size = documents, tokenizer, block_size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            row: list[int] = []
            blocks = 0
            for ids, _ in encode(self.documents, self.tokenizer):
                row.extend(ids)
                while len(row) >= self.block_size:
                    blocks += 1
                    yield {"input_ids": torch.tensor(row[: self.block_size])}
                    del row[: self.block_size]
            if not blocks:
                raise RecipeError(f"the whole stream holds fewer than block_size={self.block_size} tokens")


def collate(blocks: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack blocks into (batch, block_size); the labels are the inputs, which the model shifts by one."""
    inputs = torch.stack([block["input_ids"] for block in blocks])
    return {"input_ids": inputs, "labels": inputs.clone()}


def prepare_data(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    *,
    block_size: int,
    eval_blocks: int,
    cache: Path,
    shares: int = 1,
) -> PretrainData:
    """Encode a corpus, or take its tokens from `cache`, and cut them into blocks, for `shares` processes.

    Raises `RecipeError` when training or held-out text fills no block of `block_size` tokens.
    """
    if corpus.streaming:
        held = list(_take_tokens(encode(corpus.validation, tokenizer, count_bytes=True), block_size * eval_blocks))
        tokens = np.concatenate([np.asarray(ids, dtype=np.int64) for ids, _ in held])
        sizes = np.concatenate([size for _, size in held if size is not None])
        _check_length("held-out", len(tokens), block_size)
        stream = TokenStream(corpus.train, tokenizer, block_size)
        return PretrainData(stream, ValidationBlocks(tokens, sizes, block_size, eval_blocks, shares), None)
    train, validation, sizes = encoded(corpus, tokenizer, cache=cache)
    _check_length("training", len(train), block_size)
    _check_length("held-out", len(validation), block_size)
    held_out = ValidationBlocks(validation, sizes, block_size, eval_blocks, shares)
    return PretrainData(TokenBlocks(train, block_size), held_out, len(train))


def encoded(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, *, cache: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training tokens, held-out tokens and the held-out tokens' bytes, memory-mapped from `cache`.

    They are written on first use, kept under the corpus's digest and split and the tokenizer's own text.
    """
    key = json.dumps([_FORMAT, corpus.info.digest, _split_digest(corpus), tokenizer.backend_tokenizer.to_str()])
    folder = cache / "tokens" / hashlib.sha256(key.encode()).hexdigest()[:24]
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = folder.with_name(f".{folder.name}.{os.getpid()}")
        building.mkdir()
        with open(building / "train.bin", "wb") as file:
            for ids, _ in encode(corpus.train, tokenizer):
                file.write(np.asarray(ids, dtype=dtype).tobytes())
        with open(building / "validation.bin", "wb") as file, open(building / "bytes.bin", "wb") as sizes:
            for ids, size in encode(corpus.validation, tokenizer, count_bytes=True):
                file.write(np.asarray(ids, dtype=dtype).tobytes())
                sizes.write(np.asarray(size, dtype=np.uint32).tobytes())
        try:
            os.rename(building, folder)
        except OSError:  # another process was first, with the same tokens
            shutil.rmtree(building)
            if not folder.is_dir():
                raise
    return (
        _map(folder / "train.bin", dtype),
        _map(folder / "validation.bin", dtype),
        _map(folder / "bytes.bin", np.dtype(np.uint32)),
    )


def encode(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, *, count_bytes: bool = False
) -> Iterator[tuple[list[int], np.ndarray | None]]:
    """Yield each document's tokens and end of text, and on request how many bytes each token stands for.

    Text that spells a special token is read as text. End of text stands for zero bytes.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    iterator = iter(documents)
    while texts := list(islice(iterator, _ENCODE_BATCH)):
        if count_bytes:
            for text, encoding in zip(texts, backend.encode_batch(texts, add_special_tokens=False), strict=True):
                size = np.append(token_bytes(text, encoding), [0] * len(end))
                yield encoding.ids + end, size
        else:
            for encoding in backend.encode_batch_fast(texts, add_special_tokens=False):
                yield encoding.ids + end, None


def token_bytes(text: str, encoding: Encoding) -> np.ndarray:
    """How many UTF-8 bytes of `text` each token adds; they sum to the length of the text.

    A character shared by several tokens belongs to the first; characters that no token covers (space that a
    tokenizer drops) to the next, or to the last token of all.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    position = np.concatenate([[0], np.cumsum(widths)])  # of each character's first byte, and of the end
    ends = np.array([end for _, end in encoding.offsets], dtype=np.int64)
    if not len(ends):
        return np.zeros(0, dtype=np.int64)
    reached = np.maximum.accumulate(position[ends])
    reached[-1] = position[-1]
    return np.diff(reached, prepend=0)


def _take_tokens(rows: Iterator[tuple[list[int], Any]], count: int) -> Iterator[tuple[list[int], Any]]:
    for row in rows:
        yield row
        count -= len(row[0])
        if count <= 0:
            return


def _split_digest(corpus: Corpus) -> str:
    """Identify the split: the same documents may be held out by another fraction."""
    digest = hashlib.sha256()
    for text in corpus.validation:
        digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()


def _map(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    if path.stat().st_size == 0:  # mmap refuses empty files
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def _check_length(what: str, tokens: int, block_size: int) -> None:
    if tokens < block_size:
        raise RecipeError(f"the {what} text holds {tokens} tokens, fewer than one block of {block_size}")

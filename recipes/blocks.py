"""Blocks: equal pieces of one row of tokens, to train on and to score."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.packing import document_positions


class JoinedTokens:
    """Several rows of tokens, such as memory-mapped files, read as one; a slice reads what it names alone."""

    def __init__(self, rows: Sequence[np.ndarray]) -> None:
        self.rows = [row for row in rows if len(row)]
        self.ends = np.cumsum([len(row) for row in self.rows], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, place: slice) -> np.ndarray:
        """The tokens from `place.start` to `place.stop`, as int64."""
        start, stop, _ = place.indices(len(self))
        parts: list[np.ndarray] = []
        while start < stop:
            which = int(np.searchsorted(self.ends, start, side="right"))
            first = int(self.ends[which]) - len(self.rows[which])
            parts.append(self.rows[which][start - first : stop - first].astype(np.int64))
            start += len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype=np.int64), *parts])


class TokenBlocks(Dataset[dict[str, Tensor]]):
    """Equal blocks cut from one row of tokens; the tail that does not fill a block is left out.

    With `vocabulary` every block is checked when it is read: a larger id raises `RecipeError`.
    """

    def __init__(self, tokens: np.ndarray | JoinedTokens, block_size: int, vocabulary: int | None = None) -> None:
        self.tokens, self.block_size, self.vocabulary = tokens, block_size, vocabulary

    def __len__(self) -> int:
        return len(self.tokens) // self.block_size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = index * self.block_size
        block = np.array(self.tokens[start : start + self.block_size], dtype=np.int64)
        if self.vocabulary is not None:
            check_ids(block, self.vocabulary, start)
        return {"input_ids": torch.from_numpy(block)}


class ValidationBlocks(Dataset[dict[str, Tensor]]):
    """A fixed set of held-out blocks, spread evenly over the held-out documents.

    The first token of a block is context, and with `end_of_text`, where documents are kept apart, that of every
    document too: `scored_tokens` and `scored_bytes` count all the others. There are at most `limit` blocks, and a
    multiple of `shares`, the processes among which they are divided. Without `token_bytes` nothing is said of bytes.
    """

    def __init__(
        self,
        tokens: np.ndarray | JoinedTokens,
        token_bytes: np.ndarray | None,
        block_size: int,
        limit: int,
        shares: int = 1,
        end_of_text: int | None = None,
    ) -> None:
        blocks = len(tokens) // block_size
        count = min(limit, blocks) // shares * shares
        if not count:
            raise RecipeError(f"{min(limit, blocks)} held-out blocks cannot be divided among {shares} processes")
        starts = (np.arange(count) * blocks // count * block_size).tolist()
        self.blocks = np.stack([tokens[start : start + block_size] for start in starts]).astype(np.int64)
        self.keeps_apart = end_of_text is not None
        scored = np.ones(self.blocks.shape, dtype=bool)
        scored[:, 0] = False
        if end_of_text is not None:
            scored &= document_positions(torch.from_numpy(self.blocks), end_of_text).numpy() > 0
        self.scored_tokens = int(scored.sum())
        if not self.scored_tokens:
            raise RecipeError("no held-out token has another of its document before it in its block")
        self.scored_bytes: int | None = None
        if token_bytes is not None:
            sizes = np.stack([token_bytes[start : start + block_size] for start in starts])
            self.scored_bytes = int(sizes[scored].sum())

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

    def bits_per_byte(self, loss: float) -> float | None:
        """Total nats over ln 2 times the bytes scored; `loss` is the mean nats per token of these blocks.

        None where nobody knows how many bytes the tokens stand for.
        """
        if not self.scored_bytes:
            return None
        return loss * self.scored_tokens / (math.log(2.0) * self.scored_bytes)


def check_ids(tokens: np.ndarray, vocabulary: int, start: int = 0, name: str = "the tokens") -> None:
    """Raise `RecipeError` for a token id that is not below `vocabulary`, with its place after `start`."""
    if len(tokens) and int(tokens.max()) >= vocabulary:
        place = int(np.argmax(tokens >= vocabulary))
        raise RecipeError(
            f"{name}: token {start + place:,} is {int(tokens[place])}, but the vocabulary has {vocabulary:,}: "
            "another --tokenizer made them, or they are of another --token_dtype"
        )

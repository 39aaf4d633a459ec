"""Streams: documents in an order that can be taken up anywhere, packed into blocks ahead of their use.

An epoch has its own order of the shards, and the documents of a process are read in windows, each shuffled among
themselves by a seed of its own. So a place in the stream is a few numbers and one place in one shard: to resume, one
window is read again, and nothing before it. Sources that shuffle in a rolling buffer cannot do that: what was in
the buffer is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from orthoopt.recipes.encoding import encode
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.prefetch import Prefetched

_WINDOW_CHARACTERS = 1 << 26  # a window of long documents ends here, to be held in memory


class Shard(Protocol):
    """The training documents of one shard, from some place on."""

    def __iter__(self) -> Iterator[str]: ...

    def place(self) -> Any:
        """Where the next document begins, as plain data."""
        ...


class Shards(Protocol):
    """A data set in parts, each of which can be opened at a place that was noted before."""

    def __len__(self) -> int: ...

    def open(self, index: int, place: Any = None) -> Shard:
        """Read shard `index`, from its beginning or from what its `place()` said."""
        ...


@dataclass(frozen=True)
class Position:
    """A place in the order of one process: a window, a document in it, a token in that."""

    epoch: int = 0
    shard: int = 0
    """How many of the epoch's shards were read to the end where the window begins."""
    place: Any = None
    """Where in the next shard the window begins; None is its beginning."""
    window: int = 0
    document: int = 0
    token: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)


class Window(NamedTuple):
    """Documents in the order they are trained on, where they begin, and whether an epoch ends with them."""

    start: Position
    documents: list[str]
    next: Position


class Order:
    """The documents of process `share` of `shares`, window by window, without end.

    Where there are as many shards as processes, every process reads shards of its own; else all read everything, and
    each takes every `shares`-th document of the shuffled window.
    """

    def __init__(self, shards: Shards, *, seed: int, window: int, share: int = 0, shares: int = 1) -> None:
        self.shards, self.seed, self.window = shards, seed, window
        self.share, self.shares = share, shares
        self.own_shards = len(shards) >= shares

    def windows(self, position: Position) -> Iterator[Window]:
        """From the window that holds `position` on; raises `RecipeError` when an epoch holds no document."""
        while True:
            empty = position.window == 0
            for window in self._epoch(replace(position, document=0, token=0)):
                empty = empty and not window.documents
                position = window.next
                if empty and position.epoch > window.start.epoch:
                    raise RecipeError(f"the stream has no training document for process {self.share} of {self.shares}")
                yield window

    def _epoch(self, start: Position) -> Iterator[Window]:
        """The rest of an epoch; its last window is followed by the next epoch's first."""
        epoch = start.epoch
        shards = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards)).tolist()
        lane = self.share if self.own_shards else 0  # processes that read the same windows shuffle them alike
        if self.own_shards:
            shards = shards[self.share :: self.shares]
        while start.epoch == epoch:
            texts, following = self._read(start, shards)
            draw = np.random.default_rng([self.seed, epoch, lane, start.window])
            chosen = draw.permutation(len(texts)).tolist()
            if not self.own_shards:
                chosen = chosen[self.share :: self.shares]
            yield Window(start, [texts[index] for index in chosen], following)
            start = following

    def _read(self, start: Position, shards: list[int]) -> tuple[list[str], Position]:
        """The documents of the window that begins at `start`, and where the next one does."""
        texts: list[str] = []
        characters, place = 0, start.place
        for number in range(start.shard, len(shards)):
            shard = self.shards.open(shards[number], place)
            place = None
            for text in shard:
                texts.append(text)
                characters += len(text)
                if len(texts) == self.window or characters >= _WINDOW_CHARACTERS:
                    return texts, Position(start.epoch, number, shard.place(), start.window + 1)
        return texts, Position(start.epoch + 1)


class TokenStream(IterableDataset[dict[str, Tensor]]):
    """Blocks of one process, packed without end from its documents in their order.

    Blocks are made ahead, in a thread, up to `prefetch` of them. `consumed` is told how many were trained on:
    `state_dict()` is the place after those, however many were made.
    """

    def __init__(
        self, order: Order, tokenizer: PreTrainedTokenizerFast, block_size: int, *, prefetch: int = 64
    ) -> None:
        self.order, self.tokenizer, self.block_size, self.prefetch = order, tokenizer, block_size, prefetch
        self.position = Position()
        self._ahead: deque[Position] = deque()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if get_worker_info() is not None:
            raise RecipeError("a stream is read in a thread of its process: --dataloader_num_workers 0")
        start = self.position
        self._ahead.clear()
        made = Prefetched(lambda: self._blocks(start), self.prefetch)
        try:
            for tokens, following in made:
                self._ahead.append(following)
                yield {"input_ids": torch.from_numpy(tokens)}
        finally:
            made.close()

    def consumed(self, blocks: int) -> None:
        """Move on by as many blocks as were trained on."""
        for _ in range(blocks):
            self.position = self._ahead.popleft()

    def state_dict(self) -> dict[str, Any]:
        """Where the first block that was not consumed begins, for which process, as plain data."""
        return {"position": self.position.to_dict(), **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; raises `RecipeError` if the order has other processes, windows, seed or shards."""
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise RecipeError(
                    f"the checkpoint's place in the stream is one of {name} {state.get(name)}, this run has {value}"
                )
        self.position = Position(**state["position"])

    def _identity(self) -> dict[str, int]:
        order = self.order
        return {"processes": order.shares, "process": order.share, "shards": len(order.shards), "seed": order.seed,
                "shuffle_window": order.window}  # fmt: skip

    def _blocks(self, start: Position) -> Iterator[tuple[np.ndarray, Position]]:
        """Blocks from `start` on, each with the place that follows it."""
        row, filled = np.empty(self.block_size, dtype=np.int64), 0
        first, skip = start.document, start.token  # of the first window alone
        tokens, whole = 0, False
        for window in self.order.windows(start):
            if window.start.window == 0:  # an epoch begins; one taken up later may show too few tokens
                tokens, whole = 0, (first, skip) == (0, 0)
            for number, ids in self._encoded(window.documents, first):
                used = skip if number == first else 0
                tokens += len(ids)
                while used < len(ids):
                    taken = min(self.block_size - filled, len(ids) - used)
                    row[filled : filled + taken] = ids[used : used + taken]
                    filled, used = filled + taken, used + taken
                    if filled == self.block_size:
                        yield row, replace(window.start, document=number, token=used)
                        row, filled = np.empty(self.block_size, dtype=np.int64), 0
            first, skip = 0, 0
            if whole and window.next.epoch > window.start.epoch and tokens < self.block_size:
                raise RecipeError(f"the whole stream holds fewer than block_size={self.block_size} tokens")

    def _encoded(self, documents: list[str], first: int) -> Iterator[tuple[int, np.ndarray]]:
        """Number and tokens of every document from number `first` on."""
        for number, (ids, _) in enumerate(encode(documents[first:], self.tokenizer), start=first):
            yield number, np.asarray(ids, dtype=np.int64)

"""`orthoopt bench loader`: tokens per second of reading, encoding and packing, beside those of a training step.

The standard library's source goes through every path the recipes have: encoded alone, streamed from JSON lines and
from Parquet, and read back from files of tokens. The model of the default recipe is trained beside them, alone and fed
by a stream, where the share of the time that it waits for data is measured. Blocks that are not what was
encoded get no time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

import orthoopt
from orthoopt.bench import machine, timing
from orthoopt.bench.results_file import results_folder, write_json
from orthoopt.recipes.arguments import DataArguments, parse
from orthoopt.recipes.blocks import TokenBlocks
from orthoopt.recipes.corpus import load_corpus
from orthoopt.recipes.encoding import encode, map_tokens
from orthoopt.recipes.models import build_model
from orthoopt.recipes.packing import Collate
from orthoopt.recipes.stream import Order, Position, TokenStream
from orthoopt.recipes.tokenizer import load_tokenizer

_CHECKED = 4  # blocks of each stream that are compared to what they should hold
_AHEAD = 32  # batches made ahead, as in a run

Batch = dict[str, Tensor]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write loader_DEVICE.json; 0, or 1 if a stream's blocks were wrong."""
    parser = argparse.ArgumentParser(prog="orthoopt bench loader", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", default="builtin:stdlib", help="text that is written to files and read")
    parser.add_argument("--megabytes", type=float, default=3.0, help="of that text")
    parser.add_argument("--block_size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8, help="blocks in a batch")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, help="torch's; the tokenizer's are RAYON_NUM_THREADS")
    parser.add_argument("--out", help="folder of the result")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    path = results_folder(options.out) / f"loader_{device.type}.json"
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, device, Path(folder))
    write_json(path, result)
    _print(result)
    print(path)
    return 0 if all(result["correct"].values()) else 1


def measure(options: argparse.Namespace, device: torch.device, folder: Path) -> dict[str, Any]:
    """Everything the result file holds."""
    whole = load_corpus(DataArguments(data=options.data))
    most = int(1e6 * options.megabytes)
    corpus = replace(whole, info=replace(whole.info, digest=None), train=list(_first(whole.train, most)))
    tokenizer = load_tokenizer(None, corpus, vocab_size=4096, cache=folder)
    texts = list(corpus.train)
    tokens = np.array([i for ids, _ in encode(texts, tokenizer) for i in ids], dtype=np.uint16)
    tokens.tofile(folder / "tokens.bin")
    tokens = map_tokens(folder / "tokens.bin", tokens.dtype)
    files = _files(texts, folder)
    streams = {kind: _stream(file, tokenizer, options, ahead=1) for kind, file in files.items()}
    correct = {kind: _is_right(stream) for kind, stream in streams.items()}
    blocks = TokenBlocks(tokens, options.block_size)
    step = _training_step(tokenizer, options, device)
    feeds: dict[str, Iterator[Batch]] = {
        f"stream from {kind}": _batches(stream, options, Collate()) for kind, stream in streams.items() if correct[kind]
    }
    feeds["tokens on disk"] = _batches(blocks, options, Collate())
    feeds["tokens on disk, documents apart"] = _batches(blocks, options, Collate(tokenizer.eos_token_id))
    size = options.batch * options.block_size
    batches = max(1, len(tokens) // size)  # about once through: documents are encoded many at a time, so less is luck
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "encoding alone": (lambda: sum(len(ids) for ids, _ in encode(texts, tokenizer)), len(tokens))
    }
    for name, feed in feeds.items():
        calls[name] = partial(_take, feed, batches), batches * size
    fixed = next(feeds["tokens on disk"])
    calls["training step"] = (lambda: step(fixed), size)
    for call, _ in calls.values():
        call()
    runners = [timing.Runner(call) for call, _ in calls.values()]
    samples = timing.time_interleaved(runners, [options.repeats] * len(runners), timing.Stopwatch(device))
    rows = {}
    for (name, (_, count)), times in zip(calls.items(), samples, strict=True):
        seconds = timing.summarize([wall for wall, _ in times])
        rows[name] = {"tokens": count, "tokens_per_second": count / seconds["median"], "seconds": seconds}
    ahead = {f"stream from {kind}": _stream(files[kind], tokenizer, options, ahead=_AHEAD * options.batch)
             for kind in streams if correct[kind]}  # fmt: skip
    fed = {name: _batches(stream, options, Collate()) for name, stream in ahead.items()}
    fed["tokens on disk"] = feeds["tokens on disk"]
    waits = {name: _wait_share(feed, step, options.repeats) for name, feed in fed.items()}
    return {
        "bench": "loader",
        "machine": machine.describe(device),
        "settings": {
            "data": whole.info.to_dict(), "megabytes": options.megabytes, "tokens": len(tokens),
            "block_size": options.block_size, "batch": options.batch, "batches": batches,
            "repeats": options.repeats, "vocabulary": len(tokenizer),
            "model": "the default recipe's", "optimizer": "Symmetry",
        },
        "correct": correct,
        "rates": rows,
        "wait_share": waits,
    }  # fmt: skip


def _take(feed: Iterator[Batch], count: int) -> None:
    """Have so many batches made."""
    for _ in islice(feed, count):
        pass


def _first(texts: Iterable[str], most: int) -> Iterator[str]:
    """The texts until they hold `most` bytes."""
    for text in texts:
        yield text
        most -= len(text.encode())
        if most <= 0:
            return


def _files(texts: list[str], folder: Path) -> dict[str, Path]:
    """The documents as JSON lines and as Parquet."""
    lines, table = folder / "rows.jsonl", folder / "rows.parquet"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": texts}).to_parquet(str(table))
    return {"JSON lines": lines, "Parquet": table}


def _stream(file: Path, tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace, *, ahead: int) -> TokenStream:
    """A stream of which `ahead` blocks are made in the background: 1 to time it, for a pause is time to work in."""
    corpus: Any = load_corpus(DataArguments(data=str(file), streaming=True))
    order = Order(corpus.train, seed=0, window=10_000)
    return TokenStream(order, tokenizer, options.block_size, prefetch=ahead)


def _is_right(stream: TokenStream) -> bool:
    """Whether its first blocks hold the first documents of its order, one after the other."""
    count = _CHECKED * stream.block_size
    expected: list[int] = []
    for ids, _ in encode(next(stream.order.windows(Position())).documents, stream.tokenizer):
        expected += ids
        if len(expected) >= count:
            break
    made = [block["input_ids"].numpy() for block in islice(stream, _CHECKED)]
    return np.concatenate(made).tolist() == expected[:count]


def _batches(source: Any, options: argparse.Namespace, collate: Collate) -> Iterator[Batch]:
    """Batches without end, as Trainer's loader makes them."""
    shuffle = isinstance(source, TokenBlocks)
    loader: DataLoader[Any] = DataLoader(
        source, batch_size=options.batch, shuffle=shuffle, collate_fn=collate, drop_last=shuffle
    )
    while True:
        yield from loader


def _training_step(
    tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace, device: torch.device
) -> Callable[[Batch], None]:
    """One step of the default recipe's model and optimizer on a batch."""
    recipe = parse([])
    model = build_model(
        recipe.model.model, recipe.model_overrides, tokenizer, block_size=options.block_size, seed=0
    ).to(device)  # fmt: skip
    optimizer = orthoopt.Symmetry(model, lr=1e-3)

    def step(batch: Batch) -> None:
        inputs = {name: value.to(device) for name, value in batch.items()}
        model(**inputs, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _wait_share(feed: Iterator[Batch], step: Callable[[Batch], None], steps: int) -> float:
    """The share of the time that training waits for its next batch, after the first, before which a stream opens."""
    step(next(feed))
    waited, began = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(feed)
        waited += time.perf_counter() - asked
        step(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return waited / (time.perf_counter() - began)


def _print(result: dict[str, Any]) -> None:
    step = result["rates"]["training step"]["tokens_per_second"]
    print(f"{'':<34}{'tokens per second':>18}{'p20 to p80 of the time':>26}{'of the step':>13}")
    for name, row in result["rates"].items():
        spread = f"{1e3 * row['seconds']['p20']:.1f} to {1e3 * row['seconds']['p80']:.1f} ms"
        print(f"{name:<34}{row['tokens_per_second']:>18,.0f}{spread:>26}{row['tokens_per_second'] / step:>12.1f}x")
    for name, share in result["wait_share"].items():
        print(f"training on {name}: {share:.1%} of the time spent waiting for data")
    for kind, right in result["correct"].items():
        if not right:
            print(f"the blocks of the stream from {kind} are wrong: not timed")


if __name__ == "__main__":
    sys.exit(main())

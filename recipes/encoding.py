"""Documents become tokens: encoded in parallel, with the bytes each token stands for, and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast

from orthoopt.recipes.corpus import Corpus

ENCODE_BATCH = 128
"""Documents encoded at once, in parallel."""

_FORMAT = 1  # of the token files; part of their key


def encoded(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, *, cache: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training tokens, held-out tokens and the held-out tokens' bytes, memory-mapped from `cache`.

    They are written on first use, kept under the corpus's digest and split and the tokenizer's own text.
    """
    key = json.dumps([_FORMAT, corpus.info.digest, _split_digest(corpus), tokenizer.backend_tokenizer.to_str()])
    folder = cache / "tokens" / hashlib.sha256(key.encode()).hexdigest()[:24]
    dtype = token_dtype(len(tokenizer))
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
        map_tokens(folder / "train.bin", dtype),
        map_tokens(folder / "validation.bin", dtype),
        map_tokens(folder / "bytes.bin", np.dtype(np.uint32)),
    )


def token_dtype(vocabulary: int) -> np.dtype[Any]:
    """The smaller of uint16 and uint32 that holds every id below `vocabulary`."""
    return np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)


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
    while texts := list(islice(iterator, ENCODE_BATCH)):
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


def take_tokens(rows: Iterator[tuple[list[int], Any]], count: int) -> Iterator[tuple[list[int], Any]]:
    """The first encoded documents that hold `count` tokens together, or all there are."""
    for row in rows:
        yield row
        count -= len(row[0])
        if count <= 0:
            return


def map_tokens(path: Path, dtype: np.dtype[Any], offset: int = 0) -> np.ndarray:
    """A file of tokens after its first `offset` bytes, memory-mapped."""
    if path.stat().st_size <= offset:  # mmap refuses empty files
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset)


def _split_digest(corpus: Corpus) -> str:
    """Identify the split: the same documents may be held out by another fraction."""
    digest = hashlib.sha256()
    for text in corpus.validation:
        digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()

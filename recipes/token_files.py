"""Tokens on disk: folders that `orthoopt tokenize` wrote, and plain files of ids as nanoGPT and llm.c have them.

A folder holds `train.bin`, `validation.bin`, the bytes of each held-out token in `validation_bytes.bin`, the
tokenizer, and `tokens.json`, which says what they are. Everything is memory-mapped: a block is read when it is asked
for.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from orthoopt.recipes.arguments import DataArguments
from orthoopt.recipes.blocks import JoinedTokens, check_ids
from orthoopt.recipes.corpus import Corpus, CorpusInfo
from orthoopt.recipes.encoding import encode, map_tokens, take_tokens, token_dtype
from orthoopt.recipes.errors import RecipeError

SIDECAR = "tokens.json"
_FORMAT = 1
_LLM_C = {20240520: "uint16", 20240801: "uint32"}  # first number of llm.c's header -> what its tokens are
_LLM_C_HEADER = 1024  # bytes
_SAMPLES, _SAMPLE = 64, 1 << 16  # pieces of plain files that are checked at once, and their tokens


@dataclass(frozen=True)
class TokenFiles:
    """Training and held-out tokens, and what is known of them."""

    train: JoinedTokens
    validation: JoinedTokens
    validation_bytes: np.ndarray | None
    """The bytes that each held-out token stands for, where they were counted."""
    tokenizer: str | None
    """The folder of the tokenizer that made them, if it is there."""
    vocabulary: int | None
    end_of_text: int | None

    def check(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raise `RecipeError` if the tokens cannot be this tokenizer's."""
        if self.vocabulary is not None and (self.vocabulary, self.end_of_text) != (
            len(tokenizer),
            tokenizer.eos_token_id,
        ):
            raise RecipeError(
                f"--tokenizer has {len(tokenizer)} tokens and end of text {tokenizer.eos_token_id}, the one that "
                f"made these tokens {self.vocabulary} and {self.end_of_text}; without --tokenizer that one is used"
            )
        for name, tokens in (("training tokens", self.train), ("held-out tokens", self.validation)):
            for start in np.linspace(0, max(len(tokens) - _SAMPLE, 0), _SAMPLES, dtype=np.int64).tolist():
                check_ids(tokens[start : start + _SAMPLE], len(tokenizer), start, name)


def token_corpus(arguments: DataArguments) -> Corpus:
    """The tokens that `--data tokens:PATH` names, as a corpus without text.

    Raises `RecipeError` when files are missing, cut off, or said to be what they are not.
    """
    path = Path(arguments.data.removeprefix("tokens:"))
    if not path.exists():
        raise RecipeError(f"--data {arguments.data}: there is no such file or folder")
    folder = path if path.is_dir() else path.parent
    if (folder / SIDECAR).is_file():
        return _described(folder)
    return _plain(path, arguments)


def write_tokens(
    folder: Path, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, *, most: int | None, held_out: int | None
) -> dict[str, Any]:
    """Encode a corpus into a folder that `--data tokens:FOLDER` reads; returns what tokens.json says.

    Args:
        folder: must not exist; it appears when all of it is written.
        corpus: documents to train on and documents held out.
        tokenizer: is saved with the tokens.
        most: stop after the document that reaches this many training tokens; None takes all.
        held_out: the same for held-out tokens.

    Raises:
        RecipeError: the folder exists, or the corpus is made of tokens already.
    """
    if folder.exists():
        raise RecipeError(f"{folder} exists: give the folder of tokens another name")
    if corpus.tokens is not None:
        raise RecipeError(f"{corpus.info.name} holds tokens already")
    building = folder.with_name(f".{folder.name}.{os.getpid()}")
    building.mkdir(parents=True)
    dtype = token_dtype(len(tokenizer))
    try:
        train = _write(building, "train", encode(corpus.train, tokenizer), dtype, most)
        validation = _write(
            building, "validation", encode(corpus.validation, tokenizer, count_bytes=True), dtype, held_out
        )
        tokenizer.save_pretrained(building / "tokenizer")
        described = {
            "format": _FORMAT,
            "dtype": dtype.name,
            "vocab_size": len(tokenizer),
            "end_of_text": tokenizer.eos_token_id,
            "corpus": corpus.info.to_dict(),
            "train": train,
            "validation": validation,
        }
        (building / SIDECAR).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        building.rename(folder)
    except BaseException:
        shutil.rmtree(building)
        raise
    return described


def _write(
    folder: Path,
    split: str,
    rows: Iterator[tuple[list[int], np.ndarray | None]],
    dtype: np.dtype[Any],
    most: int | None,
) -> dict[str, Any]:
    """Write one split's tokens, and its bytes where they are counted; returns how many there are and their digest."""
    digest, tokens, documents = hashlib.sha256(), 0, 0
    taken: Iterable[tuple[list[int], np.ndarray | None]] = rows if most is None else take_tokens(rows, most)
    sizes = None
    with open(folder / f"{split}.bin", "wb") as file:
        for ids, size in taken:
            data = np.asarray(ids, dtype=dtype).astype(dtype.newbyteorder("<")).tobytes()
            file.write(data)
            digest.update(data)
            tokens, documents = tokens + len(ids), documents + 1
            if size is not None:
                sizes = sizes or open(folder / f"{split}_bytes.bin", "wb")  # noqa: SIM115  # closed below
                sizes.write(size.astype("<u4").tobytes())
    if sizes is not None:
        sizes.close()
    return {"tokens": tokens, "documents": documents, "sha256": digest.hexdigest()}


def _described(folder: Path) -> Corpus:
    """A folder with tokens.json."""
    source = folder / SIDECAR
    try:
        described = json.loads(source.read_text(encoding="utf-8"))
        dtype, vocabulary = np.dtype(described["dtype"]).newbyteorder("<"), int(described["vocab_size"])
        counts = {split: int(described[split]["tokens"]) for split in ("train", "validation")}
        text = CorpusInfo(**described["corpus"])
        digests = [described[split]["sha256"] for split in ("train", "validation")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{source} does not describe tokens: {type(error).__name__}: {error}") from error
    rows = {}
    for split, count in counts.items():
        rows[split] = _map(folder / f"{split}.bin", dtype)
        if len(rows[split]) != count:
            raise RecipeError(f"{folder / split}.bin holds {len(rows[split]):,} tokens, {SIDECAR} says {count:,}")
    sizes = folder / "validation_bytes.bin"
    files = TokenFiles(
        JoinedTokens([rows["train"]]),
        JoinedTokens([rows["validation"]]),
        _map(sizes, np.dtype("<u4")) if sizes.is_file() else None,
        str(folder / "tokenizer"),
        vocabulary,
        described["end_of_text"],
    )
    digest = hashlib.sha256(json.dumps([vocabulary, *digests]).encode()).hexdigest()
    info = CorpusInfo(f"tokens:{text.name}", digest, text.files, text.bytes, text.python)
    return Corpus(info, (), (), tokens=files)


def _plain(path: Path, arguments: DataArguments) -> Corpus:
    """One .bin, its last part held out, or a folder of them, those with "val" in their names held out."""
    files = sorted(path.rglob("*.bin")) if path.is_dir() else [path]
    if not files:
        raise RecipeError(f"--data {arguments.data}: the folder has neither {SIDECAR} nor .bin files")
    dtype = np.dtype(arguments.token_dtype).newbyteorder("<")
    rows = {file: _map(file, dtype, arguments.token_header_bytes, arguments) for file in files}
    held = [row for file, row in rows.items() if "val" in file.name]
    train = [row for file, row in rows.items() if "val" not in file.name]
    if path.is_dir() and not (held and train):
        raise RecipeError(
            f"--data {arguments.data}: needs files to train on and files to hold out, which have 'val' in their "
            f"names; found {[file.name for file in files[:4]]}"
        )
    if not path.is_dir():
        (row,) = rows.values()
        cut = int(len(row) * (1.0 - arguments.validation_fraction))
        train, held = [row[:cut]], [row[cut:]]
    tokens = TokenFiles(JoinedTokens(train), JoinedTokens(held), None, None, None, None)
    return Corpus(CorpusInfo(f"tokens:{path.name}", None, len(files), None, None), (), (), tokens=tokens)


def _map(file: Path, dtype: np.dtype[Any], header: int = 0, arguments: DataArguments | None = None) -> np.ndarray:
    """A memory-mapped file, whose size must fit."""
    try:
        size = file.stat().st_size
        if arguments is not None and header == 0 and size >= _LLM_C_HEADER:
            first = int(np.fromfile(file, dtype="<i4", count=1)[0])
            if first in _LLM_C:
                raise RecipeError(
                    f"{file} has llm.c's header: --token_header_bytes {_LLM_C_HEADER} --token_dtype {_LLM_C[first]}"
                )
        if size < header or (size - header) % dtype.itemsize:
            raise RecipeError(f"{file}: {size:,} bytes are not {header} of header and whole tokens of {dtype.name}")
        return map_tokens(file, dtype, header)
    except OSError as error:
        raise RecipeError(f"{file} cannot be read: {error.strerror}") from error

"""The tokenizer: a byte-level BPE trained once on the corpus and kept, or any tokenizer of the Hub."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from orthoopt.recipes.corpus import Corpus
from orthoopt.recipes.errors import RecipeError

END_OF_TEXT = "<|endoftext|>"
# A vocabulary of this kind no longer changes with more text than this, and a stream has no end.
_MAX_TRAINING_CHARACTERS = 200_000_000


def cache_root(cache_dir: str | None) -> Path:
    """The cache folder: `cache_dir`, or `orthoopt` under `$XDG_CACHE_HOME` or `~/.cache`."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "orthoopt"


def load_tokenizer(name: str | None, corpus: Corpus, *, vocab_size: int, cache: Path) -> PreTrainedTokenizerFast:
    """Load tokenizer `name`, or the corpus's own BPE of `vocab_size` tokens, trained if not yet in `cache`.

    A corpus of tokens brings the tokenizer that made them, if it is known. Raises `RecipeError` when it is not, or
    `name` cannot be loaded or has no Rust backend, which token byte counts need.
    """
    if name is None and corpus.tokens is not None:
        name = corpus.tokens.tokenizer
        if name is None:
            raise RecipeError(f"--data {corpus.info.name} does not say whose tokens they are: give --tokenizer")
    if name is None:
        return _wrap(trained_bpe(corpus, vocab_size=vocab_size, cache=cache))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise RecipeError(f"--tokenizer {name}: cannot be loaded: {str(error).splitlines()[0]}") from error
    if not tokenizer.is_fast:
        raise RecipeError(f"--tokenizer {name}: {type(tokenizer).__name__} has no backend in `tokenizers`")
    return tokenizer


def trained_bpe(corpus: Corpus, *, vocab_size: int, cache: Path) -> Tokenizer:
    """The byte-level BPE of a corpus, from `cache` or trained now (about 5 s for 12 MB on two cores).

    Kept under the corpus's digest, the vocabulary size and the tokenizers version; that of a stream, which
    has no digest, is never kept.
    """
    digest = corpus.info.digest
    path = cache / "tokenizers" / f"{(digest or '')[:16]}-{vocab_size}-{tokenizers.__version__}.json"
    if digest is not None and path.is_file():
        return Tokenizer.from_file(str(path))
    tokenizer = train_bpe(corpus.train, vocab_size)
    if digest is not None:
        write_atomically(path, tokenizer.to_str().encode())
    return tokenizer


def train_bpe(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE whose first token is end of text; the same documents give the same tokenizer."""
    tokenizer = Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_limited(documents), trainer)
    return tokenizer


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees all of it or none, also when two processes write it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".{path.name}.{os.getpid()}")
    building.write_bytes(data)
    os.replace(building, path)


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def _limited(documents: Iterable[str]) -> Iterator[str]:
    seen = 0
    for text in documents:
        yield text
        seen += len(text)
        if seen > _MAX_TRAINING_CHARACTERS:
            return

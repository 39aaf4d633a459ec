"""`orthoopt tokenize`: encode a recipe's corpus once, into a folder that `--data tokens:FOLDER` reads.

orthoopt tokenize tokens/ --data text:corpus/
orthoopt tokenize fineweb-edu/ qwen3-0.6b --max_tokens 1000000000     # a config, and what is to be changed in it
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orthoopt.recipes.arguments import parse
from orthoopt.recipes.corpus import load_corpus
from orthoopt.recipes.errors import RecipeError, exit_status
from orthoopt.recipes.token_files import write_tokens
from orthoopt.recipes.tokenizer import cache_root, load_tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv` (by default the command line's) and encode; 0, 2 for a wrong option, 130 if interrupted."""
    options, rest = _parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    return exit_status("orthoopt tokenize", lambda: print(tokenize(Path(options.folder), rest, options.max_tokens)))


def tokenize(folder: Path, argv: Sequence[str], max_tokens: int | None) -> str:
    """Write the tokens of the corpus that a recipe's `[CONFIG] [--key value ...]` name; returns what was counted."""
    if max_tokens is not None and max_tokens < 1:
        raise RecipeError(f"--max_tokens must be at least 1, got {max_tokens}")
    if folder.exists():
        raise RecipeError(f"{folder} exists: give the folder of tokens another name")
    # A recipe wants to know how long a stream is trained on; here it is read once.
    data = parse([*argv, "--max_steps", "1"]).data
    corpus = load_corpus(data)
    if corpus.tokens is not None:
        raise RecipeError(f"--data {data.data} holds tokens already")
    tokenizer = load_tokenizer(data.tokenizer, corpus, vocab_size=data.vocab_size, cache=cache_root(data.cache_dir))
    held_out = data.block_size * data.eval_blocks if corpus.streaming else None  # else all that is held out
    began = time.perf_counter()
    described = write_tokens(folder, corpus, tokenizer, most=max_tokens, held_out=held_out)
    return _summary(folder, described, time.perf_counter() - began)


def _summary(folder: Path, described: dict[str, Any], seconds: float) -> str:
    total = sum(described[split]["tokens"] for split in ("train", "validation"))
    lines = [
        (split, f"{described[key]['tokens']:,} tokens, {described[key]['documents']:,} documents")
        for split, key in (("training", "train"), ("held out", "validation"))
    ]
    lines += [
        ("vocabulary", f"{described['vocab_size']:,}, end of text {described['end_of_text']}, {described['dtype']}"),
        ("encoded", f"{seconds:.1f} s, {total / max(seconds, 1e-9):,.0f} tokens per second"),
        ("use", f"orthoopt pretrain --data tokens:{folder}"),
    ]
    return "\n".join(f"{name:<10}  {text}" for name, text in lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orthoopt tokenize",
        usage="orthoopt tokenize FOLDER [CONFIG] [--max_tokens N] [--key value ...]",
        description="Encode the corpus of a recipe into FOLDER, for --data tokens:FOLDER. CONFIG and --key value are "
        "those of orthoopt pretrain: --data, --tokenizer, --vocab_size, --streaming, --validation_fraction and so on.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="FOLDER", help="where the tokens go; must not exist")
    parser.add_argument("--max_tokens", type=int, help="stop after the document that reaches this many")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

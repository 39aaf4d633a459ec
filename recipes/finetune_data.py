"""What `orthoopt finetune` reads: text, packed as for pretraining, or rows of prompts or chats; and the old text."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from orthoopt.recipes import report
from orthoopt.recipes.arguments import Arguments, DataArguments
from orthoopt.recipes.corpus import Corpus, CorpusInfo, hold_out, load_corpus
from orthoopt.recipes.data import PretrainData, ValidationBlocks, prepare_data
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.examples import CHATML, Encoder, Examples, HeldOutExamples, encode_rows
from orthoopt.recipes.finetune_arguments import FinetuneArguments
from orthoopt.recipes.tokenizer import cache_root, load_tokenizer

_COLUMNS = {"prompt": ("prompt", "completion"), "messages": ("messages",)}


def load(
    arguments: Arguments, options: FinetuneArguments, tokenizer: PreTrainedTokenizerFast
) -> tuple[Corpus, PretrainData, str]:
    """Corpus, encoded data and format (text, prompt or messages) of `--data`.

    Raises `RecipeError` when there is nothing there, or rows are not of the format.
    """
    kind = _kind(arguments.data, options.format)
    if kind == "text":
        corpus = load_corpus(arguments.data)
        return corpus, _packed(corpus, arguments, arguments.data, tokenizer), kind
    rows = _rows(arguments.data, kind)
    fraction = arguments.data.validation_fraction
    keys = [hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).hexdigest() for row in rows]
    held = hold_out(keys, fraction)
    name = Path(arguments.data.data).name
    encoder = Encoder(tokenizer, arguments.data.block_size, options.completions_only)
    parts = [[row for row, out in zip(rows, held, strict=True) if out is wanted] for wanted in (False, True)]
    train, validation = (list(encode_rows(part, kind, encoder, name)) for part in parts)
    for what, given, part in (("training", parts[0], train), ("held-out", parts[1], validation)):
        if not given:
            raise RecipeError(
                f"--data {name}: all {len(rows)} rows are one and the same: some must differ, to be held out"
            )
        if not part:
            raise RecipeError(f"--data {name}: no {what} row has a completion within --block_size {encoder.block_size}")
    digest = hashlib.sha256("".join(keys).encode()).hexdigest()
    size = sum(int(example.sizes.sum()) for example in (*train, *validation))
    info = CorpusInfo(name, digest, len(rows), size, None)
    scored = HeldOutExamples(validation, arguments.data.eval_blocks, arguments.training.world_size)
    return Corpus(info, [], []), PretrainData(Examples(train), scored, sum(len(e.ids) for e in train)), kind


def load_old(
    arguments: Arguments, options: FinetuneArguments, tokenizer: PreTrainedTokenizerFast
) -> tuple[str, ValidationBlocks] | None:
    """Name and held-out blocks of what `--also_evaluate` says; None where there is nothing to say.

    In a run's folder that is the text the run held out: its data, fraction and length of blocks.
    """
    wanted = options.also_evaluate
    if wanted == "none":
        return None
    named = dataclasses.replace(arguments.data, data=wanted, data_config=None, validation_split=None)
    found = _trained_on(Path(options.model)) if wanted == "auto" else named
    if found is None:
        return None
    data = dataclasses.replace(found, cache_dir=arguments.data.cache_dir, eval_blocks=arguments.data.eval_blocks)
    corpus = load_corpus(data)
    return corpus.info.name, _packed(corpus, arguments, data, tokenizer).validation


def load_own_tokenizer(options: FinetuneArguments, name: str | None) -> PreTrainedTokenizerFast:
    """The model's tokenizer, or `name`'s, with the chat template that was asked for."""
    source = name or options.model
    nothing = Corpus(CorpusInfo("", None, None, None, None), [], [])
    tokenizer = load_tokenizer(source, nothing, vocab_size=0, cache=Path())
    if options.chat_template == "chatml":
        tokenizer.chat_template = CHATML
    elif options.chat_template is not None:
        path = Path(options.chat_template)
        if not path.is_file():
            raise RecipeError(
                f"--chat_template {options.chat_template}: no such file, and the only one by name is chatml"
            )
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    return tokenizer


def _packed(
    corpus: Corpus, arguments: Arguments, data: DataArguments, tokenizer: PreTrainedTokenizerFast
) -> PretrainData:
    return prepare_data(
        corpus,
        tokenizer,
        block_size=data.block_size,
        eval_blocks=data.eval_blocks,
        cache=cache_root(data.cache_dir),
        shares=arguments.training.world_size,
    )


def _trained_on(model: Path) -> DataArguments | None:
    """The data of the run that made a model, which lies in its folder; None for other folders and other data."""
    run = report.read_json(model.parent / report.RUN) if (model / "config.json").is_file() else None
    if not isinstance(run, Mapping) or run.get("finetune", {}).get("format", "text") != "text":
        return None
    known = {field.name for field in dataclasses.fields(DataArguments)}
    given = {key: value for key, value in run["arguments"]["data"].items() if key in known}
    return None if given.get("streaming") else DataArguments(**given)


def _kind(data: DataArguments, wanted: str) -> str:
    """The format asked for, or that of a local JSONL file's first row."""
    if wanted != "auto":
        return wanted
    path = Path(data.data)
    if path.suffix != ".jsonl" or not path.is_file():
        return "text"
    first = next(iter(_json_lines(path, limit=1)), {})
    return next((kind for kind, columns in _COLUMNS.items() if set(columns) <= first.keys()), "text")


def _rows(data: DataArguments, kind: str) -> Sequence[Mapping[str, Any]]:
    """All rows of a local JSONL file, or of what `datasets` reads: Parquet or a Hub name."""
    path = Path(data.data)
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise RecipeError(f"--data {data.data}: there is no such file")
        return _json_lines(path)
    try:
        import datasets
    except ImportError as error:
        raise RecipeError(f"--data {data.data} needs the `datasets` package: pip install datasets") from error
    try:
        if path.exists() or path.suffix in (".json", ".parquet"):
            reader = "parquet" if path.suffix == ".parquet" else "json"
            rows = datasets.load_dataset(reader, data_files=[str(path)], split="train")
        else:
            rows = datasets.load_dataset(data.data, data.data_config, split=data.data_split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RecipeError(f"--data {data.data}: cannot be loaded: {reason}") from error
    missing = [column for column in _COLUMNS[kind] if column not in rows.column_names]
    if missing:
        raise RecipeError(
            f"--format {kind} needs the column {missing[0]!r}; {data.data} has {sorted(rows.column_names)}"
        )
    return list(rows.select_columns(list(_COLUMNS[kind])))


def _json_lines(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise RecipeError(f"--data {path}, line {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise RecipeError(f"--data {path}, line {number}: an object is needed, got {type(row).__name__}")
            rows.append(row)
            if len(rows) == limit:
                break
    return rows

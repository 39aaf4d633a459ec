"""Corpora through the `datasets` library: a Hub name, JSONL or Parquet; imported only when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orthoopt.recipes.arguments import DataArguments
from orthoopt.recipes.corpus import Corpus, CorpusInfo, hold_out, share
from orthoopt.recipes.errors import RecipeError, nearest

if TYPE_CHECKING:
    import datasets

_READ_BATCH = 1000  # rows read at once


class DatasetShards:
    """The texts of a streamed dataset's shards, without empty rows and without those that are held out.

    Iterated, it yields all of them in the dataset's own order. `held_out` is the share of documents left out, by the
    hash that holds out rows of a table too, or None if the dataset has a split for that.
    """

    def __init__(self, rows: Any, column: str, held_out: float | None = None) -> None:
        self.rows, self.column, self.held_out = rows.select_columns([column]), column, held_out

    def __len__(self) -> int:
        return int(self.rows.num_shards)

    def __iter__(self) -> Iterator[str]:
        return iter(DatasetShard(self.rows, self))

    def open(self, index: int, place: dict[str, Any] | None = None) -> DatasetShard:
        """One shard, from its beginning or from what its `place()` was."""
        rows = self.rows.shard(num_shards=len(self), index=index)
        if place is not None:
            rows.load_state_dict(place)
        return DatasetShard(rows, self)

    def is_held_out(self, text: str) -> bool:
        """Whether a document is not trained on; equal documents are all held out or none."""
        return self.held_out is not None and share(_key(text)) < self.held_out


class DatasetShard:
    """The training texts of some rows, which know how far they were read."""

    def __init__(self, rows: Any, shards: DatasetShards) -> None:
        self.rows, self.shards = rows, shards

    def __iter__(self) -> Iterator[str]:
        for row in self.rows:
            text = row[self.shards.column]
            if text and not self.shards.is_held_out(text):
                yield text

    def place(self) -> dict[str, Any]:
        """Where the row after the last one that was read begins."""
        return self.rows.state_dict()


class HeldOut:
    """The texts that a dataset's shards leave out."""

    def __init__(self, shards: DatasetShards) -> None:
        self.shards = shards

    def __iter__(self) -> Iterator[str]:
        for text in TextColumn(self.shards.rows, self.shards.column):
            if self.shards.is_held_out(text):
                yield text


class TextColumn:
    """The texts of one column, read in batches; can be iterated again and again. Empty rows are left out."""

    def __init__(self, rows: Any, column: str) -> None:
        self.rows, self.column = rows, column

    def __iter__(self) -> Iterator[str]:
        for batch in self.rows.select_columns([self.column]).iter(batch_size=_READ_BATCH):
            yield from (text for text in batch[self.column] if text)


def dataset_corpus(arguments: DataArguments, files: list[Path]) -> Corpus:
    """Load a dataset by name, or from local JSONL or Parquet `files`.

    The digest reads every row once. Raises `RecipeError` when `datasets` is not installed, or the dataset, a
    split or the column does not exist.
    """
    try:
        import datasets
    except ImportError as error:
        raise RecipeError(f"--data {arguments.data} needs the `datasets` package: pip install datasets") from error
    try:
        if files:
            kind = "parquet" if files[0].suffix == ".parquet" else "json"
            splits = datasets.load_dataset(
                kind,
                data_files={arguments.data_split: [str(file) for file in files]},
                streaming=arguments.streaming,
            )
        else:
            splits = datasets.load_dataset(arguments.data, arguments.data_config, streaming=arguments.streaming)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RecipeError(f"--data {arguments.data}: cannot be loaded: {reason}") from error
    train = _split(splits, arguments.data_split, "data_split")
    _check_column(train, arguments.text_column)
    held_name = arguments.validation_split or next(
        (name for name in ("validation", "test") if name in splits and name != arguments.data_split), None
    )
    validation = None if held_name is None else _split(splits, held_name, "validation_split")
    name = Path(arguments.data).name if files else "/".join(filter(None, (arguments.data, arguments.data_config)))
    if arguments.streaming:
        return _stream(name, train, validation, arguments)
    return _table(name, train, validation, arguments)


def _table(name: str, train: datasets.Dataset, validation: datasets.Dataset | None, arguments: DataArguments) -> Corpus:
    column = arguments.text_column
    digest, keys, size = hashlib.sha256(), [], 0
    for text in _all_rows(train, column):
        size += _add(digest, text)
        keys.append(_key(text))
    rows = len(keys)
    if validation is None:
        held = hold_out(keys, arguments.validation_fraction)
        kept = train.select([index for index, flag in enumerate(held) if not flag])
        validation = train.select([index for index, flag in enumerate(held) if flag])
    else:
        kept = train
        for text in _all_rows(validation, column):
            size += _add(digest, text)
            rows += 1
    info = CorpusInfo(name, digest.hexdigest(), rows, size, None)
    return Corpus(info, TextColumn(kept, column), TextColumn(validation, column))


def _stream(name: str, train: Any, validation: Any | None, arguments: DataArguments) -> Corpus:
    """The same documents are held out as when the dataset is not streamed."""
    column = arguments.text_column
    shards = DatasetShards(train, column, None if validation is not None else arguments.validation_fraction)
    held = HeldOut(shards) if validation is None else TextColumn(validation, column)
    return Corpus(CorpusInfo(name, None, None, None, None), shards, held, streaming=True)


def _key(text: str) -> str:
    """What decides whether a row is held out."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _all_rows(rows: Any, column: str) -> Iterator[str]:
    """Every row's text, empty ones too, so that positions are row numbers."""
    for batch in rows.select_columns([column]).iter(batch_size=_READ_BATCH):
        yield from (text or "" for text in batch[column])


def _add(digest: Any, text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")
    digest.update(f"{len(data)}\0".encode())
    digest.update(data)
    return len(data)


def _split(splits: Any, name: str, option: str) -> Any:
    if name not in splits:
        raise RecipeError(f"--{option} {name!r} is not one of {sorted(splits)}{nearest(name, splits)}")
    return splits[name]


def _check_column(rows: Any, column: str) -> None:
    columns: Iterable[str] | None = rows.column_names
    if columns is None:  # a stream may not know its columns before its first row
        columns = [key for row in islice(rows, 1) for key in row]
    if column not in columns:
        raise RecipeError(f"--text_column {column!r} is not one of {sorted(columns)}{nearest(column, columns)}")

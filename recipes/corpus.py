"""Where the text comes from: the standard library's own source, local files, or a Hugging Face dataset.

A corpus is two collections of documents, training and held out, and a sha256 of both. Whole documents are
held out, chosen by a hash of their name (files) or text (rows), so that the split does not depend on order or
machine.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orthoopt.recipes.arguments import DataArguments
from orthoopt.recipes.errors import RecipeError

if TYPE_CHECKING:
    from orthoopt.recipes.token_files import TokenFiles

# Folders of the standard library that are tests, other people's packages, or gone in later releases.
_NOT_SOURCE = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "__pycache__"}
# If one of these is missing, the library is stripped or zipped.
_SENTINELS = (
    "argparse.py",
    "asyncio/tasks.py",
    "dataclasses.py",
    "email/message.py",
    "json/decoder.py",
    "typing.py",
)
_DATASET_SUFFIXES = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class CorpusInfo:
    """What a result row says about its corpus; rows with unequal digests must not be compared."""

    name: str
    digest: str | None  # sha256 of every document with its name; None for a stream
    files: int | None  # documents: files, or rows of a dataset
    bytes: int | None  # UTF-8
    python: str | None  # release, for the standard library alone

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents held out; both can be iterated more than once.

    Those of a stream to train on are also in shards, for :class:`orthoopt.recipes.stream.Order`. A corpus of tokens
    has no documents.
    """

    info: CorpusInfo
    train: Iterable[str]
    validation: Iterable[str]
    streaming: bool = False
    tokens: TokenFiles | None = None


def load_corpus(arguments: DataArguments) -> Corpus:
    """Find the corpus that `--data` names. Raises `RecipeError` when there is nothing there."""
    name = arguments.data
    fraction = arguments.validation_fraction
    if name == "builtin:stdlib":
        return stdlib_corpus(fraction)
    if name == "builtin:manual":
        from orthoopt.recipes.manual import manual_corpus

        return manual_corpus(fraction)
    if name.startswith("builtin:"):
        raise RecipeError(f"--data {name!r}: the builtin corpora are 'builtin:stdlib' and 'builtin:manual'")
    if name.startswith("text:"):
        return text_corpus(Path(name.removeprefix("text:")), fraction)
    if name.startswith("tokens:"):
        from orthoopt.recipes.token_files import token_corpus

        return token_corpus(arguments)
    path = Path(name)
    if not path.exists() and (path.suffix in (".txt", *_DATASET_SUFFIXES) or name.startswith((".", "/", "~"))):
        raise RecipeError(f"--data {name}: there is no such file or folder")
    if path.suffix in _DATASET_SUFFIXES or (path.is_dir() and _dataset_files(path)) or not path.exists():
        from orthoopt.recipes.hub import dataset_corpus

        return dataset_corpus(arguments, _dataset_files(path))
    return text_corpus(path, fraction)


def stdlib_corpus(fraction: float) -> Corpus:
    """Every `.py` file of this Python's standard library without its tests, in order of relative path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    missing = [name for name in _SENTINELS if not (root / name).is_file()]
    if missing:
        raise RecipeError(
            f"builtin:stdlib needs the source of the standard library, but {root} has no "
            f"{', '.join(missing)}: this Python ships it stripped or zipped. Use another Python, "
            "or --data text:PATH."
        )
    files = [path for path in root.rglob("*.py") if not _NOT_SOURCE & set(path.relative_to(root).parts)]
    # The build's own configuration (compiler flags, paths) differs between machines of one release.
    # The manual, generated into one file larger than any other three, would outweigh all else held out.
    files = [path for path in files if not path.name.startswith("_sysconfigdata") and path.name != "topics.py"]
    return _from_files("builtin:stdlib", root, files, fraction, python=platform.python_version())


def text_corpus(path: Path, fraction: float) -> Corpus:
    """One text file, its last part held out, or every UTF-8 file under a folder that is not hidden."""
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
        files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        return _from_files(f"text:{path.name}", path, files, fraction)
    if not path.is_file():
        raise RecipeError(f"--data text:{path}: there is no such file or folder")
    text = _read(path)
    if text is None:
        raise RecipeError(f"--data text:{path}: the file is not UTF-8 text")
    cut = text.find("\n", int(len(text) * (1.0 - fraction))) + 1
    if cut == 0 or cut == len(text):
        raise RecipeError(f"--data text:{path}: too short to hold out its last {fraction:.0%}")
    data = text.encode()
    info = CorpusInfo(f"text:{path.name}", hashlib.sha256(data).hexdigest(), 1, len(data), None)
    return Corpus(info, [text[:cut]], [text[cut:]])


def share(key: str) -> float:
    """A fixed pseudo-random number in [0, 1) for a document; those below the fraction are held out."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2.0**64


def hold_out(keys: Sequence[str], fraction: float) -> list[bool]:
    """Which documents are held out, by their keys: at least one, and not all."""
    shares = [share(key) for key in keys]
    if len(shares) < 2:
        raise RecipeError(f"a corpus needs at least 2 documents to hold one out, got {len(shares)}")
    return [value < fraction or value == min(shares) for value in shares]


def _from_files(name: str, root: Path, files: list[Path], fraction: float, python: str | None = None) -> Corpus:
    digest, names, texts, size = hashlib.sha256(), [], [], 0
    for path in sorted(files, key=lambda file: file.relative_to(root).as_posix()):
        text = _read(path)
        if not text:
            continue
        names.append(path.relative_to(root).as_posix())
        texts.append(text)
        data = text.encode()
        size += len(data)
        digest.update(f"{names[-1]}\0{len(data)}\0".encode())
        digest.update(data)
    if len(texts) < 2:
        raise RecipeError(f"--data {name}: found {len(texts)} UTF-8 text files under {root}, at least 2 are needed")
    held = hold_out(names, fraction)
    info = CorpusInfo(name, digest.hexdigest(), len(texts), size, python)
    return Corpus(info, list(_pick(texts, held, False)), list(_pick(texts, held, True)))


def _pick(texts: list[str], held: list[bool], wanted: bool) -> Iterator[str]:
    return (text for text, flag in zip(texts, held, strict=True) if flag is wanted)


def _read(path: Path) -> str | None:
    """The text of a file, or None when it is not UTF-8 text."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _dataset_files(path: Path) -> list[Path]:
    """The JSONL or Parquet files that a path means; empty for a Hub name."""
    if path.is_file():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix in _DATASET_SUFFIXES) if path.is_dir() else []
    if len({_DATASET_SUFFIXES[file.suffix] for file in files}) > 1:
        raise RecipeError(f"--data {path}: holds JSON and Parquet files; name one kind, or use text:{path}")
    return files

from __future__ import annotations

import hashlib
import json
import random
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthoopt.recipes import corpus as corpora
from orthoopt.recipes.arguments import DataArguments
from orthoopt.recipes.corpus import hold_out, load_corpus, share, stdlib_corpus, text_corpus
from orthoopt.recipes.errors import RecipeError

TEXTS = [f"def f{i}(x):\n    return x * {i} + naïve[{i % 7}]  # 東京 🎈\n" * 3 for i in range(40)]

# The standard library, from a stand-in folder.


def make_library(root: Path) -> Path:
    for name in (*corpora._SENTINELS, "queue.py", "sched.py", "this.py"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n" * 20)
    for name in ("test/test_x.py", "json/tests/t.py", "site-packages/numpy/x.py", "lib2to3/a.py",
    "__pycache__/a.py",
                 "_sysconfigdata__linux.py", "pydoc_data/topics.py"):  # fmt: skip
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not source\n")
    return root


def test_the_library_is_its_source_without_tests_and_packages(tmp_path, monkeypatch) -> None:
    root = make_library(tmp_path / "lib")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    corpus = stdlib_corpus(0.3)
    assert corpus.info.files == len(corpora._SENTINELS) + 3
    assert "not source" not in "".join([*corpus.train, *corpus.validation])
    assert corpus.info.bytes == sum(len(text) for text in [*corpus.train, *corpus.validation])
    assert corpus.validation and corpus.train
    again = stdlib_corpus(0.3)
    assert again.info == corpus.info and list(again.validation) == list(corpus.validation)
    (root / "queue.py").write_text("changed\n")
    assert stdlib_corpus(0.3).info.digest != corpus.info.digest


def test_a_stripped_library_is_named(tmp_path, monkeypatch) -> None:
    root = make_library(tmp_path / "lib")
    (root / "typing.py").unlink()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    with pytest.raises(RecipeError, match=r"has no typing\.py: .*--data text:PATH"):
        stdlib_corpus(0.05)


# Holding out.


@given(st.lists(st.text(), min_size=2, unique=True), st.floats(0.01, 0.5), st.randoms())
def test_what_is_held_out_depends_on_the_names_alone(
    names: list[str], fraction: float, shuffler: random.Random
) -> None:
    held = {name for name, flag in zip(names, hold_out(names, fraction), strict=True) if flag}
    other = names.copy()
    shuffler.shuffle(other)
    assert held == {name for name, flag in zip(other, hold_out(other, fraction), strict=True) if flag}
    assert held
    assert {name for name in names if share(name) < fraction} <= held


def test_about_the_fraction_is_held_out() -> None:
    held = hold_out([f"file{i}.py" for i in range(4000)], 0.05)
    assert 150 < sum(held) < 250  # 200 expected, standard deviation 14


def test_a_folder_is_read_in_order_and_hidden_or_binary_files_are_left_out(tmp_path) -> None:
    for name, data in (
        ("b.txt", b"bb"),
        ("a/z.md", b"zz"),
        (".git/x", b"no"),
        ("c.bin", b"\xff\xfe"),
        ("d", b"a\0b"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    corpus = text_corpus(tmp_path, 0.1)
    assert sorted([*corpus.train, *corpus.validation]) == ["bb", "zz"]


def test_the_end_of_a_single_file_is_held_out(tmp_path) -> None:
    text = "".join(f"line {i}\n" for i in range(100))
    (tmp_path / "a.txt").write_text(text)
    corpus = load_corpus(DataArguments(data=str(tmp_path / "a.txt"), validation_fraction=0.1))
    (train,), (validation,) = corpus.train, corpus.validation
    assert train + validation == text and train.endswith("\n") and 9 <= validation.count("\n") <= 11


# Datasets.


def rows() -> list[dict[str, str]]:
    return [{"text": text, "id": str(number)} for number, text in enumerate(TEXTS)]


def write_jsonl(path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
def test_jsonl_and_parquet_hold_the_same_corpus(tmp_path, monkeypatch, kind) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "in").mkdir()
    path = write_jsonl(tmp_path / "in" / "rows.jsonl")
    if kind == "parquet":
        path = tmp_path / "rows.parquet"
        datasets.Dataset.from_list(rows()).to_parquet(str(path))
    corpus = load_corpus(DataArguments(data=str(path.parent if kind == "folder" else path), validation_fraction=0.2))
    assert sorted([*corpus.train, *corpus.validation]) == sorted(TEXTS)
    assert list(corpus.validation) == [text for text in TEXTS if text in set(corpus.validation)]
    assert corpus.info.files == 40 and corpus.info.bytes == sum(len(text.encode()) for text in TEXTS)
    data = b"".join(f"{len(text.encode())}\0".encode() + text.encode() for text in TEXTS)
    assert corpus.info.digest == hashlib.sha256(data).hexdigest()  # whatever the file format


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_dataset_by_name_uses_its_validation_split(monkeypatch, streaming) -> None:
    import datasets

    tables = {
        "train": datasets.Dataset.from_list(rows()[5:]),
        "validation": datasets.Dataset.from_list(rows()[:5]),
    }
    asked = []

    def load_dataset(*args, streaming):
        asked.append(args)
        return {name: table.to_iterable_dataset() for name, table in tables.items()} if streaming else tables

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    options = DataArguments(data="someone/corpus", data_config="en", streaming=streaming)
    corpus = load_corpus(options)
    assert asked == [("someone/corpus", "en")]
    assert corpus.info.name == "someone/corpus/en" and corpus.streaming is streaming
    assert list(corpus.validation) == TEXTS[:5] and sorted(corpus.train) == sorted(TEXTS[5:])
    with pytest.raises(RecipeError, match="did you mean 'text'"):
        load_corpus(DataArguments(data="someone/corpus", streaming=streaming, text_column="texts"))
    with pytest.raises(RecipeError, match="did you mean 'validation'"):
        load_corpus(DataArguments(data="someone/corpus", streaming=streaming, validation_split="valid"))


def test_a_missing_file_and_a_dataset_that_cannot_be_loaded_are_named(monkeypatch) -> None:
    import datasets

    for name in ("nowhere.jsonl", "nowhere.txt", "./nowhere", "/nowhere/at/all"):
        with pytest.raises(RecipeError, match=f"{name}: there is no such file or folder"):
            load_corpus(DataArguments(data=name))

    def load_dataset(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(RecipeError, match="a/b: cannot be loaded: Dataset 'a/b' doesn't exist"):
        load_corpus(DataArguments(data="a/b"))

from __future__ import annotations

import hashlib
import json
import random
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from orthoopt.recipes import corpus as corpora
from orthoopt.recipes.arguments import DataArguments
from orthoopt.recipes.corpus import (
    Corpus,
    CorpusInfo,
    hold_out,
    load_corpus,
    share,
    stdlib_corpus,
    text_corpus,
)
from orthoopt.recipes.data import (
    TokenStream,
    ValidationBlocks,
    collate,
    encode,
    encoded,
    prepare_data,
    token_bytes,
)
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.tokenizer import END_OF_TEXT, cache_root, load_tokenizer, train_bpe, trained_bpe

TEXTS = [f"def f{i}(x):\n    return x * {i} + naïve[{i % 7}]  # 東京 🎈\n" * 3 for i in range(40)]


def corpus_of(texts: list[str], digest: str | None = "0" * 64, streaming: bool = False) -> Corpus:
    info = CorpusInfo("test", digest, len(texts), sum(len(text.encode()) for text in texts), None)
    return Corpus(info, texts[4:], texts[:4], streaming)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return load_tokenizer(None, corpus_of(TEXTS), vocab_size=300, cache=tmp_path_factory.mktemp("cache"))


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


# Tokenizer.


def test_the_same_text_trains_the_same_tokenizer_and_it_is_kept(tmp_path) -> None:
    corpus = corpus_of(TEXTS)
    made = trained_bpe(corpus, vocab_size=300, cache=tmp_path).to_str()
    assert made == train_bpe(corpus.train, 300).to_str()
    (path,) = (tmp_path / "tokenizers").iterdir()  # no temporary file is left
    kept = json.loads(path.read_text())
    kept["added_tokens"][0]["content"] = "<|kept|>"
    path.write_text(json.dumps(kept))
    assert "<|kept|>" in trained_bpe(corpus, vocab_size=300, cache=tmp_path).get_vocab()
    assert "<|kept|>" not in trained_bpe(corpus, vocab_size=301, cache=tmp_path).get_vocab()
    assert "<|kept|>" not in trained_bpe(corpus_of(TEXTS, "1" * 64), vocab_size=300, cache=tmp_path).get_vocab()


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root(None) == tmp_path / "orthoopt"
    assert cache_root("x") == Path("x")


@given(st.text())
def test_any_text_survives_and_special_tokens_in_it_are_text(tokenizer, text: str) -> None:
    ids, _ = next(encode([text + END_OF_TEXT], tokenizer))
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[:-1]
    assert tokenizer.decode(ids[:-1]) == text + END_OF_TEXT


# Bytes of tokens.


@given(st.text())
def test_bytes_of_tokens_sum_to_the_text(tokenizer, text: str) -> None:
    ids, sizes = next(encode([text], tokenizer, count_bytes=True))
    assert sizes is not None and len(sizes) == len(ids)
    assert sizes[-1] == 0 and (sizes >= 0).all()
    assert sizes.sum() == len(text.encode())


@given(st.text(st.characters(max_codepoint=127)))
def test_an_ascii_token_stands_for_as_many_bytes_as_it_spells(tokenizer, text: str) -> None:
    ids, sizes = next(encode([text], tokenizer, count_bytes=True))
    assert sizes is not None
    assert sizes[:-1].tolist() == [len(tokenizer.decode([i])) for i in ids[:-1]]


@given(st.text(st.sampled_from("aé東🎈 ")))
def test_bytes_a_tokenizer_drops_or_rewrites_still_count(text: str) -> None:
    backend = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    backend.normalizer = normalizers.NFKD()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(["a é"], trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False))
    encoding = backend.encode(text)
    sizes = token_bytes(text, encoding)
    assert sizes.sum() == (len(text.encode()) if len(encoding.ids) else 0)


# Blocks.


def test_tokens_are_kept_and_read_back(tokenizer, tmp_path) -> None:
    corpus = corpus_of(TEXTS)
    train, validation, sizes = encoded(corpus, tokenizer, cache=tmp_path)
    rows = [ids for ids, _ in encode(corpus.train, tokenizer)]
    assert train.tolist() == [i for row in rows for i in row]
    assert sizes.sum() == sum(len(text.encode()) for text in corpus.validation)
    assert len(validation) == len(sizes)
    # Read, not made again: the documents are gone.
    kept = Corpus(corpus.info, [], corpus.validation)
    assert np.array_equal(encoded(kept, tokenizer, cache=tmp_path)[0], train)
    assert [path.name for path in (tmp_path / "tokens").iterdir() if path.name.startswith(".")] == []
    # Another split of the same documents is another entry.
    other = Corpus(corpus.info, TEXTS[:-4], TEXTS[-4:])
    assert not np.array_equal(encoded(other, tokenizer, cache=tmp_path)[0], train)


def test_blocks_follow_each_other(tokenizer, tmp_path) -> None:
    corpus = corpus_of(TEXTS)
    data = prepare_data(corpus, tokenizer, block_size=16, eval_blocks=5, cache=tmp_path)
    train, _, _ = encoded(corpus, tokenizer, cache=tmp_path)
    blocks = [data.train[i]["input_ids"] for i in range(len(data.train))]
    assert torch.cat(blocks).tolist() == train[: len(blocks) * 16].tolist()
    assert len(train) - 16 < len(blocks) * 16 <= len(train)
    batch = collate([data.train[0], data.train[1]])
    assert batch["input_ids"].shape == (2, 16) and torch.equal(batch["labels"], batch["input_ids"])


@given(blocks=st.integers(1, 50), limit=st.integers(1, 60), block_size=st.integers(2, 9), tail=st.integers(0, 1))
def test_validation_blocks_are_distinct_whole_and_spread(blocks: int, limit: int, block_size: int, tail: int) -> None:
    tokens = np.arange(blocks * block_size + tail)
    held = ValidationBlocks(tokens, np.full(len(tokens), 3), block_size, limit)
    firsts = [int(held[i]["input_ids"][0]) for i in range(len(held))]
    assert len(held) == min(limit, blocks) == len(set(firsts))
    assert all(first % block_size == 0 for first in firsts) and firsts[0] == 0
    gaps = np.diff(firsts) // block_size
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
    assert held.scored_tokens == len(held) * (block_size - 1) and held.scored_bytes == 3 * held.scored_tokens


@given(count=st.integers(1, 300), wanted=st.integers(1, 20), shares=st.integers(1, 8))
def test_processes_evaluate_equal_whole_batches(count: int, wanted: int, shares: int) -> None:
    tokens = np.zeros(count * 2, dtype=np.int64)
    if count < shares:
        with pytest.raises(RecipeError, match=f"among {shares} processes"):
            ValidationBlocks(tokens, tokens, 2, count, shares)
        return
    held = ValidationBlocks(tokens, tokens, 2, count, shares)
    assert count - shares < len(held) <= count
    size = held.batch_size(wanted, shares)
    assert 1 <= size <= wanted
    assert shares == 1 or len(held) % (shares * size) == 0


def test_bits_per_byte_of_a_uniform_guess(tokenizer, tmp_path) -> None:
    """ln 256 nats for each token of one byte is 8 bits per byte."""
    held = ValidationBlocks(np.arange(20), np.ones(20, dtype=np.uint32), 5, 4)
    assert held.bits_per_byte(float(np.log(256))) == pytest.approx(8.0, rel=1e-12)


def test_a_stream_packs_the_same_blocks_and_starts_again(tokenizer, tmp_path) -> None:
    corpus = corpus_of(TEXTS, digest=None, streaming=True)
    data = prepare_data(corpus, tokenizer, block_size=16, eval_blocks=3, cache=tmp_path)
    tokens = [i for ids, _ in encode(corpus.train, tokenizer) for i in ids]
    count = len(tokens) // 16
    stream = iter(data.train)
    first = [next(stream)["input_ids"].tolist() for _ in range(count)]
    assert [i for block in first for i in block] == tokens[: count * 16]
    assert next(stream)["input_ids"].tolist() == first[0]
    assert len(data.validation) == 3 and data.train_tokens is None
    assert not list(tmp_path.iterdir())  # a stream is not kept


def test_too_little_text_is_named(tokenizer, tmp_path) -> None:
    with pytest.raises(RecipeError, match="fewer than one block of 4096"):
        prepare_data(corpus_of(TEXTS[:8]), tokenizer, block_size=4096, eval_blocks=1, cache=tmp_path)
    with pytest.raises(RecipeError, match="fewer than block_size=4096"):
        next(iter(TokenStream(TEXTS[:1], tokenizer, 4096)))

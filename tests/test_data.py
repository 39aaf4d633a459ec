from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from orthoopt.recipes.corpus import Corpus, CorpusInfo
from orthoopt.recipes.data import (
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


def corpus_of(texts: list[str], digest: str | None = "0" * 64) -> Corpus:
    info = CorpusInfo("test", digest, len(texts), sum(len(text.encode()) for text in texts), None)
    return Corpus(info, texts[4:], texts[:4])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return load_tokenizer(None, corpus_of(TEXTS), vocab_size=300, cache=tmp_path_factory.mktemp("cache"))


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


def test_too_little_text_is_named(tokenizer, tmp_path) -> None:
    with pytest.raises(RecipeError, match="fewer than one block of 4096"):
        prepare_data(corpus_of(TEXTS[:8]), tokenizer, block_size=4096, eval_blocks=1, cache=tmp_path)

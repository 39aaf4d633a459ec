"""Tokens on disk: written by `orthoopt tokenize`, or plain files, and what of them is checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orthoopt.cli import main as orthoopt_main
from orthoopt.recipes import pretrain, token_files, tokenize_command
from orthoopt.recipes.arguments import DataArguments, parse
from orthoopt.recipes.blocks import JoinedTokens
from orthoopt.recipes.corpus import load_corpus
from orthoopt.recipes.data import PretrainData, encode, encoded, prepare_data
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def folder(sandbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sandbox's text as tokens."""
    folder = tmp_path_factory.mktemp("tokens") / "made"
    flags = f"--data text:{sandbox.corpus} --cache_dir {sandbox.cache} --vocab_size 300 --validation_fraction 0.2"
    assert orthoopt_main(["tokenize", str(folder), *flags.split()]) == 0
    return folder


def prepared(data: str, tmp_path: Path, **options) -> PretrainData:
    """Blocks of 32 of what `--data` names."""
    tokenizer_name = options.pop("tokenizer", None)
    corpus = load_corpus(DataArguments(data=data, **options))
    tokenizer = load_tokenizer(tokenizer_name, corpus, vocab_size=300, cache=tmp_path)
    return prepare_data(corpus, tokenizer, block_size=32, eval_blocks=24, cache=tmp_path)


@given(st.lists(st.integers(0, 7), max_size=6), st.data())
def test_joined_rows_read_as_one(sizes: list[int], data: st.DataObject) -> None:
    whole = np.arange(sum(sizes), dtype=np.uint16)
    joined = JoinedTokens(np.split(whole, np.cumsum(sizes)[:-1]) if sizes else [])
    start, stop = (data.draw(st.integers(0, len(whole) + 2)) for _ in range(2))
    assert len(joined) == len(whole)
    if len(whole):
        part = joined[start:stop]
        assert part.tolist() == whole[start:stop].tolist()


def test_a_folder_of_tokens_is_the_text_it_was_made_of(folder, sandbox, tmp_path, capsys) -> None:
    flags = sandbox.flags(tmp_path / "run")
    arguments = parse(flags)
    corpus, tokenizer, text = pretrain.load_data(arguments)
    tokens = prepared(f"tokens:{folder}", tmp_path)
    assert (
        tokens.train_tokens == text.train_tokens == json.loads((folder / "tokens.json").read_text())["train"]["tokens"]
    )
    assert all(torch.equal(tokens.train[i]["input_ids"], text.train[i]["input_ids"]) for i in range(len(text.train)))
    assert np.array_equal(tokens.validation.blocks, text.validation.blocks)
    assert tokens.validation.scored_bytes == text.validation.scored_bytes
    again = load_corpus(DataArguments(data=f"tokens:{folder}"))
    assert load_tokenizer(None, again, vocab_size=300, cache=tmp_path).get_vocab() == tokenizer.get_vocab()
    assert again.info.bytes == corpus.info.bytes and len(again.info.digest or "") == 64
    assert sorted(path.name for path in folder.iterdir()) == [
        "tokenizer", "tokens.json", "train.bin", "validation.bin", "validation_bytes.bin"
    ]  # fmt: skip


def test_what_tokenize_prints_and_refuses(folder, sandbox, tmp_path, capsys) -> None:
    flags = ["--data", f"text:{sandbox.corpus}", "--cache_dir", str(sandbox.cache), "--vocab_size", "300"]
    out = tmp_path / "few"
    assert tokenize_command.main([str(out), *flags, "--max_tokens", "500"]) == 0
    printed = capsys.readouterr().out
    described = json.loads((out / "tokens.json").read_text())
    count = described["train"]["tokens"]
    assert f"{count:,} tokens" in printed and "tokens per second" in printed and f"--data tokens:{out}" in printed
    corpus = load_corpus(DataArguments(data=f"text:{sandbox.corpus}"))
    tokenizer = load_tokenizer(None, corpus, vocab_size=300, cache=sandbox.cache)
    last = [ids for ids, _ in encode(corpus.train, tokenizer)][described["train"]["documents"] - 1]
    assert 500 <= count < 500 + len(last)
    for arguments, message in (
        ([str(folder), *flags], "exists"),
        ([str(tmp_path / "x"), "--data", f"tokens:{folder}"], "holds tokens already"),
        ([str(tmp_path / "x"), *flags, "--max_tokens", "0"], "at least 1, got 0"),
        ([str(tmp_path / "x"), "--dta", "y"], "did you mean '--data'"),
    ):
        assert tokenize_command.main(arguments) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".x", "x"))] == []


def test_an_error_while_encoding_leaves_no_folder(sandbox, tmp_path, monkeypatch, capsys) -> None:
    def broken(*args, **kwargs):
        yield [1, 2], None
        raise KeyboardInterrupt

    monkeypatch.setattr(token_files, "encode", broken)
    flags = ["--data", f"text:{sandbox.corpus}", "--cache_dir", str(sandbox.cache), "--vocab_size", "300"]
    assert tokenize_command.main([str(tmp_path / "made"), *flags]) == 130
    assert list(tmp_path.iterdir()) == []


# Plain files, as nanoGPT and llm.c write them.


def plain(tmp_path: Path, folder: Path, dtype: str = "uint16", header: int = 0) -> tuple[Path, np.ndarray]:
    row = np.fromfile(folder / "train.bin", dtype="<u2").astype(dtype)
    row = row[: len(row) // 4 * 4]  # whole halves of whole uint32, for the tests of wrong types
    (tmp_path / "in").mkdir()
    half = len(row) // 2
    for name, part in (
        ("fineweb_train_0.bin", row[:half]),
        ("fineweb_train_1.bin", row[half:]),
        ("val.bin", row[:1000]),
    ):
        (tmp_path / "in" / name).write_bytes(b"\7" * header + part.tobytes())
    return tmp_path / "in", row


@pytest.mark.parametrize(("dtype", "header"), [("uint16", 0), ("uint32", 1024)])
def test_plain_files_in_a_folder_are_joined(folder, tmp_path, dtype, header) -> None:
    place, row = plain(tmp_path, folder, dtype, header)
    options = {"tokenizer": str(folder / "tokenizer"), "token_dtype": dtype, "token_header_bytes": header}
    data = prepared(f"tokens:{place}", tmp_path, **options)
    blocks = [i for index in range(len(data.train)) for i in data.train[index]["input_ids"].tolist()]
    assert data.train_tokens == len(row) and blocks == row[: len(blocks)].tolist()
    assert data.validation.scored_bytes is None
    held = data.validation.blocks.reshape(-1)
    assert held[:32].tolist() == row[:32].tolist()


def test_the_end_of_one_plain_file_is_held_out(folder, tmp_path) -> None:
    place, _ = plain(tmp_path, folder)
    file = place / "fineweb_train_0.bin"
    row = np.fromfile(file, dtype=np.uint16)
    data = prepared(f"tokens:{file}", tmp_path, tokenizer=str(folder / "tokenizer"), validation_fraction=0.25)
    cut = int(len(row) * 0.75)
    assert data.train_tokens == cut
    assert data.validation.blocks[0].tolist() == row[cut : cut + 32].tolist()


def test_a_run_without_bytes_leaves_bits_per_byte_out(folder, sandbox, tmp_path, capsys) -> None:
    place, _ = plain(tmp_path, folder)
    flags = sandbox.flags(tmp_path / "run", "--data", f"tokens:{place}", "--tokenizer", str(folder / "tokenizer"))
    flags += ["--max_steps", "2", "--eval_steps", "2", "--generate_sample", "false", "--save_final", "false"]
    assert pretrain.main(flags) == 0
    printed = capsys.readouterr().out
    assert "bits per byte" not in printed and "tokens scored" in printed
    assert json.loads((tmp_path / "run" / "results.json").read_text())["eval_bits_per_byte"] is None


def test_wrong_tokens_are_named(folder, tmp_path) -> None:
    place, row = plain(tmp_path, folder)
    tokenizer = str(folder / "tokenizer")
    with pytest.raises(RecipeError, match="does not say whose tokens they are: give --tokenizer"):
        prepared(f"tokens:{place}", tmp_path)
    with pytest.raises(RecipeError, match="no such file or folder"):
        prepared("tokens:/nowhere", tmp_path)
    with pytest.raises(RecipeError, match=r"but the vocabulary has 300.*--token_dtype"):
        prepared(f"tokens:{place}", tmp_path, tokenizer=tokenizer, token_dtype="uint32")
    with pytest.raises(RecipeError, match="whole tokens of uint32"):
        (place / "fineweb_train_0.bin").write_bytes(row[:33].tobytes())
        prepared(f"tokens:{place}", tmp_path, tokenizer=tokenizer, token_dtype="uint32")
    (place / "fineweb_train_0.bin").write_bytes(np.array([20240520, *[1] * 300], dtype=np.int32).tobytes())
    with pytest.raises(RecipeError, match="--token_header_bytes 1024 --token_dtype uint16"):
        prepared(f"tokens:{place}", tmp_path, tokenizer=tokenizer)
    (place / "val.bin").unlink()
    with pytest.raises(RecipeError, match="'val' in their names"):
        prepared(f"tokens:{place}", tmp_path, tokenizer=tokenizer, token_header_bytes=4)


def test_a_block_is_checked_when_it_is_read(folder, tmp_path, monkeypatch) -> None:
    """Long files are sampled at the start; an id between the samples is found before it reaches the embedding."""
    place, row = plain(tmp_path, folder)
    monkeypatch.setattr(token_files, "_SAMPLE", 2)
    monkeypatch.setattr(token_files, "_SAMPLES", 2)
    row[1000] = 300
    (place / "fineweb_train_0.bin").write_bytes(row.tobytes())
    data = prepared(f"tokens:{place}", tmp_path, tokenizer=str(folder / "tokenizer"))
    data.train[0]
    with pytest.raises(RecipeError, match="token 1,000 is 300, but the vocabulary has 300"):
        data.train[1000 // 32]


def test_a_damaged_folder_is_named(folder, sandbox, tmp_path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    with open(copy / "train.bin", "ab") as file:
        file.write(b"\0\0")
    with pytest.raises(RecipeError, match=r"train\.bin holds .* tokens, tokens\.json says"):
        load_corpus(DataArguments(data=f"tokens:{copy}"))
    (copy / "tokens.json").write_text('{"dtype": "uint16"}')
    with pytest.raises(RecipeError, match=r"tokens\.json does not describe tokens: KeyError: 'vocab_size'"):
        load_corpus(DataArguments(data=f"tokens:{copy}"))
    corpus = load_corpus(DataArguments(data=f"text:{sandbox.corpus}"))
    other = load_tokenizer(None, corpus, vocab_size=290, cache=tmp_path)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(RecipeError, match="--tokenizer has 290 tokens and end of text 0, the one that made"):
        prepared(f"tokens:{folder}", tmp_path, tokenizer=str(tmp_path / "other"))
    assert len(encoded(corpus, other, cache=tmp_path)) == 3

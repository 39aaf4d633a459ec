"""A stream's order, its places, and runs that are stopped and go on there."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from orthoopt.recipes import hub, pretrain
from orthoopt.recipes.arguments import DataArguments
from orthoopt.recipes.blocks import TokenBlocks
from orthoopt.recipes.corpus import Corpus, CorpusInfo, load_corpus
from orthoopt.recipes.data import prepare_data
from orthoopt.recipes.encoding import encode
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.prefetch import Prefetched
from orthoopt.recipes.stream import Order, Position, TokenStream
from orthoopt.recipes.tokenizer import load_tokenizer

WORDS = ["alpha", "beta", "gamma", "delta", "naïve", "東京", "return", "(", ")", "import", "self"]


def documents(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [f"{number}: " + " ".join(draw.choices(WORDS, k=draw.randint(1, 40))) for number in range(count)]


class Lists:
    """Shards in memory; counts the documents that are read."""

    def __init__(self, shards: list[list[str]]) -> None:
        self.shards, self.reads = shards, 0

    def __len__(self) -> int:
        return len(self.shards)

    def open(self, index: int, place: Any = None) -> ListShard:
        return ListShard(self, index, place or 0)


class ListShard:
    def __init__(self, lists: Lists, index: int, place: int) -> None:
        self.lists, self.index, self.at = lists, index, place

    def __iter__(self) -> Iterator[str]:
        for text in self.lists.shards[self.index][self.at :]:
            self.at += 1
            self.lists.reads += 1
            yield text

    def place(self) -> int:
        return self.at


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    corpus = Corpus(CorpusInfo("test", "0" * 64, 200, 0, None), documents(200), [])
    return load_tokenizer(None, corpus, vocab_size=300, cache=tmp_path_factory.mktemp("cache"))


def epochs(order: Order, count: int) -> list[list[str]]:
    found: list[list[str]] = [[] for _ in range(count)]
    for window in order.windows(Position()):
        if window.start.epoch >= count:
            return found
        found[window.start.epoch].extend(window.documents)
    raise AssertionError("unreachable")


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) >= 4),
    window=st.integers(1, 12),
    shares=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_processes_share_every_document_once_an_epoch(sizes: list[int], window: int, shares: int, seed: int) -> None:
    texts = documents(sum(sizes))
    rest = iter(texts)
    shards = Lists([list(islice(rest, size)) for size in sizes])
    parts = []
    for share in range(shares):
        order = Order(shards, seed=seed, window=window, share=share, shares=shares)
        try:
            parts.append(epochs(order, 2))
        except RecipeError as error:  # more processes than documents, or its shards are empty
            assert f"for process {share} of {shares}" in str(error)
            return
    for epoch in range(2):
        assert Counter(text for part in parts for text in part[epoch]) == Counter(texts)


def test_every_epoch_and_seed_has_its_own_order() -> None:
    shards = Lists([documents(40, seed) for seed in range(3)])
    one, two = epochs(Order(shards, seed=1, window=20), 2)
    (other,) = epochs(Order(shards, seed=2, window=20), 1)
    assert sorted(one) == sorted(two) == sorted(other) and len({tuple(one), tuple(two), tuple(other)}) == 3
    assert epochs(Order(shards, seed=1, window=20), 2) == [one, two]
    assert one != [text for shard in shards.shards for text in shard]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_stream_goes_on_from_any_block_as_if_it_had_not_stopped(tokenizer, data) -> None:
    """The place is kept as JSON; what was read before the window it is in is not read again."""
    shards = Lists([documents(data.draw(st.integers(5, 20)), seed) for seed in range(3)])
    window = data.draw(st.integers(1, 30))
    order = Order(shards, seed=data.draw(st.integers(0, 9)), window=window)
    block_size, stop = data.draw(st.integers(2, 40)), data.draw(st.integers(0, 60))
    straight = TokenStream(order, tokenizer, block_size, prefetch=1)
    blocks = [block["input_ids"].tolist() for block in islice(straight, stop + 20)]
    made = iter(straight)
    for _ in range(stop + data.draw(st.integers(0, 3))):  # some were made ahead and not trained on
        next(made)
    straight.consumed(stop)
    state = json.loads(json.dumps(straight.state_dict()))
    again = TokenStream(order, tokenizer, block_size, prefetch=1)
    again.load_state_dict(state)
    assert [block["input_ids"].tolist() for block in islice(again, 20)] == blocks[stop:]
    # The window it stood in is read again, from where it begins, and no other.
    shards.reads = 0
    first = next(order.windows(again.position))
    assert shards.reads <= window
    assert first.start.window == again.position.window and first.start.epoch == again.position.epoch


def test_blocks_hold_the_documents_in_order(tokenizer) -> None:
    order = Order(Lists([documents(30)]), seed=0, window=8)
    expected = [i for ids, _ in encode(epochs(order, 1)[0], tokenizer) for i in ids]
    blocks = islice(TokenStream(order, tokenizer, 16), len(expected) // 16)
    assert [i for block in blocks for i in block["input_ids"].tolist()] == expected[: len(expected) // 16 * 16]


def test_a_prepared_stream_has_held_out_blocks_and_is_not_kept(tokenizer, tmp_path) -> None:
    corpus = Corpus(CorpusInfo("test", None, None, None, None), Lists([documents(30)]), documents(9, 1), streaming=True)
    data = prepare_data(corpus, tokenizer, block_size=16, eval_blocks=3, cache=tmp_path, seed=5, shuffle_window=8)
    expected = TokenStream(Order(Lists([documents(30)]), seed=5, window=8), tokenizer, 16)
    assert [block["input_ids"].tolist() for block in islice(data.train, 9)] == [
        block["input_ids"].tolist() for block in islice(expected, 9)
    ]
    assert len(data.validation) == 3 and data.train_tokens is None and not list(tmp_path.iterdir())
    with pytest.raises(RecipeError, match="the held-out text holds 0 tokens"):
        nothing = Corpus(corpus.info, corpus.train, [], streaming=True)
        prepare_data(nothing, tokenizer, block_size=16, eval_blocks=3, cache=tmp_path)


def test_another_order_is_refused_by_name(tokenizer) -> None:
    shards = Lists([documents(30)])
    state = TokenStream(Order(shards, seed=0, window=8), tokenizer, 16).state_dict()
    for order, message in (
        (Order(shards, seed=0, window=8, shares=2), "processes 1, this run has 2"),
        (Order(shards, seed=3, window=8), "seed 0, this run has 3"),
        (Order(shards, seed=0, window=9), "shuffle_window 8, this run has 9"),
        (Order(Lists([["a"]] * 2), seed=0, window=8), "shards 1, this run has 2"),
    ):
        with pytest.raises(RecipeError, match=message):
            TokenStream(order, tokenizer, 16).load_state_dict(state)


def test_a_stream_too_short_for_a_block_or_without_documents_is_named(tokenizer) -> None:
    with pytest.raises(RecipeError, match="fewer than block_size=4096"):
        next(iter(TokenStream(Order(Lists([documents(3)]), seed=0, window=8), tokenizer, 4096)))
    with pytest.raises(RecipeError, match="no training document for process 0 of 1"):
        next(iter(TokenStream(Order(Lists([[]]), seed=0, window=8), tokenizer, 16)))


def test_what_is_made_ahead_is_bounded_and_ends_with_its_reader() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number
        raise ValueError("the end")

    ahead = Prefetched(numbers, 5)
    assert [next(ahead) for _ in range(10)] == list(range(10))
    ahead.close()
    assert len(made) <= 10 + 5 + 1 and not ahead._thread.is_alive()
    with pytest.raises(StopIteration):
        next(ahead)
    with pytest.raises(ValueError, match="the end"):
        list(Prefetched(numbers, 5))


# Rows of data sets.


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of JSON lines, documents of one to forty words."""
    folder = tmp_path_factory.mktemp("rows")
    for number in range(3):
        lines = (json.dumps({"text": text, "id": 7}) for text in documents(50, number))
        (folder / f"part{number}.jsonl").write_text("\n".join([*lines, json.dumps({"text": "", "id": 1})]) + "\n")
    return folder


def test_a_shard_opens_where_it_was_left_and_streamed_or_not_the_same_is_held_out(rows, tmp_path, monkeypatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    table = load_corpus(DataArguments(data=str(rows), validation_fraction=0.2))
    stream = load_corpus(DataArguments(data=str(rows), validation_fraction=0.2, streaming=True))
    assert sorted(stream.train) == sorted(table.train) and sorted(stream.validation) == sorted(table.validation)
    shards = stream.train
    assert isinstance(shards, hub.DatasetShards) and len(shards) == 3
    whole = list(shards.open(1))
    for stop in (0, 1, 17, len(whole)):
        shard = shards.open(1)
        assert list(islice(shard, stop)) == whole[:stop]
        place = json.loads(json.dumps(shard.place()))
        assert list(shards.open(1, place)) == whole[stop:]


# Runs.


def run(monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Train; returns every batch as it was trained on, and the training rows of metrics.jsonl."""
    batches: list[list[int]] = []
    original = pretrain.PretrainTrainer.training_step

    def watch(self, model, inputs, *args, **kwargs):
        batches.append(inputs["input_ids"].flatten().tolist())
        return original(self, model, inputs, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain.PretrainTrainer, "training_step", watch)
        assert pretrain.main(flags) == 0
    output = Path(flags[len(flags) - 1 - flags[::-1].index("--output_dir") + 1])
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return batches, [line for line in lines if "loss" in line]


LEAN = ["--eval_strategy", "no", "--generate_sample", "false", "--save_final", "false", "--logging_steps", "1",
        "--save_total_limit", "30"]  # fmt: skip


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_stopped_at_a_random_step_and_resumed_a_run_overlays_the_uninterrupted_one(
    streaming: str, rows: Path, sandbox, tmp_path, monkeypatch, capsys
) -> None:
    """Same batches, same losses to 1e-6, with dropout, gradient accumulation, and past the end of the epoch."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    steps, accumulation = 12, 2
    stop = random.SystemRandom().randint(1, steps - 1)
    flags = sandbox.flags(tmp_path / "straight", *LEAN, "--data", str(rows), "--streaming", streaming)
    flags += f"""
        --model GPT2Config --model_overrides n_embd=32,n_layer=1,n_head=2 --plan adamw --learning_rate 1e-2
        --max_steps {steps} --gradient_accumulation_steps {accumulation} --save_steps {stop} --shuffle_window 11
        --per_device_train_batch_size 11
    """.split()
    batches, straight = run(monkeypatch, flags)
    assert len(batches) == steps * accumulation and len(set(map(tuple, batches))) == len(batches)
    read: list[int] = []
    item = TokenBlocks.__getitem__
    monkeypatch.setattr(TokenBlocks, "__getitem__", lambda self, index: (read.append(index), item(self, index))[1])
    checkpoint = str(tmp_path / "straight" / f"checkpoint-{stop}")
    again = [*flags, "--resume_from_checkpoint", checkpoint, "--output_dir", str(tmp_path / "again")]
    after, resumed = run(monkeypatch, again)
    assert after == batches[stop * accumulation :], f"stopped at {stop}"
    assert [row["step"] for row in resumed] == list(range(1, steps + 1))
    for one, two in zip(straight, resumed, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-6), f"stopped at {stop}"
        assert (two["tokens"], two["epoch"]) == (one["tokens"], pytest.approx(one["epoch"])), f"stopped at {stop}"
    if streaming == "false":  # batches before the stop are passed over by their numbers; one is read ahead
        assert len(read) <= ((steps - stop) * accumulation + 1) * 11

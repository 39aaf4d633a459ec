"""Which tokens of a row are scored, and that padding changes nothing."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.examples import CHATML, Encoder, Padding, as_tensors

CHAT = {
    "messages": [
        {"role": "system", "content": "naïve 東京"},
        {"role": "user", "content": "def alpha"},
        {"role": "assistant", "content": "return value"},
        {"role": "user", "content": "class beta"},
        {"role": "assistant", "content": "import index"},
    ]
}
MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>\n{% endgeneration %}{% else %}{{ message['content'] }}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer(finished):
    return AutoTokenizer.from_pretrained(finished.output / "model")


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["by prefixes", "by generation marks"])
def test_assistant_turns_alone_are_scored(tokenizer, template) -> None:
    tokenizer.chat_template = template
    example = Encoder(tokenizer, 500, True)(CHAT, "messages", "row 1")
    assert example is not None
    assert tokenizer.decode(example.ids[example.scored]) == "return value<|im_end|>\nimport index<|im_end|>\n"
    assert example.sizes[example.scored].sum() == len("return value<|im_end|>\nimport index<|im_end|>\n")


def test_all_tokens_but_the_first_are_scored_on_request(tokenizer) -> None:
    row = {"prompt": "value <|endoftext|>", "completion": "東京"}
    some, every = (Encoder(tokenizer, 500, only)(row, "prompt", "row 1") for only in (True, False))
    assert tokenizer.decode(some.ids[some.scored]) == "東京<|endoftext|>" and some.sizes[some.scored].sum() == 6
    assert every.scored.tolist() == [False] + [True] * (len(every.ids) - 1)
    assert (every.ids == tokenizer.eos_token_id).sum() == 1  # the one a prompt spells is text
    assert every.sizes.sum() == len(b"value <|endoftext|>") + 6


def test_a_cut_that_leaves_nothing_to_score_leaves_the_row_out(tokenizer) -> None:
    row = {"prompt": "value " * 20, "completion": "index"}
    prompt = len(tokenizer("value " * 20)["input_ids"])
    assert Encoder(tokenizer, prompt, True)(row, "prompt", "row 1") is None
    kept = Encoder(tokenizer, prompt + 1, True)(row, "prompt", "row 1")
    assert kept is not None and kept.scored.sum() == 1 and len(kept.ids) == prompt + 1


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer) -> None:
    tokenizer.chat_template = "{% for message in messages %}{{ loop.revindex }} {{ message['content'] }}\n{% endfor %}"
    with pytest.raises(RecipeError, match="row 7: the chat template changes a turn"):
        Encoder(tokenizer, 500, True)(CHAT, "messages", "row 7")
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RecipeError, match="row 7: the chat template refuses it: roles must alternate"):
        Encoder(tokenizer, 500, True)(CHAT, "messages", "row 7")


def test_a_chat_without_a_template_is_told_where_to_get_one(tokenizer) -> None:
    tokenizer.chat_template = None
    with pytest.raises(RecipeError, match="row 7: .*give --chat_template chatml, or a file"):
        Encoder(tokenizer, 500, True)(CHAT, "messages", "row 7")


@pytest.mark.parametrize("row", [{"prompt": "a"}, {"prompt": 1, "completion": "b"}, {"prompt": "a", "completion": ""}])
def test_rows_of_another_kind_are_named(tokenizer, row) -> None:
    with pytest.raises(RecipeError, match="row 3: '(prompt|completion)' must be text, got"):
        Encoder(tokenizer, 500, True)(row, "prompt", "row 3")


def test_padding_changes_no_loss(tokenizer, finished) -> None:
    encoder = Encoder(tokenizer, 500, True)
    rows = [{"prompt": "alpha ", "completion": "beta " * n} for n in (1, 7)]
    examples = [as_tensors(encoder(json.loads(json.dumps(row)), "prompt", "row")) for row in rows]
    model = AutoModelForCausalLM.from_pretrained(finished.output / "model").eval()
    batch = Padding(tokenizer.eos_token_id)(examples)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    counts = [int((example["labels"][1:] != -100).sum()) for example in examples]
    with torch.no_grad():
        alone = [model(**{key: value[None] for key, value in example.items()}).loss.item() for example in examples]
        together = model(**batch).loss.item()
    mean = sum(loss * count for loss, count in zip(alone, counts, strict=True)) / sum(counts)
    assert together == pytest.approx(mean, rel=1e-5)  # fp32 through attention with and without a mask

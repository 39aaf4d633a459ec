"""Rows of a prompt and its completion, or of a chat: rendered, encoded, and which of their tokens are scored.

A row stays a row: it is cut at `block_size` tokens and padded to the longest of its batch, never packed with others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2.exceptions import TemplateError
from tokenizers import Encoding, Tokenizer
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from orthoopt.recipes.data import ValidationBlocks, token_bytes
from orthoopt.recipes.errors import RecipeError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IGNORED = -100
"""The label that transformers' losses leave out."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Example(NamedTuple):
    """One row, encoded."""

    ids: np.ndarray  # (tokens,)
    scored: np.ndarray  # (tokens,), bool: whether predicting the token counts
    sizes: np.ndarray  # (tokens,), bytes of text that each token stands for


class Encoder:
    """Turns rows into examples with a model's tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, block_size: int, completions_only: bool) -> None:
        self.tokenizer, self.block_size, self.completions_only = tokenizer, block_size, completions_only
        self._as_text = _backend(tokenizer, reads_special=False)
        self._as_markup = _backend(tokenizer, reads_special=True)
        bos, first = tokenizer.bos_token_id, tokenizer("", add_special_tokens=True)["input_ids"][:1]
        self._beginning = first if first == [bos] and bos != tokenizer.eos_token_id else []  # as Llama's has
        self._end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self._marks_turns = _GENERATION.search(str(tokenizer.chat_template)) is not None

    def __call__(self, row: Mapping[str, Any], kind: str, where: str) -> Example | None:
        """The example of a row of `kind` prompt or messages; None if the cut leaves no scored token.

        Raises `RecipeError`, naming the row by `where`, where it lacks these columns or the template refuses it.
        """
        if kind == "prompt":
            example = self._pair(_text(row, "prompt", where), _text(row, "completion", where))
        else:
            example = self._chat(_messages(row, where), where)
        if not self.completions_only:
            example.scored[:] = True
        example.scored[:1] = False  # nothing comes before it to predict it from
        cut = Example(*(part[: self.block_size] for part in example))
        return cut if cut.scored.any() else None

    def _pair(self, prompt: str, completion: str) -> Example:
        """The tokens a prompt has by itself, then the completion's and end of text."""
        first, end = self._beginning, self._end
        one, two = (self._as_text.encode(text, add_special_tokens=False) for text in (prompt, completion))
        ids = [*first, *one.ids, *two.ids, *end]
        sizes = [*([0] * len(first)), *token_bytes(prompt, one), *token_bytes(completion, two), *([0] * len(end))]
        scored = np.arange(len(ids)) >= len(first) + len(one.ids)
        return Example(np.array(ids, dtype=np.int64), scored, np.array(sizes, dtype=np.int64))

    def _chat(self, messages: list[dict[str, Any]], where: str) -> Example:
        if self.tokenizer.chat_template is None:
            raise RecipeError(
                f"{where}: a chat, and the tokenizer has no chat template: give --chat_template chatml, or a file"
            )
        text = self._render(messages, where)
        encoding = self._as_markup.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=np.int64)
        if not self.completions_only:
            scored = np.ones(len(ids), dtype=bool)
        elif self._marks_turns:
            made = self.tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
            scored = np.array(made["assistant_masks"], dtype=bool)
        else:
            scored = self._assistant_turns(messages, text, encoding, where)
        sizes = token_bytes(text, encoding)
        sizes[np.isin(ids, self.tokenizer.all_special_ids)] = 0
        return Example(ids, scored, sizes)

    def _assistant_turns(self, messages: list[dict[str, Any]], text: str, encoding: Encoding, where: str) -> np.ndarray:
        """Tokens that begin within what the template adds for an assistant's turn, beyond the prompt for it."""
        starts = np.array([start for start, _ in encoding.offsets])
        scored = np.zeros(len(starts), dtype=bool)
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:turn], where, prompt=True)
            after = self._render(messages[: turn + 1], where)
            if not (after.startswith(before) and text.startswith(after)):
                raise RecipeError(
                    f"{where}: the chat template changes a turn by what comes after it, so turn {turn + 1} cannot be "
                    "scored by itself; give rows that end with their only assistant turn, or --completions_only false"
                )
            scored |= (starts >= len(before)) & (starts < len(after))
        return scored

    def _render(self, messages: list[dict[str, Any]], where: str, *, prompt: bool = False) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
        except (TemplateError, ValueError) as error:
            raise RecipeError(f"{where}: the chat template refuses it: {' '.join(str(error).split())}") from error


class Examples(Dataset[dict[str, Tensor]]):
    """Encoded rows to train on."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return as_tensors(self.examples[index])


class HeldOutExamples(ValidationBlocks):
    """Held-out rows, at most `limit` and a multiple of `shares`; counts the tokens and bytes that are scored."""

    def __init__(self, examples: Sequence[Example], limit: int, shares: int = 1) -> None:
        count = min(limit, len(examples)) // shares * shares
        if not count:
            raise RecipeError(f"{len(examples)} held-out rows cannot be divided among {shares} processes")
        self.examples = [examples[i * len(examples) // count] for i in range(count)]
        self.scored_tokens = sum(int(example.scored.sum()) for example in self.examples)
        self.scored_bytes = sum(int(example.sizes[example.scored].sum()) for example in self.examples)
        if not self.scored_bytes:
            raise RecipeError("the held-out rows' completions hold no text")

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return as_tensors(self.examples[index])


def as_tensors(example: Example) -> dict[str, Tensor]:
    """Inputs and labels, both (tokens,); labels that are not scored are -100. The model shifts them by one."""
    return {
        "input_ids": torch.from_numpy(example.ids),
        "labels": torch.from_numpy(np.where(example.scored, example.ids, IGNORED)),
    }


@dataclass(frozen=True)
class Padding:
    """Collates rows to (batch, longest): inputs padded with `token`, which no attention sees and no loss scores."""

    token: int

    def __call__(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack rows of different lengths; a row without labels, a block of text, is scored whole."""
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad([row["input_ids"] for row in rows], batch_first=True, padding_value=self.token),
            "labels": pad(
                [row.get("labels", row["input_ids"]) for row in rows], batch_first=True, padding_value=IGNORED
            ),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
        }


def encode_rows(rows: Sequence[Mapping[str, Any]], kind: str, encoder: Encoder, name: str) -> Iterator[Example]:
    """The examples of rows; those whose scored part lies wholly beyond the cut are left out."""
    for number, row in enumerate(rows, 1):
        example = encoder(row, kind, f"--data {name}, row {number}")
        if example is not None:
            yield example


def _backend(tokenizer: PreTrainedTokenizerFast, *, reads_special: bool) -> Tokenizer:
    """The Rust tokenizer, which reads text that spells a special token as that token, or as text."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = not reads_special
    return backend


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or (key == "completion" and not value):
        raise RecipeError(f"{where}: {key!r} must be text, got {value!r:.60}; the row has {sorted(row)}")
    return value


def _messages(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The turns of a chat, each checked for what every template reads."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RecipeError(
            f"{where}: 'messages' must be a list of turns, got {messages!r:.60}; the row has {sorted(row)}"
        )
    for turn, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise RecipeError(f"{where}: turn {turn} must have 'role' and 'content', got {message!r:.60}")
    return [dict(message) for message in messages]

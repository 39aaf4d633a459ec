"""Text samples while a run trains and at its end: samples.jsonl, and the last one in sample.txt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as HFTrainingArguments

from orthoopt.recipes.callbacks import TrainingClock
from orthoopt.recipes.tokenizer import write_atomically

SAMPLES = "samples.jsonl"


class Sampler(TrainerCallback):
    """Writes a row of samples.jsonl every `every` steps: step, tokens seen, prompt, text. Draws the same way each time.

    `keep` holds an earlier run's rows up to the step it is continued from. With `every` 0 only :meth:`write` writes.
    """

    def __init__(
        self,
        path: Path,
        clock: TrainingClock,
        *,
        every: int,
        prompt: str,
        length: int,
        seed: int,
        keep: list[dict[str, Any]],
    ) -> None:
        self.path, self.clock, self.every = path, clock, every
        self.prompt, self.length, self.seed = prompt, length, seed
        self.last: dict[str, Any] | None = keep[-1] if keep else None
        path.unlink(missing_ok=True)
        if keep:
            write_atomically(path, "".join(_line(row) for row in keep).encode())

    def on_step_end(
        self,
        args: HFTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Write a sample where one is due."""
        if self.every and state.global_step % self.every == 0 and state.is_world_process_zero:
            self.write(model, processing_class, state)
            self.clock.exclude()

    def write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, state: TrainerState) -> str:
        """Draw a sample and keep it, or give that of this step if there is one."""
        if self.last is not None and self.last["step"] == state.global_step:
            return str(self.last["text"])
        text = generate_sample(model, tokenizer, self.prompt, length=self.length, seed=self.seed)
        self.last = {"step": state.global_step, "tokens": state.num_input_tokens_seen, "prompt": self.prompt,
                     "text": text}  # fmt: skip
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(self.last))
        return text


def generate_sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, *, length: int, seed: int
) -> str:
    """Continue `prompt` up to `length` tokens in all, drawn at temperature 0.8 from the 40 likeliest.

    The random numbers of the run are left as they were, so training goes on as if nothing had been drawn.
    """
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    if not ids.numel():
        ids = torch.tensor([[tokenizer.eos_token_id or 0]])
    ids = ids.to(model.device)
    was_training = model.training
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max(length - ids.shape[1], 1),
            do_sample=True, temperature=0.8, top_k=40, use_cache=True,
        )  # fmt: skip
    model.train(was_training)
    return tokenizer.decode(out[0], skip_special_tokens=True)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"

"""How Trainer is fed: a stream that resumes where it was, losses over what is scored, time spent waiting for data."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from orthoopt.recipes.callbacks import TrainingClock
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.packing import IGNORED
from orthoopt.recipes.stream import TokenStream
from orthoopt.recipes.tokenizer import write_atomically


class FedTrainer(Trainer):
    """transformers' Trainer on the blocks of :mod:`orthoopt.recipes.data`.

    A checkpoint holds the place of every process in its stream (`data-RANK.json`), and the run goes on there: nothing
    that was trained on is read again but the window it stood in. Training logs get `data/wait_share`, the share of the
    training time since the last log that was spent waiting for batches, and where documents are kept apart
    `data/scored_tokens`, the tokens that the training loss was over since the run began.
    """

    def __init__(self, *args: Any, clock: TrainingClock, **kwargs: Any) -> None:
        """As Trainer's, with the clock of the run, which is among the callbacks."""
        super().__init__(*args, **kwargs)
        self.clock = clock
        self._scored: Tensor | int = 0  # by this process
        self._waited = 0.0
        self._logged = (0.0, clock.seconds)  # of the last log: time waited, time trained
        self._scores = False
        if self.stream is not None:
            self.add_callback(_StreamEpoch())

    @property
    def stream(self) -> TokenStream | None:
        """The training data if they are a stream."""
        return self.train_dataset if isinstance(self.train_dataset, TokenStream) else None

    @property
    def _keeps_apart(self) -> bool:
        return bool(getattr(self.eval_dataset, "keeps_apart", False))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As Trainer's; a stream goes on from its place in the checkpoint instead of being read up to it."""
        if resume_from_checkpoint:
            self._load_place(Path(str(resume_from_checkpoint)))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Every process reads its own part of a stream; Accelerate would have the first read for all."""
        if self.stream is None:
            return super().get_train_dataloader()
        return DataLoader(
            self.stream,
            batch_size=self._train_batch_size,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),  # a loader draws a seed, which must not come from the dropouts' generator
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """As Trainer's; notes how long it took and how far the stream is used."""
        batches, items = super().get_batch_samples(_Timed(epoch_iterator, self), num_batches, device)
        if self.stream is not None:
            self.stream.consumed(sum(len(batch["input_ids"]) for batch in batches))
        if self._keeps_apart:
            for batch in batches:  # stays on the device until it is logged
                self._scored = self._scored + (batch["labels"][:, 1:] != IGNORED).sum()
        return batches, items

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, whose count of what is scored is replaced below."""
        self._scores = True
        try:
            return super().prediction_step(*args, **kwargs)
        finally:
            self._scores = False

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """The tokens that a loss is over.

        Trainer takes the mean of the batches' losses. Where blocks have different numbers of scored tokens that is
        no mean of tokens; it is one if every batch is divided by the mean number.
        """
        blocks: Any = self.eval_dataset
        if not self._scores or not self._keeps_apart:
            return super()._get_num_items_in_batch(batch_samples, device)
        count = sum(len(batch["input_ids"]) for batch in batch_samples) * blocks.scored_tokens / len(blocks)
        processes = self.args.world_size if self.args.average_tokens_across_devices else 1
        return torch.tensor(count * processes, device=device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what is known of the data to a training log."""
        if "loss" in logs:
            waited, trained = self._waited - self._logged[0], self.clock.seconds - self._logged[1]
            self._logged = (self._waited, self.clock.seconds)
            if trained > 0.0:
                logs["data/wait_share"] = round(min(waited / trained, 1.0), 4)
            if self._keeps_apart:
                scored = torch.as_tensor(int(self._scored), device=self.args.device)
                logs["data/scored_tokens"] = int(self.accelerator.gather(scored).sum())
        super().log(logs, start_time)

    def _save_rng_state(self, output_dir: str) -> None:
        """Every process writes the state of its generators here, and its place in the data."""
        super()._save_rng_state(output_dir)
        state: dict[str, Any] = {"scored_tokens": int(self._scored)}
        if self.stream is not None:
            state["stream"] = self.stream.state_dict()
        write_atomically(self._place_file(Path(output_dir)), json.dumps(state).encode())

    def _load_place(self, checkpoint: Path) -> None:
        source = self._place_file(checkpoint)
        try:
            state = json.loads(source.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            if self.stream is None:  # Trainer finds the batch by its number
                return
            raise RecipeError(f"{checkpoint} does not say where the stream stood: {source.name} is missing") from error
        self._scored = int(state["scored_tokens"])
        if self.stream is not None:
            if "stream" not in state:
                raise RecipeError(f"{checkpoint} was made without --streaming")
            self.stream.load_state_dict(state["stream"])
            self.args.ignore_data_skip = True  # the stream stands where it stood

    def _place_file(self, checkpoint: Path) -> Path:
        return checkpoint / f"data-{self.args.process_index}.json"


class _Timed:
    """An iterator that adds the time it takes to its trainer's."""

    def __init__(self, batches: Iterator[Any], trainer: FedTrainer) -> None:
        self.batches, self.trainer = batches, trainer

    def __iter__(self) -> _Timed:
        return self

    def __next__(self) -> Any:
        began = time.perf_counter()
        try:
            return next(self.batches)
        finally:
            self.trainer._waited += time.perf_counter() - began


class _StreamEpoch(TrainerCallback):
    """A stream is one epoch for Trainer, which counts it from where it resumed."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The share of the run's steps that were made."""
        state.epoch = state.global_step / state.max_steps

"""Trainer with an orthoopt plan: logs roles and bits per byte, and fits its schedule to any length."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import SaveStrategy, SchedulerType

from orthoopt.hf import OptimizerFactory
from orthoopt.recipes import sharding
from orthoopt.recipes.arguments import Arguments, PretrainArguments
from orthoopt.recipes.callbacks import RoleMetrics, TrainingClock
from orthoopt.recipes.data import PretrainData
from orthoopt.recipes.errors import TrainingStopped
from orthoopt.recipes.feed import FedTrainer
from orthoopt.recipes.optimizers import NamedOptimizer
from orthoopt.recipes.schedules import decay_steps, with_minimum, with_vector_schedule
from orthoopt.recipes.speed import Speed, perplexity
from orthoopt.recipes.watch import LossWatch, Seen
from orthoopt.roles import roles


@contextlib.contextmanager
def _saves_what_is_sharded(training: PretrainArguments, shard: bool) -> Iterator[None]:
    """Trainer refuses to save checkpoints of a model that was sharded at load time, for it cannot; this class can."""
    chosen = training.save_strategy
    if shard:
        training.save_strategy = SaveStrategy.NO
    try:
        yield
    finally:
        training.save_strategy = chosen


def optimizer_factory(arguments: Arguments) -> tuple[type, dict[str, Any]]:
    """What Trainer builds the optimizer with: a class that is called with the model, and keywords."""
    if arguments.run.optimizer is None:
        return OptimizerFactory, arguments.routing
    return NamedOptimizer, {
        "target": arguments.run.optimizer,
        "lr": arguments.learning_rate,
        "weight_decay": arguments.training.weight_decay,
        "options": arguments.optimizer_options,
    }


def _may_skip_parameters(model: nn.Module) -> bool:
    """Whether a batch may leave parameters without gradients: experts of their own modules that no token chose."""
    return any(item.role == "router" for item in roles(model))


class PretrainTrainer(FedTrainer):
    """transformers' Trainer on packed blocks, with the optimizer that a plan gives the model."""

    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None

    def __init__(
        self,
        model: PreTrainedModel,
        data: PretrainData,
        tokenizer: PreTrainedTokenizerFast,
        arguments: Arguments,
        callbacks: list[TrainerCallback],
    ) -> None:
        run, training = arguments.run, arguments.training
        self.validation_blocks = data.validation
        self.run_arguments = run
        self.role_metrics = RoleMetrics(norms=run.log_update_norms, diagnostics=run.log_diagnostics)
        self.loss_watch = LossWatch()
        clock = next((item for item in callbacks if isinstance(item, TrainingClock)), None)
        if clock is None:
            callbacks = [clock := TrainingClock(), *callbacks]
        self.speed = Speed(model, training, arguments.data.block_size, clock)
        training.per_device_eval_batch_size = data.validation.batch_size(
            training.per_device_eval_batch_size, training.world_size
        )
        if training.ddp_find_unused_parameters is None and not _may_skip_parameters(model):
            training.ddp_find_unused_parameters = False  # else DDP looks in every step for what is not there, and warns
        factory = optimizer_factory(arguments)
        with _saves_what_is_sharded(training, run.shard):
            self._start(model, data, tokenizer, callbacks, training, factory, clock)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    def _start(
        self,
        model: PreTrainedModel,
        data: PretrainData,
        tokenizer: PreTrainedTokenizerFast,
        callbacks: list[TrainerCallback],
        training: PretrainArguments,
        factory: tuple[type, dict[str, Any]],
        clock: TrainingClock,
    ) -> None:
        super().__init__(
            model=model,
            args=training,
            data_collator=data.collate,
            train_dataset=data.train,
            eval_dataset=data.validation,
            processing_class=tokenizer,
            callbacks=[self.role_metrics, self.loss_watch, self.speed, *callbacks],
            optimizer_cls_and_kwargs=factory,
            clock=clock,
        )

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """As Trainer's, with the run's `decay_fraction`, `min_lr_ratio` and `vector_schedule`; see schedules.py."""
        if self.lr_scheduler is not None:
            return self.lr_scheduler
        warmup = self.args.get_warmup_steps(num_training_steps)
        if self.args.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY:
            given = self.args.lr_scheduler_kwargs or {}
            decay = decay_steps(num_training_steps, warmup, self.run_arguments.decay_fraction)
            self.args.lr_scheduler_kwargs = {"num_decay_steps": decay, "decay_type": "linear"} | given
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if self.run_arguments.min_lr_ratio:
            self.lr_scheduler = scheduler = with_minimum(
                scheduler, self.run_arguments.min_lr_ratio, warmup_steps=warmup
            )
        if self.run_arguments.vector_schedule is not None:
            self.lr_scheduler = scheduler = with_vector_schedule(
                scheduler,
                self.run_arguments.vector_schedule,
                warmup_steps=self.run_arguments.vector_warmup_steps,
                total_steps=num_training_steps,
            )
        return scheduler

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As Trainer's, which would write the first process's part of a sharded state and no other."""
        if not self.run_arguments.shard:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        sharding.save_optimizer(self.model, self._plain_optimizer, Path(output_dir))
        if self.args.should_save:
            assert self.lr_scheduler is not None
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.run_arguments.shard or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        sharding.load_optimizer(self.model, self._plain_optimizer, Path(checkpoint))
        assert self.lr_scheduler is not None
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.run_arguments.shard:  # else it was sharded while it was loaded from there
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer itself, which Accelerate has wrapped."""
        wrapped = self.optimizer
        return wrapped.optimizer if isinstance(wrapped, AcceleratedOptimizer) else cast(torch.optim.Optimizer, wrapped)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """As Trainer's, but every block is scored: `dataloader_drop_last` is about training batches."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, on the cross-entropy alone: a loss that balances experts is for training."""
        if getattr(self.model.config, "output_router_logits", False):
            inputs = {**inputs, "output_router_logits": False}
        return super().prediction_step(model, inputs, *args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """As Trainer's; a loss that is not finite is counted, and left out of the mean that is logged."""
        return self.loss_watch.see(super().training_step(model, inputs, num_items_in_batch))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what each role did and how fast it went to a training log, and an evaluation's loss in other units.

        Raises `TrainingStopped`, in every process, after too many steps on end whose loss was not finite.
        """
        seen = None
        if "eval_loss" in logs:
            logs["eval_perplexity"] = perplexity(logs["eval_loss"])
            bits = self.validation_blocks.bits_per_byte(logs["eval_loss"])
            logs |= {} if bits is None else {"eval_bits_per_byte": bits}
        elif "loss" in logs:
            self.clock.tick()
            seen = self.loss_watch.since_last(self.accelerator.gather)
            logs["loss"] = logs["loss"] / seen.finite_share if seen.finite_share else math.nan
            logs.update(self.role_metrics.latest | self.speed.since_last(self.state))
            if seen.steps:
                logs["nonfinite_steps"] = seen.steps
        if {"loss", "eval_loss"} & set(logs):
            logs["seconds"] = round(self.clock.seconds, 3)
        super().log(logs)
        if seen is not None and seen.steps:
            self._tell_of(seen)

    def _tell_of(self, seen: Seen) -> None:
        """Say that losses were not finite, or end the run."""
        limit = self.run_arguments.max_nonfinite_steps
        if limit and seen.on_end >= limit:
            raise TrainingStopped(
                f"the loss has not been finite in the last {seen.on_end} steps, up to step {self.state.global_step} "
                f"(--max_nonfinite_steps {limit}): try a lower --learning_rate than {self.args.learning_rate:g}, more "
                "--warmup_steps, or a lower --max_grad_norm"
            )
        if self.state.is_world_process_zero:
            count = f"{seen.steps} step{'s' if seen.steps > 1 else ''}"
            tqdm.write(
                f"step {self.state.global_step}: the loss was not finite in {count} since the last log; the optimizer "
                "leaves out steps whose gradients are not",
                file=sys.stderr,
            )

    def final_metrics(self) -> dict[str, Any]:
        """The last evaluation if it was made at the last step, else one made now."""
        for row in reversed(self.state.log_history):
            if "eval_loss" in row:
                if row["step"] == self.state.global_step:
                    return row
                break
        return self.evaluate()

"""Trainer with an orthoopt plan: logs roles and bits per byte, and fits its schedule to any length."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainerCallback
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import SaveStrategy, SchedulerType

from orthoopt.hf import OptimizerFactory
from orthoopt.recipes import sharding
from orthoopt.recipes.arguments import Arguments, PretrainArguments
from orthoopt.recipes.callbacks import RoleMetrics
from orthoopt.recipes.data import PretrainData, collate
from orthoopt.recipes.schedules import with_vector_schedule


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


class PretrainTrainer(Trainer):
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
        self.role_metrics = RoleMetrics(norms=run.log_update_norms)
        training.per_device_eval_batch_size = data.validation.batch_size(
            training.per_device_eval_batch_size, training.world_size
        )
        options = {
            "plan": arguments.plan,
            "lr": arguments.learning_rate,
            "weight_decay": training.weight_decay,
            "overrides": arguments.overrides,
            "options": arguments.plan_options,
        }
        with _saves_what_is_sharded(training, run.shard):
            self._start(model, data, tokenizer, callbacks, training, options)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)

    def _start(
        self,
        model: PreTrainedModel,
        data: PretrainData,
        tokenizer: PreTrainedTokenizerFast,
        callbacks: list[TrainerCallback],
        training: PretrainArguments,
        options: dict[str, Any],
    ) -> None:
        super().__init__(
            model=model,
            args=training,
            data_collator=collate,
            train_dataset=data.train,
            eval_dataset=data.validation,
            processing_class=tokenizer,
            callbacks=[self.role_metrics, *callbacks],
            optimizer_cls_and_kwargs=(OptimizerFactory, options),
        )

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """As Trainer's; warmup_stable_decay falls linearly over the last `decay_fraction` of the steps.

        Vectors follow `vector_schedule` where it is given.
        """
        if self.lr_scheduler is not None:
            return self.lr_scheduler
        if self.args.lr_scheduler_type == SchedulerType.WARMUP_STABLE_DECAY:
            given = self.args.lr_scheduler_kwargs or {}
            warmup = self.args.get_warmup_steps(num_training_steps)
            decay = min(
                round(self.run_arguments.decay_fraction * num_training_steps), max(num_training_steps - warmup, 0)
            )
            self.args.lr_scheduler_kwargs = {"num_decay_steps": decay, "decay_type": "linear"} | given
        scheduler = super().create_scheduler(num_training_steps, optimizer)
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

    def prediction_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, on the cross-entropy alone: a loss that balances experts is for training."""
        if getattr(self.model.config, "output_router_logits", False):
            inputs = {**inputs, "output_router_logits": False}
        return super().prediction_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what each role did to a training log and bits per byte to an evaluation; leave out speeds."""
        if "eval_loss" in logs:
            logs["eval_bits_per_byte"] = self.validation_blocks.bits_per_byte(logs["eval_loss"])
        elif "loss" in logs:
            logs.update(self.role_metrics.latest)
        super().log(logs)

    def final_metrics(self) -> dict[str, Any]:
        """The last evaluation if it was made at the last step, else one made now."""
        for row in reversed(self.state.log_history):
            if "eval_loss" in row:
                if row["step"] == self.state.global_step:
                    return row
                break
        return self.evaluate()

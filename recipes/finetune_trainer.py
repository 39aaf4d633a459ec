"""The trainer of fine-tuning: exact means over rows of different lengths, the old text beside the new, adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, TrainerCallback

from orthoopt.recipes import lora
from orthoopt.recipes.arguments import Arguments
from orthoopt.recipes.data import PretrainData, ValidationBlocks
from orthoopt.recipes.examples import IGNORED, HeldOutExamples, Padding
from orthoopt.recipes.finetune_arguments import FinetuneArguments
from orthoopt.recipes.trainer import PretrainTrainer


class FinetuneTrainer(PretrainTrainer):
    """As for pretraining; `old` are blocks of what the model was trained on before, scored at every evaluation."""

    def __init__(
        self,
        model: Any,
        data: PretrainData,
        tokenizer: PreTrainedTokenizerFast,
        arguments: Arguments,
        callbacks: list[TrainerCallback],
        *,
        old: ValidationBlocks | None = None,
    ) -> None:
        options = arguments.model
        assert isinstance(options, FinetuneArguments)
        self.options, self.old = options, old
        self._evaluated: ValidationBlocks = data.validation
        self._old_metrics: dict[str, float] = {}
        self._wanted_batch = arguments.training.per_device_eval_batch_size
        super().__init__(model, data, tokenizer, arguments, callbacks)
        if isinstance(data.validation, HeldOutExamples):
            padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
            self.data_collator = Padding(padding or 0)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """As Trainer's, after the old text, whose loss is logged with the new one's."""
        if self.old is not None and eval_dataset is None:
            chosen = self.args.per_device_eval_batch_size
            self.args.per_device_eval_batch_size = self.old.batch_size(self._wanted_batch, self.args.world_size)
            self._evaluated = self.old
            try:
                loss = super().evaluate(self.old, ignore_keys, "also")["also_loss"]
            finally:
                self.args.per_device_eval_batch_size, self._evaluated = chosen, self.validation_blocks
            bits = self.old.bits_per_byte(loss)
            self._old_metrics = {"also/loss": loss} | ({} if bits is None else {"also/bits_per_byte": bits})
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, which weighs batches of an evaluation by rows: here each counts as many as it scores."""
        rows = self._evaluated
        if model.training or not isinstance(rows, HeldOutExamples):
            return super().compute_loss(model, inputs, *args, **kwargs)
        labels: Tensor = inputs["labels"]
        scored = (labels[:, 1:] != IGNORED).sum()
        share = rows.scored_tokens / len(rows) * len(labels)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)  # the mean over this batch's tokens
        loss = loss * (scored / share)
        return (loss, outputs) if kwargs.get("return_outputs") else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the old text's loss to an evaluation's."""
        if "eval_loss" in logs:
            logs.update(self._old_metrics)
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's; at the end of a run with --lora_merge the merged model, and the adapters in `adapter`."""
        if _internal_call or not self.options.lora_merge or output_dir is None:
            super().save_model(output_dir, _internal_call)
            return
        adapters = Path(output_dir).with_name("adapter")
        super().save_model(str(adapters))
        if self.args.should_save:
            lora.save_merged(adapters, self.options.model, Path(output_dir), self.processing_class)

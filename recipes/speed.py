"""How fast a run goes, how near to the device's peak, and how much memory it takes."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as HFTrainingArguments

from orthoopt.recipes.callbacks import TrainingClock
from orthoopt.recipes.flops import peak_flops, training_flops_per_token
from orthoopt.recipes.run_arguments import PretrainArguments


class Speed(TrainerCallback):
    """Tokens a second over all processes, seconds a step, MFU and peak memory, between one training log and the next.

    Time is :class:`TrainingClock`'s: evaluations, samples and checkpoints do not count, measuring norms does. MFU is
    left out where nobody says what the device can do, or how many experts see a token.
    """

    def __init__(
        self, model: PreTrainedModel, training: PretrainArguments, block_size: int, clock: TrainingClock
    ) -> None:
        self.clock, self.device, self.devices = clock, training.device, training.world_size * max(training.n_gpu, 1)
        self.peak = peak_flops(training.device, computing_dtype(training))
        self.flops_per_token: float | None = None
        try:
            self.flops_per_token = training_flops_per_token(model, block_size)
        except ValueError:
            self.peak = None
        self._step = self._tokens = 0
        self._seconds = 0.0

    def on_train_begin(
        self, args: HFTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count from here: the run begins, or goes on from a checkpoint."""
        self._begin(state)

    def _begin(self, state: TrainerState) -> None:
        self._step, self._tokens, self._seconds = state.global_step, state.num_input_tokens_seen, self.clock.seconds

    def since_last(self, state: TrainerState) -> dict[str, float]:
        """The figures since the last call; the device must be done with the step."""
        steps, tokens = state.global_step - self._step, state.num_input_tokens_seen - self._tokens
        seconds = self.clock.seconds - self._seconds
        self._begin(state)
        found: dict[str, float] = {}
        if steps > 0 and seconds > 0:
            found = {"step_seconds": seconds / steps, "tokens_per_second": tokens / seconds}
            if self.peak and self.flops_per_token:
                found["mfu"] = found["tokens_per_second"] * self.flops_per_token / (self.peak * self.devices)
        memory = peak_memory(self.device)
        return found if memory is None else found | {"peak_memory_bytes": float(memory)}


def perplexity(loss: float) -> float:
    """e to the loss in nats per token; infinite where that is too large to be written."""
    return math.exp(loss) if loss < 700.0 or math.isnan(loss) else math.inf


def computing_dtype(training: PretrainArguments) -> torch.dtype:
    """What products are computed in."""
    return torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else torch.float32


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that tensors on this process's GPU took so far, or, on CPUs, the process; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

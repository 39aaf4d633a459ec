"""What a run watches: learning rate and update norm by role, the time spent training, the progress shown."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from orthoopt.diagnostics import recording
from orthoopt.optimizer import OrthoOpt


class RoleMetrics(TrainerCallback):
    """Learning rate and update norm of each role on the steps that are logged, and the time in the optimizer.

    `latest` holds, of the last logged step, `lr/ROLE`, `update_norm/ROLE`, the Frobenius norm of what the
    step changed, weight decay included, over all parameters of the role, and `learning_rate`, the run's own
    before a plan's multipliers. Groups without a `role` count as `all`. Measuring norms copies the parameters
    before such a step; `norms=False` avoids that. With `diagnostics` such a step is within `orthoopt.recording`, and
    `diagnostics/NAME` holds what :mod:`orthoopt.diagnostics` names; other optimizers than `OrthoOpt` have none.
    """

    def __init__(self, *, norms: bool = True, diagnostics: bool = False) -> None:
        self.norms, self.diagnostics = norms, diagnostics
        self.latest: dict[str, float] = {}
        self.optimizer_seconds: float | None = 0.0
        self._before: list[tuple[str, Tensor, Tensor]] = []
        self._started = 0.0
        self._recording: tuple[OrthoOpt, contextlib.AbstractContextManager[None]] | None = None

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Read the learning rates, and copy the parameters if this step is logged."""
        if _is_logged(args, state):
            self.latest = {f"lr/{role}": rate for role, rate in role_learning_rates(optimizer).items()}
            first = optimizer.param_groups[0]
            schedule = float(first["lr"]) / float(first.get("initial_lr") or first["lr"] or 1.0)
            self.latest["learning_rate"] = args.learning_rate * schedule
            if self.norms:
                self._before = [
                    (group.get("role", "all"), param, param.detach().clone())
                    for group in optimizer.param_groups
                    for param in group["params"]
                ]
            plain = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
            if self.diagnostics and isinstance(plain, OrthoOpt):
                self._recording = (plain, recording(plain))
                self._recording[1].__enter__()
        if args.device.type != "cpu":
            self.optimizer_seconds = None  # the host returns before an accelerator is done
        self._started = time.perf_counter()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure what the step changed."""
        if self.optimizer_seconds is not None:
            self.optimizer_seconds += time.perf_counter() - self._started
        if self._recording is not None:
            optimizer, recorded = self._recording
            self._recording = None
            recorded.__exit__(None, None, None)
            self.latest |= {f"diagnostics/{name}": figure for name, figure in optimizer.diagnostics().items()}
        squares: dict[str, list[Tensor]] = {}
        for role, param, before in self._before:
            squares.setdefault(role, []).append(_squared_norm(param.detach() - before))
        self._before = []
        for role, parts in squares.items():
            self.latest[f"update_norm/{role}"] = float(torch.stack(parts).sum().sqrt())


class TrainingClock(TrainerCallback):
    """Seconds spent training, without evaluations and checkpoints, as of the last finished step."""

    def __init__(self, earlier: float = 0.0) -> None:
        self.earlier = earlier
        self._start = self._mark = time.perf_counter()
        self._elsewhere = 0.0

    @property
    def seconds(self) -> float:
        """Training time up to the last step, that before a restart included."""
        return self.earlier + self._mark - self._start - self._elsewhere

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start."""
        self._start = self._mark = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the time; whatever comes before the next step is either logging or excluded below."""
        self._mark = time.perf_counter()

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Leave out the time since the step."""
        self.exclude()

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """Leave out the time since the step, or since the evaluation."""
        self.exclude()

    def tick(self) -> None:
        """Count the time up to now: a log has waited for the device to be done with the step."""
        self._mark = time.perf_counter()

    def exclude(self) -> None:
        """Leave out the time since the last step, log, evaluation or checkpoint."""
        now = time.perf_counter()
        self._elsewhere += now - self._mark
        self._mark = now


class Progress(TrainerCallback):
    """One bar with the losses on a terminal; one line for each log elsewhere."""

    def __init__(self, *, bar: bool) -> None:
        self.wants_bar = bar and sys.stderr.isatty()
        self._bar: Any = None
        self._shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar where the run starts or resumes."""
        if state.is_world_process_zero and self.wants_bar:
            # A terminal that does not know its size, as containers have, would get a bar of no size.
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                unit="step",
                dynamic_ncols=width > 0,
                ncols=None if width else 100,
                nrows=None if width else 24,
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.update(1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the training loss on the bar, and each evaluation in a line of its own."""
        if not state.is_world_process_zero or not logs:
            return
        if "eval_loss" in logs:
            self._say(
                f"{_place(state)}: validation loss "
                f"{logs['eval_loss']:.4f}, {logs['eval_bits_per_byte']:.4f} bits per byte"
                + (f"; old text {logs['also/loss']:.4f}" if "also/loss" in logs else "")
            )
            self._shown["validation"] = f"{logs['eval_loss']:.3f}"
        elif "loss" in logs:
            self._shown["loss"] = f"{logs['loss']:.3f}"
            if self._bar is None:
                print(f"{_place(state)}: loss {logs['loss']:.4f}, lr {logs['learning_rate']:.2e}{spell_speed(logs)}",
                      flush=True)  # fmt: skip
        if self._bar is not None:
            self._bar.set_postfix(self._shown)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _say(self, line: str) -> None:
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line)


def _place(state: TrainerState) -> str:
    return f"step {state.global_step:>{len(str(state.max_steps))}} of {state.max_steps}"


def spell_speed(logs: Mapping[str, Any]) -> str:
    """Tokens a second, share of the device's peak, and memory, as far as they are known, for the end of a line."""
    parts = []
    if "tokens_per_second" in logs:
        parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in logs:
        parts.append(f"MFU {logs['mfu']:.1%}")
    if "peak_memory_bytes" in logs:
        parts.append(f"{logs['peak_memory_bytes'] / 1e9:.2f} GB")
    return "".join(f", {part}" for part in parts)


def role_learning_rates(optimizer: Any) -> dict[str, float]:
    """Each role's learning rate; the largest where overrides give the groups of one role different ones."""
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        role = group.get("role", "all")
        rates[role] = max(rates.get(role, 0.0), float(group["lr"]))
    return rates


def _is_logged(args: TrainingArguments, state: TrainerState) -> bool:
    """Whether the step about to be taken will be logged; Trainer decides only after it."""
    step = state.global_step + 1
    if step == 1 and args.logging_first_step:
        return True
    return args.logging_strategy == IntervalStrategy.STEPS and step % max(int(state.logging_steps), 1) == 0


def _squared_norm(change: Tensor) -> Tensor:
    """Sum of squares in fp32, of the whole tensor where it is sharded."""
    square = torch.linalg.vector_norm(change.float()).square()
    return square.full_tensor() if hasattr(square, "full_tensor") else square

"""How a run is optimized and what it leaves behind: the options of `orthoopt pretrain` beside model and data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments

from orthoopt.recipes.errors import RecipeError, nearest
from orthoopt.recipes.optimizers import find_function
from orthoopt.recipes.options import option as _option
from orthoopt.recipes.schedules import FALLING, VECTOR_SCHEDULES, check_schedule


@dataclass
class RunArguments:
    """How it is optimized, and what is written at the end."""

    _argument_group_name: ClassVar[str] = "run"

    plan: str = _option(
        "symmetry", "Which rule each class of parameters gets: a name (`orthoopt plan` lists them) or a plan file."
    )
    plan_learning_rates: dict[str, float] | str | None = _option(
        None, "Plan to learning rate, used where --learning_rate is not given; a plan file falls back on its base's."
    )
    plan_options: dict[str, Any] | str | None = _option(
        None,
        'Options for every entry of the plan whose rule has them: "momentum=0.9,ns_steps=6", JSON, or a mapping.',
    )
    overrides: dict[str, dict[str, Any]] | str | None = _option(
        None,
        'Name pattern to options, looked at before the plan, as JSON or YAML: {"lm_head": {"rule": "adamw"}}.',
    )
    plan_overrides: dict[str, dict[str, dict[str, Any]]] | str | None = _option(
        None,
        "Plan to overrides that go with it under that very name, looked at after --overrides: a model's own learning "
        "rates, for one.",
    )
    optimizer: str | None = _option(
        None,
        "Another optimizer in place of a plan: MODULE:FUNCTION, called with the model, lr=, weight_decay= and "
        "--optimizer_options.",
    )
    optimizer_options: dict[str, Any] | str | None = _option(
        None, 'Further arguments of --optimizer: "momentum=0.9,nesterov=true", JSON, or a mapping.'
    )
    batch_tokens: float | None = _option(
        None,
        "Tokens a step, over all processes: sets gradient_accumulation_steps, which then is not given.",
    )
    total_tokens: float | None = _option(
        None, "Tokens the run sees, such as 10e9, rounded up to whole steps: sets max_steps, which then is not given."
    )
    decay_fraction: float = _option(
        0.5,
        "With warmup_stable_decay: the share of the steps, the last ones, in which the learning rate falls.",
    )
    min_lr_ratio: float = _option(
        0.0, f"Where the learning rate ends, as a share of its peak, with {', '.join(FALLING)}."
    )
    vector_schedule: str | None = _option(
        None,
        f"A schedule of their own for vectors (norms, biases): {', '.join(VECTOR_SCHEDULES)}. By default the run's.",
    )
    vector_warmup_steps: int = _option(0, "With --vector_schedule: the steps of warm-up of vectors.")
    shard: bool = _option(
        False, "Under torchrun: spread parameters, gradients and optimizer state over all processes (FSDP2)."
    )
    log_update_norms: bool = _option(True, "Log the norm of each role's update; copies the parameters to do so.")
    log_diagnostics: bool = _option(
        True,
        "Log orthoopt's diagnostics of each role, at the steps that are logged; see docs/training.md for the cost.",
    )
    max_nonfinite_steps: int = _option(
        10, "Stop when the loss was not finite in so many steps on end; looked at with every log. 0 never stops."
    )
    generate_sample: bool = _option(True, "Write a text sample at the end.")
    sample_steps: int = _option(0, "Write one every so many steps too, into samples.jsonl; 0 for none.")
    sample_prompt: str = _option("def ", "What the sample continues.")
    save_final: bool = _option(True, "Save the final model and tokenizer under OUTPUT_DIR/model.")
    overwrite_output_dir: bool = _option(False, "Delete the checkpoints of an earlier run in --output_dir.")


@dataclass
class PretrainArguments(TrainingArguments):
    """transformers' TrainingArguments; a learning rate that is not given is the plan's."""

    _argument_group_name: ClassVar[str] = "transformers.TrainingArguments"

    learning_rate: float | None = _option(None, "Peak learning rate, on AdamW's scale for every plan.")
    weight_decay: float = _option(0.1, "Decoupled weight decay.")
    logging_nan_inf_filter: bool = _option(
        False, "Trainer's own filter, which waits for the device at every step; --max_nonfinite_steps does not."
    )

    def __post_init__(self) -> None:
        self.names_output_dir = self.output_dir is not None  # if not, the run chooses a free folder
        if not torch.accelerator.is_available():
            self.use_cpu = True  # unless it is told so, Accelerate takes processes on CPUs for one
        self.wants_tf32 = bool(getattr(self, "tf32", None))
        if self.wants_tf32 and not torch.cuda.is_available():
            self.tf32 = None  # there is none, and transformers would refuse
        super().__post_init__()
        if getattr(self, "include_num_input_tokens_seen", "no") == "no":
            self.include_num_input_tokens_seen = "all"  # metrics.jsonl counts tokens, across restarts too


def check_run(run: RunArguments, training: PretrainArguments) -> None:
    """Check what the parser cannot. Raises `RecipeError`."""
    check_schedule(training.lr_scheduler_type, run.decay_fraction, run.min_lr_ratio)
    if run.optimizer is not None:
        _check_optimizer(run, training)
    if run.vector_schedule is not None and run.vector_schedule not in VECTOR_SCHEDULES:
        raise RecipeError(
            f"--vector_schedule {run.vector_schedule!r} is not one of {list(VECTOR_SCHEDULES)}"
            f"{nearest(run.vector_schedule, VECTOR_SCHEDULES)}"
        )
    for option in ("vector_warmup_steps", "max_nonfinite_steps", "sample_steps"):
        if getattr(run, option) < 0:
            raise RecipeError(f"--{option} must be at least 0, got {getattr(run, option)}")
    if run.sample_steps and (run.shard or training.fsdp or training.deepspeed):
        raise RecipeError("--sample_steps needs a whole model on the first process, which sharding does not leave")
    if run.vector_warmup_steps and run.vector_schedule is None:
        raise RecipeError("--vector_warmup_steps goes with --vector_schedule, which is not given")
    if training.fsdp and not torch.accelerator.is_available():
        raise RecipeError("--fsdp is Accelerate's, which has it on accelerators alone: --shard true works on CPUs too")


def _check_optimizer(run: RunArguments, training: PretrainArguments) -> None:
    find_function(str(run.optimizer))
    for option in ("plan_options", "overrides"):
        if getattr(run, option):
            raise RecipeError(f"--{option} is for a plan's rules, which --optimizer takes the place of")
    if training.learning_rate is None:
        raise RecipeError(f"no learning rate for --optimizer {run.optimizer}: give --learning_rate")

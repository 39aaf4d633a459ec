"""How a run is optimized and what it leaves behind: the options of `orthoopt pretrain` beside model and data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments

from orthoopt.recipes.errors import RecipeError, nearest
from orthoopt.recipes.options import option as _option
from orthoopt.recipes.schedules import VECTOR_SCHEDULES


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
    decay_fraction: float = _option(
        0.5,
        "With warmup_stable_decay: the share of the steps in which the learning rate falls linearly to 0.",
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
    generate_sample: bool = _option(True, "Write a text sample at the end.")
    sample_prompt: str = _option("def ", "What the sample continues.")
    save_final: bool = _option(True, "Save the final model and tokenizer under OUTPUT_DIR/model.")
    overwrite_output_dir: bool = _option(False, "Delete the checkpoints of an earlier run in --output_dir.")


@dataclass
class PretrainArguments(TrainingArguments):
    """transformers' TrainingArguments; a learning rate that is not given is the plan's."""

    _argument_group_name: ClassVar[str] = "transformers.TrainingArguments"

    learning_rate: float | None = _option(None, "Peak learning rate, on AdamW's scale for every plan.")
    weight_decay: float = _option(0.1, "Decoupled weight decay.")

    def __post_init__(self) -> None:
        self.names_output_dir = self.output_dir is not None  # if not, the run chooses a free folder
        if not torch.accelerator.is_available():
            self.use_cpu = True  # unless it is told so, Accelerate takes processes on CPUs for one
        wanted: bool | None = self.tf32  # type: ignore[has-type]
        self.wants_tf32 = bool(wanted)
        if wanted and not torch.cuda.is_available():
            self.tf32 = None  # there is none, and transformers would refuse
        super().__post_init__()
        if getattr(self, "include_num_input_tokens_seen", "no") == "no":
            self.include_num_input_tokens_seen = "all"  # metrics.jsonl counts tokens, across restarts too


def check_run(run: RunArguments, training: PretrainArguments) -> None:
    """Check what the parser cannot. Raises `RecipeError`."""
    if not 0.0 < run.decay_fraction < 1.0:
        raise RecipeError(f"--decay_fraction must lie between 0 and 1, got {run.decay_fraction}")
    if run.vector_schedule is not None and run.vector_schedule not in VECTOR_SCHEDULES:
        raise RecipeError(
            f"--vector_schedule {run.vector_schedule!r} is not one of {list(VECTOR_SCHEDULES)}"
            f"{nearest(run.vector_schedule, VECTOR_SCHEDULES)}"
        )
    if run.vector_warmup_steps < 0:
        raise RecipeError(f"--vector_warmup_steps must be at least 0, got {run.vector_warmup_steps}")
    if run.vector_warmup_steps and run.vector_schedule is None:
        raise RecipeError("--vector_warmup_steps goes with --vector_schedule, which is not given")
    if training.fsdp and not torch.accelerator.is_available():
        raise RecipeError("--fsdp is Accelerate's, which has it on accelerators alone: --shard true works on CPUs too")

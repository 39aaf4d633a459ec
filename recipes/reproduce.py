"""What it takes to make a run again: config.yaml, its options, and environment.json, what they ran on."""

from __future__ import annotations

import os
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from orthoopt.bench import machine
from orthoopt.plan_files import PlanFile
from orthoopt.recipes.arguments import Arguments
from orthoopt.recipes.tokenizer import write_atomically

CONFIG, ENVIRONMENT = "config.yaml", "environment.json"
_ONE_RUN = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "logging_dir", "run_name")
_PACKAGES = ("accelerate", "datasets", "huggingface_hub", "numpy", "peft", "safetensors", "tokenizers", "wandb")
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG",
              "PYTORCH_ALLOC_CONF", "NVIDIA_TF32_OVERRIDE")  # fmt: skip


def config_text(arguments: Arguments, plan_file: Path) -> str:
    """The options of a run as a config: what was given, and the seeds and learning rate that came of it.

    A plan file's is `plan_file`, where it is kept as it was. The folder and the checkpoint are the next run's own.
    """
    training = arguments.training
    values = {key: value for key, value in arguments.given.items() if key not in _ONE_RUN}
    values |= {
        "model": arguments.model.model,
        "model_overrides": arguments.model_overrides,
        "plan": str(plan_file) if isinstance(arguments.plan, PlanFile) else arguments.plan,
        "learning_rate": arguments.learning_rate,
        "weight_decay": training.weight_decay,
        "seed": training.seed,
        "data_seed": training.seed if training.data_seed is None else training.data_seed,
    }
    values = {key: int(value) if isinstance(value, float) and value.is_integer() else value
              for key, value in values.items()}  # fmt: skip
    head = f"# Makes this run again: {run_command(arguments, plan_file.parent, '--output_dir', 'NEW_FOLDER')}"
    if training.world_size > 1:
        head += f"\n# It had {training.world_size} processes, under torchrun."
    return f"{head}\n{yaml.safe_dump(values, sort_keys=True, allow_unicode=True)}"


def run_command(arguments: Arguments, output: Path, *words: str) -> str:
    """The command that trains with the options of the run in `output`, followed by more words."""
    return shlex.join(["orthoopt", *arguments.command, str(output / CONFIG), *words])


def write_config(arguments: Arguments, plan_file: Path) -> None:
    """Write config.yaml beside the plan file."""
    write_atomically(plan_file.with_name(CONFIG), config_text(arguments, plan_file).encode())


def describe_environment(arguments: Arguments) -> dict[str, Any]:
    """What environment.json holds: machine, GPU, releases, commit, processes, variables that change results."""
    training = arguments.training
    found = machine.describe(training.device)
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {
        "device": str(training.device),
        "processes": training.world_size,
        "versions": found["versions"] | packages,
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }

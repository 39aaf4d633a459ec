"""FSDP2 under torchrun: every process holds a part of each parameter, its gradient and its optimizer state.

transformers shards a model while it loads it, which reaches every device that torch.distributed does, CPUs too;
Accelerate's own FSDP starts on accelerators alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.distributed import DistributedConfig

from orthoopt.recipes.errors import RecipeError

OPTIMIZER = "optimizer"
"""The folder of a checkpoint that holds the optimizer's state, in torch's distributed format."""

_INITIAL = "initial-weights"


def sharded(model: PreTrainedModel, output: Path, checkpoint: Path | None) -> PreTrainedModel:
    """The model with its parameters spread over all processes.

    Args:
        model: with the same weights on every process.
        output: a folder that all processes see; the weights pass through it, and are removed again.
        checkpoint: where the weights are instead, if a run is resumed.

    Raises:
        RecipeError: there is one process alone, or transformers cannot shard this architecture.
    """
    size = dist.get_world_size() if dist.is_initialized() else 1
    if size < 2:
        raise RecipeError("--shard needs several processes: torchrun --nproc_per_node=N -m orthoopt.recipes.pretrain")
    source = checkpoint or output / _INITIAL
    if checkpoint is None and dist.get_rank() == 0:
        model.save_pretrained(source)
    dist.barrier()
    try:
        return type(model).from_pretrained(
            source, dtype=torch.float32, distributed_config=DistributedConfig(fsdp_size=size)
        )
    except ValueError as error:
        raise RecipeError(f"--shard: {error}") from error
    finally:
        dist.barrier()
        if checkpoint is None and dist.get_rank() == 0:
            shutil.rmtree(source)


def save_optimizer(model: PreTrainedModel, optimizer: Optimizer, checkpoint: Path) -> None:
    """Write the optimizer's state, every process its own part; it loads with any number of them."""
    save({OPTIMIZER: get_optimizer_state_dict(model, optimizer)}, checkpoint_id=checkpoint / OPTIMIZER)


def load_optimizer(model: PreTrainedModel, optimizer: Optimizer, checkpoint: Path) -> None:
    """Read what :func:`save_optimizer` wrote, however many processes did.

    Raises:
        RecipeError: the checkpoint holds the state of an optimizer that was not sharded.
    """
    folder = checkpoint / OPTIMIZER
    if not (folder / ".metadata").is_file():
        raise RecipeError(f"{checkpoint} was made without --shard: resume without it, or start anew")
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer)
    load({OPTIMIZER: state}, checkpoint_id=folder)
    set_optimizer_state_dict(model, optimizer, state)

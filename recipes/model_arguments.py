"""Which network is trained: the options of `orthoopt pretrain` beside data and run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from orthoopt.recipes.errors import RecipeError, nearest
from orthoopt.recipes.gpus import GPUS
from orthoopt.recipes.options import option as _option


@dataclass
class ModelArguments:
    """Which network is trained, from random weights, and what is found out before."""

    _argument_group_name: ClassVar[str] = "model"

    model: str = _option(
        "Qwen3Config",
        "A transformers config or causal-LM class (Qwen3Config), a model type (qwen3), a folder or "
        "config.json, or a Hub name; the weights are always new.",
    )
    model_overrides: dict[str, Any] | str | None = _option(
        None,
        'Changes to that config: "num_hidden_layers=2,hidden_size=64", JSON, or a mapping in YAML. '
        "Merged over the config's own; dropped with it when --model names another model.",
    )
    check_memory: bool = _option(
        True, "Refuse a run that cannot fit into the memory of its device, before anything of it is there."
    )
    dry_run: bool = _option(
        False, "Train and write nothing: say what would be trained, on what, and what it would take."
    )
    dry_run_gpu: str = _option("H100", f"With --dry_run, the GPU whose memory and speed count: {', '.join(GPUS)}.")
    dry_run_gpus: int | None = _option(None, "With --dry_run, how many of them; by default as many as processes.")

    @property
    def loader(self) -> str:
        """The class whose `from_pretrained` reads what the run saves."""
        return "AutoModelForCausalLM"


def check_model(model: Any) -> None:
    """Check what the parser cannot, where these options are among a recipe's own."""
    if not isinstance(model, ModelArguments):
        return
    if model.dry_run_gpu not in GPUS:
        raise RecipeError(
            f"--dry_run_gpu {model.dry_run_gpu!r} is not one of {sorted(GPUS)}{nearest(model.dry_run_gpu, GPUS)}"
        )
    if model.dry_run_gpus is not None and model.dry_run_gpus < 1:
        raise RecipeError(f"--dry_run_gpus must be at least 1, got {model.dry_run_gpus}")

"""LoRA adapters (peft) around a model's layers, and a model with its adapters merged into it."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, set_seed
from transformers.pytorch_utils import Conv1D

from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.finetune_arguments import FinetuneArguments


def add_adapters(model: PreTrainedModel, options: FinetuneArguments, seed: int) -> Any:
    """The model, frozen, inside a `peft.PeftModel` whose adapters alone train; `lora_A` is drawn from `seed`.

    Raises `RecipeError` when peft is not installed, or the target names nothing that can have an adapter.
    """
    if importlib.util.find_spec("peft") is None:
        raise RecipeError("--lora_rank needs the `peft` package: pip install peft")
    import peft

    config = peft.LoraConfig(
        r=options.lora_rank,
        lora_alpha=alpha(options),
        lora_dropout=options.lora_dropout,
        target_modules=_targets(options.lora_target_modules),
        target_parameters=_names(options.lora_target_parameters or "") or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    set_seed(seed)
    try:
        with _former_names():
            return peft.get_peft_model(model, config)
    except ValueError as error:
        kinds = {name.rpartition(".")[2] for name, module in model.named_modules()
                 if isinstance(module, (nn.Linear, nn.Embedding, Conv1D))}  # fmt: skip
        raise RecipeError(
            f"--lora_target_modules {options.lora_target_modules!r}: peft finds no such layer; "
            f"the model's are {', '.join(sorted(kinds))}"
        ) from error


def alpha(options: FinetuneArguments) -> int:
    """What adapters are multiplied with, times the rank."""
    return 2 * options.lora_rank if options.lora_alpha is None else options.lora_alpha


def describe(model: Any, options: FinetuneArguments) -> dict[str, Any] | None:
    """What run.json says of the adapters; None without."""
    if not options.lora_rank:
        return None
    adapted = {name.partition(".lora_")[0] for name, param in model.named_parameters() if param.requires_grad}
    return {
        "rank": options.lora_rank,
        "alpha": alpha(options),
        "dropout": options.lora_dropout,
        "target_modules": options.lora_target_modules,
        "target_parameters": options.lora_target_parameters,
        "layers": len(adapted),
    }


def save_merged(adapters: Path, base: str, output: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the model of `base`, in the dtype it was saved in, with the adapters added to its weights."""
    import peft

    with torch.no_grad(), _former_names():
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        merged = peft.PeftModel.from_pretrained(model, str(adapters)).merge_and_unload()
    merged.save_pretrained(output)
    tokenizer.save_pretrained(output)


@contextlib.contextmanager
def _former_names() -> Iterator[None]:
    """Without transformers' warning that peft asks for a property by its former name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _targets(text: str) -> str | list[str]:
    return text if text == "all-linear" else _names(text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]

"""The network: any transformers config, with new weights, fitted to the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from orthoopt.recipes.errors import RecipeError, nearest


def load_config(name: str) -> PretrainedConfig:
    """Find the config that `--model` names.

    A folder or config.json, a published model whose shapes come with the recipes (`qwen3-0.6b`), a class of
    transformers (`Qwen3Config`, `Qwen3ForCausalLM`), a model type (`qwen3`), or a Hub name. Raises `RecipeError`
    naming the nearest of them.
    """
    path = Path(name)
    if path.exists():
        return _pretrained_config(path if path.is_dir() else path.resolve(), name)
    shipped = architectures()
    if name.lower() in shipped:
        return AutoConfig.for_model(**json.loads(shipped[name.lower()].read_text(encoding="utf-8")))
    if name in CONFIG_MAPPING:
        return CONFIG_MAPPING[name]()
    if name.isidentifier() and hasattr(transformers, name):
        found = getattr(transformers, name)
        found = getattr(found, "config_class", None) or found
        if isinstance(found, type) and issubclass(found, PretrainedConfig):
            return found()
        raise RecipeError(f"--model {name!r}: transformers.{name} is neither a config nor a model class")
    classes = [*CONFIG_MAPPING_NAMES.values(), *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()]
    known = [*shipped, *CONFIG_MAPPING_NAMES, *(item for item in classes if isinstance(item, str))]
    # The Hub has old names without an owner; one letter off a name that comes with the recipes is none of them.
    if "/" in name or not (name.isidentifier() or nearest(name.lower(), shipped, likeness=0.8)):
        return _pretrained_config(name, name)
    raise RecipeError(
        f"--model {name!r} is no file, no class of transformers, no model type and no Hub name{nearest(name, known)}"
    )


def architectures() -> dict[str, Traversable]:
    """The published models whose shapes come with the recipes: name -> config.json."""
    files = resources.files("orthoopt.recipes.architectures").iterdir()
    return {file.name.removesuffix(".json"): file for file in sorted(files, key=str) if file.name.endswith(".json")}


def build_model(
    name: str, overrides: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, *, block_size: int, seed: int
) -> PreTrainedModel:
    """A causal language model with weights drawn from `seed` and the tokenizer's vocabulary.

    Raises `RecipeError` for an override the config does not have, and for a config that has no causal LM.
    """
    config = fitted_config(name, overrides, tokenizer, block_size=block_size)
    transformers.set_seed(seed)
    # fp32 masters whatever dtype the config was published with; --bf16 computes in bf16 all the same.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if model.generation_config is not None:
        model.generation_config.bos_token_id = tokenizer.bos_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        model.generation_config.pad_token_id = padding
    return model


def fitted_config(
    name: str, overrides: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast | None, *, block_size: int
) -> PretrainedConfig:
    """The config that `name` and `overrides` come to, for a tokenizer and blocks of `block_size` tokens.

    The vocabulary is the tokenizer's, or an override's `vocab_size` that is larger: some are padded. Without a
    tokenizer it is the config's own. Raises `RecipeError` as `build_model`.
    """
    config = load_config(name)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise RecipeError(f"--model {name!r}: transformers has no causal language model for {type(config).__name__}")
    values = _changed(config, overrides)
    return _rebuilt(config, values | _fitted(config, values, overrides, tokenizer, block_size))


def changed_config(config: PretrainedConfig, overrides: Mapping[str, Any]) -> PretrainedConfig:
    """The config with other values; those that follow from them follow. Raises `RecipeError` for unknown keys."""
    return _rebuilt(config, _changed(config, overrides)) if overrides else config


def _changed(config: PretrainedConfig, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The config's values with the overrides, to build it anew, so that derived values follow."""
    defaults = type(config)().to_dict()
    # Only what was set: defaults that follow from it (key-value heads from heads) are left to follow.
    values = {key: value for key, value in config.to_dict().items() if value != defaults.get(key)}
    own = set(defaults) | set(config.attribute_map)
    for key in overrides:
        if key not in own:
            raise RecipeError(f"{type(config).__name__} has no {key!r}{nearest(key, own)}")
    for key in config.attribute_map:  # n_embd and hidden_size are one value: keep the one that was given
        values.pop(key, None)
    if "num_hidden_layers" in overrides:
        values.pop("layer_types", None)  # one entry per layer, made again from the number of layers
    return values | {config.attribute_map.get(key, key): value for key, value in overrides.items()}


def _rebuilt(config: PretrainedConfig, values: Mapping[str, Any]) -> PretrainedConfig:
    """A config of the same class from `values`, which transformers checks against each other."""
    try:
        return type(config)(**values)
    except (TypeError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{type(config).__name__} refuses these values: {reason}") from error


def _fitted(
    config: PretrainedConfig,
    values: Mapping[str, Any],
    overrides: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerFast | None,
    block_size: int,
) -> dict[str, Any]:
    """What the tokenizer and the block size decide."""
    if config.get_text_config() is not config:
        raise RecipeError(f"--model: {type(config).__name__} is multimodal; name its text config instead")
    fitted: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if tokenizer is not None:
        padded = int(overrides.get("vocab_size", len(tokenizer)))
        if padded < len(tokenizer):
            raise RecipeError(
                f"--model_overrides vocab_size={padded} is less than the {len(tokenizer)} tokens of the tokenizer"
            )
        fitted = {
            "vocab_size": padded,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            # As `padding_idx` of the embedding it would stop its row's gradient, which end of text needs.
            "pad_token_id": None if tokenizer.pad_token_id == tokenizer.eos_token_id else tokenizer.pad_token_id,
        }
    length = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    given = values.get(length)
    if given is not None:
        fitted[length] = max(int(given), block_size)
    return fitted


def _pretrained_config(source: str | Path, name: str) -> PretrainedConfig:
    try:
        if isinstance(source, Path) and source.is_file():
            return AutoConfig.for_model(**json.loads(source.read_text(encoding="utf-8")))
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError, TypeError) as error:
        raise RecipeError(f"--model {name}: cannot be loaded: {str(error).strip().splitlines()[0]}") from error

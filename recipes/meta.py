"""Models without weights: built on the meta device from what a user calls them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import transformers
import yaml
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.models import changed_config, load_config


def build_meta_model(name: str, settings: Sequence[str] = ()) -> PreTrainedModel:
    """A transformers model on the meta device: names, shapes and modules, no memory.

    Args:
        name: a model class (``Qwen3ForCausalLM``), config class, model type (``qwen3``), folder, config.json or
            hub name. Without a model class, the causal language model of the config, or else its base model.
        settings: ``key=value`` changes to the config.

    Raises:
        RecipeError: nothing has that name, or the config has no such key.
    """
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise RecipeError(f"--set {setting!r} is not KEY=VALUE")
        overrides[key] = yaml.safe_load(value)
    config = changed_config(load_config(name), overrides)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model_class = getattr(transformers, name, None) if name.isidentifier() else None
    with torch.device("meta"):
        if isinstance(model_class, type) and issubclass(model_class, PreTrainedModel):
            return model_class(config)
        auto = AutoModelForCausalLM if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING else AutoModel
        return auto.from_config(config)

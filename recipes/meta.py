"""Models without weights: built on the meta device from what a user calls them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import transformers
import yaml
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from orthoopt.recipes.errors import RecipeError, nearest
from orthoopt.recipes.models import load_config


def build_meta_model(name: str, settings: Sequence[str] = ()) -> PreTrainedModel:
    """A transformers model on the meta device: names, shapes and modules, no memory.

    Args:
        name: a model class (``Qwen3ForCausalLM``), config class, model type (``qwen3``), folder, config.json or hub
            name. Without a model class, the causal language model of the config, or else its base model.
        settings: ``key=value`` changes to the config.

    Raises:
        RecipeError: nothing has that name, or the config has no such key.
    """
    config = load_config(name)
    known = config.to_dict()
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or key not in known:
            problem = "is not KEY=VALUE" if not separator else f"is unknown to {type(config).__name__}"
            raise RecipeError(f"--set {setting!r} {problem}{nearest(key, known)}")
        setattr(config, key, yaml.safe_load(value))
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model_class = getattr(transformers, name, None) if name.isidentifier() else None
    with torch.device("meta"):
        if isinstance(model_class, type) and issubclass(model_class, PreTrainedModel):
            return model_class(config)
        auto = AutoModelForCausalLM if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING else AutoModel
        return auto.from_config(config)

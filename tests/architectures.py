"""Every architecture of transformers' auto mappings, built small: real code, shrunken configs, no downloads.

``names(family)`` lists the model types of the installed transformers, ``build(name)`` makes one. On the meta device
nothing is computed; on the cpu the weights are the model's own random initialisation, and a forward pass is tiny.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import architecture_sizes_vision
import torch
from architecture_sizes import EXCEPTIONS, SIGLIP_FOR_GEMMA3N, SIZES, VARIANTS, VOCABULARY, WIDTH_OF_TOWERS, Fields
from architecture_sizes_vision import CLASSES, ONE_CLASS, UNBUILDABLE
from torch import nn
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

FAMILIES = {
    "causal_lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "masked_lm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "image_classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "object_detection": "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
    "semantic_segmentation": "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
    "universal_segmentation": "MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES",
    "instance_segmentation": "MODEL_FOR_INSTANCE_SEGMENTATION_MAPPING_NAMES",
    "zero_shot_object_detection": "MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES",
    "zero_shot_image_classification": "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "masked_image_modeling": "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES",
    "mask_generation": "MODEL_FOR_MASK_GENERATION_MAPPING_NAMES",
    "depth_estimation": "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES",
    "image_text_to_text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "multimodal_lm": "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    "speech_seq2seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "ctc": "MODEL_FOR_CTC_MAPPING_NAMES",
    "audio_classification": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "text_to_waveform": "MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES",
}

# Of these families the models used most are tested every time, the others are slow tests.
QUICK = {
    **architecture_sizes_vision.QUICK,
    "image_text_to_text": (
        "blip-2 idefics3 internvl llama4 llava llava_next mistral3 mllama paligemma qwen2_vl qwen2_5_vl qwen3_vl_moe"
    ),
    "multimodal_lm": "",
    "speech_seq2seq": "speech_to_text whisper",
    "ctc": "parakeet_ctc wav2vec2@large wavlm",
    "audio_classification": "audio-spectrogram-transformer",
    "text_to_waveform": "bark vits",
}

# Their models that a family above has under the same type and class are not built twice.
REST = {"image_text_to_text", "multimodal_lm", "speech_seq2seq", "text_to_waveform"}


def names(family: str = "causal_lm") -> list[str]:
    """The model types of a family, in the order of the installed transformers; several may share one class.

    Without those that are another library's models and cannot be built without it.
    """
    mapping = {name: found for name, found in _mapping(family).items() if name not in UNBUILDABLE}
    if family not in REST:
        return list(mapping)
    above = [_mapping(other) for other in itertools.takewhile(lambda other: other != family, FAMILIES)]
    return [name for name in mapping if all(other.get(name) != mapping[name] for other in above)]


def variants(family: str = "causal_lm") -> list[str]:
    """Model types with an option that changes a layout, ``falcon@grouped``; ``build`` takes them like the others."""
    return [variant for variant in VARIANTS.get(family, {}) if variant.partition("@")[0] in _mapping(family)]


def is_quick(name: str, family: str) -> bool:
    """Whether this model is built every time and not in slow tests alone."""
    return family not in QUICK or bool({name, name.partition("@")[0]} & set(QUICK[family].split()))


def class_name(name: str, family: str = "causal_lm") -> str:
    """The class that transformers builds for this model type; KeyError for a type it does not have."""
    found = _mapping(family)[name.partition("@")[0]]
    return found if isinstance(found, str) else found[0]


def build(name: str, device: str = "meta", family: str = "causal_lm") -> nn.Module:
    """The model of this type with a shrunken config, in training mode, on the meta device unless told."""
    import transformers

    model_class = getattr(transformers, class_name(name, family))
    with warnings.catch_warnings(), torch.device(device), _all_layers_shared(name), _without_natten(name):
        warnings.simplefilter("ignore")  # what transformers thinks of small configs is not what is tested
        config_class = _config_class(name.partition("@")[0], model_class)
        classes = {} if name in ONE_CLASS else CLASSES.get(family, {})
        config = shrunken(config_class, **classes | VARIANTS.get(family, {}).get(name, {}))
        if family == "masked_lm" and getattr(config, "is_decoder", False):
            config.is_decoder = False  # what EXCEPTIONS say of Reformer is for the decoder
        return model_class(config).train()


def tokens(model: nn.Module, length: int = 8) -> torch.Tensor:
    """Token ids that every vocabulary of the model has, (1, length); (codebooks, length) for audio decoders."""
    codebooks = getattr(model.config, "num_codebooks", 1) if "Musicgen" in type(model).__name__ else 1
    return torch.arange(3, 3 + length).repeat(codebooks, 1)


def shrunken(config_class: Any, **fields: Any) -> Any:
    """A config of this class with the sizes of ``architecture_sizes``, its nested configs too, and these fields."""
    config = config_class(**_fields(config_class) | fields)
    if config.model_type == "gemma3n":  # the vision tower is timm's MobileNet: SigLIP stands in for it
        vision = SIGLIP_FOR_GEMMA3N
        vars(config)["vision_config"] = CONFIG_MAPPING[vision["model_type"]](**vision)  # past the check of its class
    return config


@contextlib.contextmanager
def _all_layers_shared(name: str) -> Iterator[None]:
    """Let Gemma 4's assistants be built.

    All their layers take keys and values from the target model, which transformers 5.23 demands of their configs and
    then refuses when it builds the layers.
    """
    if not name.endswith("_assistant"):
        yield
        return
    text_class = CONFIG_MAPPING[name.replace("assistant", "text")]
    modes = property(lambda config: ["reuse"] * config.num_hidden_layers)
    with mock.patch.object(text_class, "kv_sharing_modes", modes, create=True):
        yield


@contextlib.contextmanager
def _without_natten(name: str) -> Iterator[None]:
    """Let Dinat be built: only its forward pass needs natten's kernels."""
    if name != "dinat":
        yield
        return
    with mock.patch("transformers.models.dinat.modeling_dinat.requires_backends"):
        yield


def _mapping(family: str) -> dict[str, Any]:
    return getattr(modeling_auto, FAMILIES[family])


def _config_class(name: str, model_class: Any) -> Any:
    """The config class of the model type, or of its text part where the model is built from that alone."""
    whole = CONFIG_MAPPING[name]
    return whole if issubclass(whole, model_class.config_class) else model_class.config_class


def _fields(config_class: Any) -> Fields:
    """Arguments for the constructor: known sizes, ids of tokens inside the vocabulary, nested configs, exceptions."""
    exceptions = EXCEPTIONS.get(config_class.model_type, EXCEPTIONS.get(config_class.__name__, {}))
    fields: Fields = {}
    for field, parameter in inspect.signature(config_class).parameters.items():
        if field in SIZES and not isinstance(parameter.default, list | tuple):  # one for each stage: as it is
            fields[field] = SIZES[field]
        elif field == "depths" and isinstance(parameter.default, list | tuple):
            fields[field] = [min(count, 2) for count in parameter.default]
        elif field.endswith(("_token_id", "_token_index", "_token_ids")):
            fields |= _token(field, parameter.default)
    if "kv_lora_rank" in fields and "num_key_value_heads" in fields:  # latent attention has no grouped queries
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    given = {field: spec.init_kwargs or {} for field, spec in getattr(config_class, "sub_configs_defaults", {}).items()}
    nested = {field: given.get(field, {}) | _fields(inner) for field, inner in _nested(config_class).items()}
    for tower in nested.keys() & {"vision_config", "audio_config"}:  # not as wide as the text, so that projectors show
        nested[tower] |= {field: WIDTH_OF_TOWERS for field in nested[tower].keys() & {"hidden_size", "d_model"}}
    for field, value in exceptions.items():
        if field in nested and isinstance(value, dict):
            nested[field] |= value
        else:
            fields[field] = value
    return nested | fields


def _token(field: str, default: Any) -> Fields:
    """An id inside the vocabulary for a token whose default lies outside; special tokens stay apart."""
    if isinstance(default, int) and default >= VOCABULARY:
        return {field: VOCABULARY - 1 - sum(map(ord, field)) % 32}
    return {}


def _nested(config_class: Any) -> dict[str, Any]:
    """The classes of a config's nested configs, without those left out by default and backbones of vision models.

    Which layers of a backbone the model reads goes with its size: exceptions alone say what to change there.
    """
    defaults = getattr(config_class, "sub_configs_defaults", None)
    if defaults:
        found = {
            # not .get(), which finds nothing in this lazy mapping
            field: CONFIG_MAPPING[spec.model_type] if spec.model_type in set(CONFIG_MAPPING) else spec.config_class
            for field, spec in defaults.items()
            if field != "backbone_config"
        }
    else:
        found = {field: inner for field, inner in config_class.sub_configs.items() if field != "backbone_config"}
    try:
        made = config_class()
    except Exception:  # a default config that does not pass its own checks: its exceptions say what to set
        return found
    return {field: type(getattr(made, field)) for field in found if getattr(made, field, None) is not None}

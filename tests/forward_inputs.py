"""What a forward pass of each causal LM needs: token ids, and where a model reads more, that too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Their cross attention runs only when there is something to attend to.
READ_AN_ENCODER = frozenset(
    [
        *[
            "bart",
            "bigbird_pegasus",
            "blenderbot",
            "blenderbot-small",
            "marian",
            "mbart",
            "musicgen",
            "musicgen_melody",
        ],
        *["mvp", "pegasus", "plbart", "prophetnet", "trocr"],
    ]
)
# They draft one token from the hidden state, keys and values of the model they assist, and take no token ids.
ASSISTANTS = frozenset({"gemma4_assistant", "gemma4_unified_assistant"})


def input_ids(model: nn.Module, length: int = 12) -> Tensor:
    """Token ids (2, length), or (2 * codebooks, length) for an audio decoder, in no order and without special ones."""
    decoder = getattr(model.config, "decoder", None)
    codebooks = getattr(decoder or model.config, "num_codebooks", 1) if "Musicgen" in type(model).__name__ else 1
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(47, generator=generator)[:length] + 20 for _ in range(2 * codebooks)])


def forward_arguments(name: str, model: nn.Module) -> dict[str, Any]:
    """Arguments of one forward pass of the architecture of this name."""
    config = model.config.get_text_config()
    if name in ASSISTANTS:
        return {
            "inputs_embeds": torch.randn(2, 1, 2 * model.config.backbone_hidden_size),
            "shared_kv_states": {
                layer.self_attn.layer_type: _keys_and_values(layer.self_attn, config.num_attention_heads)
                for layer in model.model.layers
            },
        }
    ids = input_ids(model)
    more: dict[str, Any] = {}
    if name in READ_AN_ENCODER or getattr(config, "add_cross_attention", False):
        width = getattr(config, "cross_attention_hidden_size", None) or config.hidden_size
        more["encoder_hidden_states"] = torch.randn(2, 5, width)
    if name == "whisper":
        more["encoder_outputs"] = (torch.randn(2, 5, config.hidden_size),)
    if name == "mllama":
        more["cross_attention_states"] = torch.randn(2, 5, config.hidden_size)
    return {"input_ids": ids, "use_cache": False, **more}


def _keys_and_values(attention: Any, heads: int) -> tuple[Tensor, Tensor]:
    shape = (2, heads // attention.num_key_value_groups, 12, attention.head_dim)
    return torch.randn(shape), torch.randn(shape)

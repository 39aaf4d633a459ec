"""Small models that the tests share; transformers is imported only by the builders that need it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

DENSE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def transformers_model(architecture: str, config: dict[str, Any], device: str = "meta") -> nn.Module:
    """A transformers model of this class with this config, on the meta device unless told."""
    import transformers

    model_class = getattr(transformers, architecture)
    with torch.device(device):
        return model_class(model_class.config_class(**config))


def llama(device: str = "meta", **config: Any) -> nn.Module:
    """Llama: untied, grouped queries, SwiGLU."""
    return transformers_model("LlamaForCausalLM", {**DENSE, "tie_word_embeddings": False, **config}, device)


def qwen3(device: str = "meta", **config: Any) -> nn.Module:
    """Qwen3: Llama with q and k norms; untied."""
    return transformers_model("Qwen3ForCausalLM", {**DENSE, "tie_word_embeddings": False, **config}, device)


def gemma3(device: str = "meta", **config: Any) -> nn.Module:
    """Gemma 3, text: a subclass of nn.Embedding, tied; four norms."""
    return transformers_model("Gemma3ForCausalLM", {**DENSE, **config}, device)


def gpt2(device: str = "meta", **config: Any) -> nn.Module:
    """GPT-2: Conv1D, fused q, k, v, position table, tied."""
    small = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
    return transformers_model("GPT2LMHeadModel", {**small, **config}, device)


def olmoe(device: str = "meta", **config: Any) -> nn.Module:
    """OLMoE: experts stored (experts, out, in), gate above up; untied."""
    moe = {**DENSE, "num_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": False}
    return transformers_model("OlmoeForCausalLM", {**moe, **config}, device)


def gpt_oss(device: str = "meta", **config: Any) -> nn.Module:
    """gpt-oss: experts stored (experts, in, out), gate and up interleaved, with biases; raw router; sinks."""
    moe = {**DENSE, "num_local_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": False}
    layers = {"layer_types": ["sliding_attention", "full_attention"]}
    return transformers_model("GptOssForCausalLM", {**moe, **layers, **config}, device)


class ConvNet(nn.Module):
    """A first convolution, a depthwise and a pointwise one, a hidden layer, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 16, 1)
        self.hidden = nn.Linear(16, 24)
        self.out = nn.Linear(24, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, 3, height, width) -> logits (batch, 10)."""
        x = self.pointwise(self.depthwise(self.norm(self.stem(images)).relu()).relu())
        return self.out(self.hidden(x.mean((-2, -1))).relu())


class TorchLanguageModel(nn.Module):
    """Plain torch: an embedding, a position table, nn.TransformerEncoder, and a head with no accessor."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(96, 32)
        self.position = nn.Embedding(16, 32)
        layer = nn.TransformerEncoderLayer(32, 4, dim_feedforward=48, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.readout = nn.Linear(32, 96, bias=False)
        if tied:
            self.readout.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, length) -> logits (batch, length, 96)."""
        places = torch.arange(tokens.shape[-1], device=tokens.device)
        return self.readout(self.body(self.tokens(tokens) + self.position(places)))

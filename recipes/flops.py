"""Floating point operations of training on a token, and what a GPU's vendor says it can do.

Their quotient, at a measured number of tokens a second, is the model FLOPs utilization (MFU) of Chowdhery et al.,
arXiv 2204.02311, appendix B: what the model needs counts, what is computed twice (checkpointed activations) does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

_EXPERTS_A_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_UNSCORED = ("linear_attention", "conv", "mamba", "mlp", "moe")


def training_flops_per_token(model: PreTrainedModel, block_size: int) -> float:
    """FLOPs of a forward and a backward pass, for each token of blocks of `block_size`.

    Counted are products with matrices: 2 a weight forward, 2 for the gradient of its input, and 2 for its own
    gradient if it is trained. An embedding is looked up, and counts only where it is the output layer too; of experts
    count those that a token is sent to. Attention is 12 a query, head dimension, head and layer, for all of the block
    or the layer's window: masked scores count too, as in PaLM's definition and nanoGPT's. Norms, activations, the
    softmax and the optimizer's step are left out, as is the scan of state spaces and linear attention.

    Args:
        model: a causal language model of transformers; one on the meta device will do.
        block_size: tokens that attend to each other.

    Raises:
        ValueError: the config of a mixture of experts does not say how many of them see a token.
    """
    config = model.config.get_text_config()
    output = model.get_output_embeddings()
    head = getattr(output, "weight", None)
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    total = 0.0
    for name, param in model.named_parameters():
        if param.ndim < 2 or name.endswith("bias") or (id(param) in looked_up and param is not head):
            continue
        passes = 6 if param.requires_grad else 4
        total += passes * param.numel() * _used_share(name, param, config)
    return total + 6 * sum(_reaches(config, block_size)) * _head_sizes(config)


def _reaches(config: Any, block_size: int) -> Iterator[int]:
    """How many keys a query is scored against in each layer that has attention."""
    window = block_size
    if getattr(config, "use_sliding_window", True):
        window = min(getattr(config, "sliding_window", None) or block_size, block_size)
    chunk = min(getattr(config, "attention_chunk_size", None) or block_size, block_size)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        yield from [window] * config.num_hidden_layers
        return
    for kind in kinds:
        if "sliding" in kind:
            yield window
        elif kind == "chunked_attention":
            yield chunk
        elif kind not in _UNSCORED:
            yield block_size


def _head_sizes(config: Any) -> int:
    """Dimensions of all query heads and of all value heads, together."""
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return 0
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    rotary = getattr(config, "qk_rope_head_dim", None)  # multi-head latent attention: its keys have two parts
    query = getattr(config, "qk_nope_head_dim", 0) + rotary if rotary else size
    value = (getattr(config, "v_head_dim", None) or size) if rotary else size
    return int(heads) * int(query + value)


def _used_share(name: str, param: nn.Parameter, config: Any) -> float:
    """The part of a parameter that a token is multiplied by: of routed experts, those it is sent to."""
    chosen, experts = _first(config, _EXPERTS_A_TOKEN), _first(config, _EXPERTS)
    stacked = param.ndim == 3 and param.shape[0] == experts
    if "experts" not in name.split(".") and not stacked:
        return 1.0
    if not chosen or not experts:
        asked = ", ".join((*_EXPERTS_A_TOKEN, *_EXPERTS))
        raise ValueError(f"{type(config).__name__} does not say how many experts see a token, for {name} (by {asked})")
    return float(chosen) / float(experts)


def _first(config: Any, names: tuple[str, ...]) -> Any:
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)


class _Peak(NamedTuple):
    """A GPU's dense peak in TFLOP/s; None for what it does not have."""

    words: tuple[str, ...]  # all of them in the device's name
    half: float  # fp16, and bf16 if there is tf32 too: both came with Ampere
    tf32: float | None
    fp32: float


# Data sheets of NVIDIA and AMD, with sparsity taken out and, on GeForce, sums in fp32. The first row that fits is it.
_PEAKS = (
    _Peak(("B200",), 2250.0, 1125.0, 75.0),
    _Peak(("GH200",), 989.4, 494.7, 66.9),
    _Peak(("H200", "NVL"), 835.5, 417.5, 60.0),
    _Peak(("H200",), 989.4, 494.7, 66.9),
    _Peak(("H100", "PCIe"), 756.0, 378.0, 51.0),
    _Peak(("H100", "NVL"), 835.5, 417.5, 60.0),
    _Peak(("H100",), 989.4, 494.7, 66.9),
    _Peak(("H800", "PCIe"), 756.0, 378.0, 51.0),
    _Peak(("H800",), 989.4, 494.7, 66.9),
    _Peak(("H20",), 148.0, 74.0, 44.0),
    _Peak(("A100",), 312.0, 156.0, 19.5),
    _Peak(("A800",), 312.0, 156.0, 19.5),
    _Peak(("A30",), 165.0, 82.0, 10.3),
    _Peak(("A40",), 149.7, 74.8, 37.4),
    _Peak(("A10",), 125.0, 62.5, 31.2),
    _Peak(("A6000",), 154.8, 77.4, 38.7),
    _Peak(("L4",), 121.0, 60.0, 30.3),
    _Peak(("L40",), 181.05, 90.5, 90.5),
    _Peak(("L40S",), 362.05, 183.0, 91.6),
    _Peak(("6000", "Ada"), 364.25, 182.1, 91.1),
    _Peak(("RTX", "4090"), 165.2, 82.6, 82.6),
    _Peak(("RTX", "3090"), 71.0, 35.6, 35.6),
    _Peak(("V100",), 125.0, None, 15.7),
    _Peak(("T4",), 65.0, None, 8.1),
    _Peak(("MI250X",), 383.0, None, 47.9),
    _Peak(("MI300X",), 1307.4, 653.7, 163.4),
    _Peak(("MI325X",), 1307.4, 653.7, 163.4),
)
_OTHER_CARDS = {"MIG", "Laptop", "Max", "D", "Ti", "SUPER"}  # a part of the card, or another one of nearly its name


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of dense matrix products in `dtype` as the GPU's vendor states them; None where that is not known.

    float32 is the rate of TF32 where torch is allowed that. CPUs, parts of a GPU (MIG), laptops' GPUs and GPUs that
    the table does not have are not known.
    """
    if device.type != "cuda":
        return None
    return named_peak(torch.cuda.get_device_name(device), dtype)


def named_peak(name: str, dtype: torch.dtype) -> float | None:
    """As :func:`peak_flops`, of the GPU that calls itself `name`."""
    words = set(re.split(r"[\s-]+", name))
    row = next((row for row in _PEAKS if words.issuperset(row.words)), None)
    if row is None or words & _OTHER_CARDS:
        return None
    rate: float | None = None
    if dtype == torch.float16 or (dtype == torch.bfloat16 and (row.tf32 is not None or "MI250X" in words)):
        rate = row.half
    elif dtype == torch.float32:
        rate = row.tf32 if _tf32_allowed() and row.tf32 is not None else row.fp32
    return None if rate is None else rate * 1e12


def _tf32_allowed() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"

"""Largest attention logits of transformers' models, for :class:`orthoopt.QKClip`.

transformers lets an attention function be registered by name. Ours takes note of the largest logits and hands over to
``sdpa``, at the cost of one more product of queries and keys. transformers is imported only when it is asked for.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn

from orthoopt.qk_clip import QKClip, max_logits

IMPLEMENTATION = "orthoopt_qk_clip"
"""Name of the attention function, as ``attn_implementation``."""

_WATCHED: weakref.WeakKeyDictionary[nn.Module, tuple[QKClip, str]] = weakref.WeakKeyDictionary()


def watch(model: Any, clip: QKClip) -> list[str]:
    """Let a model of transformers tell ``clip`` of the largest logits of every forward pass in training.

    Args:
        model: with ``q_proj`` and ``k_proj`` in its attention modules (Llama, Mistral, Qwen2 and kin); its attention
            function becomes ours.
        clip: gets a layer for each of them, under the module's name.

    Returns:
        The names of the layers.

    Raises:
        ValueError: no such module, or one that normalizes queries and keys, which would undo what is clipped; nothing
            has changed then.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    found = {
        name: module
        for name, module in model.named_modules()
        if all(isinstance(getattr(module, part, None), nn.Linear) for part in ("q_proj", "k_proj"))
        and hasattr(module, "head_dim")
    }
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no attention modules with q_proj, k_proj and head_dim: "
            "add its layers by hand, see orthoopt.QKClip"
        )
    for name, module in found.items():
        if getattr(module, "q_norm", None) is not None:
            raise ValueError(
                f"{name} normalizes its queries (q_norm), so that scaling their weights changes nothing and its logits "
                "are bounded already"
            )
    for name, module in found.items():
        heads, key_heads = (linear.out_features // module.head_dim for linear in (module.q_proj, module.k_proj))
        clip.add(name, query=module.q_proj, key=module.k_proj, heads=heads, key_heads=key_heads)
        _WATCHED[module] = clip, name
    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)  # always a tensor, so that what counts is known
    model.set_attn_implementation(IMPLEMENTATION)
    return list(found)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> Any:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if module.training and module in _WATCHED:
        clip, name = _WATCHED[module]
        clip.observe(name, max_logits(query, key, scale=options.get("scaling"), mask=attention_mask))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

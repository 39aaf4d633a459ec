"""Llama as Meta's repositories, torchtitan and gpt-fast write it, and the attention of Megatron and GPT-NeoX."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from user_code import DIM, HEADS, VOCABULARY, attend


class TitanAttention(nn.Module):
    """torchtitan's and Meta's: ``wq``, ``wk``, ``wv``, ``wo``; gpt-fast fuses them in ``wqkv``."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = HEADS, 2, DIM // HEADS
        if fused:
            self.n_head, self.n_local_heads = HEADS, 2
            self.wqkv = nn.Linear(DIM, (HEADS + 4) * self.head_dim, bias=False)
        else:
            self.wq = nn.Linear(DIM, DIM, bias=False)
            self.wk = nn.Linear(DIM, DIM // 2, bias=False)
            self.wv = nn.Linear(DIM, DIM // 2, bias=False)
        self.wo = nn.Linear(DIM, DIM, bias=False)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            q, k, v = self.wqkv(x).split([DIM, DIM // 2, DIM // 2], dim=-1)
        else:
            q, k, v = self.wq(x), self.wk(x), self.wv(x)
        return self.wo(attend(*(part.unflatten(-1, (-1, self.head_dim)) for part in (q, k, v))))


class FeedForward(nn.Module):
    """Meta's gated mlp: ``w2(silu(w1(x)) * w3(x))``."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class TokenChoiceTopKRouter(nn.Module):
    """torchtitan's ``router.gate``."""

    def __init__(self, dim: int, num_experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, num_experts, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x).softmax(-1)


class GroupedExperts(nn.Module):
    """torchtitan's stacks (experts, out, in)."""

    def __init__(self, dim: int, hidden_dim: int, num_experts: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))
        self.w2 = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))
        self.w3 = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))

    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        inner = F.silu(torch.einsum("bld,ehd->bleh", x, self.w1)) * torch.einsum("bld,ehd->bleh", x, self.w3)
        return torch.einsum("bleh,edh,ble->bld", inner, self.w2, shares)


class MoE(nn.Module):
    """torchtitan's mixture with shared experts."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.experts = GroupedExperts(dim, hidden_dim, 5)
        self.router = TokenChoiceTopKRouter(dim, 5)
        self.shared_experts = FeedForward(dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(x, self.router(x)) + self.shared_experts(x)


class TitanBlock(nn.Module):
    """One layer."""

    def __init__(self, fused: bool, moe: bool) -> None:
        super().__init__()
        self.attention = TitanAttention(fused)
        if moe:
            self.moe = MoE(DIM, 40)
        else:
            self.feed_forward = FeedForward(DIM, 40)
        self.attention_norm = nn.RMSNorm(DIM)
        self.ffn_norm = nn.RMSNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        y = self.ffn_norm(x)
        return x + (self.moe(y) if hasattr(self, "moe") else self.feed_forward(y))


class TitanTransformer(nn.Module):
    """``tok_embeddings``, ``layers``, ``output``."""

    def __init__(self, fused: bool = False, moe: bool = False) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, DIM)
        self.layers = nn.ModuleDict({str(i): TitanBlock(fused, moe) for i in range(2)})
        self.norm = nn.RMSNorm(DIM)
        self.output = nn.Linear(DIM, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_embeddings(tokens)
        for layer in self.layers.values():
            x = layer(x)
        return self.output(self.norm(x))


class ParallelSelfAttention(nn.Module):
    """GPT-NeoX's and Megatron's: q, k and v of one head beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads_per_partition, self.hidden_size_per_attention_head = HEADS, DIM // HEADS
        self.query_key_value = nn.Linear(DIM, 3 * DIM)
        self.dense = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.query_key_value(x).unflatten(
            -1, (self.num_attention_heads_per_partition, 3 * self.hidden_size_per_attention_head)
        )
        return self.dense(attend(*mixed.chunk(3, dim=-1)))

"""Language models as people write them by hand: nanoGPT, minGPT, lit-gpt.

Class and parameter names are those of the code bases, for those are what the classifier sees; sizes are small.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY, DIM, HEADS = 40, 16, 4


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(batch, length, heads, size) each, keys and values of fewer heads repeated -> (batch, length, features)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class NanoAttention(nn.Module):
    """nanoGPT: ``c_attn`` is an nn.Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn = nn.Linear(DIM, 3 * DIM)
        self.c_proj = nn.Linear(DIM, DIM)
        self.n_head, self.n_embd = HEADS, DIM

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        return self.c_proj(attend(*(part.unflatten(-1, (self.n_head, -1)) for part in (q, k, v))))


class NanoMLP(nn.Module):
    """nanoGPT's ``c_fc`` and ``c_proj``."""

    def __init__(self) -> None:
        super().__init__()
        self.c_fc = nn.Linear(DIM, 4 * DIM)
        self.c_proj = nn.Linear(4 * DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class NanoBlock(nn.Module):
    """One layer; minGPT keeps its mlp in a ModuleDict."""

    def __init__(self, mini: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(DIM)
        self.attn = NanoAttention()
        self.ln_2 = nn.LayerNorm(DIM)
        mlp = NanoMLP()
        self.mlp = nn.ModuleDict(dict(mlp.named_children())) if mini else mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        y = self.ln_2(x)
        if isinstance(self.mlp, nn.ModuleDict):
            return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](y)))
        return x + self.mlp(y)


class NanoGPT(nn.Module):
    """nanoGPT ties its head; minGPT does not."""

    def __init__(self, mini: bool = False) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCABULARY, DIM),
                "wpe": nn.Embedding(12, DIM),
                "h": nn.ModuleList(NanoBlock(mini) for _ in range(2)),
                "ln_f": nn.LayerNorm(DIM),
            }
        )
        self.lm_head = nn.Linear(DIM, VOCABULARY, bias=False)
        if not mini:
            self.transformer.wte.weight = self.lm_head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.transformer.wte(tokens) + self.transformer.wpe(places)
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


class EarlyMinGPT(nn.Module):
    """minGPT's first version: ``tok_emb``, ``pos_emb`` a parameter, ``blocks`` with key, query, value apart."""

    class Block(nn.Module):
        """One layer, its mlp an nn.Sequential."""

        def __init__(self) -> None:
            super().__init__()
            self.ln1, self.ln2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
            self.attn = nn.ModuleDict({name: nn.Linear(DIM, DIM) for name in ("key", "query", "value", "proj")})
            self.mlp = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM), nn.Dropout(0.1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.ln1(x)
            q, k, v = (self.attn[name](y).unflatten(-1, (HEADS, -1)) for name in ("query", "key", "value"))
            x = x + self.attn["proj"](attend(q, k, v))
            return x + self.mlp(self.ln2(x))

    def __init__(self) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(VOCABULARY, DIM)
        self.pos_emb = nn.Parameter(torch.zeros(1, 12, DIM))
        self.blocks = nn.Sequential(self.Block(), self.Block())
        self.ln_f = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.ln_f(self.blocks(self.tok_emb(tokens) + self.pos_emb[:, : tokens.shape[1]])))


class CausalSelfAttention(nn.Module):
    """lit-gpt: ``qkv`` in three blocks now, ``attn`` group by group in earlier versions; sizes in its config."""

    def __init__(self, config: SimpleNamespace, earlier: bool) -> None:
        super().__init__()
        width = (config.n_head + 2 * config.n_query_groups) * config.head_size
        if earlier:
            self.attn = nn.Linear(config.n_embd, width, bias=False)
        else:
            self.qkv = nn.Linear(config.n_embd, width, bias=False)
        self.proj = nn.Linear(config.n_head * config.head_size, config.n_embd, bias=False)
        self.config = config
        self.earlier = earlier

    def forward(self, x: Tensor) -> Tensor:
        heads, groups, size = self.config.n_head, self.config.n_query_groups, self.config.head_size
        if self.earlier:
            q, k, v = self.attn(x).unflatten(-1, (groups, heads // groups + 2, size)).split([heads // groups, 1, 1], -2)
            return self.proj(attend(q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3)))
        q, k, v = self.qkv(x).split((heads * size, groups * size, groups * size), dim=-1)
        return self.proj(attend(*(part.unflatten(-1, (-1, size)) for part in (q, k, v))))


class GptNeoxMLP(nn.Module):
    """lit-gpt's plain mlp: ``fc`` and ``proj``."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.fc = nn.Linear(config.n_embd, config.intermediate_size)
        self.proj = nn.Linear(config.intermediate_size, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.gelu(self.fc(x)))


class LLaMAMLP(nn.Module):
    """lit-gpt's gated mlp: ``fc_1`` and ``fc_2`` both lead in."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.fc_1 = nn.Linear(config.n_embd, config.intermediate_size, bias=False)
        self.fc_2 = nn.Linear(config.n_embd, config.intermediate_size, bias=False)
        self.proj = nn.Linear(config.intermediate_size, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.silu(self.fc_1(x)) * self.fc_2(x))


class LLaMAMoE(nn.Module):
    """lit-gpt's mixture: ``gate`` chooses among ``experts.N``; every token to all of them here."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.gate = nn.Linear(config.n_embd, config.n_expert, bias=False)
        self.experts = nn.ModuleList(LLaMAMLP(config) for _ in range(config.n_expert))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.gate(x).softmax(-1)
        return sum(share[..., None] * one(x) for share, one in zip(shares.unbind(-1), self.experts, strict=True))


class LitBlock(nn.Module):
    """One layer."""

    def __init__(self, config: SimpleNamespace, mlp: type[nn.Module], earlier: bool) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config, earlier)
        self.norm_2 = nn.LayerNorm(config.n_embd)
        self.mlp = mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class LitGPT(nn.Module):
    """``transformer.wte``, ``transformer.h``, ``lm_head``."""

    def __init__(self, mlp: type[nn.Module] = LLaMAMLP, earlier: bool = False, **sizes: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            **{"n_embd": DIM, "n_head": HEADS, "n_query_groups": 2, "head_size": 6}
            | {"intermediate_size": 40, "n_expert": 3}
            | sizes
        )
        self.lm_head = nn.Linear(DIM, VOCABULARY, bias=False)
        blocks = nn.ModuleList(LitBlock(self.config, mlp, earlier) for _ in range(2))
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(VOCABULARY, DIM), "h": blocks, "ln_f": nn.LayerNorm(DIM)})

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.transformer.wte(tokens)
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))

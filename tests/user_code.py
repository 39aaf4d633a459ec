"""Language models as people write them by hand: nanoGPT, minGPT, lit-gpt, torchtitan, x-transformers, mamba.

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


class GLU(nn.Module):
    """x-transformers' gated way in: ``proj`` is halved."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.silu(gate)


class XFeedForward(nn.Module):
    """x-transformers' mlp below ``ff``."""

    def __init__(self, glu: bool) -> None:
        super().__init__()
        way_in = GLU(DIM, 40) if glu else nn.Sequential(nn.Linear(DIM, 40), nn.GELU())
        self.ff = nn.Sequential(way_in, nn.Dropout(0.0), nn.Linear(40, DIM))

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(x)


class XAttention(nn.Module):
    """x-transformers' attention: ``to_q``, ``to_k``, ``to_v``, ``to_out``."""

    def __init__(self, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(DIM, 24, bias=False)
        self.to_k = nn.Linear(DIM, 24, bias=False)
        self.to_v = nn.Linear(DIM, 24, bias=False)
        self.to_out = nn.Linear(24, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(attend(*(to(x).unflatten(-1, (self.heads, -1)) for to in (self.to_q, self.to_k, self.to_v))))


class TokenEmbedding(nn.Module):
    """x-transformers' table, ``emb``."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(VOCABULARY, DIM)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.emb(tokens)


class AbsolutePositionalEmbedding(nn.Module):
    """x-transformers' places, ``emb`` too."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(12, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.emb(torch.arange(x.shape[1], device=x.device))


class XTransformer(nn.Module):
    """Layers are lists of a list of norms, a block, and nothing."""

    def __init__(self, glu: bool) -> None:
        super().__init__()
        self.token_emb = TokenEmbedding()
        self.pos_emb = AbsolutePositionalEmbedding()
        self.memory_tokens = nn.Parameter(torch.zeros(2, DIM))
        blocks: list[nn.Module] = [XAttention(), XFeedForward(glu)]
        self.attn_layers = nn.ModuleDict(
            {
                "layers": nn.ModuleList(nn.ModuleList([nn.ModuleList([nn.LayerNorm(DIM)]), block]) for block in blocks),
                "final_norm": nn.LayerNorm(DIM),
            }
        )
        self.to_logits = nn.Linear(DIM, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_emb(tokens) + self.pos_emb(tokens)
        x = torch.cat([self.memory_tokens.expand(len(x), -1, -1), x], 1)
        for (norm,), block in self.attn_layers["layers"]:
            x = x + block(norm(x))
        return self.to_logits(self.attn_layers["final_norm"](x)[:, 2:])


class Mamba(nn.Module):
    """state-spaces/mamba's first layer; the scan is left out, its inputs and outputs are not."""

    def __init__(self, d_model: int = DIM, d_state: int = 4, dt_rank: int = 3, expand: int = 2) -> None:
        super().__init__()
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, 4, expand
        self.d_inner, self.dt_rank = expand * d_model, dt_rank
        self.in_proj = nn.Linear(d_model, self.d_inner * 2, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, 4, groups=self.d_inner, padding=3)
        self.x_proj = nn.Linear(self.d_inner, dt_rank + d_state * 2, bias=False)
        self.dt_proj = nn.Linear(dt_rank, self.d_inner, bias=True)
        self.A_log = nn.Parameter(torch.empty(self.d_inner, d_state))
        self.D = nn.Parameter(torch.empty(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x = F.silu(self.conv1d(x.mT)[..., : x.shape[1]].mT)
        dt, b, c = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = F.softplus(self.dt_proj(dt))
        state = torch.exp(dt[..., None] * -self.A_log.exp()) * b[:, :, None] * x[..., None]
        return self.out_proj(((state * c[:, :, None]).sum(-1) + self.D * x) * F.silu(z))


class Mamba2(nn.Module):
    """state-spaces/mamba's second layer, likewise; with ``d_ssm`` below ``d_inner`` the rest is a gated mlp."""

    def __init__(self, d_ssm: int | None = None, learnable_init_states: bool = False) -> None:
        super().__init__()
        self.d_model, self.d_state, self.headdim, self.ngroups, self.expand = DIM, 4, 4, 2, 2
        self.d_inner = self.expand * self.d_model
        self.d_ssm = self.d_inner if d_ssm is None else d_ssm
        self.nheads = self.d_ssm // self.headdim
        width = 2 * self.d_inner + 2 * self.ngroups * self.d_state + self.nheads
        self.in_proj = nn.Linear(self.d_model, width, bias=False)
        channels = self.d_ssm + 2 * self.ngroups * self.d_state
        self.conv1d = nn.Conv1d(channels, channels, 4, groups=channels, padding=3)
        if learnable_init_states:
            self.init_states = nn.Parameter(torch.zeros(self.nheads, self.headdim, self.d_state))
        self.dt_bias = nn.Parameter(torch.empty(self.nheads))
        self.A_log = nn.Parameter(torch.empty(self.nheads))
        self.D = nn.Parameter(torch.empty(self.nheads))
        self.norm = nn.RMSNorm(self.d_ssm)
        self.out_proj = nn.Linear(self.d_inner, self.d_model, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        mixed = self.in_proj(u)
        state = self.ngroups * self.d_state
        mlp = (mixed.shape[-1] - 2 * self.d_ssm - 2 * state - self.nheads) // 2
        gate, value, z, xbc, dt = mixed.split([mlp, mlp, self.d_ssm, self.d_ssm + 2 * state, self.nheads], dim=-1)
        x, b, c = F.silu(self.conv1d(xbc.mT)[..., : u.shape[1]].mT).split([self.d_ssm, state, state], dim=-1)
        weight = (b * c).sum(-1, keepdim=True) * F.softplus(dt + self.dt_bias) * -self.A_log.exp() + self.D
        y = (x.unflatten(-1, (self.nheads, -1)) * weight[..., None]).flatten(2)
        y = self.norm(y * F.silu(z))
        return self.out_proj(torch.cat([F.silu(gate) * value, y], -1) if mlp else y)


class MambaBlock(nn.Module):
    """Norm and ``mixer``."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = nn.RMSNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(self.norm(x))


class MambaLMHeadModel(nn.Module):
    """``backbone.embedding``, ``backbone.layers``, a tied ``lm_head``."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict(
            {
                "embedding": nn.Embedding(VOCABULARY, DIM),
                "layers": nn.ModuleList([MambaBlock(mixer)]),
                "norm_f": nn.RMSNorm(DIM),
            }
        )
        self.lm_head = nn.Linear(DIM, VOCABULARY, bias=False)
        self.lm_head.weight = self.backbone["embedding"].weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.backbone["embedding"](tokens)
        for layer in self.backbone["layers"]:
            x = layer(x)
        return self.lm_head(self.backbone["norm_f"](x))

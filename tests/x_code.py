"""A decoder in the style of x-transformers: lists of norms and blocks, gates that hold their layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from user_code import DIM, HEADS, VOCABULARY, attend


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

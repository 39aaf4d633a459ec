"""Diffusion networks as their repositories write them: facebook's DiT, guided diffusion's U-Net, flux."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vits import Attention, Mlp, PatchEmbed


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift of every feature, the same at all places."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class TimestepEmbedder(nn.Module):
    """Two layers on sines and cosines of the time."""

    def __init__(self, hidden: int, frequencies: int = 20) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(frequencies, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, features: Tensor) -> Tensor:
        return self.mlp(features)


class LabelEmbedder(nn.Module):
    """A row for every class and one for none."""

    def __init__(self, classes: int, hidden: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, hidden)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class DiTBlock(nn.Module):
    """Attention and mlp, each shifted, scaled and gated by the condition."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden, elementwise_affine=False)
        self.attn = Attention(hidden, 2)
        self.norm2 = nn.LayerNorm(hidden, elementwise_affine=False)
        self.mlp = Mlp(hidden, 4 * hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """Features to patches of noise and variance."""

    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden, elementwise_affine=False)
        self.linear = nn.Linear(hidden, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """The whole; without classes nothing is looked up."""

    def __init__(self, classes: int | None = 10, hidden: int = 16) -> None:
        super().__init__()
        self.x_embedder = PatchEmbed(4, hidden)
        self.t_embedder = TimestepEmbedder(hidden)
        self.y_embedder = None if classes is None else LabelEmbedder(classes, hidden)
        self.pos_embed = nn.Parameter(torch.zeros(1, 16, hidden), requires_grad=False)
        self.blocks = nn.ModuleList(DiTBlock(hidden) for _ in range(2))
        self.final_layer = FinalLayer(hidden, 4 * 4 * 8)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t)
        if self.y_embedder is not None:
            c = c + self.y_embedder(torch.zeros(len(x), dtype=torch.long, device=x.device))
        for block in self.blocks:
            x = block(x, c)
        return self.final_layer(x, c)


class QKVAttentionLegacy(nn.Module):
    """q, k and v of one head beside each other."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv: Tensor) -> Tensor:
        b, width, length = qkv.shape
        ch = width // (3 * self.n_heads)
        q, k, v = qkv.reshape(b * self.n_heads, ch * 3, length).split(ch, dim=1)
        return F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT.reshape(b, -1, length)


class QKVAttention(nn.Module):
    """q of all heads, then k, then v."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv: Tensor) -> Tensor:
        b, width, length = qkv.shape
        q, k, v = (part.reshape(b * self.n_heads, -1, length) for part in qkv.chunk(3, dim=1))
        return F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT.reshape(b, -1, length)


class AttentionBlock(nn.Module):
    """Guided diffusion's attention: kernels of size 1."""

    def __init__(self, channels: int, num_heads: int, new_order: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.GroupNorm(4, channels)
        self.qkv = nn.Conv1d(channels, channels * 3, 1)
        self.attention = (QKVAttention if new_order else QKVAttentionLegacy)(num_heads)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        y = self.proj_out(self.attention(self.qkv(self.norm(x.flatten(2)))))
        return x + y.view_as(x)


class ResBlock(nn.Module):
    """Guided diffusion's block: the time is added, or scales and shifts."""

    def __init__(self, channels: int, emb_channels: int, out_channels: int, use_scale_shift_norm: bool) -> None:
        super().__init__()
        self.out_channels, self.use_scale_shift_norm = out_channels, use_scale_shift_norm
        self.in_layers = nn.Sequential(
            nn.GroupNorm(4, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels if use_scale_shift_norm else out_channels)
        )
        self.out_layers = nn.Sequential(
            nn.GroupNorm(4, out_channels), nn.SiLU(), nn.Dropout(), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        )
        same = out_channels == channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)
        added = self.emb_layers(emb)[..., None, None]
        if self.use_scale_shift_norm:
            scale, shift = added.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + added)
        return self.skip_connection(x) + h


class UNetModel(nn.Module):
    """Guided diffusion's names, one resolution."""

    def __init__(self, use_scale_shift_norm: bool, new_order: bool, classes: int | None = None) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 32))
        self.label_emb = None if classes is None else nn.Embedding(classes, 32)
        self.input_blocks = nn.ModuleList(
            [
                nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1)]),
                nn.ModuleList([ResBlock(8, 32, 16, use_scale_shift_norm), AttentionBlock(16, 2, new_order)]),
            ]
        )
        self.middle_block = nn.ModuleList([ResBlock(16, 32, 16, use_scale_shift_norm)])
        self.output_blocks = nn.ModuleList([nn.ModuleList([ResBlock(24, 32, 8, use_scale_shift_norm)])])
        self.out = nn.Sequential(nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        emb = self.time_embed(t)
        if self.label_emb is not None:
            emb = emb + self.label_emb(torch.zeros(len(x), dtype=torch.long, device=x.device))
        first = self.input_blocks[0][0](x)
        h = first
        for layer in [*self.input_blocks[1], *self.middle_block]:
            h = layer(h, emb)
        h = torch.cat([h, first], 1)
        return self.out(self.output_blocks[0][0](h, emb))


class LinearAttention(nn.Module):
    """lucidrains' attention in a U-Net: ``to_qkv`` a kernel of size 1, cut into three."""

    def __init__(self, dim: int, heads: int = 2, dim_head: int = 4) -> None:
        super().__init__()
        self.heads = heads
        hidden = dim_head * heads
        self.to_qkv = nn.Conv2d(dim, hidden * 3, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(hidden, dim, 1), nn.GroupNorm(1, dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(1, (self.heads, -1)).flatten(3) for part in self.to_qkv(x).chunk(3, dim=1))
        context = k.softmax(-1) @ v.mT
        return self.to_out((context.mT @ q.softmax(-2)).flatten(1, 2).unflatten(-1, x.shape[-2:]))


class SingleStreamBlock(nn.Module):
    """flux's block in its authors' repository: q, k, v and an mlp in ``linear1``, both ways out in ``linear2``."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.hidden_dim, self.num_heads = hidden_size, num_heads
        self.mlp_hidden_dim = 4 * hidden_size
        self.linear1 = nn.Linear(hidden_size, hidden_size * 3 + self.mlp_hidden_dim)
        self.linear2 = nn.Linear(hidden_size + self.mlp_hidden_dim, hidden_size)
        self.pre_norm = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.modulation = Modulation(hidden_size, double=False)

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(vec)
        qkv, mlp = self.linear1(modulate(self.pre_norm(x), shift, scale)).split(
            [3 * self.hidden_dim, self.mlp_hidden_dim], -1
        )
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attn = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + gate.unsqueeze(1) * self.linear2(torch.cat((attn, F.gelu(mlp)), 2))


class Modulation(nn.Module):
    """flux's shifts, scales and gates: three, or twice three."""

    def __init__(self, dim: int, double: bool) -> None:
        super().__init__()
        self.multiplier = 6 if double else 3
        self.lin = nn.Linear(dim, self.multiplier * dim)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(vec)).chunk(self.multiplier, dim=-1)


class Flux(nn.Module):
    """Enough of flux to hold its single blocks; images come in patches already."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.img_in = nn.Linear(12, hidden)
        self.time_in = MLPEmbedder(20, hidden)
        self.single_blocks = nn.ModuleList([SingleStreamBlock(hidden, 2)])
        self.final_layer = FinalLayer(hidden, 12)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x, vec = self.img_in(x), self.time_in(t)
        for block in self.single_blocks:
            x = block(x, vec)
        return self.final_layer(x, vec)


class MLPEmbedder(nn.Module):
    """flux's embedding of a number or of a text."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(inputs, hidden)
        self.out_layer = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class WanBlock(nn.Module):
    """Wan's layer in its authors' repository: a learned table is added to the six parts of the condition."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.Linear(dim, 40), nn.GELU(), nn.Linear(40, dim))
        self.modulation = nn.Parameter(torch.zeros(1, 6, dim))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        e = (self.modulation + e).unbind(1)
        return x + e[2].unsqueeze(1) * self.ffn(modulate(x, e[0], e[1]))


class WanHead(nn.Module):
    """Its last layer is called ``head.head``; it gives patches of noise."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, outputs)
        self.modulation = nn.Parameter(torch.zeros(1, 2, dim))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        shift, scale = (self.modulation + e.unsqueeze(1)).unbind(1)
        return self.head(modulate(x, shift, scale))


class Wan(nn.Module):
    """Patches, time, blocks, head."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv3d(4, dim, 2, 2)
        self.time_embedding = nn.Sequential(nn.Linear(20, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim * 6))
        self.blocks = nn.ModuleList([WanBlock(dim)])
        self.head = WanHead(dim, 32)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x, e = self.patch_embedding(x).flatten(2).mT, self.time_embedding(t)
        for block in self.blocks:
            x = block(x, self.time_projection(e).unflatten(1, (6, -1)))
        return self.head(x, e)

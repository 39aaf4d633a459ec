"""Vision transformers as torchvision and timm build them: the same modules under the same names, small."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DIM, HEADS, PLACES = 16, 2, 16


class MLPBlock(nn.Sequential):
    """torchvision's mlp: layers 0 and 3 of a Sequential."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0.0), nn.Linear(hidden, dim), nn.Dropout(0.0))


class EncoderBlock(nn.Module):
    """torchvision's layer."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(DIM)
        self.self_attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.ln_2 = nn.LayerNorm(DIM)
        self.mlp = MLPBlock(DIM, 40)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    """torchvision's stack, its layers named ``encoder_layer_N``."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.empty(1, PLACES + 1, DIM))
        self.layers = nn.Sequential(OrderedDict((f"encoder_layer_{i}", EncoderBlock()) for i in range(2)))
        self.ln = nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.ln(self.layers(x + self.pos_embedding))


class TorchvisionViT(nn.Module):
    """``heads.head``, and ``heads.pre_logits`` where there is a representation."""

    def __init__(self, representation: int | None = None) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, DIM, 4, 4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.encoder = Encoder()
        heads: OrderedDict[str, nn.Module] = OrderedDict()
        if representation is not None:
            heads["pre_logits"] = nn.Linear(DIM, representation)
            heads["act"] = nn.Tanh()
        heads["head"] = nn.Linear(representation or DIM, 10)
        self.heads = nn.Sequential(heads)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_proj(images).flatten(2).mT
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        return self.heads(self.encoder(x)[:, 0])


class PatchEmbed(nn.Module):
    """timm's and facebook's patches, ``proj``."""

    def __init__(self, inputs: int = 3, dim: int = DIM) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, dim, 4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).mT


class Attention(nn.Module):
    """timm's attention: ``qkv``, three blocks of rows, and ``proj``."""

    def __init__(self, dim: int = DIM, num_heads: int = HEADS, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.q_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class LayerScale(nn.Module):
    """A gain for every channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Module):
    """timm's ``fc1`` and ``fc2``."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class GluMlp(nn.Module):
    """timm's gated mlp: ``fc1`` gives both halves, one after the other."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.norm = nn.LayerNorm(hidden // 2)
        self.fc2 = nn.Linear(hidden // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, x = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(self.norm(F.silu(gate) * x))


class SwiGLU(nn.Module):
    """timm's gated mlp with the halves apart, ``fc1_g`` and ``fc1_x`` (EVA-02)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(dim, hidden)
        self.fc1_x = nn.Linear(dim, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(F.silu(self.fc1_g(x)) * self.fc1_x(x)))


class SwiGLUFFN(nn.Module):
    """DINOv2's gated mlp: ``w12`` gives both halves, one after the other, ``w3`` leads out."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(one) * two)


class Block(nn.Module):
    """timm's layer with layer scale."""

    def __init__(self, attn: nn.Module, mlp: nn.Module, dim: int = DIM) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = mlp
        self.ls2 = LayerScale(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class AttentionPoolLatent(nn.Module):
    """timm's pooling: learned queries attend to the features, then an mlp."""

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, DIM // HEADS
        self.latent = nn.Parameter(torch.zeros(1, latents, DIM))
        self.q = nn.Linear(DIM, DIM)
        self.kv = nn.Linear(DIM, DIM * 2)
        self.proj = nn.Linear(DIM, DIM)
        self.norm = nn.LayerNorm(DIM)
        self.mlp = Mlp(DIM, 40)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        latent = self.latent.expand(b, -1, -1)
        q = self.q(latent).reshape(b, -1, self.num_heads, self.head_dim).transpose(1, 2)
        k, v = self.kv(x).reshape(b, n, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, -1, c))
        return (x + self.mlp(self.norm(x)))[:, 0]


class VisionTransformer(nn.Module):
    """timm's: class, distillation and register tokens, pooling by attention or by the class token."""

    def __init__(self, mlp: type[nn.Module] = Mlp, distilled: bool = False, pooled: bool = False) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.reg_token = nn.Parameter(torch.zeros(1, 3, DIM))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, DIM)) if distilled else None
        self.pos_embed = nn.Parameter(torch.zeros(1, PLACES, DIM))
        self.blocks = nn.Sequential(*(Block(Attention(qk_norm=True), mlp(DIM, 40)) for _ in range(2)))
        self.norm = nn.LayerNorm(DIM)
        self.attn_pool = AttentionPoolLatent(2) if pooled else None
        self.head = nn.Linear(DIM, 10)
        self.head_dist = nn.Linear(DIM, 10) if distilled else None

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images) + self.pos_embed
        tokens = [self.cls_token, self.reg_token, *([] if self.dist_token is None else [self.dist_token])]
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in tokens), x], 1)
        x = self.norm(self.blocks(x))
        logits = self.head(x[:, 0] if self.attn_pool is None else self.attn_pool(x))
        return logits if self.head_dist is None else (logits + self.head_dist(x[:, 4])) / 2

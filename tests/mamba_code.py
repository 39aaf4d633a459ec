"""state-spaces/mamba's layers and language model; the scans are left out, what they read and write is not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from user_code import DIM, VOCABULARY


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

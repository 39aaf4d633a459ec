"""Models for tests of steps over many processes: every kind of parameter a plan knows, of drawn shapes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from spectra import generator, matrix
from torch import Tensor, nn

from orthoopt import OrthoOpt, param_groups


class Spec(NamedTuple):
    """One parameter."""

    role: str
    view: str
    shape: tuple[int, ...]


def specs() -> st.SearchStrategy[list[Spec]]:
    """A few parameters: uneven, tiny, smaller than any world, fused, transposed, stacked."""
    size = st.integers(1, 13)

    @st.composite
    def one(draw: st.DrawFn) -> Spec:
        a, b, e, h = draw(size), draw(size), draw(st.integers(1, 5)), draw(st.integers(1, 3))
        return draw(
            st.sampled_from(
                [
                    Spec("hidden", "matrix", (a, b)),
                    Spec("mlp_in", "matrix", (8, 6)),
                    Spec("mlp_out", "matrix", (6, 8)),
                    Spec("attention", f"split({2 * a},{a},{a})", (4 * a, b)),
                    Spec("attention", f"transpose split({a},{a},{a})", (b, 3 * a)),
                    Spec("attention", f"heads({h})", (h * a, b)),
                    Spec("attention", f"heads({h}) split({a},1,1) join", (h * (a + 2), b)),
                    Spec("mlp_in", "interleave(2)", (2 * a, b)),
                    Spec("expert_in", "matrix", (e, a, b)),
                    Spec("expert_in", f"transpose split({a},{a})", (e, b, 2 * a)),
                    Spec("expert_out", "transpose", (e, a, b)),
                    Spec("router", "matrix", (e, b)),
                    Spec("conv", "flatten", (a, e, 3)),
                    Spec("embedding", "matrix", (a + 2, b)),
                    Spec("tied_embedding", "matrix", (a + 2, b)),
                    Spec("lm_head", "matrix", (a + 2, b)),
                    Spec("vector", "vector", (a,)),
                    Spec("vector", "vector", ()),
                ]
            )
        )

    return st.lists(one(), min_size=2, max_size=7)


class Model(nn.Module):
    """Parameters of these specs, by number."""

    def __init__(self, described: list[Spec]) -> None:
        super().__init__()
        self.specs = described
        for number, spec in enumerate(described):
            values = torch.randn(spec.shape, generator=generator(number)) * 0.1 + 0.05
            self.register_parameter(f"p{number}", nn.Parameter(values))

    def forward(self, x: Tensor) -> Tensor:
        return x * sum(param.sum() for param in self.parameters())


def optimizer_of(model: nn.Module, described: list[Spec], plan: str, **options: Any) -> OrthoOpt:
    """Every parameter in the role and view that its spec says."""
    overrides = {
        f"p{number}$": {"role": spec.role} | ({"view": spec.view} if spec.view != "vector" else {})
        for number, spec in enumerate(described)
    }
    kept = {name: options.pop(name) for name in ("lr", "weight_decay") if name in options}
    groups = param_groups(model.named_parameters(), plan, overrides=overrides, **{"lr": 0.02, **kept})
    return OrthoOpt(groups, **options)


def gradients(described: list[Spec], step: int) -> list[Tensor]:
    """Well-conditioned ones, whose average is so too: a fixed matrix of even spectrum, and a tenth of noise.

    In the weak directions of an ill-conditioned momentum the iteration magnifies the rounding of sums, which differs
    between a bucket of one matrix and one of two, by up to the product of its first coefficients, some 500.
    """
    found = []
    for number, spec in enumerate(described):
        noise = torch.randn(spec.shape, generator=generator(1000 * step + number), dtype=torch.float64)
        if len(spec.shape) < 2:
            found.append((1 + number + 0.1 * noise).float())
            continue
        *batch, rows, cols = spec.shape if spec.role != "conv" else (spec.shape[0], spec.shape[1] * spec.shape[2])
        base = matrix(rows, cols, "even", number, tuple(batch)).reshape(spec.shape)
        size = base.square().mean().sqrt()
        found.append((base / size + 0.1 * noise).float())
    return found

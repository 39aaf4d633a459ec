"""Convolutions whose outputs are several things at once: which rows belong to which; see ``fused_entry``."""

from __future__ import annotations

from orthoopt.fused_entry import Fused, Sizes, halves
from orthoopt.naming import names


def _before_pointwise(said: Sizes) -> list[int]:
    """Halves, where the layer after the gate reads as many channels as one half has."""
    after = said.beside("pointwise_conv2")
    return halves(said) if after is not None and 2 * after[1] == said.rows else [0]


def _bins(said: Sizes) -> list[int]:
    bins = said("num_bins")
    return [bins, bins, bins - 1]


FUSED_KERNELS: tuple[Fused, ...] = (
    # Conformers (arXiv 2005.08100) and what else gates channels.
    Fused(names("pointwise_conv1"), ("ConvolutionModule",), _before_pointwise, "value and gate fused in its rows"),
    Fused(names("ext_pw_conv_1d"), ("AudioGluPointWiseConv",), halves, "value and gate fused in its rows"),
    Fused(names("residual_conv self_attn_conv conv"), ("AdapterLayer",), halves, "value and gate fused in its rows"),
    Fused(names("conv_layers"), ("Conv1dSubsampler",), halves, "value and gate fused in its rows"),
    # VITS (arXiv 2106.06103).
    Fused(names("in_layers"), ("VitsWaveNet",), halves, "two gates fused in its rows"),
    Fused(
        names("res_skip_layers"),
        ("VitsWaveNet",),
        lambda said: [said("hidden_size")] * 2,
        "residual and skip fused in its rows",
    ),
    Fused(
        names("cond_layer"),
        ("VitsWaveNet",),
        lambda said: [said("hidden_size")] * 2,
        "two gates a layer, joined",
        heads=lambda said: said("num_layers"),
    ),
    Fused(names("project"), ("VitsTextEncoder",), halves, "means and variances fused in its rows"),
    Fused(names("conv_proj"), ("VitsPosteriorEncoder",), halves, "means and variances fused in its rows"),
    Fused(names("conv_proj"), ("VitsConvFlow",), _bins, "widths, heights and slopes fused in its rows"),
)

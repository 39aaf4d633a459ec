"""Decisions about the weights of linear maps: experts, convolutions, attentions, recurrences, Linear layers."""

from __future__ import annotations

from torch import nn

from orthoopt import layouts, naming
from orthoopt.census import Candidate
from orthoopt.fused import fused_outputs
from orthoopt.fused_projections import kernel_blocks
from orthoopt.heads import is_dense
from orthoopt.layers import Verdict, attention_layer, is_conv1d, mlp_side, mlp_words, owner_words


def expert(candidate: Candidate) -> Verdict | None:
    """Experts: 3-D stacks, or one layer each below a component of that name."""
    stacked = candidate.param.ndim == 3
    component = naming.expert_component(candidate.path)
    flagged = isinstance(getattr(candidate.owner, "is_transposed", None), bool)
    if not (component or (stacked and (flagged or candidate.owner_is("Expert")))):
        return None
    side = mlp_side(candidate)
    name = candidate.leaf if candidate.leaf != "weight" else candidate.label
    if not stacked:
        if side is None or not is_dense(candidate):
            return None
        fused = layouts.fused_gate_up(candidate, candidate.shape[0]) if side == "in" else None
        view, words = fused or ("matrix", f"one expert of {component}")
        return Verdict(f"expert_{side}", view, f"{owner_words(candidate)} {name}: {words}")
    if side is None:
        return Verdict("unknown", "matrix", f"a stack of experts, but {name} does not say whether it leads in or out")
    layout = layouts.experts(candidate, is_in=side == "in")
    if layout is None:
        return Verdict("unknown", "matrix", "a stack of experts, stored (in, out) or (out, in): the shapes fit both")
    return Verdict(f"expert_{side}", layout[0], f"{owner_words(candidate)}: {layout[1]}")


def convolution(candidate: Candidate) -> Verdict | None:
    """Kernels: (out, in * k) matrices, one per group; depthwise ones mix no features."""
    owner = candidate.owner
    if not isinstance(owner, nn.modules.conv._ConvNd):
        return None
    shown = owner_words(candidate)
    if owner.groups == owner.in_channels and owner.groups > 1:
        each = owner.out_channels // owner.groups
        filters = "one filter" if each == 1 else f"{each} filters"
        return Verdict("vector", "vector", f"depthwise {shown}: mixes no channels, {filters} each")
    if _gives_logits(candidate):
        return Verdict("lm_head", "flatten", f"{shown} of size 1, the last of the network, gives logits")
    fused = kernel_blocks(candidate) if owner.groups == 1 else None
    if fused is not None:
        return Verdict("conv", f"flatten {fused[0]}", f"{shown}: {fused[1]}")
    first = candidate.param is candidate.census.first_kernel
    reason = f"{shown}, the first: reads {owner.in_channels} input channels" if first else shown
    groups = f" heads({owner.groups})" if owner.groups > 1 else ""
    if groups:
        reason += f", {owner.groups} groups, a matrix each"
    if owner.transposed:
        return Verdict("conv", f"flatten{groups} transpose", f"{reason}, stored (in, out, k...)")
    return Verdict("conv", f"flatten{groups}", reason)


def _gives_logits(candidate: Candidate) -> bool:
    """A kernel of size 1 that ends the network, alone or in a sequence called as heads are (SqueezeNet, FCN).

    Beside others in a head of another class it may predict boxes; what follows it may only be auxiliary.
    """
    census, path = candidate.census, candidate.path
    if max(candidate.shape[2:]) > 1 or census.heads or candidate.param is census.first_kernel:
        return False
    named = next((depth for depth, part in enumerate(path) if part in naming.HEADS), None)
    if named is None or naming.in_a_stack(path[: named + 1]):
        return False
    if named + 1 < len(path) and not isinstance(candidate.modules[1], nn.Sequential):
        return False
    matrices = [c for c in census.everything if c.param.ndim >= 2]
    place = next(place for place, c in enumerate(matrices) if c.param is candidate.param)
    return all(any(naming.words(part) & {"aux", "auxiliary"} for part in c.path) for c in matrices[place + 1 :])


def conv1d(candidate: Candidate) -> Verdict | None:
    """GPT-2's layers: transposed, q, k and v fused."""
    if not is_conv1d(candidate) or candidate.param.ndim != 2:
        return None
    stored = f"{owner_words(candidate)} stores (in, out)"
    if candidate.owner is None:
        stored = f"{owner_words(candidate)} stored (in, out), as a c_attn of shape (d, 3 d) shows"
    cols, rows = candidate.shape
    if attention_layer(candidate) is not None:
        if candidate.last != "c_attn":
            return Verdict("attention", "transpose", stored)
        view, words = layouts.fused_qkv(candidate, rows, cols, axis="columns")
        return Verdict("attention", "transpose" if view == "matrix" else f"transpose {view}", f"{stored}; {words}")
    side = mlp_side(candidate)
    return Verdict("hidden" if side is None else f"mlp_{side}", "transpose", stored)


def fused_attention(candidate: Candidate) -> Verdict | None:
    """nn.MultiheadAttention keeps q, k, v as raw parameters: in one when they have one width, else apart."""
    names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    if candidate.leaf not in names or candidate.param.ndim != 2:
        return None
    if candidate.leaf != "in_proj_weight":
        return Verdict("attention", "matrix", f"{owner_words(candidate)} {candidate.leaf}")
    rows, cols = candidate.shape
    if isinstance(candidate.owner, nn.MultiheadAttention) or rows == 3 * cols:
        return Verdict(
            "attention",
            layouts.blocks([rows // 3] * 3),
            f"{owner_words(candidate)} q, k, v fused in its rows",
        )
    return Verdict(
        "attention", "matrix", f"{owner_words(candidate)} q, k, v fused in unknown sizes, seen as one matrix"
    )


def bilinear(candidate: Candidate) -> Verdict | None:
    """nn.Bilinear (out, in1, in2) is a linear map of the products of its two inputs, as a kernel is one of a patch.

    Flattened, its update turns with all three spaces; as a stack of (in1, in2) forms it would not with the outputs.
    """
    if not isinstance(candidate.owner, nn.Bilinear) or candidate.leaf != "weight":
        return None
    if candidate.shape[0] == 1:
        return Verdict("hidden", "matrix", "nn.Bilinear with one output: a form of its two inputs")
    return Verdict("hidden", "flatten", "nn.Bilinear: maps the products of its two inputs")


def adaptive_softmax(candidate: Candidate) -> Verdict | None:
    """The logits of nn.AdaptiveLogSoftmaxWithLoss: of frequent classes and clusters, then of each cluster's classes."""
    softmax = next((m for m in candidate.modules if isinstance(m, nn.AdaptiveLogSoftmaxWithLoss)), None)
    if softmax is None or not is_dense(candidate):
        return None
    if candidate.last in ("head", "1"):  # tail.0.0 leads into the first cluster, tail.0.1 to its classes
        return Verdict("lm_head", "matrix", f"{owner_words(candidate)} of nn.AdaptiveLogSoftmaxWithLoss, gives logits")
    return Verdict("hidden", "matrix", f"{owner_words(candidate)} of nn.AdaptiveLogSoftmaxWithLoss, before the logits")


def dense(candidate: Candidate) -> Verdict | None:
    """Linear layers, sorted by where they stand and what they are called."""
    if candidate.param.ndim != 2 or candidate.leaf != "weight" or not candidate.name:
        return None
    known = is_dense(candidate)
    shown = f"{owner_words(candidate)} {candidate.label}".rstrip()
    if candidate.owner is not None and not known:
        shown += ", a layer of unknown kind, by its name"
    rows, cols = candidate.shape
    fused = fused_outputs(candidate, rows)
    place = attention_layer(candidate)
    if place is not None:
        if fused is not None:
            return Verdict("attention", fused[0], f"{shown}: {fused[1]}")
        groups = candidate.attribute("n_groups") if candidate.owner_is("GroupedLinear") else None
        if groups is not None and groups > 1 and rows % groups == 0:
            return Verdict("attention", f"heads({groups})", f"{shown}: {groups} groups, a matrix each")
        if candidate.last in naming.FUSED_QKV or (candidate.last == "in_proj" and rows == 3 * cols):
            view, words = layouts.fused_qkv(candidate, rows, cols)
            return Verdict("attention", view, f"{shown}: {words}")
        if candidate.last.startswith("in_proj_") and len(candidate.last) > len("in_proj_z"):  # one letter, one thing
            return Verdict("attention", "matrix", f"{shown}: fused in an order of its own, seen as one matrix")
        return Verdict("attention", "matrix", f"{shown} {place}".rstrip())
    side = mlp_side(candidate)
    if side is not None:
        view, words = fused or (layouts.fused_gate_up(candidate, rows) if side == "in" else None) or ("matrix", "")
        return Verdict(f"mlp_{side}", view, f"{shown}: {words}" if words else f"{shown}{mlp_words(candidate)}")
    if candidate.owner is None or not known:
        return None
    view, words = fused or layouts.state_space_input(candidate, rows) or ("matrix", "")
    return Verdict("hidden", view, f"{shown}: {words}" if words else f"{shown}, outside attention and mlp")

"""QK-clip: after it, the same batch's logits reach the threshold and no further; healthy heads keep their bits."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import orthoopt
from orthoopt.hf_attention import watch
from orthoopt.qk_clip import Scaled

TAU = 2.0


def logits(q: Tensor, k: Tensor, causal: bool = False) -> Tensor:
    """``(batch, heads, length, length)``, directly."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(scores.shape[-1] - scores.shape[-2])
    return scores.masked_fill(~ahead, -torch.inf) if causal else scores


def per_head(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Separate(nn.Module):
    """Queries and keys by a linear map each, one head loud."""

    def __init__(self, heads: int, key_heads: int, bias: bool, size: int = 6) -> None:
        super().__init__()
        self.heads, self.key_heads = heads, key_heads
        self.q = nn.Linear(10, heads * size, bias, dtype=torch.float64)
        self.k = nn.Linear(10, key_heads * size, bias, dtype=torch.float64)
        with torch.no_grad():
            self.q.weight[:size] *= 40  # the first head's

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return per_head(self.q(x), self.heads), per_head(self.k(x), self.key_heads)


@given(
    sizes=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]), bias=st.booleans(), causal=st.booleans(),
    alpha=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_no_logit_of_the_batch_is_above_tau_and_other_heads_keep_their_bits(
    sizes: tuple[int, int], bias: bool, causal: bool, alpha: float, seed: int
) -> None:
    torch.manual_seed(seed)
    heads, key_heads = sizes
    layer, x = Separate(heads, key_heads, bias), torch.randn(3, 7, 10, dtype=torch.float64)
    before = {name: param.detach().clone() for name, param in layer.named_parameters()}
    clip = orthoopt.QKClip(TAU, alpha)
    clip.add("layer", query=layer.q, key=layer.k, heads=heads, key_heads=key_heads)
    scores = logits(*layer(x), causal)
    largest = scores.amax((0, 2, 3))
    clip.observe("layer", orthoopt.max_logits(*layer(x), causal=causal))
    gamma = clip()["layer"]
    loud = largest > TAU
    assert loud[0] and torch.equal(gamma[~loud], torch.ones_like(gamma[~loud]))
    after = logits(*layer(x), causal)
    # Whole heads of logits are multiplied by γ: each to float64 rounding, some tens of operations long.
    expected = torch.where(loud, TAU / largest, 1.0).view(-1, 1, 1) * scores
    torch.testing.assert_close(after, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(after.amax((0, 2, 3))[loud], torch.full((int(loud.sum()),), TAU).double())
    for name, param in layer.named_parameters():
        rows_of = param.detach().unflatten(0, (heads if name.startswith("q") else key_heads, -1))
        kept = before[name].unflatten(0, rows_of.shape[:2])
        if name.startswith("k") and key_heads < heads:
            assert torch.equal(rows_of, kept)  # shared by healthy heads
        else:
            assert torch.equal(rows_of[~loud], kept[~loud])
    assert clip() == {}  # what was observed is forgotten


FUSED: dict[str, tuple[str, tuple[int, int]]] = {
    "gpt2": ("transpose split(12,12,12) heads(3)", (10, 36)),
    "neox": ("heads(3) split(4,4,4)", (36, 10)),
    "phi3": ("split(12,4,4) head_size(4)", (20, 10)),
}


@pytest.mark.parametrize("kind", FUSED)
def test_fused_parameters_are_clipped_through_their_views(kind: str) -> None:
    view, shape = FUSED[kind]
    torch.manual_seed(1)
    fused, x = nn.Parameter(30 * torch.randn(shape, dtype=torch.float64)), torch.randn(2, 5, 10, dtype=torch.float64)

    def maps() -> list[Tensor]:
        out = x @ (fused if kind == "gpt2" else fused.mT)
        if kind == "neox":
            return [part.transpose(1, 2) for part in out.unflatten(-1, (3, 12)).split(4, -1)]
        sizes = (12, 12, 12) if kind == "gpt2" else (12, 4, 4)
        return [per_head(part, part.shape[-1] // 4) for part in out.split(sizes, -1)]

    q, k, v = maps()
    clip = orthoopt.QKClip(TAU)
    clip.add_fused("layer", param=fused, view=view, heads=3, key_heads=k.shape[1])
    clip.observe("layer", orthoopt.max_logits(q, k))
    clip()
    q, k, after = maps()
    torch.testing.assert_close(logits(q, k).amax((0, 2, 3)), torch.full((3,), TAU).double())
    assert torch.equal(after, v)  # values are not touched


def test_latent_attention_leaves_the_shared_rotary_key_alone() -> None:
    torch.manual_seed(2)
    heads, plain, rotary, value, rank = 3, 4, 2, 5, 8
    query, key_value = nn.Linear(rank, heads * 6, False).double(), nn.Linear(rank, heads * 9, False).double()
    x, shared = 30 * torch.randn(2, 5, rank).double(), torch.randn(2, 1, 5, rotary).double()

    def maps() -> tuple[Tensor, Tensor, Tensor]:
        own, values = per_head(key_value(x), heads).split((plain, value), -1)
        return per_head(query(x), heads), torch.cat([own, shared.expand(-1, heads, -1, -1)], -1), values

    q, k, v = maps()
    clip = orthoopt.QKClip(TAU)
    clip.add_latent("mla", query=query, key_value=key_value, heads=heads, plain=plain, rotary=rotary, value=value)
    clip.observe("mla", orthoopt.max_logits(q, k))
    clip()
    q, k, after = maps()
    torch.testing.assert_close(logits(q, k).amax((0, 2, 3)), torch.full((heads,), TAU).double())
    assert torch.equal(after, v)


@given(
    heads=st.sampled_from([(1, 1), (4, 2), (3, 3)]), lengths=st.tuples(st.integers(1, 9), st.integers(0, 9)),
    block=st.integers(1, 10), causal=st.booleans(), masked=st.booleans(),
)  # fmt: skip
def test_max_logits_are_the_maxima(
    heads: tuple[int, int], lengths: tuple[int, int], block: int, causal: bool, masked: bool
) -> None:
    torch.manual_seed(3)
    length, more = lengths
    q, k = torch.randn(2, heads[0], length, 4).double(), torch.randn(2, heads[1], length + more, 4).double()
    scores = logits(q, k, causal)
    mask = torch.rand(2, 1, length, length + more) > 0.3 if masked else None
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    found = orthoopt.max_logits(q, k, causal=causal, mask=mask, block=block)
    torch.testing.assert_close(found, scores.amax((0, 2, 3)), rtol=1e-13, atol=1e-13)
    if mask is not None:
        added = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        assert torch.equal(found, orthoopt.max_logits(q, k, causal=causal, mask=added, block=block))


def test_micro_batches_count_together_and_nonfinite_logits_not_at_all() -> None:
    layer = Separate(2, 2, False)
    before = layer.q.weight.detach().clone()
    clip = orthoopt.QKClip(1.0)
    clip.add("a", query=layer.q, key=layer.k, heads=2)
    clip.observe("a", torch.tensor([4.0, 0.1]))
    clip.observe("a", torch.tensor([2.0, 0.5]))
    assert clip()["a"].tolist() == [0.25, 1.0]
    torch.testing.assert_close(layer.q.weight[:6], before[:6] / 2, rtol=1e-15, atol=0)
    clip.observe("a", torch.tensor([torch.nan, torch.inf]))
    assert clip()["a"].tolist() == [1.0, 1.0]


def test_mistakes_are_named() -> None:
    layer, clip = Separate(2, 2, False), orthoopt.QKClip()
    with pytest.raises(ValueError, match=r"tau=0 must be a positive number"):
        orthoopt.QKClip(0)
    with pytest.raises(ValueError, match=r"alpha=1\.5 must be from 0 to 1"):
        orthoopt.QKClip(alpha=1.5)
    with pytest.raises(ValueError, match=r"view 'heads\(5\)' .*shape \(12, 10\)"):
        clip.add("a", query=layer.q, key=layer.k, heads=5)
    with pytest.raises(ValueError, match="piece 1 must be .heads, rows, cols. with 2 heads"):
        clip.add_parts("a", 2, [Scaled(layer.q.weight, "heads(2)", {1: 1.0})])
    assert clip.layers == []
    clip.add("a", query=layer.q, key=layer.k, heads=2)
    with pytest.raises(ValueError, match="no layer 'b' was added; there are: a"):
        clip.observe("b", torch.ones(2))
    with pytest.raises(ValueError, match=r"layer 'a' has 2 heads, got logits of shape \(3,\)"):
        clip.observe("a", torch.ones(3))
    with pytest.raises(ValueError, match="4 query heads are no multiple of 3 key heads"):
        orthoopt.max_logits(torch.ones(1, 4, 2, 2), torch.ones(1, 3, 2, 2))


def test_a_model_of_transformers_tells_its_logits() -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model: Any = models.llama(device="cpu").double()
    layer = model.model.layers[0].self_attn
    with torch.no_grad():
        layer.q_proj.weight *= 1e5
    plain: Any = model(torch.arange(12).view(1, 12)).logits
    clip = orthoopt.QKClip(TAU)
    names = watch(model, clip)
    tokens = torch.arange(12).view(1, 12)
    torch.testing.assert_close(model(tokens).logits, plain)  # the same model; sdpa is fed another form of the mask
    clip()
    model.train()
    model(tokens)
    first = clip()
    assert set(first) == set(names) and bool((first["model.layers.0.self_attn"] < 1).any())
    # The first layer's inputs have not changed, so the same batch now reaches τ there.
    model(tokens)
    again = clip()["model.layers.0.self_attn"]
    torch.testing.assert_close(again, torch.ones_like(again))
    with pytest.raises(ValueError, match="normalizes its queries"):
        watch(models.qwen3(device="cpu"), orthoopt.QKClip())
    with pytest.raises(ValueError, match="Linear has no attention modules"):
        watch(nn.Linear(2, 2), orthoopt.QKClip())

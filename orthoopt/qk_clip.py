"""QK-clip: attention logits that grow beyond a threshold are brought back by scaling query and key weights.

After a step, head h whose largest logit S_h was above τ gets γ_h = τ/S_h: its query rows are multiplied by γ_h^α and
its key rows by γ_h^(1−α), so that the same batch would now reach τ. Heads below τ keep their bits. Source: Kimi K2,
arXiv 2507.20534, section 2.1 (MuonClip); τ = 100 and α = 1/2 there.

Keys that several heads share (grouped queries, the rotary key of latent attention) are left alone, and those heads'
queries take γ_h whole: a key scaled for one head would shrink the logits of healthy ones. Kimi K2 treats its rotary
key so.

::

    clip = orthoopt.QKClip(tau=100.0)
    for name, layer in ...:
        clip.add(name, query=layer.q_proj, key=layer.k_proj, heads=32, key_heads=8)
    ...                                          # in the forward pass, once a micro-batch
        clip.observe(name, orthoopt.max_logits(q, k, causal=True))
    opt.step()
    clip()
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from orthoopt.nonfinite import local_part
from orthoopt.views import View, parse_view


class Scaled(NamedTuple):
    """Part of a parameter that a head's factor scales."""

    param: Tensor
    view: str
    """Whose pieces are ``(heads, rows of a head, cols)``, see :mod:`orthoopt.views`."""
    powers: Mapping[int, float]
    """Piece -> power of γ that multiplies it; pieces that are not here stay."""


class QKClip:
    """Scales query and key weights of heads whose logits grew beyond a threshold; see the module's docstring.

    Args:
        tau: τ, the largest logit that is let be.
        alpha: α, the queries' share of the factor where keys are a head's own.
        group: process group over which the largest logits are taken; None for the default one, where there is one.
            Every rank must have observed the same layers.

    Raises:
        ValueError: a τ that is not positive, or an α that is not from 0 to 1.
    """

    def __init__(self, tau: float = 100.0, alpha: float = 0.5, *, group: Any = None) -> None:
        if not 0 < tau < float("inf"):
            raise ValueError(f"tau={tau!r} must be a positive number")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha!r} must be from 0 to 1")
        self.tau, self.alpha, self._group = tau, alpha, group
        self._layers: dict[str, tuple[int, list[Scaled]]] = {}
        self._seen: dict[str, Tensor] = {}

    def add(self, name: str, *, query: nn.Module, key: nn.Module, heads: int, key_heads: int | None = None) -> None:
        """An attention layer with a linear map each for queries and keys, biases included.

        Args:
            name: by which :meth:`observe` knows the layer.
            query: has ``weight``, ``(heads·d, in)``, and perhaps ``bias``.
            key: the same of ``(key_heads·d, in)``.
            heads: how many query heads there are.
            key_heads: how many key heads; None for as many.

        Raises:
            TypeError: a module without a weight.
            ValueError: as :meth:`add_parts`.
        """
        own = key_heads in (None, heads)
        maps = [(query, self.alpha if own else 1.0)] + ([(key, 1 - self.alpha)] if own else [])
        parts = [Scaled(_weight(module), f"heads({heads})", {0: power}) for module, power in maps]
        biases = [(getattr(module, "bias", None), power) for module, power in maps]
        parts += [Scaled(bias, f"column heads({heads})", {0: power}) for bias, power in biases if bias is not None]
        self.add_parts(name, heads, parts)

    def add_fused(self, name: str, *, param: Tensor, view: str, heads: int, key_heads: int | None = None) -> None:
        """An attention layer whose queries and keys lie in one parameter; add its bias under the same name.

        Args:
            name: by which :meth:`observe` knows the layer.
            param: weight or bias.
            view: has the queries as its first and the keys as its second piece, each ``(heads, rows, cols)``:
                ``"transpose split(d,d,d) heads(h)"`` for GPT-2's ``c_attn``, ``"heads(h) split(d,d,d)"`` for NeoX. With
                grouped queries, ``"split(q,k,v) head_size(d)"``.
            heads: how many query heads there are.
            key_heads: how many key heads; None for as many.

        Raises:
            TypeError: a module without a weight.
            ValueError: as :meth:`add_parts`.
        """
        own = key_heads in (None, heads)
        powers = {0: self.alpha, 1: 1 - self.alpha} if own else {0: 1.0}
        self.add_parts(name, heads, [Scaled(param, view, powers)])

    def add_latent(
        self, name: str, *, query: nn.Module, key_value: nn.Module, heads: int, plain: int, rotary: int, value: int
    ) -> None:
        """A layer of multi-head latent attention (DeepSeek-V2 and kin), biases not included.

        Args:
            name: by which :meth:`observe` knows the layer.
            query: rows are heads, each of ``plain`` and ``rotary`` rows (``q_b_proj``).
            key_value: rows are heads, each of ``plain`` and ``value`` rows (``kv_b_proj``).
            heads: how many.
            plain: rows of a head without a rotary position.
            rotary: rows of a head with one; their key is shared by all heads, so these take γ whole.
            value: rows of a head's values, left alone.

        Raises:
            ValueError: as :meth:`add_parts`.
        """
        queries = Scaled(_weight(query), f"heads({heads}) split({plain},{rotary})", {0: self.alpha, 1: 1.0})
        keys = Scaled(_weight(key_value), f"heads({heads}) split({plain},{value})", {0: 1 - self.alpha})
        self.add_parts(name, heads, [queries, keys])

    def add_parts(self, name: str, heads: int, parts: list[Scaled]) -> None:
        """Whatever a head's factor scales; what the other ways to add come to.

        Raises:
            ValueError: a view that does not fit, or whose pieces do not begin with the heads; nothing is added.
        """
        for part in parts:
            shapes = parse_view(part.view).piece_shapes(tuple(part.param.shape))
            for piece in part.powers:
                if not (piece < len(shapes) and len(shapes[piece]) == 3 and shapes[piece][0] == heads):
                    raise ValueError(
                        f"layer {name!r}: view {part.view!r} of a parameter of shape {tuple(part.param.shape)} has "
                        f"pieces of shapes {shapes}; piece {piece} must be (heads, rows, cols) with {heads} heads"
                    )
        if name in self._layers and self._layers[name][0] != heads:
            raise ValueError(f"layer {name!r} was added with {self._layers[name][0]} heads, now with {heads}")
        self._layers.setdefault(name, (heads, []))[1].extend(parts)

    @property
    def layers(self) -> list[str]:
        """The names of the layers."""
        return list(self._layers)

    @torch.no_grad()
    def observe(self, name: str, largest: Tensor) -> None:
        """Take note of a layer's largest logits; the largest since the last clip counts.

        Args:
            name: of the layer.
            largest: ``(heads,)``, on the device of the weights; nothing waits for it.

        Raises:
            ValueError: no such layer, or another number of heads.
        """
        if name not in self._layers:
            raise ValueError(f"no layer {name!r} was added; there are: {', '.join(self._layers) or 'none'}")
        heads = self._layers[name][0]
        if tuple(largest.shape) != (heads,):
            raise ValueError(f"layer {name!r} has {heads} heads, got logits of shape {tuple(largest.shape)}")
        largest = largest.detach().to(torch.promote_types(largest.dtype, torch.float32))
        self._seen[name] = torch.maximum(self._seen[name], largest) if name in self._seen else largest.clone()

    @torch.no_grad()
    def __call__(self) -> dict[str, Tensor]:
        """Scale the heads whose logits were too large, and forget what was observed.

        Returns:
            Layer -> γ, ``(heads,)``: 1 for heads that were left alone, and those whose logits were not finite.
        """
        factors: dict[str, Tensor] = {}
        for name in [name for name in self._layers if name in self._seen]:  # in one order on every rank
            largest = self._seen[name]
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, self._group)
            gamma = torch.where((largest > self.tau) & largest.isfinite(), self.tau / largest, 1.0)
            for part in self._layers[name][1]:
                _scale(part, gamma)
            factors[name] = gamma
        self._seen.clear()
        return factors


def _weight(module: nn.Module) -> Tensor:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise TypeError(f"queries and keys must be modules with a weight, got {type(module).__name__}")
    return weight


def _scale(part: Scaled, gamma: Tensor) -> None:
    view = parse_view(part.view)
    param = part.param.detach()
    if local_part(param) is param and view.shares_memory(param):
        _scale_pieces(view, param, part.powers, gamma)
        return
    # A shard: its part of the factors of all entries.
    factors = torch.ones(param.shape, dtype=gamma.dtype, device=gamma.device)
    _scale_pieces(view, factors, part.powers, gamma)
    if local_part(param) is not param:
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        sharded: Any = param
        shape, offset = compute_local_shape_and_global_offset(param.shape, sharded.device_mesh, sharded.placements)
        factors = factors[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]
    local_part(param).mul_(factors)


def _scale_pieces(view: View, tensor: Tensor, powers: Mapping[int, float], gamma: Tensor) -> None:
    for piece, target in enumerate(view.targets(tensor)):
        if piece in powers:
            factor = (gamma ** powers[piece]).reshape(-1, *[1] * (target.ndim - 1))
            target.copy_(target * factor)  # in float32, rounded once; times 1 is every bit as it was


@torch.no_grad()
def max_logits(
    query: Tensor,
    key: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
    block: int = 1024,
) -> Tensor:
    """The largest attention logit of every head, over a batch: ``max scale·q·k``.

    Args:
        query: ``(batch, heads, length, d)``, as it is multiplied: after norms and rotary positions.
        key: ``(batch, key heads, key length, d)``; each serves heads/key heads consecutive query heads.
        scale: d^(−1/2) if None, as in ``torch.nn.functional.scaled_dot_product_attention``.
        causal: leave out keys behind the query; both lengths end at the same place.
        mask: ``(batch or 1, heads or 1, length, key length)``: True for pairs that count, or a number that is added,
            which leaves pairs out where it is below −10⁴.
        block: queries a product, which bounds memory to batch · heads · block · key length.

    Returns:
        ``(heads,)``, float32 or wider; minus infinity without any pair.

    Raises:
        ValueError: heads that are no multiple of key heads.
    """
    batch, heads, length, size = query.shape
    key_heads, keys = key.shape[1], key.shape[2]
    if heads % key_heads:
        raise ValueError(f"{heads} query heads are no multiple of {key_heads} key heads")
    scale = size**-0.5 if scale is None else scale
    grouped = query.unflatten(1, (key_heads, heads // key_heads))
    largest = torch.full(
        (heads,), -torch.inf, dtype=torch.promote_types(query.dtype, torch.float32), device=query.device
    )
    for start in range(0, length, block):
        part = grouped[:, :, :, start : start + block]
        end = keys if not causal else max(0, min(keys, keys - length + start + part.shape[3]))
        if end == 0 or batch == 0:
            continue
        logits = (part @ key[:, :, None, :end].mT).to(largest.dtype) * scale
        if causal:
            places = torch.arange(start, start + part.shape[3], device=query.device) + keys - length
            behind = torch.arange(end, device=query.device) > places.unsqueeze(-1)
            logits = logits.masked_fill(behind, -torch.inf)
        if mask is not None:
            here = mask[:, :, start : start + block, :end]
            counts = here if here.dtype is torch.bool else here > -1e4
            logits = logits.flatten(1, 2).masked_fill(~counts, -torch.inf).view_as(logits)
        largest = torch.maximum(largest, logits.amax((0, 3, 4)).flatten())
    return largest

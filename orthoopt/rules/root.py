"""ROOT: momentum clipped at a quantile of its own entries, then orthogonalized with coefficients fitted to its shape.

A few extreme entries of a momentum decide its largest singular values. ROOT splits h = B + O by soft thresholding,
O = sign(h)·max(|h| − ε, 0), drops O, and orthogonalizes B = clamp(h, −ε, ε). One triple of Newton-Schulz coefficients
a shape, reused in every step, replaces Muon's for all shapes (AdaNewton). Source: arXiv 2511.20626;
huawei-noah/noah-research ROOT.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from orthoopt.adanewton import released, shipped
from orthoopt.coefficients import TABLES, Triple, resolve_coefficients
from orthoopt.newton_schulz import NS_DTYPES, newton_schulz
from orthoopt.rules._base import Breaks, Equivariance, Options, register
from orthoopt.rules._momentum import momentum_rule
from orthoopt.start import power_of_two


def root_direction(
    momentum: Tensor,
    *,
    threshold: Literal["quantile", "rms"] = "quantile",
    quantile: float = 0.9,
    rms_multiple: float = 2.0,
    ns_steps: int = 5,
    ns_coefficients: Literal["fitted", "released"] | str | Triple | tuple[Triple, ...] = "fitted",
    ns_dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "auto",
) -> Tensor:
    """Polar factor of the momentum clipped at a quantile, coefficients by shape (ROOT).

    Args:
        momentum: ``(..., rows, cols)``, leading dimensions a batch.
        threshold: what ε is: the ``quantile`` of the matrix's |entries| as released, or ``rms_multiple`` times their
            root mean square. The paper's box has a constant ε, which would make the update depend on the gradient's
            scale; this is that constant in units of the matrix.
        quantile: q in [0, 1]; 1 clips nothing.
        rms_multiple: positive; read where ``threshold="rms"``.
        ns_steps: Newton-Schulz iterations.
        ns_coefficients: ``fitted``: the shipped triple for this shape and number of steps (:mod:`orthoopt.adanewton`);
            ``released``: the authors' four triples on their shapes, Muon's elsewhere; or a table of
            :mod:`orthoopt.coefficients`, one (a, b, c), or several.
        ns_dtype: dtype of the iteration; ``auto`` chooses by device.

    Returns:
        The update, ``(..., rows, cols)``, in the dtype of the iteration.
    """
    x = momentum.to(torch.promote_types(momentum.dtype, torch.float32))
    x = x * power_of_two(x)  # so that nothing below depends on the scale, to the last bit
    level = entry_quantile(x, quantile) if threshold == "quantile" else rms_multiple * _rms_of_entries(x)
    chosen = coefficients_for(x.shape[-2], x.shape[-1], ns_steps, ns_coefficients)
    return newton_schulz(clip(x, level), ns_steps, chosen, NS_DTYPES[ns_dtype])


def entry_quantile(x: Tensor, q: float) -> Tensor:
    """The q-quantile of each matrix's |entries|, linear between order statistics, ``(..., 1, 1)``.

    ``torch.quantile`` sorts, and refuses more than 2²⁴ entries. This selects, which takes linear time, and places the
    quantile in double precision: exactly N − 1 − ⌊q(N − 1)⌋ of N entries exceed it, unless entries tie.

    Args:
        x: ``(..., rows, cols)``.
        q: in [0, 1].
    """
    entries = x.abs().flatten(-2)
    last = entries.shape[-1] - 1
    position = q * last
    below = min(math.floor(position), last)
    # The entries from the order statistic `below` on, in any order: the two that are wanted are the smallest of them.
    # A partial selection; unlike kthvalue it is deterministic on every device.
    upper = entries.topk(last - below + 1, sorted=False).values
    if below == last:
        return upper.unsqueeze(-1)
    pair = upper.topk(2, largest=False).values
    return torch.lerp(pair[..., :1], pair[..., 1:], position - below).unsqueeze(-1)


def clip(x: Tensor, level: Tensor) -> Tensor:
    """B = clamp(x, −ε, ε), which is x − sign(x)·max(|x| − ε, 0); where ε is 0, x itself.

    A matrix of which the quantile is 0, such as one with mostly zeros, would else lose its direction.

    Args:
        x: ``(..., rows, cols)``.
        level: ε, ``(..., 1, 1)``.
    """
    return torch.where(level > 0, x.clamp(-level, level), x)


def coefficients_for(
    rows: int, cols: int, steps: int, coefficients: str | Triple | tuple[Triple, ...]
) -> str | Triple | tuple[Triple, ...]:
    """What ``newton_schulz`` is given for matrices of this shape."""
    if coefficients == "fitted":
        return shipped(rows, cols, steps).triple
    if coefficients == "released":
        return released(rows, cols)
    return coefficients


def _rms_of_entries(x: Tensor) -> Tensor:
    return x.square().mean((-2, -1), keepdim=True).sqrt()


def _rms(rows: int, cols: int, options: Options) -> float:
    return 1 / math.sqrt(max(rows, cols))


def _check(options: Options) -> None:
    if not 0 <= options["quantile"] <= 1:
        raise ValueError(f"quantile must be from 0 to 1, got {options['quantile']!r}")
    if not 0 < options["rms_multiple"] < math.inf:
        raise ValueError(f"rms_multiple must be a positive number, got {options['rms_multiple']!r}")
    steps, chosen = options["ns_steps"], options["ns_coefficients"]
    if chosen == "released" and steps > 5:
        raise ValueError(f"ns_coefficients='released' allows at most 5 steps, got ns_steps={steps!r}")
    if chosen in ("fitted", "released"):
        chosen = "muon"
    elif isinstance(chosen, str) and chosen not in TABLES:
        raise ValueError(f"unknown coefficients {chosen!r}; known: 'fitted', 'released', {', '.join(TABLES)}")
    resolve_coefficients(chosen, steps)


def _clips(options: Options) -> bool:
    return options["threshold"] == "rms" or options["quantile"] < 1


def _equivariance(options: Options, rows: int, cols: int) -> Equivariance:
    if _clips(options):
        # Entries are compared with a threshold: only what moves entries and flips signs commutes with that.
        breaks: Breaks = (("left", "orthogonal"), ("right", "orthogonal"))
        return Equivariance("signed_permutation", "signed_permutation", breaks)
    if options["ns_coefficients"] == "aol4":
        return Equivariance("signed_permutation", "signed_permutation")
    return Equivariance("orthogonal", "orthogonal")


def _note(rows: int, cols: int, options: Options) -> str:
    chosen = options["ns_coefficients"]
    if chosen == "fitted":
        choice = shipped(rows, cols, options["ns_steps"])
        return choice.describe() + ("" if choice.steps == options["ns_steps"] else f" for {choice.steps} steps")
    if chosen == "released":
        return f"AdaNewton as released: {released(rows, cols)}"
    return ""


root = register(
    momentum_rule(
        "root",
        root_direction,
        rms=_rms,
        equivariance=_equivariance,
        transposable=True,
        momentum_form="heavy_ball",
        # The update descends along the clipped momentum. What was clipped off may outweigh that in the gradient.
        descends=lambda options: not _clips(options),
        note=_note,
        check=_check,
    )
)

"""`orthoopt fit-coefficients ROWS COLS`: a triple of Newton-Schulz coefficients for matrices of one shape."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from orthoopt.adanewton import Shape, key_of, shipped, spell_shape
from orthoopt.coefficients import Triple
from orthoopt.fit_coefficients import (
    MUON,
    REAL_SHARE,
    TAILS,
    clipped_spectrum,
    errors,
    fit,
    gaussian_spectra,
    largest_output,
    power_law,
)
from orthoopt.invariance import CLEARANCE, LARGEST, bounds
from orthoopt.momentum_files import Momentum, momenta_of_shape

_HELD_OUT_EVERY = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, and print the triple and how it does; 0, 1 if it cannot be done, 2 for a usage error."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    shape = key_of(options.rows, options.cols)
    try:
        momenta = momenta_of_shape(options.momentum_from, shape) if options.momentum_from else []
        result = fit_shape(shape, options.steps, momenta, quantile=options.quantile, seed=options.seed)
    except ModuleNotFoundError as error:
        print(f"orthoopt: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"orthoopt fit-coefficients: {error}", file=sys.stderr)
        return 1
    if options.momentum_from:
        result["momentum_from"] = options.momentum_from
    print(json.dumps(result, indent=2) if options.json else report(result))
    return 0


def fit_shape(
    shape: Shape, steps: int, momenta: Sequence[Momentum] = (), *, quantile: float = 0.9, seed: int = 0
) -> dict[str, Any]:
    """Fit a triple for a shape; errors are those on matrices that the fit has not seen, where there are any.

    Of four or more momenta every fourth is held out. Gaussian matrices to fit to and to judge by are drawn apart.

    Args:
        shape: (shorter side, longer side).
        steps: of the iteration.
        momenta: matrices of the shape; none: Gaussian matrices alone.
        quantile: where entries are clipped before.
        seed: of the Gaussian matrices.

    Returns:
        Plain data, as ``--json`` prints it.
    """
    real = [clipped_spectrum(momentum.matrix, quantile) for momentum in momenta]
    held_out = real[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY]
    fitted_to = [spectrum for i, spectrum in enumerate(real) if i % _HELD_OUT_EVERY != _HELD_OUT_EVERY - 1]
    count = max(2, min(24, 4096 // shape[0]))
    random = gaussian_spectra(shape, 2 * count, seed, quantile)
    found = fit(fitted_to, random[:count], steps)
    judged: dict[str, Sequence[Tensor]] = {"momenta": held_out or real, "Gaussian matrices": random[count:]}
    judged |= {f"power law i^-{exponent:g}": [power_law(shape[0], exponent)] for exponent in TAILS}
    candidates = {"muon": MUON, "shipped": shipped(*shape, steps).triple, "fitted": found.triple}
    return {
        "shape": list(shape),
        "steps": steps,
        "quantile": quantile,
        "triple": list(found.triple),
        "momenta": {
            "found": len(real), "fitted_to": len(fitted_to), "held_out": len(held_out),
            "parameters": list(dict.fromkeys(momentum.name for momentum in momenta)),
        },
        "gaussian_matrices": {"fitted_to": count, "held_out": count, "seed": seed},
        "errors": {name: errors(triple, judged, steps) for name, triple in candidates.items()},
        "largest_singular_value": {name: largest_output(triple, steps) for name, triple in candidates.items()},
        "constraints": _constraints(found.triple),
        "shipped": shipped(*shape, steps).describe(),
    }  # fmt: skip


def report(result: Mapping[str, Any]) -> str:
    """The result for people."""
    name, triple = spell_shape((result["shape"][0], result["shape"][1])), tuple(result["triple"])
    momenta, gaussian = result["momenta"], result["gaussian_matrices"]
    lines = [f"AdaNewton for {name} and its transpose, {result['steps']} steps: {', '.join(map(str, triple))}", ""]
    drawn = f"{gaussian['fitted_to']} Gaussian matrices"
    if momenta["found"]:
        apart = f"{momenta['held_out']} held out" if momenta["held_out"] else "none held out: errors are the fit's"
        lines.append(f"found {momenta['found']} momenta of this shape ({_few(momenta['parameters'])}), {apart}")
        lines.append(f"fitted to {momenta['fitted_to']} of them and {drawn}, 1 : {(1 - REAL_SHARE) / REAL_SHARE:g}")
    else:
        lines.append(f"fitted to {drawn} alone; momenta of a run: --momentum-from CHECKPOINT")
    lines.append(
        f"clipped at quantile {result['quantile']:g}, seed {gaussian['seed']}; no worse than Muon's on power laws"
    )
    lines += ["", f"{'':<28}{'muon':>10}{'shipped':>10}{'fitted':>10}"]
    for kind in result["errors"]["fitted"]:
        values = (result["errors"][who][kind] for who in ("muon", "shipped", "fitted"))
        lines.append(f"{'error, ' + kind:<28}" + "".join(f"{value:>10.4f}" for value in values))
    values = (result["largest_singular_value"][who] for who in ("muon", "shipped", "fitted"))
    lines.append(f"{'largest singular value':<28}" + "".join(f"{value:>10.4f}" for value in values))
    lines += ["", "error: mean over matrices of RMS(singular value of the update - 1)", f"shipped: {result['shipped']}"]
    lines += ["", "constraints on f(x) = ax + bx^3 + cx^5, and how far inside them it is"]
    lines += [f"  {text:<32}{margin}" for text, margin in result["constraints"].items()]
    lines += ["", f"use: orthoopt.Root(model, ns_coefficients={triple}, ns_steps={result['steps']})"]
    lines.append(f"or for these matrices alone: overrides=[(PATTERN, {{'rule': 'root', 'ns_coefficients': {triple}}})]")
    return "\n".join(lines)


def _constraints(triple: Triple) -> dict[str, str]:
    found = bounds(triple)
    return {
        "f > 0 on (0, M]": f"f(x)/x at least {found.least_slope:.3f}",
        "f maps [0, M] into itself": f"M = {found.top:.4f}, highest {found.highest:.4f}",
        f"M <= {CLEARANCE} x_rep": f"M / x_rep = {found.top / found.repelling:.4f}",
        f"M <= {LARGEST}": f"by {LARGEST - found.top:.4f}",
    }


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more parameters" if len(names) > most else "")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="orthoopt fit-coefficients",
        description="Fit one triple of Newton-Schulz coefficients to matrices of a shape (ROOT's AdaNewton).",
    )
    parser.add_argument("rows", type=int, metavar="ROWS")
    parser.add_argument("cols", type=int, metavar="COLS")
    parser.add_argument("--steps", type=int, default=5, help="Newton-Schulz iterations (default 5)")
    parser.add_argument(
        "--momentum-from", metavar="CHECKPOINT",
        help="a Trainer checkpoint's folder, or a .pt file with an optimizer's state dict or tensors",
    )  # fmt: skip
    parser.add_argument("--quantile", type=float, default=0.9, help="where entries are clipped before (default 0.9)")
    parser.add_argument("--seed", type=int, default=0, help="of the Gaussian matrices")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(argv)
    for name in ("rows", "cols", "steps"):
        if getattr(options, name) < 1:
            parser.error(f"{name} must be at least 1, got {getattr(options, name)}")
    if not 0 <= options.quantile <= 1:
        parser.error(f"--quantile must be from 0 to 1, got {options.quantile}")
    return options

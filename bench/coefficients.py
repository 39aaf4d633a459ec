"""`orthoopt bench coefficients`: fitted Newton-Schulz triples against Muon's, on momenta they were not fitted to.

With ``--fit FILE`` the triples are fitted first and written, as the shipped table was. README.md beside this file has
the protocol.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthoopt.adanewton import FILE, RELEASED, Shape, read_table, shipped_table, spell_shape
from orthoopt.bench import machine, momenta
from orthoopt.bench.results_file import results_folder, strict, write_json
from orthoopt.coefficients import TABLES, Triple
from orthoopt.fit_coefficients import (
    MUON,
    REAL_SHARE,
    TAILS,
    fit,
    gaussian_spectra,
    largest_output,
    outputs,
    polar_error,
    power_law,
)
from orthoopt.invariance import CLEARANCE, LARGEST, bounds
from orthoopt.recipes.corpus import Corpus, stdlib_corpus
from orthoopt.recipes.tokenizer import cache_root

STEPS = (3, 4, 5, 6, 7, 8)
SHOWN = 5
"""The number of steps that the printed table is about."""
ENOUGH = 0.9
"""Share of shapes on whose held-out momenta the fitted triple must be nearer to the polar factor than Muon's."""
DEFAULT_MODELS = ("recipe", "gpt2", "qwen3_0.6b")
FIT_SEED, HELD_OUT_SEED = 0, 1
OURS, BASELINE = "fitted", "muon"

Kinds = dict[str, list[Tensor]]


def main(argv: Sequence[str] | None = None) -> int:
    """Train, fit if asked, judge, print, write; 0, 1 if the fitted triples do not hold up, 2 for a usage error."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    folder = results_folder(options.out)
    block = machine.describe("cpu")
    sources = [momenta.SOURCES[name] for name in options.models]
    corpus = stdlib_corpus(0.1)
    spectra = collect(sources, corpus, cache_root(options.cache_dir))
    if options.fit is None:
        table = shipped_table()
    else:
        entries = fit_all(spectra)
        write_table(Path(options.fit), describe_fit(sources, corpus, block), entries)
        table = read_table({"entries": entries})
    rows = [row for steps, triples in sorted(table.items()) for row in judge(triples, steps, spectra)]
    summary = summarize(rows)
    result = {
        "bench": "coefficients",
        "machine": block,
        "settings": {
            "table": "fitted in this run" if options.fit is not None else f"the shipped {FILE}",
            "error": "mean over matrices of the root mean square of sigma - 1 over the update's singular values",
            "largest": "largest output singular value over all inputs in [0, 1] and all spectra here",
            "corpus": corpus.info.to_dict(),
            "models": [asdict(source) for source in sources],
            "seeds": {"fit": FIT_SEED, "held_out": HELD_OUT_SEED},
            "matrices": {spell_shape(shape): {k: len(v) for k, v in kinds.items()} for shape, kinds in spectra.items()},
        },
        "summary": summary,
        "rows": rows,
    }
    path = write_json(folder / "coefficients_cpu.json", result)
    print(f"\n{report(rows)}\n\n{path}")
    return 0 if all(part["holds"] for part in summary.values()) else 1


def collect(sources: Sequence[momenta.Source], corpus: Corpus, cache: Path) -> dict[Shape, Kinds]:
    """Spectra by shape and kind: momenta and Gaussian matrices to fit to, and others to judge by."""
    spectra: dict[Shape, Kinds] = {}
    for source in sources:
        runs = (("real_fit", FIT_SEED, source.fit_at), ("real_held_out", HELD_OUT_SEED, source.held_out_at))
        for kind, seed, steps in runs:
            print(f"training {source.name} from seed {seed} for {max(steps)} steps", flush=True)
            for shape, some in momenta.train(source, corpus, cache, seed, steps).items():
                spectra.setdefault(shape, {}).setdefault(kind, []).extend(some)
    for shape, kinds in spectra.items():
        count = max(2, min(24, 4096 // shape[0]))
        kinds["gaussian_fit"] = gaussian_spectra(shape, count, FIT_SEED)
        kinds["gaussian_held_out"] = gaussian_spectra(shape, count, HELD_OUT_SEED)
    return dict(sorted(spectra.items()))


def fit_all(spectra: Mapping[Shape, Kinds]) -> list[dict[str, Any]]:
    """One entry of the table for every shape and number of steps."""
    entries: list[dict[str, Any]] = []
    for shape, kinds in spectra.items():
        for steps in STEPS:
            found = fit(kinds["real_fit"], kinds["gaussian_fit"], steps)
            judged = {name: _errors(t, shape, kinds, steps) for name, t in ((BASELINE, MUON), (OURS, found.triple))}
            entry = {
                "shape": list(shape),
                "steps": steps,
                "triple": list(found.triple),
                "largest": round(found.largest, 4),
                "interval": round(found.bounds.top, 4),
                "repelling": round(found.bounds.repelling, 4),
                "momenta": len(kinds["real_fit"]),
                "gaussians": len(kinds["gaussian_fit"]),
                "errors": {name: {k: round(v, 4) for k, v in some.items()} for name, some in judged.items()},
            }
            entries.append(entry)
            if steps == SHOWN:
                print(f"fitted {spell_shape(shape)}: {found.triple}", flush=True)
    return entries


def describe_fit(sources: Sequence[momenta.Source], corpus: Corpus, block: Mapping[str, Any]) -> dict[str, Any]:
    """What the table says about itself."""
    return {
        "made_by": f"orthoopt bench coefficients --models {' '.join(s.name for s in sources)} --fit {FILE}",
        "objective": "minimise the mean of (f^K(sigma) - 1)^2, f(x) = a x + b x^3 + c x^5, from Muon's triple; "
        f"momenta and Gaussian matrices, both clipped at the 0.9 quantile, weigh {REAL_SHARE} and {1 - REAL_SHARE}",
        "guards": "polar error no more than Muon's on the momenta, on the Gaussian matrices, and on power laws "
        f"sigma_i ~ i^-alpha with alpha in {list(TAILS)}",
        "constraints": f"f > 0 on (0, M], f([0, M]) within [0, M], M <= {CLEARANCE} x_rep, M <= {LARGEST}",
        "errors": "mean over matrices of the root mean square of sigma - 1; fitted to: real_fit, gaussian_fit; not "
        "seen by the fit: real_held_out (another seed, other steps of training), gaussian_held_out",
        "momentum": "heavy ball 0.95, Nesterov, after clipping gradients to norm 1",
        "models": [{**asdict(source), "seeds": {"fit": FIT_SEED, "held_out": HELD_OUT_SEED}} for source in sources],
        "corpus": corpus.info.to_dict(),
        "versions": block["versions"],
    }


def write_table(path: Path, how: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> None:
    """The table's file: what it is in full, then one line an entry."""
    lines = ",\n".join("    " + json.dumps(strict(entry)) for entry in entries)
    head = json.dumps(strict(how), indent=2).replace("\n", "\n  ")
    path.write_text(f'{{\n  "how": {head},\n  "entries": [\n{lines}\n  ]\n}}\n', encoding="utf-8")


def judge(triples: Mapping[Shape, Triple], steps: int, spectra: Mapping[Shape, Kinds]) -> Iterator[dict[str, Any]]:
    """A row a shape that there are momenta of: every triple's errors and largest output there."""
    for shape, kinds in spectra.items():
        if shape not in triples:
            continue
        contenders = {BASELINE: MUON, OURS: triples[shape]}
        if steps == SHOWN:  # that is what they were made for
            contenders |= {name: TABLES[name].rows[0] for name in RELEASED.values()}
        unseen = {kind: some for kind, some in kinds.items() if not kind.endswith("_fit")}
        held_out = kinds["real_held_out"]
        better = [polar_error(triples[shape], [s], steps) < polar_error(MUON, [s], steps) for s in held_out]
        yield {
            "shape": spell_shape(shape),
            "steps": steps,
            "released_for_this_shape": RELEASED.get(shape),
            "better_on_share_of_held_out": sum(better) / len(better),
            "constraints_hold": bounds(triples[shape]).hold,
            "triples": {
                name: {
                    "triple": list(triple),
                    "errors": _errors(triple, shape, unseen, steps),
                    "largest": _largest(triple, kinds, steps),
                }
                for name, triple in contenders.items()
            },
        }


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each number of steps, whether the fitted triples hold up."""
    summary = {}
    for steps in sorted({row["steps"] for row in rows}):
        some = [row for row in rows if row["steps"] == steps]
        lower = [_held_out(row, OURS) < _held_out(row, BASELINE) for row in some]
        largest = max(row["triples"][OURS]["largest"] for row in some)
        share = sum(lower) / len(lower)
        summary[str(steps)] = {
            "shapes": len(some),
            "lower_error_on_held_out_momenta": sum(lower),
            "share": share,
            "largest": largest,
            "holds": share >= ENOUGH and largest <= LARGEST and all(row["constraints_hold"] for row in some),
        }
    return summary


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of five steps for people, and the counts of all."""
    lines = [
        f"polar error after {SHOWN} steps: mean of RMS(sigma - 1); root*: the best of the four released",
        f"{'shape':<12}{'held-out momenta':^24}{'Gaussian matrices':^24}{'largest':^24}",
        f"{'':<12}" + "".join(f"{name:>8}" for name in ("muon", "root*", "fitted")) * 3,
    ]
    for row in rows:
        if row["steps"] != SHOWN:
            continue
        best = min(RELEASED.values(), key=lambda name: _held_out(row, name))
        three = [row["triples"][name] for name in (BASELINE, best, OURS)]
        columns = [t["errors"][kind] for kind in ("real_held_out", "gaussian_held_out") for t in three]
        columns += [t["largest"] for t in three]
        lines.append(f"{row['shape']:<12}" + "".join(f"{value:>8.3f}" for value in columns))
    lines.append("")
    for steps, part in summarize(rows).items():
        verdict = "" if part["holds"] else ": DOES NOT HOLD"
        lines.append(
            f"{steps} steps: lower error than Muon's on held-out momenta for {part['lower_error_on_held_out_momenta']} "
            f"of {part['shapes']} shapes, largest singular value {part['largest']:.4f}{verdict}"
        )
    return "\n".join(lines)


def _held_out(row: Mapping[str, Any], name: str) -> float:
    return float(row["triples"][name]["errors"]["real_held_out"])


def _errors(triple: Triple, shape: Shape, kinds: Mapping[str, list[Tensor]], steps: int) -> dict[str, float]:
    tails = {f"power_law_{exponent:g}": [power_law(shape[0], exponent)] for exponent in TAILS}
    return {kind: polar_error(triple, some, steps) for kind, some in {**kinds, **tails}.items()}


def _largest(triple: Triple, kinds: Mapping[str, list[Tensor]], steps: int) -> float:
    seen = max(float(outputs(triple, torch.stack(some), steps).max()) for some in kinds.values())
    return max(seen, largest_output(triple, steps))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="orthoopt bench coefficients", description="Fitted Newton-Schulz triples against Muon's on real momenta."
    )
    parser.add_argument(
        "--models", nargs="+", default=list(DEFAULT_MODELS), metavar="MODEL",
        help=f"which models to train: {', '.join(momenta.SOURCES)}, or all (default: {' '.join(DEFAULT_MODELS)})",
    )  # fmt: skip
    parser.add_argument("--fit", metavar="FILE", help="fit the triples first and write the table to FILE")
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--cache_dir", help="where tokenizers and tokens are kept, as for `orthoopt pretrain`")
    parser.add_argument("--out", help="folder of the results; default $OUT, else bench/results")
    options = parser.parse_args(argv)
    if "all" in options.models:
        options.models = list(momenta.SOURCES)
    for name in options.models:
        if name not in momenta.SOURCES:
            parser.error(f"argument --models: unknown model {name!r}; known: {', '.join(momenta.SOURCES)}, all")
    if options.threads is not None:
        if options.threads < 1:
            parser.error(f"argument --threads: at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    return options


if __name__ == "__main__":
    raise SystemExit(main())

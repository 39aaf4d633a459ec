"""The command ``orthoopt explain``: which parameter of a model gets which rule, and why."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from orthoopt import plans
from orthoopt.roles import ROLES
from orthoopt.terminal import WHEN

_DESCRIPTION = """\
Show which parameter of a model gets which rule, and why; what its optimizer would hold in memory; and what a step
costs. The model is built without memory: nothing is downloaded but a config, nothing is allocated."""

_EXAMPLES = """\
examples:
  orthoopt explain qwen3-0.6b
  orthoopt explain Qwen3ForCausalLM --set num_hidden_layers=12
  orthoopt explain gpt2 --plan muon --only 'h\\.0\\.'          one layer
  orthoopt explain gpt2 --plan symmetry --compare muon        what muon would do differently
  orthoopt explain ./my_model --html model.html               a page with a picture
  orthoopt explain gpt2 --json | jq '.rows[] | select(.role == "unknown").name'
"""


def explain_command(arguments: Sequence[str]) -> int:
    """Run it; returns the exit status, 1 for an error, which is said in one line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.compare is not None and (options.html is not None or options.full):
        parser.error("--compare is shown as a table or as --json, not with --html or --full")
    try:
        with _without_collection():
            from orthoopt.recipes.meta import build_meta_model
    except ModuleNotFoundError as error:
        print(f"orthoopt: {error.name} is not installed; pip install 'orthoopt[recipes]'", file=sys.stderr)
        return 1
    try:
        with _without_collection():
            _answer(options, build_meta_model(options.model, options.set))
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has read enough. What is still buffered must go somewhere when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (TypeError, ValueError, OSError, ModuleNotFoundError) as error:
        print(f"orthoopt explain: {error}", file=sys.stderr)
        return 1
    return 0


def _answer(options: argparse.Namespace, model: object) -> None:
    from orthoopt.explain import Explanation, explain

    def explained(plan: str) -> Explanation:
        whole = explain(model, plan, lr=options.lr, weight_decay=options.weight_decay)  # type: ignore[arg-type]
        return whole.only(options.only, options.role) if options.only or options.role else whole

    explanation = explained(options.plan)
    if options.compare is not None:
        comparison = explanation.compare(explained(options.compare))
        if options.json:
            print(json.dumps(comparison.to_dict(), indent=2))
        else:
            comparison.show(width=options.width, color=options.color)
    elif options.json:
        print(json.dumps(explanation.to_dict(), indent=2))
    elif options.html == "-":
        print(explanation.html(), end="")
    elif options.html is not None:
        Path(options.html).write_text(explanation.html(), encoding="ascii")
        print(f"wrote {options.html}", file=sys.stderr)
    else:
        explanation.show(full=options.full, width=options.width, color=options.color)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="orthoopt explain",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a published model (qwen3-0.6b, llama-3.1-8b), a transformers model class (Qwen3ForCausalLM) or model "
        "type (qwen3), a folder or config.json, or a hub name",
    )
    known = ", ".join(plans.names())
    settings = parser.add_argument_group("what is asked")
    settings.add_argument(
        "--plan", default="symmetry", metavar="PLAN", help=f"a plan file, or one of {known}; default symmetry"
    )
    settings.add_argument("--compare", metavar="PLAN", help="say what this plan would do differently")
    settings.add_argument("--lr", type=float, default=1e-3, metavar="RATE", help="learning rate; default 0.001")
    settings.add_argument("--weight_decay", type=float, default=0.1, metavar="DECAY", help="default 0.1")
    settings.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the model's config; may be repeated"
    )
    settings.add_argument("--only", default="", metavar="PATTERN", help="parameters whose names this regex finds")
    settings.add_argument("--role", choices=ROLES, metavar="ROLE", help="parameters of this role")
    form = parser.add_argument_group("how it is shown")
    kind = form.add_mutually_exclusive_group()
    kind.add_argument("--json", action="store_true", help="as JSON on standard output, see docs/explain.md")
    kind.add_argument("--html", metavar="FILE", help="as a page that needs nothing else; - for standard output")
    kind.add_argument("--full", action="store_true", help="a line for every parameter, not one for equal layers")
    form.add_argument("--width", type=_width, metavar="N", help="columns; default the terminal's, unlimited in a pipe")
    form.add_argument("--color", choices=WHEN, default="auto", help="default auto: in a terminal, see NO_COLOR")
    return parser


def _width(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of columns")
    return int(text)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """No garbage collection meanwhile: imports make much and drop little, and are a tenth faster without it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

"""The command ``orthoopt``: each command imports what it needs when it is chosen."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

_BENCHES = {
    "loader": "tokens per second of reading, encoding and packing, beside those of a model",
    "step": "one optimizer step of each optimizer on real shapes, timed in one process",
    "orthogonalize": "forms of the iteration and methods of orthogonalize by shape, timed in one process",
    "memory": "peak memory of a step beside its stated need, and state beside AdamW's on real models",
    "pretrain": "optimizers compared by training, each at its own best learning rate",
    "finetune": "plans and LoRA compared on models that are pretrained already, with what is forgotten",
    "report": "one page, readable offline, from all result files",
    "state_dtype": "what momenta in bfloat16 and eight bits cost in accuracy",
    "dct": "cosine transforms by products and by Fourier transforms",
    "coefficients": "fitted Newton-Schulz coefficients against Muon's on real momenta",
}

_USAGE = """usage: orthoopt COMMAND ...

  explain MODEL                      which parameter gets which rule, and why
  plan [PLAN]                        list the ready plans, print one, or check a plan file
  pretrain [CONFIG] [--key value]    train a language model; without CONFIG a small one on the embedded corpus
  finetune MODEL [--key value]       fine-tune a local checkpoint, all of it or LoRA adapters
  launch [FILE]                      scripts and configs for torchrun, Accelerate and Slurm, to copy
  compare RUN RUN ...                draw finished runs over each other, here and as PNG
  tokenize FOLDER [CONFIG]           encode a recipe's corpus once, for pretrain --data tokens:FOLDER
  bench BENCH                        measure; orthoopt bench lists what there is
  fit-coefficients ROWS COLS         Newton-Schulz coefficients for matrices of one shape (ROOT's AdaNewton)

orthoopt COMMAND --help tells more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, 2 for a usage error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command == "explain":
        from orthoopt.explain_command import explain_command

        return explain_command(rest)
    if command == "plan":
        return _run("orthoopt.plan_command", "recipes", rest)
    if command == "pretrain":
        return _run("orthoopt.recipes.pretrain", "recipes", rest)
    if command == "finetune":
        return _run("orthoopt.recipes.finetune", "recipes", rest)
    if command == "launch":
        return _run("orthoopt.recipes.launch", "recipes", rest)
    if command == "compare":
        return _run("orthoopt.recipes.compare", "recipes", rest)
    if command == "tokenize":
        return _run("orthoopt.recipes.tokenize_command", "recipes", rest)
    if command == "bench":
        return _bench(rest)
    if command == "fit-coefficients":
        return _run("orthoopt.fit_command", "bench", rest)
    if command in ("-h", "--help", "help"):
        print(_USAGE, end="")
        return 0
    if command == "--version":
        from orthoopt import __version__

        print(__version__)
        return 0
    problem = f"orthoopt: unknown command {command!r}\n\n" if command else ""
    print(problem + _USAGE, end="", file=sys.stderr)
    return 2


def _bench(arguments: list[str]) -> int:
    if arguments and arguments[0] in _BENCHES:
        return _run(f"orthoopt.bench.{arguments[0]}", "bench", arguments[1:])
    width = max(map(len, _BENCHES))
    lines = [f"  {name.ljust(width)}  {text}" for name, text in _BENCHES.items()]
    text = "\n".join(["usage: orthoopt bench BENCH ...", "", *lines, ""])
    asked = bool(arguments) and arguments[0] in ("-h", "--help")
    print(text, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def _run(module: str, extra: str, arguments: list[str]) -> int:
    try:
        run = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("orthoopt"):
            raise
        print(f"orthoopt: {error.name} is not installed; pip install 'orthoopt[{extra}]'", file=sys.stderr)
        return 1
    return int(run(arguments) or 0)

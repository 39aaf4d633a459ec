"""``orthoopt plan``: list the ready plans, print one as a plan file, check a plan file."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

from orthoopt import overriding, plan_files, plans
from orthoopt.dispatch import assign
from orthoopt.plan_text import to_toml, to_yaml

_SHOWN = 3  # names of parameters to a pattern


def main(argv: Sequence[str] | None = None) -> int:
    """Print; 0, or 1 with one line on stderr for a plan that is wrong or does not fit the model."""
    parser = argparse.ArgumentParser(
        prog="orthoopt plan",
        description="Without PLAN, list the ready plans. With one, print it in full as a plan file, a file after "
        "checking it. What is printed is a plan file again: change it, and give it to --plan.",
    )
    parser.add_argument("plan", nargs="?", help="a ready plan's name, or a plan file (.yaml, .yml, .toml)")
    parser.add_argument("--toml", action="store_true", help="print TOML instead of YAML")
    parser.add_argument("--model", help="check against a model too, named as for orthoopt explain")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the model's config")
    options = parser.parse_args(argv)
    if options.plan is None:
        if options.model or options.set or options.toml:
            parser.error("--model, --set and --toml need a PLAN")
        print(listing())
        return 0
    if options.set and not options.model:
        parser.error("--set changes the config of --model, which is not given")
    try:
        chosen = plan_files.load_plan(options.plan) if plan_files.is_file(options.plan) else options.plan
        resolved = plan_files.resolve(chosen)
        comments = [_headline(chosen)]
        if options.model:
            comments += check_against(chosen, options.model, options.set)
        pairs = chosen.overrides if isinstance(chosen, plan_files.PlanFile) else ()
        text = (to_toml if options.toml else to_yaml)(resolved.plan, pairs, comments)
    except ModuleNotFoundError as error:
        known = error.msg if error.name == "yaml" and "PyYAML" in error.msg else ""
        print(f"orthoopt plan: {known or _not_installed(error)}", file=sys.stderr)
        return 1
    except (TypeError, ValueError, OSError) as error:
        print(f"orthoopt plan: {error}", file=sys.stderr)
        return 1
    print(text, end="")
    return 0


def listing() -> str:
    """The ready plans, a line each."""
    width = max(map(len, plans.names()))
    return "\n".join(f"{name.ljust(width)}  {summary(plans.get(name))}" for name in plans.names())


def summary(plan: plans.Plan) -> str:
    """Which roles each rule of a plan gets, in a line."""
    roles: dict[str, list[str]] = {}
    whole = {entry["rule"] for role, entry in plan.items() if role in plans.MATRIX_ROLES}
    for role, entry in sorted(plan.items(), key=lambda item: item[0] not in plans.MATRIX_ROLES):
        word = "linear maps" if role in plans.MATRIX_ROLES and len(whole) == 1 else role
        if word not in roles.setdefault(entry["rule"], []):
            roles[entry["rule"]].append(word)
    return "; ".join(f"{rule}: {', '.join(words)}" for rule, words in roles.items())


def check_against(plan: plan_files.AnyPlan, model: str, settings: Sequence[str] = ()) -> list[str]:
    """Apply a plan to a model on the meta device, and say what each pattern and rule comes to.

    Raises:
        TypeError, ValueError: what ``orthoopt.param_groups`` raises, and a model that is none.
    """
    from orthoopt.recipes.meta import build_meta_model

    built = build_meta_model(model, settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assignments = assign(built, plan)
        patterns = plan_files.resolve(plan).overrides
        winners = overriding.match([item.name for item in assignments], patterns)
    names: dict[str, list[str]] = {override.where: [] for override in patterns}
    for item, winner in zip(assignments, winners, strict=True):
        if winner is not None:
            names[winner.where].append(str(item.name))
    rules = Counter(item.group["rule"] for item in assignments)
    return [
        f"tensors of {type(built).__name__}: {', '.join(f'{rule} {number}' for rule, number in rules.most_common())}",
        *(f"{where} decides {_some(found)}" for where, found in names.items()),
        *(f"warning: {message}" for message in dict.fromkeys(str(w.message) for w in caught)),
    ]


def _headline(plan: Any) -> str:
    if not isinstance(plan, plan_files.PlanFile):
        return f"ready plan {plan}"
    start = "complete by itself" if plan.base is None else f"based on {plan.base}"
    count = len(plan.overrides)
    return f"{plan.path} is fine: {start}, {count} pattern{'' if count == 1 else 's'}; in full:"


def _some(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)}: {', '.join(names[:_SHOWN])}{more}" if names else "nothing"


def _not_installed(error: ModuleNotFoundError) -> str:
    return f"{error.name} is not installed; pip install 'orthoopt[recipes]'"


if __name__ == "__main__":
    raise SystemExit(main())

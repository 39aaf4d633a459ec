"""What `orthoopt pretrain` can be told: a YAML config, then `--key value`, checked by one parser.

Every key is a field of one of four dataclasses, the last of which is transformers' own `TrainingArguments`.
"""

from __future__ import annotations

import dataclasses
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import yaml
from transformers import HfArgumentParser

from orthoopt import plan_files, plans
from orthoopt.plan_files import PlanFile
from orthoopt.plan_source import SUFFIXES
from orthoopt.recipes.budget import settle_budget, superseded
from orthoopt.recipes.data_arguments import DataArguments, check_data
from orthoopt.recipes.errors import RecipeError, nearest
from orthoopt.recipes.model_arguments import ModelArguments, check_model
from orthoopt.recipes.options import given_options, parse_mapping, typed_options
from orthoopt.recipes.run_arguments import PretrainArguments, RunArguments, check_run

__all__ = [
    "Arguments",
    "DataArguments",
    "ModelArguments",
    "PretrainArguments",
    "RunArguments",
    "parse",
    "parse_mapping",
    "read_config",
]


class Arguments(NamedTuple):
    """One run's arguments, parsed and checked, and the name of the config they started from."""

    config: str
    plan: str | PlanFile
    """What --plan says; a file as it was when the run began."""
    model: ModelArguments
    data: DataArguments
    run: RunArguments
    training: PretrainArguments
    model_overrides: dict[str, Any]
    plan_options: dict[str, Any]
    overrides: dict[str, dict[str, Any]]
    optimizer_options: dict[str, Any]
    learning_rate: float
    command: tuple[str, ...] = ("pretrain",)
    """What of `orthoopt` this is, with what it needs before its options."""
    given: Mapping[str, Any] = MappingProxyType({})
    """What config and command line say, without defaults."""

    @property
    def routing(self) -> dict[str, Any]:
        """The keywords of `orthoopt.param_groups`, `orthoopt.explain` and `OptimizerFactory` for this run."""
        return {
            "plan": self.plan,
            "lr": self.learning_rate,
            "weight_decay": self.training.weight_decay,
            "overrides": self.overrides,
            "options": self.plan_options,
        }

    @property
    def plan_name(self) -> str:
        """The plan's name, or its file's without the folder; of another optimizer, the function's."""
        if self.run.optimizer is not None:
            return self.run.optimizer.partition(":")[2]
        return self.plan.name if isinstance(self.plan, PlanFile) else self.plan


_GROUPS: tuple[Any, ...] = (ModelArguments, DataArguments, RunArguments, PretrainArguments)


_ABOUT = (
    "Train a language model. CONFIG is a YAML file or the name of a config that ships with orthoopt "
    "(default: a small Qwen3-style model on the Python standard library's source); every option below "
    "is a key of it too."
)


class _Parser(HfArgumentParser):
    """HfArgumentParser that raises `RecipeError` instead of printing a screen of usage."""

    def error(self, message: str) -> NoReturn:
        raise RecipeError(message)


def parse(
    argv: Sequence[str],
    *,
    groups: Sequence[Any] = _GROUPS,
    default: str = "default",
    usage: str = "orthoopt pretrain [CONFIG] [--key value ...]",
    about: str = _ABOUT,
) -> Arguments:
    """Read `[CONFIG] [--key value ...]`; flags win over the config, the config over the defaults.

    CONFIG is a path or the name of a config that ships with the package; without one it is `default`. `groups` are
    the dataclasses whose fields are the options: of the model, the data, the run and Trainer. Raises `RecipeError`
    for an unknown config, key or flag, naming the nearest known one, and for bad values.
    """
    argv = list(argv)
    config = argv.pop(0) if argv and not argv[0].startswith("-") else default
    settings = read_config(config, groups, default)
    parser = _Parser(groups, prog=" ".join(usage.split()[:2]), usage=usage, description=about, allow_abbrev=False)
    for key in superseded(settings, typed_options(parser, argv)):
        del settings[key]
    parser.set_defaults(**{key: _as_typed(value) for key, value in settings.items()})
    try:
        *parsed, rest = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except (ArgumentError, ValueError) as error:
        raise error if isinstance(error, RecipeError) else RecipeError(str(error)) from error
    if rest:
        raise RecipeError(_unexpected(rest[0], parser))
    model, data, run, training = parsed
    plan = _plan(run.plan)
    _check(data, run, training)
    check_model(model)
    return Arguments(
        Path(config).name.removesuffix(".yaml").removesuffix(".yml"),
        plan,
        model,
        data,
        run,
        training,
        model_overrides=_model_overrides(model, settings),
        plan_options=parse_mapping(run.plan_options, "plan_options"),
        overrides=_overrides(run),
        optimizer_options=parse_mapping(run.optimizer_options, "optimizer_options"),
        learning_rate=_learning_rate(plan, run, training),
        given=given_options(parser, argv, settings),
    )


def shipped_configs(default: str = "default") -> dict[str, Traversable]:
    """The configs that come with a recipe, which its default one names: `finetune` has those that begin so."""
    entries = [entry for entry in resources.files("orthoopt.recipes.configs").iterdir() if entry.name.endswith(".yaml")]
    tuning = default == "finetune"
    return {entry.name.removesuffix(".yaml"): entry for entry in entries if entry.name.startswith("finetune") is tuning}


def read_config(name: str, groups: Sequence[Any] = _GROUPS, default: str = "default") -> dict[str, Any]:
    """Load a YAML config, a path or the stem of a shipped one, and check its keys against the dataclasses."""
    shipped = shipped_configs(default)
    if name not in shipped and name.replace("_", "-") in shipped and not Path(name).is_file():
        name = name.replace("_", "-")  # as qwen3-0.6b was once spelt
    if name in shipped:
        text = shipped[name].read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        raise RecipeError(
            f"no config {name!r}: it is neither a file nor one of {sorted(shipped)}{nearest(name, shipped)}"
        )
    try:
        settings = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise RecipeError(f"config {name!r} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"config {name!r} must be a mapping of option to value, got {type(settings).__name__}")
    known = [item.name for group in groups for item in dataclasses.fields(group) if item.init]
    for key in settings:
        if key not in known:
            raise RecipeError(f"config {name!r} has the unknown key {key!r}{nearest(str(key), known)}")
    return settings


def _as_typed(value: Any) -> Any:
    """A default as text, so that argparse converts and checks it as it does the command line."""
    return str(value) if isinstance(value, (bool, int, float)) else value


def _model_overrides(model: ModelArguments, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The command line's over the config's; the config's go when the command line names another model."""
    given = parse_mapping(model.model_overrides, "model_overrides")
    if model.model == settings.get("model", ModelArguments.model):
        return parse_mapping(settings.get("model_overrides"), "model_overrides") | given
    return {} if model.model_overrides == settings.get("model_overrides") else given


def _overrides(run: RunArguments) -> dict[str, dict[str, Any]]:
    """The run's own, and behind them those that go with its plan."""
    given = parse_mapping(run.overrides, "overrides")
    of_plans = parse_mapping(run.plan_overrides, "plan_overrides")
    for plan in of_plans:
        if plan not in plans.names():
            raise RecipeError(f"--plan_overrides: {plan!r} is no plan{nearest(plan, plans.names())}")
    own = parse_mapping(of_plans.get(run.plan), f"plan_overrides of {run.plan}")
    return given | {pattern: entry for pattern, entry in own.items() if pattern not in given}


def _plan(plan: str) -> str | PlanFile:
    if plan_files.is_file(plan):
        try:
            return plan_files.load_plan(plan)
        except (TypeError, ValueError, OSError) as error:
            raise RecipeError(f"--plan: {error}") from error
    if plan not in plans.names():
        raise RecipeError(
            f"--plan {plan!r} is not one of {plans.names()}{nearest(plan, plans.names())}; "
            f"the name of a plan file ends in {', '.join(SUFFIXES)}"
        )
    return plan


def _learning_rate(plan: str | PlanFile, run: RunArguments, training: PretrainArguments) -> float:
    """The given learning rate or the plan's, of a file else its base's; Trainer's arguments get it too."""
    if training.learning_rate is None:
        rates = parse_mapping(run.plan_learning_rates, "plan_learning_rates")
        names = [run.plan] + ([plan.base] if isinstance(plan, PlanFile) and plan.base else [])
        known = [name for name in names if name in rates]
        if not known:
            raise RecipeError(
                f"no learning rate for plan {' or its base '.join(map(repr, names))}: give --learning_rate "
                f"(plan_learning_rates has {sorted(rates) or 'no entries'})"
            )
        training.learning_rate = float(rates[known[0]])
    return training.learning_rate


def _check(data: DataArguments, run: RunArguments, training: PretrainArguments) -> None:
    """Check what the parser cannot."""
    check_data(data, training)
    check_run(run, training)
    settle_budget(run, training, data.block_size)
    if data.streaming and training.max_steps <= 0:
        raise RecipeError("--streaming has no end: give --max_steps or --total_tokens")


def _unexpected(text: str, parser: _Parser) -> str:
    if not text.startswith("-"):
        return f"unexpected argument {text!r}: a config comes first, everything else is --key value"
    flags = [flag for action in parser._actions for flag in action.option_strings]
    name = text.partition("=")[0]
    return f"unknown option {name!r}{nearest(name, flags)}"

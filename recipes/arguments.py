"""What `orthoopt pretrain` can be told: a YAML config, then `--key value`, checked by one parser.

Every key is a field of one of four dataclasses, the last of which is transformers' own `TrainingArguments`.
"""

from __future__ import annotations

import dataclasses
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, NoReturn

import yaml
from transformers import HfArgumentParser

from orthoopt import plan_files, plans
from orthoopt.plan_files import PlanFile
from orthoopt.plan_source import SUFFIXES
from orthoopt.recipes.budget import settle_budget, superseded
from orthoopt.recipes.errors import RecipeError, nearest
from orthoopt.recipes.gpus import GPUS
from orthoopt.recipes.options import given_options, parse_mapping, typed_options
from orthoopt.recipes.options import option as _option
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

TOKEN_DTYPES = ("uint16", "uint32")
"""What token ids in plain files may be."""


@dataclass
class ModelArguments:
    """Which network is trained, from random weights, and what is found out before."""

    _argument_group_name: ClassVar[str] = "model"

    model: str = _option(
        "Qwen3Config",
        "A transformers config or causal-LM class (Qwen3Config), a model type (qwen3), a folder or "
        "config.json, or a Hub name; the weights are always new.",
    )
    model_overrides: dict[str, Any] | str | None = _option(
        None,
        'Changes to that config: "num_hidden_layers=2,hidden_size=64", JSON, or a mapping in YAML. '
        "Merged over the config's own; dropped with it when --model names another model.",
    )
    check_memory: bool = _option(
        True, "Refuse a run that cannot fit into the memory of its device, before anything of it is there."
    )
    dry_run: bool = _option(
        False, "Train and write nothing: say what would be trained, on what, and what it would take."
    )
    dry_run_gpu: str = _option("H100", f"With --dry_run, the GPU whose memory and speed count: {', '.join(GPUS)}.")
    dry_run_gpus: int | None = _option(None, "With --dry_run, how many of them; by default as many as processes.")

    @property
    def loader(self) -> str:
        """The class whose `from_pretrained` reads what the run saves."""
        return "AutoModelForCausalLM"


@dataclass
class DataArguments:
    """What it is trained on."""

    _argument_group_name: ClassVar[str] = "data"

    data: str = _option(
        "builtin:stdlib",
        "builtin:stdlib, text:PATH (a file or folder of plain text), a .txt, .jsonl or .parquet file, "
        "a folder of them, tokens:PATH (a folder that orthoopt tokenize wrote, or .bin files of token ids), "
        "or the name of a Hugging Face dataset.",
    )
    data_config: str | None = _option(None, "The dataset's configuration, as in load_dataset(name, config).")
    data_split: str = _option("train", "The dataset's training split.")
    validation_split: str | None = _option(
        None,
        "The dataset's validation split; by default its own 'validation' or 'test', else documents held out.",
    )
    text_column: str = _option("text", "The column that holds the text.")
    streaming: bool = _option(False, "Read the dataset as a stream; needs --max_steps.")
    shuffle_window: int = _option(
        10_000, "With --streaming: how many documents are held in memory and shuffled among themselves."
    )
    block_size: int = _option(128, "Tokens per training example.")
    document_boundaries: bool = _option(
        False, "Keep documents in a block apart: attention stays within them, and their first tokens are not scored."
    )
    token_dtype: str = _option("uint16", "With tokens:PATH of plain .bin files: uint16 or uint32.")
    token_header_bytes: int = _option(0, "With tokens:PATH of plain .bin files: what to skip at the head of each.")
    validation_fraction: float = _option(0.05, "Share of the documents held out, chosen by a hash.")
    eval_blocks: int = _option(256, "How many held-out blocks, spread evenly, every evaluation scores.")
    tokenizer: str | None = _option(
        None,
        "A tokenizer's Hub name or folder; by default a byte-level BPE is trained on the corpus and cached.",
    )
    vocab_size: int = _option(4096, "Vocabulary of the trained tokenizer.")
    cache_dir: str | None = _option(
        None, "Where tokenizers and tokens are kept; by default orthoopt/ in $XDG_CACHE_HOME or ~/.cache."
    )


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
    _check_data(data, training)
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
    for option, low in (("block_size", 2), ("eval_blocks", 1), ("vocab_size", 257)):
        if getattr(data, option) < low:
            raise RecipeError(f"--{option} must be at least {low}, got {getattr(data, option)}")
    if not 0.0 < data.validation_fraction < 1.0:
        raise RecipeError(f"--validation_fraction must lie between 0 and 1, got {data.validation_fraction}")
    check_run(run, training)
    settle_budget(run, training, data.block_size)
    if data.streaming and training.max_steps <= 0:
        raise RecipeError("--streaming has no end: give --max_steps or --total_tokens")


def _check_data(data: DataArguments, training: PretrainArguments) -> None:
    """What concerns streams, tokens on disk and packing."""
    if data.shuffle_window < 1:
        raise RecipeError(f"--shuffle_window must be at least 1, got {data.shuffle_window}")
    if data.token_dtype not in TOKEN_DTYPES:
        raise RecipeError(
            f"--token_dtype {data.token_dtype!r} is not one of {list(TOKEN_DTYPES)}"
            f"{nearest(data.token_dtype, TOKEN_DTYPES)}"
        )
    if data.token_header_bytes < 0:
        raise RecipeError(f"--token_header_bytes must be at least 0, got {data.token_header_bytes}")
    if data.streaming and data.data.startswith(("tokens:", "text:", "builtin:")):
        raise RecipeError(f"--streaming true is for datasets, JSON lines and Parquet, not for --data {data.data}")
    if data.streaming and training.dataloader_num_workers > 0:
        raise RecipeError(
            "--dataloader_num_workers must be 0 with --streaming, got "
            f"{training.dataloader_num_workers}: a thread of each process reads and encodes ahead"
        )


def check_model(model: Any) -> None:
    """Check what the parser cannot, where these options are among a recipe's own."""
    if not isinstance(model, ModelArguments):
        return
    if model.dry_run_gpu not in GPUS:
        raise RecipeError(
            f"--dry_run_gpu {model.dry_run_gpu!r} is not one of {sorted(GPUS)}{nearest(model.dry_run_gpu, GPUS)}"
        )
    if model.dry_run_gpus is not None and model.dry_run_gpus < 1:
        raise RecipeError(f"--dry_run_gpus must be at least 1, got {model.dry_run_gpus}")


def _unexpected(text: str, parser: _Parser) -> str:
    if not text.startswith("-"):
        return f"unexpected argument {text!r}: a config comes first, everything else is --key value"
    flags = [flag for action in parser._actions for flag in action.option_strings]
    name = text.partition("=")[0]
    return f"unknown option {name!r}{nearest(name, flags)}"

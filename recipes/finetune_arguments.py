"""What `orthoopt finetune` can be told: a model first, then a config and `--key value` as for pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from orthoopt.recipes.arguments import Arguments, DataArguments, ModelArguments, PretrainArguments, RunArguments, parse
from orthoopt.recipes.errors import RecipeError, nearest
from orthoopt.recipes.options import option as _option

FORMATS = ("auto", "text", "prompt", "messages")
DTYPES = ("float32", "bfloat16", "auto")
_USAGE = "orthoopt finetune MODEL [CONFIG] [--key value ...]"
_ABOUT = (
    "Fine-tune a language model, all of it or LoRA adapters. MODEL is the folder of a run of orthoopt, any folder that "
    "save_pretrained wrote with a tokenizer, or a Hub name. CONFIG is a YAML file or one of finetune and "
    "finetune_lora, which come with orthoopt; every option below is a key of it too."
)


@dataclass
class FinetuneArguments(ModelArguments):
    """Which weights are trained further, which of them, and on which part of the data."""

    _argument_group_name: ClassVar[str] = "fine-tuning"

    model: str = _option("", "MODEL: a folder with a model and its tokenizer, a run's folder, or a Hub name.")
    model_overrides: dict[str, Any] | str | None = _option(
        None, 'Changes to its config that leave the weights\' shapes alone: "attention_dropout=0.1".'
    )
    dtype: str = _option("float32", f"Of the weights: {', '.join(DTYPES)} (as they were saved). Adapters are float32.")
    format: str = _option(
        "auto",
        "Of a row of --data: text, prompt (columns prompt and completion) or messages (a chat, rendered with the "
        "tokenizer's template). auto: what the first row of a local JSONL file has, text elsewhere.",
    )
    completions_only: bool = _option(
        True, "With prompts or chats: take the loss of completions and assistant turns alone, not of all tokens."
    )
    chat_template: str | None = _option(None, "A file with a chat template, or chatml; by default the tokenizer's own.")
    also_evaluate: str = _option(
        "auto",
        "Other text to score beside the new, to see what is forgotten, as for --data; auto: what the model was trained "
        "on where MODEL lies in a run's folder; none.",
    )
    lora_rank: int = _option(0, "Train LoRA adapters of this rank beside frozen weights (peft); 0 trains all weights.")
    lora_alpha: int | None = _option(None, "Adapters count alpha / rank times; by default alpha is twice the rank.")
    lora_dropout: float = _option(0.0, "Dropout before adapters.")
    lora_target_modules: str = _option(
        "all-linear",
        "Layers with an adapter, comma separated, by the end of their names; all-linear: all but the head.",
    )
    lora_target_parameters: str | None = _option(
        None, "Parameters with an adapter that are no layers' weights, such as mlp.experts.gate_up_proj."
    )
    lora_merge: bool = _option(
        False, "Save the model with its adapters merged into it, and the adapters beside it, under adapter."
    )

    @property
    def loader(self) -> str:
        """The class whose `from_pretrained` reads what the run saves."""
        return "AutoPeftModelForCausalLM" if self.lora_rank and not self.lora_merge else "AutoModelForCausalLM"


def parse_finetune(argv: Sequence[str]) -> Arguments:
    """Read `MODEL [CONFIG] [--key value ...]`; `Arguments.model` is a :class:`FinetuneArguments`.

    Without CONFIG it is finetune_lora where --lora_rank is given, else finetune. Raises `RecipeError` as
    :func:`orthoopt.recipes.arguments.parse`, and when there is no such folder.
    """
    argv = list(argv)
    named = bool(argv) and not argv[0].startswith("-")
    model = argv.pop(0) if named else ""
    config = argv.pop(0) if argv and not argv[0].startswith("-") else _default_config(argv)
    groups = (FinetuneArguments, DataArguments, RunArguments, PretrainArguments)
    given = ["--model", model] if named else []
    arguments = parse([config, *given, *argv], groups=groups, default="finetune", usage=_USAGE, about=_ABOUT)
    options = arguments.model
    assert isinstance(options, FinetuneArguments)
    if not options.model:
        raise RecipeError(f"which model? usage: {_USAGE}")
    options.model = find_model(options.model)
    _check(options, arguments)
    return arguments._replace(command=("finetune", options.model))


def _default_config(argv: Sequence[str]) -> str:
    """Adapters want other learning rates than whole models."""
    words = [word for item in argv for word in item.split("=", 1)]
    ranks = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--lora_rank"]
    return "finetune_lora" if ranks and ranks[-1] != "0" else "finetune"


def find_model(name: str) -> str:
    """The folder with the weights: the one named or, in a run's folder, `model`; a Hub name as it is."""
    path = Path(name).expanduser()
    if not path.is_dir():
        if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise RecipeError(f"MODEL {name}: there is no such folder")
        return name
    found = next((folder for folder in (path, path / "model") if (folder / "config.json").is_file()), None)
    if found is None and any((folder / "adapter_config.json").is_file() for folder in (path, path / "model")):
        raise RecipeError(f"MODEL {name} holds adapters alone; merge them first: --lora_merge true on their run")
    if found is None:
        raise RecipeError(f"MODEL {name}: the folder has neither config.json nor model/config.json")
    return str(found)


def _check(options: FinetuneArguments, arguments: Arguments) -> None:
    for option, value, known in (("format", options.format, FORMATS), ("dtype", options.dtype, DTYPES)):
        if value not in known:
            raise RecipeError(f"--{option} {value!r} is not one of {', '.join(known)}{nearest(value, known)}")
    if options.lora_rank < 0:
        raise RecipeError(f"--lora_rank must be at least 0, got {options.lora_rank}")
    if not 0.0 <= options.lora_dropout < 1.0:
        raise RecipeError(f"--lora_dropout must lie in [0, 1), got {options.lora_dropout}")
    if options.lora_alpha is not None and options.lora_alpha <= 0:
        raise RecipeError(f"--lora_alpha must be positive, got {options.lora_alpha}")
    asked = [name for name in ("lora_alpha", "lora_dropout", "lora_target_parameters", "lora_merge")
             if getattr(options, name)]  # fmt: skip
    if asked and not options.lora_rank:
        raise RecipeError(f"--{asked[0]} goes with --lora_rank, which is 0: no adapters")
    if options.lora_rank and arguments.run.shard:
        raise RecipeError("--shard spreads whole models, not adapters: leave it or --lora_rank out")
    if getattr(options, "dry_run", False):  # an option of pretraining's
        raise RecipeError("--dry_run is of orthoopt pretrain alone")
    if arguments.data.streaming:
        raise RecipeError("--streaming is for pretraining; fine-tuning reads its data whole")

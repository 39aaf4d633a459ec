"""`orthoopt finetune`: train a model further, all of it or LoRA adapters, alone or under torchrun.

orthoopt finetune runs/default-adamw                          # a run's model on Python's manual
orthoopt finetune runs/default-adamw --lora_rank 16           # adapters beside frozen weights
orthoopt finetune MODEL_FOLDER --data chats.jsonl --plan adamw --learning_rate 2e-5 --bf16 true
orthoopt finetune MODEL_FOLDER my_run.yaml --resume_from_checkpoint auto
torchrun --standalone --nproc_per_node=2 -m orthoopt.recipes.finetune MODEL_FOLDER --shard true
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from orthoopt.recipes import finetune_data, lora, pretrain, record
from orthoopt.recipes.arguments import Arguments
from orthoopt.recipes.errors import RecipeError, exit_status
from orthoopt.recipes.finetune_arguments import FinetuneArguments, parse_finetune
from orthoopt.recipes.finetune_trainer import FinetuneTrainer
from orthoopt.recipes.models import changed_config


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv`, by default the command line's, and run.

    Returns 0, 1 if training was stopped, 2 for a wrong option, 130 if interrupted.
    """
    words = sys.argv[1:] if argv is None else argv
    return exit_status("orthoopt finetune", lambda: finetune(parse_finetune(words)))


def finetune(arguments: Arguments) -> dict[str, Any]:
    """Run one fine-tuning from beginning, or checkpoint, to end; returns what results.json holds.

    `arguments` are those of :func:`parse_finetune`. Beyond what a pretraining run leaves, results.json has `before`,
    the losses before the first step, and `also`, those of the old text at both ends. Raises `RecipeError` for
    anything the user can mend.
    """
    options, training = arguments.model, arguments.training
    assert isinstance(options, FinetuneArguments)
    training.eval_on_start = True
    place = pretrain.prepare(arguments)
    tokenizer = finetune_data.load_own_tokenizer(options, arguments.data.tokenizer)
    with training.main_process_first(desc="encoding the data"):
        corpus, data, kind = finetune_data.load(arguments, options, tokenizer)
        old = finetune_data.load_old(arguments, options, tokenizer)
    model = load_weights(options, arguments, tokenizer)
    if options.lora_rank:
        model = lora.add_adapters(model, options, training.seed)
    run = record.describe_run(arguments, corpus, tokenizer, data, model)
    run |= {
        "base": model.name_or_path,
        "trainable": sum(param.numel() for param in model.parameters() if param.requires_grad),
        "also": None if old is None else {"name": old[0], "blocks": len(old[1]), "bytes_scored": old[1].scored_bytes},
        "finetune": {
            "format": kind,
            "completions_only": options.completions_only if kind != "text" else None,
            "lora": lora.describe(model, options),
        },
    }
    trainer_class = functools.partial(FinetuneTrainer, old=None if old is None else old[1])
    return pretrain.train(arguments, place, run, tokenizer, data, model, trainer_class)


def load_weights(
    options: FinetuneArguments, arguments: Arguments, tokenizer: PreTrainedTokenizerFast
) -> PreTrainedModel:
    """The saved model; `name_or_path`, which adapters remember, is absolute where it is a folder.

    Raises `RecipeError` when it cannot be loaded, weights are missing, or it does not fit tokenizer or block size.
    """
    source = str(Path(options.model).resolve()) if Path(options.model).is_dir() else options.model
    dtype: Any = options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
    try:
        config = changed_config(AutoConfig.from_pretrained(source), arguments.model_overrides)
        model, report = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, output_loading_info=True
        )
    except RecipeError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RecipeError(f"MODEL {options.model}: cannot be loaded: {reason}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise RecipeError(f"MODEL {options.model}: {len(missing)} weights are not in its files, such as {missing[0]}")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise RecipeError(f"the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows")
    length = getattr(model.config, "max_position_embeddings", None)
    if length is not None and arguments.data.block_size > length:
        raise RecipeError(f"--block_size {arguments.data.block_size} is longer than the model's {length} positions")
    return model


if __name__ == "__main__":
    raise SystemExit(main())

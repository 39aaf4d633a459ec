"""What a run is, as data (run.json) and in words (the header and the end of the output)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from orthoopt import dispatch
from orthoopt.plan_files import PlanFile
from orthoopt.recipes import report
from orthoopt.recipes.arguments import Arguments
from orthoopt.recipes.corpus import Corpus
from orthoopt.recipes.data import PretrainData
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.folders import Place, last_checkpoint
from orthoopt.recipes.reproduce import run_command
from orthoopt.recipes.schedules import describe_schedule

RESULT_KEYS = (
    "plan",
    "learning_rate",
    "weight_decay",
    "seed",
    "data_seed",
    "model",
    "parameters",
    "corpus",
    "scored",
    "world_size",
    "device",
    "versions",
    "git_commit",
)
"""What results.json repeats of run.json."""


def _routing(arguments: Arguments, model: PreTrainedModel) -> list[dict[str, Any]]:
    """Which rule every parameter gets, as plain data."""
    if arguments.run.optimizer is not None:
        return []
    try:
        assignments = dispatch.assign(model, **arguments.routing)
    except (TypeError, ValueError) as error:
        raise RecipeError(str(error)) from error
    return [
        {
            "name": item.name,
            "shape": list(item.param.shape),
            "role": item.role,
            "view": item.view,
            **item.group,
        }
        for item in assignments
    ]


def describe_plan_file(plan: str | PlanFile) -> dict[str, Any] | None:
    """A plan file's content, for it may change after the run: as it was written, and what it came to."""
    if not isinstance(plan, PlanFile):
        return None
    resolved = {"roles": plan.plan, "patterns": [{"match": pattern, **entry} for pattern, entry in plan.overrides]}
    return {"path": plan.path, "text": plan.text, **json.loads(report.dumps(resolved))}


def describe_run(
    arguments: Arguments,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    data: PretrainData,
    model: PreTrainedModel,
) -> dict[str, Any]:
    """What run.json holds: everything that decides the result."""
    training = arguments.training
    return {
        "config": arguments.config,
        "plan": arguments.plan_name,
        "plan_file": None if arguments.run.optimizer else describe_plan_file(arguments.plan),
        "optimizer": arguments.run.optimizer,
        "learning_rate": arguments.learning_rate,
        "weight_decay": training.weight_decay,
        "seed": training.seed,
        "data_seed": training.seed if training.data_seed is None else training.data_seed,
        "model": type(model).__name__,
        "parameters": sum(param.numel() for param in model.parameters()),
        "vocabulary": len(tokenizer),
        "corpus": corpus.info.to_dict(),
        "train_tokens": data.train_tokens,
        "scored": {"blocks": len(data.validation), "tokens": data.validation.scored_tokens,
                   "bytes": data.validation.scored_bytes},
        "world_size": training.world_size,
        "device": str(training.device),
        "versions": report.versions(),
        "git_commit": report.git_commit(),
        "arguments": {
            "model": vars(arguments.model) | {"model_overrides": arguments.model_overrides},
            "data": vars(arguments.data),
            "run": vars(arguments.run),
            "training": training.to_sanitized_dict(),
        },
        "model_config": model.config.to_dict(),
        "routing": _routing(arguments, model),
    }  # fmt: skip


def header(run: dict[str, Any], arguments: Arguments, place: Place, steps: int) -> str:
    """What is about to be trained, on what, how, and where it goes."""
    corpus, training = run["corpus"], arguments.training
    source = corpus["name"]
    if corpus["bytes"] is not None:
        release = f", Python {corpus['python']}" if corpus["python"] else ""
        source += f" ({corpus['files']} documents, {corpus['bytes'] / 1e6:.1f} MB{release})"
    tokens = "stream" if run["train_tokens"] is None else f"{run['train_tokens']:,} tokens"
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * run["world_size"]
    block = arguments.data.block_size
    length = f"{training.max_steps} steps" if training.max_steps > 0 else f"{training.num_train_epochs:g} epochs"
    total = f" = {training.max_steps * batch * block:,} tokens" if training.max_steps > 0 else ""
    if run.get("finetune", {}).get("format", "text") != "text":
        total = ", rows by tokens at most"
    rules = Counter(item["rule"] for item in run["routing"])
    lines = [
        ("model", f"{run['model']}, {run['parameters']:,} parameters"),
        *_tuning(run),
        ("corpus", f"{source}: {tokens}, vocabulary {run['vocabulary']:,}"),
        ("held out", f"{run['scored']['blocks']} blocks, {_scored(run['scored'])} scored"),
        ("optimizer" if run["optimizer"] else "plan",
         f"{run['optimizer'] or run['plan']}, lr {run['learning_rate']:g}, weight decay {run['weight_decay']:g}"),
        *([("rules", ", ".join(f"{rule}: {number} tensors" for rule, number in rules.most_common()))] if rules else []),
        ("training", f"{length} of {batch} x {block}{total}, seed {run['seed']}, on {run['device']}"
                     + (f" x {run['world_size']}" if run["world_size"] > 1 else "")),
        ("schedule", _schedule(arguments)),
        ("output", str(place.output)),
    ]  # fmt: skip
    if place.checkpoint is not None:
        lines.append(("resuming", f"from {place.checkpoint}, after step {steps}"))
    elif training.resume_from_checkpoint:
        lines.append(("resuming", "found no checkpoint: starting from the beginning"))
    return _table(lines)


def footer(results: dict[str, Any], arguments: Arguments, output: Path, *, drawn: bool, sample: str | None) -> str:
    """The result, and where everything is."""
    loss = f"{results['eval_loss']:.4f} nats per token"
    if results["eval_bits_per_byte"] is not None:
        loss += f", {results['eval_bits_per_byte']:.4f} bits per byte"
    seconds = f"{results['train_seconds']:.0f} s"
    if results["optimizer_seconds"] is not None:
        seconds += f", {results['optimizer_seconds']:.0f} s of it in the optimizer"
    lines = [
        ("validation", loss),
        *_changes(results),
        ("training", f"{results['steps']} steps, {results['tokens']:,} tokens in {seconds}"),
        ("loss curve", str(output / report.CURVE) if drawn else "not drawn: matplotlib is not installed"),
        ("metrics", f"{output / report.METRICS} and {report.RESULTS}, {report.RUN} beside it"),
    ]
    if arguments.run.save_final:
        lines.append(("model", f"{output / 'model'}, for {arguments.model.loader}.from_pretrained"))
    checkpoint = last_checkpoint(output)
    if checkpoint is not None:
        lines.append(("checkpoint", str(checkpoint)))
        lines.append(("resume", _resume_command(arguments, output)))
    lines.append(("again", run_command(arguments, output)))
    text = _table(lines)
    if sample is not None:
        text += f"\n\nsample, in {output / report.SAMPLE}\n" + "\n".join(f"  | {line}" for line in sample.splitlines())
    return "\n" + text


def _scored(scored: dict[str, int | None]) -> str:
    """In bytes, or in tokens where nobody counted bytes."""
    return f"{scored['tokens']:,} tokens" if scored["bytes"] is None else f"{scored['bytes']:,} bytes"


def _schedule(arguments: Arguments) -> str:
    training, run = arguments.training, arguments.run
    total = training.max_steps if training.max_steps > 0 else None
    text = describe_schedule(str(training.lr_scheduler_type.value), total, training.warmup_steps,
                             decay_fraction=run.decay_fraction, min_lr_ratio=run.min_lr_ratio)  # fmt: skip
    if training.lr_scheduler_kwargs:
        text += f", with {training.lr_scheduler_kwargs}"
    return text if run.vector_schedule is None else f"{text}; vectors {run.vector_schedule}"


def beginning(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a run whose first step came after an evaluation: the losses before it, and of other text at both ends."""
    evaluations = [row for row in rows if "eval_loss" in row]
    if not evaluations or evaluations[0]["step"] != 0:
        return {}
    first, last = evaluations[0], evaluations[-1]
    before = {key: first[key] for key in ("eval_loss", "eval_bits_per_byte") if key in first}
    also = {"also": {"before": first["also"], "after": last["also"]}} if "also" in first and "also" in last else {}
    return {"before": before, **also}


def interruption(arguments: Arguments, output: Path) -> str:
    """What to do after Ctrl-C."""
    checkpoint = last_checkpoint(output)
    if checkpoint is None:
        return f"interrupted before the first checkpoint; {output} can be deleted"
    return f"interrupted; continue from {checkpoint.name}: {_resume_command(arguments, output)}"


def _resume_command(arguments: Arguments, output: Path) -> str:
    return run_command(arguments, output, "--output_dir", str(output), "--resume_from_checkpoint", "auto")


def _tuning(run: dict[str, Any]) -> list[tuple[str, str]]:
    """What is fine-tuned, and how much of it."""
    if "finetune" not in run:
        return []
    lines, adapter = [("weights", f"from {run['base']}")], run["finetune"]["lora"]
    if adapter:
        what = f"LoRA rank {adapter['rank']}, alpha {adapter['alpha']}, on {adapter['layers']} layers"
        lines.append(("adapter", f"{what}: {run['trainable']:,} of {run['parameters']:,} parameters are trained"))
    if run["also"]:
        size = run["also"]["bytes_scored"]
        scored = f"{run['also']['blocks']} blocks" if size is None else f"{size:,} bytes"
        lines.append(("old text", f"{run['also']['name']}: {scored} scored, not trained on"))
    return lines


def _changes(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What training changed, where the losses before it are known."""
    if "before" not in results:
        return []
    lines = [("before", f"{results['before']['eval_loss']:.4f} nats per token")]
    if "also" in results:
        before, after = (results["also"][when]["loss"] for when in ("before", "after"))
        lines.append(("old text", f"{before:.4f} before, {after:.4f} after: {after - before:+.4f} nats per token"))
    return lines


def _table(lines: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)

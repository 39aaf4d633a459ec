"""`orthoopt pretrain CONFIG --dry_run true`: what would be trained, on what, and what it would take.

The model has no memory, nothing is downloaded but descriptions, nothing is written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast
from transformers.utils import logging

from orthoopt import explain
from orthoopt.explanation import Explanation
from orthoopt.recipes.arguments import Arguments
from orthoopt.recipes.data_schema import describe_data, describe_tokenizer
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.estimate import Estimator, Memory
from orthoopt.recipes.flops import named_peak, training_flops_per_token
from orthoopt.recipes.gpus import GPUS
from orthoopt.recipes.memory_trace import TraceError
from orthoopt.recipes.models import fitted_config
from orthoopt.terminal import Cell, Paint, aligned
from orthoopt.units import spell_bytes, spell_count, spell_flops

UTILIZATION = 0.4
"""Model FLOPs utilization that hours are reckoned with; what a well-fed GPU reaches on such models."""


def dry_run(arguments: Arguments) -> str:
    """A page of text. Raises `RecipeError` for what would stop the run, and for `--optimizer`, which has no plan."""
    if arguments.run.optimizer is not None:
        raise RecipeError(f"--dry_run reckons with plans, not with --optimizer {arguments.run.optimizer}")
    logging.set_verbosity_error()
    training, data = arguments.training, arguments.data
    gpus = arguments.model.dry_run_gpus or training.world_size
    tokenizer = _local_tokenizer(data.tokenizer)
    overrides = arguments.model_overrides
    if data.tokenizer is None and "vocab_size" not in overrides:
        overrides = {**overrides, "vocab_size": data.vocab_size}
    config = fitted_config(arguments.model.model, overrides, tokenizer, block_size=data.block_size)
    estimator = Estimator(config, arguments, processes=gpus)
    explanation = _explained(estimator, arguments)
    steps, batch = training.max_steps, _batch(arguments, gpus)
    sections = [
        [f"dry run of {arguments.config}: nothing is trained, nothing is written"],
        list(_table(_what(arguments, estimator, explanation, batch, steps))),
        list(_roles(explanation)),
        list(_table(_memory(arguments, estimator, gpus))),
        list(_table(_compute(arguments, estimator, explanation, batch, steps, gpus))),
    ]
    return "\n\n".join("\n".join(section) for section in sections)


def _explained(estimator: Estimator, arguments: Arguments) -> Explanation:
    try:
        return explain(estimator.model, **arguments.routing)
    except (TypeError, ValueError) as error:
        raise RecipeError(str(error)) from error


def _local_tokenizer(name: str | None) -> PreTrainedTokenizerFast | None:
    """One that is a folder here; others are not asked for, and the config's own vocabulary counts."""
    if name is None or not os.path.exists(name):
        return None
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise RecipeError(f"--tokenizer {name}: cannot be loaded: {str(error).splitlines()[0]}") from error


def _batch(arguments: Arguments, gpus: int) -> int:
    """Tokens a step: --batch_tokens whatever the number of GPUs, else as many rows on each of them."""
    given = getattr(arguments.run, "batch_tokens", None)
    if given:
        return int(given)
    training = arguments.training
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps * gpus
    return rows * arguments.data.block_size


def _what(
    arguments: Arguments, estimator: Estimator, explanation: Explanation, batch: int, steps: int
) -> Iterator[tuple[str, str]]:
    training, config = arguments.training, estimator.config
    yield "model", _spell_model(config, explanation)
    for number, line in enumerate(describe_data(arguments.data)):
        yield "" if number else "data", line
    for number, line in enumerate(describe_tokenizer(arguments.data)):
        yield "" if number else "tokenizer", line
    yield "batch", f"{batch // arguments.data.block_size:,} rows of {arguments.data.block_size:,} = {batch:,} tokens"
    if steps > 0:
        total = steps * batch
        ratio = f"{total / explanation.elements:.1f} for each parameter"
        yield "length", f"{steps:,} steps = {spell_count(total)} tokens, {ratio}"
    else:
        yield "length", f"{training.num_train_epochs:g} epochs of the corpus, whose tokens are not counted here"
    yield "plan", f"{arguments.plan_name}, lr {arguments.learning_rate:g}, weight decay {training.weight_decay:g}"
    yield "schedule", _spell_schedule(arguments)


def _spell_model(config: PretrainedConfig, explanation: Explanation) -> str:
    ends = sum(row.numel for row in explanation.rows if row.role in ("embedding", "tied_embedding", "lm_head"))
    tied = "tied" if getattr(config, "tie_word_embeddings", False) else "untied"
    return (
        f"{explanation.model}, {spell_count(explanation.elements)} parameters, {spell_count(ends)} of them in "
        f"{tied} embedding and head; {config.num_hidden_layers} layers of {config.hidden_size}, "
        f"vocabulary {config.vocab_size:,}"
    )


def _spell_schedule(arguments: Arguments) -> str:
    training, run = arguments.training, arguments.run
    warmup = f"{training.warmup_steps:g} steps of warm-up" if training.warmup_steps else "no warm-up"
    text = f"{getattr(training.lr_scheduler_type, 'value', training.lr_scheduler_type)}, {warmup}"
    if text.startswith("warmup_stable_decay"):
        text += f", linearly to 0 over the last {run.decay_fraction:.0%}"
    if run.vector_schedule:
        text += f"; vectors {run.vector_schedule}, {run.vector_warmup_steps} steps of warm-up"
    return text


def _roles(explanation: Explanation) -> Iterator[str]:
    """What the parameters of each role get: a line for each rule and rate in it."""
    words = ("role", "rule", "lr", "decay", "tensors", "parameters", "state", "a step")
    groups: dict[tuple[str, str, float, float], list[Any]] = {}
    for row in explanation.rows:
        groups.setdefault((row.role, row.rule, row.lr, row.weight_decay), []).append(row)
    rows = [[Cell(word) for word in words]]
    for (role, rule, lr, decay), own in groups.items():
        counts = [row.flops for row in own if row.flops is not None]
        cost = spell_flops(sum(counts)) if len(counts) == len(own) else "?"
        numbers = f"{lr:g}", f"{decay:g}", str(len(own)), spell_count(sum(row.numel for row in own))
        rows.append([Cell(text) for text in (role, rule, *numbers, spell_bytes(sum(r.state_bytes for r in own)), cost)])
    yield from (line.text for line in aligned(rows, Paint(False), right=range(2, len(words))))


def _memory(arguments: Arguments, estimator: Estimator, gpus: int) -> Iterator[tuple[str, str]]:
    model = arguments.model
    try:
        memory = estimator.memory()
        other = estimator.memory(checkpointing=not estimator.checkpoints)
    except TraceError as error:
        yield "memory", f"not estimated: {error}"
        return
    whole = GPUS[model.dry_run_gpu] * 1e9
    spread = (
        "" if gpus == 1 else ", sharded (FSDP2)" if estimator.shards else ", whole on each (DistributedDataParallel)"
    )
    yield "memory", f"of each of {gpus} {model.dry_run_gpu}{spread}; estimated, in float32 but for what is autocast"
    yield "parameters", spell_bytes(memory.parameters)
    buckets = ", with the buckets in which they are summed" if memory.own_gradients > memory.parameters else ""
    yield "gradients", spell_bytes(memory.own_gradients) + buckets
    yield "optimizer", f"{spell_bytes(memory.state)} of state"
    if memory.gathered:
        yield "gathered", f"{spell_bytes(memory.gathered)} of layers that are whole for a moment"
    rows = arguments.training.per_device_train_batch_size
    yield (
        "activations",
        (
            f"{spell_bytes(memory.passes.kept)} kept for the backward pass of {rows} row{'s' * (rows != 1)}, "
            f"{spell_bytes(other.passes.kept)} with --gradient_checkpointing {str(not estimator.checkpoints).lower()}"
        ),
    )
    yield "logits", f"{spell_bytes(memory.passes.logits)} with their loss, at the peak"
    yield "a step", f"{spell_bytes(memory.workspace)} to work in{_spell_copies(memory)}"
    room = f"{whole / 1e9:g} GB of one {model.dry_run_gpu}"
    verdict = f"fits the {room}" if memory.peak < 0.95 * whole else f"does not fit the {room}"
    if 0.9 * whole < memory.peak < whole:
        verdict = f"is all but the whole {room}, of which its libraries need some"
    yield (
        "peak",
        (
            f"{spell_bytes(memory.peak)}, {memory.peak_is}: {verdict}; "
            f"{spell_bytes(other.peak)} with --gradient_checkpointing {str(not estimator.checkpoints).lower()}"
        ),
    )


def _spell_copies(memory: Memory) -> str:
    return f", and {spell_bytes(memory.copies)} of copies for --log_update_norms" if memory.copies else ""


def _compute(
    arguments: Arguments, estimator: Estimator, explanation: Explanation, batch: int, steps: int, gpus: int
) -> Iterator[tuple[str, str]]:
    a_token = training_flops_per_token(estimator.model, arguments.data.block_size)
    yield "a token", f"{spell_flops(a_token)} forward and backward"
    own = explanation.flops
    if own is None:
        yield "the optimizer", "not counted: a rule of its looks at values"
    else:
        share = own / (own + a_token * batch)
        yield (
            "the optimizer",
            f"{spell_flops(own)} a step, {share:.2%} of all; the model's {spell_flops(a_token * batch)}",
        )
    if steps <= 0:
        return
    total = (a_token * batch + (own or 0)) * steps
    gpu, dtype = arguments.model.dry_run_gpu, torch.bfloat16 if arguments.training.bf16 else torch.float32
    with _tf32(arguments.training.wants_tf32):
        peak = named_peak(gpu, dtype)
    said = "bfloat16" if arguments.training.bf16 else "TF32" if arguments.training.wants_tf32 else "float32"
    if peak is None:
        yield "the run", f"{total:.2g} FLOP; the peak of one {gpu} in {said} is not known"
        return
    hours = total / (UTILIZATION * peak * gpus) / 3600
    yield (
        "the run",
        (
            f"{total:.3g} FLOP: {_spell_hours(hours)} on {gpus} {gpu} at {UTILIZATION:.0%} of their "
            f"{peak / 1e12:.0f} TFLOP/s in {said}"
        ),
    )


def _spell_hours(hours: float) -> str:
    return f"{hours:.3g} hours" if hours >= 1 else f"{60 * hours:.3g} minutes"


@contextlib.contextmanager
def _tf32(wanted: bool) -> Iterator[None]:
    """Reckon with the rate of TF32, as the run would ask for it."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if wanted else before
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def _table(lines: Iterator[tuple[str, str]]) -> Iterator[str]:
    rows = list(lines)
    width = max(len(name) for name, _ in rows)
    return (f"{name:<{width}}  {text}" for name, text in rows)

"""`orthoopt pretrain`: train a language model with an orthoopt plan, alone or under torchrun.

orthoopt pretrain                                        # the default: a small model on the embedded corpus
orthoopt pretrain --plan adamw --max_steps 1000
orthoopt pretrain --plan my_plan.yaml
orthoopt pretrain qwen3-0.6b-tiny                        # a config that ships, by name or path
orthoopt pretrain qwen3-0.6b --dry_run true              # what it would train, and what that would take
orthoopt pretrain my_run.yaml --resume_from_checkpoint auto
torchrun --standalone --nproc_per_node=2 -m orthoopt.recipes.pretrain qwen3-0.6b
torchrun --standalone --nproc_per_node=2 -m orthoopt.recipes.pretrain qwen3-0.6b --shard true   # FSDP2
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback, TrainerState
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from orthoopt.plan_files import PlanFile
from orthoopt.plan_text import to_yaml
from orthoopt.recipes import folders, record, report, reproduce
from orthoopt.recipes.arguments import Arguments, PretrainArguments, parse
from orthoopt.recipes.callbacks import Progress, TrainingClock
from orthoopt.recipes.corpus import Corpus, load_corpus
from orthoopt.recipes.data import PretrainData, prepare_data
from orthoopt.recipes.dry_run import dry_run
from orthoopt.recipes.errors import RecipeError, exit_status, nearest
from orthoopt.recipes.memory_check import check_memory
from orthoopt.recipes.models import build_model, fitted_config
from orthoopt.recipes.packing import check_boundaries
from orthoopt.recipes.same_run import check_same_run
from orthoopt.recipes.sampling import SAMPLES, Sampler
from orthoopt.recipes.sharding import sharded
from orthoopt.recipes.tokenizer import cache_root, load_tokenizer, write_atomically
from orthoopt.recipes.trainer import PretrainTrainer
from orthoopt.recipes.wandb_run import WandbRun

_BATCHES_AHEAD = 32  # of a stream, made while the model trains


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv`, by default the command line's, and run.

    Returns 0, 1 if training was stopped, 2 for a wrong option, 130 if interrupted.
    """
    words = sys.argv[1:] if argv is None else argv
    return exit_status("orthoopt pretrain", lambda: _run(parse(words)))


def _run(arguments: Arguments) -> None:
    if arguments.model.dry_run:
        print(dry_run(arguments))
    else:
        pretrain(arguments)


def pretrain(arguments: Arguments) -> dict[str, Any]:
    """Run one pretraining from beginning, or checkpoint, to end; returns what results.json holds.

    Raises `RecipeError` for anything the user can mend.
    """
    training = arguments.training
    place = prepare(arguments)
    corpus, tokenizer, data = load_data(arguments)
    named = arguments.model.model, arguments.model_overrides, tokenizer
    block_size = arguments.data.block_size
    if arguments.model.check_memory:
        try:
            check_memory(fitted_config(*named, block_size=block_size), arguments)
        except RecipeError:
            with contextlib.suppress(OSError):  # not empty, so not this run's, or gone
                place.output.rmdir()
            raise
    model = build_model(*named, block_size=block_size, seed=training.seed)
    if arguments.data.document_boundaries:
        check_boundaries(model, max(training.per_device_train_batch_size, training.per_device_eval_batch_size))
    run = record.describe_run(arguments, corpus, tokenizer, data, model)
    return train(arguments, place, run, tokenizer, data, model)


def prepare(arguments: Arguments) -> folders.Place:
    """Check what can be checked before anything is loaded, and choose the run's folder."""
    training = arguments.training
    _quiet(training)
    _check_reporting(training)
    place = _agree(training, arguments)
    training.output_dir = str(place.output)
    return place


def train(
    arguments: Arguments,
    place: folders.Place,
    run: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    data: PretrainData,
    model: PreTrainedModel,
    trainer_class: Callable[..., PretrainTrainer] = PretrainTrainer,
) -> dict[str, Any]:
    """Train `model` from beginning, or checkpoint, to end, and write the run's folder.

    `run` is what run.json holds. Returns what results.json holds.
    """
    training = arguments.training
    if place.checkpoint is None and training.process_index == 0:
        folders.remove_checkpoints(place.output)  # not before, for the run might have been refused
    if place.checkpoint is not None:
        training.eval_on_start = False  # the metrics have the row of step 0
    steps = 0 if place.checkpoint is None else folders.checkpoint_step(place.checkpoint)
    clock = TrainingClock()
    callbacks: list[TrainerCallback] = [clock, Progress(bar=not training.disable_tqdm)]
    sampler, logged = None, None
    if training.should_save:
        check_same_run(place, run)
        logged = _wandb_run(arguments, place, run)
        report.write_json(place.output / report.RUN, run)
        if arguments.run.optimizer is None:
            _keep_plan(place.output / report.PLAN, arguments.plan)
        reproduce.write_config(arguments, place.output / report.PLAN)
        report.write_json(place.output / reproduce.ENVIRONMENT, reproduce.describe_environment(arguments))
        (place.output / report.RESULTS).unlink(missing_ok=True)
        callbacks.append(_metrics_log(place, steps, clock))
        sampler = _sampler(arguments, place, steps, clock)
        callbacks.append(sampler)
        print(record.header(run, arguments, place, steps), flush=True)
    status = 1
    try:
        if arguments.run.shard:
            model = sharded(model, place.output, place.checkpoint)
        trainer = trainer_class(model, data, tokenizer, arguments, callbacks)
        if 0 < training.max_steps <= steps and place.checkpoint is not None:
            _load_finished(trainer, place.checkpoint)
        else:
            trainer.train(resume_from_checkpoint=None if place.checkpoint is None else str(place.checkpoint))
        results = _finish(trainer, arguments, run, place, clock, sampler)
        status = 0
    except KeyboardInterrupt:
        if training.should_save:
            print("\n" + record.interruption(arguments, place.output), file=sys.stderr)
        raise
    finally:
        if logged is not None:
            logged.finish(status)
    return results


def _wandb_run(arguments: Arguments, place: folders.Place, run: dict[str, Any]) -> WandbRun:
    training = arguments.training
    continued = place.checkpoint is not None and place.checkpoint.parent == place.output
    kept = {key: value for key, value in run.items() if key not in ("routing", "arguments", "model_config")}
    return WandbRun(place.output, wanted="wandb" in training.report_to, continued=continued, name=training.run_name,
                    config={"orthoopt": kept})  # fmt: skip


def _sampler(arguments: Arguments, place: folders.Place, steps: int, clock: TrainingClock) -> Sampler:
    """samples.jsonl, continued after the checkpoint's step."""
    keep = [] if place.checkpoint is None else report.read_metrics(place.checkpoint.parent / SAMPLES, up_to=steps)
    return Sampler(place.output / SAMPLES, clock, every=arguments.run.sample_steps, prompt=arguments.run.sample_prompt,
                   length=arguments.data.block_size, seed=arguments.training.seed, keep=keep)  # fmt: skip


def _quiet(training: PretrainArguments) -> None:
    """Leave only errors of the libraries on the screen, unless --log_level asks for more."""
    if training.log_level == "passive":
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()  # of writing model files
    if not torch.accelerator.is_available():
        training.dataloader_pin_memory = False  # torch warns that it has nothing to pin for


def _check_reporting(training: PretrainArguments) -> None:
    for name in training.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise RecipeError(
                f"--report_to {name!r} is not one of {sorted(INTEGRATION_TO_CALLBACK)}"
                f"{nearest(name, INTEGRATION_TO_CALLBACK)}"
            )
        if name == "wandb" and importlib.util.find_spec("wandb") is None:
            raise RecipeError("--report_to wandb needs the `wandb` package: pip install wandb")
    os.environ.setdefault("WANDB_PROJECT", "orthoopt")


def _agree(training: PretrainArguments, arguments: Arguments) -> folders.Place:
    """The first process chooses the folder and tells the others; an error reaches all."""
    chosen: list[Any] = [None]
    if training.process_index == 0:
        try:
            place = folders.find_place(arguments)
            place.output.mkdir(parents=True, exist_ok=True)
            chosen = [place]
        except RecipeError as error:
            chosen = [error]
    if training.world_size > 1:
        chosen = broadcast_object_list(chosen)
    if isinstance(chosen[0], RecipeError):
        raise chosen[0]
    return chosen[0]


def load_data(arguments: Arguments) -> tuple[Corpus, PreTrainedTokenizerFast, PretrainData]:
    """Corpus, tokenizer, blocks; the first process of each machine makes what is not cached, others wait."""
    options, training = arguments.data, arguments.training
    cache = cache_root(options.cache_dir)
    with training.main_process_first(desc="encoding the corpus"):
        corpus = load_corpus(options)
        tokenizer = load_tokenizer(options.tokenizer, corpus, vocab_size=options.vocab_size, cache=cache)
        data = prepare_data(
            corpus,
            tokenizer,
            block_size=options.block_size,
            eval_blocks=options.eval_blocks,
            cache=cache,
            shares=training.world_size,
            share=training.process_index,
            seed=training.seed if training.data_seed is None else training.data_seed,
            shuffle_window=options.shuffle_window,
            prefetch=_BATCHES_AHEAD * training.per_device_train_batch_size,
            document_boundaries=options.document_boundaries,
        )
    return corpus, tokenizer, data


def _keep_plan(path: Path, plan: str | PlanFile) -> None:
    """Write what a plan file came to beside the run's settings, to be given to --plan again."""
    if isinstance(plan, PlanFile):
        comments = [f"{plan.path} in full, as it was when this run was made; {report.RUN} has its text"]
        write_atomically(path, to_yaml(plan.plan, plan.overrides, comments).encode())


def _metrics_log(place: folders.Place, steps: int, clock: TrainingClock) -> report.MetricsLog:
    """metrics.jsonl, and the clock, continued after the checkpoint's step."""
    source = place.output / report.METRICS
    if place.checkpoint is not None and not source.is_file():
        source = place.checkpoint.parent / report.METRICS
    rows = [] if place.checkpoint is None else report.read_metrics(source, up_to=steps)
    clock.earlier = rows[-1]["seconds"] if rows else 0.0
    return report.MetricsLog(place.output / report.METRICS, clock, keep=rows)


def _load_finished(trainer: PretrainTrainer, checkpoint: Path) -> None:
    """Take up a run whose last step is in the checkpoint: Trainer would train one step more."""
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    trainer._load_from_checkpoint(str(checkpoint))


def _finish(
    trainer: PretrainTrainer,
    arguments: Arguments,
    run: dict[str, Any],
    place: folders.Place,
    clock: TrainingClock,
    sampler: Sampler | None,
) -> dict[str, Any]:
    """Evaluate, write results, curve, sample and model, and say where they are."""
    training, output = arguments.training, place.output
    metrics = trainer.final_metrics()
    if arguments.run.save_final:
        trainer.save_model(str(output / "model"))
    rows = report.read_metrics(output / report.METRICS)
    results = {
        "eval_loss": metrics["eval_loss"],
        "eval_perplexity": metrics["eval_perplexity"],
        "eval_bits_per_byte": metrics.get("eval_bits_per_byte"),
        "train_loss": next((row["loss"] for row in reversed(rows) if "loss" in row), None),
        "steps": trainer.state.global_step,
        "tokens": trainer.state.num_input_tokens_seen,
        "train_seconds": clock.seconds,
        # Of the whole run: a resumed one has not seen its first part.
        "optimizer_seconds": None if place.checkpoint else trainer.role_metrics.optimizer_seconds,
        **record.beginning(rows),
        **{key: run[key] for key in record.RESULT_KEYS},
    }
    if not training.should_save:
        return results
    report.write_json(output / report.RESULTS, results)
    title = f"{run['model']}, {run['parameters'] / 1e6:.1f}M, {run['plan']}, lr {run['learning_rate']:g}"
    drawn = report.draw_curve(rows, output / report.CURVE, title)
    sample = None
    if arguments.run.generate_sample and not (
        arguments.run.shard or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    ):
        assert sampler is not None
        model = trainer.accelerator.unwrap_model(trainer.model)
        sample = sampler.write(model, trainer.processing_class, trainer.state)
        write_atomically(output / report.SAMPLE, (sample + "\n").encode())
    print(record.footer(results, arguments, output, drawn=drawn, sample=sample), flush=True)
    return results


if __name__ == "__main__":
    raise SystemExit(main())

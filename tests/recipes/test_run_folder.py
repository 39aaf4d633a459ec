"""What a finished run's folder holds, what its figures mean, and that it can be made again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import Trainer

from orthoopt.recipes import pretrain
from orthoopt.recipes.arguments import PretrainArguments, parse
from orthoopt.recipes.callbacks import TrainingClock, spell_speed
from orthoopt.recipes.flops import training_flops_per_token
from orthoopt.recipes.meta import build_meta_model
from orthoopt.recipes.reproduce import config_text
from orthoopt.recipes.speed import Speed, perplexity
from orthoopt.recipes.watch import LossWatch

_TIMES = {"seconds", "step_seconds", "tokens_per_second", "peak_memory_bytes"}


def rows_of(output: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (output / name).read_text().splitlines()]


def without_times(output: Path) -> list[dict]:
    rows = [{key: value for key, value in row.items() if key not in _TIMES} for row in rows_of(output)]
    for row in rows:
        row.get("data", {}).pop("wait_share", None)
    return rows


def test_config_yaml_makes_the_same_run_again(finished, sandbox, tmp_path) -> None:
    """The same seeds, the same numbers, and samples on the way change nothing."""
    again = [str(finished.output / "config.yaml"), "--output_dir", str(tmp_path / "again"), "--sample_steps", "0"]
    assert pretrain.main([*again, "--generate_sample", "false", "--save_strategy", "no"]) == 0
    assert without_times(tmp_path / "again") == without_times(finished.output)
    assert not (tmp_path / "again" / "samples.jsonl").exists()


def test_a_config_holds_what_was_given_and_where_the_plan_is_kept(tmp_path) -> None:
    (tmp_path / "own.yaml").write_text("base: muon\n")
    flags = ["--plan", str(tmp_path / "own.yaml"), "--output_dir", "x", "--weight_decay", "0.2", "--no_generate_sample"]
    text = config_text(parse(flags), tmp_path / "run" / "resolved_plan.yaml")
    values = yaml.safe_load(text)
    assert values["plan"] == str(tmp_path / "run" / "resolved_plan.yaml")
    assert values["weight_decay"] == 0.2 and values["generate_sample"] is False and values["learning_rate"] == 6e-3
    assert "output_dir" not in values and "logging_first_step" not in values
    assert f"orthoopt pretrain {tmp_path}/run/config.yaml" in text.splitlines()[0]


def test_the_environment_is_on_record(finished) -> None:
    found = json.loads((finished.output / "environment.json").read_text())
    assert {"cpu", "cores", "gpu", "versions", "git", "processes", "variables"} <= set(found)
    assert found["versions"]["torch"] == torch.__version__ and found["processes"] == 1


def test_speed_memory_and_perplexity_are_logged(finished) -> None:
    for row in rows_of(finished.output):
        if "eval_loss" in row:
            assert row["eval_perplexity"] == pytest.approx(math.exp(row["eval_loss"]))
        else:
            assert row["tokens_per_second"] * row["step_seconds"] == pytest.approx(8 * 32)
            assert 1e7 < row["peak_memory_bytes"] < 1e11
            assert "mfu" not in row  # nobody states the peak of a CPU
    assert "tokens/s" in finished.printed and " GB" in finished.printed


def test_diagnostics_agree_with_what_the_step_changed(finished) -> None:
    """A change of RMS lr x update_rms, but for weight decay, is a Frobenius norm of sqrt(n) times that."""
    run = json.loads((finished.output / "run.json").read_text())
    size = sum(math.prod(item["shape"]) for item in run["routing"] if item["role"] == "mlp_in")
    for row in rows_of(finished.output):
        if "loss" in row:
            figures = row["diagnostics"]
            expected = row["lr"]["mlp_in"] * figures["mlp_in/update_rms"] * math.sqrt(size)
            assert row["update_norm"]["mlp_in"] == pytest.approx(expected, rel=0.02)  # weight decay adds under 1 %
            assert figures["skipped_steps"] == 0 and figures["state_bytes"] > 0


def test_samples_are_kept_by_step_and_the_last_one_as_text(finished) -> None:
    samples = rows_of(finished.output, "samples.jsonl")
    assert [(row["step"], row["tokens"]) for row in samples] == [(6, 6 * 256), (12, 12 * 256)]
    assert all(row["text"].startswith("def ") for row in samples)
    assert (finished.output / "sample.txt").read_text() == samples[-1]["text"] + "\n"


def test_mfu_is_the_share_of_all_devices_peaks(tmp_path, monkeypatch) -> None:
    model, clock = build_meta_model("gpt2"), TrainingClock()
    speed = Speed(model, PretrainArguments(output_dir=str(tmp_path), use_cpu=True), 1024, clock)
    speed.peak, speed.devices = 1e15, 2
    monkeypatch.setattr(TrainingClock, "seconds", 4.0)
    found = speed.since_last(SimpleNamespace(global_step=2, num_input_tokens_seen=1_000_000))
    assert found["tokens_per_second"] == 250_000 and found["step_seconds"] == 2.0
    assert found["mfu"] == 250_000 * training_flops_per_token(model, 1024) / 2e15
    assert spell_speed({"tokens_per_second": 250_000.0, "mfu": 0.4123}) == ", 250,000 tokens/s, MFU 41.2%"


def test_perplexity_of_any_loss_is_a_number_or_infinite() -> None:
    assert perplexity(0.0) == 1.0 and perplexity(1e6) == math.inf and math.isnan(perplexity(math.nan))


def test_losses_that_are_not_finite_are_counted_and_left_out_of_the_mean() -> None:
    watch = LossWatch()
    given = [[1.0, 2.0], [math.nan, 3.0], [math.inf, math.nan]]
    total = 0.0
    for step in given:
        total += sum(float(watch.see(torch.tensor(loss))) for loss in step)
        watch.on_step_end()
    seen = watch.since_last(lambda row: row)
    assert (seen.on_end, seen.steps, seen.finite_share) == (2, 2, 0.5)
    assert total / len(given) / 2 / seen.finite_share == 2.0  # the mean of 1, 2 and 3
    watch.see(torch.tensor(1.0))
    watch.on_step_end()
    assert watch.since_last(lambda row: torch.cat([row, row])) == (0, 0, 1.0)


def test_a_run_whose_loss_is_lost_stops_and_says_what_to_try(sandbox, tmp_path, monkeypatch, capsys) -> None:
    step = Trainer.training_step

    def lost(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        return loss * math.nan if self.state.global_step >= 2 else loss

    monkeypatch.setattr(Trainer, "training_step", lost)
    flags = sandbox.flags(tmp_path / "run", "--max_nonfinite_steps", "3", "--eval_strategy", "no")
    assert pretrain.main(flags) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("orthoopt pretrain: stopped: the loss has not been finite in the last 4 steps, up to ")
    assert "step 6" in error[-1] and "--learning_rate than 0.006" in error[-1]
    assert error[-2].startswith("step 4: the loss was not finite in 2 steps since the last log")
    rows = rows_of(tmp_path / "run")
    assert [(row["step"], row["loss"] is None, row.get("nonfinite_steps")) for row in rows] == [
        (2, False, None), (4, True, 2), (6, True, 2),
    ]  # fmt: skip
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow  # tracing takes longer than all of the other tests here
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own compiler
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_run_has_the_same_losses_and_compiles_once(backend, sandbox, tmp_path, monkeypatch) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    graphs = {}
    on_step_end = TrainingClock.on_step_end

    def count(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        graphs[state.global_step] = counters["stats"]["unique_graphs"]

    monkeypatch.setattr(TrainingClock, "on_step_end", count)
    few = ["--model_overrides", "num_hidden_layers=1,hidden_size=32,intermediate_size=64,head_dim=16",
           "--max_steps", "8", "--generate_sample", "false", "--save_strategy", "no"]  # fmt: skip
    assert pretrain.main(sandbox.flags(tmp_path / "eager", *few)) == 0
    assert graphs.pop(8) == 0
    compiled = ["--torch_compile", "true", "--torch_compile_backend", backend]
    assert pretrain.main(sandbox.flags(tmp_path / "compiled", *few, *compiled)) == 0
    # The first step and the first evaluation, after step 4, compile; no step after them does.
    assert 0 < graphs[1] == graphs[4] and graphs[5] == graphs[8]
    for one, other in zip(rows_of(tmp_path / "compiled"), rows_of(tmp_path / "eager"), strict=True):
        for key in {"loss", "eval_loss"} & set(other):
            assert one[key] == pytest.approx(other[key], rel=1e-3)  # fused sums, over 8 steps

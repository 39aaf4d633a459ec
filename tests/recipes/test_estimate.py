"""The memory estimate is held against what torch's allocator saw, and a run that cannot fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from orthoopt.bench.allocations import peak_extra_bytes
from orthoopt.hf import OptimizerFactory
from orthoopt.recipes import memory_check, memory_trace, pretrain
from orthoopt.recipes.arguments import parse
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.estimate import Estimator
from orthoopt.recipes.memory_trace import Trace
from orthoopt.recipes.models import fitted_config

CPU = torch.device("cpu")
SMALL = ["--block_size", "64", "--vocab_size", "512", "--per_device_train_batch_size", "4"]


def estimator_of(*argv: str, processes: int = 1) -> Estimator:
    arguments = parse(argv)
    overrides = {**arguments.model_overrides, "vocab_size": arguments.data.vocab_size}
    config = fitted_config(arguments.model.model, overrides, None, block_size=arguments.data.block_size)
    return Estimator(config, arguments, processes=processes)


@pytest.mark.parametrize("name", [pytest.param("qwen3-0.6b-tiny", marks=pytest.mark.slow), "olmoe-1b-7b-tiny"])
def test_the_estimate_is_near_what_the_allocator_gave_out(name: str) -> None:
    """The passes within a tenth; a step within a factor of 2: it is an accelerator's, whose buckets are larger."""
    estimator = estimator_of(name, *SMALL)
    memory, arguments = estimator.memory(), estimator.arguments
    model = AutoModelForCausalLM.from_config(estimator.config, dtype=torch.float32)
    inputs = torch.randint(0, 512, (4, 64))

    def passes() -> None:
        model(input_ids=inputs, labels=inputs, use_cache=False).loss.backward()

    passes()  # what is made once, such as tables of positions, is there
    model.zero_grad(set_to_none=True)
    measured = peak_extra_bytes(passes, CPU)
    assert 0.9 < memory.passes.peak / measured < 1.1
    optimizer = OptimizerFactory()(model, plan=arguments.plan, lr=1e-3)
    optimizer.step()
    step = peak_extra_bytes(optimizer.step, CPU)
    held = sum(v.numel() * v.element_size() for own in optimizer.state.values() for v in own.values())
    assert memory.state == held
    whole = memory.parameters + memory.own_gradients + memory.state
    assert 0.9 < (whole + memory.workspace) / (whole + step) < 2.0


@pytest.mark.slow  # traces eight runs
def test_parts_of_the_estimate_follow_the_settings() -> None:
    alone = estimator_of("qwen3-0.6b-tiny", *SMALL, "--log_update_norms", "false")
    weights = 4 * alone.elements
    memory = alone.memory()
    assert memory.parameters == weights and memory.gradients == 0 and memory.copies == 0
    assert memory.training == weights + memory.state + memory.passes.peak
    less = alone.memory(checkpointing=True).passes
    assert less.kept < memory.passes.kept / 3 and less.peak < memory.passes.peak
    assert alone.memory(rows=1).passes.peak < memory.passes.peak
    many = estimator_of("qwen3-0.6b-tiny", *SMALL, processes=4)
    whole, cut = many.memory(), many.memory(shard=True)
    assert whole.gradients == weights and cut.parameters == weights // 4 and cut.state == whole.state // 4
    assert cut.gathered > 0 and whole.copies == weights
    half = estimator_of("qwen3-0.6b-tiny", *SMALL, "--plan_options", "state_dtype=bfloat16").memory()
    assert half.state < 0.8 * memory.state  # its vectors keep float32


_SECONDS = [pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3-1b-tiny", "gpt-oss-tiny", "gpt2-124m-tiny")]


@pytest.mark.parametrize("name", ["default", *_SECONDS])
def test_what_is_found_at_once_is_more_than_the_estimate(name: str) -> None:
    estimator = estimator_of(name, *SMALL)
    assert estimator.bound() > 1.5 * estimator.memory().peak


def test_a_trace_counts_storage_once_and_gives_it_back() -> None:
    x = torch.zeros(256)
    with Trace([x]) as trace:
        y = x + 1
        z = y.view(16, 16)
        assert trace.now == 1024
        del y
        assert trace.now == 1024  # the view still shows it
        del z
        assert trace.now == 0 and trace.peak == 1024
        x.add_(1)
        assert trace.peak == 1024  # what was there does not count


def test_logits_are_told_apart() -> None:
    few = estimator_of("gpt2-124m-tiny", *SMALL, "--vocab_size", "500").memory().passes
    one = 4 * 64 * 500 * 4  # in float32
    assert 2 * one <= few.logits <= 5 * one and few.logits < few.peak


def test_a_model_that_looks_at_values_cannot_be_traced(monkeypatch) -> None:
    monkeypatch.setattr(memory_trace, "_loss", lambda model, inputs, bf16: inputs.sum().item())
    estimator = estimator_of("gpt2-124m-tiny", *SMALL)
    with pytest.raises(memory_trace.TraceError, match="GPT2Config cannot be traced without values"):
        estimator.memory()
    monkeypatch.setattr(memory_check, "available_memory", lambda device: 1000)
    memory_check.check_memory(estimator.config, estimator.arguments)  # not known, so not refused


def refused(monkeypatch, free: int, *argv: str) -> str:
    monkeypatch.setattr(memory_check, "available_memory", lambda device: free)
    estimator = estimator_of(*argv)
    with pytest.raises(RecipeError) as caught:
        memory_check.check_memory(estimator.config, estimator.arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_that_cannot_fit_is_refused_with_what_would(monkeypatch) -> None:
    text = refused(monkeypatch, 4_000_000, "qwen3-0.6b-tiny", *SMALL, "--per_device_train_batch_size", "32")
    assert "and 4.00 MB are free on cpu: parameters" in text and "--check_memory false" in text
    remedies = (
        "--per_device_train_batch_size 8 --gradient_accumulation_steps 4",
        "--gradient_checkpointing true",
        "--plan_options state_dtype=bfloat16",
        "--shard true",
        "none of these is enough",
    )
    for option in remedies:
        assert option in text
    monkeypatch.setattr(memory_check, "available_memory", lambda device: None)  # a device that does not say
    estimator = estimator_of("qwen3-0.6b-tiny", *SMALL)
    memory_check.check_memory(estimator.config, estimator.arguments)


def test_a_refused_run_leaves_nothing_and_deletes_nothing(monkeypatch, sandbox, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(memory_check, "available_memory", lambda device: 1000)
    output = tmp_path / "run"
    assert pretrain.main(sandbox.flags(output)) == 2
    assert "this run needs about" in capsys.readouterr().err and not output.exists()
    (output / "checkpoint-3").mkdir(parents=True)
    assert pretrain.main(sandbox.flags(output, "--overwrite_output_dir", "true")) == 2
    assert (output / "checkpoint-3").is_dir()


def test_the_host_says_what_is_free(monkeypatch, tmp_path: Path) -> None:
    free = memory_check.available_memory(CPU)
    assert free is not None and free > 0
    for name, value in (("memory.max", "3000000"), ("memory.current", "2000000"), ("memory.stat", "inactive_file 500")):
        (tmp_path / name).write_text(value + "\n")
    monkeypatch.setattr(memory_check, "_CGROUP", tmp_path)
    assert memory_check.available_memory(CPU) == 1_000_500
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory_check.available_memory(CPU) == 500_250
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_check.available_memory(CPU) == pytest.approx(free / 2, rel=0.2)  # the host's alone; it varies

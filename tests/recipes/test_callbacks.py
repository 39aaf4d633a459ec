from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest
import torch

import orthoopt
from orthoopt.recipes.arguments import PretrainArguments
from orthoopt.recipes.callbacks import Progress, RoleMetrics, TrainingClock


def state(step: int, **values: object) -> SimpleNamespace:
    known = {"global_step": step, "max_steps": 4, "is_world_process_zero": True, "logging_steps": 2}
    return SimpleNamespace(**known | values)


@pytest.fixture
def arguments(tmp_path) -> PretrainArguments:
    return PretrainArguments(output_dir=str(tmp_path), logging_steps=2, learning_rate=0.1, use_cpu=True)


def show(progress: Progress) -> None:
    progress.on_train_begin(None, state(0), None)
    for step in range(1, 5):
        progress.on_step_end(None, state(step), None)
        progress.on_log(None, state(step), None, logs={"loss": 5.0 - step, "learning_rate": 1e-3})
    progress.on_log(None, state(4), None, logs={"eval_loss": 1.25, "eval_bits_per_byte": 0.5})
    progress.on_train_end(None, state(4), None)


def test_a_terminal_shows_a_bar_with_the_losses(monkeypatch, capsys) -> None:
    """This terminal has no size, as one of a container."""
    terminal, end = os.openpty()
    with os.fdopen(end, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        show(Progress(bar=True))
        screen.flush()
        shown = ""
        while "validation=1.250" not in shown:  # the kernel hands a terminal's text over bit by bit
            shown += os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert "4/4" in shown and "loss=1.000" in shown and "validation=1.250" in shown
    assert capsys.readouterr().out.splitlines() == ["step 4 of 4: validation loss 1.2500, 0.5000 bits per byte"]


@pytest.mark.parametrize("bar", [True, False])
def test_elsewhere_each_log_is_a_line(bar, capsys) -> None:
    show(Progress(bar=bar))
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines()[0] == "step 1 of 4: loss 4.0000, lr 1.00e-03"
    assert captured.out.splitlines()[-1] == "step 4 of 4: validation loss 1.2500, 0.5000 bits per byte"


def test_role_metrics_measure_the_logged_step_alone(arguments) -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(8, 4), torch.nn.Linear(4, 8))
    optimizer = orthoopt.Symmetry(model, lr=0.1, weight_decay=0.0)
    metrics = RoleMetrics()
    for step in range(4):
        before = {name: param.detach().clone() for name, param in model.named_parameters()}
        optimizer.zero_grad()
        model(torch.arange(8)).square().sum().backward()
        metrics.on_pre_optimizer_step(arguments, state(step), None, optimizer=optimizer)
        optimizer.step()
        metrics.on_optimizer_step(arguments, state(step), None)
        if step == 0:
            assert metrics.latest == {}
        if step in (1, 3):
            names = {id(param): name for name, param in model.named_parameters()}
            expected: dict[str, float] = {}
            for group in optimizer.param_groups:
                for param in group["params"]:
                    square = (param.detach() - before[names[id(param)]]).norm().item() ** 2
                    expected[group["role"]] = expected.get(group["role"], 0.0) + square
            assert {f"update_norm/{role}" for role in expected} <= set(metrics.latest)
            for role, square in expected.items():
                assert metrics.latest[f"update_norm/{role}"] == pytest.approx(square**0.5, rel=1e-5)  # fp32 sums
            held = metrics.latest.copy()
        if step == 2:
            assert metrics.latest == held
    assert metrics.latest["learning_rate"] == 0.1
    assert metrics.optimizer_seconds is not None and metrics.optimizer_seconds > 0


def test_learning_rates_are_read_before_the_scheduler_moves_them(arguments) -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(8, 4), torch.nn.Linear(4, 8))
    optimizer = orthoopt.Symmetry(model, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    metrics = RoleMetrics(norms=False)
    model(torch.arange(8)).sum().backward()
    optimizer.step()
    scheduler.step()
    metrics.on_pre_optimizer_step(arguments, state(1), None, optimizer=optimizer)
    for group in optimizer.param_groups:
        assert metrics.latest[f"lr/{group['role']}"] == group["lr"] == group["initial_lr"] * 0.5
    assert metrics.latest["learning_rate"] == pytest.approx(0.05)
    metrics.on_optimizer_step(arguments, state(1), None)
    assert not any(key.startswith("update_norm") for key in metrics.latest)


def test_the_clock_does_not_count_evaluations_and_checkpoints(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = TrainingClock(earlier=5.0)
    clock.on_train_begin()
    for step, evaluating, saving in ((1.0, 0.0, 0.0), (1.0, 7.0, 3.0), (1.0, 0.0, 2.0)):
        now[0] += step
        clock.on_step_end()
        if evaluating:
            now[0] += evaluating
            clock.on_evaluate()
        if saving:
            now[0] += saving
            clock.on_save()
    assert clock.seconds == 5.0 + 3.0

"""A step that cannot be taken is refused before anything moves; each case here once went through, or halfway."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mutilated import Training, bits
from torch import nn
from torch.optim import lr_scheduler

from orthoopt import OrthoOpt, orthogonalize


def _write(key: str, value: Any, place: int = 1) -> Callable[[Training], None]:
    return lambda training: training.optimizer.param_groups[place].__setitem__(key, value)


def _swap_data(training: Training) -> None:
    training.params["stack"].data = torch.randn(3, 5, 4)


def _state(key: str, value: Any, name: str = "stack") -> Callable[[Training], None]:
    return lambda training: training.optimizer.state[training.params[name]].__setitem__(key, value)


CASES: dict[str, tuple[Callable[[Training], Any], str]] = {
    "lr": (_write("lr", math.nan), "param group 1: lr must be a number"),
    "tensor lr": (_write("lr", torch.tensor(math.inf)), "param group 1: lr must be a number"),
    "too large": (_write("lr", 1e300), "param group 1: lr must be a number from 0 to 1e"),
    "weight decay": (_write("weight_decay", "0.1"), "param group 1: weight_decay must be a number"),
    "momentum": (_write("momentum", 1.5), "param group 1.*momentum must be at least 0"),
    "policy": (_write("nonfinite", "sikp"), "did you mean 'skip'"),
    "maximize": (_write("maximize", "no"), "maximize must be True or False"),
    "scale": (_write("scale", "big"), "scale='big'"),
    "rule": (_write("rule", {}), "rule must be a string"),
    "steps": (_write("ns_steps", 10**30), "at most 1000"),
    "deleted": (lambda training: training.optimizer.param_groups[2].pop("betas"), "param group 2 has no 'betas'"),
    "shape": (_swap_data, "gradient of stack must be .* of shape"),
    "state": (_state("momentum_buffer", torch.zeros(2, 2)), "state 'momentum_buffer' of stack"),
    "moment": (_state("exp_avg", None, "bias"), "state 'exp_avg' of bias"),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_half_done(case: str) -> None:
    training = Training("spectral")
    damage, message = CASES[case]
    damage(training)
    before = training.all_bits()
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        training.optimizer.step()
    assert training.all_bits() == before


def test_what_schedules_may_write_is_taken() -> None:
    """A linear schedule ends a rounding error below 0; numpy's numbers come out of people's lambdas."""
    import numpy as np

    training = Training("spectral")
    for value in (-1e-20, np.float32(0.01), torch.tensor(0.01)):
        training.optimizer.param_groups[0]["lr"] = value
        training.optimizer.step()
    assert all(torch.isfinite(param).all() for param in training.params.values())


def test_a_load_that_fails_late_is_undone() -> None:
    training = Training("spectral")
    saved = copy.deepcopy(training.optimizer.state_dict())
    target = Training("spectral", steps=1)

    def fail(_: Any) -> None:
        raise OSError("a hook of others")

    target.optimizer.register_load_state_dict_post_hook(fail)
    before = target.all_bits()
    with pytest.raises(OSError, match="a hook of others"):
        target.optimizer.load_state_dict(saved)
    assert target.all_bits() == before


def test_closures_and_hooks_that_raise_leave_everything() -> None:
    training = Training("root")

    def fail(*_: Any) -> float:
        raise OSError("in the middle")

    before = training.all_bits()
    with pytest.raises(OSError, match="in the middle"):
        training.optimizer.step(fail)
    handle = training.optimizer.register_step_pre_hook(fail)
    with pytest.raises(OSError, match="in the middle"):
        training.optimizer.step()
    handle.remove()
    assert training.all_bits() == before
    training.optimizer.step()


def test_a_gradient_may_be_wider_than_its_parameter() -> None:
    wide, plain = Training("spectral"), Training("spectral")
    wide.optimizer.step_with({p: p.grad.double() for p in wide.params.values() if p.grad is not None})
    plain.optimizer.step()
    for name, param in wide.params.items():
        torch.testing.assert_close(param, plain.params[name], atol=1e-5, rtol=1e-5)  # rounded later


def test_the_exact_polar_factor_of_a_lost_matrix_is_lost_alone() -> None:
    """LAPACK raises for a whole batch; under ``nonfinite="ignore"`` a step would stop halfway."""
    x = torch.randn(3, 4, 5)
    expected = orthogonalize(x, method="svd")
    x[1, 2, 3] = math.nan
    got = orthogonalize(x, method="svd")
    assert got[1].isnan().all() and bits(got[[0, 2]]) == bits(expected[[0, 2]])


def test_schedulers_leave_step_alone_and_still_see_it_called() -> None:
    training = Training("spectral", steps=0)
    training.optimizer = OrthoOpt(training.groups("spectral"), lr=0.01)
    schedule = lr_scheduler.StepLR(training.optimizer, 1)
    assert "step" not in vars(training.optimizer)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        schedule.step()
    other = OrthoOpt([{"params": [nn.Parameter(torch.ones(2, 2))], "rule": "adamw"}])
    schedule = lr_scheduler.StepLR(other, 1)
    other.step()
    schedule.step()  # warnings are errors

"""A step that is compared with the last one: the same bits and the same errors as one that looks at everything anew."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizers import ALL_RULES, equal, optimizer_of, parameters, set_gradients, snapshot
from torch import nn

from orthoopt import OrthoOpt
from orthoopt.settled import Settled

Params = dict[str, nn.Parameter]
Change = Callable[[OrthoOpt, Params], None]
CHANGES: dict[str, Change] = {}


def change(function: Change) -> Change:
    """One that may happen between a backward pass and the step after it."""
    CHANGES[function.__name__] = function
    return function


def tensors_of(state: dict[str, Any]) -> list[tuple[str, torch.Tensor]]:
    return [(key, value) for key, value in state.items() if isinstance(value, torch.Tensor)]


@change
def nothing(optimizer: OrthoOpt, params: Params) -> None: ...


@change
def rates_move(optimizer: OrthoOpt, params: Params) -> None:
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = 0.5 * group["lr"], group["weight_decay"] + 0.01


@change
def rate_is_bad(optimizer: OrthoOpt, params: Params) -> None:
    optimizer.param_groups[1]["lr"] = float("nan")


@change
def rate_is_mended(optimizer: OrthoOpt, params: Params) -> None:
    optimizer.param_groups[1]["lr"] = 0.02


@change
def rate_becomes_a_tensor(optimizer: OrthoOpt, params: Params) -> None:
    optimizer.param_groups[0]["lr"] = torch.tensor(0.03)


@change
def decay_changes_its_mode(optimizer: OrthoOpt, params: Params) -> None:
    optimizer.param_groups[0]["weight_decay_mode"] = "cautious"


@change
def direction_is_turned(optimizer: OrthoOpt, params: Params) -> None:
    optimizer.param_groups[1]["maximize"] = not optimizer.param_groups[1]["maximize"]


@change
def option_is_misspelt(optimizer: OrthoOpt, params: Params) -> None:
    optimizer.param_groups[0]["nonfinite"] = "skpi"


@change
def option_is_mended(optimizer: OrthoOpt, params: Params) -> None:
    optimizer.param_groups[0]["nonfinite"] = "skip"


@change
def errors_are_wanted(optimizer: OrthoOpt, params: Params) -> None:
    optimizer.param_groups[0]["nonfinite"] = "raise"


@change
def key_is_gone(optimizer: OrthoOpt, params: Params) -> None:
    optimizer.param_groups[0].pop("maximize", None)


@change
def key_is_back(optimizer: OrthoOpt, params: Params) -> None:
    optimizer.param_groups[0].setdefault("maximize", False)


@change
def parameters_change_places(optimizer: OrthoOpt, params: Params) -> None:
    for key in ("params", "param_names"):
        optimizer.param_groups[1][key].reverse()


@change
def parameter_moves(optimizer: OrthoOpt, params: Params) -> None:
    params["wide"].data = params["wide"].detach().clone()


@change
def parameter_is_laid_out_anew(optimizer: OrthoOpt, params: Params) -> None:
    """In the same memory."""
    params["stack"].data = params["stack"].detach().contiguous().view(3, 2, 5).mT


@change
def gradient_is_missing(optimizer: OrthoOpt, params: Params) -> None:
    params["tall"].grad = None


@change
def gradient_is_not_finite(optimizer: OrthoOpt, params: Params) -> None:
    params["stack"].grad[1, 2, 0] = float("inf")


@change
def gradient_is_transposed(optimizer: OrthoOpt, params: Params) -> None:
    params["wide"].grad = params["wide"].grad.mT.contiguous().mT


@change
def gradient_is_one_row(optimizer: OrthoOpt, params: Params) -> None:
    params["wide"].grad = params["wide"].grad[:1].expand(4, 9)


@change
def gradient_is_sparse(optimizer: OrthoOpt, params: Params) -> None:
    params["wide"].grad = params["wide"].grad.to_sparse()


@change
def a_step_is_taken_with_others(optimizer: OrthoOpt, params: Params) -> None:
    """Of a compiled graph, for one; they lie in memory in another way."""
    optimizer.step_with({param: torch.ones_like(param).mT.contiguous().mT for param in params.values()})


@change
def state_is_replaced(optimizer: OrthoOpt, params: Params) -> None:
    for state in optimizer.state.values():
        for key, value in tensors_of(state):
            state[key] = value.clone()


@change
def state_is_another_dict(optimizer: OrthoOpt, params: Params) -> None:
    for param, state in list(optimizer.state.items()):
        optimizer.state[param] = {key: value.clone() for key, value in tensors_of(state)}


@change
def state_lies_elsewhere(optimizer: OrthoOpt, params: Params) -> None:
    for state in optimizer.state.values():
        for _, value in tensors_of(state):
            value.data = value.detach().clone()
            if value.is_floating_point() and value.ndim:
                value.mul_(0.5)


@change
def state_of_one_is_forgotten(optimizer: OrthoOpt, params: Params) -> None:
    optimizer.state.pop(params["wide"], None)


@change
def state_has_a_guest(optimizer: OrthoOpt, params: Params) -> None:
    """Frameworks put things of their own there."""
    optimizer.state[params["wide"]]["theirs"] = object()


@change
def state_is_of_another_shape(optimizer: OrthoOpt, params: Params) -> None:
    state = optimizer.state[params["tall"]]
    for key, value in tensors_of(state):
        if value.ndim == 2:
            state[key] = value.new_zeros(3, 3)


@change
def checkpoint_is_loaded(optimizer: OrthoOpt, params: Params) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def outcome(name: str, options: dict[str, Any], walk: list[str], forgets: bool) -> list[Any]:
    """What every step of a walk raised or left."""
    params = parameters()
    optimizer = optimizer_of(name, params, **options)
    found: list[Any] = []
    for step, what in enumerate(walk):
        set_gradients(params, step)
        try:
            CHANGES[what](optimizer, params)
        except (KeyError, RuntimeError, ValueError) as error:  # a checkpoint of what an earlier change has spoilt
            found.append(f"{what}: {error}")
        if forgets:
            optimizer._settled = Settled()
        try:
            optimizer.step()
        except (FloatingPointError, RuntimeError, ValueError) as error:
            found.append(f"{type(error).__name__}: {error}")
        found.append(snapshot(optimizer))
        found.append(optimizer.skipped_steps)
    return found


walks = st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=3).flatmap(
    # Two quiet steps before each change: the first settles, the second is compared with it.
    lambda chosen: st.just([step for what in chosen for step in ("nothing", "nothing", what, "nothing")])
)


@pytest.mark.filterwarnings("ignore:the gradient of .* is not finite")
@settings(max_examples=150)
@given(st.sampled_from(ALL_RULES), walks)
def test_whatever_changes_between_steps_they_are_those_that_look_anew(name: str, walk: list[str]) -> None:
    for settled, anew in zip(outcome(name, {}, walk, False), outcome(name, {}, walk, True), strict=True):
        assert equal(settled, anew) if isinstance(settled, list) else settled == anew


def comparisons(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grows by one a step: whether it was found to be like the last one."""
    found: list[bool] = []
    again = Settled.again

    def seen(self: Settled, *given: Any) -> Any:
        work = again(self, *given)
        found.append(work is not None)
        return work

    monkeypatch.setattr(Settled, "again", seen)
    return found


@pytest.mark.parametrize("name", ALL_RULES)
def test_from_the_second_step_on_nothing_is_looked_up_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a schedule, with new gradients in new memory every time."""
    found = comparisons(monkeypatch)
    params = parameters()
    optimizer = optimizer_of(name, params)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(6):
        set_gradients(params, step)
        optimizer.step()
        schedule.step()
    assert found[0] is False and found[2:] == [True] * 4  # a schedule begins with a key of its own


def test_an_option_that_is_written_into_in_place_is_seen() -> None:
    """A list stays the same object when its numbers change."""
    params, betas = parameters(), [0.9, 0.95]
    optimizer = optimizer_of("adamw", params)
    for group in optimizer.param_groups:
        group["betas"] = betas
    for step in range(4):
        set_gradients(params, step)
        optimizer.step()
    before = snapshot(optimizer)
    betas[0] = 1.5
    with pytest.raises(ValueError, match=r"betas\[0\] must be at least 0 and below 1"):
        optimizer.step()
    assert equal(snapshot(optimizer), before)


def test_what_changes_all_the_time_is_pictured_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cyclic scheduler writes momentum at every step; a picture that never holds would be a loss."""
    taken: list[int] = []
    take = Settled.take
    monkeypatch.setattr(Settled, "take", lambda self, *given: taken.append(1) or take(self, *given))
    params = parameters()
    optimizer = optimizer_of("row_norm", params)
    for step in range(100):
        for group in optimizer.param_groups:
            group["momentum"] = 0.9 + 0.0005 * step
        set_gradients(params, step)
        optimizer.step()
    assert 3 <= len(taken) <= 10


def test_steps_with_given_gradients_are_not_pictured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled graphs take such, and never ask whether they are like the last one."""
    monkeypatch.setattr(Settled, "take", lambda self, *given: pytest.fail("a picture for nobody"))
    params = parameters()
    optimizer = optimizer_of("spectral", params)
    for step in range(3):
        set_gradients(params, step)
        optimizer.step_with({param: param.grad for param in params.values()})


def test_autocast_inference_and_recording_go_the_ordinary_way() -> None:
    from orthoopt import recording

    results = []
    for forgets in (False, True):
        params = parameters()
        optimizer = optimizer_of("spectral", params)
        for step in range(9):
            set_gradients(params, step)
            if forgets:
                optimizer._settled = Settled()
            if step in (3, 4):
                with torch.autocast("cpu", torch.bfloat16):
                    optimizer.step()
            elif step == 6:
                params["tall"].grad = None  # what is kept of gradients must not be of this step
                with recording(optimizer):
                    optimizer.step()
            else:
                optimizer.step()
        results.append(snapshot(optimizer))
    assert equal(*results)

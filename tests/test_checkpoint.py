"""Resuming: bitwise, matched by name, in the dtype that was saved."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizers import ALL_RULES, equal, groups_of, optimizer_of, parameters, run, snapshot
from torch import nn

from orthoopt import OrthoOpt, rules


def saved_and_loaded(state_dict: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _through_state_dict(optimizer: OrthoOpt, params: dict[str, nn.Parameter], name: str) -> tuple[Any, Any]:
    copies = copy.deepcopy(params)
    resumed = optimizer_of(name, copies)
    resumed.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    return resumed, copies


def _through_deepcopy(optimizer: OrthoOpt, params: dict[str, nn.Parameter], name: str) -> tuple[Any, Any]:
    return copy.deepcopy((optimizer, params))


def _through_pickle(optimizer: OrthoOpt, params: dict[str, nn.Parameter], name: str) -> tuple[Any, Any]:
    return pickle.loads(pickle.dumps((optimizer, params)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("through", [_through_state_dict, _through_deepcopy, _through_pickle])
@pytest.mark.parametrize("name", ALL_RULES)
def test_resuming_is_bitwise(name: str, through: Callable[..., Any], dtype: torch.dtype) -> None:
    params = parameters(dtype)
    optimizer = optimizer_of(name, params)
    run(optimizer, params, 0, 3)
    resumed, copies = through(optimizer, params, name)
    assert type(resumed) is OrthoOpt and resumed.skipped_steps == 0
    assert equal(snapshot(optimizer), snapshot(resumed))
    run(optimizer, params, 3, 6)
    run(resumed, copies, 3, 6)
    assert equal(snapshot(optimizer), snapshot(resumed))


@pytest.mark.parametrize("name", ALL_RULES)
def test_float32_state_of_bfloat16_parameters_survives(name: str) -> None:
    params = parameters(torch.bfloat16)
    optimizer = optimizer_of(name, params)
    run(optimizer, params, 0, 2)
    optimizer.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    floats = [
        value
        for param in params.values()
        for value in optimizer.state[param].values()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    ]
    rule = rules.get(name)
    like = torch.zeros(2, 2)
    remembers = bool({**rule.init(like, rule.defaults), **rule.init_matrix(like, rule.defaults)})
    assert bool(floats) is remembers and all(value.dtype == torch.float32 for value in floats)


@pytest.mark.parametrize("name", ALL_RULES)
def test_parameters_are_matched_by_name_in_any_order(name: str) -> None:
    params = parameters()
    optimizer = optimizer_of(name, params)
    run(optimizer, params, 0, 2)
    copies = copy.deepcopy(params)
    groups = groups_of(name, copies)[::-1]
    for group in groups:
        group["params"] = group["params"][::-1]
    other = OrthoOpt(groups, lr=0.5)
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    run(optimizer, params, 2, 4)
    run(other, copies, 2, 4)
    # Other neighbours in the stack: the same numbers up to rounding.
    for key in params:
        torch.testing.assert_close(copies[key], params[key], atol=1e-5, rtol=1e-4)
    assert [group["lr"] for group in other.param_groups] == [0.003, 0.01]


def _loads_nothing(optimizer: OrthoOpt, state_dict: dict[str, Any], message: str) -> None:
    before, groups = snapshot(optimizer), copy.deepcopy(optimizer.state_dict()["param_groups"])
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state_dict)
    assert equal(before, snapshot(optimizer))
    assert groups == optimizer.state_dict()["param_groups"]


def test_names_that_do_not_match_raise_and_load_nothing() -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params)
    run(optimizer, params, 0, 1)
    renamed = {("other" if key == "tall" else key): p for key, p in copy.deepcopy(params).items()}
    state_dict = optimizer_of("spectral", renamed).state_dict()
    _loads_nothing(optimizer, state_dict, "optimizer alone: tall. In the state dict alone: other")


def test_another_grouping_raises_and_loads_nothing() -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params)
    run(optimizer, params, 0, 1)
    one_group = OrthoOpt([{"params": list(copy.deepcopy(params).items()), "rule": "spectral"}])
    _loads_nothing(optimizer, one_group.state_dict(), "groups parameters in another way")
    _loads_nothing(one_group, optimizer.state_dict(), "groups parameters in another way")


@pytest.mark.parametrize("bits", [32, 8])
def test_a_shape_that_does_not_fit_raises_and_loads_nothing(bits: int) -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params)
    run(optimizer, params, 0, 1)
    state_dict = saved_and_loaded(optimizer.state_dict())
    state = state_dict["state"][0]
    state["momentum_buffer"] = torch.zeros(2, 2)
    if bits == 8:
        state |= {"momentum_buffer": torch.zeros(2, 2, dtype=torch.uint8), "momentum_buffer.scale": torch.ones(1)}
    _loads_nothing(optimizer, state_dict, r"'momentum_buffer' of wide has shape \(2, 2\)")


def test_unnamed_parameters_are_matched_by_position_with_their_shapes_checked() -> None:
    def unnamed(*shapes: tuple[int, int]) -> OrthoOpt:
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        optimizer = OrthoOpt([{"params": params, "rule": "spectral"}])
        for param in params:
            param.grad = torch.randn_like(param)
        return optimizer

    one, other = unnamed((2, 3), (4, 3)), unnamed((2, 3), (4, 3))
    one.step()
    other.load_state_dict(saved_and_loaded(one.state_dict()))
    assert len(other.state) == 2
    swapped = unnamed((4, 3), (2, 3))
    _loads_nothing(swapped, saved_and_loaded(one.state_dict()), "has shape")
    _loads_nothing(unnamed((2, 3)), saved_and_loaded(one.state_dict()), "group sizes")


def test_hooks_of_others_still_run_around_loading() -> None:
    params = parameters()
    optimizer = optimizer_of("adamw", params)
    run(optimizer, params, 0, 1)
    seen = []

    def nine_steps(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        state = {key: {**value, "step": torch.tensor(9.0)} for key, value in state_dict["state"].items()}
        return {**state_dict, "state": state}

    optimizer.register_load_state_dict_pre_hook(nine_steps)
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("after"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["after"] and optimizer.state[params["wide"]]["step"] == 9


def test_a_state_dict_from_before_an_option_existed_gets_its_default() -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params)
    run(optimizer, params, 0, 1)
    state_dict = saved_and_loaded(optimizer.state_dict())
    for group in state_dict["param_groups"]:
        del group["ns_dtype"], group["nonfinite"]
    optimizer.load_state_dict(state_dict)
    assert optimizer.param_groups[0]["ns_dtype"] == rules.get("spectral").defaults["ns_dtype"]
    run(optimizer, params, 1, 2)


def test_a_step_saved_as_a_number_becomes_a_tensor() -> None:
    params = parameters()
    optimizer = optimizer_of("adamw", params)
    run(optimizer, params, 0, 2)
    state_dict = saved_and_loaded(optimizer.state_dict())
    for state in state_dict["state"].values():
        state["step"] = float(state["step"])
    copies = copy.deepcopy(params)
    other = optimizer_of("adamw", copies)
    other.load_state_dict(state_dict)
    run(optimizer, params, 2, 3)
    run(other, copies, 2, 3)
    assert equal(snapshot(optimizer), snapshot(other))

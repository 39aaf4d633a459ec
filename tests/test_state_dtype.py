"""State in bfloat16 and parameters rounded stochastically: nothing stalls, resumed equals uninterrupted."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizers import ALL_RULES, SHAPES, equal, optimizer_of, parameters, run, set_gradients, snapshot
from torch import Tensor, nn

import orthoopt
import orthoopt.optimizer
from orthoopt import OrthoOpt, rules

SMALL: dict[str, Any] = {"state_dtype": "bfloat16", "rounding": "stochastic"}
COUNT = 4096


def constant(options: dict[str, Any], steps: int, dtype: torch.dtype = torch.float32, rule: str = "row_norm") -> Any:
    """A parameter of ones under a gradient that is one for ever, and its optimizer."""
    param = nn.Parameter(torch.ones(64, 64, dtype=dtype))
    group = {"params": [("w", param)], "rule": rule, "weight_decay": 0.0, **options}
    optimizer = OrthoOpt([group], lr=1e-4)
    for _ in range(steps):
        param.grad = torch.ones_like(param)
        optimizer.step()
    return param, optimizer


def test_a_momentum_does_not_stall_as_rounded_to_nearest_it_does() -> None:
    """B ← B + 0.1·(1 − B): below half an ulp of [1/2, 1), 2⁻⁹, from B = 0.9805 on."""
    nearest = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(100):
        nearest = torch.lerp(nearest.float(), torch.ones(()), 0.1).to(torch.bfloat16)
    assert nearest.item() < 0.985
    param, optimizer = constant({"state_dtype": "bfloat16", "momentum": 0.9, "nesterov": False}, 100)
    buffer = optimizer.state[param]["momentum_buffer"]
    assert buffer.dtype is torch.bfloat16
    # Each rounding has a variance of at most ulp²/4, ulp = 2⁻⁸ below one and twice that above, and they decay by 0.9²
    # a step; the mean of independent entries has a COUNTth of it. 6 standard deviations. 0.9¹⁰⁰ is left of the start.
    deviation = 2**-8 / math.sqrt((1 - 0.9**2) * COUNT)
    assert abs(buffer.double().mean().item() - (1 - 0.9**100)) < 6 * deviation


def test_a_parameter_moves_by_less_than_half_an_ulp() -> None:
    """Adam moves by lr = 1e-4 exactly under a constant gradient; below one, half an ulp is 2e-3."""
    nearest, _ = constant({}, 200, torch.bfloat16, "adamw")
    assert torch.equal(nearest, torch.ones_like(nearest))
    param, optimizer = constant({"rounding": "stochastic"}, 200, torch.bfloat16, "adamw")
    assert optimizer.state[param]["exp_avg"].dtype is torch.float32
    # 200 roundings of a step of 1e-4 to multiples of ulp = 2⁻⁸: each of variance at most 1e-4·ulp.
    deviation = math.sqrt(200 * 1e-4 * 2**-8 / COUNT)
    assert abs(param.double().mean().item() - (1 - 200 * 1e-4)) < 6 * deviation


@pytest.mark.parametrize("name", ALL_RULES)
def test_float32_state_of_bfloat16_parameters_is_that_of_float32_parameters(name: str) -> None:
    """Nothing of a bfloat16 parameter enters its state, which moves in float32 by the gradients' exact values."""
    low, wide = parameters(torch.bfloat16), parameters()
    with torch.no_grad():
        for key, param in wide.items():
            param.copy_(low[key])
    optimizers = optimizer_of(name, low), optimizer_of(name, wide)
    for step in range(3):
        set_gradients(low, step)
        for key, param in wide.items():
            assert low[key].grad is not None
            param.grad = low[key].grad.float()
        for optimizer in optimizers:
            optimizer.step()
    for key in SHAPES:
        one, other = (optimizer.state[params[key]] for optimizer, params in zip(optimizers, (low, wide), strict=True))
        assert one.keys() == other.keys()
        for what, value in one.items():
            assert value.dtype is other[what].dtype and value.dtype is not torch.bfloat16
            # The iteration may take its signals in another dtype, so what it remembers of matrices is only close.
            torch.testing.assert_close(value, other[what], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL_RULES)
def test_what_is_shaped_as_the_parameter_lies_in_bfloat16(name: str) -> None:
    params = parameters(torch.bfloat16)
    optimizer = optimizer_of(name, params, **SMALL)
    optimizer_before = torch.get_rng_state()
    run(optimizer, params, 0, 3)
    assert torch.equal(optimizer_before, torch.get_rng_state())
    rule = rules.get(name)
    for key, param in params.items():
        state = optimizer.state[param]
        made = rule.init(torch.empty(3, 5), rule.defaults)
        shaped = {what for what, value in made.items() if value.shape == (3, 5)}
        for what in shaped:
            assert state[what].dtype is torch.bfloat16 and state[what].shape == param.shape, (key, what)
        for what in state.keys() - shaped - {"rounding"}:
            assert state[what].dtype is not torch.bfloat16, (key, what)


def _through_state_dict(optimizer: OrthoOpt, params: dict[str, nn.Parameter], name: str) -> tuple[Any, Any]:
    copies = copy.deepcopy(params)
    resumed = optimizer_of(name, copies)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    return resumed, copies


def _through_pickle(optimizer: OrthoOpt, params: dict[str, nn.Parameter], name: str) -> tuple[Any, Any]:
    return pickle.loads(pickle.dumps((optimizer, params)))


@pytest.mark.parametrize("through", [_through_state_dict, _through_pickle])
@pytest.mark.parametrize("name", ALL_RULES)
def test_resuming_is_bitwise(name: str, through: Callable[..., Any]) -> None:
    params = parameters(torch.bfloat16)
    optimizer = optimizer_of(name, params, **SMALL)
    run(optimizer, params, 0, 2)
    resumed, copies = through(optimizer, params, name)
    assert equal(snapshot(optimizer), snapshot(resumed))
    run(optimizer, params, 2, 4)
    run(resumed, copies, 2, 4)
    assert equal(snapshot(optimizer), snapshot(resumed))


@pytest.mark.parametrize("path", ["host", "device"])
@pytest.mark.parametrize("name", ALL_RULES)
@pytest.mark.filterwarnings("ignore:the gradient of:RuntimeWarning")
def test_a_bad_step_changes_nothing(name: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the noise is, so that what follows is as if nothing had been."""
    if path == "device":
        monkeypatch.setattr(orthoopt.nonfinite, "host_can_read", lambda device: False)
    params, others = parameters(torch.bfloat16), parameters(torch.bfloat16)
    optimizer, other = (optimizer_of(name, some, **SMALL) for some in (params, others))
    for index, some in enumerate((params, others)):
        run((optimizer, other)[index], some, 0, 2)
    before = snapshot(optimizer)
    set_gradients(params, 9)
    assert params["tall"].grad is not None
    params["tall"].grad[0, 0] = math.nan
    optimizer.step()
    assert equal(before, snapshot(optimizer)) and optimizer.skipped_steps == 1
    run(optimizer, params, 2, 4)
    run(other, others, 2, 4)
    assert equal(snapshot(optimizer), snapshot(other))


def test_parameters_and_steps_round_by_noise_of_their_own() -> None:
    param, optimizer = constant({"state_dtype": "bfloat16"}, 1)
    twin = nn.Parameter(torch.ones(64, 64))
    optimizer.add_param_group({"params": [("twin", twin)], "rule": "row_norm", "state_dtype": "bfloat16"})
    patterns = []
    for _ in range(2):
        optimizer.state.clear()
        param.grad, twin.grad = torch.full_like(param, 1.001), torch.full_like(twin, 1.001)
        optimizer.step()
        patterns += [optimizer.state[some]["momentum_buffer"].clone() for some in (param, twin)]
    assert torch.equal(patterns[0], patterns[2]) and torch.equal(patterns[1], patterns[3])  # a function of the state
    differ = (patterns[0] != patterns[1]).double().mean().item()
    share = (patterns[0] == patterns[0].max()).double().mean().item()
    # Independent choices of the same probability differ with 2p(1−p); 6 standard deviations of that, doubly.
    assert abs(differ - 2 * share * (1 - share)) < 12 * math.sqrt(0.25 / COUNT)


def test_an_option_that_is_taken_back_widens_the_state() -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params, state_dtype="bfloat16")
    run(optimizer, params, 0, 2)
    kept = {key: optimizer.state[param]["momentum_buffer"].float() for key, param in params.items()}
    for group in optimizer.param_groups:
        group["state_dtype"] = "auto"
    run(optimizer, params, 2, 3)
    for key, param in params.items():
        assert param.grad is not None
        state = optimizer.state[param]
        assert state.keys() == {"momentum_buffer"}
        expected = kept[key].lerp(param.grad, 1 - 0.95)  # the rule's own average
        torch.testing.assert_close(state["momentum_buffer"], expected, rtol=1e-6, atol=1e-7)
    again = {param: optimizer.state[param]["momentum_buffer"] for param in params.values()}
    run(optimizer, params, 3, 4)
    assert all(optimizer.state[param]["momentum_buffer"] is buffer for param, buffer in again.items())  # plain steps


def test_groups_differ_and_float32_widens_what_was_loaded() -> None:
    params = parameters()
    pairs = list(params.items())
    groups = [
        {"params": pairs[:2], "rule": "spectral", "state_dtype": "bfloat16"},
        {"params": pairs[2:], "rule": "spectral", "state_dtype": "float32"},
    ]
    optimizer = OrthoOpt(groups, lr=0.01)
    run(optimizer, params, 0, 2)
    loaded: Tensor = optimizer.state[params["stack"]]["momentum_buffer"]
    optimizer.state[params["stack"]]["momentum_buffer"] = loaded.to(torch.bfloat16)
    run(optimizer, params, 2, 3)
    dtypes = {key: optimizer.state[param]["momentum_buffer"].dtype for key, param in pairs}
    assert dtypes == {key: torch.bfloat16 if key in ("wide", "tall") else torch.float32 for key in params}


def test_options_reach_groups_from_constructors_overrides_and_groups() -> None:
    params = [
        ("a.q_proj.weight", nn.Parameter(torch.randn(4, 4))),
        ("b.up_proj.weight", nn.Parameter(torch.randn(8, 4))),
    ]
    optimizer = orthoopt.Muon(params, state_dtype="bfloat16", overrides=[("up_proj", {"state_dtype": "auto"})])
    found = {group["param_names"][0]: group["state_dtype"] for group in optimizer.param_groups}
    assert found == {"a.q_proj.weight": "bfloat16", "b.up_proj.weight": "auto"}
    (group,) = orthoopt.Muon([{"params": params[:1], "rounding": "stochastic"}]).param_groups
    assert group["rounding"] == "stochastic"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"state_dtype": "bf16"},
            ValueError,
            r"state_dtype='bf16'.* must be one of 'auto', 'float32', 'bfloat16', 'int8'",
        ),
        ({"rounding": None}, ValueError, "rounding=None.* must be one of 'nearest', 'stochastic'"),
        ({"max_update_rms": -1.0}, ValueError, r"max_update_rms=-1\.0.* must be a positive number, or None"),
        ({"large_update": "clip"}, ValueError, "large_update='clip'.* must be one of 'skip', 'raise'"),
        ({"state_dtyp": "auto"}, TypeError, "OrthoOpt has no option 'state_dtyp'.*'state_dtype'"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        optimizer_of("spectral", parameters(), **options) if "state_dtyp" not in options else OrthoOpt(
            [{"params": [nn.Parameter(torch.ones(2, 2))], "rule": "spectral"}], **options
        )


def test_float16_parameters_are_not_rounded_stochastically() -> None:
    with pytest.raises(ValueError, match=r"rounding='stochastic' is for bfloat16 parameters, wide is float16"):
        optimizer_of("spectral", parameters(torch.float16), rounding="stochastic")

"""A run switched over in the middle, from torch's optimizers and back to them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optimizers import ALL_RULES, equal, snapshot
from test_spectral import torch_iteration_in
from torch import Tensor, nn

import orthoopt
from orthoopt import OrthoOpt

SHAPES = {"a": (4, 9), "b": (9, 4), "c": (5, 5)}
TORCH_ADAMW = {"betas": (0.9, 0.95), "eps": 1e-8}
Params = dict[str, nn.Parameter]


def new_parameters(dtype: torch.dtype = torch.float32) -> Params:
    source = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=source).to(dtype)) for name, shape in SHAPES.items()}


def steps(optimizer: torch.optim.Optimizer, params: Params, first: int, last: int) -> None:
    for step in range(first, last):
        source = torch.Generator().manual_seed(100 + step)
        for param in params.values():
            param.grad = torch.randn(param.shape, generator=source).to(param.dtype)
        optimizer.step()


def ours(params: Params, rule: str = "adamw", **options: Any) -> OrthoOpt:
    return OrthoOpt([{"params": list(params.items()), "rule": rule, **options}], lr=0.01, weight_decay=0.1)


def adamw(params: Params, *, named: bool = True, **options: Any) -> torch.optim.AdamW:
    given_ = list(params.items()) if named else list(params.values())
    return torch.optim.AdamW(given_, lr=0.01, weight_decay=0.1, **{**TORCH_ADAMW, **options})


def muon(params: Params, **options: Any) -> torch.optim.Muon:
    return torch.optim.Muon(list(params.items()), lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw", **options)


def same(one: Params, other: Params) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("way", ["optimizer", "named", "unnamed", "wrapped"])
def test_adamw_goes_on_bitwise_here_and_back_there(way: str) -> None:
    straight, params = new_parameters(), new_parameters()
    never = adamw(straight)
    steps(never, straight, 0, 9)
    before = adamw(params, named=way != "unnamed")
    steps(before, params, 0, 3)
    optimizer = ours(dict(reversed(params.items())))  # in another order
    source: Any = before if way == "optimizer" else before.state_dict()
    if way == "wrapped":
        names = source["param_groups"][0]["param_names"]
        source["param_groups"][0]["param_names"] = [f"_orig_mod.module.{name}" for name in names]
    report = orthoopt.load_torch_state(optimizer, source, list(params) if way == "unnamed" else None)
    assert [(c.name, c.how) for c in report] == [(name, "exact") for name in reversed(params)]
    steps(optimizer, params, 3, 6)
    after = adamw(params)
    after.load_state_dict(orthoopt.to_torch_state(optimizer, after))
    steps(after, params, 6, 9)
    assert same(straight, params)
    for name, param in params.items():
        for key, value in never.state[straight[name]].items():
            assert torch.equal(after.state[param][key], value), (name, key)


@pytest.mark.parametrize("form", ["ema", "heavy_ball"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_goes_on_here_and_back_there(form: str, nesterov: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_iteration_in(torch.float32, monkeypatch)
    straight, params = new_parameters(), new_parameters()
    steps(muon(straight, nesterov=nesterov), straight, 0, 6)
    before = muon(params, nesterov=nesterov)
    steps(before, params, 0, 2)
    optimizer = ours(params, "spectral", nesterov=nesterov, momentum_form=form)
    report = orthoopt.load_torch_state(optimizer, before.state_dict())
    assert {carried.how for carried in report} == {"exact"}
    factor = 1 if form == "ema" else 1 / (1 - 0.95)
    for param in params.values():
        buffer = before.state[param]["momentum_buffer"] * factor
        torch.testing.assert_close(optimizer.state[param]["momentum_buffer"], buffer, atol=0, rtol=1e-6)
    steps(optimizer, params, 2, 4)
    after = muon(params, nesterov=nesterov)
    after.load_state_dict(orthoopt.to_torch_state(optimizer, after))
    steps(after, params, 4, 6)
    for name in params:
        # Steps of 0.01, float32 rounding of fifteen products magnified by at most 485 in weak directions.
        torch.testing.assert_close(params[name], straight[name], atol=2e-5, rtol=1e-4)


def test_adamws_first_moment_is_a_momentum_and_what_else_there_is_begins_anew() -> None:
    params = new_parameters()
    before = adamw(params)
    steps(before, params, 0, 3)
    for rule in ALL_RULES:
        copies = copy.deepcopy(params)
        optimizer = ours(copies, rule)
        fresh = ours(copy.deepcopy(params), rule)
        report = orthoopt.load_torch_state(optimizer, before.state_dict(), strict=False)
        carried = {c.how for c in report}
        expected = {"adamw": "exact", "root": "anew"}.get(rule)  # root sums, with 0.95 where AdamW averages with 0.9
        known = rule in ("trion", "dion2", "dct_adamw", "ssd")
        assert carried == {expected or ("anew" if known else "momentum")}, (rule, report)
        for name, param in copies.items():
            if "momentum_buffer" in optimizer.state.get(param, {}):
                assert torch.equal(optimizer.state[param]["momentum_buffer"], before.state[params[name]]["exp_avg"])
        fresh.init_state()
        steps(optimizer, copies, 3, 4)
        keys = {key for state in fresh.state.values() for key in state}
        assert {key for param in copies.values() for key in optimizer.state[param]} == keys
        assert all(torch.isfinite(param).all() for param in copies.values())


def test_a_row_moment_begins_anew_beside_a_momentum() -> None:
    params = new_parameters()
    before = muon(params)
    steps(before, params, 0, 2)
    optimizer = ours(params, "spectral", second_moment="rows")
    report = orthoopt.load_torch_state(optimizer, before)
    assert {(c.how, "row_exp_avg_sq begins anew" in c.note) for c in report} == {("momentum", True)}


@given(
    st.sampled_from(["ema", "heavy_ball"]),
    st.sampled_from([0.0, 0.5, 0.9, 0.95, 0.99]),
    st.integers(-20, 20),
    st.integers(0, 2**31),
)
def test_a_momentum_that_goes_there_and_back_is_what_it_was(form: str, beta: float, power: int, seed: int) -> None:
    params = new_parameters()
    source = torch.Generator().manual_seed(seed)
    target = muon(params, momentum=beta)
    buffers = {p: torch.randn(p.shape, generator=source) * 2.0**power for p in params.values()}
    for param, buffer in buffers.items():
        target.state[param]["momentum_buffer"] = buffer
    optimizer = ours(params, "spectral", momentum=beta, momentum_form=form)
    orthoopt.load_torch_state(optimizer, target.state_dict())
    back = muon(params, momentum=beta)
    back.load_state_dict(orthoopt.to_torch_state(optimizer, back))
    for param, buffer in buffers.items():
        # One division and one product, each rounded once; nothing at all is done to an average.
        rounding = 0 if form == "ema" else 2.5e-7
        torch.testing.assert_close(back.state[param]["momentum_buffer"], buffer, atol=0, rtol=rounding)


def test_bfloat16_moments_are_widened_without_loss() -> None:
    params = new_parameters(torch.bfloat16)
    before = adamw(params)
    steps(before, params, 0, 3)
    optimizer = ours(params)
    orthoopt.load_torch_state(optimizer, before)
    for param in params.values():
        for key in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state[param][key]
            assert moment.dtype is torch.float32 and torch.equal(moment, before.state[param][key].float())


def test_matrices_from_muon_and_the_rest_from_adamw() -> None:
    params = new_parameters()
    some = {"a": params["a"], "b": params["b"]}
    rest = {"c": params["c"]}
    sources = [muon(some), adamw(rest, named=False)]
    steps(sources[0], some, 0, 2)
    steps(sources[1], rest, 0, 2)
    groups = [{"params": list(some.items()), "rule": "spectral"}, {"params": list(rest.items()), "rule": "adamw"}]
    optimizer = OrthoOpt(groups, lr=0.01)
    dicts = [source.state_dict() for source in sources]
    report = orthoopt.load_torch_state(optimizer, dicts, [None, ["c"]])  # type: ignore[list-item]
    assert [c.how for c in report] == ["exact"] * 3
    for source in (muon(some), adamw(rest)):
        source.load_state_dict(orthoopt.to_torch_state(optimizer, source))
        kept = sources[isinstance(source, torch.optim.AdamW)]
        for param in source.param_groups[0]["params"]:
            assert all(torch.equal(value, source.state[param][key]) for key, value in kept.state[param].items())
    with pytest.raises(ValueError, match="no source has c"):
        orthoopt.load_torch_state(optimizer, dicts[0])
    assert orthoopt.load_torch_state(optimizer, dicts[0], strict=False)[2].how == "none"
    assert not optimizer.state.get(params["c"])


def _heavy_ball(params: Params) -> tuple[OrthoOpt, Any, None]:
    before = adamw(params)
    steps(before, params, 0, 1)
    return ours(params, "spectral", momentum_form="heavy_ball"), before, None


def _swapped(params: Params) -> tuple[OrthoOpt, Any, list[str]]:
    before = adamw(params, named=False)
    steps(before, params, 0, 1)
    return ours(params), before.state_dict(), ["b", "a", "c"]


def _with(change: Callable[[dict[str, Any]], Any], names: list[str] | None = None) -> Callable[[Params], Any]:
    def make(params: Params) -> tuple[OrthoOpt, Any, list[str] | None]:
        before = adamw(params)
        steps(before, params, 0, 1)
        state_dict = before.state_dict()
        return ours(params), change(state_dict) or state_dict, names

    return make


def _group(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state_dict: state_dict["param_groups"][0].update(values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_heavy_ball, r"a has momentum_form='heavy_ball' with momentum=0.95 here, and exp_avg averages with 0.9"),
        (_swapped, r"'exp_avg' of a has shape \(9, 4\), the parameter \(4, 9\)"),
        (_with(_group(param_names=["a", "b", "z"])), "does not have: z"),
        (_with(_group(param_names=["a", "b", "b"])), "names has b more than once"),
        (_with(_group(amsgrad=True)), "amsgrad=True of a"),
        (_with(_group(maximize=True)), "maximize=False here, True in the torch optimizer of a"),
        (_with(lambda state: state["param_groups"][0].pop("param_names") and None), "give names="),
        (_with(lambda state: None, ["a", "b"]), "2 names for 3 parameters"),
        (_with(lambda state: state["state"][1].update(exp_avg_sq=None)), "'exp_avg_sq' of b has None"),
        (_with(lambda state: {"state": {}, "param_groups": [{"params": [0, 1, 2], "lr": 1.0}]}, ["a", "b", "c"]), None),
        (lambda params: (ours(params), torch.optim.SGD(params.values(), lr=0.1), None), None),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(make: Callable[[Params], Any], message: str | None) -> None:
    params = new_parameters()
    optimizer, source, names = make(params)
    steps(optimizer, params, 1, 2)
    if isinstance(source, torch.optim.SGD):
        source = torch.optim.SGD(params.values(), lr=0.1, momentum=0.9)
        steps(source, params, 2, 3)
    elif message is None:
        source["state"] = {0: {"exp_avg": torch.zeros(4, 9)}}
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=message or "torch.optim.AdamW and torch.optim.Muon can be converted"):
        orthoopt.load_torch_state(optimizer, source, names)
    assert equal(before, snapshot(optimizer))


def test_what_is_no_state_dict_is_refused() -> None:
    params = new_parameters()
    for wrong in (3, {"a": Tensor()}):
        with pytest.raises(TypeError, match="source must be a torch optimizer or its state dict"):
            orthoopt.load_torch_state(ours(params), [wrong])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"must be an orthoopt.OrthoOpt, got AdamW"):
        orthoopt.load_torch_state(adamw(params), ours(params))


def test_the_way_back_names_what_does_not_fit() -> None:
    params = new_parameters()
    optimizer = ours({"a": params["a"]})
    steps(optimizer, params, 0, 1)
    with pytest.raises(ValueError, match="b is not in this optimizer"):
        orthoopt.to_torch_state(optimizer, adamw(params))
    assert set(orthoopt.to_torch_state(optimizer, adamw(params), strict=False)["state"]) == {0}
    with pytest.raises(ValueError, match="amsgrad=True of a"):
        orthoopt.to_torch_state(optimizer, adamw({"a": params["a"]}, amsgrad=True))
    other = {"a": nn.Parameter(torch.zeros(2, 2))}
    with pytest.raises(ValueError, match="a has another shape in the target"):
        orthoopt.to_torch_state(optimizer, adamw(other))


def test_a_momentum_alone_gives_adamw_no_state_rather_than_half_of_one() -> None:
    """A first moment without a second one would be divided by eps."""
    params = new_parameters()
    optimizer = ours(params, "spectral")
    steps(optimizer, params, 0, 2)
    assert orthoopt.to_torch_state(optimizer, adamw(params))["state"] == {}


@pytest.mark.parametrize("source", [adamw, muon])
def test_load_state_dict_of_a_torch_optimizers_state_names_the_function(source: Callable[..., Any]) -> None:
    params = new_parameters()
    before = source(params)
    steps(before, params, 0, 1)
    optimizer = ours(params)
    kind = type(before).__name__
    with pytest.raises(ValueError, match=rf"is of torch\.optim\.{kind}.*orthoopt\.load_torch_state\(optimizer"):
        optimizer.load_state_dict(before.state_dict())
    assert not optimizer.state

"""The form of saved state: what is written carries its version, what was written once loads for ever."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import make_state
import pytest
import torch
from make_state import AFTER, BEFORE, DATA, optimizer_of, parameters, steps
from optimizers import ALL_RULES, equal, snapshot
from optimizers import optimizer_of as optimizer_of_rule
from optimizers import parameters as parameters_of_rule
from test_checkpoint import saved_and_loaded
from torch import nn

import orthoopt
from orthoopt import OrthoOpt, state_files
from orthoopt.state_format import STATE_FORMAT

FILES = sorted(DATA.glob("state_*.pt"))


def loaded(path: Path) -> tuple[dict[str, nn.Parameter], OrthoOpt, dict[str, Any]]:
    """Parameters and an optimizer with other options, and what the file holds."""
    content = torch.load(path, weights_only=True)
    params = {name: nn.Parameter(value.clone()) for name, value in content["params"].items()}
    return params, optimizer_of(params, lr=0.5, weight_decay=0.0), content


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_file_of_every_format_loads_and_its_run_goes_on(path: Path, kind: str) -> None:
    params, optimizer, content = loaded(path)
    if kind == "pt":
        optimizer.load_state_dict(content["optimizer"])
    else:
        state_files.load_state(optimizer, path.with_suffix(".safetensors"))
    assert {group["state_format"] for group in optimizer.param_groups} == {STATE_FORMAT}
    numbers = {
        name: index
        for group in content["optimizer"]["param_groups"]
        for name, index in zip(group["param_names"], group["params"], strict=True)
    }
    for name, param in params.items():
        state, saved = optimizer.state[param], content["optimizer"]["state"][numbers[name]]
        assert state.keys() == saved.keys()
        for key, value in saved.items():
            assert state[key].dtype is value.dtype and torch.equal(state[key], value), (name, key)
    # The same steps by an optimizer that was never saved, its state put in by hand: the same bits on this machine.
    twins = {name: nn.Parameter(param.detach().clone()) for name, param in params.items()}
    twin = optimizer_of(twins)
    for name, param in twins.items():
        twin.state[param].update(copy.deepcopy(content["optimizer"]["state"][numbers[name]]))
    steps(optimizer, params, BEFORE, BEFORE + AFTER)
    steps(twin, twins, BEFORE, BEFORE + AFTER)
    for name, param in params.items():
        assert torch.equal(param, twins[name]), name
        # Another machine multiplies matrices in another order: float32 rounding, magnified in weak directions.
        torch.testing.assert_close(param.detach(), content["later"][name], atol=1e-5, rtol=1e-4)


def test_there_is_a_file_of_this_format() -> None:
    assert DATA / f"state_{STATE_FORMAT}.pt" in FILES


def test_the_file_holds_what_this_version_would_write() -> None:
    """Other keys, shapes or dtypes of state under the same number would be a new format without saying so."""
    params = parameters()
    optimizer = optimizer_of(params)
    steps(optimizer, params, 0, BEFORE)
    now, then = optimizer.state_dict(), torch.load(FILES[-1], weights_only=True)["optimizer"]
    described = [
        {index: {key: (value.shape, value.dtype) for key, value in state.items()} for index, state in one.items()}
        for one in (now["state"], then["state"])
    ]
    assert described[0] == described[1]
    for group, saved in zip(now["param_groups"], then["param_groups"], strict=True):
        assert group.keys() >= saved.keys(), "an option is gone: old state would not be read as it was meant"


def test_the_version_survives_every_way_of_saving() -> None:
    params = parameters()
    optimizer = optimizer_of(params)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert all(group["state_format"] == STATE_FORMAT for group in other.param_groups)
    state_dict = saved_and_loaded(optimizer.state_dict())
    assert all(group["state_format"] == STATE_FORMAT for group in state_dict["param_groups"])


def test_state_from_before_there_was_a_version_is_of_the_first() -> None:
    params = parameters()
    optimizer = optimizer_of(params)
    state_dict = optimizer.state_dict()
    for group in state_dict["param_groups"]:
        del group["state_format"]
    optimizer.load_state_dict(state_dict)
    assert all(group["state_format"] == STATE_FORMAT for group in optimizer.param_groups)


@pytest.mark.parametrize("version", [STATE_FORMAT + 1, "2", None])
def test_a_later_version_is_refused_by_its_number(version: Any) -> None:
    params = parameters()
    optimizer = optimizer_of(params)
    steps(optimizer, params, 0, 1)
    before, state_dict = snapshot(optimizer), saved_and_loaded(optimizer.state_dict())
    state_dict["param_groups"][-1]["state_format"] = version
    message = rf"state_format={version!r}, this version of orthoopt reads up to {STATE_FORMAT}"
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state_dict)
    assert equal(before, snapshot(optimizer))
    optimizer.param_groups[0]["state_format"] = version
    with pytest.raises(ValueError, match=message):
        copy.deepcopy(optimizer)


@pytest.mark.parametrize("name", ALL_RULES)
def test_safetensors_keep_every_bit(name: str, tmp_path: Path) -> None:
    params = parameters_of_rule(torch.bfloat16)
    optimizer = optimizer_of_rule(name, params, weight_decay_mode="independent")
    make_state.steps(optimizer, params, 0, 2)
    state_files.save_state(optimizer, tmp_path / "state.safetensors")
    copies = copy.deepcopy(params)
    other = optimizer_of_rule(name, copies)
    state_files.load_state(other, tmp_path / "state.safetensors")
    assert equal(snapshot(optimizer), snapshot(other))
    plain = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    assert plain == [{k: v for k, v in group.items() if k != "params"} for group in other.param_groups]
    make_state.steps(optimizer, params, 2, 3)
    make_state.steps(other, copies, 2, 3)
    assert equal(snapshot(optimizer), snapshot(other))


def test_safetensors_name_parameter_and_key_and_hold_the_groups(tmp_path: Path) -> None:
    import json

    from safetensors import safe_open

    params = parameters()
    optimizer = optimizer_of(params)
    steps(optimizer, params, 0, 1)
    state_files.save_state(optimizer, tmp_path / "state.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
    with safe_open(tmp_path / "state.safetensors", framework="pt") as file:
        assert {"muon.wide/momentum_buffer", "dct.wide/exp_avg.0", "dct.wide/exp_avg.1"} <= set(file.keys())
        metadata = file.metadata()
    groups = json.loads(metadata["groups"])
    assert metadata["state_format"] == str(STATE_FORMAT)
    assert [group["rule"] for group in groups] == [group["rule"] for group in optimizer.param_groups]
    assert groups[0]["betas"] == [0.8, 0.9] and groups[0]["param_names"] == ["adamw.wide", "adamw.tall"]


def test_what_is_no_state_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    params = parameters()
    optimizer = optimizer_of(params)
    save_file({"a": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"weights\.safetensors holds no state"):
        state_files.load_state(optimizer, tmp_path / "weights.safetensors")
    unnamed = OrthoOpt([{"params": [nn.Parameter(torch.zeros(2, 2))], "rule": "adamw"}])
    with pytest.raises(ValueError, match="param group 0 has no parameter names"):
        state_files.save_state(unnamed, tmp_path / "state.safetensors")
    optimizer.param_groups[1]["name"] = {1}
    with pytest.raises(ValueError, match=r"param group 1: name=\{1\} cannot be written"):
        state_files.save_state(optimizer, tmp_path / "state.safetensors")
    del optimizer.param_groups[1]["name"]
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        state_files.save_state(optimizer, tmp_path / "state.safetensors")


def test_names_are_matched_without_what_wraps_a_model() -> None:
    """Saved from a compiled model in DDP, loaded into the bare one, and the other way round."""
    plain = {name: nn.Parameter(torch.randn(2, 2)) for name in ("a.weight", "b.weight")}
    wrapped = {f"_orig_mod.module.{name}": nn.Parameter(p.detach().clone()) for name, p in reversed(plain.items())}
    one, other = (orthoopt.Muon(params.items(), lr=0.01) for params in (plain, wrapped))
    steps(one, plain, 0, 1)
    other.load_state_dict(saved_and_loaded(one.state_dict()))
    assert [n for group in other.param_groups for n in group["param_names"]] == list(wrapped)
    for name, param in plain.items():
        moved = other.state[wrapped[f"_orig_mod.module.{name}"]]["momentum_buffer"]
        assert torch.equal(moved, one.state[param]["momentum_buffer"])
    again = orthoopt.Muon([(name, nn.Parameter(p.detach().clone())) for name, p in plain.items()])
    again.load_state_dict(other.state_dict())
    assert equal(snapshot(one)[1::2], snapshot(again)[1::2])


def test_wrappers_that_tell_two_parameters_apart_are_part_of_their_names() -> None:
    def optimizer(*names: str) -> OrthoOpt:
        return orthoopt.Muon([(name, nn.Parameter(torch.zeros(2, 2))) for name in names])

    both = optimizer("a.weight", "module.a.weight")
    both.load_state_dict(both.state_dict())
    with pytest.raises(ValueError, match="do not match"):
        both.load_state_dict(optimizer("a.weight", "module.module.a.weight").state_dict())

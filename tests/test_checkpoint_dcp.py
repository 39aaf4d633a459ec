"""torch.distributed.checkpoint in one process: every plan, flattened and not, in the dtypes that were saved."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import dcp_ranks
import pytest
import torch
import torch.distributed.checkpoint as dcp
from optimizers import equal, snapshot
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.lr_scheduler import LambdaLR

import orthoopt
from orthoopt import OrthoOpt, checkpoint_files

# One with state of matrices, one with many rules; the others take as long and differ in nothing that is loaded.
QUICK = ("dct_adamw", "symmetry_hybrid")
PLANS = [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in orthoopt.plans.names()]
WAYS = dcp_ranks.WAYS


def new(plan: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[nn.Module, OrthoOpt]:
    model = dcp_ranks.network().to(dtype)
    return model, OrthoOpt(orthoopt.param_groups(model, plan, **{"lr": 0.02, "weight_decay": 0.1, **options}))


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("plan", PLANS)
def test_asking_for_state_before_the_first_step_creates_it_and_changes_nothing(plan: str, tensor_lr: bool) -> None:
    """DCP steps with zero gradients at lr 0: no decay may move, and no step be counted, or the run would be another."""
    decay = {"weight_decay_mode": "independent"}
    model, _ = new(plan)
    groups = [{**group, **decay} for group in orthoopt.param_groups(model, plan, lr=0.02, weight_decay=0.1)]
    twin = copy.deepcopy(model)
    twin_groups = [{**group, **decay} for group in orthoopt.param_groups(twin, plan, lr=0.02, weight_decay=0.1)]
    if tensor_lr:
        for group in groups + twin_groups:
            group["lr"] = torch.tensor(group["lr"])
    optimizer, never = OrthoOpt(groups), OrthoOpt(twin_groups)
    fresh = OrthoOpt([{**group, "params": list(group["params"])} for group in groups])
    fresh.init_state()
    state_dict = get_optimizer_state_dict(model, optimizer)
    assert equal(snapshot(optimizer), snapshot(fresh)) and optimizer.skipped_steps == 0
    assert state_dict["state"].keys() == {name for name, _ in model.named_parameters()}
    assert [float(group["lr"]) for group in optimizer.param_groups] == [float(g["lr"]) for g in never.param_groups]
    dcp_ranks.train(model, optimizer, 0, 2)
    dcp_ranks.train(twin, never, 0, 2)
    assert equal(snapshot(optimizer), snapshot(never))


def test_a_warm_up_that_starts_at_zero_is_no_request_for_state() -> None:
    model, optimizer = new("adamw", lr=0.0)
    dcp_ranks.train(model, optimizer, 0, 1)
    assert {float(state["step"]) for state in optimizer.state.values()} == {1.0}
    assert all(state["exp_avg"].any() for state in optimizer.state.values())


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16])
@pytest.mark.parametrize("plan", PLANS)
def test_every_bit_comes_back_into_a_fresh_optimizer(plan: str, dtype: torch.dtype) -> None:
    """float32 state of bfloat16 parameters, integers and tuples included, whichever way state is asked for."""
    model, optimizer = new(plan, dtype)
    dcp_ranks.train(model, optimizer, 0, 3)
    later = copy.deepcopy((model, optimizer))
    dcp_ranks.train(*later, 3, 5)
    for way in WAYS:
        options = StateDictOptions(**way)
        state_dict = get_optimizer_state_dict(model, optimizer, options=options)
        other, fresh = new(plan, dtype, lr=0.5, weight_decay=0.3)
        other.load_state_dict(model.state_dict())
        set_optimizer_state_dict(other, fresh, state_dict, options=options)
        assert equal(snapshot(optimizer), snapshot(fresh)), way
        for group, saved in zip(fresh.param_groups, optimizer.param_groups, strict=True):
            plain = [{key: value for key, value in one.items() if key != "params"} for one in (group, saved)]
            assert plain[0] == plain[1], way
        dcp_ranks.train(other, fresh, 3, 5)
        assert equal(snapshot(later[1]), snapshot(fresh)), way


@pytest.mark.filterwarnings("ignore:.*distributed:UserWarning")
@pytest.mark.parametrize("flatten", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("plan", PLANS)
def test_a_checkpoint_on_disk_resumes_bitwise(plan: str, flatten: bool, tmp_path: Path) -> None:
    way = {"flatten_optimizer_state_dict": flatten}
    model, optimizer = new(plan, torch.bfloat16)
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    dcp_ranks.train(model, optimizer, 0, 3)
    scheduler.step()
    dcp.save(dcp_ranks.contents(model, optimizer, **way), checkpoint_id=tmp_path / "step-3")
    dcp_ranks.train(model, optimizer, 3, 5)
    other, fresh = new(plan, torch.bfloat16, lr=0.5)
    LambdaLR(fresh, lambda step: 1 / (1 + step))  # whose initial_lr is among what is saved
    found = dcp_ranks.contents(other, fresh, **way)
    path = checkpoint_files.latest(tmp_path)
    assert path is not None
    dcp.load(found, checkpoint_id=path)
    dcp_ranks.set_contents(other, fresh, found, **way)
    assert [group["initial_lr"] for group in fresh.param_groups] != [0.5] * len(fresh.param_groups)
    dcp_ranks.train(other, fresh, 3, 5)
    assert equal(snapshot(optimizer), snapshot(fresh))


def test_names_of_the_model_decide_not_the_order_of_its_parameters() -> None:
    model, optimizer = new("muon")
    dcp_ranks.train(model, optimizer, 0, 2)
    state_dict = get_optimizer_state_dict(model, optimizer)
    other = dcp_ranks.network()
    groups = orthoopt.param_groups(other, "muon", lr=0.5)
    for group in groups:
        group["params"] = group["params"][::-1]
    fresh = OrthoOpt(groups[::-1])
    set_optimizer_state_dict(other, fresh, state_dict)
    fresh_params = dict(other.named_parameters())
    for name, param in model.named_parameters():
        for key, value in optimizer.state[param].items():
            assert torch.equal(value, fresh.state[fresh_params[name]][key]), (name, key)


def test_state_named_by_the_model_loads_without_dcps_help() -> None:
    """``get_optimizer_state_dict``'s dict given to ``load_state_dict`` itself, the parameters in another order."""
    model, optimizer = new("adamw")
    dcp_ranks.train(model, optimizer, 0, 2)
    state_dict = get_optimizer_state_dict(model, optimizer)
    other = dcp_ranks.network()
    groups = orthoopt.param_groups(other, "adamw", lr=0.5)
    for group in groups:
        group["params"] = group["params"][::-1]
    fresh = OrthoOpt(groups)
    fresh.load_state_dict(copy.deepcopy(state_dict))
    for name, param in other.named_parameters():
        assert torch.equal(fresh.state[param]["exp_avg"], state_dict["state"][name]["exp_avg"])


def test_frozen_parameters_and_those_thawed_later() -> None:
    model, optimizer = new("muon")
    model.qkv_proj.weight.requires_grad_(False)  # type: ignore[union-attr]
    dcp_ranks.train(model, optimizer, 0, 2)
    state_dict = get_optimizer_state_dict(model, optimizer)
    other, fresh = new("muon")
    other.load_state_dict(model.state_dict())
    other.qkv_proj.weight.requires_grad_(False)  # type: ignore[union-attr]
    set_optimizer_state_dict(other, fresh, state_dict)
    for one in (model, other):
        one.qkv_proj.weight.requires_grad_(True)  # type: ignore[union-attr]
    dcp_ranks.train(model, optimizer, 2, 4)
    dcp_ranks.train(other, fresh, 2, 4)
    assert equal(snapshot(optimizer), snapshot(fresh))


def test_a_later_format_is_refused_through_dcp_too() -> None:
    model, optimizer = new("adamw")
    dcp_ranks.train(model, optimizer, 0, 1)
    for way in WAYS[:2]:
        options = StateDictOptions(**way)
        for group in optimizer.param_groups:
            group["state_format"] = 99
        state_dict = get_optimizer_state_dict(model, optimizer, options=options)
        other, fresh = new("adamw")
        with pytest.raises(ValueError, match="state_format=99, this version of orthoopt reads up to"):
            set_optimizer_state_dict(other, fresh, state_dict, options=options)


def _saved(path: Path, number: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dcp.save({"x": torch.full((64,), number), "y": number}, checkpoint_id=path)


def test_latest_is_the_highest_number_that_is_whole(tmp_path: Path) -> None:
    assert checkpoint_files.latest(tmp_path) is None
    for number in (9, 10, 100):
        _saved(tmp_path / f"step-{number}", number)
    assert checkpoint_files.latest(tmp_path) == tmp_path / "step-100"
    data = next((tmp_path / "step-100").glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:-1])
    assert checkpoint_files.latest(tmp_path) == tmp_path / "step-10"
    (tmp_path / "step-10" / ".metadata").write_bytes(b"no pickle")
    assert checkpoint_files.latest(tmp_path) == tmp_path / "step-9"
    (tmp_path / "step-9" / ".metadata").unlink()
    assert checkpoint_files.latest(tmp_path) is None


def test_without_numbers_latest_is_the_last_to_be_completed(tmp_path: Path) -> None:
    for number, name in enumerate(["best", "another", "step-7"]):
        _saved(tmp_path / name, number)
    assert checkpoint_files.latest(tmp_path) == tmp_path / "step-7"
    (tmp_path / "a file").write_text("passed over")
    _saved(tmp_path / "another one", 4)
    assert checkpoint_files.latest(tmp_path) == tmp_path / "another one"

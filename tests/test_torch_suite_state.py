"""The intent of torch's own test/test_optim.py over every constructor: state dicts, copies and hooks.

Each test has the name of torch's that it stands for; the other half, and what has no counterpart, is in
``test_torch_suite.py``.
"""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch_suite import INFOS, build, common, quadratic

from orthoopt import OrthoOpt, rules

device_types = pytest.importorskip("torch.testing._internal.common_device_type")
utils = pytest.importorskip("torch.testing._internal.common_utils")

pytestmark = pytest.mark.filterwarnings("ignore:bare parameters:UserWarning")
optims, parametrize = common.optims, utils.parametrize


def made(info: Any, device: Any, dtype: torch.dtype, named: bool, start: list[Tensor] | None = None, **options: Any):
    """A weight, a bias and an optimizer over them."""
    shapes = [(10, 5), (10,)]
    values = [torch.randn(shape, device=device, dtype=dtype) for shape in shapes] if start is None else start
    params = [nn.Parameter(value.detach().clone()) for value in values]
    entries = list(zip(("weight", "bias"), params, strict=True)) if named else params
    return params, build(info.optim_cls, entries, **options)


def train(optimizer: OrthoOpt, params: list[nn.Parameter], steps: int, seed: int = 0) -> None:
    # Gradients out of a generator: those of a product depend in their last bit on where its operands lie in memory.
    source = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=source).to(param)
        optimizer.step()


def tensors(optimizer: OrthoOpt) -> list[Tensor]:
    found = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            found.append(param.detach())
            state = optimizer.state.get(param, {})
            found += [state[key] for key in sorted(state)]
    return found


def assert_same(one: OrthoOpt, other: OrthoOpt) -> None:
    """To the last bit."""
    for ours, theirs in zip(tensors(one), tensors(other), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


class Recorder:
    """Hooks that say who they are when they are called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def named(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)


class TestTorchSuiteState(utils.TestCase):
    @parametrize("is_named_optim0", [True, False])
    @parametrize("is_named_optim1", [True, False])
    @optims(INFOS, dtypes=[torch.float32])
    def test_state_dict_deterministic(
        self, device: Any, dtype: torch.dtype, optim_info: Any, is_named_optim0: bool, is_named_optim1: bool
    ) -> None:
        """Also torch's ``test_can_load_from_to_named_state_dict``: names on either side, both or none."""
        for one in optim_info.optim_inputs_func(device=device)[::4]:
            params, optimizer = made(optim_info, device, dtype, is_named_optim0, **one.kwargs)
            train(optimizer, params, 3)
            saved = optimizer.state_dict()
            kept = copy.deepcopy(saved)
            copies, other = made(optim_info, device, dtype, is_named_optim1, start=params, **one.kwargs)
            other.load_state_dict(saved)
            assert_same(optimizer, other)
            train(optimizer, params, 3, seed=1)
            train(other, copies, 3, seed=1)
            assert_same(optimizer, other)
            self.assertEqual({**saved, "state": 0}, {**kept, "state": 0})
            assert ("param_names" in other.state_dict()["param_groups"][0]) is (is_named_optim0 or is_named_optim1)

    @optims(INFOS, dtypes=[torch.float32])
    def test_can_load_older_state_dict(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        """A state dict from before an option existed gets the option's default."""
        newer = {"maximize", "nonfinite", "weight_decay_mode"}
        params, optimizer = made(optim_info, device, dtype, named=True)
        train(optimizer, params, 2)
        saved = optimizer.state_dict()
        for group in saved["param_groups"]:
            for key in newer | rules.get(group["rule"]).defaults.keys():
                group.pop(key, None)
        copies, other = made(optim_info, device, dtype, named=True, start=params)
        other.load_state_dict(saved)
        train(other, copies, 1)
        for group in other.param_groups:
            defaults = {**rules.get(group["rule"]).defaults, "maximize": False, "nonfinite": "skip"}
            assert {key: group[key] for key in defaults} == dict(defaults)

    @optims(INFOS, dtypes=[torch.float32])
    def test_save_load_equality_with_weights_only(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        for one in optim_info.optim_inputs_func(device=device)[1::2]:
            params, optimizer = made(optim_info, device, dtype, named=True, **one.kwargs)
            train(optimizer, params, 2)
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            copies, other = made(optim_info, device, dtype, named=True, start=params, **one.kwargs)
            other.load_state_dict(torch.load(file, weights_only=True))
            self.assertEqual(other.state_dict(), optimizer.state_dict())
            train(optimizer, params, 2, seed=1)
            train(other, copies, 2, seed=1)
            assert_same(optimizer, other)

    @optims(INFOS, dtypes=[torch.float32])
    def test_load_nontensor_step(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        params, optimizer = made(optim_info, device, dtype, named=False)
        train(optimizer, params, 2)
        saved = copy.deepcopy(optimizer.state_dict())
        counted = 0
        for state in saved["state"].values():
            # The counts of matrices are one each, not one a parameter: what is no number stays as it is.
            if isinstance(state.get("step"), Tensor) and state["step"].numel() == 1 and state["step"].ndim == 0:
                state["step"], counted = float(state["step"]), counted + 1
        copies, other = made(optim_info, device, dtype, named=False, start=params)
        other.load_state_dict(saved)
        train(optimizer, params, 2, seed=1)
        train(other, copies, 2, seed=1)
        assert_same(optimizer, other)
        assert counted or optim_info.name == "Scion"  # whose vectors count nothing either

    @optims(INFOS, dtypes=[torch.float32])
    def test_state_dict_with_cuda_params(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        """Also torch's ``test_cpu_load_state_dict``: state follows its parameter, whatever it was saved on."""
        params, optimizer = made(optim_info, "cpu", dtype, named=False)
        train(optimizer, params, 2)
        copies, other = made(optim_info, device, dtype, named=False, start=[param.to(device) for param in params])
        other.load_state_dict(optimizer.state_dict())
        for param in copies:
            for key, value in other.state[param].items():
                host = key == "step" and value.ndim == 0
                assert value.device.type == ("cpu" if host else torch.device(device).type), key
        train(other, copies, 1)

    @optims(INFOS, dtypes=[torch.float32])
    def test_deepcopy_copies_all_public_attrs(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        """And pickling: both go on as the original does."""
        params, optimizer = made(optim_info, device, dtype, named=True)
        train(optimizer, params, 2)
        for again, copies in (copy.deepcopy((optimizer, params)), pickle.loads(pickle.dumps((optimizer, params)))):
            public = [{k for k in vars(one) if not k.startswith("_")} for one in (optimizer, again)]
            assert public[0] == public[1] and type(again) is type(optimizer)
            twins, twin = copy.deepcopy((params, optimizer))
            train(twin, twins, 2, seed=1)
            train(again, copies, 2, seed=1)
            assert_same(twin, again)

    @optims(INFOS, dtypes=[torch.float32])
    def test_non_empty_state(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        """Whoever remembers anything has it in ``state`` after a step, and nobody has an empty dict there."""
        params, optimizer = made(optim_info, device, dtype, named=False)
        train(optimizer, params, 1)
        remembers = {param: bool(state) for param, state in optimizer.state.items()}
        stateless = {"ssd"}
        for group in optimizer.param_groups:
            for param in group["params"]:
                assert remembers.get(param, False) is (group["rule"] not in stateless)

    @optims(INFOS, dtypes=[torch.float32])
    def test_step_all_hooks(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        """torch's ``test_step_pre_hook``, ``test_step_post_hook`` and the order of the global ones around them."""
        params, optimizer = made(optim_info, device, dtype, named=False)
        seen = Recorder()
        handles = [
            register_optimizer_step_pre_hook(seen.named("global pre")),
            optimizer.register_step_pre_hook(seen.named("pre")),
            optimizer.register_step_post_hook(seen.named("post")),
            register_optimizer_step_post_hook(seen.named("global post")),
        ]
        try:
            train(optimizer, params, 1)
            assert seen.calls == ["global pre", "pre", "post", "global post"]
        finally:
            for handle in handles:
                handle.remove()
        train(optimizer, params, 1)
        assert len(seen.calls) == 4

    @optims(INFOS, dtypes=[torch.float32])
    def test_state_dict_pre_post_hook(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        _, optimizer = made(optim_info, device, dtype, named=False)
        seen = Recorder()
        optimizer.register_state_dict_pre_hook(seen.named("second"))
        optimizer.register_state_dict_pre_hook(seen.named("first"), prepend=True)
        optimizer.register_state_dict_post_hook(lambda _, given: {**given, "mine": 1})
        optimizer.register_state_dict_post_hook(seen.named("before the others"), prepend=True)
        assert optimizer.state_dict()["mine"] == 1
        assert seen.calls == ["first", "second", "before the others"]

    @optims(INFOS, dtypes=[torch.float32])
    def test_load_state_dict_pre_post_hook_and_prepend(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        params, optimizer = made(optim_info, device, dtype, named=False, lr=0.01)
        train(optimizer, params, 1)
        seen = Recorder()

        def slower(_: Any, given: dict[str, Any]) -> dict[str, Any]:
            seen.calls.append("pre")
            groups = [{**group, "lr": group["lr"] / 2} for group in given["param_groups"]]
            return {**given, "param_groups": groups}

        before = [group["lr"] for group in optimizer.param_groups]
        optimizer.register_load_state_dict_pre_hook(slower)
        optimizer.register_load_state_dict_pre_hook(seen.named("first"), prepend=True)
        optimizer.register_load_state_dict_post_hook(seen.named("post"))
        optimizer.register_load_state_dict_post_hook(seen.named("post before"), prepend=True)
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        assert seen.calls == ["first", "pre", "post before", "post"]
        assert [group["lr"] for group in optimizer.param_groups] == [lr / 2 for lr in before]
        assert [group["lr"] for group in saved["param_groups"]] == before

    @optims(INFOS, dtypes=[torch.float32])
    def test_closures_return_their_loss(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        params, optimizer = made(optim_info, device, dtype, named=False)
        x = torch.randn(5, device=device)
        modes = []

        def closure() -> Tensor:
            modes.append(torch.is_grad_enabled())
            optimizer.zero_grad()
            loss = quadratic(*params, x)
            loss.backward()
            return loss

        with torch.no_grad():
            assert optimizer.step(closure).requires_grad and not torch.is_grad_enabled()
        assert modes == [True] and optimizer.step() is None


device_types.instantiate_device_type_tests(TestTorchSuiteState, globals(), only_for=("cpu", "cuda"))

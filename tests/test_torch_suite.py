"""The intent of torch's own test/test_optim.py over every constructor: construction, steps, learning rates, schedulers.

Each test has the name of torch's that it stands for. State dicts and hooks are in ``test_torch_suite_state.py``. Of
torch's other names

- ``foreach``, ``fused``, ``differentiable`` and ``capturable`` name choices that these optimizers do not have, so
  ``test_fused_*``, ``test_foreach_large_tensor``, ``test_peak_memory_foreach``, ``test_defaults_changed_to_foreach``,
  and ``TestDifferentiableOptimizer`` have no counterpart. What ``capturable`` is for is
  in ``test_compile.py`` and ``test_gpu.py``, memory in ``bench/``, and that stacking equals looping is
  ``test_foreach_matches_forloop`` below and ``test_buckets.py``;
- ``test_complex``, ``test_complex_2d``, ``test_rosenbrock_sparse``: both are refused, see ``test_errors``;
- ``test_forloop_goes_right_direction_multigpu`` and ``test_can_load_on_other_device`` need accelerators:
  ``test_gpu.py``;
- ``test_adamw_serialization``, ``test_less_mem_beta1_zero_adafactor`` and the like are about one optimizer of torch's.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch_suite import INFOS, SCHEDULERS, build, common, has_momentum, quadratic, run_schedulers

from orthoopt import dispatch

device_types = pytest.importorskip("torch.testing._internal.common_device_type")
utils = pytest.importorskip("torch.testing._internal.common_utils")

pytestmark = pytest.mark.filterwarnings("ignore:bare parameters:UserWarning")
optims, parametrize = common.optims, utils.parametrize


def weight_and_bias(device: Any, dtype: torch.dtype, contiguous: bool = True) -> tuple[nn.Parameter, nn.Parameter]:
    if contiguous:
        return (
            nn.Parameter(torch.randn(10, 5, device=device, dtype=dtype)),
            nn.Parameter(torch.randn(10, device=device, dtype=dtype)),
        )
    return (
        nn.Parameter(torch.randn(10, 5, 2, device=device, dtype=dtype)[..., 0]),
        nn.Parameter(torch.randn(10, 2, device=device, dtype=dtype)[..., 0]),
    )


def values(*params: Tensor) -> list[Tensor]:
    return [param.detach().clone() for param in params]


def test_every_scheduler_of_torch_is_among_them() -> None:
    there = {name for name in lr_scheduler.__all__ if name not in ("LRScheduler", "_LRScheduler")}
    assert there <= SCHEDULERS.keys()


class TestTorchSuite(utils.TestCase):
    @optims(INFOS, dtypes=[torch.float32])
    def test_errors(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        for mistake in optim_info.optim_error_inputs_func(device=device, dtype=dtype):
            given = mistake.optimizer_error_input
            params = weight_and_bias(device, dtype) if given.params is None else given.params
            if mistake.error_on == common.OptimizerErrorEnum.CONSTRUCTION_ERROR:
                with pytest.raises(mistake.error_type, match=mistake.error_regex):
                    build(optim_info.optim_cls, params, **given.kwargs)
                continue
            optimizer = build(optim_info.optim_cls, params, **given.kwargs)
            before = values(*params)
            with pytest.raises(mistake.error_type, match=mistake.error_regex):
                optimizer.step()
            assert not optimizer.state and all(map(torch.equal, params, before))

    @optims(INFOS, dtypes=[torch.float32])
    def test_duplicate_params_in_one_param_group(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        """torch warns that it will be an error; what routes parameters takes each once, as a tied weight."""
        param = nn.Parameter(torch.randn(3, 4, device=device, dtype=dtype))
        if optim_info.name == "OrthoOpt":
            with pytest.raises(ValueError, match=r"param group 0: a parameter of shape \(3, 4\) is there twice"):
                build(optim_info.optim_cls, [param, param])
        else:
            optimizer = build(optim_info.optim_cls, [param, param])
            assert [one for group in optimizer.param_groups for one in group["params"]] == [param]

    def goes_right(self, optimizer: Any, weight: Tensor, bias: Tensor, up: bool, make: Any = None) -> None:
        x = torch.randn(5, device=weight.device, dtype=weight.dtype)
        schedulers = [] if make is None else make(optimizer)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = quadratic(weight, bias, x)
            loss.backward()
            return loss

        first = closure().item()
        for _ in range(4):
            run_schedulers(schedulers, optimizer.step(closure))
        last = closure().item()
        assert last > first if up else last < first

    @parametrize("contiguous", [True, False])
    @parametrize("with_lrsched", [True, False])
    @optims(INFOS, dtypes=[torch.float32])
    def test_forloop_goes_right_direction(
        self, device: Any, dtype: torch.dtype, optim_info: Any, contiguous: bool, with_lrsched: bool
    ) -> None:
        inputs = optim_info.optim_inputs_func(device=device)
        # Schedulers only write learning rates and momenta: one option set each, all of them in turn.
        own = optim_info.scheduler_inputs
        pairs = (
            [(inputs[n % len(inputs)], make) for n, make in enumerate(own) if contiguous or n % 5 == 0]
            if with_lrsched
            else [(one, None) for one in inputs]
        )
        for one, make in pairs:
            params = weight_and_bias(device, dtype, contiguous)
            strides = [param.stride() for param in params]
            optimizer = build(optim_info.optim_cls, params, **one.kwargs)
            # Decay pulls to zero, which may be uphill or down; the first steps of a large one are all decay.
            self.goes_right(optimizer, *params, one.kwargs.get("maximize", False), make)
            assert [param.stride() for param in params] == strides

    @optims(INFOS, dtypes=[torch.float32])
    def test_param_group_with_lrscheduler_goes_right_direction(
        self, device: Any, dtype: torch.dtype, optim_info: Any
    ) -> None:
        for make in optim_info.scheduler_inputs[::3]:
            weight, bias = weight_and_bias(device, dtype)
            optimizer = build(optim_info.optim_cls, [{"params": [weight]}, {"params": [bias], "lr": 0.01}])
            self.goes_right(optimizer, weight, bias, up=False, make=make)

    @parametrize("shape", [(), (1,), (1, 1)])
    @optims(INFOS, dtypes=[torch.float64])
    def test_tensor_lr(self, device: Any, dtype: torch.dtype, optim_info: Any, shape: tuple[int, ...]) -> None:
        inputs = [optim_info.optim_inputs_func(device=device)[len(shape) :: 3] for _ in range(2)]
        for one, other in zip(*inputs, strict=True):
            one.kwargs["lr"] = 1e-3
            other.kwargs["lr"] = lr = torch.full(shape, 1e-3, dtype=dtype)
            plain = weight_and_bias(device, dtype)
            same = [nn.Parameter(value) for value in values(*plain)]
            optimizers = (
                build(optim_info.optim_cls, plain, **one.kwargs),
                build(optim_info.optim_cls, same, **other.kwargs),
            )
            x = torch.randn(5, device=device, dtype=dtype)
            for step in range(4):
                for optimizer, params in zip(optimizers, (plain, same), strict=True):
                    optimizer.zero_grad()
                    quadratic(*params, x).backward()
                    optimizer.step()
                for group in optimizers[0].param_groups:
                    group["lr"] *= 0.9
                # A plan's multiplier makes a tensor of its own of it; torch's schedulers fill whatever there is.
                rates = {id(group["lr"]): group for group in optimizers[1].param_groups}
                for group in rates.values():
                    if isinstance(group["lr"], Tensor):
                        assert group["lr"].shape == lr.shape, step
                        group["lr"].mul_(0.9)
                    else:  # PolarGrad's adam_lr
                        group["lr"] *= 0.9
            for ours, theirs in zip(plain, same, strict=True):
                # float64, a few operations in another order.
                torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=1e-12)

    @parametrize("key", ["lr", "weight_decay"])
    @optims(INFOS, dtypes=[torch.float64])
    def test_param_groups(self, device: Any, dtype: torch.dtype, optim_info: Any, key: str) -> None:
        """Of torch's ``test_param_groups_lr`` and ``_weight_decay``: groups do what optimizers of their own would."""
        if optim_info.name == "Scion":
            pytest.skip("Scion has no weight decay to give")
        one, other = weight_and_bias(device, dtype), weight_and_bias(device, dtype)
        copies = [nn.Parameter(value) for value in values(*one, *other)]
        settings = ({"lr": 0.02, "weight_decay": 0.3}, {"lr": 0.02, "weight_decay": 0.3, key: 0.001})
        together = build(
            optim_info.optim_cls,
            [{"params": list(one)}, {"params": list(other), key: settings[1][key]}],
            **settings[0],
        )
        apart = [
            build(optim_info.optim_cls, copies[:2], **settings[0]),
            build(optim_info.optim_cls, copies[2:], **settings[1]),
        ]
        for _ in range(3):
            for param, twin in zip((*one, *other), copies, strict=True):
                param.grad = torch.randn_like(param)
                twin.grad = param.grad.clone()
            for optimizer in (together, *apart):
                optimizer.step()
        for param, twin in zip((*one, *other), copies, strict=True):
            # float64; stacked or alone, products round differently.
            torch.testing.assert_close(param, twin, atol=1e-11, rtol=1e-10)

    @optims(INFOS, dtypes=[torch.float64])
    def test_foreach_matches_forloop(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        shapes = [(10, 5), (5, 10), (10, 5), (7,), (3, 4, 6), (7,), (1, 4), (5, 1), ()]
        params = [nn.Parameter(torch.randn(shape, device=device, dtype=dtype)) for shape in shapes]
        copies = [nn.Parameter(value) for value in values(*params)]
        together = build(optim_info.optim_cls, params, lr=0.01)
        apart = [build(optim_info.optim_cls, [param], lr=0.01) for param in copies]
        for _ in range(3):
            for param, twin in zip(params, copies, strict=True):
                param.grad = torch.randn_like(param)
                twin.grad = param.grad.clone()
            for optimizer in (together, *apart):
                optimizer.step()
        for param, twin in zip(params, copies, strict=True):
            torch.testing.assert_close(param, twin, atol=1e-11, rtol=1e-10)  # float64, as above

    @optims(INFOS, dtypes=[torch.float32])
    def test_mixed_device_dtype(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
        places = [torch.device(device), torch.device("cpu")]
        params = [nn.Parameter(torch.randn(6, 4, device=place, dtype=kind)) for kind in dtypes for place in places]
        copies = [nn.Parameter(value) for value in values(*params)]
        together = build(optim_info.optim_cls, params, lr=0.01)
        apart = [build(optim_info.optim_cls, [param], lr=0.01) for param in copies]
        for _ in range(2):
            for param, twin in zip(params, copies, strict=True):
                param.grad = torch.randn_like(param)
                twin.grad = param.grad.clone()
            for optimizer in (together, *apart):
                optimizer.step()
        for param, twin in zip(params, copies, strict=True):
            # An ulp of a parameter of order one to four, where rounding before it differs.
            torch.testing.assert_close(param, twin, atol=4 * torch.finfo(param.dtype).eps, rtol=0)

    @optims(INFOS, dtypes=[torch.float32])
    def test_set_default_dtype_works(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        """torch's is ``test_set_default_dtype_works_with_foreach``; the default dtype means nothing to a step."""
        results = []
        for default in (torch.float32, torch.float64):
            torch.manual_seed(0)
            params = weight_and_bias(device, dtype)
            grads = [torch.randn_like(param) for param in params]
            optimizer = build(optim_info.optim_cls, params, lr=0.01)
            with utils.set_default_dtype(default):
                for _ in range(2):
                    for param, grad in zip(params, grads, strict=True):
                        param.grad = grad
                    optimizer.step()
            state = [v for param in params for v in optimizer.state.get(param, {}).values() if isinstance(v, Tensor)]
            results.append([*values(*params), *state])
        for ours, theirs in zip(*results, strict=True):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)

    @optims(INFOS, dtypes=[torch.float32])
    def test_step_is_noop_when_params_have_no_grad(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        for one in optim_info.optim_inputs_func(device=device):
            params = [torch.randn(2, 3, device=device, dtype=dtype, requires_grad=True) for _ in range(2)]
            before = values(*params)
            optimizer = build(optim_info.optim_cls, params, **one.kwargs)
            assert optimizer.step(lambda: torch.tensor(1.0)) == 1.0
            assert all(map(torch.equal, params, before)) and not optimizer.state

    @optims(INFOS, dtypes=[torch.float32])
    def test_step_is_noop_for_zero_grads(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        for one in optim_info.optim_inputs_func(device=device):
            one.kwargs |= {"constrained": False} if optim_info.name == "Scion" else {"weight_decay": 0.0}
            params = [nn.Parameter(torch.randn(shape, device=device, dtype=dtype)) for shape in ((5, 1), (4, 3), (3,))]
            before = values(*params)
            optimizer = build(optim_info.optim_cls, params, **one.kwargs)
            for _ in range(3):
                for param in params:
                    param.grad = torch.zeros_like(param)
                optimizer.step()
            assert all(map(torch.equal, params, before)), one

    @optims(INFOS, dtypes=[torch.float32])
    def test_optimizer_can_be_printed(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        for one in optim_info.optim_inputs_func(device=device):
            params = weight_and_bias(device, dtype)
            optimizer = build(optim_info.optim_cls, params, **one.kwargs)
            for param in params:
                param.grad = torch.rand_like(param)
            optimizer.step()
            text = repr(optimizer)
            assert text.startswith(f"{optim_info.name} (") and "rule: " in text and "lr: " in text

    @optims(INFOS, dtypes=[torch.float32])
    def test_cyclic_schedulers_find_a_momentum(self, device: Any, dtype: torch.dtype, optim_info: Any) -> None:
        """torch refuses ``cycle_momentum`` where defaults hold neither momentum nor betas."""
        weight, bias = weight_and_bias(device, dtype)
        assert has_momentum(build(optim_info.optim_cls, [weight, bias])) is (optim_info.name != "SSD")  # without state

    @parametrize("finite", [True, False])
    @optims(INFOS, dtypes=[torch.float32])
    def test_grad_scaling_autocast(self, device: Any, dtype: torch.dtype, optim_info: Any, finite: bool) -> None:
        """torch's is ``..._fused_optimizers``: here the scaler unscales, and skips steps that overflow."""
        scaled = weight_and_bias(device, dtype)
        plain = [nn.Parameter(value) for value in values(*scaled)]
        ours, theirs = (build(optim_info.optim_cls, params, lr=0.01) for params in (scaled, plain))
        scaler = torch.amp.GradScaler(torch.device(device).type, init_scale=2.0**10)
        x = torch.randn(5, device=device)
        for _ in range(3):
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                loss = quadratic(*scaled, x)
            scaler.scale(loss).backward()
            for param, twin in zip(scaled, plain, strict=True):
                twin.grad = param.grad / scaler.get_scale()
            if not finite:
                scaled[0].grad[0, 0] = torch.inf
            scaler.step(ours)
            scaler.update()
            if finite:
                theirs.step()
            ours.zero_grad()
        # Powers of two scale without rounding.
        assert all(map(torch.equal, scaled, plain)) and bool(ours.state) == (finite and bool(theirs.state))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a skipped step is the scaler's affair: nothing of ours saw it
            assert ours.skipped_steps == 0


def test_bare_parameters_are_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above ignore."""
    monkeypatch.setattr(dispatch, "_warned_of_bare_parameters", False)
    with pytest.warns(UserWarning, match="bare parameters"):
        build(INFOS[1].optim_cls, [nn.Parameter(torch.randn(3, 3))])


device_types.instantiate_device_type_tests(TestTorchSuite, globals(), only_for=("cpu", "cuda"))

"""A step inside torch.compile: the eager step's bits, one graph, no recompilation when a schedule moves."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
import torch._dynamo as dynamo
from optimizers import ALL_RULES, equal, optimizer_of, parameters, set_gradients, snapshot
from torch import Tensor, nn
from torch.optim import lr_scheduler

import orthoopt
from orthoopt import OrthoOpt, capture, plans


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    dynamo.reset()
    dynamo.utils.counters.clear()
    yield
    dynamo.reset()


def graphs() -> int:
    return dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ALL_RULES)
def test_a_compiled_step_is_the_eager_one_and_schedules_recompile_nothing(name: str, backend: str) -> None:
    compiled_params, params = parameters(), parameters()
    compiled, eager = optimizer_of(name, compiled_params), optimizer_of(name, params)
    step = torch.compile(lambda: compiled.step(), backend=backend, fullgraph=True)
    for number in range(4):
        set_gradients(compiled_params, number)
        set_gradients(params, number)
        for optimizer in (compiled, eager):
            optimizer.param_groups[0]["lr"] = 0.01 / (1 + number)
        step()
        eager.step()
    assert equal(snapshot(compiled), snapshot(eager))
    assert graphs() == 1


def breaks_and_recompiles() -> tuple[int, int]:
    counters = dynamo.utils.counters
    return sum(counters["graph_break"].values()), graphs() - 1 + sum(counters["recompiles"].values())


class Net(nn.Module):
    """A decoder's kinds of parameter, small."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(11, 6), nn.LayerNorm(6)
        self.up, self.down, self.lm_head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.embedding(tokens))
        return self.lm_head(x + self.down(torch.tanh(self.up(x))))


_QUICK = [("adamw", False), ("muon", True), ("symmetry_hybrid", False), ("trion", True)]
_TWENTY = [
    pytest.param(plan, tensor, marks=() if (plan, tensor) in _QUICK else pytest.mark.slow)
    for plan in plans.names()
    for tensor in (False, True)
]


@pytest.mark.parametrize(("plan", "tensor"), _TWENTY)
def test_twenty_steps_under_a_schedule_are_one_graph_without_breaks(plan: str, tensor: bool) -> None:
    """Every plan, a warmup and a cosine that move every learning rate at every step, and momenta as well."""
    nets, optimizers, schedules = [], [], []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(Net())
        rate = torch.tensor(0.01) if tensor else 0.01
        optimizer = OrthoOpt(orthoopt.param_groups(nets[-1], plan, lr=rate), lr=rate)
        parts = [lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 5), lr_scheduler.CosineAnnealingLR(optimizer, 15)]
        optimizers.append(optimizer)
        schedules.append(lr_scheduler.SequentialLR(optimizer, parts, [5]))
    step = torch.compile(lambda: optimizers[0].step(), backend="aot_eager" if tensor else "eager")
    seen = set()
    for number in range(20):
        source = torch.Generator().manual_seed(number)
        for ours, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            ours.grad = torch.randn(ours.shape, generator=source)
            theirs.grad = ours.grad.clone()
        step()
        optimizers[1].step()
        seen.add(float(optimizers[0].param_groups[0]["lr"]))
        for schedule in schedules:
            schedule.step()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                if "momentum" in group:
                    group["momentum"] = 0.85 + 0.005 * number
    assert equal(*map(snapshot, optimizers))
    assert breaks_and_recompiles() == (0, 0) and len(seen) > 15


def model_and_optimizer() -> tuple[nn.Module, OrthoOpt]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 3))
    return model, orthoopt.Muon(model, lr=1e-2)


def training_step(model: nn.Module, optimizer: OrthoOpt, x: Tensor) -> Tensor:
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    for param in model.parameters():
        param.grad = None
    return loss.detach()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.skipif(not hasattr(dynamo.config, "trace_autograd_ops"), reason="this torch does not trace backward()")
def test_a_whole_training_step_is_one_graph(backend: str) -> None:
    """Forward, backward and step; gradients exist inside the graph alone."""
    (model, optimizer), (plain_model, plain) = model_and_optimizer(), model_and_optimizer()
    x = torch.randn(5, 6)
    with dynamo.config.patch(trace_autograd_ops=True):
        step = torch.compile(training_step, backend=backend, fullgraph=True)
        for number in range(3):
            for each in (optimizer, plain):
                each.param_groups[0]["lr"] = 1e-2 / (1 + number)
            torch.testing.assert_close(step(model, optimizer, x), training_step(plain_model, plain, x))
    # Compilers reorder sums in the gradients, and polar factors of 3 to 12 rows amplify their rounding.
    for ours, wanted in zip(model.parameters(), plain_model.parameters(), strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)
    assert graphs() == 1


def test_parameters_changed_in_the_graph_before_the_step_are_seen() -> None:
    """Compilers hand out copies of what was changed before; the step must take those, and give them back."""

    def shrink_and_step(params: list[nn.Parameter], optimizer: OrthoOpt) -> None:
        with torch.no_grad():
            for param in params:
                param.mul_(0.5)
        optimizer.step()

    results = []
    for function in (shrink_and_step, torch.compile(shrink_and_step, backend="aot_eager", fullgraph=True)):
        params = parameters()
        optimizer = optimizer_of("spectral", params)
        set_gradients(params, 0)
        function(list(params.values()), optimizer)
        results.append(snapshot(optimizer))
    assert equal(*results)


def test_a_parameter_without_gradient_stays() -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params)
    set_gradients(params, 0)
    params["tall"].grad = None
    kept = params["tall"].detach().clone()
    torch.compile(lambda: optimizer.step(), backend="eager", fullgraph=True)()
    assert torch.equal(params["tall"], kept) and params["tall"] not in optimizer.state


def test_a_nonfinite_gradient_skips_the_compiled_step() -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params)
    step = torch.compile(lambda: optimizer.step(), backend="eager", fullgraph=True)
    set_gradients(params, 0)
    step()
    before = snapshot(optimizer)
    set_gradients(params, 1)
    params["wide"].grad[0, 0] = torch.nan
    with pytest.warns(RuntimeWarning, match="wide is not finite"):
        step()
    assert equal(before, snapshot(optimizer)) and optimizer.skipped_steps == 1


def test_replaced_parameters_are_noticed() -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params)
    set_gradients(params, 0)
    optimizer.param_groups[0]["params"] = list(reversed(optimizer.param_groups[0]["params"]))
    with pytest.raises(RuntimeError, match="were replaced"):
        torch.compile(lambda: optimizer.step(), backend="eager")()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_an_error_leaves_the_gradient_mode_as_it_was(backend: str) -> None:
    params = parameters()
    optimizer = optimizer_of("spectral", params, nonfinite="raise")
    set_gradients(params, 0)
    params["wide"].grad[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="wide is not finite"):
        torch.compile(lambda: optimizer.step(), backend=backend)()
    assert torch.is_grad_enabled()


def test_an_optimizer_is_not_kept_alive_by_its_number() -> None:
    from orthoopt.compiled import _OPTIMIZERS

    optimizer = optimizer_of("spectral", parameters())
    number = optimizer._number
    assert _OPTIMIZERS[number] is optimizer
    del optimizer
    gc.collect()
    assert number not in _OPTIMIZERS


class TestCapture:
    """What a CUDA graph cannot replay is refused while it is recorded; the recording itself is tested on a GPU."""

    def steps(self, monkeypatch: pytest.MonkeyPatch, lr: float | Tensor, before: int, **options: Any) -> None:
        params = parameters()
        optimizer = OrthoOpt([{"params": list(params.items()), "rule": "spectral"}], lr=lr, **options)
        for number in range(before):
            set_gradients(params, number)
            optimizer.step()
        set_gradients(params, before)
        monkeypatch.setattr(capture, "is_capturing", lambda: True)
        optimizer.step()

    def test_what_can_be_replayed_passes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps(monkeypatch, torch.tensor(0.01), before=1)

    def test_a_number_as_learning_rate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(RuntimeError, match="freeze the learning rate of wide, the number 0.01"):
            self.steps(monkeypatch, 0.01, before=1)

    def test_state_that_does_not_exist(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(RuntimeError, match="wide has no state yet: take a step"):
            self.steps(monkeypatch, torch.tensor(0.01), before=0)

    def test_raising(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(RuntimeError, match="nonfinite='raise' asks the host"):
            self.steps(monkeypatch, torch.tensor(0.01), before=1, nonfinite="raise")

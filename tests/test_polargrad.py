"""PolarGrad and SSD against their definitions by SVD, their identities, and what a length of their own brings."""

from __future__ import annotations

import math
from typing import Any

import models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import generator, matrices, matrix, relative_error
from torch import Tensor, nn
from torch.optim import lr_scheduler

import orthoopt
from orthoopt import SSD, OrthoOpt, PolarGrad, plans, rules

POLARGRAD, SSD_RULE, SPECTRAL = (rules.get(name) for name in ("polargrad", "ssd", "spectral"))
ORDERS = ("momentum_first", "polar_first")
ORACLES: list[dict[str, Any]] = [
    {"method": "svd"},
    {"method": "qdwh"},
    {"method": "auto"},
    {"method": "polar_express", "ns_steps": 8},
    {"method": "newton_schulz", "ns_coefficients": "muon"},
    {"method": "gram", "ns_coefficients": "quintic"},
]


def nuclear_and_polar(x: Tensor) -> tuple[Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    kept = (s > 1e-12 * s.amax(-1, keepdim=True)).double()
    return s.sum(-1)[..., None, None], (u * kept.unsqueeze(-2)) @ vh


def last_update(rule: Any, grads: list[Tensor], **options: Any) -> Tensor:
    state = None
    for grad in grads:
        update, state = rule.update(grad, state, **options)
    return update


def gradients(x: Tensor, seed: int, count: int = 4) -> list[Tensor]:
    """Gradients of one shape and different directions; generic, so that their averages have full rank."""
    return [x + 0.3 * matrix(*x.shape[-2:], "gaussian", seed + i, tuple(x.shape[:-2])) for i in range(count)]


@given(st.sampled_from(["svd", "qdwh", "auto"]), matrices(batched=True), st.floats(0, 0.99), st.integers(0, 2**31))
def test_both_orders_follow_their_definition(method: str, x: Tensor, beta: float, seed: int) -> None:
    first = last = torch.zeros_like(x)
    for grad in (grads := gradients(x, seed)):
        first = beta * first + (1 - beta) * grad
        nu, polar = nuclear_and_polar(grad)
        last = beta * last + (1 - beta) * polar
    momentum_first = torch.mul(*nuclear_and_polar(first))
    options = {"momentum": beta, "method": method}
    # A polar factor is known to eps over the weakest relative singular value: 1e-4 in the drawn spectra at worst.
    assert relative_error(last_update(POLARGRAD, grads, **options), momentum_first) < 1e-9
    assert relative_error(last_update(POLARGRAD, grads, order="polar_first", **options), nu * last) < 1e-9


@given(st.sampled_from(ORACLES), matrices(batched=True), st.sampled_from([0.0, 0.5, 0.95]), st.integers(0, 2**31))
def test_divided_by_its_length_it_is_muon_without_nesterov(
    oracle: dict[str, Any], x: Tensor, beta: float, seed: int
) -> None:
    """I3, with Newton-Schulz; for other oracles with the polar factor that they compute of the same average."""
    grads = gradients(x, seed)
    average = torch.zeros_like(x)
    for grad in grads:
        average = average.lerp(grad, 1 - beta)
    steps, table = oracle.get("ns_steps", 5), oracle.get("ns_coefficients", "polar_express")
    factor = orthoopt.orthogonalize(average, steps, table, method=oracle["method"])
    nu = (average * factor).sum((-2, -1), keepdim=True)
    update = last_update(POLARGRAD, grads, momentum=beta, **oracle)
    # The average is rounded once more, when its largest entry is divided out.
    assert relative_error(update / nu, factor) < 1e-9
    if oracle["method"] == "newton_schulz":
        muon = last_update(SPECTRAL, grads, momentum=beta, nesterov=False, ns_coefficients=table)
        assert relative_error(update / nu, muon) < 1e-11


def test_divided_by_its_length_it_is_muon_to_1e_12_on_well_conditioned_matrices() -> None:
    """I3 at its own tolerance."""
    grads = [matrix(12, 30, "even", seed) for seed in range(5)]
    for steps in (1, 5):
        muon = last_update(SPECTRAL, grads, nesterov=False, ns_steps=steps)
        update = last_update(POLARGRAD, grads, method="newton_schulz", ns_coefficients="muon", ns_steps=steps)
        average = torch.zeros(12, 30, dtype=torch.float64)
        for grad in grads:
            average = average.lerp(grad, 0.05)
        assert relative_error(update / (average * muon).sum(), muon) < 1e-12


@given(st.sampled_from(ORACLES), st.sampled_from(ORDERS), matrices(batched=True), st.integers(0, 2**31))
def test_without_momentum_both_orders_are_spectral_descent(
    oracle: dict[str, Any], order: str, x: Tensor, seed: int
) -> None:
    """I17."""
    grads = gradients(x, seed, 2)
    update = last_update(POLARGRAD, grads, momentum=0.0, order=order, **oracle)
    assert relative_error(update, last_update(SSD_RULE, grads, **oracle)) < 1e-12


RULES_AND_ORDERS = [("polargrad", {"order": order}) for order in ORDERS] + [("ssd", {})]


@pytest.mark.parametrize(("name", "options"), RULES_AND_ORDERS)
@given(
    st.sampled_from(ORACLES),
    matrices(batched=True),
    st.integers(-80, 80),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_update_grows_with_the_gradient(
    name: str, options: dict[str, Any], oracle: dict[str, Any], x: Tensor, exponent: int, dtype: torch.dtype
) -> None:
    """U(cG) = c·U(G), to the bit for powers of two; so the rule is not scale-invariant."""
    x = torch.where(x.abs() < 1e-6, 0.0, x).to(dtype)
    grads = [x, 0.5 * x.roll(1, -1)]
    rule = rules.get(name)
    plain = last_update(rule, grads, **options, **oracle)
    scaled = last_update(rule, [2.0**exponent * grad for grad in grads], **options, **oracle)
    assert torch.equal(scaled, 2.0**exponent * plain)
    third = last_update(rule, [grad / 3 for grad in grads], **options, **oracle)
    if dtype == torch.float64 and x.abs().max() > 0:
        # Rounding of the quotient, over the weakest direction.
        assert relative_error(third, plain / 3) < 1e-9
        assert relative_error(third, plain) > 0.5


@pytest.mark.parametrize("name", ["polargrad", "ssd"])
@pytest.mark.parametrize("magnitude", [1e-30, 1e30, 1e37])
def test_float32_overflows_only_where_the_update_does(name: str, magnitude: float) -> None:
    x = torch.full((200, 200), magnitude)  # nuclear norm 200·magnitude, polar factor 1/200
    update = rules.get(name).direct(x, rules.get(name).defaults)
    torch.testing.assert_close(update, x, rtol=1e-5, atol=0)


@given(st.sampled_from(ORACLES), matrices(batched=True))
def test_the_length_is_the_inner_product_with_the_computed_factor(oracle: dict[str, Any], x: Tensor) -> None:
    factor = orthoopt.orthogonalize(
        x, oracle.get("ns_steps", 5), oracle.get("ns_coefficients", "polar_express"), method=oracle["method"]
    )
    update = SSD_RULE.update(x, **oracle)[0]
    nu = (x * factor).sum((-2, -1), keepdim=True)
    assert relative_error(update, nu * factor) < 1e-9
    if oracle["method"] in ("svd", "qdwh", "auto"):
        torch.testing.assert_close(nu.squeeze((-2, -1)), torch.linalg.svdvals(x).sum(-1), rtol=1e-12, atol=0)


@given(matrices(smallest=2), st.floats(1e-3, 10), st.integers(0, 2**31))
def test_spectral_descent_minimizes_its_model(x: Tensor, lr: float, seed: int) -> None:
    def model(delta: Tensor) -> float:
        return float((x * delta).sum() + torch.linalg.matrix_norm(delta, 2) ** 2 / (2 * lr))

    best = -lr * SSD_RULE.update(x)[0]
    nu = float(torch.linalg.svdvals(x).sum())
    assert model(best) == pytest.approx(-lr * nu**2 / 2, rel=1e-12)
    for i, size in enumerate((1e-6, 1e-3, 1.0)):
        other = best + size * lr * nu * matrix(*x.shape, "gaussian", seed + i)
        assert model(other) >= model(best) - 1e-12 * lr * nu**2


def test_state_is_the_average_or_nothing() -> None:
    weight = nn.Parameter(torch.randn(6, 4))
    for rule, keys in (("polargrad", {"momentum_buffer"}), ("ssd", set())):
        optimizer = OrthoOpt([{"params": [weight], "rule": rule}])
        weight.grad = torch.randn(6, 4)
        optimizer.step()
        assert set(optimizer.state[weight]) == keys


@pytest.mark.parametrize("view", ["matrix", "heads(2)", "transpose"])
@pytest.mark.parametrize("order", ORDERS)
def test_the_optimizer_subtracts_the_rules_update_and_stores_its_average(order: str, view: str) -> None:
    start = torch.randn(6, 4, dtype=torch.float64, generator=generator(0))
    weight = nn.Parameter(start.clone())
    group = {"params": [weight], "rule": "polargrad", "order": order, "view": view}
    optimizer = OrthoOpt([group], lr=0.1, weight_decay=0.0)
    assert optimizer.param_groups[0]["scale"] == "none"

    def seen(x: Tensor) -> Tensor:
        return {"matrix": x, "heads(2)": x.reshape(2, 3, 4), "transpose": x.mT}[view]

    state = None
    expected = seen(start.clone())
    for seed in range(3):
        weight.grad = matrix(6, 4, "gaussian", seed)
        update, state = POLARGRAD.update(seen(weight.grad), state, order=order)
        expected = expected - 0.1 * update
        optimizer.step()
    assert relative_error(seen(weight.detach()), expected) < 1e-12
    assert state is not None
    assert relative_error(seen(optimizer.state[weight]["momentum_buffer"]), state["momentum_buffer"]) < 1e-12


def test_the_matched_scale_gives_the_nuclear_norm_times_muons_update() -> None:
    grad = matrix(6, 10, "gaussian", 0)
    moved = []
    for rule, more in (("polargrad", {"momentum": 0.0}), ("spectral", {"momentum": 0.0, "nesterov": False})):
        weight = nn.Parameter(torch.zeros(6, 10, dtype=torch.float64))
        weight.grad = grad.clone()
        options = {"ns_coefficients": "muon", "scale": "match_rms_adamw", **more}
        if rule == "polargrad":
            options["method"] = "newton_schulz"
        OrthoOpt([{"params": [weight], "rule": rule, **options}], lr=1.0, weight_decay=0.0).step()
        moved.append(weight.detach())
    factor = moved[1] / (-0.2 * math.sqrt(10))
    assert relative_error(moved[0], (grad * factor).sum() * moved[1]) < 1e-12


def by_rule(optimizer: OrthoOpt) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for group in optimizer.param_groups:
        found.setdefault(group["rule"], []).append(group)
    return found


@pytest.mark.parametrize(("constructor", "rule"), [(PolarGrad, "polargrad"), (SSD, "ssd")])
def test_one_rate_is_adamws_and_two_are_each_its_own(constructor: Any, rule: str) -> None:
    multiplier = plans.get(rule)["hidden"]["lr_multiplier"]
    assert multiplier > 1
    groups = by_rule(constructor(models.qwen3(), lr=1e-3, weight_decay=0.2))
    assert set(groups) == {rule, "adamw"}
    assert all(group["lr"] == pytest.approx(multiplier * 1e-3) for group in groups[rule])
    assert all(group["weight_decay"] == 0.0 and group["scale"] == "none" for group in groups[rule])
    rates = {group["role"]: group["lr"] for group in groups["adamw"]}
    assert rates["lm_head"] == rates["vector"] == 1e-3 and rates["embedding"] == pytest.approx(1e-2)
    assert {group["weight_decay"] for group in groups["adamw"]} == {0.0, 0.2}

    groups = by_rule(constructor(models.qwen3(), lr=0.02, adam_lr=3e-4, matrix_weight_decay=0.01))
    assert all(group["lr"] == 0.02 and group["weight_decay"] == 0.01 for group in groups[rule])
    rates = {group["role"]: group["lr"] for group in groups["adamw"]}
    assert rates["lm_head"] == rates["vector"] == 3e-4 and rates["embedding"] == pytest.approx(3e-3)


def test_a_tensor_rate_of_its_own_stays_that_tensor() -> None:
    lr = torch.tensor(0.02)
    groups = by_rule(PolarGrad(models.qwen3(), lr=lr, adam_lr=1e-3))
    assert all(group["lr"] is lr for group in groups["polargrad"])


def test_options_reach_the_rule() -> None:
    group = by_rule(
        PolarGrad(models.qwen3(), momentum=0.9, order="polar_first", method="gram", ns_coefficients="muon", ns_steps=6)
    )["polargrad"][0]
    found = [group[name] for name in ("momentum", "order", "method", "ns_coefficients", "ns_steps")]
    assert found == [0.9, "polar_first", "gram", "muon", 6]


def test_cyclic_momentum_needs_a_momentum_in_every_group() -> None:
    schedule = lr_scheduler.OneCycleLR(PolarGrad(models.qwen3(device="cpu")), 0.1, total_steps=10)
    assert schedule.optimizer.param_groups[0]["momentum"] == 0.95
    optimizer = SSD(models.qwen3(device="cpu"))
    with pytest.raises(ValueError, match="cycle_momentum"):
        lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10, cycle_momentum=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "last"}, "order='last'.*'momentum_first', 'polar_first'"),
        ({"method": "qr"}, "method='qr'.*'newton_schulz'.*'svd'"),
        ({"ns_coefficients": "muon"}, "'polargrad'.*method='auto' takes.*got 'muon'"),
        ({"method": "gram", "ns_dtype": "bfloat16"}, "does not run in bfloat16"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolarGrad(models.qwen3(), **options)

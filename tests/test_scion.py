"""Scion: corners of norm balls, identities with Muon and row_norm, and iterates that stay in their ball."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from balls import NORMS, dual_pairs, lengths, polar
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import generator, matrices, matrix, relative_error
from torch import Tensor, nn

from orthoopt import OrthoOpt, param_groups, rules
from orthoopt.rules.row_norm import row_norm_direction

SCION = rules.get("scion")
VECTOR = rules.get("scion_vector")


def corner(x: Tensor, **options: Any) -> Tensor:
    options = {**SCION.defaults, "method": "svd", **options}
    SCION.validate(options)
    return SCION.direct(x, options)


# ------------------------------------------------------------------------------------------- the norms, as published

M, N = 12, 7
REFERENCES: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("spectral", "published"): lambda d: math.sqrt(M / N) * polar(d),
    ("spectral", "normalized"): lambda d: math.sqrt(M / N) * polar(d),
    ("spectral", "unnormalized"): lambda d: math.sqrt(M) * polar(d),
    ("spectral", "max"): lambda d: math.sqrt(M / N) * polar(d),
    ("sign", "published"): lambda d: d.sign() / N,
    ("sign", "normalized"): lambda d: d.sign() / N,
    ("sign", "unnormalized"): lambda d: d.sign(),
    ("col_norm", "published"): lambda d: d / d.square().mean(0, keepdim=True).sqrt(),
    ("col_norm", "unnormalized"): lambda d: d / d.square().mean(0, keepdim=True).sqrt(),
    ("col_norm", "normalized"): lambda d: d / d.square().mean(0, keepdim=True).sqrt() / N,
    ("row_norm", "published"): lambda d: d / lengths(d, 1) / math.sqrt(N),
    ("row_norm", "normalized"): lambda d: d / lengths(d, 1) / math.sqrt(N),
    ("row_norm", "unnormalized"): lambda d: d / lengths(d, 1),
}


@pytest.mark.parametrize(("norm", "scaling"), REFERENCES)
def test_every_norm_is_as_published(norm: str, scaling: str) -> None:
    d = matrix(M, N, "gaussian", 0)
    expected = 3.0 * REFERENCES[norm, scaling](d)
    # Rows and columns are damped by 1e-5 of the typical one, where the authors add 1e-8 to each.
    tolerance = 3e-5 if norm in ("row_norm", "col_norm") else 1e-12
    assert relative_error(corner(d, norm=norm, scaling=scaling, radius=3.0), expected) < tolerance
    transposed = corner(d.mT, norm=norm, scaling=scaling, radius=3.0, transposed=True)
    assert relative_error(transposed.mT, expected) < tolerance


def test_max_keeps_wide_matrices_at_one() -> None:
    wide = matrix(N, M, "gaussian", 0)
    assert relative_error(corner(wide, scaling="max"), polar(wide)) < 1e-12
    assert relative_error(corner(wide), math.sqrt(N / M) * polar(wide)) < 1e-12


@pytest.mark.parametrize(("shape", "positions"), [((6, 5, 3), 3), ((6, 5, 3, 3), 9), ((6, 2, 1, 1), 1)])
def test_kernels_are_flattened_and_divided_by_their_positions(shape: tuple[int, ...], positions: int) -> None:
    """√(out/in)/k² in two dimensions, √(out/in)/k in one, through the optimizer, which sees the kernel."""
    kernel = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    kernel.grad = torch.randn(shape, dtype=torch.float64, generator=generator(0))
    group = {"params": [kernel], "rule": "scion", "norm": "spectral_conv", "view": "flatten", "method": "svd"}
    optimizer = OrthoOpt([{**group, "radius": 2.0, "momentum": 0.0}], lr=0.1, weight_decay=0.0)
    assert optimizer.param_groups[0]["kernel_size"] == positions
    optimizer.step()
    expected = 0.1 * 2.0 * math.sqrt(shape[0] / shape[1]) / positions * polar(kernel.grad.flatten(1))
    assert relative_error(-kernel.detach().flatten(1), expected) < 1e-12


def test_kernel_sizes_come_from_shapes_unless_given_and_must_agree_in_a_group() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 5))
    sizes = {
        name: group["kernel_size"]
        for group in param_groups(model, "scion")
        if group["role"] == "conv"
        for name, _ in group["params"]
    }
    assert sizes == {"0.weight": 9, "1.weight": 1, "2.weight": 25}
    groups = param_groups(model, "scion", overrides={r"2\.weight": {"kernel_size": 4}})
    assert {4, 9} <= {group.get("kernel_size") for group in groups}
    kernels = [model[0].weight, model[2].weight]
    with pytest.raises(ValueError, match="kernel_size=9 and kernel_size=25: make a group for each"):
        OrthoOpt([{"params": kernels, "rule": "scion", "norm": "spectral_conv"}])
    OrthoOpt([{"params": kernels, "rule": "scion", "norm": "spectral_conv", "kernel_size": 1}])


@given(st.sampled_from([(), (1,), (5,), (3, 4), (2, 3, 4)]), st.integers(-99, 99), st.sampled_from([0.5, 50.0]))
def test_a_vector_is_brought_to_the_root_mean_square_of_its_ball(
    shape: tuple[int, ...], exponent: int, radius: float
) -> None:
    d = torch.randn(shape, dtype=torch.float64, generator=generator(0))
    update, _ = VECTOR.update(d * 2.0**exponent, radius=radius)
    assert relative_error(update, radius * d / d.square().mean().sqrt()) < 1e-14
    single, _ = VECTOR.update((d * 2.0**exponent).float(), radius=radius)
    assert relative_error(single, update) < 1e-6


# ------------------------------------------------------------------------------------------------ the balls


@given(matrices(), st.sampled_from(NORMS), st.floats(0.1, 100.0))
def test_the_update_is_the_point_of_the_ball_furthest_along_the_momentum(d: Tensor, norm: str, radius: float) -> None:
    """‖ρu‖ ≤ ρ and ⟨d, ρu⟩ = ρ‖d‖_*: minus the linear minimization oracle."""
    assume(d.norm() > 0)
    size, dual = dual_pairs(*d.shape)[norm]
    update = corner(d, norm=norm, radius=radius)
    assert size(update) <= radius * (1 + 1e-12)
    reached = float((d * update).sum() / (radius * dual(d)))
    # Damping and null directions of the SVD may take away a little; nothing can exceed one.
    assert (1 - 1e-4 if norm in ("col_norm", "row_norm") else 1 - 1e-9) < reached <= 1 + 1e-12


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from(NORMS),
    st.floats(0.001, 1.0),
    st.sampled_from([0.0, 0.9]),
    st.integers(0, 2**31),
)
@settings(max_examples=40)
def test_constrained_iterates_stay_in_the_ball(
    rows: int, cols: int, norm: str, lr: float, momentum: float, seed: int
) -> None:
    """From inside, with exact polar factors, for any learning rate up to one: ‖W‖₂ ≤ ρ√(m/n) and its kin."""
    radius = 5.0
    size, _ = dual_pairs(rows, cols)[norm]
    w = matrix(rows, cols, "gaussian", seed)
    param = nn.Parameter(w * (radius / size(w)))  # on the boundary
    group = {"params": [param], "rule": "scion", "norm": norm, "radius": radius, "momentum": momentum, "method": "svd"}
    optimizer = OrthoOpt([group], lr=lr, weight_decay=1.0)
    drift = matrix(rows, cols, "rank_one", seed + 1)  # a steady pull leads to the boundary again
    for step in range(60):
        param.grad = drift + (step % 3) * matrix(rows, cols, "gaussian", seed + step)
        optimizer.step()
        assert size(param.detach()) <= radius * (1 + 1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_steady_gradient_leads_to_the_boundary_and_weights_outside_shrink_to_it(norm: str) -> None:
    """Frank–Wolfe towards one corner: W − ρu shrinks by 1 − γ a step, and so does what lies outside."""
    radius, lr = 2.0, 0.05
    size, _ = dual_pairs(6, 9)[norm]
    grad = matrix(6, 9, "gaussian", 0)
    w = 10 * matrix(6, 9, "gaussian", 1)
    param = nn.Parameter(w * (7 * radius / size(w)))
    group = {"params": [param], "rule": "scion", "norm": norm, "radius": radius, "method": "svd"}
    optimizer = OrthoOpt([group], lr=lr, weight_decay=1.0)
    target = -corner(grad, norm=norm, radius=radius)
    start = param.detach() - target
    for step in range(1, 400):
        excess = float(size(param.detach())) - radius
        param.grad = grad
        optimizer.step()
        assert float(size(param.detach())) - radius <= (1 - lr) * excess + 1e-12
        # Float64 rounding of weights of size 14 and below.
        torch.testing.assert_close(param.detach() - target, (1 - lr) ** step * start, atol=1e-12, rtol=1e-9)
    assert float(size(param.detach())) == pytest.approx(radius, rel=1e-4)  # rows are damped by 1e-5


def test_vectors_stay_in_their_ball_too() -> None:
    param = nn.Parameter(torch.ones(20, dtype=torch.float64))
    optimizer = OrthoOpt([{"params": [param], "rule": "scion_vector", "radius": 1.0}], lr=0.3, weight_decay=1.0)
    for step in range(60):
        param.grad = torch.randn(20, dtype=torch.float64, generator=generator(step)) + 0.3
        optimizer.step()
        assert param.detach().square().mean().sqrt() <= 1 + 1e-12


def test_newton_schulz_leaves_the_ball_by_what_its_coefficients_allow() -> None:
    """The hazard of the default: singular values of the muon table reach 1.202."""
    param = nn.Parameter(torch.zeros(16, 16, dtype=torch.float64))
    optimizer = OrthoOpt([{"params": [param], "rule": "scion"}], lr=0.05, weight_decay=1.0)
    grad = matrix(16, 16, "log", 0)
    for _ in range(200):
        param.grad = grad
        optimizer.step()
    assert 1.01 < torch.linalg.matrix_norm(param.detach(), 2) < 1.203


# ------------------------------------------------------------------------------------------------ identities


@pytest.mark.parametrize("constrained", [True, False], ids=["I18", "I19"])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_spectral_scion_is_muon(constrained: bool, momentum: float) -> None:
    """Scion(γ, ρ, α) is Muon(lr γρ, λ 1/ρ or 0, β 1−α, no Nesterov, ``unit_rms_norm``)."""
    lr, radius = 0.01, 7.0
    for rows, cols in ((6, 10), (10, 6)):
        ours, muons = (nn.Parameter(matrix(rows, cols, "even", 9)) for _ in range(2))
        a = OrthoOpt(
            [{"params": [ours], "rule": "scion", "radius": radius, "momentum": momentum}],
            lr=lr, weight_decay=1.0 if constrained else 0.0,
        )  # fmt: skip
        b = OrthoOpt(
            [{"params": [muons], "rule": "spectral", "momentum": momentum, "nesterov": False,
              "scale": "unit_rms_norm"}],
            lr=lr * radius, weight_decay=1 / radius if constrained else 0.0,
        )  # fmt: skip
        for step in range(30):
            ours.grad = matrix(rows, cols, "gaussian", step)
            muons.grad = ours.grad.clone()
            a.step()
            b.step()
        assert relative_error(ours.detach(), muons.detach()) < 1e-12


@given(matrices(smallest=2))
def test_col_norm_of_a_stored_embedding_is_row_norm_times_root_d(d: Tensor) -> None:
    """I20, on a (vocabulary, features) matrix; to rounding, for both damp short rows alike."""
    assume(d.norm() > 0)
    expected = math.sqrt(d.shape[1]) * row_norm_direction(d)
    assert relative_error(corner(d, norm="col_norm", transposed=True), expected) < 1e-14


# ------------------------------------------------------------------------------------------------ momentum


@pytest.mark.parametrize(("rule", "shape"), [("scion", (4, 6)), ("scion_vector", (5,))])
def test_alpha_one_keeps_no_state_and_momentum_may_come_and_go(rule: str, shape: tuple[int, ...]) -> None:
    param = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = OrthoOpt([{"params": [param], "rule": rule, "momentum": 0.0}], lr=0.1, weight_decay=0.0)
    group = optimizer.param_groups[0]

    def step(seed: int) -> Tensor:
        param.grad = torch.randn(shape, dtype=torch.float64, generator=generator(seed))
        before = param.detach().clone()
        optimizer.step()
        return (before - param.detach()) / 0.1

    first = step(0)
    assert optimizer.state[param] == {}
    assert param.grad is not None
    assert relative_error(first, rules.get(rule).update(param.grad, momentum=0.0)[0]) < 1e-12
    group["momentum"] = 0.5
    step(1)
    assert torch.equal(optimizer.state[param]["momentum_buffer"], 0.5 * param.grad)
    group["momentum"] = 0.0
    step(2)
    assert torch.equal(optimizer.state[param]["momentum_buffer"], param.grad)


def test_the_average_is_alpha_g_plus_the_rest() -> None:
    state = None
    d = torch.zeros(4, 6, dtype=torch.float64)
    for seed in range(5):
        grad = matrix(4, 6, "gaussian", seed)
        d = 0.9 * d + 0.1 * grad
        update, state = SCION.update(grad, state, norm="sign", scaling="unnormalized")
        assert torch.equal(update, d.sign())
    assert state is not None
    torch.testing.assert_close(state["momentum_buffer"], d, atol=1e-15, rtol=1e-14)

"""AuON and HybridAuON: what the cosh factor comes to, and the bound that replaces it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import generator, group_element, matrices, matrix, relative_error
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from orthoopt import AuON, HybridAuON, Muon, OrthoOpt, rules
from orthoopt.newton_schulz import normalize
from orthoopt.rules import _cosh
from orthoopt.rules.hybrid_auon import iterated_gaussian_rms
from orthoopt.schur_bound import schur_bound

AUON = rules.get("auon")
HYBRID = rules.get("hybrid_auon")
MUON = (3.4445, -4.7750, 2.0315)


def auon(x: Tensor, variant: str = "spectral_bound") -> Tensor:
    return AUON.direct(x, {**AUON.defaults, "variant": variant})


def hybrid(x: Tensor, **options: Any) -> Tensor:
    return HYBRID.direct(x, {**HYBRID.defaults, **options})


def cosh_brake(x: Tensor, gain: float) -> Tensor:
    return _cosh.cosh_brake(normalize(x), gain)


def nesterov(grads: list[Tensor], beta: float) -> Tensor:
    """The published front, step by step: B ← βB + (1−β)G; h = (1−β)G + βB."""
    buffer = torch.zeros_like(grads[0])
    for grad in grads:
        buffer = beta * buffer + (1 - beta) * grad
        h = (1 - beta) * grad + beta * buffer
    return h


def run(rule: Any, grads: list[Tensor], **options: Any) -> Tensor:
    state = None
    for grad in grads:
        update, state = rule.update(grad, state, **options)
    return update


# ------------------------------------------------------------------------------------------- the published forms


def test_the_paper_is_frobenius_normalized_nesterov_momentum() -> None:
    """I13: with N ≥ 2¹⁸ entries to 1e-5."""
    grads = [torch.randn(512, 512, dtype=torch.float64, generator=generator(seed)) for seed in range(3)]
    h = nesterov(grads, 0.95)
    assert relative_error(run(AUON, grads, variant="paper"), h / h.norm()) < 1e-5


@pytest.mark.parametrize("scale", [{}, {"scale": "none"}], ids=["default scale", "no scale"])
def test_the_repository_is_torchs_sgd(scale: dict[str, str]) -> None:
    """I14: at lr(1−β), to the sinh²1.5/2N by which r exceeds one; under its default scale too."""
    lr, beta, (rows, cols) = 0.24, 0.95, (24, 40)
    ours, theirs = (nn.Parameter(torch.zeros(rows, cols, dtype=torch.float64)) for _ in range(2))
    a = OrthoOpt([{"params": [ours], "rule": "auon", "variant": "repository", **scale}], lr=lr, weight_decay=0.0)
    b = torch.optim.SGD([theirs], lr=lr * (1 - beta), momentum=beta, nesterov=True)
    bound = math.sinh(1.5) ** 2 / (2 * rows * cols)
    for seed in range(12):
        ours.grad = 10.0 ** (seed % 5 - 2) * matrix(rows, cols, "gaussian", seed)
        theirs.grad = ours.grad.clone()
        before = ours.detach().clone(), theirs.detach().clone()
        a.step()
        b.step()
        error = relative_error(ours.detach() - before[0], theirs.detach() - before[1])
        # At least the lower bound of r: 1 − (1 + γ²/N)^−½, less float64 cancellation in the differences.
        assert 0.9 * 1.5**2 / (2 * rows * cols) < error < bound


def test_the_repositorys_hybrid_is_muon() -> None:
    """I15: to sinh²1.5/2N; the optimizers too, under the default scale."""
    for rows, cols in ((24, 40), (40, 24), (16, 16)):
        grads = [matrix(rows, cols, "log", seed) for seed in range(3)]
        muon = run(rules.get("spectral"), grads)
        bound = math.sinh(1.5) ** 2 / (2 * rows * cols)
        assert 0 < relative_error(run(HYBRID, grads), muon) < bound

    steps = []
    for constructor in (HybridAuON, Muon):
        param = nn.Parameter(torch.zeros(24, 40, dtype=torch.float64))
        param.grad = matrix(24, 40, "gaussian", 5)
        optimizer = constructor([("mlp.up_proj.weight", param)], lr=0.02)
        optimizer.step()
        steps.append(param.detach())
    assert optimizer.param_groups[0]["rule"] == "spectral"
    assert relative_error(steps[0], steps[1]) < math.sinh(1.5) ** 2 / (2 * 24 * 40)


def test_the_papers_hybrid_is_one_step_over_the_mean_of_cosh_squared() -> None:
    """V3 step by step, and what it comes to: almost the momentum itself on a large matrix."""
    a, b, c = MUON
    for rows, cols in ((6, 9), (9, 6), (192, 192)):
        h = matrix(rows, cols, "gaussian", 3)
        x = h / h.norm()
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
        expected = x / x.cosh().square().mean()
        assert relative_error(hybrid(h, variant="paper"), expected) < 1e-12
    cosine = (expected * h).sum() / (expected.norm() * h.norm())
    assert 0.9999 < cosine < 1


def test_only_the_repositorys_auon_depends_on_the_gradients_scale() -> None:
    h = matrix(6, 9, "gaussian", 0)
    assert relative_error(auon(1000 * h, "repository"), 1000 * auon(h, "repository")) < 1e-14
    for update in (auon, lambda x: auon(x, "paper"), hybrid, lambda x: hybrid(x, variant="paper")):
        assert relative_error(update(1000 * h), update(h)) < 1e-12


def test_the_published_forms_leave_the_condition_number_alone_but_for_the_iterations() -> None:
    h = matrix(12, 12, "log", 0)
    conditions = {
        name: float(torch.linalg.cond(update))
        for name, update in {
            "h": h,
            "paper": auon(h, "paper"),
            "repository": auon(h, "repository"),
            "spectral_bound": auon(h),
            "one step": hybrid(h, variant="paper"),
            "five steps": hybrid(h),
        }.items()
    }
    for name in ("paper", "repository", "spectral_bound"):
        assert conditions[name] == pytest.approx(conditions["h"], rel=1e-9)  # a multiple of h: rounding times cond h
    assert conditions["five steps"] < 0.02 * conditions["h"] < 0.2 * conditions["one step"] < 0.2 * conditions["h"]


# ------------------------------------------------------------------------------------------------ the cosh factor


@given(matrices(batched=True), st.sampled_from([1.0, 1.5, 4.0]))
def test_the_cosh_factor_is_one_but_for_one_over_n(x: Tensor, gain: float) -> None:
    """I16: 1 + γ²/N ≤ r² ≤ 1 + sinh²γ/N, whatever the matrix."""
    assume(bool((x.abs().amax((-2, -1)) > 0).all()))
    entries = x.shape[-2] * x.shape[-1]
    squared = cosh_brake(x, gain).square()
    lower, upper = 1 + gain**2 / entries, 1 + math.sinh(gain) ** 2 / entries
    assert (squared >= lower * (1 - 1e-12)).all() and (squared <= upper * (1 + 1e-12)).all()


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1.0, 1.5]), st.floats(1e-20, 1e20))
def test_a_single_spike_attains_the_upper_bound_and_no_more(rows: int, cols: int, gain: float, size: float) -> None:
    x = torch.zeros(rows, cols, dtype=torch.float64)
    x[rows // 2, cols // 3] = -size
    expected = math.sqrt(1 + math.sinh(gain) ** 2 / x.numel())
    assert float(cosh_brake(x, gain)) == pytest.approx(expected, rel=1e-12)
    flat = torch.full((rows, cols), size, dtype=torch.float64)  # and equal entries come nearest to the lower one
    assert float(cosh_brake(flat, gain)) == pytest.approx(math.cosh(gain / math.sqrt(x.numel())), rel=1e-12)


def test_no_spike_moves_the_brake_and_every_spike_moves_the_bound() -> None:
    """An entry a million times the rest: the cosh factor moves by less than 1e-3, the bound holds the step in."""
    h = matrix(64, 64, "gaussian", 0)
    spiked = h.clone()
    spiked[7, 11] = 1e6
    assert abs(float(cosh_brake(spiked, 1.5) / cosh_brake(h, 1.5)) - 1) < math.sinh(1.5) ** 2 / (2 * h.numel()) < 1e-3
    assert torch.linalg.matrix_norm(auon(spiked, "repository"), 2) > 1e5
    assert torch.linalg.matrix_norm(auon(spiked), 2) <= 1 + 1e-12


@given(st.integers(0, 2**31), st.sampled_from([("paper", 1.0), ("repository", 1.5)]))
def test_the_published_forms_follow_every_rotation_of_the_entries(seed: int, form: tuple[str, float]) -> None:
    """O(mn) acts on vec(h): the update follows up to the distance of the two bounds on r."""
    variant, gain = form
    h = matrix(6, 9, "outlier", seed)
    rotation = group_element("orthogonal", h.numel(), seed + 1)

    def rotate(x: Tensor) -> Tensor:
        return (rotation @ x.flatten()).view_as(x)

    distance = math.sqrt(1 + math.sinh(gain) ** 2 / h.numel()) - math.sqrt(1 + gain**2 / h.numel())
    assert relative_error(auon(rotate(h), variant), rotate(auon(h, variant))) < distance + 1e-12


@given(st.integers(0, 2**31), st.sampled_from(["repository", "paper"]))
def test_the_hybrid_follows_rotations_on_both_sides_up_to_its_factor(seed: int, variant: str) -> None:
    h = matrix(8, 12, "even", seed)
    left, right = group_element("orthogonal", 8, seed + 1), group_element("orthogonal", 12, seed + 2)
    update = hybrid(h, variant=variant)
    # What r, or r² in "paper", can differ by; ‖X‖_F ≤ 3.4445 after one step.
    gain = 1.5 if variant == "repository" else MUON[0]
    spread = (1 + math.sinh(gain) ** 2 / 96) / (1 + (gain**2 if variant == "repository" else 0) / 96)
    distance = (math.sqrt(spread) if variant == "repository" else spread) - 1
    assert relative_error(hybrid(left @ h @ right, variant=variant), left @ update @ right) < distance + 1e-12


@pytest.mark.parametrize("coefficients", ["muon", "polar_express", "quintic"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_rms_of_an_iterated_gaussian_is_computed(coefficients: str, steps: int) -> None:
    for rows, cols in ((128, 128), (100, 300), (300, 60)):
        update = hybrid(matrix(rows, cols, "gaussian", 1), ns_steps=steps, ns_coefficients=coefficients)
        expected = iterated_gaussian_rms(rows, cols, steps, coefficients)
        # The law is that of large matrices: its edges are sharp, a sample's are not.
        assert float(update.square().mean().sqrt()) == pytest.approx(expected, rel=0.03)


# ------------------------------------------------------------------------------------------------ the bound


@st.composite
def rough_matrices(draw: st.DrawFn) -> Tensor:
    """A batch of matrices of many spectra, with unequal rows and columns, holes, zero rows and zero columns."""
    x = draw(matrices(batched=True))
    source = generator(draw(st.integers(0, 2**31)))
    spread = draw(st.sampled_from([0.0, 1.0, 3.0]))
    for shape in ((*x.shape[:-1], 1), (*x.shape[:-2], 1, x.shape[-1])):
        x = x * torch.exp(spread * torch.randn(shape, generator=source, dtype=x.dtype))
    kept = draw(st.sampled_from([1.0, 0.5, 0.1]))
    x = x * (torch.rand(x.shape, generator=source) < kept)
    dead = draw(st.sampled_from([0.0, 0.3]))
    for dims in ((*x.shape[:-1], 1), (*x.shape[:-2], 1, x.shape[-1])):
        x = x * (torch.rand(dims, generator=source) >= dead)
    return x.reshape(-1, *x.shape[-2:])


# A dozen sums and products of at most 24 terms, each rounded.
ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-5}


@given(rough_matrices(), st.sampled_from(tuple(ROUNDING)), st.integers(-60, 60))
def test_the_update_lies_in_the_spectral_ball_and_outside_the_frobenius_one(
    x: Tensor, dtype: torch.dtype, exponent: int
) -> None:
    """‖h‖₂ ≤ bound ≤ ‖h‖_F, so ‖U‖₂ ≤ 1 ≤ ‖U‖_F, at every scale; bfloat16 is widened before anything is computed."""
    update = auon((x * 2.0**exponent).to(dtype)).double()
    for one in update:
        if one.count_nonzero():
            assert torch.linalg.matrix_norm(one, 2) <= 1 + ROUNDING[dtype]
            assert one.norm() >= 1 - ROUNDING[dtype]


@given(rough_matrices())
def test_the_bound_is_certified_and_never_above_that_of_row_and_column_sums(x: Tensor) -> None:
    bound = schur_bound(x).flatten()
    classical = (x.abs().sum(-1).amax(-1) * x.abs().sum(-2).amax(-1)).sqrt()
    assert (torch.linalg.matrix_norm(x, 2) <= bound * (1 + 1e-12)).all()
    assert (bound <= classical * (1 + 1e-12)).all()


def test_the_bound_is_exact_for_outer_products_and_diagonals() -> None:
    source = generator(0)
    u, v = (torch.randn(size, generator=source, dtype=torch.float64) for size in (7, 12))
    u, v = u.exp() * u.sign(), v.exp() * v.sign()
    assert float(schur_bound(torch.outer(u, v))) == pytest.approx(float(u.norm() * v.norm()), rel=1e-14)
    assert float(schur_bound(torch.diag(u))) == pytest.approx(float(u.abs().max()), rel=1e-14)
    # A signed permutation is its own polar factor, and the update finds it.
    permutation = group_element("signed_permutation", 9, 0)
    assert relative_error(auon(3 * permutation), permutation) < 1e-14


def test_the_bound_belongs_to_coordinates() -> None:
    """Magnitudes change under rotations: nothing but signed permutations may be promised."""
    rotation = group_element("orthogonal", 16, 0)
    assert relative_error(auon(rotation @ torch.eye(16, dtype=torch.float64)), rotation) > 0.5


@given(rough_matrices())
def test_under_the_default_scale_no_update_is_smaller_than_adamws_by_a_quarter(x: Tensor) -> None:
    """RMS(s·U) ≥ 0.2·√(2/π) = 0.16, with equality where the Frobenius norm bounds best, and ‖s·U‖₂ ≤ 0.16·√(mn)."""
    rows, cols = x.shape[-2:]
    assert AUON.rms is not None
    scale = 0.2 / AUON.rms(rows, cols, AUON.defaults)
    assert scale == pytest.approx(0.2 * math.sqrt(2 / math.pi * rows * cols))
    for one in scale * auon(x):
        if one.count_nonzero():
            assert float(one.square().mean().sqrt()) > 0.2 * math.sqrt(2 / math.pi) * (1 - 1e-12)


def test_no_product_of_matrices_is_computed() -> None:
    """Linear time: torch counts the operations of products, and there are none."""
    for variant in ("spectral_bound", "paper", "repository"):
        with FlopCounterMode(display=False) as counter:
            auon(torch.randn(64, 96), variant)
        assert counter.get_total_flops() == 0
    with FlopCounterMode(display=False) as counter:
        hybrid(torch.randn(64, 96), variant="paper")
    assert counter.get_total_flops() == 2 * (64 * 96 * 64 + 64 * 64 * 64 + 64 * 64 * 96)  # one step's three products


# ------------------------------------------------------------------------------------------------ options


def test_options_reach_the_rules() -> None:
    weight = ("mlp.up_proj.weight", nn.Parameter(torch.randn(8, 6)))
    (group,) = AuON([weight], variant="paper", scale="shape_scaling").param_groups
    assert (group["rule"], group["variant"], group["scale"]) == ("auon", "paper", "shape_scaling")
    (group,) = HybridAuON([weight], variant="paper").param_groups
    assert (group["rule"], group["variant"], group["ns_steps"]) == ("hybrid_auon", "paper", None)
    assert torch.equal(
        hybrid(torch.eye(6, dtype=torch.float64) + 0.1, variant="paper"),
        hybrid(torch.eye(6, dtype=torch.float64) + 0.1, variant="paper", ns_steps=1),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "papers"}, "variant='papers'.*'repository', 'paper'"),
        ({"ns_steps": "five"}, "ns_steps='five'.*a whole number or None"),
        ({"ns_steps": 0}, "steps must be a whole number of at least 1 and at most 1000, got 0"),
        ({"variant": "paper", "ns_coefficients": "cubic5"}, "cubic5.*exactly 5 steps, got steps=1"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HybridAuON([("up_proj.weight", nn.Parameter(torch.randn(4, 4)))], **options)


def test_mean_cosh_squared_is_what_it_says() -> None:
    z = torch.tensor([[0.0, 1.0], [-2.0, 0.5]], dtype=torch.float64)
    expected = sum(math.cosh(v) ** 2 for v in (0.0, 1.0, 2.0, 0.5)) / 4
    assert float(_cosh.mean_cosh_squared(z)) == pytest.approx(expected, rel=1e-15)

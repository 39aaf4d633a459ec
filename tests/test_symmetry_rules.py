"""The symmetry family's identities, against float64 references written out step by step.

Identities hold for absolute eps and damping of 0. Where a rule damps rows by ρ = 1e-5, the test either takes a mode
that does not reach the rows at hand (``clamp``: rows longer than 1e-8 are exact) or states what ρ costs.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import group_element, matrices, matrix, relative_error
from torch import Tensor

from orthoopt import orthogonalize, rules

ROW_NORM, RIGHT, LEFT = (rules.get(name) for name in ("row_norm", "right_spectral", "left_spectral"))
HYBRID, SPECTRAL = rules.get("hybrid"), rules.get("spectral")
ORDERS = ("row_then_polar", "polar_then_row")
NU_MODES = ("none", "nuclear", "nuclear_over_frobenius")

sizes = st.integers(2, 16)
seeds = st.integers(0, 2**31)


def direct(rule: rules.Rule, x: Tensor, **options: Any) -> Tensor:
    return rule.direct(x, {**rule.defaults, **options})


def exact(x: Tensor) -> Tensor:
    """The polar factor of a matrix of full rank, by its SVD."""
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return u @ vh


def row(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def project(x: Tensor) -> Tensor:
    """Π x with the projector written out."""
    rows = x.shape[-2]
    return (torch.eye(rows, dtype=x.dtype) - torch.full((rows, rows), 1 / rows, dtype=x.dtype)) @ x


def inverse_root(gram: Tensor, eps: float = 0.0) -> Tensor:
    values, vectors = torch.linalg.eigh(gram)
    return vectors @ torch.diag((values + eps).rsqrt()) @ vectors.mT


def conditioned(rows: int, cols: int, seed: int) -> Tensor:
    """Singular values from 1 to 0.5, of which inverses and roots of Gram matrices lose few digits."""
    return matrix(rows, cols, "even", seed)


# I4


@given(sizes, sizes, seeds, st.sampled_from([0.0, 1e-3, 1e-2, 1.0]))
def test_left_and_right_inverse_roots_are_one_map_damped_or_not(rows: int, cols: int, seed: int, eps: float) -> None:
    """X(XᵀX + εI)^-½ = (XXᵀ + εI)^-½X. At ε = 0 only the side without null directions can be inverted."""
    x = conditioned(rows, cols, seed)
    right_exists, left_exists = eps > 0 or cols <= rows, eps > 0 or rows <= cols
    right = x @ inverse_root(x.mT @ x, eps) if right_exists else exact(x)
    left = inverse_root(x @ x.mT, eps) @ x if left_exists else exact(x)
    # The root of a null eigenvalue, ε^-½ ≤ 32, magnifies what rounding leaves of X in its direction.
    assert relative_error(left, right) < 1e-12
    if eps == 0:
        assert relative_error(direct(RIGHT, x, method="svd"), right) < 1e-12
        assert relative_error(direct(LEFT, x, method="svd"), left) < 1e-12


@given(matrices(batched=True), st.sampled_from(["newton_schulz", "svd"]), st.sampled_from(["none", "pre", "both"]))
def test_left_and_right_rules_are_the_same_to_the_bit(x: Tensor, method: str, centre: str) -> None:
    assert torch.equal(direct(RIGHT, x, method=method, centre=centre), direct(LEFT, x, method=method, centre=centre))


@given(matrices(batched=True), st.sampled_from(["muon", "polar_express", "cans"]))
def test_uncentred_without_nu_they_are_muons_direction(x: Tensor, table: str) -> None:
    assert torch.equal(direct(RIGHT, x, ns_coefficients=table), direct(SPECTRAL, x, ns_coefficients=table))


# ν


@given(sizes, sizes, seeds, st.sampled_from(NU_MODES), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.booleans())
def test_nu_against_singular_values(rows: int, cols: int, seed: int, mode: str, power: float, centred: bool) -> None:
    assume(not centred or rows > cols)  # so that the centred matrix has full rank too
    x = 3e-5 * matrix(rows, cols, "gaussian", seed)
    seen = project(x) if centred else x
    s = torch.linalg.svdvals(seen)
    assume(s[-1] > 1e-2 * s[0])
    nu = {"none": 1.0, "nuclear": s.sum(), "nuclear_over_frobenius": s.sum() / s.square().sum().sqrt()}[mode]
    centre = "both" if centred else "none"
    update = direct(RIGHT, x, nu_mode=mode, nu_power=power, method="svd", centre=centre)
    assert relative_error(update, nu**power * exact(seen)) < 1e-11  # condition 1e2 times rounding


@given(matrices(), st.floats(0.0, 2.0), st.sampled_from([1e-25, 1e-3, 1e20]))
def test_nuclear_is_homogeneous_of_degree_alpha(x: Tensor, power: float, c: float) -> None:
    plain = direct(RIGHT, x, nu_mode="nuclear", nu_power=power)
    scaled = direct(RIGHT, c * x, nu_mode="nuclear", nu_power=power)
    assert relative_error(scaled, c**power * plain) < 1e-9  # rounding of c·x in directions the slope magnifies


@given(matrices(batched=True), st.sampled_from([mode for mode in NU_MODES if mode != "none"]))
def test_nu_is_each_matrices_own(x: Tensor, mode: str) -> None:
    """Also at scales of the gradient whose squares are outside float32."""
    x = x.flatten(0, -3) if x.ndim > 2 else x.unsqueeze(0)
    wild = torch.cat([1e25 * x, x, 1e-25 * x]).float()
    update = direct(RIGHT, wild, nu_mode=mode)
    assert update.isfinite().all()
    # Batched and single float32 products may sum in another order; the slope of five steps is up to 1e3.
    assert relative_error(update[len(x) : 2 * len(x)], direct(RIGHT, x.float(), nu_mode=mode)) < 1e-3


# I5 to I9


@given(sizes, sizes, seeds, st.sampled_from(NU_MODES), st.sampled_from([0.5, 1.0]))
def test_i5_a_row_normalization_at_the_end_takes_nu_out(
    rows: int, cols: int, seed: int, mode: str, power: float
) -> None:
    x = conditioned(rows, cols, seed)
    options = {"order": "polar_then_row", "eps_mode": "clamp", "method": "svd"}
    nu = {"none": 1.0, "nuclear": (x * exact(x)).sum(), "nuclear_over_frobenius": (x * exact(x)).sum() / x.norm()}
    literally = row(nu[mode] ** power * exact(x))
    assert relative_error(direct(HYBRID, x, nu_mode=mode, nu_power=power, **options), literally) < 1e-12
    assert relative_error(direct(HYBRID, x, nu_power=0.0, **options), literally) < 1e-12


@given(sizes, st.integers(0, 16), seeds)
def test_i6_wide_polar_then_row_is_polar(rows: int, more: int, seed: int) -> None:
    x = conditioned(rows, rows + more, seed)
    update = direct(HYBRID, x, order="polar_then_row", eps_mode="clamp", method="svd")
    assert relative_error(update, exact(x)) < 1e-12
    if more == 0:
        return
    tall = direct(HYBRID, x.mT, order="polar_then_row", eps_mode="clamp", method="svd")
    assert relative_error(tall, row(exact(x.mT))) < 1e-12
    assert relative_error(tall, exact(x.mT)) > 1e-3  # rows of a tall polar factor have unequal lengths


@given(sizes, sizes, seeds)
def test_i7_row_then_polar_of_equal_rows_is_polar(rows: int, cols: int, seed: int) -> None:
    x = row(matrix(rows, cols, "gaussian", seed))
    s = torch.linalg.svdvals(x)
    assume(s[-1] > 0.05 * s[0])
    for c in (1.0, 1e-6):
        update = direct(HYBRID, c * x, eps_mode="clamp", method="svd")
        assert relative_error(update, exact(x)) < 1e-12
    # Damping shortens equal rows equally, which the polar factor does not see.
    assert relative_error(direct(HYBRID, x, method="svd"), exact(x)) < 1e-12
    assert relative_error(direct(HYBRID, x), direct(SPECTRAL, x, ns_coefficients="polar_express")) < 1e-12


@given(sizes, sizes, seeds, st.sampled_from(["newton_schulz", "svd"]))
def test_i8_nuclear_is_nuclear_over_frobenius_times_the_root_of_the_rows(
    rows: int, cols: int, seed: int, method: str
) -> None:
    x = matrix(rows, cols, "gaussian", seed)
    nuclear, over = (
        direct(HYBRID, x, nu_mode=mode, eps_mode="clamp", method=method)
        for mode in ("nuclear", "nuclear_over_frobenius")
    )
    assert relative_error(math.sqrt(rows) * over, nuclear) < 1e-12


@given(st.integers(1, 32), seeds, st.sampled_from([1e-30, 1.0, 1e30]))
def test_i9_one_row(cols: int, seed: int, scale: float) -> None:
    v = scale * matrix(1, cols, "gaussian", seed)
    # Relative damping of a single row is by its own length.
    assert relative_error(direct(ROW_NORM, v) * (1 + 1e-5), v / v.norm()) < 1e-12
    if scale > 1e-8:
        assert relative_error(direct(ROW_NORM, v, eps_mode="clamp"), v / v.norm()) < 1e-12
    for rule in (ROW_NORM, RIGHT, HYBRID):
        for centre in ("pre", "both"):
            assert torch.equal(direct(rule, v, centre=centre), torch.zeros_like(v))


@given(st.integers(1, 40), st.integers(1, 16), seeds, st.sampled_from([torch.float32, torch.float64]))
def test_equal_rows_have_nothing_left_once_centred(rows: int, cols: int, seed: int, dtype: torch.dtype) -> None:
    """Rounding would otherwise be brought to full length: 1/m is not exact, so neither is the mean."""
    x = matrix(1, cols, "gaussian", seed).to(dtype).expand(rows, cols).contiguous()
    for rule in (ROW_NORM, RIGHT, HYBRID):
        assert torch.equal(direct(rule, x, centre="both"), torch.zeros_like(x))


# I29, I30


@given(
    matrices(batched=True),
    st.sampled_from(["none", "pre", "both"]),
    st.sampled_from(["relative", "add", "clamp"]),
    st.sampled_from(ORDERS),
)
def test_i29_column_aware_rules_are_the_row_rules_of_the_transpose(
    x: Tensor, centre: str, eps_mode: str, order: str
) -> None:
    for rule, more in ((ROW_NORM, {}), (HYBRID, {"order": order, "nu_mode": "nuclear_over_frobenius"})):
        options = {"centre": centre, "eps_mode": eps_mode, **more}
        by_columns, by_rows = direct(rule, x, axis="cols", **options), direct(rule, x.mT, axis="rows", **options)
        assert torch.equal(by_columns, by_rows.mT)


@given(sizes, sizes, seeds, st.sampled_from([RIGHT, LEFT]), st.sampled_from(NU_MODES))
def test_i30_an_exact_polar_factor_of_a_centred_matrix_is_centred(
    rows: int, cols: int, seed: int, rule: rules.Rule, mode: str
) -> None:
    x = conditioned(rows, cols, seed)
    s = torch.linalg.svdvals(project(x))[: min(rows - 1, cols)]
    assume(s[-1] > 1e-2)  # centring may bring a matrix near lower rank, where the SVD magnifies rounding
    once, twice = (direct(rule, x, centre=centre, method="svd", nu_mode=mode) for centre in ("pre", "both"))
    assert relative_error(once, twice) < 1e-12
    assert twice.sum(0).abs().max() < 1e-12 * max(1.0, float(twice.norm()))


# What the table of groups says besides


@given(
    sizes, sizes, seeds, st.sampled_from(ORDERS), st.sampled_from(["none", "pre", "both"]), st.sampled_from(NU_MODES)
)
def test_the_hybrid_step_by_step(rows: int, cols: int, seed: int, order: str, centre: str, mode: str) -> None:
    x = matrix(rows, cols, "gaussian", seed)
    assume(centre == "none" or rows > cols)
    seen = x if centre == "none" else project(x)
    normalized = project(row(seen)) if centre == "both" else row(seen)
    s = torch.linalg.svdvals(normalized if order == "row_then_polar" else seen)
    assume(s[-1] > 1e-2 * s[0])
    if order == "polar_then_row":
        expected = row(exact(seen))
    else:
        nu = {"none": 1.0, "nuclear": s.sum(), "nuclear_over_frobenius": s.sum() / s.square().sum().sqrt()}[mode]
        expected = nu * exact(normalized)
    expected = project(expected) if centre == "both" else expected
    update = direct(HYBRID, x, order=order, centre=centre, nu_mode=mode, eps_mode="clamp", method="svd")
    assert relative_error(update, expected) < 1e-11  # condition 1e2 times rounding


@given(sizes, sizes, seeds)
def test_uncentred_row_then_polar_does_not_see_the_lengths_of_rows(rows: int, cols: int, seed: int) -> None:
    x = row(matrix(rows, cols, "gaussian", seed))
    scales = torch.logspace(-1, 1, rows, dtype=torch.float64)[torch.randperm(rows)].unsqueeze(1)
    exactly = {"eps_mode": "clamp"}
    assert relative_error(direct(HYBRID, scales * x, **exactly), direct(HYBRID, x, **exactly)) < 1e-12
    # ρ = 1e-5 of a root mean square length of at most 10 shortens a row of 0.1 by a thousandth, and the polar factor
    # moves by at most twice that over the smallest singular value (both matrices are within a thousandth of x).
    smallest = float(torch.linalg.svdvals(x)[-1])
    assume(smallest > 0.05)
    difference = direct(HYBRID, scales * x, method="svd") - direct(HYBRID, x, method="svd")
    assert difference.norm() < 2 * 1e-3 * float(x.norm()) / (smallest - 1e-3 * float(x.norm()))


@given(st.integers(3, 16), st.integers(3, 16), seeds)
def test_centring_or_the_other_order_sees_the_lengths_of_rows(rows: int, cols: int, seed: int) -> None:
    x = row(matrix(rows, cols, "gaussian", seed))
    scales = torch.logspace(-1, 1, rows, dtype=torch.float64).unsqueeze(1)
    for options in ({"order": "polar_then_row"}, {"centre": "both"}):
        changed, plain = direct(HYBRID, scales * x, **options), direct(HYBRID, x, **options)
        assert relative_error(changed, plain) > 1e-3


@given(st.integers(4, 16), st.integers(1, 16), seeds)
def test_polar_then_row_of_a_tall_matrix_breaks_rotations_of_its_rows(cols: int, more: int, seed: int) -> None:
    """The conformance suite looks at wide matrices, where nothing breaks (I6)."""
    x = conditioned(cols + more, cols, seed)
    turn = group_element("orthogonal", cols + more, seed + 1)
    turned, plain = (direct(HYBRID, y, order="polar_then_row") for y in (turn @ x, x))
    assert relative_error(turned, turn @ plain) > 1e-3


@given(st.integers(4, 40), sizes, seeds)
def test_one_projection_is_not_enough_for_rows(rows: int, cols: int, seed: int) -> None:
    """Rows of unequal length leave the subspace when they are normalized."""
    x = matrix(rows, cols, "gaussian", seed) * torch.logspace(0, -1, rows, dtype=torch.float64).unsqueeze(1)
    once, twice = (direct(ROW_NORM, x, centre=centre) for centre in ("pre", "both"))
    assert once.sum(0).norm() > 1e-3 * once.norm()
    assert twice.sum(0).norm() < 1e-12 * rows
    assert relative_error(twice, project(once)) < 1e-12


def test_bfloat16_leaves_the_centred_subspace_and_the_rules_do_not() -> None:
    """A centred rule iterates in float32 unless told; told otherwise, its final projection brings it back."""
    x = project(matrix(16, 64, "gaussian", 0)).float()

    def off(update: Tensor) -> float:
        return float(update.double().sum(0).norm() / update.double().norm())

    assert off(orthogonalize(x, coefficients="muon", dtype=torch.bfloat16)) > 0.05
    for rule in (RIGHT, HYBRID):
        assert off(direct(rule, x, centre="both")) < 1e-5  # 16 float32 roundings, and the slope of five steps before
        assert off(direct(rule, x, centre="both", ns_dtype="bfloat16")) < 1e-5
    assert off(direct(RIGHT, x, centre="pre")) < 1e-3
    assert off(direct(RIGHT, x, centre="pre", ns_dtype="bfloat16")) > 1e-2


@pytest.mark.parametrize("eps_mode", ["relative", "add", "clamp"])
def test_short_rows_are_damped_as_the_mode_says(eps_mode: str) -> None:
    x = torch.diag(torch.tensor([1.0, 1e-3, 1e-9, 0.0], dtype=torch.float64))
    lengths = direct(ROW_NORM, x, eps_mode=eps_mode).norm(dim=1)
    rms = float(x.norm(dim=1).square().mean().sqrt())
    damped = {
        "relative": [v / (v + 1e-5 * rms) for v in (1.0, 1e-3, 1e-9)],
        "add": [v / (v + 1e-8) for v in (1.0, 1e-3, 1e-9)],
        "clamp": [1.0, 1.0, 1e-9 / 1e-8],
    }[eps_mode]
    assert lengths.tolist() == pytest.approx([*damped, 0.0], rel=1e-12)


@pytest.mark.parametrize("rule", ["right_spectral", "left_spectral", "hybrid"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nu_power": -1.0}, "nu_power must be at least 0 and finite, got -1.0"),
        ({"nu_power": math.inf}, "nu_power must be at least 0 and finite, got inf"),
        ({"nu_mode": "frobenius"}, "nu_mode='frobenius'.*'nuclear_over_frobenius'"),
        ({"centre": "post"}, "centre='post'.*'pre', 'both'"),
        ({"ns_coefficients": "aol4_old"}, "'aol4_old' are refused"),
        ({"ns_steps": 0}, "steps must be a whole number"),
    ],
)
def test_bad_options_are_named(rule: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rules.get(rule).update(torch.ones(2, 3), **options)


@pytest.mark.parametrize("eps_mode", ["add", "clamp"])
@pytest.mark.parametrize("low", [1e-3, 1e-6, 0.0])
def test_absolute_damping_keeps_short_rows_beside_very_long_ones(eps_mode: str, low: float) -> None:
    """A row's own length decides: squares of rows 1e23 below the largest entry are nothing in float32."""
    x = torch.randn(3, 40, dtype=torch.float64)
    x[0] *= 1e20
    x[1] *= low
    length = x.norm(dim=-1, keepdim=True)
    expected = x / (length + 1e-8 if eps_mode == "add" else length.clamp(min=1e-8))
    update = rules.get("row_norm").direct(x.float(), {**rules.get("row_norm").defaults, "eps_mode": eps_mode})
    # float32 entries, a quotient and the division by the largest magnitude: three roundings of 6e-8.
    torch.testing.assert_close(update.double(), expected, atol=4e-7, rtol=4e-7)

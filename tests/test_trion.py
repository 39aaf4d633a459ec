"""Trion and Dion2: the papers' steps written out, and the identities between them, Muon and other coordinates."""

from __future__ import annotations

import copy
from typing import Any

import models
import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import generator, group_element, matrix, relative_error
from torch import Tensor, nn

import orthoopt.dct
from orthoopt import OrthoOpt, explain, rules
from orthoopt.coefficients import resolve_coefficients
from orthoopt.rules._columns import resolve_rank

SHAPES = [(12, 7), (7, 12), (9, 9), (1, 6), (6, 1)]
Pair = tuple[np.ndarray, np.ndarray]


def gradients(rows: int, cols: int, count: int, seed: int = 0) -> list[Tensor]:
    """Gradients with something in common, as in training, and some noise."""
    common = matrix(rows, cols, "gaussian", seed)
    return [common + matrix(rows, cols, "gaussian", seed + 1 + i) for i in range(count)]


def newton_schulz_by_hand(b: np.ndarray, coefficients: str) -> np.ndarray:
    """Five steps X ← aX + (bA + cA²)X of X₀ = B/(κ‖B‖_F), A = XXᵀ."""
    table = resolve_coefficients(coefficients, 5)
    x = b / (table.kappa * np.linalg.norm(b))
    for first, third, fifth in table.rows:
        a = x @ x.T
        x = first * x + (third * a + fifth * a @ a) @ x
    return x


def trion_by_hand(
    m: np.ndarray, g: np.ndarray, d: np.ndarray, rank: int, norm: int, mu: float, coefficients: str
) -> Pair:
    """One step of Trion on the right side: (U, M)."""
    m = m + g
    s = m @ d
    chosen = np.sort(np.argsort(-np.linalg.norm(s, ord=norm, axis=0), kind="stable")[:rank])
    b = s[:, chosen]
    m = m - (1 - mu) * b @ d[:, chosen].T
    return newton_schulz_by_hand(b, coefficients) @ d[:, chosen].T, m


def cosines(size: int) -> np.ndarray:
    return scipy.fft.dct(np.eye(size), type=2, norm="ortho")


def is_right(rows: int, cols: int, side: str) -> bool:
    return rows >= cols if side == "auto" else side == "right"


@pytest.mark.parametrize("fft", [False, True])
@pytest.mark.parametrize("side", ["auto", "left", "right"])
@pytest.mark.parametrize("selection", ["l1", "l2"])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_twenty_steps_are_the_papers_written_out(
    rows: int, cols: int, selection: str, side: str, fft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orthoopt.dct, "CPU_FFT_FROM", 1 if fft else 10**9)
    right = is_right(rows, cols, side)
    size = cols if right else rows
    rank = -(-size // 4)
    m = np.zeros((rows, cols) if right else (cols, rows))
    state = None
    for grad in gradients(rows, cols, 20):
        update, state = rules.get("trion").update(grad, state, selection=selection, side=side)
        g = grad.numpy() if right else grad.numpy().T
        expected, m = trion_by_hand(m, g, cosines(size), rank, int(selection[1]), 0.95, "muon")
        # Float64 roundings through twenty steps and the slope of the iteration, up to 500 for a weak direction.
        assert relative_error(update, torch.from_numpy(expected if right else expected.T)) < 1e-11
        assert relative_error(state["momentum_buffer"], torch.from_numpy(m if right else m.T)) < 1e-13


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_trion_without_a_basis_is_dion2(rows: int, cols: int, side: str) -> None:
    """I21: identity basis, ℓ₁, same side, table and scale; and both are Dion2's own steps."""
    options = {"selection": "l1", "side": side, "ns_coefficients": "polar_express"}
    trion = dion2 = None
    m = np.zeros((rows, cols))
    size = cols if side == "right" else rows
    for grad in gradients(rows, cols, 20):
        one, trion = rules.get("trion").update(grad, trion, basis="identity", **options)
        other, dion2 = rules.get("dion2").update(grad, dion2, side=side)
        m = m + grad.numpy()
        chosen = np.sort(np.argsort(-np.abs(m).sum(0 if side == "right" else 1), kind="stable")[: -(-size // 4)])
        where = (slice(None), chosen) if side == "right" else (chosen, slice(None))
        expected = np.zeros_like(m)
        expected[where] = newton_schulz_by_hand(m[where], "polar_express")
        m[where] *= 0.95
        assert relative_error(one, other) < 1e-12
        assert relative_error(trion["momentum_buffer"], dion2["momentum_buffer"]) < 1e-12
        assert relative_error(other, torch.from_numpy(expected)) < 1e-11  # as above
        assert relative_error(dion2["momentum_buffer"], torch.from_numpy(m)) < 1e-12


def test_on_squares_trion_takes_columns_and_dion2_rows() -> None:
    grad = matrix(8, 8, "gaussian", 0)
    dion2, _ = rules.get("dion2").update(grad)
    assert (dion2.norm(dim=1) > 0).sum() == 2 and (dion2.norm(dim=0) > 0).all()
    trion, _ = rules.get("trion").update(grad, basis="identity")
    assert (trion.norm(dim=0) > 0).sum() == 2 and (trion.norm(dim=1) > 0).all()


@pytest.mark.parametrize("basis", ["dct", "identity"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_all_columns_in_any_basis_are_muon(rows: int, cols: int, side: str, basis: str) -> None:
    """I22: r = k is heavy-ball Muon without Nesterov. What is left of the momentum is μM: next step's μB."""
    trion = muon = None
    for grad in gradients(rows, cols, 20):
        one, trion = rules.get("trion").update(grad, trion, rank=1.0, side=side, basis=basis)
        other, muon = rules.get("spectral").update(grad, muon, momentum_form="heavy_ball", nesterov=False)
        assert relative_error(one, other) < 1e-12
        assert relative_error(trion["momentum_buffer"], 0.95 * muon["momentum_buffer"]) < 1e-12


def test_all_columns_in_a_random_basis_are_muon_too() -> None:
    """I22 for an orthogonal D that the rule does not offer, by the steps written out."""
    d = group_element("orthogonal", 7, 5).numpy()
    m, muon = np.zeros((12, 7)), None
    for grad in gradients(12, 7, 20):
        expected, m = trion_by_hand(m, grad.numpy(), d, 7, 2, 0.95, "muon")
        update, muon = rules.get("spectral").update(grad, muon, momentum_form="heavy_ball", nesterov=False)
        assert relative_error(update, torch.from_numpy(expected)) < 1e-12


@pytest.mark.parametrize(("rows", "cols"), [(12, 7), (40, 30)])
def test_trion_in_transformed_coordinates(rows: int, cols: int) -> None:
    """I23: hold M̂ = MD, and scale its chosen columns by μ."""
    d = cosines(cols)
    rank = -(-cols // 4)
    transformed, state = np.zeros((rows, cols)), None
    for grad in gradients(rows, cols, 30):
        update, state = rules.get("trion").update(grad, state)
        transformed = transformed + grad.numpy() @ d
        chosen = np.sort(np.argsort(-np.linalg.norm(transformed, axis=0), kind="stable")[:rank])
        expected = newton_schulz_by_hand(transformed[:, chosen], "muon") @ d[:, chosen].T
        transformed[:, chosen] *= 0.95
        assert relative_error(update, torch.from_numpy(expected)) < 1e-12
        assert relative_error(state["momentum_buffer"], torch.from_numpy(transformed @ d.T)) < 1e-12


@pytest.mark.parametrize("name", ["trion", "dct_adamw"])
@pytest.mark.parametrize("shape", [(300, 280), (280, 300)])
def test_the_fft_path_is_the_matmul_path(name: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """I23's second half, where the cut-over lies between the lengths of transform and lift, below and above both."""
    results = []
    for cut_over in (1, 200, 10**9):
        monkeypatch.setattr(orthoopt.dct, "CPU_FFT_FROM", cut_over)
        state = None
        for grad in gradients(*shape, 3):
            update, state = rules.get(name).update(grad, state)
        results.append(update)
    assert relative_error(results[0], results[2]) < 1e-12
    assert relative_error(results[1], results[2]) < 1e-12


@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 2, 0.25, 0.7, 1.0]), st.integers(0, 2**31))
def test_what_was_not_used_stays_in_the_momentum(rows: int, cols: int, rank: int | float, seed: int) -> None:
    """M + G = M' + (1−μ)·P(M + G), with P the projection on the chosen columns, to which the update belongs."""
    first, second = gradients(rows, cols, 2, seed)
    rule, size = rules.get("trion"), min(rows, cols)
    _, state = rule.update(first, rank=rank)
    update, after = rule.update(second, state, rank=rank, ns_coefficients="quintic")
    used = (state["momentum_buffer"] + second - after["momentum_buffer"]) / (1 - 0.95)
    if cols > rows:
        update, used = update.mT, used.mT
    d = torch.from_numpy(cosines(size))
    chosen = (used @ d).norm(dim=0) > 1e-9 * used.norm()
    assert int(chosen.sum()) == resolve_rank(rank, size)
    assert (update @ d)[:, ~chosen].abs().max() < 1e-12 if not chosen.all() else True
    # The iteration keeps singular vectors, so U belongs to the polar factor of what was used: ⟨U, P⟩ is all of ‖P‖_*.
    assert (update * used).sum() > 0


@pytest.mark.parametrize("name", ["trion", "dion2"])
def test_nothing_in_nothing_out(name: str) -> None:
    update, state = rules.get(name).update(torch.zeros(2, 5, 3))
    assert torch.equal(update, torch.zeros(2, 5, 3)) and torch.equal(state["momentum_buffer"], torch.zeros(2, 5, 3))


HADAMARD = torch.from_numpy(scipy.linalg.hadamard(8) / np.sqrt(8))


@pytest.mark.parametrize("basis", ["dct", "identity"])
def test_sums_of_magnitudes_see_rotations_of_the_other_side(basis: str) -> None:
    """Under ℓ₁ rotated rows may change the choice, and so the whole update; under ℓ₂ never.

    Column 0 is one entry of 3, columns 1 and 2 eight entries of 0.9 that lie along an axis after the rotation.
    """
    columns = torch.zeros(8, 4, dtype=torch.float64)
    columns[2, 0] = 3
    columns[:, 1], columns[:, 2] = 0.9 * 8**0.5 * HADAMARD[:, 3], 0.1
    grad = columns @ torch.from_numpy(cosines(4)).mT if basis == "dct" else columns
    errors = {}
    for selection in ("l1", "l2"):
        options: dict[str, Any] = {"rank": 1, "selection": selection, "basis": basis}
        plain, _ = rules.get("trion").update(grad, **options)
        moved, _ = rules.get("trion").update(HADAMARD @ grad, **options)
        errors[selection] = relative_error(moved, HADAMARD @ plain)
    assert errors["l2"] < 1e-12 and errors["l1"] > 1


@given(st.integers(2, 16), st.integers(2, 16), st.sampled_from(["dct", "identity"]), st.integers(0, 2**31))
def test_one_column_alone_is_normalized(rows: int, cols: int, basis: str, seed: int) -> None:
    """r = 1: U = c·(b/‖b‖)·dᵀ with c = f⁵(1/κ), 0.9042 for polar_express."""
    grad = matrix(rows, cols, "gaussian", seed)
    update, _ = rules.get("trion").update(grad, rank=1, basis=basis, side="right", ns_coefficients="polar_express")
    d = torch.from_numpy(cosines(cols)) if basis == "dct" else torch.eye(cols, dtype=torch.float64)
    s = grad @ d
    j = int(s.norm(dim=0).argmax())
    expected = s[:, j : j + 1] / s[:, j].norm() @ d[:, j : j + 1].mT
    ratio = (update * expected).sum()
    assert abs(float(ratio) - 0.904) < 5e-4 and relative_error(update, ratio * expected) < 1e-12


def pairs(count: int, shape: tuple[int, ...]) -> dict[str, nn.Parameter]:
    return {
        f"w{i}": nn.Parameter(torch.randn(shape, generator=generator(i), dtype=torch.float64)) for i in range(count)
    }


@pytest.mark.parametrize("name", ["trion", "dion2", "dct_adamw"])
def test_matrices_with_different_histories_share_a_bucket(name: str) -> None:
    """Two layers of three experts, one of which misses gradients now and then: each is what it would be alone."""
    params = pairs(2, (3, 10, 6))
    alone = copy.deepcopy(params)

    def groups(some: dict[str, nn.Parameter]) -> list[dict]:
        return [{"params": list(some.items()), "rule": name}]

    together = OrthoOpt(groups(params), lr=0.1)
    single = [OrthoOpt(groups({key: param}), lr=0.1) for key, param in alone.items()]
    for step in range(6):
        for i, key in enumerate(params):
            missing = i == 1 and step in (0, 3)
            grad = torch.randn(3, 10, 6, generator=generator(100 * step + i), dtype=torch.float64)
            params[key].grad, alone[key].grad = (None, None) if missing else (grad, grad.clone())
        together.step()
        for optimizer in single:
            optimizer.step()
    for key in params:
        torch.testing.assert_close(params[key], alone[key], atol=1e-12, rtol=1e-12)
    expected = [nn.Parameter(expert.clone()) for expert in pairs(1, (3, 10, 6))["w0"].detach()]
    looped = OrthoOpt([{"params": expected, "rule": name}], lr=0.1)
    for step in range(6):
        grad = torch.randn(3, 10, 6, generator=generator(100 * step), dtype=torch.float64)
        for param, own in zip(expected, grad, strict=True):
            param.grad = own
        looped.step()
    torch.testing.assert_close(params["w0"].detach(), torch.stack([e.detach() for e in expected]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["trion", "dct_adamw"])
def test_a_rank_of_1_and_one_of_1_0_do_not_share_a_bucket(name: str) -> None:
    """1 == 1.0 in Python, as a key too; one is a single column, the other all of them."""
    one, whole = pairs(2, (10, 6)).values()
    optimizer = OrthoOpt(
        [
            {"params": [one], "rule": name, "rank": 1, "basis": "identity"},
            {"params": [whole], "rule": name, "rank": 1.0, "basis": "identity"},
        ],
        weight_decay=0.0,
    )
    before = one.detach().clone(), whole.detach().clone()
    one.grad, whole.grad = torch.randn(2, 10, 6, dtype=torch.float64).unbind()
    optimizer.step()
    changed = [int(((new - old).norm(dim=0) > 0).sum()) for new, old in zip((one, whole), before, strict=True)]
    assert changed == [1, 6]


PARAMETERS = {
    "matrix": ((40, 24), [(40, 24)]),
    "transpose split(8,8,16)": ((24, 32), [(8, 24), (8, 24), (16, 24)]),
    "transpose interleave(2)": ((4, 24, 32), [(4, 16, 24), (4, 16, 24)]),
    "flatten": ((10, 3, 2, 2), [(10, 12)]),
    "heads(4)": ((32, 20), [(4, 8, 20)]),
}


@pytest.mark.parametrize("rank", [1, 5, 1000, 0.25, 1.0])
@pytest.mark.parametrize("view", PARAMETERS)
@pytest.mark.parametrize("error_feedback", [False, True])
def test_state_bytes_follow_from_shapes_alone(view: str, rank: int | float, error_feedback: bool) -> None:
    """Trion and Dion2: 4mn. DCT-AdamW: 8(m+n−k)·r in moments, 12r for indices and counts, 4 for the step."""
    shape, pieces = PARAMETERS[view]
    formulas = {"trion": 0, "dion2": 0, "dct_adamw": 0}
    for *batch, rows, cols in pieces:
        count = int(np.prod(batch, dtype=int))
        size = min(rows, cols)
        r = resolve_rank(rank, size)
        formulas["trion"] += count * 4 * rows * cols
        formulas["dct_adamw"] += count * (8 * max(rows, cols) * r + 12 * r + 4)
        formulas["dct_adamw"] += count * 4 * rows * cols * error_feedback
    formulas["dion2"] = formulas["trion"]
    for dtype in (torch.float32, torch.bfloat16):
        param = nn.Parameter(torch.randn(shape, dtype=dtype))
        for name, expected in formulas.items():
            options = {"rank": rank} | ({"error_feedback": error_feedback} if name == "dct_adamw" else {})
            if dtype == torch.float32:
                override = (r"^w$", {"rule": name, "role": "hidden", "view": view, **options})
                assert explain([("w", param)], "adamw", overrides=[override]).state_bytes == expected
            group = {"params": [("w", param)], "rule": name, "view": view, **options}
            optimizer = OrthoOpt([group])
            param.grad = torch.randn_like(param)
            optimizer.step()
            held = [value for value in optimizer.state[param].values() if isinstance(value, Tensor)]
            assert sum(value.numel() * value.element_size() for value in held) == expected


def test_explain_says_how_many_columns() -> None:
    text = str(explain(models.qwen3(), plan="trion"))
    assert "columns a step" in text or "rows a step" in text
    (down,) = {row.reason for row in explain(models.qwen3(), plan="dct_adamw").rows if "o_proj" in row.name}
    assert "moments of " in down

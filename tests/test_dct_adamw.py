"""DCT-AdamW: the paper's steps with dense rotations, AdamW as its limit, error feedback, and columns that come late."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import scipy.fft
import torch
from strategies import generator, matrix, relative_error
from torch import nn

import orthoopt.rules.dct_adamw
from orthoopt import DCTAdamW, OrthoOpt, rules

SHAPES = [(12, 7), (7, 12), (9, 9), (1, 6), (6, 1)]


def cosines(size: int) -> torch.Tensor:
    return torch.from_numpy(scipy.fft.dct(np.eye(size), type=2, norm="ortho"))


def gradients(rows: int, cols: int, count: int, seed: int = 0) -> list[torch.Tensor]:
    """Gradients of which other columns are large from time to time."""
    return [
        matrix(rows, cols, "gaussian", seed + i) * (1 + 2 * matrix(1, cols, "gaussian", seed + 1000 + i // 3).abs())
        for i in range(count)
    ]


def by_hand(
    grads: list[torch.Tensor],
    d: torch.Tensor,
    rank: int,
    interval: int,
    norm: int,
    rotate: bool,
    feedback: bool,
    betas: tuple[float, float] = (0.9, 0.999),
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The right side in numpy, one (U, E, indices) a step; moments move by the dense rotation D[:, old]ᵀ D[:, new]."""
    rows, size = grads[0].shape
    basis = d.numpy()
    error = np.zeros((rows, size))
    m = v = np.zeros((rows, rank))
    counts, chosen = np.zeros(rank), np.zeros(rank, dtype=int)
    results = []
    for t, grad in enumerate(grads, 1):
        a = grad.numpy() + error * feedback
        if t == 1 or t % interval == 0:
            norms = np.linalg.norm(a @ basis, ord=norm, axis=0)
            new = np.sort(np.argsort(-norms, kind="stable")[:rank])
            if rotate and t > 1:
                rotation = basis[:, chosen].T @ basis[:, new]
                assert np.allclose(rotation, rotation.round(), atol=1e-12)
                # A partial permutation: squares move like the values themselves, and so do counts.
                m, v, counts = m @ rotation, v @ rotation.round(), counts @ rotation.round()
            chosen = new
        kept = a @ basis[:, chosen]
        error = a - kept @ basis[:, chosen].T
        m = betas[0] * m + (1 - betas[0]) * kept
        v = betas[1] * v + (1 - betas[1]) * kept**2
        counts = counts + 1
        hat_m, hat_v = m / (1 - betas[0] ** counts), v / (1 - betas[1] ** counts)
        results.append((hat_m / (np.sqrt(hat_v) + 1e-8) @ basis[:, chosen].T, error, chosen))
    return results


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("selection", ["l1", "l2"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_twenty_steps_are_the_papers_written_out(
    rows: int, cols: int, side: str, selection: str, interval: int, rotate: bool, feedback: bool
) -> None:
    grads = gradients(rows, cols, 20)
    seen = grads if side == "right" else [grad.mT for grad in grads]
    size = seen[0].shape[1]
    rank = -(-size // 4)
    expected = by_hand(seen, cosines(size), rank, interval, int(selection[1]), rotate, feedback)
    choices = set()
    state = None
    for grad, (update, error, chosen) in zip(grads, expected, strict=True):
        options: dict[str, Any] = {
            "betas": (0.9, 0.999), "side": side, "selection": selection, "update_interval": interval,
            "rotate": rotate, "error_feedback": feedback,
        }  # fmt: skip
        ours, state = rules.get("dct_adamw").update(grad, state, **options)
        # Float64 roundings, magnified where a moment is small: entries of 1e-3 here.
        assert relative_error(ours if side == "right" else ours.mT, torch.from_numpy(update)) < 1e-11
        assert state["indices"].tolist() == chosen.tolist()
        choices.add(tuple(chosen.tolist()))
        if feedback:
            mine = state["error_feedback"] if side == "right" else state["error_feedback"].mT
            assert (mine - torch.from_numpy(error)).norm() < 1e-12 * grad.norm()
    assert len(choices) > 1 or size == 1  # the test is of nothing if columns never change


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("feedback", [False, True])
def test_all_columns_without_a_basis_are_torchs_adamw(
    side: str, weight_decay: float, interval: int, feedback: bool
) -> None:
    """I24, on the parameter."""
    ours, theirs = (nn.Parameter(matrix(8, 5, "gaussian", 1)) for _ in range(2))
    options = {"side": side, "update_interval": interval, "error_feedback": feedback}
    a = DCTAdamW(
        [("w", ours)], 3e-3, (0.9, 0.999), 1e-8, weight_decay, rank=1.0, basis="identity", **options,
        overrides={"w": {"role": "hidden", "view": "matrix"}},
    )  # fmt: skip
    assert a.param_groups[0]["rule"] == "dct_adamw"
    b = torch.optim.AdamW([theirs], lr=3e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay)
    for grad in gradients(8, 5, 30):
        ours.grad, theirs.grad = grad, grad.clone()
        a.step()
        b.step()
    assert relative_error(ours.detach(), theirs.detach()) < 1e-14


@pytest.mark.parametrize("side", ["left", "right"])
def test_all_columns_are_adamw_on_the_transformed_parameter(side: str) -> None:
    """I25: DCT-AdamW at r = k on W moves WD as AdamW moves it."""
    start = matrix(8, 5, "gaussian", 1)
    right = side == "right"
    d = cosines(5 if right else 8)
    ours = nn.Parameter(start.clone())
    theirs = nn.Parameter(start @ d if right else d.mT @ start)
    group = {"params": [ours], "rule": "dct_adamw", "rank": 1.0, "side": side, "betas": (0.9, 0.999)}
    a = OrthoOpt([group], lr=3e-3, weight_decay=0.1)
    b = torch.optim.AdamW([theirs], lr=3e-3, betas=(0.9, 0.999), weight_decay=0.1)
    for grad in gradients(8, 5, 30):
        ours.grad, theirs.grad = grad, (grad @ d if right else d.mT @ grad)
        a.step()
        b.step()
    moved = ours.detach() @ d if right else d.mT @ ours.detach()
    assert relative_error(moved, theirs.detach()) < 1e-12


@pytest.mark.parametrize("basis", ["dct", "identity"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("rank", [3, 0.5, 1.0])
@pytest.mark.parametrize("interval", [1, 3])
def test_error_feedback_holds_what_was_left_out(side: str, basis: str, rank: int | float, interval: int) -> None:
    """I26: E = 0 at r = k; below it E has nothing in the chosen columns."""
    state = None
    for grad in gradients(10, 8, 12):
        _, state = rules.get("dct_adamw").update(
            grad, state, side=side, basis=basis, rank=rank, error_feedback=True, update_interval=interval
        )
        error = state["error_feedback"] if side == "right" else state["error_feedback"].mT
        coordinates = error @ cosines(error.shape[1]) if basis == "dct" else error
        assert coordinates[:, state["indices"]].abs().max() < 1e-12 * grad.norm()
        if rank == 1.0:
            assert error.abs().max() < 1e-12
        else:
            assert error.norm() > 0.1 * grad.norm()


def two_columns(late: int) -> list[torch.Tensor]:
    """Gradients of one entry in column 0, and from step ``late`` on in column 2."""
    grads = []
    for t in range(12):
        grad = torch.zeros(4, 3, dtype=torch.float64)
        grad[1, 2 if t >= late else 0] = 0.3 * (-1) ** t + 0.5
        grads.append(grad)
    return grads


@pytest.mark.parametrize("late", [1, 7])
def test_a_column_that_comes_late_starts_like_a_fresh_adam(late: int) -> None:
    """Its first step is lr, whatever the betas; counted by the matrix it would be up to 0.1/√0.001 = 3.16 lr."""
    adam, state = None, None
    for t, grad in enumerate(two_columns(late)):
        update, state = rules.get("dct_adamw").update(
            grad, state, rank=1, basis="identity", betas=(0.9, 0.999), eps=0.0, side="right"
        )
        if t >= late:
            expected, adam = rules.get("adamw").update(grad[:, 2:], adam, betas=(0.9, 0.999), eps=1e-300)
            assert relative_error(update[:, 2:], expected) < 1e-13
            assert t > late or abs(float(update[1, 2]) - 1) < 1e-13
    assert state["slot_step"].tolist() == [12 - late] and state["step"] == 12


def test_without_rotation_a_slot_keeps_the_moments_of_another_column() -> None:
    """The published default: what the hazard is about, and why rotation is on here."""
    grads = two_columns(7)
    states: dict[bool, Any] = {True: None, False: None}
    for grad in grads[:8]:
        for rotate in states:
            _, states[rotate] = rules.get("dct_adamw").update(
                grad, states[rotate], rank=1, basis="identity", rotate=rotate, side="right"
            )
    assert states[True]["indices"].tolist() == states[False]["indices"].tolist() == [2]
    torch.testing.assert_close(states[True]["exp_avg"], 0.1 * grads[7][:, 2:], atol=0, rtol=1e-12)
    assert (states[False]["exp_avg"] - 0.1 * grads[7][:, 2:]).abs().max() > 0.1
    assert states[False]["slot_step"].tolist() == [8]


def test_columns_are_chosen_by_each_matrixs_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two matrices in a bucket misses a gradient, so they are due at different times; with and without a host
    that may look."""
    for looks in (True, False):
        monkeypatch.setattr(orthoopt.rules.dct_adamw, "host_can_read", lambda device, looks=looks: looks)
        params = [nn.Parameter(matrix(9, 6, "gaussian", i)) for i in range(2)]
        optimizer = OrthoOpt([{"params": params, "rule": "dct_adamw", "update_interval": 4}], lr=0.01)
        kept: list[list[list[int]]] = [[], []]
        grads = [gradients(9, 6, 13, seed) for seed in (0, 50)]
        for t in range(13):
            for i, param in enumerate(params):
                param.grad = None if (i, t) == (1, 2) else grads[i][t]
            optimizer.step()
            for i, param in enumerate(params):
                kept[i].append(optimizer.state[param]["indices"].tolist())
        changes = [{t for t in range(1, 13) if own[t] != own[t - 1]} for own in kept]
        # Counting from 0, steps 4, 8, 12 of the first, and of the second, which is one behind from step 2 on.
        assert changes[0] and changes[0] <= {3, 7, 11}
        assert changes[1] and changes[1] <= {4, 8, 12}
        assert [float(optimizer.state[param]["step"]) for param in params] == [13, 12]


def test_looking_whether_columns_are_due_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host may look, steps between choices transform the chosen columns alone."""
    results = []
    for looks in (True, False):
        monkeypatch.setattr(orthoopt.rules.dct_adamw, "host_can_read", lambda device, looks=looks: looks)
        state = None
        for grad in gradients(20, 16, 11):
            update, state = rules.get("dct_adamw").update(grad, state, update_interval=5, error_feedback=True)
        results.append(update)
    assert relative_error(results[0], results[1]) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_whole_numbers_in_the_state_survive_a_checkpoint(dtype: torch.dtype) -> None:
    """torch casts loaded state to the parameter's dtype: indices to bfloat16, in which 257 is 256."""
    param = nn.Parameter(torch.randn(600, 520, generator=generator(0)).to(dtype))
    group = {"params": [("w", param)], "rule": "dct_adamw", "view": "split(300,300)", "rank": 0.5}
    optimizer = OrthoOpt([group], lr=1e-3)
    for i in range(3):
        param.grad = torch.randn(600, 520, generator=generator(i)).to(dtype)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    copied = nn.Parameter(param.detach().clone())
    resumed = OrthoOpt([{**group, "params": [("w", copied)]}], lr=1e-3)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    before, after = optimizer.state[param], copy.deepcopy(resumed).state_dict()["state"][0]
    assert before.keys() == after.keys() == {
        f"{key}.{i}" for key in ("step", "exp_avg", "exp_avg_sq", "indices", "slot_step") for i in range(2)
    }  # fmt: skip
    for key, value in before.items():
        assert after[key].dtype == value.dtype and torch.equal(after[key], value)
    assert after["indices.0"].dtype == torch.int64 and int(after["indices.0"].max()) > 256
    param.grad = copied.grad = torch.randn(600, 520, generator=generator(9)).to(dtype)
    optimizer.step()
    resumed.step()
    assert torch.equal(param, copied)


def test_a_step_of_matrices_is_moved_to_their_device_on_loading() -> None:
    """torch leaves ``step`` where it was saved, which is right for the number that AdamW has on the host alone."""
    param = nn.Parameter(torch.empty(6, 4, device="meta"))
    optimizer = OrthoOpt([{"params": [param], "rule": "dct_adamw"}])
    rule = rules.get("dct_adamw")
    saved = {**rule.init_matrix(torch.zeros(6, 4), rule.defaults)}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": {0: saved}})
    assert {value.device.type for value in optimizer.state[param].values()} == {"meta"}


@pytest.mark.parametrize("name", ["betas", "eps", "rank", "update_interval"])
def test_bad_values_are_named(name: str) -> None:
    bad = {"betas": (0.9, 1.0), "eps": -1.0, "rank": 0.0, "update_interval": 0}[name]
    with pytest.raises(ValueError, match=f"dct_adamw.*{name}"):
        rules.get("dct_adamw").validate({**rules.get("dct_adamw").defaults, name: bad})

"""Choosing columns: how many, of which side, which, and where their moments go."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import generator, matrices

from orthoopt.dct import dct_basis, take_columns
from orthoopt.rules._columns import Selection, check_rank, is_right, keep_slots, resolve_rank, select_columns


@pytest.mark.parametrize(
    ("rank", "size", "expected"),
    [
        (1, 8, 1), (3, 8, 3), (8, 8, 8), (100, 8, 8),
        (1.0, 8, 8), (0.25, 8, 2), (0.25, 9, 3), (0.25, 1, 1), (1e-9, 8, 1), (0.1, 30, 3), (0.3, 10, 3), (0.34, 3, 2),
    ],
)  # fmt: skip
def test_a_rank_counts_columns_or_is_a_share_of_them(rank: int | float, size: int, expected: int) -> None:
    check_rank(rank)
    assert resolve_rank(rank, size) == expected


@given(st.floats(0, 1, exclude_min=True), st.integers(1, 5000))
def test_a_share_is_rounded_up_and_at_least_one(share: float, size: int) -> None:
    rank = resolve_rank(share, size)
    assert 1 <= rank <= size
    assert share * size - 1e-5 <= rank <= share * size + 1  # products that are whole but for rounding stay whole


@pytest.mark.parametrize("rank", [0, -1, 0.0, -0.5, 1.5, float("nan"), float("inf")])
def test_other_ranks_are_refused_with_their_value(rank: int | float) -> None:
    with pytest.raises(ValueError, match=f"rank={rank}.*"):
        check_rank(rank)


def test_auto_is_the_shorter_side() -> None:
    assert is_right("auto", 9, 4) and not is_right("auto", 4, 9)
    assert is_right("auto", 5, 5) and not is_right("auto", 5, 5, square="left")
    assert is_right("right", 4, 9) and not is_right("left", 9, 4)


@given(matrices(batched=True), st.data())
def test_the_largest_columns_keep_at_least_their_share_of_the_energy(x: torch.Tensor, data: st.DataObject) -> None:
    size = x.shape[-1]
    rank = data.draw(st.integers(1, size))
    indices = select_columns(x, rank, "l2")
    assert indices.shape == (*x.shape[:-2], rank) and (indices.diff(dim=-1) > 0).all()
    kept = take_columns(x, indices).square().sum((-2, -1))
    # The mean of the r largest of k numbers is at least the mean of all; 1e-12 for the order of summation.
    assert (kept >= rank / size * x.square().sum((-2, -1)) * (1 - 1e-12)).all()


def test_sums_of_magnitudes_have_no_such_bound() -> None:
    """One spike of length 10 against columns of seven 2s: ‖·‖₁ prefers 14 to 10, with a fifth of its energy."""
    x = torch.zeros(7, 2)
    x[0, 0], x[:, 1] = 10, 2
    assert select_columns(x, 1, "l1").tolist() == [1] and select_columns(x, 1, "l2").tolist() == [0]
    assert x[:, 1].square().sum() < x.square().sum() / 2


@pytest.mark.parametrize("selection", ["l1", "l2"])
def test_of_equal_columns_the_earlier_one_wins(selection: Selection) -> None:
    x = torch.ones(3, 100)
    assert select_columns(x, 7, selection).tolist() == list(range(7))
    x[:, [50, 20]] = 2
    assert select_columns(x, 4, selection).tolist() == [0, 1, 20, 50]
    assert select_columns(torch.zeros(3, 5), 2, selection).tolist() == [0, 1]


@pytest.mark.parametrize("selection", ["l1", "l2"])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_choice_holds_at_every_scale_and_beside_any_neighbour(selection: Selection, scale: float) -> None:
    x = torch.randn(4, 6, 20, generator=generator(3))
    expected = select_columns(x, 5, selection)
    x[1] *= scale  # squares over- or underflow in float32
    assert torch.equal(select_columns(x, 5, selection), expected)


@given(st.integers(1, 20), st.data())
def test_moving_moments_by_a_gather_is_the_rotation_between_two_choices(size: int, data: st.DataObject) -> None:
    """R = D[:, old]ᵀ D[:, new], as the paper multiplies by; here it is a partial permutation of zeros and ones."""
    rank = data.draw(st.integers(1, size))
    source = generator(data.draw(st.integers(0, 2**31)))
    old, new = (
        torch.stack([torch.randperm(size, generator=source)[:rank].sort().values for _ in range(3)]) for _ in range(2)
    )
    moments = torch.randn(3, 4, rank, generator=source, dtype=torch.float64)
    basis = dct_basis(size, torch.float64).mT
    rotation = basis[old] @ basis[new].mT
    slots, kept = keep_slots(old, new)
    moved = take_columns(moments, slots) * kept.unsqueeze(-2)
    torch.testing.assert_close(moved, moments @ rotation, atol=1e-13, rtol=1e-13)  # float64 roundings of the basis
    assert (moved.square() == take_columns(moments.square(), slots) * kept.unsqueeze(-2)).all()

"""The iteration on sizes at which a CPU takes the Gram form, mirrors triangles and works in chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SPECTRA, group_element, matrix, relative_error
from torch import Tensor

from orthoopt import iteration, orthogonalize, start
from orthoopt.coefficients import resolve_coefficients
from orthoopt.newton_schulz import newton_schulz, normalize

SHAPES = ((64, 64), (64, 150), (150, 64), (70, 400), (260, 270), (256, 700), (390, 256))
shapes = st.sampled_from(SHAPES)
seeds = st.integers(0, 2**31)
fewer = settings(max_examples=25)  # these sizes take some milliseconds


def by_svd(x: Tensor, table: str, steps: int) -> Tensor:
    """The definition, in float64."""
    resolved = resolve_coefficients(table, steps)
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / (resolved.kappa * s.norm(dim=-1, keepdim=True))
    for a, b, c in resolved.rows:
        s = a * s + b * s**3 + c * s**5
    return (u * s.unsqueeze(-2)) @ vh


@fewer
@given(
    shapes,
    st.sampled_from(SPECTRA),
    st.sampled_from(["polar_express", "muon", "quintic", "cubic5"]),
    st.sampled_from([-95, -60, -30, 0, 30, 60, 95]),
    st.sampled_from([None, "standard", "gram"]),
    seeds,
)
def test_both_forms_are_the_polynomial_at_every_scale(
    shape: tuple[int, int], spectrum: str, table: str, exponent: int, form: str | None, seed: int
) -> None:
    x = matrix(*shape, spectrum, seed)
    expected = by_svd(x, table, 5)
    # float64: roundings magnified by slopes up to 1e3, and as much again for what R's squares lose.
    assert relative_error(newton_schulz(x * 2.0**exponent, 5, table, form=form), expected) < 1e-9
    small = newton_schulz((x * 2.0**exponent).float(), 5, table, form=form)
    # float32 in Gram form: 5e-3, and 1e-2 where all but one direction is rounding (docs/polar.md); standard 5e-4.
    bound = 5e-4 if form == "standard" else 1e-2 if spectrum in ("rank_one", "outlier") else 5e-3
    assert relative_error(small, by_svd(x.float(), table, 5)) < bound


@fewer
@given(shapes, st.sampled_from([None, "standard", "gram"]), st.integers(-99, 99), seeds)
def test_powers_of_two_change_no_bit(shape: tuple[int, int], form: str | None, exponent: int, seed: int) -> None:
    """Whether the trace is read or the matrix is scaled first: 2^±99 squared is beyond float32."""
    x = matrix(*shape, "gaussian", seed).float()
    assert torch.equal(newton_schulz(x * 2.0**exponent, 5, "muon", form=form), newton_schulz(x, 5, "muon", form=form))


@fewer
@given(shapes, st.sampled_from([1e-30, 1e-12, 1.0, 1e12, 1e30]), st.sampled_from([0.0, 1e-25, 1e25, torch.nan]), seeds)
def test_neighbours_do_not_change_a_bit(shape: tuple[int, int], scale: float, other: float, seed: int) -> None:
    """Their values may need another start: zeros, squares out of range, not numbers."""
    x = matrix(*shape, "gaussian", seed, (3,)).float() * scale
    beside = x.clone()
    beside[1] = (x[1] / scale) * other
    result = newton_schulz(beside, 5, "polar_express")
    expected = newton_schulz(x, 5, "polar_express")
    assert torch.equal(result[0], expected[0]) and torch.equal(result[2], expected[2])
    if other == 0:
        assert torch.equal(result[1], torch.zeros_like(result[1]))
    assert result[1].isfinite().all() == (other == other)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_shows(bad: float) -> None:
    x = torch.randn(2, 64, 200)
    x[1, 3, 5] = bad
    result = newton_schulz(x, 5, "muon")
    assert result[0].isfinite().all() and not result[1].isfinite().any()


@fewer
@given(shapes, seeds)
def test_chunks_and_loops_are_the_batch(shape: tuple[int, int], seed: int) -> None:
    x = matrix(*shape, "gaussian", seed, (2, 3)).float()
    whole = newton_schulz(x, 5, "polar_express")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iteration, "CHUNK_BYTES", 1)
        alone = newton_schulz(x, 5, "polar_express")
    looped = torch.stack([newton_schulz(one, 5, "polar_express") for one in x.flatten(0, 1)]).view_as(x)
    # Products of a batch may sum in another order: float32 roundings through fifteen products, as against float64.
    assert relative_error(alone, whole) < 2e-5 and relative_error(looped, whole) < 2e-5


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("form", ["standard", "gram"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "expanded", "reversed batch"])
def test_layouts_are_read_and_not_written(steps: int, form: str, layout: str) -> None:
    x = matrix(66, 170, "gaussian", 0, (3,)).float()
    if layout == "transposed":
        x = x.mT.contiguous().mT
    elif layout == "sliced":
        x = torch.cat([x, x], -1)[..., ::2]
    elif layout == "expanded":
        x = x[:1].expand(3, 66, 170)
    elif layout == "reversed batch":
        x = torch.stack([x, x], 1).transpose(0, 1)
    before = x.clone()
    result = newton_schulz(x, steps, "muon", form=form)  # type: ignore[arg-type]  # drawn
    assert torch.equal(x, before)
    assert relative_error(result, by_svd(x, "muon", steps)) < 1e-5  # float32, well-conditioned
    assert result.untyped_storage().nbytes() == 4 * result.numel()  # memory of its own, no piece of a workspace


@fewer
@given(shapes, seeds)
def test_it_is_odd_and_commutes_with_transposition(shape: tuple[int, int], seed: int) -> None:
    x = matrix(*shape, "log", seed).float()
    result = orthogonalize(x)
    assert torch.equal(orthogonalize(-x), -result)
    assert shape[0] == shape[1] or torch.equal(orthogonalize(x.mT), result.mT)


@fewer
@given(shapes, seeds)
def test_it_is_equivariant(shape: tuple[int, int], seed: int) -> None:
    x = matrix(*shape, "even", seed)
    left, right = (group_element("orthogonal", size, seed + size) for size in shape)
    moved = orthogonalize((left @ x @ right).float())
    # float32 roundings of the rotated input and of fifteen products.
    assert relative_error(moved, left @ orthogonalize(x.float()).double() @ right) < 2e-5


@fewer
@given(shapes, st.sampled_from(["float32", "float64"]), st.sampled_from([1e-30, 1.0, 1e30]), seeds)
def test_the_start_without_a_norm_is_the_normalized_matrix(
    shape: tuple[int, int], dtype: str, scale: float, seed: int
) -> None:
    kind = getattr(torch, dtype)
    short, long = sorted(shape)
    x = (matrix(short, long, "gaussian", seed, (2,)) * scale).to(kind)
    table = resolve_coefficients("polar_express", 5)
    found = start.start_on_host(x, table, torch.empty(2, short, short, dtype=kind))
    expected = normalize(x, table.kappa)
    assert found.scale is not None
    eps = torch.finfo(kind).eps
    # Sums of at most 1e5 squares, in another order.
    assert relative_error(found.x * found.scale, expected) < 20 * eps
    assert relative_error(found.products, expected.double() @ expected.double().mT) < 50 * eps


def test_coefficients_that_complete_no_square() -> None:
    """Where h = b/2c is large, c(R + hI)² would cancel."""
    x = matrix(64, 200, "even", 0).float()
    for table in ((1.5, -0.5, 1e-7), (2.0, -1.5, 0.5), (1.5, -0.5, 0.0)):
        for form in ("standard", "gram"):
            resolved = newton_schulz(x.double(), 5, table, form=form)  # type: ignore[arg-type]  # drawn
            assert relative_error(newton_schulz(x, 5, table, form=form), resolved) < 1e-5  # type: ignore[arg-type]  # drawn
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 1.5 * s - 0.5 * s**3 + 1e-7 * s**5
    assert relative_error(newton_schulz(x.double(), 5, (1.5, -0.5, 1e-7)), (u * s) @ vh) < 1e-11


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_compiled_it_reads_no_value_and_is_the_same() -> None:
    x = torch.randn(2, 64, 200)
    compiled = torch.compile(lambda x: newton_schulz(x, 5, "muon"), fullgraph=True, backend="aot_eager")
    assert relative_error(compiled(x), newton_schulz(x, 5, "muon")) < 1e-5

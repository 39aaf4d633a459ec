"""The compiled steps against the rules in float64, and against themselves in other company."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import generator
from torch import Tensor

from orthoopt.kernels import native, native_steps, reference_steps
from orthoopt.kernels.reference_steps import Moving
from orthoopt.rules.auon import auon_direction
from orthoopt.rules.row_norm import row_norm_direction

pytestmark = pytest.mark.skipif(not native.available(), reason="no C compiler here, or not Linux")

HALF_ULP = 2.0**-24
EMA, BLEND, SUM = Moving(0.95, 0.05), Moving(0.95, 0.05, 0.05, 0.95), Moving(0.5, 1.0, 1.0, 0.5)
STEPS = [("row_norm", mode) for mode in ("relative", "add", "clamp")]
STEPS += [("auon", variant) for variant in ("spectral_bound", "paper")]

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
batches = st.sampled_from([(), (1,), (3,), (2, 3)])
layouts = st.sampled_from(["contiguous", "columns of a wider one", "every other row", "batch inside"])
movings = st.sampled_from([EMA, BLEND, SUM])
scales = st.sampled_from([1e-30, 1e-20, 1e-8, 1.0, 1e8, 1e20, 1e30])


def laid_out(shape: tuple[int, ...], layout: str, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """A tensor with unit inner stride, and the memory that it is a part of, NaN everywhere else."""
    *batch, rows, cols = shape
    if layout == "columns of a wider one":
        memory = torch.full((*batch, rows, cols + 7), torch.nan)
        part = memory[..., 3 : 3 + cols]
    elif layout == "every other row":
        memory = torch.full((*batch, 2 * rows + 1, cols), torch.nan)
        part = memory[..., 1::2, :]
    elif layout == "batch inside":
        memory = torch.full((rows + 2, *batch, cols), torch.nan)
        part = memory[1:-1].movedim(0, -2)
    else:
        memory = torch.full((2 + len(batch) + torch.Size(shape).numel(),), torch.nan)
        part = memory[1 : 1 + torch.Size(shape).numel()].view(shape)
    part.copy_(torch.randn(shape, generator=source))
    return part, memory


def step(kind: tuple[str, str], params: Sequence[Tensor], grads: Sequence[Tensor], buffers: Sequence[Tensor],
         moving: Moving, **options: Any) -> bool:  # fmt: skip
    options = {"scales": [1.0] * len(params), "lr": 0.5, "keep": 0.9, **options}
    if kind[0] == "row_norm":
        ready = native_steps.prepare_row_norm_step(params, grads, buffers, moving, eps_mode=kind[1], **options)
    else:
        ready = native_steps.prepare_auon_step(params, grads, buffers, moving, variant=kind[1], **options)
    return ready is not None and ready()


def direction(kind: tuple[str, str], signal: Tensor) -> Tensor:
    if kind[0] == "row_norm":
        return row_norm_direction(signal, eps_mode=kind[1])  # type: ignore[arg-type]  # a drawn string
    return auon_direction(signal, variant=kind[1])  # type: ignore[arg-type]  # likewise


def assert_is_the_rule(kind: tuple[str, str], param: Tensor, grad: Tensor, buffer: Tensor, moving: Moving) -> None:
    """One step agrees, entry by entry, with the rule in float64."""
    p, g, b = param.double(), grad.double(), buffer.double()
    assert step(kind, [param], [grad], [buffer], moving, scales=[3.0])
    moved = moving.decay * b + moving.weight * g
    roundings = moving.decay * b.abs() + moving.weight * g.abs()
    # Two products and a sum; 1e-44 is what the smallest float32 numbers are rounded by.
    assert ((buffer - moved).abs() <= 3 * HALF_ULP * roundings + 1e-44).all()
    signal = moving.from_grad * g + moving.from_buffer * moved
    roundings = moving.from_grad * g.abs() + moving.from_buffer * roundings
    made = direction(kind, signal)
    gain = (made.norm(dim=-1, keepdim=True) / signal.norm(dim=-1, keepdim=True)).nan_to_num(0, 0, 0)
    expected = 0.9 * p - 1.5 * made
    # Of the signal six roundings, of a length no more than its terms' (half, for the root), of factors three.
    allowed = 16 * HALF_ULP * (p.abs() + 1.5 * made.abs() + 1.5 * gain * (roundings + 1e-37))
    assert ((param - expected).abs() <= allowed).all()


@given(st.sampled_from(STEPS), batches, shapes, layouts, layouts, movings, scales, st.integers(0, 2**31))
def test_a_step_is_the_rule_in_float64(
    kind: tuple[str, str],
    batch: tuple[int, ...],
    shape: tuple[int, int],
    first: str,
    second: str,
    moving: Moving,
    scale: float,
    seed: int,
) -> None:
    source = generator(seed)
    (param, around_param), (grad, around_grad), (buffer, around_buffer) = (
        laid_out((*batch, *shape), layout, source) for layout in (first, second, first)
    )
    grad.mul_(scale)
    buffer.mul_(scale)
    if shape[0] > 2:
        grad[..., 1, :] = buffer[..., 1, :] = 0  # a row that nothing has moved
    kept = around_grad.clone()
    poison = [memory.isnan() for memory in (around_param, around_buffer)]
    assert_is_the_rule(kind, param, grad, buffer, moving)
    assert torch.equal(around_grad.nan_to_num(), kept.nan_to_num())
    assert torch.equal(around_param.isnan(), poison[0]) and torch.equal(around_buffer.isnan(), poison[1])


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("shape", [(1, 5000), (3000, 1), (37, 2500), (600, 1000), (2, 700, 130)])
def test_rows_and_matrices_longer_than_any_block(kind: tuple[str, str], shape: tuple[int, ...]) -> None:
    source = generator(1)
    assert_is_the_rule(kind, *(torch.randn(shape, generator=source) for _ in range(3)), BLEND)


@pytest.mark.parametrize("kind", STEPS)
def test_rows_of_very_unequal_length(kind: tuple[str, str]) -> None:
    """Each row is measured at its own scale, from 1e-30 to 1e30, though squares of these leave float32."""
    source = generator(2)
    rows = torch.logspace(-30, 30, 13)[:, None]
    grad, buffer = (rows * torch.randn(13, 60, generator=source) for _ in range(2))
    assert_is_the_rule(kind, torch.randn(13, 60, generator=source), grad, buffer, EMA)


@pytest.mark.parametrize("kind", STEPS)
def test_zero_matrices_only_shrink_and_empty_ones_are_no_trouble(kind: tuple[str, str]) -> None:
    param = torch.randn(5, 9)
    expected = 0.9 * param
    assert step(kind, [param, torch.empty(0, 3)], [torch.zeros(5, 9), torch.empty(0, 3)],
                [torch.zeros(5, 9), torch.empty(0, 3)], EMA)  # fmt: skip
    assert torch.equal(param, expected)  # no update, so one product and its one rounding


@pytest.mark.parametrize("kind", STEPS)
def test_bfloat16_is_widened_and_rounded_once(kind: tuple[str, str]) -> None:
    """To the bit what float32 gives from the same numbers; ties and rounding are torch's."""
    source = generator(3)
    param, grad = (torch.randn(33, 1100, generator=source).bfloat16() for _ in range(2))
    buffer = torch.randn(33, 1100, generator=source)
    wide, wide_buffer = param.float(), buffer.clone()
    assert step(kind, [param], [grad], [buffer], BLEND)
    assert step(kind, [wide], [grad.float()], [wide_buffer], BLEND)
    assert torch.equal(param, wide.bfloat16())
    assert torch.equal(buffer, wide_buffer)


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("moving", [EMA, BLEND])
def test_bits_depend_on_the_matrix_alone(kind: tuple[str, str], moving: Moving, threads: Any) -> None:
    """One thread or several, alone or among others, shared by threads or not."""
    sizes = [(40, 70), (700, 800), (3, 129), (130, 600), *[(64, 65)] * 5]

    def run(count: int, chosen: Sequence[int]) -> list[Tensor]:
        threads(count)
        source = generator(4)
        every = [[torch.randn(size, generator=source) for _ in range(3)] for size in sizes]
        params, grads, buffers = zip(*(every[i] for i in chosen), strict=True)
        assert step(kind, params, grads, buffers, moving)
        return [*params, *buffers]

    everything = range(len(sizes))
    together = run(1, everything)
    for count in (2, 3):
        for a, b in zip(run(count, everything), together, strict=True):
            assert torch.equal(a, b)
    for i in everything:
        param, buffer = run(2, [i])
        assert torch.equal(param, together[i]) and torch.equal(buffer, together[len(sizes) + i])


@pytest.mark.parametrize("kind", STEPS)
def test_a_stack_is_its_matrices(kind: tuple[str, str]) -> None:
    param, grad, buffer = (torch.randn(4, 17, 33) for _ in range(3))
    alone = [x.clone() for x in (param, grad, buffer)]
    assert step(kind, [param], [grad], [buffer], EMA)
    assert step(kind, list(alone[0]), list(alone[1]), list(alone[2]), EMA, scales=[1.0] * 4)
    assert torch.equal(param, alone[0]) and torch.equal(buffer, alone[2])


@pytest.mark.parametrize("kind", STEPS)
def test_a_closed_gate_changes_nothing(kind: tuple[str, str]) -> None:
    param, buffer = torch.randn(8, 8), torch.randn(8, 8)
    kept = param.clone(), buffer.clone()
    grad = torch.full((8, 8), torch.nan)
    assert step(kind, [param], [grad], [buffer], EMA, gate=torch.tensor(0.0))
    assert torch.equal(param, kept[0]) and torch.equal(buffer, kept[1])
    opened, plain = param.clone(), param.clone()
    grad = torch.randn(8, 8)
    assert step(kind, [opened], [grad], [buffer.clone()], EMA, gate=torch.tensor(1.0), lr=torch.tensor(0.5))
    assert step(kind, [plain], [grad], [buffer.clone()], EMA)
    assert torch.equal(opened, plain)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize(
    "odd",
    [lambda x: x.double(), lambda x: x.half(), lambda x: x.mT.contiguous().mT, lambda x: x.to("meta")],
    ids=["float64", "float16", "inner stride", "device"],
)
def test_what_is_not_taken_is_left_alone(which: int, odd: Any) -> None:
    """The odd one comes second: the first parameter must not have moved either."""
    for kind in STEPS:
        first = [torch.randn(6, 5) for _ in range(3)]
        second = [torch.randn(6, 5) for _ in range(3)]
        second[which] = odd(second[which])
        kept = [x.clone() for x in (*first, *second)]
        assert not step(kind, *map(list, zip(first, second, strict=True)), EMA)
        for x, y in zip((*first, *second), kept, strict=True):
            assert x.is_meta or torch.equal(x, y)


def test_a_buffer_in_bfloat16_and_an_unknown_variant_are_not_taken() -> None:
    x = torch.randn(4, 4)
    assert not step(("row_norm", "add"), [x], [x.clone()], [x.bfloat16()], EMA)
    assert not step(("auon", "repository"), [x], [x.clone()], [x.clone()], EMA)
    with pytest.raises(ValueError, match=r"eps_mode='sub' must be one of 'relative', 'add', 'clamp'"):
        step(("row_norm", "sub"), [x], [x.clone()], [x.clone()], EMA)
    with pytest.raises(ValueError, match=r"one shape, got \[\(4, 4\), \(4, 3\), \(4, 4\)\]"):
        step(("row_norm", "add"), [x], [torch.randn(4, 3)], [x.clone()], EMA)


def test_autograd_sees_that_parameters_have_changed() -> None:
    param = torch.nn.Parameter(torch.randn(3, 3))
    loss = (param * param).sum()
    with torch.no_grad():
        assert step(("row_norm", "add"), [param], [torch.randn(3, 3)], [torch.zeros(3, 3)], EMA)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ------------------------------------------------------------------------------------------- elementwise steps

dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
any_shape = st.sampled_from([(), (5,), (9000,), (3, 0), (40, 70), (2, 3, 4, 5), (3, 5000), (2, 70, 301)])
any_layout = st.sampled_from(["contiguous", "transposed", "sliced"])


def drawn(shape: tuple[int, ...], layout: str, dtype: torch.dtype, source: torch.Generator) -> Tensor:
    if len(shape) < 2 or layout == "contiguous":
        return torch.randn(shape, generator=source).to(dtype)
    if layout == "transposed":
        return torch.randn(*shape[:-2], shape[-1], shape[-2], generator=source).to(dtype).mT
    return torch.randn(*shape[:-1], shape[-1] + 3, generator=source).to(dtype)[..., 1:-2]


gates = st.sampled_from([None, 0.0, 1.0])


@given(any_shape, any_layout, any_layout, dtypes, dtypes, movings, gates, st.integers(0, 99))
def test_momentum_into_is_the_reference(
    shape: tuple[int, ...],
    layout: str,
    out_layout: str,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    moving: Moving,
    gate: float | None,
    seed: int,
) -> None:
    source = generator(seed)
    grad, buffer = drawn(shape, layout, dtype, source), drawn(shape, layout, torch.float32, source)
    out = drawn(shape, out_layout, out_dtype, source)
    expected_buffer, expected = buffer.double(), torch.empty(shape, dtype=torch.float64)
    closed = None if gate is None else torch.tensor(gate)
    reference_steps.momentum_into([grad.double()], [expected_buffer], [expected], moving, closed)
    kept = grad.clone()
    native_steps.momentum_into([grad], [buffer], [out], moving, closed)
    # Terms of at most a few units, five roundings each; the result is rounded to its own dtype once more.
    torch.testing.assert_close(buffer.double(), expected_buffer, rtol=4 * HALF_ULP, atol=32 * HALF_ULP)
    rounding = torch.finfo(out_dtype).eps / 2
    torch.testing.assert_close(out.double(), expected, rtol=rounding + 8 * HALF_ULP, atol=64 * HALF_ULP)
    assert torch.equal(grad, kept)


@given(any_shape, any_layout, st.integers(0, 99))
def test_a_buffer_may_be_its_own_signal(shape: tuple[int, ...], layout: str, seed: int) -> None:
    source = generator(seed)
    grad, buffer = drawn(shape, layout, torch.float32, source), drawn(shape, layout, torch.float32, source)
    expected = buffer.double()
    reference_steps.momentum_into([grad.double()], [expected], None, EMA)
    native_steps.momentum_into([grad], [buffer], [buffer], EMA)
    torch.testing.assert_close(buffer.double(), expected, rtol=4 * HALF_ULP, atol=32 * HALF_ULP)


@given(any_shape, any_layout, any_layout, dtypes, dtypes, st.integers(0, 99))
def test_subtract_updates_is_the_reference(
    shape: tuple[int, ...], layout: str, other: str, dtype: torch.dtype, update_dtype: torch.dtype, seed: int
) -> None:
    source = generator(seed)
    params = [drawn(shape, layout, dtype, source) for _ in range(2)]
    updates = [drawn(shape, other, update_dtype, source) for _ in range(2)]
    expected = [p.double() for p in params]
    reference_steps.subtract_updates(expected, [u.double() for u in updates], [1.0, 0.25], 0.5, 0.9)
    native_steps.subtract_updates(params, updates, [1.0, 0.25], torch.tensor(0.5), 0.9)
    for param, exact in zip(params, expected, strict=True):
        # Two products and a difference of numbers of a few units, and the parameter's own rounding.
        rounding = torch.finfo(dtype).eps / 2
        torch.testing.assert_close(param.double(), exact, rtol=rounding + 4 * HALF_ULP, atol=32 * HALF_ULP)


# ----------------------------------------------------------------------------------------------- finite or not


@given(
    st.sampled_from([(1,), (7,), (70000,), (300, 500), (3, 5, 7)]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    st.sampled_from([torch.nan, torch.inf, -torch.inf]),
    st.sampled_from(["contiguous", "transposed", "sliced"]),
    st.integers(0, 2**31),
)
def test_one_bad_value_anywhere_is_found(
    shape: tuple[int, ...], dtype: torch.dtype, bad: float, layout: str, seed: int
) -> None:
    source = generator(seed)
    grads = [torch.randn(5, 5), drawn(shape, layout, dtype, source), torch.randn(130, 3)]
    assert native_steps.all_finite(grads)
    where = torch.unravel_index(torch.randint(grads[1].numel(), (), generator=source), shape)
    grads[1][where] = bad
    assert not native_steps.all_finite(grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_largest_numbers_are_finite(dtype: torch.dtype) -> None:
    """Though their sum is not, nor that of their magnitudes."""
    limits = torch.finfo(dtype)
    x = torch.tensor([limits.max, limits.min, limits.tiny, -limits.tiny, 0.0, -0.0] * 999, dtype=dtype)
    assert native_steps.all_finite([x, torch.empty(0, dtype=dtype)])
    assert native_steps.all_finite([])


def test_what_lies_around_a_slice_is_not_looked_at() -> None:
    memory = torch.full((40, 40), torch.nan)
    memory[5:9, 3:20] = 1
    assert native_steps.all_finite([memory[5:9, 3:20], memory[5, 3:20]])


def test_without_a_compiler_everything_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_steps, "library", lambda: None)
    x = torch.randn(4, 5)
    for kind in STEPS:
        assert not step(kind, [x.clone()], [x], [x.clone()], EMA)
    assert native_steps.all_finite([x]) and not native_steps.all_finite([x, x / 0])
    out, buffer, param = torch.empty(4, 5), torch.zeros(4, 5), x.clone()
    native_steps.momentum_into([x], [buffer], [out], EMA)
    native_steps.subtract_updates([param], [x], [1.0], 1.0, 1.0)
    assert torch.equal(out, 0.05 * x) and torch.equal(param, torch.zeros(4, 5))

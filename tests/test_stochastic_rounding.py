"""Stochastic rounding: exact in expectation, by a noise that depends on place and position alone."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orthoopt.stochastic_rounding import first_position, noise, to_bfloat16

COUNT = 2**18
CPU = torch.device("cpu")


def position(number: int) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.int64)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**126), max_value=2.0**126)


@settings(max_examples=50)
@given(value=finite, at=st.integers(0, 2**62))
def test_every_result_is_a_neighbour_and_the_mean_is_the_number(value: float, at: int) -> None:
    x = torch.full((COUNT,), value)
    found = to_bfloat16(x, position(at), "a")
    bits = x[:1].view(torch.int32)
    down = (bits & -0x10000).view(torch.float32).double().item()
    share = (bits & 0xFFFF).item() / 65536  # how far it is to the neighbour away from zero
    up = ((bits & -0x10000) + 0x10000).view(torch.float32).double().item()
    assert set(found.double().tolist()) <= {down, up}
    ups = (found.double() != down).double().mean().item() if share else 0.0
    # A binomial's mean: by Bernstein's inequality beyond this with a probability below 2·exp(−18), 3e-8.
    assert abs(ups - share) <= 6 * math.sqrt(share * (1 - share) / COUNT) + 12 / COUNT
    if share == 0:
        assert torch.equal(found, x.to(torch.bfloat16))


def test_numbers_that_are_not_finite_stay_what_they_are() -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0] * 100)
    x = torch.cat([x, torch.tensor([0x7FFFFFFF, -1]).to(torch.int32).view(torch.float32)])  # NaNs of all ones
    found = to_bfloat16(x, position(7), "a")
    assert torch.equal(found.isnan(), x.isnan())
    assert torch.equal(found[~x.isnan()], x[~x.isnan()].to(torch.bfloat16))
    assert torch.equal(found[3:5].view(torch.int16), x[3:5].to(torch.bfloat16).view(torch.int16))


@settings(max_examples=20)
@given(at=st.integers(0, 2**62), salt=st.text(max_size=4), shape=st.sampled_from([(COUNT,), (512, 512), (64, 8, 512)]))
def test_the_noise_is_uniform_and_knows_nothing_of_its_neighbours(at: int, salt: str, shape: tuple[int, ...]) -> None:
    one = noise(shape, position(at), salt)
    assert one.dtype is torch.int32 and int(one.min()) >= 0 and int(one.max()) <= 65535
    for part in (one & 255, one >> 8):
        seen = torch.bincount(part.flatten(), minlength=256).double()
        chi = ((seen - COUNT / 256) ** 2 / (COUNT / 256)).sum().item()
        # χ² of 255 degrees, near normal: 7 standard deviations, for its upper tail is heavier.
        assert abs(chi - 255) < 7 * math.sqrt(2 * 255)
    flat = one.flatten().double() / 65536 - 0.5
    others = {
        "the next step": noise(shape, position(at + 1), salt),
        "another tensor": noise(shape, position(at), salt + "x"),
        "far away": noise(shape, position(at ^ (1 << 40)), salt),
        "the next entry": one.flatten().roll(1),
        "the next line": one.flatten().roll(shape[-1] // 2),
    }
    for what, other in others.items():
        correlation = 12 * (flat * (other.flatten().double() / 65536 - 0.5)).mean().item()
        assert abs(correlation) < 6 / math.sqrt(COUNT), what


@given(data=st.data(), shape=st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_a_part_has_its_part_of_the_noise_of_the_whole(data: st.DataObject, shape: list[int]) -> None:
    """So shards round as the whole does, and differ from each other."""
    start = [data.draw(st.integers(0, size)) for size in shape]
    sizes = [data.draw(st.integers(0, size - first)) for size, first in zip(shape, start, strict=True)]
    whole = noise(shape, position(12345), "a")
    part = noise(sizes, position(12345), "a", start, shape)
    cut = tuple(slice(first, first + size) for first, size in zip(start, sizes, strict=True))
    assert torch.equal(part, whole[cut])


def test_streams_of_different_names_never_meet() -> None:
    names = [f"model.layers.{layer}.{part}.weight" for layer in range(200) for part in ("q", "k", "v", "up")]
    starts = sorted(int(first_position(name, CPU)) for name in names)
    assert all(later - earlier > 10**7 for earlier, later in zip(starts, starts[1:], strict=False))  # steps apart
    assert starts[0] >= 0 and starts[-1] < 2**62


def test_torchs_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    to_bfloat16(torch.ones(9) / 3, first_position("a", CPU), "a")
    assert torch.equal(before, torch.get_rng_state())

"""ROOT against its definition: the quantile, the clipping, the update of twenty steps, its identities."""

from __future__ import annotations

import math
from typing import Any

import models
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import generator, group_element, matrices, matrix, relative_error
from torch import Tensor, nn

import orthoopt
from orthoopt import OrthoOpt, Root, explain, rules
from orthoopt.adanewton import shipped
from orthoopt.rules.root import clip, entry_quantile

ROOT = rules.get("root")
MUON = (3.4445, -4.7750, 2.0315)
QUANTILES = st.one_of(st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]), st.floats(0, 1))


@given(matrices(batched=True), QUANTILES)
def test_the_quantile_is_numpys_and_torchs(x: Tensor, q: float) -> None:
    level = entry_quantile(x, q)
    entries = x.abs().flatten(-2)
    assert level.shape == (*x.shape[:-2], 1, 1)
    by_numpy = torch.from_numpy(np.asarray(np.quantile(entries.numpy(), q, axis=-1)))
    # One interpolation in float64, in one of two orders of operations.
    torch.testing.assert_close(level[..., 0, 0], by_numpy, rtol=1e-14, atol=1e-14 * float(entries.max()))
    torch.testing.assert_close(level[..., 0, 0], torch.quantile(entries, q, dim=-1), rtol=1e-14, atol=1e-12)


@given(matrices(batched=True), QUANTILES)
def test_a_batch_has_a_quantile_a_matrix(x: Tensor, q: float) -> None:
    flat = x.reshape(-1, *x.shape[-2:])
    alone = torch.stack([entry_quantile(one, q) for one in flat]).reshape(*x.shape[:-2], 1, 1)
    assert torch.equal(entry_quantile(x, q), alone)


def test_the_quantile_beyond_what_torch_quantile_takes() -> None:
    x = torch.randn(4096, 4097, generator=generator(0))
    assert x.numel() > 2**24
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(x.abs().flatten(), 0.9)
    position = 0.9 * (x.numel() - 1)  # float32 could not hold it
    below = math.floor(position)
    entries = x.abs().flatten()
    low, high = (float(entries.kthvalue(below + k).values) for k in (1, 2))
    # Both neighbours are exact; between them a float32 rounding.
    assert low <= float(entry_quantile(x, 0.9)) <= high
    assert float(entry_quantile(x, 0.9)) == pytest.approx(low + (position - below) * (high - low), rel=6e-8)


@given(matrices(), QUANTILES)
def test_clipping_is_the_soft_threshold_and_its_remainder(x: Tensor, q: float) -> None:
    """I11, first half: h − sign(h)·max(|h| − ε, 0) = clamp(h, ±ε), which leaves what is inside to the bit."""
    level = float(entry_quantile(x, q))
    clipped = clip(x, entry_quantile(x, q))
    if level == 0:
        assert torch.equal(clipped, x)
        return
    beyond = x.abs() > level
    assert torch.equal(clipped[~beyond], x[~beyond])
    assert torch.equal(clipped[beyond], level * x[beyond].sign())
    outliers = x.sign() * (x.abs() - level).clamp(min=0)
    torch.testing.assert_close(clipped, x - outliers, rtol=0, atol=4e-16 * float(x.abs().max()))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000), st.integers(0, 2**31))
def test_so_many_entries_are_clipped(rows: int, cols: int, thousandths: int, seed: int) -> None:
    """I11, second half: N − 1 − ⌊q(N − 1)⌋ entries exceed the quantile where none tie.

    In thousandths, so that no position is so near a whole number that interpolation rounds to it.
    """
    size, q = rows * cols, thousandths / 1000
    order = torch.randperm(size, generator=generator(seed)).double() + 1
    x = (order * (torch.randint(0, 2, (size,), generator=generator(seed)) * 2 - 1)).reshape(rows, cols)
    clipped = clip(x, entry_quantile(x, q))
    assert int((clipped != x).sum()) == size - 1 - math.floor(q * (size - 1))


def test_ties_and_zeros() -> None:
    signs = torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])
    assert torch.equal(clip(signs, entry_quantile(signs, 0.9)), signs)
    sparse = torch.zeros(10, 10)
    sparse[3, 4], sparse[5, 6] = 2.0, -1.0
    assert float(entry_quantile(sparse, 0.9)) == 0
    assert torch.equal(clip(sparse, entry_quantile(sparse, 0.9)), sparse)
    update, _ = ROOT.update(sparse)
    assert update[3, 4] > 0.5 and update[5, 6] < -0.5 and update.count_nonzero() == 2
    both = torch.stack([sparse, torch.randn(10, 10)])  # a matrix of zeros beside another: each has its own level
    assert torch.equal(clip(both, entry_quantile(both, 0.9))[0], sparse)


def step_by_step(w: Tensor, grads: list[Tensor], lr: float, decay: float, triple: tuple[float, float, float]) -> Tensor:
    """ROOT as published, one matrix, written out; the absolute eps left out."""
    buffer = torch.zeros_like(w)
    for grad in grads:
        buffer = 0.95 * buffer + grad
        h = grad + 0.95 * buffer
        level = float(np.quantile(h.abs().numpy(), 0.9))
        outliers = h.sign() * (h.abs() - level).clamp(min=0)
        x = h - outliers
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        x = x / x.norm()
        for _ in range(5):
            gram = x @ x.T
            x = triple[0] * x + (triple[1] * gram + triple[2] * gram @ gram) @ x
        w = w * (1 - lr * decay)
        w = w - lr * 0.2 * math.sqrt(max(w.shape)) * (x.T if tall else x)
    return w


@pytest.mark.parametrize("shape", [(128, 352), (352, 128), (24, 40), (40, 3)])
@pytest.mark.parametrize("coefficients", ["fitted", "released"])
def test_twenty_steps_are_the_definition(shape: tuple[int, int], coefficients: str) -> None:
    source = generator(3)
    start = torch.randn(shape, generator=source, dtype=torch.float64)
    grads = [torch.randn(shape, generator=source, dtype=torch.float64) ** 3 for _ in range(20)]
    parameter = nn.Parameter(start.clone())
    optimizer = Root([("layer.weight", parameter)], lr=0.05, weight_decay=0.1, ns_coefficients=coefficients)
    (group,) = optimizer.param_groups
    assert group["rule"] == "root"
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    triple = shipped(*shape, 5).triple if coefficients == "fitted" else MUON
    # float64 roundings magnified by a map whose slope at zero is up to 500.
    assert relative_error(parameter.detach() - start, step_by_step(start, grads, 0.05, 0.1, triple) - start) < 1e-11
    buffer = optimizer.state[parameter]["momentum_buffer"]
    expected = sum(0.95 ** (19 - i) * grad for i, grad in enumerate(grads))
    assert relative_error(buffer, expected) < 1e-14  # the sum itself: nothing is clipped off it


def test_the_released_triples_are_used_on_their_shapes() -> None:
    for cols, name in ((2048, "root_2048x2048"), (3072, "root_2048x3072"), (8192, "root_2048x8192")):
        assert name in ROOT.note(cols, 2048, {**ROOT.defaults, "ns_coefficients": "released"})
    assert ROOT.note(2048, 4096, {**ROOT.defaults, "ns_coefficients": "released"}).endswith("muon")


@given(matrices(), st.sampled_from([torch.float32, torch.float64]), st.sampled_from(["released", "muon", MUON]))
def test_without_clipping_it_is_muon(x: Tensor, dtype: torch.dtype, coefficients: Any) -> None:
    """I10, to the bit."""
    grads = [x.to(dtype), 0.5 * x.roll(1, -1).to(dtype)]
    muon, root, after_muon, after_root = None, None, None, None
    for grad in grads:
        muon, after_muon = rules.get("spectral").update(grad, after_muon, momentum_form="heavy_ball")
        root, after_root = ROOT.update(grad, after_root, quantile=1.0, ns_coefficients=coefficients)
    assert muon is not None and root is not None and torch.equal(root, muon)
    signal = grads[1] + 0.95 * (grads[1] + 0.95 * grads[0])
    assert torch.equal(clip(signal, entry_quantile(signal, 1.0)), signal)


def test_without_clipping_a_model_trains_as_muon_does() -> None:
    trained = []
    for build in (
        lambda model: orthoopt.Muon(model, 0.01, overrides=[(".*proj.*", {"momentum_form": "heavy_ball"})]),
        lambda model: Root(model, 0.01, quantile=1.0, ns_coefficients="muon"),
    ):
        torch.manual_seed(0)
        model = models.qwen3(device="cpu")
        optimizer = build(model)
        for step in range(3):
            for i, param in enumerate(model.parameters()):
                param.grad = torch.randn(param.shape, generator=generator(100 * step + i))
            optimizer.step()
        trained.append([param.detach().clone() for param in model.parameters()])
    assert all(torch.equal(muon, root) for muon, root in zip(*trained, strict=True))


@given(matrices(batched=True))
def test_a_transposed_gradient_gives_the_transposed_update(x: Tensor) -> None:
    """I12."""
    direct, _ = ROOT.update(x)
    transposed, _ = ROOT.update(x.mT)
    assert relative_error(transposed.mT, direct) < 1e-12


@given(st.integers(0, 2**31))
def test_signed_permutations_commute_and_rotations_do_not(seed: int) -> None:
    x = matrix(32, 48, "gaussian", seed)
    update, _ = ROOT.update(x)
    for group, follows in (("signed_permutation", True), ("orthogonal", False)):
        left, right = group_element(group, 32, seed + 1), group_element(group, 48, seed + 2)
        error = relative_error(ROOT.update(left @ x @ right)[0], left @ update @ right)
        # A rotated Gaussian matrix has other extreme entries, a tenth of which is clipped.
        assert error < 1e-12 if follows else error > 0.05


def outvoted() -> Tensor:
    """A clipped matrix of 0.5 and 1 whose polar factor is negative at its corner, where the momentum has 100.

    On constant blocks it acts as [[4.5, 3], [3, 1]], of negative determinant: a reflection with corner (1 − 4.5)/7.
    """
    x = torch.ones(10, 10, dtype=torch.float64)
    x[:9, :9] = 0.5
    x[9, 9] = 100.0
    return x


def test_the_update_may_ascend_along_what_was_clipped_off() -> None:
    """So the rule does not claim to descend, except where it clips nothing."""
    x = outvoted()
    clipped = clip(x, entry_quantile(x, 0.9))
    assert clipped.max() == 1
    update, _ = ROOT.update(x)
    assert (update * clipped).sum() > 0 > (update * x).sum()
    assert not ROOT.descends(ROOT.defaults)
    assert ROOT.descends({**ROOT.defaults, "quantile": 1.0})
    assert (ROOT.update(x, quantile=1.0)[0] * x).sum() > 0


def test_a_threshold_in_units_of_the_root_mean_square() -> None:
    x = matrix(20, 30, "outlier", 1)
    level = 1.5 * x.square().mean().sqrt()
    expected, _ = ROOT.update(x.clamp(-level, level), quantile=1.0, ns_coefficients="muon")
    update, _ = ROOT.update(x, threshold="rms", rms_multiple=1.5, ns_coefficients="muon")
    assert relative_error(update, expected) < 1e-12
    loose, _ = ROOT.update(x, threshold="rms", rms_multiple=1e6, ns_coefficients="muon")
    assert torch.equal(loose, ROOT.update(x, quantile=1.0, ns_coefficients="muon")[0])


def test_the_constructor_has_the_published_values() -> None:
    model = models.qwen3(device="cpu")
    groups = {group["rule"]: group for group in Root(model).param_groups}
    root = groups["root"]
    assert (root["lr"], root["weight_decay"], root["momentum"], root["nesterov"]) == (1e-3, 0.1, 0.95, True)
    assert (root["quantile"], root["ns_steps"], root["momentum_form"]) == (0.9, 5, "heavy_ball")
    assert (root["ns_coefficients"], root["scale"]) == ("fitted", "match_rms_adamw")
    assert groups["adamw"]["betas"] == (0.9, 0.95)


def test_explain_says_which_triple_a_matrix_gets() -> None:
    model = models.transformers_model("Qwen3ForCausalLM", {"num_hidden_layers": 1, "hidden_size": 1000})
    text = explain(model, plan="root").text()
    assert "AdaNewton" in text and "interpolated between" in text
    assert ROOT.note(352, 128, ROOT.defaults).endswith("fitted for 128x352")
    assert ROOT.note(352, 128, {**ROOT.defaults, "ns_steps": 20}).endswith("fitted for 128x352 for 8 steps")
    text = explain(models.gpt2(), plan="root", options={"ns_coefficients": "released"}).text()
    assert "AdaNewton as released: muon" in text
    assert "AdaNewton" not in explain(models.gpt2(), plan="root", options={"ns_coefficients": "muon"}).text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantile": 1.5}, "quantile must be from 0 to 1, got 1.5"),
        ({"quantile": -0.1}, "quantile must be from 0 to 1, got -0.1"),
        ({"rms_multiple": 0}, "rms_multiple must be a positive number, got 0"),
        ({"threshold": "absolute"}, "threshold='absolute'.*'quantile', 'rms'"),
        ({"ns_coefficients": "fited"}, "unknown coefficients 'fited'.*'fitted'"),
        ({"ns_coefficients": "released", "ns_steps": 6}, "'released' allows at most 5 steps, got ns_steps=6"),
        ({"ns_coefficients": "fitted", "ns_steps": 0}, "steps must be .* got 0"),
        ({"ns_coefficients": [(1.0, 2.0)]}, "ns_coefficients"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OrthoOpt([{"params": [torch.zeros(3, 4)], "rule": "root", **options}])

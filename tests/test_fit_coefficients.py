"""Fitting: spectra and errors against the SVD, the guards, held-out momenta of a real model, the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import generator, matrices, matrix
from torch import Tensor, nn

from orthoopt import Root, rules
from orthoopt.adanewton import shipped
from orthoopt.cli import main
from orthoopt.fit_coefficients import (
    MUON,
    TAILS,
    clipped_spectrum,
    errors,
    fit,
    gaussian_spectra,
    largest_output,
    outputs,
    polar_error,
    power_law,
)
from orthoopt.momentum_files import momenta_of_shape

ROOT = rules.get("root")
TRIPLES = [MUON, (2.5, -2.4, 0.9), (3.4, -4.7, 2.05)]


@given(matrices(smallest=2))
def test_spectra_are_those_of_what_newton_schulz_is_given(x: Tensor) -> None:
    spectrum = clipped_spectrum(x)
    entries = x.abs().flatten()
    level = torch.quantile(entries, 0.9)
    clipped = x.clamp(-level, level) if level > 0 else x
    expected = torch.linalg.svdvals(clipped)
    # Through the Gram matrix: singular values below 1e-8 of the largest are lost in float64.
    torch.testing.assert_close(spectrum, expected / expected.norm(), rtol=0, atol=3e-8)
    assert spectrum.norm() == pytest.approx(1)


def test_a_zero_momentum_has_a_zero_spectrum() -> None:
    assert torch.equal(clipped_spectrum(torch.zeros(4, 6)), torch.zeros(4, dtype=torch.float64))


@given(matrices(smallest=2), st.sampled_from(TRIPLES), st.integers(1, 6))
def test_the_error_is_that_of_the_update(x: Tensor, triple: tuple[float, float, float], steps: int) -> None:
    """Mean over matrices of RMS(σ − 1), σ by SVD from the rule's own update."""
    batch = torch.stack([x, x.flip(0) ** 3])
    update = ROOT.direct(batch, {**ROOT.defaults, "ns_coefficients": triple, "ns_steps": steps})
    expected = (torch.linalg.svdvals(update) - 1).square().mean(-1).sqrt().mean()
    # Values lost in the Gram matrix (3e-8) grow by slopes of up to 3.44^6 = 1700.
    assert polar_error(triple, [clipped_spectrum(one) for one in batch], steps) == pytest.approx(
        float(expected), abs=6e-5
    )


@settings(max_examples=4)
@given(st.sampled_from([3, 5, 7]), st.integers(0, 2**31))
def test_a_fit_beats_muons_triple_on_matrices_it_has_not_seen(steps: int, seed: int) -> None:
    shape = (24, 40)
    real = [clipped_spectrum(matrix(*shape, "log", seed + i)) for i in range(3)]
    found = fit(real, gaussian_spectra(shape, 8, seed), steps)
    assert found.bounds.hold and found.largest <= 1.2 and largest_output(found.triple, 30) <= 1.2
    unseen = {
        "gaussian": gaussian_spectra(shape, 8, seed + 1),
        "real": [clipped_spectrum(matrix(*shape, "log", seed + 10 + i)) for i in range(3)],
    }
    ours, muons = errors(found.triple, unseen, steps), errors(MUON, unseen, steps)
    # Clipping makes each draw of these spectra, four decades wide, another one: the guard is about those fitted to.
    assert ours["gaussian"] < muons["gaussian"] and ours["real"] < muons["real"] + 0.01
    assert polar_error(found.triple, real, steps) <= polar_error(MUON, real, steps) + 1e-3


def test_the_guards_hold_where_they_are_tested_hardest() -> None:
    """Gaussian matrices alone would be best served by a map too flat for heavy tails: here the guards decide."""
    shape, steps = (512, 1024), 5
    random = gaussian_spectra(shape, 2, 0)
    tails = {f"{exponent}": [power_law(512, exponent)] for exponent in TAILS}
    found = fit([], random, steps)
    unguarded = (2.9, -3.4, 1.45)
    ours, muons = errors(found.triple, tails, steps), errors(MUON, tails, steps)
    assert polar_error(unguarded, random, steps) < polar_error(found.triple, random, steps)
    assert polar_error(found.triple, random, steps) < polar_error(MUON, random, steps)
    assert polar_error(unguarded, tails["1.0"], steps) > muons["1.0"]
    for exponent in tails:
        assert ours[exponent] <= muons[exponent] + 1e-3  # the price of a violation is finite


def test_a_fit_without_random_matrices_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one spectrum of a random matrix"):
        fit([power_law(4, 1.0)], [], 5)


def test_without_scipy_the_way_out_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ModuleNotFoundError, match=r"fitting coefficients needs scipy.*pip install 'orthoopt\[bench\]'"):
        fit([], [power_law(4, 0.5)], 5)
    assert main(["fit-coefficients", "4", "6"]) == 1
    assert "orthoopt: fitting coefficients needs scipy" in capsys.readouterr().err


def test_the_rule_does_not_need_scipy() -> None:
    code = "import sys; import orthoopt, torch; orthoopt.rules.get('root').update(torch.randn(3, 5)); "
    code += "assert 'scipy' not in sys.modules"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_outputs_are_the_polynomial_iterated() -> None:
    sigma = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    assert outputs((1.5, -0.5, 0.0), sigma, 1).tolist() == [0.0, 0.3671875, 1.0]
    assert largest_output((1.5, -0.5, 0.0), 3) == 1.0
    assert power_law(4, 1.0).tolist() == pytest.approx([w / (205 / 144) ** 0.5 for w in (1, 1 / 2, 1 / 3, 1 / 4)])


class Net(nn.Module):
    """Maps of 24x40 and its transpose, a fused one of two 24x40, and another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(40, 24, bias=False)
        self.tall = nn.Linear(24, 40, bias=False)
        self.fused = nn.Linear(40, 48, bias=False)
        self.other = nn.Linear(24, 24, bias=False)


def saved_optimizer(path: Path, steps: int = 4) -> Root:
    """Root on the net after a few random gradients, its state dict in ``path``."""
    model = Net()
    optimizer = Root(
        model.named_parameters(), overrides=[("fused", {"view": "split(24,24)"}), (".*", {"rule": "root"})]
    )
    for step in range(steps):
        for i, param in enumerate(model.parameters()):
            param.grad = torch.randn(param.shape, generator=generator(10 * step + i))
        optimizer.step()
    torch.save(optimizer.state_dict(), path)
    return optimizer


def test_momenta_are_found_through_views(tmp_path: Path) -> None:
    optimizer = saved_optimizer(tmp_path / "optimizer.pt")
    for source in (tmp_path, tmp_path / "optimizer.pt"):
        found = momenta_of_shape(source, (24, 40))
        assert sorted(momentum.name for momentum in found) == [
            "fused.weight", "fused.weight", "tall.weight", "wide.weight",
        ]  # fmt: skip
        by_name = {n: p for g in optimizer.param_groups for n, p in zip(g["param_names"], g["params"], strict=True)}
        fused = optimizer.state[by_name["fused.weight"]]["momentum_buffer"]
        pieces = [momentum.matrix for momentum in found if momentum.name == "fused.weight"]
        assert torch.equal(torch.cat(pieces), fused)
    assert len(momenta_of_shape(tmp_path, (24, 24))) == 1


def test_torchs_own_state_dict_and_plain_tensors_do(tmp_path: Path) -> None:
    param = nn.Parameter(torch.randn(4, 6))
    muon = torch.optim.Muon([param], lr=0.1)
    param.grad = torch.randn(4, 6)
    muon.step()
    torch.save(muon.state_dict(), tmp_path / "muon.pt")
    assert [m.name for m in momenta_of_shape(tmp_path / "muon.pt", (4, 6))] == ["parameter 0"]
    nested = {"a": [torch.randn(6, 4), torch.randn(4)], "b": torch.randn(3, 4, 6), "c": torch.zeros(4, 6), "d": 1}
    torch.save(nested, tmp_path / "tensors.pt")
    assert [m.name for m in momenta_of_shape(tmp_path / "tensors.pt", (4, 6))] == ["a.0", "b", "b", "b"]


def test_what_is_there_is_named_where_nothing_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved_optimizer(tmp_path / "optimizer.pt")
    with pytest.raises(ValueError, match=r"no momenta of 8x8 .*it has 1 of 24x24, 4 of 24x40"):
        momenta_of_shape(tmp_path, (8, 8))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no optimizer\.pt; it holds nothing"):
        momenta_of_shape(tmp_path / "empty", (8, 8))
    with pytest.raises(ValueError, match="no such file or folder"):
        momenta_of_shape(tmp_path / "nowhere", (8, 8))
    (tmp_path / "text.pt").write_text("not a tensor")
    with pytest.raises(ValueError, match=r"text\.pt cannot be read as tensors"):
        momenta_of_shape(tmp_path / "text.pt", (8, 8))
    torch.save({"state": {}, "param_groups": []}, tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="it has no momenta at all"):
        momenta_of_shape(tmp_path / "bare.pt", (8, 8))
    assert main(["fit-coefficients", "8", "8", "--momentum-from", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "orthoopt fit-coefficients: " in captured.err and "4 of 24x40" in captured.err and not captured.out


def test_the_command_on_a_state_dict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved_optimizer(tmp_path / "optimizer.pt")
    arguments = ["fit-coefficients", "40", "24", "--momentum-from", str(tmp_path)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "found 4 momenta of this shape" in text and "1 held out" in text and "AdaNewton for 24x40" in text
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["momenta"] == {
        "found": 4, "fitted_to": 3, "held_out": 1, "parameters": ["wide.weight", "tall.weight", "fused.weight"],
    }  # fmt: skip
    assert f"ns_coefficients={tuple(result['triple'])}" in text
    assert result["errors"]["fitted"]["momenta"] < result["errors"]["muon"]["momenta"]
    assert result["errors"]["shipped"]["momenta"] == pytest.approx(
        polar_error(shipped(24, 40, 5).triple, [_held_out(tmp_path)], 5)
    )
    assert max(result["largest_singular_value"]["fitted"], result["largest_singular_value"]["shipped"]) <= 1.2
    # What it advises is accepted.
    Root([("layer.weight", nn.Parameter(torch.zeros(24, 40)))], ns_coefficients=tuple(result["triple"]), ns_steps=5)
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result  # the same input, the same triple


def _held_out(folder: Path) -> Tensor:
    return clipped_spectrum(momenta_of_shape(folder, (24, 40))[3].matrix)


def test_the_command_without_momenta_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit-coefficients", "6", "9", "--steps", "3", "--seed", "4"]) == 0
    text = capsys.readouterr().out
    assert "Gaussian matrices alone" in text and "--momentum-from" in text and "seed 4" in text and "3 steps" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "ROWS, COLS"),
        (["0", "4"], "rows must be at least 1, got 0"),
        (["4", "4", "--steps", "0"], "steps must be at least 1"),
        (["4", "4", "--quantile", "2"], "--quantile must be from 0 to 1"),
        (["4", "x"], "invalid int value: 'x'"),
    ],
)
def test_a_wrong_argument_is_a_usage_error(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit-coefficients", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err

"""The coefficients bench: what it collects is what ROOT is given, what it writes, and when it fails; and the shipped
triples of the default recipe's shapes against Muon's on a real model that no table has seen."""

from __future__ import annotations

import json
import random
import sysconfig
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import pytest
import torch
import yaml

import orthoopt
from orthoopt.adanewton import read_table, shipped
from orthoopt.bench import coefficients, momenta
from orthoopt.bench.momenta import Source
from orthoopt.fit_coefficients import MUON, clipped_spectrum, polar_error, power_law
from orthoopt.recipes.corpus import Corpus, text_corpus

TINY = Source("tiny", "Qwen3Config", momenta._qwen3(32, 48, 2, 1, 16, layers=1), "root", 2, 16, (2, 4), (3,), 300)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Path]:
    """A small corpus with some structure, and a cache."""
    root, draw = tmp_path_factory.mktemp("text"), random.Random(0)
    names = ["alpha", "beta", "gamma", "delta", "value", "index", "total", "count"]
    for number in range(12):
        lines = []
        for _ in range(200):
            a, b, c = (draw.choice(names) for _ in range(3))
            lines.append(
                draw.choice([f"{a} = {b} + {c}", f"def {a}({b}):", f"    return {b}({c})", f"for {a} in {b}:"])
            )
        (root / f"{number}.py").write_text("\n".join(lines))
    return text_corpus(root, 0.2), tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _small(text: tuple[Corpus, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coefficients, "stdlib_corpus", lambda fraction: text[0])
    monkeypatch.setitem(momenta.SOURCES, "tiny", TINY)


def command(text: tuple[Corpus, Path], out: Path, *words: str) -> int:
    return coefficients.main(["--models", "tiny", "--out", str(out), "--cache_dir", str(text[1]), *words])


def test_the_recipes_model_is_the_recipes() -> None:
    settings = yaml.safe_load(resources.files("orthoopt.recipes.configs").joinpath("default.yaml").read_text())
    source = momenta.SOURCES["recipe"]
    assert (source.model, source.config) == (settings["model"], settings["model_overrides"])
    assert (source.batch, source.length) == (settings["per_device_train_batch_size"], settings["block_size"])
    assert source.vocabulary == settings["vocab_size"]


def test_fitting_and_judging_are_apart() -> None:
    assert coefficients.FIT_SEED != coefficients.HELD_OUT_SEED
    assert set(coefficients.DEFAULT_MODELS) < set(momenta.SOURCES)


def test_what_is_collected_is_what_root_is_given(text: tuple[Corpus, Path]) -> None:
    """The same training by hand, with the rule's own momentum: spectra of its Nesterov blend after three steps."""
    found = momenta.train(TINY, *text, seed=5, collect_at=(3,))
    model, batches = momenta._start(TINY, *text, seed=5)
    optimizer = orthoopt.Root(model, lr=6e-3, ns_coefficients="muon")
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in (1, 2, 3):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * step / 5
        optimizer.zero_grad()
        tokens = next(batches)
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    expected: dict[tuple[int, int], list[torch.Tensor]] = {}
    for group in optimizer.param_groups:
        if group["rule"] == "root":
            for param in group["params"]:
                h = param.grad + 0.95 * optimizer.state[param]["momentum_buffer"]
                expected.setdefault((min(h.shape), max(h.shape)), []).append(clipped_spectrum(h))
    assert {shape: len(some) for shape, some in found.items()} == {k: len(v) for k, v in expected.items()}
    assert sum(map(len, found.values())) == 7  # q, k, v, o, gate, up, down

    def in_order(some: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(sorted(some, key=lambda s: float(s[0])))

    for shape, some in found.items():
        # The same float32 training; spectra of equal matrices.
        torch.testing.assert_close(in_order(some), in_order(expected[shape]), rtol=0, atol=1e-6)


def test_the_command_fits_judges_and_writes(
    text: tuple[Corpus, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coefficients, "STEPS", (5,))
    file = tmp_path / "table.json"
    assert command(text, tmp_path, "--fit", str(file)) == 0
    written = json.loads(file.read_text())
    table = read_table(written)
    assert set(table) == {5} and set(table[5]) == {(32, 32), (16, 32), (32, 48)}
    assert written["how"]["models"][0]["name"] == "tiny" and "--models tiny" in written["how"]["made_by"]
    result = json.loads(
        (tmp_path / "coefficients_cpu.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON")
    )
    assert result["machine"]["versions"]["torch"] == torch.__version__
    assert result["settings"]["models"] == json.loads(json.dumps([asdict(TINY)]))
    assert result["summary"]["5"]["share"] == 1.0 and result["summary"]["5"]["largest"] <= 1.2
    assert len(result["rows"]) == 3
    for row in result["rows"]:
        shape = tuple(map(int, row["shape"].split("x")))
        assert tuple(row["triples"]["fitted"]["triple"]) == table[5][shape]
        assert set(row["triples"]) == {"muon", "fitted", *coefficients.RELEASED.values()}
        ours, muons = row["triples"]["fitted"]["errors"], row["triples"]["muon"]["errors"]
        assert ours["real_held_out"] < muons["real_held_out"] and 0 < row["better_on_share_of_held_out"] <= 1
    printed = capsys.readouterr().out
    assert "for 3 of 3 shapes" in printed and str(tmp_path / "coefficients_cpu.json") in printed


def test_triples_that_do_not_hold_up_are_a_failure(
    text: tuple[Corpus, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shipped table of the authors' 2048x2048 triple: nearer than Muon's maybe, but it leaves its interval."""
    bad = {5: {(32, 32): (3.4916, -4.8224, 2.1095), (32, 48): MUON, (7, 7): MUON}}
    monkeypatch.setattr(coefficients, "shipped_table", lambda: bad)
    assert command(text, tmp_path) == 1
    printed = capsys.readouterr().out
    assert "DOES NOT HOLD" in printed and "of 2 shapes" in printed  # shapes without momenta are not judged
    result = json.loads((tmp_path / "coefficients_cpu.json").read_text())
    assert result["settings"]["table"].startswith("the shipped")
    assert [row["constraints_hold"] for row in result["rows"]] == [False, False]


@pytest.mark.parametrize("words", [["--models", "gpt3"], ["--threads", "0"], ["--fit"]])
def test_a_wrong_option_is_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        coefficients.main(words)
    assert stop.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_the_shipped_triples_are_better_on_momenta_of_a_model_that_they_have_not_seen(tmp_path: Path) -> None:
    """The default recipe's shapes, in a smaller model, on a few files of real text, from another seed."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    for name in ("argparse", "ast", "dataclasses", "difflib", "inspect", "pickle", "tarfile", "typing"):
        (tmp_path / f"{name}.py").write_bytes((stdlib / f"{name}.py").read_bytes())
    model = momenta._qwen3(128, 352, 4, 2, 32, layers=2)
    source = Source("small", "Qwen3Config", model, "root", 8, 128, (), (), 1024)
    found = momenta.train(source, text_corpus(tmp_path, 0.2), tmp_path / "cache", seed=11, collect_at=(10, 20))
    assert {shape: len(some) for shape, some in found.items()} == {(128, 128): 8, (64, 128): 8, (128, 352): 12}
    for shape, some in found.items():
        ours, muons = (polar_error(triple, some, 5) for triple in (shipped(*shape, 5).triple, MUON))
        assert ours < muons, f"{shape}: {ours:.3f} against {muons:.3f}"


def test_beyond_the_guards_muons_triple_is_better() -> None:
    """What the rule's page warns of."""
    for shape in ((128, 128), (64, 128), (128, 352)):
        steep = [power_law(shape[0], 1.5)]
        assert polar_error(shipped(*shape, 5).triple, steep, 5) > polar_error(MUON, steep, 5)


@pytest.mark.slow
def test_the_default_run_on_the_embedded_corpus_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe's model as the bench trains it, judged by the shipped table at every number of steps."""
    monkeypatch.undo()
    assert coefficients.main(["--models", "recipe", "--out", str(tmp_path), "--cache_dir", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "coefficients_cpu.json").read_text())["summary"]
    assert set(summary) == {"3", "4", "5", "6", "7", "8"}
    assert all(part["share"] == 1.0 and part["largest"] <= 1.2 for part in summary.values())

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from orthoopt import plans
from orthoopt.bench import machine, pretrain
from orthoopt.bench.arms import Arm, parse_arm, parse_arms
from orthoopt.bench.pretrain_options import parse
from orthoopt.bench.runs import BenchError, Run, Runner, check_comparable
from orthoopt.bench.sweep import Trial

# Stands in for the recipe: the same files from a formula. Every plan has its best learning rate; a seed adds a little.
FAKE = """
import json, math, pathlib, sys

words = sys.argv[2:]
options = dict(zip(words[::2], words[1::2]))
here = pathlib.Path(__file__).parent
mistakes = json.loads((here / "mistakes.json").read_text())
plan, lr, seed = pathlib.Path(options["--plan"]).stem, float(options["--learning_rate"]), int(options["--seed"])
with open(here / "calls.txt", "a") as calls:
    calls.write(f"{plan} {lr} {seed}\\n")
if mistakes.get("fails") == plan:
    sys.exit("the recipe says: no such thing")
best, floor = {"adamw": (1e-3, 3.9), "symmetry": (1.6e-2, 3.4)}[plan]
noise = mistakes.get("noise", 0.001) * ((seed if plan == "adamw" else 3 - seed) % 3)
loss = floor + 0.1 * math.log2(lr / best) ** 2 + noise if lr < 0.1 else None
output = pathlib.Path(options["--output_dir"])
rows = [{"step": s, "loss": 8 - 0.1 * s, "tokens": s * 64, "seconds": s} for s in (2, 4, 6, 8)]
rows += [{"step": 8, "eval_loss": loss, "eval_bits_per_byte": loss and loss / 2, "tokens": 512, "seconds": 8}]
(output / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
digest = mistakes.get("digest") or (here / "digest.txt").read_text()
results = {
    "eval_loss": loss, "eval_bits_per_byte": loss and loss / 2, "train_seconds": 1.5, "optimizer_seconds": 0.25,
    "steps": 8 + (mistakes.get("longer") == plan), "tokens": 512, "weight_decay": 0.1, "model": "Fake",
    "parameters": 1000, "corpus": {"name": "text", "digest": digest}, "scored": {"blocks": 1}, "world_size": 1,
    "device": "cpu", "versions": {"torch": "2"},
}
(output / "results.json").write_text(json.dumps(results))
"""


@dataclass(frozen=True)
class Lab:
    """A fake recipe, a small corpus, and what the bench is told to use them."""

    root: Path

    def run(self, *words: str) -> int:
        flags = ["--runs", str(self.root / "runs"), "--out", str(self.root / "out"), "--jobs", "2",
                 "--data", f"text:{self.root / 'corpus'}", "--cache_dir", str(self.root / "cache"),
                 "--vocab_size", "300", "--block_size", "16", "--no_timing", "--name", "pretrain"]  # fmt: skip
        arms = [] if "--arms" in words else ["--arms", "adamw,symmetry"]
        return pretrain.main(
            ["quick", *flags, *arms, *words], command=(sys.executable, "-S", str(self.root / "fake.py"))
        )

    def mistake(self, **mistakes: object) -> None:
        (self.root / "mistakes.json").write_text(json.dumps(mistakes))

    @property
    def calls(self) -> list[str]:
        path = self.root / "calls.txt"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def result(self) -> dict:
        text = (self.root / "out" / "pretrain_cpu.json").read_text()
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    from orthoopt.recipes.arguments import DataArguments
    from orthoopt.recipes.corpus import load_corpus

    (tmp_path / "corpus").mkdir()
    generator = random.Random(0)
    for number in range(20):
        text = " ".join(generator.choices(["alpha", "beta", "return", "value", "="], k=300))
        (tmp_path / "corpus" / f"{number}.txt").write_text(text)
    lab = Lab(tmp_path)
    lab.mistake()
    (tmp_path / "fake.py").write_text(FAKE)
    corpus = load_corpus(DataArguments(data=f"text:{tmp_path / 'corpus'}"))
    (tmp_path / "digest.txt").write_text(str(corpus.info.digest))
    return lab


def test_each_plan_is_compared_at_its_own_best(lab: Lab, capsys) -> None:
    assert lab.run("--trials", "3") == 0
    result = lab.result
    adamw, symmetry = result["plans"]["adamw"], result["plans"]["symmetry"]
    # The fake's bowls have their bottoms at 1e-3 and 1.6e-2; three trials by factor 3 and steps beyond edges find them
    # to a factor of 2.
    assert 5e-4 < adamw["best_learning_rate"] < 2e-3 and 8e-3 < symmetry["best_learning_rate"] < 3.2e-2
    for plan in (adamw, symmetry):
        assert plan["best_is_inside_grid"]
        rates = [row["learning_rate"] for row in plan["grid"]]
        assert rates == sorted(rates) and len(set(rates)) == len(rates)
        assert [row["seed"] for row in plan["seeds"]] == [0, 1, 2]
        # Seed 0 is the sweep's run, not another.
        at_best = next(row for row in plan["grid"] if row["learning_rate"] == plan["best_learning_rate"])
        assert plan["seeds"][0]["validation_loss"] == at_best["validation_loss"]
        low, high = plan["validation_loss"]["ci95"]
        assert low < plan["validation_loss"]["mean"] < high
    assert len(lab.calls) == len(set(lab.calls)) == sum(len(p["grid"]) + 2 for p in (adamw, symmetry))
    assert result["winner"] == result["differences"][0]["winner"] == "symmetry"
    assert result["reference"] == "adamw" and adamw["to_reference"]["share"] == 1.0
    assert symmetry["to_reference"]["tokens"] == 512 and symmetry["timing"] is None
    assert result["settings"]["flags"] and result["settings"]["config_values"]["model"] == "Qwen3Config"
    assert result["corpus"]["digest"] == (lab.root / "digest.txt").read_text()
    assert result["machine"]["sources"] == machine.source_digest()
    assert (lab.root / "out" / "pretrain_cpu.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "symmetry is lower than adamw" in printed and "pretrain_cpu.json" in printed


def test_a_difference_inside_the_noise_has_no_winner(lab: Lab, capsys) -> None:
    lab.mistake(noise=2.0)
    assert lab.run("--trials", "5") == 0
    assert lab.result["winner"] is None
    assert "inside the noise of 3 seeds" in capsys.readouterr().out


def test_finished_runs_are_kept_for_the_same_settings_alone(lab: Lab, capsys) -> None:
    words = ["--arms", "adamw", "--trials", "3", "--seeds", "1"]
    assert lab.run(*words) == 0
    made, first = len(lab.calls), lab.result["plans"]
    assert lab.run(*words) == 0
    assert len(lab.calls) == made and lab.result["plans"] == first
    assert capsys.readouterr().out.count("(kept)") == made
    assert lab.run(*words, "--max_steps", "7") == 0
    assert len(lab.calls) == 2 * made


def test_a_plan_file_is_an_arm_and_its_content_decides_which_runs_are_kept(lab: Lab, capsys, monkeypatch) -> None:
    monkeypatch.chdir(lab.root)
    path = Path("plans") / "symmetry.yaml"  # the fake recipe's best learning rate is found by this name
    path.parent.mkdir()
    path.write_text("base: symmetry\noptions: {momentum: 0.9}\n")
    words = ["--arms", f"adamw,{path}+embedding_x10", "--trials", "3", "--seeds", "1"]
    assert lab.run(*words) == 0
    arm = lab.result["plans"][f"{path}+embedding_x10"]
    assert 8e-3 < arm["best_learning_rate"] < 3.2e-2 and arm["plan"] == str(path)
    assert arm["plan_file"]["base"] == "symmetry" and arm["plan_file"]["roles"]["attention"]["momentum"] == 0.9
    assert lab.result["plans"]["adamw"]["plan_file"] is None
    made = len(lab.calls)
    path.write_text("# a comment decides nothing\nbase: symmetry\noptions: {momentum: 0.9}\n")
    assert lab.run(*words) == 0 and len(lab.calls) == made
    path.write_text("base: symmetry\noptions: {momentum: 0.8}\n")
    assert lab.run(*words) == 0
    again = lab.calls[made:]
    assert again and all(call.startswith("symmetry ") for call in again)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        lab.run("--arms", "plans/symetry.yaml")
    assert "no plan file plans/symetry.yaml; did you mean 'symmetry.yaml'" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["base: muon", "base: ["])
def test_a_plan_file_that_changes_while_the_bench_runs_stops_it(tmp_path: Path, monkeypatch, change: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: adamw")
    arm = parse_arm(str(path))
    path.write_text(change)
    runner = Runner(tmp_path, "default", {}, [], "", 1, 1, (sys.executable, "-c", "pass"))
    with pytest.raises(BenchError, match="plan file.* changed while the bench ran"):
        runner.run(Run(arm, 1e-3, 0))
    assert not list(tmp_path.rglob("finished.json"))


def test_an_interrupted_bench_goes_on_where_it_stopped(lab: Lab, capsys) -> None:
    lab.mistake(fails="symmetry")
    assert lab.run("--trials", "3", "--jobs", "1") == 1
    assert "the recipe says: no such thing" in capsys.readouterr().err
    done = [call for call in lab.calls if call.startswith("adamw")]
    assert done and not (lab.root / "out").exists()
    lab.mistake()
    assert lab.run("--trials", "3", "--jobs", "1") == 0
    assert all(lab.calls.count(call) == 1 for call in done)


def test_rows_of_another_corpus_are_refused(lab: Lab, capsys) -> None:
    lab.mistake(digest="0" * 64)
    assert lab.run("--trials", "3") == 1
    assert "0" * 64 in capsys.readouterr().err


def test_rows_that_differ_in_more_than_the_plan_are_refused(lab: Lab, capsys) -> None:
    lab.mistake(longer="symmetry")
    assert lab.run("--trials", "3") == 1
    assert "has steps 9" in capsys.readouterr().err
    with pytest.raises(BenchError, match="tokens"):
        row = dict.fromkeys(("arm", "seed", "model", "parameters", "corpus", "scored", "steps", "tokens"), 1)
        row |= dict.fromkeys(("weight_decay", "world_size", "device", "versions"), 1)
        check_comparable([row, row | {"tokens": 2}])


def test_changed_sources_stop_the_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "source_digest", lambda: "after")
    command = (sys.executable, "-c", "pass")
    runner = Runner(tmp_path, "default", {}, [], "", 1, 1, command, _sources="before")
    with pytest.raises(BenchError, match="sources changed"):
        runner.run(Run(parse_arm("adamw"), 1e-3, 0))
    assert not list(tmp_path.rglob("finished.json"))


def test_the_key_holds_what_decides_a_result(tmp_path: Path) -> None:
    def key(**changes: object) -> dict:
        settings = {"folder": tmp_path, "config": "default", "settings": {"max_steps": 3}, "flags": ["--a", "1"],
                    "corpus_digest": "c", "jobs": 1, "threads": 1, "_sources": "s"}  # fmt: skip
        return Runner(**(settings | changes)).key_of(Run(parse_arm("adamw"), 1e-3, 0))

    assert key() == key(jobs=2) == key(folder=tmp_path / "elsewhere")
    for change in ({"settings": {"max_steps": 4}}, {"flags": []}, {"corpus_digest": "d"}, {"threads": 2},
                   {"_sources": "t"}):  # fmt: skip
        assert key(**change) != key()


def test_arms() -> None:
    assert parse_arm("symmetry") == Arm("symmetry", "symmetry")
    assert parse_arm("symmetry").flags() == ["--plan", "symmetry"]
    arm = parse_arm("adamw+embedding_x10")
    assert arm.plan == "adamw" and list(arm.overrides.values()) == [{"lr_multiplier": 10.0}]
    with pytest.raises(ValueError, match="did you mean 'symmetry'"):
        parse_arm("symetry")
    with pytest.raises(ValueError, match=r"PLAN\+embedding_xNUMBER"):
        parse_arm("adamw+head_x10")
    changed = parse_arm("muon+ns_steps=3+second_moment=rows+embedding_x2.5")
    assert changed.options == {"ns_steps": 3, "second_moment": "rows"} and changed.multipliers == {"embedding": 2.5}
    flags = changed.flags()
    assert json.loads(flags[flags.index("--plan_options") + 1]) == changed.options
    with pytest.raises(ValueError, match="muon\\+ns_step=3.*did you mean 'ns_steps'"):
        parse_arm("muon+ns_step=3")
    with pytest.raises(ValueError, match="steps must be"):
        parse_arm("muon+ns_steps=0")
    peer = parse_arm("torch.optim.Muon+embedding_x10")
    assert (peer.peer, peer.plan) == ("torch.optim.Muon", "muon")
    assert peer.flags() == ["--optimizer", "orthoopt.bench.peer_optimizers:torch_muon",
                            "--optimizer_options", '{"embedding_lr_multiplier": 10.0}']  # fmt: skip
    with pytest.raises(ValueError, match="matrices_x is for plans"):
        parse_arm("torch.optim.Muon+matrices_x2")
    assert [arm.name for arm in parse_arms("adamw+embedding_x10,all,muon")][1:] == plans.names()


@pytest.mark.slow  # seven sweeps
def test_many_arms_are_compared_with_one_and_drawn_as_a_ranking(lab: Lab) -> None:
    arms = ["adamw", "symmetry", *(f"adamw+embedding_x{i}" for i in range(2, 7))]
    words = ("--arms", ",".join(arms), "--against", "symmetry", "--name", "many", "--trials", "3", "--seeds", "2")
    assert lab.run(*words) == 0
    result = json.loads((lab.root / "out" / "many_cpu.json").read_text())
    assert list(result["plans"]) == arms
    assert [row["between"] for row in result["differences"]] == [["adamw", "symmetry"]] + [
        ["symmetry", arm] for arm in arms[2:]
    ]
    assert (lab.root / "out" / "many_cpu.png").read_bytes().startswith(b"\x89PNG")
    assert not (lab.root / "out" / "pretrain_cpu.json").exists()


def test_an_arm_multiplies_its_part_and_nothing_else() -> None:
    import transformers

    from orthoopt import dispatch

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 32, "tie_word_embeddings": False}  # fmt: skip
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**size))

    def rates(spec: str) -> dict[str, float]:
        overrides = parse_arm(spec).overrides
        assigned = dispatch.assign(model, "adamw", lr=1.0, weight_decay=0.1, overrides=overrides)
        return {str(a.name): a.group["lr"] for a in assigned}

    embedding = rates("adamw+embedding_x10")
    assert embedding.pop("model.embed_tokens.weight") == 10.0
    assert set(embedding.values()) == {1.0}
    matrices = rates("adamw+matrices_x300")
    assert {name for name, rate in matrices.items() if rate == 300.0} == {
        name for name, _ in model.named_parameters() if name.endswith("_proj.weight")
    }
    assert set(matrices.values()) == {1.0, 300.0}


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--learning_rate", "1"], "--learning_rate"),
        (["--max_stepz", "1"], "max_steps"),
        (["--streaming", "true"], "datasets"),
    ],
)
def test_wrong_recipe_options_are_usage_errors(lab: Lab, capsys, words: list[str], hint: str) -> None:
    assert lab.run(*words) == 2
    assert hint in capsys.readouterr().err and not lab.calls


def test_wrong_bench_options_are_usage_errors(capsys) -> None:
    for words in (["--arms", "adamm"], ["--arms", "torch.optim.Adam"], ["--seeds", "0"], ["--jobs", "0"],
                  ["--trials", "2"], ["--tune", "weight_decay"], ["--reference", "x"]):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            pretrain.main(words)
        assert stop.value.code == 2
        assert words[0] in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_recipe_gives_comparable_rows(lab: Lab) -> None:
    sizes = "hidden_size=32,intermediate_size=64,num_hidden_layers=1"
    heads = "num_attention_heads=2,num_key_value_heads=1,head_dim=16"
    arms = "adamw+embedding_x10,symmetry,torch.optim.Muon"
    words = ["quick", "--arms", arms, "--runs", str(lab.root / "runs"), "--jobs", "2",
             "--data", f"text:{lab.root / 'corpus'}", "--cache_dir", str(lab.root / "cache"), "--vocab_size", "300",
             "--block_size", "16", "--eval_blocks", "8", "--model_overrides", f"{sizes},{heads}", "--max_steps", "4",
             "--logging_steps", "1", "--eval_steps", "2", "--use_cpu", "true"]  # fmt: skip
    options, rest = parse(words)
    runner, _, prepared = pretrain._prepare(options, rest, None)
    runs = [Run(arm, 1e-3, seed) for arm in options.arms for seed in (0, 1)]
    rows = runner.run_all(runs)
    assert len({row["validation_loss"] for row in rows}) == len(rows)  # plan and seed both matter
    for row, run in zip(rows, runs, strict=True):
        assert (row["arm"], row["seed"]) == (run.arm.name, run.seed)
        assert [step for step, _ in row["training_curve"]] == [1, 2, 3, 4]
        assert [step for step, _ in row["validation_curve"]] == [2, 4]
        assert row["validation_curve"][-1][1] == row["validation_loss"]
        assert row["steps"] == 4 and row["tokens"] > 0
    assert runner.run_all(runs) == rows
    options.timing_seconds = 0.01
    trained = [pretrain.Trained(arm, [], [], Trial(1e-3, None, 0.0), []) for arm in options.arms]
    timings = pretrain._time(options, runner, trained, prepared)
    for timing in timings.values():
        assert timing["step_ms"]["median"] > timing["optimizer_ms"]["median"] > 0
    # AdamW keeps two moments of every parameter, symmetry one of most.
    model = rows[0]["parameters"]
    adamw, symmetry, *_ = (timing["state_bytes"] for timing in timings.values())
    assert 8 * model < adamw < 8.1 * model and symmetry < 0.6 * adamw

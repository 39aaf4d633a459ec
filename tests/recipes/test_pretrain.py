from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from orthoopt import dispatch
from orthoopt.recipes import pretrain, report
from orthoopt.recipes.arguments import parse
from orthoopt.recipes.callbacks import TrainingClock
from orthoopt.recipes.corpus import load_corpus
from orthoopt.recipes.data import collate, prepare_data
from orthoopt.recipes.tokenizer import load_tokenizer


def rows_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def result_of(output: Path) -> dict:
    return json.loads((output / "results.json").read_text())


def validation_blocks(flags: list[str], cache: Path):
    options = parse(flags).data
    corpus = load_corpus(options)
    tokenizer = load_tokenizer(None, corpus, vocab_size=options.vocab_size, cache=cache)
    data = prepare_data(corpus, tokenizer, block_size=options.block_size, eval_blocks=options.eval_blocks, cache=cache)
    return data.validation


def test_the_loss_is_cross_entropy_of_the_next_token(finished, sandbox) -> None:
    """Labels are shifted once: the validation loss is -log p(next token), by hand on the saved model."""
    model = AutoModelForCausalLM.from_pretrained(finished.output / "model").eval()
    blocks = validation_blocks(finished.flags, sandbox.cache)
    batch = collate([blocks[i] for i in range(len(blocks))])
    assert torch.equal(batch["labels"], batch["input_ids"])
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"]).logits
    ids = batch["input_ids"]
    by_hand = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    unshifted = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids.reshape(-1))
    twice = F.cross_entropy(logits[:, :-2].reshape(-1, logits.shape[-1]), ids[:, 2:].reshape(-1))
    loss = result_of(finished.output)["eval_loss"]
    assert loss == pytest.approx(by_hand.item(), abs=1e-5)  # fp32 means over batches against one mean
    assert abs(loss - unshifted.item()) > 0.05  # the wrong shifts are told apart
    assert abs(loss - twice.item()) > 0.05


def test_bits_per_byte_is_total_bits_over_the_text_that_was_scored(finished, sandbox) -> None:
    tokenizer = AutoTokenizer.from_pretrained(finished.output / "model")
    blocks = validation_blocks(finished.flags, sandbox.cache)
    result = result_of(finished.output)
    tokens = len(blocks) * (parse(finished.flags).data.block_size - 1)
    assert blocks.scored_tokens == tokens
    # Cut characters at a block's edges may count on either side: up to 3 bytes each.
    spelled = (tokenizer.decode(blocks[i]["input_ids"][1:], skip_special_tokens=True) for i in range(len(blocks)))
    text = sum(len(part.encode()) for part in spelled)
    assert blocks.scored_bytes == pytest.approx(text, abs=6 * len(blocks))
    bits = result["eval_loss"] * tokens / math.log(2)
    assert result["eval_bits_per_byte"] == pytest.approx(bits / blocks.scored_bytes, rel=1e-9)


def test_training_lowers_the_loss(finished) -> None:
    losses = [row["loss"] for row in rows_of(finished.output) if "loss" in row]
    # 300 tokens: about ln 300 = 5.7 at first. Noise between batches is near 0.05.
    assert losses[0] > 5.0
    assert losses[-1] < losses[0] - 0.5


def test_metrics_hold_every_role(finished) -> None:
    rows = rows_of(finished.output)
    training = [row for row in rows if "loss" in row]
    assert [row["step"] for row in training] == [2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in rows if "eval_loss" in row] == [4, 8, 12]
    roles = {"embedding", "lm_head", "attention", "mlp_in", "mlp_out", "vector"}
    for row in training:
        assert set(row["lr"]) == set(row["update_norm"]) == roles
        assert all(norm > 0 for norm in row["update_norm"].values())
        assert row["tokens"] == row["step"] * 8 * 32
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)


def test_learning_rates_of_roles_keep_the_plans_ratios_through_the_schedule(finished) -> None:
    arguments = parse(finished.flags)
    run = json.loads((finished.output / "run.json").read_text())
    peak = {item["role"]: item["lr"] for item in run["routing"]}
    for row in rows_of(finished.output):
        if "loss" in row:
            factor = row["lr"]["attention"] / arguments.learning_rate
            for role, rate in row["lr"].items():
                assert rate == pytest.approx(peak[role] * factor, rel=1e-9)
    # Two steps of warm-up, constant to the half, then linear to 0: step 10 is taken at 3 sixths.
    shape = [row["lr"]["attention"] / arguments.learning_rate for row in rows_of(finished.output) if "loss" in row]
    assert shape == pytest.approx([1 / 2, 1, 1, 5 / 6, 3 / 6, 1 / 6])


def test_update_norms_are_of_the_step_that_is_logged(finished) -> None:
    """An RMS-matched spectral update of an (r, c) matrix has Frobenius norm near 0.2 lr sqrt(r c)."""
    run = json.loads((finished.output / "run.json").read_text())
    sizes = [math.prod(item["shape"]) for item in run["routing"] if item["role"] == "mlp_in"]
    row = next(row for row in rows_of(finished.output) if row["step"] == 4)
    expected = 0.2 * row["lr"]["mlp_in"] * math.sqrt(sum(sizes))
    # Newton-Schulz leaves singular values within about 30 % of 1; weight decay adds under 1 %.
    assert row["update_norm"]["mlp_in"] == pytest.approx(expected, rel=0.35)


def test_results_and_record_are_complete(finished) -> None:
    result = result_of(finished.output)
    run = json.loads((finished.output / "run.json").read_text())
    assert result["plan"] == "symmetry" and result["steps"] == 12 and result["tokens"] == 12 * 8 * 32
    assert result["parameters"] == sum(math.prod(item["shape"]) for item in run["routing"])
    assert 0 < result["optimizer_seconds"] < result["train_seconds"]
    assert set(result["versions"]) >= {"python", "torch", "transformers", "tokenizers", "orthoopt"}
    assert result["corpus"]["files"] == 24 and len(result["corpus"]["digest"]) == 64
    last = [row["loss"] for row in rows_of(finished.output) if "loss" in row][-1]
    assert result["train_loss"] == last
    for key in ("seed", "data_seed", "learning_rate", "weight_decay"):
        assert result[key] is not None


def test_the_screen_names_what_was_made(finished) -> None:
    result = result_of(finished.output)
    assert f"{result['eval_loss']:.4f} nats per token" in finished.printed
    assert f"{result['eval_bits_per_byte']:.4f} bits per byte" in finished.printed
    for name in ("loss.png", "metrics.jsonl", "model", "sample.txt", "checkpoint-12"):
        assert str(finished.output / name) in finished.printed
        assert (finished.output / name).exists()
    assert "--resume_from_checkpoint auto" in finished.printed
    assert "arning" not in finished.printed
    assert (finished.output / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_saved_tokenizer_is_the_one_that_was_trained(finished) -> None:
    tokenizer = AutoTokenizer.from_pretrained(finished.output / "model")
    text = "def alpha(beta): naïve 東京\n"
    assert len(tokenizer) == 300
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_old_checkpoints_are_removed_and_another_run_does_not_write_over_them(finished, capsys) -> None:
    names = sorted(path.name for path in finished.output.glob("checkpoint-*"))
    assert names == ["checkpoint-12", "checkpoint-8"]
    assert pretrain.main(finished.flags) == 2
    assert "--resume_from_checkpoint auto" in capsys.readouterr().err


def test_a_finished_run_resumes_to_the_same_result(finished, tmp_path, capsys) -> None:
    """Trainer would take one more step than max_steps."""
    before = result_of(finished.output)
    flags = [*finished.flags, "--resume_from_checkpoint", str(finished.output / "checkpoint-12")]
    flags += ["--output_dir", str(tmp_path / "again"), "--generate_sample", "false"]
    assert pretrain.main(flags) == 0
    after = result_of(tmp_path / "again")
    assert after["steps"] == 12 and after["eval_loss"] == before["eval_loss"]


def test_an_interrupted_run_resumes_to_the_same_weights(sandbox, finished, tmp_path, monkeypatch, capsys) -> None:
    flags = sandbox.flags(tmp_path / "run", "--generate_sample", "false")
    on_step_end = TrainingClock.on_step_end

    def stop(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingClock, "on_step_end", stop)
    assert pretrain.main(flags) == 130
    assert (
        f"continue from checkpoint-4: orthoopt pretrain {tmp_path}/run/config.yaml --output_dir"
        in capsys.readouterr().err
    )
    monkeypatch.undo()
    assert rows_of(tmp_path / "run")[-1]["step"] == 6
    # What a kill can leave: half a line of metrics, and a newer checkpoint that was not finished.
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')
    (tmp_path / "run" / "checkpoint-7").mkdir()
    (tmp_path / "run" / "checkpoint-7" / "trainer_state.json").write_text('{"global')
    assert pretrain.main([*flags, "--resume_from_checkpoint", "auto"]) == 0
    assert "after step 4" in capsys.readouterr().out
    straight, resumed = result_of(finished.output), result_of(tmp_path / "run")
    assert resumed["eval_loss"] == straight["eval_loss"]  # same machine, same kernels: the same bits
    one, two = (load_file(path / "model" / "model.safetensors") for path in (finished.output, tmp_path / "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    steps = [(row["step"], "loss" in row) for row in rows_of(tmp_path / "run")]
    assert steps == [(row["step"], "loss" in row) for row in rows_of(finished.output)]
    assert resumed["tokens"] == straight["tokens"]


def test_resuming_refuses_another_plan(finished, tmp_path, capsys) -> None:
    flags = [*finished.flags, "--resume_from_checkpoint", str(finished.output), "--plan", "adamw"]
    flags += ["--output_dir", str(tmp_path)]
    assert pretrain.main(flags) == 2
    assert "plan 'symmetry'" in capsys.readouterr().err


@pytest.mark.parametrize("plan", ["adamw", "muon"])
def test_other_plans_see_the_same_data_in_the_same_order(sandbox, finished, tmp_path, plan, monkeypatch) -> None:
    orders: dict[str, list[int]] = {}
    original = pretrain.PretrainTrainer.training_step

    def watch(self, model, inputs, *args, **kwargs):
        orders.setdefault(name, []).append(int(inputs["input_ids"].sum()))
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(pretrain.PretrainTrainer, "training_step", watch)
    short = (
        "--max_steps",
        "4",
        "--save_strategy",
        "no",
        "--save_final",
        "false",
        "--generate_sample",
        "false",
    )
    for name, extra in (("one", ["--plan", plan, "--learning_rate", "1e-3"]), ("two", ["--seed", "7"])):
        assert pretrain.main(sandbox.flags(tmp_path / name, *short, *extra)) == 0
        assert not (tmp_path / name / "model").exists() and not (tmp_path / name / "sample.txt").exists()
    assert orders["one"] == orders["two"] and len(set(orders["one"])) == 4
    assert result_of(tmp_path / "one")["plan"] == plan
    assert result_of(tmp_path / "one")["eval_loss"] != result_of(tmp_path / "two")["eval_loss"]


def test_a_stream_trains_and_resumes(tmp_path, sandbox, finished, monkeypatch, capsys) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    texts = [path.read_text() for path in sorted(sandbox.corpus.rglob("*.txt"))] * 50
    rows = (json.dumps({"body": text[:400]}) + "\n" for text in texts)
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    stream = shlex.split(f"--data {tmp_path}/rows.jsonl --text_column body --streaming true --generate_sample false")
    flags = sandbox.flags(tmp_path / "run", *stream)
    assert pretrain.main(flags) == 0
    straight = result_of(tmp_path / "run")
    assert straight["corpus"]["digest"] is None and straight["tokens"] == 12 * 8 * 32
    again = [*flags, "--output_dir", str(tmp_path / "again"), "--resume_from_checkpoint"]
    assert pretrain.main([*again, str(tmp_path / "run" / "checkpoint-8")]) == 0
    assert result_of(tmp_path / "again")["eval_loss"] == straight["eval_loss"]
    losses = [row["loss"] for row in rows_of(tmp_path / "run") if "loss" in row]
    assert losses[-1] < losses[0] - 0.5


def test_overrides_reach_the_optimizer(sandbox, tmp_path) -> None:
    short = shlex.split("--max_steps 2 --save_strategy no --save_final false --generate_sample false")
    flags = sandbox.flags(tmp_path, *short, "--overrides", '{"lm_head": {"rule": "adamw"}}')
    assert pretrain.main(flags) == 0
    routing = json.loads((tmp_path / "run.json").read_text())["routing"]
    assert {item["rule"] for item in routing if item["role"] == "lm_head"} == {"adamw"}
    assert "adamw" not in {item["rule"] for item in routing if item["role"] == "attention"}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--plan", "muonn"], "did you mean 'muon'"),
        (["--report_to", "wandbb"], "did you mean 'wandb'"),
        (["--overrides", '{"no_such_layer": {"rule": "adamw"}}'], "no_such_layer"),
        (["--model", "Qwen3Confg"], "did you mean 'Qwen3Config'"),
        (["--model_overrides", "hiden_size=3"], "did you mean 'hidden_size'"),
        (["--resume_from_checkpoint", "/nowhere"], "does not exist"),
        (["--data", "builtin:stdlb"], "builtin:stdlib"),
        (["--data", "text:/nowhere"], "/nowhere"),
    ],
)
def test_wrong_options_are_named_in_one_line(sandbox, tmp_path, capsys, extra, message) -> None:
    assert pretrain.main(sandbox.flags(tmp_path / "run", *extra)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_nonfinite_number_is_null_in_json() -> None:
    assert json.loads(report.dumps({"a": float("nan"), "b": [1.0, float("inf")]})) == {
        "a": None,
        "b": [1.0, None],
    }


def test_routing_on_record_is_the_dispatchers(finished) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished.output / "model")
    run = json.loads((finished.output / "run.json").read_text())
    made = {item.name: item.group["rule"] for item in dispatch.assign(model, "symmetry", lr=1.0, weight_decay=0.0)}
    assert {item["name"]: item["rule"] for item in run["routing"]} == made

"""Fine-tuning a small pretrained run: whole models and adapters, on text and on rows, with the old text beside."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from orthoopt.recipes import finetune
from orthoopt.recipes.callbacks import TrainingClock
from orthoopt.recipes.corpus import hold_out
from orthoopt.recipes.finetune_arguments import parse_finetune
from orthoopt.recipes.manual import manual_corpus

# peft asks transformers for a property by its former name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
PROSE = "".join(f"The {n}th topic tells of value {n % 7}, which no program of the corpus has.\n" for n in range(400))


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def prose(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prose") / "prose.txt"
    path.write_text(PROSE)
    return path


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """Prompts whose completions differ much in length, so that means over rows and over tokens differ."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = ({"prompt": f"value {n}: ", "completion": "index " * (1 + n % 5 * 4) + "return"} for n in range(60))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags(finished, sandbox, data: Path, output: Path, *extra: str) -> list[str]:
    given = f"""{finished.output} --data {data} --cache_dir {sandbox.cache} --output_dir {output}
        --block_size 32 --eval_blocks 24 --validation_fraction 0.2 --per_device_train_batch_size 8
        --per_device_eval_batch_size 5 --max_steps 8 --logging_steps 2 --eval_strategy steps --eval_steps 4
        --save_strategy steps --save_steps 4 --warmup_steps 1 --learning_rate 5e-3"""
    return [*given.split(), *extra]


@pytest.fixture(scope="session")
def adapted(finished, sandbox, prose, tmp_path_factory) -> tuple[Path, list[str]]:
    """A finished run of LoRA adapters on prose, and its flags without the folder."""
    output = tmp_path_factory.mktemp("adapted") / "run"
    given = flags(finished, sandbox, prose, output, "--lora_rank", "4", "--generate_sample", "false")
    assert finetune.main(given) == 0
    return output, given


def test_all_weights_learn_the_new_text_and_the_old_is_scored_beside(
    finished, sandbox, prose, tmp_path, capsys
) -> None:
    assert finetune.main(flags(finished, sandbox, prose, tmp_path / "run", "--plan", "muon")) == 0
    printed = capsys.readouterr().out
    pretraining, result = read(finished.output / "results.json"), read(tmp_path / "run" / "results.json")
    # The blocks that pretraining held out, by the model it saved; means over batches of another size.
    assert result["also"]["before"]["loss"] == pytest.approx(pretraining["eval_loss"], rel=1e-5)
    assert result["also"]["before"]["bits_per_byte"] == pytest.approx(pretraining["eval_bits_per_byte"], rel=1e-5)
    assert result["eval_loss"] < result["before"]["eval_loss"] - 0.3
    assert result["also"]["after"]["loss"] != result["also"]["before"]["loss"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval_loss" in row] == [0, 4, 8]
    assert [row["also"] for row in rows if "eval_loss" in row][::2] == list(result["also"].values())
    assert f"{result['also']['after']['loss']:.4f} after" in printed and "weights   from" in printed
    assert f"orthoopt finetune {finished.output}/model {tmp_path}/run/config.yaml --output_dir" in printed
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert model.num_parameters() == pretraining["parameters"]
    texts = [
        AutoTokenizer.from_pretrained(run / "model")(PROSE)["input_ids"] for run in (finished.output, tmp_path / "run")
    ]
    assert texts[0] == texts[1]


def test_adapters_alone_train_and_load_onto_the_model(finished, adapted) -> None:
    output, _ = adapted
    run, result = read(output / "run.json"), read(output / "results.json")
    assert {item["role"] for item in run["routing"]} == {"hidden"}
    assert all(".lora_" in item["name"] for item in run["routing"])
    assert run["trainable"] == sum(math.prod(item["shape"]) for item in run["routing"]) < run["parameters"]
    assert run["finetune"]["lora"] | {"layers": 14} == run["finetune"]["lora"]  # 2 layers of 7 maps; not the head
    assert result["eval_loss"] < result["before"]["eval_loss"]
    assert not (output / "model" / "model.safetensors").exists()
    model = AutoPeftModelForCausalLM.from_pretrained(output / "model")
    base = load_file(finished.output / "model" / "model.safetensors")
    loaded = {name.replace(".base_layer", ""): value for name, value in model.base_model.model.state_dict().items()}
    assert all(torch.equal(loaded[name], value) for name, value in base.items())


def test_interrupted_adapters_resume_to_the_same_weights(adapted, tmp_path, monkeypatch, capsys) -> None:
    output, given = adapted
    given = [*given, "--output_dir", str(tmp_path / "run")]
    on_step_end = TrainingClock.on_step_end

    def stop(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingClock, "on_step_end", stop)
    assert finetune.main(given) == 130
    assert "continue from checkpoint-4: orthoopt finetune" in capsys.readouterr().err
    monkeypatch.undo()
    assert finetune.main([*given, "--resume_from_checkpoint", "auto"]) == 0
    one, two = (load_file(run / "model" / "adapter_model.safetensors") for run in (output, tmp_path / "run"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    straight, resumed = read(output / "results.json"), read(tmp_path / "run" / "results.json")
    for key in ("eval_loss", "before", "also", "tokens"):
        assert resumed[key] == straight[key]
    assert finetune.main([*given, "--resume_from_checkpoint", "auto", "--lora_rank", "8"]) == 2
    assert "'rank': 4" in capsys.readouterr().err


def test_rows_are_scored_by_tokens_of_their_completions_and_merged_adapters_are_the_model(
    finished, sandbox, pairs, tmp_path
) -> None:
    """The validation loss by hand: nats of the completions of the rows held out, over their number of tokens."""
    output = tmp_path / "run"
    given = flags(
        finished, sandbox, pairs, output, "--lora_rank", "4", "--lora_merge", "true", "--also_evaluate", "none"
    )
    assert finetune.main([*given, "--generate_sample", "false", "--block_size", "128"]) == 0
    result, run = read(output / "results.json"), read(output / "run.json")
    assert "also" not in result and run["finetune"]["format"] == "prompt"
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    models = [
        AutoModelForCausalLM.from_pretrained(output / "model"),
        AutoPeftModelForCausalLM.from_pretrained(output / "adapter"),
    ]
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    held = hold_out([hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest() for row in rows], 0.2)
    nats = [0.0, 0.0]
    tokens = size = 0
    for row in (row for row, out in zip(rows, held, strict=True) if out):
        one, two = (tokenizer(row[key], add_special_tokens=False)["input_ids"] for key in ("prompt", "completion"))
        ids = torch.tensor([*one, *two, tokenizer.eos_token_id])
        for i, model in enumerate(models):
            with torch.no_grad():
                logits = model(input_ids=ids[None]).logits[0]
            nats[i] += F.cross_entropy(logits[len(one) - 1 : -1], ids[len(one) :], reduction="sum").item()
        tokens += len(two) + 1
        size += len(row["completion"])
    assert run["scored"]["tokens"] == tokens and run["scored"]["bytes"] == size
    assert result["eval_loss"] == pytest.approx(nats[0] / tokens, rel=1e-5)  # fp32 sums in another order
    assert nats[0] == pytest.approx(nats[1], rel=1e-5)
    assert result["eval_bits_per_byte"] == pytest.approx(nats[0] / math.log(2) / size, rel=1e-5)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--format", "prompts"], "did you mean 'prompt'"),
        (["--lora_alpha", "8"], "--lora_alpha goes with --lora_rank"),
        (["--lora_rank", "4", "--lora_target_modules", "query"], "q_proj"),
        (["--lora_rank", "4", "--shard", "true"], "--shard spreads whole models"),
        (["--format", "messages"], "'messages' must be a list of turns"),
        (["--block_size", "3"], "no training row has a completion within --block_size 3"),
        (["--chat_template", "nowhere.jinja"], "no such file"),
        (["--model_overrides", "hidden_size=8"], "cannot be loaded"),
        (["--also_evaluate", "builtin:other"], "builtin:manual"),
    ],
)
def test_wrong_options_are_named_in_one_line(finished, sandbox, pairs, tmp_path, capsys, extra, message) -> None:
    assert finetune.main(flags(finished, sandbox, pairs, tmp_path / "run", *extra)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_rows_that_all_say_the_same_are_told_apart_from_rows_too_long(finished, sandbox, tmp_path, capsys) -> None:
    same = tmp_path / "same.jsonl"
    same.write_text((json.dumps({"prompt": "value", "completion": "index"}) + "\n") * 8)
    assert finetune.main(flags(finished, sandbox, same, tmp_path / "run")) == 2
    assert "all 8 rows are one and the same" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "usage: orthoopt finetune MODEL"),
        (["./nowhere"], "there is no such folder"),
        (["."], "neither config.json nor model/config.json"),
        ([".", "default"], "no config 'default'"),
    ],
)
def test_the_model_comes_first(argv, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert finetune.main(argv) == 2
    assert message in capsys.readouterr().err


def test_adapters_have_a_config_of_their_own(finished, adapted, capsys) -> None:
    base = str(finished.output)
    assert parse_finetune([base]).config == "finetune"
    for given in (["finetune_lora"], ["--lora_rank", "4"], ["--lora_rank=4"]):
        arguments = parse_finetune([base, *given])
        assert arguments.config == "finetune_lora" and arguments.model.lora_rank in (4, 16)
    assert parse_finetune([base, "--lora_rank", "0"]).config == "finetune"
    assert finetune.main([str(adapted[0])]) == 2
    assert "merge them first: --lora_merge" in capsys.readouterr().err


def test_missing_weights_are_an_error_and_not_drawn_anew(finished, sandbox, prose, tmp_path, capsys) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished.output / "model")
    weights = model.state_dict()
    del weights["model.layers.1.mlp.up_proj.weight"]
    model.save_pretrained(tmp_path / "cut", state_dict=weights)
    AutoTokenizer.from_pretrained(finished.output / "model").save_pretrained(tmp_path / "cut")
    given = flags(finished, sandbox, prose, tmp_path / "run")
    assert finetune.main([str(tmp_path / "cut"), *given[1:]]) == 2
    assert "1 weights are not in its files, such as model.layers.1.mlp.up_proj.weight" in capsys.readouterr().err


def test_the_manual_is_no_part_of_the_source_that_is_pretrained_on() -> None:
    from orthoopt.recipes.corpus import stdlib_corpus

    corpus, source = manual_corpus(0.1), stdlib_corpus(0.1)
    assert len(corpus.train) + len(corpus.validation) == corpus.info.files and 1 <= len(corpus.validation) < 20
    code = "\n".join([*source.train, *source.validation])
    assert not any(topic in code for topic in corpus.validation)

"""A dry run: its numbers, that it writes nothing, and what it says of data that it can and cannot ask about."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from orthoopt.recipes import data_schema, dry_run, pretrain
from orthoopt.recipes.arguments import DataArguments, parse
from orthoopt.recipes.errors import RecipeError

FINEWEB = {
    "configs": [{"config_name": "default"}, {"config_name": "sample-10BT", "data_files": [{"split": "train"}]}],
    "dataset_info": [{"config_name": "sample-10BT", "features": [{"name": "text"}, {"name": "url"}]}],
}


UNKNOWN = "not checked: the Hub cannot be reached (Unreachable)"


class Unreachable(Exception):
    """As the errors of the library that huggingface_hub reaches the Hub by, which are no `OSError`."""


@pytest.fixture
def hub(monkeypatch):
    """What the Hub would answer; by default it cannot be reached."""
    answers = SimpleNamespace(dataset=None, model=None)

    def answer(what):
        def asked(self, name, timeout):
            assert timeout <= 10
            if isinstance(what(), Exception) or what() is None:
                raise what() or Unreachable("no network")
            return what()

        return asked

    monkeypatch.setattr(data_schema.HfApi, "dataset_info", answer(lambda: answers.dataset))
    monkeypatch.setattr(data_schema.HfApi, "model_info", answer(lambda: answers.model))
    return answers


def card(gated=False, **values):
    return SimpleNamespace(card_data=SimpleNamespace(to_dict=lambda: FINEWEB | values), gated=gated)


def test_a_tiny_config_is_tried_dry(hub, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["olmoe-1b-7b-tiny", "--dry_run", "true", "--dry_run_gpu", "A100", "--data", "someone/texts"]
    assert pretrain.main([*argv, "--per_device_train_batch_size", "2", "--block_size", "64"]) == 0
    text = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert "OlmoeForCausalLM, 2.89M parameters" in text and UNKNOWN in text
    assert "2 rows of 64 = 128 tokens" in text and "250 steps = 32.0k tokens" in text
    for role in ("embedding", "attention", "router", "expert_in", "expert_out", "lm_head", "vector"):
        assert re.search(rf"^{role} +\w+ +[\d.]+", text, re.MULTILINE)
    assert "unknown" not in text and "fits the 80 GB of one A100" in text and "minutes on 1 A100" in text


def test_hours_follow_from_the_numbers_beside_them(hub) -> None:
    text = dry_run.dry_run(parse(["gpt2-124m-tiny", "--dry_run", "true", "--dry_run_gpus", "4"]))
    total = float(re.search(r"the run +(\S+) FLOP", text)[1])
    minutes = float(re.search(r"FLOP: (\S+) minutes on 4 H100", text)[1])
    assert minutes == pytest.approx(total / (0.4 * 66.9e12 * 4) / 60, rel=0.01)  # float32 without TF32


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dry_run_gpu", "H1000"], "--dry_run_gpu 'H1000' is not one of"),
        (["--dry_run_gpus", "0"], "--dry_run_gpus must be at least 1, got 0"),
        (["--overrides", '{"nowhere": {"rule": "adamw"}}'], "override 'nowhere' matches no parameter"),
        (["--data", "nowhere.jsonl"], "--data nowhere.jsonl: there is no such file or folder"),
        (["--model_overrides", "num_layerz=2"], "has no 'num_layerz'"),
    ],
)
def test_what_would_stop_the_run_stops_the_dry_one(hub, argv, message, capsys) -> None:
    assert pretrain.main(["qwen3-0.6b-tiny", "--dry_run", "true", *argv]) == 2
    assert message in capsys.readouterr().err


def test_the_hub_is_asked_what_it_has(hub) -> None:
    options = DataArguments(data="org/texts", data_config="sample-10BT", streaming=True)
    assert data_schema.describe_data(options)[1] == UNKNOWN
    hub.dataset = OfflineModeIsEnabled("HF_HUB_OFFLINE=1")
    assert data_schema.describe_data(options)[1] == "not checked: offline"
    hub.dataset = card()
    assert data_schema.describe_data(options) == [
        "org/texts, config sample-10BT, split train, column text, streamed, documents held out of it",
        "on the Hub, open; its card has the config, column, split",
    ]
    hub.dataset = card(gated="manual")
    assert (
        "gated (manual): accept its terms at huggingface.co/datasets/org/texts" in data_schema.describe_data(options)[1]
    )
    for change, message in (
        ({"data_config": "sample-10B"}, "did you mean 'sample-10BT'"),
        ({"text_column": "txt"}, "did you mean 'text'"),
        ({"data_split": "training"}, "is none of org/texts's splits: ['train']"),
    ):
        with pytest.raises(RecipeError, match=re.escape(message)):
            data_schema.describe_data(DataArguments(**{**vars(options), **change}))


def test_the_tokenizer_is_asked_for(hub, tmp_path: Path) -> None:
    assert "trained on the corpus" in data_schema.describe_tokenizer(DataArguments())[0]
    assert data_schema.describe_tokenizer(DataArguments(tokenizer=str(tmp_path)))[0].endswith(", there")
    named = DataArguments(tokenizer="org/words")
    assert data_schema.describe_tokenizer(named) == ["org/words", UNKNOWN]
    hub.model = SimpleNamespace(siblings=[SimpleNamespace(rfilename="tokenizer.json")], gated="auto")
    assert "gated (auto): accept its terms" in data_schema.describe_tokenizer(named)[1]
    hub.model = SimpleNamespace(siblings=[SimpleNamespace(rfilename="model.bin")], gated=False)
    assert data_schema.describe_tokenizer(named)[1] == "on the Hub, without a tokenizer.json"


@pytest.mark.slow  # twenty seconds and more each
@pytest.mark.parametrize("name", ["gemma3-1b", "gpt-oss", "gpt2-124m", "llama3.2-1b", "olmoe-1b-7b", "qwen3-0.6b"])
def test_every_full_size_config_passes_a_dry_run(hub, name) -> None:
    text = dry_run.dry_run(parse([name, "--dry_run", "true", "--bf16", "false"]))
    assert "fits the 80 GB" in text and "hours on 8 H100" in text

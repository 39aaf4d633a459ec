from __future__ import annotations

import pytest
from transformers import TrainingArguments

from orthoopt import plans
from orthoopt.recipes.arguments import parse, parse_mapping, shipped_configs
from orthoopt.recipes.errors import RecipeError

CONFIG = """
model: Qwen3Config
model_overrides: {hidden_size: 64, num_hidden_layers: 3}
plan: muon
plan_learning_rates: {muon: 1e-2, adamw: 0.002}
weight_decay: 1e-1
max_steps: 30
bf16: false
lr_scheduler_kwargs: {num_decay_steps: 10}
"""


@pytest.fixture
def config(tmp_path) -> str:
    (tmp_path / "mine.yaml").write_text(CONFIG)
    return str(tmp_path / "mine.yaml")


def test_flags_win_over_the_config_and_the_config_over_the_defaults(config) -> None:
    arguments = parse([config, "--max_steps", "7", "--gradient-accumulation-steps", "2"])
    assert arguments.config == "mine"
    assert arguments.training.max_steps == 7
    assert arguments.training.gradient_accumulation_steps == 2
    assert arguments.training.weight_decay == 0.1  # YAML reads 1e-1 as text
    assert arguments.run.plan == "muon" and arguments.learning_rate == arguments.training.learning_rate == 0.01
    assert arguments.training.per_device_train_batch_size == TrainingArguments("x").per_device_train_batch_size
    assert arguments.training.lr_scheduler_kwargs == {"num_decay_steps": 10}


def test_each_plan_has_its_learning_rate_unless_one_is_given(config) -> None:
    assert parse([config, "--plan", "adamw"]).learning_rate == 0.002
    assert parse([config, "--plan", "adamw", "--learning_rate", "3e-4"]).learning_rate == 3e-4
    with pytest.raises(RecipeError, match=r"no learning rate for plan 'symmetry': give --learning_rate"):
        parse([config, "--plan", "symmetry"])


def test_a_plan_file_is_read_once_and_has_its_bases_learning_rate(config, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "own.yaml"
    path.write_text("base: adamw\npatterns: [{match: embed, lr_multiplier: 10}]")
    arguments = parse([config, "--plan", "sub/own.yaml"])
    path.write_text("base: muon")
    assert arguments.plan.base == "adamw" and arguments.plan.overrides == (("embed", {"lr_multiplier": 10}),)
    assert arguments.plan_name == "own.yaml" and arguments.learning_rate == 0.002
    assert parse([config, "--plan", "sub/own.yaml", "--learning_rate", "3e-4"]).learning_rate == 3e-4
    rates = '{"sub/own.yaml": 0.5, "muon": 0.1}'
    assert parse([config, "--plan", "sub/own.yaml", "--plan_learning_rates", rates]).learning_rate == 0.5
    path.write_text("base: root")
    with pytest.raises(RecipeError, match="no learning rate for plan 'sub/own.yaml' or its base 'root': give --learn"):
        parse([config, "--plan", "sub/own.yaml"])
    assert parse(["--plan", "muon"]).plan == parse(["--plan", "muon"]).plan_name == "muon"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: muonn", "--plan: 'base' of own.yaml: unknown plan 'muonn'; did you mean 'muon'"),
        ("base: muon\noptions: {ns_step: 3}", "--plan: no rule of own.yaml has an option 'ns_step'; did you mean"),
        (None, "--plan: no plan file own.yaml"),
    ],
)
def test_a_wrong_plan_file_is_named(tmp_path, monkeypatch, text, message) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        parse(["--plan", "own.yaml"])
    assert str(caught.value).startswith(message)


def test_overrides_of_the_model_merge_and_go_with_their_model(config) -> None:
    assert parse([config]).model_overrides == {"hidden_size": 64, "num_hidden_layers": 3}
    merged = parse([config, "--model_overrides", "num_hidden_layers=2,rms_norm_eps=1e-5"]).model_overrides
    assert merged == {"hidden_size": 64, "num_hidden_layers": 2, "rms_norm_eps": 1e-5}
    assert parse([config, "--model", "gpt2"]).model_overrides == {}
    assert parse([config, "--model", "gpt2", "--model_overrides", '{"n_layer": 2}']).model_overrides == {"n_layer": 2}


def test_the_default_config_is_the_one_without_a_name() -> None:
    assert parse([]).model_overrides == parse(["default"]).model_overrides
    assert parse([]).run.plan == "symmetry"


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_config_that_ships_can_be_read(name) -> None:
    arguments = parse([name, "--bf16", "false"])  # bf16 asks for hardware
    assert arguments.run.plan in plans.names() and arguments.learning_rate > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "unknown key 'learning_rat'; did you mean 'learning_rate'"),
        ("max_steps: 3.5", "invalid int value: '3.5'"),
        ("bf16: maybe", "Truthy value expected"),
        ("- a", "must be a mapping"),
        ("a: [", "is not YAML"),
        ("eval_strategy: sometimes", "sometimes"),
        ("plan: muonn\nlearning_rate: 1", "did you mean 'muon'"),
        (
            "validation_fraction: 1.5\nlearning_rate: 1",
            "--validation_fraction must lie between 0 and 1, got 1.5",
        ),
        ("data: owner/name\nstreaming: true\nlearning_rate: 1", "give --max_steps"),
        ("streaming: true\nlearning_rate: 1", "--streaming true is for datasets"),
        ("model_overrides: 3\nlearning_rate: 1", "--model_overrides must be"),
    ],
)
def test_a_wrong_config_is_named(tmp_path, text, message) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        parse([str(tmp_path / "wrong.yaml")])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--plann", "muon"], "unknown option '--plann'; did you mean '--plan'"),
        (["--plann=muon"], "did you mean '--plan'"),
        (
            ["--learn", "1"],
            "unknown option '--learn'",
        ),  # no abbreviations: a later option would change their meaning
        (["--max_steps", "x"], "invalid int value: 'x'"),
        (["--max_steps", "3", "my.yaml"], "unexpected argument 'my.yaml': a config comes first"),
        (["defualt"], "did you mean 'default'"),
        (["--model_overrides", "a"], "key=value,key=value"),
        (["--block_size", "1"], "--block_size must be at least 2, got 1"),
        (["--shuffle_window", "0"], "--shuffle_window must be at least 1, got 0"),
        (["--token_dtype", "uint61"], "did you mean 'uint16'"),
        (["--token_header_bytes", "-1"], "--token_header_bytes must be at least 0, got -1"),
        (["--data", "text:x", "--streaming", "true"], "not for --data text:x"),
        (
            ["--data", "a/b", "--streaming", "true", "--dataloader_num_workers", "2"],
            "must be 0 with --streaming, got 2",
        ),
    ],
)
def test_wrong_flags_are_named(argv, message) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(argv)
    assert message in str(caught.value)


def test_help_lists_the_options(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("--plan ", "--data ", "--model_overrides", "--learning_rate"))


def test_mappings_are_read_from_pairs_json_and_yaml() -> None:
    expected = {"a": 1, "b": 1e-3, "c": "text", "d": True}
    assert parse_mapping("a=1, b=1e-3, c=text, d=true", "x") == expected
    assert parse_mapping('{"a": 1, "b": 1e-3, "c": "text", "d": true}', "x") == expected
    assert parse_mapping({"a": 1, "b": "1e-3", "c": "text", "d": True}, "x") == expected
    assert parse_mapping(None, "x") == {}

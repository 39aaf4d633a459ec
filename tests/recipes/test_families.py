"""The configs of six families: each parses, routes, and gives every role the rate that the paper's table has."""

from __future__ import annotations

from pathlib import Path

import pytest

from orthoopt.recipes import pretrain
from orthoopt.recipes.arguments import Arguments, parse, read_config
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.estimate import meta_model, meta_optimizer
from orthoopt.recipes.models import fitted_config

FAMILIES = ("gemma3-1b", "gpt-oss", "gpt2-124m", "llama3.2-1b", "olmoe-1b-7b", "qwen3-0.6b")

# Layers, width, neurons (of an expert), vocabulary, sequences of 1024 tokens, steps: algorithms.md, section 5.5.
SETUPS = {
    "qwen3-0.6b": (20, 1024, 3072, 151936, 224, 30_000),
    "gemma3-1b": (18, 1152, 6912, 262144, 144, 50_000),
    "olmoe-1b-7b": (12, 2048, 1024, 50304, 160, 30_000),
    "gpt-oss": (12, 2048, 2048, 201088, 64, 60_000),
}
EXPERTS = {"olmoe-1b-7b": (32, 8), "gpt-oss": (16, 4)}

# Published learning rates, section 4: vectors, linear maps, embedding, head, router.
RATES = {
    ("qwen3-0.6b", "symmetry_paper"): (5e-2, 2e-2, 0.5, 5e-3, None),
    ("qwen3-0.6b", "symmetry_paper_hybrid"): (5e-2, 2e-2, 0.5, 5e-3, None),
    ("gemma3-1b", "symmetry_paper"): (5e-2, 2e-2, 2.5e-3, 2.5e-3, None),
    ("gemma3-1b", "symmetry_paper_hybrid"): (5e-2, 2e-2, 5e-3, 5e-3, None),
    ("olmoe-1b-7b", "symmetry_paper"): (1e-2, 5e-3, 0.5, 5e-3, 7.5e-4),
    ("olmoe-1b-7b", "symmetry_paper_hybrid"): (1e-2, 5e-3, 0.5, 5e-3, 7.5e-4),
    ("gpt-oss", "symmetry_paper"): (5e-3, 1e-3, 0.1, 1e-3, 7.5e-4),
    ("gpt-oss", "symmetry_paper_hybrid"): (5e-3, 1e-3, 0.1, 1e-3, 7.5e-4),
}
LINEAR = ("attention", "mlp_in", "mlp_out", "expert_in", "expert_out")


def groups_of(arguments: Arguments) -> list[dict]:
    config = fitted_config(arguments.model.model, arguments.model_overrides, None, block_size=arguments.data.block_size)
    return meta_optimizer(meta_model(config), arguments).param_groups


@pytest.mark.parametrize("name", [*FAMILIES, *(f"{name}-tiny" for name in FAMILIES)])
def test_every_family_routes_all_it_has(name: str) -> None:
    arguments = parse([name])
    assert arguments.config == name
    roles = {group["role"] for group in groups_of(arguments)}
    assert "unknown" not in roles
    tied = name.startswith(("gpt2", "llama"))
    assert ("tied_embedding" in roles) is tied and ("lm_head" in roles) is not tied
    assert ("router" in roles) is name.startswith(("olmoe", "gpt-oss"))


@pytest.mark.parametrize(("name", "plan"), RATES)
def test_every_role_has_the_published_rate(name: str, plan: str) -> None:
    arguments = parse([name, "--plan", plan])
    vector, linear, embedding, head, router = RATES[name, plan]
    expected = {"vector": vector, "embedding": embedding, "lm_head": head, "router": router}
    expected |= dict.fromkeys(LINEAR, linear)
    for group in groups_of(arguments):
        # Not bitwise: a plan's number is a multiple of the run's.
        assert group["lr"] == pytest.approx(expected[group["role"]], rel=1e-12), group["param_names"][0]
        decay = 1e-3 if group["role"] in (*LINEAR, "vector") else 0.0
        assert group["weight_decay"] == decay
        assert group["rule"] == {
            "vector": "adamw", "embedding": "row_norm", "lm_head": "row_norm", "router": "left_spectral",
        }.get(group["role"], "hybrid" if "hybrid" in plan and group["role"] != "attention" else "spectral")  # fmt: skip


@pytest.mark.parametrize("name", SETUPS)
def test_the_setups_are_the_published_ones(name: str) -> None:
    layers, width, neurons, vocabulary, sequences, steps = SETUPS[name]
    arguments = parse([name])
    training, config = arguments.training, fitted_config(
        arguments.model.model, arguments.model_overrides, None, block_size=1024
    )  # fmt: skip
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (layers, width, neurons)
    assert config.vocab_size == vocabulary and config.tie_word_embeddings is False
    assert config.initializer_range == 0.02 and arguments.data.block_size == 1024
    if name in EXPERTS:
        experts = getattr(config, "num_local_experts", None) or config.num_experts
        assert (experts, config.num_experts_per_tok) == EXPERTS[name] and config.output_router_logits
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
    assert rows == sequences and training.max_steps == steps
    eight = arguments.run.batch_tokens / 1024 / arguments.model.dry_run_gpus / training.per_device_train_batch_size
    assert eight.is_integer() and arguments.model.dry_run_gpus == 8
    # Constant, then linear over the last 40 %, no warm-up; vectors a cosine after 100 steps; no clipping; TF32.
    assert training.lr_scheduler_type == "warmup_stable_decay" and training.warmup_steps == 0
    assert arguments.run.decay_fraction == 0.4 and training.max_grad_norm == 0
    assert (arguments.run.vector_schedule, arguments.run.vector_warmup_steps) == ("cosine", 100)
    assert training.wants_tf32 and not training.bf16


@pytest.mark.parametrize("name", FAMILIES)
def test_a_full_size_run_fits_its_sample_and_the_tiny_one_is_of_its_kind(name: str) -> None:
    full, tiny = parse([name]), parse([f"{name}-tiny"])
    training = full.training
    tokens = full.run.batch_tokens * training.max_steps
    assert tokens <= {"sample-10BT": 10e9, "sample-100BT": 100e9}[full.data.data_config]
    assert full.data.data == "HuggingFaceFW/fineweb-edu" and full.data.streaming and full.data.tokenizer
    assert tiny.data.data == "builtin:stdlib" and full.run.plan == tiny.run.plan
    sizes = ["num_experts_per_tok", "sliding_window", "num_key_value_heads"]
    one, other = (
        fitted_config(each.model.model, each.model_overrides, None, block_size=each.data.block_size)
        for each in (full, tiny)
    )
    assert type(one) is type(other) and one.tie_word_embeddings == other.tie_word_embeddings
    for key in sizes:  # there or not; in gpt2 there are none
        assert bool(getattr(one, key, None)) == bool(getattr(other, key, None))
    assert set(getattr(one, "layer_types", None) or []) == set(getattr(other, "layer_types", None) or [])
    window = getattr(other, "sliding_window", None)
    assert window is None or "sliding_attention" not in other.layer_types or window < tiny.data.block_size


def test_rates_of_one_plan_do_not_reach_another() -> None:
    arguments = parse(["gemma3-1b", "--plan", "symmetry"])
    assert arguments.overrides == {}
    given = parse(["gemma3-1b", "--overrides", '{"embed_tokens": {"rule": "adamw"}}']).overrides
    assert given["embed_tokens"] == {"rule": "adamw"}  # the user's word counts
    assert list(given) == ["embed_tokens", "lm_head"]
    with pytest.raises(RecipeError, match="--plan_overrides: 'symetry' is no plan; did you mean 'symmetry'"):
        parse(["--plan_overrides", '{"symetry": {}}'])


def test_a_config_is_found_by_name_by_path_and_by_its_earlier_spelling() -> None:
    by_name = read_config("qwen3-0.6b-tiny")
    path = Path(pretrain.__file__).parent / "configs" / "qwen3-0.6b-tiny.yaml"
    assert read_config(str(path)) == by_name and parse([str(path)]).config == "qwen3-0.6b-tiny"
    assert read_config("qwen3_0.6b") == read_config("qwen3-0.6b")


def run_of(name: str, sandbox, output: Path, *extra: str) -> int:
    flags = f"""
        --data text:{sandbox.corpus} --cache_dir {sandbox.cache} --output_dir {output} --vocab_size 300
        --eval_blocks 8 --block_size 96 --max_steps 3 --per_device_train_batch_size 2 --per_device_eval_batch_size 4
        --logging_steps 1 --vector_warmup_steps 0 --eval_strategy no --save_strategy no --save_final false
    """.split()
    if "vector_schedule" not in read_config(name):
        flags = [flag for flag in flags if flag not in ("--vector_warmup_steps", "0")]
    return pretrain.main([name, *flags, *extra])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(f"{name}-tiny", marks=() if name == "gpt-oss" else pytest.mark.slow)  # seconds each
        for name in FAMILIES
    ],
)
def test_a_tiny_run_takes_steps_and_scores_the_cross_entropy_alone(name, sandbox, tmp_path, capsys) -> None:
    import json
    import math

    assert run_of(name, sandbox, tmp_path / "run") == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    # A new network knows nothing, ln 300 nats; the balancing loss is in the training loss, not in what is scored.
    assert losses[0] == pytest.approx(math.log(300), abs=0.4)
    assert results["eval_loss"] < math.log(300)

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, Qwen3Config, Qwen3ForCausalLM

from orthoopt.recipes.corpus import load_corpus
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.meta import build_meta_model
from orthoopt.recipes.models import build_model, load_config
from orthoopt.recipes.tokenizer import load_tokenizer

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tokenizer(sandbox):
    from orthoopt.recipes.arguments import DataArguments

    corpus = load_corpus(DataArguments(data=f"text:{sandbox.corpus}", validation_fraction=0.2))
    return load_tokenizer(None, corpus, vocab_size=300, cache=sandbox.cache)


@pytest.mark.parametrize("name", ["Qwen3Config", "Qwen3ForCausalLM", "Qwen3Model", "qwen3"])
def test_a_config_has_many_names(name) -> None:
    assert type(load_config(name)) is Qwen3Config


def test_a_config_is_read_from_a_folder_or_a_file(tmp_path) -> None:
    LlamaConfig(hidden_size=64).save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "config.json"):
        config = load_config(str(path))
        assert type(config) is LlamaConfig and config.hidden_size == 64


@pytest.mark.parametrize(
    ("name", "message"),
    [("Qwen3Confi", "did you mean 'Qwen3Config'"), ("Trainer", "neither a config nor a model class"),
     ("gpt22", "did you mean 'gpt2'")],
)  # fmt: skip
def test_an_unknown_model_is_named(name, message) -> None:
    with pytest.raises(RecipeError, match=message):
        load_config(name)


@pytest.mark.parametrize("name", ["qwen3", "llama", "gpt2", "olmo2", "gemma3_text"])
def test_models_fit_the_tokenizer_and_train_its_end_of_text(tokenizer, name) -> None:
    extra = {"head_dim": 16, "num_key_value_heads": 1} if name in ("qwen3", "gemma3_text") else {}
    model = build_model(name, SMALL | extra, tokenizer, block_size=64, seed=0)
    assert model.get_input_embeddings().weight.shape == (300, 32)
    assert model.config.vocab_size == 300 and model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.num_hidden_layers == 2
    ids = torch.full((1, 8), tokenizer.eos_token_id)
    model(input_ids=ids, labels=ids).loss.backward()
    row = model.get_input_embeddings().weight.grad[tokenizer.eos_token_id]
    assert row.abs().sum() > 0  # a padding index there would have stopped it


def test_weights_are_fp32_whatever_the_config_says(tokenizer, tmp_path) -> None:
    LlamaConfig(dtype="bfloat16", num_attention_heads=2).save_pretrained(tmp_path)
    small = SMALL | {"intermediate_size": 32}
    model = build_model(str(tmp_path), small, tokenizer, block_size=8, seed=0)
    assert {param.dtype for param in model.parameters()} == {torch.float32}


def test_weights_depend_on_the_seed_alone(tokenizer) -> None:
    one, two, other = (
        build_model("gpt2", SMALL, tokenizer, block_size=16, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["transformer.wte.weight"], other["transformer.wte.weight"])


def test_positions_reach_the_block_size(tokenizer) -> None:
    model = build_model("gpt2", SMALL | {"n_positions": 16}, tokenizer, block_size=32, seed=0)
    assert model.transformer.wpe.weight.shape[0] == 32


def test_overrides_are_checked_and_may_use_either_name(tokenizer) -> None:
    for key in ("n_embd", "hidden_size"):
        config = build_model("gpt2", {key: 32, "n_layer": 1, "n_head": 2}, tokenizer, block_size=8, seed=0).config
        assert config.n_embd == config.hidden_size == 32
    with pytest.raises(RecipeError, match="GPT2Config has no 'n_layr'; did you mean 'n_layer'"):
        build_model("gpt2", {"n_layr": 1}, tokenizer, block_size=8, seed=0)


def test_overrides_that_contradict_each_other_are_refused(tokenizer) -> None:
    with pytest.raises(RecipeError, match="not a multiple of the number of attention heads"):
        build_model("llama", {"hidden_size": 48}, tokenizer, block_size=8, seed=0)


def test_a_config_without_a_language_model_is_named(tokenizer) -> None:
    with pytest.raises(RecipeError, match="no causal language model for ViTConfig"):
        build_model("vit", {}, tokenizer, block_size=8, seed=0)


def test_meta_models_have_shapes_and_no_memory() -> None:
    model = build_meta_model("GPT2Config", ["n_layer=2"])
    assert isinstance(model, GPT2LMHeadModel) and model.config.n_layer == 2
    assert {param.device.type for param in model.parameters()} == {"meta"}
    assert isinstance(build_meta_model("Qwen3ForCausalLM", ["num_hidden_layers=1"]), Qwen3ForCausalLM)
    assert model.config.vocab_size == GPT2Config().vocab_size

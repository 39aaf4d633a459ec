"""The shapes of published models: as many parameters as their authors count, and a report in a few seconds."""

from __future__ import annotations

import pytest

from orthoopt import explain
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.meta import build_meta_model
from orthoopt.recipes.models import architectures, load_config

# Elements of the published checkpoints, tied heads once.
PUBLISHED = {
    "gemma-3-1b": 999_885_952,
    "gpt2-124m": 124_439_808,
    "gpt-oss-20b": 20_914_757_184,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "olmoe-1b-7b": 6_919_161_856,
    "qwen3-0.6b": 596_049_920,
}


def test_every_architecture_is_held_to_a_published_count() -> None:
    assert architectures().keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_published_size_and_nothing_unknown(name: str) -> None:
    model = build_meta_model(name)
    assert sum(param.numel() for param in model.parameters()) == PUBLISHED[name]
    explained = explain(model)
    assert explained.elements == PUBLISHED[name]
    assert "unknown" not in {row.role for row in explained.rows}


def test_names_are_found_in_any_case_and_misspelt_ones_are_helped() -> None:
    assert load_config("Llama-3.1-8B").hidden_size == 4096
    with pytest.raises(RecipeError, match=r"did you mean 'llama-3\.1-8b'"):
        load_config("llama-3.1-8bb")

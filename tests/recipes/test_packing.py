"""Documents in one block: positions, labels, what is scored, and attention that stays within them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from orthoopt.recipes import pretrain
from orthoopt.recipes.blocks import ValidationBlocks
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.packing import IGNORED, Collate, check_boundaries, document_positions

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS = {
    "Qwen3Config": SIZES | {"head_dim": 8},
    "LlamaConfig": SIZES,
    "OlmoeConfig": SIZES | {"num_experts": 4, "num_experts_per_tok": 2},
    "Gemma3TextConfig": SIZES | {"head_dim": 8, "sliding_window": 4},
    "GPT2Config": {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4},
}
END = 0


def model_of(name: str, attention: str = "sdpa", **changes: int) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, name)(**MODELS.get(name, {}), **changes, bos_token_id=END, eos_token_id=END)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    # At its usual size new weights hardly attend; a leak is to show.
    with torch.no_grad():
        for param in model.parameters():
            if param.dim() >= 2:
                param.normal_(std=0.3)
    return model


@given(st.lists(st.lists(st.integers(1, 9), max_size=5), min_size=1, max_size=6), st.integers(0, 4))
def test_positions_count_from_the_last_end_of_text(rows: list[list[int]], cut: int) -> None:
    """By hand, one token after the other; documents may be empty, and the first is cut."""
    tokens = [i for row in rows for i in (*row, END)][cut:]
    expected, place = [], 0
    for token in tokens:
        expected.append(place)
        place = 0 if token == END else place + 1
    if tokens:
        assert document_positions(torch.tensor([tokens]), END).tolist() == [expected]


def test_the_first_token_of_a_document_is_not_scored() -> None:
    block = torch.tensor([5, 6, END, 7, 8, END, 9])
    batch = Collate(END)([{"input_ids": block}])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, END, IGNORED, 8, END, IGNORED]]  # the end itself is scored
    assert set(Collate()([{"input_ids": block}])) == {"input_ids", "labels"}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_a_packed_document_has_the_logits_it_has_alone(name: str, attention: str) -> None:
    model = model_of(name, attention)
    check_boundaries(model, batch_size=2)
    draw = torch.Generator().manual_seed(1)
    documents = [[*torch.randint(1, 97, (size,), generator=draw).tolist(), END] for size in (7, 1, 12, 5)]
    block = torch.tensor([i for document in documents for i in document])
    batch = Collate(END)([{"input_ids": block}, {"input_ids": block.flip(0)}])
    with torch.no_grad():
        packed = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
        mixed = model(batch["input_ids"], use_cache=False).logits[0]
        alone = torch.cat([model(torch.tensor([document]), use_cache=False).logits[0] for document in documents])
    scale = alone.abs().max().item()
    assert (packed - alone).abs().max() < 1e-5 * scale  # fp32 sums over other lengths: a few units in the last place
    assert (mixed - alone)[len(documents[0]) :].abs().max() > 1e-2 * scale


@pytest.mark.parametrize("name", ["BloomConfig", "GptOssConfig"])
def test_models_that_mix_documents_are_refused(name: str) -> None:
    """Bloom has no positions to restart; gpt-oss in transformers builds its masks without them."""
    sizes = {"n_layer": 1, "n_head": 4} if name == "BloomConfig" else {
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size": 32}  # fmt: skip
    with pytest.raises(RecipeError, match="does not keep documents apart"):
        check_boundaries(model_of(name, "eager", vocab_size=97, hidden_size=32, **sizes), batch_size=2)


def test_flash_attention_is_refused_with_more_than_one_block() -> None:
    """It cuts a batch of one row by its positions, and no other: transformers, `_is_packed_sequence`."""
    model = model_of("LlamaConfig")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(RecipeError, match="per_device_train_batch_size 1"):
        check_boundaries(model, batch_size=2)
    check_boundaries(model, batch_size=1)


def test_scored_tokens_and_bytes_leave_out_what_begins_a_document() -> None:
    tokens = np.array([5, 6, END, 7, 8, END, 9, 4])
    sizes = np.array([1, 2, 0, 4, 8, 0, 16, 32])
    apart = ValidationBlocks(tokens, sizes, 4, 2, end_of_text=END)
    assert (apart.scored_tokens, apart.scored_bytes) == (2 + 2, 2 + 0 + 0 + 32)
    assert ValidationBlocks(tokens, sizes, 4, 2).scored_bytes == 2 + 0 + 4 + 0 + 16 + 32
    assert ValidationBlocks(tokens, None, 4, 2).bits_per_byte(1.0) is None
    with pytest.raises(RecipeError, match="no held-out token"):
        ValidationBlocks(np.zeros(8, dtype=np.int64), sizes, 4, 2, end_of_text=END)


def test_a_run_with_boundaries_scores_the_mean_over_scored_tokens(sandbox, tmp_path, capsys) -> None:
    """Blocks have different numbers of scored tokens: the mean of batches' means would be another number."""
    lines = [" ".join(path.read_text().split()[number : number + 5 * (number % 4 + 1)])
             for path in sorted(sandbox.corpus.rglob("*.txt")) for number in range(0, 60, 3)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    flags = sandbox.flags(tmp_path / "run", "--data", str(tmp_path / "rows.jsonl"), "--streaming", "true")
    flags += ["--document_boundaries", "true", "--per_device_eval_batch_size", "5", "--generate_sample", "false"]
    for option, number in (("max_steps", 3), ("logging_steps", 1), ("eval_steps", 3), ("save_steps", 3)):
        flags += [f"--{option}", str(number)]
    assert pretrain.main(flags) == 0
    output = tmp_path / "run"
    result = json.loads((output / "results.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(output / "model").eval()
    arguments = pretrain.parse(flags)
    _, tokenizer, data = pretrain.load_data(arguments)
    batch = data.collate([data.validation[i] for i in range(len(data.validation))])
    assert tokenizer.eos_token_id == END and len(data.validation) % 5 != 0
    with torch.no_grad():
        logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    labels = batch["labels"][:, 1:]
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    counts = (labels != IGNORED).sum(1)
    assert int(counts.sum()) == data.validation.scored_tokens and len(set(counts.tolist())) > 1
    loss = float(losses.sum() / counts.sum())
    assert result["eval_loss"] == pytest.approx(loss, abs=2e-6)  # fp32 sums in batches
    assert abs(float((losses.sum(1) / counts).mean()) - loss) > 1e-5
    bits = loss * data.validation.scored_tokens / (math.log(2) * data.validation.scored_bytes)
    assert result["eval_bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    scored = [row["data"]["scored_tokens"] for row in rows if "loss" in row]
    assert 0 < scored[0] < scored[1] < scored[2] < rows[-1]["tokens"] == 3 * 8 * 32
    assert _scored_by(Path(output / "checkpoint-3")) == scored[-1]


def _scored_by(checkpoint: Path) -> int:
    return int(json.loads((checkpoint / "data-0.json").read_text())["scored_tokens"])

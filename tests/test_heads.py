"""Heads that no accessor names: each kind of evidence routes one, and where there is none the report says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from expected_roles import by_name
from torch import Tensor, nn

from orthoopt import explain, param_groups
from orthoopt.roles import roles


class Block(nn.Module):
    """A residual block whose names say nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Linear(width, 2 * width)
        self.b = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> the same."""
        return x + self.b(self.a(x).relu())


class Language(nn.Module):
    """A language model without accessors, whose last layer has a name of its own and this many outputs."""

    def __init__(self, outputs: int = 96, name: str = "readout", vocabulary: int = 96) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, 32)
        self.blocks = nn.ModuleList([Block(32) for _ in range(2)])
        self.add_module(name, nn.Linear(32, outputs, bias=False))


class Images(nn.Module):
    """Convolutions, then layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.mixing = nn.Linear(8, 16)
        self.readout = nn.Linear(16, 10)


class Perceptron(nn.Module):
    """Layers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 32)
        self.second = nn.Linear(32, 32)
        self.third = nn.Linear(32, 10)


class Accessed(Language):
    """With the accessor of transformers."""

    def get_output_embeddings(self) -> nn.Module:
        """The layer that leads to logits, here not the last one."""
        return self.blocks[0].a


def test_the_number_of_outputs_is_evidence() -> None:
    entry = by_name(roles(Language()))["readout.weight"]
    assert entry[1:] == ("lm_head", "matrix", "nn.Linear readout, the last layer with the vocabulary (96) as outputs")


def test_a_name_is_evidence_before_the_number_of_outputs() -> None:
    entry = by_name(roles(Language(outputs=104, name="lm_head")))["lm_head.weight"]  # the vocabulary padded
    assert (
        entry.role == "lm_head" and entry.reason == "nn.Linear lm_head: the last layer of that name, it leads to logits"
    )


def test_the_accessor_goes_before_both_and_beside_it_only_unambiguous_names_count() -> None:
    listed = by_name(roles(Accessed(name="head")))
    assert listed["blocks.0.a.weight"].role == "lm_head"
    assert "get_output_embeddings()" in listed["blocks.0.a.weight"].reason
    assert listed["head.weight"].role != "lm_head"
    assert by_name(roles(Accessed(name="classifier")))["classifier.weight"].role == "lm_head"  # a second head


def test_the_last_layer_after_convolutions_is_evidence() -> None:
    entry = by_name(roles(Images()))["readout.weight"]
    assert entry[1:] == (
        "lm_head",
        "matrix",
        "nn.Linear readout, the last layer after convolutions, it leads to logits",
    )


@pytest.mark.parametrize(
    ("model", "last"),
    [
        (Language(outputs=104), "readout.weight"),  # neither name nor number fits
        (Perceptron(), "third.weight"),
        (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)), "4.weight"),
    ],
)
@pytest.mark.parametrize("plan", ["muon", "symmetry"])
def test_without_evidence_the_last_layer_is_reported_as_unsure(model: nn.Module, last: str, plan: str) -> None:
    listed = by_name(roles(model))
    assert listed[last].role == "unknown"
    assert listed[last].reason.endswith(
        "the last layer: an output layer or a hidden one, neither accessor, name nor number of outputs tells"
    )
    assert [entry.name for entry in listed.values() if entry.role == "unknown"] == [last]
    groups = {name: group["rule"] for group in param_groups(model, plan) for name, _ in group["params"]}
    assert groups[last] == "adamw"  # safe for either
    report = explain(model, plan).text()
    assert f"1 of unknown role: {last}" in report and '"role": "hidden"' in report


def test_an_override_settles_it() -> None:
    groups = param_groups(Perceptron(), "symmetry", overrides=[(r"third\.weight", {"role": "lm_head"})])
    (head,) = [group for group in groups if group["role"] == "lm_head"]
    assert [name for name, _ in head["params"]] == ["third.weight"] and head["rule"] == "row_norm"


def test_containers_without_a_forward_pass_have_no_last_layer() -> None:
    for container in (
        nn.ModuleList([nn.Linear(4, 6), nn.Linear(4, 6)]),
        nn.ModuleDict({"one": nn.Linear(4, 6), "other": nn.Linear(4, 6)}),
    ):
        assert {entry.role for entry in roles(container) if entry.name.endswith("weight")} == {"hidden"}
    assert roles(nn.Linear(4, 6))[0].role == "hidden"  # one layer is the first as much as the last


def test_a_block_is_not_a_model() -> None:
    assert "unknown" not in {entry.role for entry in roles(nn.TransformerEncoderLayer(16, 2, 24))}


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: nn.ModuleDict({"module": model})])
def test_labels_of_a_config_are_evidence_also_in_a_wrapper(wrap: Callable[[nn.Module], nn.Module]) -> None:
    from transformers import BertConfig, BertForPreTraining

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    with torch.device("meta"):
        model = BertForPreTraining(BertConfig(vocab_size=96, **sizes))
    (entry,) = [entry for entry in roles(wrap(model)) if entry.name.endswith("cls.seq_relationship.weight")]
    assert entry.role == "lm_head"
    assert entry.reason == "nn.Linear seq_relationship, beside the base model, with the config's 2 labels as outputs"

"""Roles of torch's own layers beside Linear and convolutions: recurrent, attention, bilinear, adaptive softmax."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routing_check import ATTENTION, MATRIX, MLP_IN, MLP_OUT, VECTOR, Expected, check
from torch import Tensor, nn

import orthoopt
from orthoopt.roles import classify, roles
from orthoopt.views import parse_view

BIASES: Expected = {r".*bias\w*": VECTOR}


def gates(count: int, hidden: int = 6) -> tuple[str, str]:
    return ("hidden", "matrix") if count == 1 else ("hidden", f"split({','.join([str(hidden)] * count)})")


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("kind", "count"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("by_name", [False, True])
def test_gates_are_blocks_of_rows(kind: type[nn.RNNBase], count: int, layers: int, bidirectional: bool, by_name: bool):
    model = nn.ModuleDict({"rnn": kind(5, 6, num_layers=layers, bidirectional=bidirectional)})
    expected = {r"rnn\.weight_(ih|hh)_l\d(_reverse)?": gates(count), **BIASES}
    check(model.named_parameters() if by_name else model, expected)


@pytest.mark.parametrize("by_name", [False, True])
def test_an_lstm_with_projections(by_name: bool) -> None:
    model = nn.ModuleDict({"rnn": nn.LSTM(5, 6, num_layers=2, proj_size=3, bidirectional=True)})
    expected = {
        r"rnn\.weight_ih_l0(_reverse)?": gates(4),  # (24, 5)
        r"rnn\.weight_ih_l1(_reverse)?": gates(4),  # (24, 6): both directions' projections
        r"rnn\.weight_hh_l\d(_reverse)?": gates(4),  # (24, 3)
        r"rnn\.weight_hr_l\d(_reverse)?": MATRIX,  # (3, 6)
        **BIASES,
    }
    check(model.named_parameters() if by_name else model, expected)


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize(("kind", "count"), [(nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1)])
def test_cells(kind: type[nn.RNNCellBase], count: int, by_name: bool) -> None:
    model = nn.ModuleDict({"cell": kind(5, 6)})
    expected = {r"cell\.weight_(ih|hh)": gates(count), **BIASES}
    check(model.named_parameters() if by_name else model, expected)


def test_each_block_of_an_lstm_is_one_gate() -> None:
    torch.manual_seed(0)
    cell = nn.LSTMCell(5, 6)
    (entry,) = [e for e in roles(cell) if e.name == "weight_ih"]
    x, (h, c) = torch.randn(1, 5), (torch.zeros(1, 6), torch.randn(1, 6))
    i, f, g, o = (
        x @ piece.T + bias
        for piece, bias in zip(
            parse_view(entry.view).pieces(cell.weight_ih), (cell.bias_ih + cell.bias_hh).split(6), strict=True
        )
    )
    cell_state = f.sigmoid() * c + i.sigmoid() * g.tanh()
    # 1e-6: sums of 5 products in fp32
    torch.testing.assert_close(o.sigmoid() * cell_state.tanh(), cell(x, (h, c))[0], atol=1e-6, rtol=0)


ATTENTIONS: dict[str, tuple[dict[str, Any], Expected, dict[str, str]]] = {
    "one width": (
        {},
        {r"in_proj_weight": ("attention", "split(16,16,16)"), r"out_proj\.weight": ATTENTION, **BIASES},
        {"in_proj_weight": "split(16,16,16) head_size(8)", "out_proj.weight": "heads_in(2)"},
    ),
    "keys and values of other widths": (
        {"kdim": 12, "vdim": 10, "add_bias_kv": True},
        {r"[qkv]_proj_weight": ATTENTION, r"out_proj\.weight": ATTENTION, **BIASES},
        {
            **{f"{part}_proj_weight": "heads(2)" for part in "qkv"},
            "out_proj.weight": "heads_in(2)",
        },
    ),
}


@pytest.mark.parametrize("which", ATTENTIONS)
def test_multihead_attention_and_its_heads(which: str) -> None:
    options, expected, views = ATTENTIONS[which]
    model = nn.MultiheadAttention(16, 2, **options)
    check(model, expected)
    found = {c.name: c.per_head for c in classify(model) if c.role == "attention"}
    assert {name: layout and layout[0] for name, layout in found.items()} == views


def test_a_transformer_of_torch() -> None:
    check(
        nn.Transformer(16, 2, 2, 2, 40, batch_first=True),
        {
            r"\w+\.layers\.\d\.(self|multihead)_attn\.in_proj_weight": ("attention", "split(16,16,16)"),
            r"\w+\.layers\.\d\.(self|multihead)_attn\.out_proj\.weight": ATTENTION,
            r"\w+\.layers\.\d\.linear1\.weight": MLP_IN,
            r"\w+\.layers\.\d\.linear2\.weight": MLP_OUT,
            r".*norm\d?\.weight": VECTOR,
            **BIASES,
        },
    )


def test_bags_of_embeddings() -> None:
    check(
        nn.ModuleDict({"bag": nn.EmbeddingBag(20, 8), "fc": nn.Linear(8, 6)}),
        {r"bag\.weight": ("embedding", "matrix"), r"fc\.weight": MATRIX, **BIASES},
    )


def test_every_logit_of_an_adaptive_softmax_is_a_heads() -> None:
    model = nn.ModuleDict(
        {"tokens": nn.Embedding(40, 16), "loss": nn.AdaptiveLogSoftmaxWithLoss(16, 40, [10, 20], div_value=2.0)}
    )
    check(
        model,
        {
            r"tokens\.weight": ("embedding", "matrix"),
            r"loss\.head\.weight": ("lm_head", "matrix"),
            r"loss\.tail\.\d\.0\.weight": MATRIX,
            r"loss\.tail\.\d\.1\.weight": ("lm_head", "matrix"),
        },
    )


def test_a_bilinear_layer() -> None:
    model = nn.ModuleDict({"many": nn.Bilinear(4, 5, 3), "one": nn.Bilinear(4, 5, 1)})
    check(model, {r"many\.weight": ("hidden", "flatten"), r"one\.weight": ("hidden", "matrix"), **BIASES})
    x, y = torch.randn(2, 4), torch.randn(2, 5)
    products = (x[:, :, None] * y[:, None, :]).flatten(1)
    (matrix,) = parse_view("flatten").pieces(model["many"].weight)
    # 1e-6: sums of 20 products in fp32
    torch.testing.assert_close(products @ matrix.T + model["many"].bias, model["many"](x, y), atol=1e-6, rtol=0)


@given(seed=st.integers(0, 2**16))
def test_the_update_of_a_bilinear_layer_turns_with_all_three_spaces(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def rotation(size: int) -> Tensor:
        return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]

    def turned(tensor: Tensor) -> Tensor:
        return torch.einsum("ao,bi,cj,oij->abc", out, one, two, tensor)

    def update(tensor: Tensor) -> Tensor:
        view = parse_view("flatten")
        left, _, right = torch.linalg.svd(view.pieces(tensor)[0], full_matrices=False)
        return view.merge([left @ right], tuple(tensor.shape))

    out, one, two = rotation(3), rotation(4), rotation(5)
    gradient = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    # 1e-9: an SVD in fp64 of a 3x20 matrix whose singular values differ by less than 1e3
    torch.testing.assert_close(update(turned(gradient)), turned(update(gradient)), atol=1e-9, rtol=0)


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # of torch's own making
def test_recurrent_and_bilinear_layers_train() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": nn.LSTM(5, 6, proj_size=3), "pair": nn.Bilinear(3, 5, 4)})
    optimizer = orthoopt.Muon(model, lr=0.1)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    x = torch.randn(7, 2, 5)
    model["pair"](model["rnn"](x)[0], x).square().sum().backward()
    expected = orthoopt.orthogonalize(model["rnn"].weight_hr_l0.grad)
    optimizer.step()
    assert all(not torch.equal(param, before[name]) for name, param in model.named_parameters())
    moved = before["rnn.weight_hr_l0"] - model["rnn"].weight_hr_l0.detach()
    cosine = nn.functional.cosine_similarity(moved.flatten(), expected.flatten(), dim=0)
    assert cosine > 0.9  # scaled, decayed, and both only near the polar factor after a few Newton-Schulz steps

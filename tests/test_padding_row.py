"""The padding row of an embedding has no gradient: as under torch.optim.AdamW, weight decay alone may move it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from strategies import generator, is_matrix, is_valid, rules_where, values_of
from torch import Tensor, nn
from torch.nn import functional as F

from orthoopt import OrthoOpt, param_groups, plans, rules
from orthoopt.roles import classify

STEPS = 10
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
TALL, WIDE = (13, 6), (6, 13)  # which side a rule chooses columns on, and which singular vectors it has
# Tokens that a batch never holds, beside the padding.
PADDING, UNSEEN = 3, [1, 4]


class Classifier(nn.Module):
    """Tokens to the mean of their embeddings, by a bag or not, and through an mlp to a class."""

    def __init__(self, shape: tuple[int, int] = TALL, padding: int | None = PADDING, bag: bool = False) -> None:
        super().__init__()
        kind = nn.EmbeddingBag if bag else nn.Embedding
        self.embed_tokens = kind(*shape, padding_idx=padding)
        self.fc, self.classifier = nn.Linear(shape[1], shape[1]), nn.Linear(shape[1], 4, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        found = self.embed_tokens(tokens)
        return self.classifier(torch.tanh(self.fc(found if found.ndim == 2 else found.mean(1))))


def train(model: Classifier, optimizer: torch.optim.Optimizer) -> None:
    """Ten steps on sequences with padding, and without the tokens of UNSEEN."""
    source = generator(11)
    size = model.embed_tokens.num_embeddings
    seen = torch.tensor([token for token in range(size) if token not in UNSEEN])
    for _ in range(STEPS):
        tokens = seen[torch.randint(0, len(seen), (16, 5), generator=source)]
        tokens[::2, -1] = PADDING
        optimizer.zero_grad()
        F.cross_entropy(model(tokens), torch.randint(0, 4, (16,), generator=source)).backward()
        optimizer.step()


def after(model: Classifier, plan: Any, **settings: Any) -> Tensor:
    """The embedding after ten steps; it has moved."""
    before = model.embed_tokens.weight.detach().clone()
    train(model, OrthoOpt(param_groups(model, plan, lr=0.01, **settings)))
    weight = model.embed_tokens.weight.detach()
    assert not torch.equal(weight, before)
    return weight


@pytest.mark.parametrize("bag", [False, True], ids=["Embedding", "EmbeddingBag"])
@pytest.mark.parametrize("plan", plans.names())
def test_a_zero_padding_row_stays_zero(plan: str, bag: bool) -> None:
    for shape in (TALL, WIDE):
        for dtype in DTYPES:
            weight = after(Classifier(shape, bag=bag).to(dtype), plan, weight_decay=0.1)
            assert torch.equal(weight[PADDING], torch.zeros_like(weight[PADDING])), (shape, dtype)


def embedding_with(value: float, shape: tuple[int, int] = TALL) -> Classifier:
    model = Classifier(shape)
    with torch.no_grad():
        model.embed_tokens.weight[PADDING] = value
    return model


@pytest.mark.parametrize("plan", plans.names())
def test_another_padding_row_stays_what_it_is_without_weight_decay(plan: str) -> None:
    still = [("embed_tokens", {"weight_decay": 0.0})]
    for shape in (TALL, WIDE):
        weight = after(embedding_with(1.5, shape), plan, overrides=still)
        assert torch.equal(weight[PADDING], torch.full_like(weight[PADDING], 1.5))


@pytest.mark.parametrize("plan", plans.names())
def test_weight_decay_shrinks_it_as_torch_does(plan: str) -> None:
    """It is a parameter, and torch.optim.AdamW shrinks it too: by 1 − lr·λ a step."""
    decay = [("embed_tokens", {"weight_decay": 0.1, "lr_multiplier": 1.0})]
    weight = after(embedding_with(1.5), plan, overrides=decay)
    reference = embedding_with(1.5)
    train(reference, torch.optim.AdamW(reference.parameters(), lr=0.01, weight_decay=0.1))
    assert torch.equal(weight[PADDING], reference.embed_tokens.weight.detach()[PADDING])
    assert weight[PADDING, 0] < 1.5


@pytest.mark.parametrize("name", rules_where(is_matrix))
def test_no_rule_moves_it_under_any_option(name: str) -> None:
    """Centring, cosines over the rows and exact singular vectors give an update to rows without a gradient."""
    rule = rules.get(name)
    for option, some in values_of(rule).items():
        # Tables of coefficients map singular values; of them one alone rescales rows.
        for value in some if option != "ns_coefficients" else (some[0], "aol4"):
            entry = {"rule": name, option: value}
            if is_valid(rule, {**rule.defaults, option: value}):
                for shape in (TALL, WIDE):
                    weight = after(Classifier(shape), {"embedding": entry}, weight_decay=0.1)
                    assert torch.equal(weight[PADDING], torch.zeros_like(weight[PADDING])), (option, value, shape)


@pytest.mark.parametrize("plan", plans.names())
def test_tokens_that_are_not_seen_move_by_weight_decay_alone(plan: str) -> None:
    """A lookup's gradient has no rows for them, and no plan mixes an embedding's rows."""
    model = Classifier()
    before = model.embed_tokens.weight.detach().clone()
    weight = after(model, plan, overrides=[("embed_tokens", {"weight_decay": 0.0})])
    assert torch.equal(weight[UNSEEN], before[UNSEEN])


def test_the_row_is_known_where_the_module_says_it() -> None:
    def rows(model: nn.Module) -> list[int | None]:
        return [item.padding_row for item in classify(model) if item.role in ("embedding", "tied_embedding")]

    assert rows(Classifier()) == [PADDING] and rows(Classifier(bag=True)) == [PADDING]
    assert rows(Classifier(padding=-1)) == [TALL[0] - 1]  # torch counts it from the end
    assert rows(Classifier(padding=None)) == [None]
    two = nn.ModuleDict({"a": nn.Embedding(5, 4, padding_idx=1), "b": nn.Embedding(5, 4)})
    two["b"].weight = two["a"].weight  # the other table trains the row
    assert rows(two) == [None]
    tied = Classifier((6, 6))
    tied.fc.weight = tied.embed_tokens.weight  # so does a head
    assert rows(tied) == [None]


def test_it_is_a_key_of_the_group_under_matrix_rules() -> None:
    def of_embedding(plan: str, **settings: Any) -> list[Any]:
        groups = param_groups(Classifier(), plan, **settings)
        return [group.get("padding_row") for group in groups if group["params"][0][0].startswith("embed")]

    assert of_embedding("symmetry") == [PADDING] and of_embedding("adamw") == [None]
    assert of_embedding("symmetry", overrides=[("embed", {"role": "hidden"})]) == [None]  # a table no more


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"padding_row": 4}, "padding_row=4 must be a row of w, from 0 to 3"),
        ({"padding_row": -1}, "padding_row=-1 must be a row of w, from 0 to 3"),
        ({"padding_row": True}, "padding_row=True must be a row of w, from 0 to 3"),
        ({"padding_row": 1, "view": "transpose"}, "padding_row=1 needs view='matrix' and a matrix rule"),
        ({"padding_row": 1, "rule": "adamw"}, "padding_row=1 needs view='matrix' and a matrix rule"),
    ],
)
def test_a_wrong_row_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"param group 0: {message}"):
        OrthoOpt([{"params": [("w", nn.Parameter(torch.ones(4, 3)))], "rule": "row_norm", **settings}])

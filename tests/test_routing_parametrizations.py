"""Roles of what torch's parametrizations start from, in their old form and in the new one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from routing_check import CONV, HEAD, MATRIX, MLP_IN, MLP_OUT, VECTOR, Expected, check
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import orthoopt
from orthoopt.roles import roles

UNKNOWN = ("unknown", "matrix")


def mlp(treat: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.ModuleDict({"mlp": nn.ModuleDict({"fc1": treat(nn.Linear(4, 8)), "fc2": treat(nn.Linear(8, 4))})})


def old_weight_norm(layer: nn.Module, name: str = "weight", dim: int | None = 0) -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(layer, name, dim)


class Symmetric(nn.Module):
    """A user's own: the upper triangle, mirrored."""

    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT


def symmetric(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Symmetric())


def both(layer: nn.Module) -> nn.Module:
    return parametrizations.spectral_norm(parametrizations.weight_norm(layer))


NEW_NORM: Expected = {
    r"mlp\.fc\d\.parametrizations\.weight\.original0": VECTOR,
    r"mlp\.fc1\.parametrizations\.weight\.original1": MLP_IN,
    r"mlp\.fc2\.parametrizations\.weight\.original1": MLP_OUT,
    r"mlp\.fc\d\.bias": VECTOR,
}
OLD_NORM: Expected = {
    r"mlp\.fc\d\.weight_g": VECTOR,
    r"mlp\.fc1\.weight_v": MLP_IN,
    r"mlp\.fc2\.weight_v": MLP_OUT,
    r"mlp\.fc\d\.bias": VECTOR,
}
ORIGINAL: Expected = {
    r"mlp\.fc1\.(parametrizations\.weight\.original|weight_orig)": MLP_IN,
    r"mlp\.fc2\.(parametrizations\.weight\.original|weight_orig)": MLP_OUT,
    r"mlp\.fc\d\.bias": VECTOR,
}
ORTHOGONAL: Expected = {r"mlp\.fc\d\.(bias|parametrizations\.weight\.original)": VECTOR}
MLPS: dict[str, tuple[Callable[[nn.Module], nn.Module], Expected]] = {
    "weight norm": (parametrizations.weight_norm, NEW_NORM),
    "weight norm of columns": (lambda layer: parametrizations.weight_norm(layer, dim=1), NEW_NORM),
    "weight norm of the whole": (lambda layer: parametrizations.weight_norm(layer, dim=None), NEW_NORM),
    "old weight norm": (old_weight_norm, OLD_NORM),
    "old weight norm of the whole": (lambda layer: old_weight_norm(layer, dim=None), OLD_NORM),
    "spectral norm": (parametrizations.spectral_norm, ORIGINAL),
    "old spectral norm": (nn.utils.spectral_norm, ORIGINAL),
    "both norms": (both, NEW_NORM),
    "pruned": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), ORIGINAL),
    "Householder": (lambda layer: parametrizations.orthogonal(layer, orthogonal_map="householder"), ORTHOGONAL),
    "Cayley": (lambda layer: parametrizations.orthogonal(layer, orthogonal_map="cayley"), ORTHOGONAL),
}


@pytest.mark.parametrize("which", MLPS)
def test_the_layers_of_an_mlp(which: str) -> None:
    treat, expected = MLPS[which]
    check(mlp(treat), expected)


@pytest.mark.parametrize("which", ["weight norm", "old weight norm", "spectral norm", "old spectral norm", "pruned"])
def test_their_names_alone(which: str) -> None:
    treat, expected = MLPS[which]
    check(mlp(treat).named_parameters(), expected)


def test_an_unknown_parametrization_is_listed_with_its_class() -> None:
    model = nn.ModuleDict({"fc1": symmetric(nn.Linear(4, 4))})
    said = check(model, {r"fc1\.parametrizations\.weight\.original": UNKNOWN, r"fc1\.bias": VECTOR})
    assert "computed from it by Symmetric" in said["fc1.parametrizations.weight.original"].reason
    model = nn.ModuleDict({"fc1": parametrizations.spectral_norm(symmetric(nn.Linear(4, 4)))})
    said = check(model, {r"fc1\.parametrizations\.weight\.original": UNKNOWN, r"fc1\.bias": VECTOR})
    assert "_SpectralNorm after Symmetric" in said["fc1.parametrizations.weight.original"].reason


def test_other_layers_than_linear_ones() -> None:
    model = nn.ModuleDict(
        {
            "table": parametrizations.spectral_norm(nn.Embedding(12, 4)),
            "conv": parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
            "old": old_weight_norm(nn.Conv1d(3, 4, 3)),
            "depthwise": parametrizations.weight_norm(nn.Conv1d(4, 4, 3, groups=4)),
            "rnn": parametrizations.weight_norm(nn.LSTM(4, 6), "weight_hh_l0"),
            "head": parametrizations.weight_norm(nn.Linear(4, 12), dim=0),
        }
    )
    check(
        model,
        {
            r"table\.parametrizations\.weight\.original": ("embedding", "matrix"),
            r"conv\.parametrizations\.weight\.original1": CONV,
            r"old\.weight_v": CONV,
            r"depthwise\.parametrizations\.weight\.original1": VECTOR,
            r"rnn\.(parametrizations\.weight_hh_l0\.original1|weight_ih_l0)": ("hidden", "split(6,6,6,6)"),
            r"head\.parametrizations\.weight\.original1": HEAD,
            r".*(original0|weight_g|bias\w*)": VECTOR,
        },
    )


def test_a_normed_attention_and_a_normed_head_train() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 6)), parametrizations.spectral_norm(nn.Linear(6, 5))
    )
    before = [param.detach().clone() for param in model.parameters()]
    optimizer = orthoopt.Symmetry(model, lr=1e-2)
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    assert all(p.isfinite().all() and not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_weights_that_are_not_in_their_shape_are_listed() -> None:
    layer = nn.Linear(4, 6)
    layer.weight = nn.Parameter(torch.zeros(12))  # half of it, as FSDP leaves it to one of two ranks
    entry = roles(nn.ModuleDict({"fc": layer, "other": nn.Linear(6, 4)}))[0]
    assert (entry.role, entry.view) == ("unknown", "vector") and "flattened" in entry.reason


def test_a_hidden_matrix_is_left_as_it_was() -> None:
    plain = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 5)])
    check(plain, {r"\d\.weight": MATRIX, r"\d\.bias": VECTOR})

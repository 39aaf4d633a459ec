"""The two sides of an mlp by the shapes of its layers, whatever they are called, and where shapes say nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from routing_check import CONV, MATRIX, MLP_IN, MLP_OUT, VECTOR, check
from torch import nn

from orthoopt.roles import roles

SIZES = st.integers(2, 40)
NAMES = st.lists(
    st.sampled_from(["alpha", "beta", "first", "second", "lift", "drop"]), min_size=3, max_size=3, unique=True
)


def sides(block: nn.Module) -> dict[str, tuple[str, str]]:
    return {e.name.split(".")[1]: (e.role, e.view) for e in roles(nn.ModuleDict({"mlp": block}))}


@given(width=SIZES, inner=SIZES, names=NAMES, order=st.permutations(range(3)))
def test_a_gated_mlp_in_any_order_under_any_names(width: int, inner: int, names: list[str], order: list[int]) -> None:
    assume(width not in (inner, 2 * inner) and inner != 2 * width)
    layers = [nn.Linear(width, inner, False), nn.Linear(width, inner, False), nn.Linear(inner, width, False)]
    with torch.device("meta"):
        found = sides(nn.ModuleDict({names[place]: layers[place] for place in order}))
    assert found == dict(zip(names, [MLP_IN, MLP_IN, MLP_OUT], strict=True))


@given(width=SIZES, inner=SIZES, names=NAMES)
def test_a_plain_mlp_under_any_names(width: int, inner: int, names: list[str]) -> None:
    assume(width != 2 * inner)  # there the way in might hold a gate
    block = {names[0]: nn.Linear(width, inner, False), names[1]: nn.Linear(inner, width, False)}
    assert sides(nn.ModuleDict(block)) == {names[0]: MLP_IN, names[1]: MLP_OUT}


@given(width=SIZES, inner=SIZES)
def test_a_fused_gate_is_cut_only_where_something_halves_it(width: int, inner: int) -> None:
    layers = {"lift": nn.Linear(width, 2 * inner, False), "drop": nn.Linear(inner, width, False)}
    assert sides(nn.ModuleDict(layers)) == {"lift": MLP_IN, "drop": MLP_OUT}
    said = {e.name: e.reason for e in roles(nn.ModuleDict({"mlp": nn.ModuleDict(layers)}))}
    assert "unknown order" in said["mlp.lift.weight"]
    halved = sides(nn.ModuleDict({**layers, "glu": nn.GLU()}))
    assert halved == {"lift": ("mlp_in", f"split({inner},{inner})"), "drop": MLP_OUT}


def test_a_projector_whose_shapes_fit_both_ways_keeps_the_order_of_its_layers() -> None:
    block = nn.ModuleDict({"fc1": nn.Linear(4, 8), "rest": nn.ModuleList([nn.Linear(8, 8)])})
    found = {e.name: e.role for e in roles(nn.ModuleDict({"mlp": block}))}
    assert found["mlp.fc1.weight"] != "mlp_out" and found["mlp.rest.0.weight"] == "hidden"


def test_several_square_layers_are_hidden() -> None:
    block = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)])})
    check(nn.ModuleDict({"box_mlp": block}), {r".*weight": MATRIX, r".*bias": VECTOR})


class Experts(nn.Module):
    """A stack between two projections."""

    def __init__(self) -> None:
        super().__init__()
        self.pre_expert_proj = nn.Linear(16, 6, bias=False)
        self.gate_up_proj = nn.Parameter(torch.zeros(3, 20, 6))
        self.down_proj = nn.Parameter(torch.zeros(3, 6, 10))
        self.post_expert_proj = nn.Linear(6, 16, bias=False)


def test_projections_around_experts_are_no_mlp() -> None:
    found = {e.name: e.role for e in roles(nn.ModuleDict({"mlp": Experts()})) if "proj.weight" in e.name}
    assert set(found.values()) == {"hidden"}


class BoxHead(nn.Module):
    """A detector's head: scores and boxes by kernels of size 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3)
        self.scores = nn.Conv2d(8, 3, 1)
        self.boxes = nn.Conv2d(8, 12, 1)


@pytest.mark.parametrize("name", ["head", "classifier"])
def test_boxes_are_no_logits(name: str) -> None:
    model = nn.ModuleDict({"backbone": nn.Conv2d(3, 8, 3), name: BoxHead()})
    check(model, {r".*weight": CONV, r".*bias": VECTOR})


def test_a_first_kernel_called_head_is_no_head() -> None:
    model = nn.ModuleDict({"head": nn.Conv2d(3, 8, 1), "body": nn.Conv2d(8, 8, 3), "tail": nn.Conv2d(8, 3, 3)})
    check(model, {r".*weight": CONV, r".*bias": VECTOR})


def test_an_auxiliary_head_does_not_hide_the_main_one() -> None:
    def classifier() -> nn.Module:
        return nn.Sequential(nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 1))

    model = nn.ModuleDict({"backbone": nn.Conv2d(3, 8, 3), "classifier": classifier(), "aux_classifier": classifier()})
    found = {e.name: e.role for e in roles(model)}
    assert found["classifier.2.weight"] == "lm_head" and found["classifier.0.weight"] == "conv"

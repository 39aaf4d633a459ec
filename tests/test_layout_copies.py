"""A view costs no copy: a step on a fused parameter copies what it stacks, once, and nothing of the parameter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from expected_roles import MODELS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from orthoopt import OrthoOpt, rules
from orthoopt.kernels import steps
from orthoopt.roles import classify
from orthoopt.views import parse_view

COPIES = ("clone", "copy_", "_to_copy", "cat", "stack", "index", "index_select", "gather", "repeat")

MATRIX = 40  # elements of the smallest matrix below; diagonals and scales are copied in an iteration


class CountCopies(TorchDispatchMode):
    """How many elements each kind of copy writes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in COPIES and isinstance(result, Tensor) and result.numel() >= MATRIX:
            self.elements[name] += result.numel()
        return result


@pytest.fixture(autouse=True)
def by_torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled loops copy less still, unseen."""
    monkeypatch.setattr(steps, "_takes_native", lambda tensors: False)


def copies_of_a_step(rule: str, view: str, shape: tuple[int, ...], layout: Callable[[Tensor], Tensor]) -> Counter[str]:
    """Of the second step: the first one makes the state."""
    param = nn.Parameter(layout(torch.randn(shape)))
    optimizer = OrthoOpt([{"params": [param], "rule": rule, "view": view}], lr=0.01)
    for _ in range(2):
        param.grad = layout(torch.randn(shape))
        with CountCopies() as counted:
            optimizer.step()
    return counted.elements


def same(tensor: Tensor) -> Tensor:
    return tensor


@pytest.mark.parametrize("rule", ["spectral", "row_norm", "auon", "hybrid"])
@pytest.mark.parametrize(
    ("view", "shape", "copied"),
    [
        ("matrix", (24, 10), 0),
        ("transpose", (10, 24), 0),
        ("split(12,12)", (24, 10), 240),  # two matrices of one shape are stacked
        ("split(12,6,6)", (24, 10), 120),  # of the three two are
        ("transpose split(8,8,8)", (10, 24), 240),
        ("transpose interleave(2)", (3, 10, 8), 240),
        ("heads(4)", (24, 10), 0),
        ("split(12,12) head_size(6)", (24, 10), 240),
        ("heads(2) split(4,4,4)", (24, 10), 240),
        # Heads that lie apart are brought together in the stack, never in the parameter.
        ("heads(2) split(4,4,4) join", (24, 10), 240),
        ("flatten", (8, 3, 2, 5), 0),
    ],
)
def test_what_a_step_copies(rule: str, view: str, shape: tuple[int, ...], copied: int) -> None:
    # Nesterov's blend is computed where it is wanted; only a momentum that is the signal itself is copied there.
    blended = rules.get(rule).defaults["nesterov"]
    assert copies_of_a_step(rule, view, shape, same).total() == (0 if blended else copied)


def test_what_cannot_be_seen_without_a_copy_is_counted() -> None:
    """The count can fail: a kernel in channels_last is flattened by copying, and written back."""
    copied = copies_of_a_step("row_norm", "flatten", (8, 3, 2, 5), lambda x: x.to(memory_format=torch.channels_last))
    assert copied["copy_"] >= 240


@pytest.mark.parametrize("which", MODELS)
def test_every_view_of_a_real_model_writes_its_parameter(which: str) -> None:
    for item in classify(MODELS[which][0]()):
        for spec in (item.view, *(item.per_head or ())[:1]):
            view = parse_view(spec)
            assert not view.is_matrix or view.shares_memory(item.param), item

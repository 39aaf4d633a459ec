"""The sides of an mlp by all its layers together: by their shapes, whatever they are called, or by their names."""

from __future__ import annotations

from torch import Tensor, nn

from orthoopt.census import Candidate, children

# Layers that say which is which only together: lit-gpt's, DINOv2's and timm's.
_TOGETHER = (
    (("fc_1", "fc_2"), "proj"),
    (("fc",), "proj"),
    (("w12",), "w3"),
    (("fc1_g", "fc1_x"), "fc2"),
)


def side_together(candidate: Candidate) -> str | None:
    """The side, "in" or "out", of a layer whose mlp has others beside it under the names that go with its own."""
    for ways_in, out in _TOGETHER:
        names = {*ways_in, out}
        if candidate.last in names and all(candidate.beside(name) is not None for name in names):
            return "out" if candidate.last == out else "in"
    return None


def side_by_shapes(candidate: Candidate) -> str | None:
    """The side, "in" or "out", of one of the two or three layers of an mlp: only the way out fits all the others.

    The way out is (H, I) where the others are (I, H), or (2 I, H) when they hold gate and up. None where the shapes
    fit more than one way, and without modules.
    """
    out = _way_out(candidate)
    if out is None:
        return None
    return "out" if out is candidate.owner else "in"


def is_doubled(candidate: Candidate) -> bool:
    """Whether a way in has two rows for every input of the way out: it holds the gate too."""
    out = _way_out(candidate)
    return out is not None and out is not candidate.owner and candidate.shape[0] == 2 * _shape(out)[1]


def plain_mlp_side(candidate: Candidate) -> str | None:
    """The side of a layer in an nn.Sequential that holds an mlp among other things: Linear, activation, Linear."""
    parent = candidate.modules[1] if len(candidate.modules) > 1 else None
    if not isinstance(parent, nn.Sequential):
        return None
    used = [child for child in children(parent) if not isinstance(child, nn.Dropout)]
    linear = [place for place, child in enumerate(used) if isinstance(child, nn.Linear)]
    if len(linear) != 2 or linear[1] != linear[0] + 2:
        return None
    between = used[linear[0] + 1]
    if any(True for _ in between.parameters()) or isinstance(between, nn.Identity):
        return None
    return side_by_shapes(candidate)


def _way_out(candidate: Candidate) -> nn.Module | None:
    layers = _layers(candidate)
    fitting = [layer for layer in layers if all(_opposite(layer, other) for other in layers if other is not layer)]
    if len(layers) == 2:  # modules are listed in the order in which they are used, which settles square ones
        fitting = [layer for layer in fitting if layer is layers[1]]
    return fitting[0] if len(fitting) == 1 else None


def _layers(candidate: Candidate) -> list[nn.Module]:
    """The Linear layers of the innermost module that holds more than the candidate's own; none if they are many."""
    for module in candidate.modules[1:]:
        layers = [inner for inner in module.modules() if _is_linear(inner)]
        if len(layers) > 1:
            return [] if len(layers) > 3 or _holds_stacks(module) else layers
    return []


def _holds_stacks(module: nn.Module) -> bool:
    """Whether experts are among the parameters: the layers around them are no two sides of one mlp."""
    kernels = nn.modules.conv._ConvNd
    return any(
        p.ndim == 3 for inner in module.modules() if not isinstance(inner, kernels) for p in inner.parameters(False)
    )


def _is_linear(module: nn.Module) -> bool:
    return "Linear" in type(module).__name__ and len(_shape(module)) == 2


def _shape(module: nn.Module) -> tuple[int, ...]:
    weight = getattr(module, "weight", None)  # no parameter of its own where it is computed from others
    return tuple(weight.shape) if isinstance(weight, Tensor) else ()


def _opposite(out: nn.Module, other: nn.Module) -> bool:
    (back, inner), (rows, width) = _shape(out), _shape(other)
    return width == back and rows in (inner, 2 * inner)

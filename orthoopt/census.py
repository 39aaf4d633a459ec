"""Every parameter once, with the evidence that tells what it is: owner module, cleaned name, shape, ties."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from orthoopt import naming

Shape = tuple[int, ...]
Parameters = nn.Module | Iterable[tuple[str, Tensor]] | Iterable[Tensor]


@dataclass(eq=False)
class Census:
    """What is known about the parameters together."""

    shapes: dict[str, Shape] = field(default_factory=dict)  # cleaned name -> shape, frozen parameters too
    input_ids: set[int] = field(default_factory=set)  # tensors returned by get_input_embeddings()
    output_ids: set[int] = field(default_factory=set)  # tensors returned by get_output_embeddings()
    heads: dict[int, str] = field(default_factory=dict)  # output layers, filled by heads.find_heads: id -> reason
    unsure: dict[int, str] = field(default_factory=dict)  # layers that may be output layers, likewise
    everything: list[Candidate] = field(default_factory=list)  # every tensor once, in order, frozen ones too
    first_kernel: Tensor | None = None  # of the first convolution
    names_show_conv1d: bool = False  # without modules: a c_attn of shape (d, 3 d) stores (in, out)
    root: nn.Module | None = None  # the model, where it was given

    @property
    def candidates(self) -> list[Candidate]:
        """The trainable parameters, which are the ones to classify."""
        return [candidate for candidate in self.everything if candidate.param.requires_grad]


@dataclass(eq=False)
class Candidate:
    """One trainable parameter and its evidence."""

    name: str | None  # as named_parameters() gives it; None for a bare tensor
    param: Tensor
    path: tuple[str, ...]  # cleaned components of the owner
    leaf: str  # the parameter's own name in its owner
    modules: tuple[nn.Module, ...]  # the owner, then its ancestors up to the root; empty when only names are known
    census: Census
    aliases: list[Candidate] = field(default_factory=list)  # the same tensor under its other names

    @property
    def shape(self) -> Shape:
        """Shape of the parameter as it is stored."""
        return tuple(self.param.shape)

    @property
    def owner(self) -> nn.Module | None:
        """The module that holds the parameter."""
        return self.modules[0] if self.modules else None

    @property
    def last(self) -> str:
        """The owner's own name, the last component of its path."""
        return self.path[-1] if self.path else ""

    @property
    def label(self) -> str:
        """The owner's own name for people, "" where it is the number of a layer."""
        return "" if self.last.isdigit() else self.last

    def owner_is(self, *words: str) -> bool:
        """Whether the owner's class name contains one of these words."""
        return self.owner is not None and any(word in type(self.owner).__name__ for word in words)

    def beside(self, component: str) -> Shape | None:
        """Shape of the weight of the owner's sibling of this name."""
        return self.census.shapes.get(".".join((*self.path[:-1], component, "weight")))

    def within(self, leaf: str) -> Shape | None:
        """Shape of another parameter of the same owner."""
        return self.census.shapes.get(".".join((*self.path, leaf)))

    def attribute(self, *names: str) -> int | None:
        """The first whole number of these names, on the owner, its ancestors, or their configs."""
        for module in self.modules:
            config = getattr(module, "config", None)
            for source in (module, config, getattr(config, "text_config", None)):
                for name in names:
                    value = stated(source, name)
                    if isinstance(value, int) and not isinstance(value, bool):
                        return value
        return None

    def flag(self, name: str) -> bool | None:
        """The first yes or no of this name, on the owner, its ancestors, or their configs."""
        for module in self.modules:
            for source in (module, getattr(module, "config", None)):
                value = stated(source, name)
                if isinstance(value, bool):
                    return value
        return None


def stated(source: object, name: str) -> object:
    """An attribute that a module has itself; not what its ``__getattr__`` finds, with warnings, in a config.

    None where there is none or it does not answer: a property may raise anything, and configs whose layers differ
    refuse to give one value for all of them.
    """
    if isinstance(source, nn.Module) and name not in source.__dict__ and not hasattr(type(source), name):
        return None
    try:
        return getattr(source, name, None)
    except Exception:  # whatever a property raises: it is no evidence
        return None


def take_census(params: Parameters) -> Census:
    """List the trainable parameters once each, in order, with their evidence.

    ``params`` is a module, (name, tensor) pairs, or tensors; TypeError naming the first of another kind.
    """
    census = Census(root=_unwrapped(params) if isinstance(params, nn.Module) else None)
    candidates = _from_module(params, census) if isinstance(params, nn.Module) else _from_items(params, census)
    seen: dict[int, Candidate] = {}
    for candidate in candidates:
        if candidate.name is not None:
            census.shapes[".".join((*candidate.path, candidate.leaf))] = candidate.shape
        first = seen.setdefault(id(candidate.param), candidate)
        if first is not candidate:
            first.aliases.append(candidate)
        shape = candidate.shape
        if census.first_kernel is None and isinstance(candidate.owner, nn.modules.conv._ConvNd):
            census.first_kernel = candidate.param
        if not candidate.modules and candidate.last == "c_attn" and len(shape) == 2 and shape[1] == 3 * shape[0]:
            census.names_show_conv1d = True
    census.everything = list(seen.values())
    return census


def _from_module(model: nn.Module, census: Census) -> Iterator[Candidate]:
    for module in model.modules():
        for ids, accessor in (
            (census.input_ids, "get_input_embeddings"),
            (census.output_ids, "get_output_embeddings"),
        ):
            ids.update(map(id, _accessed_weights(module, accessor)))
    for name, param in model.named_parameters(remove_duplicate=False):
        *path, leaf = naming.clean_name(name).split(".")
        modules = _modules(model, name.split(".")[:-1])
        leaf = naming.original_leaf(leaf, modules[0]._parameters.__contains__)
        is_inner = len(modules) > 1 and isinstance(modules[0], nn.Linear)
        if is_inner and type(modules[1]).__name__.endswith(_TRANSPARENT):
            path, modules = path[:-1], (modules[0], *modules[2:])
        yield Candidate(name, param, tuple(path), leaf, modules, census)


# A Linear with its norm, in attentions and mlps alike: the layer is called as the two together are.
_TRANSPARENT = ("MLPLayerWithBN",)


def children(module: nn.Module) -> list[nn.Module]:
    """The modules directly below, each without what only wraps it."""
    return [_unwrapped(child) for child in module.children()]


def _unwrapped(module: nn.Module) -> nn.Module:
    while len(module._modules) == 1 and not naming.WRAPPERS.isdisjoint(module._modules):
        module = next(module.children())
    return module


def _modules(model: nn.Module, components: list[str]) -> tuple[nn.Module, ...]:
    """The owner and its ancestors, without those that only wrap another: their classes would hide what they wrap."""
    modules, inner, saved = [model], model, False
    for part in components:
        if part == "parametrizations":
            break
        inner = inner.get_submodule(part)
        if part in naming.WRAPPERS or part == "modules_to_save" or saved:
            modules.pop()
        saved = part == "modules_to_save"
        modules.append(inner)
    return tuple(reversed(modules))


def _accessed_weights(module: nn.Module, accessor: str) -> list[Tensor]:
    """The weights of the layer that an accessor returns, or of a list of them."""
    method = getattr(module, accessor, None)
    if not callable(method):
        return []
    try:
        accessed = method()
    except Exception:  # a model without that end, or a method of another kind
        return []
    layers = list(accessed) if isinstance(accessed, nn.ModuleList) else [accessed]
    if accessor == "get_output_embeddings":
        # A lookup makes no logits: FSMT's accessor returns an input table that is tied to nothing.
        layers = [layer for layer in layers if not isinstance(layer, nn.Embedding)]
    return [weight for layer in layers if isinstance(weight := getattr(layer, "weight", None), Tensor)]


def _from_items(params: Iterable[tuple[str, Tensor]] | Iterable[Tensor], census: Census) -> Iterator[Candidate]:
    if isinstance(params, torch.Tensor):
        raise TypeError("parameters must be a module, (name, tensor) pairs, or tensors in a list, not one tensor")
    items = list(params)
    names = {item[0] for item in items if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)}
    for position, item in enumerate(items):
        name, param = item if isinstance(item, tuple) and len(item) == 2 else (None, item)
        if not isinstance(param, torch.Tensor) or not isinstance(name, str | None):
            raise TypeError(
                f"parameter {position} is {type(item).__name__}, not a tensor or a (name, tensor) pair; "
                "a model may be given whole"
            )
        *path, leaf = naming.clean_name(name).split(".") if name is not None else [""]
        if name is not None:
            before = name[: name.rindex(".") + 1] if "." in name else ""
            leaf = naming.original_leaf(leaf, lambda other, before=before: f"{before}{other}" in names)  # type: ignore[misc]
        yield Candidate(name, param, tuple(path), leaf, (), census)

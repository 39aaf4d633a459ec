"""Whose state it is: the parameters of torch optimizers and of their state dicts, found among an optimizer's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor
from torch.optim import Optimizer

from orthoopt.matching import some
from orthoopt.naming import clean_name

Source: TypeAlias = Optimizer | Mapping[str, Any]

MUON, ADAMW = "torch.optim.Muon", "torch.optim.AdamW"


class Saved(NamedTuple):
    """One parameter's state in a source, and the group it is in."""

    group: Mapping[str, Any]
    state: Mapping[str, Any]


def entries_of(source: Source, names: Any, ours: Mapping[Tensor, str]) -> Iterator[tuple[Tensor, Saved]]:
    """Which of our parameters has which saved state."""
    if isinstance(source, Optimizer):
        held = [(param, group) for group in source.param_groups for param in group["params"]]
        if all(param in ours for param, _ in held):
            for param, group in held:
                yield param, Saved(group, source.state.get(param, {}))
            return
        source = source.state_dict()
    if not isinstance(source, Mapping) or not {"state", "param_groups"} <= source.keys():
        raise TypeError(
            "source must be a torch optimizer or its state dict with 'state' and 'param_groups', got "
            f"{_spelled(source)}"
        )
    order = _order(source["param_groups"], names)
    owners = iter(_owners(order, ours))
    for group in source["param_groups"]:
        for index in group["params"]:
            yield next(owners), Saved(group, source["state"].get(index, {}))


def _owners(order: Sequence[str], ours: Mapping[Tensor, str]) -> list[Tensor]:
    """Our parameters of these names, whatever wraps either model."""
    exact = {name: param for param, name in ours.items()}
    clean = {clean_name(name): param for name, param in exact.items()}
    found = [exact.get(name) for name in order]
    unique = len(clean) == len(exact) and len({clean_name(name) for name in order}) == len(order)
    if unique and any(param is None for param in found):
        found = [clean.get(clean_name(name)) for name in order]
    unknown = [name for name, param in zip(order, found, strict=True) if param is None]
    if unknown:
        raise ValueError(
            f"the source has parameters that this optimizer does not have: {some(unknown)}; nothing was loaded. It has "
            f"{some(list(exact))}"
        )
    return [param for param in found if param is not None]


def _order(groups: Sequence[Mapping[str, Any]], names: Any) -> list[str]:
    """The parameters' names, in the order of their groups."""
    held = [index for group in groups for index in group["params"]]
    if names is None and all(isinstance(index, str) for index in held):
        names = held
    if names is None and all(group.get("param_names") for group in groups):
        names = [name for group in groups for name in group["param_names"]]
    if names is None:
        raise ValueError(
            "the state dict has no parameter names: give names=[...], in the order in which its optimizer got the "
            "parameters, such as [name for name, _ in model.named_parameters()]"
        )
    names = list(names)
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) != len(names) else []
    if len(names) != len(held) or twice:
        what = f"{some(twice)} more than once" if twice else f"{len(names)} names for {len(held)} parameters"
        raise ValueError(f"names has {what}; nothing was loaded")
    return names


def kind_of(group: Mapping[str, Any]) -> str:
    """:data:`ADAMW` or :data:`MUON`, by the options of a group; ValueError for others."""
    if "adjust_lr_fn" in group and "ns_coefficients" in group:
        return MUON
    if "betas" in group and "amsgrad" in group:
        return ADAMW
    keys = ", ".join(key for key in group if key not in ("params", "param_names"))
    raise ValueError(f"state of {ADAMW} and {MUON} can be converted; this group has the options {keys}")


def check_options(name: str, own: Mapping[str, Any], group: Mapping[str, Any]) -> None:
    """Raise ValueError where a torch group has options under which its moments are not ours."""
    if group.get("amsgrad"):
        raise ValueError(f"amsgrad=True of {name} has no counterpart here; nothing was loaded")
    if bool(group.get("maximize", False)) != bool(own["maximize"]):
        raise ValueError(
            f"maximize={own['maximize']} here, {group.get('maximize', False)} in the torch optimizer of {name}: "
            "moments would have the wrong sign; nothing was loaded"
        )


def _spelled(value: Any) -> str:
    return f"a dict of {some(list(map(str, value)))}" if isinstance(value, Mapping) else type(value).__name__

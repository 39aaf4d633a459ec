"""Which saved parameter is which of an optimizer's: by name where both sides have names, else by position.

What wraps a model adds to the names of its parameters; saved under one wrapper, state loads under another or none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from orthoopt.naming import clean_name


def match_groups(groups: list[dict[str, Any]], saved_groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The saved groups, and the parameters in each, in the order of ``groups``, under the names of ``groups``.

    Args:
        groups: an optimizer's param groups.
        saved_groups: those of a state dict; ``params`` are numbers, or the names of
            ``torch.distributed.checkpoint``, which has put them into the optimizer's order already.

    Returns:
        New dicts; nothing given is changed.

    Raises:
        ValueError: names differ, or parameters are grouped in another way.
    """
    ours = [group.get("param_names") for group in groups]
    named = all(names is not None for names in ours)
    if named and all(isinstance(key, str) for saved in saved_groups for key in saved["params"]):
        by_key = [{**saved, "param_names": list(saved["params"])} for saved in saved_groups]
        # They are named as the model is now, whatever it was called when the groups were made.
        if _aliases(_names(groups), _names(by_key)) is not None:
            return _by_name(groups, by_key)
    elif named and all(saved.get("param_names") is not None for saved in saved_groups):
        return _by_name(groups, saved_groups)
    _check_sizes(groups, saved_groups)
    return [
        {**saved, "params": list(saved["params"])} | ({"param_names": list(names)} if names is not None else {})
        for saved, names in zip(saved_groups, ours, strict=True)
    ]


def aliases(present: Iterable[str], saved: Iterable[str]) -> dict[str, str]:
    """For every name that is ``present`` the same parameter's ``saved`` name.

    Raises:
        ValueError: some names are on one side alone.
    """
    present, saved = list(present), list(saved)
    found = _aliases(present, saved)
    if found is None:
        missing, extra = sorted(set(present) - set(saved)), sorted(set(saved) - set(present))
        raise ValueError(
            "the parameter names of the state dict do not match the optimizer's; nothing was loaded. "
            f"In the optimizer alone: {some(missing)}. In the state dict alone: {some(extra)}"
        )
    return found


def some(names: list[str], most: int = 5) -> str:
    """The first of the names, for messages."""
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _aliases(present: list[str], saved: list[str]) -> dict[str, str] | None:
    if set(present) == set(saved):
        return {name: name for name in present}
    ours, theirs = ({clean_name(name): name for name in names} for names in (present, saved))
    unique = len(ours) == len(present) and len(theirs) == len(saved)  # else wrappers alone tell two of them apart
    return {name: theirs[key] for key, name in ours.items()} if unique and ours.keys() == theirs.keys() else None


def _names(groups: Iterable[Mapping[str, Any]]) -> list[str]:
    return [name for group in groups for name in group["param_names"]]


def _by_name(groups: list[dict[str, Any]], saved_groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    twice = [name for name, count in Counter(_names(saved_groups)).items() if count > 1]
    if twice:
        raise ValueError(f"the state dict has two parameters of one name, {some(twice)}; nothing was loaded")
    index = {
        name: (saved, number)
        for saved in saved_groups
        for name, number in zip(saved["param_names"], saved["params"], strict=True)
    }
    alias = aliases(_names(groups), index)
    arranged = []
    for group in groups:
        holders = [index[alias[name]][0] for name in group["param_names"]]
        if any(holder is not holders[0] for holder in holders) or len(holders[0]["params"]) != len(holders):
            other = next((n for n, h in zip(group["param_names"], holders, strict=True) if h is not holders[0]), None)
            reason = (
                f"{group['param_names'][0]} and {other} share a group here and not there"
                if other
                else f"the saved group of {group['param_names'][0]} holds further parameters"
            )
            raise ValueError(
                f"the state dict groups parameters in another way ({reason}); nothing was loaded. Build the optimizer "
                "with the plan and the overrides that the state was saved with"
            )
        numbers = [index[alias[name]][1] for name in group["param_names"]]
        arranged.append({**holders[0], "params": numbers, "param_names": list(group["param_names"])})
    return arranged


def _check_sizes(groups: list[dict[str, Any]], saved_groups: list[dict[str, Any]]) -> None:
    ours, theirs = ([len(g["params"]) for g in some_groups] for some_groups in (groups, saved_groups))
    if ours != theirs:
        raise ValueError(
            "loaded state dict has a different number of parameter groups or parameters than the optimizer: group "
            f"sizes {theirs} against {ours}; nothing was loaded"
        )

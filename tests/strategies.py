"""What the property tests draw: rules and their options, matrices of many spectra, elements of symmetry groups."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.fft
import torch
from comparison import relative_error as relative_error
from hypothesis import strategies as st
from spectra import SPECTRA as SPECTRA
from spectra import generator as generator
from spectra import matrix as matrix
from torch import Tensor

from orthoopt import coefficients, rules
from orthoopt.rules import Rule


def values_of(rule: Rule) -> dict[str, list[Any]]:
    """Values to try for each option: choices that annotations list, coefficient tables, a few momenta."""
    values: dict[str, list[Any]] = {name: [default] for name, default in rule.defaults.items()}
    for name, allowed in rule.hints.items():
        if typing.get_origin(allowed) is typing.Literal and name != "ns_dtype":
            values[name] = list(typing.get_args(allowed))
        elif allowed is bool:
            values[name] = [False, True]
    if "momentum" in values:
        values["momentum"] = [0.0, 0.5, 0.95]
    if "nu_power" in values:
        values["nu_power"] = [0.0, 0.5, 1.0]
    if "ns_coefficients" in values:
        own = [name for kind in typing.get_args(rule.hints["ns_coefficients"]) for name in typing.get_args(kind)]
        values["ns_coefficients"] = [*(name for name in own if isinstance(name, str)), *coefficients.names()]
    if "rank" in values:
        values["rank"] = [rule.defaults["rank"], 8, 1.0]
    if "update_interval" in values:
        values["update_interval"] = [1, 2]
    return values


def is_valid(rule: Rule, options: dict[str, Any]) -> bool:
    """Whether these options may stand together."""
    try:
        rule.validate(options)
    except ValueError:
        return False
    return True


Condition = Callable[[Rule, dict[str, Any]], bool]
"""Whether something is asked of a rule under given options."""


def anything(rule: Rule, options: dict[str, Any]) -> bool:
    return True


def _base(rule: Rule, where: Condition) -> dict[str, Any] | None:
    """Options for which ``where`` holds, at most one of them not the default."""
    tried: Iterator[dict[str, Any]] = (
        {**rule.defaults, name: value} for name, some in values_of(rule).items() for value in some
    )
    return next((options for options in tried if is_valid(rule, options) and where(rule, options)), None)


def rules_where(where: Condition = anything) -> list[str]:
    """The registered rules that have options for which ``where`` holds."""
    return [name for name in rules.names() if _base(rules.get(name), where) is not None]


@functools.lru_cache(maxsize=1024)
def _near_base(name: str, where: Condition) -> dict[str, list[Any]]:
    """For each option the values that keep ``where`` true beside the base's others."""
    rule = rules.get(name)
    base = _base(rule, where)
    assert base is not None, f"{name} has no options for this condition"

    def holds(option: str, value: Any) -> bool:
        options = {**base, option: value}
        return is_valid(rule, options) and where(rule, options)

    return {option: [value for value in some if holds(option, value)] for option, some in values_of(rule).items()}


@st.composite
def options_of(draw: st.DrawFn, rule: Rule, where: Condition = anything) -> dict[str, Any]:
    """Options of a rule for which ``where`` holds: any combination, or where that is not one, one that is likely."""

    def combination(values: dict[str, list[Any]]) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries({name: st.sampled_from(some) for name, some in values.items()})

    options = draw(combination(values_of(rule)))
    if is_valid(rule, options) and where(rule, options):
        return options
    likely = combination(_near_base(rule.name, where))
    return draw(likely.filter(lambda options: is_valid(rule, options) and where(rule, options)))


def is_matrix(rule: Rule, options: dict[str, Any]) -> bool:
    return rule.is_matrix


def is_scale_invariant(rule: Rule, options: dict[str, Any]) -> bool:
    return rule.scale_invariant(options)


def is_shift_invariant(rule: Rule, options: dict[str, Any]) -> bool:
    return rule.equivariance(options, 8, 12).shift


def is_transposable(rule: Rule, options: dict[str, Any]) -> bool:
    return rule.is_matrix and rule.transposable(options)


def has_stated_rms(rule: Rule, options: dict[str, Any]) -> bool:
    """Of a rule whose length follows the gradient's, no root mean square can be stated."""
    return rule.is_matrix and rule.scale_invariant(options)


def descends(rule: Rule, options: dict[str, Any]) -> bool:
    return rule.descends(options)


@st.composite
def matrices(draw: st.DrawFn, smallest: int = 1, largest: int = 24, batched: bool = False) -> Tensor:
    rows = draw(st.integers(smallest, largest), label="rows")
    cols = draw(st.integers(smallest, largest), label="cols")
    spectrum = draw(st.sampled_from(SPECTRA), label="spectrum")
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 2)]), label="batch") if batched else ()
    return matrix(rows, cols, spectrum, draw(st.integers(0, 2**31), label="seed"), batch)


def group_element(group: str, size: int, seed: int) -> Tensor:
    """A random element of a matrix group of that size, float64."""
    source = generator(seed)
    if group == "orthogonal":
        return torch.linalg.qr(torch.randn(size, size, generator=source, dtype=torch.float64))[0]
    eye = torch.eye(size, dtype=torch.float64)[torch.randperm(size, generator=source)]
    if group in ("signed_permutation", "dct_signed_permutation"):
        eye *= torch.randint(0, 2, (size, 1), generator=source) * 2 - 1
    if group == "dct_signed_permutation":
        cosines = torch.from_numpy(scipy.fft.dct(np.eye(size), type=2, norm="ortho"))
        return cosines @ eye @ cosines.mT
    return eye if group != "none" else torch.eye(size, dtype=torch.float64)

"""The update rules, one a file: every module in this folder is imported, and registers what it defines."""

import importlib
import pkgutil

from orthoopt.rules._base import Equivariance, Options, Rule, Signal, State, Tensors, get, names, register
from orthoopt.rules._momentum import momentum_rule
from orthoopt.rules._options import hashable, key_of, options_of

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "Equivariance",
    "Options",
    "Rule",
    "Signal",
    "State",
    "Tensors",
    "get",
    "hashable",
    "key_of",
    "momentum_rule",
    "names",
    "options_of",
    "register",
]

"""`--optimizer MODULE:FUNCTION`: an optimizer of one's own, or another package's, in place of a plan."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from orthoopt.recipes.errors import RecipeError, nearest


def find_function(target: str) -> Callable[..., Optimizer]:
    """The function that `MODULE:FUNCTION` names; modules of the folder the run was started in are found last.

    Raises `RecipeError` when it has another form, or there is no such module or function in it.
    """
    module_name, _, function_name = target.partition(":")
    if not (module_name and function_name):
        raise RecipeError(f"--optimizer {target!r} must be MODULE:FUNCTION, such as my_optimizers:build")
    here = os.getcwd()
    if here not in sys.path:  # where commands of a package do not look; at the end, for names there may be libraries'
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RecipeError(f"--optimizer {target!r}: {module_name} cannot be imported: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [name for name in vars(module) if not name.startswith("_") and callable(getattr(module, name))]
        raise RecipeError(
            f"--optimizer {target!r}: {module_name} has no function {function_name!r}{nearest(function_name, known)}"
        )
    return function


class NamedOptimizer:
    """What Trainer calls with the model, as it does `orthoopt.hf.OptimizerFactory`."""

    def __call__(
        self, model: nn.Module, *, target: str, lr: float, weight_decay: float, options: Mapping[str, Any]
    ) -> Optimizer:
        """Call the function that `target` names as `function(model, lr=, weight_decay=, **options)`.

        Raises `RecipeError` when it refuses them, or returns no optimizer.
        """
        try:
            optimizer = find_function(target)(model, lr=lr, weight_decay=weight_decay, **options)
        except (TypeError, ValueError) as error:
            raise error if isinstance(error, RecipeError) else RecipeError(f"--optimizer {target}: {error}") from error
        if not isinstance(optimizer, Optimizer):
            raise RecipeError(
                f"--optimizer {target!r} must return a torch.optim.Optimizer, got a {type(optimizer).__name__}"
            )
        return optimizer

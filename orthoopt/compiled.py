"""A step inside ``torch.compile``: one opaque operation that takes the eager step when the compiled code runs.

Tracing through would bake learning rates and branches into the graph, and take the kernels away that a step has. As an
operation the step breaks no graph, recompiles nothing when a schedule moves, and is as fast as outside.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import torch
from torch import Tensor

if TYPE_CHECKING:
    from orthoopt.optimizer import OrthoOpt

_NUMBERS = itertools.count()
_OPTIMIZERS: WeakValueDictionary[int, OrthoOpt] = WeakValueDictionary()


def enlist(optimizer: OrthoOpt) -> int:
    """A number by which a compiled graph finds the optimizer, for as long as it lives."""
    number = next(_NUMBERS)
    _OPTIMIZERS[number] = optimizer
    return number


# Not inside Inductor's own CUDA graphs: a replay would run the recorded learning rates.
@torch.library.custom_op(
    "orthoopt::step", mutates_args=("params",), tags=[torch._C.Tag.cudagraph_unsafe] if hasattr(torch._C, "Tag") else []
)
def step_operation(number: int, places: Sequence[int], params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    """The eager step of the optimizer with that number.

    Args:
        number: from :func:`enlist`.
        places: of the parameters that have gradients, among all of the optimizer's.
        params: those parameters; written.
        grads: their gradients.
    """
    optimizer = _OPTIMIZERS[number]
    own = optimizer.all_params
    if [id(param) for param in own] != [id(param) for group in optimizer.param_groups for param in group["params"]]:
        raise RuntimeError("the parameters in param_groups were replaced: call add_param_group() or load_state_dict()")
    # Compilers may hand out copies of what is mutated, of which they write back what the operation left there.
    apart = [(own[i], param) for i, param in zip(places, params, strict=True) if own[i].data_ptr() != param.data_ptr()]
    for mine, given in apart:
        mine.data.copy_(given)
    optimizer.step_with({own[place]: grad for place, grad in zip(places, grads, strict=True)})
    for mine, given in apart:
        given.copy_(mine.data)


@step_operation.register_fake
def _(number: int, places: Sequence[int], params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    return None


def traced_step(optimizer: OrthoOpt, number: int) -> None:
    """What a compiled graph holds of ``optimizer.step()``.

    It looks at a plain list of parameters: to walk through param groups would guard every learning rate in them.
    """
    params = optimizer.all_params
    places = [place for place, param in enumerate(params) if param.grad is not None]
    if places:
        # Detached rather than without gradients: a graph that raises would leave that mode on behind it.
        step_operation(number, places, [params[i].detach() for i in places], [params[i].grad for i in places])

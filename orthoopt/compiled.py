"""A step inside ``torch.compile``: one opaque operation that takes the eager step when the compiled code runs.

Tracing through would bake learning rates and branches into the graph, and take the kernels away that a step has. As an
operation the step breaks no graph, recompiles nothing when a schedule moves, and is as fast as outside.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from orthoopt.nonfinite import local_part

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
    parts = [local_part(own[i].detach()) for i in places]
    pairs = zip(parts, params, strict=True)
    apart = [(mine, param) for mine, param in pairs if mine.data_ptr() != param.data_ptr()]
    for mine, given in apart:
        mine.data.copy_(given)
    optimizer.step_with({own[place]: _as_gradient(grad, own[place]) for place, grad in zip(places, grads, strict=True)})
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
        grads = [_laid_out_alike(params[i].grad, params[i]) for i in places]
        step_operation(number, places, [_part(params[i].detach()) for i in places], grads)


def _part(tensor: Any) -> Tensor:
    """What an operation can take of a distributed tensor; of its attributes Dynamo sees ``placements``, not methods."""
    return tensor.to_local() if hasattr(tensor, "placements") else tensor


def _laid_out_alike(grad: Any, param: Any) -> Tensor:
    if hasattr(param, "placements") and grad.placements != param.placements:
        grad = grad.redistribute(placements=param.placements)
    return _part(grad)


def _as_gradient(grad: Tensor, param: Any) -> Tensor:
    """The gradient that :func:`_part` took apart."""
    if not hasattr(param, "placements"):
        return grad
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        grad, param.device_mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride()
    )

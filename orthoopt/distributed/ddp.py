"""Whether DistributedDataParallel makes gradients the same on all ranks, so that ranks may share the work.

Nothing is asked of the user: the wrapper that owns the parameters is looked for once. Where it is not certain that
gradients are the same, every rank computes everything itself, which is always right.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

_HOOKS = "torch.distributed.algorithms.ddp_comm_hooks"
_SAME_EVERYWHERE = (
    (f"{_HOOKS}.default_hooks", "allreduce_hook"),
    (f"{_HOOKS}.default_hooks", "fp16_compress_hook"),
    (f"{_HOOKS}.default_hooks", "bf16_compress_hook"),
    (f"{_HOOKS}.powerSGD_hook", "powerSGD_hook"),
    (f"{_HOOKS}.powerSGD_hook", "batched_powerSGD_hook"),
)
"""Communication hooks after which all ranks have the same gradients; of others nobody knows. By name: to import them
makes torch warn of what it deprecates."""


def wrapper_of(params: Iterable[Tensor]) -> weakref.ref[DistributedDataParallel] | None:
    """The one wrapper that reduces the gradients of any of these parameters; None where there is none, or several."""
    wanted = {id(param) for param in params}
    # By type(): isinstance() asks objects for their class, and some answer with warnings.
    wrappers = [thing for thing in gc.get_objects() if issubclass(type(thing), DistributedDataParallel)]
    found = [wrapper for wrapper in wrappers if not wanted.isdisjoint(reduced_by(wrapper))]
    return weakref.ref(found[0]) if len(found) == 1 else None


def reduced_by(wrapper: DistributedDataParallel) -> set[int]:
    """The identities of the parameters whose gradients it reduces."""
    return {id(param) for param in getattr(wrapper, "_module_parameters", ())}


def are_gradients_same(wrapper: DistributedDataParallel) -> bool:
    """Whether its last backward pass has left the same gradients on all ranks.

    Not inside ``no_sync``, nor after a pass that was; not while ranks may run out of batches (``join``), for those take
    no further steps; not under a communication hook of which it is not known.
    """
    hooks = [hook for hook, _ in getattr(wrapper, "_comm_hooks", [(None, None)])]
    joins = getattr(wrapper, "_join_config", None)
    return (
        dist.get_world_size(wrapper.process_group) > 1
        and bool(wrapper.require_backward_grad_sync)
        and bool(getattr(wrapper, "require_forward_param_sync", False))
        and not getattr(joins, "enable", True)
        and all(_name_of(hook) in _SAME_EVERYWHERE for hook in hooks)
    )


def _name_of(hook: Any) -> tuple[Any, Any]:
    return getattr(hook, "__module__", None), getattr(hook, "__qualname__", None)


def device_of(wrapper: DistributedDataParallel) -> Any:
    """Where its parameters are."""
    return next(iter(wrapper.parameters())).device

"""A step recorded in a CUDA graph: what has to be in place, so that replays do what steps do.

::

    opt = orthoopt.Muon(model, lr=torch.tensor(3e-4, device="cuda"))
    ...                                   # one step at least, with gradients that stay where they are
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        opt.step()
    opt.param_groups[0]["lr"].fill_(1e-4)  # schedules write the tensor
    graph.replay()

Gradients must keep their memory: ``zero_grad(set_to_none=False)``, or a backward pass in the same graph. A number as
learning rate would be frozen, state that a recorded step creates would be created anew at every replay: both raise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from orthoopt import matrix_state
from orthoopt._work import Work


def is_capturing() -> bool:
    """Whether the current stream is being recorded."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def check_capture(work: Sequence[Work], states: Mapping[Tensor, dict[str, Any]]) -> None:
    """Raise unless this step can be replayed, if it is being recorded.

    Args:
        work: what the step has to do.
        states: the optimizer's state.

    Raises:
        RuntimeError: a learning rate that is a number or on another device, state that is missing or on another
            device, or ``nonfinite="raise"``; naming the parameter.
    """
    if not is_capturing():
        return
    for part in work:
        name, device = part.names[0], part.device
        lr = part.group["lr"]
        if not isinstance(lr, Tensor) or lr.device != device:
            what = f"a tensor on {lr.device}" if isinstance(lr, Tensor) else f"the number {lr!r}"
            raise RuntimeError(
                f"a CUDA graph would freeze the learning rate of {name}, {what}: "
                f"give its group a 0-d tensor on {device}"
            )
        if part.group["nonfinite"] == "raise":
            raise RuntimeError("nonfinite='raise' asks the host, which a CUDA graph cannot do: use nonfinite='skip'")
        for name, param in zip(part.names, part.params, strict=True):
            state = states.get(param, {})
            keys = matrix_state.state_keys(part.rule, tuple(param.shape), part.view, part.options)
            if not keys <= state.keys():
                raise RuntimeError(f"{name} has no state yet: take a step before one is captured in a CUDA graph")
            for key in keys:
                if isinstance(state[key], Tensor) and state[key].device != device:
                    raise RuntimeError(
                        f"state {key!r} of {name} is on {state[key].device}: take a step before one is captured in a "
                        "CUDA graph, or move it to the parameter's device"
                    )

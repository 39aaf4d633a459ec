"""What Scion's two rules share: the average d ← (1−α)d + αG, which remembers nothing where α = 1."""

from collections.abc import Sequence

from torch import Tensor

from orthoopt.rules._base import Gate, Options, Signal, State, Tensors
from orthoopt.rules._momentum import accumulate_momentum, init_momentum

MOMENTUM = 0.9
"""1 − α. The authors' readme advises α = 0.1; their code's default is 1."""


def init_average(param: Tensor, options: Options) -> State:
    """A zero ``momentum_buffer``, or with momentum 0 no state at all."""
    return {} if options["momentum"] == 0 else init_momentum(param, options)


def accumulate_average(grads: Tensors, states: Sequence[State], options: Options, gate: Gate) -> Signal:
    """The momentum; with momentum 0 the gradients themselves, though buffers from before still follow them."""
    if options["momentum"] != 0:
        return accumulate_momentum(grads, states, options, gate)
    kept = [index for index, state in enumerate(states) if "momentum_buffer" in state]
    if kept:
        accumulate_momentum([grads[i] for i in kept], [states[i] for i in kept], options, gate)
    return Signal(grads)


def check_radius(options: Options) -> None:
    """Raise ValueError unless ``radius`` is that of a ball."""
    if not 0 < options["radius"] < float("inf"):
        raise ValueError(f"radius must be above 0 and finite, got {options['radius']!r}")

"""What a training step holds in memory beyond parameters and state, found by running it on tensors without memory.

Every operation of the model's own forward and backward pass runs, and of the optimizer's step, but knows shapes alone:
what each one allocates and when it is given back is counted, and nothing is computed. So every architecture,
attention and plan is covered without a formula of its own, in seconds for a model of billions of parameters.

The kernels are those of a CPU. A GPU's fused attention keeps as little, so the numbers carry over; what its libraries
and torch's caching allocator take on top is not counted, and neither is what torch.compile saves.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel


class TraceError(RuntimeError):
    """A model whose operations depend on values, which are not there."""


class Traced(NamedTuple):
    """Bytes of one forward and backward pass, beyond parameters, and gradients that were there before."""

    peak: int
    """The most at any moment; gradients that the pass makes are in it."""
    kept: int
    """What the forward pass leaves for the backward pass, without logits."""
    logits: int
    """Of the peak: whatever has a number for each token and word of the vocabulary."""


class Trace(TorchDispatchMode):
    """Counts bytes that operations allocate while it is entered, until the last tensor that shows them is gone."""

    def __init__(self, known: Iterable[Tensor] = (), logits: tuple[int, int] = (0, 0)) -> None:
        """Tensors that are there already do not count; `logits` are tokens and vocabulary, to tell logits apart."""
        super().__init__()
        self.now = self.peak = self.logits = self.logits_at_peak = 0
        self._tokens, self._vocabulary = logits
        self._held = [tensor.untyped_storage() for tensor in known]
        self._seen = {storage._cdata for storage in self._held}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and count what it allocates."""
        if func is torch.ops.aten._grouped_mm.default:  # torch knows its shape for bf16 alone
            result = _grouped(*args, **(kwargs or {}))
        else:
            result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        wide = size if self._is_logits(tensor) else 0
        weakref.finalize(storage, self._release, key, size, wide)
        self.now += size
        self.logits += wide
        if self.now > self.peak:
            self.peak, self.logits_at_peak = self.now, self.logits

    def _release(self, key: int, size: int, wide: int) -> None:
        self._seen.discard(key)
        self.now -= size
        self.logits -= wide

    def _is_logits(self, tensor: Tensor) -> bool:
        if not self._vocabulary or tensor.numel() % self._vocabulary:
            return False
        # A loss may drop the last token of each row.
        return self._tokens // 2 < tensor.numel() // self._vocabulary <= self._tokens


def traced_training(
    config: PretrainedConfig,
    *,
    rows: int,
    block_size: int,
    bf16: bool = False,
    checkpointing: bool = False,
    accumulates: bool = False,
    backward: bool = True,
) -> Traced:
    """Trace one forward and backward pass of a causal language model with float32 parameters.

    Args:
        config: of the model, which is built without memory.
        rows: of the batch, each of `block_size` tokens.
        block_size: tokens.
        bf16: under autocast.
        checkpointing: transformers' gradient checkpointing.
        accumulates: gradients of an earlier pass are there, and are not counted.
        backward: False for an evaluation: a forward pass without gradients.

    Raises:
        TraceError: the model cannot run without values.
    """
    try:
        return _trace(config, rows, block_size, bf16, checkpointing, accumulates, backward)
    except Exception as error:  # whatever an architecture's own code raises where it meets no values
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TraceError(f"{type(config).__name__} cannot be traced without values: {reason[:200]}") from error


def _trace(
    config: PretrainedConfig,
    rows: int,
    block_size: int,
    bf16: bool,
    checkpointing: bool,
    accumulates: bool,
    backward: bool,
) -> Traced:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
        model.train(backward)
        if checkpointing:
            # Its name in transformers 6; 5 has both.
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        if accumulates:
            for param in model.parameters():
                param.grad = torch.empty_like(param)
        inputs = torch.zeros(rows, block_size, dtype=torch.long)
        gradients = [param.grad for param in model.parameters() if param.grad is not None]
        known = [*model.parameters(), *model.buffers(), *gradients, inputs]
        trace = Trace(known, (inputs.numel(), config.get_text_config().vocab_size))
        with trace, contextlib.nullcontext() if backward else torch.no_grad():
            loss = _loss(model, inputs, bf16)
            kept = trace.now - trace.logits
            if backward:
                loss.backward()
        return Traced(trace.peak, kept, trace.logits_at_peak)


def traced_step(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that one step of an optimizer on the meta device works in, beyond parameters, gradients and its state.

    Its parameters get gradients, and their state exists when this returns.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param in params:
        param.grad = torch.empty_like(param)
    getattr(optimizer, "init_state", optimizer.step)()
    state = [value for own in optimizer.state.values() for value in own.values() if isinstance(value, Tensor)]
    trace = Trace([*params, *(param.grad for param in params if param.grad is not None), *state])
    with trace:
        optimizer.step()
    return trace.peak


def _loss(model: PreTrainedModel, inputs: Tensor, bf16: bool) -> Tensor:
    """The loss as Trainer has it: Accelerate hands logits over in float32, which are gone before the backward pass."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = model(input_ids=inputs, labels=inputs, use_cache=False)
    if bf16:
        output.logits = output.logits.float()
    return output.loss


def _grouped(left: Tensor, right: Tensor, offs: Tensor, *_: Any, **__: Any) -> Tensor:
    """A product for each group of rows (experts forward, and their input's gradient), or of columns (their own)."""
    if right.ndim == 3:
        return left.new_empty(left.shape[0], right.shape[2])
    return left.new_empty(offs.shape[0], left.shape[0], right.shape[1])

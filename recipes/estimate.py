"""How much memory a run needs on each device, before it has any of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from orthoopt.hf import OptimizerFactory
from orthoopt.recipes.arguments import Arguments
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.memory_trace import Traced, traced_step, traced_training

_MASTER = 4  # bytes of a parameter and of its gradient: the recipes keep both in float32


@dataclass(frozen=True)
class Memory:
    """Bytes that one process needs; what torch and the GPU's libraries take for themselves comes on top."""

    parameters: int
    """Its own part of them, where they are sharded; so with the next two."""
    gradients: int
    """Those that stay while a batch is accumulated, and the buckets in which DistributedDataParallel sums them."""
    state: int
    """Of the optimizer."""
    gathered: int
    """Of sharded parameters: whole layers that are there for a moment, and their gradients."""
    passes: Traced
    """A forward and a backward pass, and what the next evaluation takes if that is more."""
    evaluation: int
    workspace: int
    """What a step of the optimizer works in."""
    copies: int
    """Of the parameters, from which the norms of updates are found."""
    own_gradients: int
    """All gradients that there are when the optimizer steps."""

    @property
    def training(self) -> int:
        """The peak of a forward and backward pass."""
        return self.parameters + self.gradients + self.state + self.gathered + self.passes.peak

    @property
    def stepping(self) -> int:
        """The peak of a step of the optimizer."""
        return self.parameters + self.own_gradients + self.state + self.workspace + self.copies

    @property
    def evaluating(self) -> int:
        """The peak of an evaluation."""
        return self.parameters + self.gradients + self.state + self.gathered + self.evaluation

    @property
    def peak(self) -> int:
        """The most at any moment."""
        return max(self.training, self.stepping, self.evaluating)

    @property
    def peak_is(self) -> str:
        """When that is."""
        times = {"in training": self.training, "in the optimizer's step": self.stepping}
        return max(times, key=lambda when: times[when]) if self.peak > self.evaluating else "in evaluation"


def meta_model(config: PretrainedConfig) -> PreTrainedModel:
    """A causal language model of this config with float32 parameters on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def meta_optimizer(model: PreTrainedModel, arguments: Arguments) -> torch.optim.Optimizer:
    """The run's optimizer for a model on the meta device. Raises `RecipeError` for a plan that does not fit it."""
    try:
        return OptimizerFactory()(model, **arguments.routing)
    except (TypeError, ValueError) as error:
        raise RecipeError(str(error)) from error


class Estimator:
    """Estimates of one run under different settings; what does not depend on them is found once."""

    def __init__(self, config: PretrainedConfig, arguments: Arguments, *, processes: int) -> None:
        """A fitted `config`, and a run of it by `processes`. Raises `RecipeError` for a plan that does not fit."""
        self.config, self.arguments, self.processes = config, arguments, processes
        self.model = meta_model(config)
        self.shards = bool(arguments.run.shard or arguments.training.fsdp) and processes > 1
        self.checkpoints = _checkpoints(arguments)
        self.elements = sum(param.numel() for param in self.model.parameters())
        self._optimizer: tuple[int, int] | None = None
        self._traces: dict[Any, Traced] = {}

    def memory(self, *, rows: int | None = None, checkpointing: bool | None = None, shard: bool = False) -> Memory:
        """The need as the run is configured, or with other rows a device, with checkpointing, or sharded."""
        training = self.arguments.training
        given = training.per_device_train_batch_size
        rows = given if rows is None else rows
        steps = max(1, given * training.gradient_accumulation_steps // rows)
        checkpointing = self.checkpoints if checkpointing is None else checkpointing
        shards = self.shards or shard
        parts = self.processes if shards else 1
        many = self.processes > 1 and not shards
        accumulates = steps > 1 or many or shards
        weights = self.elements * _MASTER
        state, workspace = self._optimizer_bytes()
        gradients = (weights // parts if accumulates else 0) + (weights if many and steps > 1 else 0)
        evaluated = training.per_device_eval_batch_size
        return Memory(
            parameters=weights // parts,
            gradients=gradients,
            state=state // parts,
            gathered=_gathered(self.model) if shards else 0,
            passes=self._passes(rows, checkpointing, accumulates),
            evaluation=self._passes(evaluated, False, False, backward=False).peak if evaluated > rows else 0,
            workspace=workspace,
            copies=weights // parts if self.arguments.run.log_update_norms else 0,
            own_gradients=max(gradients, weights // parts),
        )

    def bound(self) -> int:
        """Bytes that the run will not need, found at once: far more than any part takes."""
        training, block = self.arguments.training, self.arguments.data.block_size
        rows = max(training.per_device_train_batch_size, training.per_device_eval_batch_size)
        text = self.config.get_text_config()
        heads, layers = getattr(text, "num_attention_heads", 1) or 1, text.num_hidden_layers
        chosen = getattr(text, "num_experts_per_tok", None) or 1
        sides = sum(sum(param.shape[-2:]) * (chosen if param.ndim > 2 else 1)
                    for param in self.model.parameters() if param.ndim > 1)  # fmt: skip
        a_token = 10 * sides + 8 * heads * layers * block + 10 * text.vocab_size
        return 4 * (32 * self.elements + rows * block * a_token)

    def _optimizer_bytes(self) -> tuple[int, int]:
        if self._optimizer is None:
            optimizer = meta_optimizer(self.model, self.arguments)
            workspace = traced_step(optimizer)
            values = [value for own in optimizer.state.values() for value in own.values()]
            state = sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))
            self._optimizer = state, workspace
            self.model.zero_grad(set_to_none=True)
        return self._optimizer

    def _passes(self, rows: int, checkpointing: bool, accumulates: bool, backward: bool = True) -> Traced:
        key = rows, checkpointing, accumulates, backward
        if key not in self._traces:
            training = self.arguments.training
            self._traces[key] = traced_training(
                self.config,
                rows=rows,
                block_size=self.arguments.data.block_size,
                bf16=bool(training.bf16 or training.fp16),
                checkpointing=checkpointing,
                accumulates=accumulates,
                backward=backward,
            )
        return self._traces[key]


def _checkpoints(arguments: Arguments) -> bool:
    """Whether activations are checkpointed, under the option's old name or its new one."""
    names = ("gradient_checkpointing", "activation_checkpointing")
    return any(bool(getattr(arguments.training, name, False)) for name in names)


def _gathered(model: PreTrainedModel) -> int:
    """Under FSDP2: embedding and head, the layer at work and the next one, each with its gradients."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = max(lists, key=len) if lists else nn.ModuleList()
    inside = [sum(param.numel() for param in layer.parameters()) for layer in layers]
    outside = sum(param.numel() for param in model.parameters()) - sum(inside)
    return 2 * _MASTER * (outside + 2 * max(inside, default=0))

"""Refuse a run that cannot fit before anything of it is in memory: the estimate beside what the device has free."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import PretrainedConfig

from orthoopt.recipes.arguments import Arguments
from orthoopt.recipes.errors import RecipeError
from orthoopt.recipes.estimate import Estimator, Memory
from orthoopt.recipes.memory_trace import TraceError
from orthoopt.units import spell_bytes

_CGROUP = Path("/sys/fs/cgroup")


def available_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where it does not say.

    Of the host it is what Linux calls available, or less within a container's limit, shared by the processes here.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    known = [value for value in (_of_host(), _of_container()) if value is not None]
    return min(known) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if known else None


def check_memory(config: PretrainedConfig, arguments: Arguments) -> None:
    """Raise `RecipeError` if a run of `config` needs more memory than is free; the first process decides for all.

    What `--optimizer` keeps is not known before it is there: such a run is not checked.
    """
    training = arguments.training
    if arguments.run.optimizer is not None:
        return
    verdict: list[Any] = [None]
    if training.process_index == 0:
        try:
            _check(config, arguments)
        except RecipeError as error:
            verdict = [error]
    if training.world_size > 1:
        verdict = broadcast_object_list(verdict)
    if verdict[0] is not None:
        raise verdict[0]


def _check(config: PretrainedConfig, arguments: Arguments) -> None:
    device = arguments.training.device
    free = available_memory(device)
    if free is None:
        return
    estimator = Estimator(config, arguments, processes=arguments.training.world_size)
    if estimator.bound() <= free:
        return
    try:
        memory = estimator.memory()
    except TraceError as error:
        print(f"memory is not checked: {error}", flush=True)
        return
    if memory.peak > free:
        raise RecipeError(refusal(estimator, memory, free, str(device)))


def refusal(estimator: Estimator, memory: Memory, free: int, device: str) -> str:
    """Why it cannot fit, in numbers, and what would: each remedy with the peak that it leads to."""
    parts = (
        f"parameters {spell_bytes(memory.parameters)}, gradients {spell_bytes(memory.own_gradients)}, "
        f"optimizer state {spell_bytes(memory.state)}, forward and backward {spell_bytes(memory.passes.peak)}, "
        f"a step's workspace {spell_bytes(memory.workspace + memory.copies)}"
    )
    found = _remedies(estimator, memory)
    remedies = [f"{option} ({spell_bytes(peak)})" for option, peak in found]
    if not any(peak <= free for _, peak in found):
        remedies.append("none of these is enough by itself" if found else "a smaller model")
    words = "; ".join([*remedies, "--check_memory false goes on all the same"])
    return (
        f"this run needs about {spell_bytes(memory.peak)} ({memory.peak_is}), and {spell_bytes(free)} are free on "
        f"{device}: {parts}. What needs less: {words}"
    )


def _remedies(estimator: Estimator, memory: Memory) -> list[tuple[str, int]]:
    """Options that lessen the peak, with what it is then; the rows of a micro-batch halve until there is one."""
    training = estimator.arguments.training
    found = []
    rows, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
    if memory.peak == memory.training:
        if rows > 1:
            fewer = max(1, rows // 4)
            option = f"--per_device_train_batch_size {fewer} --gradient_accumulation_steps {rows * steps // fewer}"
            found.append((option, estimator.memory(rows=fewer).peak))
        if not estimator.checkpoints:
            found.append(("--gradient_checkpointing true", estimator.memory(checkpointing=True).peak))
    if memory.peak == memory.stepping and memory.copies:
        found.append(("--log_update_norms false", memory.peak - memory.copies))
    if memory.state and estimator.arguments.plan_options.get("state_dtype") is None:
        # Two bytes in place of four, where the state is not eight-bit or the like already.
        found.append(("--plan_options state_dtype=bfloat16", memory.peak - memory.state // 2))
    if estimator.processes > 1 and not estimator.shards:
        found.append(("--shard true", estimator.memory(shard=True).peak))
    elif estimator.processes == 1:
        found.append(("--shard true under torchrun", memory.peak - (memory.parameters + memory.state) // 2))
    return [(option, peak) for option, peak in found if peak < memory.peak]


def _of_host() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _of_container() -> int | None:
    """What its control group leaves, pages of files that can go at once counted as free."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return None
        files = (_CGROUP / "memory.stat").read_text().split()
        reclaimable = int(files[files.index("inactive_file") + 1])
        return max(int(limit) - int((_CGROUP / "memory.current").read_text()) + reclaimable, 0)
    except (OSError, ValueError):
        return None

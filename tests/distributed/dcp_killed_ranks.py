"""What the ranks of test_dcp_killed.py run: training that saves every step while it goes on, and is killed."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dcp_ranks
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict

from orthoopt import checkpoint_files

PLAN = "muon"
PADDING = 2**20
"""Bytes a checkpoint holds beside the network, so that a save lasts."""


def contents(model: Any, optimizer: Any, step: int) -> dict[str, Any]:
    weights, state = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": state, "padding": torch.full((PADDING,), step, dtype=torch.uint8)}


def held(model: Any, optimizer: Any) -> dict[str, Any]:
    """Parameters and state as arrays, which need nothing of the process that sent them."""
    found = dcp_ranks.parameters_of(model) | dcp_ranks.state_of(model, optimizer)
    return {key: value.numpy() for key, value in found.items()}


def restored(path: Path) -> tuple[int, dict[str, Any]]:
    """What a checkpoint holds, loaded in one process: its step, parameters and state."""
    model = dcp_ranks.wrapped("plain")
    optimizer = dcp_ranks.optimizer_of(model, PLAN)
    found = contents(model, optimizer, 255)
    dcp.load(found, checkpoint_id=path)
    dcp_ranks.set_contents(model, optimizer, found)
    steps = found["padding"].unique().tolist()
    assert len(steps) == 1, f"{path} holds data of steps {steps}"
    return steps[0], held(model, optimizer)


def save_every_step(
    rank: int, size: int, store: str, folder: str, steps: int, in_place: bool, at: str | None, pipe: Connection
) -> None:
    """Save asynchronously after every step, into ``step-N`` or over the last one; the parent is told what.

    With ``at`` rank 1 kills itself in its third save: ``"half"`` way through its data, or with the ``"data"`` written.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    saving = dist.new_group()  # a save talks while training does: on one group they would answer each other
    model = dcp_ranks.wrapped("fsdp")
    optimizer = dcp_ranks.optimizer_of(model, PLAN)
    pending = None
    for step in range(steps):
        dcp_ranks.train(model, optimizer, step, step + 1)
        found = held(model, optimizer)
        if pending is not None:
            pending.result()
        path = Path(folder, "only" if in_place else f"step-{step}")
        writer = checkpoint_files.writer(path)
        if at is not None and rank == 1 and step == 2:
            _die_in(writer, at)
        pending = dcp.async_save(contents(model, optimizer, step), storage_writer=writer, process_group=saving)
        pipe.send((step, found))
    assert pending is not None
    pending.result()
    pipe.send((steps, {}))
    signal.pause()  # to be killed with everything written


def _die_in(writer: Any, at: str) -> None:
    if at == "data":
        write = writer.write_data

        def write_and_die(*args: Any, **kwargs: Any) -> None:
            write(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        writer.write_data = write_and_die
        return
    create = writer.fs.create_stream

    def half(*args: Any, **kwargs: Any) -> Any:
        stream = create(*args, **kwargs)
        file = stream.__enter__()
        file.write(b"half of something")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    writer.fs.create_stream = half

"""The most memory that calls hold beyond what was there, as torch's own allocator tells it."""

from __future__ import annotations

import gc
import importlib
import os
import warnings
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_extra_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The highest point, above where it began, of the bytes that the allocator of the device has given out.

    Every allocation through torch counts, inside operators too; on a CPU from the profiler's record of each allocation
    and release, on a CUDA device from the allocator's own peak.

    Args:
        call: what is watched.
        device: whose memory.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # Newer profilers announce on stderr that they start and stop; this is read when the first one starts.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            call()
        assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
        events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def forget_workspaces() -> None:
    """Give back what the library keeps between calls: else an optimizer would work in what another had asked for."""
    try:
        workspace = importlib.import_module("orthoopt.workspace")
    except ModuleNotFoundError:
        return
    workspace.release()

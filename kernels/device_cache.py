"""Small tensors that are made on the host and copied to a device once, without waiting, and kept.

Caches are bounded, but for what CUDA graphs have been captured over: those hold addresses and not tensors, so it is
kept for good.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor


class Upload:
    """Tensors copied to a device on some stream, and other streams' right to use them."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        self.streams: set[int] = set()
        if device.type != "cuda":
            self.tensors = [tensor.to(device) for tensor in tensors]
            return
        self.tensors = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
        stream = torch.cuda.current_stream(device)
        self.copied = stream.record_event()
        self.streams.add(stream.cuda_stream)

    def use(self, stream: torch.cuda.Stream) -> None:
        """Make ``stream`` wait for the copy, if it is not the one that copied."""
        if stream.cuda_stream in self.streams:
            return
        stream.wait_event(self.copied)
        for tensor in self.tensors:
            tensor.record_stream(stream)
        self.streams.add(stream.cuda_stream)


Made = TypeVar("Made")


class Cache:
    """The last few things made for a key, those of captured graphs for good; ready for the current stream."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.recent: OrderedDict[Hashable, tuple[object, list[Upload]]] = OrderedDict()
        self.kept: dict[Hashable, tuple[object, list[Upload]]] = {}

    def get(self, key: Hashable, device: torch.device, make: Callable[[], tuple[Made, list[Upload]]]) -> Made:
        """What was made for ``key``, or what ``make`` gives now, with the uploads it stands on.

        Raises:
            RuntimeError: nothing was, and a CUDA graph is being captured: a copy in it would be made at replay only.
        """
        capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        found = self.kept.get(key) or self.recent.get(key)
        if found is None:
            if capturing:
                raise RuntimeError(
                    "a CUDA graph is being captured over tensors that no step has seen: make a step with the same "
                    "parameters, gradients and work buffers before the capture"
                )
            found = self.recent[key] = make()
            if len(self.recent) > self.size:
                self.recent.popitem(last=False)
        elif key in self.recent:
            self.recent.move_to_end(key)
        if capturing:
            self.kept[key] = found  # whoever captures has waited for earlier work, so the copies are done
        elif device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            for upload in found[1]:
                upload.use(stream)
        return found[0]  # type: ignore[return-value]  # made by this key's own ``make``


_constants = Cache(256)


def constants(values: Sequence[float], device: torch.device) -> Tensor:
    """Numbers in float32 on a device, cached by their values."""
    key = tuple(values)

    def make() -> tuple[Tensor, list[Upload]]:
        upload = Upload([torch.tensor(key, dtype=torch.float32)], device)
        return upload.tensors[0], [upload]

    return _constants.get((device, key), device, make)

"""Checkpoints of ``torch.distributed.checkpoint`` on disk: which of them are whole, and how to write one over another.

A save ends with its file ``.metadata``, renamed into place after every rank has written its data. A process killed
before leaves a folder without one, which does not load. Two things torch leaves to us: to find the last folder that is
whole, and to write into a folder that has a checkpoint already, where the old ``.metadata`` would vouch for a mixture
of old and new data.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

METADATA = ".metadata"
_NUMBER = re.compile(r"(\d+)\D*$")

if TYPE_CHECKING:
    from torch.distributed.checkpoint.filesystem import FileSystemWriter


def latest(folder: str | os.PathLike[str]) -> Path | None:
    """The newest whole checkpoint below a folder, for ``torch.distributed.checkpoint.load``.

    Args:
        folder: holds a folder for every checkpoint, such as ``step-100`` and ``step-200``; others are passed over.
            Their order is that of the last number in each name, or of the times at which they were completed if a name
            has none.

    Returns:
        Its path, or None if there is no whole one.
    """
    whole = [path for path in Path(folder).iterdir() if path.is_dir() and is_complete(path)]
    numbers = {path: int(found[1]) for path in whole if (found := _NUMBER.search(path.name))}
    if len(numbers) == len(whole):
        return max(whole, key=numbers.__getitem__, default=None)
    return max(whole, key=lambda path: (path / METADATA).stat().st_mtime_ns, default=None)


def is_complete(path: str | os.PathLike[str]) -> bool:
    """Whether a checkpoint's folder has its ``.metadata`` and every byte of the files that it lists.

    A folder that was being written over without :func:`writer` when its process ended may pass: nothing in it tells old
    data from new.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    if not Path(path, METADATA).is_file():
        return False
    try:
        stored = FileSystemReader(path).read_metadata().storage_data
        ends: dict[str, int] = {}
        for info in (stored or {}).values():
            ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
        return all(Path(path, name).stat().st_size >= end for name, end in ends.items())
    except Exception:  # whatever unpickling cut or foreign bytes raises
        return False


def writer(path: str | os.PathLike[str], **options: Any) -> FileSystemWriter:
    """A ``storage_writer`` for ``save`` and ``async_save`` that may write into the folder of an older checkpoint.

    The older one ends before the first byte is written: ended in the middle, the folder holds none, not a mixture. It
    is better to give every checkpoint a folder of its own, for then there is always one that loads.

    Args:
        path: the checkpoint's folder.
        options: of ``torch.distributed.checkpoint.FileSystemWriter``.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.planner import SavePlan

    class Writer(FileSystemWriter):
        def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
            # Called on the coordinator alone, after the last rank looked at the folder and before the first one writes.
            Path(self.path, METADATA).unlink(missing_ok=True)
            return super().prepare_global_plan(plans)

    return Writer(path, **options)

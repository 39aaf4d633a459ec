"""Work done ahead in a thread, so that the one who asks next does not wait."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_POLL = 0.1  # seconds after which a thread that waits for room looks whether it is still wanted


class Prefetched(Iterator[T], Generic[T]):
    """The items of an iterator, made in a thread, at most `depth` ahead; an error is raised where it belongs.

    `close()` ends the thread; so does the end of the items.
    """

    def __init__(self, source: Callable[[], Iterator[T]], depth: int) -> None:
        self._ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=max(depth, 1))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(source,), name="prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        if self._closed.is_set():
            raise StopIteration
        item, error = self._ready.get()
        if error is not None:
            self.close()
            raise error
        return item  # type: ignore[return-value]  # None stands beside an error alone

    def close(self) -> None:
        """End the thread and wait for it."""
        self._closed.set()
        with contextlib.suppress(queue.Empty):  # room for what the thread waits to put, so that it looks
            while True:
                self._ready.get_nowait()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _work(self, source: Callable[[], Iterator[T]]) -> None:
        try:
            for item in source():
                if not self._put(item, None):
                    return
            self._put(None, StopIteration())
        except BaseException as error:  # whatever it is, it belongs to the one who waits
            self._put(None, error)

    def _put(self, item: T | None, error: BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put((item, error), timeout=_POLL)
            except queue.Full:
                continue
            return True
        return False

"""A background thread that runs an iterator ahead of its consumer."""

import atexit
import contextlib
import queue
import threading
from collections.abc import Generator
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")


class _Failure(NamedTuple):
    error: BaseException


class _End(NamedTuple):
    pass


class ReadAhead(Generic[Item]):
    """Iterates over a generator that runs in a thread, at most `depth` items ahead.

    An exception of the generator is raised where the consumer would have got the item after the
    last good one. `close` ends the thread and the generator; iterating afterwards is a
    RuntimeError.
    """

    def __init__(self, source: Generator[Item, None, None], depth: int) -> None:
        self._source = source
        self._queue: queue.Queue[Item | _Failure | _End] = queue.Queue(maxsize=depth)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gear-loader", daemon=True)
        self._thread.start()
        # A thread still in native code at interpreter shutdown aborts the process.
        atexit.register(self.close)

    def __iter__(self) -> "ReadAhead[Item]":
        return self

    def __next__(self) -> Item:
        if self._stopping.is_set():
            raise RuntimeError("the loader was closed or its position was set: iterate again")
        item = self._queue.get()
        if isinstance(item, (_Failure, _End)):
            self.close()
            raise item.error if isinstance(item, _Failure) else StopIteration
        return item

    def close(self) -> None:
        """Stop the thread and wait for it; does nothing a second time."""
        atexit.unregister(self.close)
        self._stopping.set()
        while self._thread.is_alive():
            # A put that waits for room goes on once there is some, and then sees the request.
            with contextlib.suppress(queue.Empty):
                self._queue.get_nowait()
            self._thread.join(0.02)

    def _run(self) -> None:
        try:
            for item in self._source:
                if self._stopping.is_set():
                    return
                self._queue.put(item)
            self._queue.put(_End())
        except BaseException as error:
            self._queue.put(_Failure(error))
        finally:
            self._source.close()

"""Buffers on their way: read and written in one thread, digested in others meanwhile.

::

    mover ──acquire──► buffer ──fill──► submit ──► consumer threads ──► back to the pool
                                          └─ written by the mover at the same time (both only read it)

A consumer sees the disk in order, as data and zeros.  The pool is the bound: a mover that is faster than a
consumer waits for a buffer.  A consumer that fails goes on handing buffers back, so nobody waits for ever;
its error is raised in the mover's thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol, Self

from vhdtool.export.moving.spans import DATA, Span
from vhdtool.model.state import ZEROS

# performance.md: a gathered read and one write win with 256 to 512 KiB, at every depth.
BUFFER_SIZE: Final = 512 << 10
BUFFER_COUNT: Final = 4
# Waiting for a lock cannot be interrupted everywhere: look up from time to time.
WAIT_SECONDS: Final = 0.2
# A digest of many zeros takes hours; who stops the job waits for so many of them only.
_ZEROS_AT_ONCE: Final = 1 << 30


class Consumer(Protocol):
    """Takes the bytes of a disk in order.  Called from one thread of its own."""

    def data(self, view: memoryview) -> None:
        """The next bytes; the view is good during the call only."""
        ...

    def zeros(self, length: int) -> None:
        """The next ``length`` bytes are zeros."""
        ...

    def gap(self, length: int) -> None:
        """The next ``length`` bytes are left to a parent: an increment does not hold them."""
        ...

    def finish(self) -> None:
        """That was all."""
        ...


@dataclass(slots=True, eq=False)
class Buffer:
    """One buffer of the pool: ``bytes`` and a ``view`` of them; ``users`` counts who still reads it."""

    bytes: bytearray
    view: memoryview = field(init=False)
    users: int = 0

    def __post_init__(self) -> None:
        self.view = memoryview(self.bytes)


# Bytes of the disk, something to be done, the end.
_Item = tuple[Buffer, Sequence[Span]] | Callable[[], None] | None


class Pipeline:
    """A pool of buffers and a thread for each consumer.

    Args:
        count, size: of the buffers, in bytes.

    Use as a context: ``acquire``, ``submit`` and ``release``, ``finish`` at the end.
    """

    def __init__(self, consumers: Sequence[Consumer], count: int, size: int = BUFFER_SIZE) -> None:
        self._free: queue.SimpleQueue[Buffer] = queue.SimpleQueue()
        self._missing, self._size = count, size
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._workers = [_Worker(consumer, self.release, self._stopping) for consumer in consumers]
        for worker in self._workers:
            worker.thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def acquire(self, check: Callable[[], None]) -> Buffer:
        """A buffer that nobody reads; ``check`` is called while waiting and may raise."""
        if self._missing and self._free.empty():  # small jobs need few
            self._missing -= 1
            return Buffer(bytearray(self._size))
        while True:
            try:
                return self._free.get(timeout=WAIT_SECONDS)
            except queue.Empty:
                check()
                self._raise_failure()

    def submit(self, buffer: Buffer, spans: Sequence[Span]) -> None:
        """Hand ``spans`` of ``buffer`` to every consumer; the caller still holds it until ``release``."""
        self._raise_failure()
        with self._guard:
            buffer.users = 1 + len(self._workers)
        for worker in self._workers:
            worker.inbox.put((buffer, spans))

    def release(self, buffer: Buffer) -> None:
        """One reader of ``buffer`` is done."""
        with self._guard:
            buffer.users -= 1
            free = buffer.users == 0
        if free:
            self._free.put(buffer)

    def call(self, function: Callable[[], None]) -> None:
        """Call ``function`` in the first consumer's thread when that has taken all that came before."""
        self._workers[0].inbox.put(function)

    def finish(self, check: Callable[[], None]) -> None:
        """Wait until every consumer has taken everything; ``check`` is called meanwhile and may raise."""
        for worker in self._workers:
            worker.inbox.put(None)
        for worker in self._workers:
            while worker.thread.is_alive():
                worker.thread.join(WAIT_SECONDS)
                check()
        self._raise_failure()

    def _stop(self) -> None:
        """Let consumers go that have not finished; returns when their threads have ended."""
        self._stopping.set()
        for worker in self._workers:
            worker.inbox.put(None)
        for worker in self._workers:
            worker.thread.join()

    def _raise_failure(self) -> None:
        for worker in self._workers:
            if worker.failure is not None:
                raise worker.failure


class _Worker:
    """A consumer's thread: drains its inbox to the end, whatever happens to the consumer."""

    def __init__(
        self, consumer: Consumer, release: Callable[[Buffer], None], stopping: threading.Event
    ) -> None:
        self.inbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self.failure: BaseException | None = None
        self._consumer = consumer
        self._release = release
        self._stopping = stopping
        # A daemon: an interpreter that is told to end does not wait for a digest.
        self.thread = threading.Thread(target=self._run, name="vhdtool-digest", daemon=True)

    def _run(self) -> None:
        while True:
            item = self.inbox.get()
            try:
                if self.failure is None and not self._stopping.is_set():
                    self._feed(item)
            except BaseException as error:  # noqa: BLE001 - raised again in the mover's thread
                self.failure = error
            finally:
                if isinstance(item, tuple):
                    self._release(item[0])
            if item is None:
                return

    def _feed(self, item: _Item) -> None:
        if item is None:
            self._consumer.finish()
        elif callable(item):
            item()
        else:
            buffer, spans = item
            feed(self._consumer, buffer.view, spans, self._stopping.is_set)


def feed(
    consumer: Consumer, view: memoryview, spans: Sequence[Span], is_stopping: Callable[[], bool] = bool
) -> None:
    """Hand ``spans`` of a buffer to ``consumer``."""
    for kind, length, at in spans:
        if kind == DATA:
            consumer.data(view[at : at + length])
        elif kind == ZEROS:
            while length and not is_stopping():
                count = min(length, _ZEROS_AT_ONCE)
                consumer.zeros(count)
                length -= count
        else:
            consumer.gap(length)

"""A disk read and digested by several threads at once, chunk by chunk, and handed on in order.

::

    plans ──► tasks: whole chunks, no more data than fits into a buffer ──► a thread for each CPU
                                                                             read, zeros found, digested
    sink ◄── one after the other, in the order of the disk ◄── buffer, spans, digests

A chunk's digest needs no other chunk.  Who has just read bytes has them at hand: digesting them there costs
half of what it costs a thread that has to fetch them from another CPU.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vhdtool.chain.engine import cpu_count
from vhdtool.errors import CorruptError, ReadError
from vhdtool.export.moving.fill import NEVER, SMALL_ZEROS, DamageSink, Filler, takes_room
from vhdtool.export.moving.pipeline import WAIT_SECONDS, Buffer, feed
from vhdtool.export.moving.progress import CancelledError
from vhdtool.export.moving.spans import Span, add_span
from vhdtool.export.proof.digest import ChunkDigester
from vhdtool.model.plan import ReadPlan

# More of them would wait for who writes, and each takes buffers of a chunk's size.
THREADS_MAX: Final = 4
# Buffers: those that are being filled, or full already, and one that is being handed on.
JOBS_PER_THREAD: Final = 2
# Bytes of data in a task of which nothing is kept.
TASK_SIZE: Final = 8 << 20
# So many runs make a task, however few data they are.
_ROWS: Final = 1 << 12


def crew_size() -> int:
    """Threads that read and digest; one alone would be no crew."""
    return min(cpu_count(), THREADS_MAX)


class _Chunks(list[tuple[bytes | None, int]]):
    """Digests, as they come."""

    def add(self, digest: bytes | None, count: int) -> None:
        """The next chunks."""
        self.append((digest, count))


class _Damage(list[tuple[int, int, str]]):
    """Ranges that could not be read."""

    def add(self, start: int, length: int, reason: str) -> None:
        """Guest bytes [start, start + length)."""
        self.append((start, length, reason))


@dataclass(slots=True)
class Done:
    """A task that is done: what is in its buffer, from guest byte ``start`` up to ``stop``.

    Attributes:
        chunks: (digest, count) of the chunks in it.
        damage: (start, length, reason) of ranges that could not be read.
        read: bytes of data that came from the sources.
    """

    buffer: Buffer
    start: int
    stop: int
    spans: list[Span]
    chunks: _Chunks
    damage: _Damage
    read: int = 0


@dataclass(slots=True)
class _Job:
    """A task on its way."""

    buffer: Buffer
    task: ReadPlan
    future: Future[Done]


class Crew:
    """The threads, of which the caller's is one.  For the time of one ``run``.

    Args:
        new_filler: makes a filler, of who is told of damage, and of what is to be called now and then.
        acquire: a buffer that nobody reads.
        check: called by the caller's thread while it waits; may raise.
        keeps: what is read stays in the buffer, which has room for all of a task.
    """

    def __init__(
        self,
        new_filler: Callable[[DamageSink, Callable[[], None]], Filler],
        acquire: Callable[[Callable[[], None]], Buffer],
        check: Callable[[], None],
        *,
        chunk_size: int,
        keeps: bool,
    ) -> None:
        self._new_filler = new_filler
        self._acquire = acquire
        self._check = check
        self._chunk_size = chunk_size
        self._keeps = keeps
        self._stopping = threading.Event()

    def run(self, tasks: Iterable[ReadPlan]) -> Generator[Done, None, None]:
        """Do tasks; in their order.  Who is given one lets go of its buffer; closing it ends the threads.

        Raises:
            CorruptError, ReadError: of the first task that fails, when its turn comes.
        """
        jobs: deque[_Job] = deque()
        pool = ThreadPoolExecutor(crew_size() - 1, thread_name_prefix="vhdtool-crew")
        try:
            for task in tasks:
                if len(jobs) == JOBS_PER_THREAD * crew_size():
                    yield self._first(jobs)
                buffer = self._acquire(self._check)
                jobs.append(_Job(buffer, task, pool.submit(self._work, buffer, task, self._go_on)))
            while jobs:
                yield self._first(jobs)
        finally:
            self._stopping.set()
            pool.shutdown(cancel_futures=True)

    def _first(self, jobs: deque[_Job]) -> Done:
        """The first job, done; this thread does what nobody has begun while it waits."""
        first = jobs[0]
        for job in jobs:
            if first.future.done():
                break
            if job.future.cancel():
                job.future = Future()
                try:
                    job.future.set_result(self._work(job.buffer, job.task, self._check))
                except (CorruptError, ReadError) as error:
                    job.future.set_exception(error)
        jobs.popleft()
        while True:
            try:
                return first.future.result(WAIT_SECONDS)
            except FutureTimeoutError:
                self._check()

    def _work(self, buffer: Buffer, task: ReadPlan, check: Callable[[], None]) -> Done:
        done = Done(buffer, task.start, task.stop, [], _Chunks(), _Damage())
        filler = self._new_filler(done.damage, check)
        digester = ChunkDigester(done.chunks, self._chunk_size, task.start)
        filler.begin(task)
        is_left = True
        while is_left:
            is_left = filler.fill(buffer, len(buffer.bytes))
            spans = filler.taken()
            feed(digester, buffer.view, spans)
            if self._keeps:
                for span in spans:
                    add_span(done.spans, *span)
            else:
                filler.rewind()
        digester.finish()
        done.read = filler.read
        return done

    def _go_on(self) -> None:
        if self._stopping.is_set():
            raise CancelledError("stopped on request")


def tasks(
    plans: Iterable[ReadPlan],
    *,
    chunk_size: int,
    size: int,
    edge: Callable[[int], int] = lambda position: NEVER,
) -> Iterator[ReadPlan]:
    """The same disk as plans that end where chunks do, with no more than ``size`` bytes of data.

    Args:
        size: a multiple of ``chunk_size``, in bytes.
        edge: the end of a chunk behind ``position`` at which a task is to end, whatever fits.
    """
    rest = ReadPlan.of_runs([])
    for plan in plans:
        rest = ReadPlan.joined([rest, plan]) if len(rest) else plan
        is_read = takes_room(rest)
        data = np.cumsum(np.where(is_read, rest.length, 0))
        at, stop = rest.start, rest.stop
        while True:
            end = _end(rest, is_read, data, at, size)
            if end < NEVER:
                # One chunk fits, whatever is in it.
                end = max(end // chunk_size, at // chunk_size + 1) * chunk_size
            end = min(end, edge(at))
            if end > stop or at == stop:
                break
            yield rest.clipped(at, end)
            at = end
        rest = rest.clipped(at, stop) if at < stop else ReadPlan.of_runs([])
    if len(rest):
        yield rest


def _end(
    plan: ReadPlan, is_read: npt.NDArray[np.bool_], data: npt.NDArray[np.int64], at: int, size: int
) -> int:
    """Up to where a task that begins ``at`` has room; ``NEVER`` for all of ``plan``."""
    first = int(np.searchsorted(plan.offset, at, "right")) - 1
    left = int(plan.offset[first] + plan.length[first]) - at
    before = int(data[first]) - (left if is_read[first] else 0)
    # Long zeros that are cut at the ends of a task may become short ones, which take room.
    room = before + size - 2 * SMALL_ZEROS
    row = min(int(np.searchsorted(data, room, "right")), first + _ROWS)
    if row >= len(plan):
        return NEVER
    end, length = int(plan.offset[row]), int(plan.length[row])
    if is_read[row]:
        end += max(0, min(room - int(data[row]) + length, length))
    return end

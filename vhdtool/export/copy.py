"""The mover: executes read plans into a sink, digesting on the way.

::

    plans ──► runs ──┬── data ──► gathered into a buffer ──► zero test ──► one write a span ──► sink
                     │                                           └───────► consumers (pipeline.py)
                     └── zeros, holes of a source ──► counted, never touched, never written

Small runs that lie side by side in the disk become one write, wherever they come from.  Zeros inside data
are found in cells of ``CELL_SIZE`` aligned in the disk, so a chunk of zeros is always found to be one.
A range of zeros costs the same whatever its length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

from vhdtool.chain.reader import require_readable
from vhdtool.errors import (
    EXIT_INTERRUPTED,
    CorruptError,
    ExportError,
    Finding,
    InputError,
    ReadError,
    hexadecimal,
)
from vhdtool.export.pipeline import BUFFER_SIZE, Buffer, Consumer, Pipeline, Span
from vhdtool.export.target import ZERO_PIECE
from vhdtool.formats.image import Sink
from vhdtool.model.state import DAMAGED, ZEROS, Run
from vhdtool.source import ByteSource

if TYPE_CHECKING:
    from vhdtool.chain.chain import Chain

CELL_SIZE: Final = 64 << 10
# Zeros shorter than this between data are copied along: no file system makes smaller holes.
SMALL_ZEROS: Final = 4 << 10
# Sources are asked for holes only inside runs of at least this length.
HOLE_RUN_MIN: Final = 256 << 10
# What cannot be read is narrowed down to pieces of this size, aligned in the file.
DAMAGE_GRAIN: Final = 4 << 10
_PROGRESS_SECONDS: Final = 0.1
_DAMAGED_ENTRY: Final = "the table entry of this range breaks a rule of its format"

assert BUFFER_SIZE % CELL_SIZE == 0

Damaged = Literal["refuse", "zero"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes:
        phase: "copy" or "verify".
        done: bytes of data moved so far.
        total: an estimate of those in the end; exact at the end, None when there is no estimate.
        position: guest bytes that are settled, of ``virtual_size``.
    """

    phase: str
    done: int
    total: int | None
    position: int
    virtual_size: int


ProgressCallback = Callable[[Progress], None]


class CancelToken:
    """Stops a job from another thread; the job raises :class:`CancelledError` soon after."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        """Ask the job to stop."""
        self.cancelled = True


class CancelledError(ExportError):
    """A job was stopped through its token."""

    exit_code = EXIT_INTERRUPTED


class DamageSink(Protocol):
    """Is told of guest ranges that became zeros because they could not be read."""

    def add(self, start: int, length: int, reason: str) -> None:
        """Guest bytes [start, start + length)."""
        ...


@dataclass(slots=True)
class Moved:
    """What was moved, in bytes.

    Attributes:
        read: data taken from the sources.
        written: of those, not zeros.
    """

    read: int = 0
    written: int = 0


class Reporter:
    """Tells a callback how far the job is, a few times a second, and looks whether it is to stop.

    Args:
        estimate: bytes of data expected in the whole disk; None when unknown.
    """

    def __init__(
        self,
        phase: str,
        virtual_size: int,
        *,
        estimate: int | None = None,
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        self._phase = phase
        self._virtual_size = virtual_size
        self._estimate = estimate
        self._progress = progress
        self._cancel = cancel
        self._next = 0.0

    def check(self) -> None:
        """Raise when the job is to stop.

        Raises:
            CancelledError: it is.
        """
        if self._cancel is not None and self._cancel.cancelled:
            raise CancelledError("stopped on request; nothing was left behind")

    def update(self, done: int, position: int) -> None:
        """Report when it is time to, and ``check``."""
        self.check()
        if self._progress is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_SECONDS
            self._report(self._progress, done, position)

    def finish(self, done: int) -> None:
        """Report the end."""
        if self._progress is not None:
            self._report(self._progress, done, self._virtual_size)

    def _report(self, progress: ProgressCallback, done: int, position: int) -> None:
        total = None
        if self._estimate is not None:
            # What the rest of the disk holds if the estimate is right there, and at most all of it.
            rest = self._virtual_size - position
            total = done + min(rest, self._estimate * rest // max(1, self._virtual_size))
        progress(Progress(self._phase, done, total, position, self._virtual_size))


def estimated_data(chain: Chain) -> int:
    """Bytes of data in the disk of ``chain``, from the counts of its tables; an upper bound."""
    total = 0
    for image in chain.images:
        geometry = image.geometry
        counts = image.counts()
        total += (
            (counts.data + counts.partial) * geometry.block_size if counts.total else geometry.virtual_size
        )
        if total >= chain.virtual_size:
            break
    return min(total, chain.virtual_size)


class Mover:
    """Moves one disk.  Made for one ``run``.

    Args:
        sources: the layers' bytes, indexed by a run's ``layer``.
        sink: gets the data at its guest offset; None to digest only.
        consumers: get the whole disk in order, each in a thread of its own.
        damaged: "refuse", or "zero": what cannot be read becomes zeros and is told to ``damage``.
        reporter: for progress and for stopping.
    """

    def __init__(
        self,
        sources: Sequence[ByteSource],
        sink: Sink | None,
        *,
        reporter: Reporter,
        consumers: Sequence[Consumer] = (),
        damaged: Damaged = "refuse",
        damage: DamageSink | None = None,
    ) -> None:
        if damaged == "zero" and damage is None:
            raise ValueError("damaged ranges are exported as zeros only where somebody is told")
        self._sources = sources
        self._sink = sink
        self._reporter = reporter
        self._consumers = consumers
        self._damage = damage if damaged == "zero" else None
        self._moved = Moved()

    def run(self, plans: Iterable[Iterable[Run]], start: int = 0) -> Moved:
        """Execute ``plans``, which tile a range of the disk from guest byte ``start``.

        Raises:
            CorruptError, ReadError: a range cannot be read (with "refuse").
            ExportError: the sink cannot be written to.
            CancelledError: the reporter's token says stop.
        """
        self._pipeline = Pipeline(self._consumers)
        try:
            self._buffer = self._pipeline.acquire(self._reporter.check)
            self._start = start  # of the buffer, in the disk
            self._filled = 0
            self._pending_zeros = 0
            for plan in plans:
                for run in plan:
                    self._move(run)
            self._flush()
            self._pipeline.zeros(self._pending_zeros)
            self._pipeline.finish(self._reporter.check)
        finally:
            self._pipeline.stop()
        self._reporter.finish(self._moved.read)
        return self._moved

    def _move(self, run: Run) -> None:
        if run.offset != self._start + self._filled:
            raise ValueError(f"the plans do not tile the disk at {run.offset:#x}")
        if run.layer == ZEROS:
            self._zeros(run.length)
        elif run.layer == DAMAGED:
            self._damaged_run(run)
        elif run.length < HOLE_RUN_MIN:  # as data_and_holes would say, without its cost
            self._data(self._sources[run.layer], run.file_offset, run.length)
        else:
            self._data_with_holes(self._sources[run.layer], run)

    def _data_with_holes(self, source: ByteSource, run: Run) -> None:
        for file_offset, length, is_data in data_and_holes(source, run.file_offset, run.length):
            if is_data:
                self._data(source, file_offset, length)
            else:
                self._zeros(length)

    def _zeros(self, length: int) -> None:
        if length <= 0:
            return
        if self._filled and length < SMALL_ZEROS and length < self._room():
            self._buffer.view[self._filled : self._filled + length] = ZERO_PIECE[:length]
            self._filled += length
            return
        self._flush()
        self._pending_zeros += length
        self._start += length
        self._reporter.update(self._moved.read, self._start)

    def _data(self, source: ByteSource, file_offset: int, length: int) -> None:
        while length:
            count = min(length, self._room())
            view = self._buffer.view[self._filled : self._filled + count]
            try:
                source.read_into(file_offset, view, field="payload")
            except (ReadError, CorruptError) as error:
                self._rescue(source, file_offset, view, error)
            self._filled += count
            self._moved.read += count
            file_offset += count
            length -= count
            if not self._room():
                self._flush()

    def _room(self) -> int:
        """Bytes that still fit: buffers end at multiples of their size in the disk."""
        return BUFFER_SIZE - self._start % BUFFER_SIZE - self._filled

    def _flush(self) -> None:
        if not self._filled:
            return
        spans = zero_spans(self._buffer.bytes, self._start, self._filled)
        if len(spans) == 1 and spans[0].is_zero:
            self._pending_zeros += self._filled
        elif self._consumers:
            self._pipeline.zeros(self._pending_zeros)
            self._pending_zeros = 0
            buffer = self._buffer
            self._pipeline.submit(buffer, spans)
            try:
                self._write(buffer, spans)
            finally:
                self._pipeline.release(buffer)
            self._buffer = self._pipeline.acquire(self._reporter.check)
        else:
            self._write(self._buffer, spans)
        self._start += self._filled
        self._filled = 0
        self._reporter.update(self._moved.read, self._start)

    def _write(self, buffer: Buffer, spans: Sequence[Span]) -> None:
        for span in spans:
            if not span.is_zero:
                if self._sink is not None:
                    self._sink.write_at(self._start + span.start, buffer.view[span.start : span.stop])
                self._moved.written += span.stop - span.start

    def _damaged_run(self, run: Run) -> None:
        if self._damage is None:
            require_readable(run, self._sources[0].name)
            return
        self._damage.add(run.offset, run.length, _DAMAGED_ENTRY)
        self._zeros(run.length)

    def _rescue(
        self, source: ByteSource, file_offset: int, view: memoryview, error: ReadError | CorruptError
    ) -> None:
        """Read what can be read of ``view``'s range, piece by piece; the rest becomes zeros."""
        guest = self._start + self._filled
        if self._damage is None:
            raise with_guest_range(error, guest, len(view)) from error
        done = 0
        while done < len(view):
            self._reporter.check()
            at = file_offset + done
            count = min(len(view) - done, DAMAGE_GRAIN - at % DAMAGE_GRAIN)
            if at < source.size:  # what is there of the page in which a file was cut off
                count = min(count, source.size - at)
            try:
                source.read_into(at, view[done : done + count], field="payload")
            except (ReadError, CorruptError) as reason:
                view[done : done + count] = ZERO_PIECE[:count]
                self._damage.add(guest + done, count, _reason(source, reason))
            done += count


def _reason(source: ByteSource, error: InputError | CorruptError) -> str:
    """Why a piece could not be read, without its place, so that neighbours are one range."""
    if error.finding is not None:
        return f"{source.name}: {error.finding.what}"
    return f"{source.name}: {str(error).rsplit(': ', 1)[-1]}"


def with_guest_range(error: ReadError | CorruptError, start: int, length: int) -> ReadError | CorruptError:
    """``error`` with the range of the virtual disk that it spoils."""
    guest = f"guest bytes {hexadecimal(start)} to {hexadecimal(start + length)}"
    finding = error.finding
    if finding is None:
        return type(error)(f"{error} ({guest})")
    named = Finding(
        finding.code,
        finding.severity,
        finding.location,
        f"{finding.what}, in the data of {guest}",
        finding.found,
        finding.expected,
        finding.exit_code,
    )
    return type(error)(named)


def data_and_holes(source: ByteSource, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
    """Bytes [offset, offset + length) of ``source`` as (offset, length, is data); holes read as zeros.

    Short ranges are not looked into.
    """
    stop = offset + length
    # Past its end a file has no holes: it is too short, and reading there says so.
    if length < HOLE_RUN_MIN or stop > source.size:
        yield offset, length, True
        return
    for first, last in source.data_ranges(offset, stop):
        if first > offset:
            yield offset, first - offset, False
        yield first, last - first, True
        offset = last
    if offset < stop:
        yield offset, stop - offset, False


def zero_spans(data: bytearray, start: int, length: int) -> list[Span]:
    """The first ``length`` bytes of ``data`` as spans of zeros and of something else.

    Args:
        start: the disk's offset of the first byte; cells are aligned in the disk.

    Returns:
        Spans that tile the range, zeros and data in turn.
    """
    spans: list[Span] = []
    position = 0
    span_start = 0
    was_zero = False
    while position < length:
        stop = min(length, position + CELL_SIZE - (start + position) % CELL_SIZE)
        count = stop - position
        zeros = _ZERO_CELL if count == CELL_SIZE else _ZERO_CELL[:count]
        # startswith compares in place and stops at the first difference.
        is_zero = data.startswith(zeros, position)
        if position and is_zero != was_zero:
            spans.append(Span(span_start, position, was_zero))
            span_start = position
        was_zero = is_zero
        position = stop
    spans.append(Span(span_start, length, was_zero))
    return spans


_ZERO_CELL: Final = bytes(CELL_SIZE)

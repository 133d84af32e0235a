"""The mover: executes read plans into a sink, digesting on the way.

::

    plans ──► runs ──┬── data ──► gathered into a buffer ──► zero test ──► one write a span ──► sink
                     │                                           └───────► consumers (pipeline.py)
                     ├── zeros, holes of a source ──► counted, never touched, never written
                     └── gaps: what an increment leaves to its parent

Small runs that lie side by side in the disk become one write, wherever they come from.  Zeros inside data
are found in cells of ``CELL_SIZE`` aligned in the disk, so a chunk of zeros is always found to be one.
A range of zeros costs the same whatever its length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal, Protocol

import numpy as np

from vhdtool.chain.engine import NO_FILE, Engine, descriptors_of, machine_for
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
from vhdtool.export.pipeline import BUFFER_SIZE, DATA, Buffer, Consumer, Pipeline, Span
from vhdtool.export.target import ZERO_PIECE
from vhdtool.formats.image import Sink
from vhdtool.model.plan import ReadPlan
from vhdtool.model.state import DAMAGED, UNHELD, ZEROS, Run
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
_SMALL_RUNS_MIN: Final = 4
_PROGRESS_SECONDS: Final = 0.1
_DAMAGED_ENTRY: Final = "the table entry of this range breaks a rule of its format"

assert BUFFER_SIZE % CELL_SIZE == 0

Damaged = Literal["refuse", "zero"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes:
        phase: "settle", "resume", "copy", "digest", "verify" or "compare".
        done: bytes of data moved so far.
        total: an estimate of those in the end; exact at the end, None when there is no estimate.
        position: guest bytes that are settled, of ``virtual_size``.
        slowed: why the job is not as fast as it could be; empty when it is.
    """

    phase: str
    done: int
    total: int | None
    position: int
    virtual_size: int
    slowed: str = ""


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
        tick: called every now and then; may raise.
        slowed: says why the job is not as fast as it could be.
    """

    def __init__(
        self,
        phase: str,
        virtual_size: int,
        *,
        estimate: int | None = None,
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        tick: Callable[[], None] = lambda: None,
        slowed: Callable[[], str] = str,
    ) -> None:
        self._phase = phase
        self._tick = tick
        self._slowed = slowed
        self._virtual_size = virtual_size
        self._estimate = estimate
        self._progress = progress
        self._cancel = cancel
        self._next = 0.0
        self._state = 0, 0

    def check(self) -> None:
        """Report when it is time to, and raise when the job is to stop.

        Raises:
            CancelledError: it is.
            SourceChangedError: what ``tick`` has to say.
        """
        self._tick()
        if self._cancel is not None and self._cancel.cancelled:
            raise CancelledError("stopped on request")
        if self._progress is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + _PROGRESS_SECONDS
            self._report(self._progress, *self._state)

    def update(self, done: int, position: int) -> None:
        """The job is so far; ``check``."""
        self._state = done, position
        self.check()

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
        progress(Progress(self._phase, done, total, position, self._virtual_size, self._slowed()))


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


class Checkpoints(Protocol):
    """Notes from time to time how far a job is.

    Attributes:
        size: bytes; it is asked at guest positions that are multiples of this.
    """

    @property
    def size(self) -> int: ...

    def due(self, position: int, moved: Moved) -> Callable[[], None] | None:
        """What is to be called when the first consumer has taken everything up to ``position``, if anything.

        The sink has it by now.
        """
        ...


class GuestSink(Sink, Protocol):
    """Takes a disk's bytes at their guest offsets, in ascending order."""

    def zeros(self, offset: int, length: int) -> None:
        """Guest bytes that are zeros; what is neither written nor named here is left to a parent, if any."""
        ...


class Mover:
    """Moves one disk.  Made for one ``run``.

    Args:
        sources: the layers' bytes, indexed by a run's ``layer``.
        sink: gets the data and the zeros; None to digest only.
        consumers: get the whole disk in order, each in a thread of its own.
        damaged: "refuse", or "zero": what cannot be read becomes zeros and is told to ``damage``.
        reporter: for progress and for stopping.
        zero_detect: look for zeros in data, which take no space then.
        engine: what reads many small pieces.
        checkpoints: is asked on the way; there must be a consumer then.
    """

    def __init__(
        self,
        sources: Sequence[ByteSource],
        sink: GuestSink | None,
        *,
        reporter: Reporter,
        consumers: Sequence[Consumer] = (),
        damaged: Damaged = "refuse",
        damage: DamageSink | None = None,
        zero_detect: bool = True,
        engine: Engine = "auto",
        checkpoints: Checkpoints | None = None,
    ) -> None:
        if damaged == "zero" and damage is None:
            raise ValueError("damaged ranges are exported as zeros only where somebody is told")
        self._sources = sources
        self._sink = sink
        self._reporter = reporter
        self._consumers = consumers
        self._damage = damage if damaged == "zero" else None
        self._zero_detect = zero_detect
        self._engine = engine
        self._checkpoints = checkpoints
        self._moved = Moved()

    def run(self, plans: Iterable[Iterable[Run]], start: int = 0) -> Moved:
        """Execute ``plans``, which tile a range of the disk from guest byte ``start``.

        Raises:
            CorruptError, ReadError: a range cannot be read (with "refuse").
            ExportError: the sink cannot be written to.
            CancelledError: the reporter's token says stop.
        """
        # What no layer holds is looked up last.
        self._descriptors = np.append(descriptors_of(self._sources), np.int32(NO_FILE))
        self._pipeline = Pipeline(self._consumers)
        try:
            self._buffer = self._pipeline.acquire(self._reporter.check)
            self._start = start  # of the buffer, in the disk
            self._filled = 0
            # Ranges of the buffer that were not read.
            self._voids: list[Span] = []
            # Bytes that no consumer knows of yet, and what they are.
            self._pending, self._pending_kind = 0, ZEROS
            for plan in plans:
                self._execute(plan if isinstance(plan, ReadPlan) else _as_it_is(plan))
            self._flush()
            self._tell_void()
            self._pipeline.finish(self._reporter.check)
        finally:
            self._pipeline.stop()
        self._reporter.finish(self._moved.read)
        return self._moved

    def _execute(self, plan: ReadPlan) -> None:
        """Move a plan: stretches of small pieces buffer by buffer, everything else run by run."""
        if not len(plan):
            return
        expected = np.append(self._start + self._filled, plan.offset[:-1] + plan.length[:-1])
        if not np.array_equal(plan.offset, expected):
            at = int(expected[np.argmax(plan.offset != expected)])
            raise ValueError(f"the plans do not tile the disk at {at:#x}")
        for first, last, is_small in _stretches(plan):
            rows = slice(first, last)
            part = ReadPlan(plan.offset[rows], plan.length[rows], plan.layer[rows], plan.file_offset[rows])
            if is_small:
                self._small_runs(part)
            else:
                for run in part:
                    self._move(run)

    def _move(self, run: Run) -> None:
        if run.layer in (ZEROS, UNHELD):
            self._void(run.length, run.layer)
        elif run.layer == DAMAGED:
            self._damaged_run(run)
        else:
            source = self._sources[run.layer]
            for file_offset, length, is_data in data_and_holes(source, run.file_offset, run.length):
                if is_data:
                    self._data(source, file_offset, length)
                else:
                    self._void(length, ZEROS)

    def _small_runs(self, plan: ReadPlan) -> None:
        """Runs of which none is looked into for holes, nor is longer than a buffer."""
        first_edge = -(-(plan.start + 1) // BUFFER_SIZE)
        edges = np.arange(first_edge, -(-plan.stop // BUFFER_SIZE)) * BUFFER_SIZE
        # Cut where buffers end.
        pieces = plan.cut(np.union1d(plan.offset, edges), plan.stop)
        begin = 0
        for end in np.append(np.searchsorted(pieces.offset, edges), len(pieces)).tolist():
            self._gather(pieces, slice(begin, end))
            begin = end

    def _gather(self, pieces: ReadPlan, rows: slice) -> None:
        """Read pieces that lie in one buffer."""
        first = rows.start
        while first < rows.stop and not self._filled and pieces.layer[first] < 0:
            # An empty buffer begins behind them.
            self._void(int(pieces.length[first]), int(pieces.layer[first]))
            first += 1
        rows = slice(first, rows.stop)
        layers, places, counts = pieces.layer[rows], pieces.file_offset[rows], pieces.length[rows]
        starts = pieces.offset[rows] - self._start
        descriptors = self._descriptors[np.maximum(layers, -1)]
        out = np.frombuffer(self._buffer.bytes, np.uint8)
        machine = machine_for(self._engine, reads=len(layers))
        done = machine.read_pieces(descriptors, places, counts, starts, out)
        columns = (done.tolist(), layers.tolist(), places.tolist(), counts.tolist())
        for is_done, layer, place, count in zip(*columns):
            if is_done:
                self._filled += count
                self._moved.read += count
            elif layer < 0:
                self._void(count, layer)
            else:  # no plain file, or reading fails: the source reads it, or says what is to be said
                self._data(self._sources[layer], place, count)
        if not self._room():
            self._flush()

    def _void(self, length: int, kind: int) -> None:
        """Bytes that are not read: zeros, or a gap."""
        if length <= 0:
            return
        if self._filled and length < self._room():
            if kind == ZEROS and length < SMALL_ZEROS:
                self._buffer.view[self._filled : self._filled + length] = ZERO_PIECE[:length]
            else:
                self._voids.append(Span(self._filled, self._filled + length, kind))
            self._filled += length
            return
        self._flush()
        if self._checkpoints is not None:
            # The last place inside where a job could go on is not to be passed by.
            edge = (self._start + length) // self._checkpoints.size * self._checkpoints.size
            if self._start < edge < self._start + length:
                self._put_void(Span(0, edge - self._start, kind))
                length -= edge - self._start
                self._advance(edge - self._start)
        self._put_void(Span(0, length, kind))
        self._advance(length)

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
        """Hand on what is in the buffer."""
        if not self._filled:
            return
        spans = self._spans()
        if len(spans) == 1 and spans[0].kind != DATA:
            self._put_void(spans[0])
        elif self._consumers:
            self._tell_void()
            buffer = self._buffer
            self._pipeline.submit(buffer, spans)
            try:
                self._write(buffer, spans)
            finally:
                self._pipeline.release(buffer)
            self._buffer = self._pipeline.acquire(self._reporter.check)
        else:
            self._write(self._buffer, spans)
        length, self._filled = self._filled, 0
        self._voids.clear()
        self._advance(length)

    def _advance(self, length: int) -> None:
        """The next ``length`` bytes are settled, and the buffer is empty."""
        self._start += length
        if self._checkpoints is not None and self._start % self._checkpoints.size == 0:
            call = self._checkpoints.due(self._start, self._moved)
            if call is not None:
                self._tell_void()
                self._pipeline.call(call)
        self._reporter.update(self._moved.read, self._start)

    def _spans(self) -> list[Span]:
        """What the buffer holds, in order; neighbours differ in kind."""
        spans: list[Span] = []
        position = 0
        for void in (*self._voids, Span(self._filled, self._filled, DATA)):
            if position < void.start:
                if self._zero_detect:
                    zero_spans(self._buffer.bytes, self._start, position, void.start, spans)
                else:
                    add_span(spans, position, void.start, DATA)
            if void.start < void.stop:
                add_span(spans, void.start, void.stop, void.kind)
            position = void.stop
        return spans

    def _put_void(self, void: Span) -> None:
        """A void for the sink at once, for the consumers when something else comes."""
        length = void.stop - void.start
        if void.kind == ZEROS and self._sink is not None:
            self._sink.zeros(self._start + void.start, length)
        if void.kind != self._pending_kind:
            self._tell_void()
            self._pending_kind = void.kind
        self._pending += length

    def _tell_void(self) -> None:
        if self._pending_kind == ZEROS:
            self._pipeline.zeros(self._pending)
        else:
            self._pipeline.gap(self._pending)
        self._pending = 0

    def _write(self, buffer: Buffer, spans: Sequence[Span]) -> None:
        for span in spans:
            if span.kind == DATA:
                if self._sink is not None:
                    self._sink.write_at(self._start + span.start, buffer.view[span.start : span.stop])
                self._moved.written += span.stop - span.start
            elif span.kind == ZEROS and self._sink is not None:
                self._sink.zeros(self._start + span.start, span.stop - span.start)

    def _damaged_run(self, run: Run) -> None:
        if self._damage is None:
            require_readable(run, self._sources[0].name)
            return
        self._damage.add(run.offset, run.length, _DAMAGED_ENTRY)
        self._void(run.length, ZEROS)

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


def _as_it_is(runs: Iterable[Run]) -> ReadPlan:
    """A plan of these runs, none of them merged with its neighbour."""
    table = np.array(list(runs), np.int64).reshape(-1, 4)
    return ReadPlan(table[:, 0], table[:, 1], table[:, 2].astype(np.int16), table[:, 3])


def _stretches(plan: ReadPlan) -> Iterator[tuple[int, int, bool]]:
    """Rows of ``plan`` as (first, last, are small): neighbours of one kind together."""
    is_small = np.where(plan.layer >= 0, plan.length < HOLE_RUN_MIN, plan.length < BUFFER_SIZE)
    is_small &= plan.layer != DAMAGED
    edges = [0, *(np.flatnonzero(np.diff(is_small)) + 1).tolist(), len(plan)]
    for first, last in pairwise(edges):
        # A few small ones among large ones are not worth arrays.
        yield first, last, bool(is_small[first]) and last - first >= _SMALL_RUNS_MIN


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


def zero_spans(data: bytearray, guest: int, start: int, stop: int, spans: list[Span]) -> None:
    """Append bytes ``[start, stop)`` of ``data`` to ``spans``, as zeros and as data.

    Args:
        guest: the disk's offset of ``data``'s first byte; cells are aligned in the disk.
    """
    position = begin = start
    kind = DATA
    while position < stop:
        end = min(stop, position + CELL_SIZE - (guest + position) % CELL_SIZE)
        count = end - position
        zeros = _ZERO_CELL if count == CELL_SIZE else _ZERO_CELL[:count]
        # startswith compares in place and stops at the first difference.
        found = ZEROS if data.startswith(zeros, position) else DATA
        if found != kind:
            if begin < position:
                add_span(spans, begin, position, kind)
            begin, kind = position, found
        position = end
    if begin < stop:
        add_span(spans, begin, stop, kind)


def add_span(spans: list[Span], start: int, stop: int, kind: int) -> None:
    """Append a span that begins where the last one ends; one of the same kind makes that longer."""
    if spans and spans[-1].kind == kind:
        start = spans.pop().start
    spans.append(Span(start, stop, kind))


_ZERO_CELL: Final = bytes(CELL_SIZE)

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
import numpy.typing as npt

from vhdtool.chain.engine import NO_FILE, ZERO_FILL, Engine, Int32s, descriptors_of, machine_for
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
from vhdtool.export.containers.target import ZERO_PIECE
from vhdtool.export.moving.pipeline import BUFFER_SIZE, DATA, Buffer, Consumer, Pipeline, Span
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
# So many voids and data in turn are handed on, however few the data are.
_SPANS_MAX: Final = 1 << 12
# So many small runs are moved before it is asked whether it is time to note how far the job is.
_LAP: Final = 1 << 12
_NEVER: Final = 1 << 64
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

    @property
    def is_waiting(self) -> bool:
        """Whether it is time for a note."""
        ...

    def due(self, position: int, moved: Moved) -> Callable[[], None]:
        """What is to be called when the first consumer has taken everything up to ``position``.

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
            self._filled = 0
            # What was gathered since the guest byte ``_start``, up to ``_position``.
            self._spans: list[Span] = []
            self._start = self._position = start
            self._edge = self._next_edge()
            for plan in plans:
                self._execute(plan if isinstance(plan, ReadPlan) else _as_it_is(plan))
            self._flush()
            self._pipeline.finish(self._reporter.check)
        finally:
            self._pipeline.stop()
        self._reporter.finish(self._moved.read)
        return self._moved

    def _execute(self, plan: ReadPlan) -> None:
        """Move a plan: stretches of small runs buffer by buffer, everything else run by run."""
        if not len(plan):
            return
        expected = np.append(self._position, plan.offset[:-1] + plan.length[:-1])
        if not np.array_equal(plan.offset, expected):
            at = int(expected[np.argmax(plan.offset != expected)])
            raise ValueError(f"the plans do not tile the disk at {at:#x}")
        for first, last, is_small in _stretches(plan):
            part = _rows(plan, first, last)
            if is_small:
                self._small_runs(part)
            else:
                for run in part:
                    self._move(run)

    def _move(self, run: Run) -> None:
        if len(self._spans) >= _SPANS_MAX:
            self._flush()
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

    # ------------------------------------------------------------ gathering

    def _small_runs(self, plan: ReadPlan) -> None:
        """Runs of which none is looked into for holes."""
        while len(plan):
            if self._edge <= plan.stop and self._is_waiting():
                lap, plan = plan.clipped(plan.start, self._edge), plan.clipped(self._edge, plan.stop)
            else:
                lap, plan = _rows(plan, 0, _LAP), _rows(plan, _LAP, len(plan))
            self._lap(lap)
            self._note()

    def _lap(self, plan: ReadPlan) -> None:
        """Cut a plan where buffers will be full, and fill them."""
        behind = self._filled + np.cumsum(np.where(_is_read(plan), plan.length, 0))
        full = np.arange(BUFFER_SIZE, int(behind[-1]) + 1, BUFFER_SIZE)
        rows = np.searchsorted(behind, full)
        cuts = plan.offset[rows] + plan.length[rows] - (behind[rows] - full)
        cuts = cuts[cuts < plan.stop]
        pieces = plan.cut(np.union1d(plan.offset, cuts), plan.stop)
        is_read = _is_read(pieces)
        descriptors = self._descriptors[np.maximum(pieces.layer, -1)]
        descriptors[is_read & (pieces.layer == ZEROS)] = ZERO_FILL
        descriptors[~is_read] = NO_FILE
        begin = 0
        for end in [*np.searchsorted(pieces.offset, cuts).tolist(), len(pieces)]:
            self._gather(_rows(pieces, begin, end), is_read[begin:end], descriptors[begin:end])
            begin = end

    def _gather(self, pieces: ReadPlan, is_read: npt.NDArray[np.bool_], descriptors: Int32s) -> None:
        """Read pieces whose data fit into one buffer."""
        counts = pieces.length
        ends = np.cumsum(np.where(is_read, counts, 0))
        room = int(ends[-1])
        if self._filled + room > BUFFER_SIZE or len(self._spans) >= _SPANS_MAX:
            self._flush()
        out = np.frombuffer(self._buffer.bytes, np.uint8)
        machine = machine_for(self._engine, reads=len(counts))
        done = machine.read_pieces(descriptors, pieces.file_offset, counts, self._filled + ends - counts, out)
        if done.all():
            self._moved.read += room - int(counts[descriptors == ZERO_FILL].sum())
            self._take(DATA, room)
        else:
            self._take_each(pieces, done)
        if self._filled == BUFFER_SIZE:
            self._flush()

    def _take_each(self, pieces: ReadPlan, done: npt.NDArray[np.bool_]) -> None:
        """Take pieces one by one: some are read (``done``), some need not be, some could not be."""
        for is_done, (_, count, layer, place) in zip(done.tolist(), pieces):
            if is_done:
                self._moved.read += count if layer >= 0 else 0
                self._take(DATA, count)
            elif layer < 0:
                self._take(layer, count)
            else:  # no plain file, or reading fails: the source reads it, or says what is to be said
                self._fill(self._sources[layer], place, count)

    def _void(self, length: int, kind: int) -> None:
        """Bytes that are not read: zeros, or a gap."""
        if kind == ZEROS and length < SMALL_ZEROS and self._filled + length < BUFFER_SIZE:
            self._buffer.view[self._filled : self._filled + length] = ZERO_PIECE[:length]
            self._take(DATA, length)
            return
        stop = self._position + length
        if self._edge <= stop and self._is_waiting():
            # Of all edges inside the last one: how many there are must cost nothing.
            assert self._checkpoints is not None
            self._take(kind, stop // self._checkpoints.size * self._checkpoints.size - self._position)
            self._note()
        if self._position < stop:
            self._take(kind, stop - self._position)
        if length >= BUFFER_SIZE:
            self._reporter.update(self._moved.read, self._position)

    def _data(self, source: ByteSource, file_offset: int, length: int) -> None:
        while length:
            count = min(length, BUFFER_SIZE - self._filled, self._edge - self._position)
            self._fill(source, file_offset, count)
            file_offset += count
            length -= count
            if self._filled == BUFFER_SIZE:
                self._flush()
            self._note()

    def _fill(self, source: ByteSource, file_offset: int, length: int) -> None:
        """Read bytes that fit into the buffer."""
        view = self._buffer.view[self._filled : self._filled + length]
        try:
            source.read_into(file_offset, view, field="payload")
        except (ReadError, CorruptError) as error:
            self._rescue(source, file_offset, view, error)
        self._moved.read += length
        self._take(DATA, length)

    def _take(self, kind: int, length: int) -> None:
        """The next bytes of the disk; data stand in the buffer behind what is there."""
        add_span(self._spans, kind, length, self._filled)
        if kind == DATA:
            self._filled += length
        self._position += length
        if self._position >= self._edge:
            self._edge = self._next_edge()

    # ------------------------------------------------------------ handing on

    def _next_edge(self) -> int:
        """Where a checkpoint can be, behind ``_position``."""
        if self._checkpoints is None:
            return _NEVER
        size = self._checkpoints.size
        return (self._position // size + 1) * size

    def _is_waiting(self) -> bool:
        return self._checkpoints is not None and self._checkpoints.is_waiting

    def _note(self) -> None:
        """Note how far the job is, if it can go on from here and it is time to."""
        if self._checkpoints is None or self._position % self._checkpoints.size:
            return
        if self._position and self._checkpoints.is_waiting:
            self._flush()
            self._pipeline.call(self._checkpoints.due(self._position, self._moved))

    def _flush(self) -> None:
        """Hand on what was gathered."""
        if not self._spans:
            return
        spans = self._detected()
        if self._consumers:
            buffer = self._buffer
            self._pipeline.submit(buffer, spans)
            try:
                self._write(buffer, spans)
            finally:
                self._pipeline.release(buffer)
            self._buffer = self._pipeline.acquire(self._reporter.check)
        else:
            self._write(self._buffer, spans)
        self._spans.clear()
        self._filled = 0
        self._start = self._position
        self._reporter.update(self._moved.read, self._position)

    def _detected(self) -> list[Span]:
        """What was gathered, with zeros among the data found."""
        if not self._zero_detect:
            return list(self._spans)
        spans: list[Span] = []
        position = self._start
        for kind, length, at in self._spans:
            if kind == DATA:
                zero_spans(self._buffer.bytes, position, at, at + length, spans)
            else:
                add_span(spans, kind, length, at)
            position += length
        return spans

    def _write(self, buffer: Buffer, spans: Sequence[Span]) -> None:
        position = self._start
        for kind, length, at in spans:
            if kind == DATA:
                if self._sink is not None:
                    self._sink.write_at(position, buffer.view[at : at + length])
                self._moved.written += length
            elif kind == ZEROS and self._sink is not None:
                self._sink.zeros(position, length)
            position += length

    # ------------------------------------------------------------ damage

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
        guest = self._position
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


def _rows(plan: ReadPlan, first: int, last: int) -> ReadPlan:
    """Runs ``[first, last)`` of ``plan``."""
    rows = slice(first, last)
    return ReadPlan(plan.offset[rows], plan.length[rows], plan.layer[rows], plan.file_offset[rows])


def _is_read(plan: ReadPlan) -> npt.NDArray[np.bool_]:
    """bool[n], which runs take up room in a buffer: data, and zeros so few that they go along."""
    is_read: npt.NDArray[np.bool_] = (plan.layer >= 0) | ((plan.layer == ZEROS) & (plan.length < SMALL_ZEROS))
    return is_read


def _stretches(plan: ReadPlan) -> Iterator[tuple[int, int, bool]]:
    """Rows of ``plan`` as (first, last, are small): neighbours of one kind together."""
    is_small = np.where(plan.layer >= 0, plan.length < HOLE_RUN_MIN, plan.layer != DAMAGED)
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
        guest: the disk's offset of the first of them; cells are aligned in the disk.
    """
    position = begin = start
    shift = guest - start
    kind = DATA
    while position < stop:
        end = min(stop, position + CELL_SIZE - (shift + position) % CELL_SIZE)
        count = end - position
        zeros = _ZERO_CELL if count == CELL_SIZE else _ZERO_CELL[:count]
        # startswith compares in place and stops at the first difference.
        found = ZEROS if data.startswith(zeros, position) else DATA
        if found != kind:
            if begin < position:
                add_span(spans, kind, position - begin, begin)
            begin, kind = position, found
        position = end
    if begin < stop:
        add_span(spans, kind, stop - begin, begin)


def add_span(spans: list[Span], kind: int, length: int, at: int) -> None:
    """Append a span; one of the same kind as the last makes that longer."""
    if spans and spans[-1].kind == kind:
        last = spans.pop()
        length, at = last.length + length, last.at
    spans.append(Span(kind, length, at))


_ZERO_CELL: Final = bytes(CELL_SIZE)

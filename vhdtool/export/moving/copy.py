"""The mover: executes read plans into a sink, digesting on the way.

::

    plans ──► holes of long runs become zeros ──┬──► filled here, buffer by buffer ──► sink
                                                │         └──► consumers, in threads of their own
                                                └──► a crew: filled and digested chunk by chunk ──► sink
                                                          └──► consumers

Gaps, what an increment leaves to its parent, are neither read nor written.  Holes of a source and ranges of
zeros are counted, never touched, never written.

The crew comes where chunks are digested, and all sources are plain files.  What is limited, or goes through
somebody else's hands (a pending log, a packed disk), is read by one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from vhdtool.chain.engine import NO_FILE, Engine, descriptors_of
from vhdtool.export.moving.crew import JOBS_PER_THREAD, TASK_SIZE, Crew, crew_size, tasks
from vhdtool.export.moving.fill import NEVER, DamageSink, Filler
from vhdtool.export.moving.holes import without_holes
from vhdtool.export.moving.pipeline import BUFFER_COUNT, BUFFER_SIZE, Buffer, Consumer, Pipeline
from vhdtool.export.moving.progress import Reporter
from vhdtool.export.moving.spans import DATA, Span
from vhdtool.export.proof.digest import CHUNK_SIZE, ChunkDigester, ChunkSink
from vhdtool.formats.image import Sink
from vhdtool.model.plan import ReadPlan
from vhdtool.model.state import ZEROS, Run
from vhdtool.source import ByteSource

if TYPE_CHECKING:
    from vhdtool.chain.chain import Chain

Damaged = Literal["refuse", "zero"]


@dataclass(slots=True)
class Moved:
    """What was moved, in bytes.

    Attributes:
        read: data taken from the sources.
        written: of those, not zeros.
    """

    read: int = 0
    written: int = 0


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
        """What is to be called when the chunks up to ``position`` have been told of.

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
        chunks: gets the digests of the disk's chunks, of ``chunk_size`` bytes each.
        consumers: get the whole disk in order, each in a thread of its own.
        damaged: "refuse", or "zero": what cannot be read becomes zeros and is told to ``damage``.
        reporter: for progress and for stopping.
        zero_detect: look for zeros in data, which take no space then.
        engine: what reads many small pieces.
        checkpoints: is asked on the way; there must be ``chunks``, or a consumer that tells of them, then.
    """

    def __init__(
        self,
        sources: Sequence[ByteSource],
        sink: GuestSink | None,
        *,
        reporter: Reporter,
        chunks: ChunkSink | None = None,
        chunk_size: int = CHUNK_SIZE,
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
        self._chunks = chunks
        self._chunk_size = chunk_size
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
        self._descriptors = descriptors_of(self._sources)
        # Up to where the disk has been handed on.
        self._position = start
        parts = self._parts(plans, start)
        if self._chunks is not None and self._is_for_crew:
            self._run_crew(parts, self._chunks)
        else:
            self._run_here(parts, start)
        self._reporter.finish(self._moved.read)
        return self._moved

    @property
    def _keeps(self) -> bool:
        """Whether anybody wants more of the disk than its chunks' digests."""
        return self._sink is not None or bool(self._consumers)

    @property
    def _is_for_crew(self) -> bool:
        # Who keeps chunks has several of them in memory.
        fits = not self._keeps or self._chunk_size <= CHUNK_SIZE
        return fits and crew_size() > 1 and NO_FILE not in self._descriptors

    def _parts(self, plans: Iterable[Iterable[Run]], start: int) -> Iterator[ReadPlan]:
        """What is to be read, holes left out."""
        position = start
        for runs in plans:
            plan = runs if isinstance(runs, ReadPlan) else _as_it_is(runs)
            if not len(plan):
                continue
            expected = np.append(position, plan.offset[:-1] + plan.length[:-1])
            if not np.array_equal(plan.offset, expected):
                at = int(expected[np.argmax(plan.offset != expected)])
                raise ValueError(f"the plans do not tile the disk at {at:#x}")
            position = plan.stop
            # Plans of zeros may follow each other for long.
            self._reporter.update(self._moved.read, self._position)
            yield from without_holes(plan, self._sources)

    def _run_here(self, parts: Iterable[ReadPlan], start: int) -> None:
        consumers = list(self._consumers)
        if self._chunks is not None:
            consumers.insert(0, ChunkDigester(self._chunks, self._chunk_size, start))
        filler = self._new_filler(self._damage, self._reporter.check)
        with Pipeline(consumers, BUFFER_COUNT if consumers else 1) as pipeline:
            note = pipeline.call
            buffer = pipeline.acquire(self._reporter.check)
            for part in parts:
                filler.begin(part)
                is_left = True
                while is_left:
                    is_left = filler.fill(buffer, BUFFER_SIZE, self._edge(filler.position))
                    if is_left or self._is_due(filler.position):
                        self._flush(pipeline, filler, buffer)
                        buffer = pipeline.acquire(self._reporter.check)
                        self._note(note)
            self._flush(pipeline, filler, buffer)
            pipeline.finish(self._reporter.check)

    def _flush(self, pipeline: Pipeline, filler: Filler, buffer: Buffer) -> None:
        """Hand on what was gathered."""
        spans = filler.taken()
        filler.rewind()
        self._moved.read = filler.read
        self._hand_on(pipeline, buffer, spans)

    def _run_crew(self, parts: Iterable[ReadPlan], chunks: ChunkSink) -> None:
        chunk_size, keeps = self._chunk_size, self._keeps
        task_size = chunk_size if keeps else max(chunk_size, TASK_SIZE)

        def new_filler(damage: DamageSink, check: Callable[[], None]) -> Filler:
            return self._new_filler(None if self._damage is None else damage, check)

        count = JOBS_PER_THREAD * crew_size() + 1
        work = tasks(parts, chunk_size=chunk_size, size=task_size, edge=self._edge)
        with ExitStack() as stack:
            pipeline = stack.enter_context(
                Pipeline(self._consumers, count, task_size if keeps else BUFFER_SIZE)
            )
            crew = Crew(
                new_filler, pipeline.acquire, self._reporter.check, chunk_size=chunk_size, keeps=keeps
            )
            for done in stack.enter_context(closing(crew.run(work))):
                for row in done.damage:
                    assert self._damage is not None
                    self._damage.add(*row)
                self._moved.read += done.read
                self._hand_on(pipeline, done.buffer, done.spans)
                self._position = done.stop  # where nothing is kept, there are no spans
                for digest, number in done.chunks:
                    chunks.add(digest, number)
                self._note(_at_once)
            pipeline.finish(self._reporter.check)

    def _new_filler(self, damage: DamageSink | None, check: Callable[[], None]) -> Filler:
        return Filler(
            self._sources,
            self._descriptors,
            engine=self._engine,
            damage=damage,
            check=check,
            zero_detect=self._zero_detect,
        )

    # ------------------------------------------------------------ handing on

    def _hand_on(self, pipeline: Pipeline, buffer: Buffer, spans: Sequence[Span]) -> None:
        """Let consumers and sink have the disk's next bytes."""
        pipeline.submit(buffer, spans)
        try:
            self._write(buffer, spans)
        finally:
            pipeline.release(buffer)
        self._reporter.update(self._moved.read, self._position)

    def _write(self, buffer: Buffer, spans: Sequence[Span]) -> None:
        sink, position, written = self._sink, self._position, 0
        for kind, length, at in spans:
            if kind == DATA:
                if sink is not None:
                    sink.write_at(position, buffer.view[at : at + length])
                written += length
            elif kind == ZEROS and sink is not None:
                sink.zeros(position, length)
            position += length
        self._position = position
        self._moved.written += written

    def _edge(self, position: int) -> int:
        """Where the next checkpoint behind ``position`` can be, if one is waiting."""
        if self._checkpoints is None or not self._checkpoints.is_waiting:
            return NEVER
        size = self._checkpoints.size
        return (position // size + 1) * size

    def _note(self, call: Callable[[Callable[[], None]], None]) -> None:
        """Note how far the job is, if it can go on from here and it is time to."""
        if self._checkpoints is not None and self._is_due(self._position):
            call(self._checkpoints.due(self._position, self._moved))

    def _is_due(self, position: int) -> bool:
        if self._checkpoints is None or not position or position % self._checkpoints.size:
            return False
        return self._checkpoints.is_waiting


def _at_once(function: Callable[[], None]) -> None:
    function()


def _as_it_is(runs: Iterable[Run]) -> ReadPlan:
    """A plan of these runs, none of them merged with its neighbour."""
    table = np.array(list(runs), np.int64).reshape(-1, 4)
    return ReadPlan(table[:, 0], table[:, 1], table[:, 2].astype(np.int16), table[:, 3])

"""Who reads fastest, over and over: contestants at points in time, rounds, and medians of ratios.

Machines wander: a figure of this second says little beside one of the last.  So every round visits each
point and there each contestant, in an order that alternates; what is compared is compared within a round,
and the median over the rounds is what counts.  Everything that is read is compared with what was written,
by checksum and outside the clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from zlib import crc32

import numpy as np
import numpy.typing as npt

from vhdtool.chain.chain import Chain
from vhdtool.chain.discover import open_chain
from vhdtool.chain.engine import Machine
from vhdtool.chain.naive import NaiveWalk
from vhdtool.model.identity import ImageFormat
from vhdtool.simulate.cost import LookupCost, survey_disk
from vhdtool.simulate.figures import DepthRow, LookupTime, Probes
from vhdtool.simulate.libvhdi import Libvhdi, LibvhdiError
from vhdtool.simulate.lookups import lookups_of
from vhdtool.simulate.metadata import metadata_bytes
from vhdtool.simulate.synthetic import Recipe
from vhdtool.source import FileSource

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
# Told what is being done, in a few words.
Tell = Callable[[str], None]

READ_SIZE: Final = 4096
PIECE_SIZE: Final = 1 << 20

# Contestants.
WALK: Final = "walk"
MAP: Final = "map"
READS: Final = "reads"
FLAT_READS: Final = "flat reads"
IN_ORDER: Final = "in order"
FLAT_IN_ORDER: Final = "flat in order"
LIBVHDI_READS: Final = "libvhdi reads"
LIBVHDI_IN_ORDER: Final = "libvhdi in order"

_LOOKUPS: Final = 100_000
_PIECES: Final = 64
# So many rows stay in the cache of a processor; more of them measure how memory is handed out.
_READS_AT_ONCE: Final = 1024
# A contestant that is slow does less of the same in each round: rates are what is compared.
_SECONDS_A_TURN: Final = 0.1
_TRIED_FIRST: Final = 8
_NAIVE_BYTES_MAX: Final = 1 << 30
_NAIVE_LENGTH_MIN: Final = 1 << 30
_NS: Final = 1e9


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What is looked up and read at every depth.

    Attributes:
        lookups, reads: int64[n], guest bytes, multiples of 4096, where the base holds data.
        pieces: int64[n], where the pieces of ``piece_size`` bytes begin that are read one after the other.
    """

    lookups: Int64s
    reads: Int64s
    pieces: Int64s
    piece_size: int

    @classmethod
    def of(cls, recipe: Recipe, reads: int) -> Sample:
        """The same for the same recipe and number of reads."""
        slots = recipe.allocated // READ_SIZE
        piece_size = min(PIECE_SIZE, recipe.stretch)
        pieces = min(_PIECES, recipe.allocated // piece_size)
        return cls(
            recipe.guest_offsets(recipe.draws(0, _LOOKUPS, slots) * READ_SIZE),
            recipe.guest_offsets(recipe.draws(1, reads, slots) * READ_SIZE),
            recipe.guest_offsets(np.arange(pieces) * piece_size),
            piece_size,
        )


@dataclass(frozen=True, slots=True)
class Truth:
    """CRC-32 of each read and each piece, of what was written."""

    reads: tuple[int, ...]
    pieces: tuple[int, ...]


# ------------------------------------------------------------ readers


@dataclass(frozen=True, slots=True)
class Done:
    """What a reader did in its turn: seconds, and the CRC-32 of everything it read."""

    seconds: float
    sums: Sequence[int]


# Reads from each guest byte; the length is the same for all.
Reader = Callable[[Int64s], Done]


def _in_rows(read: Callable[[Int64s], Bytes]) -> Reader:
    """A reader that answers with an array, a row for each offset."""

    def run(offsets: Int64s) -> Done:
        seconds, sums = 0.0, []
        for at in range(0, len(offsets), _READS_AT_ONCE):
            wanted = offsets[at : at + _READS_AT_ONCE]
            began = time.perf_counter()
            rows = read(wanted)
            seconds += time.perf_counter() - began
            sums += [crc32(row) for row in rows]
        return Done(seconds, sums)

    return run


def _in_pieces(read_into: Callable[[int, memoryview], object], length: int) -> Reader:
    """A reader that fills one buffer again and again."""
    buffer = memoryview(bytearray(length))

    def run(offsets: Int64s) -> Done:
        seconds, sums = 0.0, []
        for offset in offsets.tolist():
            began = time.perf_counter()
            read_into(offset, buffer)
            seconds += time.perf_counter() - began
            sums.append(crc32(buffer))
        return Done(seconds, sums)

    return run


def _of_flat(
    source: FileSource, machine: Machine
) -> tuple[Callable[[Int64s], Bytes], Callable[[int, memoryview], None]]:
    """The limit: positioned reads of a flat file and nothing else, by the same engine."""

    def read_into(offset: int, buffer: memoryview) -> None:
        source.read_into(offset, buffer, field="flat disk")

    def read_rows(offsets: Int64s) -> Bytes:
        rows = np.empty((len(offsets), READ_SIZE), np.uint8)
        descriptor = source.descriptor
        if descriptor is None:
            for offset, row in zip(offsets.tolist(), rows):
                read_into(offset, row.data)
            return rows
        counts = np.full(len(offsets), READ_SIZE, np.int64)
        starts = np.arange(len(offsets), dtype=np.int64) * READ_SIZE
        descriptors = np.full(len(offsets), descriptor, np.int32)
        done = machine.read_pieces(descriptors, offsets, counts, starts, rows.reshape(-1))
        for i in np.flatnonzero(~done).tolist():  # who reads them again says why they failed
            read_into(int(offsets[i]), rows[i].data)
        return rows

    return read_rows, read_into


def _of_chain(chain: Chain) -> Callable[[int, memoryview], None]:
    disk = chain.open()

    def read_into(offset: int, buffer: memoryview) -> None:
        disk.seek(offset)
        assert disk.readinto(buffer) == len(buffer)

    return read_into


def _of_libvhdi(other: Libvhdi, layer: int, length: int) -> Reader:
    def run(offsets: Int64s) -> Done:
        answer = other.read(layer, offsets.tolist(), length)
        return Done(answer.seconds, answer.checksums)

    return run


# ------------------------------------------------------------ the contest


@dataclass(slots=True)
class Entry:
    """One contestant at one point: how it reads, how much in a turn, and what each turn took.

    Attributes:
        turn: does the job once; seconds for one lookup, read or piece.
        taken: seconds for one, by round.
    """

    turn: Callable[[], float]
    taken: list[float] = field(default_factory=list)

    def median(self) -> float:
        """Seconds for one."""
        return statistics.median(self.taken)


class Point:
    """One depth of one format: the chain up to there, and who competes on it.

    Attributes:
        entries: by name, in the order in which they take their turns.
    """

    def __init__(
        self, image_format: ImageFormat, chain: Chain, machine: Machine, sample: Sample, truth: Truth
    ) -> None:
        self.format = image_format
        self.chain = chain
        self.truth = truth
        self.entries: dict[str, Entry] = {}
        self._machine = machine
        self._sample = sample
        self._resolved = chain.resolved(machine.name)

    @property
    def depth(self) -> int:
        """Differencing layers."""
        return len(self.chain.layers) - 1

    def __str__(self) -> str:
        return f"{self.format.upper()} at depth {self.depth}"

    def enter(self, name: str, reader: Reader, offsets: Int64s, truth: Sequence[int]) -> None:
        """Let ``reader`` compete, after it has shown that it reads what was written.

        Args:
            truth: the CRC-32 of each read; may be longer than ``offsets``.

        Raises:
            WrongBytesError: it does not; the same in every later turn.
        """
        expected = list(truth[: len(offsets)])

        def turn() -> float:
            done = reader(offsets)
            if list(done.sums) != expected:
                raise WrongBytesError(f"{name}: other bytes were read of the {self} than were written")
            return done.seconds / len(offsets)

        turn()
        self.entries[name] = Entry(turn)

    def enter_lookups(self) -> None:
        """Let the naive walk and the resolved map compete; they must give the same answers.

        Raises:
            WrongBytesError: they do not.
        """
        offsets = self._sample.lookups
        walk = _naive_walk(self.chain, int(offsets.min()), self._machine)
        walked = offsets[offsets < walk.stop]
        layer, place, _ = walk.lookup(walked)
        also_layer, also_place = self._resolved.lookup(walked)
        if not np.array_equal(layer, also_layer) or not np.array_equal(place, also_place):
            raise WrongBytesError(f"the map of the {self} gives other answers than the walk")
        some = _affordable(lambda tried: _seconds(walk.lookup, tried), walked)
        self.entries[WALK] = Entry(lambda: _seconds(walk.lookup, some) / len(some))
        self.entries[MAP] = Entry(lambda: _seconds_often(self._resolved.lookup, offsets))

    def row(self) -> DepthRow:
        """The medians, and what is counted."""
        disk = survey_disk(self.chain)
        images, megabytes = self.chain.images, self._sample.piece_size / 1e6
        rate, libvhdi_in_order = self._rate, self._rate(LIBVHDI_IN_ORDER)
        return DepthRow(
            format=str(self.format),
            depth=self.depth,
            probes=self._probes(),
            runs_per_mib=disk.fragmentation.runs_per_mib,
            files_per_mib=disk.fragmentation.files_per_mib,
            mean_run=disk.fragmentation.mean_run,
            metadata_bytes=metadata_bytes(images, self._resolved, disk.holdings, self._machine.name),
            ns_per_lookup=LookupTime(self.entries[WALK].median() * _NS, self.entries[MAP].median() * _NS),
            reads_per_s=1 / self.entries[READS].median(),
            sequential_mb_per_s=megabytes / self.entries[IN_ORDER].median(),
            reads_relative_to_flat=self._relative(READS, FLAT_READS),
            sequential_relative_to_flat=self._relative(IN_ORDER, FLAT_IN_ORDER),
            libvhdi_reads_per_s=rate(LIBVHDI_READS),
            libvhdi_sequential_mb_per_s=None if libvhdi_in_order is None else libvhdi_in_order * megabytes,
        )

    def _rate(self, name: str) -> float | None:
        """How many a second; None for who did not compete to the end."""
        return 1 / self.entries[name].median() if name in self.entries else None

    def _relative(self, name: str, limit: str) -> float:
        """The rate of one over that of another, within each round."""
        pairs = zip(self.entries[name].taken, self.entries[limit].taken)
        return statistics.median(theirs / ours for ours, theirs in pairs)

    def _probes(self) -> Probes:
        cost = LookupCost(len(self.chain.layers))
        offsets = self._sample.reads
        lengths = np.full(len(offsets), READ_SIZE, np.int64)
        cost.begin(lengths)
        for rows in lookups_of(self._resolved, offsets, lengths):
            cost.add(rows)
        return cost.probes()


class WrongBytesError(RuntimeError):
    """A reader gave other bytes than were written: libvhdi is left out then, ours is a fault of ours."""


class Contest:
    """All points, and the rounds in which they are visited.

    Args:
        flat: the disk as it is at the greatest depth.
        truth: of each depth that is to be measured.
        stack: closes what is opened here.

    Attributes:
        points: in the order in which they were entered.
        notes: on what was left out.
        libvhdi: its version; empty where it does not take part.
    """

    def __init__(
        self,
        machine: Machine,
        sample: Sample,
        flat: FileSource,
        truth: Mapping[int, Truth],
        stack: ExitStack,
        tell: Tell,
    ) -> None:
        self._machine = machine
        self._sample = sample
        self._flat = flat
        self._truth = truth
        self._stack = stack
        self._tell = tell
        self.points: list[Point] = []
        self.notes: list[str] = []
        self.libvhdi = ""

    def enter_chain(self, image_format: ImageFormat, paths: Sequence[Path], python: str | None) -> None:
        """Enter each depth of a chain that lies at ``paths``, from the base on.

        Args:
            python: an interpreter with libvhdi; None leaves that out.
        """
        whole = self._stack.enter_context(open_chain(paths[-1]))
        whole.require_sound()
        other = None if python is None else self._start_libvhdi(python, paths)
        for depth, truth in sorted(self._truth.items()):
            above = len(paths) - 1 - depth
            point = Point(image_format, Chain(whole.layers[above:]), self._machine, self._sample, truth)
            self._tell(f"warming up: {point}")
            self._enter(point)
            if other is not None:
                self._enter_libvhdi(point, other, above)
            self.points.append(point)

    def run(self, rounds: int) -> None:
        """All rounds: every second one from the last point to the first, and there likewise."""
        for number in range(rounds):
            direction = 1 if number % 2 == 0 else -1
            for point in self.points[::direction]:
                self._tell(f"measuring: round {number + 1} of {rounds}, {point}")
                for name, entry in list(point.entries.items())[::direction]:
                    try:
                        entry.taken.append(entry.turn())
                    except LibvhdiError as error:
                        del point.entries[name]
                        self._note(str(error))

    def _enter(self, point: Point) -> None:
        """Ours and the limits, neighbours in each round, with the same to read."""
        sample, truth, chain = self._sample, point.truth, point.chain
        limit = self._truth[max(self._truth)]
        flat_rows, flat_into = _of_flat(self._flat, self._machine)
        point.enter_lookups()
        ours = _in_rows(lambda offsets: chain.read_many(offsets, READ_SIZE, engine=self._machine.name))
        offsets = _affordable_warm(ours, sample.reads)
        point.enter(READS, ours, offsets, truth.reads)
        point.enter(FLAT_READS, _in_rows(flat_rows), offsets, limit.reads)
        ours = _in_pieces(_of_chain(chain), sample.piece_size)
        offsets = _affordable_warm(ours, sample.pieces)
        point.enter(IN_ORDER, ours, offsets, truth.pieces)
        point.enter(FLAT_IN_ORDER, _in_pieces(flat_into, sample.piece_size), offsets, limit.pieces)

    def _enter_libvhdi(self, point: Point, other: Libvhdi, layer: int) -> None:
        """The other program; what it cannot, or does wrong, is noted and left out."""
        sample, truth = self._sample, point.truth
        for name, offsets, length, sums in (
            (LIBVHDI_READS, sample.reads, READ_SIZE, truth.reads),
            (LIBVHDI_IN_ORDER, sample.pieces, sample.piece_size, truth.pieces),
        ):
            reader = _of_libvhdi(other, layer, length)
            try:
                point.enter(name, reader, _affordable_reads(reader, offsets), sums)
            except WrongBytesError as error:
                self._note(f"{error}; not measured")
            except LibvhdiError as error:
                self._note(str(error))

    def _start_libvhdi(self, python: str, paths: Sequence[Path]) -> Libvhdi | None:
        """A program with the chain open in it."""
        try:
            other = self._stack.enter_context(Libvhdi(python))
            other.open(paths[::-1])
        except LibvhdiError as error:
            self._note(str(error))
            return None
        self.libvhdi = other.version
        return other

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _naive_walk(chain: Chain, start: int, machine: Machine) -> NaiveWalk:
    """All tables from the block of ``start`` on; of a huge disk as far as memory allows."""
    start -= start % chain.leaf.geometry.block_size
    length = chain.virtual_size - start
    while length > _NAIVE_LENGTH_MIN and NaiveWalk.bytes_at_most(chain.images, length) > _NAIVE_BYTES_MAX:
        length //= 2
    return NaiveWalk(chain.images, start, start + length, engine=machine.name)


def _affordable(seconds_of: Callable[[Int64s], float], offsets: Int64s) -> Int64s:
    """As many of ``offsets`` as fit into a turn.

    Tried with ever more of them, and never with the same: first calls are slow, second ones find everything
    in a cache.
    """
    first, count = 0, _TRIED_FIRST
    while True:
        tried = offsets[first : first + count]
        seconds = seconds_of(tried)
        first += len(tried)
        if seconds > _SECONDS_A_TURN / 4 or first == len(offsets):
            affordable = int(_SECONDS_A_TURN / max(seconds, 1e-9) * len(tried))
            return offsets[: max(1, affordable)]
        count *= 4


def _affordable_reads(reader: Reader, offsets: Int64s) -> Int64s:
    return _affordable(lambda tried: reader(tried).seconds, offsets)


def _affordable_warm(reader: Reader, offsets: Int64s) -> Int64s:
    """The same of ours, which resolve what they are first asked for and are fast from then on."""
    reader(offsets)
    return _affordable_reads(reader, offsets)


def _seconds(look_up: Callable[[Int64s], object], offsets: Int64s) -> float:
    began = time.perf_counter()
    look_up(offsets)
    return time.perf_counter() - began


def _seconds_often(look_up: Callable[[Int64s], object], offsets: Int64s) -> float:
    """Seconds for one lookup, where all of them together are over before a clock can be trusted."""
    took, count = 0.0, 0
    while took < _SECONDS_A_TURN / 10:
        took += _seconds(look_up, offsets)
        count += len(offsets)
    return took / count

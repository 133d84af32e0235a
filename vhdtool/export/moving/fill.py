"""Runs of a disk, read into buffers one behind the other.

::

    plan ──► gathered: plain files, zeros, gaps ──► spans ──► zeros among the data found ──► spans
                 │                        ▲
                 └── anything else ───────┘     sources without a file, damage, reading that fails

Small runs that lie side by side in the disk become one span of data, wherever they come from.  A range of
zeros costs the same whatever its length.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from vhdtool.chain.engine import Engine, Int32s, Machine, machine_for
from vhdtool.chain.reader import require_readable
from vhdtool.errors import CorruptError, Finding, InputError, ReadError, hexadecimal
from vhdtool.export.containers.target import ZERO_PIECE
from vhdtool.export.moving.pipeline import Buffer
from vhdtool.export.moving.spans import CELL_SIZE, DATA, Span, add_span, zero_spans
from vhdtool.model.plan import ReadPlan
from vhdtool.model.state import DAMAGED, ZEROS, Run
from vhdtool.source import ByteSource

# Zeros shorter than this between data are copied along: no file system makes smaller holes.
SMALL_ZEROS: Final = 4 << 10
# So many voids and data in turn are handed on, however few the data are.
SPANS_MAX: Final = 1 << 12
# What cannot be read is narrowed down to pieces of this size, aligned in the file.
DAMAGE_GRAIN: Final = 4 << 10
NEVER: Final = (1 << 63) - 1
# So many runs become Python's numbers at once.
_ROWS: Final = 1 << 10
_DAMAGED_ENTRY: Final = "the table entry of this range breaks a rule of its format"

_preadv: Any = getattr(os, "preadv", None)


class DamageSink(Protocol):
    """Is told of guest ranges that became zeros because they could not be read."""

    def add(self, start: int, length: int, reason: str) -> None:
        """Guest bytes [start, start + length)."""
        ...


class Filler:
    """Reads plans into a buffer.  One thread's.

    Args:
        sources: the layers' bytes, indexed by a run's ``layer``.
        descriptors: int32[layers], of those that are plain files.
        damage: is told of what could not be read, which becomes zeros; None refuses it.
        check: called while damage is narrowed down; may raise.
        zero_detect: look for zeros in data.

    Attributes:
        filled: bytes in the buffer.
        position: guest byte that comes next.
        read: bytes of data that came from the sources so far.
    """

    def __init__(
        self,
        sources: Sequence[ByteSource],
        descriptors: Int32s,
        *,
        engine: Engine,
        damage: DamageSink | None,
        check: Callable[[], None],
        zero_detect: bool = True,
    ) -> None:
        self._sources = sources
        self._descriptors = descriptors
        self._numbers: list[int] = descriptors.tolist()
        self._engine = engine
        self._damage = damage
        self._check = check
        self._zero_detect = zero_detect
        self._spans: list[Span] = []
        self.filled = self.position = self.read = 0

    def begin(self, plan: ReadPlan) -> None:
        """Go on with ``plan``, whose first byte is ``position``, or anywhere when the buffer is empty."""
        if not self._spans:
            self.position = plan.start
        self._plan = plan
        self._row = self._within = 0
        self._loaded = range(0)
        machine = machine_for(self._engine, reads=len(plan))
        self._gather = self._gather_here if machine.gather is None else self._gather_by(machine)

    def fill(self, buffer: Buffer, full: int, stop: int = NEVER) -> bool:
        """Read until ``full`` bytes are there and more are to come, up to ``stop``, or to the plan's end.

        Returns:
            Whether some of the plan is left: then somebody has to take what is there.

        Raises:
            CorruptError, ReadError: a range cannot be read (and nobody is told of damage).
        """
        while True:
            before = self.position
            self._gather(buffer, full, stop)
            if self._row == len(self._plan):
                return False
            if self.filled == full or self.position >= stop or len(self._spans) >= SPANS_MAX:
                return True
            if self.position == before:
                self._ask(buffer, full, stop)

    def taken(self) -> list[Span]:
        """What came since the last call, with zeros among the data found; it stays where it is."""
        spans, self._spans = self._spans, []
        return spans

    def rewind(self) -> None:
        """What comes next goes to the beginning of a buffer."""
        self.filled = 0

    # ------------------------------------------------------------ gathering

    def _gather_here(self, buffer: Buffer, full: int, stop: int) -> None:
        """What the kernel ``gather`` does, as a loop in Python."""
        view, descriptors, spans = buffer.view, self._numbers, self._spans
        row, within, filled, position = self._row, self._within, self.filled, self.position
        row_count, zeroed, first = len(self._plan), 0, filled
        # Data that are not among the spans yet.
        data_from = filled
        try:
            while row < row_count and position < stop and len(spans) < SPANS_MAX:
                if row not in self._loaded:
                    self._load(row)
                at = row - self._loaded.start
                whole, layer = self._lengths[at], self._layers[at]
                length = min(whole - within, stop - position)
                if layer >= 0:
                    length = min(length, full - filled)
                    descriptor = descriptors[layer]
                    if descriptor < 0 or not length:
                        break
                    piece = [view[filled : filled + length]]
                    if _preadv(descriptor, piece, self._places[at] + within) != length:
                        break
                    filled += length
                elif layer == ZEROS and whole < SMALL_ZEROS:
                    length = min(length, full - filled)
                    if not length:
                        break
                    view[filled : filled + length] = ZERO_PIECE[:length]
                    filled += length
                    zeroed += length
                elif layer == DAMAGED:
                    break
                else:
                    if data_from < filled:
                        self._add_data(buffer, position, data_from, filled)
                        data_from = filled
                    add_span(spans, layer, length, filled)
                position += length
                within += length
                if within == whole:
                    row += 1
                    within = 0
        except OSError:  # who asks again, in the place where errors are told, will hear of it
            pass
        if data_from < filled:
            self._add_data(buffer, position, data_from, filled)
        self._row, self._within, self.filled, self.position = row, within, filled, position
        self.read += filled - first - zeroed

    def _load(self, row: int) -> None:
        part = slice(row, row + _ROWS)
        plan = self._plan
        self._lengths = plan.length[part].tolist()
        self._layers = plan.layer[part].tolist()
        self._places = plan.file_offset[part].tolist()
        self._loaded = range(row, row + len(self._lengths))

    def _gather_by(self, machine: Machine) -> Callable[[Buffer, int, int], None]:
        """The same, done by kernels."""
        plan, kernel, zeros_found = self._plan, machine.gather, machine.zeros_found
        assert kernel is not None
        assert zeros_found is not None
        table = np.empty((SPANS_MAX, 3), np.int64)

        def gather(buffer: Buffer, full: int, stop: int) -> None:
            data = np.frombuffer(buffer.bytes, np.uint8)
            spans = table[: max(0, SPANS_MAX - len(self._spans))]
            state = np.array([self._row, self._within, self.filled, self.position, 0, 0])
            columns = (plan.length, plan.layer, plan.file_offset, self._descriptors)
            before, filled = self.position, self.filled
            kernel(*columns, state, full, stop, SMALL_ZEROS, data, spans)
            self._row, self._within, self.filled, self.position, count, read = state.tolist()
            self.read += read
            if self._zero_detect and self.filled > filled:
                found = np.empty((2 * count + (self.filled - filled) // CELL_SIZE, 3), np.int64)
                words = data.view(np.uint64)
                count = zeros_found(spans, count, before, CELL_SIZE, data, words, found)
                spans = found
            for span in spans[:count].tolist():
                add_span(self._spans, *span)

        return gather

    def _add_data(self, buffer: Buffer, stop: int, first: int, last: int) -> None:
        """Bytes [first, last) of the buffer are those of the disk in front of ``stop``."""
        if self._zero_detect:
            zero_spans(buffer.bytes, stop - (last - first), first, last, self._spans)
        else:
            add_span(self._spans, DATA, last - first, first)

    def _pass(self, length: int) -> None:
        """The next bytes of the run at hand are there, or counted."""
        self.position += length
        self._within += length
        if self._within == self._plan.length[self._row]:
            self._row += 1
            self._within = 0

    # ------------------------------------------------------------ everything else

    def _ask(self, buffer: Buffer, full: int, stop: int) -> None:
        """The run at hand, or what of it there is room for: no plain file, reading fails, or damaged."""
        run = self._plan[self._row]
        length = min(run.length - self._within, stop - self.position)
        if run.layer == DAMAGED:
            self._damaged(run, length)
            return
        length = min(length, full - self.filled)
        source, place = self._sources[run.layer], run.file_offset + self._within
        view = buffer.view[self.filled : self.filled + length]
        try:
            source.read_into(place, view, field="payload")
        except (ReadError, CorruptError) as error:
            self._rescue(source, place, view, error)
        self.read += length
        self.filled += length
        self._pass(length)
        self._add_data(buffer, self.position, self.filled - length, self.filled)

    def _damaged(self, run: Run, length: int) -> None:
        if self._damage is None:
            require_readable(run, self._sources[0].name)
            return
        self._damage.add(self.position, length, _DAMAGED_ENTRY)
        add_span(self._spans, ZEROS, length, self.filled)
        self._pass(length)

    def _rescue(
        self, source: ByteSource, file_offset: int, view: memoryview, error: ReadError | CorruptError
    ) -> None:
        """Read what can be read of ``view``'s range, piece by piece; the rest becomes zeros."""
        guest = self.position
        if self._damage is None:
            raise with_guest_range(error, guest, len(view)) from error
        done = 0
        while done < len(view):
            self._check()
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


def takes_room(plan: ReadPlan) -> npt.NDArray[np.bool_]:
    """bool[n], which runs take up room in a buffer: data, and zeros so few that they go along."""
    is_read: npt.NDArray[np.bool_] = (plan.layer >= 0) | ((plan.layer == ZEROS) & (plan.length < SMALL_ZEROS))
    return is_read


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

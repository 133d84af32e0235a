"""Plans become bytes: reads through a chain, and the chain as a file object."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from vhdtool.chain.walk import walk
from vhdtool.errors import CorruptError, Finding, Location, Severity, hexadecimal
from vhdtool.model.state import DAMAGED, ZEROS, Run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vhdtool.chain.chain import Chain
    from vhdtool.chain.engine import Engine
    from vhdtool.source import ByteSource

# A read of this many bytes or fewer is resolved by walking, a longer one by flattening its windows.
WALK_BYTES_MAX: Final = 1 << 20
# A stretch of the disk in which a reader walked to so many runs is resolved.
RUNS_WALKED_MAX: Final = 16
_SEGMENTS_KEPT: Final = 1 << 16
_RUNS_KEPT: Final = 1 << 17


def read_into(chain: Chain, offset: int, buffer: memoryview) -> None:
    """Fill ``buffer`` with the virtual disk's bytes from ``offset`` on; the range is inside the disk.

    Raises:
        FormatError, ChainError, ReadError: as ``Chain.read``.
    """
    chain.require_sound()
    stop = offset + len(buffer)
    execute(chain, _runs(chain, offset, stop), offset, buffer)


def _runs(chain: Chain, start: int, stop: int) -> Iterator[Run]:
    """Short ranges are walked, long ones flattened: each where it is the faster one."""
    if stop - start <= WALK_BYTES_MAX:
        yield from walk(chain.images, start, stop)
        return
    for plan in chain.windows(start, stop):
        yield from plan


def execute(chain: Chain, runs: Iterable[Run], offset: int, buffer: memoryview) -> None:
    """Read each of ``runs`` to its place in ``buffer``, whose first byte is guest byte ``offset``."""
    for run in runs:
        part = buffer[run.offset - offset : run.offset - offset + run.length]
        require_readable(run, str(chain.layers[0].path))
        if run.layer == ZEROS:
            part[:] = bytes(run.length)
        else:
            source = chain.layers[run.layer].image.source
            source.read_into(run.file_offset, part, field=payload_field(run))


def payload_field(run: Run) -> str:
    """What an error calls the bytes of ``run``."""
    return f"payload of guest offset {run.offset:#x}"


def require_readable(run: Run, leaf: str) -> None:
    """Refuse a run that no layer can give.

    Raises:
        CorruptError: it is ``DAMAGED``; the error names the range of the disk.
    """
    if run.layer == DAMAGED:
        guest = f"{hexadecimal(run.offset)} to {hexadecimal(run.offset + run.length)}"
        what = (
            f"guest bytes {guest} cannot be read: the table entry of this range breaks a rule of its format"
        )
        location = Location(leaf, None, "virtual disk")
        raise CorruptError(Finding("chain.damaged_range", Severity.ERROR, location, what))


def read_many(
    chain: Chain,
    offsets: npt.ArrayLike,
    length: int,
    out: npt.NDArray[np.uint8] | None = None,
    engine: Engine = "auto",
) -> npt.NDArray[np.uint8]:
    """As ``Chain.read_many``: looked up together, then read piece by piece, in the order of ``offsets``."""
    import numpy as np

    from vhdtool.chain.engine import NO_FILE, ZERO_FILL, checked_offsets, descriptors_of, machine_for

    wanted = checked_offsets(offsets)
    if length < 0 or (len(wanted) and not 0 <= wanted.min() <= wanted.max() <= chain.virtual_size - length):
        raise ValueError(f"a range of {length} bytes is not inside the disk of {chain.virtual_size} bytes")
    rows = np.empty((len(wanted), length), np.uint8) if out is None else out
    if rows.shape != (len(wanted), length) or rows.dtype != np.uint8 or not rows.flags.c_contiguous:
        raise ValueError(f"out is no contiguous array of bytes, {len(wanted)} by {length}")
    # One more for DAMAGED and one for ZEROS, which index from the end.
    files = descriptors_of([image.source for image in chain.images])
    descriptors = np.append(files, np.array([NO_FILE, ZERO_FILL], np.int32))
    resolved = chain.resolved(engine)
    machine = machine_for(engine, reads=len(wanted))
    todo, done = np.arange(len(wanted)), np.zeros(len(wanted), np.int64)
    while length and len(todo):
        position = wanted[todo] + done[todo]
        runs = resolved.runs_at(position)
        count = np.minimum(runs.stop - position, length - done[todo])
        start = todo * length + done[todo]
        whole = machine.read_pieces(descriptors[runs.layer], runs.file_offset, count, start, rows.reshape(-1))
        # What could not be read so is read where errors are told, or where a log lies over the file.
        for i in np.flatnonzero(~whole).tolist():
            view = memoryview(rows[todo[i]])[int(done[todo[i]]) :][: int(count[i])]
            read_into(chain, int(position[i]), view)
        done[todo] += count
        todo = todo[done[todo] < length]
    return rows


class _Cell(NamedTuple):
    """The runs of one cell, for reads that are asked for one by one.

    Attributes:
        starts: guest bytes where runs begin, ascending, then the cell's end.
        layers: of each run, as in a plan.
        shifts: of each run that a layer holds, file offset less guest offset.
    """

    starts: list[int]
    layers: list[int]
    shifts: list[int]

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """Those of guest range ``[start, stop)``, inside the cell."""
        i = bisect_right(self.starts, start) - 1
        while start < stop:
            end = min(stop, self.starts[i + 1])
            layer = self.layers[i]
            yield Run(start, end - start, layer, -1 if layer < 0 else start + self.shifts[i])
            start = end
            i += 1


def _read_plain(source: ByteSource, offset: int, size: int) -> bytes | None:
    """Bytes of a plain file; None where it is none, or reading fails: who asks again will hear of it."""
    descriptor = source.descriptor
    if descriptor is None:
        return None
    try:
        data = os.pread(descriptor, size, offset)
    except OSError:
        return None
    return data if len(data) == size else None


class ChainReader(io.RawIOBase):
    """A chain's virtual disk as a read-only, seekable binary file.

    Where it is read again and again it looks up a resolved map, in a time that does not know how deep the
    chain is; the first reads of a stretch walk, because few reads are not worth resolving it.

    Safe to read from one thread at a time, like every file object; make one for each thread.
    """

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self._chain = chain
        self._size = chain.virtual_size
        self._position = 0
        self.name = str(chain.layers[0].path)
        self._sources = [image.source for image in chain.images]
        self._images = chain.images
        self._map = chain.resolved()
        self._segment_size = self._map.segment_size
        self._cell_size = min(image.geometry.block_size for image in chain.images)
        self._cell_shift = self._cell_size.bit_length() - 1
        self._cells: dict[int, _Cell] = {}
        self._runs_kept = 0
        # To how many runs reads walked, by segment of the map.
        self._walked: Counter[int] = Counter()

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Guest byte that the next read begins at."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a guest byte; past the end is allowed, as in files."""
        self._require_open()
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            offset += self._size
        elif whence != os.SEEK_SET:
            raise ValueError(f"invalid whence {whence}")
        if offset < 0:
            raise ValueError(f"negative seek position {offset}")
        self._position = offset
        return offset

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes, to the disk's end when negative or None; short only at that end."""
        self._require_open()
        start = self._position
        left = max(0, self._size - start)
        if size is None or size < 0 or size > left:
            size = left
        cell = self._cells.get(start >> self._cell_shift)
        if cell is not None:
            # What this is for: a small read inside one run costs hardly more than the read of its file.
            i = bisect_right(cell.starts, start) - 1
            if start + size <= cell.starts[i + 1]:
                layer = cell.layers[i]
                data = None
                if layer >= 0:
                    data = _read_plain(self._sources[layer], start + cell.shifts[i], size)
                elif layer == ZEROS:
                    data = bytes(size)
                if data is not None:
                    self._position = start + size
                    return data
        self._chain.require_sound()
        # Joined once: a buffer to read into would have to be cleared before and copied after.
        data = b"".join(self._pieces(start, start + size))
        self._position = start + size
        return data

    def readinto(self, buffer: object) -> int:
        """Read up to the buffer's length; short only at the disk's end."""
        self._require_open()
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        count = max(0, min(len(view), self._size - self._position))
        if count:
            start = self._position
            self._chain.require_sound()
            execute(self._chain, self._runs(start, start + count), start, view[:count])
            self._position += count
        return count

    def _pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes of guest range ``[start, stop)``, run by run."""
        for run in self._runs(start, stop):
            if run.layer == ZEROS:
                yield bytes(run.length)
                continue
            require_readable(run, self.name)
            source = self._sources[run.layer]
            yield source.read_exact(run.file_offset, run.length, field=payload_field(run))

    def _runs(self, start: int, stop: int) -> Iterator[Run]:
        """Runs that tile guest range ``[start, stop)``, from cells that are known, else by walking."""
        while start < stop:
            end = min(stop, (start | (self._cell_size - 1)) + 1)
            cell = self._cell(start)
            if cell is None:
                for run in walk(self._images, start, end):
                    self._walked[start // self._segment_size] += 1
                    yield run
            else:
                yield from cell.runs(start, end)
            start = end

    def _cell(self, offset: int) -> _Cell | None:
        """The cell that holds guest byte ``offset``, if it is resolved or read often enough to be."""
        number = offset >> self._cell_shift
        cell = self._cells.get(number)
        if cell is not None:
            return cell
        if self._walked[offset // self._segment_size] < RUNS_WALKED_MAX:
            if len(self._walked) > _SEGMENTS_KEPT:
                self._walked.clear()
            return None
        starts, layers, places = self._map.cell_runs(offset)
        cell = _Cell(
            [*starts.tolist(), (number + 1) << self._cell_shift], layers.tolist(), (places - starts).tolist()
        )
        if self._runs_kept > _RUNS_KEPT:
            self._cells.clear()
            self._runs_kept = 0
        self._cells[number] = cell
        self._runs_kept += len(starts)
        return cell

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

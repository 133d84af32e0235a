"""Plans become bytes: reads through a chain, and the chain as a file object."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from vhdtool.chain.walk import walk
from vhdtool.errors import CorruptError, Finding, Location, Severity, hexadecimal
from vhdtool.model.state import DAMAGED, ZEROS, Run

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vhdtool.chain.chain import Chain

# A read of this many bytes or fewer is resolved by walking, a longer one by flattening its windows.
WALK_BYTES_MAX: Final = 1 << 20


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
            source.read_into(run.file_offset, part, field=f"payload of guest offset {run.offset:#x}")


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


def read_many(chain: Chain, offsets: npt.ArrayLike, length: int) -> npt.NDArray[np.uint8]:
    """As ``Chain.read_many``: looked up together, then read piece by piece, in the order of ``offsets``."""
    import numpy as np

    from vhdtool.chain.engine import NO_FILE, ZERO_FILL, machine_for

    wanted = np.ascontiguousarray(offsets, np.int64)
    if length < 0 or (len(wanted) and not 0 <= wanted.min() <= wanted.max() <= chain.virtual_size - length):
        raise ValueError(f"a range of {length} bytes is not inside the disk of {chain.virtual_size} bytes")
    rows = np.empty((len(wanted), length), np.uint8)
    sources = [image.source.descriptor for image in chain.images]
    # One more for DAMAGED and one for ZEROS, which index from the end.
    descriptors = np.array(
        [NO_FILE if one is None else one for one in sources] + [NO_FILE, ZERO_FILL], np.int32
    )
    resolved = chain.resolved()
    machine = machine_for("auto", reads=len(wanted))
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


class ChainReader(io.RawIOBase):
    """A chain's virtual disk as a read-only, seekable binary file.

    Safe to read from one thread at a time, like every file object; make one for each thread.
    """

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self._chain = chain
        self._position = 0
        self.name = str(chain.layers[0].path)

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
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._chain.virtual_size}
        if whence not in base:
            raise ValueError(f"invalid whence {whence}")
        if base[whence] + offset < 0:
            raise ValueError(f"negative seek position {base[whence] + offset}")
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: object) -> int:
        """Read up to the buffer's length; short only at the disk's end."""
        self._require_open()
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        count = max(0, min(len(view), self._chain.virtual_size - self._position))
        if count:
            read_into(self._chain, self._position, view[:count])
            self._position += count
        return count

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

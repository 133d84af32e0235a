"""Doing the reads of a workload for real, to stand beside what was simulated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from vhdtool.errors import ReadError, printable
from vhdtool.simulate.figures import Measured
from vhdtool.simulate.lookups import Rows, lookups_of
from vhdtool.simulate.metadata import is_resolved_whole
from vhdtool.source import ByteSource, DirectFile, FileSource, JoinedSource, PatchedSource

if TYPE_CHECKING:
    from vhdtool.chain.chain import Chain
    from vhdtool.chain.engine import Engine
    from vhdtool.chain.resolved import ResolvedMap
    from vhdtool.simulate.workloads import Batch

Int64s = npt.NDArray[np.int64]
Mode = Literal["cache", "direct"]
Clock = Callable[[], float]

# The clock is looked at between steps of this size.
_READS_PER_STEP: Final = 256
_BYTES_PER_STEP: Final = 4 << 20


def measure_reads(
    chain: Chain,
    batches: Iterable[Batch],
    mode: Mode,
    *,
    engine: Engine = "auto",
    seconds: float,
    clock: Clock = time.perf_counter,
) -> Measured:
    """Do the reads of ``batches`` one after the other, for ``seconds`` or until there are no more.

    Args:
        batches: reads inside the disk.
        mode: "cache" reads through the page cache, "direct" with O_DIRECT, widened to whole pages.

    Raises:
        ReadError: O_DIRECT is not to be had here, or reading failed.
        FormatError, ChainError: as ``Chain.read``.
    """
    resolved = chain.resolved(engine)
    if mode == "cache" and is_resolved_whole(resolved, chain.virtual_size):
        # Measured are reads, not how long the map takes that the chain reads by.
        resolved.resolve()
    step: Callable[[Chain, Int64s, Int64s], None] = partial(_read_cached, engine)
    if mode == "direct":
        step = _DirectReads(chain, resolved)
    done = size = 0
    began = clock()
    ended = began
    try:
        for offset, length in _steps(batches):
            step(chain, offset, length)
            done += len(offset)
            size += int(length.sum())
            ended = clock()
            if ended - began >= seconds:
                break
    finally:
        if isinstance(step, _DirectReads):
            step.close()
    took = max(ended - began, 1e-9)
    return Measured(mode, done, size, took, done / took, size / took / 1e6)


def _steps(batches: Iterable[Batch]) -> Iterator[tuple[Int64s, Int64s]]:
    """Reads of one length, in order, of a bounded number and size each; a long read is a step of its own."""
    for batch in batches:
        offset, length = batch.offset, batch.length
        at = 0
        while at < len(offset):
            size = int(length[at])
            most = min(_READS_PER_STEP, max(1, _BYTES_PER_STEP // max(1, size)))
            other = np.flatnonzero(length[at : at + most] != size)
            end = at + (int(other[0]) if len(other) else most)
            yield offset[at:end], length[at:end]
            at = end


def _read_cached(engine: Engine, chain: Chain, offset: Int64s, length: Int64s) -> None:
    """Read guest bytes into memory and let go of them; the reads are of one length."""
    size = int(length[0])
    if size > _BYTES_PER_STEP:
        for at in range(int(offset[0]), int(offset[0]) + size, _BYTES_PER_STEP):
            chain.read(at, min(_BYTES_PER_STEP, int(offset[0]) + size - at))
    elif size:
        chain.read_many(offset, size, engine=engine)


class _DirectReads:
    """The chain's files opened for O_DIRECT, when they are first read.

    What a replayed log holds is read from below it: the same I/O, and what was read does not matter here.
    """

    def __init__(self, chain: Chain, resolved: ResolvedMap) -> None:
        self._resolved = resolved
        self._sources = [image.source for image in chain.images]
        self._files: dict[FileSource, DirectFile] = {}

    def __call__(self, chain: Chain, offset: Int64s, length: Int64s) -> None:
        """Read the data that the reads touch; zeros need no I/O."""
        for rows in lookups_of(self._resolved, offset, length):
            for layer, place, size in _ios(rows):
                self._read(self._sources[layer], place, size)

    def _read(self, source: ByteSource, offset: int, size: int) -> None:
        if isinstance(source, PatchedSource):
            # Payload beyond the file's end is all in the log.
            self._read(source.below, offset, min(size, source.below.size - offset))
        elif isinstance(source, JoinedSource):
            while size > 0:
                part, at = source.place(offset)
                count = min(size, part.size - at)
                self._read(part, at, count)
                offset, size = offset + count, size - count
        elif not isinstance(source, FileSource):
            raise ReadError(f"cannot read {printable(source.name)} past the page cache: it is no file")
        elif size > 0:
            if source not in self._files:
                self._files[source] = DirectFile(source)
            self._files[source].read(offset, size)

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files.values():
            file.close()


def _ios(rows: Rows) -> Iterator[tuple[int, int, int]]:
    """Layer, file offset and length of the I/O that ``rows`` need: runs of a read that touch are one."""
    data = np.flatnonzero(rows.layer >= 0)
    read, layer = rows.read[data], rows.layer[data]
    start, length = rows.file_offset[data], rows.length[data]
    goes_on = (read[1:] == read[:-1]) & (layer[1:] == layer[:-1]) & (start[1:] == start[:-1] + length[:-1])
    first = np.flatnonzero(np.concatenate(([True], ~goes_on))) if len(data) else data
    sizes = np.add.reduceat(length, first) if len(data) else length
    yield from zip(layer[first].tolist(), start[first].tolist(), sizes.tolist())

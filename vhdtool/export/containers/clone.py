"""A raw image that begins as the copy of another one: what an independent image of a snapshot is made from.

::

    parent.raw ──clone──► child.raw ◄── own data, own zeros        what only the parent has stays as it is
         │                                                         and is shared where the file system can
         └── digests of whole chunks, bytes of the others ──► what is digested of the child

The images that snapshots were taken of are not read again: what a child leaves to its parent comes from the
parent's export, and chunks that it does not touch have the digests that stand in the parent's manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NoReturn

from vhdtool.export.containers.target import ZERO_PIECE, TargetFile
from vhdtool.export.moving.pipeline import Consumer
from vhdtool.export.proof.digest import ChunkDigester, ChunkSink
from vhdtool.export.proof.manifest import ChunkRun, Manifest
from vhdtool.model.state import Run
from vhdtool.source import ByteSource, FileSource

_PIECE: Final = 256 << 10


class Clone:
    """What an image begins as, instead of empty.

    Args:
        parent: a raw image, whole.
        manifest: of it.

    Attributes:
        made: the image, once it was begun.
    """

    def __init__(self, parent: FileSource, manifest: Manifest) -> None:
        self.parent = parent
        self.manifest = manifest
        self.made: CloneContainer | None = None

    def container(
        self, target: TargetFile, virtual_size: int, check: Callable[[], None] = lambda: None
    ) -> CloneContainer:
        """The image, as it begins."""
        self.made = CloneContainer(target, self.parent, virtual_size, check)
        return self.made

    def chunk_digester(self, sink: ChunkSink, size: int) -> Consumer:
        """What digests the chunks of an image of ``size`` bytes."""
        manifest = self.manifest
        return InheritingDigester(sink, self.parent, manifest.runs(), size, manifest.chunk_size)

    def filled(self, consumer: Consumer) -> Consumer:
        """``consumer``, which is to have the whole disk."""
        return FilledGaps(consumer, self.parent)


class CloneContainer:
    """A raw image over the clone of another one; see :class:`~vhdtool.export.containers.container.Container`.

    A job that makes one is begun anew after an interruption: what it has of its own is little.

    Attributes:
        shares: whether the file system lets both files share storage.
        shared_bytes: data of the parent that were not written over, as long as storage is shared.
    """

    checkpoint_size = 0

    def __init__(
        self,
        target: TargetFile,
        parent: FileSource,
        virtual_size: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._target = target
        self._parent = parent
        self._size = virtual_size
        self.shares = target.clone(parent, check)
        target.set_size(virtual_size)
        self.shared_bytes = self._data_bytes(0, virtual_size) if self.shares else 0

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Guest bytes at their place in the file."""
        self._unshare(offset, len(data))
        self._target.write_at(offset, data)

    def zeros(self, offset: int, length: int) -> None:
        """Guest bytes that are zeros, whatever the parent has there."""
        self._unshare(offset, length)
        for start, stop in self._parent.data_ranges(offset, offset + length):
            self._target.zero(start, stop - start)

    def finish(self) -> int:
        """The file's size; there is nothing to add."""
        return self._size

    def placed(self) -> list[list[int]]:
        """Nothing: there are no checkpoints."""
        return []

    def restore(self, position: int, rows: Iterable[list[int]]) -> NoReturn:
        """There are no checkpoints."""
        raise ValueError("a clone is begun anew")

    def read_back(self, position: int) -> tuple[ByteSource, Iterable[Iterable[Run]]]:
        """There are no checkpoints."""
        raise ValueError("a clone is begun anew")

    def _unshare(self, offset: int, length: int) -> None:
        if self.shares:
            self.shared_bytes -= self._data_bytes(offset, offset + length)

    def _data_bytes(self, start: int, stop: int) -> int:
        return sum(last - first for first, last in self._parent.data_ranges(start, stop))


class FilledGaps:
    """Consumer that hands another one the whole disk: gaps are filled with the parent's bytes.

    Args:
        parent: the raw disk that gaps are left to; zeros behind its end.

    Attributes:
        position: guest byte that comes next.
    """

    def __init__(self, consumer: Consumer, parent: ByteSource) -> None:
        self._consumer = consumer
        self._parent = parent
        self._buffer = bytearray(_PIECE)
        self._view = memoryview(self._buffer)
        self.position = 0

    def data(self, view: memoryview) -> None:
        """The next bytes."""
        self._consumer.data(view)
        self.position += len(view)

    def zeros(self, length: int) -> None:
        """The next ``length`` bytes are zeros."""
        if length:
            self._consumer.zeros(length)
        self.position += length

    def gap(self, length: int) -> None:
        """The next ``length`` bytes are the parent's."""
        stop = self.position + length
        for first, last in self._parent.data_ranges(self.position, min(stop, self._parent.size)):
            self.zeros(first - self.position)
            for at in range(first, last, _PIECE):
                count = min(_PIECE, last - at)
                view = self._view[:count]
                self._parent.read_into(at, view, field="payload")
                # Where holes cannot be seen, zeros are found all the same.
                if self._buffer.startswith(ZERO_PIECE[:count]):
                    self.zeros(count)
                else:
                    self.data(view)
        self.zeros(stop - self.position)

    def finish(self) -> None:
        """That was all."""
        self._consumer.finish()


class InheritingDigester:
    """Consumer that digests the chunks of a whole disk, and reads of the parent's only what it must.

    Args:
        sink: is given each chunk.
        parent: the raw disk that gaps are left to.
        runs: the chunks of ``parent``, as its manifest has them.
        size: bytes of the disk.
        chunk_size: bytes, of both.
    """

    def __init__(
        self, sink: ChunkSink, parent: ByteSource, runs: Iterator[ChunkRun], size: int, chunk_size: int
    ) -> None:
        self._sink = sink
        self._filled = FilledGaps(ChunkDigester(sink, chunk_size), parent)
        self._runs = runs
        self._run = ChunkRun(0, 0, None)
        self._size = size
        self._chunk_size = chunk_size
        # A chunk can be taken over when it is as long in the parent.
        self._common = self._chunks_before(size) if size == parent.size else parent.size // chunk_size
        # Bytes that are the parent's, and have not been passed on yet.
        self._gap = 0

    def data(self, view: memoryview) -> None:
        """The next bytes."""
        self._settle()
        self._filled.data(view)

    def zeros(self, length: int) -> None:
        """The next ``length`` bytes are zeros."""
        self._settle()
        self._filled.zeros(length)

    def gap(self, length: int) -> None:
        """The next ``length`` bytes are the parent's."""
        self._gap += length

    def finish(self) -> None:
        """That was all."""
        self._settle()
        self._filled.finish()

    def _settle(self) -> None:
        """Pass on a gap that has ended: whole chunks by their digests, the rest as bytes."""
        start, stop = self._filled.position, self._filled.position + self._gap
        self._gap = 0
        first, last = -(-start // self._chunk_size), min(self._chunks_before(stop), self._common)
        if first < last:
            self._filled.gap(first * self._chunk_size - start)
            self._inherit(first, last)
            self._filled.position = min(last * self._chunk_size, self._size)
        self._filled.gap(stop - self._filled.position)

    def _chunks_before(self, position: int) -> int:
        """How many chunks end at or in front of guest byte ``position``."""
        whole, rest = divmod(position, self._chunk_size)
        return whole + 1 if rest and position == self._size else whole

    def _inherit(self, first: int, last: int) -> None:
        """Chunks [first, last) are those of the parent."""
        while first < last:
            stop = self._run.start + self._run.count
            if stop <= first:
                self._run = next(self._runs)
                continue
            count = min(stop, last) - first
            self._sink.add(self._run.digest, count)
            first += count

"""Seekable zstd as a target: the raw disk in frames that are compressed each by itself.

::

    guest bytes ──► chunks of 2 MiB ──┬── data ──► threads ──► frames, in order ──┐
                                      └── zeros ─► one frame for many chunks ─────┴─► file ──► seek table

A chunk that is not all zeros is one frame; neighbouring chunks of zeros are one frame, as far as they lie
in one group of 16 MiB.  So the frames follow from the disk alone, and a job that was interrupted at the end
of a group goes on with the same bytes (of one version of libzstd).  Frames of zeros are made once for each
length and written many at a time: zstd spends 4 bytes on 128 KiB of them, and so do we, 32 MiB on a TiB.

Each frame has its content's size in its header and a checksum behind it, so the rows of the table, which
formats/seekable.py describes, have none.  The rows grow in a nameless file: 64 TiB of data have 268 MB.
"""

from __future__ import annotations

import os
import struct
import tempfile
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vhdtool.errors import ExportError
from vhdtool.export.containers.target import ZERO_PIECE, TargetFile
from vhdtool.export.proof.digest import CHUNK_SIZE
from vhdtool.formats.image import Sink
from vhdtool.formats.seekable import (
    FOOTER,
    FOOTER_MAGIC,
    TABLE_HEADER,
    TABLE_MAGIC,
    FrameTable,
    SeekableSource,
)
from vhdtool.formats.zstd import FRAME_SIZE_MIN, LEVEL_DEFAULT, LEVEL_MAX, Compress, FrameError, codec
from vhdtool.model.state import Run
from vhdtool.source import ByteSource, FileSource

GROUP_SIZE: Final = 16 << 20
_ROW: Final = struct.Struct("<II")
_ROWS_IN_MEMORY: Final = 1 << 20
_ROWS_AT_ONCE: Final = 1 << 16
_PIECE: Final = 1 << 20
# What the threads may take together, and what one takes: chunks on their way, a context of libzstd.
_THREADS_BYTES: Final = 40 << 20
_THREAD_BYTES: Final = 5 << 20
_CONTEXT_BYTES: Final = ((4, 4 << 20), (8, 6 << 20), (11, 13 << 20), (LEVEL_MAX, 36 << 20))

assert GROUP_SIZE % CHUNK_SIZE == 0


@dataclass(frozen=True, slots=True)
class _Zeros:
    """``count`` frames of ``length`` zeros each."""

    length: int
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class _Chunk:
    """A chunk that is being compressed in ``buffer``."""

    buffer: bytearray
    length: int
    frame: Future[bytes]


class ZstdContainer:
    """Guest bytes in ascending order become a seekable zstd file.  See ``Container``.

    Args:
        sink: gets the file.
        size: bytes of the disk.
        folder: where the rows of the table can grow: beside the target is room.
        level: of compression, 1 to ``LEVEL_MAX``.
        threads: that compress; None is as many as there are processors and memory allows.
        record: keep what ``placed`` gives.  Without a journal nobody asks for it.

    Raises:
        MissingPackageError: no package for zstd is installed.
        ValueError: no such level.
    """

    checkpoint_size = GROUP_SIZE

    def __init__(
        self,
        sink: Sink,
        size: int,
        *,
        folder: Path,
        level: int = LEVEL_DEFAULT,
        threads: int | None = None,
        record: bool = True,
    ) -> None:
        if not 1 <= level <= LEVEL_MAX:
            raise ValueError(f"zstd compresses at level 1 to {LEVEL_MAX}, not {level}")
        self._sink = sink
        self._size = size
        self._level = level
        self._record = record
        self._codec = codec()
        self._table = _Rows(folder)
        self._threads = threads or _thread_count(level)
        self._executor: ThreadPoolExecutor | None = None
        self._of_thread = threading.local()
        self._position = 0  # guest bytes that came, zeros among them
        self._zeros_start = 0  # from here to the open chunk are chunks of zeros
        self._open: bytearray | None = None  # the chunk that position lies in, unless only zeros came of it
        self._free: list[bytearray] = []
        self._waiting: deque[_Zeros | _Chunk] = deque()
        self._zeros_frames: dict[int, bytes] = {}
        self._file_offset = 0
        self._placed: list[list[int]] = []

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """The guest bytes ``data`` at ``offset``; what was left out in front of them is zeros.

        Raises:
            ExportError: the file cannot be written, or the bytes not compressed.
        """
        if offset < self._position:
            raise ValueError(f"guest bytes come in order: {offset:#x} is behind {self._position:#x}")
        self._skip_to(offset)
        view = memoryview(data)
        if offset + len(view) > self._size:
            raise ValueError("more guest bytes than the disk has")
        while len(view):
            within = self._position % CHUNK_SIZE
            if self._open is None:
                self._open = self._free.pop() if self._free else bytearray(CHUNK_SIZE)
                _clear(self._open, 0, within)
            count = min(len(view), CHUNK_SIZE - within)
            self._open[within : within + count] = view[:count]
            self._position += count
            if within + count == CHUNK_SIZE:
                self._close_chunk()
            view = view[count:]

    def zeros(self, offset: int, length: int) -> None:
        """Guest bytes [offset, offset + length) are zeros."""
        self._skip_to(offset + length)

    def finish(self) -> int:
        """Write what is left, and the table; returns the file's size.

        Raises:
            ExportError: the file cannot be written, or the bytes not compressed.
        """
        self._skip_to(self._size)
        if self._open is not None:
            self._close_chunk()
        self._settle()
        count = self._table.count
        self._write(TABLE_HEADER.pack(TABLE_MAGIC, count * _ROW.size + FOOTER.size))
        for start in range(0, count * _ROW.size, _PIECE):
            length = min(_PIECE, count * _ROW.size - start)
            self._write(self._table.read_exact(start, length, field="seek_table"))
        self._write(FOOTER.pack(count, 0, FOOTER_MAGIC))
        self.close()
        return self._file_offset

    def placed(self) -> list[list[int]]:
        """Frames since the last call as rows [bytes stored, bytes of the disk, how many of them].

        Raises:
            ExportError: as ``finish``.
        """
        if self._position % GROUP_SIZE and self._position != self._size:
            raise ValueError(f"{self._position:#x} is no place to go on from")
        if self._open is not None:  # the disk's last chunk, a short one
            self._close_chunk()
        self._settle()
        placed, self._placed = self._placed, []
        return placed

    def restore(self, position: int, rows: Iterable[list[int]]) -> int:
        """Be as after all ``rows``, at guest byte ``position``; returns the file's size there.

        Raises:
            ValueError: the rows are not those of ``position``; this container is of no use then.
        """
        at = 0
        for stored, size, count in rows:
            is_frame = FRAME_SIZE_MIN <= stored <= 2 * GROUP_SIZE and 0 < size <= GROUP_SIZE and count > 0
            if not is_frame or size * count > position - at:
                raise ValueError(f"{count} frames of {stored} bytes for {size} cannot be at {at:#x}")
            at += size * count
            self._file_offset += stored * count
            self._table.add(stored, size, count)
        if at != position or not position <= self._size:
            raise ValueError(f"the frames end at {at:#x}, not at {position:#x} of {self._size:#x}")
        self._position = self._zeros_start = position
        return self._file_offset

    def read_back(self, position: int) -> tuple[ByteSource, Iterable[Iterable[Run]]]:
        """What stands in the file so far, as a source and the plan of its first ``position`` bytes."""
        assert isinstance(self._sink, TargetFile), "only files are read back"
        table = FrameTable(self._table, 0, self._table.count)
        source = SeekableSource(FileSource(self._sink.partial), table)
        return source, [[Run(0, position, 0, 0)]] if position else []

    def close(self) -> None:
        """Let go of threads and table; what is not done is left undone."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(cancel_futures=True)
        self._table.close()

    def _skip_to(self, stop: int) -> None:
        """Zeros up to guest byte ``stop``."""
        if self._open is not None and self._position < stop:
            within = self._position % CHUNK_SIZE
            count = min(stop - self._position, CHUNK_SIZE - within)
            _clear(self._open, within, within + count)
            self._position += count
            if within + count == CHUNK_SIZE:
                self._close_chunk()
        self._position = max(self._position, stop)

    def _close_chunk(self) -> None:
        """Compress the open chunk, which ends at the position, unless it is zeros too."""
        buffer, self._open = self._open, None
        assert buffer is not None
        length = (self._position - 1) % CHUNK_SIZE + 1
        if _is_zeros(buffer, length):
            self._free.append(buffer)
            return
        self._add_zeros(self._position - length)
        self._zeros_start = self._position
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads, "vhdtool-zstd")
        frame = self._executor.submit(self._compress, memoryview(buffer)[:length])
        self._waiting.append(_Chunk(buffer, length, frame))
        self._write_frames(self._threads + 1)

    def _add_zeros(self, stop: int) -> None:
        """Chunks of zeros up to ``stop``, cut where groups end."""
        start = self._zeros_start
        self._zeros_start = stop
        edge = min(stop, -(-start // GROUP_SIZE) * GROUP_SIZE)
        whole, rest = divmod(stop - edge, GROUP_SIZE)
        for zeros in (_Zeros(edge - start, 1), _Zeros(GROUP_SIZE, whole), _Zeros(rest, 1)):
            if zeros.length and zeros.count:
                self._waiting.append(zeros)

    def _settle(self) -> None:
        """Everything that came is written."""
        self._add_zeros(self._position)
        self._write_frames(0)

    def _write_frames(self, left: int) -> None:
        """Write frames in order, until no more than ``left`` wait."""
        while len(self._waiting) > left:
            item = self._waiting.popleft()
            if isinstance(item, _Zeros):
                self._place(self._zeros_frame(item.length), item.length, item.count)
            else:
                frame = item.frame.result()
                self._free.append(item.buffer)
                self._place(frame, item.length, 1)

    def _place(self, frame: bytes, size: int, count: int) -> None:
        """Write ``frame`` ``count`` times."""
        at_once = max(1, min(count, _PIECE // len(frame)))
        many = frame * at_once
        for done in range(0, count, at_once):
            self._write(memoryview(many)[: min(at_once, count - done) * len(frame)])
        self._table.add(len(frame), size, count)
        if not self._record:
            return
        last = self._placed[-1] if self._placed else None
        if last is not None and last[:2] == [len(frame), size]:
            last[2] += count
        else:
            self._placed.append([len(frame), size, count])

    def _zeros_frame(self, length: int) -> bytes:
        frame = self._zeros_frames.get(length)
        if frame is None:
            # A copy: what the package gives sits in a buffer for the worst case, all of ``length`` and more.
            frame = bytes(memoryview(self._compress(bytes(length))))
            self._zeros_frames[length] = frame
        return frame

    def _compress(self, data: bytes | memoryview) -> bytes:
        compress: Compress | None = getattr(self._of_thread, "compress", None)
        if compress is None:
            compress = self._of_thread.compress = self._codec.compressor(self._level)
        try:
            return compress(data)
        except (FrameError, MemoryError) as error:
            raise ExportError(f"cannot compress: {error}") from error

    def _write(self, data: bytes | memoryview) -> None:
        self._sink.write_at(self._file_offset, data)
        self._file_offset += len(data)


class _Rows:
    """The rows of a seek table: in memory while they are few and in a nameless file after that."""

    name = "seek table"

    def __init__(self, folder: Path) -> None:
        self.count = 0
        self._guard = threading.Lock()
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - close() is the owner's
            max_size=_ROWS_IN_MEMORY, dir=str(folder)
        )

    def add(self, stored: int, size: int, count: int) -> None:
        """``count`` frames of the same sizes."""
        row = _ROW.pack(stored, size)
        try:
            with self._guard:
                self._file.seek(0, os.SEEK_END)
                for done in range(0, count, _ROWS_AT_ONCE):
                    self._file.write(row * min(_ROWS_AT_ONCE, count - done))
        except OSError as error:
            raise ExportError(f"cannot write the seek table: {os.strerror(error.errno or 0)}") from error
        self.count += count

    def read_exact(self, offset: int, length: int, *, field: str) -> bytes:
        """Rows as they will stand in the file."""
        try:
            with self._guard:
                self._file.seek(offset)
                return self._file.read(length)
        except OSError as error:
            raise ExportError(f"cannot read the {field}: {os.strerror(error.errno or 0)}") from error

    def close(self) -> None:
        self._file.close()


def _thread_count(level: int) -> int:
    context = next(size for highest, size in _CONTEXT_BYTES if level <= highest)
    return max(1, min(os.cpu_count() or 1, _THREADS_BYTES // (context + _THREAD_BYTES)))


def _clear(buffer: bytearray, start: int, stop: int) -> None:
    buffer[start:stop] = bytes(stop - start)


def _is_zeros(buffer: bytearray, length: int) -> bool:
    for start in range(0, length, len(ZERO_PIECE)):
        count = min(len(ZERO_PIECE), length - start)
        if not buffer.startswith(ZERO_PIECE if count == len(ZERO_PIECE) else ZERO_PIECE[:count], start):
            return False
    return True

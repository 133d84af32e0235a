"""Where bytes come from.  The only place that opens inputs, and it opens them for reading.

::

    FileSource ──┐
    MemorySource ┼──► read_exact / read_into ──► decoders, movers
    JoinedSource ┤        ▲
    PatchedSource ────────┤   a pending VHDX log laid over another source
    WrappingSource ───────┘   another source, read in some other way

A source never answers short: what is not there is an error that names file, offset and field.
What a platform lacks (positioned reads, looking for holes) is made up for here and nowhere else.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from heapq import heappop, heappush
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from vhdtool.errors import (
    CorruptError,
    FileMissingError,
    Finding,
    Location,
    ReadError,
    Severity,
    printable,
)

# Reading evidence should not even change when it was last read; only its owner may ask for that.
_NO_ACCESS_TIME: Final = getattr(os, "O_NOATIME", 0)

# Windows opens files in text mode without O_BINARY; a FIFO put in place of a file between our look
# at it and our opening it would hang us without O_NONBLOCK.
_OPEN_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOINHERIT", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
)

# Reads past the page cache: aligned to what any device asks for, in pieces of bounded size.
_DIRECT_PAGE: Final = 4096
_DIRECT_BYTES_MAX: Final = 1 << 20

_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}

FileKey = tuple[int, int]
"""A file, whatever it is called: device and inode."""


class ByteSource(Protocol):
    """Bytes that can be read by position, from several threads at once.

    Attributes:
        name: what messages call it; usually the path as the user gave it.
        size: bytes.
    """

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def descriptor(self) -> int | None:
        """Of the open file that these bytes are, for positioned reading; None where it is not so."""
        ...

    def read_exact(self, offset: int, length: int, *, field: str) -> bytes:
        """Exactly ``length`` bytes from byte ``offset``.

        Raises:
            CorruptError: the source ends before ``offset + length``.
            ReadError: the operating system could not read.
        """
        ...

    def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
        """Fill the writable, contiguous byte ``buffer`` from byte ``offset``; errors as ``read_exact``."""
        ...

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Ranges in ``[start, stop)`` that may hold something else than zeros, in order, half open.

        What lies between them reads as zeros.  A source that cannot tell gives the whole range.
        """
        ...

    def close(self) -> None:
        """Let go of the file, if there is one."""
        ...


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What tells whether a file is still the one that was opened: cheap, and changed by every write.

    ``ctime_ns`` does not count when two are compared: links, permissions and attributes change it too.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int = field(default=0, compare=False)

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """The fingerprint in ``status``."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @property
    def file(self) -> tuple[int, int]:
        """Which file it is, whatever it is called."""
        return self.device, self.inode

    def difference(self, other: Fingerprint) -> str:
        """In words what changed from this one to ``other``; empty when nothing did."""
        if self.file != other.file:
            return "another file stands under its name"
        if self.size != other.size:
            return f"its size went from {self.size} to {other.size} bytes"
        if self.mtime_ns != other.mtime_ns:
            return "it was written to"
        return ""


def too_short(name: str, offset: int, field: str, found: int, expected: int) -> CorruptError:
    """The error for a source that ends before the bytes that were asked for."""
    return CorruptError(
        Finding(
            "file.too_short",
            Severity.ERROR,
            Location(name, offset, field),
            "the file ends inside a structure",
            f"{found} bytes",
            f"{expected} bytes",
        )
    )


class _Reader:
    """What all sources share: reading a length of bytes is filling a buffer of that length."""

    name: str
    size: int

    @property
    def descriptor(self) -> int | None:
        """Of the open file that these bytes are; None where it is not so."""
        return None

    def read_exact(self, offset: int, length: int, *, field: str) -> bytes:
        self._check(offset, length, field)
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer), field=field)
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
        raise NotImplementedError

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        stop = min(stop, self.size)
        if start < stop:
            yield start, stop

    def close(self) -> None:
        """Nothing to let go of."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, offset: int, length: int, field: str) -> None:
        """Before anything of that length is allocated: is it there?"""
        if offset < 0 or length < 0:
            raise ValueError(f"offset {offset} and length {length} must not be negative")
        if offset + length > self.size:
            raise too_short(self.name, offset, field, max(0, self.size - offset), length)


class MemorySource(_Reader):
    """Bytes in memory, for tests and for structures already read."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.size = len(data)
        self._data = memoryview(data)

    def read_exact(self, offset: int, length: int, *, field: str) -> bytes:
        self._check(offset, length, field)
        return bytes(self._data[offset : offset + length])

    def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
        self._check(offset, len(buffer), field)
        buffer[:] = self._data[offset : offset + len(buffer)]


class FileSource(_Reader):
    """A regular file, open for reading.

    Raises:
        FileMissingError: nothing stands under ``path``.
        CorruptError: it is a directory, a FIFO, a device or a socket; those are not opened.
        ReadError: it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path if isinstance(path, Path) else Path(path)
        self.name = str(path)
        place = str(self.path)
        self._descriptor = -1
        self._require_regular(self._stat())
        try:
            try:
                self._descriptor = os.open(place, _OPEN_FLAGS | _NO_ACCESS_TIME)
            except PermissionError:
                self._descriptor = os.open(place, _OPEN_FLAGS)
            self._status = os.fstat(self._descriptor)
        except OSError as error:
            raise self._failed(error, None, "") from error
        self._require_regular(self._status)
        self.size = self._status.st_size
        # Without os.pread, seek and read share one file position: one thread at a time.
        self._lock = None if hasattr(os, "pread") else threading.Lock()

    @property
    def descriptor(self) -> int | None:
        """Of the open file; None where the platform has no positioned reading."""
        return self._descriptor if self._lock is None else None

    @property
    def is_closed(self) -> bool:
        """Whether the file was let go of."""
        return self._descriptor < 0

    @property
    def key(self) -> FileKey:
        """Which file it is, whatever it is called."""
        return self._status.st_dev, self._status.st_ino

    @property
    def opened_as(self) -> Fingerprint:
        """The file's state when it was opened."""
        return Fingerprint.of(self._status)

    @property
    def mtime(self) -> float:
        """When the file had last been written to as it was opened: seconds since 1970."""
        return self._status.st_mtime

    def fingerprint(self) -> Fingerprint:
        """The file's state now; a file that was replaced under its name shows the new one's.

        Raises:
            FileMissingError: it is gone.
            ReadError: its file system does not answer.
        """
        named = Fingerprint.of(self._stat())
        try:
            held = Fingerprint.of(os.fstat(self._descriptor))
        except OSError as error:
            raise self._failed(error, None, "") from error
        return held if held.file == named.file else named

    def resident(self, offset: int, length: int) -> bytes | None:
        """Which pages of ``[offset, offset + length)`` the page cache holds.

        Args:
            offset: a multiple of ``mmap.ALLOCATIONGRANULARITY``.

        Returns:
            A byte for each page (of ``mmap.PAGESIZE``), 1 for one that is there, up to the file's end; None
            where nobody can tell.  Linux says of files that the user may not write that all is there.
        """
        return _resident_pages(self._descriptor, offset, min(length, self.size - offset))

    def drop(self, offset: int, length: int) -> None:
        """Let the page cache forget whole pages of a range; nothing where the platform cannot."""
        advise = getattr(os, "posix_fadvise", None)
        if advise is not None and self._descriptor >= 0 and length > 0:
            with suppress(OSError):  # a wish, and no more: some file systems know no such thing
                advise(self._descriptor, offset, length, os.POSIX_FADV_DONTNEED)

    def read_exact(self, offset: int, length: int, *, field: str) -> bytes:
        if not 0 <= offset <= offset + length <= self.size:
            self._check(offset, length, field)
        data = self._read(offset, length, field)
        if len(data) == length:
            return data
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer), field=field)
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
        self._check(offset, len(buffer), field)
        done = 0
        while done < len(buffer):
            count = self._fill(offset + done, buffer[done:], field)
            if count == 0:  # the file became shorter since it was opened
                raise too_short(self.name, offset, field, done, len(buffer))
            done += count

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        stop = min(stop, self.size)
        seek_data = getattr(os, "SEEK_DATA", None)
        if seek_data is None or self._lock is not None:
            if start < stop:
                yield start, stop
            return
        position = start
        while position < stop:
            try:
                data = os.lseek(self._descriptor, position, seek_data)
                hole = os.lseek(self._descriptor, data, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:  # ENXIO: nothing but a hole up to the end
                    yield position, stop
                return
            if data >= stop:
                return
            yield data, min(hole, stop)
            position = hole

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()

    def _stat(self) -> os.stat_result:
        try:
            return self.path.stat()
        except OSError as error:
            raise self._failed(error, None, "") from error
        except ValueError as error:  # a NUL in the name
            raise FileMissingError(f"no such file: {printable(self.name)}") from error

    def _require_regular(self, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode):
            return
        self.close()
        raise CorruptError(
            Finding(
                "file.not_regular",
                Severity.ERROR,
                Location(self.name),
                "this cannot be an image",
                _KINDS.get(stat.S_IFMT(status.st_mode), "a special file"),
                "a regular file",
            )
        )

    def _fill(self, offset: int, buffer: memoryview, field: str) -> int:
        try:
            if self._lock is None and hasattr(os, "preadv"):
                return os.preadv(self._descriptor, [buffer], offset)
        except OSError as error:
            raise self._failed(error, offset, field) from error
        data = self._read(offset, min(len(buffer), 1 << 20), field)
        buffer[: len(data)] = data
        return len(data)

    def _read(self, offset: int, length: int, field: str) -> bytes:
        try:
            if self._lock is None:
                return os.pread(self._descriptor, length, offset)
            with self._lock:
                os.lseek(self._descriptor, offset, os.SEEK_SET)
                return os.read(self._descriptor, length)
        except OSError as error:
            raise self._failed(error, offset, field) from error

    def _failed(self, error: OSError, offset: int | None, field: str) -> FileMissingError | ReadError:
        return _failure(self.name, error, offset, field)


def _failure(name: str, error: OSError, offset: int | None, field: str) -> FileMissingError | ReadError:
    if offset is None and error.errno in (errno.ENOENT, errno.ENOTDIR):
        return FileMissingError(f"no such file: {printable(name)}")
    reason = os.strerror(error.errno) if error.errno else "unknown error"
    return ReadError(f"cannot read {Location(name, offset, field)}: {reason}")


def fingerprint_of(path: Path) -> Fingerprint:
    """The state of what stands under ``path``, looked at from outside.

    Raises:
        FileMissingError: nothing does.
        ReadError: its file system does not answer.
    """
    try:
        return Fingerprint.of(path.stat())
    except OSError as error:
        raise _failure(str(path), error, None, "") from error


def _resident_pages(descriptor: int, offset: int, length: int) -> bytes | None:
    """As ``FileSource.resident``; asks mincore(2) about a mapping that is never touched."""
    mincore = _mincore()
    if mincore is None or descriptor < 0 or length <= 0:
        return None
    import ctypes
    import mmap

    pages = bytearray(-(-length // mmap.PAGESIZE))
    try:
        # A private copy: a mapping whose address Python tells has to look writable.
        mapping = mmap.mmap(descriptor, length, access=mmap.ACCESS_COPY, offset=offset)
    except (OSError, ValueError):  # no mappings on this file system; the file became shorter
        return None
    try:
        first = ctypes.c_char.from_buffer(mapping)
        out = (ctypes.c_ubyte * len(pages)).from_buffer(pages)
        failed = mincore(ctypes.byref(first), ctypes.c_size_t(length), out)
        del first, out
    finally:
        mapping.close()
    # Only the lowest bit says something.
    return None if failed else bytes(pages).translate(_LOWEST_BITS)


_LOWEST_BITS: Final = bytes(i & 1 for i in range(256))


@cache
def _mincore() -> Any:
    """The function of the C library; None where there is none, or where nothing can be dropped anyway."""
    if sys.platform != "linux" or not hasattr(os, "posix_fadvise"):
        return None
    import ctypes

    try:
        return ctypes.CDLL(None).mincore
    except (OSError, AttributeError):
        return None


class DirectFile:
    """A file opened once more and read past the page cache: for measurements, which ask the device.

    Raises:
        ReadError: the platform or the file system cannot do that, or the file cannot be opened.
    """

    def __init__(self, file: FileSource) -> None:
        import mmap

        self.name = file.name
        flag = getattr(os, "O_DIRECT", None)
        if flag is None or not hasattr(os, "preadv"):
            raise ReadError(f"cannot read {printable(self.name)} past the page cache: not on this platform")
        try:
            self._descriptor = os.open(file.path, _OPEN_FLAGS | flag)
        except OSError as error:
            raise self._failed(error) from error
        # A mapping begins at a page, as these reads ask for.
        self._buffer = mmap.mmap(-1, _DIRECT_BYTES_MAX)
        if Fingerprint.of(os.fstat(self._descriptor)).file != file.opened_as.file:
            self.close()
            raise ReadError(f"cannot read {printable(self.name)}: another file stands under its name")

    def read(self, offset: int, length: int) -> None:
        """Read bytes ``[offset, offset + length)``, widened to whole pages, and let go of them.

        Raises:
            CorruptError: the file ends before.
            ReadError: the operating system could not read.
        """
        at = offset - offset % _DIRECT_PAGE
        while at < offset + length:
            pages = -(-(offset + length - at) // _DIRECT_PAGE)
            count = min(_DIRECT_BYTES_MAX, pages * _DIRECT_PAGE)
            try:
                done = os.preadv(self._descriptor, [memoryview(self._buffer)[:count]], at)
            except OSError as error:
                raise self._failed(error) from error
            at += done
            if done < count and at < offset + length:
                raise too_short(self.name, offset, "payload", max(0, at - offset), length)

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _failed(self, error: OSError) -> ReadError:
        reason = os.strerror(error.errno) if error.errno else "unknown error"
        return ReadError(f"cannot read {printable(self.name)} past the page cache: {reason}")


class JoinedSource(_Reader):
    """Several sources end to end: the pieces of a split image, named after the first.

    Attributes:
        parts: the pieces in order.
    """

    def __init__(self, parts: Sequence[FileSource]) -> None:
        self.parts = tuple(parts)
        self.name = parts[0].name
        self._starts = [0]
        for part in parts:
            self._starts.append(self._starts[-1] + part.size)
        self.size = self._starts[-1]

    def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
        self._check(offset, len(buffer), field)
        done = 0
        while done < len(buffer):
            part, at = self.place(offset + done)
            count = min(len(buffer) - done, part.size - at)
            part.read_into(at, buffer[done : done + count], field=field)
            done += count

    def place(self, offset: int) -> tuple[FileSource, int]:
        """The piece that byte ``offset`` lies in, and where in it; the offset is inside the source."""
        i = bisect_right(self._starts, offset) - 1
        return self.parts[i], offset - self._starts[i]

    def close(self) -> None:
        for part in self.parts:
            part.close()


@dataclass(frozen=True, slots=True)
class Patch:
    """A range of a file that reads as something else than what stands there.

    ``page`` None: ``length`` bytes of zeros at file ``offset``.  Otherwise ``page(skip, count)`` gives
    ``count`` bytes of the patch from its byte ``skip``, so that the bytes of a large log stay in it.
    """

    offset: int
    length: int
    page: PageReader | None = None


class PageReader(Protocol):
    """Gives the bytes of a patch when they are asked for."""

    def __call__(self, skip: int, count: int) -> bytes: ...


class SourceOver(_Reader):
    """A source whose bytes come from another one, ``below``; it is closed with it."""

    def __init__(self, below: ByteSource, size: int) -> None:
        self.below = below
        self.name = below.name
        self.size = size

    def close(self) -> None:
        self.below.close()


class WrappingSource(SourceOver):
    """Another source, read in some other way: what is no reading of bytes passes through."""

    def __init__(self, below: ByteSource) -> None:
        super().__init__(below, below.size)

    def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
        self.below.read_into(offset, buffer, field=field)

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        return self.below.data_ranges(start, stop)


class PatchedSource(SourceOver):
    """Another source with patches laid over it and a size of its own; nothing is written.

    ``size`` may pass the other's: what is missing there and under no patch reads as zeros.

    Args:
        patches: in the order of writing; a later one hides an earlier one where they overlap.
    """

    def __init__(self, below: ByteSource, patches: Sequence[Patch], size: int) -> None:
        super().__init__(below, size)
        self._pieces = _flatten_patches(patches, size)
        self._starts = [piece[0] for piece in self._pieces]

    @property
    def patched(self) -> list[tuple[int, int]]:
        """The ranges under patches, half open, in order."""
        return [(start, stop) for start, stop, _, _ in self._pieces]

    def touches(self, start: int, stop: int) -> bool:
        """Whether a patch covers a byte of ``[start, stop)``."""
        return next(self._near(start, stop), None) is not None

    def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
        self._check(offset, len(buffer), field)
        stop = offset + len(buffer)
        there = max(0, min(stop, self.below.size) - offset)
        if there:
            self.below.read_into(offset, buffer[:there], field=field)
        if there < len(buffer):
            buffer[there:] = bytes(len(buffer) - there)
        for first, last, page, skip in self._near(offset, stop):
            count = last - first
            buffer[first - offset : last - offset] = bytes(count) if page is None else page(skip, count)

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        stop = min(stop, self.size)
        position = start
        for first, last, page, _ in self._near(start, stop):
            yield from self.below.data_ranges(position, first)
            # A log can zero exbibytes with one descriptor: those are a hole like any other.
            if page is not None:
                yield first, last
            position = last
        yield from self.below.data_ranges(position, stop)

    def differs(self, start: int, stop: int) -> bool:
        """Whether a byte of ``[start, stop)`` does not stand in the file as it reads."""
        return start < stop and (stop > self.below.size or self.touches(start, stop))

    def stretches(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """``[start, stop)`` in pieces, each with whether it stands in the file as it reads."""
        position = start
        for first, last, _, _ in self._near(start, stop):
            yield from self._below(position, first)
            yield first, last, False
            position = last
        yield from self._below(position, stop)

    def _near(self, start: int, stop: int) -> Iterator[_Piece]:
        """What patches cover of ``[start, stop)``, in order: whoever asks piece by piece pays for no more."""
        i = max(0, bisect_right(self._starts, start) - 1)
        while i < len(self._pieces) and self._starts[i] < stop:
            first, last, page, skip = self._pieces[i]
            i += 1
            begin, end = max(first, start), min(last, stop)
            if begin < end:
                yield begin, end, page, skip + begin - first

    def _below(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """A range under no patch, as ``stretches``: beyond the file's end nothing stands."""
        edge = min(max(start, self.below.size), stop)
        if start < edge:
            yield start, edge, True
        if edge < stop:
            yield edge, stop, False


_Piece = tuple[int, int, "PageReader | None", int]  # start, stop, page, bytes to skip in it


def _flatten_patches(patches: Sequence[Patch], size: int) -> list[_Piece]:
    """The visible pieces of overlapping ``patches``, in order, cut at ``size``.

    A sweep over all edges; the latest of the patches open at a place is the one that shows.  The heap
    holds open patches by age and is cleaned lazily, so the whole costs n log n however they overlap.
    """
    edges: list[int] = sorted(
        {min(edge, size) for patch in patches for edge in (patch.offset, patch.offset + patch.length)}
    )
    begins = sorted(range(len(patches)), key=lambda i: patches[i].offset)
    pieces: list[_Piece] = []
    heap: list[int] = []
    next_begin = 0
    for start, stop in pairwise(edges):
        while next_begin < len(begins) and patches[begins[next_begin]].offset <= start:
            heappush(heap, -begins[next_begin])
            next_begin += 1
        while heap and patches[-heap[0]].offset + patches[-heap[0]].length <= start:
            heappop(heap)
        if not heap:
            continue
        patch = patches[-heap[0]]
        skip = start - patch.offset
        if pieces:
            before = pieces[-1]
            goes_on = before[1] == start and before[2] is patch.page
            if goes_on and (patch.page is None or before[3] + start - before[0] == skip):
                pieces[-1] = (before[0], stop, before[2], before[3])
                continue
        pieces.append((start, stop, patch.page, skip))
    return pieces


def files_of(source: ByteSource) -> list[FileSource]:
    """The files that ``source`` reads in the end; none for bytes in memory."""
    if isinstance(source, FileSource):
        return [source]
    if isinstance(source, JoinedSource):
        return list(source.parts)
    if isinstance(source, SourceOver):
        return files_of(source.below)
    return []


def file_ranges(source: ByteSource, offset: int, length: int) -> Iterator[tuple[FileSource, int, int]]:
    """Where bytes ``[offset, offset + length)`` of ``source`` are read, as (file, offset, length).

    Bytes under a patch count as well: they are read before the patch is laid over them.  Nothing comes of
    sources whose bytes stand in no file as they read.
    """
    length = min(length, source.size - offset)
    if length <= 0:
        return
    if isinstance(source, FileSource):
        yield source, offset, length
    elif isinstance(source, JoinedSource):
        while length:
            part, at = source.place(offset)
            count = min(length, part.size - at)
            yield part, at, count
            offset += count
            length -= count
    elif isinstance(source, (PatchedSource, WrappingSource)):
        yield from file_ranges(source.below, offset, length)

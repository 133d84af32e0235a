"""Leaves the page cache as it was found: what a job read is dropped, what was there before stays.

::

    file    |    8 MiB    |    8 MiB    |    8 MiB    |    8 MiB    |    8 MiB    |
                  ▲ read                        ▲ as far as readahead may get
            └────────────────────── looked at before the read ────────────────────┘

The kernel reads ahead of whoever reads in order, and what it brought in looks like what others had left
there.  So segments are looked at well before a read can cause readahead into them.  A segment that is
forgotten is dropped first: what is there when it is looked at again is not the job's.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import PAGESIZE
from typing import Final

from vhdtool.errors import VhdtoolError
from vhdtool.source import ByteSource, FileKey, FileSource, file_ranges

SEGMENT_SIZE: Final = 8 << 20
# Readahead of 8 MiB is usual for virtual disks and shares, and one more may be on its way: twice that.
_SEGMENTS_AHEAD: Final = 3
# So much of what was read may lie in the page cache, however it was jumped about.
_READ_MAX: Final = 32 << 20
_SEGMENTS_MAX: Final = 2048
# What is just being read in cannot be dropped: at the end, that is waited for.
_LAST_TRIES: Final = 20
_LAST_WAIT_SECONDS: Final = 0.01

_Key = tuple[FileKey, int]


@dataclass(slots=True)
class _Segment:
    """A segment of a file.

    Attributes:
        before: a byte for each page, 1 for what was in the page cache; None where nobody can tell.
        read: bytes that the job read since, at most the segment's size.
    """

    file: FileSource
    offset: int
    before: bytes | None
    read: int = 0

    def drop(self, file: FileSource) -> None:
        """Drop what was not there before."""
        if self.before is not None:
            for first, last in _absent_runs(self.before):
                file.drop(self.offset + first * PAGESIZE, (last - first) * PAGESIZE)

    def is_as_before(self, file: FileSource) -> bool:
        """Whether nothing is there that was not there before."""
        if self.before is None:
            return True
        now = file.resident(self.offset, SEGMENT_SIZE)
        if now is None:
            return True
        return int.from_bytes(now, "big") & ~int.from_bytes(self.before[: len(now)], "big") == 0


@contextmanager
def _opened(file: FileSource) -> Iterator[FileSource]:
    """``file``; or, when the job has closed it by now, the same file opened once more, if it can be."""
    if not file.is_closed:
        yield file
        return
    try:
        again = FileSource(file.path)
    except VhdtoolError:
        yield file
        return
    with again:
        yield again if again.key == file.key else file


def _absent_runs(pages: bytes) -> Iterator[tuple[int, int]]:
    """Runs of pages that are 0, half open."""
    first = pages.find(0)
    while first >= 0:
        last = pages.find(1, first)
        if last < 0:
            last = len(pages)
        yield first, last
        first = pages.find(0, last)


class CacheKeeper:
    """Watches what a job reads, and drops it from the page cache a while later.  Thread-safe.

    Where a platform cannot say what the page cache holds, nothing is dropped.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # The one that was read in longest ago comes first.
        self._segments: OrderedDict[_Key, _Segment] = OrderedDict()
        self._last: _Key | None = None
        self._read = 0

    def reading(self, source: ByteSource, offset: int, length: int) -> None:
        """To be called before bytes ``[offset, offset + length)`` of ``source`` are read."""
        with self._lock:
            for file, start, count in file_ranges(source, offset, length):
                stop = start + count
                while start < stop:
                    index = start // SEGMENT_SIZE
                    edge = min(stop, (index + 1) * SEGMENT_SIZE)
                    self._touch(file, index, edge - start)
                    start = edge
            self._forget()

    def finish(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Drop everything that is left."""
        left: dict[FileKey, list[_Segment]] = {}
        with self._lock:
            for (file_key, _), segment in self._segments.items():
                left.setdefault(file_key, []).append(segment)
            self._segments.clear()
            self._last = None
            self._read = 0
        for segments in left.values():
            with _opened(segments[0].file) as file:
                self._finish(file, segments, sleep)

    def _finish(self, file: FileSource, left: list[_Segment], sleep: Callable[[float], None]) -> None:
        for _ in range(_LAST_TRIES):
            for segment in left:
                segment.drop(file)
            left = [segment for segment in left if not segment.is_as_before(file)]
            if not left:
                return
            sleep(_LAST_WAIT_SECONDS)

    def _touch(self, file: FileSource, index: int, count: int) -> None:
        key = file.key, index
        if key != self._last:
            for i in range(index + _SEGMENTS_AHEAD, index - 1, -1):
                self._look(file, i)
            self._last = key
        segment = self._segments.get(key)
        if segment is not None:
            count = min(count, SEGMENT_SIZE - segment.read)
            segment.read += count
            self._read += count

    def _look(self, file: FileSource, index: int) -> None:
        """Know segment ``index``, and that it was wanted just now."""
        key = file.key, index
        if key in self._segments:
            self._segments.move_to_end(key)
        elif index * SEGMENT_SIZE < file.size:
            offset = index * SEGMENT_SIZE
            self._segments[key] = _Segment(file, offset, file.resident(offset, SEGMENT_SIZE))

    def _forget(self) -> None:
        while self._read > _READ_MAX or len(self._segments) > _SEGMENTS_MAX:
            key, segment = self._segments.popitem(last=False)
            if key == self._last:
                self._last = None
            self._read -= segment.read
            with _opened(segment.file) as file:
                segment.drop(file)

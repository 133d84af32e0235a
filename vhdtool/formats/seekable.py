"""Seekable zstd: a raw disk as frames that are compressed each by itself, with a table of them at the end.

::

    frame │ frame │ ... │ frame │ skippable frame: magic, size │ rows │ footer
                                                                 │      └─ count, descriptor, magic
                                                                 └─ compressed size, size[, checksum] each

Source: "Zstandard Seekable Format" 0.1.0 (zstd, contrib/seekable_format), and RFC 8878 for frames.  All
integers are little-endian.  Every zstd program reads such a file from the start to the end; who knows the
table reads any byte for the price of its frame.

The table may be a stranger's and long (64 TiB in frames of 2 MiB: 268 MB), so it stays in the file: it is
read once when the file is opened, all of it is added up and compared with the file's size, and of every so
many rows one is remembered.  What a row says is believed only when its frame holds exactly that much.
"""

from __future__ import annotations

import struct
import sys
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, NoReturn, Protocol

from vhdtool.errors import EXIT_UNSUPPORTED, CorruptError, Finding, FindingLog
from vhdtool.formats.image import Section
from vhdtool.formats.zstd import FRAME_MAGIC, FRAME_SIZE_MIN, Decompress, FrameError, codec, has_checksum
from vhdtool.source import ByteSource, SourceOver

TABLE_MAGIC: Final = 0x184D2A5E
FOOTER_MAGIC: Final = 0x8F92EAB1
TABLE_HEADER: Final = struct.Struct("<II")  # magic; bytes behind this header
FOOTER: Final = struct.Struct("<IBI")  # count of frames; descriptor; magic
DESCRIPTOR_CHECKSUMS: Final = 0x80
# What reading one byte may cost in memory; the frames of our own writer are 16 MiB at most.
FRAME_SIZE_MAX: Final = 64 << 20
_CACHE_BYTES: Final = 8 << 20
_ROWS_AT_ONCE: Final = 1 << 16
# So many places of the table are remembered at most.
_PLACES_MAX: Final = 1 << 16
_GROUP_MIN: Final = 256
# A frame of zeros takes 4 bytes for every 128 KiB, and a start.
_ZEROS_FRAME_START: Final = 64
_ZEROS_FRAME_SHARE: Final = 1 << 14
_KNOWN_ZEROS_MAX: Final = 64
# How much larger than its content a frame may be: 3 bytes for every block of 128 KiB, and small blocks.
_OVERHEAD_SHARE: Final = 1 << 7
_OVERHEAD_MIN: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: ``size`` guest bytes from ``offset``, as ``stored`` bytes from ``file_offset`` on."""

    number: int
    offset: int
    size: int
    file_offset: int
    stored: int


@dataclass(frozen=True, slots=True)
class _Group:
    """Some frames in order; both lists have one place more than there are frames."""

    first: int
    offsets: list[int]
    file_offsets: list[int]

    def frame(self, i: int) -> Frame:
        offset, stop = self.offsets[i : i + 2]
        file_offset, file_stop = self.file_offsets[i : i + 2]
        return Frame(self.first + i, offset, stop - offset, file_offset, file_stop - file_offset)


class RowReader(Protocol):
    """Where the rows of a table stand: a file, or what is going to be one."""

    @property
    def name(self) -> str: ...
    def read_exact(self, offset: int, length: int, *, field: str) -> bytes: ...


class FrameTable:
    """The rows of a seek table, which stay where they are; every so many of them one is remembered.

    Args:
        rows: where they stand.
        start: the first row's place there.
        count: of rows.
        has_checksums: whether a row has three numbers, not two.

    Attributes:
        size: bytes of all frames' content.
        stored: bytes of all frames.

    Raises:
        CorruptError: ``zstd.table.row``: a row cannot be.
        ReadError: the table cannot be read.
    """

    def __init__(self, rows: RowReader, start: int, count: int, *, has_checksums: bool = False) -> None:
        self.count = count
        self.has_checksums = has_checksums
        self._rows = rows
        self._start = start
        self._numbers = 3 if has_checksums else 2
        self._group_size = max(_GROUP_MIN, -(-count // _PLACES_MAX))
        self._offsets = array("q")
        self._file_offsets = array("q")
        self.size = self.stored = 0
        self._survey()
        self._last = _Group(0, [0], [0])

    def frames(self, offset: int) -> Iterator[Frame]:
        """The frames from guest byte ``offset`` on that are not empty."""
        while offset < self.size:
            group = self._group(bisect_right(self._offsets, offset) - 1)
            while offset < group.offsets[-1]:
                frame = group.frame(bisect_right(group.offsets, offset) - 1)
                yield frame
                offset = frame.offset + frame.size

    def checksum(self, frame: Frame) -> int | None:
        """What the table says of ``frame``; None where it says nothing."""
        if not self.has_checksums:
            return None
        return self._numbers_of(frame.number, 1)[2]

    def _survey(self) -> None:
        """Look at every row once."""
        step = self._group_size * max(1, _ROWS_AT_ONCE // self._group_size)
        for first in range(0, self.count, step):
            numbers = self._numbers_of(first, min(step, self.count - first))
            stored, size = numbers[0 :: self._numbers], numbers[1 :: self._numbers]
            if max(size) > FRAME_SIZE_MAX or min(stored) < TABLE_HEADER.size:
                self._refuse_row(first, stored, size)
            for i in range(0, len(stored), self._group_size):
                self._offsets.append(self.size)
                self._file_offsets.append(self.stored)
                self.size += sum(size[i : i + self._group_size])
                self.stored += sum(stored[i : i + self._group_size])

    def _refuse_row(self, first: int, stored: array[int], size: array[int]) -> NoReturn:
        bad = (i for i in range(len(size)) if size[i] > FRAME_SIZE_MAX or stored[i] < TABLE_HEADER.size)
        i = next(bad)
        FindingLog(self._rows.name).refuse(
            "zstd.table.row",
            "a frame of the seek table has an impossible size",
            offset=self._start + (first + i) * 4 * self._numbers,
            field=f"seek_table[{first + i}]",
            found=f"{stored[i]} bytes stored for {size[i]}",
            expected=f"at least {TABLE_HEADER.size} for at most {FRAME_SIZE_MAX}",
        )

    def _group(self, index: int) -> _Group:
        first = index * self._group_size
        group = self._last  # one read of it: another thread may replace it
        if group.first == first and len(group.offsets) > 1:
            return group
        numbers = self._numbers_of(first, min(self._group_size, self.count - first))
        group = _Group(
            first,
            list(accumulate(numbers[1 :: self._numbers], initial=self._offsets[index])),
            list(accumulate(numbers[0 :: self._numbers], initial=self._file_offsets[index])),
        )
        self._last = group
        return group

    def _numbers_of(self, first: int, count: int) -> array[int]:
        width = 4 * self._numbers
        numbers = array("I")
        assert numbers.itemsize == 4
        numbers.frombytes(
            self._rows.read_exact(self._start + first * width, count * width, field="seek_table")
        )
        if sys.byteorder == "big":  # pragma: no cover
            numbers.byteswap()
        return numbers


class SeekableSource(SourceOver):
    """The content of a seekable zstd file, by position.

    Frames are decompressed when a byte of them is asked for; those used last are kept, 8 MiB of them (or a
    single larger one).  Frames of zeros are told by their few bytes and not decompressed again.

    Args:
        below: the file; the frames begin at its start.
        table: of the frames.

    Raises:
        MissingPackageError: no package for zstd is installed.
    """

    def __init__(self, below: ByteSource, table: FrameTable) -> None:
        super().__init__(below, table.size)
        self.table = table
        self._codec = codec()
        self._of_thread = threading.local()
        self._guard = threading.Lock()
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._kept_bytes = 0
        # Frames that were found to hold nothing but zeros, as they stand in the file, and how many.
        self._known_zeros: dict[bytes, int] = {}

    @property
    def section(self) -> Section:
        """What there is to see of it."""
        table = self.table
        fields: tuple[tuple[str, str | int], ...] = (
            ("number_of_frames", str(table.count)),
            ("checksum_flag", int(table.has_checksums)),
            ("compressed_size", str(table.stored)),
            ("decompressed_size", str(table.size)),
        )
        return Section("Seek table (the raw disk is compressed: seekable zstd)", table.stored, fields)

    def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
        self._check(offset, len(buffer), field)
        done = 0
        frames = self.table.frames(offset)
        while done < len(buffer):
            frame = next(frames)
            skip = offset + done - frame.offset
            count = min(len(buffer) - done, frame.size - skip)
            data = self._content(frame)
            buffer[done : done + count] = bytes(count) if data is None else data[skip : skip + count]
            done += count

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        stop = min(stop, self.size)
        position = start  # of the data that is found and not yet told
        for frame in self.table.frames(start):
            if frame.offset >= stop:
                break
            if not self._is_zeros(frame):
                continue
            if position < frame.offset:
                yield position, frame.offset
            position = frame.offset + frame.size
        if position < stop:
            yield position, stop

    def damaged_frames(self) -> Iterator[Finding]:
        """Decompress every frame; a finding for each that cannot be."""
        for frame in self.table.frames(0):
            try:
                self._content(frame)
            except CorruptError as error:
                if error.finding is not None:
                    yield error.finding

    def _is_zeros(self, frame: Frame) -> bool:
        """Whether it holds nothing but zeros, where that can be known cheaply."""
        return _can_be_zeros(frame) and self._content(frame) is None

    def _content(self, frame: Frame) -> memoryview | None:
        """The bytes of ``frame``; None for zeros."""
        with self._guard:
            kept = self._kept.get(frame.number)
            if kept is not None:
                self._kept.move_to_end(frame.number)
                return memoryview(kept)
        stored = self._stored(frame)
        if self._known_zeros.get(stored) == frame.size:
            return None
        data = self._decompress(frame, stored)
        if _can_be_zeros(frame) and data == bytes(len(data)):
            self._learn_zeros(stored, frame.size)
            return None
        self._keep(frame, data)
        return memoryview(data)

    def _stored(self, frame: Frame) -> bytes:
        if frame.stored > frame.size + frame.size // _OVERHEAD_SHARE + _OVERHEAD_MIN:
            self._refuse_frame(frame, "it is larger than what it holds", f"{frame.stored} bytes")
        return self.below.read_exact(frame.file_offset, frame.stored, field="frame")

    def _decompress(self, frame: Frame, stored: bytes) -> bytes:
        checksum = self.table.checksum(frame)
        if checksum is not None and has_checksum(stored):
            own = int.from_bytes(stored[-4:], "little")
            if own != checksum:
                self._refuse_frame(frame, "its checksum is not the seek table's", own, checksum)
        try:
            return self._decompressor()(stored, frame.size)
        except FrameError as error:
            self._refuse_frame(frame, str(error), expected=f"{frame.size} bytes")

    def _decompressor(self) -> Decompress:
        """This thread's own."""
        mine: Decompress | None = getattr(self._of_thread, "decompress", None)
        if mine is None:
            mine = self._of_thread.decompress = self._codec.decompressor()
        return mine

    def _keep(self, frame: Frame, data: bytes) -> None:
        with self._guard:
            if frame.number in self._kept:  # another thread was as fast
                return
            self._kept[frame.number] = data
            self._kept_bytes += len(data)
            while self._kept_bytes > _CACHE_BYTES and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                self._kept_bytes -= len(oldest)

    def _learn_zeros(self, stored: bytes, size: int) -> None:
        with self._guard:
            if len(self._known_zeros) < _KNOWN_ZEROS_MAX:
                self._known_zeros[stored] = size

    def _refuse_frame(self, frame: Frame, why: str, found: object = "", expected: object = "") -> NoReturn:
        FindingLog(self.name).refuse(
            "zstd.frame",
            f"a frame cannot be decompressed: {why}",
            offset=frame.file_offset,
            field=f"frame {frame.number}",
            found=found,
            expected=expected,
        )


def _can_be_zeros(frame: Frame) -> bool:
    return FRAME_SIZE_MIN <= frame.stored <= _ZEROS_FRAME_START + frame.size // _ZEROS_FRAME_SHARE


def is_zstd(source: ByteSource) -> bool:
    """Whether ``source`` begins like a zstd file."""
    start = source.read_exact(0, min(len(FRAME_MAGIC), source.size), field="signature")
    return start == FRAME_MAGIC


def open_seekable(source: ByteSource) -> SeekableSource:
    """The content of the zstd file ``source``.

    Raises:
        UnsupportedError: ``zstd.table.missing``: it has no seek table, or was cut off.
        CorruptError: ``zstd.table.*``: the table is not one of this file.
        MissingPackageError: no package for zstd is installed.
        ReadError: it cannot be read.
    """
    log = FindingLog(source.name)
    place = source.size - FOOTER.size
    footer = source.read_exact(place, FOOTER.size, field="seek_table_footer") if place > 0 else b""
    if not footer or FOOTER.unpack(footer)[2] != FOOTER_MAGIC:
        log.refuse(
            "zstd.table.missing",
            "this zstd file has no seek table, or was cut off; decompress it first (zstd -d)",
            offset=max(0, place),
            field="seek_table_footer",
            expected=f"a seek table, which ends in {FOOTER_MAGIC:#x}",
            exit_code=EXIT_UNSUPPORTED,
        )
    count, descriptor, _ = FOOTER.unpack(footer)
    # The lowest two bits are for programs to use, and none does: a set one is as good a reason to ask.
    if descriptor & ~DESCRIPTOR_CHECKSUMS:
        log.refuse(
            "zstd.table.descriptor",
            "the seek table uses what is not known",
            offset=place + 4,
            field="seek_table_descriptor",
            found=descriptor,
            expected=f"0x0 or {DESCRIPTOR_CHECKSUMS:#x}",
            exit_code=EXIT_UNSUPPORTED,
        )
    has_checksums = bool(descriptor & DESCRIPTOR_CHECKSUMS)
    start = place - count * (12 if has_checksums else 8)
    _check_header(source, log, start, place)
    table = FrameTable(source, start, count, has_checksums=has_checksums)
    if table.stored != start - TABLE_HEADER.size:
        log.refuse(
            "zstd.table.size",
            "the frames of the seek table are not the file's",
            offset=start,
            field="seek_table",
            found=f"{table.stored} bytes of frames",
            expected=f"{start - TABLE_HEADER.size}",
        )
    return SeekableSource(source, table)


def _check_header(source: ByteSource, log: FindingLog, start: int, place: int) -> None:
    """In front of the rows, which begin at ``start``: a frame that says that it ends with the file."""
    if start < TABLE_HEADER.size:
        log.refuse(
            "zstd.table.count",
            "the seek table has more rows than the file has room for",
            offset=place,
            field="number_of_frames",
            found=f"{place - start} bytes of rows",
            expected=f"at most {max(0, place - TABLE_HEADER.size)}",
        )
    at = start - TABLE_HEADER.size
    magic, length = TABLE_HEADER.unpack(source.read_exact(at, TABLE_HEADER.size, field="skippable_frame"))
    rest = source.size - start
    if (magic, length) != (TABLE_MAGIC, rest):
        log.refuse(
            "zstd.table.header",
            "no skippable frame begins where the seek table should",
            offset=at,
            field="skippable_frame",
            found=f"{magic:#x}, {length} bytes",
            expected=f"{TABLE_MAGIC:#x}, {rest} bytes",
        )

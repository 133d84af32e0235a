"""The log: finding what is active in it, and laying it over the file in memory.

The log is a ring of 4096-byte sectors.  Each entry is a header, descriptors, and one data sector for
each page that it writes::

    ring    [ stale | entry n | entry n+1 | entry n+2 | stale ...]
                        ▲                       ▲
                        └──── its tail ─────────┴ the head: the entry with the largest number

What is replayed begins at the head's *tail*.  Older entries of the same run are in place already, and
the space that they describe may have been given to others since.

The ring may come from an enemy.  Entries that are sound but for their checksum cannot overlap, because
each sector begins with the signature of one kind only; so what is cheap is judged first, every place is
judged once, and all checksums together cost no more than one pass over the ring.  Bytes of pages
stay in the log file; what is kept of a descriptor is its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from struct import Struct
from typing import Final, NamedTuple

from vhdtool.checksum import crc32c, crc32c_without_field
from vhdtool.errors import EXIT_UNSUPPORTED, FindingLog, Severity
from vhdtool.formats.image import Section
from vhdtool.formats.vhdx import layout
from vhdtool.formats.vhdx.header import Header
from vhdtool.model.state import LogState
from vhdtool.source import ByteSource, Patch, PatchedSource

SECTOR: Final = layout.LOG_SECTOR_SIZE
LOG_LENGTH_MAX: Final = 1 << 30
"""OpenVMM's limit.  Windows makes logs of 1 MiB."""
REPLAYED_DESCRIPTORS_MAX: Final = 1 << 18
"""As many pages as the longest log can hold; about 100 MiB of descriptors in memory."""
LAST_FILE_OFFSET_MAX: Final = 1 << 47
"""No VHDX needs 128 TiB of file."""
_PIECE: Final = 1 << 20
_SHOWN_MAX: Final = 64
_CLEAN: Final = LogState("clean")


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One valid entry.  ``position`` and ``tail`` are bytes from the start of the ring, sizes are bytes."""

    position: int
    length: int
    tail: int
    sequence_number: int
    descriptor_count: int
    flushed_file_offset: int
    last_file_offset: int
    checksum: int

    def section(self, log_offset: int) -> Section:
        """The entry for people to look at; the log stands at file offset ``log_offset``."""
        return Section(
            f"Log Entry {self.sequence_number}",
            log_offset + self.position,
            (
                ("EntryLength", self.length),
                ("Tail", self.tail),
                ("SequenceNumber", self.sequence_number),
                ("DescriptorCount", self.descriptor_count),
                ("FlushedFileOffset", self.flushed_file_offset),
                ("LastFileOffset", self.last_file_offset),
                ("Checksum", f"{self.checksum:#010x}"),
            ),
        )


class Ring:
    """The bytes of a log; positions run on past its end into its beginning.

    Keeps the last piece that was read: whoever goes through the ring in order reads it once.

    Attributes:
        offset: file offset of the ring.
        length: bytes, a multiple of 1 MiB.
    """

    def __init__(self, source: ByteSource, offset: int, length: int) -> None:
        self.source = source
        self.offset = offset
        self.length = length
        self._piece_start = -1
        self._piece = b""

    def read(self, position: int, count: int) -> bytes:
        """``count`` bytes from ``position``; for small counts, they are cut from the kept piece."""
        position %= self.length
        start = position - position % _PIECE
        if start != self._piece_start:
            size = min(_PIECE, self.length - start)
            self._piece = self.source.read_exact(self.offset + start, size, field="log")
            self._piece_start = start
        at = position - start
        data = self._piece[at : at + count]
        return data if len(data) == count else data + self.read(position + len(data), count - len(data))

    def pieces(self, position: int, count: int) -> Iterator[bytes]:
        """The same bytes in pieces that cost no more memory than the kept one."""
        while count:
            position %= self.length
            size = min(count, _PIECE - position % _PIECE, self.length - position)
            yield self.read(position, size)
            position += size
            count -= size


@lru_cache(maxsize=256)
def _columns(count: int) -> Struct:
    """Signature and sequence number of ``count`` descriptors at once."""
    return Struct("<" + "4s20xQ" * count)


def descriptor_area(count: int) -> int:
    """Bytes of an entry's header and ``count`` descriptors, rounded up to whole sectors."""
    return -(-(layout.LOG_ENTRY_HEADER_SIZE + count * layout.DESCRIPTOR_SIZE) // SECTOR) * SECTOR


class _Scanner:
    """Finds valid entries in a ring; each position is judged once."""

    def __init__(self, ring: Ring, log_guid: bytes) -> None:
        self._ring = ring
        self._guid = log_guid
        self._judged: dict[int, LogEntry | None] = {}

    def active_sequence(self) -> list[LogEntry]:
        """The run of entries that ends in the newest head, empty when there is none."""
        best: list[LogEntry] = []
        passed: set[int] = set()
        position = 0
        while True:
            run = [] if position in passed else self._run(position)
            if run and any(entry.position == run[-1].tail for entry in run):
                if not best or run[-1].sequence_number > best[-1].sequence_number:
                    best = run
                following = (run[-1].position + run[-1].length) % self._ring.length
            else:
                # The rest of a failed run ends at the same head and fails too.
                passed.update(entry.position for entry in run)
                following = (position + SECTOR) % self._ring.length
            if following <= position:
                return best
            position = following

    def _run(self, position: int) -> list[LogEntry]:
        """Entries from ``position`` on, each numbered one more than the one before."""
        run: list[LogEntry] = []
        total = 0
        while entry := self._entry(position):
            total += entry.length
            if total > self._ring.length:
                break
            if run and entry.sequence_number != run[-1].sequence_number + 1:
                break
            run.append(entry)
            position = (position + entry.length) % self._ring.length
        return run

    def _entry(self, position: int) -> LogEntry | None:
        if self._ring.read(position, 4) != layout.LOG_ENTRY_SIGNATURE:
            return None
        if position not in self._judged:
            self._judged[position] = self._judge(position)
        return self._judged[position]

    def _judge(self, position: int) -> LogEntry | None:
        fields = layout.LOG_ENTRY_FIELDS.unpack(self._ring.read(position, layout.LOG_ENTRY_HEADER_SIZE))
        _, checksum, length, tail, sequence, count, _, guid, flushed, last = fields
        if guid != self._guid or sequence == 0:
            return None
        if length % SECTOR or not SECTOR <= length <= self._ring.length:
            return None
        if tail % SECTOR or tail >= self._ring.length:
            return None
        if layout.LOG_ENTRY_HEADER_SIZE + count * layout.DESCRIPTOR_SIZE > length:
            return None
        pages = self._count_pages(position, count, sequence)
        if pages is None or descriptor_area(count) + pages * SECTOR != length:
            return None
        if not self._pages_are_whole(position + descriptor_area(count), pages, sequence):
            return None
        if self._checksum(position, length) != checksum:
            return None
        return LogEntry(position, length, tail, sequence, count, flushed, last, checksum)

    def _count_pages(self, position: int, count: int, sequence: int) -> int | None:
        """How many of an entry's descriptors carry a page; None when one of them is not whole."""
        pages = 0
        for start, here in _descriptor_sectors(count):
            columns = _columns(here)
            found = columns.unpack(self._ring.read(position + start, columns.size))
            signatures, numbers = found[0::2], found[1::2]
            data = signatures.count(layout.DATA_DESCRIPTOR_SIGNATURE)
            zero = signatures.count(layout.ZERO_DESCRIPTOR_SIGNATURE)
            if data + zero != here or numbers.count(sequence) != here:
                return None
            pages += data
        return pages

    def _pages_are_whole(self, position: int, count: int, sequence: int) -> bool:
        start = layout.DATA_SECTOR_SIGNATURE + (sequence >> 32).to_bytes(4, "little")
        end = (sequence & 0xFFFFFFFF).to_bytes(4, "little")
        for i in range(count):
            sector = position + i * SECTOR
            if self._ring.read(sector, 8) != start or self._ring.read(sector + SECTOR - 4, 4) != end:
                return False
        return True

    def _checksum(self, position: int, length: int) -> int:
        pieces = self._ring.pieces(position, length)
        # The first piece holds at least the entry's first sector, and its own field counts as zero.
        crc = crc32c_without_field(next(pieces), layout.CHECKSUM_OFFSET)
        for piece in pieces:
            crc = crc32c(piece, crc)
        return crc


def _descriptor_sectors(count: int) -> Iterator[tuple[int, int]]:
    """Where in an entry its descriptors stand, a sector at a time: first byte, number of descriptors."""
    start = layout.LOG_ENTRY_HEADER_SIZE
    while count:
        here = min(count, (SECTOR - start % SECTOR) // layout.DESCRIPTOR_SIZE)
        yield start, here
        count -= here
        start += here * layout.DESCRIPTOR_SIZE


def find_active_sequence(source: ByteSource, header: Header) -> list[LogEntry]:
    """The active sequence of the log that ``header`` names, oldest entry first; empty when there is none.

    The log must lie inside ``source`` ([MS-VHDX] section 2.3.2, "log sequence").
    """
    ring = Ring(source, header.log_offset, header.log_length)
    return _Scanner(ring, header.log_guid.raw).active_sequence()


class _LoggedPage:
    """A page that a data descriptor writes; its bytes stay in the log until they are asked for."""

    __slots__ = ("_displaced", "_source", "offset")

    def __init__(self, source: ByteSource, offset: int, displaced: bytes) -> None:
        self._source = source
        self.offset = offset  # of the data sector in the log file
        self._displaced = displaced  # leading and trailing bytes, which the data sector has no room for

    def __call__(self, skip: int, count: int) -> bytes:
        sector = self._source.read_exact(self.offset, SECTOR, field="log data sector")
        leading, trailing = self._displaced[: layout.LEADING_SIZE], self._displaced[layout.LEADING_SIZE :]
        page = leading + sector[layout.LEADING_SIZE : SECTOR - layout.TRAILING_SIZE] + trailing
        return page[skip : skip + count]


@dataclass(frozen=True, slots=True)
class LogWrite:
    """What a replayed log says of one byte of the file: which of its descriptors wrote it.

    Attributes:
        sequence_number: of the log entry.
        descriptor: file offset of the descriptor.
        page: file offset of the data sector that holds the bytes; None for a zero descriptor.  Of those
            bytes the first 8 and the last 4 of each page stand in the descriptor.
    """

    sequence_number: int
    descriptor: int
    page: int | None


def _nothing_written(offset: int) -> LogWrite | None:
    """No log was replayed."""
    return None


class Replay(NamedTuple):
    """What became of the log.

    Attributes:
        source: the file, with the log laid over it where it was replayed.
        state: for reports.
        sections: the entries of the active sequence, for people to look at.
        is_misplaced: the log is where it cannot be; blocks need not keep clear of it.
        find_write: what the log says of one byte of the file; None where it says nothing, or was not
            replayed.  Goes through all descriptors: for single questions of people.
    """

    source: ByteSource
    state: LogState
    sections: tuple[Section, ...] = ()
    is_misplaced: bool = False
    find_write: Callable[[int], LogWrite | None] = _nothing_written

    @property
    def patched(self) -> list[tuple[int, int]]:
        """File ranges that the log changed, half open, in order."""
        return self.source.patched if isinstance(self.source, PatchedSource) else []


def replay_log(source: ByteSource, header: Header, log: FindingLog, *, leave_out: bool) -> Replay:
    """Lay a pending log over ``source``; nothing is written.

    A log that is needed and cannot be replayed is an ERROR finding, and the file is shown without it.

    Args:
        leave_out: the user asked to see the file as it is.
    """
    misplaced = _judge_place(source, header, log)
    if not header.log_is_pending:
        return Replay(source, _CLEAN, is_misplaced=misplaced)
    pending = Replay(source, LogState("pending"), is_misplaced=misplaced)
    if leave_out:
        log.note(
            Severity.WARNING,
            "vhdx.log.left_out",
            "a pending log was left out as asked: this is the file before its last changes",
            offset=header.offset + 48,
            field="header.LogGuid",
            found=str(header.log_guid),
        )
        return pending
    if misplaced or header.log_version != 0:
        return pending
    if header.log_length > LOG_LENGTH_MAX:
        _limit(log, header, "the log is too long to be replayed", header.log_length, LOG_LENGTH_MAX)
        return pending
    sequence = find_active_sequence(source, header)
    if not sequence:
        log.note(
            Severity.ERROR,
            "vhdx.log.no_sequence",
            "the log must be replayed, and there is no valid sequence of entries in it",
            offset=header.log_offset,
            field="log",
            found=str(header.log_guid),
        )
        return pending
    return _Replayer(source, header, sequence, log).replay()


def _judge_place(source: ByteSource, header: Header, log: FindingLog) -> bool:
    """Whether the log is where it cannot be; only a warning as long as nothing is read from it."""
    severity = Severity.ERROR if header.log_is_pending else Severity.WARNING
    faults = []
    aligned = header.log_offset % layout.MIB == 0 and header.log_length % layout.MIB == 0
    if header.log_length == 0:
        if header.log_is_pending:
            faults.append(("vhdx.log.zero_length", "the log must be replayed and has no length", 68))
    elif not aligned or header.log_offset < layout.HEADER_AREA_SIZE:
        faults.append(("vhdx.log.align", "the log is misplaced", 72))
    if header.log_length and header.log_stop > source.size:
        faults.append(("vhdx.log.eof", "the log lies beyond the end of the file", 72))
    for code, what, at in faults:
        log.note(
            severity,
            code,
            what,
            offset=header.offset + at,
            field="header.LogOffset" if at == 72 else "header.LogLength",
            found=f"{header.log_length:#x} bytes at {header.log_offset:#x}",
            expected=f"multiples of 1 MiB behind the first MiB, within {source.size:#x}",
        )
    return bool(faults)


def _limit(log: FindingLog, header: Header, what: str, found: int, limit: int) -> None:
    log.note(
        Severity.ERROR,
        "vhdx.log.limit",
        what,
        offset=header.log_offset,
        field="log",
        found=str(found),
        expected=f"at most {limit}",
        exit_code=EXIT_UNSUPPORTED,
    )


def _descriptors(ring: Ring, entry: LogEntry) -> Iterator[tuple[int, int, int, Patch]]:
    """File offset of each descriptor of ``entry``, its target, length and patch, in order."""
    sector = entry.position + descriptor_area(entry.descriptor_count)
    for start, here in _descriptor_sectors(entry.descriptor_count):
        data = ring.read(entry.position + start, here * layout.DESCRIPTOR_SIZE)
        for i, fields in enumerate(layout.DESCRIPTOR_FIELDS.iter_unpack(data)):
            signature, low, high, target, _ = fields
            position = (entry.position + start + i * layout.DESCRIPTOR_SIZE) % ring.length
            if signature == layout.ZERO_DESCRIPTOR_SIGNATURE:
                length = int.from_bytes(high, "little")
                patch = Patch(target, length)
            else:
                length = SECTOR
                page = _LoggedPage(ring.source, ring.offset + sector % ring.length, high + low)
                patch = Patch(target, length, page)
                sector += SECTOR
            yield ring.offset + position, target, length, patch


def _find_write(
    source: ByteSource, header: Header, entries: Sequence[LogEntry], offset: int
) -> LogWrite | None:
    """The descriptor that wrote file byte ``offset`` last; ``entries`` were replayed in this order."""
    ring = Ring(source, header.log_offset, header.log_length)
    for entry in reversed(entries):
        found = None
        for at, target, length, patch in _descriptors(ring, entry):
            if target <= offset < target + length:
                page = patch.page.offset if isinstance(patch.page, _LoggedPage) else None
                found = LogWrite(entry.sequence_number, at, page)
        if found is not None:
            return found
    return None


class _Replayer:
    """Turns the descriptors of an active sequence into patches."""

    def __init__(self, source: ByteSource, header: Header, sequence: list[LogEntry], log: FindingLog) -> None:
        self._source = source
        self._header = header
        self._sequence = sequence
        self._head = sequence[-1]
        self._log = log
        self._ring = Ring(source, header.log_offset, header.log_length)
        self._patches: list[Patch] = []

    def replay(self) -> Replay:
        """The file with the log laid over it, or without it when an error stands in the way."""
        sections = tuple(entry.section(self._header.log_offset) for entry in self._sequence[-_SHOWN_MAX:])
        pending = Replay(self._source, LogState("pending"), sections)
        start = next(i for i, entry in enumerate(self._sequence) if entry.position == self._head.tail)
        entries = self._sequence[start:]
        self._judge_sizes()
        if self._head.last_file_offset > LAST_FILE_OFFSET_MAX:
            return pending
        count = sum(entry.descriptor_count for entry in entries)
        if count > REPLAYED_DESCRIPTORS_MAX:
            what = "the log has too many descriptors to be replayed in memory"
            _limit(self._log, self._header, what, count, REPLAYED_DESCRIPTORS_MAX)
            return pending
        size = max(self._source.size, self._head.last_file_offset)
        if not self._collect(entries, size):
            return pending
        patched = PatchedSource(self._source, self._patches, size)
        changed = sum(stop - first for first, stop in patched.patched)
        self._log.note(
            Severity.INFO,
            "vhdx.log.pending",
            f"dirty log: {len(entries)} {'entry' if len(entries) == 1 else 'entries'} replayed in memory",
            offset=self._header.log_offset,
            field="log",
            found=f"{changed} bytes",
        )
        state = LogState("pending", len(entries), changed, replayed=True)
        find_write = partial(_find_write, self._source, self._header, entries)
        return Replay(patched, state, sections, find_write=find_write)

    def _judge_sizes(self) -> None:
        head, size = self._head, self._source.size
        at = self._header.log_offset + head.position
        if size < head.flushed_file_offset:
            self._log.note(
                Severity.ERROR,
                "vhdx.log.truncated",
                "the file is shorter than when the log was written: it was cut",
                offset=at + 48,
                field="log_entry.FlushedFileOffset",
                found=size,
                expected=f"at least {head.flushed_file_offset:#x}",
            )
        if head.last_file_offset > LAST_FILE_OFFSET_MAX:
            self._log.note(
                Severity.ERROR,
                "vhdx.log.last_offset",
                "the log makes the file larger than any VHDX can be",
                offset=at + 56,
                field="log_entry.LastFileOffset",
                found=head.last_file_offset,
                expected=f"at most {LAST_FILE_OFFSET_MAX:#x}",
            )
        elif head.last_file_offset > size:
            self._log.note(
                Severity.WARNING,
                "vhdx.log.extends",
                "the log makes the file longer than it is; what is missing reads as zeros",
                offset=at + 56,
                field="log_entry.LastFileOffset",
                found=head.last_file_offset,
                expected=f"at most {size:#x}",
            )

    def _collect(self, entries: list[LogEntry], size: int) -> bool:
        """Fill the patches from ``entries`` in order; False when one of them goes where it must not."""
        dropped: list[int] = []
        for entry in entries:
            for at, target, length, patch in _descriptors(self._ring, entry):
                fault = self._target_fault(target, length)
                if fault:
                    self._log.note(
                        Severity.ERROR,
                        "vhdx.log.target",
                        f"a log entry would write {fault}",
                        offset=at,
                        field="descriptor.FileOffset",
                        found=f"{length:#x} bytes at {target:#x}",
                    )
                    return False
                if target + length > size:
                    dropped.append(at)
                if target < size and length:
                    self._patches.append(patch)
        if dropped:
            self._log.note(
                Severity.WARNING,
                "vhdx.log.target",
                "a log entry writes beyond the length that the log gives the file; that part is dropped",
                offset=dropped[0],
                field="descriptor.FileOffset",
                expected=f"at most {size:#x}",
                times=len(dropped),
            )
        return True

    def _target_fault(self, target: int, length: int) -> str:
        """Where a descriptor must not write; empty when it may."""
        if target % SECTOR or length % SECTOR:
            return "pages that are not aligned"
        if target < layout.REPLAY_OFFSET_MIN:
            return "into the headers"
        if target < self._header.log_stop and self._header.log_offset < target + length:
            return "into the log itself"
        return ""

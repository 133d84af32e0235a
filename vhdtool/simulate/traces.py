"""Recorded workloads: traces of fio, blkparse, MSR Cambridge and plain CSV, streamed from their file.

::

    file ──► blocks of lines ──► a dialect: one request a line ──► one device, inside the disk ──► batches

Memory depends on neither the file's length nor its content: lines have at most ``LINE_MAX`` bytes, and one
block of them is held.  A line that breaks its format's rules is an error with its number, and is never passed
over: what would be measured then is not what was recorded.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from vhdtool.errors import CorruptError, Finding, Location, Severity, TraceError, hexadecimal, printable
from vhdtool.simulate import dialects
from vhdtool.simulate.dialects import BYTES_MAX, EVENTS, READ, WRITE, Dialect, Event, LineFault, device_name
from vhdtool.simulate.workloads import BATCH_ROWS, Batch
from vhdtool.source import FileSource

if TYPE_CHECKING:
    import os

    from vhdtool.source import ByteSource

Format = Literal["auto", "fio", "blkparse", "msr", "csv"]
FORMATS: Final[tuple[Format, ...]] = ("auto", "fio", "blkparse", "msr", "csv")
Operations = Literal["read", "write", "all"]
Beyond = Literal["error", "skip", "wrap"]

LINE_MAX: Final = 64 << 10
_BLOCK_SIZE: Final = 256 << 10
# How far names of devices are looked for, and how many, when a message shall say which there are.
_SURVEY_SIZE: Final = 16 << 20
_NAMES_MAX: Final = 16

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
# How files begin that people are likely to name here, and what they should do.
_NO_TEXT: Final = {
    b"\x1f\x8b": "a gzip file: unpack it first",
    b"BZh": "a bzip2 file: unpack it first",
    b"\xfd7zXZ": "an xz file: unpack it first",
    b"\x28\xb5\x2f\xfd": "a Zstandard file: unpack it first",
    b"PK\x03\x04": "a ZIP file: unpack it first",
    b"\x07tae": "binary output of blktrace: print it with blkparse",
    b"eat\x07": "binary output of blktrace: print it with blkparse",
}

_FIO: Final = {
    2: Dialect("fio", "fio iolog version 2", "file", dialects.parse_fio_v2),
    3: Dialect("fio", "fio iolog version 3", "file", dialects.parse_fio_v3),
}
_MSR: Final = Dialect("msr", "MSR Cambridge CSV", "disk", dialects.parse_msr)
_CSV: Final = Dialect("csv", "CSV", "", dialects.parse_csv)
_TAKEN: Final[dict[Operations, tuple[int, ...]]] = {
    "read": (READ,),
    "write": (WRITE,),
    "all": (READ, WRITE),
}


@dataclass(slots=True)
class TraceCounts:
    """What one pass through a trace met: requests, of the chosen device but for the last.

    Attributes:
        taken: given out in batches.
        wrapped: of those, moved because they left the disk.
        skipped_reads, skipped_writes: not asked for.
        skipped_others: neither reads nor writes: trims, flushes, packet commands.
        skipped_empty: of no bytes.
        skipped_beyond: left the disk.
        other_devices: of other devices than the chosen one.
    """

    taken: int = 0
    wrapped: int = 0
    skipped_reads: int = 0
    skipped_writes: int = 0
    skipped_others: int = 0
    skipped_empty: int = 0
    skipped_beyond: int = 0
    other_devices: int = 0


@dataclass(slots=True, eq=False)
class Trace:
    """A recorded workload; a :class:`~vhdtool.simulate.workloads.Workload`.

    Attributes:
        path: as the user gave it.
        dialect: the format of its lines.
        header_lines: so many at the beginning are no requests.
        counts: of the last pass, whole when ``batches`` has come to its end.
    """

    path: Path
    dialect: Dialect
    header_lines: int
    virtual_size: int | None
    ops: Operations
    device: str | None
    beyond: Beyond
    counts: TraceCounts = field(default_factory=TraceCounts)

    @property
    def name(self) -> str:
        """What kind of workload it is."""
        return "trace"

    @property
    def skipped_writes(self) -> int:
        """Writes that the last pass met and did not take."""
        return self.counts.skipped_writes

    def describe(self) -> str:
        """The workload in words."""
        what = {"read": "reads", "write": "writes", "all": "reads and writes"}[self.ops]
        of_device = "" if self.device is None else f" of {self.dialect.device_word} {self.device}"
        return printable(f"trace: {what}{of_device} in {self.path.name} ({self.dialect.title})")

    def batches(self, *, rows: int = BATCH_ROWS) -> Iterator[Batch]:
        """The requests in order, at most ``rows`` at a time.

        Raises:
            TraceError: a line breaks the format's rules or leaves the disk; requests of several devices and
                none was chosen; nothing that was asked for.
            InputError: the file cannot be read.
        """
        with _open(self.path) as source:
            run = _Pass(self, source)
            self.counts = run.counts
            for block in line_blocks(source):
                run.take(block)
                while len(run.offset) >= rows:
                    yield run.batch(rows)
            if run.offset:
                yield run.batch(rows)
            if not run.counts.taken:
                raise self._nothing(source)

    def _nothing(self, source: ByteSource) -> TraceError:
        """Why a pass had nothing to give."""
        counts = self.counts
        if self.device is not None and counts == TraceCounts(other_devices=counts.other_devices):
            names = ", ".join(_device_names(source, self.dialect, set())) or "none"
            word = self.dialect.device_word
            return _error("trace.device", source.name, f"the trace has no {word} {self.device}", names)
        found = (
            f"{counts.skipped_reads} reads and {counts.skipped_writes} writes not asked for, "
            f"{counts.skipped_beyond} beyond the disk, {counts.skipped_others + counts.skipped_empty} others"
        )
        return _error("trace.empty", source.name, "the trace has no request that was asked for", found)


def open_trace(
    path: str | os.PathLike[str],
    format: Format = "auto",  # noqa: A002
    *,
    virtual_size: int | None = None,
    ops: Operations = "read",
    device: str | None = None,
    event: Event | None = None,
    beyond: Beyond = "error",
) -> Trace:
    """The workload recorded in the file ``path``; its first lines are read here, the rest in ``batches``.

    Args:
        format: "auto" looks at the first line.
        virtual_size: bytes of the disk that the requests are for; None: they are not compared with any.
        ops: which requests are taken; the others are counted.
        device: of several files (fio), devices (blkparse: ``8,0``) or disks (MSR: ``usr_0``) this one.
        event: of blkparse's actions the one that counts as a request: Q(ueued), D (issued), C(ompleted);
            None takes the first of these that the trace has.
        beyond: what to do with a request that begins or ends beyond the disk's end.  "error" refuses the
            trace.  "skip" leaves it out.  "wrap" takes its offset modulo the disk's size, and cuts off what
            then still passes the end.

    Raises:
        TraceError: no trace of such a format.
        InputError: the file cannot be read.
    """
    if virtual_size is None and beyond != "error":
        raise ValueError(f"beyond={beyond!r} needs the disk's size")
    if virtual_size is not None and not 0 < virtual_size <= BYTES_MAX:
        raise ValueError(f"a disk cannot have {virtual_size} bytes")
    path = Path(path)
    with _open(path) as source:
        _refuse_no_text(source)
        dialect, header_lines = _detect(source, format, event, device)
    if device is not None and not dialect.device_word:
        raise _error("trace.device", str(path), "this format names no device", expected=device)
    return Trace(path, dialect, header_lines, virtual_size, ops, device, beyond)


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Whole lines without their ends.

    Attributes:
        number: of the first line, from 1.
        offset: in bytes, of the first line.
    """

    number: int
    offset: int
    lines: list[bytes]

    def fault(self, name: str, index: int, fault: LineFault) -> TraceError:
        """The error for what is wrong with line ``index`` of this block of the file ``name``."""
        offset = self.offset + sum(len(line) + 1 for line in self.lines[:index])
        place = f"line {self.number + index}" + (f", {fault.field}" if fault.field else "")
        return _error(fault.code, name, fault.what, fault.found, fault.expected, offset=offset, place=place)


def line_blocks(source: ByteSource) -> Iterator[LineBlock]:
    """The lines of a text file, in order, in blocks of bounded size.

    Raises:
        TraceError: a line is longer than ``LINE_MAX`` bytes, or there is a NUL in it: this is no text.
    """
    number, offset, rest = 1, 0, b""
    for position in range(0, source.size, _BLOCK_SIZE):
        data = rest + source.read_exact(position, min(_BLOCK_SIZE, source.size - position), field="trace")
        if position == 0 and data.startswith(_BYTE_ORDER_MARK):
            data, offset = data[len(_BYTE_ORDER_MARK) :], len(_BYTE_ORDER_MARK)
        block = LineBlock(number, offset, data.split(b"\n"))
        _refuse_odd_lines(source.name, block, b"\0" in data)
        rest = block.lines.pop()
        yield block
        number += len(block.lines)
        offset += len(data) - len(rest)
    if rest:
        yield LineBlock(number, offset, [rest])


def _refuse_odd_lines(name: str, block: LineBlock, has_nul: bool) -> None:
    if not has_nul and max(map(len, block.lines)) <= LINE_MAX:
        return
    for index, line in enumerate(block.lines):
        if b"\0" in line:
            fault = LineFault("trace.line", "this is no text", found="a NUL byte", expected="text")
            raise block.fault(name, index, fault)
        if len(line) > LINE_MAX:
            expected = f"at most {LINE_MAX} bytes"
            raise block.fault(name, index, LineFault("trace.line", "the line is too long", expected=expected))


class _Pass:
    """One pass through a trace: what was taken and not yet given out, and what was met."""

    def __init__(self, trace: Trace, source: ByteSource) -> None:
        self.counts = TraceCounts()
        self.offset = array("q")
        self.length = array("q")
        self._trace = trace
        self._source = source
        self._taken = _TAKEN[trace.ops]
        self._end_max = BYTES_MAX if trace.virtual_size is None else trace.virtual_size
        self._device = None if trace.device is None else trace.device.encode("utf-8", "surrogateescape")

    def batch(self, rows: int) -> Batch:
        """The first ``rows`` requests taken, or all if they are fewer; they are given out."""
        offset, length = self.offset[:rows], self.length[:rows]
        del self.offset[:rows], self.length[:rows]
        return Batch(np.frombuffer(offset, np.int64), np.frombuffer(length, np.int64))

    def take(self, block: LineBlock) -> None:
        """Take the requests of ``block``."""
        parse = self._trace.dialect.parse
        first = max(0, self._trace.header_lines + 1 - block.number)
        before = len(self.offset)
        try:
            for index in range(first, len(block.lines)):
                request = parse(block.lines[index])
                if request is None:
                    continue
                device, operation, offset, length = request
                if device != self._device and not self._is_ours(device):
                    continue
                if operation not in self._taken or not length:
                    self._skip(operation)
                    continue
                if offset + length > self._end_max:
                    offset, length = self._fitted(offset, length)
                    if not length:
                        continue
                self.offset.append(offset)
                self.length.append(length)
        except LineFault as fault:
            raise block.fault(self._source.name, index, fault) from None
        self.counts.taken += len(self.offset) - before

    def _is_ours(self, device: bytes) -> bool:
        """Whether a request of a device that was not met before counts."""
        if self._trace.device is not None:
            self.counts.other_devices += 1
            return False
        if self._device is None:
            self._device = device
            return True
        dialect = self._trace.dialect
        names = _device_names(self._source, dialect, {device_name(self._device), device_name(device)})
        raise LineFault(
            "trace.device",
            f"the trace is of several {dialect.device_word}s",
            dialect.device_word,
            ", ".join(names),
            "one, or that one of them is chosen",
        )

    def _skip(self, operation: int) -> None:
        counts = self.counts
        if operation in self._taken:
            counts.skipped_empty += 1
        elif operation == READ:
            counts.skipped_reads += 1
        elif operation == WRITE:
            counts.skipped_writes += 1
        else:
            counts.skipped_others += 1

    def _fitted(self, offset: int, length: int) -> tuple[int, int]:
        """A request that leaves the disk as it is read all the same; of no bytes where it is not."""
        found = f"offset {hexadecimal(offset)}, {length} bytes"
        if offset + length > BYTES_MAX:
            expected = f"an end of {BYTES_MAX} at most"
            raise LineFault("trace.field", "no disk is so large", "offset", found, expected)
        size = self._end_max
        if self._trace.beyond == "error":
            expected = f"a disk's size of {hexadecimal(size)} ({size} bytes) at most"
            raise LineFault("trace.beyond", "a request leaves the disk", "offset", found, expected)
        if self._trace.beyond == "skip":
            self.counts.skipped_beyond += 1
            return 0, 0
        self.counts.wrapped += 1
        return offset % size, min(length, size - offset % size)


def _detect(
    source: ByteSource, asked: Format, event: Event | None, device: str | None
) -> tuple[Dialect, int]:
    """The format of a trace, and how many lines at its beginning are no requests."""
    for block in line_blocks(source):
        for index, line in enumerate(block.lines):
            if dialects.is_csv_comment(line) or line.startswith(b"Input file "):
                continue
            try:
                found = _recognised(line, asked)
            except LineFault as fault:
                raise block.fault(source.name, index, fault) from None
            if found == "blkparse":
                return _blkparse(event or _event_of(source, device)), 0
            dialect, is_header = found
            return dialect, block.number + index if is_header else 0
    raise _error("trace.format", source.name, "the trace is empty")


def _recognised(line: bytes, asked: Format) -> tuple[Dialect, bool] | Literal["blkparse"]:
    """The format by its first line, and whether that is a header.

    A format that was asked for is taken at its word: what is wrong with a line is said when it is parsed.
    """
    version = dialects.fio_version(line)
    if asked == "fio" or (asked == "auto" and version is not None):
        dialect = _FIO.get(version or 0)
        if dialect is None:
            found = "another first line" if version is None else f"version {version}"
            expected = "fio version 2 iolog, or 3"
            raise LineFault("trace.format", "this is no iolog of a known version", "", found, expected)
        return dialect, True
    if asked == "blkparse" or (asked == "auto" and dialects.blkparse_action(line)):
        return "blkparse"
    for dialect, is_header in ((_MSR, dialects.is_msr_header), (_CSV, dialects.is_csv_header)):
        header = is_header(line)
        if asked == dialect.name or (asked == "auto" and (header or _parses(dialect, line))):
            return dialect, header
    expected = "a fio iolog, the text of blkparse, MSR Cambridge CSV, or offset,length[,op]"
    raise LineFault("trace.format", "this is no trace of a known format", expected=expected)


def _parses(dialect: Dialect, line: bytes) -> bool:
    with suppress(LineFault):
        return dialect.parse(line) is not None
    return False


def _blkparse(event: Event) -> Dialect:
    parse = partial(dialects.parse_blkparse, event=event.encode("ascii"))
    return Dialect("blkparse", f"blkparse, {event} events", "device", parse)


def _event_of(source: ByteSource, device: str | None) -> Event:
    """The first of ``EVENTS`` that a trace has, of the chosen device; the first of all where it has none."""
    seen: set[str] = set()
    for block in line_blocks(source):
        for line in block.lines:
            found = dialects.blkparse_action(line)
            if found is not None and device in (None, found[0].decode("ascii")):
                seen.add(found[1].decode("ascii", "replace"))
        # One look a block: only a trace without such events is read to its end.
        if EVENTS[0] in seen:
            break
    return next((event for event in EVENTS if event in seen), EVENTS[0])


def _device_names(source: ByteSource, dialect: Dialect, names: set[str]) -> list[str]:
    """``names`` and more of the devices that a trace's first part has requests of."""
    with suppress(TraceError):
        for block in line_blocks(source):
            for line in block.lines:
                with suppress(LineFault):
                    request = dialect.parse(line)
                    if request is not None and len(names) < _NAMES_MAX:
                        names.add(device_name(request[0]))
            if block.offset > _SURVEY_SIZE:
                break
    return sorted(names)


def _open(path: Path) -> FileSource:
    try:
        return FileSource(path)
    except CorruptError as error:  # no regular file
        if error.finding is None:
            raise
        raise TraceError(replace(error.finding, what="this cannot be a trace")) from error


def _refuse_no_text(source: ByteSource) -> None:
    head = source.read_exact(0, min(source.size, 8), field="trace")
    for magic, found in _NO_TEXT.items():
        if head.startswith(magic):
            raise _error("trace.format", source.name, "this is no text", found)


def _error(
    code: str,
    name: str,
    what: str,
    found: str = "",
    expected: str = "",
    *,
    offset: int | None = None,
    place: str = "",
) -> TraceError:
    return TraceError(Finding(code, Severity.ERROR, Location(name, offset, place), what, found, expected))

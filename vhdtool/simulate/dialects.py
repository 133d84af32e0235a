"""The lines of recorded workloads: one function for each format, bytes in, one request out.

Sources: fio 3.33, HOWTO, "Trace file format"; blkparse(1) of blktrace 1.2.0, "Default output"; the README of
the MSR Cambridge traces (Narayanan, Donnelly and Rowstron, FAST 2008).

A line is a request, or says nothing about requests (None), or breaks its format's rules (:class:`LineFault`).
Fields that do not matter here (times, processes) are only looked at as far as they tell a good line from one
that is cut off or out of step.  Nothing is assumed of what is not ASCII: names may hold any bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

READ: Final = 0
WRITE: Final = 1
# Trims, flushes, waits: neither read nor written.
OTHER: Final = 2

# Device (empty where the format has none), operation, offset and length in bytes.
Request = tuple[bytes, int, int, int]
Parser = Callable[[bytes], Request | None]

Event = Literal["Q", "D", "C"]
# In the order in which one is taken where the user names none.
EVENTS: Final[tuple[Event, ...]] = ("Q", "D", "C")

# Offsets are kept as int64; what has more digits is refused before it is converted.
BYTES_MAX: Final = (1 << 63) - 1
_DIGITS_MAX: Final = len(str(BYTES_MAX))
_SECTOR_SIZE: Final = 512

_FIO_VERSION: Final = re.compile(rb"fio version (\d+) iolog\s*")
_FIO_OPERATION: Final = {
    b"read": READ,
    b"write": WRITE,
    b"trim": OTHER,
    b"sync": OTHER,
    b"datasync": OTHER,
    b"sync_file_range": OTHER,
    b"syncfs": OTHER,
    b"wait": OTHER,
}
_FIO_FILE_ACTIONS: Final = frozenset((b"add", b"open", b"close"))

_DEVICE: Final = re.compile(rb"\d{1,10},\d{1,10}")
_EVENT_TIME: Final = re.compile(rb"\d+\.\d+")
# The summary: headings such as "CPU0 (sda):" and "cp (812)", and lines such as "Skips: 0 forward".
_SUMMARY: Final = re.compile(rb"\S.*\(.*\):?\s*|\s*[A-Z][A-Za-z. ]*(\([^)]*\))?:.*|Input file .* added\s*")
_ACTIONS: Final = frozenset(b"A B C D F G I M P Q R S T U UT X m".split())
# The first letter that says what is done; F in front is a flush before it.  N: nothing, E: secure erase.
_RWBS: Final = {b"R": READ, b"W": WRITE, b"D": OTHER, b"N": OTHER, b"E": OTHER, b"": OTHER}

_MSR_COLUMNS: Final = (
    b"timestamp",
    b"hostname",
    b"disknumber",
    b"type",
    b"offset",
    b"size",
    b"responsetime",
)
_MSR_OPERATION: Final = {b"Read": READ, b"Write": WRITE, b"read": READ, b"write": WRITE}

_CSV_HEADERS: Final = ((b"offset",), (b"length", b"size"), (b"op", b"operation", b"type"))
_CSV_OPERATION: Final = {
    b"r": READ,
    b"read": READ,
    b"w": WRITE,
    b"write": WRITE,
    b"d": OTHER,
    b"discard": OTHER,
    b"trim": OTHER,
    b"f": OTHER,
    b"flush": OTHER,
}


class LineFault(Exception):  # noqa: N818
    """What is wrong with a line; who knows the file and the line's number makes an error of it."""

    def __init__(self, code: str, what: str, field: str = "", found: str = "", expected: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.field = field
        self.found = found
        self.expected = expected


@dataclass(frozen=True, slots=True)
class Dialect:
    """One format.

    Attributes:
        name: as the user calls it.
        title: with its version, for people.
        device_word: what its lines name besides the place: a file, a device, a disk; empty where nothing.
        parse: one line to a request.
    """

    name: str
    title: str
    device_word: str
    parse: Parser


def shown(data: bytes, length_max: int = 40) -> str:
    """``data`` as messages show it: not all of it where it is long.  Not yet fit for a terminal."""
    text = data[:length_max].decode("utf-8", "backslashreplace")
    return text if len(data) <= length_max else f"{text}... ({len(data)} bytes)"


def device_name(device: bytes) -> str:
    """A request's device as people read and choose it."""
    return shown(device, 1024)


def fio_version(line: bytes) -> int | None:
    """The version in the first line of a fio iolog; None for any other line."""
    match = _FIO_VERSION.fullmatch(line)
    return None if match is None else int(match[1][:_DIGITS_MAX])


def parse_fio_v2(line: bytes) -> Request | None:
    """``filename action [offset length]``."""
    words = line.split()
    return _fio(words, "") if words else None


def parse_fio_v3(line: bytes) -> Request | None:
    """``timestamp filename action [offset length]``."""
    words = line.split()
    if not words:
        return None
    _number(words[0], "timestamp")
    return _fio(words[1:], "timestamp ")


def _fio(words: list[bytes], before: str) -> Request | None:
    """A line's request; ``before`` is what the format has in front of ``words``."""
    if len(words) == 4:
        file, action, offset, length = words
        operation = _FIO_OPERATION.get(action)
        if operation is None:
            raise _wrong_word("action", action, _FIO_OPERATION)
        return file, operation, _number(offset, "offset"), _number(length, "length")
    if len(words) == 2:
        if words[1] not in _FIO_FILE_ACTIONS:
            raise _wrong_word("action", words[1], _FIO_FILE_ACTIONS)
        return None
    raise _wrong_count(len(words) + bool(before), f"{before}filename action [offset length]")


def parse_blkparse(line: bytes, event: bytes) -> Request | None:
    """``device cpu sequence time pid action rwbs [sector + sectors] [process]``; only ``event`` counts."""
    words = line.split(None, 10)
    if not words:
        return None
    if _DEVICE.fullmatch(words[0]) is None:
        if _SUMMARY.fullmatch(line):
            return None
        raise _wrong("device", words[0], "major,minor")
    if len(words) < 7:
        raise _wrong_count(len(words), "device cpu sequence time pid action rwbs ...")
    device, cpu, sequence, time, pid, action, rwbs = words[:7]
    if action != event:
        if action not in _ACTIONS:
            raise _wrong_word("action", action, _ACTIONS)
        return None
    if not (cpu.isdigit() and sequence.isdigit() and pid.isdigit() and _EVENT_TIME.fullmatch(time)):
        raise _wrong("cpu, sequence, time, pid", b" ".join(words[1:5]), "numbers")
    operation = _RWBS.get(rwbs.lstrip(b"F")[:1])
    if operation is None or not rwbs.isalpha():
        raise _wrong("rwbs", rwbs, "R, W, D or N with flags")
    if len(words) == 11 and words[8] == b"+":  # the eleventh ends the line: without it a number may be cut
        sector = _number(words[7], "sector")
        return device, operation, sector * _SECTOR_SIZE, _number(words[9], "sectors") * _SECTOR_SIZE
    if _has_no_place(words[7:]):
        return device, OTHER, 0, 0
    raise _wrong("sector", b" ".join(words[7:10]), "sector + sectors [process]")


def _has_no_place(words: list[bytes]) -> bool:
    """Whether an event says, after its header, that it is about no sectors: a flush, or a packet command."""
    if words and words[0].isdigit():
        del words[0]  # the bytes of a packet command
    return bool(words) and words[0][:1] in (b"[", b"(")


def blkparse_action(line: bytes) -> tuple[bytes, bytes] | None:
    """Device and action of an event's line; None for all other lines, good or not."""
    words = line.split(None, 6)
    return (words[0], words[5]) if len(words) == 7 and _DEVICE.fullmatch(words[0]) else None


def parse_msr(line: bytes) -> Request | None:
    """``Timestamp,Hostname,DiskNumber,Type,Offset,Size,ResponseTime``; the device is ``Hostname_DiskNumber``.

    So the traces' files are called.
    """
    fields = line.split(b",")
    if len(fields) != len(_MSR_COLUMNS):
        if not line.strip():
            return None
        raise _wrong_count(len(fields), "Timestamp,Hostname,DiskNumber,Type,Offset,Size,ResponseTime")
    operation = _MSR_OPERATION.get(fields[3])
    if operation is None:
        raise _wrong_word("Type", fields[3], (b"Read", b"Write"))
    if not fields[2].isdigit():
        raise _wrong("DiskNumber", fields[2], "decimal digits")
    offset = _number(fields[4], "Offset")
    return fields[1] + b"_" + fields[2], operation, offset, _number(fields[5], "Size")


def is_msr_header(line: bytes) -> bool:
    """Whether ``line`` names the columns, as the traces' README does."""
    return tuple(field.strip().lower() for field in line.split(b",")) == _MSR_COLUMNS


def parse_csv(line: bytes) -> Request | None:
    """``offset,length[,op]``; blank lines and those that begin with # are passed over."""
    if not line[:1].isdigit() and is_csv_comment(line):
        return None
    fields = line.split(b",")
    operation = READ
    if len(fields) == 3:
        named = _CSV_OPERATION.get(fields[2].strip().lower())
        if named is None:
            raise _wrong_word("op", fields[2].strip(), _CSV_OPERATION)
        operation = named
    elif len(fields) != 2:
        raise _wrong_count(len(fields), "offset,length[,op]")
    return b"", operation, _number(fields[0], "offset"), _number(fields[1], "length")


def is_csv_header(line: bytes) -> bool:
    """Whether ``line`` names the columns of a plain CSV."""
    fields = [field.strip().lower() for field in line.split(b",")]
    return 2 <= len(fields) <= 3 and all(
        field in names for field, names in zip(fields, _CSV_HEADERS, strict=False)
    )


def is_csv_comment(line: bytes) -> bool:
    """Whether a plain CSV's ``line`` is blank or begins with #."""
    return line.lstrip()[:1] in (b"", b"#")


def _number(word: bytes, field: str) -> int:
    """A whole number of decimal digits, and nothing else that ``int`` would take."""
    if word.isdigit() and len(word) <= _DIGITS_MAX:
        return int(word)
    word = word.strip()
    if not word.isdigit():
        raise _wrong(field, word, "decimal digits")
    if len(word) > _DIGITS_MAX:
        raise _wrong(field, word, f"at most {BYTES_MAX}")
    return int(word)


def _wrong(field: str, found: bytes, expected: str) -> LineFault:
    return LineFault("trace.field", f"the {field} is wrong", field, shown(found) or "nothing", expected)


def _wrong_word(field: str, found: bytes, known: Iterable[bytes]) -> LineFault:
    words = sorted(word.decode("ascii") for word in known)
    return _wrong(field, found, f"one of {', '.join(words)}")


def _wrong_count(found: int, shape: str) -> LineFault:
    return LineFault("trace.line", "the line has another number of fields", "", f"{found} fields", shape)

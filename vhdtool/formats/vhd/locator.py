"""Parent locators: the strings by which a differencing VHD names its parent.

They come from a stranger.  Here they are decoded and sorted into what they are; whether one is followed,
and how far, is the chain's business.  Locator strings are UTF-16 little-endian, the Parent Unicode Name in
the header is big-endian: the specification mentions neither, real files agree.
"""

from __future__ import annotations

import re
from codecs import utf_16_be_decode, utf_16_le_decode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vhdtool.errors import FindingLog, Severity
from vhdtool.formats.vhd import layout
from vhdtool.model.identity import ParentPath, PathKind, base_name
from vhdtool.source import ByteSource

UNUSED: Final = bytes(4)
_EMPTY: Final = bytes(layout.PARENT_LOCATOR_ENTRY_SIZE)
_CODES: Final = (b"Wi2r", b"Wi2k", b"W2ru", b"W2ku", b"Mac ", b"MacX")
_LENGTH_MAX: Final = 64 << 10
# The records in the order in which they are tried; "Mac " is an opaque alias and names no path.
_ORDER: Final = ("W2ru", "Wi2r", "W2ku", "Wi2k", "Parent Unicode Name", "MacX")
_RELATIVE: Final = ("W2ru", "Wi2r")

_DRIVE = re.compile(r"^[A-Za-z]:")
# Win32 and NT object paths that lead to a file by a drive letter, a volume or a share; others are devices.
_LONG_PATH_OF_A_FILE = re.compile(r"\\\\\?\\([A-Za-z]:|volume\{|unc\\)", re.IGNORECASE)
_OBJECT_PATH = re.compile(r"\\\\[.?]\\|\\\?\?\\|\\device\\|\\global\?\?\\|\\\\globalroot\\", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LocatorEntry:
    """One of the eight entries as stored.

    Attributes:
        index: 0 to 7.
        at: where the entry stands in the file.
        code: Platform Code, 4 bytes.
        space: sectors by the specification, bytes in real files; see ``space_bytes``.
        offset, length: where the data stand, in bytes.
    """

    index: int
    at: int
    code: bytes
    space: int
    length: int
    reserved: int
    offset: int

    @property
    def name(self) -> str:
        """The code as messages print it."""
        if self.code in _CODES:
            return self.code.decode("ascii").rstrip()
        return f"{int.from_bytes(self.code, 'big'):#010x}"

    @property
    def space_bytes(self) -> int:
        """Bytes set aside for the data, by libvhd's rule: small numbers are sectors, large ones bytes."""
        if self.space < layout.SECTOR_SIZE:
            return self.space * layout.SECTOR_SIZE
        return self.space if self.space % layout.SECTOR_SIZE == 0 else self.length


def decode_entries(raw: bytes, at: int) -> tuple[LocatorEntry, ...]:
    """The entries in the 192 bytes ``raw`` that stand at file offset ``at``; those all zero are left out."""
    size = layout.PARENT_LOCATOR_ENTRY_SIZE
    entries = []
    for index in range(layout.PARENT_LOCATOR_ENTRIES):
        if raw.startswith(_EMPTY, index * size):
            continue
        entry = layout.parse_parent_locator(raw, index * size)
        entries.append(
            LocatorEntry(
                index,
                at + index * size,
                entry.platform_code,
                entry.platform_data_space,
                entry.platform_data_length,
                entry.reserved,
                entry.platform_data_offset,
            )
        )
    return tuple(entries)


def read_paths(
    source: ByteSource, entries: Sequence[LocatorEntry], name: str, name_at: int, log: FindingLog
) -> tuple[ParentPath, ...]:
    """The paths of the parent, in the order in which they are to be tried, without repeats.

    Args:
        name: the Parent Unicode Name, decoded; empty when there is none.
        name_at: its file offset.
    """
    texts: list[tuple[str, str, int]] = []
    for entry in entries:
        text = _read_entry(source, entry, log)
        if text:
            texts.append((entry.name, text, entry.offset))
    if name:
        texts.append(("Parent Unicode Name", name, name_at))
    texts.sort(key=lambda found: _ORDER.index(found[0]))
    paths: list[ParentPath] = []
    for locator, text, at in texts:
        path = _sort_out(locator, text, at, log)
        if path is not None and path not in paths:
            paths.append(path)
    return tuple(paths)


def usable_entries(source: ByteSource, entries: Sequence[LocatorEntry]) -> list[LocatorEntry]:
    """Those whose data lie inside the file: what blocks must not overlap."""
    return [
        entry
        for entry in entries
        if entry.code != UNUSED
        and entry.offset
        and 0 < entry.length <= _LENGTH_MAX
        and entry.offset + entry.length <= source.size
    ]


def _read_entry(source: ByteSource, entry: LocatorEntry, log: FindingLog) -> str:
    """The text of one entry; empty when it has none that can be used."""
    field = f"parent_locator_{entry.index + 1}"

    def warn(code: str, what: str, name: str, found: object, expected: object = "") -> None:
        log.note(
            Severity.WARNING,
            code,
            what,
            offset=entry.at + layout.PARENT_LOCATOR_OFFSETS[name],
            field=f"{field}.{name}",
            found=found,
            expected=expected,
        )

    if entry.code == UNUSED:
        warn("vhd.locator.nonzero", "an unused locator entry is not zero", "platform_code", 0)
        return ""
    if entry.code not in _CODES:
        warn("vhd.locator.code", "unknown locator code", "platform_code", entry.name)
        return ""
    if not entry.length or not entry.offset:
        empty = "platform_data_length" if not entry.length else "platform_data_offset"
        warn("vhd.locator.empty", f"the {entry.name} locator is empty", empty, 0)
        return ""
    if entry.length > _LENGTH_MAX:
        limit = f"at most {_LENGTH_MAX:#x}"
        warn("vhd.locator.range", "a locator of that length", "platform_data_length", entry.length, limit)
        return ""
    if entry.offset + entry.length > source.size:
        limit = f"at most {source.size - entry.length:#x}"
        warn("vhd.locator.range", "a locator beyond the file", "platform_data_offset", entry.offset, limit)
        return ""
    data = source.read_exact(entry.offset, entry.length, field=field)
    if entry.code in (b"W2ru", b"W2ku"):
        if len(data) % 2:
            warn("vhd.locator.odd_length", "a UTF-16 string of odd length", "platform_data_length", len(data))
        return decode_utf16(data, "little")
    if entry.code in (b"Wi2r", b"Wi2k"):
        log.note(
            Severity.INFO,
            "vhd.locator.encoding",
            "an 8-bit path without a stated encoding, taken for cp1252",
            offset=entry.offset,
            field=field,
        )
        return data.partition(b"\0")[0].decode("cp1252", "replace")
    return _path_of_url(data) if entry.code == b"MacX" else ""


def decode_utf16(data: bytes, byteorder: str) -> str:
    """UTF-16 text up to the first NUL; lone surrogates are kept, an odd last byte is dropped."""
    data = data[: len(data) // 2 * 2]
    # Fields are padded with many NULs, of which one will do.
    filled = len(data.rstrip(b"\0"))
    data = data[: filled + filled % 2 + 2]
    decode = utf_16_le_decode if byteorder == "little" else utf_16_be_decode
    try:
        text, _ = decode(data, "surrogatepass", True)
    except UnicodeDecodeError:  # cut in the middle of a pair
        text, _ = decode(data, "replace", True)
    return text.partition("\0")[0]


def _path_of_url(data: bytes) -> str:
    """The path in a ``file://`` URL (RFC 2396), percent signs resolved."""
    text = data.partition(b"\0")[0]
    if text[:7].lower() == b"file://":
        host, slash, path = text[7:].partition(b"/")
        # Another host's file is a share: //host/dir/name, shown but not opened by itself.
        text = slash + path if host.lower() in (b"", b"localhost") else b"//" + host + slash + path
    text = re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes([int(match[1], 16)]), text)
    return text.partition(b"\0")[0].decode("utf-8", "replace")


def is_device(path: str) -> bool:
    """Whether a Windows path names a device, a pipe or another object that is no file."""
    path = path.replace("/", "\\")
    return bool(_OBJECT_PATH.match(path)) and not _LONG_PATH_OF_A_FILE.match(path)


def is_full(path: str) -> bool:
    """Whether a path says where it begins: at a root, a share or a drive."""
    return path.startswith(("\\", "/")) or bool(_DRIVE.match(path))


def _sort_out(locator: str, text: str, at: int, log: FindingLog) -> ParentPath | None:
    """What ``text`` is good for; None when it names nothing."""
    bad = ""
    if is_device(text):
        bad = "a parent path that names a device"
    elif locator in _RELATIVE and is_full(text):
        bad = "a relative parent path that is not relative"
    if bad:
        log.note(
            Severity.WARNING,
            "vhd.locator.path",
            f"{bad}; only its file name counts",
            offset=at,
            field=locator,
            found=text,
        )
    name = base_name(text)
    if _DRIVE.match(name):
        name = name[2:]  # C:name is relative to that drive's current folder
    if name in ("", ".", ".."):
        return None
    if bad or not (locator in _RELATIVE or is_full(text)):
        return ParentPath(PathKind.NAME, name, locator)
    kind = PathKind.RELATIVE_PATH if locator in _RELATIVE else PathKind.ABSOLUTE_PATH
    return ParentPath(kind, text, locator)

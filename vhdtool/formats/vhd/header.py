"""The dynamic disk header, of which there is one copy only."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from vhdtool.errors import EXIT_UNSUPPORTED, FindingLog, Severity, printable
from vhdtool.formats.image import Section
from vhdtool.formats.vhd import layout
from vhdtool.formats.vhd.batmap import judge_batmap
from vhdtool.formats.vhd.footer import Footer, judge_time
from vhdtool.formats.vhd.locator import LocatorEntry, decode_entries, decode_utf16, read_paths, usable_entries
from vhdtool.model.identity import DiskType, Identity, ParentLink, utc_from_2000
from vhdtool.source import ByteSource

_TAPDISK_0_1: Final = 0x0000_0001
_RESERVED_2: Final = bytes(256)


class DynamicHeader(NamedTuple):
    """A checked dynamic header.  Sizes and offsets are bytes.

    Attributes:
        offset: where in the file it stands.
        table_offset, max_table_entries: where the BAT stands and how many entries it has.
        block_size: a power of two, at least a sector.
        parent: None unless the image is differencing.
        locators: the entries in use.
        metadata: (start, stop, name) of what blocks must not overlap, in file order.
        raw: its 1024 bytes.
    """

    offset: int
    table_offset: int
    max_table_entries: int
    block_size: int
    parent: ParentLink | None
    locators: tuple[LocatorEntry, ...]
    metadata: tuple[tuple[int, int, str], ...]
    raw: bytes

    @property
    def table_stop(self) -> int:
        """End of the BAT, which takes whole sectors."""
        size = self.max_table_entries * layout.BAT_ENTRY_SIZE
        return self.table_offset + layout.round_up(size, layout.SECTOR_SIZE)

    def sections(self, footer: Footer) -> tuple[Section, ...]:
        """The header and its locators, for people."""
        parsed = layout.parse_dynamic_header(self.raw)
        stamp = parsed.parent_time_stamp
        fields: list[tuple[str, str | int]] = [
            ("Cookie", printable(parsed.cookie.decode("latin-1"))),
            ("Data Offset", f"{parsed.data_offset:#x}"),
            ("Table Offset", parsed.table_offset),
            ("Header Version", f"{parsed.header_version:#x}"),
            ("Max Table Entries", parsed.max_table_entries),
            ("Block Size", parsed.block_size),
            ("Checksum", f"{parsed.checksum:#x}"),
        ]
        if self.parent is not None:
            identity = Identity(parsed.parent_unique_id, footer.byteorder)
            fields += [
                ("Parent Unique ID", f"{identity} (bytes {identity.raw.hex()})"),
                ("Parent Time Stamp", utc_from_2000(stamp).isoformat() if stamp else "not recorded"),
                ("Parent Unicode Name", printable(_parent_name(parsed.parent_unicode_name, footer))),
            ]
        sections = [Section("Dynamic Disk Header", self.offset, tuple(fields))]
        texts = {} if self.parent is None else {path.locator: path.path for path in self.parent.paths}
        for entry in self.locators:
            shown: list[tuple[str, str | int]] = [
                ("Platform Code", entry.name),
                ("Platform Data Space", entry.space),
                ("Platform Data Length", entry.length),
                ("Platform Data Offset", entry.offset),
            ]
            if entry.name in texts:
                shown.append(("Path", printable(texts[entry.name])))
            sections.append(Section(f"Parent Locator Entry {entry.index + 1}", entry.at, tuple(shown)))
        return tuple(sections)


def read_header(
    source: ByteSource, footer: Footer, log: FindingLog, *, ignore_checksums: bool = False
) -> DynamicHeader:
    """Read, check and decode the dynamic header that ``footer`` points to; what is wrong goes to ``log``.

    Raises:
        FormatError: there is no header, or none that can be understood.
    """
    offset = footer.dynamic_header_offset
    if offset is None:
        raise ValueError("a fixed disk has no dynamic header")
    raw = source.read_exact(offset, layout.DYNAMIC_HEADER_SIZE, field="header")
    parsed = layout.parse_dynamic_header(raw)
    note = _Notes(log, offset)
    if parsed.cookie != layout.HEADER_COOKIE:
        log.refuse(
            "vhd.header.missing",
            "there is no dynamic header where the footer points",
            offset=offset,
            field="header.cookie",
            expected="cxsparse",
        )
    _judge_checksum(raw, parsed.checksum, note, ignore_checksums)
    if parsed.header_version != layout.VERSION_1_0:
        note.error(
            "vhd.header.version",
            "unknown header version",
            "header_version",
            parsed.header_version,
            layout.VERSION_1_0,
            exit_code=EXIT_UNSUPPORTED,
        )
    if parsed.data_offset != layout.ALL_ONES_64:
        found = f"{parsed.data_offset:#x}{_what_stands_at(source, parsed.data_offset)}"
        note.warning("vhd.header.next", "a next header", "data_offset", found, layout.ALL_ONES_64)
    if parsed.reserved:
        note.info("vhd.reserved.nonzero", "reserved bytes are not zero", "reserved", parsed.reserved, 0)
    if parsed.reserved_2 != _RESERVED_2:
        note.info("vhd.reserved.nonzero", "reserved bytes are not zero", "reserved_2", "not zero", "zero")
    _judge_block_size(parsed.block_size, log, note)
    _judge_entries(parsed, footer, note)
    locators = decode_entries(
        parsed.parent_locator_entries, offset + layout.DYNAMIC_HEADER_OFFSETS["parent_locator_entries"]
    )
    metadata = [
        (0, layout.FOOTER_SIZE, "footer_copy"),
        (offset, offset + layout.DYNAMIC_HEADER_SIZE, "header"),
    ]
    if footer.disk_type is DiskType.DIFFERENCING:
        metadata += [
            (entry.offset, entry.offset + entry.length, f"parent_locator_{entry.index + 1}")
            for entry in usable_entries(source, locators)
        ]
    _judge_table(source, footer, parsed, metadata, log, note)
    table_size = layout.round_up(parsed.max_table_entries * layout.BAT_ENTRY_SIZE, layout.SECTOR_SIZE)
    table_stop = parsed.table_offset + table_size
    metadata.append((parsed.table_offset, table_stop, "bat"))
    if footer.is_xen:
        metadata += judge_batmap(source, footer, table_stop, log)
    if footer.disk_type is DiskType.DIFFERENCING:
        parent = _read_parent(source, footer, parsed, locators, offset, log, note)
    else:
        parent = None
        _judge_no_parent(parsed, note)
    return DynamicHeader(
        offset=offset,
        table_offset=parsed.table_offset,
        max_table_entries=parsed.max_table_entries,
        block_size=parsed.block_size,
        parent=parent,
        locators=locators,
        metadata=tuple(sorted(_inside(metadata, source.size))),
        raw=raw,
    )


def _inside(ranges: list[tuple[int, int, str]], size: int) -> list[tuple[int, int, str]]:
    """``ranges`` cut at the file's end: what lies beyond cannot be overlapped."""
    return [(start, min(stop, size), name) for start, stop, name in ranges if start < min(stop, size)]


class _Notes:
    """Findings about the fields of the header at ``offset``."""

    def __init__(self, log: FindingLog, offset: int) -> None:
        self._log = log
        self._offset = offset

    def at(self, field: str) -> int:
        """Where ``field`` stands in the file."""
        return self._offset + layout.DYNAMIC_HEADER_OFFSETS[field]

    def _add(
        self,
        severity: Severity,
        code: str,
        what: str,
        field: str,
        found: object,
        expected: object,
        exit_code: int,
    ) -> None:
        self._log.note(
            severity,
            code,
            what,
            offset=self.at(field),
            field=f"header.{field}",
            found=found,
            expected=expected,
            exit_code=exit_code,
        )

    def error(
        self, code: str, what: str, field: str, found: object = "", expected: object = "", exit_code: int = 65
    ) -> None:
        self._add(Severity.ERROR, code, what, field, found, expected, exit_code)

    def warning(self, code: str, what: str, field: str, found: object = "", expected: object = "") -> None:
        self._add(Severity.WARNING, code, what, field, found, expected, 65)

    def info(self, code: str, what: str, field: str, found: object = "", expected: object = "") -> None:
        self._add(Severity.INFO, code, what, field, found, expected, 65)


def _judge_checksum(raw: bytes, stored: int, note: _Notes, ignore_checksums: bool) -> None:
    computed = layout.byte_sum_checksum(raw, layout.DYNAMIC_HEADER_OFFSETS["checksum"])
    if stored == computed:
        return
    found, expected = f"{stored:#010x}", f"{computed:#010x}"
    if ignore_checksums:
        what = "the dynamic header's checksum is wrong, accepted on request"
        note.warning("vhd.header.checksum", what, "checksum", found, expected)
    else:
        what = "the dynamic header's checksum is wrong, and there is no copy of it"
        note.error("vhd.header.checksum", what, "checksum", found, expected)


def _what_stands_at(source: ByteSource, offset: int) -> str:
    if offset % layout.SECTOR_SIZE or offset + 8 > source.size:
        return ""
    cookie = source.read_exact(offset, 8, field="header.data_offset")
    return f", where {printable(cookie.decode('latin-1'))} stands" if any(cookie) else ""


def _judge_block_size(block_size: int, log: FindingLog, note: _Notes) -> None:
    if block_size < layout.SECTOR_SIZE or block_size & (block_size - 1):
        # Nothing can be said about any block: this cannot be parsed further.
        log.refuse(
            "vhd.header.block_size",
            "the block size is no power of two of at least a sector",
            offset=note.at("block_size"),
            field="header.block_size",
            found=block_size,
            expected=f"usually {layout.BLOCK_SIZE_DEFAULT:#x}",
        )
    if block_size not in layout.BLOCK_SIZES_USUAL:
        what = "an unusual block size"
        note.info("vhd.header.block_size", what, "block_size", block_size, layout.BLOCK_SIZE_DEFAULT)


def _judge_entries(parsed: Any, footer: Footer, note: _Notes) -> None:
    needed = -(-footer.virtual_size // parsed.block_size)
    entries = parsed.max_table_entries
    if entries < needed:
        what = "the BAT is too small for the disk"
        note.error("vhd.bat.small", what, "max_table_entries", f"{entries} entries", f"{needed}")
    elif entries > needed:
        what = "the BAT is larger than the disk needs"
        note.info("vhd.bat.large", what, "max_table_entries", f"{entries} entries", f"{needed}")


def _judge_table(
    source: ByteSource,
    footer: Footer,
    parsed: Any,
    metadata: list[tuple[int, int, str]],
    log: FindingLog,
    note: _Notes,
) -> None:
    start = parsed.table_offset
    stop = start + parsed.max_table_entries * layout.BAT_ENTRY_SIZE
    if start % layout.SECTOR_SIZE:
        note.error("vhd.bat.align", "the BAT is not at a sector", "table_offset", start)
    data_stop = source.size - footer.length
    if stop > data_stop:
        expected = f"to end by {data_stop:#x}"
        note.error(
            "vhd.bat.eof",
            "the BAT reaches beyond the file",
            "table_offset",
            f"{start:#x}-{stop:#x}",
            expected,
        )
    stop = layout.round_up(stop, layout.SECTOR_SIZE)
    for other_start, other_stop, name in metadata:
        if start < other_stop and other_start < max(stop, start + 1):
            found = f"{start:#x}-{stop:#x}, {name} at {other_start:#x}-{other_stop:#x}"
            note.error("vhd.bat.overlap", f"the BAT overlaps the {name}", "table_offset", found)
            break


def _judge_no_parent(parsed: Any, note: _Notes) -> None:
    filled = [
        name
        for name in ("parent_unique_id", "parent_unicode_name", "parent_locator_entries")
        if any(getattr(parsed, name))
    ]
    if parsed.parent_time_stamp:
        filled.append("parent_time_stamp")
    if filled:
        what = "a dynamic disk with fields of a parent"
        note.warning("vhd.parent.fields", what, filled[0], ", ".join(filled), "zero")


def _parent_name(raw: bytes, footer: Footer) -> str:
    if footer.is_xen and footer.creator_version == _TAPDISK_0_1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        # tapdisk 0.1 wrote in its machine's own order, after a byte order mark.
        return decode_utf16(raw[2:], "little" if raw[:2] == b"\xff\xfe" else "big")
    return decode_utf16(raw, "big")


def _read_parent(
    source: ByteSource,
    footer: Footer,
    parsed: Any,
    locators: tuple[LocatorEntry, ...],
    offset: int,
    log: FindingLog,
    note: _Notes,
) -> ParentLink:
    identity = Identity(parsed.parent_unique_id, footer.byteorder)
    if identity.is_null and footer.is_xen:
        what = "the parent is a raw disk, which has no identity to be accepted by"
        note.error("vhd.parent.raw", what, "parent_unique_id", "zero", exit_code=EXIT_UNSUPPORTED)
    elif identity.is_null:
        note.error(
            "vhd.parent.null", "a differencing disk without a parent's identity", "parent_unique_id", "zero"
        )
    stamp = parsed.parent_time_stamp
    at = offset + layout.DYNAMIC_HEADER_OFFSETS["parent_time_stamp"]
    judge_time(log, stamp, at, "header.parent_time_stamp")
    name = _parent_name(parsed.parent_unicode_name, footer)
    name_at = offset + layout.DYNAMIC_HEADER_OFFSETS["parent_unicode_name"]
    paths = read_paths(source, locators, name, name_at, log)
    if not paths:
        what = "a differencing disk that does not name its parent"
        note.warning("vhd.locator.none", what, "parent_locator_entries")
    return ParentLink((identity,), paths, utc_from_2000(stamp) if stamp else None)

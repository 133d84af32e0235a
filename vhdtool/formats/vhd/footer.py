"""The footer: which of its copies is used, and what is wrong with it.

::

    fixed                  data ........................ footer
    dynamic, differencing  copy  header  BAT  blocks ... footer

The footer at the end is the one that counts; the copy in front stands in for it when it is bad or gone.
A fixed disk has no copy: what stands in its first sector is the guest's, whatever it looks like.
The order of the search is that of libvhd (blktap); qemu's is the reverse and never notices a bad end.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from vhdtool.errors import EXIT_CORRUPT, EXIT_UNSUPPORTED, FindingLog, Severity, printable
from vhdtool.formats.image import Section
from vhdtool.formats.vhd import layout
from vhdtool.formats.vhd.chs import GEOMETRY_MAX, Chs, geometry_of
from vhdtool.model.identity import DiskType, Identity, utc_from_2000
from vhdtool.source import ByteSource

_COOKIES: Final = (layout.FOOTER_COOKIE, layout.POISON_COOKIE)
_DISK_TYPES: Final = {
    layout.DISK_TYPE_FIXED: DiskType.FIXED,
    layout.DISK_TYPE_DYNAMIC: DiskType.DYNAMIC,
    layout.DISK_TYPE_DIFFERENCING: DiskType.DIFFERENCING,
}
# Programs known to write VHDs (the first bytes of Creator Application).
_CREATORS: Final = (
    b"vpc",
    b"vs",
    b"win",
    b"d2v",
    b"qemu",
    b"qem2",
    b"tap",
    b"CTXS",
    b"vbox",
    b"dutl",
    b"\0\0\0\0",
)
# Those that keep a GUID as Windows has it in memory; all others write it in network order.
_CREATORS_LITTLE_ENDIAN: Final = (b"win", b"d2v", b"\0\0\0\0")
# Those whose guests see what the geometry can address and no more.
_CREATORS_CHS: Final = (b"vpc", b"vs", b"qemu")
_HOSTS: Final = (b"Wi2k", b"Mac ", bytes(4))
_CLOCK_SLACK: Final = 24 * 3600
_SECONDS_TO_2000: Final = 946_684_800
# Larger sizes would not fit a block map, which shifts offsets of 63 bits by three.
_SIZE_PARSED_MAX: Final = 1 << 59

_RESERVED: Final = bytes(427)

_FIELDS: Final = (
    ("Cookie", "cookie"),
    ("Features", "features"),
    ("File Format Version", "file_format_version"),
    ("Data Offset", "data_offset"),
    ("Time Stamp", "time_stamp"),
    ("Creator Application", "creator_application"),
    ("Creator Version", "creator_version"),
    ("Creator Host OS", "creator_host_os"),
    ("Original Size", "original_size"),
    ("Current Size", "current_size"),
    ("Disk Geometry: Cylinders", "cylinders"),
    ("Disk Geometry: Heads", "heads"),
    ("Disk Geometry: Sectors per track", "sectors_per_track"),
    ("Disk Type", "disk_type"),
    ("Checksum", "checksum"),
    ("Unique Id", "unique_id"),
    ("Saved State", "saved_state"),
    ("Reserved", "reserved"),
)
_HEX_FIELDS: Final = frozenset(
    {"features", "file_format_version", "data_offset", "creator_version", "checksum"}
)

Byteorder = Literal["little", "big"]


class Footer(NamedTuple):
    """A checked footer.  Sizes and offsets are bytes.

    Attributes:
        disk_type: what the image is.
        virtual_size: Current Size, made a whole number of sectors where it is not one (an ERROR finding).
        dynamic_header_offset: None on a fixed disk, which has no dynamic header.
        unique_id: printed in the byte order of the program that made the file.
        time_stamp: seconds since 2000-01-01T00:00:00Z.
        creator_application, creator_version: as stored.
        offset: where in the file this footer stands; 0 when the copy is used.
        length: bytes at the file's end that are no room for blocks: 512, 511, or 0 when no footer is there.
        copy: the state of the copy in front: "none" (fixed), "equal", "differs", "bad" or "used".
        raw: its 512 bytes.
    """

    disk_type: DiskType
    virtual_size: int
    dynamic_header_offset: int | None
    unique_id: Identity
    time_stamp: int
    creator_application: bytes
    creator_version: int
    offset: int
    length: int
    copy: str
    raw: bytes

    @property
    def created(self) -> datetime:
        """When the image was made, by the clock of whoever made it."""
        return utc_from_2000(self.time_stamp)

    @property
    def creator(self) -> str:
        """The creating program and its version; empty where the file does not say."""
        return creator_text(self.creator_application, self.creator_version)

    @property
    def is_xen(self) -> bool:
        """Whether Xen's tapdisk made it, which has extensions of its own."""
        return self.creator_application.startswith(b"tap")

    @property
    def byteorder(self) -> Byteorder:
        """How identities in this file are printed."""
        return byteorder_of(self.creator_application)

    def sections(self, file_size: int) -> tuple[Section, ...]:
        """The footer, and what became of its copy, for people."""
        parsed = layout.parse_footer(self.raw)
        fields: list[tuple[str, str | int]] = [
            (label, _shown(parsed, name, self.byteorder)) for label, name in _FIELDS
        ]
        footer = Section("Hard Disk Footer", self.offset, tuple(fields))
        if self.copy == "none":
            return (footer,)
        end = file_size - self.length if self.length else None
        state: list[tuple[str, str | int]] = [("State", self.copy)]
        if self.copy == "used":
            state.append(("Footer at the end", "gone" if end is None else f"damaged, at {end:#x}"))
        return (footer, Section("Copy of Hard Disk Footer", 0, tuple(state)))


def creator_text(application: bytes, version: int) -> str:
    """``win 10.0``: the program's name as stored, printable, and its version."""
    name = printable(application.rstrip(b" \0").decode("latin-1"))
    return f"{name} {version >> 16}.{version & 0xFFFF}" if name else ""


def byteorder_of(application: bytes) -> Byteorder:
    """How the program that calls itself ``application`` stores identities."""
    return "little" if application.startswith(_CREATORS_LITTLE_ENDIAN) else "big"


def _shown(parsed: Any, name: str, byteorder: Byteorder) -> str | int:
    value = getattr(parsed, name)
    if name in _HEX_FIELDS:
        return f"{value:#x}"
    if name == "time_stamp":
        return utc_from_2000(value).isoformat()
    if name == "unique_id":
        return f"{Identity(value, byteorder)} (bytes {value.hex()})"
    if name == "disk_type":
        return f"{value} ({_DISK_TYPES.get(value, 'unknown')})"
    if name == "reserved":
        return "zero" if not any(value) else "not zero"
    if isinstance(value, bytes):
        return printable(value.rstrip(b"\0").decode("latin-1"))
    return int(value)


def has_footer_cookie(source: ByteSource) -> bool:
    """Whether a footer's cookie stands where a footer or its copy does: the sign of a VHD."""
    return has_cookie_at_end(source) or (
        source.size >= layout.FOOTER_SIZE_SHORT and source.read_exact(0, 8, field="cookie") in _COOKIES
    )


def has_cookie_at_end(source: ByteSource) -> bool:
    """Whether a footer's cookie stands where a footer does, sound or not; the copy in front is none."""
    for offset in _end_offsets(source.size):
        if source.read_exact(offset, 8, field="cookie") in _COOKIES:
            return True
    return False


def _end_offsets(size: int) -> list[int]:
    """Where a footer at the end may begin, in the order of looking."""
    offsets = [size - layout.FOOTER_SIZE] if size >= layout.FOOTER_SIZE else []
    if size >= layout.FOOTER_SIZE_SHORT and (size - layout.FOOTER_SIZE_SHORT) % layout.SECTOR_SIZE == 0:
        offsets.append(size - layout.FOOTER_SIZE_SHORT)
    return offsets


class _Candidate:
    """Bytes that may be a footer, and how far they can be believed."""

    def __init__(self, source: ByteSource, offset: int, *, is_copy: bool) -> None:
        self.offset = offset
        self.is_copy = is_copy
        self.length = min(layout.FOOTER_SIZE, source.size - offset)
        # The byte that a short footer lacks counts as zero.
        self.raw = source.read_exact(offset, self.length, field="footer").ljust(layout.FOOTER_SIZE, b"\0")
        self.fields = layout.parse_footer(self.raw)
        self.has_cookie = self.fields.cookie in _COOKIES
        self.major = self.fields.file_format_version >> 16

    @property
    def checksum_found(self) -> str:
        return f"{self.fields.checksum:#010x}"

    @property
    def checksum_expected(self) -> str:
        return f"{self._checksum():#010x}"

    @property
    def has_checksum(self) -> bool:
        """Whether its checksum is right."""
        return bool(self.fields.checksum == self._checksum())

    @property
    def is_eligible(self) -> bool:
        """Whether it can be a footer: the front of a fixed disk is the guest's."""
        may_be_copy = self.fields.disk_type in (layout.DISK_TYPE_DYNAMIC, layout.DISK_TYPE_DIFFERENCING)
        return self.has_cookie and (may_be_copy or not self.is_copy)

    @property
    def is_valid(self) -> bool:
        return self.is_eligible and self.major == 1 and self.has_checksum

    @property
    def is_plausible(self) -> bool:
        """Whether it is believable but for its checksum."""
        size = self.fields.current_size
        return (
            self.is_eligible
            and self.major == 1
            and self.fields.disk_type in _DISK_TYPES
            and 0 < size <= layout.VIRTUAL_SIZE_MAX
            and size % layout.SECTOR_SIZE == 0
        )

    @property
    def fault(self) -> tuple[str, str, str]:
        """Field, what was found and what was expected, of the first thing wrong."""
        if not self.has_cookie:
            return "cookie", "something else", "conectix"
        if not self.has_checksum:
            return "checksum", self.checksum_found, self.checksum_expected
        if self.major != 1:
            return "file_format_version", f"major version {self.major}", "1"
        return "disk_type", str(self.fields.disk_type), "3 or 4"

    def _checksum(self) -> int:
        return layout.byte_sum_checksum(self.raw, layout.FOOTER_OFFSETS["checksum"])


def read_footer(source: ByteSource, log: FindingLog, *, ignore_checksums: bool = False) -> Footer:
    """Find, check and decode the footer of ``source``; what is wrong with it goes to ``log``.

    A footer whose checksum is wrong in every copy is still decoded when it is plausible otherwise, with an
    ERROR finding (a WARNING under ``ignore_checksums``): strict reading refuses it.

    Raises:
        FormatError: there is no footer, or none that can be understood.
    """
    ends = [_Candidate(source, offset, is_copy=False) for offset in _end_offsets(source.size)]
    front = _Candidate(source, 0, is_copy=True) if source.size >= layout.FOOTER_SIZE else None
    candidates = [*ends, front] if front is not None else ends
    chosen = next((candidate for candidate in candidates if candidate.is_valid), None)
    if chosen is None:
        chosen = _take_without_checksum(source, candidates, log, ignore_checksums)
    parsed = chosen.fields
    disk_type = _judge_type(chosen, parsed, log)
    _judge_fields(chosen, parsed, log)
    virtual_size = _judge_size(chosen, parsed, log)
    _judge_geometry(chosen, parsed, log)
    data_offset = _judge_data_offset(source, chosen, parsed, disk_type, log)
    copy, length = _judge_copies(source, chosen, ends, front, disk_type, log)
    if source.size % layout.SECTOR_SIZE not in (0, layout.FOOTER_SIZE_SHORT):
        log.note(
            Severity.WARNING,
            "vhd.file.size",
            "the file is no whole number of sectors",
            found=source.size,
            expected=f"a multiple of {layout.SECTOR_SIZE:#x}",
        )
    if disk_type is DiskType.FIXED:
        _judge_fixed_length(source.size - length, virtual_size, log)
    return Footer(
        disk_type=disk_type,
        virtual_size=virtual_size,
        dynamic_header_offset=data_offset,
        unique_id=Identity(parsed.unique_id, byteorder_of(parsed.creator_application)),
        time_stamp=parsed.time_stamp,
        creator_application=parsed.creator_application,
        creator_version=parsed.creator_version,
        offset=chosen.offset,
        length=length,
        copy=copy,
        raw=chosen.raw,
    )


def _take_without_checksum(
    source: ByteSource, candidates: list[_Candidate], log: FindingLog, ignore_checksums: bool
) -> _Candidate:
    """The best footer when none is valid; refuses when none can be understood."""
    chosen = next((candidate for candidate in candidates if candidate.is_plausible), None)
    if chosen is not None:
        log.note(
            Severity.WARNING if ignore_checksums else Severity.ERROR,
            "vhd.footer.checksum",
            "the footer's checksum is wrong and there is no good copy"
            + (", accepted on request" if ignore_checksums else ""),
            offset=chosen.offset + 64,
            field="footer.checksum",
            found=chosen.checksum_found,
            expected=chosen.checksum_expected,
        )
        return chosen
    with_cookie = [candidate for candidate in candidates if candidate.is_eligible]
    if not with_cookie:
        log.refuse(
            "vhd.footer.missing",
            "there is no footer at the end of the file and no usable copy at its start",
            offset=max(0, source.size - layout.FOOTER_SIZE),
            field="footer.cookie",
            expected="conectix",
        )
    # A checksum that is right says that the version is what was meant.
    meant = next((c for c in with_cookie if c.has_checksum), with_cookie[0])
    field, found, expected = meant.fault
    code = "vhd.footer.version" if field == "file_format_version" else "vhd.footer.checksum"
    log.refuse(
        code,
        "no copy of the footer can be used",
        offset=meant.offset + layout.FOOTER_OFFSETS[field],
        field=f"footer.{field}",
        found=found,
        expected=expected,
        exit_code=EXIT_UNSUPPORTED if field == "file_format_version" else EXIT_CORRUPT,
    )


def _note(
    log: FindingLog,
    severity: Severity,
    code: str,
    what: str,
    candidate: _Candidate,
    field: str,
    found: object = "",
    expected: object = "",
) -> None:
    log.note(
        severity,
        code,
        what,
        offset=candidate.offset + layout.FOOTER_OFFSETS[field],
        field=f"footer.{field}",
        found=found,
        expected=expected,
    )


def _judge_type(chosen: _Candidate, parsed: Any, log: FindingLog) -> DiskType:
    disk_type = _DISK_TYPES.get(parsed.disk_type)
    if disk_type is not None:
        return disk_type
    log.refuse(
        "vhd.footer.type",
        "unsupported disk type",
        offset=chosen.offset + layout.FOOTER_OFFSETS["disk_type"],
        field="footer.disk_type",
        found=parsed.disk_type,
        expected="2 (fixed), 3 (dynamic) or 4 (differencing)",
        exit_code=EXIT_UNSUPPORTED if parsed.disk_type in layout.DISK_TYPES_RESERVED else EXIT_CORRUPT,
    )


def _judge_fields(chosen: _Candidate, parsed: Any, log: FindingLog) -> None:
    """The fields that describe, and on which nothing depends."""
    if parsed.cookie == layout.POISON_COOKIE:
        _note(
            log,
            Severity.WARNING,
            "vhd.cookie.poison",
            "an operation on this file was interrupted",
            chosen,
            "cookie",
            "v_poison",
            "conectix",
        )
    if parsed.features & ~layout.FEATURE_TEMPORARY != layout.FEATURE_RESERVED:
        _note(
            log,
            Severity.WARNING,
            "vhd.footer.features",
            "unknown features",
            chosen,
            "features",
            parsed.features,
            "0x2 or 0x3",
        )
    if parsed.features & layout.FEATURE_TEMPORARY:
        _note(log, Severity.INFO, "vhd.footer.temporary", "marked as a temporary disk", chosen, "features")
    if parsed.file_format_version & 0xFFFF:
        _note(
            log,
            Severity.WARNING,
            "vhd.footer.version",
            "unknown minor version",
            chosen,
            "file_format_version",
            parsed.file_format_version,
            layout.VERSION_1_0,
        )
    judge_time(
        log, parsed.time_stamp, chosen.offset + layout.FOOTER_OFFSETS["time_stamp"], "footer.time_stamp"
    )
    application = parsed.creator_application
    if not application.startswith(_CREATORS):
        text = application.decode("latin-1")
        _note(
            log, Severity.INFO, "vhd.footer.creator", "unknown creator", chosen, "creator_application", text
        )
    if parsed.creator_host_os not in _HOSTS:
        text = parsed.creator_host_os.decode("latin-1")
        _note(
            log, Severity.INFO, "vhd.footer.host_os", "unknown host system", chosen, "creator_host_os", text
        )
    if not any(parsed.unique_id):
        _note(
            log,
            Severity.WARNING,
            "vhd.uuid.null",
            "the disk has no identity, children cannot be bound to it",
            chosen,
            "unique_id",
            "zero",
        )
    if parsed.saved_state == 1:
        _note(
            log,
            Severity.INFO,
            "vhd.footer.saved_state",
            "belongs to a machine in saved state",
            chosen,
            "saved_state",
        )
    elif parsed.saved_state:
        _note(
            log,
            Severity.WARNING,
            "vhd.footer.saved_state",
            "unknown saved state",
            chosen,
            "saved_state",
            parsed.saved_state,
            "0x0 or 0x1",
        )
    if parsed.reserved != _RESERVED:
        hidden = application.startswith(b"tap") and parsed.reserved[0] == 1 and not any(parsed.reserved[1:])
        what = "hidden, says Xen" if hidden else "reserved bytes are not zero"
        at = chosen.offset + 85 + next(i for i, byte in enumerate(parsed.reserved) if byte)
        log.note(
            Severity.INFO, "vhd.reserved.nonzero", what, offset=at, field="footer.reserved", expected="zero"
        )


def judge_time(log: FindingLog, stamp: int, offset: int, field: str) -> None:
    """A time stamp in the future is worth a word, and no more: clocks lie."""
    if stamp + _SECONDS_TO_2000 > time.time() + _CLOCK_SLACK:
        log.note(
            Severity.INFO,
            "vhd.time.future",
            "a time stamp in the future",
            offset=offset,
            field=field,
            found=utc_from_2000(stamp).isoformat(),
        )


def _judge_size(chosen: _Candidate, parsed: Any, log: FindingLog) -> int:
    """The virtual size to go on with."""
    size: int = parsed.current_size
    at = chosen.offset + layout.FOOTER_OFFSETS["current_size"]
    if size == 0:
        log.refuse(
            "vhd.size.zero", "the disk has no size", offset=at, field="footer.current_size", found=size
        )
    if size > _SIZE_PARSED_MAX:
        log.refuse(
            "vhd.size.max",
            "the disk is larger than a VHD can be",
            offset=at,
            field="footer.current_size",
            found=size,
            expected=f"at most {layout.VIRTUAL_SIZE_MAX:#x}",
        )
    if size > layout.VIRTUAL_SIZE_MAX:
        _note(
            log,
            Severity.ERROR,
            "vhd.size.max",
            "the disk is larger than a VHD can be",
            chosen,
            "current_size",
            size,
            f"at most {layout.VIRTUAL_SIZE_MAX:#x}",
        )
    if size % layout.SECTOR_SIZE:
        _note(
            log,
            Severity.ERROR,
            "vhd.size.align",
            "the disk is no whole number of sectors",
            chosen,
            "current_size",
            size,
            f"a multiple of {layout.SECTOR_SIZE:#x}",
        )
    if parsed.original_size != size:
        _note(
            log,
            Severity.INFO,
            "vhd.size.original",
            "the disk was resized after it was made",
            chosen,
            "original_size",
            parsed.original_size,
            size,
        )
    return max(layout.SECTOR_SIZE, size - size % layout.SECTOR_SIZE)


def _judge_geometry(chosen: _Candidate, parsed: Any, log: FindingLog) -> None:
    stored = Chs(parsed.cylinders, parsed.heads, parsed.sectors_per_track)
    size: int = parsed.current_size
    expected = geometry_of(size)
    # Disk2vhd and qemu's force_size store the largest geometry on purpose: "use Current Size".
    if stored.size > size and stored != GEOMETRY_MAX:
        what = "the geometry is larger than the disk"
        _note(
            log,
            Severity.WARNING,
            "vhd.geometry.mismatch",
            what,
            chosen,
            "cylinders",
            str(stored),
            str(expected),
        )
    elif stored != expected:
        what = "the geometry is not the one for this size"
        _note(
            log, Severity.INFO, "vhd.geometry.mismatch", what, chosen, "cylinders", str(stored), str(expected)
        )
    if parsed.creator_application.startswith(_CREATORS_CHS) and stored.size < size:
        what = f"Virtual PC exposes only {stored.size} bytes of this disk"
        _note(log, Severity.INFO, "vhd.geometry.chs", what, chosen, "cylinders", stored.size, size)


def _judge_data_offset(
    source: ByteSource, chosen: _Candidate, parsed: Any, disk_type: DiskType, log: FindingLog
) -> int | None:
    """Where the dynamic header is; None on a fixed disk."""
    offset: int = parsed.data_offset
    if disk_type is DiskType.FIXED:
        if offset != layout.ALL_ONES_64:
            _note(
                log,
                Severity.WARNING,
                "vhd.footer.data_offset",
                "a fixed disk with a data offset",
                chosen,
                "data_offset",
                offset,
                layout.ALL_ONES_64,
            )
        return None
    at = chosen.offset + layout.FOOTER_OFFSETS["data_offset"]
    field = "footer.data_offset"
    last = source.size - layout.DYNAMIC_HEADER_SIZE
    if not layout.FOOTER_SIZE <= offset <= last:
        log.refuse(
            "vhd.footer.data_offset",
            "no dynamic header can be there",
            offset=at,
            field=field,
            found=offset,
            expected=f"{layout.FOOTER_SIZE:#x} to {max(0, last):#x}",
        )
    if offset % layout.SECTOR_SIZE:
        log.refuse(
            "vhd.header.align",
            "the dynamic header is not at a sector",
            offset=at,
            field=field,
            found=offset,
            expected=f"a multiple of {layout.SECTOR_SIZE:#x}",
        )
    return offset


def _judge_copies(
    source: ByteSource,
    chosen: _Candidate,
    ends: list[_Candidate],
    front: _Candidate | None,
    disk_type: DiskType,
    log: FindingLog,
) -> tuple[str, int]:
    """The state of the copy in front, and how many bytes at the file's end are a footer."""
    if not chosen.is_copy:
        if chosen.length == layout.FOOTER_SIZE_SHORT:
            log.note(
                Severity.INFO,
                "vhd.footer.511",
                "a footer of 511 bytes, as before Virtual PC 2004",
                offset=chosen.offset,
                field="footer",
            )
        if disk_type is DiskType.FIXED or front is None:
            return "none", chosen.length
        return _judge_front(chosen, front, log), chosen.length
    # Where no cookie is left, the tail was cut off or something was appended: blocks may reach the end.
    damaged = next((end for end in ends if end.has_cookie), None)
    at = max(0, source.size - layout.FOOTER_SIZE) if damaged is None else damaged.offset
    field, found, expected = ("cookie", "", "conectix") if damaged is None else damaged.fault
    log.note(
        Severity.WARNING,
        "vhd.footer.end_bad",
        "the footer at the end is " + ("gone" if damaged is None else "damaged") + ", its copy is used",
        offset=at + layout.FOOTER_OFFSETS[field],
        field=f"footer.{field}",
        found=found,
        expected=expected,
    )
    return "used", 0 if damaged is None else damaged.length


def _judge_front(chosen: _Candidate, front: _Candidate, log: FindingLog) -> str:
    if front.raw == chosen.raw:
        return "equal"
    if not front.is_valid:
        field, found, expected = front.fault
        log.note(
            Severity.WARNING,
            "vhd.footer.copy_bad",
            "the footer's copy is damaged, the one at the end is used",
            offset=layout.FOOTER_OFFSETS[field],
            field=f"footer_copy.{field}",
            found=found,
            expected=expected,
        )
        return "bad"
    first, second = front.fields, chosen.fields
    fields = [name for name in layout.FOOTER_OFFSETS if getattr(first, name) != getattr(second, name)]
    # tapdisk 0.1 and 1.1 hid a disk in the footer at the end only.
    is_hidden = (
        second.creator_application.startswith(b"tap")
        and second.creator_version in (0x0000_0001, 0x0001_0001)
        and set(fields) <= {"reserved", "checksum"}
        and first.reserved[1:] == second.reserved[1:]
    )
    log.note(
        Severity.INFO if is_hidden else Severity.WARNING,
        "vhd.footer.differ",
        "the footer and its copy differ" + (" in Xen's hidden flag" if is_hidden else ", the footer is used"),
        offset=layout.FOOTER_OFFSETS[fields[0]],
        field=f"footer_copy.{fields[0]}",
        found=f"other values of {', '.join(fields)}",
    )
    return "differs"


def _judge_fixed_length(data_size: int, virtual_size: int, log: FindingLog) -> None:
    if data_size < virtual_size:
        log.note(
            Severity.ERROR,
            "vhd.fixed.short",
            "the file is shorter than its disk",
            field="footer.current_size",
            found=f"{data_size:#x} bytes of data",
            expected=virtual_size,
        )
    elif data_size > virtual_size:
        log.note(
            Severity.WARNING,
            "vhd.fixed.long",
            "bytes between the disk and the footer",
            offset=virtual_size,
            field="footer.current_size",
            found=f"{data_size - virtual_size:#x} bytes",
            expected="none",
        )

"""The two headers, and which one counts.

A header is rewritten by writing the other copy with a larger sequence number, so after a crash one of
the two may be torn and the remaining one tells the truth.  The rules of content (versions, place of the
log) are applied to the chosen one alone and never lead back to the other: its log GUID is stale.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from vhdtool.checksum import crc32c_without_field
from vhdtool.errors import EXIT_UNSUPPORTED, FindingLog, Severity
from vhdtool.formats.image import Section
from vhdtool.formats.vhdx import layout
from vhdtool.model.identity import Identity
from vhdtool.source import ByteSource

_NULL_GUID: Final = bytes(16)
_RESERVED: Final = bytes(layout.HEADER_SIZE - layout.HEADER_RESERVED_OFFSET)


class Header(NamedTuple):
    """One of the two headers as it stands in the file.  Offsets and lengths are bytes.

    ``name`` is "header 1" or "header 2", ``offset`` is where it stands, ``fields`` are those of
    ``layout.HEADER``, some of which stand here too.  ``fault`` says why it is not valid, and is empty when it
    is.  What it says of the log is judged by ``log.py``.
    """

    name: str
    offset: int
    raw: bytes
    fields: Any
    fault: str
    log_version: int
    log_length: int
    log_offset: int

    @property
    def checksum(self) -> int:
        """CRC-32C as it is stored."""
        return int(self.fields.checksum)

    @property
    def sequence_number(self) -> int:
        """The larger one of two valid headers is current."""
        return int(self.fields.sequence_number)

    @property
    def file_write_guid(self) -> Identity:
        """New before the first write after each open."""
        return Identity(self.fields.file_write_guid)

    @property
    def data_write_guid(self) -> Identity:
        """What a child records of its parent."""
        return Identity(self.fields.data_write_guid)

    @property
    def log_guid(self) -> Identity:
        """Null when the log is empty."""
        return Identity(self.fields.log_guid)

    @property
    def log_is_pending(self) -> bool:
        """Whether there are changes in the log that the rest of the file does not have yet."""
        return bool(self.fields.log_guid != _NULL_GUID)

    @property
    def log_stop(self) -> int:
        """The first byte behind the log."""
        return self.log_offset + self.log_length

    @property
    def is_plausible(self) -> bool:
        """Whether the fields are within the rules: what counts when no checksum is right."""
        return (
            self.fields.version == 1
            and (self.log_version == 0 or not self.log_is_pending)
            and self.log_length % layout.MIB == 0
            and self.log_offset % layout.MIB == 0
            and self.log_offset >= layout.HEADER_AREA_SIZE
        )

    def section(self, name: str) -> Section:
        """The header for people to look at."""
        return Section(
            name,
            self.offset,
            (
                ("Signature", "head"),
                ("Checksum", f"{self.checksum:#010x}"),
                ("SequenceNumber", self.sequence_number),
                ("FileWriteGuid", str(self.file_write_guid)),
                ("DataWriteGuid", str(self.data_write_guid)),
                ("LogGuid", str(self.log_guid)),
                ("LogVersion", self.log_version),
                ("Version", self.fields.version),
                ("LogLength", self.log_length),
                ("LogOffset", self.log_offset),
            ),
        )


class Headers(NamedTuple):
    """The header that counts, and the other one, which may be valid or not."""

    current: Header
    other: Header

    @property
    def sections(self) -> tuple[Section, Section]:
        """Both for people to look at."""
        return self.current.section(f"{self.current.name.capitalize()} (current)"), _other(self.other)


def read_headers(source: ByteSource, log: FindingLog, *, ignore_checksums: bool = False) -> Headers:
    """The headers of ``source``.

    Raises:
        CorruptError: the file ends inside them, or neither is valid.
        UnsupportedError: the current one is of another version.
    """
    copies = [_read_header(source, i) for i in (0, 1)]
    valid = [header for header in copies if not header.fault]
    if not valid and ignore_checksums:
        valid = [h for h in copies if h.raw.startswith(layout.HEADER_SIGNATURE) and h.is_plausible]
        for header in valid:
            log.note(
                Severity.WARNING,
                "vhdx.header.checksum",
                f"the checksum of {header.name} is wrong and was ignored as asked",
                offset=header.offset + layout.CHECKSUM_OFFSET,
                field="header.Checksum",
                found=header.checksum,
                expected=crc32c_without_field(header.raw, layout.CHECKSUM_OFFSET),
            )
    if not valid:
        log.refuse(
            "vhdx.header.none",
            "neither header is valid",
            offset=layout.HEADER_OFFSETS[0],
            field="header",
            found=f"{copies[0].fault}; header 2: {copies[1].fault}",
            expected="a signature 'head' and the right checksum in one of them",
        )
    current = _choose(valid, copies, log)
    _judge(current, log)
    return Headers(current, copies[1] if current is copies[0] else copies[0])


def find_valid_header(source: ByteSource) -> bool:
    """Whether a valid header stands in ``source``: a hint when the identifier before it is damaged."""
    stop = layout.HEADER_OFFSETS[1] + layout.HEADER_SIZE
    return source.size >= stop and any(not _read_header(source, i).fault for i in (0, 1))


def _read_header(source: ByteSource, i: int) -> Header:
    name, offset = f"header {i + 1}", layout.HEADER_OFFSETS[i]
    raw = source.read_exact(offset, layout.HEADER_SIZE, field=name)
    fields = layout.parse_header(raw)
    fault = ""
    if fields.signature != layout.HEADER_SIGNATURE:
        fault = "no signature"
    elif crc32c_without_field(raw, layout.CHECKSUM_OFFSET) != fields.checksum:
        fault = "wrong checksum"
    return Header(name, offset, raw, fields, fault, fields.log_version, fields.log_length, fields.log_offset)


def _choose(valid: list[Header], copies: list[Header], log: FindingLog) -> Header:
    if len(valid) == 1:
        lost = copies[1] if valid[0] is copies[0] else copies[0]
        log.note(
            Severity.WARNING,
            "vhdx.header.one",
            f"{lost.name} is lost, {valid[0].name} is used",
            offset=lost.offset,
            field="header",
            found=lost.fault,
            expected="a signature 'head' and the right checksum",
        )
        return valid[0]
    first, second = valid
    if first.sequence_number == second.sequence_number:
        # Disk2vhd writes two identical headers; of different ones nobody can say which is newer.
        if first.raw != second.raw:
            log.note(
                Severity.ERROR,
                "vhdx.header.equal",
                "both headers carry the same sequence number and differ",
                offset=second.offset + 8,
                field="header.SequenceNumber",
                found=str(second.sequence_number),
                expected="a larger number in the newer one",
            )
        return first
    ours, theirs = first.fields, second.fields
    if (ours.data_write_guid, ours.log_guid) != (theirs.data_write_guid, theirs.log_guid):
        log.note(
            Severity.INFO,
            "vhdx.header.differ",
            "the headers carry different GUIDs: the last update was not doubled",
            offset=first.offset,
            field="header",
            found=f"DataWriteGuid {first.data_write_guid} and {second.data_write_guid}",
        )
    return first if first.sequence_number > second.sequence_number else second


def _judge(header: Header, log: FindingLog) -> None:
    if header.fields.version != 1:
        log.refuse(
            "vhdx.header.version",
            "this version of the format is not known",
            offset=header.offset + 66,
            field="header.Version",
            found=header.fields.version,
            expected=1,
            exit_code=EXIT_UNSUPPORTED,
        )
    if header.log_version != 0 and header.log_is_pending:
        log.note(
            Severity.ERROR,
            "vhdx.header.log_version",
            "this version of the log is not known, and it must be replayed",
            offset=header.offset + 64,
            field="header.LogVersion",
            found=header.log_version,
            expected=0,
            exit_code=EXIT_UNSUPPORTED,
        )
    if not header.raw.endswith(_RESERVED):
        log.note(
            Severity.INFO,
            "vhdx.header.reserved",
            "reserved bytes of the header are not zero",
            offset=header.offset + layout.HEADER_RESERVED_OFFSET,
            field="header.Reserved",
            expected="zeros",
        )


def _other(header: Header) -> Section:
    """The header that is not in use: its fields when it is valid, why not when it is not."""
    title = header.name.capitalize()
    if not header.fault:
        return header.section(title)
    return Section(title, header.offset, (("state", f"not valid: {header.fault}"),))

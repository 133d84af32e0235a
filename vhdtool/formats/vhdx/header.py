"""The two headers, and which one counts.

A header is rewritten by writing the other copy with a larger sequence number, so after a crash one of
the two may be torn and the remaining one tells the truth.  The rules of content (versions, place of the
log) are applied to the chosen one alone and never lead back to the other: its log GUID is stale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vhdtool.checksum import crc32c_without_field
from vhdtool.errors import EXIT_UNSUPPORTED, FindingLog, Severity
from vhdtool.formats.image import Section
from vhdtool.formats.vhdx import layout
from vhdtool.model.identity import Identity
from vhdtool.source import ByteSource


@dataclass(frozen=True, slots=True)
class Header:
    """One decoded header.  Offsets and lengths are bytes; ``offset`` is where it stands.

    ``name`` is "header 1" or "header 2".  What it says of the log is judged by ``log.py``.
    """

    name: str
    offset: int
    checksum: int
    sequence_number: int
    file_write_guid: Identity
    data_write_guid: Identity
    log_guid: Identity
    log_version: int
    version: int
    log_length: int
    log_offset: int
    reserved_is_zero: bool

    @property
    def log_is_pending(self) -> bool:
        """Whether there are changes in the log that the rest of the file does not have yet."""
        return not self.log_guid.is_null

    @property
    def log_stop(self) -> int:
        """The first byte behind the log."""
        return self.log_offset + self.log_length

    @property
    def is_plausible(self) -> bool:
        """Whether the fields are within the rules: what counts when no checksum is right."""
        return (
            self.version == 1
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
                ("Version", self.version),
                ("LogLength", self.log_length),
                ("LogOffset", self.log_offset),
            ),
        )


@dataclass(frozen=True, slots=True)
class _Copy:
    """One of the two places: its bytes, the header in it, and why it is not valid (empty when it is)."""

    raw: bytes
    header: Header
    fault: str


def decode_header(raw: bytes, name: str, offset: int) -> Header:
    """The fields of the 4096 bytes ``raw``, unjudged."""
    fields = layout.parse_header(raw)
    return Header(
        name,
        offset,
        fields.checksum,
        fields.sequence_number,
        Identity(fields.file_write_guid),
        Identity(fields.data_write_guid),
        Identity(fields.log_guid),
        fields.log_version,
        fields.version,
        fields.log_length,
        fields.log_offset,
        raw.count(0, layout.HEADER_RESERVED_OFFSET) == len(raw) - layout.HEADER_RESERVED_OFFSET,
    )


def read_headers(
    source: ByteSource, log: FindingLog, *, ignore_checksums: bool = False
) -> tuple[Header, Callable[[], list[Section]]]:
    """The current header of ``source``, and what makes both for people to look at, the current one first.

    Raises:
        CorruptError: the file ends inside them, or neither is valid.
        UnsupportedError: the current one is of another version.
    """
    copies = [_read_copy(source, i) for i in (0, 1)]
    valid = [copy for copy in copies if not copy.fault]
    if not valid and ignore_checksums:
        valid = [
            copy
            for copy in copies
            if copy.raw.startswith(layout.HEADER_SIGNATURE) and copy.header.is_plausible
        ]
        for copy in valid:
            log.note(
                Severity.WARNING,
                "vhdx.header.checksum",
                f"the checksum of {copy.header.name} is wrong and was ignored as asked",
                offset=copy.header.offset + layout.CHECKSUM_OFFSET,
                field="header.Checksum",
                found=copy.header.checksum,
                expected=crc32c_without_field(copy.raw, layout.CHECKSUM_OFFSET),
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
    _judge(current.header, log)
    other = copies[1] if current is copies[0] else copies[0]

    def sections() -> list[Section]:
        title = f"{current.header.name.capitalize()} (current)"
        return [current.header.section(title), _other(other)]

    return current.header, sections


def find_valid_header(source: ByteSource) -> bool:
    """Whether a valid header stands in ``source``: a hint when the identifier before it is damaged."""
    stop = layout.HEADER_OFFSETS[1] + layout.HEADER_SIZE
    return source.size >= stop and any(not _read_copy(source, i).fault for i in (0, 1))


def _read_copy(source: ByteSource, i: int) -> _Copy:
    offset = layout.HEADER_OFFSETS[i]
    raw = source.read_exact(offset, layout.HEADER_SIZE, field=f"header {i + 1}")
    header = decode_header(raw, f"header {i + 1}", offset)
    if not raw.startswith(layout.HEADER_SIGNATURE):
        return _Copy(raw, header, "no signature")
    if crc32c_without_field(raw, layout.CHECKSUM_OFFSET) != header.checksum:
        return _Copy(raw, header, "wrong checksum")
    return _Copy(raw, header, "")


def _choose(valid: list[_Copy], copies: list[_Copy], log: FindingLog) -> _Copy:
    if len(valid) == 1:
        lost = copies[1] if valid[0] is copies[0] else copies[0]
        log.note(
            Severity.WARNING,
            "vhdx.header.one",
            f"{lost.header.name} is lost, {valid[0].header.name} is used",
            offset=lost.header.offset,
            field="header",
            found=lost.fault,
            expected="a signature 'head' and the right checksum",
        )
        return valid[0]
    first, second = (copy.header for copy in valid)
    if first.sequence_number == second.sequence_number:
        # Disk2vhd writes two identical headers; of different ones nobody can say which is newer.
        if valid[0].raw != valid[1].raw:
            log.note(
                Severity.ERROR,
                "vhdx.header.equal",
                "both headers carry the same sequence number and differ",
                offset=second.offset + 8,
                field="header.SequenceNumber",
                found=str(second.sequence_number),
                expected="a larger number in the newer one",
            )
        return valid[0]
    if (first.data_write_guid, first.log_guid) != (second.data_write_guid, second.log_guid):
        log.note(
            Severity.INFO,
            "vhdx.header.differ",
            "the headers carry different GUIDs: the last update was not doubled",
            offset=first.offset,
            field="header",
            found=f"DataWriteGuid {first.data_write_guid} and {second.data_write_guid}",
        )
    return valid[0] if first.sequence_number > second.sequence_number else valid[1]


def _judge(header: Header, log: FindingLog) -> None:
    if header.version != 1:
        log.refuse(
            "vhdx.header.version",
            "this version of the format is not known",
            offset=header.offset + 66,
            field="header.Version",
            found=header.version,
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
    if not header.reserved_is_zero:
        log.note(
            Severity.INFO,
            "vhdx.header.reserved",
            "reserved bytes of the header are not zero",
            offset=header.offset + layout.HEADER_RESERVED_OFFSET,
            field="header.Reserved",
            expected="zeros",
        )


def _other(copy: _Copy) -> Section:
    """The header that is not in use: its fields when it is valid, why not when it is not."""
    if not copy.fault:
        return copy.header.section(copy.header.name.capitalize())
    return Section(
        copy.header.name.capitalize(), copy.header.offset, (("state", f"not valid: {copy.fault}"),)
    )

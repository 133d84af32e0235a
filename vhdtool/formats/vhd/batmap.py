"""Xen's batmap behind the BAT: a bit for each block that is there in full.

Only ever a short cut, so it is never needed to read; it is checked, and blocks must not overlap it.
"""

from __future__ import annotations

from typing import Any, Final

from vhdtool.errors import FindingLog, Severity
from vhdtool.formats.vhd import layout
from vhdtool.formats.vhd.footer import Footer
from vhdtool.source import ByteSource

_TAPDISK_1_1: Final = 0x0001_0001
_TAPDISK_1_2: Final = 0x0001_0002
_VERSION_SIGNED: Final = 0x0001_0001
_VERSION_UNSIGNED: Final = 0x0001_0002
_WINDOW: Final = 1 << 20
_IS_NEGATIVE: Final = bytes(128) + b"\1" * 128


def judge_batmap(
    source: ByteSource, footer: Footer, table_stop: int, log: FindingLog
) -> list[tuple[int, int, str]]:
    """Xen's batmap behind the BAT: its ranges, where there is one.

    The map itself is read by ``judge_batmap_content``.
    """
    found = read_batmap(source, footer, table_stop)
    if found is None:
        if footer.creator_version >= _TAPDISK_1_2:
            log.note(
                Severity.WARNING,
                "vhd.batmap.cookie",
                "no batmap where tapdisk keeps one",
                offset=table_stop,
                field="batmap.cookie",
                expected="tdbatmap",
            )
        return []
    if found.keyhash_flag == 1:
        log.note(
            Severity.WARNING,
            "vhd.batmap.encrypted",
            "encrypted by tapdisk: what is read is not what the guest saw",
            offset=table_stop + layout.BATMAP_OFFSETS["keyhash_flag"],
            field="batmap.keyhash_flag",
            found=1,
        )
    ranges = [(table_stop, table_stop + layout.BATMAP_HEADER_SIZE, "batmap_header")]
    start, stop = found.batmap_offset, found.batmap_offset + found.batmap_size * layout.SECTOR_SIZE
    if stop > source.size - footer.length or start < table_stop + layout.BATMAP_HEADER_SIZE:
        log.note(
            Severity.WARNING,
            "vhd.batmap.range",
            "the batmap is not inside the file, behind its header",
            offset=table_stop + layout.BATMAP_OFFSETS["batmap_offset"],
            field="batmap.batmap_offset",
            found=f"{start:#x}-{stop:#x}",
        )
    elif start < stop:
        ranges.append((start, stop, "batmap"))
    return ranges


def read_batmap(source: ByteSource, footer: Footer, table_stop: int) -> Any:
    """The batmap's header as parsed, or None when this file has none."""
    if not footer.is_xen or footer.creator_version < _TAPDISK_1_1:
        return None
    if table_stop + layout.BATMAP_HEADER_SIZE > source.size - footer.length:
        return None
    raw = source.read_exact(table_stop, layout.BATMAP_HEADER_SIZE, field="batmap")
    parsed = layout.parse_batmap_header(raw)
    return parsed if parsed.cookie == layout.BATMAP_COOKIE else None


def judge_batmap_content(source: ByteSource, footer: Footer, table_stop: int, log: FindingLog) -> None:
    """What ``check`` wants to know of the batmap: version, size and checksum over the map."""
    parsed = read_batmap(source, footer, table_stop)
    if parsed is None:
        return

    def warn(code: str, what: str, field: str, found: object, expected: object) -> None:
        log.note(
            Severity.WARNING,
            code,
            what,
            offset=table_stop + layout.BATMAP_OFFSETS[field],
            field=f"batmap.{field}",
            found=found,
            expected=expected,
        )

    if parsed.batmap_version not in (_VERSION_SIGNED, _VERSION_UNSIGNED):
        expected = "0x10001 or 0x10002"
        warn(
            "vhd.batmap.version", "unknown batmap version", "batmap_version", parsed.batmap_version, expected
        )
        return
    # One bit for each 2 MiB of the disk, in whole sectors, and one sector for the smallest disks.
    needed = layout.round_up(max(1, (footer.virtual_size >> 21) // 8), layout.SECTOR_SIZE)
    if parsed.batmap_size * layout.SECTOR_SIZE < needed:
        found = f"{parsed.batmap_size} sectors"
        what = "the batmap is too small for the disk"
        warn("vhd.batmap.small", what, "batmap_size", found, f"{needed // layout.SECTOR_SIZE}")
        return
    behind_header = table_stop + layout.BATMAP_HEADER_SIZE <= parsed.batmap_offset
    if not behind_header or parsed.batmap_offset + needed > source.size:
        return  # noted already, as a range outside the file
    total = 0
    for position in range(parsed.batmap_offset, parsed.batmap_offset + needed, _WINDOW):
        count = min(_WINDOW, parsed.batmap_offset + needed - position)
        data = source.read_exact(position, count, field="batmap")
        total += sum(data)
        if parsed.batmap_version == _VERSION_SIGNED:  # that version summed signed bytes
            total -= 256 * sum(data.translate(_IS_NEGATIVE))
    computed = ~total & 0xFFFF_FFFF
    if computed != parsed.checksum:
        what = "the batmap's checksum is wrong"
        warn("vhd.batmap.checksum", what, "checksum", f"{parsed.checksum:#010x}", f"{computed:#010x}")

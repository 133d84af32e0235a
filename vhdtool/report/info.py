"""One image: what ``Get-VHD`` calls things first, then the structures as the specifications name them."""

from __future__ import annotations

from typing import Final

from vhdtool.errors import hexadecimal, printable
from vhdtool.formats.image import DiskImage, Section
from vhdtool.model.identity import ImageFormat, ParentLink, ParentPath
from vhdtool.model.state import BlockCounts
from vhdtool.report.findings import finding_lines, findings_json
from vhdtool.report.text import (
    Document,
    Paint,
    count,
    fields,
    identity_text,
    instant,
    instant_text,
    plain,
    size_both,
)

_WIDTH: Final = 18


def info_json(image: DiskImage, path: str, counts: BlockCounts) -> Document:
    """The document of ``info --json``."""
    geometry = image.geometry
    return {
        "path": path,
        "format": str(image.format),
        "type": str(image.type),
        "virtual_size": geometry.virtual_size,
        "file_size": _file_size(image),
        "block_size": _block_size(image),
        "logical_sector_size": geometry.sector_size,
        "physical_sector_size": geometry.physical_sector_size,
        "disk_id": identity_text(image.disk_id),
        "write_id": identity_text(image.write_id),
        "creator": image.creator,
        "created": instant(image.created),
        "blocks": {
            "total": counts.total,
            "data": counts.data,
            "partial": counts.partial,
            "zero": counts.zero,
            "absent": counts.absent,
        },
        "log": {"state": image.log.state, "entries": image.log.entries},
        "parent": None if image.parent is None else parent_json(image.parent),
        "findings": findings_json(image.findings),
    }


def parent_json(parent: ParentLink) -> Document:
    """What a child records of its parent."""
    return {
        "write_id": identity_text(parent.identities[0]) if parent.identities else None,
        "name": parent.name,
        "timestamp": instant(parent.timestamp),
        "candidates": [{"kind": str(path.kind), "path": path.path} for path in parent.paths],
    }


def info_text(image: DiskImage, path: str, counts: BlockCounts, paint: Paint = plain) -> str:
    """The same for people."""
    parts = [fields(_get_vhd(image, path), width=_WIDTH), fields(_beyond(image, counts), width=_WIDTH)]
    if image.parent is not None:
        parts.append(_parent_text(image.parent, paint))
    parts.extend(_section_text(section, paint) for section in image.sections)
    if image.findings:
        parts.append(
            "\n".join([paint("Findings", "name"), *finding_lines(image.findings, indent=2, paint=paint)])
        )
    return "\n\n".join(part for part in parts if part)


def _get_vhd(image: DiskImage, path: str) -> list[tuple[str, object]]:
    """The properties of ``Get-VHD`` that a file alone can answer, in its order."""
    geometry = image.geometry
    rows: list[tuple[str, object]] = [
        ("Path", path),
        ("VhdFormat", image.format.upper()),
        ("VhdType", image.type.capitalize()),
        ("FileSize", size_both(_file_size(image))),
        ("Size", size_both(geometry.virtual_size)),
        ("LogicalSectorSize", geometry.sector_size),
        ("PhysicalSectorSize", geometry.physical_sector_size),
        ("BlockSize", size_both(_block_size(image))),
        ("ParentPath", _parent_path(image.parent)),
        ("DiskIdentifier", "" if image.disk_id is None else str(image.disk_id).upper()),
    ]
    # Blocks of a VHDX stand on whole MiB, a fixed disk at the file's start; a dynamic VHD's may stand
    # anywhere, which is a finding of ``check``.
    if image.format is ImageFormat.VHDX or not geometry.has_table:
        rows.append(("Alignment", 1))
    return rows


def _beyond(image: DiskImage, counts: BlockCounts) -> list[tuple[str, object]]:
    """What ``Get-VHD`` does not show."""
    rows: list[tuple[str, object]] = []
    if image.write_id is not None:
        name = "DataWriteGuid" if image.format is ImageFormat.VHDX else "UniqueId"
        rows.append((name, image.write_id))
    if image.creator:
        rows.append(("Creator", image.creator))
    if image.created is not None:
        rows.append(("Created", instant_text(image.created)))
    if image.geometry.has_table:
        rows.append(("Blocks", _counts_text(counts)))
    if image.log.state != "none":
        rows.append(("Log", _log_text(image)))
    return rows


def _counts_text(counts: BlockCounts) -> str:
    states = (
        ("data", counts.data),
        ("partial", counts.partial),
        ("zero", counts.zero),
        ("absent", counts.absent),
    )
    shown = ", ".join(f"{number} {name}" for name, number in states if number)
    return f"{counts.total} ({shown})" if shown else str(counts.total)


def _log_text(image: DiskImage) -> str:
    log = image.log
    if log.state != "pending":
        return log.state
    if not log.replayed:
        return "pending, left out"
    entries = count(log.entries, "entry", "entries")
    return f"pending, {entries} replayed in memory ({size_both(log.patched_bytes)})"


def _parent_path(parent: ParentLink | None) -> str:
    """The path to show where there is room for one: Windows shows an absolute one when it knows it."""
    if parent is None or not parent.paths:
        return ""
    best = [path for kind in ("absolute_path", "relative_path") for path in parent.paths if path.kind == kind]
    return (best or list(parent.paths))[0].path


def _parent_text(parent: ParentLink, paint: Paint) -> str:
    rows: list[tuple[str, object]] = [("Identity", identity) for identity in parent.identities]
    if parent.timestamp is not None:
        rows.append(("Modified", instant_text(parent.timestamp)))
    rows.extend((_locator_name(path), path.path) for path in parent.paths)
    return f"{paint('Parent as recorded', 'name')}\n{fields(rows, indent=2, width=_WIDTH - 2)}"


def _locator_name(path: ParentPath) -> str:
    """``W2ru (relative path)``; the names in a VHDX say themselves what they are."""
    kind = path.kind.partition("_")[0]
    return path.locator if kind in path.locator.lower() else f"{path.locator} ({path.kind.replace('_', ' ')})"


def _section_text(section: Section, paint: Paint) -> str:
    head = f"{paint(printable(section.name), 'name')} {paint(f'at {section.offset:#x}', 'faint')}"
    rows = [(name, _section_value(name, value)) for name, value in section.fields]
    return f"{head}\n{fields(rows, indent=2, width=_WIDTH - 2)}"


def _section_value(name: str, value: str | int) -> str | int:
    """Offsets in hex, as everywhere; sizes and counts in decimal, as one compares them with Windows'."""
    is_offset = isinstance(value, int) and ("Offset" in name or name == "Tail")
    return hexadecimal(value) if is_offset and isinstance(value, int) else value


def _file_size(image: DiskImage) -> int:
    """Bytes of the file as it stands on disk; a replayed log may show a longer one."""
    from vhdtool.source import files_of

    files = files_of(image.source)
    return sum(file.size for file in files) if files else image.source.size


def _block_size(image: DiskImage) -> int:
    return image.geometry.block_size if image.geometry.has_table else 0

"""What ``create`` and ``snapshot`` made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhdtool.report.text import Document, fields, size_both

if TYPE_CHECKING:
    from vhdtool.export.create import CreateReport


def create_json(report: CreateReport) -> Document:
    """The document of ``create --json`` and ``snapshot --json``."""
    return {
        "path": report.target,
        "format": str(report.format),
        "type": str(report.type),
        "virtual_size": report.virtual_size,
        "file_size": report.file_size,
        "block_size": report.block_size,
        "disk_id": str(report.disk_id),
        "write_id": str(report.write_id),
        "parent": report.parent,
    }


def create_text(report: CreateReport) -> str:
    """The same for people, in the words of ``New-VHD``."""
    rows: list[tuple[str, object]] = [
        ("Path", report.target),
        ("VhdFormat", report.format.upper()),
        ("VhdType", report.type.capitalize()),
        ("FileSize", size_both(report.file_size)),
        ("Size", size_both(report.virtual_size)),
        ("BlockSize", size_both(report.block_size)),
        ("DiskIdentifier", str(report.disk_id).upper()),
    ]
    if report.parent is not None:
        rows.append(("ParentPath", report.parent))
    return fields(rows)

"""Sets of exports, and merges: what was made, what was left out, what verifying a set found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vhdtool.report.findings import finding_lines, findings_json
from vhdtool.report.ranges import sample_json, sample_line
from vhdtool.report.text import Document, Paint, count, instant, name_of, plain, size_both, size_text, table

if TYPE_CHECKING:
    from vhdtool.export.merge import MergeReport, Room
    from vhdtool.export.sets.allpoints import SetReport
    from vhdtool.export.sets.verifyset import SetVerifyReport


def set_json(report: SetReport) -> Document:
    """The document of ``export --all --json``."""
    return {
        "destination": str(report.destination),
        "manifest": str(report.manifest),
        "layout": report.layout,
        "points": [
            {
                "point_in_time": str(point.point_in_time),
                "target": point.target,
                "parent": point.parent,
                "kept": point.kept,
                "virtual_size": point.virtual_size,
                "file_size": point.file_size,
                "read_bytes": point.read_bytes,
                "written_bytes": point.written_bytes,
                "shared_bytes": point.shared_bytes,
                "damaged_count": point.damaged_count,
                "root": point.root,
                "duplicates": [str(path) for path in point.duplicates],
            }
            for point in report.points
        ],
        "skipped": [
            {"path": str(skipped.path), "reason": skipped.reason, "code": skipped.code}
            for skipped in report.skipped
        ],
        "read_bytes": report.read_bytes,
        "written_bytes": report.written_bytes,
        "shared_bytes": report.shared_bytes,
        "started": instant(report.started),
        "finished": instant(report.finished),
        "findings": findings_json(report.findings),
    }


def set_text(report: SetReport, paint: Paint = plain) -> str:
    """The same for people: a line for each image, then sums."""
    rows = [
        (
            point.target,
            point.parent or "-",
            size_text(point.virtual_size),
            "kept" if point.kept else size_text(point.written_bytes),
            point.point_in_time,
        )
        for point in report.points
    ]
    parts = [table(("image", "parent", "disk", "written", "point in time"), rows, right=(2, 3))]
    copies = [
        f"{name_of(path)}: the same disk as {name_of(point.point_in_time)}, exported once"
        for point in report.points
        for path in point.duplicates
    ]
    parts.extend(["\n".join(copies)] if copies else [])
    parts.append(
        f"{count(len(report.points), 'image')} in {name_of(report.destination)}:"
        f" {size_both(report.read_bytes)} read, {size_both(report.written_bytes)} written"
        + (f", {size_both(report.shared_bytes)} shared" if report.shared_bytes else "")
    )
    return "\n\n".join(parts)


def skipped_lines(report: SetReport) -> Iterator[str]:
    """Why images of the tree are not in the set."""
    for skipped in report.skipped:
        yield f"{name_of(skipped.path)} is not exported: {skipped.reason}"


def damaged_points(report: SetReport) -> Iterator[str]:
    """Images with ranges that became zeros because they could not be read."""
    for point in report.points:
        if point.damaged_count:
            ranges = count(point.damaged_count, "range")
            yield f"{point.target}: {ranges} exported as zeros, listed in its manifest [chain.damaged_range]"


def verify_set_json(report: SetVerifyReport) -> Document:
    """The document of ``verify --set --json``."""
    return {
        "ok": report.ok,
        "folder": report.folder,
        "manifest": report.manifest,
        "layout": report.layout,
        "images": [
            {
                "path": image.name,
                "parent": image.parent,
                "point_in_time": image.point_in_time,
                "ok": image.ok,
                "checked_bytes": 0 if image.report is None else image.report.checked_bytes,
                "findings": findings_json(image.findings),
            }
            for image in report.images
        ],
        "skipped": list(report.skipped),
        "checked_bytes": report.checked_bytes,
        "sample": sample_json(report.sample),
        "signature": report.signature,
        "signer": report.signer,
    }


def verify_set_text(report: SetVerifyReport, paint: Paint = plain) -> str:
    """The same for people."""
    lines = []
    for image in report.images:
        if image.ok:
            lines.append(paint(f"{name_of(image.name)}: as exported", "good"))
        else:
            lines.append(paint(f"{name_of(image.name)}: NOT as exported", "error"))
            lines.extend(finding_lines(image.findings, indent=2, paint=paint))
    bad = sum(not image.ok for image in report.images)
    whole = f"{count(len(report.images), 'image')} of {name_of(report.folder)}"
    read = f"{size_both(report.checked_bytes)} of data read"
    if bad:
        lines.append(paint(f"{bad} of {whole} NOT as exported, {read}", "error"))
    else:
        lines.append(paint(f"{whole} as exported, {read}", "good"))
    if report.sample is not None:
        lines.append(paint(sample_line(report.sample), "warning"))
    if report.skipped:
        lines.append(f"not in the set: {', '.join(map(name_of, report.skipped))}")
    if report.signer is not None:
        lines.append(f"set: {report.signature}")
    return "\n".join(lines)


def room_line(room: Room) -> str:
    """How much storage a merge can take, before it begins."""
    return f"takes up to {size_text(room.needed)}; {size_text(room.free)} are free"


def merge_lines(report: MergeReport) -> Iterator[str]:
    """What is worth saying behind a merge: who goes on needing the old files."""
    for image in report.still_needed:
        yield f"{name_of(image.path)} goes on needing {name_of(image.parent)}: keep it, and what it needs"
    if report.keeps_id:
        name = name_of(report.export.target)
        yield f"{name} has the identities of the leaf: keep only one of the two in a folder"

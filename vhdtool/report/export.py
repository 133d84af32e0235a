"""What an export did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vhdtool.report.text import count, name_of, size_text

if TYPE_CHECKING:
    from vhdtool.export.options import ExportReport


def digest_lines(digests: Mapping[str, str], name: str) -> Iterator[str]:
    """Digests as ``sha256sum`` prints them, so that ``sha256sum -c`` reads them."""
    from vhdtool.export.proof.sums import sums_line

    return (sums_line(name, digest) for digest in digests.values())


def damaged_lines(report: ExportReport) -> Iterator[str]:
    """Every range that was exported as zeros because it could not be read."""
    for part in report.damaged:
        place = f"{part.start:#x} to {part.start + part.length:#x}"
        yield f"guest range {place} exported as zeros: {part.reason} [chain.damaged_range]"
    more = report.damaged_count - len(report.damaged)
    if more:
        yield f"and {count(more, 'more damaged range')}, all of them in the manifest [chain.damaged_range]"


def summary(report: ExportReport) -> str:
    """One line for a person who waited."""
    seconds = (report.finished - report.started).total_seconds()
    rate = f", {size_text(int(report.read_bytes / seconds))}/s" if seconds > 0 else ""
    sizes = f"{size_text(report.virtual_size)}, of which {size_text(report.written_bytes)} were written"
    return f"{name_of(report.target)}: {sizes}, in {seconds:.1f} s{rate}"

"""What differs between two disks: differences, comparisons and verifications as JSON and for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Final

from vhdtool.report.findings import finding_lines, findings_json
from vhdtool.report.text import Document, Paint, count, name_of, plain, size_both, size_text, table

if TYPE_CHECKING:
    from vhdtool.chain.diff import Difference
    from vhdtool.export.proof.comparison import Comparison
    from vhdtool.export.proof.readback import Sample
    from vhdtool.export.proof.verify import VerifyReport

_SHOWN_MAX: Final = 1000


def ranges_json(ranges: Sequence[tuple[int, int]]) -> list[Document]:
    """Ranges of guest bytes."""
    return [{"start": start, "length": length} for start, length in ranges]


def ranges_text(ranges: Sequence[tuple[int, int]], number: int, paint: Paint = plain) -> str:
    """A table of the first ranges.

    Args:
        number: how many there are in all.
    """
    rows = [(f"{start:#x}", f"{length:#x}", size_text(length)) for start, length in ranges[:_SHOWN_MAX]]
    text = table(("Start", "Length", "Size"), rows, right=(0, 1, 2), indent=2)
    head, _, rest = text.partition("\n")
    text = f"{paint(head, 'name')}\n{rest}"
    more = number - len(rows)
    return f"{text}\n  and {count(more, 'more range')}" if more > 0 else text


def diff_json(difference: Difference, verified: Comparison | None = None) -> Document:
    """The document of ``diff --json``; with ``verified`` only what was read and really differs."""
    found = verified or difference
    return {
        "virtual_size": difference.virtual_size,
        "common_layers": list(difference.common_layers),
        "ranges": ranges_json(found.ranges),
        "bytes": found.bytes,
        "content_verified": verified is not None,
    }


def diff_text(difference: Difference, verified: Comparison | None = None, paint: Paint = plain) -> str:
    """The same for people."""
    found = verified or difference
    number = len(difference.ranges) if verified is None else verified.range_count
    parts = []
    if difference.common_layers:
        lines = [
            paint("Layers that both read", "name"),
            *(f"  {name_of(p)}" for p in difference.common_layers),
        ]
        parts.append("\n".join(lines))
    if found.ranges:
        parts.append(ranges_text(found.ranges, number, paint))
    verb = "can differ" if verified is None else "differ"
    parts.append(
        f"{size_both(found.bytes)} in {count(number, 'range')} {verb}, "
        f"of a disk of {size_text(difference.virtual_size)}"
        if found.ranges
        else "nothing " + ("can differ" if verified is None else "differs")
    )
    return "\n\n".join(parts)


def compare_json(comparison: Comparison) -> Document:
    """The document of ``compare --json``; ``range_count`` counts those too that are not listed."""
    return {
        "equal": comparison.equal,
        "first_difference": comparison.first_difference,
        "ranges": ranges_json(comparison.ranges),
        "bytes": comparison.bytes,
        "range_count": comparison.range_count,
    }


def compare_text(comparison: Comparison, paint: Paint = plain) -> str:
    """The same for people."""
    if comparison.equal:
        return paint(f"equal: {size_both(comparison.size_a)} on both sides", "good")
    assert comparison.first_difference is not None
    lines = [paint(f"different, first at byte {comparison.first_difference:#x}", "error")]
    if comparison.size_a != comparison.size_b:
        lines.append(f"sizes: {size_both(comparison.size_a)} and {size_both(comparison.size_b)}")
    lines.append(ranges_text(comparison.ranges, comparison.range_count, paint))
    lines.append(f"{size_both(comparison.bytes)} in {count(comparison.range_count, 'range')} differ")
    return "\n".join(lines)


def sample_json(sample: Sample | None) -> Document | None:
    """How much was read, when that was not all."""
    return None if sample is None else dict(zip(("percent", "seed", "chunks", "of"), astuple(sample)))


def sample_line(sample: Sample) -> str:
    """The same for people."""
    read = f"{sample.chunks} of {count(sample.of, 'chunk')} with data"
    return f"a sample: {read}, by seed {sample.seed}; the rest was not read"


def verify_json(report: VerifyReport) -> Document:
    """The document of ``verify --json`` against a manifest."""
    return {
        "ok": report.ok,
        "target": report.target,
        "manifest": report.manifest,
        "size_expected": report.size_expected,
        "size_found": report.size_found,
        "bad_ranges": ranges_json(report.bad_ranges),
        "bad_count": report.bad_count,
        "bad_bytes": report.bad_bytes,
        "checked_bytes": report.checked_bytes,
        "root": report.root,
        "bad_digests": list(report.bad_digests),
        "unchecked_digests": list(report.unchecked_digests),
        "damaged_count": report.damaged_count,
        "damaged_bytes": report.damaged_bytes,
        "structure_checked": report.structure_checked,
        "sample": sample_json(report.sample),
        "signature": report.signature,
        "signer": report.signer,
        "parent": report.parent,
        "findings": findings_json(report.findings),
    }


def verify_text(report: VerifyReport, paint: Paint = plain) -> str:
    """The same for people."""
    lines = [_verdict(report, paint)]
    if not report.ok:
        lines.extend(finding_lines(report.findings, indent=2, paint=paint))
    if report.bad_count:
        lines.append(f"{size_both(report.bad_bytes)} in {count(report.bad_count, 'range')} differ")
    if report.sample is not None:
        lines.append(paint(sample_line(report.sample), "warning"))
    if report.unchecked_digests:
        lines.append(f"not computed: {', '.join(report.unchecked_digests)} of the whole disk")
    if report.damaged_count:
        lost = f"{count(report.damaged_count, 'range')} of {size_both(report.damaged_bytes)} in all"
        lines.append(paint(f"{lost} could not be read for the export: zeros there", "warning"))
    if report.signer is not None:
        lines.append(f"manifest: {report.signature}")
    return "\n".join(lines)


def _verdict(report: VerifyReport, paint: Paint) -> str:
    name = name_of(report.target)
    if not report.is_as_exported:
        return paint(f"{name}: NOT what {name_of(report.manifest)} says", "error")
    read = f"{size_both(report.checked_bytes)} of data read"
    if report.parent_finding is not None:
        return paint(f"{name}: itself as exported ({read}), but its parent cannot be had", "error")
    parent = "" if report.parent is None else f"; its parent is {name_of(report.parent)}"
    return paint(f"{name}: as exported, {read}{parent}", "good")

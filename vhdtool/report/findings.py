"""Findings as JSON-ready values and as lines."""

from __future__ import annotations

from collections.abc import Iterable

from vhdtool.errors import Finding, Severity
from vhdtool.report.text import Document, Paint, plain

WORST_FIRST = (Severity.ERROR, Severity.WARNING, Severity.INFO)


def finding_json(finding: Finding) -> Document:
    """One finding; ``message`` is the line that a person sees."""
    return {
        "code": finding.code,
        "severity": str(finding.severity),
        "file": finding.location.file,
        "offset": finding.location.offset,
        "field": finding.location.field,
        "found": finding.found,
        "expected": finding.expected,
        "message": str(finding),
    }


def findings_json(findings: Iterable[Finding]) -> list[Document]:
    """Findings in the order in which they were made."""
    return [finding_json(finding) for finding in findings]


def finding_lines(findings: Iterable[Finding], *, indent: int = 0, paint: Paint = plain) -> list[str]:
    """One line each, the worst first."""
    listed = sorted(findings, key=lambda finding: WORST_FIRST.index(finding.severity))
    return [
        f"{' ' * indent}{paint(finding.severity + ':', str(finding.severity))} {finding}"
        for finding in listed
    ]

"""Findings as JSON-ready values and as lines."""

from __future__ import annotations

from collections.abc import Iterable

from vhdtool.errors import Finding, Severity
from vhdtool.report.text import Document, Paint, plain

WORST_FIRST = (Severity.ERROR, Severity.WARNING, Severity.INFO)


def findings_json(findings: Iterable[Finding]) -> list[Document]:
    """Findings in the order in which they were made."""
    return [dict(finding.document()) for finding in findings]


def finding_lines(findings: Iterable[Finding], *, indent: int = 0, paint: Paint = plain) -> list[str]:
    """One line each, the worst first."""
    listed = sorted(findings, key=lambda finding: WORST_FIRST.index(finding.severity))
    return [
        f"{' ' * indent}{paint(finding.severity + ':', str(finding.severity))} {finding}"
        for finding in listed
    ]

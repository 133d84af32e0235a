"""What ``check`` found, grouped by severity and code, each with its meaning and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from vhdtool.errors import Finding, Severity
from vhdtool.report.explanations import explanation_of
from vhdtool.report.findings import WORST_FIRST, findings_json
from vhdtool.report.text import Document, Paint, count, plain, wrapped

if TYPE_CHECKING:
    from vhdtool.chain.check import CheckReport

HEADS: Final = {
    Severity.ERROR: "ERRORS: data is wrong or cannot be read",
    Severity.WARNING: "WARNINGS: readable, but not as it should be",
    Severity.INFO: "NOTES",
}


def check_json(report: CheckReport) -> Document:
    """The document of ``check --json``."""
    return {
        "findings": findings_json(report.findings),
        "errors": report.errors,
        "warnings": report.warnings,
        "images": report.images,
    }


def check_text(report: CheckReport, paint: Paint = plain) -> str:
    """The same for people."""
    parts = []
    for severity in WORST_FIRST:
        here = [finding for finding in report.findings if finding.severity is severity]
        if here:
            parts.append(paint(HEADS[severity], str(severity)))
            parts.extend(_code_text(code, of_code, paint) for code, of_code in by_code(here).items())
    notes = len(report.findings) - report.errors - report.warnings
    summary = (
        f"{count(report.images, 'image')} checked: {count(report.errors, 'error')}, "
        f"{count(report.warnings, 'warning')}, {count(notes, 'note')}"
    )
    parts.append(paint(summary, "error" if report.errors else "warning" if report.warnings else "good"))
    return "\n\n".join(parts)


def by_code(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Findings grouped by their code, in the order in which codes come first."""
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.code, []).append(finding)
    return groups


def _code_text(code: str, findings: list[Finding], paint: Paint) -> str:
    lines = [paint(code, "name")]
    explanation = explanation_of(code)
    if explanation is not None:
        windows = f" Windows reports it as {explanation.windows}." if explanation.windows else ""
        lines.extend(wrapped(f"{explanation.meaning}{windows}", indent=2))
        lines.extend(wrapped(f"What to do: {explanation.advice}", indent=2))
    lines.extend(f"  - {str(finding).removesuffix(f' [{code}]')}" for finding in findings)
    return "\n".join(lines)

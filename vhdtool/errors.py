"""What can be wrong, as data: findings, and the errors that carry them.

A :class:`Finding` is one fact about one place in one file.  The same object serves two roads:
strict reading raises it, inspection collects it into a report.

The error tree, with the exit code of each (see the reference page for what they mean)::

    VhdtoolError
    ├── FormatError                  the bytes are not what the format promises
    │   ├── CorruptError         65      a structure breaks its own rules
    │   └── UnsupportedError     69      sound, but a feature we do not read
    ├── ChainError               65  each file is sound; together they are not
    │   ├── ParentNotFoundError  66      no candidate, or none that can be opened
    │   ├── ParentMismatchError  66      a parent with another identity
    │   └── ChainLoopError       65      a file is its own ancestor
    ├── InputError
    │   ├── FileMissingError     66      nothing stands under the name
    │   ├── KeyFileError         65      a key for signing or checking that is none, or cannot be used
    │   └── ReadError            74      the operating system could not read it
    ├── ExportError              74  the result could not be written
    │   ├── TargetExistsError    73      something stands under the target's name already
    │   ├── TargetError          73      the target cannot be created
    │   └── SourceChangedError   75      an input changed while we read it
    │       └── SourceGoneError          nothing stands under its name any more
    ├── TraceError               65  a recorded workload that cannot be read, or does not fit the disk
    ├── WorkloadError             2  a workload that cannot be: a parameter out of range, nothing to read
    └── MissingPackageError      69  an optional package is not installed

``ValueError`` and ``assert`` are for our callers' and our own mistakes, never for what a file contains.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, NoReturn

EXIT_FOUND: Final = 1
EXIT_USAGE: Final = 2
EXIT_CORRUPT: Final = 65
EXIT_MISSING: Final = 66
EXIT_UNSUPPORTED: Final = 69
EXIT_TARGET: Final = 73
EXIT_IO: Final = 74
EXIT_CHANGED: Final = 75
EXIT_INTERRUPTED: Final = 130

# A hostile table can break the same rule millions of times; the first few tell the story.
FINDINGS_PER_CODE: Final = 16


class Severity(StrEnum):
    """How bad a finding is: strict reading refuses an ERROR, prints a WARNING, keeps INFO for reports."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def printable(text: str) -> str:
    """``text`` fit for a terminal and for UTF-8: control, format and lone surrogate characters escaped.

    Names and strings in images come from strangers; an escape sequence in one must not reach a terminal.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def hexadecimal(value: int) -> str:
    """An offset, size or mask as messages print it: ``0x1040``."""
    return f"{value:#x}" if value >= 0 else f"-{-value:#x}"


@dataclass(frozen=True, slots=True)
class Location:
    """Where a finding is: a file, an offset in bytes from its start, a field as the specification names it.

    ``offset`` is None for what has no single place (a size, a missing file); ``field`` may be empty.
    """

    file: str
    offset: int | None = None
    field: str = ""

    def __str__(self) -> str:
        place = "" if self.offset is None else f" at {hexadecimal(self.offset)}"
        field = f" ({self.field})" if self.field else ""
        return printable(f"{self.file}{place}{field}")


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about one place: what is wrong, what stands there, what should.

    Attributes:
        code: dotted, lower case and stable; scripts match on it: ``vhd.footer.checksum``.
        severity: ERROR makes strict reading refuse.
        location: file, offset and field.
        what: one clause without a full stop: "the footer's checksum is wrong".
        found, expected: values as text, offsets, sizes and masks in hex; may be empty.
        exit_code: what the command line exits with when this finding is the reason for a refusal.
    """

    code: str
    severity: Severity
    location: Location
    what: str
    found: str = ""
    expected: str = ""
    exit_code: int = EXIT_CORRUPT

    def __str__(self) -> str:
        values = ", ".join(
            f"{label} {printable(value)}"
            for label, value in (("found", self.found), ("expected", self.expected))
            if value
        )
        return f"{printable(self.what)}: {self.location}{': ' + values if values else ''} [{self.code}]"

    def document(self) -> dict[str, str | int | None]:
        """The finding as every JSON document shows it; ``message`` is the line that a person sees."""
        return {
            "code": self.code,
            "severity": str(self.severity),
            "file": self.location.file,
            "offset": self.location.offset,
            "field": self.location.field,
            "found": self.found,
            "expected": self.expected,
            "message": str(self),
        }


class VhdtoolError(Exception):
    """Everything that vhdtool raises on purpose.

    Attributes:
        exit_code: what the command line exits with.
        finding: the fact behind it, or None where there is no place in a file to name.
    """

    exit_code: int = EXIT_CORRUPT

    def __init__(self, reason: Finding | str) -> None:
        super().__init__(str(reason))
        self.finding = reason if isinstance(reason, Finding) else None

    def __reduce__(self) -> tuple[type[VhdtoolError], tuple[Finding | str]]:
        return type(self), (self.finding or str(self),)


class FormatError(VhdtoolError):
    """The bytes are not what the format promises."""


class CorruptError(FormatError):
    """A structure breaks its own rules."""


class UnsupportedError(FormatError):
    """Sound, but a feature that vhdtool does not read."""

    exit_code = EXIT_UNSUPPORTED


class ChainError(VhdtoolError):
    """Each file is sound; together they are not a chain."""


class ParentNotFoundError(ChainError):
    """A parent is missing."""

    exit_code = EXIT_MISSING


class ParentMismatchError(ChainError):
    """The parent that was found is not the one its child was made from."""

    exit_code = EXIT_MISSING


class ChainLoopError(ChainError):
    """An image is its own ancestor."""


class InputError(VhdtoolError):
    """An input could not be had."""


class FileMissingError(InputError):
    """Nothing stands under the name."""

    exit_code = EXIT_MISSING


class KeyFileError(InputError):
    """A file with a key for signatures is none, or of a kind that cannot be used."""


class ReadError(InputError):
    """The operating system could not open or read an input."""

    exit_code = EXIT_IO


class ExportError(VhdtoolError):
    """The result could not be written."""

    exit_code = EXIT_IO


class TargetError(ExportError):
    """The target cannot be created."""

    exit_code = EXIT_TARGET


class TargetExistsError(TargetError):
    """Something stands under the target's name already."""


class SourceChangedError(ExportError):
    """An input changed while it was read."""

    exit_code = EXIT_CHANGED


class SourceGoneError(SourceChangedError):
    """Nothing stands under an input's name any more: it may come back, with its file system, as it was."""


class TraceError(VhdtoolError):
    """A recorded workload cannot be read, or reads what the disk does not have."""


class WorkloadError(VhdtoolError, ValueError):
    """A workload that cannot be: a parameter is out of its range, or there is nothing to read."""

    exit_code = EXIT_USAGE


class MissingPackageError(VhdtoolError):
    """An optional package is not installed."""

    exit_code = EXIT_UNSUPPORTED


_ERROR_OF_CODE: Final[dict[str, type[VhdtoolError]]] = {
    "chain.parent.missing": ParentNotFoundError,
    "chain.parent.mismatch": ParentMismatchError,
    "chain.loop": ChainLoopError,
}


def error_for(finding: Finding) -> VhdtoolError:
    """The error that refuses because of ``finding``."""
    named = _ERROR_OF_CODE.get(finding.code)
    if named is not None:
        return named(finding)
    if finding.code.startswith("chain."):
        error: VhdtoolError = ChainError(finding)
    elif finding.exit_code == EXIT_UNSUPPORTED:
        error = UnsupportedError(finding)
    else:
        error = CorruptError(finding)
    error.exit_code = finding.exit_code
    return error


def refuse(finding: Finding) -> NoReturn:
    """Raise ``finding`` as the error that fits it."""
    raise error_for(finding)


def raise_first_error(findings: Iterable[Finding]) -> None:
    """Refuse because of the first ERROR among ``findings``, if there is one: what strict reading does."""
    for finding in findings:
        if finding.severity is Severity.ERROR:
            refuse(finding)


class FindingLog:
    """Collects the findings about one file, in order, without repeats and within bounds.

    Of one code and severity only the first ``FINDINGS_PER_CODE`` are kept; the rest are counted, and the
    count stands in the ``what`` of the last one kept.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self._kept: list[Finding] = []
        # By severity too: sixteen warnings must not crowd out an error of the same code.
        self._count: dict[tuple[str, Severity], int] = {}

    def add(self, finding: Finding, times: int = 1) -> None:
        """Keep ``finding``; ``times`` says for how many places of its kind it stands."""
        if finding in self._kept:
            return
        kind = (finding.code, finding.severity)
        seen = self._count.get(kind, 0)
        if seen < FINDINGS_PER_CODE:
            self._kept.append(finding)
        self._count[kind] = seen + times

    def extend(self, findings: Iterable[Finding]) -> None:
        """Keep each of ``findings``."""
        for finding in findings:
            self.add(finding)

    def note(
        self,
        severity: Severity,
        code: str,
        what: str,
        *,
        offset: int | None = None,
        field: str = "",
        found: object = "",
        expected: object = "",
        exit_code: int = EXIT_CORRUPT,
        times: int = 1,
    ) -> Finding:
        """Make a finding about this file, keep it and return it.  Integers are printed in hex."""
        finding = Finding(
            code, severity, Location(self.file, offset, field), what, _text(found), _text(expected), exit_code
        )
        self.add(finding, times)
        return finding

    def refuse(
        self,
        code: str,
        what: str,
        *,
        offset: int | None = None,
        field: str = "",
        found: object = "",
        expected: object = "",
        exit_code: int = EXIT_CORRUPT,
    ) -> NoReturn:
        """Raise an ERROR finding at once: for what cannot be parsed any further."""
        location = Location(self.file, offset, field)
        refuse(Finding(code, Severity.ERROR, location, what, _text(found), _text(expected), exit_code))

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.all())

    def errors(self) -> tuple[Finding, ...]:
        """The errors among the findings kept so far."""
        return tuple(f for f in self.all() if f.severity is Severity.ERROR) if self._kept else ()

    def all(self) -> tuple[Finding, ...]:
        """The findings kept so far."""
        if not self._kept:
            return ()
        kept = list(self._kept)
        last = {(finding.code, finding.severity): i for i, finding in enumerate(kept)}
        shown: dict[tuple[str, Severity], int] = {}
        for finding in kept:
            kind = (finding.code, finding.severity)
            shown[kind] = shown.get(kind, 0) + 1
        for kind, i in last.items():
            more = self._count[kind] - shown[kind]
            if more > 0:
                kept[i] = replace(kept[i], what=f"{kept[i].what} (and {more} more like it)")
        return tuple(kept)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return hexadecimal(value)
    if isinstance(value, bytes):
        return f"bytes {value.hex()}"
    return str(value)


if sys.maxsize < 2**32:  # pragma: no cover
    # Offsets in VHDX files pass 2**32; os.pread on such an interpreter would not reach them.
    raise ImportError("vhdtool needs a 64-bit Python")

"""One link judged: is this image the parent that its child was made from, and what is to be said if not.

The identity decides; sizes, sector sizes and times say what else does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Self

from vhdtool.chain.chain import DEPTH_MAX, LinkVerdict
from vhdtool.errors import (
    EXIT_CORRUPT,
    EXIT_MISSING,
    EXIT_UNSUPPORTED,
    Finding,
    Location,
    Severity,
    VhdtoolError,
)
from vhdtool.formats.image import DiskImage
from vhdtool.model.identity import DiskType, Identity, ImageFormat, ParentLink
from vhdtool.source import files_of

IdentityKey = tuple[ImageFormat, bytes]

# Windows copies and archives keep times to two seconds (FAT, ZIP).
TIMESTAMP_SLACK_SECONDS: Final = 2
TRIED_SHOWN_MAX: Final = 24
TRIED_PATH_LENGTH_MAX: Final = 160


class ImageFacts(NamedTuple):
    """What a link is judged by; outlives the image's file.

    Attributes:
        name: what messages call it.
        mtime: seconds since 1970, None for bytes in memory.
    """

    name: str
    format: ImageFormat
    type: DiskType
    virtual_size: int
    sector_size: int
    disk_id: Identity | None
    write_id: Identity | None
    parent: ParentLink | None
    mtime: float | None

    @classmethod
    def of(cls, image: DiskImage) -> Self:
        """The facts about ``image``."""
        files = files_of(image.source)
        return cls(
            image.source.name,
            image.format,
            image.type,
            image.geometry.virtual_size,
            image.geometry.sector_size,
            image.disk_id,
            image.write_id,
            image.parent,
            max([file.mtime for file in files], default=None),
        )


def judge_link(
    child: DiskImage | ImageFacts,
    parent: DiskImage | ImageFacts,
    *,
    allow_mismatch: bool = False,
    tried: str = "",
) -> tuple[LinkVerdict, tuple[Finding, ...]]:
    """Whether ``parent`` is what ``child`` was made from, and what else does not fit.

    The identity decides: the verdict is OK or MISMATCH.  A sector size that differs is an ERROR beside an
    OK: it is the right file, and cannot be read through.

    Args:
        allow_mismatch: a wrong identity is a WARNING instead of an ERROR.
        tried: what is said of the search in that finding.
    """
    child = child if isinstance(child, ImageFacts) else ImageFacts.of(child)
    parent = parent if isinstance(parent, ImageFacts) else ImageFacts.of(parent)
    findings: list[Finding] = []

    def note(
        severity: Severity, code: str, what: str, found: str, expected: str, exit_code: int = EXIT_CORRUPT
    ) -> None:
        place = Location(child.name, None, "parent")
        findings.append(Finding(f"chain.parent.{code}", severity, place, what, found, expected, exit_code))

    wanted = wanted_identities(child.parent)
    matches = parent.format is child.format and parent.write_id is not None and parent.write_id in wanted
    if not matches:
        severity = Severity.WARNING if allow_mismatch else Severity.ERROR
        findings.append(mismatch_finding(child, parent, severity, tried))
    elif parent.write_id != wanted[0]:
        note(
            Severity.WARNING,
            "linkage2",
            "the parent agrees only with the second identity recorded: was a merge interrupted?",
            str(parent.write_id),
            str(wanted[0]),
        )
    if parent.sector_size != child.sector_size:
        note(
            Severity.ERROR,
            "sector_size",
            f"child and parent {parent.name} have different logical sector sizes",
            f"{parent.sector_size} bytes",
            f"{child.sector_size} bytes",
        )
    if parent.virtual_size != child.virtual_size:
        note(
            Severity.WARNING,
            "size",
            f"child and parent {parent.name} have different virtual sizes",
            f"{parent.virtual_size} bytes",
            f"{child.virtual_size} bytes",
        )
    if child.format is ImageFormat.VHDX and parent.disk_id != child.disk_id:
        note(
            Severity.WARNING,
            "disk_id",
            f"child and parent {parent.name} have different virtual disk ids",
            str(parent.disk_id),
            str(child.disk_id),
        )
    recorded = child.parent.timestamp if child.parent else None
    if recorded is not None and parent.mtime is not None:
        then = recorded.timestamp()
        if abs(parent.mtime - then) > TIMESTAMP_SLACK_SECONDS:
            note(
                Severity.WARNING,
                "timestamp",
                f"the parent {parent.name} may have been modified after the child was created",
                _utc(parent.mtime),
                _utc(then),
            )
    return (LinkVerdict.OK if matches else LinkVerdict.MISMATCH), tuple(findings)


def wanted_identities(link: ParentLink | None) -> tuple[Identity, ...]:
    """The identities of which a parent must carry one.  Zeros are none: every nameless disk carries them."""
    return tuple([identity for identity in link.identities if not identity.is_null]) if link else ()


def identity_key(image: DiskImage | ImageFacts) -> IdentityKey | None:
    """What two files share only when they are the same image; None for an image without identity."""
    if image.write_id is None or image.write_id.is_null:
        return None
    return image.format, image.write_id.raw


def missing_finding(child: ImageFacts, what: str, tried: Tried) -> Finding:
    """The parent of ``child`` is not there; ``what`` says so in a clause."""
    return Finding(
        "chain.parent.missing",
        Severity.ERROR,
        _place(child),
        what,
        f"nothing ({tried})",
        _wanted(child),
        EXIT_MISSING,
    )


def ambiguous_finding(child: ImageFacts, matches: Sequence[Path], count: int) -> Finding:
    """No name leads to the parent, and several files carry its identity: which is right, nobody can say.

    Args:
        matches: the first few of those ``count`` files.
    """
    shown = "; ".join(clipped(str(path)) for path in matches)
    more = f"; and {count - len(matches)} more" if count > len(matches) else ""
    return Finding(
        "chain.parent.ambiguous",
        Severity.ERROR,
        _place(child),
        f"several files carry the parent's identity, and no path leads to one of them: {shown}{more}",
        f"{count} files",
        f"one file, {_wanted(child)}",
        EXIT_MISSING,
    )


def wrong_format_finding(
    child: ImageFacts, path: Path, found: ImageFormat | None, tried: Tried, *, is_raw: bool
) -> Finding:
    """A file stands where the parent should, and is no image of the child's format.

    Args:
        found: its format by content; None for what is no image.
        is_raw: a raw disk, which has no identity to be accepted by.
    """
    return Finding(
        "chain.parent.format",
        Severity.ERROR,
        _place(child),
        f"what stands under the parent's name, {path}, cannot be the parent ({tried})",
        found.upper() if found else "no VHD or VHDX",
        _wanted(child),
        EXIT_UNSUPPORTED if is_raw else EXIT_MISSING,
    )


def loop_finding(child: ImageFacts, identity: Identity | None, path: Path | None) -> Finding:
    """The way up from ``child`` leads back, to ``path`` with its ``identity``."""
    return Finding(
        "chain.loop",
        Severity.ERROR,
        _place(child),
        f"the parent of this image is itself or one of its descendants, {path}",
        f"identity {identity}",
        f"an identity other than those of the chain's layers, of which this image's is {child.write_id}",
        EXIT_CORRUPT,
    )


def depth_finding(child: ImageFacts) -> Finding:
    """``child`` is the last layer that a chain may have, and wants a parent too."""
    return Finding(
        "chain.depth",
        Severity.ERROR,
        _place(child),
        "the chain is too deep",
        f"more than {DEPTH_MAX} layers",
        f"at most {DEPTH_MAX} layers",
        EXIT_CORRUPT,
    )


def refusal_finding(path: Path, error: VhdtoolError) -> Finding:
    """What a file's own reader refused it with, as a finding about it."""
    if error.finding is not None:
        return error.finding
    return Finding(
        "file.unreadable",
        Severity.ERROR,
        Location(str(path)),
        str(error),
        exit_code=error.exit_code,
    )


def mismatch_finding(child: ImageFacts, parent: ImageFacts, severity: Severity, tried: str) -> Finding:
    """``parent`` was found and carries another identity; ``tried`` is what is said of the search."""
    return Finding(
        "chain.parent.mismatch",
        severity,
        _place(child),
        f"{parent.name} is not the parent that this child was made from" + (f" ({tried})" if tried else ""),
        f"a {parent.format.upper()} with identity {parent.write_id}",
        _wanted(child),
        EXIT_MISSING,
    )


def _place(child: ImageFacts) -> Location:
    return Location(child.name, None, "parent")


def _wanted(child: ImageFacts) -> str:
    """What a parent of ``child`` must be, for a message."""
    identities = " or ".join(map(str, wanted_identities(child.parent)))
    return f"a {child.format.upper()} with identity {identities}" if identities else ""


def _utc(seconds: float) -> str:
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):  # a file system can hold years that Python cannot
        return f"{seconds:.0f} seconds after 1970"


@dataclass(slots=True)
class Tried:
    """Everything that was tried for one link, in order; several records of a child may lead to one path."""

    attempts: dict[tuple[str, str], None] = field(default_factory=dict)

    def add(self, what: object, outcome: str) -> None:
        """``what`` was tried (a path, mostly), and this came of it."""
        self.attempts[str(what), outcome] = None

    def __str__(self) -> str:
        """For a message, of bounded length."""
        shown = [f"{clipped(what)} ({outcome})" for what, outcome in list(self.attempts)[:TRIED_SHOWN_MAX]]
        more = len(self.attempts) - len(shown)
        if more:
            shown.append(f"and {more} more")
        return "tried, in order: " + "; ".join(shown) if shown else "nothing to try is recorded"


def clipped(text: str) -> str:
    """``text`` short enough for a message: its two ends."""
    half = TRIED_PATH_LENGTH_MAX // 2
    return text if len(text) <= TRIED_PATH_LENGTH_MAX else f"{text[:half]}...{text[-half:]}"

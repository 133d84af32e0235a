"""Finds the parents of an image, one after the other, and judges each link.

::

    a child's record of its parent                 what is tried, in this order
    ──────────────────────────────                 ─────────────────────────────────────────────
    relative paths            relative_path   ──►  from the child's folder, upwards too
    the names of all paths    name            ──►  in the child's folder, then in each --search folder
    full paths                volume_path,    ──►  where a --map covers them, never as they stand
                              absolute_path
    the identity              identity        ──►  every image in those folders, by their headers

A candidate is accepted by identity, never by its name: it must be, links followed, a regular file, an
image of the child's format by its content, and carry an identity that the child recorded.  Anything else is
passed over and remembered, so that a refusal can say everything that was tried.

The paths come from strangers, and so may the files: a candidate that is no image is never quoted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, Self

from vhdtool.chain.chain import DEPTH_MAX, Chain, FoundBy, Layer, LinkVerdict
from vhdtool.chain.paths import (
    FOLDER_ENTRIES_MAX,
    MAPPABLE,
    Folders,
    PathMap,
    RefusedPathError,
    Root,
    StoredPath,
    fold,
    list_names,
    mapped,
    parse_path,
    parse_url_path,
    path_fault,
)
from vhdtool.errors import (
    EXIT_CORRUPT,
    EXIT_MISSING,
    EXIT_UNSUPPORTED,
    CorruptError,
    FileMissingError,
    Finding,
    Location,
    Severity,
    VhdtoolError,
    raise_first_error,
)
from vhdtool.formats.image import DiskImage, OpenOptions
from vhdtool.formats.registry import CLAIMING_SUFFIXES, open_image, open_source, recognise
from vhdtool.model.identity import DiskType, Identity, ImageFormat, ParentLink, PathKind
from vhdtool.source import FileSource, files_of

AnyPath = str | os.PathLike[str]
# A file, whatever it is called: device and inode.
FileKey = tuple[int, int]
IdentityKey = tuple[ImageFormat, bytes]

# Windows copies and archives keep times to two seconds (FAT, ZIP).
TIMESTAMP_SLACK_SECONDS: Final = 2
AMBIGUOUS_SHOWN_MAX: Final = 4
VHD_SET: Final = "a VHD Set"
TRIED_SHOWN_MAX: Final = 24
TRIED_PATH_LENGTH_MAX: Final = 160


def open_chain(
    leaf: AnyPath,
    *,
    search: Sequence[AnyPath] | AnyPath = (),
    maps: Sequence[PathMap | str] = (),
    log: Literal["before", "after"] = "after",
    ignore_checksums: bool = False,
    allow_mismatch: bool = False,
    strict: bool = True,
) -> Chain:
    r"""Open ``leaf`` and every parent that it reads through; headers only.

    Args:
        leaf: any image of a snapshot tree; a raw disk is a chain of one layer.
        search: folders where parents may be too.
        maps: where Windows folders lie here, ``PathMap`` or ``'D:\VMs=DIR'``.
        log: "after" replays pending VHDX logs in memory, "before" leaves them out.
        ignore_checksums: accept structures whose checksum is wrong and whose fields are plausible.
        allow_mismatch: go on with a parent whose identity does not agree, when no other is found.
        strict: refuse at the first ERROR; otherwise return what was found, with its findings, as a chain
            that may not be ``complete``.

    Raises:
        FileMissingError, ReadError, FormatError: about ``leaf`` itself.
        ParentNotFoundError, ParentMismatchError, ChainLoopError, ChainError, FormatError: about its
            parents, when ``strict``.
        ValueError: a map that is none.
    """
    folders = (search,) if isinstance(search, (str, os.PathLike)) else search
    finder = ParentFinder(
        OpenOptions(log, ignore_checksums),
        search=[Path(folder) for folder in folders],
        maps=[PathMap.parse(m) if isinstance(m, str) else m for m in maps],
        allow_mismatch=allow_mismatch,
    )
    opened: list[DiskImage] = []
    layers: list[Layer] = []
    trail = Trail()
    path, found_by = Path(leaf), FoundBy.GIVEN
    try:
        image = open_image(leaf, finder.options, strict=strict)
        opened.append(image)
        while True:
            if strict:
                raise_first_error(image.findings)
            trail.add(image, path)
            step = finder.follow(image, path, trail)
            if step.image is not None:
                opened.append(step.image)
            layers.append(Layer(image, path, found_by, step.link, step.findings))
            if strict:
                raise_first_error(step.findings)
            if step.image is None:
                return Chain(layers)
            image, path, found_by = step.image, step.path, step.found_by
    except BaseException:
        for image in opened:
            image.close()
        raise


@dataclass(frozen=True, slots=True)
class ImageFacts:
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
            max((file.mtime for file in files), default=None),
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
        findings.append(_mismatch(child, parent, severity, tried))
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
    return tuple(identity for identity in link.identities if not identity.is_null) if link else ()


def identity_key(image: DiskImage | ImageFacts) -> IdentityKey | None:
    """What two files share only when they are the same image; None for an image without identity."""
    if image.write_id is None or image.write_id.is_null:
        return None
    return image.format, image.write_id.raw


@dataclass(slots=True)
class Tried:
    """Everything that was tried for one link, in order; several records of a child may lead to one path."""

    attempts: dict[tuple[str, str], None] = field(default_factory=dict)

    def add(self, what: object, outcome: str) -> None:
        """``what`` was tried (a path, mostly), and this came of it."""
        self.attempts[str(what), outcome] = None

    def __str__(self) -> str:
        """For a message, of bounded length."""
        shown = [f"{_clipped(what)} ({outcome})" for what, outcome in list(self.attempts)[:TRIED_SHOWN_MAX]]
        more = len(self.attempts) - len(shown)
        if more:
            shown.append(f"and {more} more")
        return "tried, in order: " + "; ".join(shown) if shown else "nothing to try is recorded"


def named_candidates(
    link: ParentLink,
    beside: Sequence[Path],
    search: Sequence[Path],
    maps: Sequence[PathMap],
    folders: Folders,
    tried: Tried,
) -> Iterator[tuple[FoundBy, Path]]:
    """Files and whatever else stands where ``link``'s paths lead, in the order of trying.  Nothing is opened.

    Args:
        beside: the child's folder, or folders.
        tried: is told of every path that leads nowhere or is not followed.
    """
    stored = list(_parsed(link, tried))

    def below(found_by: FoundBy, folder: Path, parts: Sequence[str]) -> Iterator[tuple[FoundBy, Path]]:
        found = False
        for path in folders.find(folder, parts):
            found = True
            yield found_by, path
        if not found:
            tried.add(folder.joinpath(*parts), "no such file")

    for kind, path in stored:
        if kind is PathKind.RELATIVE_PATH and path.root is Root.RELATIVE and _usable(path, tried):
            for folder in beside:
                yield from below(FoundBy.RELATIVE_PATH, folder, path.parts)
    names: dict[str, str] = {}
    for _, path in stored:
        if path.name and not path_fault([path.name]):
            names.setdefault(fold(path.name), path.name)
    for folder in dict.fromkeys((*beside, *search)):
        for name in names.values():
            yield from below(FoundBy.NAME, folder, (name,))
    for kind, path in stored:
        # "Relative" paths that begin with a drive are lies: only their base name counts.
        if kind is PathKind.RELATIVE_PATH or path.root not in MAPPABLE:
            continue
        places = mapped(path, maps)
        if not places:
            tried.add(_shown(path), "not followed without a --map")
        elif _usable(path, tried):
            found_by = FoundBy.VOLUME_PATH if path.root is Root.VOLUME else FoundBy.ABSOLUTE_PATH
            for folder, parts in places:
                yield from below(found_by, folder, parts)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a file turned out to be.

    Attributes:
        image: open, when it is an image of the wanted format that can be parsed.
        format: by content; None for what is no image.
        outcome: why there is no ``image``, in a clause.
        error: what its own reader refused it with; None when it was merely something else.
        is_file: whether it is a regular file.
        key: which file it is, when it was opened.
    """

    image: DiskImage | None = None
    format: ImageFormat | None = None
    outcome: str = ""
    error: VhdtoolError | None = None
    is_file: bool = True
    key: FileKey | None = None


def open_candidate(path: Path, options: OpenOptions, wanted: ImageFormat | None = None) -> Candidate:
    """Open ``path`` if it is an image (of the ``wanted`` format); whatever stands there, nothing is raised.

    FIFOs, devices and folders are not opened; of what is no image only its signature's place is read.
    """
    try:
        source = FileSource(path)
    except FileMissingError:
        return Candidate(outcome="no such file", is_file=False)
    except CorruptError as error:
        kind = error.finding.found if error.finding else "no regular file"
        return Candidate(outcome=kind, is_file=False)
    except VhdtoolError as error:
        return Candidate(outcome="cannot be read", error=error)
    key = (source.opened_as.device, source.opened_as.inode)
    format_: ImageFormat | None = None
    try:
        format_ = recognise(source)
        if format_ is None:
            source.close()
            return replace(_open_pieces(path, options, wanted), key=key)
        if wanted not in (None, format_):
            source.close()
            return Candidate(None, format_, f"a {format_.upper()}", key=key)
        return Candidate(open_source(source, options), format_, key=key)
    except VhdtoolError as error:
        source.close()
        return Candidate(None, format_, "refused", error, key=key)
    except BaseException:
        source.close()
        raise


def _open_pieces(path: Path, options: OpenOptions, wanted: ImageFormat | None) -> Candidate:
    """A file without a signature: the first piece of a split VHD, a VHD Set, or no image."""
    if path.suffix.lower() not in (".vhd", ".vhds") or wanted is ImageFormat.VHDX:
        return Candidate(outcome="no image")
    try:
        image = open_image(path, options, raw=False, strict=False)
    except VhdtoolError as error:
        code = error.finding.code if error.finding else ""
        outcome = {"image.unknown": "no image", "image.vhd_set": VHD_SET}.get(code)
        return Candidate(outcome=outcome) if outcome else Candidate(outcome="refused", error=error)
    return Candidate(image, image.format)


@dataclass(frozen=True, slots=True)
class Step:
    """What came of following one image's link; ``image`` is its open parent, None where the chain ends."""

    link: LinkVerdict
    findings: tuple[Finding, ...] = ()
    image: DiskImage | None = None
    path: Path = Path()
    found_by: FoundBy = FoundBy.GIVEN


class Trail:
    """The layers so far: which files, and which identities."""

    def __init__(self) -> None:
        self.depth = 0
        self._files: set[FileKey] = set()
        self._identities: dict[IdentityKey, Path] = {}

    def add(self, image: DiskImage, path: Path) -> None:
        """``image`` is a layer."""
        self.depth += 1
        self._files.update(file_keys(image))
        identity = identity_key(image)
        if identity:
            self._identities.setdefault(identity, path)

    def carries(self, image: DiskImage) -> bool:
        """Whether ``image`` is a layer already, by its file or by its identity."""
        return identity_key(image) in self._identities or any(key in self._files for key in file_keys(image))

    def identity(self, format_: ImageFormat, identity: Identity) -> Path | None:
        """The layer that carries ``identity``."""
        return self._identities.get((format_, identity.raw))


def file_keys(image: DiskImage) -> list[FileKey]:
    """The files of ``image``, whatever they are called."""
    return [(file.opened_as.device, file.opened_as.inode) for file in files_of(image.source)]


@dataclass(slots=True)
class _Search:
    """What one link's search is for, and what it has passed over.

    Attributes:
        wanted: the identities that are accepted: of those recorded, the ones that no layer carries yet.
        seen: paths tried already; several records of a child lead to the same one.
        wrong: images of another identity: how found, where, facts, and whether they are layers already.
        refused: images that their own reader refused.
        others: regular files that are no image of the child's format.
    """

    child: ImageFacts
    wanted: tuple[Identity, ...]
    tried: Tried = field(default_factory=Tried)
    seen: set[Path] = field(default_factory=set)
    wrong: list[tuple[FoundBy, Path, ImageFacts, bool]] = field(default_factory=list)
    refused: list[tuple[Path, VhdtoolError]] = field(default_factory=list)
    others: list[tuple[Path, Candidate]] = field(default_factory=list)


class ParentFinder:
    """Follows links, for one chain: what it learns of folders on the way is kept for the next link."""

    def __init__(
        self,
        options: OpenOptions,
        *,
        search: Sequence[Path] = (),
        maps: Sequence[PathMap] = (),
        allow_mismatch: bool = False,
    ) -> None:
        self.options = options
        self._search = tuple(search)
        self._maps = tuple(maps)
        self._allow_mismatch = allow_mismatch
        self._folders = Folders()
        self._index = IdentityIndex(options)

    def follow(self, image: DiskImage, path: Path, trail: Trail) -> Step:
        """Find and open the parent of ``image``, the last layer of ``trail``."""
        if image.type is not DiskType.DIFFERENCING:
            return Step(LinkVerdict.BASE)
        child = ImageFacts.of(image)
        search = _Search(child, wanted_identities(image.parent))
        if trail.depth >= DEPTH_MAX:
            return Step(LinkVerdict.MISSING, (depth_finding(child),))
        if image.parent is None or not search.wanted:
            return Step(
                LinkVerdict.MISSING,
                (missing_finding(child, "the parent's identity is not recorded", search.tried),),
            )
        above = {identity: trail.identity(child.format, identity) for identity in search.wanted}
        search.wanted = tuple(identity for identity, layer in above.items() if layer is None)
        if not search.wanted:
            return Step(LinkVerdict.LOOP, (loop_finding(child, *next(iter(above.items()))),))
        beside = folders_of(path)
        named = named_candidates(image.parent, beside, self._search, self._maps, self._folders, search.tried)
        for found_by, candidate in named:
            parent = self._accept(search, trail, found_by, candidate)
            if parent is not None:
                return self._linked(child, parent, candidate, found_by)
        for folder in dict.fromkeys((*beside, *self._search)):
            matches = self._index.matches(folder, child.format, search.wanted)
            if len(matches) > 1:
                return Step(
                    LinkVerdict.MISSING,
                    (ambiguous_finding(child, matches[:AMBIGUOUS_SHOWN_MAX], len(matches)),),
                )
            for candidate in matches:
                parent = self._accept(search, trail, FoundBy.IDENTITY, candidate)
                if parent is not None:
                    return self._linked(child, parent, candidate, FoundBy.IDENTITY)
            search.tried.add(folder, f"no match among its {self._index.count(folder)} images")
        return self._not_found(search)

    def _accept(self, search: _Search, trail: Trail, found_by: FoundBy, path: Path) -> DiskImage | None:
        """Open ``path`` if it is what the child was made from; otherwise remember why not."""
        if path in search.seen:
            return None
        search.seen.add(path)
        candidate = open_candidate(path, self.options, search.child.format)
        parent = candidate.image
        if parent is None:
            if candidate.error is not None:
                search.refused.append((path, candidate.error))
            elif candidate.is_file:
                search.others.append((path, candidate))
            search.tried.add(path, candidate.outcome)
            return None
        if parent.write_id in search.wanted:
            return parent
        is_layer = trail.carries(parent)
        search.wrong.append((found_by, path, ImageFacts.of(parent), is_layer))
        note = ", already a layer of this chain" if is_layer else ""
        search.tried.add(path, f"identity {parent.write_id}{note}")
        parent.close()
        return None

    def _linked(
        self, child: ImageFacts, parent: DiskImage, path: Path, found_by: FoundBy, tried: str = ""
    ) -> Step:
        link, findings = judge_link(child, parent, allow_mismatch=self._allow_mismatch, tried=tried)
        return Step(link, findings, parent, path, found_by)

    def _not_found(self, search: _Search) -> Step:
        """What to say when nothing was accepted: the nearest thing to a parent first."""
        if search.wrong:
            return self._mismatched(search)
        if search.refused:
            path, error = search.refused[0]
            missing = missing_finding(search.child, "the parent was refused", search.tried)
            return Step(LinkVerdict.MISSING, (refusal_finding(path, error), missing))
        if search.others:
            return Step(LinkVerdict.MISSING, (_wrong_format(search),))
        finding = missing_finding(search.child, "the parent was not found", search.tried)
        return Step(LinkVerdict.MISSING, (finding,))

    def _mismatched(self, search: _Search) -> Step:
        eligible = [wrong for wrong in search.wrong if not wrong[3]]
        if self._allow_mismatch:
            for found_by, path, _, _ in eligible:
                candidate = open_candidate(path, self.options, search.child.format)
                if candidate.image is not None:
                    return self._linked(search.child, candidate.image, path, found_by, str(search.tried))
            if not eligible:
                _, path, facts, _ = search.wrong[0]
                return Step(LinkVerdict.LOOP, (loop_finding(search.child, facts.write_id, path),))
        _, _, facts, _ = (eligible or search.wrong)[0]
        finding = _mismatch(search.child, facts, Severity.ERROR, str(search.tried))
        return Step(LinkVerdict.MISMATCH, (finding,))


class IdentityIndex:
    """The images of folders by identity; each folder is looked through once, when first asked for."""

    def __init__(self, options: OpenOptions) -> None:
        self._options = options
        self._folders: dict[Path, dict[IdentityKey, dict[FileKey, Path]]] = {}
        self._count: dict[Path, int] = {}

    def matches(self, folder: Path, format_: ImageFormat, identities: Iterable[Identity]) -> list[Path]:
        """Different files in ``folder`` that carry the first of ``identities`` that any file carries."""
        images = self._images(folder)
        for identity in identities:
            files = images.get((format_, identity.raw))
            if files:
                return list(files.values())
        return []

    def count(self, folder: Path) -> int:
        """How many images ``folder`` holds."""
        self._images(folder)
        return self._count[folder]

    def _images(self, folder: Path) -> dict[IdentityKey, dict[FileKey, Path]]:
        known = self._folders.get(folder)
        if known is not None:
            return known
        known = self._folders[folder] = {}
        self._count[folder] = 0
        for name in sorted(list_names(folder)):
            image = open_candidate(folder / name, self._options).image
            if image is None:
                continue
            image.close()
            self._count[folder] += 1
            identity, files = identity_key(image), file_keys(image)
            if identity and files:
                # A second link to a file is not a second image.
                known.setdefault(identity, {}).setdefault(files[0], folder / name)
        return known


def folders_of(path: Path) -> tuple[Path, ...]:
    """The folders that count as the one in which ``path`` is.

    Of a symbolic link both count, the link's own first: who gathers the layers of a chain as links in one
    folder means that folder, who keeps a link to a leaf elsewhere means the place that it leads to.
    """
    given = path.parent
    try:
        real = Path(os.path.realpath(path)).parent if path.is_symlink() else given
        return (given,) if real == given or real.samefile(given) else (given, real)
    except (OSError, ValueError):
        return (given,)


def _parsed(link: ParentLink, tried: Tried) -> Iterator[tuple[PathKind, StoredPath]]:
    for candidate in link.paths:
        # The path of a file:// URL, which the format's reader took out of it: the only one not Windows'.
        is_url = candidate.locator == "MacX" and candidate.path[:1] == "/" != candidate.path[1:2]
        try:
            yield candidate.kind, (parse_url_path if is_url else parse_path)(candidate.path)
        except RefusedPathError as fault:
            tried.add(candidate.path, f"not followed: {fault}")


def _usable(path: StoredPath, tried: Tried) -> bool:
    fault = path_fault(path.parts)
    if fault:
        tried.add(_shown(path), f"not followed: {fault}")
    return not fault


def _shown(path: StoredPath) -> str:
    """A stored path for a message, in Windows' form."""
    if path.root is Root.POSIX:
        return "/" + "/".join(path.parts)
    before = {Root.UNC: "\\\\", Root.VOLUME: "\\\\?\\"}.get(path.root, "")
    return before + "\\".join((*path.anchor, *path.parts))


def _clipped(text: str) -> str:
    """``text`` short enough for a message: its two ends."""
    half = TRIED_PATH_LENGTH_MAX // 2
    return text if len(text) <= TRIED_PATH_LENGTH_MAX else f"{text[:half]}...{text[-half:]}"


def _utc(seconds: float) -> str:
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):  # a file system can hold years that Python cannot
        return f"{seconds:.0f} seconds after 1970"


def _place(child: ImageFacts) -> Location:
    return Location(child.name, None, "parent")


def _wanted(child: ImageFacts) -> str:
    """What a parent of ``child`` must be, for a message."""
    identities = " or ".join(map(str, wanted_identities(child.parent)))
    return f"a {child.format.upper()} with identity {identities}" if identities else ""


def _mismatch(child: ImageFacts, parent: ImageFacts, severity: Severity, tried: str) -> Finding:
    return Finding(
        "chain.parent.mismatch",
        severity,
        _place(child),
        f"{parent.name} is not the parent that this child was made from" + (f" ({tried})" if tried else ""),
        f"a {parent.format.upper()} with identity {parent.write_id}",
        _wanted(child),
        EXIT_MISSING,
    )


def missing_finding(child: ImageFacts, what: str, tried: Tried) -> Finding:
    """The parent of ``child`` is not there; ``what`` says so in a clause."""
    return Finding(
        "chain.parent.missing",
        Severity.ERROR,
        _place(child),
        f"{what} ({tried})",
        "",
        _wanted(child),
        EXIT_MISSING,
    )


def _wrong_format(search: _Search) -> Finding:
    """Files stand where the parent should, and none is an image of the child's format."""
    path, other = search.others[0]
    # A name that claims to be an image's is one without its signature; any other file is a raw disk, which
    # has no identity to be accepted by.
    is_raw = other.format is None and path.suffix.lower() not in CLAIMING_SUFFIXES
    return Finding(
        "chain.parent.format",
        Severity.ERROR,
        _place(search.child),
        f"what stands under the parent's name, {path}, cannot be the parent ({search.tried})",
        other.format.upper() if other.format else "no VHD or VHDX",
        _wanted(search.child),
        EXIT_UNSUPPORTED if is_raw else EXIT_MISSING,
    )


def ambiguous_finding(child: ImageFacts, matches: Sequence[Path], count: int) -> Finding:
    """No name leads to the parent, and several files carry its identity: which is right, nobody can say.

    Args:
        matches: the first few of those ``count`` files.
    """
    shown = "; ".join(_clipped(str(path)) for path in matches)
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


assert FOLDER_ENTRIES_MAX > DEPTH_MAX  # a folder of a whole chain is always looked through

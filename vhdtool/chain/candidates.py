"""Candidates: what stands where a child's records lead, and which images carry which identity.

Shared by who follows one chain and who draws a whole forest.  Files are looked at one by one, in the order
of trying, and whatever they are, nothing is raised and nothing of what is no image is quoted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from vhdtool.chain.chain import FoundBy
from vhdtool.chain.link import (
    IdentityKey,
    Tried,
    identity_key,
)
from vhdtool.chain.paths import (
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
    CorruptError,
    FileMissingError,
    VhdtoolError,
)
from vhdtool.formats.image import DiskImage, OpenOptions
from vhdtool.formats.registry import (
    CLAIMING_SUFFIXES,
    has_more_pieces,
    open_image,
    open_recognised,
    recognise,
)
from vhdtool.model.identity import Identity, ImageFormat, ParentLink, PathKind
from vhdtool.source import FileKey, FileSource, files_of

AMBIGUOUS_SHOWN_MAX: Final = 4
VHD_SET: Final = "a VHD Set"


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
    stored = _parsed(link, tried)

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


class Candidate(NamedTuple):
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
    key = source.key
    format_: ImageFormat | None = None
    try:
        format_ = recognise(source)
        if format_ is not None and wanted not in (None, format_):
            source.close()
            return Candidate(None, format_, f"a {format_.upper()}", key=key)
        if format_ is None or has_more_pieces(source, format_):
            source.close()
            return _open_pieces(path, options, wanted)._replace(key=key)
        return Candidate(open_recognised(format_, source, options), format_, key=key)
    except VhdtoolError as error:
        source.close()
        return Candidate(None, format_, "refused", error, key=key)
    except BaseException:
        source.close()
        raise


def _open_pieces(path: Path, options: OpenOptions, wanted: ImageFormat | None) -> Candidate:
    """The first piece of a split VHD; or a file without a signature: a VHD Set, or no image."""
    if path.suffix.lower() not in (".vhd", ".vhds") or wanted is ImageFormat.VHDX:
        return Candidate(outcome="no image")
    try:
        image = open_image(path, options, raw=False, strict=False)
    except VhdtoolError as error:
        code = error.finding.code if error.finding else ""
        outcome = {"image.unknown": "no image", "image.vhd_set": VHD_SET}.get(code)
        return Candidate(outcome=outcome) if outcome else Candidate(outcome="refused", error=error)
    return Candidate(image, image.format)


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
        pieces: set[FileKey] = set()
        # The first piece of a split disk before the last, which carries the footer and looks like an image.
        for name in sorted(list_names(folder), key=lambda name: (not _claims(name), name)):
            image = open_candidate(folder / name, self._options).image
            if image is None:
                continue
            image.close()
            identity, files = identity_key(image), file_keys(image)
            if pieces.intersection(files[:1]):
                continue
            pieces.update(files[1:])
            self._count[folder] += 1
            if identity and files:
                # A second link to a file is not a second image.
                known.setdefault(identity, {}).setdefault(files[0], folder / name)
        return known


def _claims(name: str) -> bool:
    """Whether ``name`` says that the file is an image."""
    return Path(name).suffix.lower() in CLAIMING_SUFFIXES


def folders_of(path: Path) -> tuple[Path, ...]:
    """The folders that count as the one in which ``path`` is.

    Of a symbolic link both count, the link's own first: who gathers the layers of a chain as links in one
    folder means that folder, who keeps a link to a leaf elsewhere means the place that it leads to.
    """
    given = path.parent
    try:
        if not stat.S_ISLNK(os.lstat(path).st_mode):
            return (given,)
        real = Path(os.path.realpath(path)).parent
        return (given,) if real == given or real.samefile(given) else (given, real)
    except (OSError, ValueError):
        return (given,)


def file_keys(image: DiskImage) -> list[FileKey]:
    """The files of ``image``, whatever they are called."""
    return [file.key for file in files_of(image.source)]


def _parsed(link: ParentLink, tried: Tried) -> list[tuple[PathKind, StoredPath]]:
    parsed = []
    for candidate in link.paths:
        # The path of a file:// URL, which the format's reader took out of it: the only one not Windows'.
        is_url = candidate.locator == "MacX" and candidate.path[:1] == "/" != candidate.path[1:2]
        try:
            path = parse_url_path(candidate.path) if is_url else parse_path(candidate.path)
        except RefusedPathError as fault:
            tried.add(candidate.path, f"not followed: {fault}")
        else:
            parsed.append((candidate.kind, path))
    return parsed


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

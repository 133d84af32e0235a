r"""Paths that a child records of its parent: Windows paths, on every platform, and from strangers.

::

    "..\base\disk.vhdx"               RELATIVE   followed from the child's folder, upwards too
    "\vms\disk.vhdx", "D:disk.vhdx"   ROOTED     needs a drive that is not here: only the base name counts
    "D:\vms\disk.vhdx"                DRIVE   ┐
    "\\?\Volume{GUID}\disk.vhdx"      VOLUME  │  followed only where a --map covers them; without one
    "\\server\share\disk.vhdx"        UNC     │  the file system is not even asked whether they exist
    "file:///vhds/disk.vhd"           POSIX   ┘
    "\\.\PhysicalDrive0"              a device: refused, not even its base name counts

Everything is compared component by component, without regard to case; nothing here opens a file.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple, Self

# The longest path that Windows itself can hold, in UTF-16 units; nobody wrote a longer one in good faith.
PATH_LENGTH_MAX: Final = 32_767
PATH_PARTS_MAX: Final = 255
# A folder's names are kept for comparing without case; more than this and only exact names are found there.
FOLDER_ENTRIES_MAX: Final = 200_000
# Folders whose names differ in case only make a path ambiguous: so many steps are gone, then no more.
STEPS_MAX: Final = 4 * PATH_PARTS_MAX

_DRIVE: Final = re.compile(r"[A-Za-z]:")
_VOLUME: Final = re.compile(r"Volume\{[0-9A-Fa-f-]{36}\}", re.IGNORECASE)
# Windows opens a device for these in any folder, whatever stands behind the first dot.
_RESERVED: Final = re.compile(
    r"(CON|PRN|AUX|NUL|CLOCK\$|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³]) *(\..*)?", re.IGNORECASE
)
_FORBIDDEN: Final = re.compile(r'[\x00-\x1f<>:"/\\|?*]')


class Root(StrEnum):
    """Where a stored path begins."""

    RELATIVE = "relative"
    ROOTED = "rooted"
    DRIVE = "drive"
    VOLUME = "volume"
    UNC = "unc"
    POSIX = "posix"


MAPPABLE: Final = frozenset({Root.DRIVE, Root.VOLUME, Root.UNC, Root.POSIX})


class RefusedPathError(Exception):
    """A stored path that no part of is used; ``str()`` says why in a clause."""


class StoredPath(NamedTuple):
    """A path taken apart.

    Attributes:
        anchor: what stands before the folders: ``("D:",)``, ``("server", "share")``, ``("Volume{...}",)``;
            empty for other roots.
        parts: folders and file name as stored, unchecked (see ``component_fault``).  ``..`` stands at the
            beginning of relative paths only: it is worked in, and stops at a root, as it does on Windows.
    """

    root: Root
    anchor: tuple[str, ...]
    parts: tuple[str, ...]

    @property
    def name(self) -> str:
        """The base name; empty when there is none."""
        return self.parts[-1] if self.parts and self.parts[-1] != ".." else ""


def parse_path(text: str) -> StoredPath:
    """Take a stored path apart.

    Raises:
        RefusedPathError: it names a device, or cannot be a path at all.
    """
    if len(text) > PATH_LENGTH_MAX:
        raise RefusedPathError("too long for a path")
    if "\0" in text:
        raise RefusedPathError("it contains a NUL")
    if text[:5].lower() == "file:":
        return _parse_url(text)
    text = text.replace("/", "\\")
    if text.startswith(("\\\\?\\", "\\??\\")):
        return _parse_long(text[4:])
    if text.startswith("\\\\.\\") or text in ("\\\\.", "\\\\?"):
        raise RefusedPathError("it names a device")
    if text.startswith("\\\\"):
        return _unc(text[2:])
    if _DRIVE.match(text):
        if len(text) == 2 or text[2] == "\\":
            return _absolute(Root.DRIVE, (text[:2],), text[2:])
        return StoredPath(Root.ROOTED, (), _split(text[2:]))
    if text.startswith("\\"):
        return StoredPath(Root.ROOTED, (), _split(text))
    return StoredPath(Root.RELATIVE, (), _split(text))


def parse_url_path(text: str) -> StoredPath:
    """Take the path of a ``file://`` URL apart, its escapes already resolved.

    Raises:
        RefusedPathError: it cannot be a path.
    """
    if len(text) > PATH_LENGTH_MAX:
        raise RefusedPathError("too long for a path")
    if "\0" in text:
        raise RefusedPathError("it contains a NUL")
    return _url_path(text.split("/"))


def component_fault(part: str) -> str:
    """Why ``part`` must not be used as a file or folder name, empty when it may be.

    Windows would open something else than what stands there: a device, a stream, or the name without its
    trailing dots and spaces.  A Windows program cannot have written such a name, so nothing is lost.
    """
    if part == "..":
        return ""
    if part[-1:] in ("", ".", " "):
        return "a name ends with a dot or a space"
    if _FORBIDDEN.search(part):
        return "a name contains a character that Windows does not allow"
    if _RESERVED.fullmatch(part):
        return "it names a device"
    return ""


def path_fault(parts: Iterable[str]) -> str:
    """The first fault of any of ``parts``, empty when there is none."""
    for part in parts:
        if fault := component_fault(part):
            return fault
    return ""


def fold(name: str) -> str:
    """``name`` for comparing without case, as Windows does: character by character, so that "ß" is not "SS".

    Composed first: macOS hands out names decomposed.
    """
    if name.isascii():
        return name.upper()
    composed = unicodedata.normalize("NFC", name)
    return "".join(upper if len(upper := c.upper()) == 1 else c for c in composed)


@dataclass(frozen=True, slots=True)
class PathMap:
    r"""Where a Windows folder lies here: ``--map 'D:\VMs=DIR'``."""

    prefix: StoredPath
    folder: Path

    @classmethod
    def parse(cls, text: str) -> Self:
        r"""From ``FOLDER=DIR``.

        FOLDER is a full path: ``D:\VMs``, ``\\server\share\VMs``, ``\\?\Volume{GUID}\VMs``, or ``/VMs`` for
        file:// URLs.  Either side may contain ``=``: the first one with an existing folder behind it counts.

        Raises:
            ValueError: for the user to read.
        """
        sides = [(text[:i], text[i + 1 :]) for i, c in enumerate(text) if c == "="]
        if not sides:
            raise ValueError(f"{text!r} is not of the form 'D:\\VMs=DIR'")
        stored, folder = next((pair for pair in sides if pair[1] and Path(pair[1]).is_dir()), sides[0])
        if not folder or not Path(folder).is_dir():
            raise ValueError(f"{folder!r} is no folder, in the map {text!r}")
        try:
            prefix = parse_url_path(stored) if re.match("/(?!/)", stored) else parse_path(stored)
        except RefusedPathError as fault:
            raise ValueError(f"{stored!r} cannot be mapped: {fault}") from fault
        if prefix.root not in MAPPABLE:
            raise ValueError(f"{stored!r} is no full path: say 'D:\\VMs=DIR' or '\\\\server\\share=DIR'")
        if fault_text := path_fault(prefix.parts):
            raise ValueError(f"{stored!r} cannot be mapped: {fault_text}")
        return cls(prefix, Path(folder))

    def rest(self, path: StoredPath) -> tuple[str, ...] | None:
        """The parts of ``path`` below this map's folder; None when it does not cover ``path``."""
        if path.root is not self.prefix.root or not _same(path.anchor, self.prefix.anchor):
            return None
        length = len(self.prefix.parts)
        return path.parts[length:] if _same(path.parts[:length], self.prefix.parts) else None


def mapped(path: StoredPath, maps: Sequence[PathMap]) -> list[tuple[Path, tuple[str, ...]]]:
    """Folder here and parts below it, for each of ``maps`` that covers ``path`` with the longest prefix."""
    covering = [(m, rest) for m in maps if (rest := m.rest(path)) is not None]
    longest = max((len(m.prefix.parts) for m, _ in covering), default=0)
    return [(m.folder, rest) for m, rest in covering if len(m.prefix.parts) == longest]


class Folders:
    """Finds names in folders without regard to case, exact ones first; keeps what it has listed."""

    def __init__(self) -> None:
        self._listed: dict[Path, dict[str, list[str]]] = {}

    def find(self, folder: Path, parts: Sequence[str]) -> Iterator[Path]:
        """What stands under ``parts`` below ``folder``: whatever kind of file it is, links not followed.

        Lazy: a folder is listed only when the exact name is not there, or when more is asked for.
        ``parts`` must be without fault; ``..`` goes to the folder above, also out of a symbolic link.
        """
        exact = folder.joinpath(*parts)
        is_exact = ".." not in parts and os.path.lexists(exact)
        if is_exact:
            yield exact
        for path in self._search(folder, parts):
            if not is_exact or path != exact:
                yield path

    def _search(self, folder: Path, parts: Sequence[str]) -> Iterator[Path]:
        """Every path that ``parts`` may mean, exact names first."""
        steps = 0
        trail: list[Iterator[Path]] = [iter((folder,))]
        while trail and steps < STEPS_MAX:
            here = next(trail[-1], None)
            if here is None:
                trail.pop()
            elif len(trail) > len(parts):
                yield here
            else:
                trail.append(self._step(here, parts[len(trail) - 1]))
            steps += 1

    def _step(self, folder: Path, part: str) -> Iterator[Path]:
        if part == "..":
            yield _above(folder)
            return
        exact = folder / part
        if os.path.lexists(exact):
            yield exact
        for name in self._names(folder).get(fold(part), ()):
            if name != part:
                yield folder / name

    def _names(self, folder: Path) -> dict[str, list[str]]:
        known = self._listed.get(folder)
        if known is None:
            known = self._listed[folder] = {}
            for name in sorted(list_names(folder)):
                known.setdefault(fold(name), []).append(name)
        return known


def list_names(folder: Path) -> list[str]:
    """Names in ``folder``, at most ``FOLDER_ENTRIES_MAX``; none when it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry, _ in zip(entries, range(FOLDER_ENTRIES_MAX))]
    except (OSError, ValueError):
        return []


def _above(folder: Path) -> Path:
    """The folder above ``folder``, named without ``..`` where that is possible."""
    if not folder.name and folder.anchor:
        return folder  # the root
    if folder.name in ("", ".."):
        return folder / ".."
    try:
        if folder.parent.samefile(folder / ".."):
            return folder.parent
    except (OSError, ValueError):
        return folder / ".."
    # A symbolic link: the system goes up from where it leads to, not from where it stands.
    return Path(os.path.realpath(folder)).parent


def _parse_long(text: str) -> StoredPath:
    r"""What follows ``\\?\``: a drive, a volume, a share, or a device."""
    first, _, rest = text.partition("\\")
    if first.upper() == "UNC" and rest:
        return _unc(rest)
    if _DRIVE.fullmatch(first):
        return _absolute(Root.DRIVE, (first,), rest)
    if _VOLUME.fullmatch(first):
        return _absolute(Root.VOLUME, (first,), rest)
    raise RefusedPathError("it names a device")


def _unc(text: str) -> StoredPath:
    server, _, rest = text.partition("\\")
    share, _, rest = rest.partition("\\")
    if not server or not share:
        raise RefusedPathError("it names no share")
    return _absolute(Root.UNC, (server, share), rest)


def _parse_url(text: str) -> StoredPath:
    """A ``file:`` URL, as Mac and Xen programs store it."""
    from urllib.parse import unquote_to_bytes

    host, path = "", text[5:]
    if path.startswith("//"):
        host, slash, path = path[2:].partition("/")
        path = slash + path
    # Taken apart before it is decoded: an escaped slash is no separator (and makes a name that is refused).
    names = [unquote_to_bytes(part).decode("utf-8", "surrogateescape") for part in path.split("/")]
    if any("\0" in name for name in names):
        raise RefusedPathError("it contains a NUL")
    if host.lower() not in ("", "localhost"):
        names = [name for name in names if name]
        if not names:
            raise RefusedPathError("it names no share")
        return StoredPath(Root.UNC, (host, names[0]), _without_dots(names[1:]))
    if not path.startswith("/"):
        return StoredPath(Root.ROOTED, (), _without_dots(names))
    return _url_path(names)


def _url_path(names: Iterable[str]) -> StoredPath:
    """The path of a URL on this host: Windows' begin with a drive."""
    parts = _without_dots(names)
    if parts and _DRIVE.fullmatch(parts[0]):
        return StoredPath(Root.DRIVE, parts[:1], parts[1:])
    return StoredPath(Root.POSIX, (), parts)


def _absolute(root: Root, anchor: tuple[str, ...], rest: str) -> StoredPath:
    return StoredPath(root, anchor, _without_dots(rest.split("\\")))


def _split(text: str) -> tuple[str, ...]:
    r"""Parts of a path without a root; ``..`` only at its beginning, since ``a\..`` is nothing to Windows."""
    parts: list[str] = []
    for name in text.split("\\"):
        if name == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif name not in ("", "."):
            parts.append(name)
    return _bounded(parts)


def _without_dots(names: Iterable[str]) -> tuple[str, ...]:
    """Parts of a full path with ``.`` and ``..`` worked in: nothing climbs above the root."""
    parts: list[str] = []
    for name in names:
        if name == "..":
            del parts[-1:]
        elif name not in ("", "."):
            parts.append(name)
    return _bounded(parts)


def _bounded(parts: Sequence[str]) -> tuple[str, ...]:
    if len(parts) > PATH_PARTS_MAX:
        raise RefusedPathError("too many folders for a path")
    return tuple(parts)


def _same(left: Sequence[str], right: Sequence[str]) -> bool:
    return len(left) == len(right) and all(fold(a) == fold(b) for a, b in zip(left, right))

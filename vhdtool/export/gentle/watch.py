"""Whether the inputs of a job are still the files that were opened, and waiting until they are quiet.

What is looked at, from cheap to thorough:

- device, inode, size and time of the last change of content, of the open file and of its name: at the start,
  twice a second, and at the end;
- a digest of what every writer of a VHD or VHDX touches (the first page of the file identifier, of both
  headers and region tables, or footer copy and dynamic header, and the footer): at the start and at the end.
  It finds writers whose time stamps come late or never, as on network shares, and those who put one back.

The time of the last change of *attributes* (ctime) is no proof: hard links, permissions, and backup programs
that put access times back change it as well, and none of them must stop an export.  But nothing can put it
back, so where it changes while a job runs, the digest is looked at again at once.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vhdtool.errors import (
    CorruptError,
    FileMissingError,
    FormatError,
    InputError,
    ReadError,
    SourceChangedError,
    SourceGoneError,
    printable,
)
from vhdtool.source import FileSource, Fingerprint, fingerprint_of

# A VHD's footer copy and header, or a VHDX's file identifier; its headers; its region tables.
_HEADS: Final = (0, 64 << 10, 128 << 10, 192 << 10, 256 << 10)
_PAGE: Final = 4 << 10
_TAIL: Final = 512
# Looking is cheap on a local disk; on a share it may not be, and takes a twentieth of the time at most.
_LOOK_SECONDS: Final = 0.5
_LOOK_SHARE: Final = 20
_NAP_SECONDS: Final = 0.1

GONE: Final = "it is gone"
HEADERS_CHANGED: Final = "its headers changed"


def structures_digest(file: FileSource) -> bytes | None:
    """Digest of what every writer of an image touches; None where it cannot be read."""
    digest = hashlib.sha256()
    tail = max(0, file.size - _TAIL)
    try:
        for at, length in (*((place, _PAGE) for place in _HEADS), (tail, _TAIL)):
            if at < file.size:
                digest.update(file.read_exact(at, min(length, file.size - at), field="structures"))
    except (ReadError, CorruptError):
        return None
    return digest.digest()


@dataclass(slots=True)
class _Watched:
    """One file: what it was when the watch began."""

    file: FileSource
    structures: bytes | None
    ctime_ns: int

    def change(self, *, thorough: bool) -> str:
        """In words what changed; empty when nothing did."""
        try:
            now = self.file.fingerprint()
        except FileMissingError:
            return GONE
        change = self.file.opened_as.difference(now)
        if change:
            return change
        if thorough or now.ctime_ns != self.ctime_ns:
            structures = structures_digest(self.file)
            if structures != self.structures:
                return HEADERS_CHANGED
            self.ctime_ns = now.ctime_ns
        return ""


class SourceWatch:
    """Compares files with what they were when they were opened.

    Args:
        files: every file that the job reads.
        clock: of a monotonic clock, in seconds.
    """

    def __init__(self, files: Sequence[FileSource], *, clock: Callable[[], float] = time.monotonic) -> None:
        # A file that several chains share is looked at once.
        different = {(file.path, file.opened_as): file for file in files}
        self._files = {
            key: _Watched(file, structures_digest(file), file.opened_as.ctime_ns)
            for key, file in different.items()
        }
        self._clock = clock
        self._next_look = clock() + _LOOK_SECONDS

    def structures(self, file: FileSource) -> bytes | None:
        """Of a file that is watched, ``structures_digest`` as the watch began."""
        return self._files[file.path, file.opened_as].structures

    def check(self) -> None:
        """Look at every file, thoroughly.

        Raises:
            SourceChangedError: names the first that changed, and what.
            ReadError: a file's state cannot be had.
        """
        self._look(thorough=True)

    def tick(self) -> None:
        """Look at every file if that is due; to be called often while the job runs.

        Raises:
            SourceChangedError, ReadError: as ``check``.
        """
        began = self._clock()
        if began < self._next_look:
            return
        self._look(thorough=False)
        now = self._clock()
        self._next_look = now + max(_LOOK_SECONDS, (now - began) * _LOOK_SHARE)

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """A file that is written to can break any rule while it is read: then that is what is said."""
        try:
            yield
        except (FormatError, InputError):
            self.check()
            raise

    def _look(self, *, thorough: bool) -> None:
        for watched in self._files.values():
            change = watched.change(thorough=thorough)
            if change:
                name = printable(watched.file.name)
                kind = SourceGoneError if change == GONE else SourceChangedError
                raise kind(f"{name} changed while it was read: {change}")


@dataclass(frozen=True, slots=True)
class Settling:
    """How far waiting for quiet is.

    Attributes:
        seconds_left: until all has been quiet for long enough, if nothing changes any more.
        last_changed: the name of the file that was last seen changing; empty when none was.
        change: what was seen of it.
    """

    seconds_left: float
    last_changed: str = ""
    change: str = ""

    @property
    def what(self) -> str:
        """``leaf.avhdx: it was written to``; empty when nothing was seen changing."""
        return f"{printable(self.last_changed)}: {self.change}" if self.last_changed else ""

    def __str__(self) -> str:
        left = f"{self.seconds_left:.0f} s to go without a change"
        return f"{left}; last seen: {self.what}" if self.what else left


@dataclass(frozen=True, slots=True)
class Settled:
    """What waiting for quiet saw.

    Attributes:
        seconds: how long it took.
        changed: names of the files that were seen changing, in the order in which they were given.
        reopen: whether anything is not as it was opened (or, for paths, as it was when the waiting began):
            then what is known of the chain is old, and it must be opened again.  Its new files were not
            watched, so whoever opens it again settles again:

                while True:
                    with open_chain(leaf) as chain:
                        if not settle(chain.files(), seconds).reopen:
                            ...
                            break
    """

    seconds: float
    changed: tuple[str, ...] = ()
    reopen: bool = False


@dataclass(slots=True)
class _Observed:
    """One file or name that is to become quiet.

    Attributes:
        state: as last seen; None when it was not there.
    """

    target: FileSource | Path
    state: tuple[Fingerprint, bytes | None] | None = field(init=False)
    changed: bool = False

    def __post_init__(self) -> None:
        self.state = self._look()
        if isinstance(self.target, FileSource):
            self.changed = self.state is None or self.state[0] != self.target.opened_as

    @property
    def name(self) -> str:
        return self.target.name if isinstance(self.target, FileSource) else str(self.target)

    def look(self) -> str:
        """What changed since the last look, in words; empty when nothing did."""
        before, self.state = self.state, self._look()
        if before == self.state:
            return ""
        self.changed = True
        if self.state is None:
            return GONE
        if before is None:
            return "it is there again"
        return before[0].difference(self.state[0]) or HEADERS_CHANGED

    def _look(self) -> tuple[Fingerprint, bytes | None] | None:
        try:
            if isinstance(self.target, Path):
                return fingerprint_of(self.target), None
            now = self.target.fingerprint()
        except FileMissingError:
            return None
        # Of a file that another one replaced, the headers are in nobody's way any more.
        is_same = now.file == self.target.opened_as.file
        return now, structures_digest(self.target) if is_same else None


def settle(
    targets: Sequence[FileSource | Path],
    seconds: float,
    *,
    progress: Callable[[Settling], None] | None = None,
    check: Callable[[], None] = lambda: None,
    give_up: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Settled:
    """Wait until nothing has been seen changing for ``seconds``.

    What counts is what is seen, not how old time stamps are: the clocks of shares are not ours.

    Args:
        targets: files that are open, or names of files; names are only looked at from outside.
        progress: called at each look, twice a second or more.
        check: called at least ten times a second; may raise to stop waiting.
        give_up: after so many seconds stop waiting for what has changed meanwhile; None is never.
        clock, sleep: of a monotonic clock, in seconds.

    Raises:
        SourceChangedError: still not quiet after ``give_up``.
        ReadError: a file's state cannot be had.
    """
    began = quiet_since = clock()
    observed = [_Observed(target) for target in targets]
    last = Settling(seconds)
    pause = min(_LOOK_SECONDS, seconds / 4)
    while True:
        left = quiet_since + seconds - clock()
        last = Settling(max(0.0, left), last.last_changed, last.change)
        if progress is not None:
            progress(last)
        check()
        if left <= 0:
            changed = tuple(each.name for each in observed if each.changed)
            return Settled(clock() - began, changed, bool(changed))
        if give_up is not None and last.what and clock() - began >= give_up:
            raise SourceChangedError(f"not quiet after {give_up:g} s of waiting: {last.what}")
        _nap(min(pause, left), check, clock, sleep)
        for each in observed:
            change = each.look()
            if change:
                quiet_since = clock()
                last = Settling(seconds, each.name, change)


def _nap(
    seconds: float,
    check: Callable[[], None],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    until = clock() + seconds
    while (left := until - clock()) > 0:
        sleep(min(left, _NAP_SECONDS))
        check()

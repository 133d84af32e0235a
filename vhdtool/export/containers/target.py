"""Where results go.  The only place that writes files, and that knows what a platform lacks for it.

::

    open ──► .NAME.<token>.partial ──► finish: size, sync, close ──► publish ──► NAME
                  │        ▲                                            │
                  │        └── reopen: a job that goes on               │
                  ├────── keep: left for that job                       │
                  └────────────── abort: removed ◄──────────────────────┘ (NAME was taken meanwhile)

Nothing stands under the target's name before it is whole: not after a full disk, not after a kill.  What a
kill leaves is the ``.partial`` file, and beside it the journal of the job (:class:`LockedFile`).

A target that is one of the inputs is refused, whatever name leads to it and whether or not ``force`` is
given.  A symbolic link as a target counts as something that exists; with ``force`` it is followed, as
``cp`` and ``qemu-img`` do: the file that it leads to is replaced (and checked against the inputs), the link
stays.  Links that lead nowhere, folders, devices and FIFOs are never a target.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from vhdtool.errors import ExportError, TargetError, TargetExistsError, printable
from vhdtool.source import FileSource

_CREATE_FLAGS: Final = (
    os.O_RDWR
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOINHERIT", 0)
    | getattr(os, "O_NOFOLLOW", 0)
)
_OPEN_FLAGS: Final = _CREATE_FLAGS & ~(os.O_CREAT | os.O_EXCL)
_NAME_BYTES_MAX: Final = 255
_TOKEN: Final = re.compile(r"[0-9a-f]{8}")
_COPY_BYTES: Final = 4 << 20
# Of Linux: _IOW(0x94, 9, int).
_FICLONE: Final = 0x40049409
# So much is written before the disk is waited for and the page cache forgets it.
_DROP_BYTES: Final = 64 << 20


def _codes(*names: str) -> frozenset[int]:
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


_NO_ROOM: Final = _codes("ENOSPC", "EDQUOT", "EFBIG", "EIO")
_NO_HARD_LINKS: Final = _codes("EPERM", "EACCES", "ENOSYS", "EMLINK", "EINVAL", "ENOTSUP", "EOPNOTSUPP")
# One constant of zeros for whoever must write or compare them.
ZERO_PIECE: Final = bytes(1 << 20)


class TargetFile:
    """A file that appears under its name when it is whole.

    Args:
        path: the name.
        force: replace what stands there.
        inputs: files that must not be the target, by whatever name.
        mode: permission bits, the umask is taken off.
        sync: wait until the disk has it before it is published.
        token: part of the temporary file's name, as ``new_token`` makes it; a random one when None.
        reopen: go on with the temporary file of that ``token``.
        drop_cache: let the disk have what was written, and the page cache forget it, as it goes.
        adopt: take this file of a :class:`TargetFolder` for the temporary one.

    Raises:
        TargetExistsError: something stands under the name.
        TargetError: it is no place for a file, is one of the inputs, or cannot be created.
        ExportError: no room, or the disk fails.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        force: bool = False,
        inputs: Iterable[str | os.PathLike[str]] = (),
        mode: int = 0o666,
        sync: bool = True,
        token: str | None = None,
        reopen: bool = False,
        drop_cache: bool = False,
        adopt: Path | None = None,
    ) -> None:
        self._descriptor = -1
        self._partial: Path | None = None
        self.name = str(path)
        self._force = force
        self._inputs = tuple(inputs)
        self._sync = sync
        self.path = _usable(Path(path), force=force, inputs=self._inputs)
        self._lock = None if hasattr(os, "pwrite") else threading.Lock()
        self.size = 0
        self._drops = drop_cache and hasattr(os, "posix_fadvise") and hasattr(os, "fdatasync")
        self._undropped = 0
        if reopen:
            assert token is not None, "there is no other way to find it"
            self._reopen(self.path.with_name(partial_name(self.path.name, token)))
        elif adopt is not None:
            self._reopen(adopt)
            self._limit_mode(mode)
        else:
            self._create(mode, token)

    @property
    def partial(self) -> Path:
        """The temporary file."""
        assert self._partial is not None, "published or aborted"
        return self._partial

    @property
    def inode(self) -> int:
        """Of the temporary file; 0 where file systems have none."""
        return self.partial.lstat().st_ino

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data`` at byte ``offset``; what is never written is a hole.

        Raises:
            ExportError: the disk is full or fails.
        """
        try:
            if self._lock is None:
                done = os.pwrite(self._descriptor, data, offset)
                while done < len(data):
                    done += os.pwrite(self._descriptor, memoryview(data)[done:], offset + done)
            else:
                self._seek_and_write(self._lock, offset, data)
        except OSError as error:
            raise self._failed(error) from error
        self.size = max(self.size, offset + len(data))
        if self._drops:
            self._undropped += len(data)
            if self._undropped >= _DROP_BYTES:
                self._drop()

    def set_size(self, size: int) -> None:
        """Make the file ``size`` bytes long now: what its file system cannot hold is found out early.

        Raises:
            ExportError: the file system does not hold a file of that size.
        """
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise self._failed(error, f" of {size} bytes") from error
        self.size = size

    def clone(self, source: FileSource, check: Callable[[], None] = lambda: None) -> bool:
        """Make this file, new and empty, a copy of ``source``: an earlier result, not an input.

        The two share their storage where the file system can do that (Linux: btrfs, XFS and others).

        Args:
            check: called while bytes are copied, which may take long; may raise.

        Returns:
            Whether they share it.

        Raises:
            ExportError: the disk is full or fails.
            CorruptError, ReadError: ``source`` cannot be read.
        """
        shares = source.descriptor is not None and _share(self._descriptor, source.descriptor)
        if not shares:
            for start, stop in source.data_ranges(0, source.size):
                self._copy(source, start, stop, check)
        self.set_size(source.size)
        return shares

    def zero(self, offset: int, length: int) -> None:
        """Make ``length`` bytes that may hold something zeros again: a hole where that can be.

        Raises:
            ExportError: the disk is full or fails.
        """
        if length and not _punch(self._descriptor, offset, length):
            zeros = memoryview(ZERO_PIECE)
            for at in range(offset, offset + length, len(zeros)):
                self.write_at(at, zeros[: min(len(zeros), offset + length - at)])

    def finish(self, size: int) -> None:
        """Cut or extend the file to ``size`` bytes, bring it to the disk and close it."""
        self.set_size(size)
        try:
            if self._sync:
                os.fsync(self._descriptor)
            # Windows renames no file that is open.
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
        except OSError as error:
            raise self._failed(error) from error

    def remove_old(self) -> None:
        """With ``force``, remove what stands under the name before ``publish`` does.

        Raises:
            TargetError: it cannot be removed.
        """
        if not self._force:
            raise ValueError("nothing is removed without force")
        try:
            _usable(self.path, force=True, inputs=self._inputs).unlink(missing_ok=True)
        except OSError as error:
            raise self._cannot_create(error) from error

    def publish(self) -> None:
        """Give the finished file its name.

        Raises:
            TargetExistsError: something appeared under the name meanwhile (never with ``force``).
            TargetError: the name is an input's by now, or the file cannot be given it.
        """
        partial = self.partial
        if self._descriptor >= 0:
            raise ValueError("finish() comes before publish()")
        if self._force:
            # Between opening and now an input may have been moved to this name.
            _usable(self.path, force=True, inputs=self._inputs)
            try:
                partial.replace(self.path)
            except OSError as error:
                raise self._cannot_create(error) from error
        else:
            self._publish_new(partial)
        self._partial = None
        if self._sync:
            _sync_folder(self.path.parent)

    def keep(self) -> Path | None:
        """Let go of the temporary file and leave it where it is; None after ``publish``."""
        partial, self._partial = self._partial, None
        self.abort()
        return partial

    def abort(self) -> None:
        """Remove the temporary file; no effect after ``publish`` and ``keep``."""
        # What fails here must not hide why the result is given up.
        with suppress(OSError):
            if self._descriptor >= 0:
                descriptor, self._descriptor = self._descriptor, -1
                os.close(descriptor)
        partial, self._partial = self._partial, None
        with suppress(OSError):
            if partial is not None:
                partial.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _copy(self, source: FileSource, start: int, stop: int, check: Callable[[], None]) -> None:
        """Bytes [start, stop) of ``source`` to the same place here, inside the kernel where that can be."""
        in_kernel = getattr(os, "copy_file_range", None) if source.descriptor is not None else None
        while start < stop:
            check()
            count = min(_COPY_BYTES, stop - start)
            if in_kernel is not None:
                try:
                    count = in_kernel(source.descriptor, self._descriptor, count, start, start)
                except OSError as error:
                    if error.errno in _NO_ROOM:
                        raise self._failed(error) from error
                    in_kernel = None  # between such file systems it cannot
                    continue
            if in_kernel is None or not count:  # 0: the source became shorter, and reading it says so
                count = min(_COPY_BYTES, stop - start)
                self.write_at(start, source.read_exact(start, count, field="payload"))
            start += count

    def _create(self, mode: int, token: str | None) -> None:
        for _ in range(16):
            partial = self.path.with_name(partial_name(self.path.name, token or new_token()))
            try:
                self._descriptor = os.open(partial, _CREATE_FLAGS, mode)
            except FileExistsError:
                continue
            except OSError as error:
                raise self._cannot_create(error) from error
            self._partial = partial
            _mark_sparse(self._descriptor)
            return
        raise TargetError(f"cannot create {printable(self.name)}: no free temporary name beside it")

    def _reopen(self, partial: Path) -> None:
        try:
            descriptor = os.open(partial, _OPEN_FLAGS)
        except OSError as error:
            raise self._cannot_create(error) from error
        status = os.fstat(descriptor)
        if not _is_ours(status):
            os.close(descriptor)
            raise TargetError(
                f"cannot go on with {printable(str(partial))}: it is not the file of one's own job"
            )
        self._descriptor = descriptor
        self._partial = partial
        self.size = status.st_size

    def _limit_mode(self, mode: int) -> None:
        """No more permissions than ``mode``, for a file that somebody else made."""
        try:
            self.partial.chmod(os.fstat(self._descriptor).st_mode & mode)
        except OSError as error:
            raise self._cannot_create(error) from error

    def _drop(self) -> None:
        """What was written leaves the page cache; a host has better use for it."""
        try:
            os.fdatasync(self._descriptor)
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise self._failed(error) from error
        self._undropped = 0

    def _publish_new(self, partial: Path) -> None:
        try:
            os.link(partial, self.path)
        except FileExistsError as error:
            raise exists_error(self.name) from error
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise self._cannot_create(error) from error
            self._rename_new(partial)
            return
        except NotImplementedError:  # pragma: no cover - platforms without os.link
            self._rename_new(partial)
            return
        # The file is there; that its second name stays is no reason to say that it is not.
        with suppress(OSError):
            partial.unlink()

    def _rename_new(self, partial: Path) -> None:
        """Without hard links (FAT, some shares) a look comes before the rename; Windows looks itself."""
        if os.path.lexists(self.path):
            raise exists_error(self.name)
        try:
            partial.rename(self.path)
        except FileExistsError as error:
            raise exists_error(self.name) from error
        except OSError as error:
            raise self._cannot_create(error) from error

    def _seek_and_write(self, lock: threading.Lock, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        with lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            done = 0
            while done < len(view):
                done += os.write(self._descriptor, view[done:])

    def _failed(self, error: OSError, more: str = "") -> ExportError:
        return ExportError(f"cannot write {printable(self.name)}{more}: {_reason(error)}")

    def _cannot_create(self, error: OSError) -> ExportError:
        if error.errno in _NO_ROOM:
            return self._failed(error)
        return TargetError(f"cannot create {printable(self.name)}: {_reason(error)}")


class TargetFolder:
    """A folder beside a target in which another program writes; removed at the end, with what is in it.

    Args:
        target: what is being made; :class:`TargetFile` adopts files from here, one by one.

    Attributes:
        path: of the folder; nobody else may look into it.

    Raises:
        TargetError: it cannot be made.
    """

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(partial_name(target.name, new_token()))
        try:
            self.path.mkdir(mode=0o700)
        except OSError as error:
            raise TargetError(f"cannot create {printable(str(target))}: {_reason(error)}") from error

    def files(self, prefix: str) -> list[Path]:
        """The files whose names begin so, ordered by name."""
        return sorted(path for path in self.path.iterdir() if path.name.startswith(prefix))

    def remove(self) -> None:
        """Remove the folder and what is left in it."""
        # What fails here must not hide why the result is given up.
        shutil.rmtree(self.path, ignore_errors=True)


class StdoutTarget:
    """A target for ``-``: bytes in order, holes written out as zeros.

    What was written cannot be taken back: a failure is told by the exit code only.

    Args:
        stream: None is standard output.
        inputs: files that must not be behind it.
        check: called while zeros are written, which may take long; may raise.

    Raises:
        TargetError: standard output is a terminal or one of the inputs.
    """

    name = "standard output"

    def __init__(
        self,
        stream: IO[bytes] | None = None,
        *,
        inputs: Iterable[str | os.PathLike[str]] = (),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._check = check
        stream = sys.stdout.buffer if stream is None else stream
        if stream.isatty():
            raise TargetError("cannot write an image to a terminal")
        stream.flush()
        # Past the buffer: what a broken pipe leaves in it would be complained about at exit.
        self._stream: IO[bytes] = getattr(stream, "raw", stream)
        self._position = 0
        self._refuse_inputs(inputs)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write zeros up to ``offset``, then ``data``.

        Raises:
            ExportError: the reader went away, or the disk is full.
        """
        if offset < self._position:
            raise ValueError(f"a stream cannot go back from {self._position} to {offset}")
        self._zeros(offset - self._position)
        self._write(memoryview(data))

    def finish(self, size: int) -> None:
        """Write zeros up to ``size``."""
        self._zeros(size - self._position)

    def publish(self) -> None:
        """It is out already."""

    def abort(self) -> None:
        """What is out cannot be taken back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _zeros(self, length: int) -> None:
        zeros = memoryview(ZERO_PIECE)
        while length > 0:
            self._check()
            count = min(length, len(zeros))
            self._write(zeros[:count])
            length -= count

    def _write(self, data: memoryview) -> None:
        done = 0
        try:
            while done < len(data):
                count = self._stream.write(data[done:])
                if not count:  # a pipe that does not block and is full
                    self._wait()
                done += count or 0
        except OSError as error:
            raise ExportError(f"cannot write to {self.name}: {_reason(error)}") from error
        self._position += len(data)

    def _wait(self) -> None:
        import select

        select.select([], [self._stream], [])

    def _refuse_inputs(self, inputs: Iterable[str | os.PathLike[str]]) -> None:
        try:
            status = os.fstat(self._stream.fileno())
        except (OSError, ValueError):  # a stream in memory
            return
        if stat.S_ISREG(status.st_mode):
            for path in inputs:
                if _is_same(status, "", path):
                    raise _is_input(self.name, path)


def mode_like(paths: Iterable[str | os.PathLike[str]]) -> int:
    """Permission bits for a copy of ``paths``: no one may read it who could not read all of them."""
    mode = 0o666
    for path in paths:
        try:
            mode &= Path(path).stat().st_mode
        except OSError:  # gone since it was opened: whoever reads it will say so
            mode = 0
    return 0o600 | (mode & 0o066)


def _usable(path: Path, *, force: bool, inputs: Iterable[str | os.PathLike[str]]) -> Path:
    """The path whose file is to be made; links followed.

    Raises:
        TargetExistsError, TargetError: see :class:`TargetFile`.
    """
    shown = printable(str(path))
    if path.name in ("", ".", ".."):
        raise TargetError(f"cannot create {shown}: it is a folder")
    try:
        status = path.lstat()
    except FileNotFoundError as error:
        if not path.parent.is_dir():
            folder = printable(str(path.parent))
            raise TargetError(f"cannot create {shown}: there is no folder {folder}") from error
        return path
    except OSError as error:
        raise TargetError(f"cannot create {shown}: {_reason(error)}") from error
    except ValueError as error:  # a NUL in the name
        raise TargetError(f"cannot create {shown}: no file can have this name") from error
    is_link = stat.S_ISLNK(status.st_mode)
    if is_link:
        status = _behind_link(path, force=force)
        path = Path(os.path.realpath(path))
    for source in inputs:
        if _is_same(status, path, source):
            raise _is_input(shown, source)
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise TargetError(f"cannot create {shown}: it is {kind}")
    if not force:
        raise exists_error(shown)
    return path


def _behind_link(link: Path, *, force: bool) -> os.stat_result:
    try:
        return link.stat()
    except OSError as error:
        if not force:
            raise exists_error(str(link)) from error
        raise TargetError(f"cannot create {printable(str(link))}: it is a link that leads nowhere") from error


def _is_same(status: os.stat_result, path: str | Path, source: str | os.PathLike[str]) -> bool:
    """Whether the file of ``status`` under ``path`` is the input ``source``."""
    try:
        other = Path(source).stat()
    except OSError:
        return False
    if status.st_ino and other.st_ino:
        return (status.st_dev, status.st_ino) == (other.st_dev, other.st_ino)
    # File systems without file numbers (some shares on Windows): by name, as those compare names.
    return bool(path) and os.path.realpath(path).casefold() == os.path.realpath(source).casefold()


def _is_input(target: str, source: str | os.PathLike[str]) -> TargetError:
    return TargetError(f"cannot create {target}: it is the input {printable(str(source))}")


def exists_error(name: str) -> TargetExistsError:
    """What is said of a target that is there already."""
    return TargetExistsError(f"{printable(name)} exists already; --force replaces it")


def new_token() -> str:
    """What tells the temporary files of one job from those of others."""
    return secrets.token_hex(4)


def partial_name(name: str, token: str) -> str:
    """The temporary file of a target that is called ``name``."""
    return _hidden_name(name, f".{token}.partial")


def _hidden_name(name: str, tail: str) -> str:
    room = _NAME_BYTES_MAX - len(tail) - 1
    if len(os.fsencode(name)) > room:
        name = os.fsencode(name)[:room].decode("utf-8", "ignore")
    return f".{name}{tail}"


def _is_ours(status: os.stat_result) -> bool:
    """Whether a file that is to be gone on with can have been left by a job of this user."""
    return _is_own(status) and status.st_nlink == 1


def _is_own(status: os.stat_result) -> bool:
    is_users = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    return is_users and stat.S_ISREG(status.st_mode)


def _is_file(path: Path, inode: object) -> bool:
    """Whether a file of one's own with that number stands under ``path``."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return status.st_ino == inode and status.st_ino != 0 and _is_own(status)


def journal_path(target: Path) -> Path:
    """Where the journal of a job that makes ``target`` stands."""
    return target.with_name(_hidden_name(target.name, ".journal"))


class LockedFile:
    """A small file beside a target that one job at a time has: its journal.

    Lines are appended; nothing is synced, because whatever was lost is found out when it is read.

    Args:
        path: of the file; it is made when it is not there.

    Raises:
        TargetError: another job has it, it is not one's own, or it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, _OPEN_FLAGS | os.O_CREAT, 0o600)
        except OSError as error:
            kind = ExportError if error.errno in _NO_ROOM else TargetError
            raise kind(f"cannot create {printable(str(path))}: {_reason(error)}") from error
        try:
            self._lock()
            if not _is_ours(os.fstat(self._descriptor)):
                raise TargetError(f"cannot use {printable(str(path))}: it is not the file of one's own job")
        except BaseException:
            self.close()
            raise

    def append(self, data: bytes) -> None:
        """Write ``data`` behind what is there.

        Raises:
            ExportError: the disk is full or fails.
        """
        try:
            os.lseek(self._descriptor, 0, os.SEEK_END)
            done = 0
            while done < len(data):
                done += os.write(self._descriptor, data[done:])
        except OSError as error:
            raise ExportError(f"cannot write {printable(str(self.path))}: {_reason(error)}") from error

    def cut(self, size: int) -> None:
        """Forget what is behind byte ``size``."""
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise ExportError(f"cannot write {printable(str(self.path))}: {_reason(error)}") from error

    def remove(self) -> None:
        """Delete the file and let go of it."""
        if sys.platform == "win32":  # pragma: no cover - deletes no file that is open
            self.close()
        with suppress(OSError):
            self.path.unlink()
        self.close()

    def close(self) -> None:
        """Let go of the file; it stays."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # pragma: no cover - platforms that keep others from opened files themselves
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TargetError(f"{printable(str(self.path))} belongs to a job that is running") from error
        except OSError:  # a file system without locks
            return


def remove_leftover(path: Path, token: str) -> None:
    """Remove the temporary file of a job that ended without doing so; no error when there is none."""
    if not _TOKEN.fullmatch(token):
        return
    partial = path.with_name(partial_name(path.name, token))
    try:
        # A kill between two calls leaves a file under both of its names: the other one stays.
        if _is_own(partial.lstat()):
            partial.unlink()
    except OSError:
        return


def take_back(path: Path, token: str, inode: object, beside: Mapping[Path, object]) -> bool:
    """Whether the temporary file of an interrupted job is there.

    A job that was killed after it had given its image the name, and before it was done, gets the image back
    under the temporary name; what it had published beside the image is removed.

    Args:
        path: of the target.
        inode: of the temporary file.
        beside: names of the files that go with the image, and the inodes of those that the job had ready.

    Raises:
        TargetError: the file cannot be renamed, or one of the others not be removed.
    """
    if not _TOKEN.fullmatch(token):
        return False
    partial = path.with_name(partial_name(path.name, token))
    is_published = _is_file(path, inode)
    try:
        if is_published:
            for name, number in beside.items():
                if _is_file(name, number):
                    name.unlink()
        if os.path.lexists(partial):
            if is_published and _is_file(partial, inode):
                path.unlink()
            return True
        if is_published:
            path.rename(partial)
    except OSError as error:
        raise TargetError(f"cannot go on with {printable(str(partial))}: {_reason(error)}") from error
    return is_published


def require_usable(
    path: str | os.PathLike[str], *, force: bool, inputs: Iterable[str | os.PathLike[str]]
) -> None:
    """Refuse a name that :class:`TargetFile` would refuse.

    Raises:
        TargetExistsError, TargetError: see there.
    """
    _usable(Path(path), force=force, inputs=inputs)


def remove_file(path: Path, *, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Remove a file that another target replaces; no error when there is none.

    Raises:
        TargetError: it is one of the ``inputs``, no regular file, or cannot be removed.
    """
    place = _usable(path, force=True, inputs=inputs)
    try:
        place.unlink(missing_ok=True)
    except OSError as error:
        raise TargetError(f"cannot remove {printable(str(path))}: {_reason(error)}") from error


def make_folder(path: Path) -> None:
    """Make a folder where none is yet; what it is to stand in must be there.

    Raises:
        TargetError: something else stands there, or it cannot be made.
    """
    try:
        path.mkdir(exist_ok=True)
    except (OSError, ValueError) as error:
        why = "it is no folder" if isinstance(error, FileExistsError) else "no such name"
        if isinstance(error, OSError) and not isinstance(error, FileExistsError):
            why = _reason(error)
        raise TargetError(f"cannot create {printable(str(path))}: {why}") from error


def free_bytes(folder: Path) -> int:
    """What can still be written to the file system of ``folder``.

    Raises:
        TargetError: there is no such folder.
    """
    try:
        return shutil.disk_usage(folder).free
    except (OSError, ValueError) as error:
        why = _reason(error) if isinstance(error, OSError) else "no such name"
        raise TargetError(f"cannot write to {printable(str(folder))}: {why}") from error


def remove_result(path: Path) -> None:
    """Remove what this job had published already; that it is gone is no error, nor that it cannot go."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _share(descriptor: int, source: int) -> bool:
    """Let a file share all storage of another one; False where that cannot be."""
    try:
        import fcntl

        fcntl.ioctl(descriptor, _FICLONE, source)
    except (ImportError, OSError):
        return False
    return True


def _punch(descriptor: int, offset: int, length: int) -> bool:
    """Make a hole; False where that cannot be."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
    except (OSError, AttributeError):
        return False
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    mode = 0x03  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    return bool(fallocate(descriptor, mode, offset, length) == 0)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else type(error).__name__


def _sync_folder(folder: Path) -> None:
    """Bring a folder's new entry to the disk, where folders can be synced at all."""
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        # Network file systems refuse; the file itself is synced.
        return
    finally:
        os.close(descriptor)


def _mark_sparse(descriptor: int) -> None:
    """Windows makes holes only in files that are marked; where it cannot, the holes become zeros."""
    if sys.platform == "win32":  # pragma: no cover
        import ctypes
        import msvcrt

        set_sparse = 0x900C4  # FSCTL_SET_SPARSE
        returned = ctypes.c_ulong()
        handle = ctypes.c_void_p(msvcrt.get_osfhandle(descriptor))
        ctypes.windll.kernel32.DeviceIoControl(
            handle, set_sparse, None, 0, None, 0, ctypes.byref(returned), None
        )

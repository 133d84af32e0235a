"""Where results go.  The only place that writes files, and that knows what a platform lacks for it.

::

    open ──► .NAME.<random>.partial ──► finish: size, sync, close ──► publish ──► NAME
                       │                                                 │
                       └────────────── abort: removed ◄──────────────────┘ (NAME was taken meanwhile)

Nothing stands under the target's name before it is whole: not after a full disk, not after a kill.  What a
kill leaves is the ``.partial`` file.

A target that is one of the inputs is refused, whatever name leads to it and whether or not ``force`` is
given.  A symbolic link as a target counts as something that exists; with ``force`` it is followed, as
``cp`` and ``qemu-img`` do: the file that it leads to is replaced (and checked against the inputs), the link
stays.  Links that lead nowhere, folders, devices and FIFOs are never a target.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from vhdtool.errors import ExportError, TargetError, TargetExistsError, printable

_CREATE_FLAGS: Final = (
    os.O_RDWR
    | os.O_CREAT
    | os.O_EXCL
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOINHERIT", 0)
    | getattr(os, "O_NOFOLLOW", 0)
)
_NAME_BYTES_MAX: Final = 255


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
        self._create(mode)

    @property
    def partial(self) -> Path:
        """The temporary file."""
        assert self._partial is not None, "published or aborted"
        return self._partial

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

    def abort(self) -> None:
        """Remove the temporary file; no effect after ``publish``."""
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

    def _create(self, mode: int) -> None:
        for _ in range(16):
            partial = self.path.with_name(_partial_name(self.path.name))
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
    except FileNotFoundError:
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


def _partial_name(name: str) -> str:
    tail = f".{secrets.token_hex(4)}.partial"
    room = _NAME_BYTES_MAX - len(tail) - 1
    if len(os.fsencode(name)) > room:
        name = os.fsencode(name)[:room].decode("utf-8", "ignore")
    return f".{name}{tail}"


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

"""E01 as a target: bytes in order to the program ewfacquirestream, of libewf's ewf-tools.

::

    write_at ──zeros too──► pipe ──► ewfacquirestream ──► .NAME.<token>.partial/image.E01, .E02 ...
                                            │                       │ finish: status, digests, sync
                                            └── "MD5 hash ..."      └ publish ──► NAME.E01, NAME.E02 ...

Nothing stands under the target's names before all is whole; the first segment is published last, because it
is where every reader begins.  ``publish`` comes after ``require_digests`` only: what the program digested is
compared with what it was given, and not for form's sake.  Of libewf 20140813 two things are worked around:

- With ``-B``, the number of bytes to come, it loses what a pipe gives in short pieces, and the last piece of
  a disk that is no multiple of its chunks.  Without, it reads until the end, and all of it.
- ``ewfexport -t -`` writes "ewfexport: SUCCESS" behind the disk, to the same pipe, so its size is asked for
  first.

Reading back is ``ewfexport`` to a pipe: a damaged place does not stop it, it says so at the end.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Literal, Self, get_args

from vhdtool.errors import (
    ExportError,
    Finding,
    Location,
    MissingPackageError,
    ReadError,
    Severity,
    TargetError,
    printable,
)
from vhdtool.export.containers.target import (
    ZERO_PIECE,
    TargetFile,
    TargetFolder,
    exists_error,
    remove_file,
    require_usable,
)
from vhdtool.source import FileSource, SourceOver

Compression = Literal["none", "empty-block", "fast", "best"]
AnyPath = str | os.PathLike[str]

SUFFIX: Final = ".E01"
# Readers that count in 31 bits are still about.
SEGMENT_SIZE_DEFAULT: Final = 2047 << 20
SEGMENT_SIZE_MIN: Final = 1 << 20
# .E01 to .ZZZ are 14,971 names; the rest is for what a segment holds besides data.
_SEGMENTS_MAX: Final = 14_000
_CHUNK_SIZE: Final = 32 << 10
_CHUNK_SECTORS: Final = (16, 32 << 10)
# The program has all chunks in a table in memory, about 10 bytes each.
_CHUNKS_MAX: Final = 1 << 22
_SIGNATURE: Final = b"EVF\x09\r\n\xff\0"
_STEM: Final = "image"
_PIECE: Final = 1 << 20
_WAIT_SECONDS: Final = 0.2
_WORDS_MAX: Final = 8 << 10
_DIGEST: Final = re.compile(r"^(\w+) hash calculated over data:\s*([0-9a-f]+)\s*$", re.MULTILINE)
_OPTION_OF_FIELD: Final = {
    "case": "-C",
    "description": "-D",
    "evidence": "-E",
    "examiner": "-e",
    "note": "-N",
}
_MEDIA_SIZE: Final = re.compile(r"^\s*Media size:.*\((\d+) bytes\)", re.MULTILINE)


class EwfTarget:
    """An E01 that appears under its names when it is whole.  Takes the disk in order, zeros are written out.

    Args:
        path: of the first segment, ``NAME.E01``; the suffix is added where it is missing.
        size: bytes of the disk, whole sectors.
        sector_size: as the disk has it.
        case: what goes into the header: ``case``, ``description``, ``evidence``, ``examiner``, ``note``.
        compression: of libewf: "empty-block" is fastest, "fast" and "best" are deflate.
        segment_size: bytes of a segment at most; None is just below 2 GiB, or what a huge disk needs.
        force: replace an E01 that stands there, with all its segments.
        inputs: files that must not be the target, by whatever name.
        mode: permission bits.
        sync: wait until the disk has it before it is published.
        check: called while there is nothing to do but wait, and while zeros are written; may raise.

    Attributes:
        path: of the first segment.
        size: of all segments in bytes, after ``finish``.
        segments: their paths, after ``finish``.
        digests: of the disk, as the program says after ``finish``: ``md5`` and ``sha1``.

    Raises:
        MissingPackageError: ewfacquirestream is not installed.
        TargetExistsError, TargetError: as :class:`TargetFile`; or a field of ``case`` cannot be written.
        ValueError: no such compression, or segments that are too small.
    """

    def __init__(
        self,
        path: AnyPath,
        *,
        size: int,
        sector_size: int = 512,
        case: Mapping[str, str] | None = None,
        compression: Compression = "fast",
        segment_size: int | None = None,
        force: bool = False,
        inputs: Iterable[AnyPath] = (),
        mode: int = 0o666,
        sync: bool = True,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        if compression not in get_args(Compression):
            raise ValueError(f"unknown compression {compression!r}")
        if segment_size is not None and segment_size < SEGMENT_SIZE_MIN:
            raise ValueError(f"segments have at least {SEGMENT_SIZE_MIN} bytes")
        program = _program("ewfacquirestream")
        self.name = str(path)
        self.path = _first_segment(Path(path))
        self.size = 0
        self.segments: list[Path] = []
        self.digests: dict[str, str] = {}
        self._force = force
        self._inputs = tuple(inputs)
        self._mode = mode
        self._sync = sync
        self._check = check
        self._position = 0
        self._is_compared = False
        self._files: list[TargetFile] = []
        fields = _case_options(self.name, case or {})
        self._old = self._segments_there()
        with ExitStack() as stack:
            self._folder = TargetFolder(self.path)
            stack.callback(self._folder.remove)
            self._child = stack.enter_context(
                _Child(
                    [
                        program,
                        *("-q", "-f", "encase6", "-d", "sha1", "-c", compression),
                        *("-P", str(sector_size), "-b", str(_chunk_sectors(size, sector_size))),
                        *("-S", str(segment_size or max(SEGMENT_SIZE_DEFAULT, size // _SEGMENTS_MAX))),
                        *fields,
                        *("-t", str(self._folder.path.absolute() / _STEM)),
                    ],
                    folder=self._folder.path,
                    check=check,
                )
            )
            self._stack = stack.pop_all()

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write zeros up to ``offset``, then ``data``.

        Raises:
            ExportError: the program gave up; with its words.
        """
        if offset < self._position:
            raise ValueError(f"a stream cannot go back from {self._position} to {offset}")
        self.zeros(self._position, offset - self._position)
        self._write(memoryview(data))

    def zeros(self, offset: int, length: int) -> None:
        """Write zeros up to ``offset + length``; errors as ``write_at``."""
        zeros = memoryview(ZERO_PIECE)
        while self._position < offset + length:
            self._check()
            self._write(zeros[: min(len(zeros), offset + length - self._position)])

    def finish(self, size: int) -> None:
        """Write zeros up to ``size``, let the program finish, and bring its files to the disk.

        Raises:
            ExportError: it could not, or says nothing of what it digested.
        """
        self.zeros(self._position, size - self._position)
        if self._child.finish() != 0:
            raise self._gave_up()
        self.digests = {name.lower(): value for name, value in _DIGEST.findall(self._child.said())}
        made = self._folder.files(f"{_STEM}.")
        expected = [f"{_STEM}{suffix}" for _, suffix in zip(made, segment_suffixes())]
        # Sorted by name, the order of segments is that of their suffixes.
        if not made or [path.name for path in made] != expected or "md5" not in self.digests:
            raise ExportError(f"cannot write {printable(self.name)}: ewfacquirestream left no whole image")
        self.segments = [self.path.with_suffix(path.suffix) for path in made]
        for segment, path in zip(made, self.segments):
            file = self._stack.enter_context(
                TargetFile(
                    path,
                    force=self._force,
                    inputs=self._inputs,
                    mode=self._mode,
                    sync=self._sync,
                    adopt=segment,
                )
            )
            self._files.append(file)
            self.size += file.size
            file.finish(file.size)

    def require_digests(self, digests: Mapping[str, str]) -> None:
        """Compare what the program digested with what it was given.

        Args:
            digests: of the whole disk, by name; at least ``md5``, others that the program does not know of
                are left out.

        Raises:
            ExportError: they differ.
        """
        for name, given in digests.items():
            found = self.digests.get(name)
            if found not in (None, given):
                raise ExportError(
                    f"cannot write {printable(self.name)}: ewfacquirestream took in other bytes than it was"
                    f" given: {name} {found}, and not {given}"
                )
        self._is_compared = "md5" in digests

    def publish(self) -> None:
        """Give the segments their names, the first one last.

        Raises:
            TargetExistsError, TargetError: a name was taken meanwhile, or cannot be given.
        """
        if not self._is_compared:
            raise ValueError("require_digests() comes before publish()")
        if self._old:
            # Readers find the others from the first one: the old image goes as a whole.
            self._remove_old(self._old[:1])
        done: list[Path] = []
        try:
            for file in reversed(self._files[1:]):
                file.publish()
                done.append(file.path)
            self._remove_old([path for path in self._old if path not in self.segments])
            self._files[0].publish()
        except BaseException:
            for path in done:
                remove_file(path, inputs=self._inputs)
            raise
        self.abort()

    def abort(self) -> None:
        """End the program, remove its files; no effect on what is published."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _segments_there(self) -> list[Path]:
        """The segments that stand there already.

        Raises:
            TargetExistsError, TargetError: the first one, or another one, is in the way.
        """
        require_usable(self.path, force=self._force, inputs=self._inputs)
        there: list[Path] = []
        for suffix in segment_suffixes():
            path = self.path.with_suffix(suffix)
            if not os.path.lexists(path):
                # Without a first one a second one is in the way all the same: it would be taken for ours.
                if there or suffix != SUFFIX:
                    break
                continue
            if not self._force:
                raise exists_error(str(path))
            there.append(path)
        return there

    def _remove_old(self, paths: Iterable[Path]) -> None:
        """Remove those of ``paths`` that are segments, and do not only have such names."""
        for path in paths:
            with FileSource(path) as file:
                start = file.read_exact(0, min(len(_SIGNATURE), file.size), field="start")
            if start == _SIGNATURE:
                remove_file(path, inputs=self._inputs)

    def _write(self, data: memoryview) -> None:
        try:
            self._child.write(data)
        except OSError as error:  # a broken pipe: its words say why
            self._child.finish()
            raise self._gave_up() from error
        self._position += len(data)

    def _gave_up(self) -> ExportError:
        words = self._child.complaint() or f"it ended with status {self._child.exit_code}"
        return ExportError(f"cannot write {printable(self.name)}: ewfacquirestream gave up: {words}")


class EwfSource(SourceOver):
    """The disk in an E01, by position: ewfexport to a pipe, started anew for whoever does not read in order.

    Args:
        first: the first segment, which is closed with this; the others are found beside it.
        check: called while there is nothing to do but wait; may raise.

    Attributes:
        findings: what ewfexport complained of: ``ewf.damaged``.  It goes on behind a damaged place, which is
            zeros or wrong; and says so at the disk's end only, to whoever read all of it in order.

    Raises:
        MissingPackageError: ewf-tools are not installed.
        ReadError: ewfinfo cannot read it.
    """

    def __init__(self, first: FileSource, *, check: Callable[[], None] = lambda: None) -> None:
        self._path = str(first.path.absolute())
        self._check_stop = check
        with _Child([_program("ewfinfo"), "-m", self._path], reads=True, check=check) as child:
            said = child.read_all()
            size = _MEDIA_SIZE.search(said)
            if child.finish() != 0 or size is None:
                raise _cannot_read(first.name, child)
        super().__init__(first, int(size[1]))
        self.findings: tuple[Finding, ...] = ()
        self._guard = threading.Lock()
        self._child: _Child | None = None
        self._position = 0  # of the child

    def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
        self._check(offset, len(buffer), field)
        done = 0
        with self._guard:
            child = self._at(offset)
            while done < len(buffer):
                piece = child.read(min(len(buffer) - done, _PIECE))
                if not piece:
                    child.finish()
                    raise _cannot_read(self.name, child)
                buffer[done : done + len(piece)] = piece
                done += len(piece)
                self._position += len(piece)
            if self._position == self.size:
                self._finish(child)

    def close(self) -> None:
        self._drop()
        super().close()

    def _at(self, offset: int) -> _Child:
        """The program, about to give the byte at ``offset``."""
        if self._child is None or self._position != offset:
            self._drop()
            command = [_program("ewfexport"), *("-q", "-u", "-f", "raw", "-o", str(offset), "-t", "-")]
            self._child = _Child([*command, self._path], reads=True, check=self._check_stop)
            self._position = offset
        return self._child

    def _finish(self, child: _Child) -> None:
        """Read what is behind the disk, and what was said of it."""
        child.read_all()
        if child.finish() != 0:
            raise _cannot_read(self.name, child)
        _, found, places = child.words().partition("Read errors during export:")
        if found and not self.findings:
            what = "the E01 is damaged, ewfexport says"
            location = Location(self.name)
            self.findings = (
                Finding("ewf.damaged", Severity.ERROR, location, what, " ".join(places.split())),
            )
        self._drop()

    def _drop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()


class EwfStream:
    """The disk in an E01 as an iterator of pieces, in order; a context.

    Args:
        path: of the first segment.
        check: as for :class:`EwfSource`.

    Attributes:
        size: bytes given so far.
        findings: as of :class:`EwfSource`, at the end.

    Raises:
        FileMissingError, ReadError, MissingPackageError: it cannot be read.
    """

    def __init__(self, path: AnyPath, *, check: Callable[[], None] = lambda: None) -> None:
        file = FileSource(path)
        try:
            self._source = EwfSource(file, check=check)
        except BaseException:
            file.close()
            raise
        self.size = 0

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self._source.findings

    def __iter__(self) -> Iterator[bytes]:
        while self.size < self._source.size:
            count = min(_PIECE, self._source.size - self.size)
            piece = self._source.read_exact(self.size, count, field="payload")
            self.size += count
            yield piece

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.close()


def read_stream(path: AnyPath, *, check: Callable[[], None] = lambda: None) -> EwfStream:
    """The disk in the E01 whose first segment is ``path``."""
    return EwfStream(path, check=check)


def _cannot_read(name: str, child: _Child) -> ReadError:
    return ReadError(f"cannot read {printable(name)}: {child.program} gave up: {child.complaint()}")


def segment_suffixes() -> Iterator[str]:
    """``.E01`` to ``.E99``, ``.EAA`` to ``.EZZ``, ``.FAA`` ... ``.ZZZ``."""
    yield from (f".E{number:02}" for number in range(1, 100))
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for first in letters[letters.index("E") :]:
        yield from (f".{first}{second}{third}" for second in letters for third in letters)


class _Child:
    """Another program, with a pipe to or from it; ended with the context.

    What it says goes to nameless files, so that it never waits for a reader.

    Args:
        folder: where these files are made; None is the system's folder for such.
        reads: the pipe comes from it, not to it.
    """

    def __init__(
        self,
        command: list[str],
        *,
        folder: Path | None = None,
        reads: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.exit_code: int | None = None
        self.program = Path(command[0]).name
        self._check = check
        with ExitStack() as stack:
            self._out: IO[bytes] = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            self._err: IO[bytes] = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL if reads else subprocess.PIPE,
                    stdout=subprocess.PIPE if reads else self._out,
                    stderr=self._err,
                    # What examiners write is in UTF-8; and Ctrl-C is for us, who end the program in order.
                    env={**os.environ, "LC_ALL": "C.UTF-8"},
                    start_new_session=sys.platform != "win32",
                )
            except OSError as error:
                reason = os.strerror(error.errno or 0)
                raise ExportError(f"cannot start {self.program}: {reason}") from error
            stack.callback(self._end)
            pipe = self._process.stdout if reads else self._process.stdin
            assert pipe is not None
            self._pipe = pipe
            if sys.platform != "win32":
                os.set_blocking(pipe.fileno(), False)
            self._stack = stack.pop_all()

    def write(self, data: memoryview) -> None:
        """Give it all of ``data``; OSError when it does not take it."""
        while len(data):
            try:
                data = data[os.write(self._pipe.fileno(), data[:_PIECE]) :]
            except BlockingIOError:
                self._wait()

    def read(self, count: int) -> bytes:
        """What comes next, at most ``count`` bytes; empty at the end."""
        while True:
            try:
                return os.read(self._pipe.fileno(), count)
            except BlockingIOError:
                self._wait()

    def read_all(self) -> str:
        """What comes until the end, as far as a person wants to read it."""
        said = b""
        while piece := self.read(_WORDS_MAX):
            said = (said + piece)[:_WORDS_MAX]
        return said.decode("utf-8", "replace")

    def finish(self) -> int:
        """Close the pipe and wait until it has ended; its exit status."""
        self._pipe.close()
        while self.exit_code is None:
            try:
                self.exit_code = self._process.wait(_WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                self._check()
        return self.exit_code

    def said(self) -> str:
        """What it said on its standard output, unless that is the pipe."""
        return _end_of(self._out)

    def words(self) -> str:
        """What it said on its standard error."""
        return _end_of(self._err)

    def complaint(self) -> str:
        """Its standard error in one line, as far as a person wants to read it."""
        lines = [line.strip() for line in self.words().splitlines() if line.strip()]
        return printable("; ".join(lines[:4]))

    def close(self) -> None:
        """End it, if it has not ended, and let go of everything."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self) -> None:
        import select

        reads = self._pipe is self._process.stdout
        select.select([self._pipe] if reads else [], [] if reads else [self._pipe], [], _WAIT_SECONDS)
        self._check()

    def _end(self) -> None:
        self._process.kill()
        self._pipe.close()
        self._process.wait()


def _end_of(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _WORDS_MAX))
    return file.read().decode("utf-8", "replace")


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise MissingPackageError(f"E01 needs the program {name}, of the package ewf-tools (libewf)")
    return found


def _first_segment(path: Path) -> Path:
    return (
        path.with_suffix(SUFFIX)
        if path.suffix.lower() == SUFFIX.lower()
        else path.with_name(path.name + SUFFIX)
    )


def _case_options(name: str, case: Mapping[str, str]) -> list[str]:
    """What is not given is said to be empty: the program would make up something."""
    options: list[str] = []
    for field, option in _OPTION_OF_FIELD.items():
        value = case.get(field, "")
        # Its header is lines and tabs.
        if not value.isprintable():
            raise TargetError(
                f"cannot create {printable(name)}: {field!r} has characters that an E01 does not hold"
            )
        options += [option, value]
    return options


def _chunk_sectors(size: int, sector_size: int) -> int:
    """Sectors in a chunk: 32 KiB as everywhere, more for disks that would have too many chunks."""
    low, high = _CHUNK_SECTORS
    sectors = max(low, _CHUNK_SIZE // sector_size)
    while sectors < high and size > _CHUNKS_MAX * sectors * sector_size:
        sectors *= 2
    return sectors

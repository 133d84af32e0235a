"""The manifest of an export: ``TARGET.manifest.json``, one JSON object, written last.

::

    {
     "manifest_version": 1,
     "vhdtool_version": "0.1.0",
     "started": "2026-01-31T12:00:00Z",            ISO 8601, UTC
     "finished": "2026-01-31T12:05:00Z",
     "target": {"path", "format", "subformat", "virtual_size", "file_size"},
     "point_in_time": "snapshots/leaf.avhdx",       the image whose disk this is
     "log_replayed": false,                         a pending VHDX log was laid over a layer in memory
     "content": {
      "bytes": 1073741824,                          of the virtual disk
      "data_bytes": 4194304,                        in chunks that are not all zeros
      "chunk_size": 2097152,
      "algorithm": "sha256",
      "chunks": [                                   run-length coded; the runs tile the disk
       {"start": 0, "count": 1, "digest": "9f86..."},
       {"start": 1, "count": 511, "digest": "zero"}
      ],
      "root": "60303ae2...",
      "digests": {"md5": "..."}                     of the whole disk, as asked for
     },
     "layers": [{"path", "size", "mtime", "write_id", "findings"}],
     "damaged": [{"start": 0, "length": 4096, "reason": "..."}],     guest bytes exported as zeros
     "findings": [...]                              links and chain; each as ``check --json`` gives it
    }

``start`` and ``count`` of a run are chunk numbers, ``digest`` is the SHA-256 of each of its chunks.  The last
chunk may be shorter than ``chunk_size``.  ``root`` is defined in digest.py.

Neither writing nor reading holds the list of chunks in memory: it is as long as the disk is large.  A
manifest may come from a stranger, so reading checks it completely before anything is compared with it;
whatever is wrong is a finding ``manifest.*``.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

from vhdtool.errors import (
    EXIT_CORRUPT,
    EXIT_UNSUPPORTED,
    CorruptError,
    ExportError,
    FileMissingError,
    FindingLog,
    printable,
)
from vhdtool.export.digest import ALGORITHM, CHUNK_SIZE, RootDigester
from vhdtool.export.target import TargetFile
from vhdtool.source import ByteSource, FileSource

MANIFEST_VERSION: Final = 1
SUFFIX: Final = ".manifest.json"
ZERO: Final = "zero"
# Bounds on what a stranger's manifest may say: the largest disk of any format, and sane chunks.
SIZE_MAX: Final = 64 << 40
CHUNK_SIZE_MIN: Final = 1 << 20
CHUNK_SIZE_MAX: Final = 64 << 20
_VALUE_BYTES_MAX: Final = 2 << 20
_PIECE: Final = 64 << 10
_VALUES: Final = frozenset(
    {"manifest_version", "vhdtool_version", "started", "finished", "target", "point_in_time", "log_replayed"}
)
_CONTENT_VALUES: Final = frozenset({"bytes", "data_bytes", "chunk_size", "algorithm", "root", "digests"})
_SPOOL_IN_MEMORY: Final = 1 << 20
_SPACE: Final = re.compile(rb"[ \t\r\n]*")
_HEXADECIMAL_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def manifest_path(target: Path) -> Path:
    """Where the manifest of ``target`` stands unless another place was named."""
    return target.with_name(target.name + SUFFIX)


@dataclass(frozen=True, slots=True)
class ChunkRun:
    """Chunks [start, start + count) with one digest; None is zeros."""

    start: int
    count: int
    digest: bytes | None


class _Rows:
    """A JSON array's rows as text, in memory while they are few and in a nameless file after that.

    Args:
        folder: where that file is made: beside the target is room, elsewhere may be none.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - close() is the owner's
            max_size=_SPOOL_IN_MEMORY, dir=str(folder)
        )
        self.count = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        text = ("," if self.count else "") + "\n   " + json.dumps(row)
        try:
            self._file.write(text.encode("ascii"))
        except OSError as error:
            raise ExportError(f"cannot write the manifest: {os.strerror(error.errno or 0)}") from error
        self.count += 1

    def pieces(self) -> Iterator[bytes]:
        """The text of all rows, joined by commas."""
        try:
            self._file.seek(0)
            while piece := self._file.read(_PIECE):
                yield piece
        except OSError as error:
            raise ExportError(f"cannot write the manifest: {os.strerror(error.errno or 0)}") from error

    def close(self) -> None:
        self._file.close()


class ChunkRecord:
    """The chunks of an export, as they are digested: run-length coded, with their root.

    Args:
        size: bytes of the disk.
        folder: see ``_Rows``.
    """

    def __init__(self, size: int, folder: Path, chunk_size: int = CHUNK_SIZE) -> None:
        self.size = size
        self.chunk_size = chunk_size
        self._rows = _Rows(folder)
        self._root = RootDigester(size, chunk_size)
        self._run = ChunkRun(0, 0, None)
        self.data_bytes = 0

    def add(self, digest: bytes | None, count: int) -> None:
        """The next ``count`` chunks have this digest; None is zeros."""
        self._root.add(digest, count)
        run = self._run
        if run.count and run.digest == digest:
            self._run = ChunkRun(run.start, run.count + count, digest)
            return
        self._write_run()
        self._run = ChunkRun(run.start + run.count, count, digest)

    def root(self) -> str:
        """The root of all chunks so far, in hexadecimal."""
        return self._root.hexdigest()

    def finish(self) -> None:
        """That was the last chunk."""
        self._write_run()
        self._run = ChunkRun(0, 0, None)

    def pieces(self) -> Iterator[bytes]:
        """The text of the rows of ``content.chunks``."""
        return self._rows.pieces()

    def close(self) -> None:
        """Let go of the temporary file."""
        self._rows.close()

    def _write_run(self) -> None:
        run = self._run
        if not run.count:
            return
        if run.digest is not None:
            stop = min((run.start + run.count) * self.chunk_size, self.size)
            self.data_bytes += stop - run.start * self.chunk_size
        digest = ZERO if run.digest is None else run.digest.hex()
        self._rows.add({"start": run.start, "count": run.count, "digest": digest})


@dataclass(frozen=True, slots=True)
class DamagedRange:
    """Guest bytes [start, start + length) that could not be read, and why."""

    start: int
    length: int
    reason: str


class DamageRecord:
    """Ranges exported as zeros because they could not be read: all for the manifest, the first to keep.

    Args:
        folder: see ``_Rows``.
    """

    KEPT: Final = 10_000

    def __init__(self, folder: Path) -> None:
        self._rows = _Rows(folder)
        self._last: DamagedRange | None = None
        self.kept: list[DamagedRange] = []
        self.count = 0
        self.bytes = 0

    def add(self, start: int, length: int, reason: str) -> None:
        """Note a range behind the last one; one that goes on for the same reason makes that longer."""
        self.bytes += length
        last = self._last
        if last is not None and last.start + last.length == start and last.reason == reason:
            self._last = DamagedRange(last.start, last.length + length, reason)
            return
        self._write_last()
        self._last = DamagedRange(start, length, reason)

    def finish(self) -> None:
        """That was the last range."""
        self._write_last()
        self._last = None

    def pieces(self) -> Iterator[bytes]:
        """The text of the rows of ``damaged``."""
        return self._rows.pieces()

    def close(self) -> None:
        """Let go of the temporary file."""
        self._rows.close()

    def _write_last(self) -> None:
        last = self._last
        if last is None:
            return
        self.count += 1
        if len(self.kept) < self.KEPT:
            self.kept.append(last)
        self._rows.add({"start": last.start, "length": last.length, "reason": last.reason})


def write_manifest(
    target: TargetFile,
    *,
    head: Mapping[str, Any],
    chunks: ChunkRecord,
    digests: Mapping[str, str],
    tail: Mapping[str, Any],
    damaged: DamageRecord,
) -> None:
    """Write a manifest to ``target`` and finish it; publishing is the caller's.

    Args:
        head: what stands in front of ``content``.
        tail: what stands behind it.
    """
    position = 0

    def put(piece: bytes) -> None:
        nonlocal position
        target.write_at(position, piece)
        position += len(piece)

    content = {
        "bytes": chunks.size,
        "data_bytes": chunks.data_bytes,
        "chunk_size": chunks.chunk_size,
        "algorithm": ALGORITHM,
    }
    put(b"{" + _members({"manifest_version": MANIFEST_VERSION, **head}, "\n ") + b",\n ")
    put(b'"content": {' + _members(content, "\n  ") + b',\n  "chunks": [')
    for piece in chunks.pieces():
        put(piece)
    put(b"\n  ]," + _members({"root": chunks.root(), "digests": dict(digests)}, "\n  ") + b"\n }")
    if tail:
        put(b"," + _members(tail, "\n "))
    put(b',\n "damaged": [')
    for piece in damaged.pieces():
        put(piece)
    put(b"\n ]\n}\n")
    target.finish(position)


def _members(values: Mapping[str, Any], indent: str) -> bytes:
    lines = (f"{indent}{json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
    return ",".join(lines).encode("ascii")


class Manifest:
    """A manifest that was read and checked from end to end.

    Attributes:
        path: of the manifest itself.
        size: bytes of the virtual disk.
        chunk_size: bytes.
        root: in hexadecimal; it has been compared with the chunks.
        target: ``target`` as it stands there, a stranger's claims.
        values: what else is short: versions, times, ``point_in_time``, ``log_replayed``.
        digests: of the whole disk, by name; as claimed, to be compared.
        damaged_count, damaged_bytes: guest ranges that were exported as zeros because they could not be read.

    Raises:
        FileMissingError, ReadError: it cannot be read.
        FormatError: ``manifest.*``: it is cut, forged, or of a kind that is not known.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._log = FindingLog(str(path))
        self.damaged_count = self.damaged_bytes = 0
        self._source = _open(self.path)
        try:
            self._check()
        except BaseException:
            self._source.close()
            raise

    def runs(self) -> Iterator[ChunkRun]:
        """The chunks, run-length coded; the runs tile the disk.  One iteration at a time."""
        scanner = _Scanner(self._source, self._log)
        for name in scanner.members():
            if name != "content":
                scanner.skip()
                continue
            for inner in scanner.members():
                if inner == "chunks":
                    yield from self._checked_runs(scanner)
                    return
                scanner.skip()

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self) -> None:
        self.values, content = self._read_values()
        self.target: dict[str, Any] = self.values["target"]
        if self.values.get("manifest_version") != MANIFEST_VERSION:
            self._refuse(
                "version",
                "this manifest is of another version",
                self.values.get("manifest_version"),
                MANIFEST_VERSION,
                EXIT_UNSUPPORTED,
            )
        if content.get("algorithm") != ALGORITHM:
            self._refuse(
                "algorithm", "an unknown digest", content.get("algorithm"), ALGORITHM, EXIT_UNSUPPORTED
            )
        self.size = self._integer(content, "bytes", 1, SIZE_MAX)
        self.chunk_size = self._integer(content, "chunk_size", CHUNK_SIZE_MIN, CHUNK_SIZE_MAX)
        if self.chunk_size & (self.chunk_size - 1):
            self._refuse("chunk_size", "chunk_size is no power of two", self.chunk_size)
        self.chunk_count = -(-self.size // self.chunk_size)
        root = content.get("root")
        if not isinstance(root, str) or not _HEXADECIMAL_DIGEST.fullmatch(root):
            self._refuse("root", "the root is no digest")
        self.root = root
        self.digests = self._checked_digests(content.get("digests", {}))
        digester = RootDigester(self.size, self.chunk_size)
        for run in self.runs():
            digester.add(run.digest, run.count)
        if digester.hexdigest() != root:
            self._refuse(
                "root",
                "the list of chunks is not the one that the root was made of",
                digester.hexdigest(),
                root,
            )

    def _checked_digests(self, digests: object) -> dict[str, str]:
        if not isinstance(digests, dict) or not all(isinstance(value, str) for value in digests.values()):
            self._refuse("digests", "the digests of the whole disk are none", digests)
        return digests

    def _read_values(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The short values of the document and of its content; the rest is only passed over."""
        scanner = _Scanner(self._source, self._log)
        values: dict[str, Any] = {}
        content: dict[str, Any] = {}
        for name in scanner.members():
            if name == "content":
                self._once(values, name)
                values[name] = content
                self._read_members(scanner, content, _CONTENT_VALUES)
            else:
                self._read_member(scanner, values, name, _VALUES)
        scanner.end()
        for name in ("content", "target"):
            if not isinstance(values.get(name), dict):
                self._refuse("missing", f"{name!r} is missing")
        if "chunks" not in content:
            self._refuse("missing", "the list of chunks is missing")
        del values["content"]
        return values, content

    def _read_members(self, scanner: _Scanner, values: dict[str, Any], kept: frozenset[str]) -> None:
        for name in scanner.members():
            self._read_member(scanner, values, name, kept)

    def _read_member(
        self, scanner: _Scanner, values: dict[str, Any], name: str, kept: frozenset[str]
    ) -> None:
        if name in kept:
            self._once(values, name)
            values[name] = scanner.value()
            return
        if name == "damaged" and kept is _VALUES:
            self._once(values, name)
            values[name] = None
            for row in scanner.rows():
                self.damaged_count += 1
                place = row if isinstance(row, dict) else {}
                self.damaged_bytes += self._integer(place, "length", 1, SIZE_MAX)
            return
        if name == "chunks":
            # Twice, and two readers could take two different lists for the one.
            self._once(values, name)
            values[name] = None
        scanner.skip()

    def _once(self, values: dict[str, Any], name: str) -> None:
        if name in values:
            self._refuse("duplicate", f"{name!r} stands there twice")

    def _checked_runs(self, scanner: _Scanner) -> Iterator[ChunkRun]:
        position = 0
        for row in scanner.rows():
            run = self._decode_run(row)
            if run.start != position:
                self._refuse("chunks", "a run does not begin where the last one ended", run.start, position)
            position += run.count
            if position > self.chunk_count:
                self._refuse("chunks", "more chunks than the disk has", position, self.chunk_count)
            yield run
        if position != self.chunk_count:
            self._refuse("chunks", "fewer chunks than the disk has", position, self.chunk_count)

    def _decode_run(self, row: object) -> ChunkRun:
        if not isinstance(row, dict):
            self._refuse("chunks", "a run of chunks is no object")
        start = self._integer(row, "start", 0, SIZE_MAX)
        count = self._integer(row, "count", 1, SIZE_MAX)
        digest = row.get("digest")
        if digest == ZERO:
            return ChunkRun(start, count, None)
        if not isinstance(digest, str) or not _HEXADECIMAL_DIGEST.fullmatch(digest):
            self._refuse("chunks", f"the digest of chunk {start} is no digest")
        return ChunkRun(start, count, bytes.fromhex(digest))

    def _integer(self, values: Mapping[str, Any], name: str, low: int, high: int) -> int:
        value = values.get(name)
        # A bool is an int to Python, not to JSON.
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self._refuse("number", f"{name!r} is no integer between {low} and {high}")
        return value

    def _refuse(
        self, code: str, what: str, found: object = "", expected: object = "", exit_code: int = EXIT_CORRUPT
    ) -> NoReturn:
        # Found values are a stranger's: nothing long, and nothing that is no text or number.
        shown = found if isinstance(found, int | str) else type(found).__name__
        self._log.refuse(
            f"manifest.{code}", what, found=str(shown)[:100], expected=str(expected), exit_code=exit_code
        )


def _open(path: Path) -> FileSource:
    try:
        return FileSource(path)
    except (FileMissingError, CorruptError) as error:  # nothing, or no regular file
        raise FileMissingError(f"no such manifest: {printable(str(path))}") from error


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


class _Scanner:
    """Reads a JSON document piece by piece: objects and arrays are entered, small values decoded.

    Only what is asked for is in memory: at most one value of ``_VALUE_BYTES_MAX``.
    """

    def __init__(self, source: ByteSource, log: FindingLog) -> None:
        self._source = source
        self._log = log
        self._read = 0  # bytes of the file that were taken into the buffer
        self._buffer = b""
        self._at = 0  # the next byte in the buffer
        self._dropped = 0  # bytes of the file in front of the buffer
        self._decoder = json.JSONDecoder(parse_constant=_no_constant)

    def members(self) -> Iterator[str]:
        """The names of an object's members; the caller takes each one's value before the next."""
        self._expect(b"{")
        if self._take_if(b"}"):
            return
        while True:
            name = self.value()
            if not isinstance(name, str):
                self._broken("a member without a name")
            self._expect(b":")
            yield name
            if not self._take_if(b","):
                break
        self._expect(b"}")

    def rows(self) -> Iterator[object]:
        """The values of an array."""
        self._expect(b"[")
        if self._take_if(b"]"):
            return
        while True:
            yield self.value()
            if not self._take_if(b","):
                break
        self._expect(b"]")

    def skip(self) -> None:
        """Pass over a value, an array row by row."""
        if self._peek() == b"[":
            for _ in self.rows():
                pass
        else:
            self.value()

    def value(self) -> object:
        """One whole value."""
        self._peek()
        wanted = 512
        while True:
            self._fill(wanted)
            there = len(self._buffer) - self._at
            found = self._decode(self._buffer[self._at : self._at + wanted])
            # A number at the end of what was read may go on behind it.
            if found is not None and (found[1] < wanted or there < wanted):
                self._at += found[1]
                return found[0]
            if there < wanted:
                self._broken("it ends in the middle of a value, or this is no JSON")
            if wanted >= _VALUE_BYTES_MAX:
                self._broken("a value that is too long, or no JSON")
            wanted *= 4

    def end(self) -> None:
        """Nothing but white space may follow."""
        if self._peek():
            self._broken("something behind its end")

    def _decode(self, data: bytes) -> tuple[object, int] | None:
        """A value and the bytes it takes; None when ``data`` does not hold all of it.

        Manifests are ASCII: json.dumps escapes the rest.  So bytes and characters count alike.
        """
        try:
            return self._decoder.raw_decode(data.decode("ascii"))
        except (ValueError, RecursionError):
            return None

    def _expect(self, character: bytes) -> None:
        if not self._take_if(character):
            there = self._at < len(self._buffer)
            self._broken(f"{character.decode()} is missing" if there else "it ends too early")

    def _take_if(self, character: bytes) -> bool:
        if self._peek() != character:
            return False
        self._at += 1
        return True

    def _peek(self) -> bytes:
        """The next byte that is no white space; empty at the end."""
        while True:
            space = _SPACE.match(self._buffer, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at : self._at + 1]
            self._fill(1)
            if self._at == len(self._buffer):
                return b""

    def _fill(self, wanted: int) -> None:
        """Have ``wanted`` bytes in the buffer, fewer at the end of the file only."""
        while len(self._buffer) - self._at < wanted:
            count = min(max(_PIECE, wanted), self._source.size - self._read)
            if not count:
                return
            piece = self._source.read_exact(self._read, count, field="manifest")
            self._read += count
            self._dropped += self._at
            self._buffer = self._buffer[self._at :] + piece
            self._at = 0

    def _broken(self, what: str) -> NoReturn:
        self._log.refuse(
            "manifest.json", f"this is no whole manifest: {what}", offset=self._dropped + self._at
        )

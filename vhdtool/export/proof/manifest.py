"""The manifest of an export: ``TARGET.manifest.json``, one JSON object, written last and sealed.

::

    {
     "manifest_version": 2,
     "vhdtool_version": "0.1.0",
     "started": "2026-01-31T12:00:00Z",            ISO 8601, UTC
     "finished": "2026-01-31T12:05:00Z",
     "case": {"case", "examiner", "evidence", "note"},     what was given of it; absent when nothing was
     "target": {"path", "format", "subformat", "virtual_size", "file_size", "block_size",
                "logical_sector_size", "disk_id", "write_id", "structure"},       see records.py
     "point_in_time": "snapshots/leaf.avhdx",       the image whose disk this is
     "log_replayed": false,                         a pending VHDX log was laid over a layer in memory
     "base": null,                                  of an increment: its parent, see records.py
     "content": {
      "bytes": 1073741824,                          of the virtual disk
      "data_bytes": 4194304,                        in chunks of which something is held that is not zeros
      "inherited_bytes": 0,                         in chunks of which an increment holds nothing
      "chunk_size": 2097152,
      "algorithm": "sha256",
      "chunks": [                                   run-length coded; the runs tile the disk
       {"start": 0, "count": 1, "digest": "9f86..."},
       {"start": 1, "count": 511, "digest": "zero"}             or "inherited"
      ],
      "root": "60303ae2...",
      "digests": {"md5": "..."}                     of the whole disk, as asked for
     },
     "layers": [{"path", "size", "mtime", "write_id", "findings"}],
     "findings": [...],                             links and chain; each as ``check --json`` gives it
     "damaged": [{"start": 0, "length": 4096, "reason": "..."}],     guest bytes exported as zeros
     "signer", "checks", "seal", "signature"        see seal.py
    }

``start`` and ``count`` of a run are chunk numbers, ``digest`` is the SHA-256 of each of its chunks.  The last
chunk may be shorter than ``chunk_size``.  ``root`` and the digests of an increment's chunks are defined in
digest.py.

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
from vhdtool.export.containers.target import TargetFile
from vhdtool.export.proof.digest import ALGORITHM, CHUNK_SIZE, INHERITED, RootDigester
from vhdtool.export.proof.records import SIZE_MAX, Record, read_base, read_case, read_layer, read_target
from vhdtool.export.proof.scanner import Claims, Scanner
from vhdtool.export.proof.seal import SealedWriter, Signer, Verifier, check_sealed, find_seal, refuse_unsealed
from vhdtool.source import FileSource

MANIFEST_VERSION: Final = 2
SUFFIX: Final = ".manifest.json"
ZERO: Final = "zero"
NOT_HERE: Final = "inherited"
# Bounds on what a stranger's manifest may say: sane chunks, and a few more layers than any chain has.
CHUNK_SIZE_MIN: Final = 1 << 20
CHUNK_SIZE_MAX: Final = 64 << 20
LAYERS_MAX: Final = 1024
_PIECE: Final = 64 << 10
_VALUES: Final = frozenset(
    {
        "manifest_version",
        "vhdtool_version",
        "started",
        "finished",
        "case",
        "target",
        "point_in_time",
        "log_replayed",
        "base",
        "signer",
        "seal",
        "signature",
    }
)
_CONTENT_VALUES: Final = frozenset(
    {"bytes", "data_bytes", "inherited_bytes", "chunk_size", "algorithm", "root", "digests"}
)
_SPOOL_IN_MEMORY: Final = 1 << 20
_HEXADECIMAL_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def manifest_path(target: Path) -> Path:
    """Where the manifest of ``target`` stands unless another place was named."""
    return target.with_name(target.name + SUFFIX)


@dataclass(frozen=True, slots=True)
class ChunkRun:
    """Chunks [start, start + count) with one digest; None is zeros, ``INHERITED`` what is not here."""

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
        self.data_bytes = self.inherited_bytes = 0

    def add(self, digest: bytes | None, count: int) -> None:
        """The next ``count`` chunks have this digest; None is zeros, ``INHERITED`` what is not here."""
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
        length = min((run.start + run.count) * self.chunk_size, self.size) - run.start * self.chunk_size
        if run.digest:
            self.data_bytes += length
        elif run.digest == INHERITED:
            self.inherited_bytes += length
        digest = ZERO if run.digest is None else run.digest.hex() or NOT_HERE
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
    signer: Signer | None = None,
) -> bytes:
    """Write a manifest to ``target`` and finish it; publishing is the caller's.

    Args:
        head: what stands in front of ``content``: all of it but the version.
        tail: what stands behind it: ``layers``, ``findings``.
        signer: signs it.

    Returns:
        its seal, 32 bytes.
    """
    position = 0

    def put(piece: bytes) -> None:
        nonlocal position
        target.write_at(position, piece)
        position += len(piece)

    writer = SealedWriter(put)
    content = {
        "bytes": chunks.size,
        "data_bytes": chunks.data_bytes,
        "inherited_bytes": chunks.inherited_bytes,
        "chunk_size": chunks.chunk_size,
        "algorithm": ALGORITHM,
    }
    writer.write(b"{" + _members({"manifest_version": MANIFEST_VERSION, **head}, "\n ") + b",\n ")
    writer.write(b'"content": {' + _members(content, "\n  ") + b',\n  "chunks": [')
    for piece in chunks.pieces():
        writer.write(piece)
    writer.write(b"\n  ]," + _members({"root": chunks.root(), "digests": dict(digests)}, "\n  ") + b"\n }")
    if tail:
        writer.write(b"," + _members(tail, "\n "))
    writer.write(b',\n "damaged": [')
    for piece in damaged.pieces():
        writer.write(piece)
    writer.write(b"\n ]")
    seal = writer.seal(signer)
    target.finish(position)
    return seal


def _members(values: Mapping[str, Any], indent: str) -> bytes:
    lines = (f"{indent}{json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
    return ",".join(lines).encode("ascii")


class Manifest:
    """A manifest that was read and checked from end to end.

    Args:
        key: whose signature it must carry; None takes any, or none.

    Attributes:
        path: of the manifest itself; ``file`` is the open file.
        seal: what its seal and its signature prove.
        target, base, case, layers: a stranger's claims, see records.py; ``base`` is None unless it is of an
            increment.
        values: what else is short: versions, times, ``point_in_time``, ``log_replayed``.
        size: bytes of the virtual disk.
        chunk_size: bytes; ``chunk_count`` of them.
        data_chunks: how many chunks have a digest of their own.
        root: in hexadecimal; it has been compared with the chunks.
        digests: of the whole disk, by name; as claimed, to be compared.
        damaged_count, damaged_bytes: guest ranges that were exported as zeros because they could not be read.

    Raises:
        FileMissingError, ReadError: it cannot be read.
        FormatError: ``manifest.*``: it is cut, forged, or of a kind that is not known.
    """

    def __init__(self, path: str | os.PathLike[str], *, key: Verifier | None = None) -> None:
        self.path = Path(path)
        self._log = FindingLog(str(path))
        self.damaged_count = self.damaged_bytes = self.data_chunks = 0
        self.layers: list[Record] = []
        self.file = _open(self.path)
        try:
            self._check(key)
        except BaseException:
            self.file.close()
            raise

    def runs(self) -> Iterator[ChunkRun]:
        """The chunks, run-length coded; the runs tile the disk.  One iteration at a time."""
        scanner = Scanner(self.file, self._log)
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
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, key: Verifier | None) -> None:
        if find_seal(self.file) is None:
            # What is cut off, or of another version, is told as that; only a whole one misses its seal.
            self._check_content()
            refuse_unsealed(self.file, self._log)
        self.seal = check_sealed(self.file, self._log, key)
        self._check_content()

    def _check_content(self) -> None:
        values, content = self._read_values()
        head = Claims(values, self._log, "")
        self._check_version(values)
        if content.get("algorithm") != ALGORITHM:
            found = content.get("algorithm")
            self._refuse("algorithm", "an unknown digest", found, ALGORITHM, EXIT_UNSUPPORTED)
        self.values = values
        for name in ("vhdtool_version", "started", "finished", "point_in_time"):
            head.text(name)
        head.boolean("log_replayed")
        self.target = read_target(values.pop("target"), self._log)
        base = values.pop("base", None)
        self.base = None if base is None else read_base(base, self._log)
        self.case = read_case(values.pop("case", {}), self._log)
        claims = Claims(content, self._log, "content")
        self._check_sizes(claims)
        root = content.get("root")
        if not isinstance(root, str) or not _HEXADECIMAL_DIGEST.fullmatch(root):
            self._refuse("root", "the root is no digest")
        self.root = root
        self.digests = self._checked_digests(content.get("digests", {}))
        self._check_chunks(claims)

    def _check_version(self, values: Mapping[str, Any]) -> None:
        version = values.get("manifest_version")
        if version != MANIFEST_VERSION or isinstance(version, bool):
            what = "this manifest is of another version"
            self._refuse("version", what, version, MANIFEST_VERSION, EXIT_UNSUPPORTED)

    def _check_sizes(self, content: Claims) -> None:
        self.size = content.integer("bytes", 1, SIZE_MAX)
        self.chunk_size = content.integer("chunk_size", CHUNK_SIZE_MIN, CHUNK_SIZE_MAX)
        if self.chunk_size & (self.chunk_size - 1):
            self._refuse("chunk_size", "chunk_size is no power of two", self.chunk_size)
        self.chunk_count = -(-self.size // self.chunk_size)
        if self.target["virtual_size"] != self.size:
            what = "the target's disk and what was exported to it have different sizes"
            self._refuse("size", what, self.target["virtual_size"], self.size)
        if (self.target["subformat"] == "differencing") != (self.base is not None):
            self._refuse("base", "an increment has a base, and nothing else has", self.target["subformat"])

    def _check_chunks(self, content: Claims) -> None:
        digester = RootDigester(self.size, self.chunk_size)
        sums = {"data_bytes": 0, "inherited_bytes": 0}
        for run in self.runs():
            digester.add(run.digest, run.count)
            stop = min((run.start + run.count) * self.chunk_size, self.size)
            if run.digest:
                self.data_chunks += run.count
                sums["data_bytes"] += stop - run.start * self.chunk_size
            elif run.digest == INHERITED:
                sums["inherited_bytes"] += stop - run.start * self.chunk_size
        if digester.hexdigest() != self.root:
            what = "the list of chunks is not the one that the root was made of"
            self._refuse("root", what, digester.hexdigest(), self.root)
        for name, expected in sums.items():
            found = content.integer(name, 0, SIZE_MAX)
            if found != expected:
                self._refuse("sum", f"{name!r} is not what the chunks add up to", found, expected)

    def _checked_digests(self, digests: object) -> dict[str, str]:
        if not isinstance(digests, dict) or not all(isinstance(value, str) for value in digests.values()):
            self._refuse("digests", "the digests of the whole disk are none", digests)
        return digests

    def _read_values(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The short values of the document and of its content; the rest is only passed over."""
        self.layers.clear()
        self.damaged_count = self.damaged_bytes = 0
        scanner = Scanner(self.file, self._log)
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

    def _read_members(self, scanner: Scanner, values: dict[str, Any], kept: frozenset[str]) -> None:
        for name in scanner.members():
            self._read_member(scanner, values, name, kept)

    def _read_member(self, scanner: Scanner, values: dict[str, Any], name: str, kept: frozenset[str]) -> None:
        if name in kept:
            self._once(values, name)
            values[name] = scanner.value()
            if name == "manifest_version":
                self._check_version(values)
        elif name in ("damaged", "layers") and kept is _VALUES:
            self._once(values, name)
            values[name] = None
            for number, row in enumerate(scanner.rows()):
                (self._add_damaged if name == "damaged" else self._add_layer)(row, number)
        else:
            if name in ("chunks", "checks"):
                # Twice, and two readers could take two different lists for the one.
                self._once(values, name)
                values[name] = None
            scanner.skip()

    def _add_damaged(self, row: object, number: int) -> None:
        place = Claims(row, self._log, f"damaged[{number}]")
        place.integer("start", 0, SIZE_MAX)
        self.damaged_bytes += place.integer("length", 1, SIZE_MAX)
        self.damaged_count += 1

    def _add_layer(self, row: object, number: int) -> None:
        if number == LAYERS_MAX:
            self._refuse("layers", f"more than {LAYERS_MAX} layers, which no chain has")
        self.layers.append(read_layer(row, self._log, number))

    def _once(self, values: dict[str, Any], name: str) -> None:
        if name in values:
            self._refuse("duplicate", f"{name!r} stands there twice")

    def _checked_runs(self, scanner: Scanner) -> Iterator[ChunkRun]:
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
        if digest == NOT_HERE and self.base is not None:
            return ChunkRun(start, count, INHERITED)
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
        raise FileMissingError(
            f"no such manifest: {printable(str(path))} (--manifest names one elsewhere, --against needs none)"
        ) from error

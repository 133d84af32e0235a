"""The journal of an export: what a job that was interrupted needs to go on.

::

    .TARGET.journal         one line a record, the first says which job it is, the others how far it came
    <chain> {"journal_version": 1, "token": ..., "job": {...}}
    <chain> {"note": {"file": 1234567}}         what became known of the job later
    <chain> {"position": 67108864, "placed": [[0, 32]], "chunks": [[1, "9f86..."], [31, "zero"]], ...}

``chain`` is the beginning of the SHA-256 over the line before's and the record: a line that is cut or
altered, and everything behind it, is not believed.  Nor is the rest: the chunks that a journal names are
read back from the temporary file before a job goes on behind them, and the layers must still be the files
that they were.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from vhdtool.errors import FormatError, InputError
from vhdtool.export.containers.target import LockedFile, journal_path
from vhdtool.export.proof.digest import DIGEST_SIZE, INHERITED
from vhdtool.source import FileSource

JOURNAL_VERSION: Final = 1
_CHAIN_CHARACTERS: Final = 32
_LINE_BYTES_MAX: Final = 64 << 20
_PIECE: Final = 1 << 20
_WORDS: Final = {"zero": None, "inherited": INHERITED}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Up to here everything was done.

    Attributes:
        position: guest byte.
        placed: what the container placed since the last checkpoint, as it says it.
        chunks: (count, digest) of the chunks since then, as ``ChunkSink.add`` takes them.
        damaged: (start, length, reason) of ranges that became zeros since then.
        read, written: bytes so far.
    """

    position: int
    placed: Sequence[list[int]]
    chunks: list[tuple[int, bytes | None]]
    damaged: Sequence[tuple[int, int, str]]
    read: int
    written: int

    def document(self) -> dict[str, Any]:
        """As it stands in the journal."""
        return {
            "position": self.position,
            "placed": list(self.placed),
            "chunks": [[count, _word(digest)] for count, digest in self.chunks],
            "damaged": [list(row) for row in self.damaged],
            "read": self.read,
            "written": self.written,
        }

    @classmethod
    def parse(cls, document: Any) -> Self:
        """From what stands in a journal.

        Raises:
            ValueError, TypeError, KeyError: this is no checkpoint.
        """
        numbers = [document[name] for name in ("position", "read", "written")]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("a number is none")
        position, read, written = numbers
        placed = [[_whole(number) for number in row] for row in document["placed"]]
        chunks = [(_whole(count), _digest(word)) for count, word in document["chunks"]]
        damaged = [
            (_whole(start), _whole(length), str(reason)) for start, length, reason in document["damaged"]
        ]
        return cls(position, placed, chunks, damaged, read, written)


class Journal:
    """The journal of one job; whoever holds it has it alone.

    The checkpoints of a long job do not fit into memory: they are read one after the other.

    Attributes:
        job: what the first line and notes say; None when the file is new, or its first line is broken.
        positions: guest bytes of the checkpoints that are whole; they ascend.
        is_whole: whether these, and the first line, are all that is in the file.

    Raises:
        TargetError: another job has it, or it cannot be made.
    """

    def __init__(self, target: Path) -> None:
        self.path = journal_path(target)
        self.job: dict[str, Any] | None = None
        self.positions: list[int] = []
        self.is_whole = True
        # Of the first line and each checkpoint that are whole: where they, and notes behind them, end in the
        # file, and the chain there.
        self._lines: list[tuple[int, str]] = []
        self._file = LockedFile(self.path)
        try:
            self._load()
        except BaseException:
            self._file.close()
            raise

    def begin(self, job: Mapping[str, Any]) -> None:
        """Forget what is there and begin anew."""
        self._file.cut(0)
        self._lines.clear()
        self.positions.clear()
        self.job = dict(job)
        self._append({"journal_version": JOURNAL_VERSION, **job})

    def checkpoints(self) -> Iterator[Checkpoint]:
        """The checkpoints that are whole, in order."""
        stop = self._lines[-1][0]
        for text, end, _ in self._read():
            record = json.loads(text)
            if "position" in record:
                yield Checkpoint.parse(record)
            if end == stop:  # what is behind can be anything
                return

    def keep_first(self, count: int) -> None:
        """Forget all but the first ``count`` checkpoints, and what is broken behind them."""
        del self.positions[count:]
        del self._lines[count + 1 :]
        self._file.cut(self._lines[-1][0])

    def note(self, **facts: Any) -> None:
        """Note more of what the job is; it goes with the checkpoint in front of it."""
        self._append({"note": facts})
        del self._lines[-2]

    def add(self, checkpoint: Checkpoint) -> None:
        """Note how far the job is."""
        self._append(checkpoint.document())
        self.positions.append(checkpoint.position)

    def remove(self) -> None:
        """The job is done, or given up."""
        self._file.remove()

    def close(self) -> None:
        """Leave the journal for a job that goes on."""
        self._file.close()

    def _append(self, record: Mapping[str, Any]) -> None:
        text = json.dumps(record, separators=(",", ":"))
        end, chain = self._lines[-1] if self._lines else (0, "")
        chain = _chained(chain, text)
        line = f"{chain} {text}\n".encode("ascii")
        self._file.append(line)
        self._lines.append((end + len(line), chain))

    def _load(self) -> None:
        try:
            for text, end, chain in self._read():
                if self._take(json.loads(text)):
                    self._lines.append((end, chain))
                else:
                    self._lines[-1] = end, chain
            self.is_whole = self.path.stat().st_size == (self._lines[-1][0] if self._lines else 0)
        except (FormatError, InputError, OSError, ValueError, TypeError, LookupError, RecursionError):
            self.is_whole = False

    def _take(self, record: Any) -> bool:
        """Whether this is the first line, or a checkpoint; a note otherwise."""
        if not isinstance(record, dict):
            raise TypeError("no record")
        if self.job is None:
            if record.pop("journal_version") != JOURNAL_VERSION:
                raise ValueError("another version")
            self.job = record
            return True
        if "note" in record:
            self.job.update(record["note"])
            return False
        position = Checkpoint.parse(record).position
        if self.positions and position <= self.positions[-1]:
            raise ValueError("positions ascend")
        self.positions.append(position)
        return True

    def _read(self) -> Iterator[tuple[str, int, str]]:
        """The text of each record as long as the chain holds, where its line ends, and the chain there."""
        chain = ""
        end = 0
        with FileSource(self.path) as source:
            for line in _split(source):
                found, _, text = line.decode("ascii").partition(" ")
                chain = _chained(chain, text[:-1])
                if text[-1:] != "\n" or found != chain:
                    return
                end += len(line)
                yield text[:-1], end, chain


def _split(source: FileSource) -> Iterator[bytes]:
    """Lines with their ends; the last one may have none, and one that is far too long is the last."""
    rest = b""
    for at in range(0, source.size, _PIECE):
        rest += source.read_exact(at, min(_PIECE, source.size - at), field="journal")
        *lines, rest = rest.split(b"\n")
        for line in lines:
            yield line + b"\n"
        if len(rest) > _LINE_BYTES_MAX:
            break
    if rest:
        yield rest


def _chained(before: str, text: str) -> str:
    return hashlib.sha256(f"{before} {text}".encode()).hexdigest()[:_CHAIN_CHARACTERS]


def _whole(number: object) -> int:
    if type(number) is not int or number < 0:
        raise ValueError("no whole number")
    return number


def _word(digest: bytes | None) -> str:
    if digest is None:
        return "zero"
    return digest.hex() if digest else "inherited"


def _digest(word: str) -> bytes | None:
    if word in _WORDS:
        return _WORDS[word]
    digest = bytes.fromhex(word)
    if len(digest) != DIGEST_SIZE:
        raise ValueError("no digest")
    return digest

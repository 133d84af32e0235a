"""Going on with an export that was interrupted: what is noted on the way, and how it is trusted again.

::

    mover ──► checkpoint due ──► behind the last chunk ──► journal
    journal ──► container as it was ──► read back, digested, compared ──► the last checkpoint that holds
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Final

from vhdtool.errors import CorruptError, ReadError
from vhdtool.export.containers.container import Container
from vhdtool.export.journal import Checkpoint, Journal
from vhdtool.export.moving.copy import Moved, Mover
from vhdtool.export.moving.fill import DamageSink
from vhdtool.export.moving.progress import Reporter
from vhdtool.export.proof.digest import CHUNK_SIZE, ChunkSink, WholeDigest, zeros_digest

_ZEROS: Final = zeros_digest(CHUNK_SIZE)


class NotedChunks:
    """A sink for chunks that keeps what came since it was last asked.  One thread's."""

    def __init__(self, sink: ChunkSink) -> None:
        self._sink = sink
        self._rows: list[tuple[int, bytes | None]] = []

    def add(self, digest: bytes | None, count: int) -> None:
        """The next chunks."""
        self._sink.add(digest, count)
        if self._rows and self._rows[-1][1] == digest:
            count += self._rows.pop()[0]
        self._rows.append((count, digest))

    def taken(self) -> list[tuple[int, bytes | None]]:
        """What came since the last call."""
        rows, self._rows = self._rows, []
        return rows


class NotedDamage:
    """A list of damage that keeps what came since it was last asked.  One thread's."""

    def __init__(self, sink: DamageSink) -> None:
        self._sink = sink
        self._rows: list[tuple[int, int, str]] = []

    def add(self, start: int, length: int, reason: str) -> None:
        """The next range."""
        self._sink.add(start, length, reason)
        self._rows.append((start, length, reason))

    def taken(self) -> list[tuple[int, int, str]]:
        """What came since the last call."""
        rows, self._rows = self._rows, []
        return rows


class Notes:
    """Writes a job's checkpoints; see :class:`~vhdtool.export.moving.copy.Checkpoints`.

    Args:
        chunks, damage: what the mover tells of.
        seconds: between two checkpoints, at least.
    """

    def __init__(
        self,
        journal: Journal,
        container: Container,
        chunks: NotedChunks,
        damage: NotedDamage,
        seconds: float,
        *,
        before: Moved | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = journal
        self._container = container
        self._chunks = chunks
        self._damage = damage
        self._seconds = seconds
        self._before = before or Moved()
        self._clock = clock
        self._next = clock() + seconds

    @property
    def size(self) -> int:
        """Checkpoints are at multiples of so many bytes."""
        return self._container.checkpoint_size

    @property
    def is_waiting(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self._clock() >= self._next

    def due(self, position: int, moved: Moved) -> Callable[[], None]:
        """The writing of a checkpoint at ``position``."""
        self._next = self._clock() + self._seconds
        checkpoint = Checkpoint(
            position,
            self._container.placed(),
            [],
            self._damage.taken(),
            self._before.read + moved.read,
            self._before.written + moved.written,
        )
        return partial(self._write, checkpoint)

    def _write(self, checkpoint: Checkpoint) -> None:
        """By who tells of the chunks, behind the last one in front of the checkpoint."""
        checkpoint.chunks.extend(self._chunks.taken())
        self._journal.add(checkpoint)


class Trusted:
    """What of an interrupted job can be gone on with: it was read back and is what the journal says.

    Args:
        new_container, new_digests: as a job begins with them; asked for anew each time that the end of
            what is there turns out to be something else.
        new_reporter: for reading back so many bytes.

    Attributes:
        container: as it was at ``position``.
        position: guest byte; 0 when nothing is left.
        file_size: of the target there.
        digests: of the whole disk, which have taken it up to ``position``.
        moved: up to there.

    Raises:
        CancelledError: the reporter's token says stop.
    """

    def __init__(
        self,
        journal: Journal,
        new_container: Callable[[], Container],
        new_digests: Callable[[], list[WholeDigest]],
        new_reporter: Callable[[int], Reporter],
    ) -> None:
        self.position = self.file_size = 0
        self.moved = Moved()
        count = len(journal.positions)
        while True:
            self.container = new_container()
            self.digests = new_digests()
            good = self._read_back(journal, count, new_reporter) if count else None
            if good is None:
                break
            count = bisect_right(journal.positions, good, hi=count - 1)
        journal.keep_first(count)

    def _read_back(self, journal: Journal, count: int, new_reporter: Callable[[int], Reporter]) -> int | None:
        """Judge what ``count`` checkpoints tell: the guest byte up to which it holds, None when all does."""

        def checkpoints() -> Iterator[Checkpoint]:
            return islice(journal.checkpoints(), count)

        position = journal.positions[count - 1]
        judge = _Judge(chain.from_iterable(checkpoint.chunks for checkpoint in checkpoints()))
        placed = chain.from_iterable(checkpoint.placed for checkpoint in checkpoints())
        try:
            if position % self.container.checkpoint_size:
                raise ValueError("no checkpoint is there")
            file_size = self.container.restore(position, placed)
            source, plans = self.container.read_back(position)
            try:
                reporter = new_reporter(position)
                Mover([source], None, chunks=judge, consumers=self.digests, reporter=reporter).run(plans)
            finally:
                source.close()
            judge.finish(position)
        except (CorruptError, ReadError, ValueError):  # shorter than it was, or not what it was
            judge.is_bad = True
        if judge.is_bad:
            return judge.good
        self.position, self.file_size = position, file_size
        for checkpoint in checkpoints():
            self.moved = Moved(checkpoint.read, checkpoint.written)
        return None


class _Judge:
    """Compares chunks with those of a journal.

    Attributes:
        good: bytes up to the first chunk that is another one.
        is_bad: whether there is one.
    """

    def __init__(self, expected: Iterable[tuple[int, bytes | None]]) -> None:
        self._expected = iter(expected)
        self._left, self._digest = 0, _ZEROS
        self.good = 0
        self.is_bad = False

    def finish(self, position: int) -> None:
        """That was all, up to guest byte ``position``."""
        if self.good != position or self._left or next(self._expected, None) is not None:
            self.is_bad = True

    def add(self, digest: bytes | None, count: int) -> None:
        """The next chunks that were read back."""
        # Zeros that were written are spelled out in the journal, and found to be zeros here.
        found = _ZEROS if digest is None else digest
        while count and not self.is_bad:
            if not self._left:
                self._left, expected = next(self._expected, (0, None))
                self._digest = _ZEROS if expected is None else expected
            here = min(count, self._left)
            self.is_bad = found != self._digest or not here
            if not self.is_bad:
                self.good += here * CHUNK_SIZE
                self._left -= here
                count -= here

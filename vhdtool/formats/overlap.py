"""Which blocks of one file share bytes: cross-linked blocks, found in bounded memory for any table.

The caller gives the stored ranges as often as they are asked for, in batches; nothing here reads files.
A first pass counts ranges by where they begin.  When they are few (nearly always) that pass has kept
them, and they are sorted and compared with their neighbours.  When they are many, the file is cut
into stretches that hold at most ``group_max`` beginnings each, and each stretch costs one more pass::

    file offsets   |-----stretch-----|--stretch--|--------stretch--------|
    ranges          ##  ####  ###  ######   ## ##      ####      ##
                                 a range that reaches over the edge is carried along

More bytes in ranges than the file has is an overlap already: in a table too large to keep, looking
stops there and every block counts as cross-linked (``Overlaps.everything``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vhdtool.errors import FINDINGS_PER_CODE
from vhdtool.model.arrays import distinct

# One group costs about 150 bytes a range while it is sorted: some 80 MiB.
GROUP_MAX: Final = 1 << 19
IDS_MAX: Final = 1 << 20
_BUCKETS: Final = 1 << 16

Int64s = npt.NDArray[np.int64]
# starts (file offsets in bytes), lengths in bytes (one for all, or one each), ids (any numbers, no two equal)
Batch = tuple[Int64s, "Int64s | int", Int64s]


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """The blocks that share bytes of their file with another block.

    Attributes:
        ids: int64[n], ascending: the cross-linked blocks; empty when ``everything`` is set.
        examples: (id, other id, file offset of the first shared byte) in file order, the first few.
        everything: there are so many that they were not told apart: every block counts as one.
    """

    ids: Int64s
    examples: tuple[tuple[int, int, int], ...] = ()
    everything: bool = False

    def __bool__(self) -> bool:
        return self.everything or len(self.ids) > 0

    def among(self, ids: Int64s) -> npt.NDArray[np.bool_]:
        """bool[n]: which of ``ids`` are cross-linked."""
        if self.everything or not len(self.ids):
            return np.full(len(ids), self.everything)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        found: npt.NDArray[np.bool_] = self.ids[at] == ids
        return found


def find_overlaps(
    batches: Callable[[], Iterator[Batch]],
    file_size: int,
    *,
    within: Callable[[int, int], Iterator[Batch]] | None = None,
    group_max: int = GROUP_MAX,
    ids_max: int = IDS_MAX,
) -> Overlaps:
    """Find all ranges that share bytes with another one.

    Args:
        batches: called once for each pass; iterates over all stored ranges in batches of
            ``(starts, lengths, ids)``, int64 arrays; ``lengths`` may be one int for the batch.  Every range
            lies inside the file: 0 <= start, 0 < length, start + length <= file_size (ranges that do
            not are faults of another kind; leave them out).  The arrays are kept: do not reuse them.
        file_size: bytes.
        within: as ``batches``, called with (low, high), and free to leave out ranges that do not begin in
            ``[low, high)``: a quick look there saves most of the work of the many passes over a large table.
        group_max: how many ranges are held and sorted at a time.
        ids_max: how many cross-linked blocks are told apart before it is ``everything``.
    """
    first = _first_pass(batches, file_size, group_max, ids_max)
    if isinstance(first, Overlaps):
        return first
    sweep = _Sweep(ids_max)
    if not _sweep_stretch(within or (lambda low, high: batches()), 0, max(1, file_size), group_max, sweep):
        return sweep.result(everything=True)
    return sweep.result()


def _first_pass(
    batches: Callable[[], Iterator[Batch]], file_size: int, group_max: int, ids_max: int
) -> Overlaps | None:
    """The answer if it is found without cutting the file into stretches, else None."""
    kept: list[tuple[Int64s, Int64s, Int64s]] = []
    count = total = reached = 0
    ascending = True
    for batch in batches():
        starts, lengths, ids = _columns(batch)
        if not len(starts):
            continue
        ends = starts + lengths
        count += len(starts)
        total += int(lengths.sum())
        ascending = ascending and int(starts[0]) >= reached and bool((starts[1:] >= ends[:-1]).all())
        reached = int(ends[-1])
        if count <= group_max:
            kept.append((starts, lengths, ids))
            continue
        kept.clear()
        if total > file_size:
            return Overlaps(np.empty(0, np.int64), everything=True)
    if ascending:
        return Overlaps(np.empty(0, np.int64))
    if count > group_max:
        return None
    sweep = _Sweep(ids_max)
    starts, lengths, ids = (np.concatenate(column) for column in zip(*kept))
    sweep.add(starts, lengths, ids, file_size)
    return sweep.result()


def _sweep_stretch(
    batches: Callable[[int, int], Iterator[Batch]], low: int, high: int, group_max: int, sweep: _Sweep
) -> bool:
    """Sweep the ranges that begin in ``[low, high)``, in file order; False when they are too crowded."""
    width = -(-(high - low) // _BUCKETS)
    histogram = np.zeros(_BUCKETS, np.int64)
    for batch in batches(low, high):
        starts = batch[0]
        inside = starts[(starts >= low) & (starts < high)]
        histogram += np.bincount((inside - low) // width, minlength=_BUCKETS)
    bucket = 0
    while bucket < _BUCKETS:
        if histogram[bucket] > group_max:
            start, stop = low + bucket * width, min(high, low + (bucket + 1) * width)
            # That many ranges with one beginning: nobody will look at them one by one.
            if width == 1 or not _sweep_stretch(batches, start, stop, group_max, sweep):
                return False
            bucket += 1
            continue
        last = bucket + max(1, int(np.searchsorted(np.cumsum(histogram[bucket:]), group_max, side="right")))
        if histogram[bucket:last].any():
            start, stop = low + bucket * width, min(high, low + last * width)
            _sweep_group(batches, start, stop, sweep)
        if sweep.full:
            return False
        bucket = last
    return True


def _sweep_group(batches: Callable[[int, int], Iterator[Batch]], low: int, high: int, sweep: _Sweep) -> None:
    parts: list[tuple[Int64s, Int64s, Int64s]] = []
    for batch in batches(low, high):
        starts, lengths, ids = _columns(batch)
        inside = (starts >= low) & (starts < high)
        if inside.any():
            parts.append((starts[inside], lengths[inside], ids[inside]))
    if parts:
        starts, lengths, ids = (np.concatenate(column) for column in zip(*parts))
        sweep.add(starts, lengths, ids, high)


def _columns(batch: Batch) -> tuple[Int64s, Int64s, Int64s]:
    starts, lengths, ids = batch
    if isinstance(lengths, int):
        lengths = np.full(len(starts), lengths, np.int64)
    return starts, lengths, ids


class _Sweep:
    """Goes through a file from its start to its end and notes which ranges share bytes."""

    def __init__(self, ids_max: int) -> None:
        self._ids_max = ids_max
        self._found: list[Int64s] = []
        self._count = 0
        self._examples: list[tuple[int, int, int]] = []
        empty = np.empty(0, np.int64)
        # What reaches over the edge behind the last stretch: the ranges that the next must be compared with.
        self._carried: tuple[Int64s, Int64s, Int64s] = (empty, empty, empty)

    @property
    def full(self) -> bool:
        """Whether more were found than are told apart."""
        return self._count > self._ids_max

    def add(self, starts: Int64s, lengths: Int64s, ids: Int64s, edge: int) -> None:
        """The next ranges, in any order, all that begin before ``edge`` and were not added yet."""
        starts = np.concatenate((self._carried[0], starts))
        ends = np.concatenate((self._carried[1], starts[len(self._carried[0]) :] + lengths))
        ids = np.concatenate((self._carried[2], ids))
        order = np.lexsort((ids, starts))
        starts, ends, ids = starts[order], ends[order], ids[order]
        reach = np.maximum.accumulate(ends)
        with_earlier = np.flatnonzero(starts[1:] < reach[:-1]) + 1
        with_later = np.flatnonzero(starts[1:] < ends[:-1])
        for i in with_earlier[: max(0, FINDINGS_PER_CODE - len(self._examples))].tolist():
            other = int(np.argmax(ends[:i]))
            self._examples.append((int(ids[other]), int(ids[i]), int(starts[i])))
        is_crossed = np.zeros(len(starts), np.bool_)
        is_crossed[with_earlier] = is_crossed[with_later] = True
        crossed = np.flatnonzero(is_crossed)
        self._found.append(ids[crossed])
        self._count += len(crossed)
        is_over = ends > edge
        # Ranges over the edge that share no byte with each other: there can be one.  Of those that do,
        # and are noted already, the one that reaches farthest stands for all.
        is_kept = is_over & ~is_crossed
        if is_over.any():
            is_kept[np.argmax(ends)] = True
        keep = np.flatnonzero(is_kept)
        self._carried = (starts[keep], ends[keep], ids[keep])

    def result(self, *, everything: bool = False) -> Overlaps:
        """What was found."""
        examples = tuple(self._examples)
        if everything or self.full:
            return Overlaps(np.empty(0, np.int64), examples, everything=True)
        found = distinct(*self._found) if self._found else np.empty(0, np.int64)
        return Overlaps(found, examples)

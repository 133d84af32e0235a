"""Two points in time side by side: what can differ, from metadata alone.

Bytes that both chains take from the same place of the same file are equal, and so are zeros; whatever else
was written in between *can* differ.  No payload byte is read.

::

    a's own layers    b's own layers          each resolved by itself
          └───── cut ──────┘                  where both say nothing, or take one place: the same
                   │ where only one says something and the other side's origin is asked for
    layers that both have, at the bottom      resolved there alone
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vhdtool.chain.chain import Chain, Layer
from vhdtool.chain.flatten import resolve
from vhdtool.formats.image import DiskImage
from vhdtool.model.arrays import distinct
from vhdtool.model.plan import DAMAGED, ZEROS, ReadPlan, Run, merged
from vhdtool.model.state import UNHELD
from vhdtool.source import files_of

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Resolving costs something for each layer and each call: smaller gaps are resolved with the rest.
_GAP_CELLS: Final = 1 << 12


@dataclass(frozen=True, slots=True, eq=False)
class SideBySide:
    """A guest range of two chains, cut wherever either's origin changes.

    Attributes:
        a, b: the pieces, the same ones, with where either side takes them from; the layer is ``UNHELD``
            where both take a piece from layers that they share.
        same: bool[n], whether both sides take the piece from one place, so that it must be equal.
    """

    a: ReadPlan
    b: ReadPlan
    same: Bools

    @property
    def offset(self) -> Int64s:
        """int64[n], where each piece begins; they tile the range."""
        return self.a.offset

    @property
    def length(self) -> Int64s:
        """int64[n], bytes of each piece."""
        return self.a.length

    @property
    def start(self) -> int:
        """The first guest byte."""
        return self.a.start

    @property
    def stop(self) -> int:
        """The guest byte behind the last piece."""
        return self.a.stop

    def differing(self) -> Iterator[tuple[Run, Run]]:
        """Both sides of each piece that is not the same."""
        rows = np.flatnonzero(~self.same)
        columns = ((plan.offset, plan.length, plan.layer, plan.file_offset) for plan in (self.a, self.b))
        sides = (zip(*(column[rows].tolist() for column in side)) for side in columns)
        for run_a, run_b in zip(*sides):
            yield Run._make(run_a), Run._make(run_b)

    def clipped(self, start: int, stop: int) -> SideBySide:
        """The part inside guest range ``[start, stop)``, which lies in this one and is not empty."""
        inside = self.offset[(self.offset > start) & (self.offset < stop)]
        offset = np.concatenate(([start], inside))
        same = self.same[np.searchsorted(self.offset, offset, "right") - 1]
        return SideBySide(self.a.cut(offset, stop), self.b.cut(offset, stop), same)


@dataclass(frozen=True, slots=True)
class Difference:
    """What can differ between two points in time.

    Attributes:
        virtual_size: bytes of the larger disk.
        common_layers: paths of the files that both read, in the order of the first.
        ranges: (start, length) in bytes, in order, not touching; past the smaller disk's end all differs.
    """

    virtual_size: int
    common_layers: tuple[str, ...]
    ranges: tuple[tuple[int, int], ...]

    @property
    def bytes(self) -> int:
        """Bytes in all ranges."""
        return sum(length for _, length in self.ranges)


def side_by_side(a: Chain, b: Chain) -> Iterator[SideBySide]:
    """The disks of ``a`` and ``b`` up to the end of the smaller one, in windows.

    Raises:
        FormatError, ChainError: one of them is not sound.
    """
    pair = _Pair(a, b)
    for window in pair.windows():
        yield from pair.filled(window, _is_half_held)


def diff_chains(a: Chain, b: Chain) -> Difference:
    """The ranges of two points in time that can differ; nothing but metadata is read.

    Layers at the bottom that both have are not even looked at, but where one of them could prove
    that zeros stand for zeros.

    Raises:
        FormatError, ChainError: one of them is not sound.
    """
    pair = _Pair(a, b)
    collected = RangeList()
    for window in pair.windows():
        for part in pair.filled(window, _is_unclear):
            collected.extend(part.offset[~part.same], part.length[~part.same])
    smaller, larger = sorted((a.virtual_size, b.virtual_size))
    collected.add(smaller, larger - smaller)
    return Difference(larger, pair.common_layers(), tuple(collected.ranges))


def _is_half_held(window: SideBySide) -> Bools:
    """Where just one side's own layers say what it reads: the other's origin is not known yet."""
    half_held: Bools = (window.a.layer == UNHELD) != (window.b.layer == UNHELD)
    return half_held


def _is_unclear(window: SideBySide) -> Bools:
    """Where zeros stand against what shared layers hold, which may be zeros too."""
    unclear: Bools = _is_half_held(window) & ((window.a.layer == ZEROS) | (window.b.layer == ZEROS))
    return unclear


class _Pair:
    """Two chains with the layers that they share at their bottoms.

    Raises:
        FormatError, ChainError: one of them is not sound.
    """

    def __init__(self, a: Chain, b: Chain) -> None:
        a.require_sound()
        b.require_sound()
        self._chains = a, b
        keys_a, keys_b = self._keys = [[_file_key(layer) for layer in chain.layers] for chain in (a, b)]
        count = 0
        while count < min(len(keys_a), len(keys_b)) and keys_a[-1 - count] == keys_b[-1 - count]:
            count += 1
        self._own_counts = len(keys_a) - count, len(keys_b) - count
        self._shared: tuple[DiskImage, ...] = a.images[len(keys_a) - count :]
        self._gap = _GAP_CELLS * min((image.geometry.block_size for image in self._shared), default=1)
        known: dict[object, int] = {}
        # Indexed by layer: negative ones count from the end.
        self._file_of = [
            np.array([*(known.setdefault(key, len(known)) for key in keys), UNHELD, DAMAGED, ZEROS], np.int64)
            for keys in self._keys
        ]

    def common_layers(self) -> tuple[str, ...]:
        """Paths of the files that both read, in the order of the first."""
        keys_a, keys_b = self._keys
        theirs = set(keys_b)
        return tuple(str(layer.path) for layer, key in zip(self._chains[0].layers, keys_a) if key in theirs)

    def windows(self) -> Iterator[SideBySide]:
        """What the chains' own layers say, up to the end of the smaller disk; ``UNHELD`` where nothing."""
        stop = min(chain.virtual_size for chain in self._chains)
        plans_a, plans_b = (self._own_plans(side, stop) for side in (0, 1))
        for a, b in _in_step(plans_a, plans_b, 0, stop):
            offset = distinct(a.offset, b.offset)
            yield self._judged(a.cut(offset, a.stop), b.cut(offset, a.stop))

    def filled(self, window: SideBySide, needs: Callable[[SideBySide], Bools]) -> Iterator[SideBySide]:
        """``window`` in parts, with what shared layers say put in where pieces need it."""
        position = window.start
        for start, stop in self._spans(window, needs(window)):
            if position < start:
                yield window.clipped(position, start)
            for plan in self._shared_plans(start, stop):
                yield self._filled(window.clipped(plan.start, plan.stop), plan, needs)
            position = stop
        if position < window.stop:
            yield window if position == window.start else window.clipped(position, window.stop)

    def _own_plans(self, side: int, stop: int) -> Iterator[ReadPlan]:
        """What one chain's own layers say of the disk up to ``stop``."""
        images = self._chains[side].images[: self._own_counts[side]]
        if not images:
            return iter([ReadPlan.of_runs([Run(0, stop, UNHELD, -1)])])
        windows = resolve(images, 0, stop)
        if not self._shared:
            return (own.plan() for own in windows)
        return (merged(own.offset, own.length, own.layer, own.file_offset) for own in windows)

    def _spans(self, window: SideBySide, needed: Bools) -> list[tuple[int, int]]:
        """Ranges of ``window`` in which all ``needed`` pieces lie: neighbours, and what is near, in one."""
        rows = np.flatnonzero(needed)
        if not len(rows):
            return []
        starts, stops = window.offset[rows], window.offset[rows] + window.length[rows]
        new = np.flatnonzero(starts[1:] - stops[:-1] > self._gap)
        first, last = np.concatenate(([0], new + 1)), np.append(new, len(rows) - 1)
        return list(zip(starts[first].tolist(), stops[last].tolist()))

    def _shared_plans(self, start: int, stop: int) -> Iterator[ReadPlan]:
        """What the shared layers say of guest bytes ``[start, stop)``; zeros behind the first one's end."""
        end = min(stop, max(start, self._shared[0].geometry.virtual_size))
        if start < end:
            for window in resolve(self._shared, start, end):
                yield window.plan()
        if end < stop:
            yield ReadPlan.of_runs([Run(end, stop - end, ZEROS, -1)])

    def _filled(
        self, window: SideBySide, shared: ReadPlan, needs: Callable[[SideBySide], Bools]
    ) -> SideBySide:
        """``window`` with the ``shared`` plan of the same range put in where pieces need it."""
        needed = needs(window)
        edges = shared.offset[needed[np.searchsorted(window.offset, shared.offset, "right") - 1]]
        offset = distinct(window.offset, edges)
        needed = needed[np.searchsorted(window.offset, offset, "right") - 1]
        below = shared.cut(offset, window.stop)
        sides = []
        for own_count, plan in zip(self._own_counts, (window.a, window.b)):
            own = plan.cut(offset, window.stop)
            take = needed & (own.layer == UNHELD)
            number = np.where(below.layer < 0, below.layer, below.layer + np.int16(own_count))
            layer = np.where(take, number, own.layer)
            place = np.where(take, below.file_offset, own.file_offset)
            sides.append(ReadPlan(offset, own.length, layer, place))
        return self._judged(*sides)

    def _judged(self, a: ReadPlan, b: ReadPlan) -> SideBySide:
        """The same pieces of both sides, with what is the same told."""
        file_a, file_b = self._file_of[0][a.layer], self._file_of[1][b.layer]
        return SideBySide(a, b, (file_a == file_b) & (file_a != DAMAGED) & (a.file_offset == b.file_offset))


def _in_step(
    plans_a: Iterator[ReadPlan], plans_b: Iterator[ReadPlan], start: int, stop: int
) -> Iterator[tuple[ReadPlan, ReadPlan]]:
    """Plans that tile one range, cut so that both sides come in the same windows."""
    position = start
    plan_a = plan_b = ReadPlan.of_runs([])
    while position < stop:
        if plan_a.stop <= position:
            plan_a = next(plans_a)
        if plan_b.stop <= position:
            plan_b = next(plans_b)
        end = min(plan_a.stop, plan_b.stop)
        yield plan_a.clipped(position, end), plan_b.clipped(position, end)
        position = end


class RangeList:
    """Ranges in order; one that begins where the last one ended makes it longer."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []

    def add(self, start: int, length: int) -> None:
        """Append bytes that begin at or behind the end of the last range; nothing when there are none."""
        if not length:
            return
        if self.ranges and sum(self.ranges[-1]) == start:
            first, before = self.ranges.pop()
            start, length = first, before + length
        self.ranges.append((start, length))

    def extend(self, starts: Int64s, lengths: Int64s) -> None:
        """Append ranges in order, none of them empty (int64[n] each)."""
        stops = starts + lengths
        first = np.flatnonzero(starts[1:] != stops[:-1]) + 1
        edges = np.concatenate(([0], first)) if len(starts) else first
        merged_stops = np.append(stops[first - 1], stops[-1:])
        rows = zip(starts[edges].tolist(), (merged_stops - starts[edges]).tolist())
        for start, length in rows:
            self.add(start, length)
            break  # only the first can touch what is there
        self.ranges.extend(rows)


def _file_key(layer: Layer) -> object:
    """What tells whether two layers are one file, whatever paths lead to it.

    A file with its log replayed is not the same as without: pages of it read as something else.
    """
    files = files_of(layer.image.source)
    if not files:
        return id(layer.image.source)
    return (layer.image.log.replayed, *(file.opened_as.file for file in files))

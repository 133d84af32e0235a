"""Two points in time side by side: what can differ, from metadata alone.

Bytes that both chains take from the same place of the same file are equal, and so are zeros; whatever else
was written in between *can* differ.  No payload byte is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vhdtool.chain.chain import Chain, Layer
from vhdtool.chain.flatten import resolve
from vhdtool.model.plan import DAMAGED, ZEROS, ReadPlan, Run, merged
from vhdtool.model.state import UNHELD
from vhdtool.source import files_of

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class SideBySide:
    """A guest range of two chains, cut wherever either's origin changes.

    Attributes:
        offset, length: int64[n], guest bytes; the pieces tile the range.
        same: bool[n], whether both sides take the piece from one place, so that it must be equal.
        layer_a, file_offset_a, layer_b, file_offset_b: where either side takes it from, as in a plan.
    """

    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    same: npt.NDArray[np.bool_]
    layer_a: npt.NDArray[np.int16]
    file_offset_a: Int64s
    layer_b: npt.NDArray[np.int16]
    file_offset_b: Int64s

    def differing(self) -> Iterator[tuple[Run, Run]]:
        """Both sides of each piece that is not the same."""
        rows = np.flatnonzero(~self.same)
        a = (self.offset, self.length, self.layer_a, self.file_offset_a)
        b = (self.offset, self.length, self.layer_b, self.file_offset_b)
        sides = (zip(*(column[rows].tolist() for column in columns)) for columns in (a, b))
        for run_a, run_b in zip(*sides):
            yield Run._make(run_a), Run._make(run_b)


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


def side_by_side(a: Chain, b: Chain, start: int = 0, stop: int | None = None) -> Iterator[SideBySide]:
    """The disks of ``a`` and ``b`` in guest range ``[start, stop)``, in windows.

    Bytes; ``stop`` None is the end of the smaller one.

    Raises:
        FormatError, ChainError: one of them is not sound.
    """
    stop = min(a.virtual_size, b.virtual_size) if stop is None else stop
    files: dict[object, int] = {}
    file_of_a, file_of_b = _file_numbers(a, files), _file_numbers(b, files)
    for plan_a, plan_b in _in_step(a.windows(start, stop), b.windows(start, stop), start, stop):
        yield _cut(plan_a, file_of_a, plan_b, file_of_b)


def diff_chains(a: Chain, b: Chain) -> Difference:
    """The ranges of two points in time that can differ; nothing but metadata is read.

    Layers at the bottom that both have are not even looked at, but where one of them could prove
    that zeros stand for zeros.

    Raises:
        FormatError, ChainError: one of them is not sound.
    """
    a.require_sound()
    b.require_sound()
    collected = RangeList()
    smaller, larger = sorted((a.virtual_size, b.virtual_size))
    keys_a, keys_b = ([_file_key(layer) for layer in chain.layers] for chain in (a, b))
    shared = 0
    while shared < min(len(keys_a), len(keys_b)) and keys_a[-1 - shared] == keys_b[-1 - shared]:
        shared += 1
    files: dict[object, int] = {}
    file_of = _file_numbers(a, files), _file_numbers(b, files)
    # Only the layers above say what can differ: below them both read the same.
    own_a, own_b = (_own_runs(chain, len(chain.layers) - shared, smaller) for chain in (a, b))
    for plan_a, plan_b in _in_step(own_a, own_b, 0, smaller):
        offset, length, is_clear = _differences(plan_a, plan_b, *file_of)
        if is_clear.all():
            collected.extend(offset, length)
            continue
        for start, count, enough in zip(offset.tolist(), length.tolist(), is_clear.tolist()):
            if enough:
                collected.add(start, count)
                continue
            for piece in side_by_side(a, b, start, start + count):
                collected.extend(piece.offset[~piece.same], piece.length[~piece.same])
    collected.add(smaller, larger - smaller)
    theirs = set(keys_b)
    common = tuple(str(layer.path) for layer, key in zip(a.layers, keys_a) if key in theirs)
    return Difference(larger, common, tuple(collected.ranges))


def _own_runs(chain: Chain, layer_count: int, stop: int) -> Iterator[ReadPlan]:
    """What the chain's first layers say of the disk up to ``stop``; ``UNHELD`` where they say nothing."""
    if layer_count == 0:
        return iter([ReadPlan.of_runs([Run(0, stop, UNHELD, -1)])])
    windows = resolve(chain.images[:layer_count], 0, stop)
    return (merged(own.offset, own.length, own.layer, own.file_offset) for own in windows)


def _differences(
    a: ReadPlan, b: ReadPlan, file_of_a: Int64s, file_of_b: Int64s
) -> tuple[Int64s, Int64s, npt.NDArray[np.bool_]]:
    """Where plans of what the chains' own layers say can differ: starts, lengths, whether that is all to say.

    It is not where zeros stand against what shared layers hold, which may be zeros too.
    """
    offset, in_a, in_b = _joined_edges(a, b)
    layer_a, layer_b = a.layer[in_a], b.layer[in_b]
    held = (layer_a >= 0) & (layer_b >= 0)
    same = held & (_places(a, in_a, offset) == _places(b, in_b, offset))
    same[held] &= file_of_a[layer_a[held]] == file_of_b[layer_b[held]]
    same |= (layer_a == layer_b) & ((layer_a == ZEROS) | (layer_a == UNHELD))
    lower, upper = np.minimum(layer_a, layer_b), np.maximum(layer_a, layer_b)
    unclear = (lower == UNHELD) & (upper == ZEROS)
    differs = np.flatnonzero(~same)
    return offset[differs], np.diff(offset, append=a.stop)[differs], ~unclear[differs]


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


def _file_numbers(chain: Chain, known: dict[object, int]) -> npt.NDArray[np.int64]:
    """int64[depth + 2]: a number for each layer's file, the same for the same file in both chains.

    Indexed by a plan's layer: ``ZEROS`` and ``DAMAGED`` are negative and so count from the end.
    """
    numbers = [known.setdefault(_file_key(layer), len(known)) for layer in chain.layers]
    return np.array([*numbers, DAMAGED, ZEROS], np.int64)


def _cut(
    a: ReadPlan, file_of_a: npt.NDArray[np.int64], b: ReadPlan, file_of_b: npt.NDArray[np.int64]
) -> SideBySide:
    offset, in_a, in_b = _joined_edges(a, b)
    layer_a, layer_b = a.layer[in_a], b.layer[in_b]
    place_a, place_b = _places(a, in_a, offset), _places(b, in_b, offset)
    file_a, file_b = file_of_a[layer_a], file_of_b[layer_b]
    return SideBySide(
        offset,
        np.diff(np.append(offset, a.stop)),
        (file_a == file_b) & ((file_a == ZEROS) | (file_a >= 0)) & (place_a == place_b),
        layer_a,
        place_a,
        layer_b,
        place_b,
    )


def _places(plan: ReadPlan, run: Int64s, offset: Int64s) -> Int64s:
    """Where guest bytes ``offset``, each in run number ``run``, stand in their files; -1 as in a plan."""
    return np.where(plan.layer[run] < 0, -1, plan.file_offset[run] + offset - plan.offset[run])


def _joined_edges(a: ReadPlan, b: ReadPlan) -> tuple[Int64s, Int64s, Int64s]:
    """Where a run of either begins, and which run of each is there; both tile one range."""
    offset = np.union1d(a.offset, b.offset)
    in_a = np.searchsorted(a.offset, offset, "right") - 1
    in_b = np.searchsorted(b.offset, offset, "right") - 1
    return offset, in_a, in_b

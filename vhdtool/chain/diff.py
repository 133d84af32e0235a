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
from vhdtool.model.plan import DAMAGED, ZEROS, ReadPlan
from vhdtool.source import files_of


@dataclass(frozen=True, slots=True, eq=False)
class SideBySide:
    """A guest range of two chains, cut wherever either's origin changes.

    Attributes:
        offset, length: int64[n], guest bytes; the pieces tile the range.
        same: bool[n], whether both sides take the piece from one place, so that it must be equal.
        zeros_a, zeros_b: bool[n], whether that side is known to read zeros there.
    """

    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    same: npt.NDArray[np.bool_]
    zeros_a: npt.NDArray[np.bool_]
    zeros_b: npt.NDArray[np.bool_]


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
    """The disks of ``a`` and ``b`` from their start to the end of the smaller one, in windows.

    Raises:
        FormatError, ChainError: one of them is not sound.
    """
    stop = min(a.virtual_size, b.virtual_size)
    files: dict[object, int] = {}
    file_of_a, file_of_b = _file_numbers(a, files), _file_numbers(b, files)
    plans_a, plans_b = a.windows(0, stop), b.windows(0, stop)
    plan_a, plan_b = next(plans_a), next(plans_b)
    position = 0
    while position < stop:
        if plan_a.stop == position:
            plan_a = next(plans_a)
        if plan_b.stop == position:
            plan_b = next(plans_b)
        end = min(plan_a.stop, plan_b.stop)
        yield _cut(plan_a.clipped(position, end), file_of_a, plan_b.clipped(position, end), file_of_b)
        position = end


def diff_chains(a: Chain, b: Chain) -> Difference:
    """The ranges of two points in time that can differ; nothing but metadata is read.

    Raises:
        FormatError, ChainError: one of them is not sound.
    """
    collected = RangeList()
    for piece in side_by_side(a, b):
        differs = np.flatnonzero(~piece.same)
        for start, length in zip(piece.offset[differs].tolist(), piece.length[differs].tolist()):
            collected.add(start, length)
    smaller, larger = sorted((a.virtual_size, b.virtual_size))
    collected.add(smaller, larger - smaller)
    theirs = {_file_key(layer) for layer in b.layers}
    common = tuple(str(layer.path) for layer in a.layers if _file_key(layer) in theirs)
    return Difference(larger, common, tuple(collected.ranges))


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
    offset = np.union1d(a.offset, b.offset)
    in_a = np.searchsorted(a.offset, offset, "right") - 1
    in_b = np.searchsorted(b.offset, offset, "right") - 1
    file_a, file_b = file_of_a[a.layer[in_a]], file_of_b[b.layer[in_b]]
    place_a = a.file_offset[in_a] + offset - a.offset[in_a]
    place_b = b.file_offset[in_b] + offset - b.offset[in_b]
    zeros_a, zeros_b = file_a == ZEROS, file_b == ZEROS
    return SideBySide(
        offset,
        np.diff(np.append(offset, a.stop)),
        (zeros_a & zeros_b) | ((file_a == file_b) & (file_a >= 0) & (place_a == place_b)),
        zeros_a,
        zeros_b,
    )

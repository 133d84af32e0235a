"""What lookups need in memory and how long they take: the naive walk beside the resolved map."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from vhdtool.chain.naive import ENTRY_BYTES, NaiveWalk
from vhdtool.chain.resolved import ResolvedMap
from vhdtool.simulate.figures import LookupTime, MetadataBytes
from vhdtool.simulate.layers import Holding

if TYPE_CHECKING:
    from vhdtool.formats.image import DiskImage

Int64s = npt.NDArray[np.int64]
EngineName = Literal["numpy", "numba"]

# Larger disks are not resolved whole to see what that takes, but in stretches spread evenly over them.
_CELLS_RESOLVED_MAX: Final = 1 << 20
_STRETCHES: Final = 64
_STRETCH_CELLS: Final = 1 << 11

_WALK_BYTES_MAX: Final = 256 << 20
_TIMED_MIN: Final = 1 << 14
_ROUNDS: Final = 3


def is_resolved_whole(resolved: ResolvedMap, size: int) -> bool:
    """Whether a disk of ``size`` bytes is small enough to resolve all of it, whatever is asked for."""
    return size <= _CELLS_RESOLVED_MAX * resolved.cell_size


def metadata_bytes(
    images: Sequence[DiskImage], resolved: ResolvedMap, holdings: Sequence[Holding], engine: EngineName
) -> MetadataBytes:
    """All tables and bitmaps of a naive reader, and the resolved map of the whole disk.

    Of a disk with more than ``_CELLS_RESOLVED_MAX`` cells, stretches are resolved and the rest is taken to be
    like them; the same where the map is full before the disk is resolved.
    """
    naive = sum(holding.metadata_bytes for holding in holdings)
    size = images[0].geometry.virtual_size
    if is_resolved_whole(resolved, size):
        resolved.resolve()
        measured, empty = resolved, 0
    else:
        measured = ResolvedMap(images, engine=engine)
        empty = measured.nbytes
        length = _STRETCH_CELLS * resolved.cell_size
        for number in range(_STRETCHES):
            start = (size - length) * number // (_STRETCHES - 1)
            measured.resolve(start, start + length)
    covered = measured.covered
    if covered == size:
        return MetadataBytes(naive, measured.nbytes)
    like_it = (measured.nbytes - empty) * size // covered
    return MetadataBytes(naive, empty + like_it, resolved_is_estimate=True)


def time_lookups(
    images: Sequence[DiskImage],
    resolved: ResolvedMap,
    offsets: Int64s,
    holdings: Sequence[Holding],
    engine: EngineName,
) -> LookupTime:
    """Nanoseconds of one lookup of ``offsets`` in this process, batched, everything in memory already.

    The naive walk has the tables of the whole disk where they fit into ``_WALK_BYTES_MAX``, else those of
    the part of it that most of ``offsets`` lie in, and then only these are timed.  Both ways are asked for
    the same bytes, and their answers are compared, every one.
    """
    if not len(offsets):
        return LookupTime(0.0, 0.0)
    start, stop = _walked_range(images, offsets, holdings)
    offsets = offsets[(offsets >= start) & (offsets < stop)]
    if len(offsets) < _TIMED_MIN:
        offsets = np.resize(offsets, _TIMED_MIN)
    walk = NaiveWalk(images, start, stop, engine=engine)
    # The first call of each resolves, and compiles.
    layer, file_offset, probes = walk.lookup(offsets)
    resolved_layer, resolved_offset = resolved.lookup(offsets)
    same = np.array_equal(layer, resolved_layer) and np.array_equal(file_offset, resolved_offset)
    if not (same and np.array_equal(probes, resolved.runs_at(offsets).probes)):
        raise AssertionError("the walk and the resolved map differ")
    return LookupTime(
        _nanoseconds(lambda: walk.lookup(offsets), len(offsets)),
        _nanoseconds(lambda: resolved.lookup(offsets), len(offsets)),
    )


def _walked_range(
    images: Sequence[DiskImage], offsets: Int64s, holdings: Sequence[Holding]
) -> tuple[int, int]:
    """The part of the disk that the naive walk is made for."""
    size = images[0].geometry.virtual_size
    blocks = sum(image.geometry.block_count for image in images)
    if blocks * ENTRY_BYTES + sum(holding.bitmap_bytes for holding in holdings) <= _WALK_BYTES_MAX:
        return 0, size
    length = max(image.geometry.block_size for image in images)
    while length < size and NaiveWalk.bytes_at_most(images, length * 2) <= _WALK_BYTES_MAX:
        length *= 2
    number, times = np.unique(offsets // length, return_counts=True)
    start = int(number[np.argmax(times)]) * length
    return start, min(size, start + length)


def _nanoseconds(look_up: Callable[[], object], count: int) -> float:
    """The best of a few rounds: what else the machine does only ever adds."""
    took = []
    for _ in range(_ROUNDS):
        began = time.perf_counter_ns()
        look_up()
        took.append(time.perf_counter_ns() - began)
    return min(took) / count

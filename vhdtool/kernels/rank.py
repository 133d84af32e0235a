"""Lookups in a resolved map, at a cost that does not know how deep the chain is.

::

    guest offset ──► segment ──► cell ──► word of run starts ──► rank ──► origin
                     first cell  first word, grain    popcount   of the run

A cell is a block of the layer with the smallest ones.  It has as many words of 64 bits as its runs need:
bit ``i`` is set where a run begins at grain ``i``, a grain being the largest power of two of sectors that
all its runs begin at multiples of.  A cell that is one run has one word with one bit.  The number of bits
set up to the place asked for is the number of the run.

An origin is one number: where the cell's first byte would stand in the file, a multiple of 512, with the
layer in its low 9 bits; or, with ``NO_LAYER`` there, what a run is that no layer holds, and how many layers
say so.

Numba does not check bounds: offsets lie inside the disk.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from vhdtool.kernels.compiled import kernel
from vhdtool.kernels.popcount import popcount

# The map's layout, repeated by vhdtool.chain.resolved: a cached kernel does not notice when another
# module's constants change.  A test holds both equal.
LAYER_BITS = 9
LAYER_MASK = 511
NO_LAYER = 511
KIND_MASK = 3
GRAIN_BITS = 5
GRAIN_MASK = 31
MISSING = -128

ONE = np.uint64(1)
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)

Int64s = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Ranks = npt.NDArray[np.uint32]


@njit(inline="always")
def find_word(
    offset: int, first_cell: int, cells: Int64s, segment_shift: int, cell_shift: int, sector_shift: int
) -> tuple[int, int, int]:
    """The word that holds guest byte ``offset``, the offset's grain in its cell, log2 of a grain's bytes."""
    in_segment = (offset >> cell_shift) & ((1 << (segment_shift - cell_shift)) - 1)
    entry = cells[first_cell + in_segment]
    shift = sector_shift + (entry & GRAIN_MASK)
    grain = (offset & ((1 << cell_shift) - 1)) >> shift
    return (entry >> GRAIN_BITS) + (grain >> 6), grain, shift


@njit(inline="always")
def origin_of(word: int, grain: int, words: Words, before: Ranks, origins: Int64s) -> int:
    """The origin of the run that ``grain`` is in."""
    here = words[word] & (ALL >> np.uint64(63 - (grain & 63)))
    origin: int = origins[np.int64(before[word]) + popcount(here) - 1]
    return origin


@njit(inline="always")
def run_stop(word: int, grain: int, shift: int, words: Words, cell_shift: int) -> int:
    """Where in its cell the run ends that ``grain`` is in, in bytes."""
    cell_grains = 1 << (cell_shift - shift)
    later = words[word] & ~(ALL >> np.uint64(63 - (grain & 63)))
    first = grain & ~63
    while later == 0:
        first += 64
        if first >= cell_grains:
            return 1 << cell_shift
        word += 1
        later = words[word]
    stop: int = (first + popcount((later & (~later + ONE)) - ONE)) << shift  # type: ignore[assignment]
    return stop


@kernel
def lookup(
    offsets: Int64s,
    segment_first: Int64s,
    cells: Int64s,
    words: Words,
    before: Ranks,
    origins: Int64s,
    shifts: tuple[int, int, int],
    layer: npt.NDArray[np.int16],
    file_offset: Int64s,
) -> int:
    """Layer and file offset of guest bytes.

    Args:
        offsets: int64[n], guest bytes inside the disk.
        segment_first: int64[segments], index in ``cells`` of each segment's first cell; -1: not resolved.
        cells: int64, number of the cell's first word, shifted by ``GRAIN_BITS``, and log2 of its grain.
        words: uint64, run starts.
        before: uint32, for each word how many runs begin in words before it.
        origins: int64, one a run.
        shifts: log2 of the bytes of a segment, a cell and a sector.
        layer, file_offset: int16[n], int64[n], filled: as in a plan; ``MISSING`` for layers in segments
            that are not resolved.

    Returns:
        How many are missing.
    """
    segment_shift, cell_shift, sector_shift = shifts
    cell_mask = (1 << cell_shift) - 1
    missing = 0
    for i in range(len(offsets)):
        offset = offsets[i]
        first_cell = segment_first[offset >> segment_shift]
        if first_cell < 0:
            layer[i] = MISSING
            missing += 1
            continue
        word, grain, _ = find_word(offset, first_cell, cells, segment_shift, cell_shift, sector_shift)
        origin = origin_of(word, grain, words, before, origins)
        code = origin & LAYER_MASK
        if code == NO_LAYER:
            layer[i] = -1 - ((origin >> LAYER_BITS) & KIND_MASK)
            file_offset[i] = -1
        else:
            layer[i] = code
            file_offset[i] = origin - code + (offset & cell_mask)
    return missing


@kernel
def runs_at(
    offsets: Int64s,
    segment_first: Int64s,
    cells: Int64s,
    words: Words,
    before: Ranks,
    origins: Int64s,
    shifts: tuple[int, int, int],
    stop: Int64s,
    found: Int64s,
) -> int:
    """Where the runs end that hold guest bytes, and their origins.

    Args:
        offsets ... shifts: as for ``lookup``.
        stop: int64[n], filled: the guest byte behind the run, or behind its cell if the run goes on there;
            ``MISSING`` in segments that are not resolved.
        found: int64[n], filled: its origin.

    Returns:
        How many are missing.
    """
    segment_shift, cell_shift, sector_shift = shifts
    missing = 0
    for i in range(len(offsets)):
        offset = offsets[i]
        first_cell = segment_first[offset >> segment_shift]
        if first_cell < 0:
            stop[i] = MISSING
            missing += 1
            continue
        word, grain, shift = find_word(offset, first_cell, cells, segment_shift, cell_shift, sector_shift)
        found[i] = origin_of(word, grain, words, before, origins)
        stop[i] = (offset >> cell_shift << cell_shift) + run_stop(word, grain, shift, words, cell_shift)
    return missing

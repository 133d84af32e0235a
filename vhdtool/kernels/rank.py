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

# Indexes are unsigned: for signed ones numba allows for negative values each time, which cost as much as
# the lookup itself (12 ns and 4).
WORD = np.uint64
ONE = WORD(1)
SIX = WORD(6)
LAST = WORD(63)
ALL = WORD(0xFFFFFFFFFFFFFFFF)
CELL_GRAIN_MASK = WORD(GRAIN_MASK)
CELL_GRAIN_BITS = WORD(GRAIN_BITS)

Int64s = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Ranks = npt.NDArray[np.uint32]
Shifts = tuple[int, int, int, int]


@njit(inline="always")
def find_word(
    offset: np.uint64, first_cell: np.uint64, cells: Int64s, shifts: Shifts
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """The word that holds guest byte ``offset``, the offset's grain in its cell, log2 of a grain's bytes."""
    cell_shift = WORD(shifts[1])
    in_segment = (offset >> cell_shift) & ((ONE << (WORD(shifts[0]) - cell_shift)) - ONE)
    entry = WORD(cells[first_cell + in_segment])
    shift = WORD(shifts[2]) + (entry & CELL_GRAIN_MASK)
    grain = (offset & ((ONE << cell_shift) - ONE)) >> shift
    return (entry >> CELL_GRAIN_BITS) + (grain >> SIX), grain, shift


@njit(inline="always")
def origin_of(word: np.uint64, grain: np.uint64, words: Words, before: Ranks, origins: Int64s) -> np.int64:
    """The origin of the run that ``grain`` is in."""
    here = words[word] & (ALL >> (LAST - (grain & LAST)))
    origin: np.int64 = origins[WORD(before[word]) + WORD(popcount(here)) - ONE]
    return origin


@kernel
def lookup(
    offsets: Int64s,
    segment_first: Int64s,
    cells: Int64s,
    words: Words,
    before: Ranks,
    origins: Int64s,
    shifts: Shifts,
    layer: npt.NDArray[np.int16],
    file_offset: Int64s,
) -> int:
    """Layer and file offset of guest bytes.

    Args:
        offsets: int64[n], guest bytes.
        segment_first: int64[segments], index in ``cells`` of each segment's first cell; -1: not resolved.
        cells: int64, number of the cell's first word, shifted by ``GRAIN_BITS``, and log2 of its grain.
        words: uint64, run starts.
        before: uint32, for each word how many runs begin in words before it.
        origins: int64, one a run.
        shifts: log2 of the bytes of a segment, a cell and a sector; the size of the disk.
        layer, file_offset: int16[n], int64[n], filled: as in a plan; ``MISSING`` for layers in segments
            that are not resolved.

    Returns:
        How many are missing; -1, and nothing more is filled, when an offset is outside of the disk.
    """
    cell_mask = (1 << shifts[1]) - 1
    missing = 0
    for i in range(len(offsets)):
        signed = offsets[i]
        if signed < 0 or signed >= shifts[3]:
            return -1
        offset = WORD(signed)
        first_cell = segment_first[offset >> WORD(shifts[0])]
        if first_cell < 0:
            layer[i] = MISSING
            missing += 1
            continue
        word, grain, _ = find_word(offset, WORD(first_cell), cells, shifts)
        origin = origin_of(word, grain, words, before, origins)
        # Chosen without a jump: which of both it is, nobody could foresee.
        code = origin & LAYER_MASK
        nowhere = code == NO_LAYER
        layer[i] = -1 - ((origin >> LAYER_BITS) & KIND_MASK) if nowhere else code
        file_offset[i] = -1 if nowhere else origin - code + (signed & cell_mask)
    return missing


@kernel
def runs_at(
    offsets: Int64s,
    segment_first: Int64s,
    cells: Int64s,
    words: Words,
    before: Ranks,
    origins: Int64s,
    shifts: Shifts,
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
        As ``lookup``.
    """
    cell_size = ONE << WORD(shifts[1])
    missing = 0
    for i in range(len(offsets)):
        if offsets[i] < 0 or offsets[i] >= shifts[3]:
            return -1
        offset = WORD(offsets[i])
        first_cell = segment_first[offset >> WORD(shifts[0])]
        if first_cell < 0:
            stop[i] = MISSING
            missing += 1
            continue
        word, grain, shift = find_word(offset, WORD(first_cell), cells, shifts)
        found[i] = origin_of(word, grain, words, before, origins)
        # The next bit set in this word, or in those behind it as far as the cell has any.
        later = words[word] & ~(ALL >> (LAST - (grain & LAST)))
        first = grain & ~LAST
        end = cell_size
        while later == 0:
            first += LAST + ONE
            if first << shift >= cell_size:
                break
            word += ONE
            later = words[word]
        if later != 0:
            end = (first + WORD(popcount((later & (~later + ONE)) - ONE))) << shift
        stop[i] = (offset & ~(cell_size - ONE)) + end
    return missing

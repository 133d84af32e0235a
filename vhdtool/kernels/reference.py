"""NumPy twins of the numba kernels: the engine of short-lived commands, and the judge of the kernels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def claim(
    words: npt.NDArray[np.uint64], group_first: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> None:
    """Claim bits for the first row of their group; see :func:`vhdtool.kernels.bitmap.claim`."""
    sizes = np.diff(group_first)
    taken = np.zeros((len(sizes), words.shape[1]), np.uint64)
    group = np.repeat(np.arange(len(sizes)), sizes)
    rank = np.arange(len(words)) - group_first[group]
    order = np.argsort(rank, kind="stable")
    edges = np.searchsorted(rank[order], np.arange(int(sizes.max(initial=0)) + 1))
    for first, stop in zip(edges[:-1].tolist(), edges[1:].tolist()):
        rows = order[first:stop]
        groups = group[rows]
        claimed = words[rows] & ~taken[groups]
        words[rows] = claimed
        taken[groups] |= claimed
    before = words << np.uint64(1)
    before[:, 1:] |= words[:, :-1] >> np.uint64(63)
    words &= ~before
    runs = bit_count(words).sum(axis=1, dtype=np.int64)
    counts[:] = np.bincount(group, runs, minlength=len(sizes))


def place_runs(
    words: npt.NDArray[np.uint64],
    group_first: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
) -> None:
    """Runs in the order of their starts; see :func:`vhdtool.kernels.bitmap.place_runs`."""
    bits = words.view(np.uint8).reshape(-1)
    at = np.flatnonzero(bits)
    set_bits = np.flatnonzero(np.unpackbits(bits[at], bitorder="little"))
    position = at[set_bits >> 3] * 8 + (set_bits & 7)
    row, start = np.divmod(position, words.shape[1] * 64)
    group = np.repeat(np.arange(len(group_first) - 1), np.diff(group_first))
    order = np.argsort(group[row] * (words.shape[1] * 64) + start, kind="stable")
    rows[:] = row[order]
    starts[:] = start[order]


# The layout of a resolved map: see vhdtool.kernels.rank.
_LAYER_BITS, _LAYER_MASK, _NO_LAYER, _KIND_MASK = 9, 511, 511, 3
_GRAIN_BITS, _GRAIN_MASK, _MISSING = 5, 31, -128
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_BIT_COUNTS = np.array([byte.bit_count() for byte in range(256)], np.uint8)

Int64s = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Ranks = npt.NDArray[np.uint32]


def lookup(
    offsets: Int64s,
    segment_first: Int64s,
    cells: Int64s,
    words: Words,
    before: Ranks,
    origins: Int64s,
    shifts: tuple[int, int, int, int],
    layer: npt.NDArray[np.int16],
    file_offset: Int64s,
) -> int:
    """Layer and file offset of guest bytes; see :func:`vhdtool.kernels.rank.lookup`."""
    if not _inside(offsets, shifts[3]):
        return -1
    first_cell = segment_first[offsets >> shifts[0]]
    layer[:] = _MISSING
    there = np.flatnonzero(first_cell >= 0)
    offsets = offsets[there]
    word, grain, _ = _find_word(offsets, first_cell[there], cells, shifts)
    origin = _origin_of(word, grain, words, before, origins)
    code = origin & _LAYER_MASK
    nowhere = code == _NO_LAYER
    layer[there] = np.where(nowhere, -1 - ((origin >> _LAYER_BITS) & _KIND_MASK), code)
    file_offset[there] = np.where(nowhere, -1, origin - code + (offsets & ((1 << shifts[1]) - 1)))
    return len(first_cell) - len(there)


def runs_at(
    offsets: Int64s,
    segment_first: Int64s,
    cells: Int64s,
    words: Words,
    before: Ranks,
    origins: Int64s,
    shifts: tuple[int, int, int, int],
    stop: Int64s,
    found: Int64s,
) -> int:
    """Where runs end, and their origins; see :func:`vhdtool.kernels.rank.runs_at`."""
    if not _inside(offsets, shifts[3]):
        return -1
    cell_size = 1 << shifts[1]
    first_cell = segment_first[offsets >> shifts[0]]
    stop[:] = _MISSING
    there = np.flatnonzero(first_cell >= 0)
    offsets = offsets[there]
    word, grain, shift = _find_word(offsets, first_cell[there], cells, shifts)
    found[there] = _origin_of(word, grain, words, before, origins)
    later = words[word] & ~_up_to(grain)
    first = grain & ~63
    searching = np.flatnonzero(later == 0)
    while len(searching):
        first[searching] += 64
        searching = searching[first[searching] << shift[searching] < cell_size]
        word[searching] += 1
        later[searching] = words[word[searching]]
        searching = searching[later[searching] == 0]
    lowest = bit_count((later & (~later + np.uint64(1))) - np.uint64(1)).astype(np.int64)
    stop[there] = (offsets & -cell_size) + np.where(later == 0, cell_size, (first + lowest) << shift)
    return len(first_cell) - len(there)


def _inside(offsets: Int64s, size: int) -> bool:
    return not len(offsets) or bool(offsets.min() >= 0 and offsets.max() < size)


def _find_word(
    offsets: Int64s, first_cell: Int64s, cells: Int64s, shifts: tuple[int, int, int, int]
) -> tuple[Int64s, Int64s, Int64s]:
    segment_shift, cell_shift, sector_shift, _ = shifts
    in_segment = (offsets >> cell_shift) & ((1 << (segment_shift - cell_shift)) - 1)
    entry = cells[first_cell + in_segment]
    shift = sector_shift + (entry & _GRAIN_MASK)
    grain = (offsets & ((1 << cell_shift) - 1)) >> shift
    return (entry >> _GRAIN_BITS) + (grain >> 6), grain, shift


def _up_to(grain: Int64s) -> Words:
    return _ALL >> (63 - (grain & 63)).astype(np.uint64)


def _origin_of(word: Int64s, grain: Int64s, words: Words, before: Ranks, origins: Int64s) -> Int64s:
    rank = before[word].astype(np.int64) + bit_count(words[word] & _up_to(grain)) - 1
    found: Int64s = origins[rank]
    return found


def bit_count(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """How many bits of each word are set."""
    if hasattr(np, "bitwise_count"):  # since NumPy 2
        counts: npt.NDArray[np.uint8] = np.bitwise_count(words)
        return counts
    of_bytes = _BIT_COUNTS[np.ascontiguousarray(words)[..., None].view(np.uint8)]
    return np.asarray(of_bytes.sum(axis=-1, dtype=np.uint8))


def walk_lookups(
    offsets: npt.NDArray[np.int64],
    entries: npt.NDArray[np.int64],
    bitmap_at: npt.NDArray[np.int64],
    bitmaps: npt.NDArray[np.uint8],
    first_entry: npt.NDArray[np.int64],
    first_block: npt.NDArray[np.int64],
    block_shift: npt.NDArray[np.int64],
    virtual_size: npt.NDArray[np.int64],
    sector_shift: int,
    layer: npt.NDArray[np.int16],
    file_offset: npt.NDArray[np.int64],
    probes: npt.NDArray[np.int16],
) -> None:
    """Ask layer after layer, all offsets at once; see :func:`vhdtool.kernels.walk.walk_lookups`."""
    absent, data, partial, damaged, state_bits = 0, 2, 3, 4, 3
    layer[:] = -1
    file_offset[:] = -1
    probes[:] = 0
    open_rows = np.arange(len(offsets))
    for depth in range(len(block_shift)):
        open_rows = open_rows[offsets[open_rows] < virtual_size[depth]]
        if not len(open_rows):
            return
        probes[open_rows] += 1
        block, within = np.divmod(offsets[open_rows], np.int64(1) << block_shift[depth])
        index = first_entry[depth] + block - first_block[depth]
        state = entries[index] & ((1 << state_bits) - 1)
        here = state != absent
        in_bitmap = np.flatnonzero(state == partial)
        sector = within[in_bitmap] >> sector_shift
        byte = bitmaps[bitmap_at[index[in_bitmap]] + (sector >> 3)].astype(np.int64)
        here[in_bitmap] = (byte >> (sector & 7)) & 1 == 1
        placed = here & ((state == data) | (state == partial))
        layer[open_rows[placed]] = depth
        file_offset[open_rows[placed]] = (entries[index[placed]] >> state_bits) + within[placed]
        layer[open_rows[here & (state == damaged)]] = -2
        open_rows = open_rows[~here]

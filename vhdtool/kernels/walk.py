"""The naive lookup: one probe of a table after the other, down the layers.  Arrays in, arrays out.

This is how readers of snapshot chains do it, with everything in memory that they could wish for.  It is
kept as the judge of the resolved map, and to measure what the map saves.

Numba does not check bounds: offsets lie in the range that the tables cover.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vhdtool.kernels.compiled import kernel

# The model's codes, repeated: a cached kernel does not notice when another module's constants change.
STATE_BITS = 3
ABSENT = 0
DATA = 2
PARTIAL = 3
DAMAGED = 4
ORIGIN_ZEROS = -1
ORIGIN_DAMAGED = -2


@kernel
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
    """Ask layer after layer for each of ``offsets``, until one settles it.

    Args:
        offsets: int64[n], guest bytes.
        entries: int64[m], block map entries of all layers, leaf first, each layer's in order.
        bitmap_at: int64[m], where in ``bitmaps`` the bitmap of a PARTIAL entry begins.
        bitmaps: uint8[k], least significant bit first.
        first_entry: int64[depth + 1], where a layer's entries begin, then ``m``.
        first_block: int64[depth], the block that a layer's first entry stands for.
        block_shift: int64[depth], log2 of the block size.
        virtual_size: int64[depth], bytes.
        sector_shift: log2 of the sector size.
        layer, file_offset: int16[n], int64[n], filled: as in a plan, for the byte at the offset.
        probes: int16[n], filled: how many layers were asked.
    """
    for i in range(len(offsets)):
        offset = offsets[i]
        origin = ORIGIN_ZEROS
        place = np.int64(-1)
        asked = 0
        for depth in range(len(block_shift)):
            # Past the end of a smaller parent every layer below reads zeros.
            if offset >= virtual_size[depth]:
                break
            asked += 1
            shift = block_shift[depth]
            index = first_entry[depth] + (offset >> shift) - first_block[depth]
            entry = entries[index]
            state = entry & ((1 << STATE_BITS) - 1)
            if state == ABSENT:
                continue
            within = offset & ((np.int64(1) << shift) - 1)
            if state == PARTIAL:
                sector = within >> sector_shift
                byte = np.int64(bitmaps[bitmap_at[index] + (sector >> 3)])
                if (byte >> (sector & 7)) & 1 == 0:
                    continue
            if state in (DATA, PARTIAL):
                origin = depth
                place = (entry >> STATE_BITS) + within
            elif state == DAMAGED:
                origin = ORIGIN_DAMAGED
            break
        layer[i] = origin
        file_offset[i] = place
        probes[i] = asked

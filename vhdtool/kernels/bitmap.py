"""Sector bitmap kernels.  Arrays in, arrays out; nothing here opens, logs or raises.

Bitmaps are least significant bit first: sector ``i`` is bit ``i % 8`` of byte ``i // 8``.  (VHD stores
them the other way round: its reader reverses each byte's bits.)

Numba does not check bounds: callers make the outputs large enough, with ``count_runs``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit


@njit(cache=True, nogil=True)
def claim(bits: npt.NDArray[np.uint8], group_first: npt.NDArray[np.int64]) -> None:
    """Leave every bit in the first row of its group that has it, and clear it in the rows behind.

    The rows of a group are the layers that hold something of one piece of the disk, top layer first: what
    is left set in a row is what is read from that layer.

    Args:
        bits: uint8[rows, width], changed in place.
        group_first: int64[groups + 1], first row of each group, then the number of rows.
    """
    width = bits.shape[1]
    for group in range(len(group_first) - 1):
        first = group_first[group]
        stop = group_first[group + 1]
        for column in range(width):
            free = np.uint8(0xFF)
            for row in range(first, stop):
                here = bits[row, column]
                bits[row, column] = here & free
                free = np.uint8(free & ~here)
                if free == 0:
                    for below in range(row + 1, stop):
                        bits[below, column] = 0
                    break


@njit(cache=True, nogil=True)
def count_runs(bits: npt.NDArray[np.uint8], counts: npt.NDArray[np.int64]) -> None:
    """Count the runs of ones in each row.

    Args:
        bits: uint8[rows, width].
        counts: int64[rows], filled.
    """
    for row in range(bits.shape[0]):
        runs = 0
        before = np.int64(0)
        for column in range(bits.shape[1]):
            byte = np.int64(bits[row, column])
            rising = byte & ~((byte << 1) | before)
            before = byte >> 7
            while rising:
                rising &= rising - 1
                runs += 1
        counts[row] = runs


@njit(cache=True, nogil=True)
def find_runs(
    bits: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    stops: npt.NDArray[np.int64],
) -> int:
    """Write the runs of ones of all rows, in order.

    Args:
        bits: uint8[rows, width].
        rows, starts, stops: int64[>= sum of ``count_runs``], filled: row, first bit, bit behind the last.

    Returns:
        How many runs were written.
    """
    found = 0
    for row in range(bits.shape[0]):
        inside = False
        for column in range(bits.shape[1]):
            byte = np.int64(bits[row, column])
            if (byte == 0 and not inside) or (byte == 0xFF and inside):
                continue
            for bit in range(8):
                here = (byte >> bit) & 1 == 1
                if here == inside:
                    continue
                if here:
                    rows[found] = row
                    starts[found] = column * 8 + bit
                else:
                    stops[found] = column * 8 + bit
                    found += 1
                inside = here
        if inside:
            stops[found] = bits.shape[1] * 8
            found += 1
    return found

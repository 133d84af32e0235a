"""Sector bitmap kernels.  Arrays in, arrays out; nothing here opens, logs or raises.

Bitmaps are rows of words: sector ``i`` is bit ``i % 64`` of word ``i // 64``, which on little-endian
machines is how its bytes stand when their least significant bit comes first.  (VHD stores bits the other
way round within a byte; who reads those turns them.)

::

    rows of one cell, top layer first        claimed                     runs, in guest order
    layer 0   ..XX....XXXX....               ..XX....XXXX....            (rest, 0) (layer 0, 2) (rest, 4)
    layer 3   ....XX..XX......               ....XX..........      ──►   (layer 3, 4) ...
    the rest  XXXXXXXXXXXXXXXX               XX....XX....XXXX

Because the last row of a group claims what is left, a run ends where another begins: starts say all.

Numba does not check bounds: callers make the outputs large enough.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vhdtool.kernels.compiled import kernel
from vhdtool.kernels.popcount import popcount

ONE = np.uint64(1)
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
LAST = np.uint64(63)


@kernel
def claim(
    words: npt.NDArray[np.uint64], group_first: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> None:
    """Claim every bit for the first row of its group that has it; leave where runs of claimed bits begin.

    The rows of a group are the layers that hold something of one cell, top layer first: what a row claims
    is what is read from that layer.

    Args:
        words: uint64[rows, width]; after this, bits are set where runs of what the row claimed begin.
        group_first: int64[groups + 1], first row of each group, then the number of rows.
        counts: int64[groups], filled: runs in the group's rows.
    """
    width = words.shape[1]
    free = np.empty(width, np.uint64)
    for group in range(len(group_first) - 1):
        free[:] = ALL
        runs = np.int64(0)
        for row in range(group_first[group], group_first[group + 1]):
            line = words[row]
            for column in range(width):
                here = line[column] & free[column]
                line[column] = here
                free[column] ^= here
            for column in range(width - 1, 0, -1):
                line[column] &= ~((line[column] << ONE) | (line[column - 1] >> LAST))
            line[0] &= ~(line[0] << ONE)
            for column in range(width):
                runs += popcount(line[column])
        counts[group] = runs


@kernel
def place_runs(
    words: npt.NDArray[np.uint64],
    group_first: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
) -> None:
    """Write the runs of claimed rows, group by group and in the order of their starts.

    Args:
        words, group_first: after ``claim``.
        rows, starts: int64[sum of counts], filled: the row that claimed a run, its first bit.
    """
    width = words.shape[1]
    beginnings = np.empty(width, np.uint64)
    before = np.empty(width, np.int64)
    found = np.int64(0)
    for group in range(len(group_first) - 1):
        beginnings[:] = 0
        for row in range(group_first[group], group_first[group + 1]):
            line = words[row]
            for column in range(width):
                beginnings[column] |= line[column]
        for column in range(width):
            before[column] = found
            found += popcount(beginnings[column])
        for row in range(group_first[group], group_first[group + 1]):
            line = words[row]
            for column in range(width):
                left = line[column]
                while left != 0:
                    below = (left & (~left + ONE)) - ONE
                    at = before[column] + popcount(beginnings[column] & below)
                    rows[at] = row
                    starts[at] = column * 64 + popcount(below)
                    left &= left - ONE

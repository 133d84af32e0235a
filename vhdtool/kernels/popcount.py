"""How many bits of a word are set.

In a file of its own, although the cache of a kernel does not notice when another file changes: this has no
other answer that it could change to.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(inline="always")
def popcount(x: np.uint64) -> np.int64:
    """How many bits are set: LLVM knows this form, and makes one instruction of it."""
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))

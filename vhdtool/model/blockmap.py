"""Block maps: what a window of an image's blocks holds, the same for every format.

After a format has made its block map, VHD and VHDX cannot be told apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vhdtool.model.state import STATE_BITS, BlockState

STATE_MASK: Final = (1 << STATE_BITS) - 1


@dataclass(frozen=True, slots=True, eq=False)
class BlockMap:
    """Blocks ``[first, first + len(entry))`` of one image.

    Attributes:
        first: the window's first block.
        entry: int64[n], file offset of the block's data in bytes, shifted left by ``STATE_BITS``, with a
            :class:`BlockState` in the low bits.  The offset is 0 beside ABSENT, ZERO and DAMAGED.
    """

    first: int
    entry: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        self.entry.setflags(write=False)

    @property
    def state(self) -> npt.NDArray[np.int64]:
        """int64[n], a :class:`BlockState` each."""
        return self.entry & STATE_MASK

    @property
    def file_offset(self) -> npt.NDArray[np.int64]:
        """int64[n], bytes from the start of the image's file."""
        return self.entry >> STATE_BITS


def pack(state: npt.NDArray[np.int64], file_offset: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Entries of a block map from their two halves; offsets are dropped where a state has none."""
    placed = (state == BlockState.DATA) | (state == BlockState.PARTIAL)
    return np.where(placed, file_offset << STATE_BITS, 0) | state

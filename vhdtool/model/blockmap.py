"""Block maps: what a window of an image's blocks holds, the same for every format.

After a format has made its block map, VHD and VHDX cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vhdtool.model.state import STATE_BITS, BlockState

STATE_MASK: Final = (1 << STATE_BITS) - 1
# An image with no more stored blocks than this keeps the list of them: 256 layers take up to 64 MiB.
KEPT_BLOCKS_MAX: Final = 1 << 14


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


@dataclass(frozen=True, slots=True, eq=False)
class StoredBlocks:
    """The blocks of a window that are not ABSENT: a block map without what is mostly in it.

    Attributes:
        block: int64[k], block numbers, ascending.
        entry: int64[k], as in :class:`BlockMap`.
    """

    block: npt.NDArray[np.int64]
    entry: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        self.block.setflags(write=False)
        self.entry.setflags(write=False)

    def within(self, start: int, stop: int) -> StoredBlocks:
        """Those of blocks ``[start, stop)``."""
        first, last = np.searchsorted(self.block, (start, stop))
        return StoredBlocks(self.block[first:last], self.entry[first:last])

    def next(self, block: int, block_count: int) -> int:
        """The first of these from ``block`` on; ``block_count`` when there is none."""
        i = int(np.searchsorted(self.block, block))
        return int(self.block[i]) if i < len(self.block) else block_count

    def block_map(self, start: int, stop: int) -> BlockMap:
        """The map of blocks ``[start, stop)``, in which all of these must lie."""
        entry = np.full(stop - start, BlockState.ABSENT, np.int64)
        entry[self.block - start] = self.entry
        return BlockMap(start, entry)

    @classmethod
    def joined(cls, parts: Sequence[StoredBlocks]) -> StoredBlocks:
        """One list from those of neighbouring windows, in order."""
        if len(parts) == 1:
            return parts[0]
        empty = [np.empty(0, np.int64)]
        return cls(
            np.concatenate([part.block for part in parts] or empty),
            np.concatenate([part.entry for part in parts] or empty),
        )


def pack(state: npt.NDArray[np.int64], file_offset: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Entries of a block map from their two halves; offsets are dropped where a state has none."""
    placed = (state == BlockState.DATA) | (state == BlockState.PARTIAL)
    return np.where(placed, file_offset << STATE_BITS, 0) | state

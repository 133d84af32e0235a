"""The block map of an image without a table: block ``n`` stands at ``n * block_size``."""

from __future__ import annotations

import numpy as np

from vhdtool.model.blockmap import BlockMap, pack
from vhdtool.model.state import BlockState


def flat_block_map(start: int, stop: int, block_size: int) -> BlockMap:
    """Blocks ``[start, stop)``, all DATA."""
    offset = np.arange(start, stop, dtype=np.int64) * block_size
    return BlockMap(start, pack(np.full(len(offset), BlockState.DATA, np.int64), offset))

"""The blocks of an image without a table: block ``n`` stands at ``n * block_size``."""

from __future__ import annotations

import numpy as np

from vhdtool.model.blockmap import StoredBlocks, pack
from vhdtool.model.state import BlockState


def flat_blocks(start: int, stop: int, block_size: int) -> StoredBlocks:
    """Blocks ``[start, stop)``, all DATA."""
    block = np.arange(start, stop, dtype=np.int64)
    return StoredBlocks(block, pack(np.full(len(block), BlockState.DATA, np.int64), block * block_size))

"""The reference: every sector on its own, slow, obvious and right.  It judges walk and flatten.

It shares nothing with either above the format layer: for each sector it asks each layer in turn, as the
specifications put it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vhdtool.model.state import DAMAGED, ZEROS, BlockState

if TYPE_CHECKING:
    from vhdtool.formats.image import DiskImage


def sector_origins(
    images: Sequence[DiskImage], start: int, stop: int
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
    """Where each sector of ``[start, stop)`` comes from.

    Args:
        start, stop: sector numbers of the leaf's disk.

    Returns:
        int16[n] layer as in a plan; int64[n] file offset in bytes, -1 where no layer holds the sector.
    """
    sector_size = images[0].geometry.sector_size
    layer = np.full(stop - start, ZEROS, np.int16)
    file_offset = np.full(stop - start, -1, np.int64)
    undecided = np.ones(stop - start, np.bool_)
    for depth, image in enumerate(images):
        undecided[max(0, image.geometry.sector_count - start) :] = False
        per_block = image.geometry.sectors_per_block
        end = min(stop, image.geometry.sector_count)
        for block in range(start // per_block, -(-end // per_block)) if start < end else ():
            first = max(start, block * per_block)
            last = min(end, (block + 1) * per_block)
            state, data = image.entry(block)
            if state is BlockState.ABSENT:
                continue
            here = np.ones(last - first, np.bool_)
            if state is BlockState.PARTIAL:
                bits = np.unpackbits(np.frombuffer(image.bitmap(block), np.uint8), bitorder="little")
                here = bits[first - block * per_block : last - block * per_block].astype(np.bool_)
            decided = np.flatnonzero(here & undecided[first - start : last - start]) + first - start
            undecided[decided] = False
            if state in (BlockState.DATA, BlockState.PARTIAL):
                layer[decided] = depth
                file_offset[decided] = data + (decided + start - block * per_block) * sector_size
            elif state is BlockState.DAMAGED:
                layer[decided] = DAMAGED
    return layer, file_offset


def read_naively(images: Sequence[DiskImage], offset: int, length: int) -> bytes:
    """Guest bytes by way of ``sector_origins``, one sector after the other.

    Raises:
        ValueError: the range leaves the disk, or a damaged block is in it.
    """
    geometry = images[0].geometry
    if not 0 <= offset <= offset + length <= geometry.virtual_size:
        raise ValueError("the range leaves the disk")
    size = geometry.sector_size
    start, stop = offset // size, -(-(offset + length) // size)
    layers, places = sector_origins(images, start, stop)
    sectors = []
    for layer, place in zip(layers.tolist(), places.tolist()):
        if layer == DAMAGED:
            raise ValueError("a damaged block")
        sectors.append(
            bytes(size) if layer == ZEROS else images[layer].source.read_exact(place, size, field="sector")
        )
    data = b"".join(sectors)
    return data[offset - start * size :][:length]

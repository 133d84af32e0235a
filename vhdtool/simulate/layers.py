"""What each layer holds and what of that is seen, from tables and bitmaps: no payload is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from vhdtool.model.blockmap import STATE_MASK
from vhdtool.model.identity import ImageFormat
from vhdtool.model.plan import ReadPlan
from vhdtool.model.state import BlockState

if TYPE_CHECKING:
    from vhdtool.formats.image import DiskImage

Int64s = npt.NDArray[np.int64]

_BLOCKS_AT_ONCE: Final = 1 << 20
_BITMAP_BYTES_AT_ONCE: Final = 4 << 20
_ENTRY_BYTES: Final = {ImageFormat.VHD: 4, ImageFormat.VHDX: 8, ImageFormat.RAW: 0}
_ONES: Final = np.array([value.bit_count() for value in range(256)], np.int64)


@dataclass(frozen=True, slots=True)
class Holding:
    """What one image holds of its own disk.

    Attributes:
        bytes_stored: of data: whole blocks (a short last one as far as the disk goes) and set bits.
        bitmaps: how many sector bitmaps it has.
        table_bytes, bitmap_bytes: of its table and of those, as a reader has to keep them.
    """

    bytes_stored: int
    bitmaps: int
    table_bytes: int
    bitmap_bytes: int

    @property
    def metadata_bytes(self) -> int:
        """Bytes to keep in memory for lookups without I/O."""
        return self.table_bytes + self.bitmap_bytes


def holding_of(image: DiskImage) -> Holding:
    """Count ``image``'s blocks and bitmaps, in windows; holes of its table cost nothing."""
    geometry = image.geometry
    if not geometry.has_table:
        return Holding(geometry.virtual_size, 0, 0, 0)
    stored = bitmaps = 0
    block = image.next_stored(0)
    while block < geometry.block_count:
        stop = min(geometry.block_count, block + _BLOCKS_AT_ONCE)
        found = image.stored(block, stop)
        state = found.entry & STATE_MASK
        data = np.count_nonzero(state == BlockState.DATA)
        stored += int(data) * geometry.block_size
        last = geometry.block_count - 1
        if len(found.block) and found.block[-1] == last and state[-1] == BlockState.DATA:
            stored -= geometry.block_size - geometry.block_length(last)
        partial = found.block[state == BlockState.PARTIAL]
        bitmaps += len(partial)
        stored += _set_bits(image, partial) * geometry.sector_size
        block = image.next_stored(stop) if stop < geometry.block_count else stop
    width = -(-geometry.sectors_per_block // 8)
    return Holding(stored, bitmaps, geometry.block_count * _ENTRY_BYTES[image.format], bitmaps * width)


class VisibleCount:
    """Bytes that a read of the whole leaf gets from each layer; takes the plans of its disk.

    Attributes:
        bytes_visible: by layer.
    """

    def __init__(self, depth: int) -> None:
        self.bytes_visible = [0] * depth

    def add(self, plan: ReadPlan) -> None:
        """The next plan."""
        for layer, visible in enumerate(bytes_by_layer(plan.layer, plan.length, len(self.bytes_visible))):
            self.bytes_visible[layer] += visible


def bytes_by_layer(layer: npt.NDArray[np.int16], length: Int64s, depth: int) -> list[int]:
    """Sums of ``length`` by ``layer``; what no layer holds is left out."""
    data = layer >= 0
    # Weights are floats: exact, since no window holds 2**53 bytes of data.
    sums = np.bincount(layer[data], length[data].astype(np.float64), minlength=depth)
    return [int(one) for one in sums]


def _set_bits(image: DiskImage, blocks: Int64s) -> int:
    """Sectors that the bitmaps of ``blocks`` say are here."""
    per_block = image.geometry.sectors_per_block
    step = max(1, _BITMAP_BYTES_AT_ONCE // -(-per_block // 8))
    total = 0
    for at in range(0, len(blocks), step):
        bits = image.bitmaps(blocks[at : at + step] * per_block, per_block)
        total += int(np.bincount(bits.reshape(-1), minlength=256) @ _ONES)
    return total

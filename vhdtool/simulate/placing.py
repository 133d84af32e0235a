"""Where the package's writers place blocks that they get in the order of the disk, without writing any.

::

    VHD     | header, BAT | bitmap data | bitmap data | ...         one after the other
    VHDX    | header, BAT | data | bitmaps of its chunk | data ...  bitmaps behind a chunk's first partial one

Blocks are kept in segments: a byte each, or one for a segment whose blocks are all alike.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from vhdtool.formats.vhd import write as vhd_write
from vhdtool.formats.vhdx import chunk as vhdx_chunk
from vhdtool.formats.vhdx import write as vhdx_write
from vhdtool.model.blockmap import STATE_MASK, StoredBlocks, pack
from vhdtool.model.geometry import Geometry
from vhdtool.model.identity import ParentLink, PathKind
from vhdtool.model.state import BlockState

if TYPE_CHECKING:
    from vhdtool.formats.image import DiskImage

Int64s = npt.NDArray[np.int64]
States = npt.NDArray[np.uint8]

# Whole chunks of any VHDX.
SEGMENT_BLOCKS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Placing:
    """How a writer places blocks.  Sizes are bytes.

    Attributes:
        first: where the data of the first block begin.
        stride: from there to the data of the next one.
        bitmap_block: what follows the first partial block of a chunk: its sector bitmaps; 0 where each
            block has its own.
        chunk_blocks: blocks of a chunk.
    """

    first: int
    stride: int
    bitmap_block: int = 0
    chunk_blocks: int = SEGMENT_BLOCKS

    def taken(self, state: States) -> Int64s:
        """int64[n], bytes that each block in ``state`` takes up, with what is placed behind it."""
        taken = _is_placed(state) * np.int64(self.stride)
        if self.bitmap_block:
            partial = np.flatnonzero(state == BlockState.PARTIAL)
            _, first = np.unique(partial // self.chunk_blocks, return_index=True)
            taken[partial[first]] += self.bitmap_block
        return taken

    def length_of_new(self, state: States, before: States) -> int:
        """Bytes that are added when blocks in states ``before`` come to be in ``state``: none is given up.

        Args:
            before: of the same blocks, and of any behind them.
        """
        is_new = _is_placed(state) & ~_is_placed(before[: len(state)])
        chunks = np.setdiff1d(self._chunks(state), self._chunks(before))
        return int(np.count_nonzero(is_new)) * self.stride + len(chunks) * self.bitmap_block

    def _chunks(self, state: States) -> Int64s:
        """The chunks that have partial blocks."""
        return np.unique(np.flatnonzero(state == BlockState.PARTIAL) // self.chunk_blocks)


def placing_of_vhd(geometry: Geometry, parent: ParentLink | None) -> Placing:
    """As ``VhdWriter``, with the paths that ``parent`` records."""
    record = None
    if parent is not None:
        paths = {path.kind: path.path for path in parent.paths}
        absolute, relative = paths.get(PathKind.ABSOLUTE_PATH, ""), paths.get(PathKind.RELATIVE_PATH, "")
        record = vhd_write.ParentRecord(parent.identities[0], absolute, relative)
    stride = vhd_write.block_stride(geometry.block_size)
    before = vhd_write.blocks_offset(geometry.block_count, record)
    return Placing(before + stride - geometry.block_size, stride)


def placing_of_vhdx(geometry: Geometry, *, is_differencing: bool) -> Placing:
    """As ``VhdxWriter``."""
    ratio = vhdx_chunk.chunk_ratio(geometry.block_size, geometry.sector_size)
    first = vhdx_write.blocks_offset(vhdx_chunk.ChunkLayout(geometry.block_count, ratio, is_differencing))
    bitmaps = vhdx_chunk.BITMAP_BLOCK_SIZE
    return Placing(first, geometry.block_size, bitmaps, min(ratio, SEGMENT_BLOCKS))


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Blocks ``[first, stop)`` of an image.

    Attributes:
        state: uint8[n], a :class:`BlockState` each.
        place: file offset of the data of the first one that is placed here.
        any_stored: whether one is something else than ABSENT.
    """

    first: int
    state: States
    place: int
    any_stored: bool

    @property
    def stop(self) -> int:
        """The block behind the last."""
        return self.first + len(self.state)


class PlacedBlocks:
    """All blocks of an image, placed in the order of the disk.

    Args:
        states: of each segment, in order.

    Attributes:
        counts: int64[states], blocks by :class:`BlockState`.
        stop: file offset behind the last block.
    """

    def __init__(self, placing: Placing, states: Iterable[States]) -> None:
        self._placing = placing
        self.segments: list[Segment] = []
        self.counts = np.zeros(len(BlockState), np.int64)
        place, first = placing.first, 0
        for state in states:
            any_stored = bool(state.any())
            self.segments.append(Segment(first, state, place, any_stored))
            self.counts += np.bincount(state, minlength=len(BlockState))
            if any_stored:
                place += int(placing.taken(state).sum())
            first += len(state)
        self.stop = place

    def stored(self, number: int) -> StoredBlocks:
        """The blocks of a segment that are not ABSENT."""
        segment = self.segments[number]
        taken = self._placing.taken(segment.state)
        place = segment.place + np.cumsum(taken) - taken
        there = np.flatnonzero(segment.state)
        return StoredBlocks(there + segment.first, pack(segment.state[there].astype(np.int64), place[there]))

    def segment_at(self, file_offset: int) -> int:
        """The segment whose blocks are placed around ``file_offset``."""
        return max(0, bisect_right(self.segments, file_offset, key=lambda segment: segment.place) - 1)


def states_of(image: DiskImage, start: int, stop: int) -> States:
    """uint8[stop - start], states of an image's blocks; ABSENT beyond its disk."""
    state = np.full(stop - start, BlockState.ABSENT, np.uint8)
    found = image.stored(start, max(start, min(stop, image.geometry.block_count)))
    state[found.block - start] = found.entry & STATE_MASK
    return state


def _is_placed(state: States) -> npt.NDArray[np.bool_]:
    placed: npt.NDArray[np.bool_] = (state == BlockState.DATA) | (state == BlockState.PARTIAL)
    return placed

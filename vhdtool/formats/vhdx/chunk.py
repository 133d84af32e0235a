"""The arithmetic of the BAT: where the entry of a block stands, and that of its chunk's sector bitmap.

A chunk is as many blocks as one sector bitmap block of 1 MiB covers (2**23 sectors).  In the table
the entry of its bitmap follows the entries of its blocks, in disks of every type::

    chunk ratio 4:   P0 P1 P2 P3 B0  P4 P5 P6 P7 B1  P8 ...

Source: [MS-VHDX] section 2.5.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from vhdtool.formats.vhdx.layout import MIB

BITMAP_BLOCK_SIZE: Final = MIB
SECTORS_PER_CHUNK: Final = BITMAP_BLOCK_SIZE * 8
ENTRY_SIZE: Final = 8
STATE_MASK: Final = 7
RESERVED_MASK: Final = 0xFFFF8
OFFSET_SHIFT: Final = 20

# Payload block states (2.5.1.1).
NOT_PRESENT: Final = 0
UNDEFINED: Final = 1
ZERO: Final = 2
UNMAPPED: Final = 3
FULLY_PRESENT: Final = 6
PARTIALLY_PRESENT: Final = 7
# Sector bitmap block states (2.5.1.2).
BITMAP_NOT_PRESENT: Final = 0
BITMAP_PRESENT: Final = 6


def chunk_ratio(block_size: int, sector_size: int) -> int:
    """Payload blocks per sector bitmap block."""
    return SECTORS_PER_CHUNK * sector_size // block_size


class ChunkLayout(NamedTuple):
    """Which entry of the BAT is whose.

    Attributes:
        block_count: payload blocks of the disk; > 0.
        ratio: payload blocks per chunk.
        differencing: whether the table reaches to the last chunk's bitmap entry.
    """

    block_count: int
    ratio: int
    differencing: bool

    @property
    def chunk_count(self) -> int:
        """Chunks of the disk, the last of which may be short."""
        return -(-self.block_count // self.ratio)

    @property
    def entry_count(self) -> int:
        """Entries the table must have."""
        if self.differencing:
            return self.chunk_count * (self.ratio + 1)
        return self.index_of_block(self.block_count - 1) + 1

    def index_of_block(self, block: int) -> int:
        """The entry of a payload block."""
        return block + block // self.ratio

    def index_of_bitmap(self, chunk: int) -> int:
        """The entry of a chunk's sector bitmap block."""
        return chunk * (self.ratio + 1) + self.ratio

    def chunk_of_block(self, block: int) -> int:
        """The chunk that a payload block belongs to."""
        return block // self.ratio

    def owner_of(self, index: int) -> tuple[bool, int]:
        """Whether entry ``index`` is a bitmap's, and the number of its chunk or payload block."""
        chunk, place = divmod(index, self.ratio + 1)
        return (True, chunk) if place == self.ratio else (False, chunk * self.ratio + place)

"""Sizes of a virtual disk and the arithmetic between bytes, sectors and blocks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a virtual disk is divided.  All sizes are bytes.

    Attributes:
        virtual_size: the disk as the guest sees it; > 0 and a multiple of ``sector_size``.
        block_size: what one entry of a block map stands for: a power of two, at least a sector.  Images
            without a table (fixed VHD, raw) are divided too, see ``has_table``.
        sector_size: logical sector, the unit of sector bitmaps: 512 or 4096.
        physical_sector_size: what the disk tells the guest; 512 or 4096.
        has_table: False for images that are one run of bytes and have no blocks of their own.
    """

    virtual_size: int
    block_size: int
    sector_size: int = 512
    physical_sector_size: int = 512
    has_table: bool = True

    def __post_init__(self) -> None:
        if self.block_size < self.sector_size or self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size {self.block_size} is no power of two of at least a sector")
        if self.virtual_size <= 0 or self.virtual_size % self.sector_size:
            raise ValueError(f"virtual_size {self.virtual_size} is no multiple of the sector size")

    @property
    def block_count(self) -> int:
        """Blocks of the disk, the last of which may be short."""
        return -(-self.virtual_size // self.block_size)

    @property
    def sector_count(self) -> int:
        """Logical sectors of the disk."""
        return self.virtual_size // self.sector_size

    @property
    def sectors_per_block(self) -> int:
        """Logical sectors of a whole block."""
        return self.block_size // self.sector_size

    def block_length(self, block: int) -> int:
        """Bytes of ``block`` that belong to the disk: less than ``block_size`` at the end only."""
        return min(self.block_size, self.virtual_size - block * self.block_size)

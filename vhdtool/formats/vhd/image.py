"""A VHD as every layer of a chain is seen: a :class:`~vhdtool.formats.image.DiskImage`.

::

    open_vhd ── footer ── dynamic header ── locators          no NumPy, no BAT
        │
        ├─ entry, bitmap, counts    single entries            no NumPy of their own
        └─ survey, block_map, bitmaps, inspect                arrays, in windows

Every stored block is PARTIAL: it has a sector bitmap, in dynamic disks too.  A clear bit in a dynamic disk
reads as zeros because nothing is below it, not because somebody wrote zeros there.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Final

from vhdtool.errors import Finding, FindingLog, SourceChangedError, printable
from vhdtool.formats.image import BLOCK_SIZE_WITHOUT_TABLE, BitmapPlaces, OpenOptions, Section
from vhdtool.formats.vhd import layout
from vhdtool.formats.vhd.footer import Footer, read_footer
from vhdtool.formats.vhd.header import DynamicHeader, read_header
from vhdtool.formats.vhd.table import PageCache, Table
from vhdtool.model.geometry import Geometry
from vhdtool.model.identity import DiskType, Identity, ImageFormat, ParentLink
from vhdtool.model.state import STATE_BITS, BlockCounts, BlockState, LogState
from vhdtool.source import ByteSource

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vhdtool.formats.probe import Look
    from vhdtool.formats.vhd.bat import TableSurvey
    from vhdtool.model.blockmap import BlockMap, StoredBlocks

_BITMAPS_KEPT: Final = 64
# Xen's tapdisk 0.1 numbered bits from the least significant one.
_VERSION_LSB_FIRST: Final = 0x0000_0001


def open_vhd(source: ByteSource, options: OpenOptions) -> VhdImage:
    """The VHD in ``source``, with the findings of its headers; the BAT is not read.

    Raises:
        FormatError: it has no footer or dynamic header that can be understood.
    """
    log = FindingLog(source.name)
    footer = read_footer(source, log, ignore_checksums=options.ignore_checksums)
    header = None
    if footer.disk_type is not DiskType.FIXED:
        header = read_header(source, footer, log, ignore_checksums=options.ignore_checksums)
    return VhdImage(source, footer, header, log)


class VhdImage:
    """One VHD file: fixed, dynamic or differencing.

    Attributes:
        footer, header: as decoded; ``header`` is None on a fixed disk.
    """

    format = ImageFormat.VHD
    log = LogState()

    def __init__(
        self, source: ByteSource, footer: Footer, header: DynamicHeader | None, findings: FindingLog
    ) -> None:
        self.source = source
        self.footer = footer
        self.header = header
        self.type: DiskType = footer.disk_type
        self.parent: ParentLink | None = header.parent if header is not None else None
        self._findings = findings
        self._survey_lock = threading.Lock()
        self._survey: TableSurvey | None = None
        self._counts: BlockCounts | None = None
        block_size = BLOCK_SIZE_WITHOUT_TABLE if header is None else header.block_size
        self.geometry = Geometry(footer.virtual_size, block_size, has_table=header is not None)

    @cached_property
    def _table(self) -> Table | None:
        """None for a fixed disk."""
        return None if self.header is None else Table(self.source, self.footer, self.header)

    @cached_property
    def _bitmaps(self) -> PageCache:
        return PageCache(self._read_bitmap, _BITMAPS_KEPT)

    @property
    def disk_id(self) -> Identity:
        """The footer's Unique Id."""
        return self.footer.unique_id

    @property
    def write_id(self) -> Identity:
        """The footer's Unique Id, which a VHD keeps whatever is written to it."""
        return self.footer.unique_id

    @property
    def creator(self) -> str:
        """The program that made it, as far as it says."""
        return self.footer.creator

    @property
    def created(self) -> datetime:
        """When it was made, by the clock of whoever made it."""
        return self.footer.created

    @property
    def sections(self) -> Sequence[Section]:
        """Footer, state of its copy, dynamic header, locators."""
        sections = self.footer.sections(self.source.size)
        return sections if self.header is None else sections + self.header.sections(self.footer)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What has been found so far."""
        return self._findings.all()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The errors among them."""
        return self._findings.errors()

    @property
    def is_msb_first(self) -> bool:
        """Whether a bitmap's first sector is the most significant bit, as in all but one old Xen version."""
        return not (self.footer.is_xen and self.footer.creator_version == _VERSION_LSB_FIRST)

    def counts(self) -> BlockCounts:
        """Blocks by state, from the table alone: every stored block is partial."""
        if self._table is None:
            return BlockCounts()
        if self._counts is None:
            used = self._table.count_used()
            absent = self._table.blocks_there - used
            self._counts = BlockCounts(total=self.geometry.block_count, partial=used, absent=absent)
        return self._counts

    def entry(self, block: int) -> tuple[BlockState, int]:
        """State of one block and the file offset of its data."""
        if not 0 <= block < self.geometry.block_count:
            raise ValueError(f"block {block} of {self.geometry.block_count}")
        if self._table is None:
            return BlockState.DATA, block * self.geometry.block_size
        state, offset = self._table.judge(block)
        if state is BlockState.PARTIAL and self._is_crossed(block):
            return BlockState.DAMAGED, 0
        return state, offset

    def bitmap(self, block: int) -> bytes:
        """Sector bitmap of a PARTIAL block, least significant bit first."""
        return self._bitmaps.get(block)

    def probe(self, offset: int) -> tuple[Look, ...]:
        """What a walk looks at for the sector that begins at guest byte ``offset``."""
        if self._table is None:
            from vhdtool.formats.probe import look_at_payload

            note = "a fixed disk has no BAT: guest bytes stand at the same place in the file"
            sector = offset // layout.SECTOR_SIZE
            return (look_at_payload(self.source, sector, offset, layout.SECTOR_SIZE, note=note),)
        from vhdtool.formats.vhd.probe import probe_sector

        return tuple(
            probe_sector(
                self._table,
                offset,
                differencing=self.type is DiskType.DIFFERENCING,
                is_msb_first=self.is_msb_first,
                is_crossed=self._is_crossed,
            )
        )

    def survey(self) -> None:
        """Judge the whole table once."""
        if self._table is not None:
            self._surveyed(self._table)

    def block_map(self, start: int, stop: int) -> BlockMap:
        """Blocks ``[start, stop)``."""
        return self.stored(start, stop).block_map(start, stop)

    def stored(self, start: int, stop: int) -> StoredBlocks:
        """The blocks of ``[start, stop)`` that are not ABSENT."""
        if self._table is None:
            from vhdtool.formats.flat import flat_blocks

            return flat_blocks(start, stop, self.geometry.block_size)
        return self._surveyed(self._table).stored(start, stop)

    def next_stored(self, block: int) -> int:
        """The first block from ``block`` on that is stored, where few are.

        Unused entries are all ones, so a table has no holes that would say anything.
        """
        known = None if self._survey is None else self._survey.next_stored(block)
        return block if known is None else known

    def bitmaps(self, first_sectors: npt.NDArray[np.int64], sector_count: int) -> npt.NDArray[np.uint8]:
        """Pieces of the bitmaps of PARTIAL blocks."""
        if self._table is None:
            raise ValueError("no block of a fixed disk is partial")
        import numpy as np

        from vhdtool.formats.pieces import read_bitmaps
        from vhdtool.model.blockmap import STATE_MASK

        if not len(first_sectors):
            return np.empty((0, -(-sector_count // 8)), np.uint8)
        block, sector = np.divmod(first_sectors, self.geometry.sectors_per_block)
        blocks = self._surveyed(self._table).stored(int(block[0]), int(block[-1]) + 1)
        at = np.minimum(np.searchsorted(blocks.block, block), max(0, len(blocks.block) - 1))
        entry = blocks.entry[at] if len(blocks.block) else np.zeros(len(block), np.int64)
        # They all were partial when somebody asked what is stored.
        if (entry & STATE_MASK != BlockState.PARTIAL).any() or (blocks.block[at] != block).any():
            raise SourceChangedError(f"{printable(self.source.name)} changed while it was read: its BAT")
        place = (entry >> STATE_BITS) - self._table.bitmap_size
        return read_bitmaps(
            self.source,
            place * 8 + sector,
            sector_count,
            self.geometry.sector_count - first_sectors,
            is_msb_first=self.is_msb_first,
        )

    def bitmap_places(
        self, first_sectors: npt.NDArray[np.int64], file_offsets: npt.NDArray[np.int64]
    ) -> BitmapPlaces | None:
        """Where ``bitmaps`` would read: in front of each block."""
        if self._table is None or self.source.descriptor is None:
            return None
        sector = first_sectors % self.geometry.sectors_per_block
        place = file_offsets - self._table.bitmap_size + sector // 8
        return BitmapPlaces(self.source, place, self.is_msb_first)

    def inspect(self, *, deep: bool = False) -> None:
        """Bitmaps behind the disk's end, lost space, Xen's batmap; ``deep``: data under clear bits."""
        if self._table is None or self.header is None:
            return
        from vhdtool.formats.vhd.batmap import judge_batmap_content
        from vhdtool.formats.vhd.inspect import inspect_bitmaps, inspect_space

        overlaps = self._surveyed(self._table).overlaps
        judge_batmap_content(self.source, self.footer, self.header.table_stop, self._findings)
        inspect_space(self._table, self.header, overlaps, self._findings)
        inspect_bitmaps(self, self._table, self._findings, deep=deep and self.type is DiskType.DYNAMIC)

    def close(self) -> None:
        """Let go of the file."""
        self.source.close()

    def raw_bitmap(self, block: int) -> bytes:
        """The bitmap of a PARTIAL block, least significant bit first, with the bits behind the disk's end."""
        state, offset = self.entry(block)
        if state is not BlockState.PARTIAL or self._table is None:
            raise ValueError(f"block {block} is not partial")
        length = -(-self.geometry.sectors_per_block // 8)
        data = self.source.read_exact(
            offset - self._table.bitmap_size, length, field=f"sector_bitmap[{block}]"
        )
        if self.is_msb_first:
            data = data.translate(layout.MSB_TO_LSB)
        if self.geometry.sectors_per_block < 8:
            data = bytes([data[0] & (1 << self.geometry.sectors_per_block) - 1])
        return data

    def _read_bitmap(self, block: int) -> bytes:
        data = self.raw_bitmap(block)
        sectors = self.geometry.block_length(block) // layout.SECTOR_SIZE
        if sectors == self.geometry.sectors_per_block:
            return data
        kept = int.from_bytes(data, "little") & (1 << sectors) - 1
        return kept.to_bytes(len(data), "little")

    def _is_crossed(self, block: int) -> bool:
        """Whether only a look at the whole table shows that the block is damaged."""
        assert self._table is not None
        overlaps = self._surveyed(self._table).overlaps
        if not overlaps:
            return False
        import numpy as np

        return bool(overlaps.among(np.array([block], np.int64))[0])

    def _surveyed(self, table: Table) -> TableSurvey:
        with self._survey_lock:
            if self._survey is None:
                from vhdtool.formats.vhd.bat import TableSurvey

                self._survey = TableSurvey(table, self._findings)
            return self._survey

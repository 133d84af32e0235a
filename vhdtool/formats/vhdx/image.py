"""A VHDX image: opening one, and all that a :class:`~vhdtool.formats.image.DiskImage` promises."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Final

from vhdtool.errors import Finding, FindingLog, FormatError, Severity, printable, raise_first_error
from vhdtool.formats.image import BitmapPlaces, OpenOptions, Section
from vhdtool.formats.vhdx import chunk, layout
from vhdtool.formats.vhdx.chunk import ChunkLayout
from vhdtool.formats.vhdx.header import Header, Headers, find_valid_header, read_headers
from vhdtool.formats.vhdx.log import Replay, replay_log
from vhdtool.formats.vhdx.metadata import Metadata, read_metadata
from vhdtool.formats.vhdx.region import RegionTable, judge_second_table, read_region_table
from vhdtool.formats.vhdx.table import BatReader, Table, merged_ranges
from vhdtool.model.identity import DiskType, Identity, ImageFormat, ParentLink
from vhdtool.model.state import BlockCounts, BlockState, LogState
from vhdtool.source import ByteSource, too_short

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vhdtool.formats.probe import Look
    from vhdtool.formats.vhdx.bat import BatSurvey
    from vhdtool.model.blockmap import BlockMap, StoredBlocks

_FILE_SIZE_MIN: Final = layout.HEADER_AREA_SIZE
# A block map shifts offsets of 63 bits by three.  Some file systems hold sparse files that reach farther.
_PLACE_MAX: Final = 1 << 59


def open_vhdx(source: ByteSource, options: OpenOptions) -> VhdxImage:
    """Open the VHDX in ``source``: identifier, headers, log, region tables and metadata, in this order.

    The BAT is not read.  What breaks a rule is in the image's ``findings``.

    Raises:
        FormatError: it cannot be parsed any further; the first ERROR found on the way there.
    """
    log = FindingLog(source.name)
    try:
        return _open(source, options, log)
    except FormatError:
        # What was found before is the cause of what could not be parsed after.
        raise_first_error(log.all())
        raise


def _open(source: ByteSource, options: OpenOptions, log: FindingLog) -> VhdxImage:
    identifier = _read_identifier(source, log)
    if source.size < _FILE_SIZE_MIN:
        raise too_short(source.name, 0, "header area", source.size, _FILE_SIZE_MIN)
    headers = read_headers(source, log, ignore_checksums=options.ignore_checksums)
    replay = replay_log(source, headers.current, log, leave_out=options.log == "before")
    regions = read_region_table(
        replay.source, headers.current, log, ignore_checksums=options.ignore_checksums
    )
    metadata = read_metadata(replay.source, regions.metadata, log)
    return VhdxImage(identifier, headers, replay, regions, metadata, log)


def _read_identifier(source: ByteSource, log: FindingLog) -> bytes:
    """The identifier, checked."""
    length = min(layout.IDENTIFIER_SIZE, source.size)
    raw = source.read_exact(0, length, field="file identifier")
    if not raw.startswith(layout.IDENTIFIER_SIGNATURE):
        hint = ", though valid headers follow" if find_valid_header(source) else ""
        log.refuse(
            "vhdx.signature",
            f"there is no VHDX file identifier{hint}",
            offset=0,
            field="file_identifier.Signature",
            expected=layout.IDENTIFIER_SIGNATURE,
        )
    if length < layout.IDENTIFIER_SIZE:
        raise too_short(source.name, 0, "file identifier", length, layout.IDENTIFIER_SIZE)
    return raw


def _creator(identifier: bytes) -> str:
    """The program that made the file, as its identifier names it."""
    creator = layout.parse_file_identifier(identifier).creator
    return printable(creator.decode("utf-16-le", "replace").split("\0", 1)[0].strip())


class VhdxImage:
    """One VHDX file, its log replayed in memory; see :class:`~vhdtool.formats.image.DiskImage`.

    Attributes:
        header: the current header.
        regions: the region table in use.
        chunks: which entry of the BAT is whose.
    """

    format = ImageFormat.VHDX
    created: datetime | None = None

    def __init__(
        self,
        identifier: bytes,
        headers: Headers,
        replay: Replay,
        regions: RegionTable,
        metadata: Metadata,
        log: FindingLog,
    ) -> None:
        self.source = replay.source
        self.log: LogState = replay.state
        self._identifier = identifier
        self.header = headers.current
        self.regions = regions
        self.geometry = metadata.geometry
        self.type = metadata.type
        self.disk_id: Identity | None = metadata.disk_id
        self.write_id: Identity | None = self.header.data_write_guid
        self.parent: ParentLink | None = metadata.locator.link if metadata.locator else None
        self._headers = headers
        self._metadata = metadata
        self._log = log
        self._lock = threading.RLock()
        self._survey: BatSurvey | None = None
        self._counts: BlockCounts | None = None
        self._inspected = False
        self._is_second_table_judged = regions.offset != layout.REGION_TABLE_OFFSETS[0]
        self._replay = replay
        self.chunks = ChunkLayout(
            self.geometry.block_count,
            chunk.chunk_ratio(self.geometry.block_size, self.geometry.sector_size),
            self.type is DiskType.DIFFERENCING,
        )
        self._judge_room()

    @cached_property
    def _table(self) -> Table:
        reserved = _reserved_ranges(self.header, self._replay, self.regions)
        return Table(self.geometry, self.chunks, min(self.source.size, _PLACE_MAX), reserved)

    @cached_property
    def _bat(self) -> BatReader:
        region = self.regions.bat
        return BatReader(self.source, region.file_offset, region.length, self._table)

    @property
    def creator(self) -> str:
        """The program that made it, as far as it says."""
        return _creator(self._identifier)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What has been found so far, with what is wrong with the region table that is not in use.

        That one is read when this is first asked for; once the file is closed, it no longer is.
        """
        with self._lock:
            if not self._is_second_table_judged:
                self._is_second_table_judged = True
                judge_second_table(self.source, self._log)
            return self._log.all()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The errors among them."""
        with self._lock:
            return self._log.errors()

    @property
    def sections(self) -> Sequence[Section]:
        """The headers in use, made when somebody looks at them."""
        identifier = (("Signature", "vhdxfile"), ("Creator", self.creator))
        return (
            Section("File Type Identifier", 0, identifier),
            *self._headers.sections,
            self.regions.section,
            *self._metadata.sections,
            *self._replay.sections,
        )

    # ------------------------------------------------------------ one at a time

    def counts(self) -> BlockCounts:
        """Blocks by state, from the table alone."""
        if self._counts is None:
            self._counts = self._bat.counts()
        return self._counts

    def entry(self, block: int) -> tuple[BlockState, int]:
        """State of one block and the file offset of its data.

        Surveys the table the first time a block that has data is asked for: another entry may claim
        the same bytes.
        """
        if not 0 <= block < self.geometry.block_count:
            raise ValueError(f"block {block} is not one of {self.geometry.block_count}")
        state, offset = self._bat.block(block)
        if state in (BlockState.DATA, BlockState.PARTIAL) and self._is_crossed(block, state):
            return BlockState.DAMAGED, 0
        return state, offset

    def bitmap(self, block: int) -> bytes:
        """Sector bitmap of a PARTIAL block."""
        state, _ = self._bat.block(block)
        if state is not BlockState.PARTIAL:
            raise ValueError(f"block {block} is not partial")
        number, place = divmod(block, self.chunks.ratio)
        size = self.geometry.sectors_per_block // 8
        return self.source.read_exact(
            self._bitmap_offset(number) + place * size, size, field=f"sector bitmap of block {block}"
        )

    def probe(self, offset: int) -> tuple[Look, ...]:
        """What a walk looks at for the sector at guest byte ``offset``, a replayed log included."""
        from vhdtool.formats.vhdx.probe import Prober

        return tuple(Prober(self._bat, self.source, self._crosses, self._replay.find_write).looks(offset))

    def _is_crossed(self, block: int, state: BlockState) -> bool:
        indexes = [self.chunks.index_of_block(block)]
        if state is BlockState.PARTIAL:
            indexes.append(self.chunks.index_of_bitmap(self.chunks.chunk_of_block(block)))
        return self._crosses(*indexes)

    def _crosses(self, *indexes: int) -> bool:
        """Whether what one of these entries places shares bytes with another entry's block or bitmap."""
        overlaps = self._surveyed().overlaps
        if not overlaps:
            return False
        import numpy as np

        return bool(overlaps.among(np.array(indexes, np.int64)).any())

    def _bitmap_offset(self, number: int) -> int:
        offset = self._bat.bitmap_offset(number)
        if offset is None:
            raise ValueError(f"chunk {number} has no sector bitmap")
        return offset

    # ------------------------------------------------------------ arrays

    def survey(self) -> None:
        """Judge the whole BAT, once."""
        self._surveyed()

    def block_map(self, start: int, stop: int) -> BlockMap:
        """Blocks ``[start, stop)``."""
        return self.stored(start, stop).block_map(start, stop)

    def stored(self, start: int, stop: int) -> StoredBlocks:
        """The blocks of ``[start, stop)`` that are not ABSENT."""
        return self._surveyed().stored(start, stop)

    def next_stored(self, block: int) -> int:
        """The first block from ``block`` on that is stored, or whose entry is not in a hole of the file."""
        known = None if self._survey is None else self._survey.next_stored(block)
        return self._bat.next_stored(block) if known is None else known

    def bitmaps(self, first_sectors: npt.NDArray[np.int64], sector_count: int) -> npt.NDArray[np.uint8]:
        """Pieces of the bitmaps of PARTIAL blocks."""
        from vhdtool.formats.pieces import read_bitmaps

        bits = self._surveyed().bit_places(first_sectors)
        left = self.geometry.sector_count - first_sectors
        return read_bitmaps(self.source, bits, sector_count, left)

    def bitmap_places(
        self, first_sectors: npt.NDArray[np.int64], file_offsets: npt.NDArray[np.int64]
    ) -> BitmapPlaces | None:
        """Where ``bitmaps`` would read: in the sector bitmap blocks of the chunks."""
        if self.source.descriptor is None:
            return None
        return BitmapPlaces(self.source, self._surveyed().bit_places(first_sectors) >> 3, False)

    def inspect(self, *, deep: bool = False) -> None:
        """Look at the bitmaps and at room in the file that nothing refers to.

        Payload has no structure or checksum of its own, so ``deep`` finds nothing more.
        """
        from vhdtool.formats.vhdx.inspect import inspect_bitmaps

        survey = self._surveyed()
        with self._lock:
            if self._inspected:
                return
            self._inspected = True
            inspect_bitmaps(survey, self.source, self.geometry, self._log)
            reserved = sum(min(stop, self.source.size) - start for start, stop in self._table.reserved)
            unused_mib = (self.source.size - reserved - survey.referenced) // layout.MIB
            if unused_mib > 0 and not survey.overlaps:
                self._log.note(
                    Severity.INFO,
                    "vhdx.space",
                    "nothing refers to a part of the file",
                    found=f"{unused_mib} MiB",
                )

    def _surveyed(self) -> BatSurvey:
        from vhdtool.formats.vhdx.bat import BatSurvey

        with self._lock:
            if self._survey is None:
                fixed = self.type is DiskType.FIXED
                self._survey = BatSurvey(self._bat, self._replay.patched, self._log, fixed=fixed)
            return self._survey

    def close(self) -> None:
        """Let go of the file."""
        self._is_second_table_judged = True
        self.source.close()

    def _judge_room(self) -> None:
        needed = self.chunks.entry_count * chunk.ENTRY_SIZE
        if self.regions.bat.length < needed:
            self._log.note(
                Severity.ERROR,
                "vhdx.bat.small",
                "the BAT's region is too short for the disk",
                offset=self.regions.bat.entry_offset + 24,
                field="region_table.BAT.Length",
                found=self.regions.bat.length,
                expected=f"at least {needed:#x}",
            )


def _reserved_ranges(header: Header, replay: Replay, regions: RegionTable) -> tuple[tuple[int, int], ...]:
    """Where no block may be: the header area, the log unless it is misplaced, every region."""
    ranges = [(0, layout.HEADER_AREA_SIZE)]
    if not replay.is_misplaced:
        ranges.append((header.log_offset, header.log_stop))
    ranges.extend((region.file_offset, region.stop) for region in regions.regions)
    # What lies beyond the file (an unknown region may, with 64-bit offsets) nothing can overlap.
    size = replay.source.size
    return merged_ranges((start, min(stop, size)) for start, stop in ranges)

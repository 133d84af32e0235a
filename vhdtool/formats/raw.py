"""Raw images: the file is the disk."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from vhdtool.errors import Finding, FindingLog, Severity
from vhdtool.formats.image import BLOCK_SIZE_WITHOUT_TABLE, BitmapPlaces, Section
from vhdtool.model.geometry import Geometry
from vhdtool.model.identity import DiskType, Identity, ImageFormat, ParentLink
from vhdtool.model.state import BlockCounts, BlockState, LogState
from vhdtool.source import ByteSource

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vhdtool.formats.probe import Look
    from vhdtool.model.blockmap import BlockMap, StoredBlocks

_SECTOR = 512
# What a block map can place: its offsets are shifted by the bits of a state.
_SIZE_MAX = 1 << 59


# How disks in another format begin, or packed ones: taken for raw disks they are full of nonsense.
_OTHER_FORMATS: Final = {
    b"QFI\xfb": "a qcow2 image",
    b"KDMV": "a VMDK image",
    b"# Disk Descriptor": "a VMDK descriptor",
    b"<<< ": "a VDI image",
    b"EVF\x09\r\n\xff\0": "an E01 image",
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\0": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"PK\x03\x04": "a ZIP file",
    b"7z\xbc\xaf\x27\x1c": "a 7z file",
}


def note_other_format(source: ByteSource, log: FindingLog) -> str:
    """Warn when a file that is taken for a raw disk begins like something else; what that is, or nothing."""
    start = source.read_exact(0, min(source.size, 32), field="start")
    for signature, name in _OTHER_FORMATS.items():
        if start.startswith(signature):
            what = "this file is taken for a raw disk and begins like another format"
            log.note(Severity.WARNING, "raw.other_format", what, offset=0, found=name, expected="a raw disk")
            return name
    return ""


class RawImage:
    """A file without any structure of its own.  It has no identity and cannot be a parent.

    Args:
        source: the disk.
        sections: of what it is wrapped in, for people to look at.

    Raises:
        CorruptError: it is empty.
    """

    format = ImageFormat.RAW
    type = DiskType.FIXED
    disk_id: Identity | None = None
    write_id: Identity | None = None
    parent: ParentLink | None = None
    creator = ""
    created: datetime | None = None
    log = LogState()

    def __init__(self, source: ByteSource, sections: Sequence[Section] = ()) -> None:
        self.source = source
        self.sections = sections
        self._log = FindingLog(source.name)
        if source.size == 0:
            self._log.refuse("raw.empty", "the file is empty", found="0 bytes", expected="a disk")
        if source.size > _SIZE_MAX:
            self._log.refuse(
                "raw.size", "no disk is that large", found=source.size, expected=f"at most {_SIZE_MAX:#x}"
            )
        other = note_other_format(source, self._log)
        whole = source.size - source.size % _SECTOR
        if whole != source.size or not whole:
            self._log.note(
                Severity.ERROR,
                "raw.size",
                "the file is no whole number of sectors",
                found=f"{source.size} bytes" + (f" that begin like {other}" if other else ""),
                expected=f"a multiple of {_SECTOR}",
            )
        self.geometry = Geometry(max(whole, _SECTOR), BLOCK_SIZE_WITHOUT_TABLE, has_table=False)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong with it."""
        return self._log.all()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The errors among them."""
        return self._log.errors()

    def counts(self) -> BlockCounts:
        """A raw image has no blocks."""
        return BlockCounts()

    def entry(self, block: int) -> tuple[BlockState, int]:
        """Always data, where it stands in the disk."""
        return BlockState.DATA, block * self.geometry.block_size

    def bitmap(self, block: int) -> bytes:
        """No block of a raw image is partial."""
        raise ValueError(f"block {block} is not partial")

    def probe(self, offset: int) -> tuple[Look, ...]:
        """The file is the disk: the sector's bytes."""
        from vhdtool.formats.probe import look_at_payload

        note = "a raw disk: guest bytes stand at the same place in the file"
        return (look_at_payload(self.source, offset // _SECTOR, offset, _SECTOR, note=note),)

    def survey(self) -> None:
        """A raw image has no table to judge."""

    def block_map(self, start: int, stop: int) -> BlockMap:
        """Blocks ``[start, stop)``, all of them data."""
        return self.stored(start, stop).block_map(start, stop)

    def stored(self, start: int, stop: int) -> StoredBlocks:
        """Blocks ``[start, stop)``, all of them data."""
        from vhdtool.formats.flat import flat_blocks

        return flat_blocks(start, stop, self.geometry.block_size)

    def next_stored(self, block: int) -> int:
        """Every block is stored."""
        return block

    def bitmaps(self, first_sectors: npt.NDArray[np.int64], sector_count: int) -> npt.NDArray[np.uint8]:
        """No block of a raw image is partial."""
        raise ValueError("no block is partial")

    def bitmap_places(
        self, first_sectors: npt.NDArray[np.int64], file_offsets: npt.NDArray[np.int64]
    ) -> BitmapPlaces | None:
        """No block of a raw image is partial."""
        raise ValueError("no block is partial")

    def inspect(self, *, deep: bool = False) -> None:
        """Nothing more to look at, unless the disk is compressed: whether it can be decompressed."""
        from vhdtool.formats.seekable import SeekableSource

        if deep and isinstance(self.source, SeekableSource):
            self._log.extend(self.source.damaged_frames())

    def close(self) -> None:
        """Let go of the file."""
        self.source.close()

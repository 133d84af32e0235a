"""What every format promises: a :class:`DiskImage`.

::

    bytes ──► open_vhd / open_vhdx / open_raw ──► DiskImage
                                                   │ headers, identities, parent link  no NumPy
                                                   │ counts(), entry(), bitmap()       no NumPy, one at a time
                                                   └ survey(), block_map(), bitmaps()  arrays, in windows

Opening reads headers only, collects findings and raises only for what cannot be parsed any further;
whoever reads content calls :func:`require_sound` first.  Opening an image never opens its parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal, Protocol

from vhdtool.errors import Finding, raise_first_error
from vhdtool.model.geometry import Geometry
from vhdtool.model.identity import DiskType, Identity, ImageFormat, ParentLink
from vhdtool.model.state import BlockCounts, BlockState, LogState
from vhdtool.source import ByteSource

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vhdtool.formats.probe import Look
    from vhdtool.model.blockmap import BlockMap, StoredBlocks

# Blocks of images that have no table.  Large enough that windows over them cost nothing, small enough
# that mixing them with real blocks does not make cells larger than a layer's blocks.
BLOCK_SIZE_WITHOUT_TABLE: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How to open an image.

    Attributes:
        log: "after" replays a pending VHDX log in memory, "before" leaves it out.
        ignore_checksums: accept a structure whose checksum is wrong and whose fields are plausible,
            with a finding of its own each time.
    """

    log: Literal["before", "after"] = "after"
    ignore_checksums: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """One on-disk structure for people to look at: its name, place, and fields by their specified names."""

    name: str
    offset: int
    fields: tuple[tuple[str, str | int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class BitmapPlaces:
    """Where pieces of sector bitmaps stand in a plain file.

    Attributes:
        source: the file.  Its descriptor is asked for when it is read, not before: once it is closed, the
            number may be another file's.
        place: int64[k], bytes from the file's start.
        is_msb_first: whether a byte's first sector is its most significant bit.
    """

    source: ByteSource
    place: npt.NDArray[np.int64]
    is_msb_first: bool


class DiskImage(Protocol):
    """One image file.  Layers of a chain are these, and nothing above knows their format.

    Attributes:
        source: the file's bytes, a replayed log already laid over them.
        disk_id: VHD UniqueId, VHDX VirtualDiskId; None for raw.
        write_id: what a child records of its parent: VHD UniqueId, VHDX DataWriteGuid; None for raw.
        parent: None unless the type is differencing.
        creator: the program that made it, as far as it says; printable.
        created: UTC; None where the format does not say.
        sections: headers in use, for ``info``.
        findings: what has been found so far; ``survey`` and ``inspect`` add to it.
        errors: the errors among them.  Whoever only wants to read asks for these: what does no more than
            warn may not have been looked for until somebody asks for ``findings``.
    """

    @property
    def source(self) -> ByteSource: ...
    @property
    def format(self) -> ImageFormat: ...
    @property
    def type(self) -> DiskType: ...
    @property
    def geometry(self) -> Geometry: ...
    @property
    def disk_id(self) -> Identity | None: ...
    @property
    def write_id(self) -> Identity | None: ...
    @property
    def parent(self) -> ParentLink | None: ...
    @property
    def creator(self) -> str: ...
    @property
    def created(self) -> datetime | None: ...
    @property
    def log(self) -> LogState: ...
    @property
    def sections(self) -> Sequence[Section]: ...
    @property
    def findings(self) -> tuple[Finding, ...]: ...
    @property
    def errors(self) -> tuple[Finding, ...]: ...

    def counts(self) -> BlockCounts:
        """Blocks by state, read from the table in windows; bitmaps are not read."""
        ...

    def entry(self, block: int) -> tuple[BlockState, int]:
        """State of one block and the file offset of its data (0 where it has none).

        Bytes: ``entry(b)[1] + n`` is where the block's byte ``n`` stands when it is here.  DAMAGED
        where the table entry breaks a rule, also one that only a look at the whole table shows.  A block
        that the file's end cuts off keeps its place (the survey has an ERROR for it): reading beyond the
        end is an error, and what is there can be had by who asks for what is left.
        """
        ...

    def bitmap(self, block: int) -> bytes:
        """Sector bitmap of a PARTIAL block, least significant bit first, ``ceil(sectors_per_block / 8)``
        bytes.  Bits set for what is here.
        """
        ...

    def probe(self, offset: int) -> tuple[Look, ...]:
        """What a walk looks at for the sector that begins at guest byte ``offset``, in order.

        The same answer as ``entry`` and ``bitmap`` give, with where it comes from; the last look settles
        it, and is never NEXT.  Explains a broken place instead of refusing it.
        """
        ...

    def survey(self) -> None:
        """Judge the whole table once, in windows; its findings join ``findings``."""
        ...

    def block_map(self, start: int, stop: int) -> BlockMap:
        """Blocks ``[start, stop)``; calls ``survey`` first."""
        ...

    def stored(self, start: int, stop: int) -> StoredBlocks:
        """The blocks of ``[start, stop)`` that are not ABSENT; calls ``survey`` first.

        Costs what is there and one look at the table, or not even that where few blocks are stored.
        """
        ...

    def next_stored(self, block: int) -> int:
        """The first block from ``block`` on that may be something else than ABSENT.

        ``block_count`` when there is none.  What tells is holes in the table; an image that has none
        answers ``block``.
        """
        ...

    def bitmaps(self, first_sectors: npt.NDArray[np.int64], sector_count: int) -> npt.NDArray[np.uint8]:
        """Pieces of the bitmaps of PARTIAL blocks.

        Args:
            first_sectors: int64[k], ascending guest sector numbers, each a multiple of ``sector_count``.
            sector_count: a power of two, at most ``sectors_per_block``: so no piece leaves its block.

        Returns:
            uint8[k, ceil(sector_count / 8)], least significant bit first; bits that are not used or stand
            for sectors beyond the disk's end are zero.
        """
        ...

    def bitmap_places(
        self, first_sectors: npt.NDArray[np.int64], file_offsets: npt.NDArray[np.int64]
    ) -> BitmapPlaces | None:
        """Where ``bitmaps`` would read, for who reads the bitmaps of many images at once.

        None where they do not stand in a plain file (a replayed log lies over it, it is split, there is
        no positioned reading): ask for ``bitmaps`` then.

        Args:
            first_sectors: as for ``bitmaps``, in any order.
            file_offsets: int64[k], of the data of the blocks that these sectors lie in.
        """
        ...

    def inspect(self, *, deep: bool = False) -> None:
        """Add what only ``check`` asks for: bitmaps, unused space; ``deep`` reads payload too."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class Sink(Protocol):
    """Where writers put an image."""

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data`` at byte ``offset``; what is never written reads as zeros."""
        ...


def require_sound(image: DiskImage) -> None:
    """Refuse ``image`` because of its first ERROR finding; what strict reading does before a byte moves.

    Raises:
        FormatError: that finding.
    """
    raise_first_error(image.errors)
    image.survey()
    raise_first_error(image.errors)

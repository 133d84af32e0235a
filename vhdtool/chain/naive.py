"""The reader that others are: every lookup walks down the layers, table after table.

All tables and bitmaps of the range are in memory, which no such reader measured does; so it is the best
that they could be.  It is kept to compare with: the resolved map must give its answers, number for number,
and benchmarks and simulations show what the map saves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from vhdtool.errors import MissingPackageError
from vhdtool.kernels import reference
from vhdtool.model.blockmap import STATE_MASK
from vhdtool.model.state import BlockState

if TYPE_CHECKING:
    from vhdtool.formats.image import DiskImage

Int64s = npt.NDArray[np.int64]
Int16s = npt.NDArray[np.int16]

_BLOCKS_AT_ONCE: Final = 1 << 20
_BITMAP_BYTES_AT_ONCE: Final = 4 << 20
# An entry, and where its bitmap is.
ENTRY_BYTES: Final = 16


class NaiveWalk:
    """Tables and bitmaps of guest range ``[start, stop)``, of all layers, and lookups in them.

    Memory is that of the tables: ``ENTRY_BYTES`` a block and layer, and the bitmaps.  ``bytes_at_most``
    says before how much that may be.

    Args:
        images: leaf first, one sector size.
        start, stop: guest bytes inside the leaf's disk.
        engine: "numba" for the kernel, "numpy" for its twin.

    Raises:
        ValueError: the range is empty or leaves the disk.
        MissingPackageError: numba is asked for and not installed.
    """

    def __init__(
        self,
        images: Sequence[DiskImage],
        start: int = 0,
        stop: int | None = None,
        *,
        engine: Literal["numpy", "numba"] = "numba",
    ) -> None:
        size = images[0].geometry.virtual_size
        stop = size if stop is None else stop
        if not 0 <= start < stop <= size:
            raise ValueError(f"range {start}..{stop} is not inside the disk of {size} bytes")
        self.start, self.stop = start, stop
        self._walk = _walk_of(engine)
        geometries = [image.geometry for image in images]
        self._sector_shift = geometries[0].sector_size.bit_length() - 1
        self._block_shift = np.array([g.block_size.bit_length() - 1 for g in geometries], np.int64)
        self._virtual_size = np.array([g.virtual_size for g in geometries], np.int64)
        self._first_block = np.int64(start) >> self._block_shift
        covered = np.minimum(self._virtual_size, stop)
        # Rounded up without adding first: the largest disks reach close to what an int64 holds.
        stop_block = ((covered - 1) >> self._block_shift) + 1
        counts = np.maximum(stop_block - self._first_block, 0)
        self._first_entry = np.concatenate(([0], np.cumsum(counts)))
        self._entries = np.zeros(int(self._first_entry[-1]), np.int64)
        self._bitmap_at = np.full(len(self._entries), -1, np.int64)
        pool: list[npt.NDArray[np.uint8]] = []
        pooled = 0
        for depth, image in enumerate(images):
            mine = slice(int(self._first_entry[depth]), int(self._first_entry[depth + 1]))
            first = int(self._first_block[depth])
            _fill_entries(image, first, self._entries[mine])
            state = self._entries[mine] & STATE_MASK
            partial = np.flatnonzero(state == BlockState.PARTIAL)
            width = _bitmap_bytes(image)
            self._bitmap_at[mine][partial] = pooled + np.arange(len(partial)) * width
            pooled += len(partial) * width
            pool.extend(_bitmaps(image, partial + first))
        self._bitmaps = np.concatenate([np.empty(0, np.uint8), *pool])

    @staticmethod
    def bytes_at_most(images: Sequence[DiskImage], length: int) -> int:
        """Bytes that tables and bitmaps of ``length`` guest bytes take when every block is partial."""
        return sum(
            (-(-min(length, image.geometry.virtual_size) // image.geometry.block_size) + 1)
            * (ENTRY_BYTES + (_bitmap_bytes(image) if image.geometry.has_table else 0))
            for image in images
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the tables and bitmaps."""
        return self._entries.nbytes + self._bitmap_at.nbytes + self._bitmaps.nbytes

    def lookup(self, offsets: Int64s) -> tuple[Int16s, Int64s, Int16s]:
        """Where the bytes at ``offsets`` come from.

        Args:
            offsets: int64[n], guest bytes inside the range.

        Returns:
            int16[n] layer as in a plan; int64[n] file offset of that byte, -1 where no layer holds it;
            int16[n] how many layers' tables were consulted.

        Raises:
            ValueError: an offset lies outside of the range.
        """
        offsets = np.ascontiguousarray(offsets, np.int64)
        if len(offsets) and not self.start <= offsets.min() <= offsets.max() < self.stop:
            raise ValueError(f"an offset is not inside {self.start}..{self.stop}")
        layer = np.empty(len(offsets), np.int16)
        file_offset = np.empty(len(offsets), np.int64)
        probes = np.empty(len(offsets), np.int16)
        self._walk(
            offsets,
            self._entries,
            self._bitmap_at,
            self._bitmaps,
            self._first_entry,
            self._first_block,
            self._block_shift,
            self._virtual_size,
            self._sector_shift,
            layer,
            file_offset,
            probes,
        )
        return layer, file_offset, probes


def _walk_of(engine: Literal["numpy", "numba"]) -> Callable[..., None]:
    if engine == "numpy":
        return reference.walk_lookups
    try:
        from vhdtool.kernels import walk
    except ImportError as error:
        raise MissingPackageError("the numba engine needs the package numba") from error
    kernel: Callable[..., None] = walk.walk_lookups
    return kernel


def _bitmap_bytes(image: DiskImage) -> int:
    return -(-image.geometry.sectors_per_block // 8)


def _fill_entries(image: DiskImage, first: int, entries: Int64s) -> None:
    """Entries of blocks from ``first`` on, in windows."""
    for at in range(0, len(entries), _BLOCKS_AT_ONCE):
        piece = entries[at : at + _BLOCKS_AT_ONCE]
        piece[:] = image.block_map(first + at, first + at + len(piece)).entry


def _bitmaps(image: DiskImage, blocks: Int64s) -> Iterator[npt.NDArray[np.uint8]]:
    """The bitmaps of ``blocks`` end to end, in pieces."""
    per_block = image.geometry.sectors_per_block
    step = max(1, _BITMAP_BYTES_AT_ONCE // _bitmap_bytes(image))
    for at in range(0, len(blocks), step):
        yield image.bitmaps(blocks[at : at + step] * per_block, per_block).reshape(-1)

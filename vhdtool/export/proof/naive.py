"""The second reader: slow, obvious, and nothing of what exports a disk.

It paints.  The window is zeros at first; then each layer, from the base up to the leaf, paints over it what
it holds, block by block.  What lies past a layer's end is wiped before it paints: whatever is below it, the
disk of that layer ends there.

    base     ░░░░▒▒▒▒░░░░░░░░        each layer paints over what is there
    child    ░░░░▒▒▓▓▓░░░            past its end all is zeros again
    leaf     ██░░▒▒▓▓▓░░░░░░         what the guest sees

It shares the format layer (``DiskImage.entry`` and ``bitmap``) with the rest of vhdtool, and nothing above
it; a test on imports holds that.  The other readers resolve first who wins and read that; this one reads
everything, and the last one to write wins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vhdtool.errors import CorruptError, Finding, Location, Severity, hexadecimal
from vhdtool.formats.image import DiskImage
from vhdtool.model.state import BlockState
from vhdtool.source import ByteSource


class NaiveDisk:
    """The disk of a chain.

    Args:
        images: leaf first.
        sources: where each layer's bytes are read; None is where the images themselves are.

    Attributes:
        size: bytes.
        read_bytes: payload that was read so far.
    """

    def __init__(self, images: Sequence[DiskImage], sources: Sequence[ByteSource] | None = None) -> None:
        sources = [image.source for image in images] if sources is None else sources
        self._layers = list(zip(images, sources))
        self.size = images[0].geometry.virtual_size
        self.read_bytes = 0

    def paint(self, start: int, canvas: memoryview) -> None:
        """Fill ``canvas`` with the disk's bytes from ``start`` on, a multiple of the sector size.

        Raises:
            CorruptError: a damaged block, or a file that ends too early.
            ReadError: the operating system could not read.
        """
        canvas[:] = bytes(len(canvas))
        for image, source in reversed(self._layers):
            here = max(0, min(len(canvas), image.geometry.virtual_size - start))
            canvas[here:] = bytes(len(canvas) - here)
            if here:
                self._paint_layer(image, source, start, canvas[:here])

    def next_data(self, position: int) -> int:
        """The first byte from ``position`` on that may not be zero; ``size`` if there is none."""
        found = [_next_data(image, source, position) for image, source in self._layers]
        # A layer may be larger than the disk.
        return min([self.size, *(byte for byte in found if byte is not None)])

    def _paint_layer(self, image: DiskImage, source: ByteSource, start: int, canvas: memoryview) -> None:
        block_size = image.geometry.block_size
        stop = start + len(canvas)
        for block in range(start // block_size, -(-stop // block_size)):
            state, place = image.entry(block)
            first = max(start, block * block_size)
            last = min(stop, (block + 1) * block_size)
            part = canvas[first - start : last - start]
            within = first - block * block_size
            if state is BlockState.ZERO:
                part[:] = bytes(len(part))
            elif state is BlockState.DATA:
                self._read(source, place + within, part, first)
            elif state is BlockState.PARTIAL:
                size = image.geometry.sector_size
                # The canvas may end inside a sector, where another disk with smaller ones ends.
                count = -(-len(part) // size)
                for low, high in _held_sectors(image.bitmap(block), within // size, count):
                    held = part[low * size : high * size]
                    self._read(source, place + within + low * size, held, first + low * size)
            elif state is BlockState.DAMAGED:
                self._refuse(source, first, last)

    def _read(self, source: ByteSource, place: int, part: memoryview, guest: int) -> None:
        source.read_into(place, part, field=f"payload of guest offset {guest:#x}")
        self.read_bytes += len(part)

    def _refuse(self, source: ByteSource, first: int, last: int) -> None:
        what = (
            f"guest bytes {hexadecimal(first)} to {hexadecimal(last)} lie in a block whose entry is damaged"
        )
        raise CorruptError(
            Finding("chain.damaged_range", Severity.ERROR, Location(source.name, None, "virtual disk"), what)
        )


def _held_sectors(bitmap: bytes, first: int, count: int) -> Iterator[tuple[int, int]]:
    """Runs of set bits among ``count`` bits from bit ``first``, counted from there, half open."""
    begin: int | None = None
    for i in range(count):
        bit = first + i
        held = bitmap[bit // 8] >> (bit % 8) & 1
        if held and begin is None:
            begin = i
        elif not held and begin is not None:
            yield begin, i
            begin = None
    if begin is not None:
        yield begin, count


def _next_data(image: DiskImage, source: ByteSource, position: int) -> int | None:
    """The first byte of a layer's disk, from ``position`` on, that it may hold and that may not be zero.

    None when there is none.  What stands in a hole of the file is zero.
    """
    geometry = image.geometry
    if not geometry.has_table:
        return next((start for start, _ in source.data_ranges(position, geometry.virtual_size)), None)
    while position < geometry.virtual_size:
        block = image.next_stored(position // geometry.block_size)
        if block >= geometry.block_count:
            return None
        start = block * geometry.block_size
        position = max(position, start)
        state, place = image.entry(block)
        if state is BlockState.DAMAGED:
            return position
        if state in (BlockState.DATA, BlockState.PARTIAL):
            stop = place + geometry.block_length(block)
            if stop > source.size:  # it is cut off: whoever paints it says so
                return position
            for data, _ in source.data_ranges(place + position - start, stop):
                return start + data - place
        position = start + geometry.block_size
    return None

"""Walk: resolve one read through the layers, one step after the other.

The other algorithm for the same answer is ``flatten``; this one is plain Python on single entries, needs
no NumPy, and is the faster of the two for a few blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vhdtool.model.state import DAMAGED, ZEROS, BlockState, Run

if TYPE_CHECKING:
    from vhdtool.formats.image import DiskImage


def walk(images: Sequence[DiskImage], start: int, stop: int) -> Iterator[Run]:
    """Runs that tile guest range ``[start, stop)`` in order; neighbours are not merged.

    No run crosses a block's end in the layer that it comes from.
    """
    # What is still to be resolved, the next piece on top: (start, stop, first layer that may hold it).
    pending = [(start, stop, 0)]
    while pending:
        first, last, depth = pending.pop()
        if first == last:
            continue
        if depth == len(images) or first >= images[depth].geometry.virtual_size:
            # Past the end of a smaller parent every layer below reads zeros.
            yield Run(first, last - first, ZEROS, -1)
            continue
        image = images[depth]
        geometry = image.geometry
        block, within = divmod(first, geometry.block_size)
        end = min(last, first - within + geometry.block_size, geometry.virtual_size)
        pending.append((end, last, depth))
        state, file_offset = image.entry(block)
        if state is BlockState.DATA:
            yield Run(first, end - first, depth, file_offset + within)
        elif state is BlockState.ZERO:
            yield Run(first, end - first, ZEROS, -1)
        elif state is BlockState.DAMAGED:
            yield Run(first, end - first, DAMAGED, -1)
        elif state is BlockState.ABSENT:
            pending.append((first, end, depth + 1))
        else:
            yield from _walk_partial(images, pending, depth, block, file_offset, first, end)


def _walk_partial(
    images: Sequence[DiskImage],
    pending: list[tuple[int, int, int]],
    depth: int,
    block: int,
    file_offset: int,
    first: int,
    end: int,
) -> Iterator[Run]:
    """One step of the walk in a partial block: the first run of sectors, the rest goes back to pending."""
    geometry = images[depth].geometry
    block_start = block * geometry.block_size
    sector = (first - block_start) // geometry.sector_size
    sector_stop = -(-(end - block_start) // geometry.sector_size)
    here, count = first_run(images[depth].bitmap(block), sector, sector_stop)
    run_end = min(end, block_start + (sector + count) * geometry.sector_size)
    pending.append((run_end, end, depth))
    if here:
        yield Run(first, run_end - first, depth, file_offset + first - block_start)
    else:
        pending.append((first, run_end, depth + 1))


def first_run(bitmap: bytes, sector: int, stop: int) -> tuple[bool, int]:
    """Whether bit ``sector`` is set, and how many bits from there up to ``stop`` are like it.

    Args:
        bitmap: least significant bit first, at least ``stop`` bits.
    """
    here = bool(bitmap[sector >> 3] >> (sector & 7) & 1)
    position = sector
    whole = 0xFF if here else 0x00
    while position < stop:
        if position & 7 == 0 and bitmap[position >> 3] == whole:
            position = _skip(bitmap, position >> 3, whole) * 8
        elif bool(bitmap[position >> 3] >> (position & 7) & 1) == here:
            position += 1
        else:
            break
    return here, min(position, stop) - sector


def _skip(bitmap: bytes, index: int, value: int) -> int:
    """The first index from ``index`` on whose byte is not ``value``."""
    pattern = bytes([value])
    while index < len(bitmap):
        piece = bitmap[index : index + 64]
        left = piece.lstrip(pattern)
        if left:
            return index + len(piece) - len(left)
        index += len(piece)
    return index

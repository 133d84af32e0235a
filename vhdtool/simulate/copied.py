"""What merging layers copies: the data that each layer holds, by the next layer above that hides it.

For every sector, from the top of the chain down::

    layer 0   data ─────── P[0, none]   nobody above: copied by every merge that begins at 0
    layer 1   .
    layer 2   data ─────── P[2, 0]      hidden by 0: copied by merges that begin at 1 or 2
    layer 3   zeros
    layer 4   data ─────── P[4, 3]      hidden by explicit zeros: copied by merges that begin at 4

A merge of layers A..B copies what a reader of A..B-1 gets: the bytes of each layer that no other of them
hides.  So one pass over tables and bitmaps tells for all merges at once.  Zeros are not copied, and hide what
is below them; so does a layer past its disk's end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from vhdtool.chain.flatten import flatten
from vhdtool.model.blockmap import STATE_MASK
from vhdtool.model.state import BlockState

if TYPE_CHECKING:
    from vhdtool.formats.image import DiskImage

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

_CELLS_PER_WINDOW: Final = 1 << 16
_SECTORS_AT_ONCE: Final = 1 << 20


def bytes_to_copy(images: Sequence[DiskImage], first: int, last: int) -> int:
    """Bytes of data that merging layers ``first`` to ``last`` into ``last`` copies."""
    total = 0
    size = images[first].geometry.virtual_size
    for plan in flatten(images[first:last], 0, size):
        total += int(plan.length[plan.layer >= 0].sum())
    return total


def copied_by_merges(images: Sequence[DiskImage]) -> Int64s:
    """The same for all merges.

    Returns:
        int64[n, n]: [A, B] for A < B, bytes that merging layers A to B copies; 0 elsewhere.
    """
    hidden = hidden_bytes(images)
    depth = len(images)
    # [c, A]: what layer c holds that no layer from A on hides.
    shown = np.cumsum(hidden, axis=1)
    result = np.zeros((depth, depth), np.int64)
    for first in range(depth):
        result[first, first + 1 :] = np.cumsum(shown[first : depth - 1, first])
    return result


def hidden_bytes(images: Sequence[DiskImage]) -> Int64s:
    """What each layer holds, by the lowest layer above it that hides it.

    Returns:
        int64[n, n + 1]: [c, p + 1] bytes of data of layer c that layer p hides; column 0: nobody does.
    """
    hidden = np.zeros((len(images), len(images) + 1), np.int64)
    edges = sorted({0, *(image.geometry.virtual_size for image in images)})
    for start, stop in pairwise(edges):
        # Between two edges a layer has all of its disk or none.
        reaching = [image.geometry.virtual_size > start for image in images]
        cell = min(image.geometry.block_size for image, here in zip(images, reaching) if here)
        for first, last in _windows(images, reaching, cell, start, stop):
            _Window(images, reaching, cell, first, last).add_to(hidden)
    return hidden


def _windows(
    images: Sequence[DiskImage], reaching: Sequence[bool], cell: int, start: int, stop: int
) -> Iterator[tuple[int, int]]:
    """Guest ranges of [start, stop) outside of which the tables of ``reaching`` layers are holes."""
    span = cell * _CELLS_PER_WINDOW
    position = start
    while position < stop:
        found = (_next_stored(image, position) for image, here in zip(images, reaching) if here)
        position = max(position, min(found))
        end = min(stop, position - position % span + span)
        if position < end:
            yield position, end
        position = end


def _next_stored(image: DiskImage, position: int) -> int:
    size = image.geometry.block_size
    return image.next_stored(position // size) * size


class _Window:
    """Guest range [start, stop), of which each layer has all or nothing.

    Attributes:
        first, count: its cells.
        length: int64[count], bytes of each cell inside the range.
    """

    def __init__(
        self, images: Sequence[DiskImage], reaching: Sequence[bool], cell: int, start: int, stop: int
    ) -> None:
        self.images, self.reaching = images, reaching
        self.cell, self.start, self.stop = cell, start, stop
        self.sector_size = images[0].geometry.sector_size
        self.first = start // cell
        self.count = -(-stop // cell) - self.first
        begin = (np.arange(self.count) + self.first) * cell
        self.length = np.minimum(begin + cell, stop) - np.maximum(begin, start)

    def add_to(self, hidden: Int64s) -> None:
        """Count what layers hold of the window, as ``hidden_bytes`` does."""
        states = [self._states(i) if here else None for i, here in enumerate(self.reaching)]
        is_mixed = np.zeros(self.count, np.bool_)
        for state in states:
            if state is not None:
                is_mixed |= state == BlockState.PARTIAL
        self._add_whole(states, is_mixed, hidden)
        mixed = np.flatnonzero(is_mixed)
        step = max(1, _SECTORS_AT_ONCE * self.sector_size // self.cell)
        for at in range(0, len(mixed), step):
            self._add_mixed(states, mixed[at : at + step], hidden)

    def _states(self, layer: int) -> Bytes | None:
        """uint8[count], state of a layer's block at each cell; None where it holds nothing."""
        image = self.images[layer]
        ratio = image.geometry.block_size // self.cell
        first, last = self.first // ratio, -(-(self.first + self.count) // ratio)
        blocks = image.stored(first, min(last, image.geometry.block_count))
        if not len(blocks.block):
            return None
        state = np.zeros(last - first, np.uint8)
        state[blocks.block - first] = blocks.entry & STATE_MASK
        return state if ratio == 1 else np.repeat(state, ratio)[self.first - first * ratio :][: self.count]

    def _add_whole(self, states: Sequence[Bytes | None], is_mixed: Bools, hidden: Int64s) -> None:
        """Cells that no layer holds in part: each has one holder above, or none."""
        above = np.full(self.count, -1, np.int64)
        for layer, state in enumerate(states):
            if not self.reaching[layer]:
                above[:] = layer
            elif state is not None:
                here = np.flatnonzero((state != BlockState.ABSENT) & ~is_mixed)
                data = here[state[here] == BlockState.DATA]
                # Weights are floats: exact, since no window holds 2**53 bytes.
                counts = np.bincount(above[data] + 1, self.length[data], minlength=hidden.shape[1])
                hidden[layer] += counts.astype(np.int64)
                above[here] = layer

    def _add_mixed(self, states: Sequence[Bytes | None], cells: Int64s, hidden: Int64s) -> None:
        """Cells that some layer holds in part, sector by sector."""
        per_cell = self.cell // self.sector_size
        above = np.full((len(cells), per_cell), -1, np.int16)
        inside = self._inside(cells)
        for layer, state in enumerate(states):
            if not self.reaching[layer]:
                above[:] = layer
            elif state is not None:
                here = np.flatnonzero(state[cells])
                if not len(here):
                    continue
                held = self._held(layer, state[cells[here]], cells[here])
                holders = above[here]
                is_data = np.isin(state[cells[here]], (BlockState.DATA, BlockState.PARTIAL))
                counted = (
                    held & is_data[:, None] if inside is None else held & inside[here] & is_data[:, None]
                )
                counts = np.bincount(holders[counted] + 1, minlength=hidden.shape[1])
                hidden[layer] += counts * self.sector_size
                holders[held] = layer
                above[here] = holders

    def _held(self, layer: int, state: Bytes, cells: Int64s) -> Bools:
        """bool[k, sectors], what a layer has of ``cells``, by the state of its blocks there."""
        per_cell = self.cell // self.sector_size
        held = np.ones((len(cells), per_cell), np.bool_)
        partial = np.flatnonzero(state == BlockState.PARTIAL)
        if len(partial):
            bits = self.images[layer].bitmaps((cells[partial] + self.first) * per_cell, per_cell)
            held[partial] = np.unpackbits(bits, axis=1, bitorder="little")[:, :per_cell].view(np.bool_)
        return held

    def _inside(self, cells: Int64s) -> Bools | None:
        """bool[k, sectors], which sectors of ``cells`` lie in the range; None where all do."""
        if (self.length[cells] == self.cell).all():
            return None
        begin = (cells + self.first) * self.cell
        offset = begin[:, None] + np.arange(0, self.cell, self.sector_size)
        inside: Bools = (offset >= self.start) & (offset < self.stop)
        return inside

"""Which layer a disk's bytes come from, at a grain that keeps a disk of any size and depth small.

::

    plans ──► pieces: (length, layer) in guest order, exact while there are few
                 │ too many: the grain doubles
                 ▼
              inside a cell of the grain the pieces of one layer become one, most bytes first
                 │ still too many at the coarsest grain
                 ▼
              beyond the largest few, the layers of a cell become one piece of ``OTHER``

Making the grain coarser loses where in a cell bytes stand, never how many there are: gathering what is
gathered already gives what gathering the original would have.  So one pass is enough, and the grain follows
from what was met.  A cell of zeros or of one layer costs nothing however fine the grain is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from vhdtool.model.state import DAMAGED, ZEROS

if TYPE_CHECKING:
    from vhdtool.chain.chain import Chain
    from vhdtool.model.plan import ReadPlan

Int64s = npt.NDArray[np.int64]
Int16s = npt.NDArray[np.int16]

# Layers of one cell that are too small to be told apart.
OTHER: Final = -3
_LOWEST: Final = OTHER
_LABELS: Final = 512  # more than there are layers; a power of two, so that keys stay small

CELLS_MAX: Final = 1 << 16
PIECES_MAX: Final = 1 << 17
_LAYERS_KEPT: Final = 4
# Cells of the finest grain, so that a cell's number and a label fit one integer.
_FINEST_CELLS_MAX: Final = 1 << 40
# A cell's parts are rounded to this many when a picture of them must become smaller.
_PARTS: Final = 32


@dataclass(frozen=True, slots=True, eq=False)
class HeatMap:
    """Where the bytes of a disk come from.  Sizes are bytes.

    Pieces tile the disk in guest order.  Inside one cell of ``grain`` bytes their order is not the
    guest's: most bytes first, ``OTHER`` last.

    Attributes:
        virtual_size: of the disk.
        sector_size: nothing is smaller.
        layer_count: layers of the chain.
        grain: a power of two; cells begin at multiples of it.
        length: int64[n], > 0.
        layer: int16[n], ``ZEROS``, ``DAMAGED`` and ``OTHER`` beside the layers.
        layer_bytes: int64[layer_count], what each layer gives to the disk; exact.
        zero_bytes, damaged_bytes: the rest of it.
        stretches: runs of one layer, before anything was gathered.
    """

    virtual_size: int
    sector_size: int
    layer_count: int
    grain: int
    length: Int64s
    layer: Int16s
    layer_bytes: Int64s
    zero_bytes: int
    damaged_bytes: int
    stretches: int

    def __post_init__(self) -> None:
        for column in (self.length, self.layer, self.layer_bytes):
            column.setflags(write=False)


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """A disk cut into cells of one size, the last of which may be short.

    Attributes:
        size: bytes of a cell.
        layer: int16[n], the layer that gives most bytes; ``DAMAGED`` where any byte is damaged, ``ZEROS``
            where no layer gives any.
        share: float32[n], how much of the cell some layer gives, 0 to 1.
    """

    size: int
    layer: Int16s
    share: npt.NDArray[np.float32]


def heat_map(
    plans: Iterable[ReadPlan],
    virtual_size: int,
    layer_count: int,
    *,
    sector_size: int = 512,
    pieces_max: int = PIECES_MAX,
    cells_max: int = CELLS_MAX,
) -> HeatMap:
    """The map of a disk from the plans that tile it, in one pass.

    Args:
        pieces_max: how many pieces are held before the grain doubles.
        cells_max: the grain stops doubling when the disk has at most so many cells of it.

    Raises:
        ValueError: the plans do not tile the disk in order.
    """
    maker = _Maker(virtual_size, layer_count, sector_size, pieces_max, cells_max)
    for plan in plans:
        maker.add(plan)
    return maker.finish()


def chain_heat_map(chain: Chain, *, allow_damaged: bool = False) -> HeatMap:
    """The map of a chain's disk; no payload is read.

    Args:
        allow_damaged: show what cannot be read as that, where files end too soon too, instead of refusing.

    Raises:
        FormatError, ChainError: the chain is not sound.
    """
    sizes = np.array([image.source.size for image in chain.images], np.int64)
    # One pass never pays for starting numba.
    windows = chain.windows(allow_damaged=allow_damaged, engine="numpy")
    return heat_map(
        # Blocks that a file's end cuts off keep their place in plans.
        (plan.within_files(sizes) for plan in windows),
        chain.virtual_size,
        len(chain.layers),
        sector_size=chain.sector_size,
    )


def coarsened(heat: HeatMap, grain: int, *, layers_kept: int | None = None) -> HeatMap:
    """The same map with a coarser grain, and with only the largest ``layers_kept`` layers of mixed cells."""
    if grain < heat.grain:
        raise ValueError(f"grain {grain} is finer than {heat.grain}")
    split = _split(heat.length, heat.layer, 0, grain)
    if layers_kept is not None:
        split = _lumped(split, layers_kept)
    length, layer = _assembled(_by_size(split))
    return replace(heat, grain=grain, length=length, layer=layer)


def cells_of(heat: HeatMap, size: int) -> Cells:
    """The disk in cells of ``size`` bytes, a multiple of the grain or any size well above it."""
    count = -(-heat.virtual_size // size)
    split = _split(heat.length, heat.layer, 0, size)
    layer = np.full(count, ZEROS, np.int16)
    given = np.zeros(count, np.int64)
    for_each = split.whole_length // size
    at = np.repeat(split.whole_start // size - np.cumsum(for_each) + for_each, for_each)
    at += np.arange(len(at))
    layer[at] = np.repeat(split.whole_layer, for_each)
    given[at] = np.where(layer[at] == ZEROS, 0, size)
    # The most telling part of each mixed cell: damage, then the largest layer, zeros last.
    order = np.lexsort((split.layer, -split.length, _telling(split.layer), split.cell))
    cells, first = np.unique(split.cell[order], return_index=True)
    layer[cells] = split.layer[order[first]]
    is_given = split.layer != ZEROS
    np.add.at(given, split.cell[is_given], split.length[is_given])
    sizes = np.full(count, size, np.int64)
    sizes[-1] = heat.virtual_size - (count - 1) * size
    return Cells(size, layer, (given / sizes).astype(np.float32))


def cell_size_for(virtual_size: int, cells_max: int, *, least: int = 512) -> int:
    """The smallest power of two that cuts a disk into at most ``cells_max`` cells."""
    size = least
    while virtual_size > size * cells_max:
        size *= 2
    return size


def rounded(heat: HeatMap, unit: int) -> tuple[Int64s, Int16s]:
    """The pieces with lengths in units of ``unit`` bytes, the last unit maybe short.

    In each cell the largest parts keep their order: units that rounding leaves over go to them first.

    Args:
        unit: divides the grain.

    Returns:
        int64[n] lengths in units, int16[n] layers.
    """
    split = _by_size(_split(heat.length, heat.layer, 0, heat.grain))
    cell, layer, length = split.cell, split.layer, split.length
    units = length // unit
    cells, first, counts = np.unique(cell, return_index=True, return_counts=True)
    if len(cells):
        size = np.minimum(heat.grain, heat.virtual_size - cells * heat.grain)
        left = -(-size // unit) - np.add.reduceat(units, first)
        rank = np.arange(len(cell)) - np.repeat(first, counts)
        units += rank < np.repeat(left, counts)
    kept = units > 0
    start = np.concatenate([split.whole_start, cell[kept] * heat.grain])
    layers = np.concatenate([split.whole_layer, layer[kept]])
    lengths = np.concatenate([split.whole_length // unit, units[kept]])
    # Stable: the parts of a cell stay as they are.
    placed = np.argsort(start, kind="stable")
    return _joined(lengths[placed], layers[placed])


def unit_for(heat: HeatMap) -> int:
    """The unit that ``rounded`` is to be called with for a picture that must be small."""
    return max(heat.sector_size, heat.grain // _PARTS)


class _Maker:
    """Gathers plans; holds at most about ``pieces_max`` pieces, or a few for each of ``cells_max`` cells."""

    def __init__(
        self, virtual_size: int, layer_count: int, sector_size: int, pieces_max: int, cells_max: int
    ) -> None:
        self.virtual_size = virtual_size
        self.layer_count = layer_count
        self.sector_size = sector_size
        self.grain = cell_size_for(virtual_size, _FINEST_CELLS_MAX, least=sector_size)
        self.coarsest = cell_size_for(virtual_size, cells_max, least=self.grain)
        self.pieces_max = self.limit = pieces_max
        self.position = 0
        self.held: list[tuple[Int64s, Int16s]] = []
        self.count = 0
        self.stretches = 0
        self.last_layer: int | None = None
        self.bytes_of = np.zeros(layer_count - _LOWEST, np.int64)

    def add(self, plan: ReadPlan) -> None:
        """The next part of the disk."""
        if len(plan) == 0:
            return
        if plan.start != self.position:
            raise ValueError(f"a plan begins at {plan.start}, the last one ended at {self.position}")
        np.add.at(self.bytes_of, plan.layer.astype(np.int64) - _LOWEST, plan.length)
        length, layer = _joined(plan.length, plan.layer)
        self.stretches += len(length) - (self.last_layer == int(layer[0]))
        self.last_layer = int(layer[-1])
        if self.grain > self.sector_size:
            length, layer = _assembled(_split(length, layer, self.position, self.grain))
        self.position = plan.stop
        self.held.append((length, layer))
        self.count += len(length)
        if self.count > self.limit:
            self._shrink()

    def finish(self) -> HeatMap:
        """The map of the whole disk."""
        if self.position != self.virtual_size:
            raise ValueError(f"the plans end at {self.position} of {self.virtual_size}")
        # Where two plans met inside a cell, the cell was gathered in two parts.
        length, layer = _assembled(_by_size(_split(*self._all(), 0, self.grain)))
        return HeatMap(
            self.virtual_size,
            self.sector_size,
            self.layer_count,
            self.grain,
            length,
            layer,
            self.bytes_of[-_LOWEST:],
            int(self.bytes_of[ZEROS - _LOWEST]),
            int(self.bytes_of[DAMAGED - _LOWEST]),
            self.stretches,
        )

    def _all(self) -> tuple[Int64s, Int16s]:
        if not self.held:
            return np.zeros(0, np.int64), np.zeros(0, np.int16)
        return np.concatenate([h[0] for h in self.held]), np.concatenate([h[1] for h in self.held])

    def _shrink(self) -> None:
        length, layer = self._all()
        while len(length) > self.pieces_max // 2 and self.grain < self.coarsest:
            self.grain *= 2
            length, layer = _assembled(_split(length, layer, 0, self.grain))
        if len(length) > self.pieces_max // 2:
            split = _split(length, layer, 0, self.grain)
            # The cell at the end goes on in the next plan: all of its layers are kept for now.
            length, layer = _assembled(_lumped(split, _LAYERS_KEPT, self.position // self.grain))
        self.held, self.count = [(length, layer)], len(length)
        self.limit = max(self.pieces_max, 2 * self.count)


@dataclass(frozen=True, slots=True, eq=False)
class _Split:
    """Pieces cut at the edges of cells.

    Attributes:
        grain: bytes of a cell.
        whole_start, whole_length, whole_layer: parts that fill cells, any number of them each.
        cell, length, layer: what other cells hold: one row a cell and layer, by cell.
    """

    grain: int
    whole_start: Int64s
    whole_length: Int64s
    whole_layer: Int16s
    cell: Int64s
    length: Int64s
    layer: Int16s


def _split(length: Int64s, layer: Int16s, start_of_all: int, grain: int) -> _Split:
    stop = start_of_all + np.cumsum(length)
    start = stop - length
    up = -(-start // grain) * grain
    down = stop // grain * grain
    whole = up < down
    inside = down < up  # begins and ends in one cell, and fills it not
    head = ~inside & (start < up)
    tail = ~inside & (down < stop)
    cell = np.concatenate([start[inside] // grain, start[head] // grain, down[tail] // grain])
    part = np.concatenate([length[inside], (up - start)[head], (stop - down)[tail]])
    label = np.concatenate([layer[inside], layer[head], layer[tail]])
    return _Split(
        grain, up[whole], (down - up)[whole], layer[whole], *_summed(cell, part, label.astype(np.int64))
    )


def _summed(cell: Int64s, length: Int64s, layer: npt.NDArray[np.integer]) -> tuple[Int64s, Int64s, Int16s]:
    """One row for each cell and layer, by cell then layer."""
    key = cell * _LABELS + (layer.astype(np.int64) - _LOWEST)
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))
    sums = np.add.reduceat(length[order], first) if len(first) else length[:0]
    return key[first] // _LABELS, sums, (key[first] % _LABELS + _LOWEST).astype(np.int16)


def _lumped(split: _Split, kept: int, stop_cell: int | None = None) -> _Split:
    """Beyond the ``kept`` largest of each cell, layers become OTHER; in cells before ``stop_cell``."""
    rows = np.flatnonzero(split.layer >= 0)
    order = rows[np.lexsort((split.layer[rows], -split.length[rows], split.cell[rows]))]
    _, first, counts = np.unique(split.cell[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, counts)
    small = order[rank >= kept]
    if stop_cell is not None:
        small = small[split.cell[small] < stop_cell]
    layer = split.layer.copy()
    layer[small] = OTHER
    cell, length, layer = _summed(split.cell, split.length, layer)
    return _Split(split.grain, split.whole_start, split.whole_length, split.whole_layer, cell, length, layer)


def _assembled(split: _Split) -> tuple[Int64s, Int16s]:
    """Lengths and layers, cell after cell; those of one cell by layer."""
    start = np.concatenate([split.whole_start, split.cell * split.grain])
    # Both halves ascend, and a stable sort only merges them.
    order = np.argsort(start, kind="stable")
    length = np.concatenate([split.whole_length, split.length])[order]
    return _joined(length, np.concatenate([split.whole_layer, split.layer])[order])


def _by_size(split: _Split) -> _Split:
    """The same with most bytes of a cell first."""
    order = np.lexsort((split.layer, _size_key(split), split.cell))
    return _Split(
        split.grain,
        split.whole_start,
        split.whole_length,
        split.whole_layer,
        split.cell[order],
        split.length[order],
        split.layer[order],
    )


def _size_key(split: _Split) -> Int64s:
    """Ascending: most bytes first, OTHER last."""
    return np.where(split.layer == OTHER, 0, -split.length)


def _joined(length: Int64s, layer: Int16s) -> tuple[Int64s, Int16s]:
    """Neighbours of one layer become one."""
    if len(layer) == 0:
        return length, layer
    first = np.flatnonzero(np.concatenate(([True], layer[1:] != layer[:-1])))
    return np.add.reduceat(length, first), layer[first]


def _telling(layer: Int16s) -> npt.NDArray[np.int8]:
    """Which part of a cell gives it its colour: the lowest."""
    return np.select([layer == DAMAGED, layer >= 0, layer == OTHER], [0, 1, 2], 3).astype(np.int8)

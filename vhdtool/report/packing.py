"""Puts a heat map into a page: numbers as bytes, compressed, and never more than a page can bear.

::

    as it is ──► too large? a coarser grain, parts rounded ──► ... ──► fits
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vhdtool.model.state import DAMAGED
from vhdtool.report.heatmap import (
    CELLS_MAX,
    OTHER,
    Cells,
    HeatMap,
    cell_size_for,
    coarsened,
    rounded,
    unit_for,
)
from vhdtool.report.palette import DAMAGED_COLOUR, layer_colours

PACKED_BYTES_MAX: Final = 64 << 10
_LAYERS_KEPT: Final = 4
_WORTH_TRYING: Final = 4  # pieces for each byte that there is room for
_POSTER_COLOURS: Final = 64


@dataclass(frozen=True, slots=True)
class PackedMap:
    """A heat map as text for a page.

    Attributes:
        grain: bytes of the smallest cell worth looking at.
        unit: bytes that lengths count; the last may be short.
        count: of pieces.
        is_exact: no length is rounded and no layer left out.
        data: base64 of a zlib stream of ``2 * count`` numbers of seven bits a byte, least significant
            first: all layers, counted from ``OTHER``, then all lengths.
    """

    grain: int
    unit: int
    count: int
    is_exact: bool
    data: str


def packed_map(heat: HeatMap, bytes_max: int = PACKED_BYTES_MAX) -> PackedMap:
    """The finest form of ``heat`` whose compressed bytes are at most ``bytes_max``."""
    for candidate, unit in _candidates(heat):
        if len(candidate.length) > bytes_max * _WORTH_TRYING:
            continue
        length, layer = rounded(candidate, unit)
        numbers = np.concatenate([layer.astype(np.int64) - OTHER, length])
        data = zlib.compress(varints(numbers), 9)
        if len(data) <= bytes_max:
            is_exact = unit == heat.sector_size and not bool((layer == OTHER).any())
            return PackedMap(
                candidate.grain, unit, len(length), is_exact, base64.b64encode(data).decode("ascii")
            )
    raise ValueError(f"not even one cell fits in {bytes_max} bytes")


def _candidates(heat: HeatMap) -> Iterator[tuple[HeatMap, int]]:
    """The map as it is, then coarser and coarser down to one cell, each with the unit of its lengths."""
    yield heat, heat.sector_size
    grain = heat.grain
    overview = cell_size_for(heat.virtual_size, CELLS_MAX, least=grain)
    while grain < 2 * heat.virtual_size:
        if grain < overview:
            coarse = coarsened(heat, grain)
            yield coarse, unit_for(coarse)
        else:
            for kept in (_LAYERS_KEPT, 1):
                coarse = coarsened(heat, grain, layers_kept=kept)
                yield coarse, unit_for(coarse)
        grain *= 2


def varints(numbers: npt.NDArray[np.int64]) -> bytes:
    """Seven bits a byte, least significant first; the high bit says that more follow.

    Args:
        numbers: int64[n], none negative.
    """
    width = np.ones(len(numbers), np.int64)
    rest = numbers >> 7
    while rest.any():
        width += rest > 0
        rest = rest >> 7
    start = np.cumsum(width) - width
    out = np.empty(int(width.sum()), np.uint8)
    for place in range(int(width.max(initial=0))):
        here = width > place
        more = (width[here] > place + 1).astype(np.int64) << 7
        out[start[here] + place] = numbers[here] >> 7 * place & 0x7F | more
    return out.tobytes()


def poster(cells: Cells, columns: int, layer_count: int) -> str:
    """A small PNG of ``cells``, ``columns`` in a row, as a ``data:`` address: for readers without script.

    Zeros are transparent, so that they have the colour of the page around.
    """
    palette = [(0, 0, 0), DAMAGED_COLOUR, *layer_colours(min(layer_count, _POSTER_COLOURS))]
    scale = max(1, layer_count - 1)
    shades = max(1, min(layer_count, _POSTER_COLOURS) - 1)
    layer = np.maximum(cells.layer, 0).astype(np.int64)
    index = np.where(cells.layer < 0, 0, 2 + layer * shades // scale).astype(np.uint8)
    index[cells.layer == DAMAGED] = 1
    index[cells.layer == OTHER] = 2
    rows = -(-len(index) // columns)
    table = np.zeros((rows, columns), np.uint8)
    table.reshape(-1)[: len(index)] = index
    return "data:image/png;base64," + base64.b64encode(_png(table, palette)).decode("ascii")


def _png(table: npt.NDArray[np.uint8], palette: Sequence[tuple[int, int, int]]) -> bytes:
    """An image of palette indexes, index 0 transparent.  Source: PNG (Third Edition), W3C."""
    height, width = table.shape
    lines = np.zeros((height, width + 1), np.uint8)  # each line begins with its filter: 0, none
    lines[:, 1:] = table
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", b"".join(map(bytes, palette))),
        (b"tRNS", b"\0"),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)

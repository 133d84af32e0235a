"""A heat map as its templates want it: for a page to draw and zoom, and as a drawing that stands still."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from vhdtool.errors import printable
from vhdtool.model.state import DAMAGED, ZEROS
from vhdtool.report.heatmap import OTHER, Cells, HeatMap, cell_size_for, cells_of
from vhdtool.report.packing import packed_map, poster
from vhdtool.report.palette import (
    DAMAGED_COLOUR,
    NEUTRAL_DARK,
    NEUTRAL_LIGHT,
    hexadecimal_colour,
    layer_colours,
)
from vhdtool.report.text import size_text

_POSTER_COLUMNS: Final = 128
_POSTER_CELLS: Final = 4096
_RAMP_STEPS: Final = 8
_SHADES: Final = 4
_FAINTEST: Final = 0.55  # a cell with next to no data is to be seen all the same
_DRAWING_COLUMNS: Final = 128
_DRAWING_CELLS: Final = 128 * 64
_DRAWING_COLUMNS_LEAST: Final = 16
_DRAWING_WIDTH: Final = 768
_LEGEND_MAX: Final = 24
_LEGEND_COLUMNS: Final = 2
_LEGEND_TEXT_MAX: Final = 52


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer in a list.  ``seen_part`` and ``hidden_part`` are percents of the longest bar."""

    number: int
    name: str
    colour: str
    seen: str
    seen_part: float
    hidden: str = ""
    hidden_part: float = 0.0


@dataclass(frozen=True, slots=True)
class HeatView:
    """What a page needs of a heat map.

    Attributes:
        data: for the script: sizes, colours, and the pieces packed.
        poster: a still picture, as a ``data:`` address.
        folder: where all files are; empty when they share none, and names are whole paths then.
        detail: in words, how exact the picture is.
    """

    data: dict[str, Any]
    poster: str
    ramp: str
    rows: tuple[LayerRow, ...]
    folder: str
    zeros: str
    damaged: str
    damaged_colour: str
    detail: str
    has_stored: bool
    shadowed: str


def heat_view(heat: HeatMap, paths: Sequence[str], stored: Sequence[int] | None = None) -> HeatView:
    """The view of a disk whose layers' files are ``paths``.

    Args:
        stored: bytes that each layer stores, seen or not, where that is known.
    """
    seen = heat.layer_bytes.tolist()
    shadowed = None if stored is None else [size - visible for size, visible in zip(stored, seen)]
    colours = [hexadecimal_colour(colour) for colour in layer_colours(heat.layer_count)]
    packed = packed_map(heat)
    folder, names = names_of(paths)
    exact = "exact to the sector" if packed.is_exact else f"cells of {size_text(packed.grain)}, rounded"
    size = cell_size_for(heat.virtual_size, _POSTER_CELLS, least=heat.sector_size)
    return HeatView(
        data={
            "size": heat.virtual_size,
            "sector": heat.sector_size,
            "grain": packed.grain,
            "unit": packed.unit,
            "count": packed.count,
            "exact": packed.is_exact,
            "colours": colours,
            "damaged": hexadecimal_colour(DAMAGED_COLOUR),
            "data": packed.data,
        },
        poster=poster(cells_of(heat, size), _POSTER_COLUMNS, heat.layer_count),
        ramp=_ramp(colours),
        rows=tuple(_rows(heat, names, colours, shadowed)),
        folder=folder,
        zeros=size_text(heat.zero_bytes),
        damaged=size_text(heat.damaged_bytes) if heat.damaged_bytes else "",
        damaged_colour=hexadecimal_colour(DAMAGED_COLOUR),
        detail=f"{stretches_text(heat)}; {exact}",
        has_stored=shadowed is not None,
        shadowed=size_text(sum(shadowed or ())),
    )


def stretches_text(heat: HeatMap) -> str:
    """How many stretches of one layer the disk has; an extent ends where the file goes on elsewhere, too."""
    return "1 stretch" if heat.stretches == 1 else f"{heat.stretches:,} stretches"


def _ramp(colours: Sequence[str]) -> str:
    """The colours as stops of a gradient: each for itself while they are few."""
    if len(colours) <= _RAMP_STEPS:
        return ",".join(
            f"{colour} {100 * i // len(colours)}% {100 * (i + 1) // len(colours)}%"
            for i, colour in enumerate(colours)
        )
    return ",".join(colours[i * (len(colours) - 1) // (_RAMP_STEPS - 1)] for i in range(_RAMP_STEPS))


def names_of(paths: Sequence[str]) -> tuple[str, list[str]]:
    """The folder that all files are in and their names below it; ("", the paths) when there is none."""
    shown = [printable(path) for path in paths]
    try:
        folder = os.path.commonpath([os.path.dirname(path) for path in shown])  # noqa: PTH120
    except ValueError:  # absolute and relative ones, or several drives
        folder = ""
    if not folder or len(folder) < 2:
        return "", shown
    return folder, [os.path.relpath(path, folder) for path in shown]


def _rows(
    heat: HeatMap, names: Sequence[str], colours: Sequence[str], shadowed: Sequence[int] | None
) -> Iterator[LayerRow]:
    seen = [int(size) for size in heat.layer_bytes]
    hidden = list(shadowed or [0] * len(seen))
    longest = max(1, *(a + b for a, b in zip(seen, hidden)))
    for number, name in enumerate(names):
        yield LayerRow(
            number,
            name,
            colours[number],
            size_text(seen[number]),
            round(100 * seen[number] / longest, 2),
            size_text(hidden[number]) if shadowed is not None else "",
            round(100 * hidden[number] / longest, 2),
        )


@dataclass(frozen=True, slots=True)
class DrawnLayer:
    """One colour of a drawing: a path for each shade (opacity, path)."""

    name: str
    colour: str
    paths: tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """A name beside its colour."""

    x: float
    y: float
    colour: str
    text: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """A heat map that stands still; ``ground`` is the outline of the disk in cells."""

    width: int
    height: int
    scale: int
    ground: str
    layers: tuple[DrawnLayer, ...]
    legend: tuple[LegendEntry, ...]
    note: str
    neutral_light: str = NEUTRAL_LIGHT
    neutral_dark: str = NEUTRAL_DARK


def heat_drawing(heat: HeatMap, paths: Sequence[str]) -> Drawing:
    """The whole disk in a few thousand cells, and a legend of bounded length."""
    size = cell_size_for(heat.virtual_size, _DRAWING_CELLS, least=heat.sector_size)
    cells = cells_of(heat, size)
    columns = _DRAWING_COLUMNS
    # A small disk gets larger cells rather than a few thin rows.
    while columns > _DRAWING_COLUMNS_LEAST and len(cells.layer) < columns * columns // 4:
        columns //= 2
    scale = _DRAWING_WIDTH // columns
    rows = -(-len(cells.layer) // columns)
    colours = [hexadecimal_colour(colour) for colour in layer_colours(heat.layer_count)]
    _, names = names_of(paths)
    top = 66 + rows * scale + 30
    legend = _legend(heat, names, colours, top)
    sizes = f"a cell is {size_text(size)}, a row {size_text(size * columns)}"
    return Drawing(
        width=_DRAWING_WIDTH + 32,
        height=int(max(entry.y for entry in legend)) + 44,
        scale=scale,
        ground=_path(_row_runs(0, len(cells.layer), columns)),
        layers=tuple(_drawn(cells, columns, names, colours)),
        legend=tuple(legend),
        note=f"{sizes}; {stretches_text(heat)}",
    )


def _drawn(cells: Cells, columns: int, names: Sequence[str], colours: Sequence[str]) -> Iterator[DrawnLayer]:
    """A path for each colour and shade: one rectangle for each run of equal cells in a row."""
    shade = np.clip(np.ceil(cells.share * _SHADES), 1, _SHADES).astype(np.int64)
    shade[cells.layer == DAMAGED] = _SHADES
    key = np.where(cells.layer == ZEROS, -1, (cells.layer.astype(np.int64) - OTHER) * (_SHADES + 1) + shade)
    breaks = np.flatnonzero(np.diff(key)) + 1
    edges = np.unique(np.concatenate(([0], breaks, np.arange(0, len(key), columns), [len(key)])))
    paths: dict[int, list[tuple[int, int, int]]] = {}
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist()):
        if key[start] >= 0:
            y, x = divmod(start, columns)
            paths.setdefault(int(key[start]), []).append((x, y, stop - start))
    by_layer: dict[int, list[tuple[float, str]]] = {}
    for one in sorted(paths):
        layer, level = one // (_SHADES + 1) + OTHER, one % (_SHADES + 1)
        opacity = round(_FAINTEST + (1 - _FAINTEST) * level / _SHADES, 2)
        by_layer.setdefault(layer, []).append((opacity, _path(paths[one])))
    for layer, shades in by_layer.items():
        if layer == DAMAGED:
            yield DrawnLayer("damaged", hexadecimal_colour(DAMAGED_COLOUR), tuple(shades))
        else:
            known = max(layer, 0)
            yield DrawnLayer(f"layer {known}: {names[known]}", colours[known], tuple(shades))


def _row_runs(start: int, stop: int, columns: int) -> Iterator[tuple[int, int, int]]:
    """(x, y, width) of the rows that cells ``[start, stop)`` fill."""
    for at in range(start, stop, columns):
        yield 0, at // columns, min(columns, stop - at)


def _path(runs: Iterable[tuple[int, int, int]]) -> str:
    return "".join(f"M{x} {y}h{width}v1h-{width}z" for x, y, width in runs)


def _legend(heat: HeatMap, names: Sequence[str], colours: Sequence[str], top: int) -> list[LegendEntry]:
    """The layers that give most, in their order; the rest is counted."""
    sizes = [int(size) for size in heat.layer_bytes]
    largest = sorted(sorted(range(len(sizes)), key=lambda layer: -sizes[layer])[:_LEGEND_MAX])
    texts = [
        (colours[layer], f"{layer}  {_clipped(names[layer])}: {size_text(sizes[layer])}") for layer in largest
    ]
    if len(sizes) > len(largest):
        rest = sum(sizes) - sum(sizes[layer] for layer in largest)
        texts.append(("none", f"{len(sizes) - len(largest)} more layers: {size_text(rest)}"))
    if heat.damaged_bytes:
        texts.append((hexadecimal_colour(DAMAGED_COLOUR), f"damaged: {size_text(heat.damaged_bytes)}"))
    texts.append(("var(--neutral)", f"zeros: {size_text(heat.zero_bytes)}"))
    per_column = -(-len(texts) // _LEGEND_COLUMNS) if len(texts) > 4 else len(texts)
    width = _DRAWING_WIDTH // _LEGEND_COLUMNS
    return [
        LegendEntry(16 + i // per_column * width, top + i % per_column * 20, colour, text)
        for i, (colour, text) in enumerate(texts)
    ]


def _clipped(name: str) -> str:
    """A name that fits its column: its two ends."""
    if len(name) <= _LEGEND_TEXT_MAX - 16:
        return name
    half = (_LEGEND_TEXT_MAX - 17) // 2
    return f"{name[:half]}…{name[-half:]}"

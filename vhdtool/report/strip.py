"""A heat map as a few lines of coloured cells for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from vhdtool.errors import printable
from vhdtool.model.state import DAMAGED, ZEROS
from vhdtool.report.palette import DAMAGED_COLOUR, Rgb, layer_colours
from vhdtool.report.text import size_text

if TYPE_CHECKING:
    from vhdtool.report.heatmap import HeatMap

# (text, colour) -> text on a ground of that colour, or as it is for None.
Shade = Callable[[str, Rgb | None], str]

_LINES_MAX: Final = 4
_WIDTH_LEAST: Final = 20
_LEGEND_MAX: Final = 8
_NAME_MAX: Final = 40
_ZERO: Final = "·"


def strip_text(heat: HeatMap, paths: Sequence[str], width: int, shade: Shade, *, dot: str = _ZERO) -> str:
    """The disk in one to four lines, each beginning with its offset, and a legend.

    Args:
        paths: the layers' files, leaf first.
        width: columns of the terminal.
        dot: what stands for a cell of zeros.
    """
    from vhdtool.report.heatmap import cells_of

    margin = max(len(size_text(heat.virtual_size)), 10) + 1
    columns = max(_WIDTH_LEAST, width - margin - 1)
    sectors = heat.virtual_size // heat.sector_size
    lines = max(1, min(_LINES_MAX, sectors // columns))
    # A short disk ends before its line does: a cell is never smaller than a sector.
    size = max(1, -(-sectors // (columns * lines))) * heat.sector_size
    cells = cells_of(heat, max(size, heat.grain))
    colours = layer_colours(heat.layer_count)
    layers = cells.layer.tolist()
    drawn = []
    for start in range(0, len(layers), columns):
        row = layers[start : start + columns]
        drawn.append(f"{size_text(start * cells.size):>{margin - 1}} {_row(row, colours, shade, dot)}")
    return "\n".join([*drawn, *_legend(heat, paths, colours, width, shade, dot)])


def _row(layers: Sequence[int], colours: Sequence[Rgb], shade: Shade, dot: str) -> str:
    """One line; neighbours of one colour are painted together."""
    text = ""
    start = 0
    for i in range(1, len(layers) + 1):
        if i == len(layers) or layers[i] != layers[start]:
            colour = _colour(layers[start], colours)
            text += shade((dot if colour is None else " ") * (i - start), colour)
            start = i
    return text


def _colour(layer: int, colours: Sequence[Rgb]) -> Rgb | None:
    if layer == ZEROS:
        return None
    return DAMAGED_COLOUR if layer == DAMAGED else colours[max(layer, 0)]


def _legend(
    heat: HeatMap, paths: Sequence[str], colours: Sequence[Rgb], width: int, shade: Shade, dot: str
) -> list[str]:
    """The layers that give most, in their order, wrapped to ``width``."""
    sizes = [int(size) for size in heat.layer_bytes]
    largest = sorted(sorted(range(len(sizes)), key=lambda layer: -sizes[layer])[:_LEGEND_MAX])
    entries = [
        (colours[layer], f"{layer} {_file_name(paths[layer])} {size_text(sizes[layer])}") for layer in largest
    ]
    rest = len(sizes) - len(largest)
    painted = [(len(text) + 3, f"{shade('  ', colour)} {text}") for colour, text in entries]
    if rest:
        painted.append((len(str(rest)) + 12, f"{rest} more layers"))
    zeros = f"{dot}{dot} zeros {size_text(heat.zero_bytes)}"
    painted.append((len(zeros), zeros))
    lines, used = [""], 0
    for length, text in painted:
        if used and used + 3 + length > width:
            lines.append("")
            used = 0
        lines[-1] += ("   " if used else "") + text
        used += length + (3 if used else 0)
    return lines


def _file_name(path: str) -> str:
    name = printable(path.replace("\\", "/").rsplit("/", 1)[-1])
    half = (_NAME_MAX - 1) // 2
    return name if len(name) <= _NAME_MAX else f"{name[:half]}~{name[-half:]}"

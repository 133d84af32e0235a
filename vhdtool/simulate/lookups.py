"""Reads become lookups: each read run by run, many reads at a time.

::

    read  |---------------------------|
    runs  ....|--a--|-----b-----|---c-----|...     a run ends at its cell's end, or before
    rows      |  a  |     b     |   c |            one lookup each

A long read is taken in pieces, so that the number of rounds below is bounded by the runs of a piece; a
piece that begins inside the run that the piece before it ended in is no lookup of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from vhdtool.chain.resolved import ResolvedMap

Int64s = npt.NDArray[np.int64]
Int16s = npt.NDArray[np.int16]
Bools = npt.NDArray[np.bool_]

_PIECE: Final = 64 << 10
_PIECES_AT_ONCE: Final = 1 << 17


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Parts of runs that reads touch, in the order in which they are read.

    Attributes:
        read: int64[n], index of the read in its batch, ascending.
        offset, length: int64[n], guest bytes.
        layer, file_offset: int16[n], int64[n], as in a plan.
        probes: int16[n], layers whose tables a walk consults.
        goes_on: bool[n], the run of the row before, further on: not another lookup.
    """

    read: Int64s
    offset: Int64s
    length: Int64s
    layer: Int16s
    file_offset: Int64s
    probes: Int16s
    goes_on: Bools


def lookups_of(resolved: ResolvedMap, offset: Int64s, length: Int64s) -> Iterator[Rows]:
    """The lookups of a batch of reads, in order, in windows of bounded size.

    Args:
        offset, length: int64[n], guest bytes inside the disk; a read of no bytes has no lookups.
    """
    last_read, last_stop = -1, 0
    for read, start, stop in _pieces(offset, length):
        piece, *columns, run_stop = _resolve(resolved, start, stop)
        at, size, layer, file_offset, probes = columns
        mine = read[piece]
        same_read = mine == np.concatenate(([last_read], mine[:-1]))
        goes_on = same_read & (at < np.concatenate(([last_stop], run_stop[:-1])))
        last_read, last_stop = int(mine[-1]), int(run_stop[-1])
        yield Rows(mine, at, size, layer, file_offset, probes, goes_on)


def _pieces(offset: Int64s, length: Int64s) -> Iterator[tuple[Int64s, Int64s, Int64s]]:
    """Reads cut at multiples of ``_PIECE``: index of the read, start and stop of each, in order."""
    first = offset // _PIECE
    # Of a read of no bytes nothing is left: its last piece is the one before its first.
    last = np.where(length > 0, (offset + length - 1) // _PIECE, first - 1)
    behind = np.cumsum(last - first + 1)
    total = int(behind[-1]) if len(behind) else 0
    for at in range(0, total, _PIECES_AT_ONCE):
        number = np.arange(at, min(total, at + _PIECES_AT_ONCE))
        read = np.searchsorted(behind, number, side="right")
        piece = last[read] + 1 - (behind[read] - number)
        start = np.maximum(offset[read], piece * _PIECE)
        stop = np.minimum(offset[read] + length[read], (piece + 1) * _PIECE)
        yield read, start, stop


def _resolve(resolved: ResolvedMap, start: Int64s, stop: Int64s) -> list[npt.NDArray[Any]]:
    """The runs that pieces touch: in each round the next one of every piece that is not at its end.

    Returns:
        Columns in order: index of the piece, guest offset, length, layer, file offset, probes, and the
        guest byte where the whole run ends.
    """
    at = start.copy()
    unfinished = np.arange(len(start))
    rounds: list[tuple[npt.NDArray[Any], ...]] = []
    while len(unfinished):
        here = at[unfinished]
        found = resolved.runs_at(here)
        end = np.minimum(found.stop, stop[unfinished])
        length = end - here
        rounds.append((unfinished, here, length, found.layer, found.file_offset, found.probes, found.stop))
        at[unfinished] = end
        unfinished = unfinished[end < stop[unfinished]]
    if len(rounds) == 1:
        return list(rounds[0])
    columns = [np.concatenate(column) for column in zip(*rounds)]
    # Rounds come in order within a piece, so a stable order by piece is the order of reading.
    order = np.argsort(columns[0], kind="stable")
    return [column[order] for column in columns]

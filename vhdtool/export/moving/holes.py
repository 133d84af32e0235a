"""Holes of sources: what a file system says was never written is not read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

import numpy as np

from vhdtool.model.plan import ReadPlan
from vhdtool.model.state import ZEROS, Run
from vhdtool.source import ByteSource

# Sources are asked for holes only inside runs of at least this length: asking costs a fifth of reading these.
HOLE_RUN_MIN: Final = 1 << 20
_PIECES: Final = 1 << 12


def data_and_holes(source: ByteSource, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
    """Bytes [offset, offset + length) of ``source`` as (offset, length, is data); holes read as zeros.

    Short ranges are not looked into.
    """
    stop = offset + length
    # Past its end a file has no holes: it is too short, and reading there says so.
    if length < HOLE_RUN_MIN or stop > source.size:
        yield offset, length, True
        return
    for first, last in source.data_ranges(offset, stop):
        if first > offset:
            yield offset, first - offset, False
        yield first, last - first, True
        offset = last
    if offset < stop:
        yield offset, stop - offset, False


def without_holes(plan: ReadPlan, sources: Sequence[ByteSource]) -> Iterator[ReadPlan]:
    """The same runs, in parts, with the holes in long ones as zeros."""
    first = 0
    for row in np.flatnonzero((plan.layer >= 0) & (plan.length >= HOLE_RUN_MIN)).tolist():
        run = plan[row]
        pieces = data_and_holes(sources[run.layer], run.file_offset, run.length)
        parts = list(islice(pieces, _PIECES))
        if len(parts) == 1 and parts[0][2]:
            continue
        if first < row:
            yield plan.rows(first, row)
        first = row + 1
        position = run.offset
        while parts:
            runs = []
            for place, length, is_data in parts:
                runs.append(Run(position, length, *((run.layer, place) if is_data else (ZEROS, -1))))
                position += length
            yield ReadPlan.of_runs(runs)
            parts = list(islice(pieces, _PIECES))
    if first < len(plan):
        yield plan.rows(first, len(plan))

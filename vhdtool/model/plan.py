"""Read plans: a guest range as runs with one origin each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vhdtool.model.state import DAMAGED, ZEROS, Run

__all__ = ["DAMAGED", "ZEROS", "ReadPlan", "Run", "merged"]


@dataclass(frozen=True, slots=True, eq=False)
class ReadPlan:
    """Guest range [start, stop) as runs with one origin each, in guest order.

    The runs tile the range: no gap, no overlap, none empty; neighbours that could be one run are one.

    Attributes:
        offset, length: int64[n], guest bytes; length > 0.
        layer: int16[n], 0 is the leaf; ``ZEROS`` reads as zeros, ``DAMAGED`` cannot be read.
        file_offset: int64[n], bytes in that layer's file; -1 where no layer holds the run.
    """

    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    layer: npt.NDArray[np.int16]
    file_offset: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        for column in (self.offset, self.length, self.layer, self.file_offset):
            column.setflags(write=False)

    @classmethod
    def of_runs(cls, runs: Sequence[Run]) -> ReadPlan:
        """A plan from rows in guest order that tile their range."""
        table = np.array(runs, np.int64).reshape(-1, 4)
        return merged(table[:, 0], table[:, 1], table[:, 2].astype(np.int16), table[:, 3])

    @classmethod
    def joined(cls, plans: Sequence[ReadPlan]) -> ReadPlan:
        """One plan from plans of neighbouring ranges."""
        if not plans:
            return cls.of_runs([])
        return merged(
            np.concatenate([plan.offset for plan in plans]),
            np.concatenate([plan.length for plan in plans]),
            np.concatenate([plan.layer for plan in plans]),
            np.concatenate([plan.file_offset for plan in plans]),
        )

    def clipped(self, start: int, stop: int) -> ReadPlan:
        """The part of the plan inside guest range ``[start, stop)``."""
        first = int(np.searchsorted(self.offset, start, "right")) - 1
        part = self.rows(max(0, first), int(np.searchsorted(self.offset, stop)))
        offset, length, layer, file_offset = part.offset, part.length, part.layer, part.file_offset
        if len(offset) and offset[0] + length[0] <= start:  # all of the plan lies in front
            return part.rows(0, 0)
        if len(offset) and (offset[0] < start or offset[-1] + length[-1] > stop):
            begin = np.maximum(offset, start)
            length = np.minimum(offset + length, stop) - begin
            file_offset = np.where(layer < 0, -1, file_offset + (begin - offset))
            offset = begin
        return ReadPlan(offset, length, layer, file_offset)

    def rows(self, first: int, last: int) -> ReadPlan:
        """Runs ``[first, last)``."""
        part = slice(first, last)
        return ReadPlan(self.offset[part], self.length[part], self.layer[part], self.file_offset[part])

    def __getitem__(self, row: int) -> Run:
        columns = (self.offset, self.length, self.layer, self.file_offset)
        return Run(*(int(column[row]) for column in columns))

    def cut(self, offset: npt.NDArray[np.int64], stop: int) -> ReadPlan:
        """The parts of runs that begin at each ``offset`` (int64[n], ascending), up to ``stop``.

        Neighbours may be parts of one run: what they are laid beside changes between them.
        """
        run = np.searchsorted(self.offset, offset, "right") - 1
        layer = self.layer[run]
        place = np.where(layer < 0, -1, self.file_offset[run] + (offset - self.offset[run]))
        return ReadPlan(offset, np.diff(offset, append=stop), layer, place)

    def within_files(self, sizes: npt.NDArray[np.int64]) -> ReadPlan:
        """The same plan with what lies behind the ends of files ``DAMAGED``.

        Args:
            sizes: int64[layers], bytes of each layer's file.
        """
        held = np.maximum(self.layer, 0)
        left = np.where(self.layer < 0, self.length, sizes[held] - self.file_offset)
        kept = np.clip(left, 0, self.length)
        cut, some = np.flatnonzero(kept < self.length), np.flatnonzero(kept)
        if not len(cut):
            return self
        offset = np.concatenate((self.offset[some], (self.offset + kept)[cut]))
        length = np.concatenate((kept[some], (self.length - kept)[cut]))
        layer = np.concatenate((self.layer[some], np.full(len(cut), DAMAGED, np.int16)))
        file_offset = np.concatenate((self.file_offset[some], np.full(len(cut), -1, np.int64)))
        order = np.argsort(offset)
        return merged(offset[order], length[order], layer[order], file_offset[order])

    @property
    def start(self) -> int:
        """First guest byte; 0 for an empty plan."""
        return int(self.offset[0]) if len(self.offset) else 0

    @property
    def stop(self) -> int:
        """Guest byte behind the last run; 0 for an empty plan."""
        return int(self.offset[-1] + self.length[-1]) if len(self.offset) else 0

    def __len__(self) -> int:
        return len(self.offset)

    def __iter__(self) -> Iterator[Run]:
        columns = (self.offset, self.length, self.layer, self.file_offset)
        return map(Run._make, zip(*(column.tolist() for column in columns)))


def merged(
    offset: npt.NDArray[np.int64],
    length: npt.NDArray[np.int64],
    layer: npt.NDArray[np.int16],
    file_offset: npt.NDArray[np.int64],
) -> ReadPlan:
    """A plan from columns in guest order: neighbours with one origin become one run."""
    if len(offset) == 0:
        return ReadPlan(offset, length, layer, file_offset)
    goes_on = (layer[1:] == layer[:-1]) & (
        (layer[1:] < 0) | (file_offset[1:] == file_offset[:-1] + length[:-1])
    )
    starts = np.flatnonzero(np.concatenate(([True], ~goes_on)))
    stop = offset[-1] + length[-1]
    edges = np.append(offset[starts], stop)
    return ReadPlan(offset[starts], np.diff(edges), layer[starts], file_offset[starts])

"""How broken up a disk is: what reading all of it in order meets, counted while the plans go by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from vhdtool.model.plan import ReadPlan
from vhdtool.simulate.figures import Fragmentation

Int64s = npt.NDArray[np.int64]
Int16s = npt.NDArray[np.int16]

_MIB_SHIFT: Final = 20


def fragmentation_of(plans: Iterable[ReadPlan], depth: int) -> Fragmentation:
    """The fragmentation of a disk of ``depth`` layers whose ``plans`` tile it in order."""
    count = FragmentationCount(depth)
    for plan in plans:
        count.add(plan)
    return count.result()


class FragmentationCount:
    """Takes the plans of a disk in order; a run that goes on in the next plan is one run.

    Memory does not depend on the number of runs: lengths are counted by length, and a disk cannot have
    more than the square root of twice its sectors of different ones (half a million in 64 TiB).
    """

    def __init__(self, depth: int) -> None:
        self._held: ReadPlan | None = None
        self._runs = self._pieces = self._bytes = 0
        self._mibs = self._files = self._backward = 0
        self._last_mib = -1
        self._last_mib_of = np.full(depth, -1, np.int64)
        self._end_of = np.full(depth, -1, np.int64)
        self._length = np.empty(0, np.int64)
        self._times = np.empty(0, np.int64)

    def add(self, plan: ReadPlan) -> None:
        """The next plan of the disk."""
        if not len(plan):
            return
        joined = plan if self._held is None else ReadPlan.joined([self._held, plan])
        self._held = _part(joined, slice(-1, None))
        self._count(_part(joined, slice(None, -1)))

    def result(self) -> Fragmentation:
        """What it comes to; no plan follows."""
        if self._held is not None:
            self._count(self._held)
            self._held = None
        return Fragmentation(
            runs_per_mib=self._per_mib(self._pieces),
            files_per_mib=self._per_mib(self._files),
            backward_per_mib=self._per_mib(self._backward),
            mean_run=self._bytes / self._runs if self._runs else 0.0,
            median_run=self._median(),
        )

    def _per_mib(self, number: int) -> float:
        return number / self._mibs if self._mibs else 0.0

    def _count(self, plan: ReadPlan) -> None:
        """Count whole runs, none of which goes on."""
        data = np.flatnonzero(plan.layer >= 0)
        if not len(data):
            return
        offset, length, layer = plan.offset[data], plan.length[data], plan.layer[data]
        first, last = offset >> _MIB_SHIFT, (offset + length - 1) >> _MIB_SHIFT
        pieces = last - first + 1
        self._runs += len(data)
        self._bytes += int(length.sum())
        self._pieces += int(pieces.sum())
        # A run's first MiB was counted already when the run before it ended there.
        before = np.concatenate(([self._last_mib], last[:-1]))
        self._mibs += int(pieces.sum() - np.count_nonzero(first == before))
        self._last_mib = int(last[-1])
        self._count_by_layer(layer, first, last, plan.file_offset[data], length)
        self._count_lengths(length)

    def _count_by_layer(
        self, layer: Int16s, first: Int64s, last: Int64s, file_offset: Int64s, length: Int64s
    ) -> None:
        """The same for each file by itself: MiB that it has a part in, and steps back in it."""
        order = np.argsort(layer, kind="stable")
        layer, first, last = layer[order], first[order], last[order]
        end = file_offset[order] + length[order]
        is_first = np.concatenate(([True], layer[1:] != layer[:-1]))
        is_last = np.concatenate((is_first[1:], [True]))
        mib_before = np.where(is_first, self._last_mib_of[layer], np.concatenate(([-1], last[:-1])))
        end_before = np.where(is_first, self._end_of[layer], np.concatenate(([-1], end[:-1])))
        self._files += int((last - first + 1).sum() - np.count_nonzero(first == mib_before))
        self._backward += int(np.count_nonzero(file_offset[order] < end_before))
        self._last_mib_of[layer[is_last]] = last[is_last]
        self._end_of[layer[is_last]] = end[is_last]

    def _count_lengths(self, length: Int64s) -> None:
        lengths, times = np.unique(length, return_counts=True)
        self._length, index = np.unique(np.concatenate((self._length, lengths)), return_inverse=True)
        together = np.zeros(len(self._length), np.int64)
        np.add.at(together, index.reshape(-1), np.concatenate((self._times, times)))
        self._times = together

    def _median(self) -> float:
        """Exact: the mean of the two in the middle where their number is even."""
        if not self._runs:
            return 0.0
        reached = np.cumsum(self._times)
        low, high = np.searchsorted(reached, [(self._runs - 1) // 2, self._runs // 2], side="right")
        return float(self._length[low] + self._length[high]) / 2


def _part(plan: ReadPlan, rows: slice) -> ReadPlan:
    return ReadPlan(plan.offset[rows], plan.length[rows], plan.layer[rows], plan.file_offset[rows])

"""What merging layers would change: figures for one merge, and the merges that are worth their copying.

A plan is a way to cut the chain into groups of neighbouring layers, each of which becomes one::

    layers   0 1 2 3 4 5 6 7
    groups   0 [1 2 3] [4 5] 6 7        copies what 1, 2 hold, and what 4 holds

Both what a group saves and what it costs follow from its first and its last layer alone, so the best plan for
the first layers of a chain is made of best plans for fewer of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from vhdtool.simulate.copied import bytes_to_copy, copied_by_merges
from vhdtool.simulate.cost import simulate
from vhdtool.simulate.figures import Merge, MergePlan, Simulation, WhatIf
from vhdtool.simulate.merged import MergedImage, merged_chain

if TYPE_CHECKING:
    from vhdtool.chain.chain import Chain
    from vhdtool.simulate.workloads import Workload

Int64s = npt.NDArray[np.int64]

# So many plans for the first layers are gone on with.  As long as there are no more that are each cheaper or
# better than the others, the result is the best there is.
PLANS_KEPT: Final = 1 << 10
_RANGE: Final = re.compile(r"([0-9]{1,6})\.\.([0-9]{1,6})")


def parse_merge(text: str) -> tuple[int, int]:
    """``"1..3"``: the first and the last of the layers to be merged.

    Raises:
        ValueError: it is no such range.  Whether a chain has these layers is not known here.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not A..B, two layers of the chain counted from the leaf, which is 0")
    first, last = int(match[1]), int(match[2])
    if first >= last:
        raise ValueError(
            f"{text!r} does not begin above its end: layers are counted from the leaf, as in 1..3"
        )
    return first, last


def what_if(
    chain: Chain,
    first: int,
    last: int,
    workload: Workload,
    *,
    before: Simulation | None = None,
    **options: Any,
) -> WhatIf:
    """Simulate ``workload`` on ``chain``, and on ``chain`` with layers ``first`` to ``last`` as one.

    Nothing is written, and no payload is read; :mod:`.merged` says what the merged layer holds.

    Args:
        workload, options: as for :func:`~vhdtool.simulate.cost.simulate`; what is measured is the chain as
            it is.
        before: the simulation of the chain as it is, where there is one already.

    Raises:
        ValueError: these are not two layers of the chain, in this order.
        FormatError, ChainError: the chain is not sound.
    """
    merged = merged_chain(chain, first, last, engine=options.get("engine", "auto"))
    if before is None:
        before = simulate(chain, workload, **options)
    # There are no files of the merged chain to measure.
    after = simulate(merged, workload, **{**options, "measure": None})
    copied = bytes_to_copy(chain.images, first, last)
    saved = before.probes.mean - after.probes.mean
    return WhatIf(_merge(chain, first, last, copied, saved), before, after)


def plan_merges(chain: Chain, simulation: Simulation, budget: int) -> MergePlan:
    """The merges that together save most probes for at most ``budget`` bytes of copying.

    Savings are those of the simulation's lookups, one by one: a lookup that went on below a group of
    layers, or ended in it, meets one layer there instead.  (Simulated anew, the merged chain may count fewer
    lookups: its runs are longer.)  Merges are done one after the other in the order given, best first by
    probes saved for each byte; the files merged into another are removed before the next.

    Args:
        simulation: of ``chain``, with the workload to plan for.
        budget: bytes.

    Raises:
        ValueError: the budget is negative, or the simulation is of a deeper chain.
        FormatError, ChainError: the chain is not sound.
    """
    if budget < 0:
        raise ValueError(f"a budget of {budget} bytes is less than nothing")
    chain.require_sound()
    lookups = sum(simulation.depth_histogram)
    saved = saved_by_merges(simulation.depth_histogram, len(chain.layers))
    copied = copied_by_merges(chain.images)
    chosen = [
        _merge(chain, first, last, int(copied[first, last]), int(saved[first, last]) / lookups)
        for first, last in best_groups(copied, saved, budget)
    ]
    chosen.sort(key=lambda merge: merge.probes_saved / max(merge.bytes_to_copy, 1e-9), reverse=True)
    before = simulation.probes.mean
    return MergePlan(
        budget,
        tuple(chosen),
        sum(merge.bytes_to_copy for merge in chosen),
        peak_extra_bytes(chosen, [image.source.size for image in chain.images]),
        before,
        before - sum(merge.probes_saved for merge in chosen),
    )


def saved_by_merges(histogram: Sequence[int], depth: int) -> Int64s:
    """Probes that each merge saves of lookups with this depth histogram.

    Returns:
        int64[depth, depth]: [A, B] for A < B; 0 elsewhere.

    Raises:
        ValueError: a lookup consulted more layers than ``depth``.
    """
    if any(histogram[depth:]):
        raise ValueError(f"the simulation went deeper than the {depth} layers of the chain")
    lookups = np.zeros(depth, np.int64)
    lookups[: len(histogram)] = histogram[:depth]
    # Of layers A..B a lookup meets those down to where it ends; all but one of them it is spared.
    reached = np.cumsum(np.cumsum(lookups[::-1])[::-1])
    return np.triu(reached[None, :] - reached[:, None])


def best_groups(copied: Int64s, saved: Int64s, budget: int) -> list[tuple[int, int]]:
    """Disjoint ranges of layers that together save most, and of those the ones that copy least.

    Args:
        copied, saved: int64[n, n]: [A, B] of merging layers A to B; 0 on the diagonal.
        budget: bytes.
    """
    frontiers = [_Frontier.empty()]
    for count in range(1, len(copied) + 1):
        parts = [
            _Frontier.of_group(
                frontiers[first], first, int(copied[first, count - 1]), int(saved[first, count - 1])
            )
            for first in reversed(range(count))
        ]
        frontiers.append(_Frontier.best_of(parts, budget))
    groups = []
    count, plan = len(copied), -1
    while count:
        first, plan = int(frontiers[count].first[plan]), int(frontiers[count].plan[plan])
        if first < count - 1:
            groups.append((first, count - 1))
        count = first
    return groups[::-1]


@dataclass(frozen=True, slots=True, eq=False)
class _Frontier:
    """Plans for the first layers of a chain, of which none is both cheaper and better than another.

    Attributes:
        cost, saved: int64[k], both ascending.
        first: int64[k], the first layer of the plan's last group.
        plan: int64[k], which plan of the frontier for the layers above that group comes before it.
    """

    cost: Int64s
    saved: Int64s
    first: Int64s
    plan: Int64s

    @classmethod
    def empty(cls) -> _Frontier:
        """The plan for no layers."""
        zero = np.zeros(1, np.int64)
        return cls(zero, zero, zero, zero)

    @classmethod
    def of_group(cls, above: _Frontier, first: int, cost: int, saved: int) -> _Frontier:
        """The plans of ``above``, each with one group more."""
        count = len(above.cost)
        return cls(above.cost + cost, above.saved + saved, np.full(count, first), np.arange(count))

    @classmethod
    def best_of(cls, parts: Sequence[_Frontier], budget: int) -> _Frontier:
        """Those of all ``parts`` that are worth going on with; of equals the earliest."""
        every = cls(*(np.concatenate(column) for column in zip(*(part._columns() for part in parts))))
        every = every._rows(np.flatnonzero(every.cost <= budget))
        every = every._rows(np.lexsort((-every.saved, every.cost)))
        before = np.concatenate(([-1], np.maximum.accumulate(every.saved)[:-1]))
        every = every._rows(np.flatnonzero(every.saved > before))
        if len(every.cost) <= PLANS_KEPT:
            return every
        # The best of those that cost nearly the same, and the cheapest of all.
        nearly = every.cost // (int(every.cost[-1]) // PLANS_KEPT + 1)
        is_kept = np.concatenate((nearly[1:] != nearly[:-1], [True]))
        is_kept[0] = True
        return every._rows(np.flatnonzero(is_kept))

    def _columns(self) -> tuple[Int64s, ...]:
        return self.cost, self.saved, self.first, self.plan

    def _rows(self, rows: Int64s) -> _Frontier:
        return _Frontier(*(column[rows] for column in self._columns()))


def _merge(chain: Chain, first: int, last: int, copied: int, saved: float) -> Merge:
    growth = MergedImage(chain.layers[first : last + 1]).growth()
    return Merge(first, last, copied, growth, saved)


def peak_extra_bytes(merges: Sequence[Merge], file_sizes: Sequence[int]) -> int:
    """Bytes by which all files together are larger than now, at most, while ``merges`` are done in order.

    Args:
        file_sizes: of each layer, in bytes; the files of ``first`` to ``last - 1`` go after each merge.
    """
    peak = grown = 0
    for merge in merges:
        peak = max(peak, grown + merge.peak_extra_bytes)
        grown += merge.peak_extra_bytes - sum(file_sizes[merge.first : merge.last])
    return peak

"""Replays a workload through a chain and counts what its lookups cost.

::

    workload ──► batches of reads ──► lookups (lookups.py) ──► probes, bytes by layer, jumps ──┐
    chain ─────► plans of the whole disk ──► fragmentation, what is seen of each layer ────────┼──► Simulation
          └────► tables and bitmaps ──► what each layer holds, metadata ───────────────────────┘

No payload is read, apart from ``measure``.  Memory depends on the chain's tables, not on the number of reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from vhdtool.chain.engine import machine_for
from vhdtool.chain.flatten import bitmaps_within
from vhdtool.simulate.devices import STATED_DEVICES, DeviceModel, Io, device_figures
from vhdtool.simulate.figures import Fragmentation, LayerFigures, Probes, Simulation
from vhdtool.simulate.fragmentation import FragmentationCount
from vhdtool.simulate.layers import Holding, VisibleCount, bytes_by_layer, holding_of
from vhdtool.simulate.lookups import Rows, lookups_of
from vhdtool.simulate.measure import measure_reads
from vhdtool.simulate.metadata import metadata_bytes, time_lookups

if TYPE_CHECKING:
    from vhdtool.chain.chain import Chain
    from vhdtool.chain.engine import Engine
    from vhdtool.simulate.measure import Mode
    from vhdtool.simulate.workloads import Workload

Int64s = npt.NDArray[np.int64]

MEASURE_SECONDS: Final = 10.0
_TIMED_LOOKUPS_MAX: Final = 1 << 17


def simulate(
    chain: Chain,
    workload: Workload,
    *,
    devices: Sequence[DeviceModel] = STATED_DEVICES,
    engine: Engine = "auto",
    measure: Mode | None = None,
    seconds: float = MEASURE_SECONDS,
) -> Simulation:
    """What the reads of ``workload`` cost through ``chain``.

    Args:
        devices: what to predict rates for.
        measure: do the reads for real as well, through the page cache or with O_DIRECT, and for at most
            about ``seconds``.

    Raises:
        FormatError, ChainError: the chain is not sound.
        VhdtoolError: the workload cannot be had (a trace that breaks its format).
        ReadError: ``measure`` could not read.
    """
    chain.require_sound()
    name = engine_for(chain, workload, engine)
    resolved = chain.resolved(name)
    cost = LookupCost(len(chain.layers))
    sample = _Sample()
    for batch in workload.batches():
        sample.add(batch.offset)
        cost.begin(batch.length)
        for rows in lookups_of(resolved, batch.offset, batch.length):
            cost.add(rows)
    disk = survey_disk(chain, name)
    measured = None
    if measure is not None:
        measured = measure_reads(chain, workload.batches(), measure, engine=name, seconds=seconds)
    return Simulation(
        workload=workload.describe(),
        reads=cost.reads,
        bytes=cost.bytes,
        device_reads=cost.device_reads,
        lookups=cost.lookups,
        probes=cost.probes(),
        depth_histogram=cost.depth_histogram,
        layers=_layer_figures(chain, cost, disk),
        fragmentation=disk.fragmentation,
        metadata_bytes=metadata_bytes(chain.images, resolved, disk.holdings, name),
        ns_per_lookup=time_lookups(chain.images, resolved, sample.offsets(), disk.holdings, name),
        devices=tuple(device_figures(device, cost.io()) for device in devices),
        engine=name,
        measured=measured,
    )


def engine_for(chain: Chain, workload: Workload, engine: Engine) -> Literal["numpy", "numba"]:
    """The engine for a simulation: by name, or the cheaper one for these bitmaps and reads.

    A recorded workload does not say how many reads it has; it is parsed line by line, which takes longer
    than looking them up does with either engine.
    """
    bitmaps = bitmaps_within(chain.images, 0, chain.virtual_size)
    return machine_for(engine, bitmaps=bitmaps, lookups=getattr(workload, "reads", 0)).name


def allocated_ranges(chain: Chain) -> tuple[Int64s, Int64s]:
    """The parts of the disk that some layer holds: int64[n] first bytes and lengths; none touch."""
    parts = [np.empty((2, 0), np.int64)]
    for plan in chain.windows():
        data = plan.layer >= 0
        parts.append(_joined(np.stack((plan.offset[data], (plan.offset + plan.length)[data]))))
    start, stop = _joined(np.concatenate(parts, axis=1))
    return start, stop - start


def _joined(ranges: Int64s) -> Int64s:
    """Ranges as rows of starts and stops, ascending: those that touch made one."""
    start, stop = ranges
    apart = start[1:] > stop[:-1]
    edge = np.ones(min(1, len(start)), np.bool_)
    return np.stack((start[np.concatenate((edge, apart))], stop[np.concatenate((apart, edge))]))


class LookupCost:
    """Adds up lookups in the order in which they come.

    Attributes:
        reads, bytes: of the workload, zeros included.
        device_reads: those of which some layer's file holds anything.
        lookups: runs that reads touch.
        bytes_served: by layer; what no layer holds is in none.
    """

    def __init__(self, depth: int) -> None:
        self.reads = self.bytes = self.device_reads = self.lookups = 0
        self.bytes_served = [0] * depth
        self._asked = np.zeros(depth + 1, np.int64)
        self._jumps = self._jumps_flat = 0
        self._read = -1  # the last one that a file holds anything of, in its batch
        # Where the last piece of I/O ended: in which layer's file, and in the disk.
        self._layer, self._end, self._end_flat = -1, -1, -1

    def begin(self, length: Int64s) -> None:
        """Reads of these lengths come next, and then their lookups."""
        self.reads += len(length)
        self.bytes += int(length.sum())
        self._read = -1

    def add(self, rows: Rows) -> None:
        """Lookups of the reads that began."""
        asked = rows.probes[~rows.goes_on]
        self.lookups += len(asked)
        self._asked += np.bincount(asked, minlength=len(self._asked))
        for layer, size in enumerate(bytes_by_layer(rows.layer, rows.length, len(self.bytes_served))):
            self.bytes_served[layer] += size
        self._add_io(rows)

    def _add_io(self, rows: Rows) -> None:
        """Count the pieces of I/O that do not go on where the one before them ended."""
        data = np.flatnonzero(rows.layer >= 0)
        if not len(data):
            return
        layer, length = rows.layer[data], rows.length[data]
        start, offset = rows.file_offset[data], rows.offset[data]
        read = rows.read[data]
        self.device_reads += int(np.count_nonzero(np.diff(read, prepend=self._read)))
        self._read = int(read[-1])
        end, end_flat = start + length, offset + length
        same_file = layer == np.concatenate(([self._layer], layer[:-1]))
        goes_on = same_file & (start == np.concatenate(([self._end], end[:-1])))
        goes_on_flat = offset == np.concatenate(([self._end_flat], end_flat[:-1]))
        self._jumps += int(np.count_nonzero(~goes_on))
        self._jumps_flat += int(np.count_nonzero(~goes_on_flat))
        self._layer, self._end, self._end_flat = int(layer[-1]), int(end[-1]), int(end_flat[-1])

    @property
    def depth_histogram(self) -> tuple[int, ...]:
        """``[i]`` is how many lookups consulted i + 1 layers."""
        return tuple(self._asked[1:].tolist())

    def probes(self) -> Probes:
        """Mean, median, 99th percentile and maximum; percentiles are nearest ranks."""
        if not self.lookups:
            return Probes(0.0, 0, 0, 0)
        total = int(self._asked @ np.arange(len(self._asked)))
        reached = np.cumsum(self._asked)
        ranks = [-(-self.lookups * percent // 100) for percent in (50, 99, 100)]
        p50, p99, highest = np.searchsorted(reached, ranks).tolist()
        return Probes(total / self.lookups, p50, p99, highest)

    def io(self) -> Io:
        """What a device's time depends on."""
        return Io(self.device_reads, sum(self.bytes_served), self._jumps, self._jumps_flat)


@dataclass(frozen=True, slots=True)
class DiskSurvey:
    """What the whole disk looks like, whatever is read of it.

    Attributes:
        holdings: of each layer.
        bytes_visible: of each layer, by a read of the whole disk.
    """

    fragmentation: Fragmentation
    holdings: tuple[Holding, ...]
    bytes_visible: tuple[int, ...]


def survey_disk(chain: Chain, engine: Engine = "auto") -> DiskSurvey:
    """Go once over the plans of the disk, and once over each layer's tables and bitmaps."""
    fragmentation = FragmentationCount(len(chain.layers))
    visible = VisibleCount(len(chain.layers))
    for plan in chain.windows(engine=engine):
        fragmentation.add(plan)
        visible.add(plan)
    holdings = tuple(holding_of(image) for image in chain.images)
    return DiskSurvey(fragmentation.result(), holdings, tuple(visible.bytes_visible))


def _layer_figures(chain: Chain, cost: LookupCost, disk: DiskSurvey) -> tuple[LayerFigures, ...]:
    served = sum(cost.bytes_served)
    return tuple(
        LayerFigures(
            layer=number,
            path=str(layer.path),
            bytes_served=cost.bytes_served[number],
            share=cost.bytes_served[number] / served if served else 0.0,
            bytes_stored=disk.holdings[number].bytes_stored,
            bytes_visible=disk.bytes_visible[number],
            bytes_shadowed=disk.holdings[number].bytes_stored - disk.bytes_visible[number],
        )
        for number, layer in enumerate(chain.layers)
    )


class _Sample:
    """The first offsets of a workload: those that lookups are timed with."""

    def __init__(self) -> None:
        self._parts: list[Int64s] = []
        self._left = _TIMED_LOOKUPS_MAX

    def add(self, offset: Int64s) -> None:
        part = offset[: self._left].copy()
        if len(part):
            self._parts.append(part)
            self._left -= len(part)

    def offsets(self) -> Int64s:
        return np.concatenate([np.empty(0, np.int64), *self._parts])

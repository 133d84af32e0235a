"""What simulations and measurements find, as values: made in this room, shown by ``report``.

No NumPy here: a page or a table of figures can be made wherever these came from.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Probes:
    """Layers whose tables a walk consults for one lookup: *lookup amplification*."""

    mean: float
    p50: int
    p99: int
    max: int


@dataclass(frozen=True, slots=True)
class LayerFigures:
    """One layer's part.  Sizes are bytes.

    Attributes:
        bytes_served: of the workload's reads; ``share`` of all bytes that some layer served.
        bytes_stored: what the layer holds of its own disk, by its tables and bitmaps.
        bytes_visible: of those, what a read of the whole leaf gets from here.
        bytes_shadowed: the rest: hidden by layers above or beyond the leaf's end; what a merge gives back.
    """

    layer: int
    path: str
    bytes_served: int
    share: float
    bytes_stored: int
    bytes_visible: int
    bytes_shadowed: int


@dataclass(frozen=True, slots=True)
class Fragmentation:
    """What reading the whole disk in order meets, for each MiB of the disk that has data.

    Attributes:
        runs_per_mib: runs, cut at whole MiB of the disk.
        files_per_mib: different files.
        backward_per_mib: runs that begin before the place where the last one of the same file ended.
        mean_run, median_run: bytes of data runs, uncut; 0 when there are none.
    """

    runs_per_mib: float
    files_per_mib: float
    backward_per_mib: float
    mean_run: float
    median_run: float


@dataclass(frozen=True, slots=True)
class MetadataBytes:
    """Bytes to keep in memory for lookups without I/O: all tables and bitmaps, and our resolved map.

    ``resolved_is_estimate``: the disk is too large to resolve it all; a part of it was, and the rest is
    taken to be like it.
    """

    naive: int
    resolved: int
    resolved_is_estimate: bool = False


@dataclass(frozen=True, slots=True)
class LookupTime:
    """Nanoseconds of one lookup, measured in this process by ``engine``."""

    walk: float
    resolved: float


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """What a model of a device makes of the workload; simulated, no device was asked.

    Attributes:
        iops, mb_per_s: reads that reach the device and their bytes / 10**6 a second; None when none does: no
            I/O, no limit.
        relative_to_flat: IOPS through the chain over IOPS of the same disk flattened; 1 without any I/O.
    """

    name: str
    iops: float | None
    mb_per_s: float | None
    relative_to_flat: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What really reading took.  ``mode`` is "cache" (through the page cache) or "direct" (O_DIRECT)."""

    mode: str
    reads: int
    bytes: int
    seconds: float
    iops: float
    mb_per_s: float


@dataclass(frozen=True, slots=True)
class Simulation:
    """A workload replayed through a chain.

    Attributes:
        workload: in words, with its parameters.
        reads, bytes: of the workload; a read is one or more lookups.
        device_reads: those of which some file holds anything; the others are zeros that nobody has to read.
        lookups: one for each run that a read touches; runs end at the ends of blocks and of layers' disks.
        depth_histogram: [i] is how many lookups consulted i + 1 layers.
    """

    workload: str
    reads: int
    bytes: int
    device_reads: int
    lookups: int
    probes: Probes
    depth_histogram: tuple[int, ...]
    layers: tuple[LayerFigures, ...]
    fragmentation: Fragmentation
    metadata_bytes: MetadataBytes
    ns_per_lookup: LookupTime
    devices: tuple[DeviceFigures, ...]
    engine: str
    measured: Measured | None = None

    @property
    def zero_reads(self) -> int:
        """Reads that reach no device."""
        return self.reads - self.device_reads


@dataclass(frozen=True, slots=True)
class Merge:
    """Layers ``first`` to ``last`` folded into ``last``.  Sizes are bytes.

    Attributes:
        bytes_to_copy: what layers ``first`` to ``last - 1`` hold together, each byte once.
        peak_extra_bytes: by how much ``last`` grows before the other files go.
        probes_saved: per lookup of the workload, in the mean.
    """

    first: int
    last: int
    bytes_to_copy: int
    peak_extra_bytes: int
    probes_saved: float


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The same workload on the chain as it is and as it would be."""

    merge: Merge
    before: Simulation
    after: Simulation


@dataclass(frozen=True, slots=True)
class MergePlan:
    """The merges that save most probes for each byte copied, within ``budget`` bytes of copying."""

    budget: int
    merges: tuple[Merge, ...]
    bytes_to_copy: int
    peak_extra_bytes: int
    probes_mean_before: float
    probes_mean_after: float


@dataclass(frozen=True, slots=True)
class DepthRow:
    """What one synthetic chain of ``depth`` differencing layers above a base cost.

    Times are nanoseconds, rates per second; None where it was not measured (a program that is not there).
    """

    format: str
    depth: int
    probes: Probes
    runs_per_mib: float
    files_per_mib: float
    mean_run: float
    metadata_bytes: MetadataBytes
    ns_per_lookup: LookupTime
    reads_per_s: float
    sequential_mb_per_s: float
    reads_relative_to_flat: float
    sequential_relative_to_flat: float
    libvhdi_reads_per_s: float | None
    libvhdi_sequential_mb_per_s: float | None


@dataclass(frozen=True, slots=True)
class DepthBenchmark:
    """All of ``bench depth``.

    Attributes:
        settings: the options that it was run with.
        started: ISO 8601, UTC.
        notes: sentences on what is missing or odd: why libvhdi was left out.
    """

    settings: dict[str, int | float | str]
    machine: str
    started: str
    rows: tuple[DepthRow, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PointCost:
    """What reads cost at one point in time of a chain.

    Attributes:
        layer: the image whose disk is read; 0 is the leaf.
        depth: how many layers it is read through, itself among them.
        probes: of lookups of one byte anywhere in what some layer holds, each as likely as the others.
        bytes_by_probes: [i] is how many bytes of data have i + 1 layers asked for them.
        in_order: what devices make of reading the whole disk once, from its first byte to its last.
    """

    layer: int
    depth: int
    probes: Probes
    bytes_by_probes: tuple[int, ...]
    in_order: tuple[DeviceFigures, ...]

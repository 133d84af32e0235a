"""What a workload costs: simulations, what merges would change, and the merges worth making."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from vhdtool.report.text import Document, Paint, count, name_of, plain, size_text, table

if TYPE_CHECKING:
    from vhdtool.simulate.figures import Measured, Merge, MergePlan, Simulation, WhatIf

# Rows of the histogram that a terminal shows; depths are taken together where there are more.
_HISTOGRAM_ROWS: Final = 12
_BAR_WIDTH: Final = 30


def simulation_json(simulation: Simulation) -> Document:
    """The document of ``simulate --json``.

    Rates of devices are null when nothing had to be read, ``measured`` unless ``--measure`` asked for it.
    """
    probes, time = simulation.probes, simulation.ns_per_lookup
    metadata, broken = simulation.metadata_bytes, simulation.fragmentation
    return {
        "workload": simulation.workload,
        "reads": simulation.reads,
        "bytes": simulation.bytes,
        "device_reads": simulation.device_reads,
        "lookups": simulation.lookups,
        "probes": {"mean": probes.mean, "p50": probes.p50, "p99": probes.p99, "max": probes.max},
        "depth_histogram": list(simulation.depth_histogram),
        "layers": [
            {
                "layer": layer.layer,
                "path": layer.path,
                "bytes_served": layer.bytes_served,
                "share": layer.share,
                "bytes_stored": layer.bytes_stored,
                "bytes_visible": layer.bytes_visible,
                "bytes_shadowed": layer.bytes_shadowed,
            }
            for layer in simulation.layers
        ],
        "fragmentation": {
            "runs_per_mib": broken.runs_per_mib,
            "files_per_mib": broken.files_per_mib,
            "backward_per_mib": broken.backward_per_mib,
            "mean_run": broken.mean_run,
            "median_run": broken.median_run,
        },
        "metadata_bytes": {
            "naive": metadata.naive,
            "resolved": metadata.resolved,
            "resolved_is_estimate": metadata.resolved_is_estimate,
        },
        "ns_per_lookup": {"walk": time.walk, "resolved": time.resolved},
        "devices": [
            {
                "name": device.name,
                "iops": device.iops,
                "mb_per_s": device.mb_per_s,
                "relative_to_flat": device.relative_to_flat,
            }
            for device in simulation.devices
        ],
        "engine": simulation.engine,
        "simulated": True,
        "measured": None if simulation.measured is None else _measured_json(simulation.measured),
    }


def _measured_json(measured: Measured) -> Document:
    return {
        "mode": measured.mode,
        "reads": measured.reads,
        "bytes": measured.bytes,
        "seconds": measured.seconds,
        "iops": measured.iops,
        "mb_per_s": measured.mb_per_s,
    }


def what_if_json(what_if: WhatIf) -> Document:
    """The value of ``what_if`` in the document: the merge, and the same figures after it."""
    return {**_merge_json(what_if.merge), "after": simulation_json(what_if.after)}


def plan_json(plan: MergePlan) -> Document:
    """The value of ``plan`` in the document."""
    return {
        "budget": plan.budget,
        "merges": [_merge_json(merge) for merge in plan.merges],
        "bytes_to_copy": plan.bytes_to_copy,
        "peak_extra_bytes": plan.peak_extra_bytes,
        "probes_mean_before": plan.probes_mean_before,
        "probes_mean_after": plan.probes_mean_after,
    }


def _merge_json(merge: Merge) -> Document:
    return {
        "first": merge.first,
        "last": merge.last,
        "bytes_to_copy": merge.bytes_to_copy,
        "peak_extra_bytes": merge.peak_extra_bytes,
        "probes_saved": merge.probes_saved,
    }


def simulation_text(simulation: Simulation, paint: Paint = plain) -> str:
    """The simulation for people, in sections."""
    return "\n\n".join(
        [
            _head(simulation, paint),
            _amplification(simulation, paint),
            _layers(simulation, paint),
            _fragmentation(simulation, paint),
            _lookups(simulation, paint),
            _devices(simulation, paint),
        ]
    )


def _head(simulation: Simulation, paint: Paint) -> str:
    size, reads = size_text(simulation.bytes), count(simulation.reads, "read")
    lookups = count(simulation.lookups, "lookup")
    return f"{paint('Simulated', 'name')}  {simulation.workload}\n{reads} of {size} together, {lookups}"


def _amplification(simulation: Simulation, paint: Paint) -> str:
    probes = simulation.probes
    figures = f"mean {probes.mean:.2f}, median {probes.p50}, 99 % {probes.p99}, highest {probes.max}"
    title = paint("Lookup amplification", "name") + " (simulated): layers asked for each lookup"
    rows = []
    most = 0
    for first, stop in pairwise(_histogram_edges(probes.max)):
        number = sum(simulation.depth_histogram[first - 1 : stop - 1])
        most = max(most, number)
        rows.append((str(first) if stop == first + 1 else f"{first}-{stop - 1}", number))
    bars = [
        (asked, number, _percent(number, simulation.lookups), "#" * -(-number * _BAR_WIDTH // max(1, most)))
        for asked, number in rows
    ]
    return f"{title}\n{figures}\n" + table(("Layers", "Lookups", "Share", ""), bars, right=(0, 1, 2))


def _histogram_edges(highest: int) -> list[int]:
    """Where the rows of the histogram begin, and where the last one ends."""
    width = max(1, -(-highest // _HISTOGRAM_ROWS))
    return [*range(1, highest + 1, width), highest + 1]


def _layers(simulation: Simulation, paint: Paint) -> str:
    rows = [
        (
            layer.layer,
            size_text(layer.bytes_served),
            f"{layer.share:.1%}",
            size_text(layer.bytes_stored),
            size_text(layer.bytes_visible),
            size_text(layer.bytes_shadowed),
            name_of(layer.path),
        )
        for layer in simulation.layers
    ]
    header = ("Layer", "Served", "Share", "Stored", "Visible", "Shadowed", "File")
    return paint("Layers", "name") + "\n" + table(header, rows, right=range(6))


def _fragmentation(simulation: Simulation, paint: Paint) -> str:
    broken = simulation.fragmentation
    return (
        f"{paint('Fragmentation', 'name')}, for each MiB of the disk that has data, read in order\n"
        f"{broken.runs_per_mib:.2f} runs, {broken.files_per_mib:.2f} files, "
        f"{broken.backward_per_mib:.2f} steps back; "
        f"a run has {size_text(round(broken.mean_run))} in the mean, "
        f"{size_text(round(broken.median_run))} in the median"
    )


def _lookups(simulation: Simulation, paint: Paint) -> str:
    metadata, time = simulation.metadata_bytes, simulation.ns_per_lookup
    about = "about " if metadata.resolved_is_estimate else ""
    rows = [
        ("walk", f"{time.walk:.0f} ns", size_text(metadata.naive)),
        ("resolved map", f"{time.resolved:.0f} ns", about + size_text(metadata.resolved)),
    ]
    title = paint("Lookups", "name") + f", timed here with {simulation.engine}"
    return f"{title}\n" + table(("How", "Each takes", "Metadata in memory"), rows, right=(1, 2))


def _devices(simulation: Simulation, paint: Paint) -> str:
    zeros = simulation.zero_reads
    rows: list[Sequence[object]] = [
        (
            device.name,
            _rate(device.iops, 0),
            _rate(device.mb_per_s, 1),
            f"{device.relative_to_flat:.3f}",
            "simulated",
        )
        for device in simulation.devices
    ]
    if simulation.measured is not None:
        measured = simulation.measured
        how = "page cache" if measured.mode == "cache" else "O_DIRECT"
        reads = count(measured.reads, "read") + (", of zeros too," if zeros else "")
        did = f"measured: {reads} in {measured.seconds:.1f} s, {how}"
        rows.append(("this machine", f"{measured.iops:.0f}", f"{measured.mb_per_s:.1f}", "", did))
    title = paint("Devices", "name") + ", one read at a time, metadata in memory"
    if zeros:
        title += f"; {count(zeros, 'read')} of zeros not counted"
    return f"{title}\n" + table(("Device", "IOPS", "MB/s", "Of flat", ""), rows, right=(1, 2, 3))


def what_if_text(what_if: WhatIf, paint: Paint = plain) -> str:
    """The figures that a merge changes, before and after it."""
    merge, before, after = what_if.merge, what_if.before, what_if.after
    rows: list[Sequence[object]] = [
        ("layers", len(before.layers), len(after.layers)),
        ("probes, mean", f"{before.probes.mean:.2f}", f"{after.probes.mean:.2f}"),
        ("probes, 99 %", before.probes.p99, after.probes.p99),
        ("lookups", before.lookups, after.lookups),
        (
            "runs for each MiB",
            f"{before.fragmentation.runs_per_mib:.2f}",
            f"{after.fragmentation.runs_per_mib:.2f}",
        ),
        ("walk, ns", f"{before.ns_per_lookup.walk:.0f}", f"{after.ns_per_lookup.walk:.0f}"),
        ("shadowed", *(size_text(sum(layer.bytes_shadowed for layer in s.layers)) for s in (before, after))),
        *(
            (f"{one.name}, IOPS", _rate(one.iops, 0), _rate(other.iops, 0))
            for one, other in zip(before.devices, after.devices)
        ),
    ]
    title = paint("What if", "name") + f" layers {merge.first} to {merge.last} were merged (simulated)"
    return (
        f"{title}\n{size_text(merge.bytes_to_copy)} to copy, {size_text(merge.peak_extra_bytes)} more space "
        f"for a while, {merge.probes_saved:.2f} probes saved for each lookup\n"
        + table(("", "Before", "After"), rows, right=(1, 2))
    )


def plan_text(plan: MergePlan, paint: Paint = plain) -> str:
    """The merges that are worth making."""
    title = paint("Merges", "name") + f" that save most for at most {size_text(plan.budget)} of copying"
    if not plan.merges:
        return f"{title}\nnone"
    rows = [
        (
            f"{merge.first}..{merge.last}",
            size_text(merge.bytes_to_copy),
            size_text(merge.peak_extra_bytes),
            f"{merge.probes_saved:.3f}",
        )
        for merge in plan.merges
    ]
    return (
        f"{title} (simulated)\n"
        + table(("Layers", "To copy", "Extra space", "Probes saved"), rows, right=(1, 2, 3))
        + f"\nTogether {size_text(plan.bytes_to_copy)} to copy; probes for each lookup "
        f"{plan.probes_mean_before:.2f} before, {plan.probes_mean_after:.2f} after"
    )


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0.0%"


def _rate(rate: float | None, digits: int) -> str:
    return "no limit" if rate is None else f"{rate:.{digits}f}"

"""Simulations and benchmarks as facts, charts and tables for pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from vhdtool.errors import printable
from vhdtool.report.charts import Chart, Series, histogram, line_chart, number_text
from vhdtool.report.depth import has_libvhdi
from vhdtool.report.templates import Table
from vhdtool.report.text import count, size_text
from vhdtool.simulate.figures import (
    DepthBenchmark,
    DepthRow,
    MergePlan,
    PointCost,
    Probes,
    Simulation,
    WhatIf,
)

# What stands above a table, the table, and a line of explanation.
NamedTable = tuple[str, Table, str]
# A value and what it is.
Fact = tuple[str, str]

_LIBVHDI = "libvhdi"


def simulation_facts(simulation: Simulation) -> list[Fact]:
    """The figures that one looks for first."""
    fragmentation = simulation.fragmentation
    return [
        (number_text(simulation.lookups), "lookups"),
        *probe_facts(simulation.probes),
        (number_text(fragmentation.runs_per_mib), "runs per MiB in order"),
        (number_text(fragmentation.files_per_mib), "files per MiB in order"),
        (size_text(round(fragmentation.mean_run)), "mean run of data"),
    ]


def probe_facts(probes: Probes) -> list[Fact]:
    """What one lookup costs."""
    return [
        (number_text(probes.mean), "layers asked per lookup, mean"),
        (f"{probes.p50} / {probes.p99} / {probes.max}", "median / 99 % / most"),
    ]


def simulation_charts(simulation: Simulation, when: str = "") -> list[Chart]:
    """How deep lookups go, and which layers answer; ``when`` ends the titles."""
    served = [layer.bytes_served for layer in simulation.layers]
    return _drawn(
        histogram(
            f"How many layers a lookup asks{when}",
            simulation.depth_histogram,
            x_title="layers asked",
        ),
        histogram(f"Which layer the bytes come from{when}", served, x_title="layer", first=0),
    )


def simulation_tables(simulation: Simulation, plan: MergePlan | None = None) -> list[NamedTable]:
    """Everything that a simulation counted, as tables."""
    tables = []
    if plan is not None:
        tables.append(_plan_table(plan))
    layers = Table.of(
        ("Layer", "Read from it", "Share", "Stored", "Seen", "Hidden", "File"),
        [
            (
                layer.layer,
                size_text(layer.bytes_served),
                f"{100 * layer.share:.1f} %",
                size_text(layer.bytes_stored),
                size_text(layer.bytes_visible),
                size_text(layer.bytes_shadowed),
                printable(layer.path),
            )
            for layer in simulation.layers
        ],
        texts=(6,),
    )
    tables.append(("Layers", layers, "Hidden bytes are what merging gives back."))
    zeros = simulation.zero_reads
    note = (
        "Models with one request at a time and no cache, and their rate against the same disk flattened. "
        "Simulated: no device was asked."
        + (f" {count(zeros, 'read')} of zeros reach none and do not count." if zeros else "")
    )
    devices = device_table(simulation)
    if devices is not None:
        tables.append(("Devices", devices, note))
    tables.append(("Metadata and lookups", _metadata_table(simulation), ""))
    if simulation.measured is not None:
        tables.append(("Measured", _measured_table(simulation), "These reads were done."))
    return tables


def device_table(simulation: Simulation) -> Table | None:
    """What each device makes of the workload; None when none was asked for."""
    if not simulation.devices:
        return None
    rows = [
        (printable(d.name), _rate(d.iops), _rate(d.mb_per_s), f"{100 * d.relative_to_flat:.0f} %")
        for d in simulation.devices
    ]
    return Table.of(("Device", "Reads/s", "MB/s", "Of flat"), rows)


def what_if_tables(result: WhatIf) -> list[NamedTable]:
    """A merge, and the figures before and after it beside each other."""
    merge = result.merge
    rows: list[tuple[str, str, str]] = [
        (name, value, after)
        for (value, name), (after, _) in zip(simulation_facts(result.before), simulation_facts(result.after))
    ]
    rows.extend(
        (f"{printable(b.name)}: reads/s", _rate(b.iops), _rate(a.iops))
        for b, a in zip(result.before.devices, result.after.devices)
    )
    note = (
        f"Merging layers {merge.first} to {merge.last} copies {size_text(merge.bytes_to_copy)}, needs "
        f"{size_text(merge.peak_extra_bytes)} more for a while, and saves {number_text(merge.probes_saved)} "
        "layers asked per lookup."
    )
    return [("What the merge changes", Table.of(("", "As it is", "Merged"), rows), note)]


def point_charts(points: Sequence[PointCost]) -> list[Chart]:
    """Cost over depth for points of one chain, and how deep the lookups of the leaf go.

    Args:
        points: by rising depth; the last one is the leaf.
    """
    is_curve = len(points) > 1
    depth = "layers that the point in time is read through"
    probes = [
        Series("mean", [(float(point.depth), point.probes.mean) for point in points]),
        Series("99 %", [(float(point.depth), float(point.probes.p99)) for point in points]),
    ]
    in_order = [
        Series(
            printable(device.name),
            [(float(point.depth), 100 * point.in_order[i].relative_to_flat) for point in points],
        )
        for i, device in enumerate(points[-1].in_order)
    ]
    return _drawn(
        line_chart("Layers asked per lookup", probes if is_curve else [], x_title=depth),
        line_chart("Reading in order, % of a flat disk's speed", in_order if is_curve else [], x_title=depth),
        histogram("How many layers a lookup asks", points[-1].bytes_by_probes, x_title="layers asked"),
    )


def in_order_table(point: PointCost) -> Table | None:
    """What each device makes of reading the whole disk; None when none was asked for."""
    rows = [
        (printable(device.name), _rate(device.mb_per_s), f"{100 * device.relative_to_flat:.0f} %")
        for device in point.in_order
    ]
    return Table.of(("Device", "MB/s in order", "Of a flat disk"), rows) if rows else None


def benchmark_charts(benchmark: DepthBenchmark) -> list[Chart]:
    """A curve over depth for each thing that was measured."""

    def curve(title: str, lines: Iterable[Series], *, log: bool = True) -> Chart | None:
        return line_chart(title, list(lines), x_title="depth", log_x=True, log_y=log)

    return _drawn(
        curve("Layers asked per lookup", _lines(benchmark, "", lambda row: row.probes.mean), log=False),
        curve(
            "Nanoseconds per lookup",
            [
                *_lines(benchmark, "walk", lambda row: row.ns_per_lookup.walk),
                *_lines(benchmark, "resolved", lambda row: row.ns_per_lookup.resolved),
            ],
        ),
        curve(
            "Random reads per second",
            [
                *_lines(benchmark, "", lambda row: row.reads_per_s),
                *_lines(benchmark, _LIBVHDI, lambda row: row.libvhdi_reads_per_s),
            ],
        ),
        curve(
            "Sequential MB/s",
            [
                *_lines(benchmark, "", lambda row: row.sequential_mb_per_s),
                *_lines(benchmark, _LIBVHDI, lambda row: row.libvhdi_sequential_mb_per_s),
            ],
        ),
        curve("Runs per MiB", _lines(benchmark, "", lambda row: row.runs_per_mib)),
        curve(
            "Bytes of metadata to keep",
            [
                *_lines(benchmark, "naive", lambda row: float(row.metadata_bytes.naive)),
                *_lines(benchmark, "resolved", lambda row: float(row.metadata_bytes.resolved)),
            ],
        ),
    )


def benchmark_table(benchmark: DepthBenchmark) -> Table:
    """A row for each format and depth."""
    head = (
        "Format",
        "Depth",
        "Layers asked, mean",
        "99 %",
        "Runs per MiB",
        "Files per MiB",
        "Walk, ns",
        "Resolved, ns",
        "Reads/s",
        "Of flat",
        "MB/s",
        "Of flat",
        *(("libvhdi reads/s", "libvhdi MB/s") if has_libvhdi(benchmark) else ()),
    )
    rows = [
        (
            printable(row.format.upper()),
            row.depth,
            number_text(row.probes.mean),
            row.probes.p99,
            number_text(row.runs_per_mib),
            number_text(row.files_per_mib),
            number_text(row.ns_per_lookup.walk),
            number_text(row.ns_per_lookup.resolved),
            _rate(row.reads_per_s),
            f"{100 * row.reads_relative_to_flat:.0f} %",
            _rate(row.sequential_mb_per_s),
            f"{100 * row.sequential_relative_to_flat:.0f} %",
            *(
                (_rate(row.libvhdi_reads_per_s), _rate(row.libvhdi_sequential_mb_per_s))
                if has_libvhdi(benchmark)
                else ()
            ),
        )
        for row in benchmark.rows
    ]
    return Table.of(head, rows)


def _lines(
    benchmark: DepthBenchmark, name: str, value: Callable[[DepthRow], float | None]
) -> Iterable[Series]:
    """A line for each format; rows without a value, or with none that has a logarithm, are left out."""
    for image_format in dict.fromkeys(row.format for row in benchmark.rows):
        rows = sorted((row for row in benchmark.rows if row.format == image_format), key=lambda r: r.depth)
        points = [(float(row.depth), number) for row in rows if (number := value(row))]
        yield Series(printable(f"{image_format.upper()} {name}".strip()), points)


def _plan_table(plan: MergePlan) -> NamedTable:
    rows = [
        (
            f"{merge.first} to {merge.last}",
            size_text(merge.bytes_to_copy),
            size_text(merge.peak_extra_bytes),
            number_text(merge.probes_saved),
        )
        for merge in plan.merges
    ]
    note = (
        f"Within {size_text(plan.budget)} of copying: {size_text(plan.bytes_to_copy)} copied, "
        f"{number_text(plan.probes_mean_before)} layers asked per lookup become "
        f"{number_text(plan.probes_mean_after)}."
    )
    table = Table.of(("Layers", "To copy", "Extra room", "Fewer layers asked per lookup"), rows)
    return "Merges that pay most", table, note


def _metadata_table(simulation: Simulation) -> Table:
    return Table.of(
        ("", "Walk through the layers", "Resolved map"),
        [
            (
                "metadata to keep in memory",
                size_text(simulation.metadata_bytes.naive),
                size_text(simulation.metadata_bytes.resolved),
            ),
            (
                f"one lookup, measured with {printable(simulation.engine)}",
                f"{number_text(simulation.ns_per_lookup.walk)} ns",
                f"{number_text(simulation.ns_per_lookup.resolved)} ns",
            ),
        ],
    )


def _measured_table(simulation: Simulation) -> Table:
    measured = simulation.measured
    assert measured is not None
    mode = {"cache": "through the page cache", "direct": "with O_DIRECT"}.get(measured.mode, measured.mode)
    row = (
        printable(mode),
        number_text(measured.reads),
        size_text(measured.bytes),
        f"{measured.seconds:.2f} s",
        _rate(measured.iops),
        _rate(measured.mb_per_s),
    )
    return Table.of(("", "Reads", "Bytes", "Time", "Reads/s", "MB/s"), [row])


def _rate(value: float | None) -> str:
    """A rate; a dash where there is none."""
    return "–" if value is None else number_text(value)


def _drawn(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]

"""The benchmark of snapshot depth: tables, and JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from vhdtool.report.text import Document, Paint, plain, size_text, table, wrapped

if TYPE_CHECKING:
    from vhdtool.simulate.figures import DepthBenchmark, DepthRow

_NONE: Final = "-"
_LIBVHDI: Final = "libvhdi"
_OURS_OVER: Final = "Ours / it"
_Column = tuple[str, Callable[["DepthRow"], object]]

_LOOKUPS: Final[Sequence[_Column]] = (
    ("Probes", lambda row: f"{row.probes.mean:.1f}"),
    ("Median", lambda row: row.probes.p50),
    ("99 %", lambda row: row.probes.p99),
    ("Most", lambda row: row.probes.max),
    ("Walk", lambda row: f"{row.ns_per_lookup.walk:.0f} ns"),
    ("Map", lambda row: f"{row.ns_per_lookup.resolved:.0f} ns"),
    ("Walk / map", lambda row: _times(row.ns_per_lookup.walk / row.ns_per_lookup.resolved)),
)
_READS: Final[Sequence[_Column]] = (
    ("4 KiB reads", lambda row: f"{row.reads_per_s:,.0f}/s"),
    ("Of flat", lambda row: _percent(row.reads_relative_to_flat)),
    (_LIBVHDI, lambda row: _rate(row.libvhdi_reads_per_s, "/s")),
    (_OURS_OVER, lambda row: _over(row.reads_per_s, row.libvhdi_reads_per_s)),
    ("In order", lambda row: _rate(row.sequential_mb_per_s, " MB/s")),
    ("Of flat", lambda row: _percent(row.sequential_relative_to_flat)),
    (_LIBVHDI, lambda row: _rate(row.libvhdi_sequential_mb_per_s, " MB/s")),
    (_OURS_OVER, lambda row: _over(row.sequential_mb_per_s, row.libvhdi_sequential_mb_per_s)),
)
_DISK: Final[Sequence[_Column]] = (
    ("Runs/MiB", lambda row: f"{row.runs_per_mib:.1f}"),
    ("Files/MiB", lambda row: f"{row.files_per_mib:.1f}"),
    ("Mean run", lambda row: size_text(round(row.mean_run))),
    ("Tables, naive", lambda row: size_text(row.metadata_bytes.naive)),
    ("Map", lambda row: size_text(row.metadata_bytes.resolved)),
)
_TABLES: Final = (
    ("Lookups: layers asked by a walk, and the time of one", _LOOKUPS),
    ("Reads through the page cache: measured, and beside one flat file", _READS),
    ("The disk: how broken up it is, and what a reader keeps in memory", _DISK),
)


def depth_json(benchmark: DepthBenchmark) -> Document:
    """The document of ``bench depth --json``."""
    return {
        "settings": dict(benchmark.settings),
        "machine": benchmark.machine,
        "started": benchmark.started,
        "rows": [asdict(row) for row in benchmark.rows],
        "notes": list(benchmark.notes),
    }


def depth_text(benchmark: DepthBenchmark, paint: Paint = plain) -> str:
    """The same for people: what was made, three tables, and what is missing."""
    parts = ["\n".join(line for part in setup_sentences(benchmark) for line in wrapped(part))]
    for title, all_columns in _TABLES:
        left_out = () if has_libvhdi(benchmark) else (_LIBVHDI, _OURS_OVER)
        columns = [column for column in all_columns if column[0] not in left_out]
        header = ["Format", "Depth", *(name for name, _ in columns)]
        rows = [
            [row.format.upper(), row.depth, *(value(row) for _, value in columns)] for row in benchmark.rows
        ]
        lines = table(header, rows, right=range(1, len(header)))
        parts.append(f"{paint(title, 'name')}\n{lines}")
    if benchmark.notes:
        parts.append("\n".join(line for note in benchmark.notes for line in wrapped(note)))
    return "\n\n".join(parts)


def has_libvhdi(benchmark: DepthBenchmark) -> bool:
    """Whether libvhdi took part."""
    return any(row.libvhdi_reads_per_s is not None for row in benchmark.rows)


def setup_sentences(benchmark: DepthBenchmark) -> tuple[str, str]:
    """What was made, and how it was measured."""
    given = benchmark.settings
    held = f"{float(given['fill']) * 100:g} % of it filled"
    writes = f"{size_text(int(given['write_min']))} to {size_text(int(given['write_max']))}"
    libvhdi = f"libvhdi {given['libvhdi']}" if given["libvhdi"] else "no libvhdi"
    share = f"{float(given['share']) * 100:g} % of that"
    made = (
        f"A disk of {size_text(int(given['size']))}, {held}; each layer writes {share} anew,"
        f" {writes} at a time, at random places."
    )
    measured = (
        f"Medians of {given['rounds']} rounds, engine {given['engine']}, {libvhdi}; {benchmark.machine};"
        f" {benchmark.started}."
    )
    return made, measured


def _percent(ratio: float) -> str:
    return f"{ratio * 100:.0f} %"


def _rate(value: float | None, unit: str) -> str:
    return _NONE if value is None else f"{value:,.0f}{unit}"


def _times(ratio: float) -> str:
    return f"{ratio:.1f} x" if ratio < 10 else f"{ratio:,.0f} x"


def _over(ours: float, theirs: float | None) -> str:
    return _NONE if theirs is None else _times(ours / theirs)

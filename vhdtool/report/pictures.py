"""Pictures: self-contained pages (HTML) and drawings (SVG) of what other rooms found.

::

    HeatMap, Simulation, DepthBenchmark, Chain ──► views (plain values) ──► templates in pages/ ──► text

Nothing is read or written here; ``vhdtool.cli.picture`` writes the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from vhdtool.chain.chain import FoundBy
from vhdtool.errors import Finding, Severity, printable
from vhdtool.report.chain import FOUND_TEXT, VERDICT_TEXT
from vhdtool.report.charts import Chart
from vhdtool.report.check import HEADS, by_code
from vhdtool.report.depth import setup_sentences
from vhdtool.report.explanations import explanation_of
from vhdtool.report.figure_views import (
    benchmark_charts,
    benchmark_table,
    in_order_table,
    point_charts,
    probe_facts,
    simulation_charts,
    simulation_facts,
    simulation_tables,
    what_if_tables,
)
from vhdtool.report.findings import WORST_FIRST
from vhdtool.report.palette import hexadecimal_colour, layer_colours
from vhdtool.report.templates import Made, Suffix, render
from vhdtool.report.text import Document, count, name_of, size_text, wrapped
from vhdtool.simulate.figures import WhatIf

if TYPE_CHECKING:
    from vhdtool.chain.chain import Chain, Layer
    from vhdtool.report.heatmap import HeatMap
    from vhdtool.simulate.figures import DepthBenchmark, MergePlan, PointCost, Simulation

__all__ = [
    "Made",
    "Suffix",
    "render_depth_page",
    "render_map_page",
    "render_report_page",
    "render_simulation_page",
]

_CHART_GAP: Final = 12
_NOTE_WIDTH: Final = 110  # characters


# As "check" says it.
_CALLED: Final = {Severity.INFO: "note"}


def render_map_page(heat: HeatMap, paths: Sequence[str], made: Made, *, suffix: Suffix = ".html") -> str:
    """The heat map of a disk.

    Args:
        paths: the layers' files, leaf first.

    Raises:
        MissingPackageError: jinja2 is not installed.
    """
    from vhdtool.report.heat_view import heat_drawing, heat_view

    title = _file_name(paths[0])
    subtitle = f"A virtual disk of {size_text(heat.virtual_size)}, {count(len(paths), 'layer')}"
    if suffix == ".svg":
        drawing = heat_drawing(heat, paths)
        return render("map.svg", title=title, subtitle=subtitle, made=made, drawing=drawing)
    return render("map.html", title=title, subtitle=subtitle, made=made, heat=heat_view(heat, paths))


def render_report_page(
    chain: Chain,
    heat: HeatMap | None,
    made: Made,
    *,
    stored: Sequence[int] | None = None,
    points: Sequence[PointCost] = (),
    trouble: str = "",
) -> str:
    """One page about a chain: layers, heat map, hidden bytes, cost of depth, findings.

    Args:
        heat: None for a chain that cannot be resolved; ``trouble`` says why.
        stored: bytes that each layer stores; without it nothing is said of hidden bytes.
        points: cost of points in time of this chain, by rising depth; the last one is the leaf.

    Raises:
        MissingPackageError: jinja2 is not installed.
    """
    from vhdtool.report.heat_view import heat_view

    paths = [str(layer.path) for layer in chain.layers]
    findings = chain.all_findings()
    numbers = ((severity, sum(f.severity is severity for f in findings)) for severity in WORST_FIRST)
    facts = [
        (size_text(chain.virtual_size), "virtual disk"),
        (str(len(chain.layers)), "layers" if len(chain.layers) > 1 else "layer"),
        ("complete" if chain.complete else "incomplete", "chain"),
        (size_text(sum(layer.image.source.size for layer in chain.layers)), "in files"),
        *(
            (str(number), count(number, _CALLED.get(severity, str(severity))).split(" ")[1])
            for severity, number in numbers
            if number
        ),
    ]
    return render(
        "report.html",
        title=_file_name(paths[0]),
        subtitle=name_of(paths[0]),
        made=made,
        facts=facts,
        trouble=printable(trouble),
        chain=_chain_rows(chain),
        heat=None if heat is None else heat_view(heat, paths, stored),
        cost=_cost(points) if points else None,
        findings=_finding_groups(findings),
    )


def render_simulation_page(
    result: Simulation | WhatIf, made: Made, *, suffix: Suffix = ".html", plan: MergePlan | None = None
) -> str:
    """A simulation, or one before and after a merge; with ``plan`` the merges that were proposed.

    Raises:
        MissingPackageError: jinja2 is not installed.
    """
    before = result.before if isinstance(result, WhatIf) else result
    title = "Simulated reads of " + _file_name(before.layers[0].path)
    charts = simulation_charts(before)
    views = [{"title": "", "facts": simulation_facts(before), "charts": charts}]
    tables = simulation_tables(before, plan)
    if isinstance(result, WhatIf):
        merge = result.merge
        views[0]["title"] = "As it is"
        after = {
            "title": f"With layers {merge.first} to {merge.last} merged",
            "facts": simulation_facts(result.after),
            "charts": simulation_charts(result.after, ", merged"),
        }
        views.append(after)
        charts = [*charts, *simulation_charts(result.after, ", merged")]
        tables = [*what_if_tables(result), *tables]
    if suffix == ".svg":
        figures = ", ".join(f"{name} {value}" for value, name in simulation_facts(before)[:4])
        notes = wrapped(f"{printable(before.workload)}; {figures}", width=_NOTE_WIDTH)
        return _drawing(title, printable(before.workload), notes, charts, made)
    subtitle = f"{printable(before.workload)}. Counted, not measured, unless a line says so."
    return render("figures.html", title=title, subtitle=subtitle, made=made, views=views, tables=tables)


def render_depth_page(benchmark: DepthBenchmark, made: Made, *, suffix: Suffix = ".html") -> str:
    """The benchmark of snapshot depth: curves and the table.

    Raises:
        MissingPackageError: jinja2 is not installed.
    """
    title = "What snapshot depth costs"
    charts = benchmark_charts(benchmark)
    made_of, measured = map(printable, setup_sentences(benchmark))
    notes = [printable(note) for note in benchmark.notes]
    if suffix == ".svg":
        lines = [line for text in (made_of, measured, *notes) for line in wrapped(text, width=_NOTE_WIDTH)]
        return _drawing(title, made_of, lines, charts, made)
    views = [{"title": "", "facts": [], "charts": charts}]
    tables = [("All figures", benchmark_table(benchmark), " ".join([measured, *notes]))]
    return render("figures.html", title=title, subtitle=made_of, made=made, views=views, tables=tables)


def _drawing(title: str, subtitle: str, notes: Sequence[str], charts: Sequence[Chart], made: Made) -> str:
    """Charts below each other in two columns."""
    top = 44 + 15 * len(notes)
    columns = min(2, max(1, len(charts)))
    width = int(charts[0].width) if charts else 360
    height = int(charts[0].height) if charts else 0
    placed = [
        (
            chart,
            _CHART_GAP + i % columns * (width + _CHART_GAP),
            top + i // columns * (height + _CHART_GAP),
        )
        for i, chart in enumerate(charts)
    ]
    return render(
        "charts.svg",
        title=title,
        subtitle=subtitle,
        notes=notes,
        made=made,
        placed=placed,
        width=max(520, _CHART_GAP + columns * (width + _CHART_GAP)),
        height=top + -(-len(charts) // columns) * (height + _CHART_GAP) + _CHART_GAP,
    )


def _file_name(path: str) -> str:
    return name_of(path.replace("\\", "/").rsplit("/", 1)[-1] if "/" in path or "\\" in path else path)


def _chain_rows(chain: Chain) -> list[Document]:
    colours = layer_colours(len(chain.layers))
    return [
        {
            "number": number,
            "colour": hexadecimal_colour(colours[number]),
            # Black or white, whichever stands out more: by how bright people see the colour.
            "ink": "#000" if 0.30 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 115 else "#fff",
            "path": name_of(layer.path),
            "disk": _disk_text(layer),
            "found": ("" if layer.found_by is FoundBy.GIVEN else "found ") + FOUND_TEXT[layer.found_by],
            "verdict": VERDICT_TEXT[layer.link][0],
            "role": VERDICT_TEXT[layer.link][1],
            "identities": _identities(layer),
        }
        for number, (layer, colour) in enumerate(zip(chain.layers, colours))
    ]


def _disk_text(layer: Layer) -> str:
    image = layer.image
    creator = f", made by {name_of(image.creator)}" if image.creator else ""
    return (
        f"{image.format.upper()} {image.type}, disk of {size_text(image.geometry.virtual_size)}, "
        f"file of {size_text(image.source.size)}{creator}"
    )


def _identities(layer: Layer) -> list[tuple[str, str]]:
    image = layer.image
    rows = [] if image.write_id is None else [("identity", str(image.write_id))]
    if image.parent is not None:
        rows.extend(("parent", str(identity)) for identity in image.parent.identities)
    return rows


def _cost(points: Sequence[PointCost]) -> Document:
    return {
        "facts": probe_facts(points[-1].probes),
        "charts": point_charts(points),
        "devices": in_order_table(points[-1]),
    }


def _finding_groups(findings: Sequence[Finding]) -> list[Document]:
    groups = []
    for severity in WORST_FIRST:
        here = [finding for finding in dict.fromkeys(findings) if finding.severity is severity]
        if not here:
            continue
        codes = []
        for code, of_code in by_code(here).items():
            explanation = explanation_of(code)
            codes.append(
                {
                    "code": code,
                    "meaning": "" if explanation is None else explanation.meaning,
                    "advice": "" if explanation is None else explanation.advice,
                    "lines": [str(finding).removesuffix(f" [{code}]") for finding in of_code],
                }
            )
        groups.append({"head": HEADS[severity].capitalize(), "role": str(severity), "codes": codes})
    return groups

"""Heat maps count every byte once, stay small, and become pages that nothing in an image can break out of."""

from __future__ import annotations

import base64
import re
import sys
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chain.fake import FakeImage, chain_of, fake_chains
from vhdtool.chain.chain import Chain
from vhdtool.errors import Finding, Location, MissingPackageError, Severity
from vhdtool.model.geometry import Geometry
from vhdtool.model.plan import ReadPlan, merged
from vhdtool.model.state import DAMAGED, ZEROS, BlockState
from vhdtool.report.charts import Series, histogram, line_chart, number_text
from vhdtool.report.heat_view import heat_drawing, heat_view, names_of
from vhdtool.report.heatmap import (
    OTHER,
    HeatMap,
    cell_size_for,
    cells_of,
    chain_heat_map,
    coarsened,
    heat_map,
    rounded,
)
from vhdtool.report.packing import packed_map, poster, varints
from vhdtool.report.palette import Rgb, layer_colours
from vhdtool.report.pictures import (
    Made,
    Suffix,
    render_depth_page,
    render_map_page,
    render_report_page,
    render_simulation_page,
)
from vhdtool.report.strip import strip_text
from vhdtool.simulate.figures import (
    DepthBenchmark,
    DepthRow,
    DeviceFigures,
    Fragmentation,
    LayerFigures,
    LookupTime,
    Measured,
    Merge,
    MergePlan,
    MetadataBytes,
    PointCost,
    Probes,
    Simulation,
    WhatIf,
)

SECTOR = 512
MADE = Made("vhdtool map 'a b.vhdx'", datetime(2026, 11, 22, 17, 0, tzinfo=UTC))
HOSTILE = "/vms/<script>alert(1)</script>\"'&\x1b[31m\u202e{{7*7}}.vhdx"
ADDRESS = re.compile(
    r"""(?:src|href)\s*=\s*(?!["']?data:)|url\(|@import|https?:(?!//www\.w3\.org/2000/svg)"""
)


# --- The map


def plans_of(layers: npt.NDArray[np.int64], window: int = 1 << 16) -> Iterator[ReadPlan]:
    """Plans of a disk of which each sector's layer is said."""
    for start in range(0, len(layers), window):
        part = layers[start : start + window].astype(np.int16)
        offset = (start + np.arange(len(part), dtype=np.int64)) * SECTOR
        yield merged(offset, np.full(len(part), SECTOR), part, np.where(part < 0, -1, offset))


def a_map(layers: npt.NDArray[np.int64], *, layer_count: int = 0, **bounds: int) -> HeatMap:
    count = layer_count or max(1, int(layers.max()) + 1)
    return heat_map(plans_of(layers), len(layers) * SECTOR, count, **bounds)


def scattered(sectors: int, layer_count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(ZEROS, layer_count, sectors)


def bytes_by_cell(heat: HeatMap, size: int) -> dict[tuple[int, int], int]:
    """(cell, layer) to bytes, from the pieces, one after the other."""
    found: dict[tuple[int, int], int] = {}
    at = 0
    for length, layer in zip(heat.length.tolist(), heat.layer.tolist()):
        stop = at + length
        while at < stop:
            cell = at // size
            end = min(stop, (cell + 1) * size)
            found[cell, layer] = found.get((cell, layer), 0) + end - at
            at = end
    return found


def truth_by_cell(layers: npt.NDArray[np.int64], size: int) -> dict[tuple[int, int], int]:
    found: dict[tuple[int, int], int] = {}
    for sector, layer in enumerate(layers.tolist()):
        key = sector * SECTOR // size, layer
        found[key] = found.get(key, 0) + SECTOR
    return found


def test_few_runs_are_kept_as_they_are() -> None:
    heat = a_map(np.array([0, 0, 1, ZEROS, ZEROS, 0]))

    assert heat.length.tolist() == [2 * SECTOR, SECTOR, 2 * SECTOR, SECTOR]
    assert heat.layer.tolist() == [0, 1, ZEROS, 0]
    assert (heat.grain, heat.stretches) == (SECTOR, 4)
    assert heat.layer_bytes.tolist() == [3 * SECTOR, SECTOR]
    assert heat.zero_bytes == 2 * SECTOR


@given(
    st.integers(1, 600),
    st.integers(1, 9),
    st.integers(0, 1 << 30),
    st.integers(1, 100),
    st.integers(2, 80),
    st.integers(1, 40),
)
def test_a_coarser_grain_loses_places_and_no_byte(
    sectors: int, layer_count: int, seed: int, window: int, pieces_max: int, cells_max: int
) -> None:
    layers = scattered(sectors, layer_count, seed)

    heat = heat_map(
        plans_of(layers, window), sectors * SECTOR, layer_count, pieces_max=pieces_max, cells_max=cells_max
    )

    assert heat.length.sum() == sectors * SECTOR
    assert heat.layer_bytes.tolist() == [SECTOR * int((layers == i).sum()) for i in range(layer_count)]
    assert heat.zero_bytes == SECTOR * int((layers == ZEROS).sum())
    assert heat.stretches == 1 + np.count_nonzero(np.diff(layers))
    found, truth = bytes_by_cell(heat, heat.grain), truth_by_cell(layers, heat.grain)
    if not (heat.layer == OTHER).any():
        assert found == truth
        coarse = coarsened(heat, 4 * heat.grain)
        assert bytes_by_cell(coarse, coarse.grain) == truth_by_cell(layers, coarse.grain)
    for (cell, layer), size in found.items():
        assert layer == OTHER or truth[cell, layer] == size


@given(fake_chains(damaged=True), st.integers(0, 5))
def test_a_cell_has_the_colour_of_the_layer_that_gives_most(images: list[FakeImage], power: int) -> None:
    chain = chain_of(*images)
    size = chain.sector_size << power
    plan = ReadPlan.joined(list(chain.windows(allow_damaged=True)))

    cells = cells_of(chain_heat_map(chain, allow_damaged=True), size)

    assert len(cells.layer) == -(-chain.virtual_size // size)
    for cell in range(len(cells.layer)):
        part = plan.clipped(cell * size, min((cell + 1) * size, chain.virtual_size))
        given_by = {layer: int(part.length[part.layer == layer].sum()) for layer in set(part.layer.tolist())}
        data = {layer: length for layer, length in given_by.items() if layer >= 0}
        if DAMAGED in given_by:
            assert cells.layer[cell] == DAMAGED
        elif data:
            assert data[int(cells.layer[cell])] == max(data.values())
        else:
            assert cells.layer[cell] == ZEROS
        total = sum(given_by.values())
        assert cells.share[cell] == pytest.approx((total - given_by.get(ZEROS, 0)) / total)


def test_memory_does_not_grow_with_the_number_of_runs() -> None:
    layers = scattered(400_000, 250)

    heat = heat_map(plans_of(layers, 20_000), len(layers) * SECTOR, 250, pieces_max=4_000, cells_max=1_000)

    # Six pieces for each cell: the four largest layers, the others together, zeros.
    assert len(heat.length) < 2 * 6 * 1_000
    assert (heat.layer == OTHER).any()
    dominant = cells_of(heat, heat.grain).layer
    truth = truth_by_cell(layers, heat.grain)
    for cell in range(0, len(dominant), 97):
        most = max(size for (at, layer), size in truth.items() if at == cell and layer >= 0)
        assert truth[cell, int(dominant[cell])] == most


def test_a_disk_of_64_tib_takes_cells_and_not_sectors() -> None:
    size = 64 << 40
    rows = [(0, 1 << 20, 3, 0), (1 << 20, size - (1 << 20), ZEROS, -1)]
    plan = ReadPlan.of_runs(rows)  # type: ignore[arg-type]

    heat = heat_map([plan], size, 256)

    assert heat.length.tolist() == [1 << 20, size - (1 << 20)]
    assert cell_size_for(size, 1 << 16) == 1 << 30
    assert cells_of(heat, 1 << 30).layer[:2].tolist() == [3, ZEROS]


def test_plans_that_leave_a_gap_are_a_mistake() -> None:
    first, _, third = plans_of(np.zeros(30, np.int64), 10)
    with pytest.raises(ValueError, match="begins at 10240, the last one ended at 5120"):
        heat_map([first, third], 30 * SECTOR, 1)
    with pytest.raises(ValueError, match="end at 5120 of 15360"):
        heat_map([first], 30 * SECTOR, 1)
    with pytest.raises(ValueError, match="finer"):
        coarsened(coarsened(a_map(np.zeros(30, np.int64)), 1024), 512)


# --- Packed for a page


def unpacked(data: str) -> list[int]:
    """The numbers as the page's script reads them."""
    numbers, value, shift = [], 0, 0
    for byte in zlib.decompress(base64.b64decode(data)):
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    return numbers


@given(st.lists(st.integers(0, (1 << 62) - 1), max_size=50))
def test_numbers_of_any_size_come_back(numbers: list[int]) -> None:
    data = varints(np.array(numbers, np.int64))

    assert unpacked(base64.b64encode(zlib.compress(data)).decode()) == numbers


def test_a_small_map_is_packed_exactly() -> None:
    layers = scattered(500, 4)
    heat = a_map(layers)

    packed = packed_map(heat)

    numbers = unpacked(packed.data)
    assert packed.is_exact
    assert np.array_equal(np.array(numbers[: packed.count]) + OTHER, heat.layer)
    assert [n * packed.unit for n in numbers[packed.count :]] == heat.length.tolist()


@pytest.mark.parametrize("bytes_max", [60, 500, 4_000])
def test_a_map_is_never_larger_than_there_is_room(bytes_max: int) -> None:
    heat = a_map(scattered(60_000, 200))

    packed = packed_map(heat, bytes_max)

    assert len(base64.b64decode(packed.data)) <= bytes_max
    assert not packed.is_exact
    lengths = unpacked(packed.data)[packed.count :]
    assert len(lengths) == packed.count
    assert heat.virtual_size <= sum(lengths) * packed.unit < heat.virtual_size + packed.unit


@given(st.integers(1, 300), st.integers(1, 9), st.integers(0, 1 << 30), st.integers(1, 6), st.integers(0, 5))
def test_rounding_keeps_the_disk_whole_and_the_largest_first(
    sectors: int, layer_count: int, seed: int, power: int, finer: int
) -> None:
    grain = SECTOR << power
    heat = coarsened(a_map(scattered(sectors, layer_count, seed), layer_count=layer_count), grain)
    unit = max(SECTOR, grain >> finer)

    length, layer = rounded(heat, unit)

    assert length.min() > 0
    assert int(length.sum()) == -(-heat.virtual_size // unit)
    after = replace(heat, length=length * unit, layer=layer)
    largest: dict[int, tuple[int, int]] = {}
    for (cell, which), size in bytes_by_cell(heat, grain).items():
        largest[cell] = max(largest.get(cell, (0, 0)), (size, which))
    found = bytes_by_cell(after, grain)
    for cell, (size, which) in largest.items():
        same = [w for (at, w), s in bytes_by_cell(heat, grain).items() if at == cell and s == size]
        kept = {w: s for (at, w), s in found.items() if at == cell}
        assert max(kept.values()) in [kept.get(w) for w in {which, *same}]


def test_the_still_picture_is_a_png_of_the_cells() -> None:
    heat = a_map(np.array([0, 1, ZEROS, DAMAGED, 1]), layer_count=2)

    address = poster(cells_of(heat, SECTOR), 4, 2)

    kind, data = address.split(",")
    png = base64.b64decode(data)
    assert kind == "data:image/png;base64"
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        name, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert zlib.crc32(name + body) == int.from_bytes(png[at + 8 + length : at + 12 + length], "big")
        chunks[name] = body
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"]
    assert zlib.decompress(chunks[b"IDAT"]) == bytes([0, 2, 3, 0, 1, 0, 3, 0, 0, 0])


def test_colours_go_from_bright_to_dark_and_no_two_are_the_same() -> None:
    colours = layer_colours(64)

    light = [0.30 * r + 0.59 * g + 0.11 * b for r, g, b in colours]
    assert light == sorted(light, reverse=True)
    assert len(set(colours)) == 64
    assert len(layer_colours(1)) == 1
    assert len(layer_colours(257)) == 257


# --- Pages


def a_chain(paths: list[str] | None = None, **changes: object) -> Chain:
    """Two layers of 64 sectors: the leaf has the first block, and half of the second."""
    states = [BlockState.DATA, BlockState.PARTIAL, BlockState.ABSENT, BlockState.ABSENT]
    half = {1: [i < 8 for i in range(16)]}
    geometry = Geometry(64 * SECTOR, 16 * SECTOR, SECTOR)
    leaf = FakeImage(geometry, states, half, seed=1)
    base = FakeImage(geometry, [BlockState.DATA] * 2 + [BlockState.ABSENT] * 2, {}, seed=2)
    for name, value in changes.items():
        setattr(leaf, name, value)
    chain = chain_of(leaf, base)
    if paths is not None:
        layers = [replace(layer, path=Path(path)) for layer, path in zip(chain.layers, paths)]
        chain = Chain(layers)
    return chain


def a_simulation(path: str = "leaf.vhdx", **changes: object) -> Simulation:
    simulation = Simulation(
        workload="random: 100 reads of 4096 bytes",
        reads=100,
        bytes=409600,
        device_reads=90,
        lookups=120,
        probes=Probes(1.5, 1, 2, 2),
        depth_histogram=(60, 60),
        layers=(
            LayerFigures(0, path, 300_000, 0.75, 24 * SECTOR, 24 * SECTOR, 0),
            LayerFigures(1, "base.vhdx", 100_000, 0.25, 32 * SECTOR, 8 * SECTOR, 24 * SECTOR),
        ),
        fragmentation=Fragmentation(2.5, 1.5, 0.0, 8192.0, 4096.0),
        metadata_bytes=MetadataBytes(4096, 1024),
        ns_per_lookup=LookupTime(120.0, 12.0),
        devices=(DeviceFigures("hdd", 78.9, 0.3, 0.9), DeviceFigures("none", None, None, 1.0)),
        engine="numpy",
    )
    return replace(simulation, **changes)  # type: ignore[arg-type]


def some_points() -> tuple[PointCost, ...]:
    return tuple(
        PointCost(
            2 - depth,
            depth,
            Probes(depth * 0.9, depth, depth, depth),
            (10,) * depth,
            (DeviceFigures("hdd", 1.0, 100.0 / depth, 1 / depth),),
        )
        for depth in (1, 2)
    )


def a_benchmark(depths: tuple[int, ...] = (0, 1, 16), *, libvhdi: bool = True) -> DepthBenchmark:
    rows = tuple(
        DepthRow(
            format=kind,
            depth=depth,
            probes=Probes(depth + 1.0, depth + 1, depth + 1, depth + 1),
            runs_per_mib=1.0 + depth,
            files_per_mib=1.0,
            mean_run=65536.0,
            metadata_bytes=MetadataBytes(1000 * (depth + 1), 1000),
            ns_per_lookup=LookupTime(10.0 * (depth + 1), 10.0),
            reads_per_s=200_000.0,
            sequential_mb_per_s=3000.0 / (depth + 1),
            reads_relative_to_flat=0.8,
            sequential_relative_to_flat=1 / (depth + 1),
            libvhdi_reads_per_s=20_000.0 / (depth + 1) if libvhdi else None,
            libvhdi_sequential_mb_per_s=1000.0 / (depth + 1) if libvhdi else None,
        )
        for kind in ("vhd", "vhdx")
        for depth in depths
    )
    settings: dict[str, int | float | str] = {
        "size": 1 << 30,
        "fill": 0.5,
        "share": 0.02,
        "write_min": 4096,
        "write_max": 65536,
        "rounds": 5,
        "engine": "numpy",
        "libvhdi": "20260901" if libvhdi else "",
    }
    return DepthBenchmark(settings, "x86_64, <2> CPUs", "2026-11-22T17:00:00Z", rows, ("A note & more.",))


def a_map_page(paths: list[str], suffix: Suffix) -> str:
    return render_map_page(chain_heat_map(a_chain()), paths, MADE, suffix=suffix)


def every_picture(name: str = "leaf.vhdx") -> dict[str, str]:
    """One of each, with ``name`` wherever a name from outside can stand."""
    chain = a_chain([name, "/vms/base.vhdx"], creator=name)
    made = replace(MADE, command=f"vhdtool report {name}")
    simulation = a_simulation(name)
    what_if = WhatIf(Merge(0, 1, 8192, 4096, 0.5), simulation, a_simulation(name, lookups=80))
    pages = {}
    suffixes: tuple[Suffix, ...] = (".html", ".svg")
    for suffix in suffixes:
        pages[f"map{suffix}"] = render_map_page(
            chain_heat_map(chain), [name, "/vms/base.vhdx"], made, suffix=suffix
        )
        pages[f"simulation{suffix}"] = render_simulation_page(simulation, made, suffix=suffix)
        pages[f"what_if{suffix}"] = render_simulation_page(what_if, made, suffix=suffix)
        pages[f"depth{suffix}"] = render_depth_page(a_benchmark(), made, suffix=suffix)
    stored = [24 * SECTOR, 32 * SECTOR]
    pages["report.html"] = render_report_page(
        chain, chain_heat_map(chain), made, stored=stored, points=some_points()
    )
    return pages


@pytest.mark.parametrize("name", every_picture())
def test_a_picture_refers_to_nothing_outside_itself(name: str) -> None:
    text = every_picture()[name]

    assert not ADDRESS.search(text)
    if name.endswith(".html"):
        policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
        assert policy is not None
        assert policy[1].split("; ") == [
            "default-src 'none'",
            "style-src 'unsafe-inline'",
            "script-src 'unsafe-inline'",
            "img-src data:",
        ]


@pytest.mark.parametrize("name", every_picture())
def test_a_hostile_name_stays_text(name: str) -> None:
    text = every_picture(HOSTILE)[name]

    assert "alert(1)" in text or name.startswith("depth")
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "49.vhdx" not in text
    assert text.count("<script") == {"map.html": 2, "report.html": 2}.get(name, 0)
    if name.endswith(".svg"):
        ET.fromstring(text)


def test_text_from_findings_stays_text_too() -> None:
    finding = Finding("vhdx.x.y", Severity.ERROR, Location(HOSTILE, 4, "f"), "<b>bad</b>", "<i>", "</script>")
    chain = a_chain(findings=(finding,))

    page = render_report_page(chain, None, MADE, trouble="<b>no</b>")

    assert "&lt;b&gt;bad&lt;/b&gt;" in page
    assert "&lt;b&gt;no&lt;/b&gt;" in page
    assert "<b>bad" not in page
    assert "heat-data" not in page


def test_a_page_says_what_made_it_and_when() -> None:
    page = a_map_page(["leaf.vhdx", "base.vhdx"], ".html")

    assert f"Made by vhdtool {MADE.version}, 2026-11-22 17:00:00 UTC" in page
    assert "vhdtool map &#39;a b.vhdx&#39;" in page


def test_the_report_shows_layers_hidden_bytes_and_findings() -> None:
    page = every_picture("/vms/leaf.vhdx")["report.html"]

    assert "parent&#39;s identity agrees" in page
    assert "base: needs no parent" in page
    # The base stores 16 KiB, of which the leaf hides 12.
    assert re.search(r'seen">4 KiB</span><span class="number gone">12 KiB<', page)
    assert "12 KiB in all that merging gives back" in page
    assert "Layers asked per lookup" in page
    assert "None: the chain is sound" in page
    assert "Files are in <code>/vms</code>" in page


def test_a_simulation_page_has_all_that_was_counted() -> None:
    plan = MergePlan(1 << 20, (Merge(0, 1, 8192, 4096, 0.5),), 8192, 4096, 1.5, 1.0)
    measured = Measured("direct", 100, 409600, 0.5, 200.0, 0.8)

    page = render_simulation_page(a_simulation(measured=measured), MADE, plan=plan)

    for text in ("1.5", "1 / 2 / 2", "78.9", "Merges that pay most", "with O_DIRECT", "12 KiB", "–"):
        assert text in page


def test_a_benchmark_without_a_peer_leaves_its_lines_out() -> None:
    with_it, without = (render_depth_page(a_benchmark(libvhdi=there), MADE) for there in (True, False))

    assert "VHDX libvhdi" in with_it
    assert "VHDX libvhdi" not in without
    assert "libvhdi reads/s" in with_it
    assert "libvhdi reads/s" not in without
    assert "A note &amp; more." in without


@pytest.mark.parametrize("layer_count", [1, 2, 256])
def test_pages_of_any_depth_are_small_and_name_every_layer(layer_count: int) -> None:
    paths = [f"/some/folder/of/machines/a-rather-long-name-{i:03d}.avhdx" for i in range(layer_count)]
    heat = heat_map(plans_of(scattered(100_000, layer_count)), 100_000 * SECTOR, layer_count)

    page = render_map_page(heat, paths, MADE)
    drawing = render_map_page(heat, paths, MADE, suffix=".svg")

    assert len(page) < 200_000
    assert len(drawing) < 200_000
    assert page.count("data-name>") == layer_count
    assert page.count("-rather-long-name-000.avhdx") >= 1


def test_a_page_of_a_simple_disk_has_few_kilobytes() -> None:
    assert len(a_map_page(["leaf.vhdx", "base.vhdx"], ".html")) < 30_000


def test_names_are_told_from_the_folder_that_all_share() -> None:
    assert names_of(["/a/b/c.vhd", "/a/d.vhd"]) == ("/a", ["b/c.vhd", "d.vhd"])
    assert names_of(["/a/c.vhd", "d.vhd"]) == ("", ["/a/c.vhd", "d.vhd"])
    assert names_of(["c.vhd", "d.vhd"]) == ("", ["c.vhd", "d.vhd"])


def test_the_view_says_how_exact_it_is() -> None:
    exact = heat_view(a_map(np.array([0, 1])), ["a", "b"])
    rough = heat_view(a_map(scattered(300_000, 250)), [str(i) for i in range(250)])

    assert exact.detail == "2 stretches; exact to the sector"
    assert "rounded" in rough.detail


def test_a_drawing_has_a_rectangle_for_each_run_of_equal_cells_in_a_row() -> None:
    layers = np.zeros(300, np.int64)
    layers[10:20] = 1
    layers[250:] = ZEROS

    drawing = heat_drawing(a_map(layers), ["leaf", "base"])

    paths = {layer.name: [path for _, path in layer.paths] for layer in drawing.layers}
    assert paths == {
        "layer 0: leaf": [
            "M0 0h10v1h-10zM20 0h12v1h-12z"
            + "".join(f"M0 {y}h32v1h-32z" for y in range(1, 7))
            + "M0 7h26v1h-26z"
        ],
        "layer 1: base": ["M10 0h10v1h-10z"],
    }


def test_without_jinja2_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)

    with pytest.raises(MissingPackageError, match=re.escape("vhdtool[report]")):
        a_map_page(["leaf.vhdx", "base.vhdx"], ".svg")


# --- Charts


@given(st.lists(st.tuples(st.integers(0, 300), st.floats(1e-6, 1e15)), min_size=1, max_size=9), st.booleans())
def test_every_point_of_a_chart_is_in_its_frame(points: list[tuple[int, float]], log: bool) -> None:
    series = [Series("one", sorted({(float(x), y) for x, y in points})), Series("none", [])]

    chart = line_chart("t", series, x_title="x", log_x=log, log_y=log)

    assert chart is not None
    for dot in chart.lines[0].dots:
        assert chart.left <= dot.x <= chart.right
        assert chart.top - 0.01 <= dot.y <= chart.bottom + 0.01
    assert 2 <= len(chart.y_ticks) <= 12
    shown = [tick.at for tick in chart.x_ticks if tick.text]
    assert all(b - a >= 20 for a, b in pairwise(shown))


@given(st.lists(st.integers(0, 1000), max_size=300))
def test_bars_share_the_width_and_add_up(counts: list[int]) -> None:
    chart = histogram("t", counts, x_title="x")

    if not any(counts):
        assert chart is None
        return
    assert chart is not None
    assert len(chart.bars) <= 96
    numbers = [int(bar.text.split(": ")[1].split(" ")[0]) for bar in chart.bars]
    assert sum(numbers) == sum(counts)
    assert all(chart.left <= bar.x and bar.x + bar.width <= chart.right + 0.02 for bar in chart.bars)
    assert all(bar.height >= 0 and bar.y >= chart.top - 0.01 for bar in chart.bars)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (1.5, "1.5"),
        (12, "12"),
        (9999, "9999"),
        (15_000, "15k"),
        (3e6, "3M"),
        (2.5e9, "2.5G"),
    ],
)
def test_numbers_on_axes_are_short(value: float, text: str) -> None:
    assert number_text(value) == text


# --- The strip of a terminal


def shade(text: str, colour: Rgb | None) -> str:
    """Colours as letters: a dot for none, a letter by the layer's brightness."""
    return text if colour is None else chr(ord("a") + layer_colours(2).index(colour)) * len(text)


def test_the_strip_shows_the_disk_from_left_to_right() -> None:
    layers = np.repeat([0, ZEROS, 1, 0], 20)

    lines = strip_text(a_map(layers), ["leaf.vhdx", "base.vhdx"], 60, shade).splitlines()

    assert lines[0].strip() == "0 bytes " + "a" * 10 + "·" * 10 + "b" * 10 + "a" * 10
    assert lines[1] == "aa 0 leaf.vhdx 20 KiB   bb 1 base.vhdx 10 KiB   ·· zeros 10 KiB"[: len(lines[1])]


@given(st.integers(1, 5000), st.integers(1, 2), st.integers(0, 1 << 30), st.integers(40, 200))
def test_the_strip_fits_its_terminal(sectors: int, layer_count: int, seed: int, width: int) -> None:
    heat = a_map(scattered(sectors, layer_count, seed), layer_count=2)

    text = strip_text(heat, ["leaf.vhdx", "base.vhdx"], width, lambda text, colour: text)

    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 8


def test_the_legend_of_a_deep_chain_names_the_layers_that_give_most() -> None:
    heat = a_map(np.repeat(np.arange(100), np.arange(1, 101)))

    text = strip_text(heat, [f"{i}.vhdx" for i in range(100)], 80, lambda text, colour: text)

    assert "99 99.vhdx" in text
    assert "92 more layers" in text

"""Pages looked at in a headless Chromium: light and dark, at the width of a phone and of a desk.

Screenshots are kept where ``VHDTOOL_SCREENSHOTS`` names a folder, for people to look at.
"""

from __future__ import annotations

import base64
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pytest

from tests.report.browser import Browser, Page, find_browser
from tests.report.test_pictures import (
    MADE,
    SECTOR,
    a_benchmark,
    a_chain,
    a_map,
    a_simulation,
    every_picture,
    scattered,
    some_points,
)
from vhdtool.report.heatmap import HeatMap, chain_heat_map
from vhdtool.report.pictures import (
    render_depth_page,
    render_map_page,
    render_report_page,
    render_simulation_page,
)
from vhdtool.simulate.figures import Merge, WhatIf

Scheme = Literal["light", "dark"]
SIZES: Final = {"phone": (360, 740), "desk": (1280, 900)}
LAYERS: Final = 256


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine")
    if sys.platform == "win32":
        pytest.skip("the pipes to the browser are made as POSIX has them")
    with Browser(program) as running:
        yield running


def a_deep_map() -> HeatMap:
    layers = np.repeat(scattered(6_000, LAYERS), 20)
    layers[20_000:50_000] = -1
    return a_map(layers, layer_count=LAYERS)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page of each kind, with many layers and long names."""
    names = [f"/machines/A name of a snapshot that goes on and on_{i:03d}-5F3C.avhdx" for i in range(LAYERS)]
    chain = a_chain(
        ["/machines/a-very-long-name-without-any-place-to-break-it_0.avhdx", "/machines/base.vhdx"]
    )
    unbroken = "/machines/" + 24 * "Backup_of_" + ".avhdx"
    lost = a_chain([unbroken, "/machines/base.vhdx"])
    simulation = a_simulation(names[0])
    what_if = WhatIf(Merge(0, 1, 8192, 4096, 0.5), simulation, a_simulation(names[0], lookups=80))
    texts = {
        "map": render_map_page(a_deep_map(), names, MADE),
        "report": render_report_page(
            chain, chain_heat_map(chain), MADE, stored=[24 * SECTOR, 32 * SECTOR], points=some_points()
        ),
        "lost": render_report_page(lost, None, MADE, trouble=f"The disk cannot be resolved: {unbroken}"),
        "simulation": render_simulation_page(what_if, MADE),
        "depth": render_depth_page(a_benchmark((0, 1, 4, 16, 64, 255)), MADE),
    }
    folder = tmp_path_factory.mktemp("pages")
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    (folder / "map.svg").write_text(every_picture()["map.svg"], encoding="utf-8")
    return {path.name: path for path in folder.iterdir()}


def pixels(png: bytes) -> bytes:
    """The bytes of an image's lines, filters left in: enough to tell whether there is anything on it."""
    data, at = b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += 12 + length
    return zlib.decompress(data)


def keep(page: Page, name: str, folder: Path) -> bytes:
    """A screenshot of the whole page."""
    wanted = os.environ.get("VHDTOOL_SCREENSHOTS")
    target = (Path(wanted) if wanted else folder) / f"{name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    return page.screenshot(target, whole=True).read_bytes()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["map.html", "report.html", "lost.html", "simulation.html", "depth.html"])
def test_a_page_stands_alone_and_fits_its_window(
    name: str, size: str, scheme: Scheme, browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    width, height = SIZES[size]

    with Page(browser, pages[name], width=width, height=height, scheme=scheme) as page:
        shot = keep(page, f"{name.removesuffix('.html')}-{size}-{scheme}", tmp_path)
        complaints, addresses = page.complaints(), page.addresses()
        widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        # What lies in a box that scrolls by itself may be wider.
        too_wide = page.evaluate(
            "[...document.body.querySelectorAll('*')].filter(e => !e.closest('.wide, svg, .overview')"
            " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
        )

    assert complaints == []
    assert {address for address in addresses if not address.startswith("data:")} == {pages[name].as_uri()}
    assert widths[0] <= widths[1] == width
    assert too_wide == []
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    assert len(set(pixels(shot))) > 16


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_drawing_shows_without_a_page_around_it(
    scheme: Scheme, browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    with Page(browser, pages["map.svg"], width=1280, height=900, scheme=scheme) as page:
        shot = keep(page, f"drawing-{scheme}", tmp_path)
        assert page.complaints() == []
        assert page.addresses() == {pages["map.svg"].as_uri()}

    assert len(set(pixels(shot))) > 8


CANVAS: Final = """(() => {
    const canvas = document.getElementById('heat');
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    const colours = new Set();
    for (let i = 0; i < data.length; i += 4) colours.add(data.slice(i, i + 4).join());
    return [canvas.width, canvas.height, colours.size];
})()"""


@pytest.mark.parametrize("size", SIZES)
def test_the_canvas_shows_layers_in_many_colours(size: str, browser: Browser, pages: dict[str, Path]) -> None:
    width, height = SIZES[size]

    with Page(browser, pages["map.html"], width=width, height=height) as page:
        columns, rows, colours = page.evaluate(CANVAS)

    assert columns == (64 if size == "phone" else 256)
    assert rows >= 16
    assert colours > LAYERS // 2


def test_cells_have_the_colours_and_bytes_of_their_layers(browser: Browser, tmp_path: Path) -> None:
    # Cells of a sector: a row of 16 would be 8 KiB.
    layers = np.array([0] * 40 + [1] * 30 + [-1] * 20 + [2] * 38)
    path = tmp_path / "map.html"
    path.write_text(render_map_page(a_map(layers), ["a.vhdx", "b.vhdx", "c.vhdx"], MADE), encoding="utf-8")

    with Page(browser, path, width=1280, height=900) as page:
        drawn = page.evaluate(
            "(() => { const c = document.getElementById('heat');"
            " return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; })()"
        )
        colours = page.evaluate("JSON.parse(document.getElementById('heat-data').textContent).colours")
        page.evaluate("document.getElementById('heat').focus()")
        page.press("Home")
        page.press("ArrowDown")
        told = page.evaluate("document.getElementById('tip').innerText")
        page.evaluate("document.querySelector('[data-layer=\"2\"]').click()")
        alone = page.evaluate(
            "(() => { const c = document.getElementById('heat');"
            " return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; })()"
        )

    cells = [tuple(drawn[i : i + 4]) for i in range(0, len(drawn), 4)]
    assert len(cells) == len(layers)
    for layer, cell in zip(layers.tolist(), cells):
        if layer < 0:
            assert cell[3] == 0
        else:
            assert "#{:02x}{:02x}{:02x}".format(*cell[:3]) == colours[layer]
            assert cell[3] == 255
    # The keys begin at the middle of the map: half of its rows down, half of the row to the right.
    assert "512 bytes at 36 KiB" in told
    assert "0x9000 to 0x9200" in told
    assert "zeros" in told
    alphas = [alone[i + 3] for i in range(0, len(alone), 4)]
    assert [alpha for layer, alpha in zip(layers.tolist(), alphas) if layer == 2] == [255] * 38
    assert max(alpha for layer, alpha in zip(layers.tolist(), alphas) if layer != 2) < 60


def view(page: Page) -> str:
    return str(page.evaluate("document.getElementById('view').textContent"))


def test_the_map_zooms_by_keys_buttons_and_wheel_and_comes_back(
    browser: Browser, pages: dict[str, Path]
) -> None:
    with Page(browser, pages["map.html"], width=1280, height=900) as page:
        whole = view(page)
        page.evaluate("document.getElementById('zoom-in').click()")
        once = view(page)
        page.evaluate("document.getElementById('heat').focus()")
        page.press("+", "+")
        twice = view(page)
        box = page.evaluate("(b => [b.left, b.top])(document.getElementById('heat').getBoundingClientRect())")
        x, y = box[0] + 100, box[1] + 40
        page.mouse("mouseWheel", x, y, deltaX=0, deltaY=120)
        after_wheel = view(page)
        page.press("PageDown")
        further = view(page)
        page.press("0", "0")
        back = view(page)
        complaints = page.complaints()

    assert whole.startswith("The whole disk")
    assert "from 0x" in once
    assert twice != once
    assert after_wheel.split(";")[1] == once.split(";")[1]
    assert further.split(" from ")[1] != after_wheel.split(" from ")[1]
    assert back == whole
    assert complaints == []


def test_pointing_at_a_cell_tells_what_it_holds(browser: Browser, pages: dict[str, Path]) -> None:
    with Page(browser, pages["map.html"], width=1280, height=900) as page:
        box = page.evaluate("(b => [b.left, b.top])(document.getElementById('heat').getBoundingClientRect())")
        page.mouse("mouseMoved", box[0] + 2, box[1] + 2)
        told = page.evaluate("document.getElementById('tip').innerText")
        page.mouse("mouseMoved", 2, 2)
        hidden = page.evaluate("document.getElementById('tip').hidden")

    assert "0x0 to 0x" in told
    assert "layer" in told
    assert "A name of a snapshot" in told
    assert hidden


def test_an_old_browser_shows_the_still_picture(browser: Browser, pages: dict[str, Path]) -> None:
    before = "delete window.DecompressionStream"
    with Page(browser, pages["map.html"], width=360, height=740, before=before) as page:
        shown = page.evaluate(
            "(i => [i.complete, i.naturalWidth, i.clientWidth])(document.querySelector('#stage img'))"
        )
        said = view(page)
        complaints = page.complaints()

    assert shown == [True, 128, 328]
    assert "too old to zoom" in said
    assert complaints == []


def test_without_script_the_still_picture_is_there(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    with Page(browser, pages["map.html"], width=360, height=740, script=False) as page:
        data = page.call("Page.captureScreenshot", format="png")["data"]

    assert len(set(pixels(base64.b64decode(data)))) > 16


def test_a_page_that_asks_for_something_outside_is_noticed(browser: Browser, tmp_path: Path) -> None:
    """The test of the tests above: an address would be seen, and the policy complains."""
    page_text = every_picture()["map.html"].replace("<h1>", '<img src="https://example.invalid/x.png"><h1>')
    path = tmp_path / "leaky.html"
    path.write_text(page_text, encoding="utf-8")

    with Page(browser, path, width=360, height=740) as page:
        complaints = page.complaints()

    assert any("example.invalid" in complaint for complaint in complaints)

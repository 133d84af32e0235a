"""What is left of a file that was cut off: all of it is exported, and the rest is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import vhdtool
from tests.generated import MIB, Style, a_chain

STYLES = {
    "vhdx": Style(sizes=False, states=False, block_sizes=(2 * MIB,)),
    "vhd": Style(format="vhd", sizes=False, block_sizes=(2 * MIB,)),
}


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@pytest.mark.parametrize("kept", [0.3, 0.55, 0.8, 0.97])
def test_the_first_part_of_a_block_that_was_cut_off_is_exported(
    style: Style, kept: float, tmp_path: Path
) -> None:
    point = a_chain(tmp_path, 1, style, 3)
    size = point.path.stat().st_size
    os.truncate(point.path, max(int(size * kept), 4 * MIB + 77 if style.format == "vhdx" else 0))
    disk = point.disk.tobytes()

    with vhdtool.open_chain(point.path) as chain, pytest.raises(vhdtool.CorruptError):
        vhdtool.export_image(chain, tmp_path / "refused.raw")
    assert not (tmp_path / "refused.raw").exists()
    with vhdtool.open_chain(point.path) as chain:
        vhdtool.export_image(chain, tmp_path / "rest.raw", damaged="zero")

    rest = (tmp_path / "rest.raw").read_bytes()
    listed = json.loads((tmp_path / "rest.raw.manifest.json").read_text())["damaged"]
    assert listed or rest == disk  # what is gone may be sectors that the bitmap never gave out
    position = 0
    for place in listed:
        assert rest[position : place["start"]] == disk[position : place["start"]]
        position = place["start"] + place["length"]
        assert not any(rest[place["start"] : position])
    assert rest[position:] == disk[position:]
    # Nothing is given up that is there, to the byte.
    lost = size - point.path.stat().st_size
    assert sum(place["length"] for place in listed) <= lost


def test_a_block_over_the_footer_of_a_whole_file_is_not_read_as_far_as_the_footer(tmp_path: Path) -> None:
    """The bytes there are the footer's, not the block's."""
    point = a_chain(tmp_path, 1, STYLES["vhd"], 3)
    with point.path.open("r+b") as file:
        footer = file.read(512)
        file.truncate(point.path.stat().st_size - 8192)
        file.seek(0, os.SEEK_END)
        file.write(footer)

    with vhdtool.open_chain(point.path) as chain:
        report = vhdtool.export_image(chain, tmp_path / "rest.raw", damaged="zero")

    assert {place.length for place in report.damaged} == {2 * MIB}

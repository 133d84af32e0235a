"""``map`` names a place in a file only for bytes that really stand there."""

from __future__ import annotations

from pathlib import Path

from tests.builders.vhdx import MIB, a_vhdx, an_entry, full, page, save, with_log
from tests.cli.helpers import run, run_json


def test_data_that_stand_in_a_replayed_log_have_no_place_in_the_file(tmp_path: Path) -> None:
    image = a_vhdx(size=2 * MIB, blocks={0: full(b"a", 4 * MIB), 1: full(b"b", 5 * MIB)})
    path = save(with_log(image, [an_entry(1, page(4 * MIB + 8192, b"log"))]), tmp_path / "x.vhdx")

    extents = run_json("map", path)

    assert [(e["start"], e["length"], e.get("offset")) for e in extents] == [
        (0, 8192, 4 * MIB),
        (8192, 4096, None),
        (12288, 2 * MIB - 12288, 4 * MIB + 12288),
    ]
    assert "filename" not in extents[1]
    assert all(e["data"] for e in extents)
    assert "in its log" in run("map", path).stdout
    content = run("read", path, "--offset", "8192", "--length", "3").stdout
    assert content == "log"


def test_verify_says_what_is_wrong_with_the_target_too(tmp_path: Path) -> None:
    path = save(a_vhdx(size=2 * MIB, blocks={0: full(b"a")}), tmp_path / "x.vhdx")
    other = save(a_vhdx(size=2 * MIB, blocks={0: full(b"a")}), tmp_path / "y.vhdx")
    with other.open("r+b") as file:
        file.seek(0x10000)
        file.write(b"gone")

    done = run("verify", other, "--against", path)

    assert "warning: header 1 is lost" in done.stderr

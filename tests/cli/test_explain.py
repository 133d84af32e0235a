"""``explain``: its lines, its JSON, and what it refuses."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from uuid import UUID

import pytest

from tests.builders import vhd
from tests.builders.vhdx import BAT, a_locator, a_vhdx, an_entry, bat_page, full, page, save, with_log
from tests.cli.helpers import BLOCK, KIB, MIB, SIZE, Snapshots, make_snapshots, overwrite, run, run_json

STEP = [
    "layer",
    "path",
    "structure",
    "index",
    "file_offset",
    "value",
    "mask",
    "state",
    "outcome",
    "note",
]
RESULT = ["layer", "path", "file_offset", "zero", "damaged", "in_log", "part", "part_offset"]


def cells(text: str) -> list[list[str]]:
    """The table of steps, column by column: cut where its head line begins them."""
    lines = text.split("\n\n")[2].splitlines()
    words = ("Layer", "Structure", "Index", "File offset", "Value", "State", "Outcome")
    # Numbers are aligned to the right: their columns end where the word does.
    head = lines[0]
    stops = [head.index("Layer") + 5, head.index("Index"), head.index("Index") + 5]
    stops += [head.index("File offset") + 11, head.index("Value") + 5]
    stops += [head.index("Outcome"), 1 << 20]
    assert head.split() == " ".join(words).split()
    edges = list(zip([0, *stops], stops))
    return [[line[start:stop].strip() for start, stop in edges] for line in lines]


def test_each_line_is_one_step_down_to_the_bytes(tmp_path: Path) -> None:
    """The child has the first half of block 0; its bitmap's entry is 4096, behind a chunk's blocks."""
    snapshots = make_snapshots(tmp_path / "vms")
    child, base = snapshots.child, snapshots.base
    (block,) = struct.unpack_from("<Q", child.read_bytes(), BAT)
    (bitmap,) = struct.unpack_from("<Q", child.read_bytes(), BAT + 8 * 4096)
    (below,) = struct.unpack_from("<Q", base.read_bytes(), BAT)

    text = run("explain", child, "0x80010").stdout

    lines = text.splitlines()
    assert lines[0] == "Guest byte 0x80010 is in sector 1024, guest bytes 0x80000 to 0x80200"
    partial, present = "PAYLOAD_BLOCK_PARTIALLY_PRESENT", "PAYLOAD_BLOCK_FULLY_PRESENT"
    place = f"{bitmap - 6:#x}"
    payload = f"{below - 6 + 512 * KIB:#x}"
    assert cells(text)[1:] == [
        [
            "0",
            "BAT",
            "0",
            "0x300000",
            f"{block:#x}",
            partial,
            "the sector bitmap of chunk 0 decides",
        ],
        [
            "0",
            "BAT",
            "4096",
            "0x308000",
            f"{bitmap:#x}",
            "SB_BLOCK_PRESENT",
            f"the sector bitmap is at {place}",
        ],
        [
            "0",
            "sector bitmap",
            "1024",
            f"{bitmap - 6 + 128:#x}",
            "0x00 & 0x01",
            "bit 0",
            "the sector is not here: look in the parent",
        ],
        [
            "1",
            "BAT",
            "0",
            "0x300000",
            f"{below:#x}",
            present,
            f"the whole block is in this file, at {below - 6:#x}",
        ],
        ["1", "payload", "1024", payload, "", "in the file", "the sector's bytes"],
    ]
    assert lines[2:4] == [f"    0  {child}", f"    1  {base}"]
    assert lines[12] == f"At {payload} of layer 1, {base}"
    content = base.read_bytes()[below - 6 + 512 * KIB :][:16]
    assert lines[14] == f"000000080000  {content[:8].hex(' ')}  {content[8:].hex(' ')}  |................|"
    assert lines[-1] == "000000080200"
    assert not any(line != line.rstrip() for line in lines)


def test_the_document_has_the_promised_keys(snapshots: Snapshots) -> None:
    document = run_json("explain", snapshots.child, 512 * KIB)

    assert list(document) == ["offset", "sector", "sector_size", "steps", "result", "bytes_hex", "findings"]
    assert (document["offset"], document["sector"]) == (512 * KIB, 1024)
    for step in document["steps"]:
        assert list(step) == STEP
    assert list(document["result"]) == RESULT
    base = snapshots.base.read_bytes()
    place = document["result"]["file_offset"]
    assert (document["result"]["layer"], document["result"]["path"]) == (1, str(snapshots.base))
    assert document["result"]["zero"] is False
    assert document["bytes_hex"] == base[place : place + 512].hex()
    assert [(step["layer"], step["structure"], step["outcome"]) for step in document["steps"]][-1] == (
        1,
        "payload",
        "here",
    )
    assert document["findings"] == []


def test_every_layer_agrees_with_map_and_read(snapshots: Snapshots) -> None:
    for extent in run_json("map", snapshots.child):
        for offset in (extent["start"], extent["start"] + extent["length"] - 1):
            document = run_json("explain", snapshots.child, offset)
            assert document["result"]["zero"] == extent["zero"]
            if extent["data"]:
                within = document["sector"] * 512 - extent["start"]
                assert document["result"]["file_offset"] == extent["offset"] + within
                assert document["result"]["path"] == extent["filename"]
            at = document["sector"] * 512
            assert bytes.fromhex(document["bytes_hex"]) == snapshots.child_disk[at : at + 512]


@pytest.mark.parametrize("number", ["1024", "0x400"])
def test_an_offset_may_be_a_size_or_the_number_of_a_sector(number: str, snapshots: Snapshots) -> None:
    by_bytes = run("explain", snapshots.child, "512KiB").stdout

    assert run("explain", snapshots.child, number, "--sector").stdout == by_bytes
    assert run("explain", snapshots.child, "1024s").stdout == by_bytes


def test_sectors_of_4096_bytes_are_counted_and_shown_whole(tmp_path: Path) -> None:
    path = save(a_vhdx(sector=4096, blocks={1: full(bytes(range(256)))}), tmp_path / "x.vhdx")

    document = run_json("explain", path, 257, "--sector")

    assert (document["offset"], document["sector_size"]) == (257 * 4096, 4096)
    assert bytes.fromhex(document["bytes_hex"]) == bytes(range(256)) * 16
    assert run("explain", path, 257, "--sector").stdout.endswith("000000102000\n")


@pytest.mark.parametrize(
    "arguments",
    [
        (SIZE,),
        (1 << 62,),
        (SIZE // 512, "--sector"),
        ("1KB",),
        ("x",),
        ("4s", "--sector"),
        ("1KiB", "--sector"),
        (),
    ],
)
def test_an_offset_that_is_none_or_not_on_the_disk_is_wrong_usage(
    arguments: tuple[object, ...], snapshots: Snapshots
) -> None:
    result = run("explain", snapshots.child, *arguments, code=2)

    assert result.stdout == ""
    assert result.stderr.startswith("Usage: vhdtool explain")


def test_the_last_byte_of_the_disk_is_explained(snapshots: Snapshots) -> None:
    document = run_json("explain", snapshots.child, SIZE - 1)

    assert (document["sector"], document["result"]["zero"]) == (SIZE // 512 - 1, True)
    assert document["bytes_hex"] == "00" * 512
    assert f"\nZeros: layer 1, {snapshots.base}\n" in run("explain", snapshots.child, SIZE - 1).stdout


def test_a_damaged_place_is_explained_and_its_neighbours_too(tmp_path: Path) -> None:
    image = a_vhdx(blocks={0: full(b"a")}, entries={1: 900 * MIB | 6})
    path = save(image, tmp_path / "x.vhdx")

    text = run("explain", path, BLOCK).stdout
    document = run_json("explain", path, BLOCK)

    # Reading it is refused; so is reading anything of this disk.
    run("read", path, "--length", "1s", code=65)
    assert f"Cannot be read: layer 0, {path}" in text
    assert "beyond the end of the file at 0x500000" in text
    assert "[vhdx.bat.eof]" in text.splitlines()[-1]
    assert document["bytes_hex"] is None
    assert document["result"] == {
        "layer": 0,
        "path": str(path),
        "file_offset": None,
        "zero": False,
        "damaged": True,
        "in_log": False,
        "part": None,
        "part_offset": None,
    }
    assert [finding["code"] for finding in document["findings"]] == ["vhdx.bat.eof"]
    assert run_json("explain", path, 0)["bytes_hex"] == "61" * 512
    assert run_json("explain", path, 0)["findings"] == []


def test_what_stands_in_a_log_has_no_place_in_the_file(tmp_path: Path) -> None:
    image = a_vhdx(size=2 * MIB, blocks={0: full(b"a", 4 * MIB), 1: full(b"b", 5 * MIB)})
    path = save(with_log(image, [an_entry(1, page(4 * MIB + 8192, b"log"))]), tmp_path / "x.vhdx")

    document = run_json("explain", path, 8192)
    text = run("explain", path, 8192).stdout

    override = document["steps"][-2]
    assert (override["structure"], override["index"]) == ("log override", 1)
    assert document["result"]["file_offset"] is None
    assert document["result"]["in_log"] is True
    assert f"From the log of layer 0, {path}" in text
    assert "|log............." in text


def test_the_log_can_be_left_out(tmp_path: Path) -> None:
    image = a_vhdx(blocks={0: full(b"a")})
    dirty = with_log(image, [an_entry(1, bat_page(image, 0, 4 * MIB | 6))])
    dirty[BAT : BAT + 8] = bytes(8)
    path = save(dirty, tmp_path / "x.vhdx")

    after, before = run("explain", path, 0), run("explain", path, 0, "--log", "before")

    assert "log override" in after.stdout
    assert "PAYLOAD_BLOCK_FULLY_PRESENT" in after.stdout
    assert "log override" not in before.stdout
    assert "PAYLOAD_BLOCK_NOT_PRESENT" in before.stdout
    assert "vhdx.log.left_out" in before.stderr


def test_a_split_vhd_names_the_piece(tmp_path: Path) -> None:
    image = vhd.a_vhd(blocks={0: (b"a" * vhd.BLOCK_SIZE, None)})
    (entry,) = struct.unpack_from(">I", image, 1536)
    data = entry * 512 + 512
    (tmp_path / "x.vhd").write_bytes(image[:data])
    (tmp_path / "x.v01").write_bytes(image[data:])

    text = run("explain", tmp_path / "x.vhd", 1024).stdout

    where = f"At {data + 1024:#x} of layer 0, {tmp_path / 'x.vhd'}: at 0x400 of {tmp_path / 'x.v01'}"
    assert where in text.splitlines()


def test_warnings_are_printed_and_the_work_goes_on(vhds: Snapshots) -> None:
    overwrite(vhds.base, -512, b"spoiled!")

    result = run("explain", vhds.child, 0)

    assert result.stderr.startswith("warning: ")
    assert "vhd.footer.end_bad" in result.stderr
    assert "b0 b0" in result.stdout


def test_an_error_that_concerns_the_whole_disk_refuses(vhds: Snapshots) -> None:
    overwrite(vhds.child, 512, b"nothing!")

    result = run("explain", vhds.child, 0, code=65)

    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")


def test_a_missing_parent_refuses(snapshots: Snapshots) -> None:
    snapshots.base.unlink()

    assert "chain.parent.missing" in run("explain", snapshots.child, 0, code=66).stderr


def test_a_parent_elsewhere_is_found_as_other_commands_find_it(snapshots: Snapshots, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    base = snapshots.base.rename(folder / snapshots.base.name)

    document = run_json("explain", snapshots.child, BLOCK, "--search", folder)

    assert document["result"]["path"] == str(base)


def test_names_of_files_are_printed_escaped(tmp_path: Path) -> None:
    path = save(a_vhdx(blocks={0: full(b"\x1b[2J")}), tmp_path / "a\x1b[31mb\n.vhdx")

    text = run("explain", path, 0).stdout

    assert "a\\x1b[31mb\\n.vhdx" in text
    assert "\x1b" not in text
    assert re.search(r"\|\.\[2J", text)


def test_a_chain_of_256_layers_is_explained_to_its_base(tmp_path: Path) -> None:
    from tests.chain.disks import VHDX

    leaf = VHDX.chain(tmp_path, 256)

    lines = run("explain", leaf, 0).stdout.splitlines()

    assert [line.split()[0] for line in lines[260:516]] == [str(layer) for layer in range(256)]
    assert lines[517] == f"Zeros: layer 255, {tmp_path / 'layer0.vhdx'}"


def test_a_disk_of_64_tib_is_explained_at_its_end(tmp_path: Path) -> None:
    child = a_vhdx(size=64 << 40, block_size=32 * MIB, parent=a_locator(), data_write=UUID(int=2))
    save(child, tmp_path / "child.vhdx")
    save(a_vhdx(size=64 << 40, block_size=256 * MIB), tmp_path / "parent.vhdx")

    document = run_json("explain", tmp_path / "child.vhdx", (64 << 40) - 1)

    last = (64 << 40) // (32 * MIB) - 1
    index = last + last // 128
    assert document["steps"][0]["index"] == index
    assert document["steps"][0]["file_offset"] == BAT + 8 * index
    assert document["result"]["zero"] is True

"""What an independent reading of the specifications found wrong: one test for each defect."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.builders import vhd, vhdx
from vhdtool.chain.chain import FoundBy
from vhdtool.chain.discover import open_chain
from vhdtool.chain.tree import find_snapshots
from vhdtool.errors import CorruptError
from vhdtool.formats.image import OpenOptions, require_sound
from vhdtool.formats.vhdx.image import open_vhdx
from vhdtool.model.state import BlockState
from vhdtool.source import MemorySource, Patch, PatchedSource

BLOCK = vhd.BLOCK_SIZE


def split(path: Path, image: bytes, *cuts: int) -> None:
    """Write ``image`` as ``path`` and the pieces ``.v01``, ``.v02`` ..., cut at the bytes ``cuts``."""
    edges = [0, *cuts, len(image)]
    for number, (start, stop) in enumerate(pairwise(edges)):
        piece = path if number == 0 else path.with_suffix(f".v{number:02}")
        piece.write_bytes(image[start:stop])


def a_dynamic_image(**more: object) -> tuple[bytes, bytes]:
    """A dynamic disk with two blocks, and its content."""
    data = {0: b"\x11" * BLOCK, 2: b"\x22" * BLOCK}
    image = vhd.a_vhd(blocks={n: (d, None) for n, d in data.items()}, **more)  # type: ignore[arg-type]
    disk = bytearray(vhd.SIZE)
    for number, block in data.items():
        disk[number * BLOCK : (number + 1) * BLOCK] = block
    return image, bytes(disk)


@pytest.mark.parametrize("cuts", [(1024,), (4096, 40_000), (600, 700, 70_000)])
def test_a_split_dynamic_disk_is_read_in_full_although_its_first_piece_carries_a_footer(
    tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    image, disk = a_dynamic_image()
    split(tmp_path / "disk.vhd", image, *cuts)

    with open_chain(tmp_path / "disk.vhd") as chain:
        assert chain.read(0, vhd.SIZE) == disk
        assert chain.warnings() == ()


def test_a_split_parent_is_found_by_its_name_and_in_a_tree(tmp_path: Path) -> None:
    image, disk = a_dynamic_image(footer={"unique_id": vhd.A_PARENT_ID})
    split(tmp_path / "base.vhd", image, 30_000)
    locator = (b"W2ru", ".\\base.vhd".encode("utf-16-le"))
    (tmp_path / "leaf.vhd").write_bytes(vhd.a_vhd(disk_type=vhd.DIFFERENCING, locators=[locator]))

    with open_chain(tmp_path / "leaf.vhd") as chain:
        assert chain.read(0, vhd.SIZE) == disk
    assert [node.path.name for node in find_snapshots(tmp_path)] == ["base.vhd", "leaf.vhd"]


@pytest.mark.parametrize("piece", [b"", b"not of this disk" * 100])
def test_a_file_that_only_looks_like_a_piece_is_left_alone(tmp_path: Path, piece: bytes) -> None:
    image, disk = a_dynamic_image(end=b"")
    (tmp_path / "disk.vhd").write_bytes(image)
    (tmp_path / "disk.v01").write_bytes(piece)

    with open_chain(tmp_path / "disk.vhd") as chain:
        assert chain.read(0, vhd.SIZE) == disk
        assert [finding.code for finding in chain.warnings()] == ["vhd.footer.end_bad"]
        assert len(chain.files()) == 1


def test_the_last_piece_of_a_split_parent_is_not_a_second_image_of_its_identity(tmp_path: Path) -> None:
    data = bytes(range(256)) * (vhd.SIZE // 256)
    split(tmp_path / "moved.vhd", vhd.a_fixed_vhd(data, unique_id=vhd.A_PARENT_ID), 50_000)
    locator = (b"W2ru", ".\\gone.vhd".encode("utf-16-le"))
    (tmp_path / "leaf.vhd").write_bytes(vhd.a_vhd(disk_type=vhd.DIFFERENCING, locators=[locator]))

    with open_chain(tmp_path / "leaf.vhd") as chain:
        assert chain.layers[1].found_by is FoundBy.IDENTITY
        assert chain.read(0, vhd.SIZE) == data


def test_zeros_of_a_log_are_a_hole_like_any_other(tmp_path: Path) -> None:
    size = 8 * vhdx.TIB
    ratio = 16
    blocks = {b + b // ratio: (16 * vhdx.TIB + (b << 28)) | 6 for b in range(size >> 28)}
    image = vhdx.a_vhdx(size=size, block_size=256 * vhdx.MIB, sector=512, entries=blocks)
    entry = vhdx.an_entry(7, vhdx.Zero(16 * vhdx.TIB, size), last=24 * vhdx.TIB)
    path = vhdx.save(vhdx.with_log(image, [entry]), tmp_path / "zeros.vhdx")

    with open_chain(path) as chain:
        source = chain.leaf.source
        assert source.size == 24 * vhdx.TIB
        assert list(source.data_ranges(16 * vhdx.TIB, source.size)) == []


def test_patches_show_in_the_ranges_of_data_as_what_they_hold() -> None:
    def page(skip: int, count: int) -> bytes:
        return b"\x01" * count

    patches = [Patch(0, 300), Patch(100, 50, page), Patch(900, 400, page)]
    source = PatchedSource(MemorySource("file", b"\x02" * 1000), patches, 2000)

    assert list(source.data_ranges(0, 2000)) == [(100, 150), (300, 900), (900, 1300)]
    assert list(source.data_ranges(120, 130)) == [(120, 130)]
    assert list(source.data_ranges(200, 950)) == [(300, 900), (900, 950)]
    for start, stop in ((0, 100), (150, 300), (1300, 2000), (120, 120), (300, 200)):
        assert list(source.data_ranges(start, stop)) == []


def test_a_block_farther_away_than_a_block_map_can_say_is_refused() -> None:
    far = (1 << 60) + vhdx.MIB
    image = vhdx.a_vhdx(entries={0: far | 6})
    source = PatchedSource(MemorySource("far.vhdx", bytes(image)), [], far + 8 * vhdx.MIB)
    opened = open_vhdx(source, OpenOptions())

    with pytest.raises(CorruptError, match=r"vhdx\.bat\.eof"):
        require_sound(opened)
    assert opened.entry(0) == (BlockState.DAMAGED, 0)
    assert opened.block_map(0, 1).state.tolist() == [BlockState.DAMAGED]

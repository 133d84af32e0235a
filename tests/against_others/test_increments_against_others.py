"""Increments, sets and merges read by other programs: each point equals the direct export."""

from __future__ import annotations

import shutil
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

import vhdtool
from tests.against_others.test_chains_against_others import (
    by_7zip,
    by_libvhdi,
    by_qemu,
    needs_7zip,
    needs_libvhdi,
    needs_qemu,
)
from tests.export.test_increment import a_tree
from tests.generated import MIB, Point, Style
from vhdtool.export.merge import merge_image
from vhdtool.export.sets.allpoints import export_all

# 7-Zip wants a child to be as large as its parent.
STYLES = {
    "vhdx": Style(sizes=False),
    "vhdx-4k": Style(sizes=False, sector_size=4096, block_sizes=(MIB, 4 * MIB)),
    "vhd": Style(format="vhd", block_sizes=(512 << 10, 2 * MIB), sizes=False, stale=False),
}
# libvhdi takes wrong sectors from VHD bitmaps (so: whole bytes of them) and lets zeroed blocks fall through.
LIBVHDI_STYLES = {
    "vhdx": Style(states=False, sizes=False),
    "vhd": Style(format="vhd", block_sizes=(2 * MIB,), sizes=False, stale=False, grain=8),
}


def increments(tree: dict[str, Point], folder: Path, *, compare_content: bool = False) -> dict[str, Path]:
    """Each point on a full export of ``one``: an ancestor, a child, cousins; then the originals are lost."""
    source = next(iter(tree.values())).path.parent
    suffix = next(iter(tree.values())).style.format
    folder.mkdir()
    made = {"one": folder / f"one.{suffix}"}
    vhdtool.export_image(tree["one"].path, made["one"])
    for name, point in tree.items():
        if name != "one":
            made[name] = folder / f"{name}.{suffix}"
            vhdtool.export_image(point.path, made[name], base=made["one"], compare_content=compare_content)
    shutil.rmtree(source)
    return made


def a_source(tmp_path: Path, style: Style, seed: int) -> dict[str, Point]:
    folder = tmp_path / "source"
    folder.mkdir()
    return a_tree(folder, style, seed)


@needs_7zip
@pytest.mark.parametrize("compare_content", [False, True])
@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_7zip_reads_each_point_through_its_increment(
    style: Style, compare_content: bool, tmp_path: Path
) -> None:
    tree = a_source(tmp_path, style, 51)

    made = increments(tree, tmp_path / "backup", compare_content=compare_content)

    for name, path in made.items():
        assert by_7zip(path) == tree[name].disk.tobytes(), name


@needs_7zip
@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_7zip_reads_each_point_of_a_set(style: Style, tmp_path: Path) -> None:
    tree = a_source(tmp_path, style, 52)

    report = export_all(tmp_path / "source", tmp_path / "set")
    shutil.rmtree(tmp_path / "source")

    disks = {point.path: point.disk.tobytes() for point in tree.values()}
    for entry in report.points:
        assert by_7zip(report.destination / entry.target) == disks[entry.point_in_time]


@needs_7zip
def test_7zip_reads_a_merge_of_a_base_and_its_increments(tmp_path: Path) -> None:
    tree = a_source(tmp_path, STYLES["vhdx"], 53)
    backup = tmp_path / "backup"
    backup.mkdir()
    names = ["base", "one", "two"]
    vhdtool.export_image(tree["base"].path, backup / "base.vhdx")
    for below, name in pairwise(names):
        vhdtool.export_image(tree[name].path, backup / f"{name}.vhdx", base=backup / f"{below}.vhdx")

    with vhdtool.open_chain(backup / "two.vhdx") as chain:
        merge_image(chain, backup / "merged.vhdx")

    assert by_7zip(backup / "merged.vhdx") == tree["two"].disk.tobytes()


@needs_qemu
@pytest.mark.parametrize("style", [STYLES["vhdx"], STYLES["vhd"]], ids=["vhdx", "vhd"])
def test_qemu_reads_a_merge(style: Style, tmp_path: Path) -> None:
    tree = a_source(tmp_path, style, 54)
    target = tmp_path / f"merged.{style.format}"

    with vhdtool.open_chain(tree["niece"].path) as chain:
        merge_image(chain, target)

    assert by_qemu(target, tmp_path / "theirs.raw") == tree["niece"].disk.tobytes()


@needs_libvhdi
@pytest.mark.parametrize("style", LIBVHDI_STYLES.values(), ids=LIBVHDI_STYLES)
def test_libvhdi_reads_each_point_through_its_increment(style: Style, tmp_path: Path) -> None:
    """But where its own defects are in the way: an increment with zeroed blocks, or without a partial one."""
    tree = a_source(tmp_path, style, 55)
    compared = 0

    for name, path in increments(tree, tmp_path / "backup").items():
        with closing(vhdtool.open_image(path)) as image:
            counts = image.counts()
        if style.format == "vhdx" and image.parent is not None and (counts.zero or not counts.partial):
            continue
        assert by_libvhdi(path) == tree[name].disk.tobytes(), name
        compared += 1

    assert compared >= 3

"""Increments: their plans, what can be their base, and what the images read as."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

import vhdtool
from tests.export.kit import a_disk, names_in, some_data
from tests.generated import MIB, Point, Style, a_base, a_child
from vhdtool.chain.chain import Chain
from vhdtool.errors import (
    FileMissingError,
    FormatError,
    ParentMismatchError,
    ParentNotFoundError,
    TargetError,
    UnsupportedError,
)
from vhdtool.export.increment import increment_plans, open_base, relative_path
from vhdtool.export.job import export_image
from vhdtool.export.proof.manifest import Manifest, manifest_path
from vhdtool.export.proof.verify import verify_image
from vhdtool.model.plan import ReadPlan
from vhdtool.model.state import UNHELD, ZEROS

STYLES = {
    "vhdx": Style(),
    "vhdx-4k": Style(sector_size=4096, block_sizes=(MIB, 4 * MIB)),
    "vhd": Style(format="vhd", block_sizes=(512 << 10, 2 * MIB)),
}


def a_tree(folder: Path, style: Style, seed: int) -> dict[str, Point]:
    """A base, two forks, five snapshots."""
    rng = np.random.default_rng(seed)
    base = a_base(folder, style, rng)
    one = a_child(base, rng, "one")
    two = a_child(one, rng, "two")
    return {
        "base": base,
        "one": one,
        "two": two,
        "cousin": a_child(one, rng, "cousin"),
        "aunt": (aunt := a_child(base, rng, "aunt")),
        "niece": a_child(aunt, rng, "niece"),
    }


def pairs(tree: dict[str, Point]) -> Iterator[tuple[Point, Point]]:
    """Each leaf with each base that is not larger."""
    for leaf, base in permutations(tree.values(), 2):
        if len(leaf.disk) >= len(base.disk):
            yield leaf, base


def read_through(plans: list[ReadPlan], leaf: Chain, base: bytes) -> bytes:
    """What a child with these plans reads as, over a parent with the disk ``base``."""
    disk = bytearray(base.ljust(leaf.virtual_size, b"\0"))
    position = 0
    for run in (run for plan in plans for run in plan):
        assert run.offset == position
        position += run.length
        part = slice(run.offset, position)
        if run.layer == ZEROS:
            disk[part] = bytes(run.length)
        elif run.layer != UNHELD:
            source = leaf.images[run.layer].source
            disk[part] = source.read_exact(run.file_offset, run.length, field="payload")
    assert position == leaf.virtual_size
    return bytes(disk)


def held(plans: list[ReadPlan]) -> list[tuple[int, int]]:
    return [(run.offset, run.length) for plan in plans for run in plan if run.layer != UNHELD]


@pytest.mark.parametrize("compare_content", [False, True])
@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@pytest.mark.parametrize("seed", [1, 2])
def test_over_any_other_point_an_increment_reads_as_its_leaf(
    style: Style, seed: int, compare_content: bool, tmp_path: Path
) -> None:
    for leaf, base in pairs(a_tree(tmp_path, style, seed)):
        with vhdtool.open_chain(leaf.path) as chain, vhdtool.open_chain(base.path) as below:
            plans = list(
                increment_plans(chain, below, sector_size=style.sector_size, compare_content=compare_content)
            )

            assert read_through(plans, chain, base.disk.tobytes()) == leaf.disk.tobytes()
            for start, length in held(plans):
                assert start % style.sector_size == length % style.sector_size == 0


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_with_comparing_an_increment_holds_no_sector_that_its_base_has(style: Style, tmp_path: Path) -> None:
    for leaf, base in pairs(a_tree(tmp_path, style, 3)):
        below = base.disk.tobytes().ljust(len(leaf.disk), b"\0")
        with vhdtool.open_chain(leaf.path) as chain, vhdtool.open_chain(base.path) as other:
            plans = list(increment_plans(chain, other, sector_size=style.sector_size, compare_content=True))

        grain = style.sector_size
        for start, length in held(plans):
            for at in range(start, min(start + length, len(base.disk)), grain):
                assert below[at : at + grain] != leaf.disk[at : at + grain].tobytes()


# ------------------------------------------------------------ images


def content(path: Path) -> bytes:
    """The disk of an image, read through its parents."""
    with vhdtool.open_chain(path) as chain:
        return chain.read(0, chain.virtual_size)


def a_full_export(point: Point, folder: Path, name: str = "full") -> Path:
    folder.mkdir(exist_ok=True)
    target = folder / f"{name}.{point.style.format}"
    export_image(point.path, target)
    return target


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_after_the_originals_are_lost_every_point_is_read_through_a_full_export(
    style: Style, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    tree = a_tree(source, style, 4)
    full = a_full_export(tree["base"], tmp_path / "backup")
    made = {}
    for name, point in tree.items():
        if name != "base":
            made[name] = tmp_path / "backup" / f"{name}.{style.format}"
            report = export_image(point.path, made[name], base=full)
            assert report.base is not None
            assert report.base["differences"] == "metadata"
            assert report.base["path"] == full.name
    for file in source.iterdir():
        file.unlink()

    for name, path in made.items():
        assert content(path) == tree[name].disk.tobytes()
        assert verify_image(path).ok


def test_an_increment_may_be_the_base_of_another_one(tmp_path: Path) -> None:
    tree = a_tree(tmp_path, STYLES["vhdx"], 6)
    below = a_full_export(tree["base"], tmp_path / "backup")
    for name in ("one", "two"):
        target = tmp_path / "backup" / f"{name}.vhdx"
        export_image(tree[name].path, target, base=manifest_path(below))
        below = target

    assert content(below) == tree["two"].disk.tobytes()
    with vhdtool.open_chain(below) as chain:
        assert [layer.path.name for layer in chain.layers] == ["two.vhdx", "one.vhdx", "full.vhdx"]


@pytest.mark.parametrize("change", ["gone", "touched", "replaced"])
def test_when_what_was_exported_is_not_there_as_it_was_contents_are_compared(
    change: str, tmp_path: Path
) -> None:
    tree = a_tree(tmp_path, STYLES["vhdx"], 7)
    full = a_full_export(tree["niece"], tmp_path / "backup")
    aunt = tree["aunt"].path
    if change == "gone":
        tree["niece"].path.unlink()
    elif change == "touched":
        stat = aunt.stat()
        os.utime(aunt, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    else:
        tree["niece"].path.write_bytes(tree["cousin"].path.read_bytes())
    leaf = tree["two"]
    if len(leaf.disk) < len(tree["niece"].disk):
        pytest.skip("the generated leaf is smaller")

    report = export_image(leaf.path, tmp_path / "two.vhdx", base=full)

    assert report.base is not None
    assert report.base["differences"] == "content"
    assert report.notes
    assert content(tmp_path / "two.vhdx") == leaf.disk.tobytes()


def test_an_increment_without_differences_is_an_empty_child(tmp_path: Path) -> None:
    tree = a_tree(tmp_path, STYLES["vhdx"], 8)
    full = a_full_export(tree["one"], tmp_path / "backup")

    report = export_image(tree["one"].path, tmp_path / "again.vhdx", base=full)

    assert (report.data_bytes, report.read_bytes, report.written_bytes) == (0, 0, 0)
    assert content(tmp_path / "again.vhdx") == tree["one"].disk.tobytes()


def test_what_is_new_behind_the_end_of_the_base_is_held_and_its_zeros_are_not(tmp_path: Path) -> None:
    vhdtool.create_image(tmp_path / "base.vhdx", size=4 * MIB)
    raw = a_disk(tmp_path / "more.raw", 12 * MIB, {9 * MIB: some_data(4096)})
    vhdtool.create_image(tmp_path / "more.vhdx", source=raw, block_size=MIB)

    with (
        vhdtool.open_chain(tmp_path / "more.vhdx") as leaf,
        vhdtool.open_chain(tmp_path / "base.vhdx") as base,
    ):
        plans = list(increment_plans(leaf, base, sector_size=512))
        dense = list(increment_plans(leaf, base, sector_size=512, compare_content=True))

        assert read_through(dense, leaf, bytes(4 * MIB)) == raw.read_bytes()

    assert held(plans) == [(9 * MIB, MIB)]
    assert held(dense) == [(9 * MIB, 4096)]


def test_zeros_of_the_leaf_over_data_of_the_base_are_held(tmp_path: Path) -> None:
    data = a_disk(tmp_path / "data.raw", 8 * MIB, {0: some_data(8 * MIB)})
    vhdtool.create_image(tmp_path / "base.vhdx", source=data)
    vhdtool.create_image(tmp_path / "leaf.vhdx", size=8 * MIB)

    export_image(tmp_path / "leaf.vhdx", tmp_path / "increment.vhdx", base=tmp_path / "base.vhdx")

    assert content(tmp_path / "increment.vhdx") == bytes(8 * MIB)
    assert (tmp_path / "increment.vhdx").stat().st_size < 8 * MIB  # said to be zeros, not stored


# ------------------------------------------------------------ what is refused


@pytest.mark.parametrize("kind", ["raw", "raw.zst"])
def test_a_raw_export_is_no_base_and_the_message_says_what_is(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    tree = a_tree(tmp_path, STYLES["vhdx"], 9)
    name = tmp_path / {"raw": "base.raw", "raw.zst": "base.raw.zst"}[kind]
    export_image(tree["base"].path, name)

    with pytest.raises(UnsupportedError, match="--format vhdx"):
        export_image(tree["one"].path, tmp_path / "increment.vhdx", base=name)
    assert not (tmp_path / "increment.vhdx").exists()


def test_a_leaf_that_is_smaller_than_the_base_is_refused(tmp_path: Path) -> None:
    vhdtool.create_image(tmp_path / "base.vhdx", size=8 * MIB)
    vhdtool.create_image(tmp_path / "leaf.vhdx", size=4 * MIB)

    with pytest.raises(TargetError, match="smaller"):
        export_image(tmp_path / "leaf.vhdx", tmp_path / "increment.vhdx", base=tmp_path / "base.vhdx")
    assert names_in(tmp_path) == {"base.vhdx", "leaf.vhdx"}


def test_an_export_that_was_replaced_is_no_base(tmp_path: Path) -> None:
    tree = a_tree(tmp_path, STYLES["vhdx"], 10)
    full = a_full_export(tree["base"], tmp_path / "backup")
    other = a_full_export(tree["one"], tmp_path / "backup", "other")
    full.write_bytes(other.read_bytes())

    with pytest.raises(ParentMismatchError, match="is not what"):
        export_image(tree["two"].path, tmp_path / "increment.vhdx", base=full)


def test_a_base_that_is_missing_or_whose_parent_is_missing_is_refused(tmp_path: Path) -> None:
    tree = a_tree(tmp_path, STYLES["vhdx"], 11)
    tree["aunt"].path.unlink()

    with pytest.raises(FileMissingError):
        open_base(tmp_path / "nothing.vhdx")
    with pytest.raises(ParentNotFoundError):
        open_base(tree["niece"].path)


def test_a_forged_manifest_of_the_base_is_refused(tmp_path: Path) -> None:
    tree = a_tree(tmp_path, STYLES["vhdx"], 12)
    full = a_full_export(tree["base"], tmp_path / "backup")
    manifest = manifest_path(full)
    manifest.write_text(manifest.read_text().replace('"log_replayed": false', '"log_replayed": true'))

    with pytest.raises(FormatError):
        export_image(tree["one"].path, tmp_path / "increment.vhdx", base=full)


@pytest.mark.parametrize("compare_content", [False, True])
def test_sectors_that_the_base_does_not_have_are_refused_with_the_place(
    compare_content: bool, tmp_path: Path
) -> None:
    raw = a_disk(tmp_path / "leaf.raw", 8 * MIB, {2 * MIB + 512: some_data(512)})
    vhdtool.create_image(tmp_path / "base.vhdx", size=8 * MIB, logical_sector_size=4096)
    vhdtool.create_image(tmp_path / "empty.vhdx", size=8 * MIB)
    child = tmp_path / "child.avhdx"
    vhdtool.snapshot_image(tmp_path / "empty.vhdx", child)

    with vhdtool.open_chain(raw) as leaf, vhdtool.open_chain(tmp_path / "base.vhdx") as base:
        plans = list(increment_plans(leaf, base, sector_size=4096, compare_content=compare_content))

        # Where it is known what stands around a sector, more is held: whole sectors of the base's size.
        assert all(start % 4096 == length % 4096 == 0 for start, length in held(plans))
        assert read_through(plans, leaf, bytes(8 * MIB)) == raw.read_bytes()


def test_a_path_is_told_from_the_folder_of_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    assert relative_path(tmp_path / "a" / "disk.vhdx", tmp_path / "b") == "../a/disk.vhdx"
    assert relative_path(tmp_path / "a" / "disk.vhdx", tmp_path / "a") == "disk.vhdx"


def test_the_manifest_of_an_increment_tells_of_its_base(tmp_path: Path) -> None:
    tree = a_tree(tmp_path, STYLES["vhdx"], 13)
    full = a_full_export(tree["base"], tmp_path / "backup")
    (tmp_path / "other").mkdir()
    target = tmp_path / "other" / "increment.vhdx"

    export_image(tree["one"].path, target, base=full)

    with Manifest(manifest_path(full)) as below, Manifest(manifest_path(target)) as manifest:
        assert manifest.base is not None
        assert manifest.base["path"] == "../backup/full.vhdx"
        assert manifest.base["root"] == below.root
        assert manifest.base["write_id"] == below.target["write_id"]
        assert manifest.base["point_in_time"] == str(tree["base"].path)

"""Merges: the same disk in one image, and what an administrator with a full host wants to know."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import vhdtool
from tests.export.kit import a_disk, allocated, names_in, some_data
from tests.export.test_increment import STYLES, a_tree, content
from tests.generated import MIB, Style
from vhdtool.errors import ExportError, TargetError
from vhdtool.export import merge as merge_module
from vhdtool.export.containers.shape import shape_of_export
from vhdtool.export.merge import MergeReport, Room, merge_image, room_for
from vhdtool.export.options import ExportOptions
from vhdtool.export.proof.verify import verify_image
from vhdtool.model.identity import DiskType


def merged(leaf: Path, target: Path, options: ExportOptions | None = None, **more: object) -> MergeReport:
    with vhdtool.open_chain(leaf) as chain:
        return merge_image(chain, target, options, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_a_merge_is_one_dynamic_image_in_the_leafs_format_with_its_block_size(
    style: Style, tmp_path: Path
) -> None:
    tree = a_tree(tmp_path, style, 31)
    for name in ("two", "niece"):
        target = tmp_path / f"merged-{name}.{style.format}"

        merged(tree[name].path, target)

        assert content(target) == tree[name].disk.tobytes()
        assert verify_image(target).ok
        image, leaf = vhdtool.open_image(target), vhdtool.open_image(tree[name].path)
        assert (image.type, image.parent) == (DiskType.DYNAMIC, None)
        assert image.geometry.block_size == leaf.geometry.block_size
        assert image.geometry.sector_size == leaf.geometry.sector_size
        image.close()
        leaf.close()


def test_a_base_and_its_increments_are_folded_when_the_originals_are_gone(tmp_path: Path) -> None:
    source, backup = tmp_path / "source", tmp_path / "backup"
    source.mkdir()
    backup.mkdir()
    tree = a_tree(source, STYLES["vhd"], 32)
    vhdtool.export_image(tree["base"].path, backup / "base.vhd")
    vhdtool.export_image(tree["one"].path, backup / "one.vhd", base=backup / "base.vhd")
    vhdtool.export_image(tree["two"].path, backup / "two.vhd", base=backup / "one.vhd")
    for file in source.iterdir():
        file.unlink()

    merged(backup / "two.vhd", backup / "full.vhd")
    for name in ("base", "one", "two"):
        (backup / f"{name}.vhd").unlink()

    assert content(backup / "full.vhd") == tree["two"].disk.tobytes()


def test_with_the_leafs_identity_later_increments_find_the_merged_image(tmp_path: Path) -> None:
    tree = a_tree(tmp_path, STYLES["vhdx"], 33)
    backup = tmp_path / "backup"
    backup.mkdir()
    vhdtool.export_image(tree["base"].path, backup / "base.vhdx")
    vhdtool.export_image(tree["one"].path, backup / "one.vhdx", base=backup / "base.vhdx")
    vhdtool.export_image(tree["two"].path, backup / "two.vhdx", base=backup / "one.vhdx")

    report = merged(backup / "one.vhdx", backup / "merged.vhdx", ExportOptions(keep_id=True))
    (backup / "base.vhdx").unlink()
    (backup / "merged.vhdx").replace(backup / "one.vhdx")

    assert report.keeps_id
    assert content(backup / "two.vhdx") == tree["two"].disk.tobytes()


def test_another_format_is_made_when_the_targets_name_claims_it(tmp_path: Path) -> None:
    tree = a_tree(tmp_path, STYLES["vhd"], 34)

    merged(tree["two"].path, tmp_path / "merged.vhdx")
    merged(tree["two"].path, tmp_path / "merged.raw", ExportOptions(format="raw"))

    assert content(tmp_path / "merged.vhdx") == tree["two"].disk.tobytes()
    assert (tmp_path / "merged.raw").read_bytes() == tree["two"].disk.tobytes()


def test_a_merge_is_never_in_place_and_has_no_base(tmp_path: Path) -> None:
    tree = a_tree(tmp_path, STYLES["vhdx"], 35)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    with pytest.raises(TargetError, match="it is the input"):
        merged(tree["two"].path, tree["two"].path, ExportOptions(force=True))
    with pytest.raises(TargetError, match="it is the input"):
        merged(tree["two"].path, tree["base"].path, ExportOptions(force=True))
    with pytest.raises(ValueError, match="no base"):
        merged(tree["two"].path, tmp_path / "x.vhdx", ExportOptions(base=tree["base"].path))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# ------------------------------------------------------------ room


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@pytest.mark.parametrize("seed", [40, 41])
def test_a_result_never_takes_more_than_was_said(style: Style, seed: int, tmp_path: Path) -> None:
    tree = a_tree(tmp_path, style, seed)
    for name in ("base", "two", "niece"):
        target = tmp_path / f"merged-{name}.{style.format}"
        told: list[Room] = []

        report = merged(tree[name].path, target, tell=told.append)

        assert told == [report.room]
        taken = allocated(target) + allocated(Path(f"{target}.manifest.json"))
        assert taken <= report.room.needed
        assert report.room.needed <= allocated(target) + 8 * MIB  # and not much less is promised


@pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="nobody sees holes here")
def test_holes_of_the_sources_need_no_room(tmp_path: Path) -> None:
    raw = a_disk(tmp_path / "disk.raw", 1 << 40, {5 << 30: some_data(MIB)})

    with vhdtool.open_chain(raw) as chain:
        room = room_for(chain, shape_of_export(tmp_path / "x.vhdx", chain.leaf), tmp_path)

    assert room.needed < 16 * MIB
    assert room.free > 0


def test_a_merge_that_might_not_fit_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = a_tree(tmp_path, STYLES["vhdx"], 36)
    names = names_in(tmp_path)
    monkeypatch.setattr(merge_module, "free_bytes", lambda folder: MIB)

    with pytest.raises(ExportError, match="1048576 free") as caught:
        merged(tree["two"].path, tmp_path / "merged.vhdx")
    assert caught.value.exit_code == 74
    assert names_in(tmp_path) == names

    merged(tree["two"].path, tmp_path / "merged.vhdx", check_room=False)
    assert content(tmp_path / "merged.vhdx") == tree["two"].disk.tobytes()


# ------------------------------------------------------------ who needs the old files


def test_images_that_go_on_needing_the_layers_are_named(tmp_path: Path) -> None:
    tree = a_tree(tmp_path, STYLES["vhdx"], 37)

    report = merged(tree["two"].path, tmp_path / "merged.vhdx")

    needed = {image.path.stem: image.parent.stem for image in report.still_needed}
    assert needed == {"cousin": "one", "aunt": "base"}


def test_a_lonely_chain_is_needed_by_nobody(tmp_path: Path) -> None:
    vhdtool.create_image(tmp_path / "base.vhdx", size=4 * MIB)
    vhdtool.snapshot_image(tmp_path / "base.vhdx", tmp_path / "leaf.avhdx")

    assert merged(tmp_path / "leaf.avhdx", tmp_path / "merged.vhdx").still_needed == ()

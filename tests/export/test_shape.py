"""What an image is to be: defaults, rounding, identities, refusals; and through a journal unchanged."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.export.kit import MIB, a_disk
from vhdtool.errors import TargetError, UnsupportedError
from vhdtool.export.containers.shape import (
    Identities,
    ParentFacts,
    Shape,
    TargetFormat,
    Wanted,
    kept_identities,
    shape_of_child,
    shape_of_document,
    shape_of_export,
)
from vhdtool.export.create import Format, create_image, snapshot_image
from vhdtool.formats.image import DiskImage
from vhdtool.formats.registry import open_image
from vhdtool.formats.vhd.chs import geometry_of
from vhdtool.model.identity import DiskType, Identity, ImageFormat

GIB = 1 << 30
DISK = Identity.of_uuid(UUID(int=1))
WRITE = Identity.of_uuid(UUID(int=2))
WHEN = datetime(2024, 2, 29, 12, 0, 0, tzinfo=UTC)


def a_leaf(folder: Path, name: Format | str = "vhdx", size: int = 5 * MIB + 512, **options: Any) -> DiskImage:
    """An open image."""
    path = folder / f"leaf.{name}"
    if name == "raw":
        a_disk(path, size, {})
    else:
        identities = Identities(DISK if name == "vhdx" else None, WRITE)
        create_image(path, size=size, identities=identities, **options)
    return open_image(path)


def exported(folder: Path, leaf: DiskImage, target: str = "out", **options: Any) -> Shape:
    try:
        return shape_of_export(folder / target, leaf, **options)
    finally:
        leaf.close()


# ------------------------------------------------------------ full images


def test_without_a_word_a_disk_is_exported_raw(tmp_path: Path) -> None:
    shape = exported(tmp_path, a_leaf(tmp_path, "raw", 1536))

    assert (shape.format, shape.type, shape.virtual_size) == (TargetFormat.RAW, DiskType.FIXED, 1536)
    assert (shape.disk_id, shape.write_id, shape.block_size) == (None, None, 0)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("a.vhd", TargetFormat.VHD),
        ("a.AVHDX", TargetFormat.VHDX),
        ("a.raw.zst", TargetFormat.RAW_ZST),
        ("a.E01", TargetFormat.E01),
        ("a.img", TargetFormat.RAW),
        ("-", TargetFormat.RAW),
    ],
)
def test_a_name_says_which_format_it_is_to_be(tmp_path: Path, target: str, expected: TargetFormat) -> None:
    shape = exported(tmp_path, a_leaf(tmp_path), target)

    assert shape.format is expected
    assert shape.image_format == (expected if expected.has_structures else ImageFormat.RAW)


@pytest.mark.parametrize(
    ("name", "block_size", "physical"), [("vhd", 2 * MIB, 512), ("vhdx", 32 * MIB, 4096)]
)
def test_defaults_are_those_of_windows(tmp_path: Path, name: str, block_size: int, physical: int) -> None:
    shape = exported(tmp_path, a_leaf(tmp_path), format=name)

    assert (shape.type, shape.block_size) == (DiskType.DYNAMIC, block_size)
    assert (shape.sector_size, shape.physical_sector_size) == (512, physical)


@pytest.mark.parametrize(
    ("source", "options", "virtual_size", "sectors"),
    [
        (("raw", 1536), {"format": "vhd"}, 1536, (512, 512)),
        (("raw", 1536), {"format": "vhdx"}, 1536, (512, 4096)),
        (("raw", 1536), {"format": "vhdx", "virtual_size": 1001}, 1024, (512, 4096)),
        (("raw", 1536), {"format": "vhdx", "logical_sector_size": 4096}, 4096, (4096, 4096)),
        (("raw", 1536), {"format": "raw", "virtual_size": 1001}, 1001, (512, 512)),
        (("vhdx", MIB + 512), {"format": "vhdx", "logical_sector_size": 4096}, MIB + 4096, (4096, 4096)),
        (("vhdx", MIB), {"format": "vhdx", "logical_sector_size": 4096}, MIB, (4096, 4096)),
        (("vhd", MIB + 512), {"format": "vhdx"}, MIB + 512, (512, 4096)),
        (("vhd", MIB + 512), {"format": "vhd", "azure": True}, 2 * MIB, (512, 512)),
        (("vhdx", MIB), {"azure": True}, MIB, (512, 512)),
    ],
    ids=str,
)
def test_sizes_are_rounded_up_to_what_a_format_can_have(
    tmp_path: Path,
    source: tuple[str, int],
    options: dict[str, Any],
    virtual_size: int,
    sectors: tuple[int, int],
) -> None:
    shape = exported(tmp_path, a_leaf(tmp_path, *source), **options)

    assert shape.virtual_size == virtual_size
    assert (shape.sector_size, shape.physical_sector_size) == sectors


@pytest.mark.parametrize("physical", [512, 4096])
def test_a_vhdx_keeps_its_sectors_unless_it_is_told_otherwise(tmp_path: Path, physical: int) -> None:
    def leaf(logical: int) -> DiskImage:
        return a_leaf(
            tmp_path, size=8 * MIB, logical_sector_size=logical, physical_sector_size=physical, force=True
        )

    assert exported(tmp_path, leaf(512), format="vhdx").physical_sector_size == physical
    big = exported(tmp_path, leaf(4096), format="vhdx")
    assert (big.sector_size, big.physical_sector_size) == (4096, 4096)
    small = exported(tmp_path, leaf(4096), format="vhdx", logical_sector_size=512)
    assert (small.sector_size, small.physical_sector_size) == (512, physical)
    assert exported(tmp_path, leaf(4096), format="vhd").sector_size == 512


@pytest.mark.parametrize("mib", [1, 7, 504, 2048, 130_000, 2_088_960])
def test_a_disk_for_azure_is_whole_mebibytes_and_the_footer_has_its_geometry(
    tmp_path: Path, mib: int
) -> None:
    leaf = a_leaf(tmp_path, "raw")
    shape = exported(tmp_path, leaf, virtual_size=mib * MIB - 1, azure=True)

    assert (shape.format, shape.type, shape.block_size) == (TargetFormat.VHD, DiskType.FIXED, 0)
    assert shape.virtual_size == mib * MIB
    assert geometry_of(shape.virtual_size).size <= shape.virtual_size


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"format": "vhdx", "azure": True}, "Azure takes a fixed VHD, not a VHDX"),
        ({"format": "raw", "azure": True}, "Azure takes a fixed VHD, not a raw image"),
        ({"azure": True, "subformat": "dynamic"}, "Azure takes a fixed VHD, not a dynamic one"),
        ({"azure": True, "virtual_size": 2040 * GIB + 1}, "2040 GiB"),
        ({"format": "vhd", "virtual_size": 2040 * GIB + 1}, "2040 GiB"),
        ({"format": "vhd", "target": "a.vhdx"}, "claims a VHDX, and it is to be a VHD"),
        ({"format": "raw", "target": "a.vhd"}, "claims a VHD, and it is to be a raw image"),
        ({"format": "raw", "target": "a.zst"}, "claims a raw.zst image"),
        ({"format": "raw", "subformat": "dynamic"}, "always fixed"),
        ({"format": "raw", "block_size": MIB}, "no blocks"),
        ({"format": "raw", "logical_sector_size": 512}, "no sectors"),
        ({"format": "raw.zst", "keep_id": True}, "no identities"),
        ({"format": "vhd", "logical_sector_size": 4096}, "sectors of 512"),
        ({"format": "vhd", "block_size": 3 * MIB}, "power of two"),
        ({"format": "vhdx", "block_size": 512 << 10}, "power of two"),
    ],
    ids=str,
)
def test_what_cannot_be_is_exit_73(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(TargetError, match=says) as caught:
        exported(tmp_path, a_leaf(tmp_path), **options)

    assert caught.value.exit_code == 73


@pytest.mark.parametrize(
    "options", [{"format": "qcow2"}, {"subformat": "thin"}, {"subformat": "differencing"}]
)
def test_unknown_words_are_mistakes(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        exported(tmp_path, a_leaf(tmp_path), **options)


# ------------------------------------------------------------ identities


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("vhdx", "vhdx", (DISK, WRITE)),
        ("vhdx", "vhd", (WRITE, WRITE)),
        ("vhd", "vhd", (WRITE, WRITE)),
        ("vhd", "vhdx", (WRITE, WRITE)),
    ],
)
def test_identities_are_kept_when_it_is_asked_for(
    tmp_path: Path, source: str, target: str, expected: tuple[Identity, Identity]
) -> None:
    kept = exported(tmp_path, a_leaf(tmp_path, source), format=target, keep_id=True)
    new = exported(tmp_path, a_leaf(tmp_path, source, force=True), format=target)

    assert (kept.disk_id, kept.write_id) == expected
    assert new.disk_id is not None
    assert new.write_id is not None
    assert not {new.disk_id.raw, new.write_id.raw} & {DISK.raw, WRITE.raw}
    assert (new.disk_id == new.write_id) is (target == "vhd")


def test_what_has_no_identity_cannot_keep_one(tmp_path: Path) -> None:
    leaf = a_leaf(tmp_path, "raw")
    with pytest.raises(TargetError, match="no identities to keep"):
        kept_identities("a.vhd", leaf, TargetFormat.VHD)
    leaf.close()


# ------------------------------------------------------------ children


def test_a_child_of_an_image_that_is_being_made_is_as_one_of_the_finished_image(tmp_path: Path) -> None:
    identities = Identities(None, WRITE, WHEN)
    base = exported(tmp_path, a_leaf(tmp_path), "base/full.vhdx", logical_sector_size=4096, keep_id=True)
    before = shape_of_child(tmp_path / "more/one.avhdx", ParentFacts.of_shape(base), identities=identities)
    (tmp_path / "base").mkdir()
    create_image(
        tmp_path / "base/full.vhdx",
        size=base.virtual_size,
        logical_sector_size=4096,
        identities=Identities(base.disk_id, base.write_id),
    )
    image = open_image(tmp_path / "base/full.vhdx")
    image.close()
    facts = ParentFacts.of_image(image)

    assert shape_of_child(tmp_path / "more/one.avhdx", facts, identities=identities) == before
    assert before.parent is not None
    assert before.parent.relative == "..\\base\\full.vhdx"
    assert before.parent.identity == base.write_id
    assert (before.disk_id, before.sector_size) == (base.disk_id, 4096)
    assert before.block_size == 2 * MIB


@pytest.mark.parametrize("name", ["vhd", "vhdx"])
def test_a_child_keeps_what_others_know_an_image_by_and_is_of_its_parents_disk(
    tmp_path: Path, name: str
) -> None:
    leaf = a_leaf(tmp_path, name)
    parent = shape_of_export(tmp_path / f"full.{name}", leaf)
    child = shape_of_child(tmp_path / "child", ParentFacts.of_shape(parent), keep_id_of=leaf)
    leaf.close()

    assert child.write_id == WRITE
    assert child.disk_id == (parent.disk_id if name == "vhdx" else WRITE)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"virtual_size": 4 * MIB}, "not smaller"),
        ({"target": "child.e01"}, "claims an E01 image"),
        ({"sector_size": 4096}, "logical sectors of 512"),
        ({"target": "child.vhd"}, "its parent is a VHDX"),
        ({"block_size": 1000}, "power of two"),
    ],
    ids=str,
)
def test_what_a_child_cannot_be_is_exit_73(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    leaf = a_leaf(tmp_path)
    leaf.close()
    target = tmp_path / options.pop("target", "child.avhdx")
    with pytest.raises(TargetError, match=says):
        shape_of_child(target, ParentFacts.of_image(leaf), **options)


@pytest.mark.parametrize("parent", ["raw", "vhd"])
def test_a_parent_of_another_format_is_exit_69(tmp_path: Path, parent: str) -> None:
    leaf = a_leaf(tmp_path, parent)
    leaf.close()
    with pytest.raises(UnsupportedError) as caught:
        shape_of_child(tmp_path / "child", ParentFacts.of_image(leaf), format="vhdx")

    assert caught.value.exit_code == 69


# ------------------------------------------------------------ through a journal


def every_shape(folder: Path) -> list[Shape]:
    shapes = [
        exported(folder, a_leaf(folder, force=True), format=name, subformat=subformat)
        for name, subformat in [
            ("raw", None),
            ("raw.zst", None),
            ("vhd", "fixed"),
            ("vhd", "dynamic"),
            ("vhdx", "fixed"),
            ("vhdx", "dynamic"),
        ]
    ]
    parents = shapes[3], shapes[5]
    return shapes + [shape_of_child(parent.target, ParentFacts.of_shape(parent)) for parent in parents]


def test_a_shape_comes_through_a_journal_as_it_was(tmp_path: Path) -> None:
    for shape in every_shape(tmp_path):
        document = json.loads(json.dumps(shape.document()))

        assert shape_of_document(shape.target, document) == shape


@given(st.data())
def test_a_forged_shape_is_refused_or_a_shape(data: st.DataObject) -> None:
    document: dict[str, Any] = {
        "format": "vhdx",
        "subformat": "differencing",
        "virtual_size": MIB,
        "block_size": 2 * MIB,
        "sector_size": 512,
        "physical_sector_size": 4096,
        "disk_id": DISK.raw.hex(),
        "write_id": WRITE.raw.hex(),
        "created": WHEN.isoformat(),
        "parent": [WRITE.raw.hex(), ".\\a.vhdx", "C:\\a.vhdx"],
    }
    assert shape_of_document("x", document).document() == document
    name = data.draw(st.sampled_from([*document, "more"]))
    values: st.SearchStrategy[Any] = st.one_of(
        st.none(),
        st.integers(),
        st.text(max_size=40),
        st.lists(st.text(max_size=3), max_size=4),
        st.booleans(),
        st.floats(),
        st.sampled_from(["raw", "vhd", "vhdx", "fixed", "dynamic", 0, 512, 4096, 1 << 70]),
    )
    if data.draw(st.booleans()):
        document.pop(name, None)
    else:
        document[name] = data.draw(values)

    try:
        shape = shape_of_document("x", document)
    except ValueError:
        return
    assert shape.document() == document


def test_a_time_in_another_zone_is_kept_in_utc() -> None:
    there = WHEN.astimezone(timezone(timedelta(hours=5)))
    shape = Wanted(
        target="a.vhd",
        format=TargetFormat.VHD,
        type=DiskType.DYNAMIC,
        virtual_size=MIB,
        identities=Identities(created=there),
    ).settle()

    assert shape.created.isoformat() == WHEN.isoformat()
    assert shape_of_document("a.vhd", shape.document()) == shape


def test_the_facts_of_a_shape_are_what_a_manifest_says_of_it(tmp_path: Path) -> None:
    shape = exported(tmp_path, a_leaf(tmp_path), format="vhdx", keep_id=True, subformat="fixed")

    assert shape.facts() == {
        "format": "vhdx",
        "subformat": "fixed",
        "virtual_size": 5 * MIB + 512,
        "block_size": 32 * MIB,
        "logical_sector_size": 512,
        "disk_id": str(DISK),
        "write_id": str(WRITE),
    }


def test_a_snapshot_is_a_child_of_its_parent(tmp_path: Path) -> None:
    a_leaf(tmp_path).close()
    report = snapshot_image(tmp_path / "leaf.vhdx", tmp_path / "child.avhdx")

    assert (report.disk_id, report.virtual_size, report.block_size) == (DISK, 5 * MIB + 512, 2 * MIB)

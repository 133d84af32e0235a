"""New images and children: exact, sparse, and such that other programs read them."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import uuid
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from tests.export.kit import MIB, HookedSource, a_disk, allocated, names_in, some_data
from vhdtool.chain.discover import open_chain
from vhdtool.errors import (
    CorruptError,
    FileMissingError,
    Severity,
    SourceChangedError,
    TargetError,
    TargetExistsError,
    UnsupportedError,
)
from vhdtool.export.containers.shape import Identities, Subformat
from vhdtool.export.create import Format, create_image, snapshot_image
from vhdtool.export.moving.progress import CancelledError, CancelToken
from vhdtool.model.identity import DiskType, Identity, ImageFormat, PathKind

GIB = 1 << 30
ALL: list[tuple[Format, Subformat]] = [
    ("vhd", "fixed"),
    ("vhd", "dynamic"),
    ("vhdx", "fixed"),
    ("vhdx", "dynamic"),
]
posix_only = pytest.mark.skipif(os.name != "posix", reason="links and names of POSIX")


def needs(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def disk_of(path: Path) -> bytes:
    with open_chain(path) as chain:
        assert [finding for finding in chain.all_findings() if finding.severity is not Severity.INFO] == []
        return chain.read(0, chain.virtual_size)


@pytest.mark.parametrize(("image_format", "subformat"), ALL)
@pytest.mark.parametrize("size", [512, 3 * MIB + 512, 70 * MIB])
def test_an_image_filled_from_a_raw_disk_has_its_bytes(
    tmp_path: Path, image_format: Format, subformat: Subformat, size: int
) -> None:
    data = {0: some_data(min(size, 700)), size - 512: some_data(512, 2)}
    raw = a_disk(tmp_path / "a.raw", size, data)
    image = tmp_path / f"b.{image_format}"

    report = create_image(image, subformat=subformat, source=raw)

    assert disk_of(image) == raw.read_bytes()
    assert report.file_size == image.stat().st_size
    assert (report.virtual_size, report.type) == (size, DiskType(subformat))
    assert pickle.loads(pickle.dumps(report)) == report
    assert allocated(image) < 3 * MIB
    assert names_in(tmp_path) == {"a.raw", image.name}
    if subformat == "dynamic":
        assert image.stat().st_size < 70 * MIB


@pytest.mark.parametrize(("image_format", "subformat"), ALL)
def test_an_empty_image_reads_as_zeros(tmp_path: Path, image_format: Format, subformat: Subformat) -> None:
    image = tmp_path / "image"
    create_image(image, format=image_format, subformat=subformat, size=9 * MIB)

    assert disk_of(image) == bytes(9 * MIB)
    with open_chain(image) as chain:
        chain.leaf.inspect(deep=True)
        assert chain.all_findings() == ()


@pytest.mark.parametrize("block_size", [4096, 512 << 10, 8 * MIB])
def test_blocks_of_a_vhd_can_have_other_sizes(tmp_path: Path, block_size: int) -> None:
    raw = a_disk(tmp_path / "a.raw")
    create_image(tmp_path / "b.vhd", source=raw, block_size=block_size)

    assert disk_of(tmp_path / "b.vhd") == raw.read_bytes()
    with open_chain(tmp_path / "b.vhd") as chain:
        assert chain.leaf.geometry.block_size == block_size


@pytest.mark.parametrize("logical", [512, 4096])
@pytest.mark.parametrize("physical", [512, 4096])
def test_sectors_of_a_vhdx_can_have_both_sizes(tmp_path: Path, logical: int, physical: int) -> None:
    raw = a_disk(tmp_path / "a.raw", 3 * MIB)
    create_image(
        tmp_path / "b.vhdx",
        source=raw,
        block_size=MIB,
        logical_sector_size=logical,
        physical_sector_size=physical,
    )

    assert disk_of(tmp_path / "b.vhdx") == raw.read_bytes()
    with open_chain(tmp_path / "b.vhdx") as chain:
        geometry = chain.leaf.geometry
        assert (geometry.sector_size, geometry.physical_sector_size) == (logical, physical)


def test_a_raw_disk_is_rounded_up_to_a_whole_sector(tmp_path: Path) -> None:
    raw = a_disk(tmp_path / "a.raw", 1000, {0: some_data(1000)})
    create_image(tmp_path / "b.vhdx", source=raw)
    create_image(tmp_path / "c.vhdx", source=raw, logical_sector_size=4096)

    assert disk_of(tmp_path / "b.vhdx") == raw.read_bytes() + bytes(24)
    assert disk_of(tmp_path / "c.vhdx") == raw.read_bytes() + bytes(3096)


def test_a_disk_can_be_larger_than_what_fills_it(tmp_path: Path) -> None:
    raw = a_disk(tmp_path / "a.raw", MIB, {0: some_data(MIB)})
    create_image(tmp_path / "b.vhdx", source=raw, size=9 * MIB)

    assert disk_of(tmp_path / "b.vhdx") == raw.read_bytes() + bytes(8 * MIB)


def test_identities_and_time_can_be_given(tmp_path: Path) -> None:
    disk, write = (Identity.of_uuid(uuid.UUID(int=n)) for n in (1, 2))
    when = datetime(2020, 2, 3, 4, 5, 6, tzinfo=UTC)
    create_image(tmp_path / "a.vhdx", size=MIB, identities=Identities(disk, write, when))
    create_image(tmp_path / "a.vhd", size=MIB, identities=Identities(disk, None, when))
    create_image(tmp_path / "b.vhd", size=MIB, identities=Identities(None, write))

    with open_chain(tmp_path / "b.vhd") as chain:
        assert chain.leaf.disk_id == write
    with pytest.raises(TargetError, match="one identity"):
        create_image(tmp_path / "c.vhd", size=MIB, identities=Identities(disk, write))
    with open_chain(tmp_path / "a.vhd") as chain:
        assert chain.leaf.disk_id == chain.leaf.write_id == disk
        assert chain.leaf.created is not None
        assert chain.leaf.created.replace(tzinfo=UTC) == when
    with open_chain(tmp_path / "a.vhdx") as chain:
        assert (chain.leaf.disk_id, chain.leaf.write_id) == (disk, write)


def test_new_images_have_new_identities(tmp_path: Path) -> None:
    one = create_image(tmp_path / "a.vhdx", size=MIB)
    two = create_image(tmp_path / "b.vhdx", size=MIB)

    assert len({one.disk_id.raw, one.write_id.raw, two.disk_id.raw, two.write_id.raw}) == 4


# ------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"format": "vhd", "size": 2040 * GIB + 512}, "2040 GiB"),
        ({"format": "vhdx", "size": 64 * 1024 * GIB + 512}, "65536 GiB"),
        ({"format": "vhd", "size": 0}, "0 bytes"),
        ({"format": "vhdx", "size": -512}, "-512 bytes"),
        ({"format": "vhd", "size": 1000}, "512-byte sectors"),
        ({"format": "vhdx", "size": 512, "logical_sector_size": 4096}, "4096-byte sectors"),
        ({"format": "vhd", "size": MIB, "logical_sector_size": 4096}, "sectors of 512"),
        ({"format": "vhd", "size": MIB, "physical_sector_size": 4096}, "sectors of 512"),
        ({"format": "vhdx", "size": MIB, "logical_sector_size": 1024}, "512 or 4096"),
        ({"format": "vhdx", "size": MIB, "block_size": 512 << 10}, "power of two"),
        ({"format": "vhdx", "size": MIB, "block_size": 512 * MIB}, "power of two"),
        ({"format": "vhdx", "size": MIB, "block_size": 3 * MIB}, "power of two"),
        ({"format": "vhd", "size": MIB, "block_size": 0}, "power of two"),
        ({"format": "vhd", "size": 2040 * GIB, "block_size": 4096}, "too small"),
        ({"format": "vhd"}, "no size"),
        ({"size": MIB}, "does not say"),
    ],
    ids=str,
)
def test_what_a_format_cannot_do_is_exit_73(tmp_path: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(TargetError, match=says) as caught:
        create_image(tmp_path / "image", **options)  # type: ignore[arg-type]

    assert caught.value.exit_code == 73
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("image_format", "size"), [("vhd", 2040 * GIB), ("vhdx", 64 * 1024 * GIB)], ids=["vhd", "vhdx"]
)
def test_the_largest_disks_can_be_made(tmp_path: Path, image_format: Format, size: int) -> None:
    image = tmp_path / "image"
    create_image(image, format=image_format, size=size)

    assert allocated(image) < 16 * MIB
    with open_chain(image) as chain:
        assert chain.virtual_size == size
        assert chain.read(size - 512, 512) == bytes(512)


def test_a_size_below_the_source_is_refused(tmp_path: Path) -> None:
    raw = a_disk(tmp_path / "a.raw", 2 * MIB)

    with pytest.raises(TargetError, match="more than"):
        create_image(tmp_path / "b.vhdx", source=raw, size=MIB)


def test_a_source_with_a_format_of_its_own_is_refused(tmp_path: Path) -> None:
    create_image(tmp_path / "a.vhd", size=MIB)

    with pytest.raises(UnsupportedError) as caught:
        create_image(tmp_path / "b.vhdx", source=tmp_path / "a.vhd")

    assert caught.value.exit_code == 69
    assert names_in(tmp_path) == {"a.vhd"}


def test_a_missing_or_empty_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(FileMissingError):
        create_image(tmp_path / "b.vhdx", source=tmp_path / "missing")
    with pytest.raises(CorruptError):
        create_image(tmp_path / "b.vhdx", source=tmp_path / "empty")

    assert names_in(tmp_path) == {"empty"}


def test_options_that_exclude_each_other_are_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="parent"):
        create_image(tmp_path / "a.vhdx", subformat="differencing", size=MIB)
    with pytest.raises(ValueError, match="parent"):
        create_image(tmp_path / "a.vhdx", parent=tmp_path / "b.vhdx")
    with pytest.raises(ValueError, match="source"):
        create_image(tmp_path / "a.vhdx", subformat="differencing", parent="b", source="c")


@pytest.mark.parametrize(("image_format", "subformat"), ALL)
def test_nothing_is_overwritten_without_force(
    tmp_path: Path, image_format: Format, subformat: Subformat
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"precious")
    with pytest.raises(TargetExistsError):
        create_image(image, format=image_format, subformat=subformat, size=MIB)
    assert image.read_bytes() == b"precious"

    create_image(image, format=image_format, subformat=subformat, size=MIB, force=True)

    assert disk_of(image) == bytes(MIB)


def test_an_image_is_not_made_of_itself(tmp_path: Path) -> None:
    raw = a_disk(tmp_path / "a.raw")
    before = raw.read_bytes()

    with pytest.raises(TargetError, match="it is the input"):
        create_image(raw, format="vhdx", source=raw, force=True)

    assert raw.read_bytes() == before


def test_a_source_that_changes_is_exit_75_and_a_token_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = a_disk(tmp_path / "a.raw", 4 * MIB, {0: some_data(4 * MIB)})

    def append(path: Path) -> HookedSource:
        def hook(reads: int, offset: int, length: int) -> None:
            with raw.open("ab") as file:
                file.write(b"more")

        return HookedSource(path, hook)

    token = CancelToken()
    token.cancel()
    with pytest.raises(CancelledError):
        create_image(tmp_path / "b.vhdx", source=raw, cancel=token)
    monkeypatch.setattr("vhdtool.export.create.FileSource", append)
    with pytest.raises(SourceChangedError):
        create_image(tmp_path / "b.vhdx", source=raw)

    assert names_in(tmp_path) == {"a.raw"}


# ------------------------------------------------------------ children


@pytest.mark.parametrize("image_format", ["vhd", "vhdx"])
@pytest.mark.parametrize("places", ["beside", "below", "cousins"])
def test_a_child_finds_its_parent_and_shows_its_disk(
    tmp_path: Path, image_format: Format, places: str
) -> None:
    raw = a_disk(tmp_path / "a.raw")
    folders = {"beside": (".", "."), "below": (".", "snap/one"), "cousins": ("base", "snap")}[places]
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    parent = tmp_path / folders[0] / f"base disk ü.{image_format}"
    child = tmp_path / folders[1] / f"child.a{image_format}"
    create_image(parent, source=raw)

    report = snapshot_image(parent, child)

    assert report.parent is not None
    assert (
        report.parent
        == {
            "beside": f".\\{parent.name}",
            "below": f"..\\..\\{parent.name}",
            "cousins": f"..\\base\\{parent.name}",
        }[places]
    )
    with open_chain(child) as chain:
        assert chain.all_findings() == ()
        assert [layer.path.name for layer in chain.layers] == [child.name, parent.name]
        assert chain.layers[1].found_by == "relative_path"
        assert chain.leaf.type is DiskType.DIFFERENCING
        assert chain.leaf.format is ImageFormat(image_format)
        link = chain.leaf.parent
        assert link is not None
        assert link.identities[0] == chain.layers[1].image.write_id
        assert link.timestamp is None
        kinds = {path.kind: path.path for path in link.paths}
        assert kinds[PathKind.RELATIVE_PATH] == report.parent
        assert kinds[PathKind.ABSOLUTE_PATH].endswith("\\" + parent.name)
        if image_format == "vhdx":
            assert chain.leaf.disk_id == chain.layers[1].image.disk_id
            assert chain.leaf.write_id != chain.layers[1].image.write_id
    assert disk_of(child) == raw.read_bytes()


@pytest.mark.parametrize("image_format", ["vhd", "vhdx"])
def test_a_chain_of_children_opens(tmp_path: Path, image_format: Format) -> None:
    raw = a_disk(tmp_path / "a.raw")
    names = [tmp_path / f"{number}.{image_format}" for number in range(5)]
    create_image(names[0], source=raw)
    for parent, child in pairwise(names):
        snapshot_image(parent, child)

    with open_chain(names[-1]) as chain:
        assert len(chain.layers) == 5
    assert disk_of(names[-1]) == raw.read_bytes()


def test_a_child_takes_over_both_sector_sizes(tmp_path: Path) -> None:
    create_image(tmp_path / "a.vhdx", size=8 * MIB, logical_sector_size=4096, physical_sector_size=4096)
    snapshot_image(tmp_path / "a.vhdx", tmp_path / "b.vhdx", size=16 * MIB, block_size=MIB)

    with open_chain(tmp_path / "b.vhdx") as chain:
        geometry = chain.leaf.geometry
    assert (geometry.sector_size, geometry.physical_sector_size) == (4096, 4096)
    assert (geometry.virtual_size, geometry.block_size) == (16 * MIB, MIB)


def test_a_child_differs_from_its_parent_in_name_only_by_request(tmp_path: Path) -> None:
    create_image(tmp_path / "a.vhdx", size=8 * MIB)
    create_image(tmp_path / "a.vhd", size=8 * MIB)

    with pytest.raises(TargetError, match="claims a VHD"):
        snapshot_image(tmp_path / "a.vhdx", tmp_path / "b.vhd")
    with pytest.raises(TargetError, match="claims a VHDX"):
        snapshot_image(tmp_path / "a.vhd", tmp_path / "b.avhdx")
    with pytest.raises(TargetError, match="not smaller"):
        snapshot_image(tmp_path / "a.vhd", tmp_path / "b.vhd", size=MIB)
    with pytest.raises(TargetError, match="logical sectors"):
        create_image(
            tmp_path / "b.vhdx",
            subformat="differencing",
            parent=tmp_path / "a.vhdx",
            logical_sector_size=4096,
        )
    with pytest.raises(UnsupportedError, match="parent of a VHDX"):
        create_image(tmp_path / "b", format="vhdx", subformat="differencing", parent=tmp_path / "a.vhd")
    with pytest.raises(TargetError, match="claims a VHDX"):
        create_image(tmp_path / "b.vhdx", subformat="differencing", parent=tmp_path / "a.vhd")

    assert names_in(tmp_path) == {"a.vhd", "a.vhdx"}


def test_a_raw_disk_has_no_children(tmp_path: Path) -> None:
    raw = a_disk(tmp_path / "a.raw")

    with pytest.raises(UnsupportedError) as caught:
        snapshot_image(raw, tmp_path / "b.vhdx")

    assert caught.value.exit_code == 69


@posix_only
@pytest.mark.parametrize("how", ["itself", "hard link", "symlink"])
@pytest.mark.parametrize("image_format", ["vhd", "vhdx"])
def test_a_child_is_not_its_own_parent(tmp_path: Path, image_format: Format, how: str) -> None:
    parent = tmp_path / f"a.{image_format}"
    create_image(parent, size=MIB)
    before = parent.read_bytes()
    child = parent if how == "itself" else tmp_path / f"b.{image_format}"
    if how == "hard link":
        child.hardlink_to(parent)
    elif how == "symlink":
        child.symlink_to(parent)

    with pytest.raises(TargetError, match="it is the input"):
        snapshot_image(parent, child, force=True)

    assert parent.read_bytes() == before


def test_an_existing_child_is_kept_without_force(tmp_path: Path) -> None:
    create_image(tmp_path / "a.vhdx", size=MIB)
    (tmp_path / "b.vhdx").write_bytes(b"precious")

    with pytest.raises(TargetExistsError):
        snapshot_image(tmp_path / "a.vhdx", tmp_path / "b.vhdx")

    assert (tmp_path / "b.vhdx").read_bytes() == b"precious"


@posix_only
@pytest.mark.parametrize("name", ["a\\b.vhdx", "a:b.vhdx", "NUL.vhdx", b"\xff.vhdx"])
def test_a_path_that_windows_cannot_have_is_refused(tmp_path: Path, name: str | bytes) -> None:
    parent = tmp_path / (name if isinstance(name, str) else os.fsdecode(name))
    try:
        create_image(parent, size=MIB)
    except TargetError:
        pytest.skip("this file system has no such names")

    with pytest.raises(TargetError, match="cannot be recorded"):
        snapshot_image(parent, tmp_path / "child.vhdx")

    assert not (tmp_path / "child.vhdx").exists()


@posix_only
def test_folders_are_resolved_before_a_path_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    create_image(tmp_path / "base.vhdx", size=MIB)

    report = snapshot_image(tmp_path / "base.vhdx", tmp_path / "link" / "child.vhdx")

    assert report.parent == "..\\..\\base.vhdx"
    assert len(disk_of(tmp_path / "real" / "deep" / "child.vhdx")) == MIB


# ------------------------------------------------------------ other programs


@pytest.mark.parametrize(("image_format", "subformat"), ALL)
def test_qemu_reads_what_was_made(tmp_path: Path, image_format: Format, subformat: Subformat) -> None:
    qemu = needs("qemu-img")
    raw = a_disk(tmp_path / "a.raw", 40 * MIB)
    image = tmp_path / f"b.{image_format}"
    create_image(image, subformat=subformat, source=raw)
    name = {"vhd": "vpc", "vhdx": "vhdx"}[image_format]

    run(qemu, "convert", "-f", name, "-O", "raw", image, tmp_path / "c.raw")
    if image_format == "vhdx":
        assert "No errors" in run(qemu, "check", "-f", name, image)

    assert (tmp_path / "c.raw").read_bytes() == raw.read_bytes()


@pytest.mark.parametrize("image_format", ["vhd", "vhdx"])
def test_7_zip_reads_a_child_through_its_parent(tmp_path: Path, image_format: Format) -> None:
    program = needs("7zz")
    raw = a_disk(tmp_path / "a.raw", 40 * MIB)
    create_image(tmp_path / f"base.{image_format}", source=raw)
    child = tmp_path / f"child.{image_format}"
    snapshot_image(tmp_path / f"base.{image_format}", child)

    run(program, "x", f"-o{tmp_path / 'out'}", f"-t{image_format}", child)

    (extracted,) = (tmp_path / "out").iterdir()
    assert extracted.read_bytes() == raw.read_bytes()

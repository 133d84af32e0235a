"""Sets: every point in time of a tree in one pass, and their verification."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import vhdtool
from tests.export.kit import names_in, some_data
from tests.export.test_increment import STYLES, a_tree, content
from tests.generated import MIB, FileSink, Point, Style, a_base
from vhdtool.errors import (
    FileMissingError,
    FormatError,
    SourceChangedError,
    TargetError,
    TargetExistsError,
    VhdtoolError,
)
from vhdtool.export import work as work_module
from vhdtool.export.containers import target as target_module
from vhdtool.export.gentle.throttle import Pace
from vhdtool.export.moving.progress import CancelledError, CancelToken, Progress
from vhdtool.export.options import ExportOptions
from vhdtool.export.proof.manifest import Manifest, manifest_path
from vhdtool.export.proof.verify import verify_image
from vhdtool.export.sets.allpoints import Layout, SetReport, export_all
from vhdtool.export.sets.points import plan_points
from vhdtool.export.sets.setfile import SET_NAME, SetManifest
from vhdtool.export.sets.verifyset import verify_set
from vhdtool.formats.vhdx.write import ParentRecord, VhdxWriter
from vhdtool.model.identity import DiskType, Identity
from vhdtool.source import ByteSource, WrappingSource

LAYOUTS: tuple[Layout, ...] = ("increments", "images")
PLAIN = Style(sizes=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "dest"


def target_of(report: SetReport, point: Point) -> Path:
    """Where the disk of ``point`` is."""
    made = [entry.target for entry in report.points if point.path in (entry.point_in_time, *entry.duplicates)]
    assert len(made) == 1
    return report.destination / made[0]


def assert_whole(report: SetReport, tree: dict[str, Point]) -> None:
    """Every point reads as it must, and the set verifies."""
    for point in tree.values():
        assert content(target_of(report, point)) == point.disk.tobytes()
    found = verify_set(report.destination)
    assert found.ok, found.findings


def resuming(**options: object) -> ExportOptions:
    return ExportOptions(resume=True, **options)  # type: ignore[arg-type]


# ------------------------------------------------------------ what is made


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@pytest.mark.parametrize("seed", [1, 2])
def test_every_point_is_there_when_the_originals_are_lost(
    style: Style, layout: Layout, seed: int, source: Path, dest: Path
) -> None:
    tree = a_tree(source, style, seed)

    report = export_all(source, dest, layout=layout)
    shutil.rmtree(source)

    assert report.exit_code == 0
    assert len(report.points) == len(tree)
    assert_whole(report, tree)


def test_an_increment_of_a_set_holds_what_its_own_layer_holds(source: Path, dest: Path) -> None:
    tree = a_tree(source, STYLES["vhdx"], 3)

    report = export_all(source, dest)

    for point in tree.values():
        with vhdtool.open_chain(target_of(report, point)) as made, vhdtool.open_chain(point.path) as chain:
            assert len(made.layers) == len(chain.layers)
            assert made.leaf.geometry.block_size == chain.leaf.geometry.block_size
            theirs, ours = chain.leaf.counts(), made.leaf.counts()
            assert ours.data + ours.partial + ours.zero <= theirs.total - theirs.absent
            identities = {image.write_id for image in made.images} & {i.write_id for i in chain.images}
            assert not identities


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_child_that_is_smaller_than_its_parent_is_exported_all_the_same(
    layout: Layout, source: Path, dest: Path
) -> None:
    base = a_base(source, PLAIN, np.random.default_rng(4))
    small, grand = source / "small.avhdx", source / "grand.avhdx"
    with small.open("wb") as file:  # as after Resize-VHD; create makes no such child
        writer = VhdxWriter(
            FileSink(file),
            virtual_size=4 * MIB,
            block_size=MIB,
            disk_type=DiskType.DIFFERENCING,
            disk_id=base.disk_id,
            write_id=Identity(bytes(15) + b"s"),
            parent=ParentRecord(base.identity, ".\\base.vhdx", ""),
        )
        writer.write_block(1, some_data(MIB))
        file.truncate(writer.finish())
    vhdtool.snapshot_image(small, grand, size=8 * MIB)
    disks = {path: content(path) for path in (base.path, small, grand)}

    report = export_all(source, dest, layout=layout)

    for entry in report.points:
        assert content(dest / entry.target) == disks[entry.point_in_time]
    assert verify_set(dest).ok


def test_a_tree_of_vhds_can_become_one_of_vhdx(source: Path, dest: Path) -> None:
    tree = a_tree(source, STYLES["vhd"], 5)

    report = export_all(source, dest, ExportOptions(format="vhdx", hashes=("sha256",)))

    assert_whole(report, tree)
    assert all(vhdtool.open_image(dest / entry.target).format == "vhdx" for entry in report.points)


def test_several_trees_become_one_set(source: Path, dest: Path) -> None:
    (source / "a").mkdir()
    (source / "b").mkdir()
    trees = a_tree(source / "a", STYLES["vhdx"], 6), a_tree(source / "b", STYLES["vhd"], 7)

    report = export_all([source / "a", source / "b"], dest)

    assert_whole(
        report, {f"{i}{name}": point for i, tree in enumerate(trees) for name, point in tree.items()}
    )


# ------------------------------------------------------------ read once


class CountedSource(WrappingSource):
    """Notes each range that is read; has no descriptor, so nobody reads past it."""

    def __init__(self, below: ByteSource, ranges: dict[str, list[tuple[int, int]]]) -> None:
        super().__init__(below)
        self._ranges = ranges[below.name]

    def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
        self._ranges.append((offset, len(buffer)))
        super().read_into(offset, buffer, field=field)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_byte_of_a_source_is_read_once_at_most(
    layout: Layout, source: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_tree(source, STYLES["vhdx"], 8)
    ranges: dict[str, list[tuple[int, int]]] = defaultdict(list)
    monkeypatch.setattr(Pace, "source", lambda self, below: CountedSource(below, ranges))

    report = export_all(source, dest, layout=layout)

    read = 0
    for found in ranges.values():
        found.sort()
        assert all(start + length <= after for (start, length), (after, _) in pairwise(found))
        read += sum(length for _, length in found)
    assert read == report.read_bytes > 0


# ------------------------------------------------------------ copies, and what cannot be exported


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copied_tree_is_exported_once(layout: Layout, source: Path, dest: Path) -> None:
    (source / "vm").mkdir()
    tree = a_tree(source / "vm", STYLES["vhdx"], 9)
    shutil.copytree(source / "vm", source / "copy of vm")

    report = export_all(source, dest, layout=layout)

    assert len(report.points) == len(tree)
    assert all(len(entry.duplicates) == 1 for entry in report.points)
    assert_whole(report, tree)
    assert all(len(image.duplicates) == 1 for image in SetManifest(dest).images)


def test_a_copy_that_was_written_to_since_is_a_point_of_its_own(source: Path, dest: Path) -> None:
    tree = a_tree(source, STYLES["vhd"], 10)
    copy = source / "copy.avhd"
    shutil.copy(tree["one"].path, copy)
    with vhdtool.open_chain(copy) as chain:
        run = next(run for run in chain.plan() if run.layer == 0)
    with copy.open("r+b") as file:
        file.seek(run.file_offset)
        file.write(bytes(byte ^ 0xFF for byte in tree["one"].disk[run.offset : run.offset + 512].tobytes()))

    report = export_all(source, dest)

    made = {entry.point_in_time: dest / entry.target for entry in report.points}
    assert content(made[copy]) == content(copy) != content(made[tree["one"].path])


def test_orphans_and_what_is_above_them_are_left_out_and_told(source: Path, dest: Path) -> None:
    tree = a_tree(source, STYLES["vhdx"], 11)
    tree["aunt"].path.unlink()

    report = export_all(source, dest)

    assert {entry.point_in_time for entry in report.points} == {
        point.path for name, point in tree.items() if name not in ("aunt", "niece")
    }
    assert [skipped.path for skipped in report.skipped] == [tree["niece"].path]
    assert report.exit_code == 66
    assert SetManifest(dest).skipped == [str(tree["niece"].path)]
    assert verify_set(dest).ok


def test_an_image_whose_headers_are_broken_takes_its_descendants_with_it(source: Path, dest: Path) -> None:
    tree = a_tree(source, STYLES["vhd"], 12)
    with tree["one"].path.open("r+b") as file:
        file.seek(512 + 36)  # the dynamic header's checksum
        file.write(b"\0\0\0\0")

    report = export_all(source, dest)

    assert {skipped.path.stem for skipped in report.skipped} == {"one", "two", "cousin"}
    assert report.exit_code == 65
    assert verify_set(dest).ok


def test_when_nothing_can_be_exported_nothing_is_made(source: Path, dest: Path) -> None:
    with pytest.raises(FileMissingError, match="no image below"):
        export_all(source, dest)
    tree = a_tree(source, STYLES["vhdx"], 13)
    tree["base"].path.unlink()

    with pytest.raises(VhdtoolError, match="none of 5 images"):
        export_all(source, dest)
    assert not dest.exists()


# ------------------------------------------------------------ names


def test_names_are_those_of_the_sources_and_unique_without_case_and_on_windows(source: Path) -> None:
    for folder in ("a", "b"):
        (source / folder).mkdir()
        for name in ("Disk.vhdx", "disk.vhd", "con.vhdx", "x?.vhdx" if os.name == "posix" else "x_.vhdx"):
            vhdtool.create_image(source / folder / name, format="vhdx", size=MIB)
    vhdtool.create_image(source / "a" / "only.img", format="vhdx", size=MIB)

    tree = vhdtool.find_snapshots(source)
    points = plan_points(tree, [source], None).points

    names = {str(point.path.relative_to(source)): point.name for point in points}
    assert len({name.casefold() for name in names.values()}) == len(points)
    assert names["a/only.img"] == "only.img.vhdx"
    assert names["a/Disk.vhdx"] == "a-Disk.vhdx"
    assert names["b/Disk.vhdx"] == "b-Disk.vhdx"
    assert names["a/disk.vhd"] == "disk.vhd.vhdx" or names["a/disk.vhd"] == "a-disk.vhd.vhdx"
    assert not any(character in name for name in names.values() for character in '<>:"/\\|?*')
    assert not any(name.lower().startswith("con.") for name in names.values())


# ------------------------------------------------------------ what is refused


def test_a_destination_inside_of_the_sources_is_refused(source: Path) -> None:
    a_tree(source, STYLES["vhdx"], 14)

    with pytest.raises(TargetError, match="it lies in"):
        export_all(source, source / "backup")
    assert not (source / "backup").exists()


def test_what_stands_in_the_destination_is_not_replaced_without_force(source: Path, dest: Path) -> None:
    tree = a_tree(source, STYLES["vhdx"], 15)
    dest.mkdir()
    (dest / "two.avhdx").write_bytes(b"precious")

    with pytest.raises(TargetExistsError):
        export_all(source, dest)
    assert names_in(dest) == {"two.avhdx"}

    report = export_all(source, dest, ExportOptions(force=True))
    assert_whole(report, tree)


@pytest.mark.parametrize(
    "options",
    [
        {"base": Path("x")},
        {"keep_id": True},
        {"azure": True, "format": "vhd"},
        {"subformat": "fixed"},
        {"manifest": False},
        {"format": "raw"},
    ],
    ids=str,
)
def test_options_for_one_image_do_not_go_with_a_set(
    options: dict[str, object], source: Path, dest: Path
) -> None:
    with pytest.raises(ValueError, match=r"all points at once|layout 'increments'"):
        export_all(source, dest, ExportOptions(**options))  # type: ignore[arg-type]


# ------------------------------------------------------------ change, stop, go on


def after_points(number: int, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something when so many images have been published."""
    real = work_module.Work.export
    done = 0

    def export(self: work_module.Work, *args: object, **options: object) -> object:
        nonlocal done
        report = real(self, *args, **options)  # type: ignore[arg-type]
        done += 1
        if done == number:
            action()
        return report

    monkeypatch.setattr(work_module.Work, "export", export)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_when_a_source_changes_everything_of_this_run_is_removed(
    layout: Layout, source: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = a_tree(source, STYLES["vhdx"], 16)

    def write() -> None:
        with tree["base"].path.open("r+b") as file:
            file.seek(0)
            file.write(file.read(1))
            file.seek(0, os.SEEK_END)
            file.write(bytes(512))

    after_points(3, write, monkeypatch)
    with pytest.raises(SourceChangedError, match="base"):
        export_all(source, dest, layout=layout)

    assert names_in(dest) == set()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_set_that_was_stopped_is_gone_on_with(
    layout: Layout, source: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = a_tree(source, STYLES["vhdx"], 17)
    token = CancelToken()
    with monkeypatch.context() as patch:
        after_points(3, token.cancel, patch)
        with pytest.raises(CancelledError):
            export_all(source, dest, layout=layout, cancel=token)
    assert SET_NAME not in names_in(dest)

    report = export_all(source, dest, resuming(), layout=layout)

    assert [entry.kept for entry in report.points] == [True] * 3 + [False] * 3
    assert_whole(report, tree)
    again = export_all(source, dest, resuming(), layout=layout)
    assert all(entry.kept for entry in again.points)
    assert_whole(again, tree)


def test_what_hangs_on_an_image_that_is_made_anew_is_made_anew_too(source: Path, dest: Path) -> None:
    tree = a_tree(source, STYLES["vhdx"], 18)
    report = export_all(source, dest)
    target_of(report, tree["one"]).unlink()

    report = export_all(source, dest, resuming())

    kept = {entry.point_in_time.stem for entry in report.points if entry.kept}
    assert kept == {"base", "aunt", "niece"}
    assert_whole(report, tree)


def test_what_was_made_of_a_source_that_has_changed_since_is_not_kept(source: Path, dest: Path) -> None:
    tree = a_tree(source, STYLES["vhdx"], 19)
    export_all(source, dest)
    leaf = tree["two"].path
    stat = leaf.stat()
    os.utime(leaf, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))

    report = export_all(source, dest, resuming())

    assert [entry.point_in_time for entry in report.points if not entry.kept] == [leaf]
    assert_whole(report, tree)


def test_progress_is_of_the_whole_set_and_never_goes_back(source: Path, dest: Path) -> None:
    tree = a_tree(source, STYLES["vhdx"], 20)
    seen: list[Progress] = []

    export_all(source, dest, progress=seen.append)

    size = sum(len(point.disk) for point in tree.values())
    assert {state.virtual_size for state in seen} == {size}
    positions = [state.position for state in seen]
    assert positions == sorted(positions)
    assert positions[-1] == size


# ------------------------------------------------------------ storage that is shared


@pytest.fixture(params=["btrfs", "xfs"])
def reflink_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that can share storage, in a file of its own."""
    if not hasattr(os, "pread"):
        pytest.skip("needs positioned reads")
    maker = shutil.which(f"mkfs.{request.param}")
    if maker is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip(f"needs mkfs.{request.param}, and root to mount")
    device, folder = tmp_path / "device", tmp_path / "mounted"
    device.touch()
    os.truncate(device, 512 * MIB)
    folder.mkdir()
    subprocess.run([maker, "-q", str(device)], capture_output=True, check=True)
    mounted = subprocess.run(["mount", "-o", "loop", str(device), str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_images_share_what_their_parents_have_too(source: Path, reflink_folder: Path) -> None:
    raw = source / "raw"
    raw.write_bytes(some_data(48 * MIB))
    vhdtool.create_image(source / "base.vhdx", source=raw, block_size=MIB)
    raw.unlink()
    vhdtool.snapshot_image(source / "base.vhdx", source / "one.avhdx")
    vhdtool.snapshot_image(source / "one.avhdx", source / "two.avhdx")

    report = export_all(source, reflink_folder / "dest", layout="images")

    assert report.shared_bytes == 2 * 48 * MIB
    os.sync()
    used = shutil.disk_usage(reflink_folder).used
    assert used < 3 * 48 * MIB - 32 * MIB
    assert verify_set(report.destination).ok
    assert len({content(report.destination / entry.target) for entry in report.points}) == 1


@pytest.mark.skipif(not hasattr(os, "pwrite"), reason="needs positioned reads and writes")
def test_where_storage_is_shared_only_what_differs_is_written(
    source: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def share(descriptor: int, below: int) -> bool:
        os.lseek(below, 0, os.SEEK_SET)
        while data := os.read(below, MIB):
            os.pwrite(descriptor, data, os.lseek(below, 0, os.SEEK_CUR) - len(data))
        return True

    tree = a_tree(source, STYLES["vhdx"], 21)
    monkeypatch.setattr(target_module, "_share", share)

    report = export_all(source, dest, layout="images")

    assert_whole(report, tree)
    for entry in report.points:
        assert entry.shared_bytes >= 0
    assert report.shared_bytes > 0


# ------------------------------------------------------------ verification


@pytest.fixture
def a_set(source: Path, dest: Path) -> SetReport:
    a_tree(source, STYLES["vhdx"], 22)
    return export_all(source, dest)


def flip(path: Path, offset: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def bad_images(folder: Path) -> dict[str, set[str]]:
    """Names of images in which something is found, with the findings' codes."""
    report = verify_set(folder)
    assert report.exit_code == (0 if report.ok else 1)
    return {i.name: {finding.code for finding in i.findings} for i in report.images if not i.ok}


def test_a_flipped_bit_of_an_image_is_found_in_that_image(a_set: SetReport) -> None:
    name = "niece.avhdx"
    size = (a_set.destination / name).stat().st_size
    flip(a_set.destination / name, size - 100)

    assert set(bad_images(a_set.destination)) == {name}


def test_a_flipped_bit_of_an_images_manifest_is_found_there(a_set: SetReport) -> None:
    flip(manifest_path(a_set.destination / "one.avhdx"), 300)

    bad = bad_images(a_set.destination)
    assert set(bad) == {"one.avhdx"}
    assert "manifest.seal" in bad["one.avhdx"]


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_of_the_sets_manifest_is_refused(place: float, a_set: SetReport) -> None:
    flip(a_set.manifest, int(a_set.manifest.stat().st_size * place))

    with pytest.raises(FormatError):
        verify_set(a_set.destination)


def test_a_missing_image_is_told_and_the_others_are_verified(a_set: SetReport) -> None:
    (a_set.destination / "two.avhdx").unlink()

    assert bad_images(a_set.destination) == {"two.avhdx": {"file.unreadable"}}


def test_an_image_that_was_exported_anew_is_not_the_sets_own(a_set: SetReport, source: Path) -> None:
    aunt = a_set.destination / "aunt.avhdx"
    vhdtool.export_image(source / "aunt.avhdx", aunt, base=a_set.destination / "base.vhdx", force=True)
    assert verify_image(aunt).ok

    bad = bad_images(a_set.destination)
    assert bad["aunt.avhdx"] == {"verify.set_manifest"}
    # What was made on the old one finds it no more.
    assert set(bad) == {"aunt.avhdx", "niece.avhdx"}


def test_an_increment_that_finds_its_parent_outside_of_the_set_is_told(a_set: SetReport) -> None:
    folder = a_set.destination
    child = next(image for image in SetManifest(folder).images if image.name == "niece.avhdx")
    outside = folder.parent / "outside"
    outside.mkdir()
    for name in ("aunt.avhdx", "base.vhdx"):
        shutil.copy(folder / name, outside / name)
    with vhdtool.open_chain(folder / child.name) as chain:
        assert chain.layers[1].path.parent == folder

    # The same image under a name that leads out of the folder.
    (folder / "aunt.avhdx").unlink()
    (folder / "aunt.avhdx").symlink_to(outside / "aunt.avhdx")

    assert verify_set(folder).ok  # a link in the folder is the set's own
    (folder / "aunt.avhdx").unlink()
    bad = bad_images(folder)
    assert set(bad) == {"aunt.avhdx", "niece.avhdx"}


def test_a_signed_set_is_checked_against_a_key(source: Path, dest: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization as kinds
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    keys = {}
    for name in ("mine", "other"):
        key = Ed25519PrivateKey.generate()
        keys[name] = tmp_path / f"{name}.pub"
        keys[name].write_bytes(
            key.public_key().public_bytes(kinds.Encoding.PEM, kinds.PublicFormat.SubjectPublicKeyInfo)
        )
        (tmp_path / name).write_bytes(
            key.private_bytes(kinds.Encoding.PEM, kinds.PrivateFormat.PKCS8, kinds.NoEncryption())
        )
    a_tree(source, STYLES["vhdx"], 23)
    export_all(source, dest, ExportOptions(sign=tmp_path / "mine", case={"case": "42"}))

    assert verify_set(dest, key=keys["mine"]).ok
    assert SetManifest(dest).values["case"] == {"case": "42"}
    with pytest.raises(FormatError):
        verify_set(dest, key=keys["other"])


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../evil"},
        {"path": "a/b"},
        {"manifest": ".."},
        {"parent": "nobody"},
        {"virtual_size": -1},
        {"virtual_size": True},
        {"manifest_seal": "zz"},
        {"format": "qcow2"},
    ],
    ids=str,
)
def test_a_set_that_says_nonsense_is_refused(change: dict[str, object], a_set: SetReport) -> None:
    from vhdtool.export.proof.seal import sealed_text

    document = json.loads(a_set.manifest.read_text())
    for name in ("seal", "checks"):
        document.pop(name)
    document["images"][0] |= change
    a_set.manifest.write_bytes(sealed_text(document))

    with pytest.raises(FormatError):
        verify_set(a_set.destination)


def test_the_list_of_a_set_agrees_with_the_images_manifests(a_set: SetReport) -> None:
    for image in SetManifest(a_set.destination).images:
        with Manifest(a_set.destination / image.manifest) as manifest:
            assert image.manifest_seal == manifest.seal.digest.hex()
            assert image.root == manifest.root
            assert image.write_id == manifest.target["write_id"]
            assert (image.parent is None) == (manifest.base is None)

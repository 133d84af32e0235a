"""Snapshot trees: what lies in folders, and how it hangs together."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import vhdtool.chain.tree as module
from tests.chain.disks import VHD, VHDX, Family, damage, make_vhd, make_vhdx, record_opens, record_paths
from vhdtool.chain import candidates
from vhdtool.chain.candidates import Candidate
from vhdtool.chain.chain import FoundBy, LinkVerdict
from vhdtool.chain.discover import open_chain
from vhdtool.chain.tree import Role, SnapshotTree, find_snapshots
from vhdtool.errors import FileMissingError, Finding, ReadError, Severity


@pytest.fixture(params=[VHD, VHDX], ids=["vhd", "vhdx"])
def family(request: pytest.FixtureRequest) -> Family:
    found = request.param
    assert isinstance(found, Family)
    return found


def names(nodes: object) -> list[str]:
    return [node.path.name for node in nodes]  # type: ignore[attr-defined]


def with_code(tree: SnapshotTree, code: str) -> list[Finding]:
    return [finding for finding in tree.all_findings() if finding.code == code]


def a_family_tree(folder: Path, family: Family) -> Path:
    """base <- one <- two, base <- fork; and orphan, whose parent is not there."""
    family.make(folder / "base", 1)
    family.make(folder / "snaps" / "one", 2, 1, relative="..\\base")
    family.make(folder / "snaps" / "two", 3, 2, relative=".\\one")
    family.make(folder / "snaps" / "fork", 4, 1, relative="..\\base")
    family.make(folder / "orphan", 5, 99, relative=".\\gone")
    return folder


# ---------------------------------------------------------------- shape


def test_a_forest_has_roots_forks_leaves_and_orphans(tmp_path: Path, family: Family) -> None:
    tree = find_snapshots(a_family_tree(tmp_path, family))

    assert {node.path.name: str(node.role) for node in tree} == {
        "base": "base",
        "one": "middle",
        "two": "leaf",
        "fork": "leaf",
        "orphan": "orphan",
    }
    assert names(tree.roots) == ["base", "orphan"]
    assert names(tree.bases) == ["base"]
    assert names(tree.forks) == ["base"]
    assert names(tree.leaves) == ["orphan", "fork", "two"]
    assert names(tree.orphans) == ["orphan"]
    assert names(tree.children_of(tmp_path / "base")) == ["fork", "one"]
    assert [finding.code for finding in tree.findings] == ["chain.parent.missing"]


def test_a_chain_is_a_path_in_the_tree(tmp_path: Path, family: Family) -> None:
    tree = find_snapshots(a_family_tree(tmp_path, family))

    leaf = tmp_path / "snaps" / "two"

    assert tree.chain_paths(leaf) == (leaf, tmp_path / "snaps" / "one", tmp_path / "base")
    assert names(tree.ancestors(str(leaf))) == ["one", "base"]
    with open_chain(leaf) as chain:
        assert tuple(layer.path for layer in chain.layers) == tree.chain_paths(leaf)


def test_a_node_says_what_json_promises(tmp_path: Path, family: Family) -> None:
    node = find_snapshots(a_family_tree(tmp_path, family))[tmp_path / "snaps" / "one"]

    assert node.parent == tmp_path / "base"
    assert node.children == (tmp_path / "snaps" / "two",)
    assert node.link is LinkVerdict.OK
    assert node.role is Role.MIDDLE
    assert node.found_by is FoundBy.RELATIVE_PATH
    assert str(node.write_id) == str(UUID(int=2)) or family is VHD
    assert node.file_size == node.path.stat().st_size


def test_a_tree_is_a_value(tmp_path: Path, family: Family) -> None:
    tree = find_snapshots(a_family_tree(tmp_path, family))
    shutil.rmtree(tmp_path)

    assert len(tree.chain_paths(tmp_path / "snaps" / "two")) == 3
    assert (tmp_path / "base") in tree
    with pytest.raises(FrozenInstanceError):
        tree.images = ()  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        tree.images[0].path = Path()  # type: ignore[misc]
    with pytest.raises(KeyError):
        tree[tmp_path / "other"]


def test_several_folders_make_one_forest_and_each_file_counts_once(tmp_path: Path, family: Family) -> None:
    family.make(tmp_path / "a" / "base", 1)
    family.make(tmp_path / "b" / "leaf", 2, 1, relative=".\\renamed")

    tree = find_snapshots(tmp_path / "a", str(tmp_path / "b"), tmp_path, tmp_path / "a")

    assert len(tree) == 2
    assert tree[tmp_path / "b" / "leaf"].parent == tmp_path / "a" / "base"
    assert tree[tmp_path / "b" / "leaf"].found_by is FoundBy.IDENTITY


def test_a_folder_is_listed_once_however_often_it_is_named(
    tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    family.make(tmp_path / "a" / "base", 1)
    seen = record_paths(monkeypatch)

    find_snapshots(tmp_path / "a", tmp_path, tmp_path / "a" / ".." / "a")

    # Asked about once and opened once, by whichever of its names.
    assert sum(Path(path).name == "base" for path in seen) == 2


def test_an_image_is_closed_before_the_next_is_opened(
    tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("this platform does not tell")
    a_family_tree(tmp_path, family)
    kept: list[Candidate] = []
    counts: list[int] = []

    def keep(*arguments: Any) -> Candidate:
        counts.append(len(list(descriptors.iterdir())))
        kept.append(candidates.open_candidate(*arguments))
        return kept[-1]

    monkeypatch.setattr(module, "open_candidate", keep)

    assert len(find_snapshots(tmp_path)) == len(kept) == 5
    assert len(set(counts)) == 1


def test_a_second_identity_that_is_the_images_own_makes_no_loop(tmp_path: Path) -> None:
    base = make_vhdx(tmp_path / "base.vhdx", 1)
    leaf = make_vhdx(tmp_path / "leaf.vhdx", 2, 1, second=2, relative=".\\leaf.vhdx")

    assert find_snapshots(tmp_path)[leaf].parent == base


def test_folders_below_are_left_out_on_request(tmp_path: Path, family: Family) -> None:
    tree = find_snapshots(a_family_tree(tmp_path, family), recursive=False)

    assert names(tree) == ["base", "orphan"]


def test_both_formats_may_lie_in_one_folder(tmp_path: Path) -> None:
    make_vhd(tmp_path / "base.vhd", 1)
    make_vhdx(tmp_path / "base.vhdx", 1)
    make_vhd(tmp_path / "leaf.vhd", 2, 1, relative=".\\base.vhd")
    make_vhdx(tmp_path / "leaf.vhdx", 2, 1, relative=".\\gone.vhdx")

    tree = find_snapshots(tmp_path)

    assert tree[tmp_path / "leaf.vhd"].parent == tmp_path / "base.vhd"
    assert tree[tmp_path / "leaf.vhdx"].parent == tmp_path / "base.vhdx"
    assert tree.findings == ()


# ---------------------------------------------------------------- links


def test_the_path_decides_between_copies(tmp_path: Path, family: Family) -> None:
    for folder in ("x", "y"):
        family.make(tmp_path / folder / "base", 1)
        family.make(tmp_path / folder / "leaf", 2, 1, relative=".\\base")

    tree = find_snapshots(tmp_path)

    assert tree[tmp_path / "x" / "leaf"].parent == tmp_path / "x" / "base"
    assert tree[tmp_path / "y" / "leaf"].parent == tmp_path / "y" / "base"
    assert [finding.code for finding in tree.findings] == ["tree.duplicate", "tree.duplicate"]


def test_an_identity_that_several_files_carry_links_nothing(tmp_path: Path, family: Family) -> None:
    family.make(tmp_path / "x" / "copy1", 1)
    family.make(tmp_path / "y" / "copy2", 1)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\gone")

    tree = find_snapshots(tmp_path)

    assert (tree[leaf].parent, tree[leaf].link, tree[leaf].role) == (None, LinkVerdict.MISSING, Role.ORPHAN)
    (finding,) = with_code(tree, "chain.parent.ambiguous")
    assert (finding.severity, finding.exit_code) == (Severity.ERROR, 66)
    (duplicate,) = with_code(tree, "tree.duplicate")
    assert duplicate.severity is Severity.WARNING
    assert "copy2" in duplicate.found


def test_the_childs_own_folder_decides_between_copies_found_by_identity(
    tmp_path: Path, family: Family
) -> None:
    for folder in ("x", "y"):
        family.make(tmp_path / folder / "renamed", 1)
        family.make(tmp_path / folder / "leaf", 2, 1, relative=".\\gone")

    tree = find_snapshots(tmp_path)

    for folder in ("x", "y"):
        assert tree[tmp_path / folder / "leaf"].parent == tmp_path / folder / "renamed"


def test_a_wrong_file_under_the_parents_name_is_a_broken_edge(tmp_path: Path, family: Family) -> None:
    family.make(tmp_path / "base", 7)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base")

    tree = find_snapshots(tmp_path)

    assert (tree[leaf].parent, tree[leaf].link, tree[leaf].role) == (None, LinkVerdict.MISMATCH, Role.ORPHAN)
    (finding,) = with_code(tree, "chain.parent.mismatch")
    assert str(UUID(int=7)) in finding.found
    assert str(UUID(int=1)) in finding.expected


def test_a_mapped_path_links(tmp_path: Path, family: Family) -> None:
    family.make(tmp_path / "x" / "base", 1)
    family.make(tmp_path / "y" / "base", 1)
    leaf = family.make(tmp_path / "leaf", 2, 1, absolute="D:\\VMs\\base")

    tree = find_snapshots(tmp_path, maps=[f"D:\\VMs={tmp_path / 'y'}"])

    assert tree[leaf].parent == tmp_path / "y" / "base"
    assert tree[leaf].found_by is FoundBy.ABSOLUTE_PATH


def test_a_parent_outside_of_the_folders_is_said(tmp_path: Path, family: Family) -> None:
    base = family.make(tmp_path / "base", 1)
    leaf = family.make(tmp_path / "snaps" / "leaf", 2, 1, relative="..\\base")

    tree = find_snapshots(tmp_path / "snaps")

    assert tree[leaf].role is Role.ORPHAN
    (finding,) = tree.findings
    assert (finding.code, finding.severity, finding.found) == (
        "tree.parent_outside",
        Severity.WARNING,
        str(base),
    )


def test_an_orphan_names_a_relative_by_its_virtual_disk_id(tmp_path: Path) -> None:
    make_vhdx(tmp_path / "relative.vhdx", 7)
    leaf = make_vhdx(tmp_path / "leaf.vhdx", 2, 1, relative=".\\gone.vhdx")

    tree = find_snapshots(tmp_path)

    assert tree[leaf].role is Role.ORPHAN
    assert "relative.vhdx has the same virtual disk id" in with_code(tree, "chain.parent.missing")[0].what


def test_findings_about_links_are_those_of_a_chain(tmp_path: Path) -> None:
    make_vhdx(tmp_path / "base", 1, size=4 << 20, disk=UUID(int=5), sector=4096)
    make_vhdx(tmp_path / "leaf", 2, 9, second=1, relative=".\\base")

    tree = find_snapshots(tmp_path)

    with open_chain(tmp_path / "leaf", strict=False) as chain:
        assert tree.findings == chain.findings
        assert len(chain.findings) == 4


# ---------------------------------------------------------------- loops and depth


def test_loops_are_unlinked_and_said(tmp_path: Path, family: Family) -> None:
    family.make(tmp_path / "self", 9, 9, relative=".\\self")
    family.make(tmp_path / "a", 1, 3, relative=".\\c")
    family.make(tmp_path / "b", 2, 1, relative=".\\a")
    family.make(tmp_path / "c", 3, 2, relative=".\\b")
    hanging = family.make(tmp_path / "hanging", 4, 1, relative=".\\a")

    tree = find_snapshots(tmp_path)

    assert {node.path.name for node in tree if node.link is LinkVerdict.LOOP} == {"self", "a", "b", "c"}
    assert {node.path.name for node in tree.orphans} == {"self", "a", "b", "c"}
    assert len(with_code(tree, "chain.loop")) == 4
    assert all(finding.exit_code == 65 for finding in with_code(tree, "chain.loop"))
    assert tree[hanging].parent == tmp_path / "a"
    assert tree.chain_paths(hanging) == (hanging, tmp_path / "a")


def test_an_identity_twice_in_one_chain_is_a_loop_there_and_in_the_tree(
    tmp_path: Path, family: Family
) -> None:
    family.make(tmp_path / "base", 1)
    family.make(tmp_path / "middle", 2, 1, relative=".\\base")
    family.make(tmp_path / "leaf", 1, 2, relative=".\\middle")

    tree = find_snapshots(tmp_path)

    (finding,) = with_code(tree, "chain.loop")
    assert finding.location.file == str(tmp_path / "leaf")


def test_a_chain_that_is_too_deep_is_said_once(tmp_path: Path) -> None:
    leaf = VHD.chain(tmp_path, 260)

    tree = find_snapshots(tmp_path)

    assert len(tree.chain_paths(leaf)) == 260
    (finding,) = with_code(tree, "chain.depth")
    assert finding.location.file == str(tmp_path / "layer256.vhd")


# ---------------------------------------------------------------- other things in folders


def test_only_strangers_with_an_images_name_are_findings(tmp_path: Path) -> None:
    secret = b"the password is hunter2"
    for name in ("notes.txt", "disk.img", "fake.vhd", "fake.AVHDX", "empty.vhdx"):
        (tmp_path / name).write_bytes(secret * 100 if not name.startswith("empty") else b"")

    tree = find_snapshots(tmp_path)

    assert tree.images == ()
    assert tree.strangers == 5
    found = with_code(tree, "tree.stranger")
    assert [Path(finding.location.file).name for finding in found] == ["empty.vhdx", "fake.AVHDX", "fake.vhd"]
    assert "hunter2" not in "".join(map(str, tree.all_findings()))


def test_an_image_counts_by_content_whatever_its_name(tmp_path: Path, family: Family) -> None:
    other = ".vhdx" if family is VHD else ".vhd"
    for number, name in enumerate(("plain", "x.txt", f"wrong{other}"), 1):
        family.make(tmp_path / name, number)

    assert len(find_snapshots(tmp_path)) == 3


def test_an_image_that_is_refused_is_a_finding_and_no_node(tmp_path: Path, family: Family) -> None:
    damage(family.make(tmp_path / f"base{family.suffix}", 1))
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=f".\\base{family.suffix}")

    tree = find_snapshots(tmp_path)

    assert names(tree) == ["leaf"]
    codes = [finding.code for finding in tree.findings]
    assert codes[0] == "chain.parent.missing"
    assert codes[1].startswith(family.suffix[1:] + ".")
    assert "(refused)" in tree[leaf].findings[0].found


def test_special_files_are_counted_and_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no FIFOs here")
    os.mkfifo(tmp_path / "pipe.vhd")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero.vhdx").symlink_to("/dev/zero")
    (tmp_path / "broken.vhd").symlink_to(tmp_path / "gone")
    opened = record_opens(monkeypatch)

    tree = find_snapshots(tmp_path)

    assert opened == []
    found = {Path(f.location.file).name: f.found for f in with_code(tree, "tree.stranger")}
    assert found == {"pipe.vhd": "a FIFO", "zero.vhdx": "a character device", "broken.vhd": "no such file"}


def test_links_are_one_file_with_their_target(tmp_path: Path, family: Family) -> None:
    family.make(tmp_path / "z" / "base", 1)
    (tmp_path / "a.vhd").symlink_to(tmp_path / "z" / "base")
    os.link(tmp_path / "z" / "base", tmp_path / "z" / "other")
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\a.vhd")

    tree = find_snapshots(tmp_path)

    assert names(tree) == ["leaf", "base"]
    assert tree[leaf].parent == tmp_path / "z" / "base"
    assert tree.findings == ()


def test_a_link_to_a_file_outside_counts_where_the_link_is(tmp_path: Path, family: Family) -> None:
    family.make(tmp_path / "real" / "base", 1)
    family.make(tmp_path / "real" / "leaf", 2, 1, relative=".\\base")
    (tmp_path / "links").mkdir()
    for name in ("base", "leaf"):
        (tmp_path / "links" / name).symlink_to(tmp_path / "real" / name)

    tree = find_snapshots(tmp_path / "links")

    assert tree[tmp_path / "links" / "leaf"].parent == tmp_path / "links" / "base"


def test_linked_folders_are_not_followed_and_loops_end(tmp_path: Path, family: Family) -> None:
    family.make(tmp_path / "top" / "x" / "base", 1)
    family.make(tmp_path / "outside" / "other", 2)
    (tmp_path / "top" / "x" / "up").symlink_to(tmp_path / "top")
    (tmp_path / "top" / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "top" / "self").symlink_to("self")

    tree = find_snapshots(tmp_path / "top")

    assert names(tree) == ["base"]
    assert [finding.severity for finding in with_code(tree, "tree.link")] == [Severity.INFO, Severity.INFO]


def test_a_folder_that_cannot_be_listed_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    VHD.make(tmp_path / "base.vhd", 1)
    (tmp_path / "locked").mkdir()
    real = os.scandir

    def refuse(path: str | Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)

    tree = find_snapshots(tmp_path)

    assert names(tree) == ["base.vhd"]
    (finding,) = tree.findings
    assert (finding.code, finding.severity, finding.exit_code) == ("tree.unreadable", Severity.ERROR, 74)
    with pytest.raises(ReadError):
        find_snapshots(tmp_path / "locked")


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(FileMissingError):
        find_snapshots(tmp_path / "missing")
    with pytest.raises(ReadError):
        find_snapshots(tmp_path / "file")
    with pytest.raises(ValueError, match="no folder"):
        find_snapshots()


def test_a_split_disk_is_one_image(tmp_path: Path) -> None:
    data = make_vhd(tmp_path / "base.vhd", 1).read_bytes()
    (tmp_path / "base.vhd").write_bytes(b"x" * 512 + data[512:1024])
    (tmp_path / "base.v01").write_bytes(data[1024:])
    (tmp_path / "a.v01").write_bytes(bytes(600))

    tree = find_snapshots(tmp_path)

    assert names(tree) == ["base.vhd"]
    assert tree.findings == ()
    assert tree.strangers == 1


def test_a_vhd_set_is_named(tmp_path: Path) -> None:
    (tmp_path / "set.vhds").write_bytes(b"vhdsetv1" + bytes(4096))

    (finding,) = find_snapshots(tmp_path).findings

    assert (finding.code, finding.severity) == ("tree.vhd_set", Severity.INFO)


def test_images_own_findings_are_kept_apart_from_the_trees(tmp_path: Path) -> None:
    path = make_vhd(tmp_path / "base.vhd", 1)
    data = bytearray(path.read_bytes())
    data[:512] = bytes(512)
    path.write_bytes(data)

    tree = find_snapshots(tmp_path)

    assert tree.findings == ()
    assert "vhd.footer.copy_bad" in {finding.code for finding in tree.all_findings()}
    assert tree.images[0].image_findings == tree.all_findings()


# ---------------------------------------------------------------- size


def test_a_forest_of_thousands_takes_seconds(tmp_path: Path) -> None:
    pattern = make_vhd(tmp_path / "pattern", 1).read_bytes()
    child = make_vhd(tmp_path / "child", 2, 1, relative=".\\gone").read_bytes()
    footer, parent = 68, 512 + 40
    for i in range(2_000):
        data = bytearray(pattern if i % 20 == 0 else child)
        for at in (0, len(data) - 512):
            sealed(data, at, 512, at + footer, (i + 100).to_bytes(16, "big"))
        if i % 20:
            sealed(data, 512, 1024, parent, (i + 99).to_bytes(16, "big"))
        (tmp_path / f"disk{i}.vhd").write_bytes(data)

    start = time.monotonic()
    tree = find_snapshots(tmp_path)
    elapsed = time.monotonic() - start

    assert len(tree) == 2_002
    assert len(tree.bases) == 101
    assert max(len(tree.chain_paths(node.path)) for node in tree.leaves) == 20
    assert sum(node.found_by is FoundBy.IDENTITY for node in tree) == 1_901
    assert elapsed < 30


def sealed(data: bytearray, start: int, size: int, at: int, value: bytes) -> None:
    """Change a structure and make its checksum right."""
    data[at : at + len(value)] = value
    place = start + (64 if size == 512 else 36)
    data[place : place + 4] = bytes(4)
    data[place : place + 4] = (~sum(data[start : start + size]) & 0xFFFFFFFF).to_bytes(4, "big")


def test_thousands_of_files_are_read_with_few_descriptors(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    assert resource is not None
    image = make_vhd(tmp_path / "pattern", 1).read_bytes()
    for i in range(400):
        (tmp_path / f"disk{i}.vhd").write_bytes(image)
        (tmp_path / f"fake{i}.vhd").write_bytes(b"no image")
        (tmp_path / f"bad{i}.vhdx").write_bytes(b"vhdxfile")
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "from vhdtool.chain.tree import find_snapshots\n"
        "tree = find_snapshots(sys.argv[1])\n"
        "assert len(tree) == 401, len(tree)\n"
        "assert tree.strangers == 400\n"
        "assert len(tree.findings) == 801, len(tree.findings)\n"
    )

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(tmp_path)], capture_output=True, check=False
    )

    assert done.returncode == 0, done.stderr.decode()

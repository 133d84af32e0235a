"""Stored paths: taken apart as Windows would, mapped, and looked for without regard to case."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhdtool.chain.paths import (
    PATH_LENGTH_MAX,
    Folders,
    PathMap,
    RefusedPathError,
    Root,
    StoredPath,
    component_fault,
    fold,
    mapped,
    parse_path,
    path_fault,
)

VOLUME = "Volume{01234567-89ab-cdef-0123-456789abcdef}"


@pytest.mark.parametrize(
    ("text", "root", "anchor", "parts"),
    [
        (r".\parent.vhdx", Root.RELATIVE, (), ("parent.vhdx",)),
        ("parent.vhdx", Root.RELATIVE, (), ("parent.vhdx",)),
        (r"..\..\a\b.vhd", Root.RELATIVE, (), ("..", "..", "a", "b.vhd")),
        (r"..\x\..\b.vhd", Root.RELATIVE, (), ("..", "b.vhd")),
        (r"a\..\..\b.vhd", Root.RELATIVE, (), ("..", "b.vhd")),
        ("a/b\\\\c.vhd", Root.RELATIVE, (), ("a", "b", "c.vhd")),
        ("", Root.RELATIVE, (), ()),
        (r"\vms\b.vhd", Root.ROOTED, (), ("vms", "b.vhd")),
        ("/vms/b.vhd", Root.ROOTED, (), ("vms", "b.vhd")),
        ("D:b.vhd", Root.ROOTED, (), ("b.vhd",)),
        (r"D:\VMs\b.vhd", Root.DRIVE, ("D:",), ("VMs", "b.vhd")),
        (r"D:\VMs\..\..\..\b.vhd", Root.DRIVE, ("D:",), ("b.vhd",)),
        ("d:/VMs/b.vhd", Root.DRIVE, ("d:",), ("VMs", "b.vhd")),
        (r"\\?\d:\VMs\b.vhd", Root.DRIVE, ("d:",), ("VMs", "b.vhd")),
        (r"\??\d:\VMs\b.vhd", Root.DRIVE, ("d:",), ("VMs", "b.vhd")),
        (r"\\server\share\a\b.vhd", Root.UNC, ("server", "share"), ("a", "b.vhd")),
        (r"\\?\UNC\server\share\a\b.vhd", Root.UNC, ("server", "share"), ("a", "b.vhd")),
        (r"\\?\unc\server\share\a\b.vhd", Root.UNC, ("server", "share"), ("a", "b.vhd")),
        (rf"\\?\{VOLUME}\a\b.vhd", Root.VOLUME, (VOLUME,), ("a", "b.vhd")),
        ("file:///vhds/my%20disk.vhd", Root.POSIX, (), ("vhds", "my disk.vhd")),
        ("file://localhost/vhds/../b.vhd", Root.POSIX, (), ("b.vhd",)),
        ("FILE:///C:/VMs/b.vhd", Root.DRIVE, ("C:",), ("VMs", "b.vhd")),
        ("file://nas/share/b.vhd", Root.UNC, ("nas", "share"), ("b.vhd",)),
        ("file:b.vhd", Root.ROOTED, (), ("b.vhd",)),
    ],
)
def test_a_stored_path_is_taken_apart(
    text: str, root: Root, anchor: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    assert parse_path(text) == StoredPath(root, anchor, parts)


@pytest.mark.parametrize(
    "text",
    [
        r"\\.\PhysicalDrive0",
        "//./PhysicalDrive0",
        r"\\.\C:\b.vhd",
        r"\\?\GLOBALROOT\Device\HarddiskVolume1\b.vhd",
        r"\\?\PhysicalDrive0",
        r"\??\PhysicalDrive0",
        "\\\\.",
        "\\\\?",
        "\\\\?\\",
        r"\\server",
        r"\\server\\b.vhd",
        r"\\?\UNC\server",
        "file://server/",
        "b\0.vhd",
        "file:///b%00.vhd",
        "x" * (PATH_LENGTH_MAX + 1),
        "a\\" * 300,
        "..\\" * 300,
    ],
)
def test_devices_and_impossible_paths_are_refused(text: str) -> None:
    with pytest.raises(RefusedPathError):
        parse_path(text)


@pytest.mark.parametrize(
    "name",
    [
        *("NUL", "nul", "con.vhd", "COM1", "com1.vhd", "LPT9 .x", "Aux.a.b", "CONIN$", "COM²"),
        *("a.", "a ", ".", "...", ""),
        *("a:b", "a*", "a?", "a\x01", "a/b", "a\\b", "a\0", 'a"', "a|", "<a>"),
    ],
)
def test_a_name_that_windows_would_take_for_something_else_is_not_used(name: str) -> None:
    assert component_fault(name)


@pytest.mark.parametrize(
    "name", ["..", "a.vhd", "null.vhd", "COM10", "console", "a..b", ".vhd", "ä ö.vhdx", "CO"]
)
def test_an_ordinary_name_is_used(name: str) -> None:
    assert component_fault(name) == ""


def test_names_are_compared_as_windows_does() -> None:
    assert fold("Größe.VHD") == fold("GRÖßE.vhd")
    assert fold("GROSSE.vhd") != fold("große.vhd")
    assert fold("A\u0308.vhd") == fold("ä.vhd")


def test_a_map_covers_whole_components_without_regard_to_case(tmp_path: Path) -> None:
    folder = PathMap.parse(rf"D:\VMs={tmp_path}")

    assert folder.rest(parse_path(r"d:\vms\A\b.vhd")) == ("A", "b.vhd")
    assert folder.rest(parse_path(r"\\?\D:\VMS\b.vhd")) == ("b.vhd",)
    assert folder.rest(parse_path(r"D:\VMs2\b.vhd")) is None
    assert folder.rest(parse_path(r"E:\VMs\b.vhd")) is None
    assert folder.rest(parse_path(r"VMs\b.vhd")) is None


def test_a_mapped_path_cannot_climb_out_of_its_folder(tmp_path: Path) -> None:
    folder = PathMap.parse(rf"D:\VMs={tmp_path}")

    assert folder.rest(parse_path(r"D:\VMs\..\secret\b.vhd")) is None
    assert folder.rest(parse_path(r"D:\VMs\..\..\b.vhd")) is None
    assert folder.rest(parse_path(r"D:\x\..\VMs\y\..\b.vhd")) == ("b.vhd",)


@given(st.lists(st.sampled_from(["..", ".", "a", "VMs", ""]), max_size=12))
def test_no_path_with_a_root_keeps_a_step_upwards(names: list[str]) -> None:
    for prefix in ("D:\\", "\\\\s\\t\\", f"\\\\?\\{VOLUME}\\", "file:///"):
        assert ".." not in parse_path(prefix + "\\".join(names)).parts or prefix == "file:///"
    assert ".." not in parse_path("file:///" + "/".join(names)).parts


@pytest.mark.parametrize(
    ("prefix", "path"),
    [
        ("D:", r"D:\b.vhd"),
        ("D:\\", r"D:\b.vhd"),
        (r"\\server\share", r"\\SERVER\Share\b.vhd"),
        (r"\\?\UNC\server\share", r"\\server\share\b.vhd"),
        (r"\\server\share", r"\\?\UNC\server\share\b.vhd"),
        (rf"\\?\{VOLUME}", rf"\\?\{VOLUME.upper()}\b.vhd"),
        (rf"\\?\{VOLUME}\\", rf"\\?\{VOLUME}\b.vhd"),
        ("/vhds", "file:///vhds/b.vhd"),
        ("/", "file:///b.vhd"),
    ],
)
def test_drives_shares_volumes_and_urls_can_be_mapped(tmp_path: Path, prefix: str, path: str) -> None:
    assert PathMap.parse(f"{prefix}={tmp_path}").rest(parse_path(path)) == ("b.vhd",)


def test_the_longest_prefix_wins(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    maps = [PathMap.parse(rf"D:\={tmp_path}"), PathMap.parse(rf"D:\VMs={tmp_path / 'deep'}")]

    assert mapped(parse_path(r"D:\VMs\b.vhd"), maps) == [(tmp_path / "deep", ("b.vhd",))]
    assert mapped(parse_path(r"D:\b.vhd"), maps) == [(tmp_path, ("b.vhd",))]
    assert mapped(parse_path(r"E:\b.vhd"), maps) == []


def test_either_side_of_a_map_may_contain_an_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "x=y").mkdir()

    found = PathMap.parse(rf"D:\a=b={tmp_path / 'x=y'}")

    assert found.folder == tmp_path / "x=y"
    assert found.prefix.parts == ("a=b",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (r"D:\VMs", "not of the form"),
        (r"D:\VMs=", "is no folder"),
        (r"D:\VMs=DIR/missing", "is no folder"),
        (r"VMs=DIR", "is no full path"),
        (r"\VMs=DIR", "is no full path"),
        (r"D:VMs=DIR", "is no full path"),
        (r"\\.\PhysicalDrive0=DIR", "names a device"),
        (r"\\server=DIR", "names no share"),
        (r"D:\NUL=DIR", "names a device"),
        ("=DIR", "is no full path"),
    ],
)
def test_a_map_that_is_none_is_explained(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        PathMap.parse(text.replace("DIR", str(tmp_path)))


def test_the_exact_name_is_found_first_and_then_those_that_differ_in_case(tmp_path: Path) -> None:
    for name in ("Base.vhd", "base.vhd", "BASE.VHD"):
        (tmp_path / name).touch()
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("a file system without case")

    found = list(Folders().find(tmp_path, ["base.vhd"]))

    assert found == [tmp_path / "base.vhd", tmp_path / "BASE.VHD", tmp_path / "Base.vhd"]


def test_folders_are_found_without_regard_to_case_component_by_component(tmp_path: Path) -> None:
    (tmp_path / "Disks" / "Old").mkdir(parents=True)
    (tmp_path / "Disks" / "Old" / "Base.VHD").touch()

    found = next(Folders().find(tmp_path, ["DISKS", "old", "base.vhd"]))

    assert found.samefile(tmp_path / "Disks" / "Old" / "Base.VHD")


def test_a_step_upwards_leaves_a_folder_without_dots_in_the_path(tmp_path: Path) -> None:
    (tmp_path / "child").mkdir()
    (tmp_path / "base").mkdir()

    assert next(Folders().find(tmp_path / "child", ["..", "base"])) == tmp_path / "base"


def test_a_step_upwards_out_of_a_link_goes_where_the_system_would_go(tmp_path: Path) -> None:
    (tmp_path / "real" / "child").mkdir(parents=True)
    (tmp_path / "real" / "base").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "child")

    found = next(Folders().find(tmp_path / "link", ["..", "base"]))

    assert found.samefile(tmp_path / "real" / "base")


def test_steps_upwards_stop_at_the_root_and_work_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").touch()
    monkeypatch.chdir(tmp_path / "a")

    assert next(Folders().find(Path(), ["..", "b"])).samefile(tmp_path / "b")
    assert next(Folders().find(Path(), ["..", "..", tmp_path.name, "b"])).samefile(tmp_path / "b")
    assert next(Folders().find(Path("/"), [".."] * 200)) == Path("/")


def test_a_folder_is_listed_once_however_often_it_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").touch()
    listed: list[Path] = []
    real = os.scandir

    def scandir(path: Path) -> object:
        listed.append(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    folders = Folders()

    for i in range(50):
        assert list(folders.find(tmp_path, [f"missing{i}"])) == []

    assert listed == [tmp_path]


def test_folders_that_differ_only_in_case_cost_a_bounded_number_of_steps(tmp_path: Path) -> None:
    # Four ways on from each of fourteen folders: 4 ** 14 paths to a file that is not there.
    for i in range(14):
        (tmp_path / str(i)).mkdir()
        for name in ("aa", "aA", "Aa", "AA"):
            link = tmp_path / str(i) / name
            if not os.path.lexists(link):
                link.symlink_to(tmp_path / str(i + 1))

    start = time.monotonic()

    assert list(Folders().find(tmp_path / "0", [*["aa"] * 13, "missing"])) == []
    assert time.monotonic() - start < 10


@given(st.text(max_size=60))
def test_any_text_is_taken_apart_or_refused(text: str) -> None:
    try:
        path = parse_path(text)
    except RefusedPathError:
        return
    assert isinstance(path_fault(path.parts), str)


@given(st.text(st.sampled_from("\\/.?:CUN{} a%0\ud800"), max_size=30))
def test_no_text_of_path_characters_leads_out_by_its_parts(text: str) -> None:
    try:
        path = parse_path(text)
    except RefusedPathError:
        return
    if not path_fault(path.parts):
        joined = Path("/f").joinpath(*path.parts)
        assert joined.parts[:2] == ("/", "f")

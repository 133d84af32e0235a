"""What a hostile child, or a hostile folder, tries while its parent is looked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.builders import vhdx
from tests.chain.disks import VHD, VHDX, Family, make_vhd, make_vhdx, record_opens, record_paths
from vhdtool.chain import paths
from vhdtool.chain.chain import FoundBy
from vhdtool.chain.discover import open_chain
from vhdtool.chain.link import TRIED_SHOWN_MAX
from vhdtool.errors import Finding, ParentNotFoundError, VhdtoolError

SECRET = b"the password is hunter2 "


@pytest.fixture(params=[VHD, VHDX], ids=["vhd", "vhdx"])
def family(request: pytest.FixtureRequest) -> Family:
    found = request.param
    assert isinstance(found, Family)
    return found


def refused(leaf: Path, **options: object) -> Finding:
    with pytest.raises(VhdtoolError) as caught:
        open_chain(leaf, **options)  # type: ignore[arg-type]
    assert caught.value.finding is not None
    return caught.value.finding


def test_a_fifo_under_the_parents_name_is_not_opened(
    tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no FIFOs here")
    os.mkfifo(tmp_path / "base")
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base")
    opened = record_opens(monkeypatch)

    finding = refused(leaf)

    assert finding.code == "chain.parent.missing"
    assert "base (a FIFO)" in finding.found
    assert set(opened) == {leaf}


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_link_to_a_device_is_not_opened(
    tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    if not Path(device).is_char_device():
        pytest.skip("no such device here")
    (tmp_path / "base").symlink_to(device)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base")
    opened = record_opens(monkeypatch)

    assert "base (a character device)" in refused(leaf).found
    assert set(opened) == {leaf}


def test_a_folder_under_the_parents_name_is_passed_over(tmp_path: Path, family: Family) -> None:
    (tmp_path / "base").mkdir()
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base")

    finding = refused(leaf)

    assert finding.code == "chain.parent.missing"
    assert "base (a directory)" in finding.found


def test_links_that_lead_round_in_a_circle_are_passed_over(tmp_path: Path, family: Family) -> None:
    (tmp_path / "base").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "base")
    (tmp_path / "here").symlink_to(tmp_path / "here")
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base", absolute="C:\\here\\there\\base")

    assert refused(leaf).exit_code in (66, 74)


@pytest.mark.parametrize("name", ["base", "base.vhd", "base.vhdx", "base.txt"])
def test_no_byte_of_a_file_that_is_no_image_is_quoted(tmp_path: Path, family: Family, name: str) -> None:
    (tmp_path / name).write_bytes(SECRET * 4000)
    (tmp_path / "beside.txt").write_bytes(SECRET)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=f".\\{name}")

    with open_chain(leaf, strict=False) as chain:
        text = "\n".join(map(str, chain.all_findings()))

    assert text
    for word in SECRET.split():
        if len(word) > 4:
            assert word.decode() not in text
    assert SECRET.hex()[:16] not in text


@pytest.mark.parametrize(
    "path",
    [
        "\\\\.\\PhysicalDrive0",
        "\\\\?\\GLOBALROOT\\Device\\Harddisk0\\Partition0",
        "\\\\?\\PhysicalDrive0",
        "\\??\\PhysicalDrive0",
        ".\\NUL",
        ".\\nul.vhd",
        ".\\COM1",
        "..\\CON\\base",
        ".\\base.",
        ".\\base ",
        ".\\base:stream",
        ".\\ba\x01se",
        "..",
        ".",
        "\\",
        "C:",
        "\\\\",
        "*",
        "?" * 300,
        "a" * 20_000,
        "..\\" * 10_000 + "x",
        "a\\" * 10_000 + "x",
        "\ud800\udc00\ud800",
    ],
)
def test_paths_that_must_not_be_followed_are_not(
    tmp_path: Path, family: Family, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family is VHDX and "\ud800" in path:
        pytest.skip("no UTF-16: its reader drops it")
    leaf = family.make(tmp_path / "leaf" / "leaf", 2, 1, relative=path)
    seen = record_paths(monkeypatch)

    finding = refused(leaf)

    assert finding.code == "chain.parent.missing"
    assert len(str(finding)) < 4_000
    assert str(finding).isprintable()
    bad = ("\\", ":", "NUL", "nul.vhd", "COM1", "CON", "base.", "base ", "\x01", "*")
    assert not [p for p in seen if any(word in p for word in bad)]
    assert len(seen) < 100


def test_a_relative_path_with_a_drive_gives_only_its_name(
    tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = family.make(tmp_path / "base.img", 1)
    family.make(tmp_path / "dir" / "base.img", 1)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative="C:\\dir\\base.img")
    seen = record_paths(monkeypatch)

    # Not even a map makes it an absolute path: it was stored as something that it is not.
    with open_chain(leaf, maps=[f"C:\\dir={tmp_path / 'dir'}"]) as chain:
        assert chain.layers[1].path == base
        assert chain.layers[1].found_by is FoundBy.NAME
    assert not [path for path in seen if "C:" in path]


@pytest.mark.parametrize("path", ["\\dir\\base.img", "/dir/base.img", "C:base.img"])
def test_a_rooted_path_gives_only_its_name(tmp_path: Path, family: Family, path: str) -> None:
    base = family.make(tmp_path / "base.img", 1)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=path)

    with open_chain(leaf) as chain:
        assert (chain.layers[1].path, chain.layers[1].found_by) == (base, FoundBy.NAME)


def test_an_absolute_path_that_exists_here_is_not_opened_without_a_map(
    tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = family.make(tmp_path / "store" / "base.img", 1)
    leaf = family.make(tmp_path / "leaves" / "leaf", 2, 1, relative=str(base), absolute=str(base))
    seen = record_paths(monkeypatch)

    with pytest.raises(ParentNotFoundError):
        open_chain(leaf)

    assert str(base) not in seen
    assert not [path for path in seen if "store" in path]


def test_an_absolute_path_outside_of_the_map_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_vhdx(tmp_path / "store" / "base.img", 1)
    (tmp_path / "store" / "vms").mkdir()
    leaf = make_vhdx(
        tmp_path / "leaves" / "leaf", 2, 1, absolute="D:\\VMs\\..\\base.img", volume="\\\\nas\\x\\b.img"
    )
    seen = record_paths(monkeypatch)

    with pytest.raises(ParentNotFoundError) as caught:
        open_chain(leaf, maps=[f"D:\\VMs={tmp_path / 'store' / 'vms'}"])

    assert "not followed without a --map" in str(caught.value)
    assert str(base) not in seen


def test_a_list_of_everything_tried_has_a_bounded_length(tmp_path: Path) -> None:
    leaf = make_vhd(tmp_path / "leaf.vhd", 2, 1, relative="..\\" * 200 + "x" * 200)
    folders = [tmp_path / f"{'long' * 50}{i}" for i in range(200)]

    finding = refused(leaf, search=folders)

    assert finding.found.count("; ") <= TRIED_SHOWN_MAX
    assert "more" in finding.found
    assert len(str(finding)) < 6_000


def test_a_folder_with_more_names_than_the_limit_is_still_searched_for_exact_names(
    tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "FOLDER_ENTRIES_MAX", 10)
    for i in range(50):
        (tmp_path / f"file{i}").touch()
    base = family.make(tmp_path / "base", 1)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base")
    lost = family.make(tmp_path / "lost", 3, 99, relative=".\\gone")
    opened = record_opens(monkeypatch)

    with open_chain(leaf) as chain:
        assert chain.layers[1].path == base
    opened.clear()
    assert refused(lost).code == "chain.parent.missing"
    assert len(opened) <= 11


def test_hostile_images_in_the_folder_do_not_stop_the_search(tmp_path: Path, family: Family) -> None:
    for i, start in enumerate((b"vhdxfile", b"conectix", b"cxsparse", b"", b"vhdsetv1")):
        (tmp_path / f"a{i}.vhdx").write_bytes(start)
        (tmp_path / f"b{i}.vhd").write_bytes(start + bytes(700))
        (tmp_path / f"c{i}.vhds").write_bytes(start + bytes(5 << 20))
    base = family.make(tmp_path / "z", 1)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base")

    with open_chain(leaf) as chain:
        assert (chain.layers[1].path, chain.layers[1].found_by) == (base, FoundBy.IDENTITY)


def test_a_split_parent_is_found(tmp_path: Path) -> None:
    base = make_vhd(tmp_path / "base.vhd", 1)
    data = base.read_bytes()
    base.write_bytes(bytes(512))  # without its copy at the start only the pieces together are an image
    base.write_bytes(b"x" * 512 + data[512:1024])
    (tmp_path / "base.v01").write_bytes(data[1024:])
    leaf = make_vhd(tmp_path / "leaf.vhd", 2, 1, relative=".\\base.vhd")

    with open_chain(leaf) as chain:
        assert chain.layers[1].path == base
        assert len(chain.files()) == 3


def test_locators_that_lie_in_every_key_end_in_our_own_error(tmp_path: Path) -> None:
    locator = vhdx.a_locator(
        "{not-a-guid}",
        relative_path="\\\\.\\x",
        volume_path="C:",
        absolute_win32_path="\\\\?\\UNC\\",
        other="x",
    )
    leaf = vhdx.save(vhdx.a_vhdx(parent=locator), tmp_path / "leaf.vhdx")

    assert refused(leaf).exit_code in (65, 66)
    with open_chain(leaf, strict=False) as chain:
        assert "chain.parent.missing" in {finding.code for finding in chain.findings}


def test_looking_for_parents_imports_neither_numpy_nor_numba(tmp_path: Path) -> None:
    import subprocess
    import sys

    make_vhd(tmp_path / "base.vhd", 1)
    make_vhd(tmp_path / "leaf.vhd", 2, 1, relative=".\\base.vhd")
    make_vhdx(tmp_path / "leaf.vhdx", 2, 1, relative=".\\base.vhdx")
    script = (
        "import sys, vhdtool\n"
        "vhdtool.open_chain(sys.argv[1], strict=False).close()\n"
        "vhdtool.open_chain(sys.argv[2], strict=False).close()\n"
        "assert len(vhdtool.find_snapshots(sys.argv[3])) == 3\n"
        "sys.exit(int('numpy' in sys.modules or 'numba' in sys.modules))\n"
    )
    arguments = [str(tmp_path / "leaf.vhd"), str(tmp_path / "leaf.vhdx"), str(tmp_path)]

    assert subprocess.run([sys.executable, "-c", script, *arguments], check=False).returncode == 0

"""Parent locators: every code, every lie."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders.vhd import (
    DIFFERENCING,
    a_child_of_bitmap_semantics,
    a_locator,
    a_vhd,
    a_windows_differencing_vhd,
    codes,
    opened,
)
from vhdtool.formats.vhd.image import VhdImage
from vhdtool.formats.vhd.locator import is_device, is_full
from vhdtool.model.identity import PathKind


def le(text: str) -> bytes:
    return text.encode("utf-16-le")


def a_child(*locators: tuple[bytes, bytes], name: str = "") -> VhdImage:
    return opened(a_vhd(disk_type=DIFFERENCING, locators=locators, name=name))


def paths(image: VhdImage) -> list[tuple[str, str, str]]:
    assert image.parent is not None
    return [(str(path.kind), path.path, path.locator) for path in image.parent.paths]


def locator_codes(image: VhdImage) -> dict[str, str]:
    return {code: severity for code, severity in codes(image).items() if code.startswith("vhd.locator")}


def test_all_codes_in_the_order_in_which_they_are_tried() -> None:
    image = a_child(
        (b"MacX", b"file://localhost/Disks/a%20b.vhd\0"),
        (b"Mac ", b"opaque"),
        (b"Wi2k", b"C:\\old\\caf\xe9.vhd"),
        (b"W2ku", le("C:\\new\\p.vhd")),
        (b"Wi2r", b".\\old.vhd"),
        (b"W2ru", le("..\\disks\\p.vhd")),
        name="D:\\full\\p.vhd",
    )

    assert paths(image) == [
        ("relative_path", "..\\disks\\p.vhd", "W2ru"),
        ("relative_path", ".\\old.vhd", "Wi2r"),
        ("absolute_path", "C:\\new\\p.vhd", "W2ku"),
        ("absolute_path", "C:\\old\\café.vhd", "Wi2k"),
        ("absolute_path", "D:\\full\\p.vhd", "Parent Unicode Name"),
        ("absolute_path", "/Disks/a b.vhd", "MacX"),
    ]
    assert locator_codes(image) == {"vhd.locator.encoding": "info"}


def test_a_name_alone_is_a_name() -> None:
    assert paths(a_child(name="p.vhd")) == [("name", "p.vhd", "Parent Unicode Name")]


def test_a_name_with_folders_that_is_not_full_is_its_last_part() -> None:
    assert paths(a_child(name=".\\sub\\p.vhd")) == [("name", "p.vhd", "Parent Unicode Name")]


def test_neither_name_nor_locator_is_a_warning() -> None:
    image = a_child((b"Mac ", b"opaque"))

    assert paths(image) == []
    assert locator_codes(image) == {"vhd.locator.none": "warning"}


@pytest.mark.parametrize(
    "text", ["\\p.vhd", "/etc/p.vhd", "C:p.vhd", "c:\\dir\\p.vhd", "\\\\server\\share\\p.vhd"]
)
def test_a_relative_path_that_is_not_relative_counts_by_its_name_only(text: str) -> None:
    image = a_child((b"W2ru", le(text)))

    assert paths(image) == [("name", "p.vhd", "W2ru")]
    assert locator_codes(image)["vhd.locator.path"] == "warning"


@pytest.mark.parametrize(
    "text",
    [
        "\\\\.\\PhysicalDrive0",
        "//./PhysicalDrive0",
        "\\\\?\\GLOBALROOT\\Device\\Harddisk0\\Partition0",
        "\\\\?\\globalroot/Device/X",
        "\\\\?\\pipe\\x",
        "\\??\\C:\\p.vhd",
        "\\Device\\HarddiskVolume1\\p.vhd",
    ],
)
@pytest.mark.parametrize("code", [b"W2ru", b"W2ku"])
def test_a_path_that_names_a_device_is_never_given_on(text: str, code: bytes) -> None:
    image = a_child((code, le(text)))

    assert {kind for kind, _, _ in paths(image)} == {"name"}
    assert all("\\" not in path and "/" not in path for _, path, _ in paths(image))
    assert locator_codes(image) == {"vhd.locator.path": "warning"}


@pytest.mark.parametrize(
    "text",
    [
        "C:\\p.vhd",
        "\\\\server\\share\\p.vhd",
        "\\\\?\\C:\\p.vhd",
        "\\\\?\\Volume{0eba351e-5634-46d6-a8cf-4ddc2d6ac0b9}\\p.vhd",
        "\\\\?\\UNC\\server\\share\\p.vhd",
        "/home/p.vhd",
    ],
)
def test_paths_of_files_are_no_devices(text: str) -> None:
    assert is_full(text)
    assert not is_device(text)
    assert paths(a_child((b"W2ku", le(text)))) == [("absolute_path", text, "W2ku")]


def raw_entries(*entries: bytes) -> VhdImage:
    return opened(
        a_vhd(disk_type=DIFFERENCING, name="p.vhd", header={"parent_locator_entries": b"".join(entries)})
    )


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        (a_locator(b"\0\0\0\0", 4, 512), "vhd.locator.nonzero"),
        (a_locator(b"\0\0\0\0", 0, 0, space=1), "vhd.locator.nonzero"),
        (a_locator(b"Evil", 4, 512), "vhd.locator.code"),
        (a_locator(b"W2ru", 0, 512), "vhd.locator.empty"),
        (a_locator(b"W2ru", 4, 0), "vhd.locator.empty"),
        (a_locator(b"W2ru", 0x1_0001, 512), "vhd.locator.range"),
        (a_locator(b"W2ru", 0xFFFF_FFFF, 512), "vhd.locator.range"),
        (a_locator(b"W2ru", 4, 1 << 40), "vhd.locator.range"),
        (a_locator(b"W2ru", 4, (1 << 64) - 1), "vhd.locator.range"),
    ],
)
def test_a_broken_entry_is_a_warning_and_the_others_count(entry: bytes, code: str) -> None:
    image = raw_entries(entry, bytes(24), a_locator(b"W2ku", 8, 576))

    assert locator_codes(image)[code] == "warning"
    assert ("name", "p.vhd", "Parent Unicode Name") in paths(image)
    assert any(path.locator == "W2ku" for path in image.parent.paths) if image.parent else False


def test_an_odd_length_loses_its_last_byte() -> None:
    image = a_child((b"W2ru", le("p.vhd") + b"x"))

    assert paths(image) == [("relative_path", "p.vhd", "W2ru")]
    assert locator_codes(image) == {"vhd.locator.odd_length": "warning"}


def test_a_string_ends_at_its_first_nul() -> None:
    assert paths(a_child((b"W2ru", le("p.vhd\0evil")))) == [("relative_path", "p.vhd", "W2ru")]


@pytest.mark.parametrize("name", [".", "..", "..\\..", "\\"])
def test_what_names_no_file_is_dropped(name: str) -> None:
    assert paths(a_child((b"W2ku", le(name)), name="q.vhd")) == [("name", "q.vhd", "Parent Unicode Name")]


def test_lone_surrogates_are_kept_and_never_break() -> None:
    image = a_child((b"W2ru", b"p\0\x00\xd8.\0v\0"), (b"W2ku", b"q\0\x00\xd8"))

    assert paths(image)[0][1] == "p\ud800.v"
    assert "\ud800" not in str(image.sections)


@given(
    data=st.binary(min_size=1, max_size=64),
    code=st.sampled_from([b"W2ru", b"W2ku", b"Wi2r", b"Wi2k", b"MacX"]),
)
def test_any_locator_data_give_paths_of_files_or_none(data: bytes, code: bytes) -> None:
    image = a_child((code, data))

    assert image.parent is not None
    for path in image.parent.paths:
        if path.kind is PathKind.NAME:
            assert "\\" not in path.path
            assert "/" not in path.path
        else:
            assert not is_device(path.path)
        assert (path.kind is PathKind.RELATIVE_PATH) <= (not is_full(path.path))


def test_the_file_that_windows_made() -> None:
    image = opened(a_windows_differencing_vhd())
    image.inspect(deep=True)

    assert codes(image) == {}
    full = "C:\\Projects\\dfvfs\\test_data\\fat-parent.vhd"
    assert paths(image) == [
        ("relative_path", ".\\fat-parent.vhd", "W2ru"),
        ("absolute_path", full, "W2ku"),
        ("absolute_path", full, "Parent Unicode Name"),
    ]
    (windows, relative) = (s for s in image.sections if s.name.startswith("Parent Locator"))
    assert dict(windows.fields)["Platform Data Space"] == 0x1000
    assert dict(relative.fields)["Path"] == ".\\fat-parent.vhd"


def test_the_child_of_the_synthetic_chain_names_its_parent() -> None:
    image = opened(a_child_of_bitmap_semantics())

    assert paths(image)[0] == ("relative_path", ".\\parent.vhd", "W2ru")


@pytest.mark.parametrize(("space", "stop"), [(1, 512), (512, 512), (0x1000, 0x1000), (513, 40)])
def test_space_is_sectors_when_small_and_bytes_when_large(space: int, stop: int) -> None:
    image = raw_entries(struct.pack(">4sIIIQ", b"W2ku", space, 40, 0, 576))

    assert image.header is not None
    assert image.header.locators[0].space_bytes == stop

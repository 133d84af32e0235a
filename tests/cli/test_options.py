"""Sizes, digests and maps as people write them."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhdtool.cli.app import expanded
from vhdtool.cli.options import Access, DigestsType, SizeType
from vhdtool.errors import FileMissingError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("65536", 65536),
        ("0x1040", 0x1040),
        ("64KiB", 65536),
        ("4MiB", 4 << 20),
        ("4 mib", 4 << 20),
        ("1GiB", 1 << 30),
        ("64TiB", 64 << 40),
        ("512s", 512 * 512),
        ("12B", 12),
        (" 7 ", 7),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert SizeType().convert(text, None, None) == size


@pytest.mark.parametrize(
    "text",
    ["", "-1", "1.5GiB", "1KB", "4M", "GiB", "1e9", "٣", "1_000", "9" * 5000, "8388608TiB", "0x", "\x1b[31m"],
)
def test_what_is_no_size_is_wrong_usage(text: str) -> None:
    with pytest.raises(click.BadParameter):
        SizeType().convert(text, None, None)


@given(st.text())
def test_any_text_is_a_size_or_wrong_usage(text: str) -> None:
    try:
        size = SizeType().convert(text, None, None)
    except click.BadParameter as error:
        message = error.message
    else:
        message = ""
        assert 0 <= size < 1 << 63
    assert message.isprintable()


def test_digests_are_a_list_without_repeats() -> None:
    assert DigestsType().convert("SHA256, md5,,sha256", None, None) == ("sha256", "md5")
    assert DigestsType().convert("", None, None) == ()
    with pytest.raises(click.BadParameter):
        DigestsType().convert("sha256,rot13", None, None)


def test_a_map_may_have_equals_signs_on_either_side(tmp_path: Path) -> None:
    folder = tmp_path / "a=b"
    folder.mkdir()

    (mapped,) = Access(maps=(f"D:\\x=y={folder}",)).path_maps()

    assert mapped.folder == folder
    with pytest.raises(FileMissingError):
        Access(maps=(f"D:\\x={tmp_path / 'none'}",)).path_maps()
    for text in ("D:\\x", "=", "D:\\x=", f"x={tmp_path}"):
        with pytest.raises(click.UsageError):
            Access(maps=(text,)).path_maps()


def test_windows_patterns_match_files_and_brackets_match_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("disk1.vhdx", "disk[1].vhdx", "other.vhd"):
        (tmp_path / name).touch()

    assert expanded(["check", "*.vhdx"]) == ["check", "disk1.vhdx", "disk[1].vhdx"]
    assert expanded(["disk[1].vhdx", "~", "$HOME", "none*"]) == ["disk[1].vhdx", "~", "$HOME", "none*"]
    assert expanded(["disk[?].vhdx"]) == ["disk[1].vhdx"]
    assert expanded(["\\\\?\\C:\\*"]) == ["\\\\?\\C:\\*"]


def test_a_search_folder_must_be_there(tmp_path: Path) -> None:
    for name in ("none", "nul\0", "x" * 5000):
        with pytest.raises(FileMissingError, match="no such folder"):
            Access(search=(tmp_path / name,)).require_folders()

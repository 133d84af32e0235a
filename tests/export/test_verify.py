"""Verification and comparison: a single flipped bit is found, and named."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chain.fake import FakeImage, chain_of, fake_chains, truth
from tests.export.kit import CHUNK, MIB, HookedSource, a_disk, chain_over, open_raw, some_data
from vhdtool.errors import (
    CorruptError,
    FileMissingError,
    Finding,
    FormatError,
    Location,
    Severity,
    SourceChangedError,
)
from vhdtool.export.compare import Ranges, compare_contents
from vhdtool.export.copy import CancelledError, CancelToken
from vhdtool.export.create import create_image
from vhdtool.export.job import export_image
from vhdtool.export.verify import verify_against, verify_image
from vhdtool.model.geometry import Geometry
from vhdtool.model.state import BlockState
from vhdtool.source import MemorySource, Patch, PatchedSource

SIZE = 9 * MIB + 512


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """``disk.raw`` with its manifest: data in chunks 0, 2 and 4 (the short last one)."""
    data = {0: some_data(5000), 2 * CHUNK + 777: some_data(CHUNK, 2)[:-777], SIZE - 100: some_data(100, 3)}
    with open_raw(a_disk(tmp_path / "source.raw", SIZE, data)) as chain:
        export_image(chain, tmp_path / "disk.raw")
    return tmp_path / "disk.raw"


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_what_was_exported_verifies(exported: Path) -> None:
    report = verify_image(exported)

    assert report.ok
    assert report.exit_code == 0
    assert report.findings == ()
    if hasattr(os, "SEEK_DATA"):
        assert report.checked_bytes < SIZE
    assert pickle.loads(pickle.dumps(report)) == report


@pytest.mark.parametrize(
    "offset", [0, 4999, CHUNK - 1, CHUNK, 2 * CHUNK + 800, 3 * CHUNK, SIZE - 513, SIZE - 1]
)
def test_a_flipped_bit_is_found_and_its_chunk_named(exported: Path, offset: int) -> None:
    flip(exported, offset)

    report = verify_image(exported)

    chunk = offset // CHUNK
    assert report.exit_code == 1
    assert report.bad_ranges == ((chunk * CHUNK, min(CHUNK, SIZE - chunk * CHUNK)),)
    assert report.bad_count == 1
    (finding,) = report.findings
    assert finding.code == "verify.chunk"
    assert f"{chunk * CHUNK:#x}" in str(finding)


def test_several_bad_chunks_are_joined_to_ranges(exported: Path) -> None:
    for offset in (0, CHUNK, 3 * CHUNK):
        flip(exported, offset)

    report = verify_image(exported)

    assert report.bad_ranges == ((0, 2 * CHUNK), (3 * CHUNK, CHUNK))
    assert report.bad_bytes == 3 * CHUNK


@pytest.mark.parametrize("size", [0, 100, CHUNK, CHUNK + 512, SIZE - 512])
def test_a_target_that_was_cut_is_found(exported: Path, size: int) -> None:
    with exported.open("r+b") as file:
        file.truncate(size)

    report = verify_image(exported, progress=lambda state: None)

    assert report.exit_code == 1
    assert (report.size_found, report.size_expected) == (size, SIZE)
    start, length = report.bad_ranges[-1]
    assert start <= size
    assert start + length == SIZE
    assert next(finding.code for finding in report.findings) == "verify.size"


def test_a_target_that_grew_is_found(exported: Path) -> None:
    with exported.open("ab") as file:
        file.write(bytes(512))

    report = verify_image(exported)

    assert report.exit_code == 1
    assert report.bad_ranges == ()


def test_a_manifest_elsewhere_can_be_named(exported: Path, tmp_path: Path) -> None:
    beside = tmp_path / "disk.raw.manifest.json"
    elsewhere = beside.rename(tmp_path / "elsewhere.json")

    with pytest.raises(FileMissingError, match=r"manifest\.json"):
        verify_image(exported)
    assert verify_image(exported, elsewhere).ok


def test_a_missing_target_is_said_before_its_manifest(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match=r"disk\.raw$"):
        verify_image(tmp_path / "disk.raw")


def test_a_forged_manifest_is_exit_65(exported: Path) -> None:
    manifest = Path(f"{exported}.manifest.json")
    manifest.write_text(manifest.read_text().replace('"zero"', f'"{"0" * 64}"', 1))

    with pytest.raises(FormatError) as caught:
        verify_image(exported)

    assert caught.value.exit_code == 65


def test_an_unknown_target_format_is_exit_69(exported: Path) -> None:
    manifest = Path(f"{exported}.manifest.json")
    document = json.loads(manifest.read_text())
    document["target"]["format"] = "qcow2\x1b[2J"
    manifest.write_text(json.dumps(document))

    with pytest.raises(FormatError) as caught:
        verify_image(exported)

    assert caught.value.exit_code == 69
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("image_format", ["vhd", "vhdx"])
def test_an_image_with_a_format_verifies_by_its_content(
    exported: Path, tmp_path: Path, image_format: str
) -> None:
    image = tmp_path / f"disk.{image_format}"
    create_image(image, source=exported)
    manifest = Path(f"{exported}.manifest.json")
    document = json.loads(manifest.read_text())
    document["target"]["format"] = image_format
    Path(f"{image}.manifest.json").write_text(json.dumps(document))

    assert verify_image(image).ok


def test_a_raw_disk_that_looks_like_an_image_is_verified_as_the_bytes_that_it_is(tmp_path: Path) -> None:
    with open_raw(a_disk(tmp_path / "a.raw", MIB, {0: b"vhdxfile" + some_data(1000)})) as chain:
        export_image(chain, tmp_path / "b.raw")

    assert verify_image(tmp_path / "b.raw").ok


def test_verification_can_be_stopped(exported: Path) -> None:
    token = CancelToken()
    token.cancel()

    with pytest.raises(CancelledError):
        verify_image(exported, cancel=token)


# ------------------------------------------------------------ against the chain, and compare


def test_a_target_equals_its_chain_until_a_bit_flips(exported: Path, tmp_path: Path) -> None:
    with open_raw(tmp_path / "source.raw") as chain:
        assert verify_against(exported, chain).equal
        assert verify_against(exported, chain, raw=True).equal
        flip(exported, 3 * CHUNK + 5)
        comparison = verify_against(exported, chain)

    assert comparison.exit_code == 1
    assert comparison.first_difference == 3 * CHUNK + 5
    assert comparison.ranges == ((3 * CHUNK, 512),)
    assert comparison.bytes == 512


@pytest.mark.parametrize("image_format", ["vhd", "vhdx"])
def test_an_image_of_any_format_is_compared_by_its_disk(
    exported: Path, tmp_path: Path, image_format: str
) -> None:
    image = tmp_path / f"disk.{image_format}"
    create_image(image, source=exported)

    with open_raw(exported) as chain:
        assert verify_against(image, chain).equal


def test_a_file_compared_with_itself_is_not_read(tmp_path: Path) -> None:
    path = a_disk(tmp_path / "a.raw")

    with open_raw(path) as a, open_raw(path) as b:
        comparison = compare_contents(a, b)

    assert comparison.equal
    assert comparison.read_bytes == 0


def test_a_log_over_the_same_file_makes_a_difference() -> None:
    below = MemorySource("a", bytes(MIB))
    patched = PatchedSource(below, [Patch(4096, 3, lambda skip, count: b"log"[skip : skip + count])], MIB)

    comparison = compare_contents(chain_over(below), chain_over(patched))

    assert comparison.first_difference == 4096
    assert comparison.ranges == ((4096, 512),)


def test_sizes_that_differ_are_a_difference_behind_the_shorter_end(tmp_path: Path) -> None:
    with (
        open_raw(a_disk(tmp_path / "a.raw", MIB, {})) as a,
        open_raw(a_disk(tmp_path / "b.raw", 2 * MIB, {})) as b,
    ):
        comparison = compare_contents(a, b)

    assert comparison.first_difference == MIB
    assert comparison.ranges == ((MIB, MIB),)
    assert (comparison.size_a, comparison.size_b) == (MIB, 2 * MIB)


@given(one=fake_chains(), two=fake_chains(), share=st.booleans())
def test_any_two_chains_compare_as_their_bytes_do(
    one: list[FakeImage], two: list[FakeImage], share: bool
) -> None:
    if share and one[0].geometry.sector_size == two[0].geometry.sector_size:
        two = [two[0], *one]
    a, b = truth(one), truth(two)

    comparison = compare_contents(chain_of(*one), chain_of(*two))

    common = min(len(a), len(b))
    differing = [i for i in range(common) if a[i] != b[i]]
    expected = differing[0] if differing else (None if len(a) == len(b) else common)
    assert comparison.first_difference == expected
    assert comparison.equal == (a == b)
    sectors = {i // 512 for i in differing} | set(range(common // 512, max(len(a), len(b)) // 512))
    found = [s for start, length in comparison.ranges for s in range(start // 512, (start + length) // 512)]
    assert found == sorted(sectors)
    assert comparison.bytes == 512 * len(sectors)
    stops = [start + length for start, length in comparison.ranges]
    assert all(stop < start for stop, (start, _) in zip(stops, comparison.ranges[1:]))


def test_a_damaged_chain_is_not_compared() -> None:
    geometry = Geometry(1024, 512)
    damaged = FakeImage(geometry, [BlockState.DATA, BlockState.DAMAGED], {})
    sound = FakeImage(geometry, [BlockState.DATA, BlockState.DATA], {}, seed=1)

    for a, b in ((damaged, sound), (sound, damaged)):
        with pytest.raises(CorruptError):
            compare_contents(chain_of(a), chain_of(b))


def test_an_unsound_chain_is_not_even_compared_with_itself() -> None:
    error = Finding("test.error", Severity.ERROR, Location("x"), "broken")
    unsound = FakeImage(Geometry(512, 512), [BlockState.DATA], {}, findings=(error,))

    with pytest.raises(CorruptError, match=r"test\.error"):
        compare_contents(chain_of(unsound), chain_of(unsound))


def test_a_file_that_changes_while_it_is_compared_is_exit_75(tmp_path: Path) -> None:
    path = a_disk(tmp_path / "a.raw", MIB, {0: some_data(1000)})
    other = a_disk(tmp_path / "b.raw", MIB, {0: some_data(1000)})

    def hook(reads: int, offset: int, length: int) -> None:
        flip(path, 5000)

    with (
        chain_over(HookedSource(path, hook)) as a,
        open_raw(other) as b,
        pytest.raises(SourceChangedError) as caught,
    ):
        compare_contents(a, b)

    assert caught.value.exit_code == 75


def test_ranges_are_joined_counted_and_bounded() -> None:
    ranges = Ranges(2)
    for start, length in ((0, 5), (5, 5), (8, 4), (20, 1), (30, 1), (31, 9), (50, 0)):
        ranges.add(start, length)

    assert ranges.kept == [(0, 12), (20, 1)]
    assert ranges.count == 3
    assert ranges.bytes == 23

"""Verification and comparison: a single flipped bit is found, and named."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chain.fake import FakeImage, chain_of, fake_chains, truth
from tests.export.kit import CHUNK, MIB, HookedSource, a_disk, chain_over, open_raw, some_data
from tests.export.proof import a_base_record, proved
from tests.export.test_manifest import resealed
from tests.generated import Style, a_base, a_chain, a_child
from vhdtool.errors import (
    CorruptError,
    FileMissingError,
    Finding,
    FormatError,
    Location,
    Severity,
    SourceChangedError,
    UnsupportedError,
    VhdtoolError,
)
from vhdtool.export.create import create_image
from vhdtool.export.job import export_image
from vhdtool.export.moving.progress import CancelledError, CancelToken
from vhdtool.export.proof.compare import compare_contents
from vhdtool.export.proof.comparison import Ranges
from vhdtool.export.proof.verify import verify_against, verify_image
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


def flip(path: Path, offset: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


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
    resealed(manifest, document)

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
    proved(image)

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


# ------------------------------------------------------------ all of the file, and nothing else


def an_image(folder: Path, image_format: str) -> Path:
    """A small dynamic image with its manifest."""
    style = {
        "vhd": Style("vhd", block_sizes=(4096,), size=24 * 1024, stale=True),
        "vhdx": Style("vhdx", block_sizes=(MIB,), size=3 * MIB),
    }[image_format]
    image = a_base(folder, style, np.random.default_rng(4)).path
    proved(image)
    return image


def require_found(image: Path, at: int, size: int) -> None:
    """That byte ``at`` of the file is not as it was is found, with a place that fits."""
    refusal: VhdtoolError | None = None
    try:
        report = verify_image(image)
    except VhdtoolError as error:
        refusal = error
    if refusal is not None:
        assert refusal.exit_code in (65, 69)
        assert refusal.finding is not None
        assert refusal.finding.location.file == str(image)
        return
    assert report.exit_code == 1, hex(at)
    codes = {finding.code for finding in report.findings}
    assert codes & {"verify.structure", "verify.chunk"}, hex(at)
    for finding in report.findings:
        if finding.code == "verify.structure":
            # A table entry that leads elsewhere makes other bytes guest data, in several places.
            in_table = "verify.chunk" in codes
            assert finding.location.offset == at // 4096 * 4096 or in_table


@pytest.mark.parametrize(("image_format", "step"), [("vhd", 53), ("vhdx", 16 * 1024 - 3)])
def test_a_flipped_bit_anywhere_in_an_image_is_found_and_its_place_told(
    tmp_path: Path, image_format: str, step: int
) -> None:
    image = an_image(tmp_path, image_format)
    assert verify_image(image).ok
    size = image.stat().st_size

    places = [*range(0, size, step), size - 1]
    for number, at in enumerate(places):
        flip(image, at, number % 8)
        require_found(image, at, size)
        flip(image, at, number % 8)
    assert verify_image(image).ok


@pytest.mark.slow
@pytest.mark.parametrize(("image_format", "step"), [("vhd", 1), ("vhdx", 1021)])
def test_a_flipped_bit_in_any_byte_of_an_image_is_found(tmp_path: Path, image_format: str, step: int) -> None:
    image = an_image(tmp_path, image_format)
    size = image.stat().st_size

    for at in range(0, size, step):
        flip(image, at, at % 8)
        require_found(image, at, size)
        flip(image, at, at % 8)


def test_every_bit_of_a_small_raw_disk_is_guarded(tmp_path: Path) -> None:
    with open_raw(a_disk(tmp_path / "a.raw", 1024, {100: b"data"})) as chain:
        export_image(chain, tmp_path / "b.raw", sync=False)

    for bit in range(0, 8192, 37):
        flip(tmp_path / "b.raw", bit // 8, bit % 8)
        assert verify_image(tmp_path / "b.raw").bad_ranges == ((0, 1024),)
        flip(tmp_path / "b.raw", bit // 8, bit % 8)


@pytest.mark.parametrize("image_format", ["vhd", "vhdx"])
def test_bytes_behind_an_images_end_are_found(tmp_path: Path, image_format: str) -> None:
    image = an_image(tmp_path, image_format)
    with image.open("ab") as file:
        file.write(bytes(4096))

    with suppress(FormatError):  # a VHD has lost its footer
        report = verify_image(image)
        assert report.exit_code == 1
        assert "verify.file_size" in {finding.code for finding in report.findings}


def test_an_image_of_another_identity_with_the_same_disk_is_found(tmp_path: Path) -> None:
    image = an_image(tmp_path, "vhdx")
    manifest = Path(f"{image}.manifest.json")
    document = json.loads(manifest.read_text())
    other = "00000000-0000-0000-0000-000000000001"
    for name, value in (
        ("write_id", other),
        ("disk_id", other),
        ("block_size", 2 * MIB),
        ("subformat", "fixed"),
        ("logical_sector_size", 4096),
        ("format", "vhd"),
    ):
        resealed(manifest, {**document, "target": {**document["target"], name: value}})

        report = verify_image(image)

        (finding,) = report.findings
        assert (finding.code, finding.location.field, finding.expected) == (
            "verify.identity",
            name,
            str(value),
        )
        assert report.exit_code == 1


def test_digests_of_the_whole_disk_are_compared(tmp_path: Path) -> None:
    image = an_image(tmp_path, "vhd")
    proved(image, digests=("md5", "sha256"))
    assert verify_image(image).ok
    manifest = Path(f"{image}.manifest.json")
    document = json.loads(manifest.read_text())
    document["content"]["digests"] = {"md5": "0" * 32, "whirlpool": "1"}
    resealed(manifest, document)

    report = verify_image(image)

    assert report.bad_digests == ("md5",)
    assert report.unchecked_digests == ("whirlpool",)


# ------------------------------------------------------------ increments


def an_increment(folder: Path, image_format: str) -> tuple[Path, Path]:
    """A base and a differencing child, which has a manifest."""
    child = a_chain(folder, 2, Style(image_format, size=5 * MIB), seed=3).path
    parent = next(folder.glob(f"base.{image_format}"))
    proved(child, base=a_base_record(parent))
    return parent, child


@pytest.mark.parametrize("image_format", ["vhd", "vhdx"])
def test_of_an_increment_only_its_own_bytes_are_read(tmp_path: Path, image_format: str) -> None:
    parent, child = an_increment(tmp_path, image_format)

    report = verify_image(child)

    assert report.ok, report.findings
    assert report.parent == str(parent)
    assert 0 < report.checked_bytes < child.stat().st_size
    size = child.stat().st_size
    for number, at in enumerate(range(0, size, size // 60 // 512 * 512 + 77)):
        flip(child, at, number % 8)
        require_found(child, at, size)
        flip(child, at, number % 8)


@pytest.mark.parametrize("image_format", ["vhd", "vhdx"])
def test_a_missing_parent_is_told_after_what_the_increment_itself_is(
    tmp_path: Path, image_format: str
) -> None:
    parent, child = an_increment(tmp_path, image_format)
    parent.unlink()

    report = verify_image(child)

    assert report.is_as_exported
    assert not report.ok
    assert report.exit_code == 66
    assert [finding.code for finding in report.findings] == ["chain.parent.missing"]
    with child.open("r+b") as file:
        file.seek(child.stat().st_size - 700)
        byte = file.read(1)
        file.seek(child.stat().st_size - 700)
        file.write(bytes([byte[0] ^ 1]))
    assert verify_image(child).exit_code == 1


def test_a_parent_in_another_folder_is_found_where_it_is_looked_for(tmp_path: Path) -> None:
    parent, child = an_increment(tmp_path, "vhdx")
    (tmp_path / "there").mkdir()
    parent.rename(tmp_path / "there" / parent.name)

    assert verify_image(child).exit_code == 66
    assert verify_image(child, search=[tmp_path / "there"]).ok


def test_another_parent_than_the_manifest_names_is_found(tmp_path: Path) -> None:
    parent, child = an_increment(tmp_path, "vhdx")
    other = a_base(tmp_path, Style("vhdx", size=5 * MIB), np.random.default_rng(9), "other")
    proved(child, base=a_base_record(other.path))

    report = verify_image(child)

    assert [finding.code for finding in report.findings] == ["verify.parent"]
    assert report.exit_code == 1
    assert report.parent == str(parent)


def test_a_grandparent_that_is_missing_is_exit_66_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    base = a_base(tmp_path, Style("vhdx", size=3 * MIB), rng)
    middle = a_child(base, rng, "middle")
    leaf = a_child(middle, rng, "leaf")
    proved(leaf.path, base=a_base_record(middle.path))
    assert verify_image(leaf.path).ok
    base.path.unlink()

    assert verify_image(leaf.path).exit_code == 66


# ------------------------------------------------------------ samples


def many_chunks(folder: Path, count: int = 40) -> Path:
    """A raw disk whose every second chunk has data, with its manifest."""
    data = {2 * i * CHUNK: some_data(2000, i) for i in range(count)}
    with open_raw(a_disk(folder / "source.raw", 2 * count * CHUNK, data)) as chain:
        export_image(chain, folder / "disk.raw", sync=False)
    return folder / "disk.raw"


def test_a_sample_says_how_much_it_saw_and_chooses_the_same_again(tmp_path: Path) -> None:
    disk = many_chunks(tmp_path)

    report = verify_image(disk, sample=10, seed=5)

    assert report.ok
    assert report.sample is not None
    assert (report.sample.chunks, report.sample.of, report.sample.seed) == (4, 40, 5)
    assert verify_image(disk, sample=10, seed=5) == report
    assert verify_image(disk, sample=10).sample is not None
    assert verify_image(disk, sample=0.001).sample.chunks == 1  # type: ignore[union-attr]
    assert verify_image(disk, sample=100).sample.chunks == 40  # type: ignore[union-attr]


def test_a_sample_finds_what_it_reads_and_does_not_claim_the_rest(tmp_path: Path) -> None:
    disk = many_chunks(tmp_path)
    flip(disk, 20 * CHUNK + 100)

    assert verify_image(disk, sample=100).bad_ranges == ((20 * CHUNK, CHUNK),)
    found = [verify_image(disk, sample=25, seed=seed).exit_code for seed in range(40)]
    assert 0 < sum(found) < 40


def test_a_sample_compares_headers_and_tables_all_the_same(tmp_path: Path) -> None:
    image = an_image(tmp_path, "vhdx")
    flip(image, 0x30000 - 1)

    report = verify_image(image, sample=1, seed=1)

    assert [finding.code for finding in report.findings] == ["verify.structure"]
    assert report.structure_checked


def test_a_sample_of_a_cut_disk_or_of_one_of_zeros_ends_well(tmp_path: Path) -> None:
    disk = many_chunks(tmp_path)
    with disk.open("r+b") as file:
        file.truncate(21 * CHUNK)
    report = verify_image(disk, sample=100)
    assert report.bad_ranges[0] == (22 * CHUNK, CHUNK)
    assert report.exit_code == 1

    with open_raw(a_disk(tmp_path / "zeros.raw", 3 * CHUNK, {})) as chain:
        export_image(chain, tmp_path / "z.raw", sync=False)
    report = verify_image(tmp_path / "z.raw", sample=50)
    assert report.ok
    assert (report.sample.chunks, report.sample.of) == (0, 0)  # type: ignore[union-attr]


@pytest.mark.parametrize("sample", [0, -1, 100.1, float("nan")])
def test_a_sample_of_nothing_is_a_mistake(exported: Path, sample: float) -> None:
    with pytest.raises(ValueError, match="sample"):
        verify_image(exported, sample=sample)


# ------------------------------------------------------------ signatures


def test_a_signed_manifest_is_checked_with_the_key_that_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="the extra 'sign' is not installed")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from vhdtool.export.proof.seal import Signer

    mine, other = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2))
    for name, key in (("mine", mine), ("other", other)):
        (tmp_path / name).write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
    image = an_image(tmp_path, "vhd")
    with pytest.raises(FormatError, match=r"manifest\.signature"):
        verify_image(image, key=tmp_path / "mine")
    proved(image, signer=Signer(mine))

    assert "not checked against a key of yours" in verify_image(image).signature
    report = verify_image(image, key=tmp_path / "mine")
    assert report.signer == mine.public_key().public_bytes_raw().hex()
    assert "that was asked for" in report.signature
    with pytest.raises(FormatError, match=r"manifest\.signature") as caught:
        verify_image(image, key=tmp_path / "other")
    assert caught.value.exit_code == 65


# ------------------------------------------------------------ other containers


def test_an_e01_is_read_by_the_program_that_wrote_it(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vhdtool.export.containers import ewf

    data = exported.read_bytes()
    manifest = Path(f"{exported}.manifest.json")
    document = json.loads(manifest.read_text())
    document["target"]["format"] = "e01"
    resealed(manifest, document)

    class Stream:
        """Gives the disk in odd pieces."""

        findings: tuple[Finding, ...] = ()
        size = 0
        content = data

        def __enter__(self) -> Stream:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def __iter__(self) -> Iterator[bytes]:
            for at in range(0, len(self.content), 99_991):
                self.size += len(self.content[at : at + 99_991])
                yield self.content[at : at + 99_991]

    monkeypatch.setattr(ewf, "read_stream", lambda path, check: Stream())
    assert verify_image(exported).ok
    assert verify_image(exported).checked_bytes == SIZE
    with pytest.raises(UnsupportedError, match=r"verify\.sample"):
        verify_image(exported, sample=5)

    monkeypatch.setattr(Stream, "content", data[:CHUNK] + b"x" + data[CHUNK + 1 :])
    assert verify_image(exported).bad_ranges == ((CHUNK, CHUNK),)
    monkeypatch.setattr(Stream, "content", data[: SIZE - 512])
    assert verify_image(exported).size_found == SIZE - 512
    monkeypatch.setattr(Stream, "content", data + bytes(MIB))
    report = verify_image(exported)
    assert (report.size_found, report.bad_count) == (SIZE + MIB, 0)
    damaged = Finding("ewf.damaged", Severity.ERROR, Location("x"), "damaged")
    monkeypatch.setattr(Stream, "findings", (damaged,))
    assert damaged in verify_image(exported).findings


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


@pytest.mark.parametrize("size", [4 * MIB, 5 * MIB + 512])
def test_zeros_that_a_manifest_spells_out_are_zeros_in_a_short_chunk_too(size: int, tmp_path: Path) -> None:
    source = tmp_path / "disk.raw"
    source.write_bytes(some_data(2 * MIB).ljust(size, b"\0"))
    export_image(source, tmp_path / "disk.img", zero_detect=False)

    assert verify_image(tmp_path / "disk.img").ok

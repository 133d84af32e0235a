"""E01 through ewf-tools: whole or not at all, and read back as it was given."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.export.kit import MIB, names_in, some_data
from vhdtool.errors import (
    ExportError,
    FileMissingError,
    MissingPackageError,
    ReadError,
    TargetError,
    TargetExistsError,
)
from vhdtool.export.containers.ewf import EwfSource, EwfTarget, _chunk_sectors, read_stream, segment_suffixes
from vhdtool.export.moving.progress import CancelledError
from vhdtool.source import FileSource, files_of

needs_ewf = pytest.mark.skipif(
    not all(shutil.which(name) for name in ("ewfacquirestream", "ewfexport", "ewfinfo")),
    reason="ewf-tools are not installed",
)
posix = pytest.mark.skipif(os.name != "posix", reason="a stand-in for a program is a shell script")


def md5_of(disk: bytes) -> str:
    return hashlib.md5(disk, usedforsecurity=False).hexdigest()


def acquire(path: Path, disk: bytes, pieces: int = 100_003, **options: Any) -> EwfTarget:
    """The whole way, data only: zeros at the end are left to ``finish``."""
    with EwfTarget(path, size=len(disk), sync=False, **options) as target:
        data = disk.rstrip(b"\0")
        for at in range(0, len(data), pieces):
            target.write_at(at, data[at : at + pieces])
        target.finish(len(disk))
        target.require_digests({"md5": md5_of(disk), "blake3": "not known there"})
        target.publish()
    return target


def read(path: Path) -> bytes:
    with read_stream(path) as stream:
        return b"".join(stream)


def a_disk(size: int, seed: int = 1) -> bytes:
    """Data, zeros, data, zeros."""
    disk = bytearray(size)
    half = size // 2
    disk[: size // 5] = some_data(size // 5, seed)
    disk[half : half + size // 7] = some_data(size // 7, seed + 1)
    return bytes(disk)


@contextmanager
def stand_in(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A shell script under the name of a program."""
    programs = folder / "programs"
    programs.mkdir()
    path = programs / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    yield path


# ------------------------------------------------------------------ written and read back


@needs_ewf
@pytest.mark.parametrize("size", [512, 1024, 32 << 10, (32 << 10) + 512, 3 * MIB + 5 * 512, 5 * MIB])
def test_what_is_written_reads_back_whatever_the_size(tmp_path: Path, size: int) -> None:
    disk = a_disk(size)

    target = acquire(tmp_path / "disk.E01", disk)

    assert read(tmp_path / "disk.E01") == disk
    assert target.digests["md5"] == md5_of(disk)
    assert target.digests["sha1"] == hashlib.sha1(disk, usedforsecurity=False).hexdigest()
    assert names_in(tmp_path) == {"disk.E01"}
    assert target.size == (tmp_path / "disk.E01").stat().st_size


@needs_ewf
@pytest.mark.parametrize("compression", ["none", "empty-block", "fast", "best"])
def test_every_compression_holds_the_same_disk(tmp_path: Path, compression: str) -> None:
    disk = a_disk(3 * MIB + 512)

    acquire(tmp_path / "disk.E01", disk, compression=compression)

    assert read(tmp_path / "disk.E01") == disk


@needs_ewf
def test_pieces_of_any_length_are_taken(tmp_path: Path) -> None:
    disk = some_data(MIB + 512)
    chance = random.Random(4)
    with EwfTarget(tmp_path / "disk.E01", size=len(disk), sync=False) as target:
        at = 0
        while at < len(disk):
            count = chance.choice([1, 511, 4096, 70_000])
            target.write_at(at, disk[at : at + count])
            at += count
        target.finish(len(disk))

        target.require_digests({"md5": md5_of(disk)})


@needs_ewf
def test_sectors_of_4096_bytes_are_recorded(tmp_path: Path) -> None:
    disk = a_disk(40 * 4096)

    acquire(tmp_path / "disk.E01", disk, sector_size=4096)

    said = subprocess.run(["ewfinfo", "-m", tmp_path / "disk.E01"], capture_output=True, text=True).stdout
    assert "4096" in said.split("Bytes per sector:")[1].split("\n")[0]
    assert read(tmp_path / "disk.E01") == disk


@needs_ewf
def test_the_image_is_cut_into_segments(tmp_path: Path) -> None:
    disk = some_data(5 * MIB)

    target = acquire(tmp_path / "disk", disk, segment_size=MIB)

    names = [f"disk.E{number:02}" for number in range(1, len(target.segments) + 1)]
    assert [path.name for path in target.segments] == names
    assert names_in(tmp_path) == set(names)
    assert len(names) >= 5
    assert read(target.path) == disk


@needs_ewf
def test_case_fields_stand_in_the_header_as_they_were_given(tmp_path: Path) -> None:
    case = {"case": "2026/7 Jürgen 案", "evidence": "-n", "examiner": "A. N. Other", "note": "two  spaces"}

    acquire(tmp_path / "disk.E01", bytes(512), case=case)

    said = subprocess.run(
        ["ewfinfo", tmp_path / "disk.E01"],
        capture_output=True,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    ).stdout.decode()
    for value in case.values():
        assert f"\t{value}\n" in said
    assert "description" not in said


@pytest.mark.parametrize("value", ["a\tb", "a\nb", "\0", "\ud800"])
@needs_ewf
def test_a_case_field_that_its_header_does_not_hold_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(TargetError, match="'note'"):
        EwfTarget(tmp_path / "disk.E01", size=512, case={"note": value})

    assert names_in(tmp_path) == set()


@needs_ewf
def test_permissions_are_no_wider_than_the_inputs(tmp_path: Path) -> None:
    acquire(tmp_path / "disk.E01", bytes(512), mode=0o600)

    assert stat.S_IMODE((tmp_path / "disk.E01").stat().st_mode) == 0o600


# ------------------------------------------------------------------ names


@needs_ewf
def test_nothing_that_stands_there_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk.E01").write_bytes(b"mine")

    with pytest.raises(TargetExistsError):
        EwfTarget(tmp_path / "disk.E01", size=512)

    assert (tmp_path / "disk.E01").read_bytes() == b"mine"
    assert names_in(tmp_path) == {"disk.E01"}


@needs_ewf
def test_a_second_segment_of_another_image_is_in_the_way_too(tmp_path: Path) -> None:
    (tmp_path / "disk.E02").write_bytes(b"EVF\x09\r\n\xff\0")

    with pytest.raises(TargetExistsError, match=r"disk\.E02"):
        EwfTarget(tmp_path / "disk.E01", size=512)


@needs_ewf
def test_a_name_that_is_taken_meanwhile_is_left_alone(tmp_path: Path) -> None:
    disk = some_data(3 * MIB)
    target = EwfTarget(tmp_path / "disk.E01", size=len(disk), segment_size=MIB, sync=False)
    with target:
        target.write_at(0, disk)
        target.finish(len(disk))
        target.require_digests({"md5": md5_of(disk)})
        (tmp_path / "disk.E02").write_bytes(b"mine")
        with pytest.raises(TargetExistsError):
            target.publish()

    assert names_in(tmp_path) == {"disk.E02"}
    assert (tmp_path / "disk.E02").read_bytes() == b"mine"


@needs_ewf
def test_force_replaces_an_image_with_all_its_segments(tmp_path: Path) -> None:
    acquire(tmp_path / "disk.E01", some_data(5 * MIB), segment_size=MIB)
    (tmp_path / "disk.EXE").write_bytes(b"EVF\x09\r\n\xff\0 is not next to the others")
    disk = some_data(2 * MIB, 7)

    acquire(tmp_path / "disk.E01", disk, segment_size=MIB, force=True)

    assert read(tmp_path / "disk.E01") == disk
    assert names_in(tmp_path) == {"disk.E01", "disk.E02", "disk.E03", "disk.EXE"}


@needs_ewf
def test_an_input_is_never_the_target(tmp_path: Path) -> None:
    (tmp_path / "disk.E01").write_bytes(b"precious")

    with pytest.raises(TargetError, match="input"):
        EwfTarget(tmp_path / "disk.E01", size=512, force=True, inputs=[tmp_path / "disk.E01"])


def test_suffixes_go_from_e01_to_zzz() -> None:
    suffixes = list(segment_suffixes())

    assert suffixes[:2] == [".E01", ".E02"]
    assert suffixes[98:101] == [".E99", ".EAA", ".EAB"]
    assert suffixes[-1] == ".ZZZ"
    assert len(set(suffixes)) == len(suffixes) == 14_971


@pytest.mark.parametrize(
    ("size", "sector_size"), list(itertools.product([512, 2 << 40, 64 << 40], [512, 4096]))
)
def test_chunks_of_huge_disks_are_larger(size: int, sector_size: int) -> None:
    sectors = _chunk_sectors(size, sector_size)

    assert sectors in [1 << bits for bits in range(4, 16)]
    assert size // (sectors * sector_size) <= 1 << 22
    assert size > 1 << 30 or 32 << 10 <= sectors * sector_size <= 64 << 10


# ------------------------------------------------------------------ what goes wrong


@needs_ewf
def test_a_target_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    with EwfTarget(tmp_path / "disk.E01", size=MIB) as target:
        target.write_at(0, b"x" * 5000)
        assert len(names_in(tmp_path)) == 1

    assert names_in(tmp_path) == set()


@needs_ewf
def test_other_digests_than_the_programs_are_refused(tmp_path: Path) -> None:
    with EwfTarget(tmp_path / "disk.E01", size=MIB, sync=False) as target:
        target.finish(MIB)
        with pytest.raises(ExportError, match="md5"):
            target.require_digests({"md5": md5_of(b"other bytes")})
        with pytest.raises(ValueError, match="require_digests"):
            target.publish()

    assert names_in(tmp_path) == set()


def test_a_program_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(MissingPackageError, match="ewf-tools"):
        EwfTarget(tmp_path / "disk.E01", size=512)
    with pytest.raises(MissingPackageError, match="ewf-tools"), FileSource(__file__) as file:
        EwfSource(file)


@posix
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("head -c 100000 >/dev/null; echo 'No space left on device.' >&2; exit 1", "No space left"),
        ("exit 3", "status 3"),
        ("cat >/dev/null; echo 'at the very end' >&2; exit 1", "at the very end"),
        ("cat >/dev/null", "no whole image"),
        ("cat >/dev/null; echo 'MD5 hash calculated over data: 00'", "no whole image"),
        ("kill -9 $$", "status -9"),
    ],
)
def test_a_program_that_gives_up_is_quoted_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    with (
        stand_in(tmp_path, "ewfacquirestream", script, monkeypatch),
        pytest.raises(ExportError, match=words),
    ):
        acquire(tmp_path / "disk.E01", b"x" * (2 * MIB) + bytes(2 * MIB))

    assert names_in(tmp_path) == {"programs"}


@posix
def test_a_program_that_neither_reads_nor_ends_is_ended_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise CancelledError("stopped on request")

    with (
        stand_in(tmp_path, "ewfacquirestream", "exec sleep 600", monkeypatch),
        EwfTarget(tmp_path / "disk.E01", size=4 * MIB, check=check) as target,
    ):
        process = target._child._process
        with pytest.raises(CancelledError):
            target.write_at(0, b"x" * (4 * MIB))

    assert process.poll() is not None
    assert names_in(tmp_path) == {"programs"}


@posix
def test_a_program_that_does_not_end_is_ended_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = time.monotonic()

    def check() -> None:
        if time.monotonic() > begun + 0.5:
            raise CancelledError("stopped on request")

    with (
        stand_in(tmp_path, "ewfacquirestream", "cat >/dev/null; exec sleep 600", monkeypatch),
        EwfTarget(tmp_path / "disk.E01", size=512, check=check) as target,
        pytest.raises(CancelledError),
    ):
        target.finish(512)

    assert names_in(tmp_path) == {"programs"}


# ------------------------------------------------------------------ reading back


@needs_ewf
def test_any_part_is_read_by_position(tmp_path: Path) -> None:
    disk = a_disk(2 * MIB + 512)
    acquire(tmp_path / "disk.E01", disk)
    file = FileSource(tmp_path / "disk.E01")

    with EwfSource(file) as source:
        assert source.size == len(disk)
        assert files_of(source) == [file]
        for start, length in [(0, 512), (512, 100_000), (MIB, 5), (100, 2 * MIB), (len(disk) - 1, 1), (7, 0)]:
            assert source.read_exact(start, length, field="payload") == disk[start : start + length]
        assert source.findings == ()


@needs_ewf
def test_a_damaged_place_is_told_of_and_the_rest_is_read(tmp_path: Path) -> None:
    disk = some_data(4 * MIB)
    acquire(tmp_path / "disk.E01", disk, segment_size=MIB)
    with (tmp_path / "disk.E03").open("r+b") as file:
        file.seek(500_000)
        byte = file.read(1)[0]
        file.seek(500_000)
        file.write(bytes([byte ^ 1]))

    with read_stream(tmp_path / "disk.E01") as stream:
        found = b"".join(stream)
        findings = stream.findings

    assert len(found) == stream.size == len(disk)
    assert found[:MIB] == disk[:MIB]
    assert found[-MIB // 2 :] == disk[-MIB // 2 :]
    assert found != disk
    assert [finding.code for finding in findings] == ["ewf.damaged"]


@needs_ewf
def test_a_missing_segment_is_told_of(tmp_path: Path) -> None:
    acquire(tmp_path / "disk.E01", some_data(4 * MIB), segment_size=MIB)
    (tmp_path / "disk.E03").unlink()

    with read_stream(tmp_path / "disk.E01") as stream:
        for _ in stream:
            pass
        assert [finding.code for finding in stream.findings] == ["ewf.damaged"]


@needs_ewf
def test_what_is_no_e01_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "disk.E01"
    path.write_bytes(b"no such thing" * 1000)

    with pytest.raises(ReadError, match="ewfinfo gave up"):
        read_stream(path)
    with pytest.raises(FileMissingError):
        read_stream(tmp_path / "other.E01")


@needs_ewf
def test_reading_can_be_stopped_half_way(tmp_path: Path) -> None:
    acquire(tmp_path / "disk.E01", some_data(8 * MIB))

    with read_stream(tmp_path / "disk.E01") as stream:
        next(iter(stream))
        child = stream._source._child
        assert child is not None

    assert child._process.poll() is not None


@posix
def test_a_reader_that_dies_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk.E01"
    path.write_bytes(b"x")
    with stand_in(tmp_path, "ewfinfo", "echo 'Media size: 1 MiB (1048576 bytes)'", monkeypatch) as info:
        (info.parent / "ewfexport").write_text("#!/bin/sh\nhead -c 1000 /dev/zero\necho broken >&2\n")
        (info.parent / "ewfexport").chmod(0o755)

        with read_stream(path) as stream, pytest.raises(ReadError, match="broken"):
            list(stream)

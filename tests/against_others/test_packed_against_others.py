"""Compressed targets and other programs: zstd, and libewf's ewf-tools; skipped where a program is missing.

What we write, they read.  What zstd writes by itself has no seek table, and is refused as a raw disk.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli import helpers as vhdtool
from tests.export.kit import MIB, a_disk
from vhdtool.export.containers.container import RawContainer
from vhdtool.export.containers.ewf import EwfTarget
from vhdtool.export.containers.target import TargetFile
from vhdtool.export.containers.zstd import GROUP_SIZE, ZstdContainer
from vhdtool.export.moving.copy import Mover
from vhdtool.export.moving.progress import Reporter
from vhdtool.model.state import Run
from vhdtool.source import FileSource

SIZE = 3 * GROUP_SIZE + 5 * MIB + 512


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here")
    return found


def run(*command: str | Path) -> bytes:
    done = subprocess.run([*map(str, command)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return a_disk(tmp_path / "disk.raw", SIZE)


@pytest.fixture
def packed(disk: Path, tmp_path: Path) -> Path:
    pytest.importorskip("zstandard", reason="the package zstandard is not installed")
    path = tmp_path / "disk.raw.zst"
    with FileSource(disk) as source, TargetFile(path, sync=False) as target:
        with closing(ZstdContainer(target, SIZE, folder=tmp_path)) as container:
            Mover([source], container, reporter=Reporter("copy", SIZE)).run([[Run(0, SIZE, 0, 0)]])
            target.finish(container.finish())
        target.publish()
    return path


def test_zstd_tests_and_decompresses_what_we_write(disk: Path, packed: Path) -> None:
    zstd = program("zstd")

    run(zstd, "-t", packed)

    assert run(zstd, "-dc", packed) == disk.read_bytes()


def test_zstd_lists_the_frames_and_the_table(packed: Path) -> None:
    listed = run(program("zstd"), "-lv", packed).decode()

    assert re.search(r"Zstandard Frames: \d+", listed)
    assert re.search(r"Skippable Frames: 1\b", listed)
    assert f"({SIZE} B)" in listed
    assert "XXH64" in listed


def test_zstd_needs_no_more_memory_than_a_chunk_takes(packed: Path) -> None:
    """Windows of 2 MiB: what small machines and other programs allow by default."""
    run(program("zstd"), "-t", "-M4MB", packed)


def test_what_zstd_alone_compressed_has_no_table_and_is_refused(disk: Path, tmp_path: Path) -> None:
    pytest.importorskip("zstandard", reason="the package zstandard is not installed")
    plain = tmp_path / "plain.raw.zst"
    run(program("zstd"), "-q", disk, "-o", plain)

    for command in (["info"], ["map"], ["read", "--offset", "0", "--length", "512"]):
        refused = vhdtool.run(*command[:1], plain, *command[1:], code=69)
        assert "zstd.table.missing" in refused.stderr
        assert "zstd -d" in refused.stderr


def test_a_packed_disk_is_read_wherever_a_raw_one_is(disk: Path, packed: Path, tmp_path: Path) -> None:
    info = vhdtool.run_json("info", packed)
    assert (info["format"], info["virtual_size"]) == ("raw", SIZE)
    assert info["file_size"] == packed.stat().st_size < SIZE

    assert vhdtool.run_json("compare", packed, disk)["equal"]
    assert vhdtool.run_json("map", packed)[-1]["length"] > 0
    vhdtool.run("check", "--deep", packed)

    out = tmp_path / "out.raw"
    vhdtool.run("export", packed, out)
    assert out.read_bytes() == disk.read_bytes()
    vhdtool.run("verify", out, "--against", packed)

    made = tmp_path / "made.vhdx"
    vhdtool.run("create", made, "--from", packed)
    assert vhdtool.run_json("compare", made, disk)["equal"]

    piece = tmp_path / "piece"
    vhdtool.run("read", packed, "--offset", 3 * MIB, "--length", MIB, "-o", piece)
    assert piece.read_bytes() == disk.read_bytes()[3 * MIB : 4 * MIB]


def test_a_packed_disk_can_be_the_target_of_itself_never(packed: Path) -> None:
    before = packed.read_bytes()

    vhdtool.run("export", packed, packed, "--force", code=73)

    assert packed.read_bytes() == before


def test_ewf_tools_verify_and_read_what_they_wrote_for_us(disk: Path, tmp_path: Path) -> None:
    for name in ("ewfacquirestream", "ewfverify", "ewfexport"):
        program(name)
    path = tmp_path / "disk.E01"
    data = disk.read_bytes()
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    with FileSource(disk) as source, EwfTarget(path, size=SIZE, sync=False, segment_size=MIB) as target:
        Mover([source], RawContainer(target, SIZE), reporter=Reporter("copy", SIZE)).run(
            [[Run(0, SIZE, 0, 0)]]
        )
        target.finish(SIZE)
        target.require_digests({"md5": md5})
        target.publish()

    said = run("ewfverify", "-q", "-d", "sha1", path).decode()
    exported = run("ewfexport", "-q", "-u", "-f", "raw", "-t", "-", path)

    assert said.count(md5) == 2
    assert said.count(hashlib.sha1(data, usedforsecurity=False).hexdigest()) >= 2
    assert "SUCCESS" in said
    assert exported[:SIZE] == data

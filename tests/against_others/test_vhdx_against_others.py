"""VHDX images that we write, read by other programs; skipped where a program is missing.

``VHDTOOL_ORACLE_PYTHON`` may name a Python interpreter that has pyvhdi (libvhdi); it runs as a program of its
own.  7-Zip 26.02 refuses disks of an odd number of sectors, so these here have an even one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from vhdtool.formats.vhdx.write import ParentRecord, VhdxWriter
from vhdtool.model.identity import DiskType, Identity

MIB = 1 << 20
DISK = Identity.of_uuid(UUID("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"))
BASE = Identity.of_uuid(UUID("83ed0ec3-24c8-49a6-a959-5e4bf1288bfb"))
CHILD = Identity.of_uuid(UUID("7c0ffee0-24c8-49a6-a959-5e4bf1288bfb"))

PYVHDI = """
import hashlib, sys, pyvhdi
layers = []
for path in sys.argv[1:]:
    layer = pyvhdi.file()
    layer.open(path)
    if layers:
        layers[-1].set_parent(layer)
    layers.append(layer)
digest, left = hashlib.sha256(), layers[0].get_media_size()
while left:
    data = layers[0].read_buffer(min(left, 1 << 20))
    digest.update(data)
    left -= len(data)
print(digest.hexdigest())
"""


class FileSink:
    """A file to be written by position."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self.file.seek(offset)
        self.file.write(data)

    def finish(self, size: int) -> None:
        self.file.truncate(size)
        self.file.close()


def tool(*names: str) -> str:
    for name in names:
        if shutil.which(name):
            return name
    pytest.skip(f"{names[0]} is not installed")


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, (command, done.stdout[-500:], done.stderr[-500:])
    return done.stdout.decode(errors="replace")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pyvhdi_sha256(*paths: Path) -> str:
    interpreter = os.environ.get("VHDTOOL_ORACLE_PYTHON")
    if not interpreter:
        pytest.skip("VHDTOOL_ORACLE_PYTHON names no interpreter with pyvhdi")
    return run(interpreter, "-c", PYVHDI, *map(str, paths)).strip()


def content(size: int, block_size: int, seed: int) -> dict[int, bytes]:
    """Blocks of a disk: every second one, its bytes telling sector and block apart."""
    blocks = {}
    for block in range(0, -(-size // block_size), 2):
        length = min(block_size, size - block * block_size)
        pattern = b"".join(
            bytes([seed, block & 255, i & 255, i >> 8]) * 128 for i in range(min(512, length // 512))
        )
        blocks[block] = (pattern * (length // len(pattern) + 1))[:length]
    return blocks


def flat(size: int, block_size: int, blocks: dict[int, bytes]) -> bytearray:
    disk = bytearray(size)
    for block, data in blocks.items():
        disk[block * block_size : block * block_size + len(data)] = data
    return disk


def written(path: Path, blocks: dict[int, bytes], **options: Any) -> Path:
    sink = FileSink(path)
    writer = VhdxWriter(sink, **({"disk_id": DISK, "write_id": BASE} | options))
    for block in sorted(blocks, reverse=True):
        writer.write_block(block, blocks[block])
    sink.finish(writer.finish())
    return path


SHAPES = [
    pytest.param({"virtual_size": 9 * MIB + 1024, "block_size": MIB}, id="small-blocks-odd-size"),
    pytest.param({"virtual_size": 96 * MIB, "block_size": 32 * MIB}, id="usual-blocks"),
    pytest.param({"virtual_size": 10 * MIB, "block_size": 256 * MIB}, id="one-block-larger-than-the-disk"),
    pytest.param({"virtual_size": 9 * MIB, "block_size": 2 * MIB, "disk_type": DiskType.FIXED}, id="fixed"),
]


def a_single(tmp_path: Path, shape: dict[str, Any]) -> tuple[Path, str]:
    """An image of ``shape`` and the digest of its disk."""
    size, block_size = shape["virtual_size"], shape["block_size"]
    blocks = content(size, block_size, 0x50)
    path = written(tmp_path / "disk.vhdx", blocks, **shape)
    return path, hashlib.sha256(flat(size, block_size, blocks)).hexdigest()


def test_qemu_finds_blocks_behind_the_first_chunk(tmp_path: Path) -> None:
    qemu = tool("qemu-img")
    blocks = {b: bytes([b + 1]) * 4096 for b in (0, 2, 127, 128, 129)}
    path = written(tmp_path / "disk.vhdx", blocks, virtual_size=4200 * MIB, block_size=32 * MIB)

    assert "No errors" in run(qemu, "check", "-f", "vhdx", str(path))
    for block, data in blocks.items():
        place = f"skip={block * 32 * MIB // 4096}"
        out = tmp_path / f"{block}.raw"
        run(
            qemu,
            "dd",
            "-f",
            "vhdx",
            "-O",
            "raw",
            "bs=4096",
            f"count={block * 8192 + 1}",
            place,
            f"if={path}",
            f"of={out}",
        )
        assert out.read_bytes() == data


@pytest.mark.parametrize("shape", SHAPES)
def test_qemu_finds_no_errors_and_reads_the_same(tmp_path: Path, shape: dict[str, Any]) -> None:
    qemu = tool("qemu-img")
    path, expected = a_single(tmp_path, shape)

    assert "No errors" in run(qemu, "check", "-f", "vhdx", str(path))
    run(qemu, "convert", "-f", "vhdx", "-O", "raw", str(path), str(tmp_path / "disk.raw"))
    assert sha256_of(tmp_path / "disk.raw") == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_7zip_reads_the_same(tmp_path: Path, shape: dict[str, Any]) -> None:
    seven = tool("7zz", "7z")
    path, expected = a_single(tmp_path, shape)

    target = tmp_path / "disk.raw"
    with target.open("wb") as sink:
        subprocess.run(
            [seven, "e", "-so", "-tvhdx", str(path)], stdout=sink, check=True, stderr=subprocess.PIPE
        )
    assert sha256_of(target) == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_libvhdi_reads_the_same(tmp_path: Path, shape: dict[str, Any]) -> None:
    path, expected = a_single(tmp_path, shape)

    assert pyvhdi_sha256(path) == expected


def a_pair(tmp_path: Path, sector: int) -> tuple[Path, Path, str]:
    """A child over a parent: partial, absent and full blocks; and the digest of what the child reads."""
    size, block_size = 9 * MIB + 2 * sector, 2 * MIB
    below = {b: data for b, data in enumerate(content(2 * size, block_size, 0x50).values()) if b < 4}
    disk = flat(size, block_size, below)
    sectors: dict[str, Any] = {"logical_sector_size": sector, "physical_sector_size": sector}
    parent = written(tmp_path / "parent.vhdx", below, virtual_size=size, block_size=block_size, **sectors)

    sink = FileSink(tmp_path / "child.vhdx")
    record = ParentRecord(BASE, ".\\parent.vhdx", str(parent))
    writer = VhdxWriter(
        sink,
        virtual_size=size,
        block_size=block_size,
        disk_type=DiskType.DIFFERENCING,
        disk_id=DISK,
        write_id=CHILD,
        parent=record,
        **sectors,
    )
    here = {1, 7, 8, 9, 100, block_size // sector - 1}
    bitmap = bytearray(block_size // sector // 8)
    # 7-Zip wants the bytes of sectors that are not here to be zeros.
    data = bytearray(block_size)
    for s in here:
        bitmap[s // 8] |= 1 << s % 8
        data[s * sector : (s + 1) * sector] = b"\xc0" * sector
        disk[s * sector : (s + 1) * sector] = b"\xc0" * sector
    writer.write_block(0, bytes(data), bytes(bitmap))
    writer.write_block(3, b"\xc3" * block_size)
    disk[3 * block_size : 4 * block_size] = b"\xc3" * block_size
    writer.write_block(4, b"\xc4" * (size - 4 * block_size))
    disk[4 * block_size :] = b"\xc4" * (size - 4 * block_size)
    sink.finish(writer.finish())
    return tmp_path / "child.vhdx", parent, hashlib.sha256(disk).hexdigest()


@pytest.mark.parametrize("sector", [512, 4096])
def test_7zip_reads_a_child_through_its_parent(tmp_path: Path, sector: int) -> None:
    seven = tool("7zz", "7z")
    child, _, expected = a_pair(tmp_path, sector)

    target = tmp_path / "disk.raw"
    with target.open("wb") as sink:
        subprocess.run(
            [seven, "e", "-so", "-tvhdx", str(child)], stdout=sink, check=True, stderr=subprocess.PIPE
        )
    assert sha256_of(target) == expected


@pytest.mark.parametrize("sector", [512, 4096])
def test_libvhdi_reads_a_child_through_its_parent(tmp_path: Path, sector: int) -> None:
    child, parent, expected = a_pair(tmp_path, sector)

    assert pyvhdi_sha256(child, parent) == expected

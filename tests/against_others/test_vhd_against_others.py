"""What we write, others read; what others write, we read.

qemu-img and 7zz are used where they are on the PATH.  pyvhdi (libvhdi) runs in an interpreter of its own,
named by the environment variable VHDTOOL_ORACLE_PYTHON.  Known to be wrong, and not asked here: qemu
takes a differencing VHD for a dynamic one; libvhdi takes every sector behind the first set bit of a
bitmap's byte from the child.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.builders.vhd import codes, content
from vhdtool.formats.image import OpenOptions, require_sound
from vhdtool.formats.vhd.image import open_vhd
from vhdtool.formats.vhd.write import ParentRecord, VhdWriter, write_fixed_footer
from vhdtool.model.identity import DiskType, Identity
from vhdtool.source import FileSource

WHEN = datetime(2024, 2, 29, 12, 0, 0, tzinfo=UTC)
BLOCK = 2 << 20
SIZE = 3 * BLOCK + 37 * 512  # a last block of 37 sectors; no size that a geometry can express
Blocks = Mapping[int, tuple[bytes, bytes | None]]
Reader = Callable[[Path], bytes]
PARENT_ID = Identity(bytes(range(1, 17)))
CHILD_ID = Identity(bytes(range(17, 33)))

_READ_WITH_PYVHDI = """
import sys, pyvhdi
files = []
for path in sys.argv[1:]:
    file = pyvhdi.file()
    file.open(path)
    files.append(file)
for child, parent in zip(files, files[1:]):
    child.set_parent(parent)
left = files[0].get_media_size()
while left:
    data = files[0].read(min(left, 1 << 20))
    sys.stdout.buffer.write(data)
    left -= len(data)
for file in files:
    file.close()
"""


class FileSink:
    """A :class:`~vhdtool.formats.image.Sink` into a file."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("xb")

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self.file.seek(offset)
        self.file.write(data)

    def close(self) -> None:
        self.file.close()


def program(*names: str) -> str:
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    pytest.skip(f"no {names[0]} here")


def run(*command: str | Path) -> bytes:
    done = subprocess.run([*map(str, command)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace") + done.stdout[:2000].decode(
        errors="replace"
    )
    return done.stdout


def read_by_qemu(path: Path) -> bytes:
    raw = path.with_suffix(".raw")
    run(program("qemu-img"), "convert", "-f", "vpc", "-O", "raw", path, raw)
    return raw.read_bytes()


def read_by_7zip(path: Path) -> bytes:
    return run(program("7zz", "7z"), "x", "-tVHD", "-so", path)


def read_by_libvhdi(*paths: Path) -> bytes:
    """Read the first of ``paths`` through the others, its parents."""
    python = os.environ.get("VHDTOOL_ORACLE_PYTHON")
    if not python:
        pytest.skip("VHDTOOL_ORACLE_PYTHON names no interpreter that has pyvhdi")
    return run(python, "-c", _READ_WITH_PYVHDI, *paths)


READERS: list[Reader] = [read_by_qemu, read_by_7zip, read_by_libvhdi]


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def write_disk(
    path: Path,
    blocks: Blocks,
    *,
    size: int = SIZE,
    block_size: int = BLOCK,
    unique_id: Identity = PARENT_ID,
    parent: ParentRecord | None = None,
) -> Path:
    sink = FileSink(path)
    writer = VhdWriter(
        sink,
        virtual_size=size,
        block_size=block_size,
        unique_id=unique_id,
        timestamp=WHEN,
        disk_type=DiskType.DIFFERENCING if parent else DiskType.DYNAMIC,
        parent=parent,
    )
    for block, (data, bitmap) in blocks.items():
        writer.write_block(block, data, bitmap)
    size_in_file = writer.finish()
    sink.close()
    assert size_in_file == path.stat().st_size
    return path


def expected_of(blocks: Blocks, size: int = SIZE, block_size: int = BLOCK) -> bytes:
    disk = bytearray(size)
    for block, (data, _) in blocks.items():
        disk[block * block_size : block * block_size + len(data)] = data
    return bytes(disk[:size])


FULL: Blocks = {2: (noise(BLOCK, 1), None), 0: (noise(BLOCK, 2), None), 3: (noise(37 * 512, 3), None)}
SPARSE: Blocks = {1: (bytes(512 * 9) + noise(512, 4), bytes([0, 2]).ljust(512, b"\0")), 3: (b"end", None)}


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("blocks", [FULL, SPARSE, {}], ids=["full", "sparse", "empty"])
def test_a_dynamic_disk_that_we_write(tmp_path: Path, reader: Reader, blocks: Blocks) -> None:
    path = write_disk(tmp_path / "disk.vhd", blocks)

    assert reader(path) == expected_of(blocks)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_a_dynamic_disk_of_small_blocks_that_we_write(tmp_path: Path, reader: Reader) -> None:
    block = 512 << 10
    blocks = {n: (noise(block, n), None) for n in (5, 1, 2)}
    path = write_disk(tmp_path / "disk.vhd", blocks, size=6 * block, block_size=block)

    assert reader(path) == expected_of(blocks, 6 * block, block)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_a_fixed_disk_that_we_write(tmp_path: Path, reader: Reader) -> None:
    data = noise(SIZE, 7)
    sink = FileSink(tmp_path / "fixed.vhd")
    sink.write_at(0, data)
    write_fixed_footer(sink, virtual_size=SIZE, unique_id=PARENT_ID, timestamp=WHEN)
    sink.close()

    assert reader(tmp_path / "fixed.vhd") == data


def test_qemu_sees_the_size_that_was_asked_for(tmp_path: Path) -> None:
    path = write_disk(tmp_path / "disk.vhd", {}, size=(127 << 30) + 512)

    shown = run(program("qemu-img"), "info", "--output=json", path).decode()

    assert f'"virtual-size": {(127 << 30) + 512}' in shown
    assert '"format": "vpc"' in shown


def a_chain(folder: Path, child_blocks: Blocks) -> tuple[Path, Path]:
    parent = write_disk(folder / "parent.vhd", FULL)
    record = ParentRecord(PARENT_ID, "C:\\disks\\parent.vhd", ".\\parent.vhd", WHEN)
    child = write_disk(folder / "child.vhd", child_blocks, unique_id=CHILD_ID, parent=record)
    return child, parent


WHOLE_BLOCKS: Blocks = {1: (noise(BLOCK, 11), None), 2: (noise(BLOCK, 12), None)}


def test_a_differencing_disk_that_we_write_is_read_by_7zip(tmp_path: Path) -> None:
    child, _ = a_chain(tmp_path, WHOLE_BLOCKS)

    assert read_by_7zip(child) == expected_of({**FULL, **WHOLE_BLOCKS})


def test_a_differencing_disk_that_we_write_is_read_by_libvhdi(tmp_path: Path) -> None:
    child, parent = a_chain(tmp_path, WHOLE_BLOCKS)

    assert read_by_libvhdi(child, parent) == expected_of({**FULL, **WHOLE_BLOCKS})


def test_single_sectors_of_a_differencing_disk_that_we_write(tmp_path: Path) -> None:
    """7-Zip alone: libvhdi would take sectors 10 to 15 from the child."""
    data = bytes(512 * 9) + noise(512, 21)
    child, _ = a_chain(tmp_path, {0: (data, bytes([0, 2]).ljust(512, b"\0"))})

    expected = bytearray(expected_of(FULL))
    expected[512 * 9 : 512 * 10] = data[512 * 9 :]
    assert read_by_7zip(child) == expected


@pytest.mark.parametrize(
    "options", ["subformat=dynamic", "subformat=fixed", "subformat=dynamic,force_size=on"]
)
def test_what_qemu_writes(tmp_path: Path, options: str) -> None:
    raw, path = tmp_path / "disk.raw", tmp_path / "disk.vhd"
    raw.write_bytes(expected_of(FULL))
    run(program("qemu-img"), "convert", "-f", "raw", "-O", "vpc", "-o", options, raw, path)

    with FileSource(path) as source:
        image = open_vhd(source, OpenOptions())
        require_sound(image)
        image.inspect(deep=True)

        seen = content(image)
        assert seen[:SIZE] == raw.read_bytes()
        assert not any(seen[SIZE:])  # qemu rounds up to what a geometry can express
        loud = {code for code, severity in codes(image).items() if severity != "info"}
        # With a forced size the geometry is the largest there is, to say that it does not count.
        assert loud <= {"vhd.bitmap.tail", "vhd.geometry.mismatch"}

"""Runs commands in this process or in another one, and makes small disks on disk for them."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any
from uuid import UUID

from click.testing import CliRunner, Result

from vhdtool.cli.app import cli
from vhdtool.formats.vhd.write import ParentRecord as VhdParent
from vhdtool.formats.vhd.write import VhdWriter
from vhdtool.formats.vhdx.write import ParentRecord as VhdxParent
from vhdtool.formats.vhdx.write import VhdxWriter
from vhdtool.model.identity import DiskType, Identity

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB
BLOCK = MIB
CREATED = datetime(2024, 3, 1, 12, 30, tzinfo=UTC)
# click before 8.2 mixes both streams unless it is told not to.
SEPARATE: dict[str, Any] = (
    {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
)


def run(*args: object, code: int = 0, environment: Mapping[str, str] | None = None) -> Result:
    """Run a command in this process and look at its exit code; ``stdout`` and ``stderr`` are apart."""
    result = CliRunner(**SEPARATE).invoke(cli, [str(arg) for arg in args], env=environment)
    assert isinstance(result.exception, (SystemExit, type(None))), result.exception
    assert result.exit_code == code, f"{result.exit_code}: {result.stdout}{result.stderr}"
    assert "Traceback" not in result.stderr
    return result


def run_json(*args: object, code: int = 0) -> Any:
    """The JSON document that a command prints."""
    return json.loads(run(*args, "--json", code=code).stdout)


def process(
    *args: object,
    code: int | None = 0,
    environment: Mapping[str, str] | None = None,
    stdout: int | IO[bytes] = subprocess.PIPE,
) -> subprocess.CompletedProcess[bytes]:
    """Run ``python -m vhdtool`` to its end."""
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        [sys.executable, "-m", "vhdtool", *map(str, args)],
        env={**os.environ, **(environment or {})},
        timeout=60,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )
    if code is not None:
        assert done.returncode == code, f"{done.returncode}: {done.stderr!r}"
    return done


def an_identity(number: int) -> Identity:
    return Identity.of_uuid(UUID(int=number))


class FileSink:
    """A sink that is a plain file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self._file.seek(offset)
        self._file.write(data)

    def close(self, size: int) -> None:
        self._file.truncate(size)
        self._file.close()


@dataclass(frozen=True)
class Child:
    """What a child has of its parent, and where it says it is."""

    number: int
    relative: str
    absolute: str = ""


def make_vhd(path: Path, number: int, blocks: Mapping[int, bytes], parent: Child | None = None) -> Path:
    """A VHD with identity ``number`` and blocks of ``BLOCK`` bytes; in a child their first half is stored."""
    sink = FileSink(path)
    record = (
        None if parent is None else VhdParent(an_identity(parent.number), parent.absolute, parent.relative)
    )
    writer = VhdWriter(
        sink,
        virtual_size=SIZE,
        block_size=BLOCK,
        unique_id=an_identity(number),
        timestamp=CREATED,
        disk_type=DiskType.DYNAMIC if parent is None else DiskType.DIFFERENCING,
        parent=record,
    )
    for block, data in blocks.items():
        writer.write_block(block, data, None if parent is None else half(len(data)))
    sink.close(writer.finish())
    return path


def make_vhdx(path: Path, number: int, blocks: Mapping[int, bytes], parent: Child | None = None) -> Path:
    """The same as a VHDX."""
    sink = FileSink(path)
    record = (
        None if parent is None else VhdxParent(an_identity(parent.number), parent.relative, parent.absolute)
    )
    writer = VhdxWriter(
        sink,
        virtual_size=SIZE,
        block_size=BLOCK,
        disk_id=an_identity(99),
        write_id=an_identity(number),
        disk_type=DiskType.DYNAMIC if parent is None else DiskType.DIFFERENCING,
        parent=record,
    )
    for block, data in blocks.items():
        writer.write_block(block, data, None if parent is None else half(len(data)))
    sink.close(writer.finish())
    return path


def half(length: int) -> bytes:
    """The bitmap of a block whose sectors of ``length`` bytes are stored, and no others."""
    return ((1 << length // 512) - 1).to_bytes(BLOCK // 512 // 8, "little")


A_CONTENT = bytes(range(256)) * (BLOCK // 256)
B_CONTENT = b"\xb0" * (BLOCK // 2)


@dataclass(frozen=True)
class Snapshots:
    """A base, a child that changes half of block 0 and half of block 2, and an empty second child."""

    folder: Path
    base: Path
    child: Path
    other: Path

    @property
    def child_disk(self) -> bytes:
        """What the child's guest sees."""
        block_0 = B_CONTENT + A_CONTENT[BLOCK // 2 :]
        return block_0 + A_CONTENT + B_CONTENT + bytes(BLOCK // 2) + bytes(BLOCK)

    @property
    def base_disk(self) -> bytes:
        return 2 * A_CONTENT + bytes(2 * BLOCK)


def make_snapshots(folder: Path, suffix: str = ".vhdx") -> Snapshots:
    make = make_vhdx if suffix == ".vhdx" else make_vhd
    folder.mkdir(parents=True, exist_ok=True)
    base = make(folder / f"base{suffix}", 1, {0: A_CONTENT, 1: A_CONTENT})
    parent = Child(1, f".\\base{suffix}")
    child = make(folder / f"child{suffix}", 2, {0: B_CONTENT, 2: B_CONTENT}, parent)
    other = make(folder / f"other{suffix}", 3, {}, parent)
    return Snapshots(folder, base, child, other)


def overwrite(path: Path, offset: int, data: bytes) -> Path:
    """Put ``data`` into a file; negative offsets count from its end."""
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        file.write(data)
    return path

"""Chains made at random on disk by the package's own writers, with the disk that each point must show.

The truth is worked out beside the files, in one NumPy array of the whole disk, and never read from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from tests.builders.vhdx import BAT, Data, an_entry, with_log
from vhdtool.formats.vhd.write import ParentRecord as VhdParent
from vhdtool.formats.vhd.write import VhdWriter
from vhdtool.formats.vhdx.write import ParentRecord as VhdxParent
from vhdtool.formats.vhdx.write import VhdxWriter
from vhdtool.model.identity import DiskType, Identity

MIB = 1 << 20
CREATED = datetime(2025, 5, 5, 5, 5, 5, tzinfo=UTC)
Disk = npt.NDArray[np.uint8]


class FileSink:
    """A writer's sink on an open file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self._file.seek(offset)
        self._file.write(data)


@dataclass(frozen=True)
class Style:
    """What may occur in a generated chain.

    ``grain``: sectors of the smallest run in a partial block.  ``states``: whether ZERO, UNDEFINED, UNMAPPED
    blocks occur (VHDX).  ``sizes``: whether children may be larger than their parents.  ``stale``: whether
    rubbish stands under clear bitmap bits.  ``logs``: the share of VHDX layers with a pending log.
    """

    format: str = "vhdx"
    sector_size: int = 512
    block_sizes: tuple[int, ...] = (MIB, 2 * MIB)
    size: int = 6 * MIB
    grain: int = 1
    states: bool = True
    sizes: bool = True
    stale: bool = True
    logs: float = 0.0


def an_identity(rng: np.random.Generator) -> Identity:
    return Identity(rng.bytes(16))


@dataclass
class Point:
    """One image of a generated tree, the disk that a read through it must show, and who it is."""

    path: Path
    disk: Disk
    identity: Identity
    disk_id: Identity
    style: Style


def a_base(folder: Path, style: Style, rng: np.random.Generator, name: str = "base") -> Point:
    """A dynamic image with random content."""
    return _write(folder / name, style, rng, None, style.size)


def a_child(parent: Point, rng: np.random.Generator, name: str, style: Style | None = None) -> Point:
    """A differencing child of ``parent`` in the same folder, with random changes; maybe larger."""
    style = style or parent.style
    size = len(parent.disk)
    if style.sizes and rng.random() < 0.3:
        size += int(rng.integers(1, 2000)) * style.sector_size
    return _write(parent.path.parent / name, style, rng, parent, size)


def a_chain(folder: Path, depth: int, style: Style, seed: int) -> Point:
    """A chain of ``depth`` images; the leaf."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    point = a_base(folder, style, rng)
    for layer in range(1, depth):
        point = a_child(point, rng, f"child{layer}")
    return point


def _write(stem: Path, style: Style, rng: np.random.Generator, parent: Point | None, size: int) -> Point:
    differencing = parent is not None
    suffix = ("." if not differencing else ".a") + style.format
    path = stem.with_suffix(suffix)
    block_size = int(rng.choice(style.block_sizes))
    disk = np.zeros(size, np.uint8)
    if parent is not None:
        disk[: len(parent.disk)] = parent.disk
    identity = an_identity(rng)
    disk_id = identity if style.format == "vhd" else (parent.disk_id if parent else an_identity(rng))
    with path.open("wb") as file:
        writer: VhdWriter | VhdxWriter
        kind = DiskType.DIFFERENCING if differencing else DiskType.DYNAMIC
        if style.format == "vhd":
            writer = VhdWriter(
                FileSink(file),
                virtual_size=size,
                unique_id=identity,
                timestamp=CREATED,
                disk_type=kind,
                block_size=block_size,
                parent=VhdParent(parent.identity, f"C:\\vm\\{parent.path.name}", f".\\{parent.path.name}")
                if parent
                else None,
            )
        else:
            writer = VhdxWriter(
                FileSink(file),
                virtual_size=size,
                block_size=block_size,
                logical_sector_size=style.sector_size,
                physical_sector_size=4096,
                disk_type=kind,
                disk_id=disk_id,
                write_id=identity,
                parent=VhdxParent(parent.identity, f".\\{parent.path.name}", f"C:\\vm\\{parent.path.name}")
                if parent
                else None,
            )
        for block in rng.permutation(-(-size // block_size)).tolist():
            _write_block(writer, style, rng, disk, block, block_size, differencing)
        file.truncate(writer.finish())
    if style.format == "vhdx" and rng.random() < style.logs:
        leave_log_pending(path)
    return Point(path, disk, identity, disk_id, style)


def _write_block(
    writer: VhdWriter | VhdxWriter,
    style: Style,
    rng: np.random.Generator,
    disk: Disk,
    block: int,
    block_size: int,
    differencing: bool,
) -> None:
    here = disk[block * block_size : (block + 1) * block_size]
    chance = rng.random()
    if chance < 0.35:
        return
    if isinstance(writer, VhdxWriter):
        if chance < 0.5 and style.states:
            state = int(rng.integers(1, 4))
            writer.set_state(block, state)
            here[:] = 0
            return
        if chance < 0.6 or not differencing:
            data = _some_bytes(rng, len(here))
            writer.write_block(block, data.tobytes())
            here[:] = data
            return
    sectors = block_size // style.sector_size
    bits = _some_bits(rng, sectors, style.grain)
    bits[len(here) // style.sector_size :] = False
    written = np.repeat(bits[: len(here) // style.sector_size], style.sector_size)
    data = _some_bytes(rng, len(here))
    if not style.stale:
        data[~written] = 0
    bitmap = np.packbits(bits, bitorder="little").tobytes()
    writer.write_block(block, data.tobytes(), bitmap)
    if isinstance(writer, VhdWriter) and not differencing:
        here[:] = 0
    here[written] = data[written]


def _some_bytes(rng: np.random.Generator, count: int) -> Disk:
    """Bytes that differ from sector to sector and are quick to make."""
    tile = rng.integers(0, 256, 509, np.uint8)
    return np.resize(tile, count)


def _some_bits(rng: np.random.Generator, sectors: int, grain: int) -> npt.NDArray[np.bool_]:
    """A bitmap: a few runs, or every grain by chance, or nearly everything."""
    kind = rng.integers(0, 3)
    if kind == 0:
        bits = np.zeros(sectors, np.bool_)
        for _ in range(int(rng.integers(1, 6))):
            start = int(rng.integers(0, sectors)) // grain * grain
            bits[start : start + grain * int(rng.integers(1, 40))] = True
        return bits
    density = rng.random() if kind == 1 else 0.98
    return np.resize(np.repeat(rng.random(-(-sectors // grain)) < density, grain), sectors)


def leave_log_pending(path: Path) -> None:
    """Take the BAT's first page out of the file and put it into a log that still has to be replayed."""
    with path.open("r+b") as file:
        head = file.read(BAT + 4096)
        page = head[BAT : BAT + 4096]
        changed = with_log(head, [an_entry(7, Data(BAT, page))])
        changed[BAT : BAT + 4096] = bytes(4096)
        file.seek(0)
        file.write(changed)

"""Images and chains to measure with, made with the library's writers: same arguments, same bytes."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import UUID

from vhdtool.formats.vhd.write import ParentRecord as VhdParent
from vhdtool.formats.vhd.write import VhdWriter
from vhdtool.formats.vhdx.write import ParentRecord as VhdxParent
from vhdtool.formats.vhdx.write import VhdxWriter
from vhdtool.model.identity import DiskType, Identity, ImageFormat, utc_from_2000

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40
_SECTOR: Final = 512
_UNIT: Final = 32 * MIB
_GRAIN: Final = 4 * KIB
_CHANGED: Final = 0.02


class FileSink:
    """A file that writers fill; what they leave out are holes."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write ``data`` at byte ``offset``."""
        assert os.pwrite(self._descriptor, data, offset) == len(data)

    def close(self, size: int) -> None:
        """Give the file its size."""
        os.ftruncate(self._descriptor, size)
        os.close(self._descriptor)


def layer_name(number: int, image_format: ImageFormat) -> str:
    """The file name of layer ``number``, counted from the base."""
    return f"layer{number:03d}.{'a' if number else ''}{image_format}"


def writer_for(
    sink: FileSink, number: int, image_format: ImageFormat, virtual_size: int, block_size: int
) -> VhdWriter | VhdxWriter:
    """A writer for layer ``number`` of a chain whose layers lie in one folder, counted from the base."""
    mine, parents = (Identity.of_uuid(UUID(int=(1 << 64) + i)) for i in (number, number - 1))
    parent = f".\\{layer_name(number - 1, image_format)}"
    kind = DiskType.DIFFERENCING if number else DiskType.DYNAMIC
    if image_format is ImageFormat.VHDX:
        return VhdxWriter(
            sink,
            virtual_size=virtual_size,
            block_size=block_size,
            disk_type=kind,
            disk_id=Identity.of_uuid(UUID(int=1 << 65)),
            write_id=mine,
            parent=VhdxParent(parents, parent, "") if number else None,
        )
    return VhdWriter(
        sink,
        virtual_size=virtual_size,
        block_size=block_size,
        disk_type=kind,
        unique_id=mine,
        timestamp=utc_from_2000(number),
        parent=VhdParent(parents, "", parent) if number else None,
    )


def empty_chain(
    folder: Path, layers: int, image_format: ImageFormat, virtual_size: int, block_size: int = 2 * MIB
) -> list[Path]:
    """A chain in which nothing was written; the paths, leaf first."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(layers):
        path = folder / layer_name(number, image_format)
        sink = FileSink(path)
        sink.close(writer_for(sink, number, image_format, virtual_size, block_size).finish())
        paths.append(path)
    return paths[::-1]


def used_chain(
    folder: Path, layers: int, image_format: ImageFormat, virtual_size: int, flat: Path
) -> list[Path]:
    """A chain with a history, its paths leaf first; ``flat`` becomes what the leaf must read as.

    Half of the base's stretches of 32 MiB are full of noise; each layer above writes 2 % of that anew, at
    random places in runs of 4 to 64 KiB.  That is a hard case: real guests write less scattered.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dice = random.Random(f"{layers} {image_format} {virtual_size}")
    unit = min(_UNIT, virtual_size // 4)
    full = sorted(dice.sample(range(virtual_size // unit), virtual_size // unit // 2))
    truth = FileSink(flat)
    paths = []
    for number in range(layers):
        path = folder / layer_name(number, image_format)
        sink = FileSink(path)
        block_size = _base_block_size(image_format, unit) if number == 0 else 2 * MIB
        writer = writer_for(sink, number, image_format, virtual_size, block_size)
        if number == 0:
            for start in (u * unit + n for u in full for n in range(0, unit, block_size)):
                data = dice.randbytes(block_size)
                writer.write_block(start // block_size, data)
                truth.write_at(start, data)
        else:
            for block, runs in _changes(dice, full, unit, block_size):
                offset = writer.place_block(block, _bitmap(runs, block_size))
                for start, length in runs:
                    data = dice.randbytes(length)
                    sink.write_at(offset + start, data)
                    truth.write_at(block * block_size + start, data)
        sink.close(writer.finish())
        paths.append(path)
    truth.close(virtual_size)
    return paths[::-1]


def _base_block_size(image_format: ImageFormat, unit: int) -> int:
    return min(32 * MIB, unit) if image_format is ImageFormat.VHDX else 2 * MIB


def _changes(
    dice: random.Random, full: list[int], unit: int, block_size: int
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Blocks and the runs written in them, (start in the block, length), some of which overlap."""
    left = int(len(full) * unit * _CHANGED)
    runs: dict[int, list[tuple[int, int]]] = {}
    while left > 0:
        length = dice.randrange(1, 17) * _GRAIN
        start = dice.choice(full) * unit + dice.randrange(unit // _GRAIN) * _GRAIN
        block, within = divmod(start, block_size)
        length = min(length, block_size - within)
        runs.setdefault(block, []).append((within, length))
        left -= length
    yield from sorted(runs.items())


def _bitmap(runs: list[tuple[int, int]], block_size: int) -> bytes:
    bits = 0
    for start, length in runs:
        bits |= ((1 << length // _SECTOR) - 1) << start // _SECTOR
    return bits.to_bytes(block_size // _SECTOR // 8, "little")

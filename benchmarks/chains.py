"""Images and chains to measure with, made with the library's writers: same arguments, same bytes."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from vhdtool.export.containers.target import TargetFile
from vhdtool.model.identity import ImageFormat
from vhdtool.simulate.synthetic import Layout, Recipe, layer_name, make_chain
from vhdtool.simulate.synthetic import layer_writer as writer_for

Int64s = npt.NDArray[np.int64]

__all__ = [
    "GIB",
    "HERE",
    "KIB",
    "MIB",
    "TIB",
    "Disk",
    "Everywhere",
    "FileSink",
    "a_huge_image",
    "empty_chain",
    "hard_tables",
    "layer_name",
    "many_bitmaps",
    "used_chain",
    "used_disks",
    "writer_for",
]

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40

# What a huge image holds.
HERE: Final = b"here" * 1024

_STRETCH: Final = 32 * MIB
_BLOCK: Final = 2 * MIB
_GRAIN: Final = 4 * KIB
_SECTOR: Final = 512


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
    create = partial(TargetFile, sync=False)
    with create(flat) as truth:
        made = make_chain(folder, Recipe(virtual_size, layers), Layout(image_format), create, flat=truth)
        paths = list(made)
        truth.finish(virtual_size)
        truth.publish()
    return paths[::-1]


@dataclass(frozen=True, slots=True)
class Disk:
    """A point in time: its chain's paths, leaf first, a flat file with its bytes, and how many those are."""

    paths: list[Path]
    flat: Path
    size: int

    @property
    def leaf(self) -> Path:
        """The image that it is."""
        return self.paths[0]


class Everywhere(Recipe):
    """Layers write as much as in any recipe, but all over the disk: more layers hold more data."""

    def writes(self, layer: int) -> tuple[Int64s, Int64s]:
        """As in any recipe whose base holds everything."""
        if layer == 0:
            return super().writes(layer)
        full = Recipe(self.virtual_size, self.layers, fill=1.0, rewrite=self.fill * self.rewrite)
        return full.writes(layer)


def used_disks(
    folder: Path,
    depths: Iterable[int],
    image_format: ImageFormat,
    virtual_size: int,
    recipe: type[Recipe] = Everywhere,
) -> dict[int, Disk]:
    """Points in time of one chain, by the number of layers above the base.

    Half of the base's stretches of 32 MiB are full of noise; each layer above writes 2 % as much, at random
    places in runs of 4 to 64 KiB.  The images are in ``folder / "chain"``.  Everything is on the disk when
    they come: nothing is written back while something is measured.
    """
    images, wanted = folder / "chain", set(depths)
    images.mkdir(parents=True)
    history = recipe(virtual_size, max(wanted) + 1)
    disks: dict[int, Disk] = {}
    paths: list[Path] = []
    # Never published, so it vanishes at the end: the disk as it is at the moment.
    with TargetFile(folder / "now.raw") as now:
        for depth, path in enumerate(make_chain(images, history, Layout(image_format), TargetFile, flat=now)):
            paths.append(path)
            if depth in wanted:
                flat = folder / f"depth{depth}.raw"
                subprocess.run(["cp", now.partial, flat], check=True)
                with flat.open("r+b") as file:
                    file.truncate(virtual_size)
                    os.fsync(file.fileno())
                disks[depth] = Disk(paths[::-1], flat, virtual_size)
    return disks


def a_huge_image(path: Path, image_format: ImageFormat, virtual_size: int, block_size: int) -> list[int]:
    """An image with three blocks, at the start, in the middle and at the end of the disk.

    Returns:
        Guest bytes at which ``HERE`` stands; everything else is zeros.
    """
    sink = FileSink(path)
    writer = writer_for(sink, 0, image_format, virtual_size, block_size)
    last = virtual_size // block_size - 1
    for block in (0, last // 2, last):
        writer.write_block(block, HERE)
    sink.close(writer.finish())
    return [block * block_size for block in (0, last // 2, last)]


def hard_tables(folder: Path, layers: int, virtual_size: int) -> list[Path]:
    """Tables and bitmaps of a chain as ``used_chain`` makes it, VHDX, its paths leaf first.

    No payload is written: what to look up is all there, and 256 layers take megabytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    create = partial(TargetFile, sync=False)
    recipe, layout = Recipe(virtual_size, layers), Layout(ImageFormat.VHDX)
    return list(make_chain(folder, recipe, layout, create, payload=False))[::-1]


def many_bitmaps(folder: Path, layers: int, virtual_size: int, blocks: int, writes: int) -> list[Path]:
    """Tables and bitmaps of a VHDX chain of 2 MiB blocks, its paths leaf first; no payload is written.

    Half of the base's stretches of 32 MiB are there; each layer above wrote to ``blocks`` random ones of
    their blocks, ``writes`` times to each, 4 to 64 KiB at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dice = random.Random(f"{layers} {virtual_size} {blocks} {writes}")
    stretches = virtual_size // _STRETCH
    there = sorted(dice.sample(range(stretches), stretches // 2))
    per_stretch = _STRETCH // _BLOCK
    places = [stretch * per_stretch + i for stretch in there for i in range(per_stretch)]
    paths = []
    for number in range(layers):
        path = folder / layer_name(number, ImageFormat.VHDX)
        sink = FileSink(path)
        writer = writer_for(sink, number, ImageFormat.VHDX, virtual_size, _BLOCK)
        for block in sorted(dice.sample(places, blocks)) if number else places:
            writer.place_block(block, _written(dice, writes) if number else None)
        sink.close(writer.finish())
        paths.append(path)
    return paths[::-1]


def _written(dice: random.Random, writes: int) -> bytes:
    """The bitmap of a block that was written to."""
    bits = 0
    for _ in range(writes):
        length = dice.randrange(1, 17)
        first = dice.randrange(_BLOCK // _GRAIN - length)
        bits |= ((1 << length * _GRAIN // _SECTOR) - 1) << first * _GRAIN // _SECTOR
    return bits.to_bytes(_BLOCK // _SECTOR // 8, "little")

"""Disks as pieces in guest order, images of every kind made of them, and what reading them must give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from vhdtool.export.containers.container import Container, container_for
from vhdtool.export.containers.shape import (
    Identities,
    ParentFacts,
    Shape,
    TargetFormat,
    Wanted,
    shape_of_child,
)
from vhdtool.export.containers.target import TargetFile
from vhdtool.model.identity import DiskType, Identity

MIB = 1 << 20
CREATED = datetime(2025, 5, 5, 5, 5, 5, tzinfo=UTC)
DATA, ZEROS, GAP = "data", "zeros", "gap"
Disk = npt.NDArray[np.uint8]

# Every kind of image: format, type, block size (0: the kind has none), logical sector size.
KINDS = [
    ("raw", "fixed", 0, 512),
    ("vhd", "fixed", 0, 512),
    ("vhd", "dynamic", 2 * MIB, 512),
    ("vhd", "dynamic", 64 << 10, 512),
    ("vhdx", "fixed", MIB, 512),
    ("vhdx", "dynamic", MIB, 512),
    ("vhdx", "dynamic", 4 * MIB, 4096),
    ("vhd", "differencing", 2 * MIB, 512),
    ("vhd", "differencing", 32 << 10, 512),
    ("vhdx", "differencing", MIB, 512),
    ("vhdx", "differencing", 2 * MIB, 4096),
]
CHILDREN = [kind for kind in KINDS if kind[1] == "differencing"]
Kind = tuple[str, str, int, int]


def kind_id(kind: Kind) -> str:
    return "-".join(map(str, kind))


@dataclass(frozen=True)
class Piece:
    """Guest bytes [start, stop) and what they are."""

    start: int
    stop: int
    what: str

    def bytes(self) -> bytes:
        """Of data: other ones in every sector."""
        count = self.stop - self.start
        tile = np.random.default_rng(self.start).integers(1, 256, 509, np.uint8)
        return np.resize(tile, count).tobytes()


@st.composite
def disks(draw: st.DrawFn, sector_size: int = 512, block_size: int = MIB) -> list[Piece]:
    """A disk of up to five MiB or so; borders like to be at those of blocks."""
    sectors = draw(st.integers(1, (5 * MIB + 4096) // sector_size))
    per_block = max(1, block_size // sector_size)
    at_block = st.integers(1, 6).map(lambda n: n * per_block)
    near = st.tuples(at_block, st.integers(-2, 2)).map(sum)
    borders = draw(st.lists(st.one_of(at_block, near, st.integers(1, sectors)), max_size=12))
    edges = sorted({0, sectors, *(border for border in borders if 0 < border < sectors)})
    return [
        Piece(first * sector_size, last * sector_size, draw(st.sampled_from((DATA, ZEROS, GAP))))
        for first, last in pairwise(edges)
    ]


def size_of(pieces: Sequence[Piece]) -> int:
    return pieces[-1].stop


def disk_of(pieces: Sequence[Piece], below: Disk | None = None) -> Disk:
    """What a guest sees; gaps are ``below``'s, or zeros."""
    disk = np.zeros(size_of(pieces), np.uint8)
    if below is not None:
        disk[: len(below)] = below
    for piece in pieces:
        if piece.what == DATA:
            disk[piece.start : piece.stop] = np.frombuffer(piece.bytes(), np.uint8)
        elif piece.what == ZEROS:
            disk[piece.start : piece.stop] = 0
    return disk


def a_shape(kind: Kind, size: int, target: Path, parent: Shape | None = None) -> Shape:
    """Of that kind; always the same time, and identities that count the generations."""
    name, subformat, block_size, sector_size = kind
    above = None if parent is None else parent.write_id
    identity = Identity.of_uuid(UUID(int=7 if above is None else above.uuid.int + 1))
    identities = Identities(identity, identity, CREATED)
    if parent is not None:
        return shape_of_child(
            target,
            ParentFacts.of_shape(parent),
            virtual_size=size,
            block_size=block_size,
            identities=Identities(None, identity, CREATED),
        )
    structured = name in ("vhd", "vhdx")
    return Wanted(
        target=str(target),
        format=TargetFormat(name),
        type=DiskType(subformat),
        virtual_size=size,
        block_size=block_size or None,
        sector_size=sector_size,
        identities=identities if structured else Identities(created=CREATED),
    ).settle()


def cut_at(pieces: Sequence[Piece], step: int) -> Iterator[Piece]:
    """The same disk with no piece across a multiple of ``step``."""
    for piece in pieces:
        start = piece.start
        while start < piece.stop:
            stop = min(piece.stop, start - start % step + step)
            yield Piece(start, stop, piece.what)
            start = stop


def feed(container: Container, pieces: Sequence[Piece], start: int = 0, stop: int | None = None) -> None:
    """Give a container the part [start, stop) of a disk, data in buffers as the mover has them."""
    for piece in pieces:
        first, last = max(piece.start, start), piece.stop if stop is None else min(piece.stop, stop)
        if first >= last:
            continue
        if piece.what == ZEROS:
            container.zeros(first, last - first)
        elif piece.what == DATA:
            data = piece.bytes()[first - piece.start : last - piece.start]
            for at in range(0, len(data), 512 << 10):
                container.write_at(first + at, data[at : at + (512 << 10)])


def an_image(path: Path, shape: Shape, pieces: Sequence[Piece]) -> Path:
    """The finished image of a disk."""
    with TargetFile(path, sync=False) as target:
        container = container_for(shape, target)
        feed(container, pieces)
        target.finish(container.finish())
        target.publish()
    return path


def a_parent(folder: Path, kind: Kind, size: int) -> tuple[Shape, Disk]:
    """A base for children of that kind, with data in all of it."""
    name, _, _, sector_size = kind
    path = folder / f"parent.{name}"
    base: Kind = (name, "dynamic", 2 * MIB, sector_size)
    pieces = [Piece(0, size, DATA)]
    shape = a_shape(base, size, path)
    an_image(path, shape, pieces)
    return shape, disk_of(pieces)

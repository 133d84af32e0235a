"""How long a raw export takes in this process, by depth: beside cp of the result, qemu-img and libvhdi.

From closed files on: opening the chain and resolving it count, the start of the interpreter does not.  There
is no manifest and nobody waits for the storage, for cp and the others do neither.  libvhdi's time is taken in
its process, without the start of that; qemu-img and cp are whole processes.

Once as a process that has just begun exports, with NumPy and a loop in Python, and once more with numba, for
programs in which that has been started.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.chains import GIB, MIB, Disk, Everywhere, used_disks
from benchmarks.contest import Contestant, Target, compete, note_quickest
from benchmarks.exporting import QEMU_QUICKEST, Place, data_bytes
from vhdtool.chain import engine as engines
from vhdtool.chain.engine import Engine
from vhdtool.model.identity import ImageFormat
from vhdtool.simulate.synthetic import Recipe

Kind = tuple[ImageFormat, type[Recipe]]
# Layers write all over the disk, or only where the base holds something already: as many runs of fewer bytes.
# A chain has 256 images at most, 255 of them above the base.
DEPTHS: Final[dict[str, tuple[Kind, tuple[int, ...]]]] = {
    "vhdx": ((ImageFormat.VHDX, Everywhere), (0, 16, 64, 255)),
    "vhdx-over-base": ((ImageFormat.VHDX, Recipe), (16, 64, 255)),
    "vhd": ((ImageFormat.VHD, Everywhere), (0, 16)),
}
ENGINES: Final[tuple[Engine, ...]] = ("auto", "numba")
# One chain after the other: each is made once.  Without layers there are no small pieces to be quick with.
CASES: Final = [
    (name, depth, engine)
    for name, (_, depths) in DEPTHS.items()
    for depth in depths
    for engine in (ENGINES if depth else ENGINES[:1])
]
TARGETS: Final[dict[tuple[str, int], dict[str, Target]]] = {
    ("vhdx", 0): {"cp": 0.95, QEMU_QUICKEST: (0.95, 0.70)},  # wall and CPU
    ("vhdx", 16): {"cp": 1.05, "libvhdi": 1 / 5},
    ("vhdx", 64): {"cp": 1.15, "libvhdi": 1 / 3},
    ("vhdx", 255): {"cp": 1.30, "libvhdi": 1 / 12},
    ("vhd", 0): {"cp": 1.0, QEMU_QUICKEST: 0.95},
    ("vhd", 16): {"cp": 1.1, "libvhdi": 1 / 15},
}


class Chains:
    """One chain at a time, for each takes gigabytes; in everyday runs few layers are enough."""

    def __init__(self, room: Path, measuring: bool) -> None:
        self._room = room
        self._measuring = measuring
        self._name = ""
        self._disks: dict[int, Disk] = {}

    def disk(self, name: str, depth: int) -> Disk:
        """A point of the chain of this name; the one before it is gone."""
        if name != self._name:
            self._name = name
            shutil.rmtree(self._room, ignore_errors=True)
            (image_format, recipe), depths = DEPTHS[name]
            size = GIB if self._measuring else 32 * MIB
            self._disks = used_disks(self._room, map(self._layers, depths), image_format, size, recipe)
        return self._disks[self._layers(depth)]

    def _layers(self, depth: int) -> int:
        return depth if self._measuring else min(depth, 4)


@pytest.fixture(scope="module")
def chains(room: Path, measuring: bool) -> Chains:
    return Chains(room / "chains", measuring)


@pytest.mark.usefixtures("fresh_engine")
@pytest.mark.parametrize(
    ("name", "depth", "engine"),
    CASES,
    ids=lambda value: f"depth={value}" if isinstance(value, int) else value,
)
def test_raw_export(
    benchmark: BenchmarkFixture,
    room: Path,
    chains: Chains,
    libvhdi: Callable[..., dict[str, Contestant]],
    name: str,
    depth: int,
    engine: Engine,
) -> None:
    if engine == "numba":
        pytest.importorskip("numba")
    disk = chains.disk(name, depth)
    place = Place(disk, room / "target.raw")
    ours = place.ours(manifest=False, engine=engine)
    paths = list(map(str, disk.paths))
    # qemu-img reads single images only; of those, libvhdi gives no figure that anybody asked for.
    qemu = place.qemu_img("-O", "raw") if depth == 0 else {}
    others = libvhdi(disk.size, "export", paths, str(place.target)) if depth and engine == "auto" else {}
    peers = {"cp": place.cp(), **qemu, **others}
    place.rehearse({"ours": ours, **peers})
    targets = TARGETS.get((name, depth), {})

    rounds = 5 if depth else 9
    samples = compete(benchmark, ours, peers, rounds=rounds, prepare=place.prepare, targets=targets)

    if depth == 0:
        note_quickest(benchmark, samples, QEMU_QUICKEST, qemu, targets[QEMU_QUICKEST])
    benchmark.extra_info.update(
        bytes=disk.size,
        data_bytes=data_bytes(disk.flat),
        layers=len(disk.paths),
        engine="numpy" if engines._numba is None else "numba",
        cpus=os.cpu_count(),
    )
    place.prepare()

"""How much memory an export has at most, as a whole process: by depth, by size, by target.

Read from ``VmHWM`` of the process itself at its end; an interpreter that has imported NumPy and done nothing
else stands beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.chains import GIB, HERE, MIB, TIB, Disk, a_huge_image, used_disks
from benchmarks.contest import note, peak_mib, peak_mib_of
from benchmarks.exporting import Place, holds_disk
from vhdtool import open_chain
from vhdtool.model.identity import ImageFormat

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")

PEAK_MIB_TARGET: Final = 90.0
DEPTHS: Final = (0, 16, 64, 255)
HASHES: Final = ("--hash", "md5,sha1,sha256")
# Depth, target, options; a manifest goes with all of them.
CASES: Final[dict[str, tuple[int, str, tuple[str, ...]]]] = {
    "raw-depth=0": (0, "target.raw", ()),
    "raw-depth=16": (16, "target.raw", ()),
    "raw-depth=64": (64, "target.raw", ()),
    "raw-depth=255": (255, "target.raw", ()),
    "raw-depth=255-hashes": (255, "target.raw", HASHES),
    "vhdx-depth=255-hashes": (255, "target.vhdx", HASHES),
    "vhd-depth=64": (64, "target.vhd", ()),
    "raw.zst-depth=0": (0, "target.raw.zst", ()),
    "raw.zst-depth=255": (255, "target.raw.zst", ()),
}
# Of VHDX the largest disk that there is, of VHD nearly so.
HUGE: Final = {ImageFormat.VHDX: (64 * TIB, 32 * MIB), ImageFormat.VHD: (2040 * GIB, 2 * MIB)}


@pytest.fixture(scope="module")
def disks(room: Path, measuring: bool) -> dict[int, Disk]:
    """By depth; in everyday runs few layers are enough."""
    shallow = {depth: depth if measuring else min(depth, 4) for depth in DEPTHS}
    made = used_disks(room, shallow.values(), ImageFormat.VHDX, GIB if measuring else 32 * MIB)
    return {depth: made[shallow[depth]] for depth in DEPTHS}


def note_peak(benchmark: BenchmarkFixture, *arguments: str | Path) -> None:
    """Keep the peak of ``vhdtool ARGUMENTS``."""
    peaks: list[float] = []
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        lambda: peaks.append(peak_mib(*arguments)), rounds=1, iterations=1
    )
    note(benchmark, "peak MiB", peaks[0], PEAK_MIB_TARGET)
    note(benchmark, "peak MiB of import numpy", peak_mib_of("import numpy"))


@pytest.mark.parametrize(("depth", "name", "options"), CASES.values(), ids=CASES)
def test_peak_memory(
    benchmark: BenchmarkFixture,
    room: Path,
    disks: dict[int, Disk],
    depth: int,
    name: str,
    options: tuple[str, ...],
) -> None:
    if name.endswith(".zst"):
        pytest.importorskip("zstandard", reason="what packs is not installed")
    place = Place(disks[depth], room / name)
    place.prepare()

    note_peak(benchmark, "export", "--no-sync", *options, place.disk.leaf, place.target)

    assert place.is_right()
    benchmark.extra_info.update(bytes=place.disk.size, layers=len(place.disk.paths))
    place.prepare()


@pytest.mark.parametrize("image_format", list(HUGE), ids=str)
def test_peak_memory_of_a_huge_disk(
    benchmark: BenchmarkFixture, tmp_path: Path, measuring: bool, image_format: ImageFormat
) -> None:
    size, block_size = HUGE[image_format]
    size = size if measuring else size // 16
    image, target = tmp_path / f"huge.{image_format}", tmp_path / f"target.{image_format}"
    places = a_huge_image(image, image_format, size, block_size)

    note_peak(benchmark, "export", "--no-sync", image, target)

    with open_chain(target) as chain:
        assert [chain.read(place, len(HERE)) for place in places] == [HERE] * len(places)
    benchmark.extra_info.update(bytes=size)


def test_peak_memory_of_an_increment(benchmark: BenchmarkFixture, room: Path, disks: dict[int, Disk]) -> None:
    disk = disks[64]
    place = Place(disk, room / "increment.vhdx")
    place.prepare()

    # On the base of the chain: as much as all layers above it hold.
    note_peak(benchmark, "export", "--no-sync", "--base", disk.paths[-1], disk.leaf, place.target)

    assert place.is_right()
    benchmark.extra_info.update(bytes=disk.size, layers=len(disk.paths))
    place.prepare()


def test_peak_memory_of_all_points(benchmark: BenchmarkFixture, tmp_path: Path, measuring: bool) -> None:
    last = 15 if measuring else 3
    disk = used_disks(tmp_path, [last], ImageFormat.VHDX, (GIB // 2) if measuring else 32 * MIB)[last]

    note_peak(benchmark, "export", "--no-sync", "--all", disk.leaf.parent, tmp_path / "all")

    assert holds_disk(tmp_path / "all" / disk.leaf.name, disk.flat)
    benchmark.extra_info.update(bytes=disk.size, points=len(disk.paths))

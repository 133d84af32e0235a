"""How many seconds more than cp the command takes as a whole process; and what it takes as it is by default.

The first is without a manifest and without waiting for the disk, as cp.  By default ours digests the disk,
writes a manifest, and waits until the storage has it all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.chains import GIB, MIB, Disk, used_disks
from benchmarks.contest import compete, note_seconds_over
from benchmarks.exporting import Place
from vhdtool.model.identity import ImageFormat

DEPTHS: Final = (0, 16)
SECONDS_OVER_CP_TARGET: Final = 0.25

Disks = dict[tuple[ImageFormat, int], Disk]


@pytest.fixture(scope="module")
def disks(room: Path, measuring: bool) -> Disks:
    """By format and depth."""
    size = GIB if measuring else 32 * MIB
    return {
        (kind, depth): disk
        for kind in (ImageFormat.VHDX, ImageFormat.VHD)
        for depth, disk in used_disks(room / str(kind), DEPTHS, kind, size).items()
    }


@pytest.fixture(params=[ImageFormat.VHDX, ImageFormat.VHD], ids=str)
def place(request: pytest.FixtureRequest, room: Path, disks: Disks, depth: int) -> Place:
    return Place(disks[request.param, depth], room / "target.raw")


@pytest.mark.parametrize("depth", DEPTHS, ids="depth={}".format)
def test_raw_export_command(benchmark: BenchmarkFixture, place: Place, depth: int) -> None:
    ours = place.our_command("--no-manifest", "--no-sync")
    place.rehearse({"ours": ours})

    samples = compete(benchmark, ours, {"cp": place.cp()}, rounds=9, prepare=place.prepare)

    note_seconds_over(benchmark, samples, "cp", SECONDS_OVER_CP_TARGET)
    benchmark.extra_info.update(bytes=place.disk.size, depth=depth)


@pytest.mark.parametrize("depth", DEPTHS, ids="depth={}".format)
def test_export_command_by_default(benchmark: BenchmarkFixture, place: Place, depth: int) -> None:
    ours = place.our_command()
    place.rehearse({"ours": ours})
    peers = {
        "cp": place.cp(),
        "cp and sync": place.cp_then('sync "$2"'),
        "cp, sync and sha256sum": place.cp_then('sync "$2" && sha256sum "$2"'),
    }

    compete(benchmark, ours, peers, rounds=5, prepare=place.prepare)

    benchmark.extra_info.update(bytes=place.disk.size, depth=depth)

"""What a manifest costs: exporting with one, and reading an export back against one.

Ours digests every chunk that is not all zeros, in as many threads as there are CPUs.  The limit of an
export is the slower one of a copy and of a digest of the data, each measured by itself: who does both on two
CPUs is hardly quicker.  That needs two CPUs that nobody else uses.  The limit of reading back is the digest.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.chains import GIB, MIB, Disk, used_disks
from benchmarks.contest import compete, in_process, slower_of
from benchmarks.exporting import Place, data_bytes, digest_in_memory, digest_of_data
from vhdtool import export_image, verify_image
from vhdtool.export.proof.manifest import manifest_path
from vhdtool.model.identity import ImageFormat
from vhdtool.source import FileSource

DEPTHS: Final = (0, 16)
EXPORT_TARGETS: Final = {"the slower of copy and digest": 1.10, "cp then sha256sum": 0.80}
VERIFY_TARGETS: Final = {"sha256 of the data": 1.10}


@pytest.fixture(scope="module")
def disks(room: Path, measuring: bool) -> dict[int, Disk]:
    """By depth."""
    return used_disks(room, DEPTHS, ImageFormat.VHDX, GIB if measuring else 32 * MIB)


@pytest.mark.usefixtures("fresh_engine")
@pytest.mark.parametrize("depth", DEPTHS, ids="depth={}".format)
def test_raw_export_with_a_manifest(
    benchmark: BenchmarkFixture, room: Path, disks: dict[int, Disk], depth: int
) -> None:
    disk = disks[depth]
    place = Place(disk, room / "target.raw")
    ours = place.ours()
    place.rehearse({"ours": ours})
    assert verify_image(place.target).ok
    peers = {
        "the slower of copy and digest": slower_of(place.cp(), digest_of_data(disk.flat)),
        "cp then sha256sum": place.cp_then('sha256sum "$2"'),
    }

    compete(benchmark, ours, peers, rounds=9, prepare=place.prepare, targets=EXPORT_TARGETS)

    benchmark.extra_info.update(
        bytes=disk.size, data_bytes=data_bytes(disk.flat), depth=depth, cpus=os.cpu_count()
    )
    place.prepare()


@pytest.mark.usefixtures("fresh_engine")
@pytest.mark.parametrize("name", ["raw", "vhdx", "vhd"])
def test_verification(benchmark: BenchmarkFixture, room: Path, disks: dict[int, Disk], name: str) -> None:
    disk, target = disks[0], room / f"exported.{name}"
    report = export_image(disk.leaf, target)
    assert verify_image(target).checked_bytes == report.data_bytes > 0
    ours = in_process(lambda: verify_image(target))
    peers = {
        "sha256 of the data": digest_of_data(disk.flat),
        "sha256 in memory": digest_in_memory(data_bytes(disk.flat)),
    }

    compete(benchmark, ours, peers, rounds=9, targets=VERIFY_TARGETS)

    assert verify_image(target).ok
    flip_a_bit(target)
    assert not verify_image(target).ok
    benchmark.extra_info.update(
        bytes=disk.size, data_bytes=report.data_bytes, file_bytes=data_bytes(target), cpus=os.cpu_count()
    )
    target.unlink()
    manifest_path(target).unlink()


def flip_a_bit(path: Path) -> None:
    """In what the file holds last."""
    with FileSource(path) as source:
        start, stop = list(source.data_ranges(0, source.size))[-1]
    with path.open("r+b") as file:
        at = (start + stop) // 2
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))

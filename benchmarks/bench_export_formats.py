"""How long an export to a dynamic VHDX or VHD takes in this process, beside cp of the flat disk and qemu-img.

As in ``bench_export_raw.py``: from closed files on, without a manifest, and nobody waits for the storage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.chains import GIB, MIB, Disk, used_disks
from benchmarks.contest import compete, note_quickest
from benchmarks.exporting import QEMU_QUICKEST, Place, data_bytes
from vhdtool.model.identity import ImageFormat

CP_TARGET: Final = 1.10
QEMU_TARGET: Final = 0.75
# Without force_size a VHD becomes as large as whole cylinders are.
QEMU_OUTPUT: Final = {
    ImageFormat.VHDX: ["-O", "vhdx", "-o", "subformat=dynamic"],
    ImageFormat.VHD: ["-O", "vpc", "-o", "subformat=dynamic,force_size=on"],
}


@pytest.fixture(scope="module")
def disks(room: Path, measuring: bool) -> dict[ImageFormat, Disk]:
    """One dynamic image of each format."""
    size = GIB if measuring else 32 * MIB
    return {kind: used_disks(room / str(kind), [0], kind, size)[0] for kind in QEMU_OUTPUT}


@pytest.mark.usefixtures("fresh_engine")
@pytest.mark.parametrize("target_format", list(QEMU_OUTPUT), ids="to={}".format)
@pytest.mark.parametrize("image_format", list(QEMU_OUTPUT), ids=str)
def test_export_to_a_dynamic_image(
    benchmark: BenchmarkFixture,
    room: Path,
    disks: dict[ImageFormat, Disk],
    image_format: ImageFormat,
    target_format: ImageFormat,
) -> None:
    disk = disks[image_format]
    place = Place(disk, room / f"target.{target_format}")
    flat = Place(disk, room / "target.raw")
    ours = place.ours(manifest=False, subformat="dynamic")
    qemu = place.qemu_img(*QEMU_OUTPUT[target_format])
    place.rehearse({"ours": ours, **qemu})

    def prepare() -> None:
        place.prepare()
        flat.prepare()

    peers = {"cp": flat.cp(), **qemu}
    samples = compete(benchmark, ours, peers, rounds=9, prepare=prepare, targets={"cp": CP_TARGET})

    note_quickest(benchmark, samples, QEMU_QUICKEST, qemu, QEMU_TARGET)
    benchmark.extra_info.update(bytes=disk.size, data_bytes=data_bytes(disk.flat))
    prepare()

"""The kit itself: its sound images are sound, to vhdtool and to others, and a cut changes what it says."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.surgery import (
    Patient,
    VhdSurgeon,
    VhdxSurgeon,
    a_child_vhd,
    a_child_vhdx,
    a_vhd,
    a_vhdx,
    filling,
)
from tests.surgery.healthy import ALL
from tests.surgery.vhdx import MIB
from vhdtool.errors import Severity
from vhdtool.formats.registry import open_source

SOUND: Final[dict[str, Callable[[], Patient]]] = {
    "a fixed VHD": lambda: a_vhd(kind=2, size=MIB),
    "a dynamic VHD": lambda: a_vhd(),
    "a dynamic VHD with a short last block": lambda: a_vhd(size=5 * MIB, blocks={0: ALL, 2: ALL}),
    "a dynamic VHD with small blocks": lambda: a_vhd(size=64 << 10, block_size=4096, blocks={3: (1, 2)}),
    "a differencing VHD": lambda: a_child_vhd(),
    "a fixed VHDX": lambda: a_vhdx(flags=1),
    "a dynamic VHDX": lambda: a_vhdx(),
    "a VHDX with 4096-byte sectors": lambda: a_vhdx(sector_size=4096),
    "a differencing VHDX": lambda: a_child_vhdx(),
    "a differencing VHDX of two chunks": lambda: a_child_vhdx(
        size=5 << 30, block_size=256 * MIB, blocks={0: 7, 16: 7}, bits={0: (1,), 16: ALL}
    ),
}
QEMU_IMG: Final = shutil.which("qemu-img")


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_image_gives_no_error_and_no_warning(name: str) -> None:
    image = open_source(SOUND[name]().source())

    image.inspect(deep=True)

    assert not [str(f) for f in image.findings if f.severity is not Severity.INFO]


@pytest.mark.skipif(QEMU_IMG is None, reason="qemu-img is not installed")
@pytest.mark.parametrize("name", [n for n in SOUND if "differencing" not in n and "4096" not in n])
def test_another_program_takes_the_sound_images(name: str, tmp_path: Path) -> None:
    # qemu-img 7 wants blocks of 2 MiB in a VHD, and whole mebibytes in a VHDX.
    if "small blocks" in name:
        pytest.skip("a block size that qemu refuses")
    kind = "vpc" if "VHD" in name and "VHDX" not in name else "vhdx"
    path = SOUND[name]().save(tmp_path / "image")

    done = subprocess.run([str(QEMU_IMG), "info", "-f", kind, str(path)], capture_output=True, check=False)

    assert done.returncode == 0, done.stderr


def test_a_patient_is_sparse_and_reads_as_it_is_saved(tmp_path: Path) -> None:
    patient = Patient(3 << 30)
    patient.write((2 << 30) + 100, b"here")
    patient.write(5000, bytes(9000))

    path = patient.save(tmp_path / "sparse")

    assert path.stat().st_size == 3 << 30
    assert len(patient.pages) == 1
    assert list(patient.data_ranges(0, 3 << 30)) == [(2 << 30, (2 << 30) + 4096)]
    with path.open("rb") as file:
        file.seek((2 << 30) + 98)
        assert file.read(8) == patient.read((2 << 30) + 98, 8) == b"\0\0here\0\0"


def test_a_copy_does_not_share_what_is_cut() -> None:
    patient = Patient.of_bytes(b"a" * 10000)
    twin = patient.copy()

    twin.resize(4100)
    twin.resize(10000)
    twin.write(0, b"b")

    assert patient.read(0, 10000) == b"a" * 10000
    assert twin.read(0, 1) == b"b"
    assert twin.read(4099, 3) == b"a\0\0"


def test_fields_are_changed_by_the_specifications_names() -> None:
    surgeon = VhdSurgeon(a_vhd())
    surgeon.both_footers(Saved_State=1)
    surgeon.header["Max Table Entries"] = 3
    other = VhdxSurgeon(a_vhdx())
    other.both_headers(LogVersion=7)

    assert surgeon.patient.read(surgeon.patient.size - 512 + 84, 1) == b"\1"
    assert surgeon.patient.read(84, 1) == b"\1"
    assert surgeon.patient.read(512 + 28, 4) == bytes([0, 0, 0, 3])
    assert other.patient.read(0x10000 + 64, 2) == other.patient.read(0x20000 + 64, 2) == b"\7\0"


def test_bits_are_counted_as_each_format_counts_them() -> None:
    vhd = VhdSurgeon(a_vhd(blocks={0: (1, 9)}))
    vhdx = VhdxSurgeon(a_child_vhdx(bits={0: (1, 7, 8)}))

    assert vhd.patient.read(vhd.bitmap_at(0), 2) == b"\x40\x40"
    assert vhdx.patient.read(vhdx.bitmap_at(), 2) == b"\x82\x01"


def test_stored_sectors_say_whose_they_are() -> None:
    vhd = VhdSurgeon(a_vhd(tag=0x77))

    assert vhd.patient.read(vhd.data_at(2, 3), 512) == filling(0x77, 2, 3)
    assert len(filling(1, 2, 3)) == 512

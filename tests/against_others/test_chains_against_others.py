"""Generated chains read by other programs: they agree wherever they are known to be right.

Where they are known to be wrong is a test named after the defect.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import vhdtool
from tests.generated import MIB, Point, Style, a_chain

SEVEN_ZIP = shutil.which("7zz") or shutil.which("7z")
QEMU_IMG = shutil.which("qemu-img")
ORACLE_PYTHON = os.environ.get("VHDTOOL_ORACLE_PYTHON", "")

needs_7zip = pytest.mark.skipif(SEVEN_ZIP is None, reason="7-Zip is not installed")
needs_qemu = pytest.mark.skipif(QEMU_IMG is None, reason="qemu-img is not installed")
needs_libvhdi = pytest.mark.skipif(
    not ORACLE_PYTHON, reason="VHDTOOL_ORACLE_PYTHON names no interpreter with libvhdi"
)

# 7-Zip wants equal sizes and takes rubbish under clear bits of a dynamic VHD for damage.
PLAIN = {
    "vhdx": Style(sizes=False),
    "vhdx-4k": Style(sizes=False, sector_size=4096, block_sizes=(MIB, 4 * MIB)),
    "vhd": Style(format="vhd", block_sizes=(512 << 10, 2 * MIB), sizes=False, stale=False),
}
LIBVHDI = """
import hashlib, sys, pyvhdi
files = []
for path in sys.argv[1:]:
    file = pyvhdi.file()
    file.open(path)
    if files:
        files[-1].set_parent(file)
    files.append(file)
left, digest = files[0].get_media_size(), hashlib.sha256()
out = sys.stdout.buffer
while left:
    data = files[0].read_buffer(min(left, 1 << 20))
    out.write(data)
    left -= len(data)
"""


def by_7zip(path: Path) -> bytes:
    assert SEVEN_ZIP is not None
    done = subprocess.run([SEVEN_ZIP, "x", "-so", str(path)], capture_output=True, check=True)
    return done.stdout


def by_libvhdi(leaf: Path) -> bytes:
    with vhdtool.open_chain(leaf) as chain:
        paths = [str(layer.path) for layer in chain.layers]
    return subprocess.run([ORACLE_PYTHON, "-c", LIBVHDI, *paths], capture_output=True, check=True).stdout


def by_qemu(path: Path, target: Path) -> bytes:
    assert QEMU_IMG is not None
    kind = "vpc" if path.suffix in (".vhd", ".avhd") else "vhdx"
    options = ",force_size_calc=current_size" if kind == "vpc" else ""
    source = f"driver={kind},file.driver=file,file.filename={path}{options}"
    subprocess.run(
        [QEMU_IMG, "convert", "--image-opts", source, "-O", "raw", str(target)],
        capture_output=True,
        check=True,
    )
    return target.read_bytes()


def has_bitmaps_everywhere(point: Point) -> bool:
    """Whether each child has a partial block; see the defect below."""
    with vhdtool.open_chain(point.path) as chain:
        return all(layer.image.counts().partial for layer in chain.layers[:-1])


def ours(point: Point, folder: Path) -> bytes:
    with vhdtool.open_chain(point.path) as chain:
        vhdtool.export_image(chain, folder / "ours.raw", force=True)
    return (folder / "ours.raw").read_bytes()


@needs_7zip
@pytest.mark.parametrize("style", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize(("depth", "seed"), [(1, 21), (3, 22), (12, 23)])
def test_7zip_reads_the_same_disk(style: Style, depth: int, seed: int, tmp_path: Path) -> None:
    point = a_chain(tmp_path, depth, style, seed)

    assert by_7zip(point.path) == ours(point, tmp_path) == point.disk.tobytes()


@needs_libvhdi
@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize(("depth", "seed"), [(1, 31), (3, 32), (12, 33)])
def test_libvhdi_reads_the_same_disk_without_zero_states(
    sector_size: int, depth: int, seed: int, tmp_path: Path
) -> None:
    style = Style(states=False, sizes=False, sector_size=sector_size)
    point = next(
        point
        for attempt in range(100)
        if has_bitmaps_everywhere(
            point := a_chain(tmp_path / str(attempt), depth, style, seed + attempt * 100)
        )
    )

    assert by_libvhdi(point.path) == ours(point, tmp_path) == point.disk.tobytes()


@needs_libvhdi
def test_libvhdi_takes_the_start_of_the_file_for_a_sector_bitmap_that_is_not_there(tmp_path: Path) -> None:
    """A child without partial blocks needs no sector bitmap.  libvhdi reads one at file offset 0 and takes
    the bits of ``vhdxfile`` for sectors that the child holds."""
    base = a_chain(tmp_path, 1, Style(states=False, sizes=False), 37)
    vhdtool.snapshot_image(base.path, tmp_path / "empty.avhdx")

    with vhdtool.open_chain(tmp_path / "empty.avhdx") as chain:
        assert chain.read(0, chain.virtual_size) == base.disk.tobytes()
    assert by_libvhdi(tmp_path / "empty.avhdx") != base.disk.tobytes()


@needs_libvhdi
def test_libvhdi_lets_zeroed_and_trimmed_blocks_fall_through_to_the_parent(tmp_path: Path) -> None:
    """Content that was deleted after the checkpoint comes back; the specification demands zeros."""
    point = a_chain(tmp_path, 6, Style(sizes=False), 34)

    assert ours(point, tmp_path) == point.disk.tobytes()
    assert by_libvhdi(point.path) != point.disk.tobytes()


@needs_libvhdi
def test_libvhdi_takes_wrong_sectors_from_vhd_bitmaps(tmp_path: Path) -> None:
    """It shifts a bitmap's byte without masking one bit: what follows a set bit counts as set."""
    style = Style(format="vhd", block_sizes=(2 * MIB,), sizes=False, stale=False, grain=1)
    point = a_chain(tmp_path, 4, style, 35)

    assert ours(point, tmp_path) == point.disk.tobytes()
    assert by_libvhdi(point.path) != point.disk.tobytes()


@needs_libvhdi
def test_libvhdi_ignores_a_pending_log(tmp_path: Path) -> None:
    point = a_chain(tmp_path, 1, Style(sizes=False, logs=1.0), 36)

    assert ours(point, tmp_path) == point.disk.tobytes()
    assert by_libvhdi(point.path) != point.disk.tobytes()


@needs_qemu
@pytest.mark.parametrize("name", ["vhdx", "vhd"])
@pytest.mark.parametrize("seed", [41, 42, 43])
def test_qemu_reads_the_same_single_image(name: str, seed: int, tmp_path: Path) -> None:
    point = a_chain(tmp_path, 1, PLAIN[name], seed)

    assert by_qemu(point.path, tmp_path / "theirs.raw") == ours(point, tmp_path) == point.disk.tobytes()


@needs_qemu
def test_qemu_takes_a_differencing_vhd_for_a_dynamic_one(tmp_path: Path) -> None:
    """Exit code 0, and zeros where the parent's data should be."""
    point = a_chain(tmp_path, 2, PLAIN["vhd"], 44)

    assert ours(point, tmp_path) == point.disk.tobytes()
    assert by_qemu(point.path, tmp_path / "theirs.raw") != point.disk.tobytes()


@needs_qemu
def test_qemu_img_check_finds_nothing_wrong_with_what_we_write(tmp_path: Path) -> None:
    """VHDX only: qemu-img has no check for VHD."""
    assert QEMU_IMG is not None
    point = a_chain(tmp_path, 1, PLAIN["vhdx"], 45)

    done = subprocess.run([QEMU_IMG, "check", str(point.path)], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr

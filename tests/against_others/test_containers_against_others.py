"""Images that exports make, read by other programs: single ones, and children through their parents."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.against_others.test_chains_against_others import (
    QEMU_IMG,
    by_7zip,
    by_libvhdi,
    by_qemu,
    needs_7zip,
    needs_libvhdi,
    needs_qemu,
)
from tests.export.pieces import (
    CHILDREN,
    DATA,
    GAP,
    KINDS,
    MIB,
    ZEROS,
    Kind,
    Piece,
    a_parent,
    a_shape,
    an_image,
    disk_of,
    kind_id,
    size_of,
)
from vhdtool.export.containers.shape import Shape, shape_of_export
from vhdtool.formats.registry import open_image
from vhdtool.formats.vhd.chs import geometry_of

FULL = [kind for kind in KINDS if kind[0] != "raw" and kind[1] != "differencing"]
SIZES = [512, 2 * MIB, 5 * MIB + 37 * 512, 137 * MIB + 512]


def some_pieces(size: int, sector_size: int, seed: int, grain: int = 1) -> list[Piece]:
    """Data, zeros and gaps of a few sectors up to a few blocks, in units of ``grain`` sectors."""
    rng = np.random.default_rng(seed)
    unit = sector_size * grain
    pieces: list[Piece] = []
    start = 0
    while start < size:
        length = unit * int(rng.choice([1, 3, 9, 200, 2048, 6000]) * rng.random() + 1)
        stop = min(size, start + length)
        what = (DATA, ZEROS, GAP)[int(rng.integers(3))]
        pieces.append(Piece(start, stop, what))
        start = stop
    return pieces


def qemu_info(path: Path, *, kind: str) -> dict[str, object]:
    done = subprocess.run(
        [str(QEMU_IMG), "info", "--output=json", "-f", kind, str(path)], capture_output=True, check=True
    )
    document: dict[str, object] = json.loads(done.stdout)
    return document


@needs_qemu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [kind for kind in FULL if kind[3] == 512], ids=kind_id)
def test_qemu_reads_full_images_of_any_size(kind: Kind, size: int, tmp_path: Path) -> None:
    """It refuses a VHDX with sectors of 4096 bytes."""
    path = tmp_path / f"image.{kind[0]}"
    pieces = some_pieces(size, kind[3], seed=size)
    an_image(path, a_shape(kind, size, path), pieces)
    name = "vpc" if kind[0] == "vhd" else "vhdx"

    assert qemu_info(path, kind=name)["virtual-size"] == size
    assert by_qemu(path, tmp_path / "theirs.raw") == disk_of(pieces).tobytes()
    if name == "vhdx":
        done = subprocess.run([str(QEMU_IMG), "check", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_7zip
@pytest.mark.parametrize("kind", FULL, ids=kind_id)
def test_7zip_reads_full_images(kind: Kind, tmp_path: Path) -> None:
    size = 9 * MIB + 38 * 4096
    path = tmp_path / f"image.{kind[0]}"
    pieces = some_pieces(size, kind[3], seed=1)
    an_image(path, a_shape(kind, size, path), pieces)

    assert by_7zip(path) == disk_of(pieces).tobytes()


def a_family(kind: Kind, folder: Path, grain: int = 1, zeros: bool = True) -> tuple[Path, bytes]:
    """A child over a child over a base, and the disk of the youngest."""
    size = 9 * MIB + 38 * 4096
    parent, disk = a_parent(folder, kind, size)
    path = Path(parent.target)
    for number in range(2):
        path = folder / f"child{number}.a{kind[0]}"
        pieces = some_pieces(size, kind[3], seed=number + 2, grain=grain)
        if not zeros:
            pieces = [Piece(p.start, p.stop, DATA if p.what == ZEROS else p.what) for p in pieces]
        assert size_of(pieces) == size
        shape: Shape = a_shape(kind, size, path, parent)
        an_image(path, shape, pieces)
        parent, disk = shape, disk_of(pieces, disk)
    return path, disk.tobytes()


@needs_7zip
@pytest.mark.parametrize("kind", CHILDREN, ids=kind_id)
def test_7zip_reads_children_through_their_parents(kind: Kind, tmp_path: Path) -> None:
    path, disk = a_family(kind, tmp_path)

    assert by_7zip(path) == disk


@needs_libvhdi
@pytest.mark.parametrize("kind", CHILDREN, ids=kind_id)
def test_libvhdi_reads_children_through_their_parents(kind: Kind, tmp_path: Path) -> None:
    """VHD with runs of 4 KiB, VHDX without blocks of zeros: it is wrong about the others."""
    is_vhd = kind[0] == "vhd"
    path, disk = a_family(kind, tmp_path, grain=8 if is_vhd else 1, zeros=is_vhd)

    assert by_libvhdi(path) == disk


# ------------------------------------------------------------ Azure


@needs_qemu
@pytest.mark.parametrize("mib", [1, 3, 20, 127, 504, 1024, 2015, 130_000, 2_088_960])
def test_a_disk_for_azure_has_the_size_of_one_by_qemu(mib: int, tmp_path: Path) -> None:
    """``force_size`` is what Azure's own instructions ask of qemu-img."""
    raw, path = tmp_path / "disk.raw", tmp_path / "ours.vhd"
    raw.touch()
    os.truncate(raw, mib * MIB - 512)
    leaf = open_image(raw)
    shape = shape_of_export(path, leaf, azure=True)
    leaf.close()
    an_image(path, shape, [Piece(0, min(MIB, mib * MIB - 512), DATA)])
    os.truncate(raw, mib * MIB)
    theirs = footer(converted(raw, tmp_path / "theirs.vhd", "subformat=fixed,force_size"))
    ours = footer(path)

    assert path.stat().st_size == mib * MIB + 512 == (tmp_path / "theirs.vhd").stat().st_size
    assert qemu_info(path, kind="vpc")["virtual-size"] == mib * MIB
    assert ours[16:24] == theirs[16:24]  # data offset: none
    assert ours[40:56] == theirs[40:56]  # original and current size
    assert ours[60:64] == theirs[60:64]  # disk type
    # Its geometry is always the largest with force_size; ours is the specification's.
    assert ours[56:60] == geometry_bytes(mib * MIB)


@needs_qemu
@pytest.mark.parametrize("mib", [1, 3, 20, 127, 504, 1024, 2015, 130_000])
def test_the_geometry_of_a_size_is_the_one_that_qemu_computes(mib: int, tmp_path: Path) -> None:
    """Without ``force_size`` it makes the disk as large as a geometry that is not smaller."""
    raw = tmp_path / "disk.raw"
    raw.touch()
    os.truncate(raw, mib * MIB)
    theirs = footer(converted(raw, tmp_path / "theirs.vhd", "subformat=fixed"))

    assert theirs[56:60] == geometry_bytes(int.from_bytes(theirs[48:56], "big"))


def converted(raw: Path, target: Path, options: str) -> Path:
    command = [str(QEMU_IMG), "convert", "-f", "raw", "-O", "vpc", "-o", options, str(raw), str(target)]
    subprocess.run(command, capture_output=True, check=True)
    return target


def geometry_bytes(size: int) -> bytes:
    cylinders, heads, sectors = geometry_of(size)
    return cylinders.to_bytes(2, "big") + bytes([heads, sectors])


def footer(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-512, os.SEEK_END)
        return file.read()

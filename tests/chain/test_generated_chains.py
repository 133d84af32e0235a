"""Chains of both formats made at random: every export and every read is the disk that was written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import vhdtool
from tests.generated import MIB, Point, Style, a_base, a_chain, a_child
from vhdtool.chain.reference import read_naively

VHDX = Style()
VHD = Style(format="vhd", block_sizes=(512 << 10, 2 * MIB))
STYLES = {
    "vhdx": VHDX,
    "vhdx-4k": Style(sector_size=4096, block_sizes=(MIB, 4 * MIB)),
    "vhdx-logs": Style(logs=0.5),
    "vhd": VHD,
    "vhd-small-blocks": Style(format="vhd", block_sizes=(4096, 32 << 10, 2 * MIB), size=3 * MIB + 512),
    "vhd-one-sector-blocks": Style(format="vhd", block_sizes=(512, 1024, 2048), size=64 << 10),
}


def exported(point: Point, folder: Path, name: str = "out.raw") -> bytes:
    target = folder / name
    with vhdtool.open_chain(point.path) as chain:
        vhdtool.export_image(chain, target, force=True)
    data = target.read_bytes()
    target.unlink()
    return data


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@pytest.mark.parametrize(("depth", "seed"), [(1, 1), (2, 2), (3, 3), (5, 4), (16, 5)])
def test_an_export_is_the_disk_that_was_written(style: Style, depth: int, seed: int, tmp_path: Path) -> None:
    point = a_chain(tmp_path, depth, style, seed)

    assert exported(point, tmp_path) == point.disk.tobytes()


@pytest.mark.parametrize("style", [STYLES["vhdx-logs"], VHD], ids=["vhdx-logs", "vhd"])
def test_a_chain_of_64_layers_is_read_right(style: Style, tmp_path: Path) -> None:
    point = a_chain(tmp_path, 64, style, 6)

    assert exported(point, tmp_path) == point.disk.tobytes()
    with vhdtool.open_chain(point.path) as chain:
        assert len(chain.layers) == 64


@pytest.mark.parametrize("style", [VHDX, VHD], ids=["vhdx", "vhd"])
def test_every_point_of_a_forked_tree_shows_its_own_disk(style: Style, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    base = a_base(tmp_path, style, rng)
    first = a_child(base, rng, "first")
    points = [base, first]
    for i in range(3):
        points.append(a_child(first, rng, f"fork{i}"))
        points.append(a_child(points[-1], rng, f"leaf{i}"))

    for point in points:
        assert exported(point, tmp_path) == point.disk.tobytes()


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_random_reads_equal_the_slice_of_the_whole(style: Style, tmp_path: Path) -> None:
    """They start in the middle of a block, cross blocks and have odd lengths."""
    point = a_chain(tmp_path, 4, style, 8)
    disk = point.disk.tobytes()
    rng = np.random.default_rng(9)
    with vhdtool.open_chain(point.path) as chain, chain.open() as file:
        for _ in range(60):
            start = int(rng.integers(0, len(disk)))
            length = int(min(len(disk) - start, rng.choice([1, 511, 4096, 100_001, 1_500_000])))
            expected = disk[start : start + length]
            assert chain.read(start, length) == expected
            file.seek(start)
            assert file.read(length) == expected
            short = expected[:5000]
            assert read_naively(chain.images, start, len(short)) == short


def test_both_engines_give_one_plan_on_real_files(tmp_path: Path) -> None:
    point = a_chain(tmp_path, 8, STYLES["vhdx-logs"], 10)
    with vhdtool.open_chain(point.path) as chain:
        one = [run for plan in chain.windows(engine="numpy") for run in plan]
        other = [run for plan in chain.windows(engine="numba") for run in plan]
    assert one == other


def test_inputs_are_not_touched_by_reading_a_chain(tmp_path: Path) -> None:
    point = a_chain(tmp_path / "in", 5, STYLES["vhdx-logs"], 11)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in point.path.parent.iterdir()}

    exported(point, tmp_path)

    after = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in point.path.parent.iterdir()}
    assert before == after


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("VHDTOOL_SEEDS", "40"))))
def test_many_random_chains_are_read_right(seed: int, tmp_path: Path) -> None:
    style = list(STYLES.values())[seed % len(STYLES)]
    point = a_chain(tmp_path, 1 + seed % 9, style, 1000 + seed)

    assert exported(point, tmp_path) == point.disk.tobytes()

"""What a backup of what changed costs: an increment of 2 %, and all points of a tree of 16 in one pass.

An increment stands beside cp of a file with as many bytes as changed, in one piece; cp of the snapshot says
how much of the difference is due to their being scattered.  The disk is large, and of the base there are only
tables and bitmaps: whoever read its data would do so in vain.

All points in one pass stand beside cp of every file of the tree, that is of what is there once, and beside
exporting each point by itself.

Ours runs in this process, from closed files on.  The increment is made as cp makes its copy, without a
manifest, and once more with one; all points have theirs, for a set is nothing without.
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.chains import GIB, KIB, MIB, Disk, used_disks
from benchmarks.contest import (
    Contestant,
    compete,
    in_process,
    note,
    note_without_start,
    one_after_the_other,
    whole_process,
)
from benchmarks.exporting import ask_for_memory, data_bytes, folder_bytes, holds_disk
from vhdtool import ExportOptions, ReadPlan, export_all, export_image, open_chain, verify_image
from vhdtool.export.containers.target import TargetFile
from vhdtool.export.increment import open_base
from vhdtool.export.proof.manifest import manifest_path
from vhdtool.export.sets.verifyset import verify_set
from vhdtool.model.identity import ImageFormat
from vhdtool.simulate.synthetic import Layout, Recipe, make_chain

# The hard case of all chains here, and what guests do that write files rather than pages.
RUNS_KIB: Final = ((4, 64), (64, 1024))
START: Final = "finding out what changed"
INCREMENT_TARGET: Final = 1.5  # of cp, plus the start
POINTS: Final = 16
ALL_POINTS_TARGETS: Final = {"cp of all files": 1.3, "16 separate exports": 1 / 4}


# ------------------------------------------------------------ an increment


class Changed:
    """A base without payload, and a snapshot of it that holds 2 % of the base's data anew.

    Attributes:
        base, leaf: the images.
        bytes: a file with what the leaf holds, one run after the other.
        runs: of the leaf's own bytes, guest offsets and lengths, int64[n, 2].
    """

    def __init__(self, folder: Path, image_format: ImageFormat, recipe: Recipe) -> None:
        folder.mkdir()
        made = make_chain(folder, recipe, Layout(image_format), TargetFile, payload=False)
        self.base, self.leaf = made
        self.bytes = folder / "changed"
        with open_chain(self.leaf) as chain:
            plan = chain.plan()
        self.runs = own_runs(plan)
        noise = np.random.default_rng(0)
        with self.leaf.open("r+b") as leaf, self.bytes.open("wb") as changed:
            for place, length in zip(
                *(column[plan.layer == 0] for column in (plan.file_offset, plan.length))
            ):
                data = noise.bytes(int(length))
                leaf.seek(int(place))
                leaf.write(data)
                changed.write(data)
            for file in (leaf, changed):
                file.flush()
                os.fsync(file.fileno())


def own_runs(plan: ReadPlan) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Guest offsets and lengths of what the leaf itself holds, int64[n, 2]."""
    own = plan.layer == 0
    return np.stack((plan.offset[own], plan.length[own]), axis=1)


def holds_what_changed(increment: Path, changed: Changed) -> bool:
    """Whether ``increment`` holds what the snapshot holds and leaves everything else to the base."""
    with open_chain(increment) as chain, changed.bytes.open("rb") as truth:
        same_parent = chain.layers[1].path.samefile(changed.base)
        if not same_parent or not np.array_equal(own_runs(chain.plan()), changed.runs):
            return False
        return all(chain.read(start, length) == truth.read(length) for start, length in changed.runs.tolist())


def find_changes(changed: Changed) -> int:
    """Open both and plan the increment: its start, before a byte of data is read."""
    with open_chain(changed.leaf) as leaf, open_base(changed.base, leaf=leaf) as base:
        return sum(len(plan) for plan in base.plans(leaf))


@pytest.mark.usefixtures("fresh_engine")
@pytest.mark.parametrize("run_kib", RUNS_KIB, ids="runs={0[0]}-{0[1]}KiB".format)
@pytest.mark.parametrize("image_format", [ImageFormat.VHDX, ImageFormat.VHD], ids=str)
def test_increment_of_two_percent(
    benchmark: BenchmarkFixture,
    room: Path,
    measuring: bool,
    image_format: ImageFormat,
    run_kib: tuple[int, int],
) -> None:
    low, high = (kib * KIB for kib in run_kib)
    size = (32 * GIB) if measuring else 256 * MIB
    folder = room / "changed"
    changed = Changed(folder, image_format, Recipe(size, 2, run_length_min=low, run_length_max=high))
    target = room / f"increment.{image_format}"

    def prepare() -> None:
        target.unlink(missing_ok=True)
        manifest_path(target).unlink(missing_ok=True)
        ask_for_memory(target, changed.bytes.stat().st_size)

    def export(**options: Any) -> Contestant:
        return in_process(
            lambda: export_image(changed.leaf, target, base=changed.base, sync=False, **options)
        )

    ours = export(manifest=False)
    peers = {
        "cp of the changed bytes": whole_process("cp", changed.bytes, target),
        "cp of the snapshot": whole_process("cp", changed.leaf, target),
        "ours with a manifest": export(),
        START: in_process(lambda: find_changes(changed)),
    }

    samples = compete(benchmark, ours, peers, rounds=9, prepare=prepare)

    note_without_start(benchmark, samples, START, "cp of the changed bytes", INCREMENT_TARGET)
    prepare()
    peers["ours with a manifest"]()
    assert verify_image(target).ok
    assert holds_what_changed(target, changed)
    benchmark.extra_info.update(
        changed_bytes=changed.bytes.stat().st_size, runs=len(changed.runs), file_bytes=data_bytes(target)
    )
    prepare()
    shutil.rmtree(folder)


# ------------------------------------------------------------ all points


@pytest.fixture(scope="module")
def points(room: Path, measuring: bool) -> dict[int, Disk]:
    """Three of a chain's points, with the flat disks that they are; the leaf among them."""
    size = (GIB // 2) if measuring else 32 * MIB
    last = (POINTS if measuring else 4) - 1
    return used_disks(room / "tree", [0, last // 2, last], ImageFormat.VHDX, size)


def each_by_itself(paths: list[Path], target: Path) -> Contestant:
    """A full export of each point in time; where the next one goes, nothing stands any more."""

    def remove() -> None:
        target.unlink(missing_ok=True)
        manifest_path(target).unlink(missing_ok=True)

    jobs = [in_process(partial(export_image, path, target, sync=False)) for path in paths]
    return one_after_the_other(jobs, remove)


@pytest.mark.usefixtures("fresh_engine")
def test_all_points(benchmark: BenchmarkFixture, room: Path, points: dict[int, Disk]) -> None:
    paths = points[max(points)].paths
    tree, destination = paths[0].parent, room / "all"
    options = ExportOptions(sync=False)

    def prepare() -> None:
        shutil.rmtree(destination, ignore_errors=True)
        destination.mkdir()
        ask_for_memory(destination / "memory", folder_bytes(paths))

    ours = in_process(lambda: export_all(tree, destination, options))
    peers = {
        "cp of all files": whole_process("cp", "-R", tree, destination),
        "16 separate exports": each_by_itself(paths[::-1], destination / "one.vhdx"),
    }

    compete(benchmark, ours, peers, rounds=5, prepare=prepare, targets=ALL_POINTS_TARGETS)

    prepare()
    report = export_all(tree, destination, options)
    assert verify_set(destination).ok
    exported = {point.point_in_time: destination / point.target for point in report.points}
    assert len(exported) == len(paths)
    for disk in points.values():
        assert holds_disk(exported[disk.leaf], disk.flat)
    there_once = folder_bytes(paths)
    note(benchmark, "read / there once", report.read_bytes / there_once)
    benchmark.extra_info.update(points=len(paths), bytes_there_once=there_once)
    prepare()

"""Fragmentation does not depend on how plans are cut into windows, and is what a plain count finds."""

from __future__ import annotations

import statistics
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vhdtool.model.plan import ReadPlan
from vhdtool.model.state import DAMAGED, ZEROS, Run
from vhdtool.simulate.figures import Fragmentation
from vhdtool.simulate.fragmentation import fragmentation_of

MIB = 1 << 20
STEP = MIB // 4


@st.composite
def runs(draw: st.DrawFn) -> list[Run]:
    """Runs that tile a disk; their lengths and places are multiples of 256 KiB, so that much coincides."""
    found: list[Run] = []
    offset = 0
    for _ in range(draw(st.integers(0, 30))):
        length = draw(st.sampled_from([1, 1, 2, 3, 4, 9])) * STEP
        layer = draw(st.sampled_from([ZEROS, DAMAGED, 0, 0, 1, 2]))
        place = -1 if layer < 0 else draw(st.integers(0, 40)) * STEP
        if draw(st.booleans()) and found and found[-1].layer >= 0:
            layer, place = found[-1].layer, found[-1].file_offset + found[-1].length
        found.append(Run(offset, length, layer, place))
        offset += length
    return found


def plainly(tiles: list[Run]) -> Fragmentation:
    """The docstring's definition, one run and one MiB after the other."""
    whole = [run for run in ReadPlan.of_runs(tiles) if run.layer >= 0]
    cut = [
        (mib, run.layer)
        for run in whole
        for mib in range(run.offset // MIB, -(-(run.offset + run.length) // MIB))
    ]
    backward = 0
    for layer in range(3):
        mine = [run for run in whole if run.layer == layer]
        backward += sum(
            after.file_offset < before.file_offset + before.length for before, after in pairwise(mine)
        )
    mibs = len({mib for mib, _ in cut})
    lengths = [run.length for run in whole]
    return Fragmentation(
        len(cut) / mibs if mibs else 0.0,
        len(set(cut)) / mibs if mibs else 0.0,
        backward / mibs if mibs else 0.0,
        sum(lengths) / len(lengths) if lengths else 0.0,
        float(statistics.median(lengths)) if lengths else 0.0,
    )


@given(tiles=runs(), data=st.data())
def test_windows_of_any_size_give_what_a_plain_count_gives(tiles: list[Run], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(tiles)))))
    windows = [
        ReadPlan.of_runs(tiles[first:last])
        for first, last in pairwise([0, *cuts, len(tiles)])
        if first < last
    ]

    assert fragmentation_of(windows, 3) == plainly(tiles)


def test_runs_of_a_disk_of_64_tib_are_counted_without_going_through_its_mebibytes() -> None:
    size = 64 << 40
    half = np.array([size // 2, size // 2])
    plan = ReadPlan(np.array([0, size // 2]), half, np.array([0, 1], np.int16), np.array([0, 0]))

    found = fragmentation_of([plan], 2)

    assert found == Fragmentation(1.0, 1.0, 0.0, size / 2, size / 2)

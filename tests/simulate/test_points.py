"""What reads cost at points in time of one chain, worked out by hand."""

from __future__ import annotations

import pytest

from tests.chain.fake import FakeImage, chain_of
from vhdtool.model.geometry import Geometry
from vhdtool.model.state import BlockState
from vhdtool.simulate.devices import DeviceModel
from vhdtool.simulate.points import cost_of_points

SECTOR = 512
GEOMETRY = Geometry(64 * SECTOR, 16 * SECTOR, SECTOR)
ABSENT, DATA, PARTIAL = BlockState.ABSENT, BlockState.DATA, BlockState.PARTIAL


def test_each_byte_of_data_counts_once_at_each_point() -> None:
    # Of four blocks of 16 sectors the base has three, the leaf all of the first and half of the second.
    base = FakeImage(GEOMETRY, [DATA, DATA, DATA, ABSENT], {}, seed=1)
    leaf = FakeImage(GEOMETRY, [DATA, PARTIAL, ABSENT, ABSENT], {1: [i < 8 for i in range(16)]}, seed=2)
    # A device that only jumps cost: a second each.
    device = DeviceModel("jumps", 0.0, 1.0, 1e30)

    alone, through_both = cost_of_points(chain_of(leaf, base), devices=[device])

    assert (alone.layer, alone.depth) == (1, 1)
    assert alone.bytes_by_probes == (48 * SECTOR,)
    assert (alone.probes.mean, alone.probes.p50, alone.probes.max) == (1.0, 1, 1)
    assert (through_both.layer, through_both.depth) == (0, 2)
    # The leaf settles 24 sectors, the base 24: the fourth block is no data.
    assert through_both.bytes_by_probes == (24 * SECTOR, 24 * SECTOR)
    assert (through_both.probes.mean, through_both.probes.p50, through_both.probes.p99) == (1.5, 1, 2)
    # Flat, the disk's data are one stretch: one jump.  In the files each stored block stands by itself.
    assert alone.in_order[0].relative_to_flat == pytest.approx(1 / 3)
    assert through_both.in_order[0].relative_to_flat == pytest.approx(1 / 4)


def test_points_double_and_end_with_the_leaf() -> None:
    layers = [FakeImage(GEOMETRY, [DATA] * 4, {}, seed=i) for i in range(9)]

    points = cost_of_points(chain_of(*layers))

    # 8 is next to 9, and says nothing that 9 does not.
    assert [(point.depth, point.layer) for point in points] == [(1, 8), (2, 7), (4, 5), (9, 0)]


def test_a_disk_without_data_costs_nothing() -> None:
    (point,) = cost_of_points(chain_of(FakeImage(GEOMETRY, [ABSENT] * 4, {})))

    assert point.probes.mean == 0
    assert point.bytes_by_probes == (0,)
    assert all(device.relative_to_flat == 1 for device in point.in_order)

"""What can differ between two points in time is found from metadata, exactly."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chain.fake import FakeImage, chain_of, fake_chains, truth
from vhdtool.chain import diff
from vhdtool.chain.chain import Chain
from vhdtool.chain.diff import RangeList, diff_chains, side_by_side
from vhdtool.model.state import DAMAGED, Run

SECTOR = 512


@given(images=fake_chains(), data=st.data())
def test_what_is_not_in_the_ranges_is_equal_in_any_two_points_of_a_tree(
    images: list[FakeImage], data: st.DataObject
) -> None:
    # Two leaves with a common tail: cousins, a point and its ancestor, or strangers.
    common = data.draw(st.integers(0, len(images) - 1))
    others = [i for i in data.draw(fake_chains()) if i.geometry.sector_size == images[0].geometry.sector_size]
    second = [*others, *images[common:]]
    a, b = truth(images), truth(second)

    found = diff_chains(chain_of(*images), chain_of(*second))

    assert found.virtual_size == max(len(a), len(b))
    inside = bytearray(found.virtual_size)
    for start, length in found.ranges:
        assert length > 0
        inside[start : start + length] = b"\1" * length
    assert sum(inside) == found.bytes
    for i in range(min(len(a), len(b))):
        assert inside[i] or a[i] == b[i]
    assert all(inside[min(len(a), len(b)) :])
    assert len(found.common_layers) >= len(images) - common


@given(images=fake_chains())
def test_a_point_does_not_differ_from_itself(images: list[FakeImage]) -> None:
    found = diff_chains(chain_of(*images), chain_of(*images))

    assert found.ranges == ()
    assert found.bytes == 0


def two_points_of_a_tree(data: st.DataObject, images: list[FakeImage]) -> tuple[Chain, Chain]:
    """Two chains with a common tail, which may be nothing, or all of one or of both."""
    common = data.draw(st.integers(0, len(images)))
    others = [i for i in data.draw(fake_chains()) if i.geometry.sector_size == images[0].geometry.sector_size]
    return chain_of(*images), chain_of(*([*others, *images[common:]] or images))


def origins(chain: Chain) -> list[object]:
    """For each 512 bytes of the disk: where they are taken from."""
    found: list[object] = []
    for plan in chain.windows():
        for run in plan:
            found += [origin(chain, run, skipped) for skipped in range(0, run.length, SECTOR)]
    return found


def origin(chain: Chain, run: Run, skipped: int) -> object:
    return (chain.images[run.layer], run.file_offset + skipped) if run.layer >= 0 else run.layer


@pytest.mark.parametrize("gap", [0, diff._GAP_CELLS])
@given(images=fake_chains(), data=st.data())
def test_two_points_side_by_side_are_what_each_is_alone(
    gap: int, images: list[FakeImage], data: st.DataObject
) -> None:
    a, b = two_points_of_a_tree(data, images)
    of_a, of_b = origins(a), origins(b)
    with patch.object(diff, "_GAP_CELLS", gap):
        windows = list(side_by_side(a, b))

    same: list[bool] = []
    for window in windows:
        assert window.start == len(same) * SECTOR
        for run_a, run_b in window.differing():
            for first, chain, run in ((of_a, a, run_a), (of_b, b, run_b)):
                for skipped in range(0, run.length, SECTOR):
                    assert first[(run.offset + skipped) // SECTOR] == origin(chain, run, skipped)
        same += np.repeat(window.same, window.length // SECTOR).tolist()
    assert same == [one == two != DAMAGED for one, two in zip(of_a, of_b)]


@given(images=fake_chains(), data=st.data())
def test_looking_at_the_layers_above_alone_says_what_looking_at_all_says(
    images: list[FakeImage], data: st.DataObject
) -> None:
    a, b = two_points_of_a_tree(data, images)
    expected = RangeList()
    for piece in side_by_side(a, b):
        for i in np.flatnonzero(~piece.same).tolist():
            expected.add(int(piece.offset[i]), int(piece.length[i]))
    smaller, larger = sorted((a.virtual_size, b.virtual_size))
    expected.add(smaller, larger - smaller)

    assert diff_chains(a, b).ranges == tuple(expected.ranges)

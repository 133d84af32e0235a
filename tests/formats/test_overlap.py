"""Cross-linked blocks are found, all of them, however the table is cut up for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vhdtool.formats.overlap import Batch, find_overlaps

FILE_SIZE = 5000
Range = tuple[int, int]


def in_batches(ranges: list[Range], size: int) -> Callable[[], Iterator[Batch]]:
    def batches() -> Iterator[Batch]:
        for first in range(0, len(ranges), size):
            part = np.array(ranges[first : first + size], np.int64).reshape(-1, 2)
            yield part[:, 0], part[:, 1], np.arange(first, first + len(part), dtype=np.int64)

    return batches


def truth(ranges: list[Range]) -> set[int]:
    owners: dict[int, list[int]] = {}
    for i, (start, length) in enumerate(ranges):
        for byte in range(start, start + length):
            owners.setdefault(byte, []).append(i)
    return {i for ids in owners.values() if len(ids) > 1 for i in ids}


ranges_in_a_file = st.lists(
    st.integers(0, FILE_SIZE - 1).flatmap(
        lambda start: st.tuples(st.just(start), st.integers(1, min(600, FILE_SIZE - start)))
    ),
    max_size=30,
)


@given(ranges=ranges_in_a_file, batch=st.integers(1, 8), group=st.integers(1, 9))
def test_the_cross_linked_blocks_are_those_that_a_look_at_every_byte_finds(
    ranges: list[Range], batch: int, group: int
) -> None:
    expected = truth(ranges)

    found = find_overlaps(in_batches(ranges, batch), FILE_SIZE, group_max=group)

    assert bool(found) == bool(expected)
    if not found.everything:
        assert set(found.ids.tolist()) == expected
        assert found.ids.tolist() == sorted(expected)
        for one, other, offset in found.examples:
            for i in (one, other):
                assert ranges[i][0] <= offset < sum(ranges[i])


@given(ranges=ranges_in_a_file, batch=st.integers(1, 8))
def test_a_table_that_fits_one_group_is_always_told_apart(ranges: list[Range], batch: int) -> None:
    found = find_overlaps(in_batches(ranges, batch), FILE_SIZE)

    assert not found.everything
    assert set(found.ids.tolist()) == truth(ranges)


@given(places=st.permutations(range(40)), group=st.integers(1, 9))
def test_neighbours_that_only_touch_are_sound_in_any_order(places: list[int], group: int) -> None:
    ranges = [(place * 100, 100) for place in places]

    assert not find_overlaps(in_batches(ranges, 7), FILE_SIZE, group_max=group)


@given(
    clusters=st.lists(
        st.tuples(st.integers(0, 5), st.lists(st.integers(0, 3000), min_size=1, max_size=12)),
        min_size=1,
        max_size=5,
    ),
    group=st.integers(1, 6),
)
def test_a_crowded_corner_of_a_large_file_is_cut_finer(
    clusters: list[tuple[int, list[int]]], group: int
) -> None:
    file_size = 1 << 44
    starts = [(corner << 41) + 512 * place for corner, places in clusters for place in places]
    ranges = [(start, 1024) for start in starts]
    expected = {
        i for i, start in enumerate(starts)
        for j, other in enumerate(starts) if i != j and abs(start - other) < 1024
    }  # fmt: skip

    found = find_overlaps(in_batches(ranges, 5), file_size, group_max=group)

    assert bool(found) == bool(expected)
    if not found.everything:
        assert set(found.ids.tolist()) == expected


@given(ranges=ranges_in_a_file, group=st.integers(1, 9))
def test_passes_may_leave_out_what_begins_elsewhere(ranges: list[Range], group: int) -> None:
    def within(low: int, high: int) -> Iterator[Batch]:
        for starts, lengths, ids in in_batches(ranges, 4)():
            here = (starts >= low) & (starts < high)
            assert not isinstance(lengths, int)
            yield starts[here], lengths[here], ids[here]

    found = find_overlaps(in_batches(ranges, 4), FILE_SIZE, within=within, group_max=group)
    plain = find_overlaps(in_batches(ranges, 4), FILE_SIZE, group_max=group)

    assert (found.ids.tolist(), found.examples, found.everything) == (
        plain.ids.tolist(), plain.examples, plain.everything,
    )  # fmt: skip


def test_a_table_with_more_bytes_than_its_file_is_given_up_before_it_is_held() -> None:
    served = 0

    def batches() -> Iterator[Batch]:
        nonlocal served
        for first in range(0, 1 << 40, 1000):
            served += 1
            yield np.zeros(1000, np.int64), 512, np.arange(first, first + 1000, dtype=np.int64)

    found = find_overlaps(batches, 1 << 20, group_max=5000)

    assert found.everything
    assert served < 20
    assert found.among(np.array([3, 9])).all()


def test_more_cross_linked_blocks_than_are_told_apart_stand_for_all() -> None:
    ranges = [(0, 10)] * 100

    assert find_overlaps(in_batches(ranges, 10), FILE_SIZE, ids_max=50).everything
    assert find_overlaps(in_batches(ranges, 10), FILE_SIZE, ids_max=100).ids.tolist() == list(range(100))


def test_one_length_for_all_ranges_is_enough() -> None:
    def batches() -> Iterator[Batch]:
        yield np.array([300, 0, 250], np.int64), 100, np.array([7, 8, 9], np.int64)

    found = find_overlaps(batches, FILE_SIZE)

    assert found.ids.tolist() == [7, 9]
    assert found.examples == ((9, 7, 300),)
    assert found.among(np.array([9, 8, 10])).tolist() == [True, False, False]


def test_among_of_nothing_found_is_nowhere_true() -> None:
    found = find_overlaps(in_batches([], 1), FILE_SIZE)

    assert not found
    assert not found.among(np.array([0, 1])).any()

"""Made-up workloads: where the reads fall, how often, and that one seed gives one workload."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from vhdtool.errors import VhdtoolError, WorkloadError
from vhdtool.simulate.workloads import (
    BATCH_ROWS,
    KINDS,
    Area,
    Hotspot,
    Kind,
    Random,
    Scatter,
    Sequential,
    Workload,
    Zipf,
    ZipfRanks,
    synthetic,
)

TIB = 1 << 40
READS = 200_000


def columns(workload: Any, **options: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    batches = list(workload.batches(**options))
    return np.concatenate([b.offset for b in batches]), np.concatenate([b.length for b in batches])


def slots_read(workload: Any) -> NDArray[np.int64]:
    """How often each slot of a whole disk is read, slot by slot."""
    offset, _ = columns(workload)
    return np.bincount(offset // workload.area.size, minlength=workload.area.slot_count)


def whole(slots: int = 1000, size: int = 4096) -> Area:
    return Area.whole(slots * size, size)


def allocated(virtual_size: int, size: int, *ranges: tuple[int, int]) -> Area:
    starts, lengths = zip(*ranges, strict=True) if ranges else ((), ())
    return Area.allocated(virtual_size, size, np.array(starts, np.int64), np.array(lengths, np.int64))


# Areas


def test_sequential_reads_begin_at_the_start_and_go_round() -> None:
    offset, length = columns(Sequential(whole(slots=3, size=512), reads=7))

    assert offset.tolist() == [0, 512, 1024, 0, 512, 1024, 0]
    assert length.tolist() == [512] * 7


def test_the_last_read_of_a_disk_is_as_short_as_the_disk_makes_it() -> None:
    area = Area.whole(10_000, 4096)

    offset, length = columns(Sequential(area, reads=4))

    assert offset.tolist() == [0, 4096, 8192, 0]
    assert length.tolist() == [4096, 4096, 1808, 4096]
    assert (area.slot_count, area.nbytes) == (3, 10_000)


def test_a_read_larger_than_the_disk_reads_the_disk() -> None:
    offset, length = columns(Random(Area.whole(1000, 4096), reads=2))

    assert (offset.tolist(), length.tolist()) == ([0, 0], [1000, 1000])


def test_slots_lie_wholly_in_a_range_and_are_aligned() -> None:
    # [100, 5000) holds no aligned 4096 but the one at 0, of which it lacks the start.
    # [8000, 20000) holds those at 8192 and 12288; [20480, 24576) is one; [28672, 30000) is a short one.
    area = allocated(30_000, 4096, (100, 4900), (8000, 12_000), (20_480, 4096), (28_672, 1328))

    offset, length = columns(Sequential(area, reads=5))

    assert offset.tolist() == [8192, 12_288, 20_480, 28_672, 8192]
    assert length.tolist() == [4096, 4096, 4096, 1328, 4096]
    assert (area.slot_count, area.nbytes) == (4, 3 * 4096 + 1328)


def test_ranges_that_touch_count_as_one() -> None:
    area = allocated(1 << 20, 4096, (0, 1024), (1024, 2048), (3072, 1024), (8192, 512))

    assert columns(Sequential(area, reads=2))[0].tolist() == [0, 0]


@pytest.mark.parametrize(
    "area",
    [
        lambda: Area.whole(0, 4096),
        lambda: allocated(1 << 20, 4096),
        lambda: allocated(1 << 20, 4096, (512, 4096)),
        lambda: Area.whole(1 << 20, 0),
        lambda: Area.whole(1 << 20, -512),
        lambda: Area.whole(1 << 20, 1 << 63),
    ],
    ids=["no disk", "no range", "no whole slot", "size 0", "size below 0", "size too large"],
)
def test_nothing_to_read_is_an_error_of_usage(area: Any) -> None:
    with pytest.raises(WorkloadError) as caught:
        area()

    assert isinstance(caught.value, VhdtoolError)
    assert isinstance(caught.value, ValueError)
    assert caught.value.exit_code == 2
    assert "read" in str(caught.value)


@pytest.mark.parametrize(
    "ranges",
    [[(4096, 0)], [(8192, 4096), (0, 4096)], [(0, 8192), (4096, 4096)], [(-512, 512)], [(0, 1 << 21)]],
)
def test_ranges_that_are_none_are_refused(ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="ascending, disjoint"):
        allocated(1 << 20, 512, *ranges)


@given(data=st.data())
def test_every_read_is_aligned_and_lies_in_one_range(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([1, 512, 4096, 5000, 65_536]))
    edges = sorted(data.draw(st.sets(st.integers(0, 1 << 20), min_size=2, max_size=21)))
    ranges = [(a, b - a) for a, b in itertools.pairwise(edges)][::2]
    virtual_size = data.draw(st.integers(edges[-1], edges[-1] + 100_000))
    kind = data.draw(st.sampled_from(KINDS))
    seed = data.draw(st.integers(0, 1 << 70))
    try:
        area = allocated(virtual_size, size, *ranges)
    except WorkloadError:
        # Nothing but the slots that could lie in a range: there is none.
        for begin, extent in ranges:
            first = -(-begin // size) * size
            end = min(first + size, virtual_size)
            assert end > begin + extent or first >= end
        return

    offset, length = columns(synthetic(kind, area, reads=500, seed=seed))

    assert not (offset % size).any()
    assert ((length == size) | (offset + length == virtual_size)).all()
    assert (length > 0).all()
    starts, lengths = np.array(ranges).T
    row = np.searchsorted(starts, offset, side="right") - 1
    assert row.min() >= 0
    assert (offset + length <= (starts + lengths)[row]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_of_64_tib_needs_the_memory_of_a_batch(kind: Kind) -> None:
    workload = synthetic(kind, Area.whole(64 * TIB, 512), reads=3 * BATCH_ROWS, seed=5)
    tracemalloc.start()
    try:
        farthest = max(int((batch.offset + batch.length).max()) for batch in workload.batches())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 16 << 20
    assert farthest <= 64 * TIB
    if kind != "sequential":
        assert farthest > 60 * TIB


def test_a_billion_reads_begin_at_once() -> None:
    batch = next(Zipf(Area.whole(64 * TIB, 4096), reads=10**12).batches())

    assert len(batch.offset) == BATCH_ROWS


# Seeds and batches


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_batches_changes_nothing(kind: Kind) -> None:
    workload = synthetic(kind, whole(slots=777), reads=10_000, seed=9)
    expected = columns(workload)

    for rows in (1, 7, 4096, 9999, 10_000, 20_000):
        assert_array_equal(columns(workload, rows=rows), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_pass_is_the_same_and_every_batch_is_bounded(kind: Kind) -> None:
    workload: Workload = synthetic(kind, whole(), reads=BATCH_ROWS + 5, seed=2)

    once, twice = list(workload.batches()), list(workload.batches())

    assert [len(batch.offset) for batch in once] == [BATCH_ROWS, 5]
    for a, b in zip(once, twice, strict=True):
        assert_array_equal(a.offset, b.offset)
        assert a.offset.dtype == a.length.dtype == np.int64
        with pytest.raises(ValueError, match="read-only"):
            a.offset[0] = 1


@pytest.mark.parametrize("kind", ["random", "zipf", "hotspot"])
def test_another_seed_is_another_workload(kind: Kind) -> None:
    one, other = (synthetic(kind, whole(), reads=1000, seed=seed) for seed in (1, 2))

    assert (columns(one)[0] != columns(other)[0]).any()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("random", [3324112896, 1884966912, 3687649280, 2995171328]),
        ("zipf", [1425879040, 2395271168, 3590307840, 1030057984]),
        ("hotspot", [3360468992, 3032154112, 2942160896, 3046727680]),
    ],
)
def test_a_seed_gives_the_workload_that_it_always_gave(kind: Kind, expected: list[int]) -> None:
    offset, _ = columns(synthetic(kind, whole(slots=1 << 20), reads=4, seed=42))

    assert offset.tolist() == expected


# How often


def test_random_reads_fall_everywhere_alike() -> None:
    counts = slots_read(Random(whole(slots=100), READS, seed=1))

    # Chi squared with 99 degrees of freedom: above 149 once in a thousand seeds.
    expected = READS / 100
    assert ((counts - expected) ** 2 / expected).sum() < 149
    assert counts.min() > 0


@pytest.mark.parametrize("theta", [0.2, 0.5, 0.99, 1.0, 1.2, 2.5])
def test_zipf_reads_each_rank_as_often_as_the_formula_says(theta: float) -> None:
    slots = 20_000
    shares = np.arange(1, slots + 1) ** -theta
    shares /= shares.sum()

    counts = np.sort(slots_read(Zipf(whole(slots), READS, seed=1, theta=theta)))[::-1]

    # The ten ranks that are read most, where ranks are far enough apart to be told by their counts.
    if theta >= 0.99:
        assert_allclose(counts[:10], shares[:10] * READS, atol=5 * np.sqrt(shares[:10] * READS).max())
    ranks = ZipfRanks(slots, theta)(np.random.Generator(np.random.PCG64(1)).random(READS))
    below = np.cumsum(np.bincount(ranks, minlength=slots)) / READS
    # Kolmogorov and Smirnov: the largest distance passes 1.95 / sqrt(n) once in a thousand seeds.
    assert np.abs(below - np.cumsum(shares)).max() < 1.95 / np.sqrt(READS)


@pytest.mark.parametrize("theta", [0.3, 0.99, 1.0, 1 + 1e-12, 1.5])
def test_zipf_ranks_are_the_inverse_of_the_distribution(theta: float) -> None:
    slots = 300_000  # far above what is summed up one by one
    below = np.cumsum(np.arange(1, slots + 1) ** -theta)
    ranks = ZipfRanks(slots, theta)
    at = np.array([1, 2, 3, 100, 4095, 4096, 4097, 4098, 5000, 100_000, 299_999])

    # In the middle between two sums there is one rank only.
    middle = (below[at - 1] + below[at]) / 2 / below[-1]

    assert ranks(middle).tolist() == at.tolist()
    assert ranks(np.array([0.0, np.nextafter(1, 0)])).tolist() == [0, slots - 1]


@pytest.mark.parametrize("theta", [1e-9, 50.0, 1e6, 1e300])
@pytest.mark.parametrize("slots", [1, 2, 4096, 4097, 1 << 46])
def test_zipf_stays_in_the_area_for_any_theta(theta: float, slots: int) -> None:
    draws = np.array([0.0, 1e-300, 0.5, 0.999999, np.nextafter(1, 0)])

    ranks = ZipfRanks(slots, theta)(draws)

    assert ranks.min() >= 0
    assert ranks.max() < slots
    if theta >= 1e6:
        assert ranks.tolist() == [0, 0, 0, 0, 0]


def test_the_ranks_of_zipf_are_scattered_over_the_disk() -> None:
    counts = slots_read(Zipf(whole(slots=10_000), READS, seed=1, theta=1.2))

    most_read = np.sort(np.argsort(counts)[::-1][:100])

    # A hundred of ten thousand places that lie anywhere: in each tenth some, hardly any next to each other.
    assert set(most_read // 1000) == set(range(10))
    assert (np.diff(most_read) == 1).sum() < 10


@pytest.mark.parametrize("count", [*range(1, 67), 100, 255, 256, 257, 1000, 4097, 65_537])
def test_scattering_is_a_bijection(count: int) -> None:
    for seed in range(3):
        scatter = Scatter(count, np.random.Generator(np.random.PCG64(seed)))

        images = scatter(np.arange(count, dtype=np.int64))

        assert np.sort(images).tolist() == list(range(count))


@settings(max_examples=30)
@given(count=st.integers(1 << 20, (1 << 62) - 1), seed=st.integers(0, 1000))
def test_scattering_stays_in_range_and_apart_on_huge_disks(count: int, seed: int) -> None:
    scatter = Scatter(count, np.random.Generator(np.random.PCG64(seed)))
    numbers = np.unique(np.linspace(0, count - 1, 1000).astype(np.int64).clip(0, count - 1))

    images = scatter(numbers)

    assert images.min() >= 0
    assert images.max() < count
    assert len(np.unique(images)) == len(numbers)


def test_scattering_depends_on_the_seed() -> None:
    one, other = (Scatter(10_000, np.random.Generator(np.random.PCG64(seed))) for seed in (1, 2))
    numbers = np.arange(10_000)

    # Of a random permutation one number in the mean stays where it is.
    assert (one(numbers) == other(numbers)).sum() < 10


@pytest.mark.parametrize(
    ("hot_reads", "hot_area"), [(0.9, 0.1), (0.5, 0.01), (0.2, 0.8), (0.0, 0.3), (1.0, 0.25)]
)
def test_hotspot_reads_its_share_in_its_share(hot_reads: float, hot_area: float) -> None:
    slots = 1000
    counts = slots_read(Hotspot(whole(slots), READS, 3, hot_reads, hot_area))

    # The place is found as the window of that many slots with the most reads, or with the fewest.
    width = round(slots * hot_area)
    windows = np.convolve(counts, np.ones(width, np.int64), "valid")
    found = windows.max() if hot_reads > hot_area else windows.min()

    assert abs(found / READS - hot_reads) < 5 * np.sqrt(0.25 / READS)
    first = int(windows.argmax() if hot_reads > hot_area else windows.argmin())
    hot, cold = counts[first : first + width], np.delete(counts, np.arange(first, first + width))
    if 0 < hot_reads < 1:
        assert_allclose(hot, hot.mean(), atol=6 * np.sqrt(hot.mean()))
        assert_allclose(cold, cold.mean(), atol=6 * np.sqrt(cold.mean()))


def test_the_place_of_the_hotspot_depends_on_the_seed() -> None:
    places = {int(slots_read(Hotspot(whole(), 2000, seed)).argmax() // 100) for seed in range(20)}

    assert len(places) >= 5


def test_an_area_of_one_slot_is_all_hot() -> None:
    offset, _ = columns(Hotspot(whole(slots=1), reads=50, hot_reads=0.0))

    assert offset.tolist() == [0] * 50


# Words


def test_a_workload_says_what_it_is() -> None:
    area = whole()
    described = [
        synthetic(kind, area, reads=5, seed=7, theta=1.1, hot_reads=0.8, hot_area=0.2).describe()
        for kind in KINDS
    ]

    assert described == [
        "sequential: 5 reads of 4096 bytes over the whole disk",
        "random: 5 reads of 4096 bytes over the whole disk, seed 7",
        "zipf: 5 reads of 4096 bytes over the whole disk, theta 1.1, seed 7",
        "hotspot: 5 reads of 4096 bytes over the whole disk, 0.8 of the reads in 0.2 of it, seed 7",
    ]
    assert [synthetic(kind, area, reads=5).name for kind in KINDS] == list(KINDS)


@pytest.mark.parametrize(
    "make",
    [
        lambda area: Sequential(area, reads=0),
        lambda area: Random(area, reads=1, seed=-1),
        lambda area: Zipf(area, reads=1, theta=0.0),
        lambda area: Zipf(area, reads=1, theta=float("nan")),
        lambda area: Zipf(area, reads=1, theta=float("inf")),
        lambda area: Hotspot(area, reads=1, hot_reads=1.1),
        lambda area: Hotspot(area, reads=1, hot_area=0.0),
        lambda area: synthetic("pareto", area, reads=1),  # type: ignore[arg-type]
    ],
)
def test_a_parameter_out_of_its_range_is_an_error_of_usage(make: Any) -> None:
    with pytest.raises(WorkloadError, match=r"must be|is none of"):
        make(whole())

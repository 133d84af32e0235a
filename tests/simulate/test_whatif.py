"""What-if figures against merges that were done, sets of sectors, and all plans that there are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chain.fake import FakeImage, chain_of, fake_chains
from tests.generated import MIB, Style, a_chain
from tests.simulate.merging import contents, merge_for_real
from vhdtool.chain.chain import Chain
from vhdtool.chain.discover import open_chain
from vhdtool.export.create import create_image, snapshot_image
from vhdtool.export.job import export_image
from vhdtool.model.geometry import Geometry
from vhdtool.model.state import BlockState
from vhdtool.simulate import whatif
from vhdtool.simulate.copied import bytes_to_copy, copied_by_merges, hidden_bytes
from vhdtool.simulate.cost import allocated_ranges, simulate
from vhdtool.simulate.figures import LookupTime, Merge, Simulation
from vhdtool.simulate.merged import MergedImage, merged_chain
from vhdtool.simulate.whatif import (
    best_groups,
    parse_merge,
    peak_extra_bytes,
    plan_merges,
    saved_by_merges,
    what_if,
)
from vhdtool.simulate.workloads import Area, Workload, synthetic

RANGES_OF_FIVE = [(first, last) for first in range(5) for last in range(first + 1, 5)]
ABSENT, ZERO, DATA, PARTIAL, DAMAGED = BlockState


# ---------------------------------------------------------------- simulations


def reads_of(chain: Chain, count: int = 3000) -> Iterator[Workload]:
    """Workloads over all of the disk and over what is allocated."""
    whole = Area.whole(chain.virtual_size, 4096)
    allocated = Area.allocated(chain.virtual_size, 16384, *allocated_ranges(chain))
    yield synthetic("sequential", Area.whole(chain.virtual_size, 64 << 10), reads=200, seed=1)
    yield synthetic("random", whole, reads=count, seed=2)
    yield synthetic("zipf", allocated, reads=count, seed=3)


def countable(simulation: Simulation) -> Simulation:
    """Without what depends on the clock and on names."""
    layers = tuple(replace(layer, path="") for layer in simulation.layers)
    return replace(simulation, layers=layers, ns_per_lookup=LookupTime(0, 0))


@pytest.mark.parametrize("format_", ["vhd", "vhdx"])
@pytest.mark.parametrize(("first", "last"), RANGES_OF_FIVE)
def test_what_if_is_the_simulation_of_the_chain_that_was_merged(
    tmp_path: Path, format_: str, first: int, last: int
) -> None:
    leaf = a_chain(tmp_path / "chain", 5, Style(format_, sector_size=512), seed=10 * first + last).path
    real_leaf = merge_for_real(leaf, first, last, tmp_path / "real")

    with open_chain(leaf) as chain, open_chain(real_leaf) as real:
        for reads in reads_of(chain):
            answer = what_if(chain, first, last, reads)

            assert countable(answer.after) == countable(simulate(real, reads))
            assert countable(answer.before) == countable(simulate(chain, reads))
            assert answer.merge.probes_saved == answer.before.probes.mean - answer.after.probes.mean


def test_a_merge_with_export_and_a_new_snapshot_is_what_was_said(tmp_path: Path) -> None:
    point = a_chain(tmp_path / "chain", 3, Style("vhdx"), seed=12).path
    leaf = tmp_path / "chain" / "leaf.avhdx"
    snapshot_image(point, leaf, block_size=MIB, sync=False)
    raw, base, child = (tmp_path / name for name in ("point.raw", "base.vhdx", "leaf.avhdx"))
    export_image(point, raw, sync=False)
    with open_chain(leaf) as chain:
        block_size = chain.images[3].geometry.block_size
        create_image(base, source=raw, block_size=block_size, sync=False)
        snapshot_image(base, child, block_size=MIB, sync=False)
        with open_chain(child) as real:
            for reads in reads_of(chain):
                answer = what_if(chain, 1, 3, reads)

                assert countable(answer.after) == countable(simulate(real, reads))


def test_a_real_differencing_disk_is_merged_in_thought(unpacked: Callable[[str], Path]) -> None:
    unpacked("dfvfs/image.vhd")
    with open_chain(unpacked("dfvfs/image-differential.vhd"), ignore_checksums=True) as chain:
        merged = merged_chain(chain, 0, 1)

        assert merged.read(0, merged.virtual_size) == chain.read(0, chain.virtual_size)
        assert bytes_to_copy(chain.images, 0, 1) == copied_by_merges(chain.images)[0, 1] > 0


@pytest.mark.parametrize("style", [Style("vhdx", 4096, logs=0.5), Style("vhdx", grain=8, size=40 * MIB)])
def test_also_with_large_sectors_logs_and_larger_disks(tmp_path: Path, style: Style) -> None:
    leaf = a_chain(tmp_path / "chain", 4, style, seed=5).path
    for first, last in ((0, 1), (1, 2), (1, 3)):
        real_leaf = merge_for_real(leaf, first, last, tmp_path / f"real{first}-{last}")
        with open_chain(leaf) as chain, open_chain(real_leaf) as real:
            for reads in reads_of(chain, 500):
                answer = what_if(chain, first, last, reads)
                assert countable(answer.after) == countable(simulate(real, reads))


def test_both_engines_give_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    with open_chain(a_chain(tmp_path / "chain", 4, Style("vhdx"), seed=6).path) as chain:
        reads = next(reads_of(chain))

        one = what_if(chain, 1, 2, reads, engine="numpy")
        other = what_if(chain, 1, 2, reads, engine="numba")

        assert one.merge == other.merge
        assert replace(countable(one.after), engine="") == replace(countable(other.after), engine="")


def test_what_was_simulated_already_is_not_simulated_again(tmp_path: Path) -> None:
    with open_chain(a_chain(tmp_path / "chain", 2, Style("vhd"), seed=6).path) as chain:
        reads = next(reads_of(chain))
        before = simulate(chain, reads)

        assert what_if(chain, 0, 1, reads, before=before).before is before


def test_only_the_chain_as_it_is_can_be_measured(tmp_path: Path) -> None:
    with open_chain(a_chain(tmp_path / "chain", 2, Style("vhd"), seed=6).path) as chain:
        answer = what_if(chain, 0, 1, next(reads_of(chain)), measure="cache", seconds=0.01)

    assert answer.before.measured is not None
    assert answer.after.measured is None


def test_layers_that_a_chain_does_not_have_are_refused(tmp_path: Path) -> None:
    with (
        open_chain(a_chain(tmp_path / "chain", 2, Style("vhd"), seed=6).path) as chain,
        pytest.raises(ValueError, match="deepest layer of this chain is 1"),
    ):
        what_if(chain, 0, 2, next(reads_of(chain)))


# ---------------------------------------------------------------- bytes to copy


def sectors_copied(images: list[FakeImage], first: int, last: int) -> int:
    """Bytes of layers ``first`` to ``last - 1`` that their reader gets, sector by sector."""
    said, _ = contents(tuple(images[first:last]))
    return int((said == 2).sum()) * images[0].geometry.sector_size


@given(fake_chains())
def test_every_merge_copies_what_a_reader_of_its_upper_layers_gets(images: list[FakeImage]) -> None:
    copied = copied_by_merges(images)

    assert copied.shape == (len(images), len(images))
    for first, last in itertools.product(range(len(images)), repeat=2):
        wanted = sectors_copied(images, first, last) if first < last else 0
        assert copied[first, last] == wanted
        if first < last:
            assert bytes_to_copy(images, first, last) == wanted


@pytest.mark.parametrize("format_", ["vhd", "vhdx"])
def test_so_it_is_in_files(tmp_path: Path, format_: str) -> None:
    with open_chain(a_chain(tmp_path / "chain", 5, Style(format_), seed=8).path) as chain:
        copied = copied_by_merges(chain.images)

        for first, last in RANGES_OF_FIVE:
            said, _ = contents(chain.images[first:last])
            assert copied[first, last] == int((said == 2).sum()) * 512
            assert bytes_to_copy(chain.images, first, last) == copied[first, last]


def test_bytes_are_counted_by_the_layer_that_hides_them() -> None:
    # Blocks of 2 KiB. Layer 0 hides block 0 with data and block 1 with zeros; layer 1 ends after two blocks,
    # and hides all of block 2.
    top = an_image(DATA, ZERO, ABSENT)
    short = an_image(ABSENT, DATA)
    base = an_image(DATA, DATA, PARTIAL, here={2: [True, True, False, False]})

    hidden = hidden_bytes([top, short, base])

    assert hidden.tolist() == [
        [2048, 0, 0, 0],
        [0, 2048, 0, 0],
        [0, 2048, 2048 + 1024, 0],
    ]


def test_a_disk_of_many_windows_is_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from vhdtool.simulate import copied

    monkeypatch.setattr(copied, "_CELLS_PER_WINDOW", 4)
    monkeypatch.setattr(copied, "_SECTORS_AT_ONCE", 6)
    rng = np.random.default_rng(4)
    images = []
    for layer, block in enumerate((1024, 4096, 512, 2048)):
        count = 64 * 1024 // block
        states = [list(BlockState)[i] for i in rng.integers(0, 4, count)]
        bits = (rng.random((count, block // 512)) < 0.5).tolist()
        images.append(an_image(*states, here=dict(enumerate(bits)), block=block, seed=layer))

    found = copied_by_merges(images)

    for first, last in itertools.combinations(range(4), 2):
        assert found[first, last] == sectors_copied(images, first, last)


def an_image(
    *states: BlockState, here: dict[int, list[bool]] | None = None, block: int = 2048, seed: int = 0
) -> FakeImage:
    """Blocks of four sectors unless said otherwise; ``here`` says which sectors partial ones have."""
    return FakeImage(Geometry(len(states) * block, block), list(states), here or {}, seed=seed)


# ---------------------------------------------------------------- plans


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_probes_saved_are_those_of_each_lookup(histogram: list[int]) -> None:
    depth = len(histogram)

    saved = saved_by_merges(histogram, depth)

    for first, last in itertools.product(range(depth), repeat=2):
        # A lookup that ended at layer d met layers first..last as one, as far as it came.
        wanted = sum(
            count * (min(d, last) - first) for d, count in enumerate(histogram) if first < last and d > first
        )
        assert saved[first, last] == wanted


def test_a_histogram_of_a_deeper_chain_is_refused() -> None:
    assert saved_by_merges([1, 1, 0], 2).tolist() == [[0, 1], [0, 0]]
    with pytest.raises(ValueError, match="deeper than the 2 layers"):
        saved_by_merges([1, 1, 1], 2)


def all_groupings(depth: int) -> Iterator[list[tuple[int, int]]]:
    """Every way to cut layers into groups of neighbours; those of one layer left out."""
    for cuts in itertools.product((False, True), repeat=depth - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), depth]
        yield [(a, b - 1) for a, b in itertools.pairwise(edges) if b - a > 1]


@given(fake_chains().filter(lambda images: len(images) > 1), st.data())
def test_a_plan_is_the_best_of_all_that_the_budget_allows(
    images: list[FakeImage], data: st.DataObject
) -> None:
    depth = len(images)
    copied = copied_by_merges(images)
    histogram = data.draw(st.lists(st.integers(0, 9), min_size=depth, max_size=depth))
    saved = saved_by_merges(histogram, depth)
    budget = data.draw(st.integers(0, int(copied.max()) + 1))

    chosen = best_groups(copied, saved, budget)

    def worth(groups: list[tuple[int, int]]) -> tuple[int, int]:
        return sum(int(saved[g]) for g in groups), -sum(int(copied[g]) for g in groups)

    affordable = [groups for groups in all_groupings(depth) if -worth(groups)[1] <= budget]
    assert chosen in affordable
    assert worth(chosen) == max(map(worth, affordable))


def test_a_plan_of_many_layers_is_close_to_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    depth = 40
    # Every layer holds bytes of its own: a merge copies the sum of those.
    held = rng.integers(1, 1 << 30, depth)
    before = np.concatenate(([0], np.cumsum(held)))
    copied = np.triu(before[None, :depth] - before[:depth, None])
    saved = saved_by_merges(rng.integers(0, 1000, depth).tolist(), depth)
    budget = int(held.sum()) // 3
    exact = best_groups(copied, saved, budget)

    monkeypatch.setattr(whatif, "PLANS_KEPT", 200)
    rough = best_groups(copied, saved, budget)

    assert sum(int(copied[g]) for g in rough) <= budget
    worth = [sum(int(saved[g]) for g in groups) for groups in (rough, exact)]
    assert 0.97 * worth[1] <= worth[0] <= worth[1]


def test_a_plan_says_what_it_costs_and_saves(tmp_path: Path) -> None:
    with open_chain(a_chain(tmp_path / "chain", 5, Style("vhdx"), seed=9).path) as chain:
        reads = synthetic("random", Area.whole(chain.virtual_size, 4096), reads=2000, seed=1)
        simulation = simulate(chain, reads)
        copied = copied_by_merges(chain.images)
        saved = saved_by_merges(simulation.depth_histogram, 5)
        budget = int(copied[1, 3]) + int(copied[0, 1])

        plan = plan_merges(chain, simulation, budget)

        assert plan.merges
        assert plan.budget == budget
        assert sorted((m.first, m.last) for m in plan.merges) == best_groups(copied, saved, budget)
        assert plan.bytes_to_copy == sum(merge.bytes_to_copy for merge in plan.merges) <= budget
        assert plan.probes_mean_before == simulation.probes.mean
        total = sum(int(saved[m.first, m.last]) for m in plan.merges)
        assert plan.probes_mean_after == pytest.approx(simulation.probes.mean - total / simulation.lookups)
        worth = [merge.probes_saved / max(1, merge.bytes_to_copy) for merge in plan.merges]
        assert worth == sorted(worth, reverse=True)
        for merge in plan.merges:
            assert merge.bytes_to_copy == bytes_to_copy(chain.images, merge.first, merge.last)
            assert merge.probes_saved == saved[merge.first, merge.last] / simulation.lookups
            image = merged_chain(chain, merge.first, merge.last).images[merge.first]
            assert isinstance(image, MergedImage)
            assert merge.peak_extra_bytes == image.growth()


def test_with_the_lookups_of_a_workload_savings_are_those_of_a_simulation_when_runs_stay() -> None:
    # Each layer holds one block of its own, so a merge changes no run.
    images = [an_image(*(DATA if b == i else ABSENT for b in range(6)), seed=i) for i in range(6)]
    chain = chain_of(*images)
    reads = synthetic("random", Area.whole(chain.virtual_size, 512), reads=600, seed=1)
    simulation = simulate(chain, reads)
    saved = saved_by_merges(simulation.depth_histogram, 6)

    for first, last in itertools.combinations(range(6), 2):
        answer = what_if(chain, first, last, reads, before=simulation)
        assert answer.merge.probes_saved == pytest.approx(saved[first, last] / simulation.lookups)
        assert answer.merge.bytes_to_copy == (last - first) * 2048


def test_room_of_files_that_a_merge_leaves_over_is_there_for_the_next() -> None:
    sizes = [100, 10, 1000, 50, 1000]
    above = Merge(0, 2, 1, 150, 1.0)  # grows by 150, then 110 go
    below = Merge(3, 4, 1, 30, 1.0)

    assert peak_extra_bytes([above], sizes) == 150
    assert peak_extra_bytes([above, below], sizes) == 150
    assert peak_extra_bytes([above, replace(below, peak_extra_bytes=130)], sizes) == 150 - 110 + 130
    assert peak_extra_bytes([below, above], sizes) == 30 - 50 + 150
    assert peak_extra_bytes([], sizes) == 0


def test_a_budget_of_nothing_merges_only_what_is_empty() -> None:
    chain = chain_of(
        an_image(DATA, ABSENT, seed=1), an_image(ABSENT, ABSENT, seed=2), an_image(ABSENT, DATA, seed=3)
    )
    simulation = simulate(chain, synthetic("random", Area.whole(4096, 512), reads=50, seed=1))

    plan = plan_merges(chain, simulation, 0)

    assert [(merge.first, merge.last, merge.bytes_to_copy) for merge in plan.merges] == [(1, 2, 0)]


def test_a_budget_below_nothing_is_refused() -> None:
    chain = chain_of(an_image(DATA), an_image(DATA))
    simulation = simulate(chain, synthetic("random", Area.whole(2048, 512), reads=50, seed=1))

    with pytest.raises(ValueError, match="less than nothing"):
        plan_merges(chain, simulation, -1)


# ---------------------------------------------------------------- options


def test_a_merge_is_written_as_two_layers() -> None:
    assert parse_merge("1..3") == (1, 3)
    assert parse_merge(" 0..255 ") == (0, 255)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not A..B"),
        ("3", "is not A..B"),
        ("1-3", "is not A..B"),
        ("1..", "is not A..B"),
        ("-1..3", "is not A..B"),
        ("1...3", "is not A..B"),
        ("0x1..3", "is not A..B"),
        ("²..3", "is not A..B"),
        ("1..99999999999999999999", "is not A..B"),
        ("3..1", "does not begin above its end"),
        ("2..2", "does not begin above its end"),
    ],
)
def test_what_is_no_merge_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_merge(text)

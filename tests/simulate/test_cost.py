"""A workload on a chain made by hand, with every figure worked out here and not by the code.

The disk has 5 MiB, sectors of 4 KiB and three layers; sizes below are KiB, ``@`` is the place in the file.

::

                0     128   384   512   768  1024  1536  2048  2560  3072  4096  5120  5632
    leaf, 0     |data |- - - - - - - - -|data |- - - - - -|data            |data |- - -|
                 @1024              (0 partial) @1792       @2048            @3072  absent
    middle, 1   |- - -|data |- - - - - - - - -|data |ZERO |data |- - - - - |   ends at 3 MiB
                 @8320 (0 partial)             @512        @9216
    base, 2     |data                         |data                         ...
                 @1024                         @4096 (1024 to 2048), then absent to 3072, then data to 5632

    what a read gets, with the layers that are asked (cells have 512):
        0 leaf 128 middle 384 base 512 base 768 leaf 1024 middle 1536 zeros 2048 leaf 4096 zeros 5120
          1        2          3        3        1         2           2          1         1

At 4096 only the leaf is asked: the middle ends at 3072, and past its end every layer below reads zeros.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chain.fake import FakeImage, chain_of, fake_chains
from vhdtool.chain.chain import Chain
from vhdtool.chain.engine import Engine
from vhdtool.chain.naive import NaiveWalk
from vhdtool.model.geometry import Geometry
from vhdtool.model.state import BlockState
from vhdtool.simulate import metadata
from vhdtool.simulate.cost import allocated_ranges, simulate
from vhdtool.simulate.devices import DeviceModel
from vhdtool.simulate.figures import (
    DeviceFigures,
    Fragmentation,
    LayerFigures,
    LookupTime,
    MetadataBytes,
    Probes,
    Simulation,
)
from vhdtool.simulate.workloads import Batch

KIB = 1 << 10
MIB = 1 << 20
ABSENT, ZERO, DATA, PARTIAL = BlockState.ABSENT, BlockState.ZERO, BlockState.DATA, BlockState.PARTIAL
ENGINES: list[Engine] = ["numpy", "numba"]


@dataclass(frozen=True)
class Reads:
    """A workload of just these reads, (offset, length), in batches of so many."""

    rows: tuple[tuple[int, int], ...]
    at_once: int = 3
    name: str = "by hand"

    def describe(self) -> str:
        return self.name

    def batches(self) -> Iterator[Batch]:
        for first in range(0, len(self.rows), self.at_once):
            offset, length = np.array(self.rows[first : first + self.at_once], np.int64).T
            yield Batch(offset.copy(), length.copy())


def in_kib(*rows: tuple[int, int]) -> Reads:
    """The reads from one KiB to another."""
    return Reads(tuple((start * KIB, (stop - start) * KIB) for start, stop in rows))


def an_image(
    size: int, block: int, blocks: dict[int, tuple[BlockState, int]], here: dict[int, list[range]]
) -> FakeImage:
    """Sizes and file offsets in KiB, sectors of 4 KiB; ``here``: the KiB of a partial block that are set."""
    geometry = Geometry(size * KIB, block * KIB, 4096)
    states = [blocks.get(number, (ABSENT, 0))[0] for number in range(geometry.block_count)]
    bits = {
        number: [any(sector * 4 in kib for kib in ranges) for sector in range(block // 4)]
        for number, ranges in here.items()
    }
    image = FakeImage(geometry, states, bits)
    image.places = {number: place * KIB for number, (_, place) in blocks.items()}
    return image


def by_hand() -> Chain:
    """The chain of the drawing above."""
    leaf = an_image(
        5 * 1024,
        1024,
        {0: (PARTIAL, 1024), 2: (DATA, 2048), 3: (DATA, 3072)},
        {0: [range(128), range(768, 1024)]},
    )
    middle = an_image(
        3 * 1024,
        512,
        {0: (PARTIAL, 8192), 2: (DATA, 512), 3: (ZERO, 0), 4: (DATA, 9216)},
        {0: [range(128, 384)]},
    )
    base = an_image(
        5 * 1024 + 512,
        1024,
        {0: (DATA, 1024), 1: (DATA, 4096), 3: (DATA, 5120), 4: (DATA, 6144), 5: (DATA, 7168)},
        {},
    )
    return chain_of(leaf, middle, base)


# Each read with its lookups: layer (z: zeros) and how many layers are asked.
READS = in_kib(
    (0, 4),  #       leaf 1
    (124, 132),  #   leaf 1, middle 2
    (508, 516),  #   base 3, base 3: a cell ends at 512
    (764, 772),  #   base 3, leaf 1
    (1532, 1540),  # middle 2, z 2
    (2044, 2052),  # z 2, leaf 1
    (2052, 2056),  # leaf 1, where the read before ended
    (4092, 4100),  # leaf 1, z 1
    (4100, 4104),  # z 1
)
# 12 ms for each piece that does not go on, and 10 ms for the 44 KiB of data.
SLOW = DeviceModel("slow", 8e-3, 4e-3, 44 * KIB / 10e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_figure_is_the_one_worked_out_by_hand(engine: Engine) -> None:
    simulation = simulate(by_hand(), READS, devices=[SLOW], engine=engine)

    # 1 + 2 + 2 + 2 + 2 + 2 + 1 + 2 + 1 lookups; 8 of them ask one layer, 4 two, 3 three.
    assert simulation.workload == "by hand"
    assert (simulation.reads, simulation.bytes, simulation.lookups) == (9, 60 * KIB, 15)
    assert simulation.depth_histogram == (8, 4, 3)
    # The 8th of 15 is the median, the 15th the 99th percentile (14.85).
    assert simulation.probes == Probes(mean=(8 * 1 + 4 * 2 + 3 * 3) / 15, p50=1, p99=3, max=3)
    # Served: leaf 4 (0) + 4 (124) + 4 (768) + 4 (2048) + 4 (2052) + 4 (4092); middle 4 (128) + 4 (1532);
    # base 8 (508) + 4 (764).
    # Stored: leaf 128 + 256 and two blocks; middle 256 and two blocks of 512; base four blocks and a short
    # one.  Visible: leaf all, middle 256 + 512, base 128 + 256.
    assert simulation.layers == (
        LayerFigures(0, "fake-0", 24 * KIB, 24 / 44, 2432 * KIB, 2432 * KIB, 0),
        LayerFigures(1, "fake-0", 8 * KIB, 8 / 44, 1280 * KIB, 768 * KIB, 512 * KIB),
        LayerFigures(2, "fake-0", 12 * KIB, 12 / 44, 4608 * KIB, 384 * KIB, 4224 * KIB),
    )
    # Runs: leaf 128, middle 256, base 384, leaf 256, middle 512, leaf 2048; the last one lies in two of the
    # four MiB that have data.  Three files in the first MiB, one in each other.  Only the middle steps back:
    # its first run ended at 8576 and its second begins at 512.
    assert simulation.fragmentation == Fragmentation(
        runs_per_mib=7 / 4,
        files_per_mib=6 / 4,
        backward_per_mib=1 / 4,
        mean_run=3584 * KIB / 6,
        median_run=320 * KIB,
    )
    # Entries of 8 bytes: 5, 6 and 6 of them; bitmaps of 256 and of 128 bits.
    assert simulation.metadata_bytes.naive == 8 * 17 + 32 + 16
    # Pieces of I/O that do not go on: one at 0, 124, 128, 508, 764, 768, 1532, 2048 and 4092; the disk in one
    # file goes on at 128, 768 and 2052, too.
    # The last read is of zeros alone and reaches no device.
    assert simulation.device_reads == 8
    (device,) = simulation.devices
    assert device.name == "slow"
    assert device.iops == pytest.approx(8 / 118e-3)
    assert device.mb_per_s == pytest.approx(44 * KIB / 118e-3 / 1e6)
    assert device.relative_to_flat == pytest.approx((7 * 12 + 10) / 118)
    assert simulation.engine == engine
    assert simulation.measured is None


def test_one_long_read_is_as_many_lookups_as_it_touches_runs() -> None:
    """It is taken in pieces of 64 KiB inside, which must not show: cells of 512 KiB cut it into 9 runs."""
    simulation = simulate(by_hand(), in_kib((0, 3072)), engine="numpy")

    assert simulation.lookups == 9
    # 0 (1), 128 (2), 384 (3), 512 (3), 768 (1), 1024 (2), 1536 (2), 2048 (1), 2560 (1)
    assert simulation.depth_histogram == (4, 3, 2)
    assert [layer.bytes_served for layer in simulation.layers] == [1408 * KIB, 768 * KIB, 384 * KIB]


def test_reads_that_follow_each_other_in_one_run_are_a_lookup_each() -> None:
    simulation = simulate(by_hand(), in_kib((0, 4), (4, 8), (8, 12)), engine="numpy")

    assert simulation.lookups == 3
    assert simulation.devices[0].relative_to_flat == 1.0


def test_reads_of_nothing_but_zeros_are_limited_by_no_device() -> None:
    simulation = simulate(by_hand(), in_kib((1600, 1604), (4200, 4204)), devices=[SLOW], engine="numpy")

    assert simulation.devices == (DeviceFigures("slow", None, None, 1.0),)
    assert [layer.share for layer in simulation.layers] == [0.0, 0.0, 0.0]
    assert simulation.lookups == 2


def test_a_workload_without_reads_costs_nothing() -> None:
    simulation = simulate(by_hand(), Reads(()), engine="numpy")

    assert simulation.probes == Probes(0.0, 0, 0, 0)
    assert simulation.ns_per_lookup == LookupTime(0.0, 0.0)
    assert simulation.depth_histogram == (0, 0, 0)


def test_the_allocated_part_is_what_some_layer_holds() -> None:
    start, length = allocated_ranges(by_hand())

    assert list(zip((start // KIB).tolist(), (length // KIB).tolist())) == [(0, 1536), (2048, 2048)]


def without_times(simulation: Simulation) -> Simulation:
    return dataclasses.replace(simulation, ns_per_lookup=LookupTime(0.0, 0.0), engine="")


@settings(max_examples=40)
@given(images=fake_chains(), data=st.data())
def test_any_workload_costs_the_sum_of_its_sectors_and_the_same_with_both_engines(
    images: list[FakeImage], data: st.DataObject
) -> None:
    chain = chain_of(*images)
    size = chain.virtual_size
    rows = []
    for _ in range(data.draw(st.integers(0, 6), "reads")):
        start = data.draw(st.integers(0, size - 1), "start")
        rows.append((start, data.draw(st.integers(1, size - start), "length")))
    reads = Reads(tuple(rows), at_once=2)

    one, other = (simulate(chain, reads, engine=engine) for engine in ENGINES)

    assert without_times(one) == without_times(other)
    assert one.bytes == sum(length for _, length in rows)
    every_byte = [np.arange(start, start + length) for start, length in rows]
    offsets = np.concatenate([np.empty(0, np.int64), *every_byte])
    layer, _, probes = NaiveWalk(images, engine="numpy").lookup(offsets)
    assert [figures.bytes_served for figures in one.layers] == [
        int(np.count_nonzero(layer == number)) for number in range(len(images))
    ]
    assert set(np.flatnonzero(one.depth_histogram) + 1) == set(np.unique(probes))
    assert one.probes.max == probes.max(initial=0)
    assert sum(one.depth_histogram) == one.lookups >= len(rows)


@settings(max_examples=40)
@given(images=fake_chains())
def test_what_layers_store_and_show_is_counted_sector_by_sector(images: list[FakeImage]) -> None:
    chain = chain_of(*images)
    size = images[0].geometry.sector_size
    sectors = np.arange(0, chain.virtual_size, size)
    layer, _, _ = NaiveWalk(images, engine="numpy").lookup(sectors)

    figures = simulate(chain, Reads(()), engine="numpy").layers

    for number, image in enumerate(images):
        there = 0
        for sector in range(image.geometry.sector_count):
            block, within = divmod(sector, image.geometry.sectors_per_block)
            state = image.states[block]
            there += state is DATA or (state is PARTIAL and image.sectors_here[block][within])
        visible = int(np.count_nonzero(layer == number))
        assert figures[number].bytes_stored == there * size
        assert figures[number].bytes_visible == visible * size
        assert figures[number].bytes_shadowed == (there - visible) * size


def test_metadata_of_a_small_disk_are_those_of_the_whole_map() -> None:
    chain = by_hand()
    simulation = simulate(chain, READS, engine="numpy")
    whole = chain.resolved("numpy")
    whole.resolve()

    assert simulation.metadata_bytes == MetadataBytes(184, whole.nbytes)


def an_even_chain() -> Chain:
    """1024 blocks of a sector each in two layers, every other one in the leaf: 16 segments of the map."""
    geometry = Geometry(1024 * 512, 512)
    leaf = FakeImage(geometry, [DATA, ABSENT] * 512, {}, seed=1)
    return chain_of(leaf, FakeImage(geometry, [DATA] * 1024, {}, seed=2))


def test_the_map_of_a_large_disk_is_worked_out_from_parts_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = an_even_chain()
    reads = Reads(((0, 512),))
    exact = simulate(chain, reads, engine="numpy").metadata_bytes
    monkeypatch.setattr(metadata, "_CELLS_RESOLVED_MAX", 1023)
    monkeypatch.setattr(metadata, "_STRETCHES", 3)
    monkeypatch.setattr(metadata, "_STRETCH_CELLS", 64)

    estimate = simulate(chain, reads, engine="numpy").metadata_bytes

    assert (exact.resolved_is_estimate, estimate.resolved_is_estimate) == (False, True)
    # A map that grows keeps up to a quarter of it free.
    assert estimate.resolved == pytest.approx(exact.resolved, rel=0.25)
    assert estimate.naive == exact.naive == 2 * 1024 * 8


def test_the_walk_of_a_large_disk_is_timed_where_most_reads_are(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = an_even_chain()
    walked: list[tuple[int, int]] = []

    class Seen(NaiveWalk):
        def __init__(self, images: Any, start: int, stop: int, *, engine: Any) -> None:
            walked.append((start, stop))
            super().__init__(images, start, stop, engine=engine)

    monkeypatch.setattr(metadata, "NaiveWalk", Seen)
    # Tables of 8 blocks and a spare one in two layers, each an entry of 16 bytes and a bitmap of one.
    monkeypatch.setattr(metadata, "_WALK_BYTES_MAX", 2 * 9 * 17)
    reads = Reads(((0, 512), (100 * 512, 512), (102 * 512, 512), (900 * 512, 512)))

    simulation = simulate(chain, reads, engine="numpy")

    assert walked == [(96 * 512, 104 * 512)]
    assert simulation.ns_per_lookup.walk > 0
    assert simulation.ns_per_lookup.resolved > 0


def test_a_map_that_differed_from_the_walk_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NaiveWalk, "lookup", lambda self, offsets: (offsets, offsets, offsets))

    with pytest.raises(AssertionError, match="differ"):
        simulate(by_hand(), READS, engine="numpy")

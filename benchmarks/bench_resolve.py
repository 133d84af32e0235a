"""What resolving a deep chain as a whole costs, beside getting hold of what there is to be known of it.

256 layers with BATs of 65,536 entries, and 329,000 sector bitmaps among them.  Who resolves these cannot do
without reading them: so one peer copies as many bytes in memory, another reads them from the files, in the
best order there is and with nothing done to them.  Chains are opened outside the clock, and no table of
theirs was looked at before.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.chains import GIB, MIB, hard_tables, many_bitmaps
from benchmarks.contest import Contestant, Sample, compete, in_process, note
from vhdtool import open_chain
from vhdtool.chain.chain import Chain
from vhdtool.chain.engine import Engine, machine_for
from vhdtool.chain.flatten import Resolved, resolve
from vhdtool.chain.naive import NaiveWalk
from vhdtool.formats.vhdx.write import BAT_OFFSET
from vhdtool.model.blockmap import STATE_MASK
from vhdtool.model.state import STATE_BITS, UNHELD, ZEROS, BlockState

pytest.importorskip("numba", reason="the fast engine is not installed")

READ_TARGET: Final = 4.0
MAP_MIB_PER_GIB_TARGET: Final = 0.6
BAT_ENTRY_BYTES: Final = 8
BITMAP_BYTES: Final = 512


class Tables:
    """All that resolving must read: whole BATs, and the bitmaps of partial blocks.

    Attributes:
        bitmaps: how many there are.
        nbytes: of BATs and bitmaps.
    """

    def __init__(self, chain: Chain) -> None:
        descriptors: list[int] = []
        places: list[npt.NDArray[np.int64]] = []
        lengths: list[npt.NDArray[np.int64]] = []
        self.bitmaps = 0
        for image in chain.images:
            stored = image.stored(0, image.geometry.block_count)
            partial = np.flatnonzero((stored.entry & STATE_MASK) == BlockState.PARTIAL)
            self.bitmaps += len(partial)
            first_sectors = stored.block[partial] * image.geometry.sectors_per_block
            found = image.bitmap_places(first_sectors, stored.entry[partial] >> STATE_BITS)
            descriptor = image.source.descriptor
            assert descriptor is not None
            bitmap_places = np.empty(0, np.int64) if found is None else np.sort(found.place)
            bat_bytes = image.geometry.block_count * BAT_ENTRY_BYTES
            places.append(np.append(np.int64(BAT_OFFSET), bitmap_places))
            lengths.append(np.append(bat_bytes, np.full(len(bitmap_places), BITMAP_BYTES)))
            descriptors += [descriptor] * len(places[-1])
        self._descriptors = np.array(descriptors, np.int32)
        self._places = np.concatenate(places)
        self._lengths = np.concatenate(lengths)
        self.nbytes = int(self._lengths.sum())

    def reading(self) -> Contestant:
        """Reads all of it into memory that is there already."""
        buffer = np.zeros(self.nbytes, np.uint8)
        starts = np.cumsum(self._lengths) - self._lengths
        machine = machine_for("numba")

        def run() -> None:
            assert machine.read_pieces(self._descriptors, self._places, self._lengths, starts, buffer).all()

        return in_process(run)

    def copying(self) -> Contestant:
        """Copies as much from one place in memory to another."""
        source, target = np.ones(self.nbytes, np.uint8), np.zeros(self.nbytes, np.uint8)
        return in_process(lambda: np.copyto(target, source))


def resolving(leaf: Path, engine: Engine) -> Contestant:
    """Resolves a chain that was just opened."""

    def run() -> Sample:
        with open_chain(leaf) as chain:
            return in_process(lambda: sum(len(part.offset) for part in runs_of(chain, engine)))()

    return run


def runs_of(chain: Chain, engine: Engine) -> Iterator[Resolved]:
    """All runs of the chain's disk, in windows."""
    return resolve(chain.images, 0, chain.virtual_size, engine=engine)


def checked_runs(chain: Chain) -> int:
    """How many runs there are; both engines give the same ones, and a walk agrees at both ends of each."""
    walk = NaiveWalk(chain.images)
    count = 0
    for ours, twin in zip(runs_of(chain, "numba"), runs_of(chain, "numpy"), strict=True):
        for name in ("offset", "length", "layer", "file_offset", "probes"):
            assert np.array_equal(getattr(ours, name), getattr(twin, name))
        count += len(ours.offset)
        expected = np.where(ours.layer == UNHELD, ZEROS, ours.layer)
        for within in (np.zeros(len(ours.offset), np.int64), ours.length - 1):
            layer, file_offset, probes = walk.lookup(ours.offset + within)
            assert np.array_equal(layer, expected)
            assert np.array_equal(probes, ours.probes)
            assert np.array_equal(file_offset, np.where(ours.layer < 0, -1, ours.file_offset + within))
    return count


def test_resolve(benchmark: BenchmarkFixture, room: Path, measuring: bool) -> None:
    layers, size, blocks = (256, 128 * GIB, 1291) if measuring else (16, GIB, 40)
    leaf = many_bitmaps(room / "resolve", layers, size, blocks, 4)[0]
    with open_chain(leaf) as chain:
        runs = checked_runs(chain)
        tables = Tables(chain)
        peers = {
            "copy in memory": tables.copying(),
            "pread": tables.reading(),
            "NumPy": resolving(leaf, "numpy"),
        }
        targets = {"copy in memory": READ_TARGET, "pread": READ_TARGET}
        compete(benchmark, resolving(leaf, "numba"), peers, rounds=7, targets=targets)

    benchmark.extra_info.update(layers=layers, bat_entries=size // (2 * MIB), bitmaps=tables.bitmaps)
    benchmark.extra_info.update(runs=runs, **{"bytes read": tables.nbytes})


def test_map_in_memory_at_depth_255(benchmark: BenchmarkFixture, room: Path, measuring: bool) -> None:
    size = 4 * GIB if measuring else 64 * MIB
    leaf = hard_tables(room / "map", 256, size)[0]
    nbytes = []

    def ours() -> Sample:
        with open_chain(leaf) as chain:
            resolved = chain.resolved("numba")
            sample = in_process(resolved.resolve)()
            assert resolved.covered == size
            nbytes.append(resolved.nbytes)
            return sample

    compete(benchmark, ours, {}, rounds=3)
    note(benchmark, "map MiB per GiB", nbytes[-1] / size * GIB / MIB, MAP_MIB_PER_GIB_TARGET)
    benchmark.extra_info.update(depth=255, virtual_size=size)

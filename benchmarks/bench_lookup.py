"""What finding a guest byte costs, by how deep the chain is: beside a bare gather, and beside walking.

The map is resolved before the clock starts.  The gather is what no lookup can do without: one random access
to as many bytes as the map takes, for each of as many lookups, its answers allocated as ours are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.chains import GIB, MIB, hard_tables
from benchmarks.contest import Contestant, compete, in_process, note, scaled
from vhdtool import open_chain
from vhdtool.chain.chain import Chain
from vhdtool.chain.naive import NaiveWalk

pytest.importorskip("numba", reason="the resolved map's fast engine is not installed")
from vhdtool.kernels.compiled import kernel

Int64s = npt.NDArray[np.int64]

DEPTHS: Final = (1, 4, 16, 64, 255)
GATHER_TARGET: Final = 3.0
WALK_TARGETS: Final = {16: 1 / 10, 64: 1 / 50, 255: 1 / 100}
DEEP_TARGET: Final = 1.5
# A walk is so much slower that it does a share of the lookups; every one of its answers is compared.
WALK_SHARES: Final = {1: 10, 4: 10, 16: 20, 64: 50, 255: 100}


@kernel
def gather(table: Int64s, index: Int64s) -> Int64s:
    """``table`` at ``index``, as ``take`` but without checking bounds: what kernels of ours do."""
    out = np.empty(len(index), np.int64)
    for i in range(len(index)):
        out[i] = table[np.uint64(index[i])]
    return out


class Deep:
    """A chain of 256 layers, each of whose points in time is a chain of its own, and where to look."""

    def __init__(self, folder: Path, measuring: bool) -> None:
        self.size = 4 * GIB if measuring else 64 * MIB
        self.offsets = random_places(self.size, 10_000_000 if measuring else 20_000)
        self._paths = hard_tables(folder, max(DEPTHS) + 1, self.size)
        self._chains: list[Chain] = []

    def at(self, depth: int) -> Chain:
        """The point in time with so many layers above the base, its map whole."""
        chain = open_chain(self._paths[-1 - depth])
        self._chains.append(chain)
        assert len(chain.layers) == depth + 1
        chain.resolved("numba").resolve()
        assert chain.resolved("numba").covered == self.size
        return chain

    def lookup(self, chain: Chain) -> Contestant:
        """Looks up everything; compiled."""
        resolved = chain.resolved("numba")
        resolved.lookup(self.offsets[:1])
        return in_process(lambda: resolved.lookup(self.offsets))

    def close(self) -> None:
        """Let go of all."""
        for chain in self._chains:
            chain.close()


def random_places(size: int, count: int) -> Int64s:
    """``count`` random multiples of 4096 below ``size``; the same ones each time."""
    return np.random.default_rng(0).integers(0, size // 4096, count) * 4096


@pytest.fixture(scope="module")
def deep(room: Path, measuring: bool) -> Iterator[Deep]:
    deep = Deep(room, measuring)
    yield deep
    deep.close()


@pytest.mark.parametrize("depth", DEPTHS, ids="depth={}".format)
def test_lookup(benchmark: BenchmarkFixture, deep: Deep, depth: int) -> None:
    chain = deep.at(depth)
    resolved = chain.resolved("numba")
    walk = NaiveWalk(chain.images)
    walked = deep.offsets[: len(deep.offsets) // WALK_SHARES[depth]]
    table = np.arange(resolved.nbytes // 8, dtype=np.int64)
    index = np.random.default_rng(1).integers(0, len(table), len(deep.offsets))
    assert np.array_equal(gather(table, index), index)
    layer, file_offset = resolved.lookup(walked)
    walked_layer, walked_offset, probes = walk.lookup(walked)
    assert np.array_equal(layer, walked_layer)
    assert np.array_equal(file_offset, walked_offset)

    peers: dict[str, Contestant] = {
        "gather": in_process(lambda: gather(table, index)),
        "NumPy's take": in_process(lambda: table.take(index)),
        "walk": scaled(in_process(lambda: walk.lookup(walked)), WALK_SHARES[depth]),
    }
    targets = {"gather": GATHER_TARGET}
    if depth in WALK_TARGETS:
        targets["walk"] = WALK_TARGETS[depth]
    compete(benchmark, deep.lookup(chain), peers, rounds=9, targets=targets)

    info = benchmark.extra_info
    info.update(depth=depth, lookups=len(deep.offsets), **{"map bytes": resolved.nbytes})
    info["walk bytes"] = walk.nbytes
    note(benchmark, "probes a walk", float(probes.mean()))
    for name in ("ours", *peers):
        for clock in ("wall", "cpu"):
            ns = info[f"{name} {clock} ms"] * 1e6 / len(deep.offsets)
            note(benchmark, f"{name} ns a lookup {clock}", ns)


def test_lookup_at_depth_255_beside_shallower_ones(benchmark: BenchmarkFixture, deep: Deep) -> None:
    peers = {f"depth {depth}": deep.lookup(deep.at(depth)) for depth in DEPTHS[:-1]}

    ours = deep.lookup(deep.at(DEPTHS[-1]))
    compete(benchmark, ours, peers, rounds=15, targets={"depth 1": DEEP_TARGET})
    benchmark.extra_info.update(depth=DEPTHS[-1], lookups=len(deep.offsets))

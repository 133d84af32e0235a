"""What finding out what a snapshot changed costs, beside programs that compare two flat disks.

Two different questions.  The metadata of two points in time says what *was written*, and that is a bound for
what differs; comparing contents says what *differs*.  Peers must read both disks to their ends, which they do
for disks that are equal: they stop at the first difference.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.chains import GIB, MIB, FileSink, used_chain
from benchmarks.contest import Contestant, compete, in_process, whole_process
from vhdtool import open_chain
from vhdtool.chain.chain import Chain
from vhdtool.chain.diff import diff_chains
from vhdtool.export.proof.compare import compare_contents
from vhdtool.model.identity import ImageFormat

DEPTH: Final = 16
METADATA_TARGET: Final = 1 / 1000
CONTENTS_TARGET: Final = 1 / 30


class Points:
    """The last two points in time of a chain, open, and flat copies of the last one.

    Attributes:
        leaf, parent: the last point in time, and the one before.
        written: ranges (start, length) that differ, found by comparing every byte.
        peers: who read two flat disks that are equal.
    """

    def __init__(self, folder: Path, measuring: bool) -> None:
        self.size = GIB if measuring else 32 * MIB
        flat, copy = folder / "flat.raw", folder / "copy.raw"
        self.paths = used_chain(folder / "chain", DEPTH + 1, ImageFormat.VHDX, self.size, flat)
        self.leaf, self.parent = (open_chain(path) for path in self.paths[:2])
        self._before = folder / "before.raw"
        for path, chain in ((copy, self.leaf), (self._before, self.parent)):
            self._export(chain, path)
        self.written = self._differences(flat, self._before)
        self.peers: dict[str, Contestant] = {"cmp": whole_process("cmp", flat, copy)}
        if shutil.which("qemu-img"):
            compare = ["qemu-img", "compare", "-f", "raw", "-F", "raw"]
            self.peers["qemu-img compare"] = whole_process(*compare, flat, copy)

    def _export(self, chain: Chain, path: Path) -> None:
        """Write the disk with its holes, as the flat one has them."""
        sink, zeros = FileSink(path), bytes(MIB)
        for offset in range(0, self.size, MIB):
            data = chain.read(offset, MIB)
            if data != zeros:
                sink.write_at(offset, data)
        sink.close(self.size)

    def _differences(self, a: Path, b: Path) -> list[tuple[int, int]]:
        """Ranges of whole pages of 4 KiB, as writes were."""
        pages = [np.memmap(path, np.uint8, "r").reshape(-1, 4096) for path in (a, b)]
        differs = np.concatenate(
            [
                (pages[0][at : at + 256] != pages[1][at : at + 256]).any(axis=1)
                for at in range(0, len(pages[0]), 256)
            ]
        )
        edges = np.flatnonzero(np.diff(differs.astype(np.int8), prepend=0, append=0)) * 4096
        return [(start, stop - start) for start, stop in edges.reshape(-1, 2).tolist()]

    def close(self) -> None:
        """Let go of the chains."""
        self.leaf.close()
        self.parent.close()


@pytest.fixture(scope="module")
def points(room: Path, measuring: bool) -> Iterator[Points]:
    points = Points(room, measuring)
    yield points
    points.close()


def test_metadata_diff_of_the_last_snapshot(benchmark: BenchmarkFixture, points: Points) -> None:
    def opening_too() -> None:
        with open_chain(points.paths[0]) as leaf, open_chain(points.paths[1]) as parent:
            diff_chains(leaf, parent)

    found = diff_chains(points.leaf, points.parent)
    assert list(found.ranges) == points.written

    peers = {"ours from closed files": in_process(opening_too), **points.peers}
    ours = in_process(lambda: diff_chains(points.leaf, points.parent))
    compete(benchmark, ours, peers, rounds=9, targets={"qemu-img compare": METADATA_TARGET})
    benchmark.extra_info.update(depth=DEPTH, ranges=len(found.ranges), bytes=found.bytes)


def test_diff_of_the_last_snapshot_by_contents(benchmark: BenchmarkFixture, points: Points) -> None:
    found = compare_contents(points.leaf, points.parent)
    assert list(found.ranges) == points.written[: len(found.ranges)]
    assert found.range_count == len(points.written)

    ours = in_process(lambda: compare_contents(points.leaf, points.parent))
    compete(benchmark, ours, points.peers, rounds=9, targets={"cmp": CONTENTS_TARGET})
    benchmark.extra_info.update(depth=DEPTH, ranges=found.range_count, **{"bytes read": found.read_bytes})

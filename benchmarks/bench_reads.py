"""What a real read of 4 KiB costs, by depth: beside reading the flat disk, libvhdi and dissect.

Everything lies in the page cache.  Reads go all over the disk, half of which nobody ever wrote to, or only to
what the base holds.  In batches both sides read in the same kernel, into memory that is handed out anew for
each batch; one by one both are called from Python.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import cycle
from operator import eq
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.chains import GIB, MIB, used_chain
from benchmarks.conftest import OtherDisk
from benchmarks.contest import Contestant, compete, in_process, note, scaled
from vhdtool import open_chain
from vhdtool.chain.engine import machine_for
from vhdtool.model.identity import ImageFormat

pytest.importorskip("numba", reason="the engine of batches is not installed")

Int64s = npt.NDArray[np.int64]
Rows = npt.NDArray[np.uint8]

READ_SIZE: Final = 4096
DEPTHS: Final = (1, 16, 64)
# 16 MiB a batch: few enough that memory is handed out again and not fetched from the system each time.
BATCH: Final = 4096
BATCHED_TARGETS: Final = {
    1: {"flat file": 1.5},
    16: {"flat file": 3.0, "libvhdi": 1 / 100},
    64: {"flat file": 3.0, "libvhdi": 1 / 250},
}
ONE_BY_ONE_TARGETS: Final = {
    1: {"os.pread": 4.0},
    16: {"os.pread": 4.0, "libvhdi": 1 / 10},
    64: {"os.pread": 4.0},
}
# Other readers do a share of the reads in each round, for they take up to a millisecond each; never the same
# one twice, for what they remember of a read is no help with random ones.
OTHERS_READS: Final = {1: 5000, 16: 2000, 64: 500}
OTHERS_READS_SMALL: Final = 50


class Used:
    """A chain with payload, what it must read as, and other readers of it."""

    def __init__(
        self,
        folder: Path,
        depth: int,
        measuring: bool,
        other_disks: Callable[[list[Path], int], list[OtherDisk]],
    ) -> None:
        self.depth = depth
        self.size = GIB if measuring else 32 * MIB
        flat = folder / "flat.raw"
        paths = used_chain(folder / "chain", depth + 1, ImageFormat.VHDX, self.size, flat)
        self.chain = open_chain(paths[0])
        self.flat = os.open(flat, os.O_RDONLY)
        self._truth = np.memmap(flat, np.uint8, "r")
        self._others = other_disks(paths, self.size)
        self._others_reads = OTHERS_READS[depth] if measuring else OTHERS_READS_SMALL

    def places(self, where: str, count: int) -> Int64s:
        """``count`` random guest bytes, multiples of 4096, in the "disk" or in its "data" only."""
        pages = np.arange(self.size // READ_SIZE)
        if where == "data":
            # What the base holds is noise: no page of it is all zeros.
            pages = np.flatnonzero(self._truth.reshape(-1, READ_SIZE).any(axis=1))
        return np.random.default_rng(0).choice(pages, count) * READ_SIZE

    def truth(self, offsets: Int64s) -> Rows:
        """What reads from ``offsets`` must give, as uint8[n, 4096]."""
        rows: Rows = self._truth.reshape(-1, READ_SIZE)[offsets // READ_SIZE]
        return rows

    def others(self, offsets: Int64s) -> dict[str, Contestant]:
        """Those that read one by one: in each round other ones of ``offsets``, compared with the truth."""
        count = self._others_reads
        shares = [offsets[at : at + count] for at in range(0, len(offsets) - count + 1, count)]
        expected = [sha256(self.truth(share).tobytes()).hexdigest() for share in shares]

        def in_turn(disk: OtherDisk) -> Contestant:
            rounds = cycle(
                disk.contestant(digest, "read_each", share.tolist(), READ_SIZE)
                for digest, share in zip(expected, shares)
            )
            return lambda: next(rounds)()

        return {disk.reader: scaled(in_turn(disk), len(offsets) / count) for disk in self._others}

    def close(self) -> None:
        """Let go of all files."""
        for disk in self._others:
            disk.close()
        self.chain.close()
        os.close(self.flat)


@pytest.fixture(scope="module", params=DEPTHS, ids="depth={}".format)
def used(
    request: pytest.FixtureRequest,
    room: Path,
    measuring: bool,
    other_disks: Callable[[list[Path], int], list[OtherDisk]],
) -> Iterator[Used]:
    folder = room / f"{request.param}"
    used = Used(folder, request.param, measuring, other_disks)
    yield used
    used.close()
    shutil.rmtree(folder)


@pytest.mark.parametrize("where", ["disk", "data"])
def test_batched_reads(benchmark: BenchmarkFixture, used: Used, measuring: bool, where: str) -> None:
    batches = used.places(where, BATCH * (32 if measuring else 1)).reshape(-1, BATCH)
    used.chain.resolved().resolve()
    machine = machine_for("numba")
    descriptors = np.full(BATCH, used.flat, np.int32)
    counts = np.full(BATCH, READ_SIZE)
    starts = np.arange(BATCH) * READ_SIZE

    rows = np.empty((BATCH, READ_SIZE), np.uint8)

    def read_flat(offsets: Int64s) -> Rows:
        assert machine.read_pieces(descriptors, offsets, counts, starts, rows.reshape(-1)).all()
        return rows

    def reading(read: Callable[[Int64s], Rows]) -> Contestant:
        for offsets in batches:
            assert np.array_equal(read(offsets), used.truth(offsets))
        return in_process(lambda: [len(read(offsets)) for offsets in batches])

    ours = reading(lambda offsets: used.chain.read_many(offsets, READ_SIZE, out=rows))
    peers = {"flat file": reading(read_flat), **used.others(batches.reshape(-1))}
    compete(benchmark, ours, peers, rounds=9, targets=BATCHED_TARGETS[used.depth])
    benchmark.extra_info.update(depth=used.depth, reads=batches.size, where=where)


@pytest.mark.parametrize("where", ["disk", "data"])
def test_reads_one_by_one(benchmark: BenchmarkFixture, used: Used, measuring: bool, where: str) -> None:
    offsets = used.places(where, 20_000 if measuring else 500)
    places = offsets.tolist()
    truth = [row.tobytes() for row in used.truth(offsets)]
    disk = used.chain.open()

    def read_ours() -> Iterator[bytes]:
        for place in places:
            disk.seek(place)
            yield disk.read(READ_SIZE)

    def read_flat() -> Iterator[bytes]:
        for place in places:
            yield os.pread(used.flat, READ_SIZE, place)

    def job(read: Callable[[], Iterator[bytes]]) -> Contestant:
        return in_process(lambda: deque(read(), maxlen=0))

    # The first reads of a place also look for what is there; later ones know.
    first_wall = job(read_ours)().wall
    for read in (read_ours, read_flat):
        assert all(map(eq, read(), truth))
    peers = {"os.pread": job(read_flat), **used.others(offsets)}
    compete(benchmark, job(read_ours), peers, rounds=9, targets=ONE_BY_ONE_TARGETS[used.depth])
    benchmark.extra_info.update(depth=used.depth, reads=len(places), where=where)
    note(benchmark, "ours, the first time, wall ms", first_wall * 1000)
    disk.close()

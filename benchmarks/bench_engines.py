"""What either engine costs to start and for each thing it does: the figures of the cost model, measured.

``vhdtool.chain.engine`` chooses between NumPy and numba by ``NUMPY_COSTS`` and ``NUMBA_COSTS``.  Noted beside
each race: what was measured, what stands there, and how many times the one is the other.  As long as those
factors are alike the choice is the same, on a faster machine and on a slower one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.chains import GIB, MIB, hard_tables
from benchmarks.contest import Contestant, Sample, compete, in_process, note, whole_process
from vhdtool import open_chain
from vhdtool.chain.chain import Chain
from vhdtool.chain.engine import NUMBA_COSTS, NUMPY_COSTS, Costs, machine_for
from vhdtool.chain.flatten import resolve

pytest.importorskip("numba", reason="there is one engine only")

EngineName = Literal["numba", "numpy"]
MODEL: Final[dict[EngineName, Costs]] = {"numba": NUMBA_COSTS, "numpy": NUMPY_COSTS}
DEPTH: Final = 64
READ_SIZE: Final = 4096

# Starts an engine, which is to import it and to call each of its kernels once.  NumPy is there before.
START: Final = """\
import json, sys, time
import numpy as np
from vhdtool.chain.engine import machine_for
from vhdtool.chain.resolved import ResolvedMap
from vhdtool import open_chain
with open_chain(sys.argv[2]) as chain:
    chain.require_sound()
    wall, cpu = time.perf_counter(), time.process_time()
    machine = machine_for(sys.argv[1])
    resolved = chain.resolved(sys.argv[1])
    resolved.resolve()
    offsets = np.zeros(1, np.int64)
    resolved.lookup(offsets)
    resolved.runs_at(offsets)
    one = np.ones(1, np.int64)
    descriptor = np.array([chain.leaf.source.descriptor], np.int32)
    machine.read_pieces(descriptor, offsets, one, offsets, np.empty(1, np.uint8))
    print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""


class Tables:
    """A chain without payload, opened and surveyed; to measure with.

    Attributes:
        bitmaps: how many sector bitmaps resolving it claims.
    """

    def __init__(self, folder: Path, measuring: bool) -> None:
        size = GIB if measuring else 64 * MIB
        self.chain: Chain = open_chain(hard_tables(folder, DEPTH + 1, size)[0])
        self.chain.require_sound()
        self.bitmaps = sum(image.counts().partial for image in self.chain.images)
        count = 1_000_000 if measuring else 10_000
        self.offsets = np.random.default_rng(0).integers(0, size // READ_SIZE, count) * READ_SIZE


@pytest.fixture(scope="module")
def tables(room: Path, measuring: bool) -> Iterator[Tables]:
    tables = Tables(room / "tables", measuring)
    yield tables
    tables.chain.close()


def race(benchmark: BenchmarkFixture, what: str, jobs: dict[EngineName, Contestant], count: int) -> None:
    """Both engines do ``count`` of ``what``; beside their times, what the model says of each one."""
    for job in jobs.values():
        job()  # compile outside the clock
    compete(benchmark, jobs["numba"], {"NumPy": jobs["numpy"]}, rounds=5)
    benchmark.extra_info["count"] = count
    for name, seconds in (("numba", "ours wall ms"), ("NumPy", "NumPy wall ms")):
        compare_with_model(benchmark, name, what, benchmark.extra_info[seconds] / 1000 / count)


def compare_with_model(benchmark: BenchmarkFixture, name: str, what: str, measured: float) -> None:
    """Note what ``what`` costs with an engine, what the model says, and how far apart they are."""
    expected = getattr(MODEL["numba" if name == "numba" else "numpy"], what)
    note(benchmark, f"{name}, {what}, measured s", measured)
    note(benchmark, f"{name}, {what}, model s", expected)
    note(benchmark, f"{name}, {what}, measured / model", measured / expected)


def test_start(benchmark: BenchmarkFixture, room: Path, measuring: bool) -> None:
    leaf = hard_tables(room / "start", 2, 64 * MIB)[0]

    def starting(engine: EngineName) -> Contestant:
        command = [sys.executable, "-c", START, engine, str(leaf)]

        def run() -> Sample:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
            return Sample(*json.loads(done.stdout))

        return run

    ours = starting("numba")
    if measuring:
        ours()  # compiles, if nobody did so before: a start is one with kernels from the cache
    alone = whole_process(sys.executable, "-c", "import numba")
    compete(benchmark, ours, {"NumPy": starting("numpy"), "import numba, as a process": alone}, rounds=5)
    # What the calls themselves cost is no part of starting an engine.
    info = benchmark.extra_info
    compare_with_model(benchmark, "numba", "start", (info["ours wall ms"] - info["NumPy wall ms"]) / 1000)


def test_bitmaps(benchmark: BenchmarkFixture, tables: Tables) -> None:
    def resolving(engine: EngineName) -> Contestant:
        def run() -> None:
            for _ in resolve(tables.chain.images, 0, tables.chain.virtual_size, engine=engine):
                pass

        return in_process(run)

    jobs = {engine: resolving(engine) for engine in MODEL}
    race(benchmark, "bitmap", jobs, tables.bitmaps)


def test_lookups(benchmark: BenchmarkFixture, tables: Tables) -> None:
    def looking_up(engine: EngineName) -> Contestant:
        resolved = tables.chain.resolved(engine)
        resolved.resolve()
        return in_process(lambda: resolved.lookup(tables.offsets))

    answers = [tables.chain.resolved(engine).lookup(tables.offsets) for engine in MODEL]
    for column, twin in zip(*answers):
        assert np.array_equal(column, twin)
    jobs = {engine: looking_up(engine) for engine in MODEL}
    race(benchmark, "lookup", jobs, len(tables.offsets))


def test_reads(benchmark: BenchmarkFixture, tables: Tables, room: Path) -> None:
    path = room / "noise"
    noise = np.random.default_rng(0).integers(0, 256, 16 * MIB, np.uint8)
    path.write_bytes(noise.data)
    descriptor = os.open(path, os.O_RDONLY)
    count = len(noise) // READ_SIZE
    places = np.random.default_rng(1).permutation(count) * READ_SIZE
    descriptors, counts = np.full(count, descriptor, np.int32), np.full(count, READ_SIZE)
    starts = np.arange(count) * READ_SIZE
    out = np.empty(len(noise), np.uint8)

    def reading(engine: EngineName) -> Contestant:
        machine = machine_for(engine)

        def run() -> None:
            assert machine.read_pieces(descriptors, places, counts, starts, out).all()

        out[:] = 0
        run()
        assert np.array_equal(out.reshape(-1, READ_SIZE), noise.reshape(-1, READ_SIZE)[places // READ_SIZE])
        return in_process(run)

    jobs = {engine: reading(engine) for engine in MODEL}
    race(benchmark, "read", jobs, count)
    os.close(descriptor)

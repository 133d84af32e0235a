"""Measuring really reads: the right bytes of the right files, for as long as was said."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import vhdtool
from tests.generated import MIB, Style, a_chain
from tests.simulate.test_cost import Reads
from vhdtool.chain.chain import Chain
from vhdtool.errors import CorruptError, ReadError
from vhdtool.simulate import measure
from vhdtool.simulate.cost import simulate
from vhdtool.simulate.figures import Measured
from vhdtool.simulate.measure import Mode, measure_reads
from vhdtool.source import DirectFile, FileSource

MODES: list[Mode] = ["cache", "direct"]
# Of one length, of other lengths, of many blocks, of nothing.
READS = Reads(
    ((0, 4096), (8192, 4096), (5, 1), (MIB - 1, 2), (0, 5 * MIB), (4096, 0), (3 * MIB, 512)), at_once=4
)
BYTES = sum(length for _, length in READS.rows)


@pytest.fixture(params=["vhdx", "vhd"])
def leaf(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    style = Style(logs=0.6) if request.param == "vhdx" else Style(format="vhd", block_sizes=(512 << 10,))
    return a_chain(tmp_path, 5, style, 21).path


class Recorded:
    """Stands for a file opened with O_DIRECT, and notes what is read."""

    reads: ClassVar[list[tuple[str, int, int]]] = []

    def __init__(self, file: FileSource) -> None:
        self.name = file.name

    def read(self, offset: int, length: int) -> None:
        self.reads.append((self.name, offset, length))

    def close(self) -> None:
        pass


def measured(chain: Chain, mode: Mode, seconds: float = 60.0) -> Measured:
    return measure_reads(chain, READS.batches(), mode, seconds=seconds)


@pytest.mark.parametrize("mode", MODES)
def test_all_reads_are_done_and_counted(leaf: Path, mode: Mode) -> None:
    with vhdtool.open_chain(leaf) as chain:
        try:
            found = measured(chain, mode)
        except ReadError as error:
            pytest.skip(f"no O_DIRECT here: {error}")

    assert (found.mode, found.reads, found.bytes) == (mode, len(READS.rows), BYTES)
    assert found.iops == pytest.approx(found.reads / found.seconds)
    assert found.mb_per_s == pytest.approx(found.bytes / found.seconds / 1e6)


@pytest.mark.parametrize("mode", MODES)
def test_a_measurement_ends_when_its_time_is_up(
    leaf: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "DirectFile", Recorded)
    seconds = itertools.count()
    with vhdtool.open_chain(leaf) as chain:
        # A step is the reads of one length that follow each other: two, then one, one.
        found = measure_reads(chain, READS.batches(), mode, seconds=3, clock=lambda: float(next(seconds)))

    assert (found.reads, found.seconds) == (4, 3.0)


def test_direct_reads_are_the_data_that_the_plan_has(leaf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "DirectFile", Recorded)
    monkeypatch.setattr(Recorded, "reads", [])
    with vhdtool.open_chain(leaf) as chain:
        measured(chain, "direct")
        expected = []
        for offset, length in READS.rows:
            for run in chain.plan(offset, offset + length):
                if run.layer >= 0:
                    name = chain.images[run.layer].source.name
                    expected.append((name, run.file_offset, run.length))

    assert Recorded.reads == expected


def test_a_simulation_shows_what_was_measured(leaf: Path) -> None:
    with vhdtool.open_chain(leaf) as chain:
        simulation = simulate(chain, READS, measure="cache", engine="numpy")

    assert simulation.measured is not None
    assert simulation.measured.reads == simulation.reads == len(READS.rows)


def test_without_o_direct_the_error_says_so(leaf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "O_DIRECT", raising=False)
    with vhdtool.open_chain(leaf) as chain, pytest.raises(ReadError, match="past the page cache") as caught:
        measured(chain, "direct")

    assert caught.value.exit_code == 74


def test_a_direct_file_reads_any_range_up_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(np.random.default_rng(1).bytes(3 * MIB + 700))
    with FileSource(path) as source:
        try:
            file = DirectFile(source)
        except ReadError as error:
            pytest.skip(f"no O_DIRECT here: {error}")
        try:
            for offset, length in ((0, 1), (4095, 2), (100, 3 * MIB), (3 * MIB + 699, 1), (3 * MIB, 700)):
                file.read(offset, length)
            with pytest.raises(CorruptError, match="ends inside"):
                file.read(3 * MIB, 701)
        finally:
            file.close()


def test_a_file_that_was_replaced_is_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"one")
    with FileSource(path) as source:
        path.rename(tmp_path / "other")
        path.write_bytes(b"two")
        with pytest.raises(ReadError, match=r"another file stands under its name|past the page cache"):
            DirectFile(source)

"""The benchmark of depth: complete rows, right answers, fair rounds, and a libvhdi that fails."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vhdtool import open_chain
from vhdtool.chain.chain import Chain
from vhdtool.chain.engine import Engine, machine_for
from vhdtool.chain.naive import NaiveWalk
from vhdtool.chain.resolved import ResolvedMap
from vhdtool.errors import ExportError, MissingPackageError, TargetError, TargetExistsError
from vhdtool.export.containers.target import TargetFile
from vhdtool.model.identity import ImageFormat
from vhdtool.report.depth import depth_json, depth_text
from vhdtool.simulate import contest, depth
from vhdtool.simulate.contest import Contest, Entry, Point, Sample, WrongBytesError
from vhdtool.simulate.cost import survey_disk
from vhdtool.simulate.depth import DepthJob, measure_depths, room_needed
from vhdtool.simulate.figures import DepthBenchmark, DepthRow
from vhdtool.simulate.libvhdi import Libvhdi, LibvhdiError, ReadsAnswer
from vhdtool.simulate.synthetic import Recipe
from vhdtool.source import FileSource

MIB = 1 << 20
BOTH = (ImageFormat.VHD, ImageFormat.VHDX)
ORACLE_PYTHON = os.environ.get("VHDTOOL_ORACLE_PYTHON", "")
create = partial(TargetFile, sync=False)

needs_libvhdi = pytest.mark.skipif(
    not ORACLE_PYTHON, reason="VHDTOOL_ORACLE_PYTHON names no interpreter with libvhdi"
)


def a_job(recipe: dict[str, Any] | None = None, **changes: Any) -> DepthJob:
    depths: tuple[int, ...] = changes.get("depths", (0, 1, 3))
    wanted = {"virtual_size": 16 * MIB, "layers": depths[-1] + 1, "rewrite": 0.1, **(recipe or {})}
    given: dict[str, Any] = {"rounds": 2, "reads": 60, "engine": "numpy", "formats": (ImageFormat.VHDX,)}
    return DepthJob(Recipe(**wanted), **{**given, "depths": depths, **changes})


def a_benchmark(tmp_path: Path, job: DepthJob) -> DepthBenchmark:
    folder = tmp_path / "room"
    folder.mkdir()
    return measure_depths(job, folder, create)


# ------------------------------------------------------------ rows


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_every_depth_of_every_format_has_a_complete_row(engine: Engine, tmp_path: Path) -> None:
    job = a_job(formats=BOTH, engine=engine)

    found = a_benchmark(tmp_path, job)

    assert [(row.format, row.depth) for row in found.rows] == [
        (f, d) for f in ("vhd", "vhdx") for d in (0, 1, 3)
    ]
    for row in found.rows:
        assert row.reads_per_s > 0
        assert row.sequential_mb_per_s > 0
        assert row.reads_relative_to_flat > 0
        assert row.sequential_relative_to_flat > 0
        assert row.ns_per_lookup.walk > 0
        assert row.ns_per_lookup.resolved > 0
        assert row.metadata_bytes.naive > 0
        assert row.metadata_bytes.resolved > 0
        assert (row.libvhdi_reads_per_s, row.libvhdi_sequential_mb_per_s) == (None, None)
        assert (row.probes.p50, row.probes.max) == (row.depth + 1, row.depth + 1)
    assert found.settings == {
        "size": 16 * MIB,
        "fill": 0.5,
        "share": 0.1,
        "grain": 4096,
        "write_min": 4096,
        "write_max": 65536,
        "seed": 0,
        "depths": "0,1,3",
        "formats": "vhd,vhdx",
        "rounds": 2,
        "reads": 60,
        "engine": engine,
        "libvhdi": "",
    }
    assert found.notes == ()
    assert found.started.endswith("Z")
    assert f"Python {sys.version_info.major}." in found.machine


def test_what_is_counted_is_what_the_chain_that_is_left_there_says(tmp_path: Path) -> None:
    found = a_benchmark(tmp_path, a_job())

    leaf = tmp_path / "room" / "vhdx" / "layer003.avhdx"
    with open_chain(leaf) as chain:
        disk = survey_disk(chain)
    row = found.rows[-1]
    assert row.depth == 3
    assert row.runs_per_mib == disk.fragmentation.runs_per_mib
    assert row.files_per_mib == disk.fragmentation.files_per_mib
    assert row.mean_run == disk.fragmentation.mean_run
    assert row.metadata_bytes.naive == sum(holding.metadata_bytes for holding in disk.holdings)
    assert sorted(p.name for p in (tmp_path / "room").iterdir()) == ["flat.raw", "vhdx"]


def test_probes_follow_the_share_that_each_layer_rewrites(tmp_path: Path) -> None:
    # Of what the base holds a layer rewrites f, at random: a read goes down (1-(1-f)^(d+1))/f layers.
    # 20,000 reads and writes of one grain, so that neither luck nor clumps are worth more than 2 %.
    recipe = {"virtual_size": 64 * MIB, "rewrite": 0.2, "run_length_max": 4096}

    found = a_benchmark(tmp_path, a_job(recipe, depths=(0, 2, 6), reads=20_000, rounds=1))

    for row in found.rows:
        expected = (1 - 0.8 ** (row.depth + 1)) / 0.2
        assert row.probes.mean == pytest.approx(expected, rel=0.02)
        assert row.probes.max == row.depth + 1


def test_the_same_job_counts_the_same(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()

    rows = [a_benchmark(folder, a_job()).rows for folder in (first, second)]

    counted = [[(r.probes, r.runs_per_mib, r.mean_run, r.metadata_bytes) for r in some] for some in rows]
    assert counted[0] == counted[1]


def test_without_positioned_reads_everything_is_measured_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileSource, "descriptor", None)

    found = a_benchmark(tmp_path, a_job())

    assert all(row.reads_relative_to_flat > 0 for row in found.rows)


def test_a_disk_with_large_tables_is_walked_in_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[int, int]] = []

    class Noted(NaiveWalk):
        def __init__(self, images: Any, start: int = 0, stop: int | None = None, **more: Any) -> None:
            super().__init__(images, start, stop, **more)
            built.append((self.start, self.stop))

    monkeypatch.setattr(contest, "NaiveWalk", Noted)
    monkeypatch.setattr(contest, "_NAIVE_BYTES_MAX", 4096)
    monkeypatch.setattr(contest, "_NAIVE_LENGTH_MIN", 2 * MIB)

    found = a_benchmark(tmp_path, a_job(depths=(1,)))

    (start, stop) = built[0]
    assert 0 < stop - start <= 8 * MIB
    assert start % (2 * MIB) == 0
    assert found.rows[0].ns_per_lookup.walk > 0


# ------------------------------------------------------------ answers are checked


def test_a_byte_that_we_read_wrong_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Chain.read_many

    def wrong(self: Chain, offsets: Any, length: int, **options: Any) -> Any:
        rows = real(self, offsets, length, **options)
        rows[-1, 17] ^= 1
        return rows

    monkeypatch.setattr(Chain, "read_many", wrong)

    with pytest.raises(WrongBytesError, match="reads: other bytes were read of the VHDX at depth 0"):
        a_benchmark(tmp_path, a_job())


def test_a_lookup_that_we_get_wrong_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ResolvedMap.lookup

    def wrong(self: ResolvedMap, offsets: Any) -> Any:
        layer, place = real(self, offsets)
        place[0] += 512
        return layer, place

    monkeypatch.setattr(ResolvedMap, "lookup", wrong)

    with pytest.raises(WrongBytesError, match="other answers than the walk"):
        a_benchmark(tmp_path, a_job())


def test_what_goes_wrong_in_a_later_round_is_a_fault_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Contest.run

    def spoiled(self: Contest, rounds: int) -> None:
        flat = tmp_path / "room" / "flat.raw"
        flat.write_bytes(bytes(flat.stat().st_size))
        real(self, rounds)

    monkeypatch.setattr(Contest, "run", spoiled)

    with pytest.raises(WrongBytesError, match="flat"):
        a_benchmark(tmp_path, a_job())


# ------------------------------------------------------------ rounds


@contextmanager
def a_contest(*names: str) -> Iterator[tuple[Contest, list[str]]]:
    """A contest whose contestants note their turns: two points, each with ``names``."""
    turns: list[str] = []

    def a_turn(label: str) -> float:
        turns.append(label)
        return float(len(turns))

    with ExitStack() as stack:
        sample = Sample(*(np.zeros(1, np.int64),) * 3, 1)
        flat: Any = None
        made = Contest(machine_for("numpy"), sample, flat, {}, stack, lambda what: None)
        for number in (1, 2):
            point = Point.__new__(Point)
            point.format, point.entries = ImageFormat.VHD, {}
            point.chain = type("Fake", (), {"layers": (None,) * number})()
            point.entries.update((name, Entry(partial(a_turn, f"{number}{name}"))) for name in names)
            made.points.append(point)
        yield made, turns


def test_every_round_visits_everybody_and_every_second_one_backwards() -> None:
    with a_contest("a", "b") as (made, turns):
        made.run(3)

    assert turns == ["1a", "1b", "2a", "2b", "2b", "2a", "1b", "1a", "1a", "1b", "2a", "2b"]
    assert made.points[0].entries["b"].taken == [2, 7, 10]


def test_ratios_are_taken_within_each_round() -> None:
    # The machine is twice as slow in the second round, and four times in the third: for both.
    with a_contest(contest.READS, contest.FLAT_READS) as (made, _):
        entries = made.points[0].entries
        entries[contest.READS].taken = [2.0, 4.0, 8.8]
        entries[contest.FLAT_READS].taken = [1.0, 2.4, 4.0]

        ratio = made.points[0]._relative(contest.READS, contest.FLAT_READS)

    # 1/2, 2.4/4, 4/8.8: the one in the middle.
    assert ratio == 0.5
    assert entries[contest.READS].median() == 4.0


def test_who_is_slow_does_less_and_never_nothing() -> None:
    offsets = np.arange(10_000)
    asked: list[int] = []

    def slow(tried: Any) -> float:
        asked.extend(tried.tolist())
        return len(tried) * 0.001

    assert len(contest._affordable(slow, offsets)) == 100
    # With ever more of them, none twice.
    assert asked == list(range(8 + 32))
    assert len(contest._affordable(lambda tried: len(tried) * 1e-6, offsets)) == 10_000
    assert len(contest._affordable(lambda tried: 60.0, offsets)) == 1
    assert len(contest._affordable(lambda tried: 0.0, offsets[:3])) == 3


# ------------------------------------------------------------ libvhdi


class Peer:
    """A stand-in for libvhdi that reads what was written, until it is told otherwise."""

    version = "20990101"
    fails_at = -1
    lies = False
    asked = 0

    def __init__(self, python: str) -> None:
        if python == "nothing":
            raise LibvhdiError("libvhdi in nothing: No module named 'pyvhdi'")

    def open(self, paths: Sequence[Path]) -> int:
        self.chain = open_chain(paths[0])
        assert [layer.path.name for layer in self.chain.layers] == [path.name for path in paths]
        return self.chain.virtual_size

    def read(self, layer: int, offsets: Sequence[int], length: int) -> ReadsAnswer:
        from zlib import crc32

        type(self).asked += 1
        if type(self).asked == self.fails_at:
            raise LibvhdiError("libvhdi in python: it ended")
        disk = Chain(self.chain.layers[layer:])
        return ReadsAnswer(0.001, tuple(crc32(disk.read(at, length)) ^ self.lies for at in offsets))

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *why: object) -> None:
        if hasattr(self, "chain"):
            self.chain.close()


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> type[Peer]:
    class Mine(Peer):
        pass

    monkeypatch.setattr(contest, "Libvhdi", Mine)
    return Mine


def rates_of_libvhdi(rows: Sequence[DepthRow]) -> list[bool]:
    return [x is not None for r in rows for x in (r.libvhdi_reads_per_s, r.libvhdi_sequential_mb_per_s)]


def test_libvhdi_gets_the_same_to_read_at_every_depth(peer: type[Peer], tmp_path: Path) -> None:
    found = a_benchmark(tmp_path, a_job(libvhdi="python"))

    assert all(rates_of_libvhdi(found.rows))
    assert found.settings["libvhdi"] == "20990101"
    assert found.notes == ()
    # A millisecond for all of its 60 reads, or for 8 pieces of a MiB.
    assert found.rows[0].libvhdi_reads_per_s == pytest.approx(60 / 0.001)
    assert found.rows[0].libvhdi_sequential_mb_per_s == pytest.approx(8 * 1.048576 / 0.001)


def test_libvhdi_that_is_not_there_is_left_out_and_that_is_said(peer: type[Peer], tmp_path: Path) -> None:
    found = a_benchmark(tmp_path, a_job(libvhdi="nothing"))

    assert not any(rates_of_libvhdi(found.rows))
    assert found.settings["libvhdi"] == ""
    assert found.notes == ("libvhdi in nothing: No module named 'pyvhdi'",)


def test_libvhdi_that_reads_wrong_bytes_is_not_measured(peer: type[Peer], tmp_path: Path) -> None:
    peer.lies = True

    found = a_benchmark(tmp_path, a_job(depths=(0, 1), libvhdi="python"))

    assert not any(rates_of_libvhdi(found.rows))
    assert found.notes == tuple(
        f"libvhdi {what}: other bytes were read of the VHDX at depth {d} than were written; not measured"
        for d in (0, 1)
        for what in ("reads", "in order")
    )


def test_libvhdi_that_ends_in_the_middle_is_left_out_from_there(peer: type[Peer], tmp_path: Path) -> None:
    # Two depths: trial and first turn of both jobs are eight requests, a round is four.
    peer.fails_at = 8 + 4 + 2

    found = a_benchmark(tmp_path, a_job(depths=(0, 1), libvhdi="python", rounds=3))

    assert rates_of_libvhdi(found.rows).count(False) == 1
    assert found.notes == ("libvhdi in python: it ended",)
    assert all(row.reads_per_s > 0 for row in found.rows)


@needs_libvhdi
def test_the_real_libvhdi_takes_part(tmp_path: Path) -> None:
    found = a_benchmark(tmp_path, a_job(formats=BOTH, libvhdi=ORACLE_PYTHON))

    assert all(rates_of_libvhdi(found.rows))
    assert str(found.settings["libvhdi"]).isdigit()
    assert found.notes == ()


@needs_libvhdi
def test_the_real_libvhdi_reads_small_grains_of_a_vhd_wrong_and_is_left_out_there(tmp_path: Path) -> None:
    job = a_job({"grain": 512}, formats=BOTH, libvhdi=ORACLE_PYTHON, depths=(0, 3), reads=500)

    found = a_benchmark(tmp_path, job)

    by_row = {(r.format, r.depth): r.libvhdi_reads_per_s is not None for r in found.rows}
    assert by_row == {("vhd", 0): True, ("vhd", 3): False, ("vhdx", 0): True, ("vhdx", 3): True}
    assert any("of the VHD at depth 3" in note for note in found.notes)


@needs_libvhdi
def test_libvhdi_answers_what_it_is_asked_and_says_why_not(tmp_path: Path) -> None:
    from zlib import crc32

    a_benchmark(tmp_path, a_job(depths=(1,)))
    home = tmp_path / "room" / "vhdx"
    with Libvhdi(ORACLE_PYTHON) as other, open_chain(home / "layer001.avhdx") as chain:
        assert other.open([home / "layer001.avhdx", home / "layer000.vhdx"]) == 16 * MIB

        answer = other.read(0, [0, 4096], 4096)

        assert answer.checksums == (crc32(chain.read(0, 4096)), crc32(chain.read(4096, 4096)))
        assert answer.seconds > 0
        with pytest.raises(LibvhdiError, match=r"libvhdi in .*: "):
            other.open([tmp_path / "nowhere.vhdx"])


@pytest.mark.parametrize("python", ["no-such-interpreter-anywhere", "", str(Path(__file__).parent)])
def test_an_interpreter_that_is_none_is_refused(python: str) -> None:
    with pytest.raises(LibvhdiError, match="no such interpreter") as caught:
        Libvhdi(python)

    assert isinstance(caught.value, MissingPackageError)
    assert caught.value.exit_code == 69


@pytest.mark.skipif(os.name != "posix", reason="scripts of a shell")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 3", "it ended"),
        ("echo not json", "it ended|no answer of ours"),
        ("yes", "it ended|no answer of ours"),
        ("read line; echo '[1]'", "no answer of ours"),
        ("read line; echo '{}'", "None"),
        ("exec sleep 30", "no answer within 0 s"),
        ("exec cat /dev/zero", "no answer"),
    ],
)
def test_a_program_that_is_no_libvhdi_is_told_from_one(script: str, message: str, tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)

    with pytest.raises(LibvhdiError, match=message):
        Libvhdi(str(fake), seconds_max=0.3)


def test_what_lies_in_the_working_directory_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "ran"
    for name in ("json", "zlib", "typing", "pyvhdi"):
        (tmp_path / f"{name}.py").write_text(f"open({str(mark)!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)

    # This interpreter may have pyvhdi or not: what counts is whose.
    with suppress(LibvhdiError):
        Libvhdi(sys.executable).close()

    assert not mark.exists()


# ------------------------------------------------------------ room


def test_too_little_room_is_refused_with_the_figure_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = a_job()
    needed = room_needed(job, holes=depth._keeps_holes(tmp_path, create))
    usage = shutil.disk_usage(tmp_path)._replace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    with pytest.raises(
        ExportError, match=f"up to {needed} bytes are needed, {needed - 1} are free"
    ) as caught:
        measure_depths(job, tmp_path, create)

    assert caught.value.exit_code == 74
    assert list(tmp_path.iterdir()) == []


def test_where_holes_take_room_more_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = a_job()

    class Full(TargetFile):
        """A file system that writes holes out."""

        def finish(self, size: int) -> None:
            self.write_at(0, bytes(size))
            super().finish(size)

    assert depth._keeps_holes(tmp_path, create)
    assert not depth._keeps_holes(tmp_path, partial(Full, sync=False))
    assert room_needed(job, holes=False) > 2 * room_needed(job, holes=True)
    assert list(tmp_path.iterdir()) == []


def test_the_files_take_no_more_room_than_was_asked_for(tmp_path: Path) -> None:
    job = a_job(formats=BOTH)

    a_benchmark(tmp_path, job)

    files = [p.stat() for p in (tmp_path / "room").rglob("*") if p.is_file()]
    assert sum(getattr(s, "st_blocks", 0) * 512 for s in files) <= room_needed(job, holes=True)
    assert sum(s.st_size for s in files) <= room_needed(job, holes=False)


def test_a_folder_in_the_way_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "vhdx").mkdir()

    with pytest.raises(TargetExistsError, match="vhdx exists already"):
        measure_depths(a_job(), tmp_path, create)

    assert sorted(p.name for p in tmp_path.iterdir()) == ["vhdx"]


def test_a_folder_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(TargetError):
        measure_depths(a_job(), tmp_path / "nowhere", create)


# ------------------------------------------------------------ jobs and reports


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (1, 0)}, "ascend"),
        ({"depths": (0, 0, 1)}, "ascend"),
        ({"depths": (-1, 1)}, "ascend"),
        ({"formats": ()}, "formats"),
        ({"formats": (ImageFormat.VHD, ImageFormat.VHD)}, "formats"),
        ({"formats": (ImageFormat.RAW,)}, "VHD or VHDX"),
        ({"rounds": 0}, "rounds"),
        ({"reads": 0}, "reads"),
        ({"reads": 1 << 21}, "reads"),
    ],
    ids=str,
)
def test_a_job_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    recipe = Recipe(16 * MIB, 2)

    with pytest.raises(ValueError, match=message):
        DepthJob(recipe, **{"depths": (0, 1), **changes})


def test_a_job_needs_as_many_layers_as_its_depths_and_a_disk_that_its_formats_hold() -> None:
    with pytest.raises(ValueError, match="depth 3 needs 4 layers"):
        DepthJob(Recipe(16 * MIB, 3), depths=(0, 3))
    with pytest.raises(ValueError, match="virtual size"):
        DepthJob(Recipe(4 << 40, 2, rewrite=0), depths=(0, 1))
    with pytest.raises(ValueError, match="64 TiB"):
        DepthJob(Recipe(65 << 40, 2, rewrite=0), depths=(0, 1), formats=(ImageFormat.VHDX,))


def test_a_job_travels() -> None:
    assert pickle.loads(pickle.dumps(a_job())) == a_job()


def test_the_document_holds_everything_and_is_json(tmp_path: Path) -> None:
    found = a_benchmark(tmp_path, a_job())

    document = json.loads(json.dumps(depth_json(found)))

    assert list(document) == ["settings", "machine", "started", "rows", "notes"]
    assert list(document["rows"][0]) == [
        "format",
        "depth",
        "probes",
        "runs_per_mib",
        "files_per_mib",
        "mean_run",
        "metadata_bytes",
        "ns_per_lookup",
        "reads_per_s",
        "sequential_mb_per_s",
        "reads_relative_to_flat",
        "sequential_relative_to_flat",
        "libvhdi_reads_per_s",
        "libvhdi_sequential_mb_per_s",
    ]
    assert document["rows"][0]["probes"] == {"mean": 1.0, "p50": 1, "p99": 1, "max": 1}
    assert set(document["rows"][0]["metadata_bytes"]) == {"naive", "resolved", "resolved_is_estimate"}
    assert set(document["rows"][0]["ns_per_lookup"]) == {"walk", "resolved"}
    assert document["settings"] == found.settings


def test_the_tables_show_every_row_and_say_who_is_missing(tmp_path: Path) -> None:
    found = a_benchmark(tmp_path, a_job(formats=BOTH))
    row = replace(
        found.rows[0],
        reads_per_s=250_000.0,
        reads_relative_to_flat=0.815,
        libvhdi_reads_per_s=1250.4,
        sequential_mb_per_s=300.0,
        libvhdi_sequential_mb_per_s=1200.0,
    )
    told = replace(found, rows=(row, *found.rows[1:]), notes=("libvhdi \N{EM DASH} left out",))

    text = depth_text(told)

    assert text.count("\nVHD ") == text.count("\nVHDX ") == 3 * 3
    assert "16 MiB, 50 % of it filled; each layer writes 10 % of that anew, 4 KiB to 64 KiB" in text
    assert "no libvhdi" in text
    first = text.split("flat file\n")[1].splitlines()[1]
    assert first.split()[:7] == ["VHD", "0", "250,000/s", "82", "%", "1,250/s", "200"]
    assert first.rstrip().endswith("1,200 MB/s      0.2 x")
    assert text.split("flat file\n")[1].splitlines()[2].count(" - ") + 1 >= 3
    assert text.endswith("left out")
    assert all(len(line) <= 110 for line in text.splitlines())

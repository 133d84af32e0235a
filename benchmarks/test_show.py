"""What the table of figures says, of figures made up here and of a race that was run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import show
from benchmarks.contest import (
    Contestant,
    Sample,
    note_quickest,
    note_seconds_over,
    one_after_the_other,
    scaled,
    slower_of,
)

RACE = {
    "ours wall ms": 10.0,
    "ours cpu ms": 8.0,
    "cmp wall ms": 1000.0,
    "cmp cpu ms": 500.0,
    "ours / cmp wall": 0.01,
    "ours / cmp cpu": 0.016,
}


def figures(**info: Any) -> dict[str, Any]:
    """A run of one benchmark."""
    machine = {
        "node": "somebodys-machine",
        "machine": "x86_64",
        "system": "Linux",
        "release": "6.1.0-somebodys",
        "python_implementation": "CPython",
        "python_version": "3.13.1",
        "cpu": {"count": 2, "brand_raw": "Fast CPU"},
    }
    run = {
        "fullname": "benchmarks/bench_diff.py::test_diff[depth=16]",
        "name": "test_diff",
        "extra_info": info,
    }
    return {
        "machine_info": machine,
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "datetime": "2030-01-02T03:04:05+00:00",
        "benchmarks": [run],
    }


def rows(**info: Any) -> list[list[str]]:
    """The cells of the table's rows, without its head."""
    lines = list(show.markdown(figures(**info)))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]


def test_a_race_is_a_row_with_times_and_ratios_as_people_say_them() -> None:
    assert rows(**RACE) == [
        ["`bench_diff: diff[depth=16]`", "10 / 8", "1000 / 500", "ours / cmp", "1/100", "1/62.5", "", ""]
    ]


@pytest.mark.parametrize(
    ("target", "shown", "met"),
    [
        (1 / 30, "≤ 1/30", "yes"),
        (1 / 80, "≤ 1/80", "wall only"),
        (1 / 1000, "≤ 1/1000", "**no**"),
    ],
)
def test_a_target_is_met_when_wall_and_cpu_are_within_it(target: float, shown: str, met: str) -> None:
    [row] = rows(**RACE, targets={"ours / cmp": target})

    assert row[-2:] == [shown, met]


def test_a_ratio_whose_cpu_alone_is_within_its_target_is_met_by_half() -> None:
    [row] = rows(**{**RACE, "ours / cmp cpu": 0.001}, targets={"ours / cmp": 0.002})

    assert row[-1] == "CPU only"


@pytest.mark.parametrize(
    ("target", "shown", "met"),
    [
        ([0.02, 0.02], "≤ 1/50 / 1/50", "yes"),
        ([0.02, 0.01], "≤ 1/50 / 1/100", "wall only"),
        ([0.001, 0.02], "≤ 1/1000 / 1/50", "CPU only"),
        ([0.001, 0.01], "≤ 1/1000 / 1/100", "**no**"),
    ],
)
def test_a_target_may_be_another_one_for_wall_than_for_cpu(target: list[float], shown: str, met: str) -> None:
    [row] = rows(**RACE, targets={"ours / cmp": target})

    assert row[-2:] == [shown, met]


def test_a_figure_of_a_benchmark_without_times_is_a_row_without_them() -> None:
    assert rows(**{"peak MiB": 80.0}, targets={"peak MiB": 90.0}) == [
        ["`bench_diff: diff[depth=16]`", "", "", "peak MiB", "80", "", "≤ 90", "yes"]
    ]


def test_a_benchmark_with_neither_times_nor_targets_has_no_row() -> None:
    assert rows(bytes=4096) == []


def test_another_figure_with_a_target_is_a_row_of_its_own() -> None:
    found = rows(**RACE, **{"MiB per GiB": 0.7}, targets={"MiB per GiB": 0.6})

    assert [row[2:] for row in found] == [
        ["1000 / 500", "ours / cmp", "1/100", "1/62.5", "", ""],
        ["", "MiB per GiB", "0.7", "", "≤ 0.6", "**no**"],
    ]


def test_a_benchmark_without_peers_shows_its_times() -> None:
    assert rows(**{"ours wall ms": 1234.5, "ours cpu ms": 0.5, "layers": 3}) == [
        ["`bench_diff: diff[depth=16]`", "1234 / 0.5", "", "", "", "", "", ""]
    ]


def test_the_machine_is_described_and_not_named() -> None:
    first = next(iter(show.markdown(figures(**RACE))))

    assert first.startswith("2030-01-02, 2 x Fast CPU, Linux 6.1.0, CPython 3.13.1, commit 0123456789ab.")
    assert "somebody" not in first


def test_without_markdown_everything_that_was_noted_is_listed() -> None:
    text = "\n".join(show.plain(figures(**RACE, depth=16, targets={"ours / cmp": 0.5})))

    assert [line.split() for line in text.splitlines()[5:8]] == [
        ["ours", "/", "cmp", "wall", "0.01", "target", "0.5"],
        ["ours", "/", "cmp", "cpu", "0.016", "target", "0.5"],
        ["depth", "16"],
    ]


@pytest.mark.parametrize("arguments", [[], ["--markdown"], ["a.json", "b.json"], ["--html", "a.json"]])
def test_other_arguments_are_refused_with_the_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        show.main(arguments)

    assert caught.value.code == show.USAGE


def test_a_file_of_figures_becomes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(figures(**RACE)), encoding="utf-8")

    show.main([str(path), "--markdown"])

    assert capsys.readouterr().out.splitlines()[2] == f"| {' | '.join(show.HEAD)} |"


SMALL_BENCHMARK = """
from benchmarks.contest import compete, in_process, note

def test_small(benchmark):
    ours, other = in_process(lambda: sum(range(10))), in_process(lambda: sum(range(100_000)))
    compete(benchmark, ours, {"other": other}, rounds=3, targets={"other": 0.5, "nobody": 1})
    note(benchmark, "bytes", 3.14159, target=3)
"""


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="benchmarks run on POSIX systems only")
def test_a_run_of_a_benchmark_gives_a_table_with_its_targets(tmp_path: Path) -> None:
    (tmp_path / "test_small.py").write_text(SMALL_BENCHMARK, encoding="utf-8")
    path = tmp_path / "figures.json"

    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    options = ["-c", os.devnull, "--benchmark-enable", f"--benchmark-json={path}", str(tmp_path)]
    # A worker of xdist would take no benchmark.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment["PYTHONPATH"] = str(root)
    subprocess.run([*command, *options], cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)

    lines = list(show.markdown(json.loads(path.read_text(encoding="utf-8"))))
    found = [line.strip("| ").split(" | ") for line in lines[4:]]
    assert [row[3] for row in found] == ["ours / other", "bytes"]
    assert [row[-2:] for row in found] == [["≤ 0.5", "yes"], ["≤ 3", "**no**"]]
    assert found[1][4] == "3.14"


def plays(*samples: Sample) -> Contestant:
    """A contestant whose runs take so long, one after the other."""
    left = list(samples)
    return lambda: left.pop(0)


class Fixture:
    """As much of a benchmark fixture as figures are kept in."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}


@pytest.fixture
def kept() -> Any:
    return Fixture()


RUNS = {
    "ours": [Sample(1.0, 1.0), Sample(1.5, 1.0)],
    "slow": [Sample(3.0, 0.5), Sample(4.0, 0.5)],
    "quick": [Sample(2.0, 4.0), Sample(3.0, 4.0)],
}


def test_the_quickest_of_some_peers_competes_under_a_name_for_all_of_them(kept: Any) -> None:
    note_quickest(kept, RUNS, "any", ["slow", "quick"], (0.6, 0.7))

    info = kept.extra_info
    assert info["any"] == "quick"
    assert [info[f"ours / any {clock}"] for clock in ("wall", "cpu")] == [0.5, 0.25]
    assert info["targets"] == {"ours / any": (0.6, 0.7)}


def test_nobody_is_the_quickest_of_none(kept: Any) -> None:
    note_quickest(kept, RUNS, "any", [], 1.0)

    assert kept.extra_info == {}


def test_seconds_over_a_peer_are_taken_round_by_round(kept: Any) -> None:
    note_seconds_over(kept, RUNS, "quick", 0.25)

    info = kept.extra_info
    assert [info[f"seconds over quick {clock}"] for clock in ("wall", "cpu")] == [-1.25, -3.0]
    assert info["targets"] == {"seconds over quick": 0.25}


def test_who_does_two_jobs_side_by_side_takes_as_long_as_the_slower_and_the_cpu_of_both() -> None:
    contestant = slower_of(plays(Sample(1.0, 0.5)), plays(Sample(3.0, 2.0)))

    assert contestant() == Sample(3.0, 2.5)


def test_who_does_jobs_one_after_the_other_takes_the_time_of_all_and_none_for_clearing_up() -> None:
    cleared = []
    jobs = [plays(Sample(1.0, 0.5)), plays(Sample(3.0, 2.0)), plays(Sample(2.0, 1.0))]

    assert one_after_the_other(jobs, lambda: cleared.append(1))() == Sample(6.0, 3.5)
    assert len(cleared) == 2


def test_whoever_does_a_share_is_counted_so_many_times() -> None:
    assert scaled(plays(Sample(0.25, 0.125)), 8)() == Sample(2.0, 1.0)

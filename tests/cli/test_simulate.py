"""``simulate``: its JSON and its text, each of its options, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import BLOCK, MIB, SIZE, Snapshots, run, run_json

KEYS = [
    "workload",
    "reads",
    "bytes",
    "device_reads",
    "lookups",
    "probes",
    "depth_histogram",
    "layers",
    "fragmentation",
    "metadata_bytes",
    "ns_per_lookup",
    "devices",
    "engine",
    "simulated",
    "measured",
]
# What depends on the machine and its mood.
MEASURED = ("ns_per_lookup", "engine")


def simulated(*args: object) -> dict[str, Any]:
    document: dict[str, Any] = run_json("simulate", *args)
    assert document["simulated"] is True
    return document


def test_the_document_has_the_promised_keys(snapshots: Snapshots) -> None:
    document = simulated(snapshots.child, "--reads", 100)

    assert list(document) == KEYS
    assert list(document["probes"]) == ["mean", "p50", "p99", "max"]
    assert list(document["layers"][0]) == [
        "layer",
        "path",
        "bytes_served",
        "share",
        "bytes_stored",
        "bytes_visible",
        "bytes_shadowed",
    ]
    assert list(document["fragmentation"]) == [
        "runs_per_mib",
        "files_per_mib",
        "backward_per_mib",
        "mean_run",
        "median_run",
    ]
    assert list(document["metadata_bytes"]) == ["naive", "resolved", "resolved_is_estimate"]
    assert list(document["ns_per_lookup"]) == ["walk", "resolved"]
    assert [list(device) for device in document["devices"]] == [
        ["name", "iops", "mb_per_s", "relative_to_flat"]
    ] * 3
    assert [device["name"] for device in document["devices"]] == ["hdd", "sata-ssd", "nvme"]
    assert document["measured"] is None


def test_a_whole_sequential_pass_is_counted_as_the_layout_has_it(snapshots: Snapshots) -> None:
    """The child has half of blocks 0 and 2, the base blocks 0 and 1: 1 MiB blocks in reads of 512 KiB."""
    document = simulated(snapshots.child, "--workload", "sequential", "--reads", 8, "--size", "512KiB")

    assert (document["reads"], document["bytes"], document["lookups"]) == (8, SIZE, 8)
    # Halves: child, base, base, base, child, nobody, nobody, nobody.
    assert document["depth_histogram"] == [2, 6]
    assert document["probes"] == {"mean": 14 / 8, "p50": 2, "p99": 2, "max": 2}
    child, base = document["layers"]
    assert [layer["path"] for layer in (child, base)] == [str(snapshots.child), str(snapshots.base)]
    assert (child["bytes_served"], base["bytes_served"]) == (BLOCK, 3 * BLOCK // 2)
    assert (child["bytes_stored"], base["bytes_stored"]) == (BLOCK, 2 * BLOCK)
    assert (child["bytes_shadowed"], base["bytes_shadowed"]) == (0, BLOCK // 2)
    assert child["share"] == pytest.approx(0.4)


def test_both_engines_count_the_same(snapshots: Snapshots) -> None:
    args = (snapshots.child, "--workload", "zipf", "--theta", "1.2", "--reads", 2000, "--size", "1536")
    one, other = (simulated(*args, "--engine", engine) for engine in ("numpy", "numba"))

    assert (one["engine"], other["engine"]) == ("numpy", "numba")
    assert {k: v for k, v in one.items() if k not in MEASURED} == {
        k: v for k, v in other.items() if k not in MEASURED
    }


def test_a_seed_gives_the_same_reads_and_another_one_others(snapshots: Snapshots) -> None:
    def layers(seed: int) -> object:
        return simulated(snapshots.child, "--reads", 1000, "--seed", seed)["layers"]

    assert layers(1) == layers(1) != layers(2)


def test_the_allocated_part_has_no_zeros(snapshots: Snapshots) -> None:
    args = (snapshots.child, "--workload", "hotspot", "--hot-reads", "0.5", "--hot-area", "0.3")
    document = simulated(*args, "--area", "allocated", "--reads", 500)

    assert sum(layer["bytes_served"] for layer in document["layers"]) == document["bytes"] == 500 * 4096
    assert "allocated" in document["workload"]


def test_devices_are_those_that_were_named(snapshots: Snapshots) -> None:
    own = "tape:seek=30s,latency=1s,bandwidth=1MiB"
    document = simulated(snapshots.child, "--reads", 10, "--device", "nvme", "--device", own)

    assert [device["name"] for device in document["devices"]] == ["nvme", "tape"]


def test_zeros_make_rates_null_and_no_limit(snapshots: Snapshots, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(f"offset,length,op\n{3 * MIB},4096,read\n{3 * MIB + 8192},4096,read\n0,512,write\n")

    document = simulated(snapshots.child, "--trace", trace)
    done = run("simulate", snapshots.child, "--trace", trace, "--trace-format", "csv")

    assert [device["iops"] for device in document["devices"]] == [None] * 3
    assert "no limit" in done.stdout
    assert done.stderr.strip() == "left out of the trace: 1 write"


def test_a_trace_is_replayed_and_its_options_are_heard(snapshots: Snapshots, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(f"offset,length,op\n0,4096,read\n{MIB},4096,write\n{SIZE},512,read\n")

    assert "trace.beyond" in run("simulate", snapshots.child, "--trace", trace, code=65).stderr
    document = simulated(snapshots.child, "--trace", trace, "--trace-beyond", "skip", "--trace-ops", "all")
    assert (document["reads"], document["bytes"]) == (2, 8192)
    assert [layer["bytes_served"] for layer in document["layers"]] == [4096, 4096]
    missing = run("simulate", snapshots.child, "--trace", tmp_path / "none", code=66)
    assert "none" in missing.stderr


def test_measuring_stands_beside_what_was_simulated(snapshots: Snapshots) -> None:
    document = simulated(snapshots.child, "--reads", 50, "--measure")
    measured = document["measured"]

    assert list(measured) == ["mode", "reads", "bytes", "seconds", "iops", "mb_per_s"]
    assert (measured["mode"], measured["reads"], measured["bytes"]) == ("cache", 50, 50 * 4096)
    text = run("simulate", snapshots.child, "--reads", 50, "--measure", "cache", "--seconds", "5").stdout
    assert "simulated" in text
    assert "measured: 50 reads, of zeros too, in " in text


def test_a_merge_and_a_plan_are_added(snapshots: Snapshots) -> None:
    args = (snapshots.child, "--reads", 200, "--merge", "0..1", "--plan", "1GiB")
    document = simulated(*args)

    what_if, plan = document["what_if"], document["plan"]
    assert list(document) == [*KEYS, "what_if", "plan"]
    assert (what_if["first"], what_if["last"]) == (0, 1)
    assert what_if["bytes_to_copy"] == BLOCK
    assert list(what_if["after"]) == KEYS
    assert what_if["after"]["probes"]["max"] == 1
    assert what_if["probes_saved"] == pytest.approx(document["probes"]["mean"] - 1)
    assert plan["budget"] == 1 << 30
    assert [(merge["first"], merge["last"]) for merge in plan["merges"]] == [(0, 1)]
    text = run("simulate", *args).stdout
    assert "layers 0 to 1 were merged (simulated)" in text
    assert "0..1" in text


def test_a_picture_is_written_and_not_over_another(snapshots: Snapshots, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    picture = tmp_path / "cost.html"
    args = ("simulate", snapshots.child, "--reads", 10, "--picture", picture)

    run(*args)

    assert picture.read_text(encoding="utf-8").startswith("<!")
    run(*args, code=73)
    run(*args, "--force", "--merge", "0..1", "--plan", "1MiB")


def test_the_text_says_what_is_simulated_and_what_was_timed(snapshots: Snapshots) -> None:
    lines = run("simulate", snapshots.child, "--reads", 40, "--engine", "numpy").stdout.splitlines()

    assert lines[0].startswith("Simulated  random: 40 reads of 4096 bytes over the whole disk")
    assert any(line.startswith("Lookup amplification (simulated)") for line in lines)
    assert any("timed here with numpy" in line for line in lines)
    assert [line.split()[-1] for line in lines[-3:]] == ["simulated"] * 3
    assert max(map(len, (line for line in lines if str(snapshots.folder) not in line))) <= 110


def test_a_long_histogram_is_shown_in_a_few_rows() -> None:
    from vhdtool.report.simulate import _histogram_edges

    for highest in (1, 2, 12, 13, 64, 65, 257):
        edges = _histogram_edges(highest)
        assert (edges[0], edges[-1]) == (1, highest + 1)
        assert len(edges) <= 14


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--theta", "1"], "--theta says nothing with --workload random"),
        (["--workload", "zipf", "--hot-area", "0.1"], "--hot-area says nothing with --workload zipf"),
        (["--trace-format", "csv"], "--trace-format says nothing with --workload random"),
        (["--trace", "x", "--size", "4096"], "--size says nothing with --trace"),
        (["--workload", "zipf", "--theta", "nan"], "theta must be"),
        (["--workload", "hotspot", "--hot-reads", "2"], "hot reads must be"),
        (["--size", "0"], "no read can have 0 bytes"),
        (["--reads", "0"], "--reads"),
        (["--device", "floppy"], "none of hdd"),
        (["--merge", "1..0"], "1..0"),
        (["--merge", "0..2"], "there is no layer 2; the base is 1"),
        (["--measure", "cache", "--seconds", "0"], "--seconds"),
        (["--measure", "cache", "--seconds", "nan"], "not a number of seconds"),
        (["--seconds", "3"], "--seconds says nothing without --measure"),
        (["--engine", "fortran"], "--engine"),
        (["--picture", "cost.png"], "does not end in .html or .svg"),
    ],
)
def test_what_makes_no_sense_is_refused(snapshots: Snapshots, args: list[str], reason: str) -> None:
    assert reason in run("simulate", snapshots.child, *args, code=2).stderr


def test_a_read_is_never_longer_than_the_disk_has_bytes(snapshots: Snapshots) -> None:
    document = simulated(snapshots.child, "--workload", "sequential", "--size", "3MiB", "--reads", 2)

    assert document["bytes"] == SIZE
    # Two halves, a block, two halves; a block: the end of a block is the end of a run.
    assert document["lookups"] == (2 + 1 + 2) + 1

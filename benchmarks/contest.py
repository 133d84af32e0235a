"""Ours and others in one interleaved run.

Machines wander: a figure of this minute says nothing beside one of the last.  So all contestants run in every
round, in an order that alternates, and what is kept is the ratio within a round; its median is what counts.
Times come as wall seconds and as CPU seconds (user and system), which other jobs on the machine disturb less.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pytest_benchmark.fixture import BenchmarkFixture


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds that one run took."""

    wall: float
    cpu: float


# Does the job once and says how long it took.
Contestant = Callable[[], Sample]

TARGETS: Final = "targets"


def in_process(job: Callable[[], object]) -> Contestant:
    """A contestant that runs in this process."""

    def run() -> Sample:
        wall, cpu = time.perf_counter(), time.process_time()
        job()
        return Sample(time.perf_counter() - wall, time.process_time() - cpu)

    return run


def scaled(contestant: Contestant, factor: float) -> Contestant:
    """One that does a ``factor``-th of the job, each of its seconds counted so many times.

    For those that would take minutes: what is compared is the time for each read or lookup.
    """

    def run() -> Sample:
        sample = contestant()
        return Sample(sample.wall * factor, sample.cpu * factor)

    return run


def whole_process(*command: str | Path) -> Contestant:
    """A contestant that is a program of its own, from its start to its end; it must succeed."""

    def run() -> Sample:
        wall = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - wall
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, command
        return Sample(wall, usage.ru_utime + usage.ru_stime)

    return run


def compete(
    benchmark: BenchmarkFixture,
    ours: Contestant,
    peers: Mapping[str, Contestant],
    *,
    rounds: int,
    prepare: Callable[[], None] = lambda: None,
    targets: Mapping[str, float] | None = None,
) -> None:
    """Run all contestants in each of ``rounds``; figures and ratios go to ``benchmark.extra_info``.

    Args:
        targets: by peer, what ours / peer should be at most; nothing fails that misses it.
        prepare: called before each contestant, outside the clock: removes what the last one wrote.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in ("ours", *peers)}

    def run_ours() -> None:
        samples["ours"].append(ours())

    def run_peers(names: Sequence[str]) -> None:
        for name in names:
            prepare()
            samples[name].append(peers[name]())

    # Ours runs after the peers in even rounds and before them, reversed, in odd ones.
    def before() -> None:
        if len(samples["ours"]) % 2 == 0:
            run_peers(list(peers))
        prepare()

    def after() -> None:
        if len(samples["ours"]) % 2 == 0:
            run_peers(list(peers)[::-1])

    benchmark.pedantic(  # type: ignore[no-untyped-call]
        run_ours, setup=before, teardown=after, rounds=rounds, iterations=1
    )

    for name, runs in samples.items():
        benchmark.extra_info[f"{name} wall ms"] = _median(run.wall * 1000 for run in runs)
        benchmark.extra_info[f"{name} cpu ms"] = _median(run.cpu * 1000 for run in runs)
    for name in peers:
        pairs = list(zip(samples["ours"], samples[name]))
        if pairs:
            benchmark.extra_info[f"ours / {name} wall"] = _median(a.wall / b.wall for a, b in pairs)
            benchmark.extra_info[f"ours / {name} cpu"] = _median(a.cpu / max(b.cpu, 1e-9) for a, b in pairs)
    for name, target in (targets or {}).items():
        if name in peers:
            aim(benchmark, f"ours / {name}", target)


def note(benchmark: BenchmarkFixture, name: str, value: float, target: float | None = None) -> None:
    """Keep a figure that is no race, and what it should be at most."""
    benchmark.extra_info[name] = float(f"{value:.4g}")
    if target is not None:
        aim(benchmark, name, target)


def aim(benchmark: BenchmarkFixture, name: str, target: float) -> None:
    """Say what a figure should be at most; ``name`` is without " wall" and " cpu" at its end."""
    benchmark.extra_info.setdefault(TARGETS, {})[name] = target


def _median(values: Iterable[float]) -> float:
    return float(f"{statistics.median(values):.4g}")


_MEASURED = """\
import sys
try:
    exec(sys.argv.pop(1))
finally:
    # Of this program alone: what wait4 reports begins with the memory of whoever started it.
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    sys.stderr.write(f"peak {peak.split()[1]}\\n")
"""

_VHDTOOL = """\
import runpy
sys.argv[0] = "vhdtool"
runpy.run_module("vhdtool", run_name="__main__")
"""


def peak_mib(*arguments: str | Path) -> float:
    """The most memory that ``vhdtool ARGUMENTS`` had at any time, in MiB.  Linux only."""
    return peak_mib_of(_VHDTOOL, *arguments)


def peak_mib_of(script: str, *arguments: str | Path) -> float:
    """The same of a Python program, which has ``arguments`` in ``sys.argv[1:]``."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, script, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stderr.rsplit("peak ", 1)[1]) / 1024

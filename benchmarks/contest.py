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
# The runs of each contestant, ours among them as "ours"; the n-th ones of all are one round.
Samples = dict[str, list[Sample]]
# What a figure should be at most: wall and CPU alike, or each.
Target = float | tuple[float, float]

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


def slower_of(one: Contestant, other: Contestant) -> Contestant:
    """Both, one after the other, counted as if each had had a CPU of its own.

    The wall seconds are those of the slower one, the CPU seconds those of both.
    """

    def run() -> Sample:
        first, second = one(), other()
        return Sample(max(first.wall, second.wall), first.cpu + second.cpu)

    return run


def one_after_the_other(
    contestants: Iterable[Contestant], prepare: Callable[[], None] = lambda: None
) -> Contestant:
    """All of them as one; ``prepare`` is called before each but the first, outside the clock."""
    jobs = list(contestants)

    def run() -> Sample:
        samples = [jobs[0]()]
        for job in jobs[1:]:
            prepare()
            samples.append(job())
        return Sample(sum(sample.wall for sample in samples), sum(sample.cpu for sample in samples))

    return run


def compete(
    benchmark: BenchmarkFixture,
    ours: Contestant,
    peers: Mapping[str, Contestant],
    *,
    rounds: int,
    prepare: Callable[[], None] = lambda: None,
    targets: Mapping[str, Target] | None = None,
) -> Samples:
    """Run all contestants in each of ``rounds``; figures and ratios go to ``benchmark.extra_info``.

    Args:
        targets: by peer, what ours / peer should be at most; nothing fails that misses it.
        prepare: called before each contestant, outside the clock: removes what the last one wrote.
    """
    samples: Samples = {name: [] for name in ("ours", *peers)}

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

    for name in samples:
        _note_race(benchmark, samples, name)
    for name, target in (targets or {}).items():
        if name in peers:
            aim(benchmark, f"ours / {name}", target)
    return samples


def _note_race(benchmark: BenchmarkFixture, samples: Samples, name: str) -> None:
    """Times of one contestant and, of a peer, the ratios."""
    benchmark.extra_info[f"{name} wall ms"] = _median(run.wall * 1000 for run in samples[name])
    benchmark.extra_info[f"{name} cpu ms"] = _median(run.cpu * 1000 for run in samples[name])
    pairs = list(zip(samples["ours"], samples[name]))
    if name != "ours" and pairs:
        benchmark.extra_info[f"ours / {name} wall"] = _median(a.wall / b.wall for a, b in pairs)
        benchmark.extra_info[f"ours / {name} cpu"] = _median(a.cpu / max(b.cpu, 1e-9) for a, b in pairs)


def note_quickest(
    benchmark: BenchmarkFixture, samples: Samples, name: str, among: Iterable[str], target: Target
) -> None:
    """Whoever has the least wall time ``among`` some peers competes once more, as ``name``.

    Nothing happens when there are none.
    """
    medians = {peer: statistics.median(run.wall for run in samples[peer]) for peer in among}
    if medians:
        quickest = min(medians, key=lambda peer: medians[peer])
        _note_race(benchmark, {"ours": samples["ours"], name: samples[quickest]}, name)
        aim(benchmark, f"ours / {name}", target)
        benchmark.extra_info[name] = quickest


def note_seconds_over(benchmark: BenchmarkFixture, samples: Samples, peer: str, target: float) -> None:
    """How many seconds more than ``peer`` ours takes: where a constant is what matters."""
    pairs = list(zip(samples["ours"], samples[peer]))
    name = f"seconds over {peer}"
    benchmark.extra_info[f"{name} wall"] = _median(a.wall - b.wall for a, b in pairs)
    benchmark.extra_info[f"{name} cpu"] = _median(a.cpu - b.cpu for a, b in pairs)
    aim(benchmark, name, target)


def note_without_start(
    benchmark: BenchmarkFixture, samples: Samples, start: str, peer: str, target: float
) -> None:
    """Ours beside ``peer`` once more, without what ``start`` takes: where a target says "plus start"."""
    rounds = list(zip(samples["ours"], samples[start], samples[peer]))
    name = f"ours less its start / {peer}"
    benchmark.extra_info[f"{name} wall"] = _median((a.wall - s.wall) / b.wall for a, s, b in rounds)
    benchmark.extra_info[f"{name} cpu"] = _median((a.cpu - s.cpu) / b.cpu for a, s, b in rounds)
    aim(benchmark, name, target)


def note(benchmark: BenchmarkFixture, name: str, value: float, target: Target | None = None) -> None:
    """Keep a figure that is no race, and what it should be at most."""
    benchmark.extra_info[name] = float(f"{value:.4g}")
    if target is not None:
        aim(benchmark, name, target)


def aim(benchmark: BenchmarkFixture, name: str, target: Target) -> None:
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

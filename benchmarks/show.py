"""Prints what a run noted: ``python -m benchmarks.show figures.json``, as a table with ``--markdown``.

A table has a row for each race, that is a benchmark and a peer, and for each other figure that has a target.
A target is what a figure should be at most, one for wall and CPU or one for each: it is met when both are
within it, and where only one of them is, the row says which.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.contest import TARGETS

USAGE: Final = "usage: python -m benchmarks.show FIGURES.json [--markdown]"
HEAD: Final = (
    "benchmark",
    "ours, ms",
    "peer, ms",
    "figure",
    "wall",
    "CPU",
    "target",
    "met",
)
_CLOCKS: Final = ("wall", "cpu")


def plain(figures: Mapping[str, Any]) -> Iterator[str]:
    """One paragraph a benchmark: everything in its ``extra_info``."""
    for run in figures["benchmarks"]:
        yield run["name"]
        targets = run["extra_info"].get(TARGETS, {})
        for name, value in run["extra_info"].items():
            if name != TARGETS:
                target = targets.get(name.removesuffix(" wall").removesuffix(" cpu"))
                suffix = "" if target is None else f"   target {' / '.join(map(_number, _each(target)))}"
                yield f"  {name:<34} {value:>16}{suffix}"
        yield ""


def markdown(figures: Mapping[str, Any]) -> Iterator[str]:
    """Where and when, then a table; times and ratios stand as wall / CPU."""
    yield _machine(figures)
    yield ""
    yield _row(HEAD)
    yield _row(["---"] * len(HEAD))
    for run in figures["benchmarks"]:
        for cells in _races(run["extra_info"]):
            yield _row([f"`{_title(run)}`", *cells])


def _races(info: Mapping[str, Any]) -> Iterator[list[str]]:
    """The rows of one benchmark without their first cell."""
    targets = info.get(TARGETS, {})
    ours = _times(info, "ours")
    # Every race has a figure "ours / PEER wall".
    races = [
        name.removesuffix(" wall") for name in info if name.startswith("ours / ") and name.endswith("wall")
    ]
    for race in races:
        peer = race.removeprefix("ours / ")
        ratios = [info[f"{race} {clock}"] for clock in _CLOCKS]
        yield [ours, _times(info, peer), race, *map(_ratio, ratios), *_judged(targets.get(race), ratios)]
    others = [name for name in targets if name not in races]
    for name in others:
        clocked = [f"{name} {clock}" for clock in _CLOCKS if f"{name} {clock}" in info]
        values = [info[key] for key in clocked or [name]]
        shown = [_number(value) for value in values]
        yield [ours, "", name, *(shown if len(shown) == 2 else [*shown, ""]), *_judged(targets[name], values)]
    if ours and not races and not others:
        yield [ours, "", "", "", "", "", ""]


def _judged(target: float | list[float] | None, values: list[float]) -> list[str]:
    """The cells "target" and "met" for a wall and a CPU figure, or for only one."""
    if target is None:
        return ["", ""]
    limits = _each(target)
    met = [value <= limit for value, limit in zip(values, limits * len(values))]
    shown = f"≤ {' / '.join(map(_ratio, limits))}"
    if all(met):
        return [shown, "yes"]
    if not any(met):
        return [shown, "**no**"]
    return [shown, "wall only" if met[0] else "CPU only"]


def _each(target: float | list[float]) -> list[float]:
    """One limit for wall and CPU, or one for each."""
    return target if isinstance(target, list) else [target]


def _times(info: Mapping[str, Any], name: str) -> str:
    """Wall and CPU; nothing for what is no matter of time."""
    times = [info.get(f"{name} {clock} ms") for clock in _CLOCKS]
    return " / ".join(_number(time) for time in times if time is not None)


def _ratio(value: float) -> str:
    """As people say it: 1/250 for what is much smaller than one."""
    return f"1/{_number(1 / value)}" if 0 < value < 0.2 else _number(value)


def _number(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _title(run: Mapping[str, Any]) -> str:
    """``bench_lookup: lookup[depth=16]``."""
    file, _, name = run["fullname"].partition("::")
    return f"{Path(file).stem}: {name.removeprefix('test_')}".replace("|", "\\|")


def _machine(figures: Mapping[str, Any]) -> str:
    """What it ran on, without names that say whose it is."""
    machine = figures["machine_info"]
    cpu = machine.get("cpu", {})
    parts = [
        figures["datetime"][:10],
        f"{cpu.get('count', '?')} x {cpu.get('brand_raw', machine['machine'])}",
        f"{machine['system']} {machine['release'].partition('-')[0]}",
        f"{machine['python_implementation']} {machine['python_version']}",
    ]
    commit = figures.get("commit_info") or {}
    if commit.get("id"):
        parts.append(f"commit {commit['id'][:12]}{' with changes' if commit.get('dirty') else ''}")
    return (
        ", ".join(parts)
        + ".  Milliseconds are wall / CPU, medians; ratios are medians of those in each round."
    )


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str]) -> None:
    """Print the figures in the file that ``arguments`` name."""
    paths = [argument for argument in arguments if argument != "--markdown"]
    if len(paths) != 1 or paths[0].startswith("-"):
        sys.exit(USAGE)
    figures = json.loads(Path(paths[0]).read_text(encoding="utf-8"))
    print("\n".join((plain if paths == arguments else markdown)(figures)))


if __name__ == "__main__":
    main(sys.argv[1:])

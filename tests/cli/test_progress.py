"""The bar shows a rate and the time left, also while the estimate of the total changes."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests.cli.helpers import SEPARATE, make_snapshots, process, run
from vhdtool.cli.options import gentle_options, progress_option
from vhdtool.cli.progress import JsonLines, ProgressMode, Rate, progress_bar, rate_and_time_left
from vhdtool.export.gentle import priority
from vhdtool.export.gentle.throttle import Limits
from vhdtool.export.moving.progress import Progress

MIB = 1 << 20


def ticking(*seconds: float) -> Iterator[float]:
    yield from seconds


def test_the_rate_is_that_of_the_last_seconds() -> None:
    clock = ticking(0, 1, 2, 20, 21).__next__
    rate = Rate(clock)

    assert rate.add(0) is None
    assert rate.add(4 * MIB) == 4 * MIB
    assert rate.add(8 * MIB) == 4 * MIB
    assert rate.add(26 * MIB) == pytest.approx(MIB)
    assert rate.add(28 * MIB) == 2 * MIB


@pytest.mark.parametrize(
    ("done", "total", "rate", "shown"),
    [
        (0, 10, None, ""),
        (MIB, 11 * MIB, float(MIB), "1 MiB/s, 0:00:10 left"),
        (0, 7325 * MIB, float(MIB), "1 MiB/s, 2:02:05 left"),
        (5, None, 1536.0, "1.5 KiB/s"),
        (12, 10, 5.0, "5 bytes/s, 0:00:00 left"),
    ],
)
def test_rate_and_time_left_are_read_easily(
    done: int, total: int | None, rate: float | None, shown: str
) -> None:
    assert rate_and_time_left(done, total, rate) == shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_them_while_the_total_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "100")

    with progress_bar("export") as show:
        assert show is not None
        for i in range(1, 40):
            show(Progress("copy", i * MIB, 100 * MIB + i, i * MIB, 100 * MIB))

    assert "/s, " in screen.getvalue()
    assert " left" in screen.getvalue()


def test_the_bar_shows_the_phase_and_why_the_job_is_slowed(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "160")

    with progress_bar("export") as show:
        assert show is not None
        show(Progress("copy", MIB, 10 * MIB, MIB, 10 * MIB, "reads take 45 ms (p95), more than 20 ms"))
        show(Progress("verify", 2 * MIB, None, 2 * MIB, 10 * MIB, "[limited] to 1.0 MiB/s"))

    # rich draws what was said last, and at least once.
    assert "export: verify" in screen.getvalue()
    assert "[limited] to 1.0 MiB/s" in screen.getvalue()


@pytest.mark.parametrize("mode", ["auto", "none"])
def test_elsewhere_than_on_a_terminal_nothing_is_shown(
    mode: ProgressMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)

    with progress_bar("export", mode) as show:
        assert show is None

    assert stream.getvalue() == ""


def test_nothing_is_shown_on_a_terminal_either_when_nobody_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)

    with progress_bar("export", "none") as show:
        assert show is None

    assert screen.getvalue() == ""


class Listener:
    """Takes lines of JSON, with a clock that a test moves on."""

    def __init__(self) -> None:
        self.now = 100.0
        self.text = ""
        self.lines = JsonLines(self.write, clock=lambda: self.now)

    def write(self, text: str) -> None:
        assert text.endswith("\n")
        assert text.count("\n") == 1
        self.text += text

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


def test_lines_of_json_come_a_few_times_a_second_and_end_each_phase() -> None:
    listener = Listener()

    for i in range(51):
        listener.lines.show(Progress("copy", i * MIB, 50 * MIB, 2 * i * MIB, 100 * MIB, "slow" * (i > 40)))
        listener.now += 0.1
    listener.lines.show(Progress("verify", 0, None, 0, 100 * MIB))
    listener.now += 0.01
    listener.lines.show(Progress("verify", 20 * MIB, None, 50 * MIB, 100 * MIB))
    listener.lines.finish()
    listener.lines.finish()

    copied = [document for document in listener.documents if document["phase"] == "copy"]
    assert 5 * 3 <= len(copied) <= 5 * 4 + 2
    assert copied[0] == {
        "phase": "copy",
        "done": 0,
        "total": 50 * MIB,
        "rate": None,
        "seconds_left": None,
        "position": 0,
        "virtual_size": 100 * MIB,
        "slowed": "",
    }
    assert copied[-1]["done"] == copied[-1]["total"] == 50 * MIB
    assert copied[-1]["seconds_left"] == 0
    assert copied[-1]["slowed"] == "slow"
    half = next(document for document in copied if document["done"] >= 25 * MIB)
    assert half["rate"] == pytest.approx(10 * MIB, rel=0.01)
    assert half["seconds_left"] in (2, 3)

    verified = [document for document in listener.documents if document["phase"] == "verify"]
    assert [document["done"] for document in verified] == [0, 20 * MIB]
    # No total: the time left is that of the disk's bytes; the rate is that of this phase alone.
    assert verified[-1]["total"] is None
    assert verified[-1]["rate"] == pytest.approx(2000 * MIB, rel=0.01)
    assert verified[-1]["seconds_left"] == 0


def test_waiting_has_no_bytes_and_no_time_left() -> None:
    listener = Listener()

    listener.lines.show(Progress("settle", 0, None, 0, 0, "10 s to go without a change"))

    (document,) = listener.documents
    assert (document["phase"], document["seconds_left"]) == ("settle", None)
    assert document["slowed"] == "10 s to go without a change"


def test_a_listener_that_left_stops_nothing() -> None:
    def write(text: str) -> None:
        calls.append(text)
        raise BrokenPipeError

    calls: list[str] = []
    lines = JsonLines(write)

    lines.show(Progress("copy", 1, 2, 1, 2))
    lines.show(Progress("verify", 1, 2, 1, 2))
    lines.finish()

    assert len(calls) == 1


def test_lines_of_json_reach_other_programs_beside_everything_else(tmp_path: Path) -> None:
    snapshots = make_snapshots(tmp_path / "vms")
    target = tmp_path / "x.raw"
    run("export", snapshots.child, target)
    with target.open("r+b") as file:
        file.write(b"changed")

    done = process("verify", target, "--progress", "json", "--limit-rate", "8MiB", code=1)

    documents = [json.loads(line) for line in done.stderr.splitlines()]
    assert documents
    assert documents[-1]["phase"] == "verify"
    assert documents[-1]["done"] == documents[-1]["total"]
    assert set(documents[-1]) == {
        "phase",
        "done",
        "total",
        "rate",
        "seconds_left",
        "position",
        "virtual_size",
        "slowed",
    }
    assert b"phase" not in done.stdout


# --- options of gentle jobs ---------------------------------------------------------------------------------


def parsed(*arguments: str, code: int = 0) -> tuple[Limits | None, str, str]:
    """The limits and the progress mode that a command with these arguments is given, and its stderr."""
    given: list[Any] = []

    @click.command()
    @gentle_options
    @progress_option
    def command(limits: Limits, progress_mode: str) -> None:
        given.extend([limits, progress_mode])

    result = CliRunner(**SEPARATE).invoke(command, list(arguments))
    assert result.exit_code == code, result.output
    return (*(given or [None, ""]), result.stderr)


def test_without_options_nothing_is_limited() -> None:
    assert parsed() == (Limits(), "auto", "")


@pytest.mark.parametrize(
    ("arguments", "limits"),
    [
        (["--limit-rate", "10MiB"], Limits(rate=10 * MIB, drop_cache=True)),
        (["--limit-iops", "50"], Limits(iops=50, drop_cache=True)),
        (["--max-latency", "20"], Limits(max_latency=0.02, drop_cache=True)),
        (["--max-latency", "0.5", "--keep-cache"], Limits(max_latency=0.0005)),
        (["--drop-cache"], Limits(drop_cache=True)),
        (["--keep-cache"], Limits()),
        (
            ["--limit-rate", "1", "--limit-iops", "2", "--max-latency", "3"],
            Limits(rate=1, iops=2, max_latency=0.003, drop_cache=True),
        ),
    ],
)
def test_any_gentle_option_drops_the_cache_unless_told_not_to(arguments: list[str], limits: Limits) -> None:
    assert parsed(*arguments)[0] == limits


@pytest.mark.parametrize(
    "arguments",
    [
        ["--limit-rate", "0"],
        ["--limit-rate", "fast"],
        ["--limit-iops", "0"],
        ["--max-latency", "0"],
        ["--max-latency", "nan"],
        ["--progress", "html"],
    ],
)
def test_limits_that_nobody_can_keep_are_wrong_usage(arguments: list[str]) -> None:
    _, _, stderr = parsed(*arguments, code=2)

    assert arguments[0] in stderr


def test_idle_says_what_it_cannot_do_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(priority, "import_module", missing)

    limits, _, stderr = parsed("--idle")

    assert limits == Limits(idle=True, drop_cache=True)
    assert stderr.startswith("warning: --idle: ")
    assert "vhdtool[gentle]" in stderr

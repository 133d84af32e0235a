"""``bench depth``: what it prints and writes, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import MIB, process, run, run_json
from tests.cli.test_process import on_a_terminal
from vhdtool.cli import bench
from vhdtool.cli.progress import status_line
from vhdtool.errors import TargetError, TargetExistsError

SMALL = (
    "bench",
    "depth",
    "--size",
    "8MiB",
    "--depths",
    "0,2",
    "--rounds",
    1,
    "--reads",
    20,
    "--engine",
    "numpy",
)
# Read before the fixture below takes it away.
ORACLE_PYTHON = os.environ.get("VHDTOOL_ORACLE_PYTHON", "")
ONE = (*SMALL, "--format", "vhdx")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary folder of every command here; it must be empty in the end, whatever happened."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    # No libvhdi, wherever these tests run: it has tests of its own.
    monkeypatch.setenv("VHDTOOL_ORACLE_PYTHON", "no-such-interpreter")
    yield folder
    assert list(folder.iterdir()) == []


def test_the_tables_have_a_row_for_each_format_and_depth() -> None:
    result = run(*SMALL)

    lines = [line.split()[:2] for line in result.stdout.splitlines()]
    for format_, depth in (("VHD", "0"), ("VHD", "2"), ("VHDX", "0"), ("VHDX", "2")):
        assert lines.count([format_, depth]) == 3
    assert "8 MiB, 50 % of it filled; each layer writes 2 % of that anew" in result.stdout
    assert result.stderr == ""


def test_that_libvhdi_is_missing_is_said() -> None:
    result = run(*ONE)

    assert "no libvhdi" in result.stdout
    assert "Ours / it" not in result.stdout
    assert "libvhdi is left out; --libvhdi PYTHON names an interpreter that has it" in result.stdout


def test_the_json_is_one_document(tmp_path: Path) -> None:
    document = run_json(*SMALL, "--seed", 7)

    assert [(row["format"], row["depth"]) for row in document["rows"]] == [
        ("vhd", 0),
        ("vhd", 2),
        ("vhdx", 0),
        ("vhdx", 2),
    ]
    assert document["settings"]["size"] == 8 * MIB
    assert document["settings"]["seed"] == 7
    assert document["settings"]["depths"] == "0,2"
    assert document["settings"]["engine"] == "numpy"
    assert document["rows"][1]["probes"]["max"] == 3
    assert document["rows"][0]["libvhdi_reads_per_s"] is None
    assert len(document["notes"]) == 1


def test_the_document_is_written_beside_the_table(tmp_path: Path) -> None:
    target = tmp_path / "depth.json"

    result = run(*ONE, "-o", target)

    document = json.loads(target.read_text())
    assert [row["depth"] for row in document["rows"]] == [0, 2]
    assert result.stdout.startswith("A disk of 8 MiB")


def test_document_and_output_agree(tmp_path: Path) -> None:
    target = tmp_path / "depth.json"

    assert run_json(*ONE, "--output", target) == json.loads(target.read_text())


def test_depths_may_be_given_in_any_order_and_twice() -> None:
    document = run_json(*ONE, "--depths", " 2,0, 2,1")

    assert [row["depth"] for row in document["rows"]] == [0, 1, 2]


def test_a_picture_is_drawn_where_jinja2_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    page, drawing = tmp_path / "depth.html", tmp_path / "depth.svg"

    run(*ONE, "--picture", page)
    run(*ONE, "--picture", drawing)

    assert page.read_text().lstrip().lower().startswith("<!doctype html>")
    assert "<svg" in drawing.read_text()


@pytest.mark.parametrize("option", ["--output", "--picture"])
def test_an_existing_file_is_replaced_with_force_only_and_refused_before_the_work(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if option == "--picture":
        pytest.importorskip("jinja2")
    target = tmp_path / "there.html"
    target.write_text("mine")

    run(*ONE, option, target, "--force")
    assert target.read_text() != "mine"
    target.write_text("mine")

    def worked(*args: object, **more: object) -> None:
        raise AssertionError("it began to work")

    monkeypatch.setattr("vhdtool.simulate.depth.measure_depths", worked)
    assert "exists already" in run(*ONE, option, target, code=73).stderr
    assert target.read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--depths", ""), "no list of depths"),
        (("--depths", "1,,2"), "no list of depths"),
        (("--depths", "0,x"), "no list of depths"),
        (("--depths", "-1"), "no list of depths"),
        (("--depths", "256"), "255 differencing layers at most"),
        (("--depths", "9" * 5000), "255 differencing layers at most"),
        (("--depths", "²"), "no list of depths"),
        (("--size", "1KiB"), "1 MiB at least"),
        (("--size", "4TiB", "--format", "vhd", "--share", "0.0001"), "virtual size"),
        (("--size", "65TiB", "--format", "vhdx", "--share", "0"), "64 TiB"),
        (("--size", "x"), "no size"),
        (("--fill", "0"), "filled"),
        (("--fill", "nan"), "filled"),
        (("--share", "1"), "written anew"),
        (("--share", "-0.1"), "written anew"),
        (("--grain", "1000"), "power of two"),
        (("--grain", "1MiB"), "power of two"),
        (("--format", "raw"), "raw"),
        (("--seed", "-1"), "-1"),
        (("--rounds", "0"), "0"),
        (("--reads", "0"), "0"),
        (("--reads", "9999999"), "9999999"),
        (("--engine", "gpu"), "gpu"),
        (("--picture", "a.png"), ".svg"),
        (("--picture", "a.svg", "-o", "a.svg"), "one file"),
        (("--picture", "a.svg", "-o", "none/../a.svg"), "one file"),
    ],
    ids=str,
)
def test_wrong_options_are_wrong_usage(options: tuple[str, ...], message: str) -> None:
    assert message in run("bench", "depth", *options, code=2).stderr


def test_an_interpreter_that_was_named_must_have_libvhdi() -> None:
    result = run(*ONE, "--libvhdi", "no-such-interpreter", code=69)

    assert result.stderr == "error: no such interpreter: no-such-interpreter\n"


@pytest.mark.skipif(not ORACLE_PYTHON, reason="VHDTOOL_ORACLE_PYTHON names no interpreter with libvhdi")
@pytest.mark.parametrize("how", ["option", "variable"])
def test_libvhdi_takes_part(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "variable":
        monkeypatch.setenv("VHDTOOL_ORACLE_PYTHON", ORACLE_PYTHON)

    document = run_json(*ONE, *(["--libvhdi", ORACLE_PYTHON] if how == "option" else []))

    assert document["settings"]["libvhdi"] != ""
    assert all(row["libvhdi_reads_per_s"] > 0 for row in document["rows"])
    assert document["notes"] == []


def test_too_little_room_is_told_with_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    message = run(*ONE, code=74).stderr

    assert "not enough room" in message
    assert "1000 are free" in message


# ------------------------------------------------------------ folders


def test_chains_are_kept_in_a_folder_that_was_named(tmp_path: Path) -> None:
    for folder in (tmp_path / "new", tmp_path / "empty"):
        if folder.name == "empty":
            folder.mkdir()

        run(*ONE, "--folder", folder)

        assert sorted(p.name for p in folder.iterdir()) == ["flat.raw", "vhdx"]
        chain = run_json("chain", folder / "vhdx" / "layer002.avhdx")
        assert chain["complete"]
        assert len(chain["layers"]) == 3


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "flat.raw").write_text("mine")

    message = run(*ONE, "--folder", folder, code=73).stderr

    assert "is not empty" in message
    assert [p.name for p in folder.iterdir()] == ["flat.raw"]
    assert (folder / "flat.raw").read_text() == "mine"


@pytest.mark.parametrize("name", ["file", "no/such/parent", "nul\0"])
def test_what_can_be_no_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(TargetError), bench.work_folder(tmp_path / name):
        pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, TargetExistsError])
@pytest.mark.parametrize("kind", ["temporary", "new", "empty"])
def test_after_an_error_nothing_is_left_in_any_folder(
    kind: str, error: type[BaseException], tmp_path: Path
) -> None:
    given = None if kind == "temporary" else tmp_path / "room"
    if given is not None and kind == "empty":
        given.mkdir()

    def failing() -> None:
        with bench.work_folder(given) as folder:
            (folder / "flat.raw").write_text("")
            (folder / "vhdx" / "deep").mkdir(parents=True)
            (folder / "vhdx" / "deep" / "layer000.vhdx").write_text("")
            raise error("stop")

    with pytest.raises(error):
        failing()

    if given is not None:
        assert given.exists() == (kind == "empty")
        assert not given.exists() or list(given.iterdir()) == []


def test_after_a_fault_in_the_middle_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vhdtool.simulate import depth
    from vhdtool.simulate.contest import Sample

    def failing(job: Any, folder: Path, create: Any, **more: Any) -> None:
        depth._make(job, folder, create, Sample.of(job.recipe, job.reads), lambda what: None)
        assert (folder / "vhdx" / "layer002.avhdx").exists()
        raise OSError(5, "the disk fails")

    monkeypatch.setattr(depth, "measure_depths", failing)

    assert "the disk fails" in run(*ONE, "-o", tmp_path / "depth.json", code=74).stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["temporary"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX only")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("moment", ["making", "measuring"])
def test_a_signal_leaves_nothing_behind(
    moment: str, times: int, number: signal.Signals, temporary: Path
) -> None:
    long = ["--size", "64MiB", "--rounds", "1000", "--format", "vhdx", "--depths", "0,8", "--reads", "500"]
    sign = "layer001.avhdx" if moment == "making" else "flat.raw"
    with subprocess.Popen(
        [sys.executable, "-m", "vhdtool", "bench", "depth", *long, "--engine", "numpy"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests may have it ignored, and we would inherit that.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as running:
        try:
            while running.poll() is None and not is_below(temporary, sign):
                time.sleep(0.005)
            for _ in range(times):
                running.send_signal(number)
                time.sleep(0.02)
            stdout, stderr = running.communicate(timeout=60)
        finally:
            running.kill()

    assert stderr == "error: stopped by the user\n"
    # One that comes when all is done and the interpreter ends does kill it.
    assert running.returncode in ((130,) if times == 1 else (130, -number))
    assert stdout == ""


def is_below(folder: Path, name: str) -> bool:
    """Whether a file of that name is somewhere below ``folder``, where files come and go."""
    return any(name in files for _, _, files in os.walk(folder))


@pytest.mark.skipif(os.name != "posix", reason="POSIX only")
def test_progress_is_for_terminals_only() -> None:
    assert process(*ONE).stderr == b""
    # The cursor goes while the line moves; what it says when depends on how fast the machine is.
    assert b"\x1b[?25l" in on_a_terminal(*ONE)


def test_the_line_says_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")

    with status_line() as tell:
        tell("measuring [bold]round 1")
        time.sleep(0.3)

    assert "measuring [bold]round 1" in screen.getvalue()


def test_the_group_lists_its_command() -> None:
    assert "depth" in run("bench", "--help").stdout

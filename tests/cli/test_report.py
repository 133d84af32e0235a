"""``report``, ``map --picture`` and the strip that ``map`` shows on a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.cli.helpers import MIB, Snapshots, make_snapshots, overwrite, process, run, run_json
from tests.cli.test_text import state_of


def test_report_writes_one_page_about_the_chain(snapshots: Snapshots, tmp_path: Path) -> None:
    page = tmp_path / "page.html"

    done = run("report", snapshots.child, "-o", page)

    text = page.read_text(encoding="utf-8")
    assert done.stdout == f"{page} written\n"
    assert done.stderr == ""
    for wanted in (snapshots.child.name, snapshots.base.name, "parent&#39;s identity agrees", "heat-data"):
        assert wanted in text
    # The base stores blocks 0 and 1, and half of block 0 is hidden by the child.
    assert "512 KiB in all that merging gives back" in text
    assert "with <code>vhdtool report " in text
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["page.html"]


def test_a_report_of_the_real_figures_agrees_with_the_simulation(
    snapshots: Snapshots, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"

    run("report", snapshots.child, "-o", page)
    simulated = run_json("simulate", snapshots.child, "--area", "allocated", "--reads", "20000")

    # 1 MiB of the child's disk is settled by layer 0, 1.5 MiB by layer 1.
    mean = (1 * 1 + 2 * 1.5) / 2.5
    assert "<b>1.6</b><span>layers asked per lookup, mean" in page.read_text(encoding="utf-8")
    assert simulated["probes"]["mean"] == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize("arguments", [["report", "-o"], ["map", "--picture"]])
def test_an_existing_page_is_kept_unless_told_otherwise(
    arguments: list[str], vhds: Snapshots, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine", encoding="utf-8")
    command, option = arguments

    refused = run(command, vhds.child, option, page, code=73)
    assert page.read_text(encoding="utf-8") == "mine"
    run(command, vhds.child, option, page, "--force")

    assert "exists already" in refused.stderr
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["page.html"]


def test_an_image_is_never_replaced_by_a_page(vhds: Snapshots, tmp_path: Path) -> None:
    link = tmp_path / "page.html"
    link.symlink_to(vhds.base)
    before = state_of(vhds.folder)

    done = run("report", vhds.child, "-o", link, "--force", code=73)

    assert "it is the input" in done.stderr
    assert state_of(vhds.folder) == before


@pytest.mark.parametrize("arguments", [["report", "-o"], ["map", "--picture"]])
def test_without_jinja2_the_extra_is_named(
    arguments: list[str], vhds: Snapshots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    command, option = arguments

    done = run(command, vhds.child, option, tmp_path / "page.html", code=69)

    assert "vhdtool[report]" in done.stderr
    assert not (tmp_path / "page.html").exists()


def test_a_chain_without_its_parent_is_reported_without_a_map(vhds: Snapshots, tmp_path: Path) -> None:
    vhds.base.unlink()
    page = tmp_path / "page.html"

    run("report", vhds.child, "-o", page)

    text = page.read_text(encoding="utf-8")
    assert "The disk cannot be resolved" in text
    assert "PARENT IS MISSING" in text
    assert "chain.parent.missing" in text
    assert "What to do" in text
    assert "heat-data" not in text


def test_damaged_blocks_are_shown_where_they_are(vhds: Snapshots, tmp_path: Path) -> None:
    overwrite(vhds.base, 1536 + 4, b"\0\0\0\1")  # block 1
    page = tmp_path / "page.html"

    run("map", vhds.child, "--picture", page, code=65)
    run("report", vhds.child, "-o", page)

    text = page.read_text(encoding="utf-8")
    assert "What reads cost is not known" in text
    assert "damaged: 1 MiB" in text
    assert "vhd.block.meta" in text


def test_a_block_that_the_files_end_cuts_off_is_damaged_from_there_on(
    vhds: Snapshots, tmp_path: Path
) -> None:
    # The footer goes, 3.5 KiB that align it, and the end of the last block.
    os.truncate(vhds.base, vhds.base.stat().st_size - 512 - 7 * 512 - MIB // 4)
    page = tmp_path / "page.html"

    run("report", vhds.child, "-o", page)

    text = page.read_text(encoding="utf-8")
    assert "vhd.block.eof" in text
    assert "damaged: 256 KiB" in text


def test_a_report_takes_what_can_be_parsed_at_all(tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.vhdx"
    rubbish.write_bytes(bytes(4096))

    run("report", rubbish, "-o", tmp_path / "page.html", code=65)
    run("report", tmp_path / "gone.vhdx", "-o", tmp_path / "page.html", code=66)

    assert not (tmp_path / "page.html").exists()


def test_map_draws_a_page_or_a_drawing_by_the_name(snapshots: Snapshots, tmp_path: Path) -> None:
    page, drawing = tmp_path / "a.html", tmp_path / "a.SVG"

    printed = run("map", snapshots.child, "--picture", page).stdout
    run("map", snapshots.child, "--picture", drawing)

    assert printed == f"{page} written\n"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert ET.fromstring(drawing.read_text(encoding="utf-8")).tag == "{http://www.w3.org/2000/svg}svg"


def test_map_can_print_its_json_beside_the_picture(snapshots: Snapshots, tmp_path: Path) -> None:
    done = run("map", snapshots.child, "--picture", tmp_path / "a.svg", "--json")

    assert json.loads(done.stdout) == run_json("map", snapshots.child)
    assert (tmp_path / "a.svg").exists()


def test_a_picture_of_another_kind_is_wrong_usage(vhds: Snapshots, tmp_path: Path) -> None:
    done = run("map", vhds.child, "--picture", tmp_path / "a.png", code=2)

    assert "does not end in .html or .svg" in done.stderr


def test_a_report_is_a_page_or_goes_to_stdout(vhds: Snapshots, tmp_path: Path) -> None:
    for name in ("a.svg", "a.txt", "a"):
        assert "does not end in .html" in run("report", vhds.child, "-o", tmp_path / name, code=2).stderr

    assert run("report", vhds.child, "-o", "-").stdout.startswith("<!doctype html>")
    assert not Path("-").exists()


def test_that_a_picture_cannot_be_made_is_found_out_before_the_work(vhds: Snapshots, tmp_path: Path) -> None:
    trace = tmp_path / "broken.csv"
    trace.write_text("no request\n", encoding="utf-8")

    run("simulate", vhds.child, "--trace", trace, code=65)
    run("simulate", vhds.child, "--trace", trace, "--picture", tmp_path / "none" / "a.html", code=73)


def test_a_trace_is_an_input_and_never_the_target(vhds: Snapshots, tmp_path: Path) -> None:
    trace = tmp_path / "trace.svg"
    trace.write_text("0,512\n", encoding="utf-8")

    run("simulate", vhds.child, "--trace", trace, "--picture", trace, "--force", code=73)

    assert trace.read_text(encoding="utf-8") == "0,512\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_figures_that_cannot_be_printed_are_in_the_picture_all_the_same(
    vhds: Snapshots, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"

    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "vhdtool", "simulate", str(vhds.child), "--reads", "9"]
        done = subprocess.run(
            [*command, "--picture", str(page)], stdout=full, stderr=subprocess.PIPE, check=False
        )

    assert done.returncode == 74
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_hostile_file_name_stays_text_in_the_page(tmp_path: Path) -> None:
    snapshots = make_snapshots(tmp_path / "vms")
    hostile = snapshots.child.rename(snapshots.folder / "a<img src=x onerror=alert(1)>\x1b[31m&.avhdx")
    page = tmp_path / "page.html"

    run("report", hostile, "-o", page)

    text = page.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert "\x1b" not in text


def on_a_terminal(*args: object, environment: dict[str, str]) -> str:
    """What a command prints to a terminal of 80 columns."""
    import pty

    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "vhdtool", *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**{k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLORTERM")}, **environment},
    )
    os.close(theirs)
    pieces = []
    try:
        while piece := os.read(ours, 1 << 16):
            pieces.append(piece)
    except OSError:  # as Linux says that the other end was closed
        pass
    finally:
        os.close(ours)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    return b"".join(pieces).decode("utf-8").replace("\r\n", "\n")


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo terminals")
def test_map_shows_a_coloured_strip_on_a_terminal_only(vhds: Snapshots) -> None:
    environment = {"COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}

    coloured = on_a_terminal("map", vhds.child, environment={**environment, "COLORTERM": "truecolor"})
    few = on_a_terminal("map", vhds.child, environment=environment)
    none = on_a_terminal("map", vhds.child, environment={**environment, "NO_COLOR": "1"})
    piped = process("map", vhds.child).stdout.decode()

    strip, table = coloured.split("\n\n")[:2]
    assert "\x1b[48;2;" in strip
    assert "child.vhd" in strip
    assert "zeros" in strip
    assert len(strip.splitlines()) == 5
    assert "Start" in table
    assert "\x1b[48;5;" in few
    assert none == piped
    assert piped.split()[0] == "Start"

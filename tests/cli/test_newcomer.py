"""What somebody who had never seen vhdtool stumbled over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.helpers import run, run_json
from tests.export.test_manifest import resealed
from tests.generated import MIB, Style, a_chain

OTHERS = {"qcow2": b"QFI\xfb", "gzip": b"\x1f\x8b\x08", "VMDK": b"KDMV", "E01": b"EVF\x09\r\n\xff\0"}


@pytest.mark.parametrize("name", OTHERS)
def test_another_format_is_not_taken_for_a_raw_disk_without_a_word(name: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(OTHERS[name].ljust(MIB, b"x"))

    for command in (
        ["export", path, tmp_path / "out.raw"],
        ["create", tmp_path / "out.vhdx", "--from", path],
    ):
        done = run(*command)
        assert "warning: this file is taken for a raw disk" in done.stderr
        assert name.lower() in done.stderr.lower()


def test_verify_says_what_could_not_be_read_and_checks_the_quoted_digests(tmp_path: Path) -> None:
    point = a_chain(tmp_path, 1, Style(sizes=False, states=False, block_sizes=(2 * MIB,)), 3)
    os.truncate(point.path, point.path.stat().st_size - MIB)
    target = tmp_path / "rest.raw"
    run("export", point.path, target, "--damaged", "zero", "--hash", "sha256,md5")

    done = run("verify", target)
    assert "could not be read for the export: zeros there" in done.stdout
    report = run_json("verify", target)
    assert report["damaged_count"] > 0
    assert report["bad_digests"] == []

    manifest = tmp_path / "rest.raw.manifest.json"
    document = json.loads(manifest.read_text())
    document["content"]["digests"]["sha256"] = "0" * 64
    resealed(manifest, document)
    report = run_json("verify", target, code=1)
    assert report["bad_digests"] == ["sha256"]


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("export FOLDER OUT.raw", 65, "--all exports every point in time in a folder"),
        ("export --all LEAF OUT", 2, "--all takes a folder"),
        ("export LEAF OUT.raw --layout images", 2, "--layout goes with --all"),
        ("export --all FOLDER OUT --keep-id", 2, "keep-id cannot be chosen"),
        ("export LEAF OUT.vmdk", 73, "its name claims a VMDK"),
        ("export LEAF OUT.raw --base LEAF", 73, "its name claims a raw image, and its parent is a VHDX"),
        ("export LEAF OUT.raw --azure", 73, "Azure takes a fixed VHD, not a raw image"),
        ("export LEAF OUT.vhdx --base LEAF --format raw", 2, "an increment is a VHD or a VHDX"),
        ("export LEAF FOLDER/nothing/x.raw", 73, "there is no folder FOLDER/nothing"),
        ("export LEAF - --format vhdx", 73, "a dynamic VHDX cannot be written to standard output"),
        ("export LEAF - --format e01", 73, "a fixed E01 cannot be written to standard output"),
        ("export LEAF - --base LEAF", 73, "a differencing VHDX cannot be written to standard output"),
        ("merge LEAF -", 73, "a dynamic VHDX cannot be written to standard output"),
        ("verify FOLDER", 65, "--set verifies a set of exports"),
        ("verify OUT.raw.manifest.json", 2, "name the image that it belongs to"),
        ("verify LEAF", 66, "--against needs none"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(command: str, code: int, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "vms"
    folder.mkdir()
    leaf = a_chain(folder, 1, Style(), 1).path
    places = {"FOLDER": str(folder), "LEAF": str(leaf), "OUT": str(tmp_path / "out")}

    def placed(text: str) -> str:
        for name, path in places.items():
            text = text.replace(name, path)
        return text

    done = run(*map(placed, command.split()), code=code)

    assert placed(said) in done.stderr.replace("\n", " ")
    assert [path.name for path in tmp_path.iterdir()] == ["vms"]


def test_a_set_that_is_there_can_be_kept(tmp_path: Path) -> None:
    folder = tmp_path / "vms"
    folder.mkdir()
    a_chain(folder, 2, Style(), 1)
    run("export", "--all", folder, tmp_path / "set")

    done = run("export", "--all", folder, tmp_path / "set", code=73)

    assert "--resume keeps what is right of a set" in done.stderr


def test_an_e01_is_called_so_where_a_raw_disk_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "disk.E01"
    path.write_bytes(OTHERS["E01"].ljust(1000, b"x"))

    assert (
        "1000 bytes that begin like an E01 image" in run("export", path, tmp_path / "x.raw", code=65).stderr
    )


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_ctrl_c_while_text_is_executed_is_the_exit_code_130_too() -> None:
    code = """
import vhdtool.cli.app
def main(**_):
    exec("raise KeyboardInterrupt")
vhdtool.cli.app.cli.main = main
from vhdtool.cli.main import main
main()
"""
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 130


def test_checking_nothing_says_so(tmp_path: Path) -> None:
    assert run("check", tmp_path).stdout.startswith("0 images checked")
    assert run_json("check", tmp_path)["images"] == 0


def test_a_vhd_takes_either_identity(tmp_path: Path) -> None:
    wanted = "ff34003b-11ed-4cf8-a166-b2be05e20b80"
    run("create", tmp_path / "a.vhd", "--size", "1MiB", "--write-id", wanted)

    assert run_json("info", tmp_path / "a.vhd")["disk_id"] == wanted


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_the_end_of_a_session_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(64 << 30)
    out = tmp_path / "out"
    out.mkdir()
    # The whole-disk digest of so many zeros takes longer than anybody waits here.
    arguments = ["export", str(disk), str(out / "x.raw"), "--hash", "sha256"]
    with subprocess.Popen(
        [sys.executable, "-m", "vhdtool", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests may have it ignored, as nohup does, and we would inherit that.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 30
        while not any(out.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        _, message = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "stopped" in message
    assert list(out.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "O_NOATIME"), reason="only Linux lets a reader keep the access time")
def test_looking_does_not_change_when_a_file_was_last_read(tmp_path: Path) -> None:
    point = a_chain(tmp_path, 2, Style(size=2 * MIB), 1)
    paths = sorted(tmp_path.glob("*.*vhdx"))
    for path in paths:
        os.utime(path, (1_000_000_000, path.stat().st_mtime))

    run("info", point.path)
    run("tree", tmp_path)
    run("export", point.path, tmp_path / "x.raw")

    assert [path.stat().st_atime for path in paths] == [1_000_000_000] * len(paths)

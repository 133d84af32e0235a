"""Every exit code of the reference page, reached by a real case; a message is one line."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from tests.cli.helpers import (
    BLOCK,
    Child,
    Snapshots,
    make_snapshots,
    make_vhd,
    make_vhdx,
    overwrite,
    process,
    run,
)
from vhdtool.errors import SourceChangedError

STRICT = ("map", "export", "read", "compare", "diff")


def strict_arguments(command: str, leaf: Path) -> list[object]:
    arguments: dict[str, list[object]] = {
        "map": [leaf],
        "export": [leaf, leaf.with_name("target.raw")],
        "read": [leaf, "--length", "1s"],
        "compare": [leaf, leaf],
        "diff": [leaf, leaf],
    }
    return arguments[command]


def assert_one_line(stderr: str, start: str, code: str = "") -> None:
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith(start)
    assert lines[0].endswith(f"[{code}]" if code else "")


@pytest.mark.parametrize("command", STRICT)
def test_0_warnings_are_printed_and_the_work_goes_on(command: str, vhds: Snapshots) -> None:
    overwrite(vhds.base, -512, b"spoiled!")

    result = run(command, *strict_arguments(command, vhds.base))

    assert_one_line(result.stderr, "warning: ", "vhd.footer.end_bad")


def test_0_a_new_childs_parent_is_warned_about(vhds: Snapshots) -> None:
    overwrite(vhds.base, -512, b"spoiled!")

    for arguments in (
        ["snapshot", vhds.base, vhds.folder / "a.vhd"],
        ["create", vhds.folder / "b.vhd", "--parent", vhds.base],
    ):
        assert_one_line(run(*arguments).stderr, "warning: ", "vhd.footer.end_bad")


def test_1_check_found_an_error(vhds: Snapshots) -> None:
    overwrite(vhds.base, 1536, b"\0\0\0\1")  # the first entry of the table points into the header

    result = run("check", vhds.base, code=1)

    assert "vhd.block.meta" in result.stdout
    assert result.stderr == ""


def test_1_check_of_a_folder_found_an_orphan(snapshots: Snapshots) -> None:
    snapshots.base.unlink()

    assert "chain.parent.missing" in run("check", snapshots.folder, code=1).stdout


def test_0_check_of_one_image_needs_no_parent(snapshots: Snapshots) -> None:
    snapshots.base.unlink()

    run("info", snapshots.child)
    run("check", snapshots.child)
    assert "chain.parent.missing" in run("check", "--chain", snapshots.child, code=1).stdout


def test_1_compare_found_a_difference(snapshots: Snapshots) -> None:
    assert "different, first at byte 0x0" in run("compare", snapshots.base, snapshots.child, code=1).stdout


def test_1_verify_found_a_mismatch(snapshots: Snapshots, tmp_path: Path) -> None:
    run("export", snapshots.base, tmp_path / "x.raw")
    overwrite(tmp_path / "x.raw", 0, b"\xff")

    assert "verify.chunk" in run("verify", tmp_path / "x.raw", code=1).stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["info"],
        ["read", "IMAGE", "--length", "12parsecs"],
        ["read", "IMAGE", "--offset", "1TiB"],
        ["read", "IMAGE", "--hex", "-o", "x"],
        ["map", "IMAGE", "--map", "nothing"],
        ["map", "IMAGE", "--map", "relative=."],
        ["export", "IMAGE", "x", "--hash", "crc"],
        ["export", "IMAGE", "x", "--format", "qcow2"],
        ["create", "x.vhd"],
        ["create", "x.vhd", "--size", "1MiB", "--type", "differencing"],
        ["create", "x.vhd", "--from", "a", "--parent", "b"],
        ["verify", "x", "--manifest", "a", "--against", "b"],
        ["verify", "x", "--raw"],
        ["completion", "tcsh"],
    ],
    ids=" ".join,
)
def test_2_wrong_usage(arguments: list[str], vhds: Snapshots) -> None:
    result = run(*(str(vhds.base) if a == "IMAGE" else a for a in arguments), code=2)

    assert result.stdout == ""


@pytest.mark.parametrize("command", ["info", "chain", "check", *STRICT])
def test_65_a_file_that_is_no_image(command: str, tmp_path: Path) -> None:
    path = tmp_path / "letter.vhd"
    path.write_text("Dear Sir or Madam, this is private.\n" * 100)
    arguments = strict_arguments(command, path) if command in STRICT else [path]

    result = run(command, *arguments, code=65)

    assert_one_line(result.stderr, "error: ", "image.unknown")
    assert "private" not in result.stdout + result.stderr


@pytest.mark.parametrize("command", ["info", "chain", "check", *STRICT])
def test_65_no_regular_file(command: str, tmp_path: Path) -> None:
    path = tmp_path / "pipe.vhd"
    if not hasattr(os, "mkfifo"):
        pytest.skip("no FIFOs here")
    os.mkfifo(path)
    arguments = strict_arguments(command, path) if command in STRICT else [path]

    assert_one_line(run(command, *arguments, code=65).stderr, "error: ", "file.not_regular")


@pytest.mark.parametrize("command", STRICT)
def test_65_an_error_in_a_layer_refuses_before_anything_is_made(command: str, vhds: Snapshots) -> None:
    overwrite(vhds.base, 1536, b"\0\0\0\1")

    result = run(command, *strict_arguments(command, vhds.child), code=65)

    assert_one_line(result.stderr, "error: ", "vhd.block.meta")
    assert result.stdout == ""
    assert len(list(vhds.folder.iterdir())) == 3


def test_65_a_chain_that_is_a_loop(tmp_path: Path) -> None:
    one = make_vhd(tmp_path / "one.vhd", 1, {}, Child(2, ".\\two.vhd"))
    make_vhd(tmp_path / "two.vhd", 2, {}, Child(1, ".\\one.vhd"))

    assert_one_line(run("map", one, code=65).stderr, "error: ", "chain.loop")
    assert "ITS OWN DESCENDANT" in run("chain", one).stdout


@pytest.mark.parametrize("command", ["info", "chain", "check", *STRICT])
def test_66_a_missing_file(command: str, tmp_path: Path) -> None:
    path = tmp_path / "gone.vhdx"
    arguments = strict_arguments(command, path) if command in STRICT else [path]

    assert_one_line(run(command, *arguments, code=66).stderr, "error: no such file: ")


@pytest.mark.parametrize(
    "arguments", [["tree", "NONE"], ["map", "LEAF", "--search", "NONE"], ["check", "NONE"]]
)
def test_66_a_missing_folder(arguments: list[str], snapshots: Snapshots) -> None:
    names = {"NONE": snapshots.folder / "none", "LEAF": snapshots.child}

    assert_one_line(run(*(names.get(a, a) for a in arguments), code=66).stderr, "error: no such f")


def test_66_a_missing_folder_of_a_map(snapshots: Snapshots) -> None:
    result = run("map", snapshots.child, "--map", f"D:\\VMs={snapshots.folder / 'none'}", code=66)

    assert_one_line(result.stderr, "error: no such folder: ")


@pytest.mark.parametrize("command", STRICT)
def test_66_a_missing_parent(command: str, snapshots: Snapshots) -> None:
    snapshots.base.unlink()

    result = run(command, *strict_arguments(command, snapshots.child), code=66)

    assert_one_line(result.stderr, "error: ", "chain.parent.missing")


def test_66_a_parent_that_is_another_disk_unless_the_user_insists(snapshots: Snapshots) -> None:
    make = make_vhdx if snapshots.base.suffix == ".vhdx" else make_vhd
    snapshots.base.unlink()
    make(snapshots.base, 7, {})

    refused = run("map", snapshots.child, code=66)
    allowed = run("map", snapshots.child, "--allow-mismatch")

    assert_one_line(refused.stderr, "error: ", "chain.parent.mismatch")
    assert "warning: " in allowed.stderr
    assert "chain.parent.mismatch" in allowed.stderr


def test_66_a_missing_manifest(snapshots: Snapshots) -> None:
    run("verify", snapshots.base, code=66)


def test_69_another_version_of_the_format(vhds: Snapshots) -> None:
    for at in (0, -512):
        footer = bytearray(vhds.base.read_bytes()[at : at + 512 or None])
        footer[12:14] = b"\0\2"
        footer[64:68] = bytes(4)
        footer[64:68] = (~sum(footer) & 0xFFFF_FFFF).to_bytes(4, "big")
        overwrite(vhds.base, at, bytes(footer))

    assert_one_line(run("info", vhds.base, code=69).stderr, "error: ", "vhd.footer.version")


def test_69_an_optional_package_that_is_not_installed(
    snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)

    result = run("export", snapshots.base, snapshots.folder / "x.raw", "--hash", "blake3", code=69)

    assert "vhdtool[fast-hash]" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "BASE", "THERE"],
        ["export", "BASE", "CHILD", "--force"],  # an input is no target, whatever one says
        ["read", "BASE", "-o", "THERE"],
        ["create", "THERE", "--size", "1MiB", "--format", "vhd"],
        ["snapshot", "BASE", "CHILD"],
        ["create", "NOWHERE", "--size", "1MiB"],
        ["create", "NEW", "--size", "1000"],
    ],
    ids=" ".join,
)
def test_73_a_target_that_is_there_or_cannot_be(arguments: list[str], snapshots: Snapshots) -> None:
    there = snapshots.folder / "there.raw"
    there.write_bytes(b"precious")
    names = {
        "BASE": snapshots.base if "--force" not in arguments else snapshots.child,
        "CHILD": snapshots.child,
        "THERE": there,
        "NOWHERE": snapshots.folder / "none" / "x.vhd",
        "NEW": snapshots.folder / "new.vhd",
    }
    before = sorted(snapshots.folder.iterdir())

    result = run(*(names.get(a, a) for a in arguments), code=73)

    assert_one_line(result.stderr, "error: ")
    assert there.read_bytes() == b"precious"
    assert sorted(snapshots.folder.iterdir()) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
@pytest.mark.parametrize(
    "arguments",
    [["info", "CHILD"], ["map", "CHILD", "--json"], ["read", "CHILD"], ["export", "CHILD", "-"], ["--help"]],
    ids=" ".join,
)
def test_74_standard_output_is_full(arguments: list[str], snapshots: Snapshots) -> None:
    with Path("/dev/full").open("wb") as full:
        given = (snapshots.child if a == "CHILD" else a for a in arguments)
        done = process(*given, code=74, stdout=full)

    assert_one_line(done.stderr.decode(), "error: ")
    assert os.strerror(errno.ENOSPC) in done.stderr.decode()


def test_74_a_file_without_permission(snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("vhdtool.source.os.open", denied)

    assert_one_line(run("info", snapshots.base, code=74).stderr, "error: cannot read ")


def test_74_a_layer_that_cannot_be_read(snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("vhdtool.source.FileSource._read", broken)

    assert_one_line(run("info", snapshots.base, code=74).stderr, "error: cannot read ")


def test_74_not_enough_memory(snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("vhdtool.chain.discover.open_image", exhausted)

    assert_one_line(run("map", snapshots.base, code=74).stderr, "error: not enough memory")


def test_75_an_input_changed_while_it_was_read(snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    from vhdtool.export.gentle.watch import SourceWatch

    def changed(self: SourceWatch) -> None:
        overwrite(snapshots.base, BLOCK, b"meanwhile")
        os.utime(snapshots.base, ns=(1, 1))
        check(self)

    check = SourceWatch.check
    monkeypatch.setattr(SourceWatch, "check", changed)
    target = snapshots.folder / "x.raw"

    result = run("export", snapshots.child, target, code=75)

    assert_one_line(result.stderr, "error: ")
    assert not target.exists()
    assert len(list(snapshots.folder.iterdir())) == 3
    assert SourceChangedError.exit_code == 75


@pytest.mark.parametrize("command", ["info", *STRICT])
def test_130_stopped_by_the_user(command: str, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vhdtool.source.FileSource._read", stopped)
    arguments = strict_arguments(command, snapshots.child) if command in STRICT else [snapshots.child]

    result = run(command, *arguments, code=130)

    assert_one_line(result.stderr, "error: stopped by the user")
    assert len(list(snapshots.folder.iterdir())) == 3


def test_70_a_fault_of_ours_is_one_line_too(snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object, **__: object) -> None:
        raise KeyError("nonsense")

    monkeypatch.setattr("vhdtool.chain.discover.open_image", faulty)

    assert_one_line(run("map", snapshots.base, code=70).stderr, "error: a fault in vhdtool itself")


def test_several_paths_are_all_checked_and_the_first_refusal_gives_the_code(tmp_path: Path) -> None:
    snapshots = make_snapshots(tmp_path, ".vhd")
    overwrite(snapshots.base, 1536, b"\0\0\0\1")

    result = run("check", tmp_path / "gone.vhd", snapshots.base, code=66)

    assert "no such file" in result.stderr
    assert "vhd.block.meta" in result.stdout

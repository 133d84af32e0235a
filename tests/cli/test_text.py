"""What people see."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.cli.helpers import (
    B_CONTENT,
    BLOCK,
    MIB,
    SIZE,
    Child,
    Snapshots,
    an_identity,
    make_snapshots,
    make_vhd,
    make_vhdx,
    overwrite,
    run,
)
from vhdtool.cli.app import COMMANDS, cli


def test_info_names_things_as_get_vhd_does(tmp_path: Path) -> None:
    snapshots = make_snapshots(tmp_path)

    lines = run("info", snapshots.child).stdout.splitlines()

    names = [line.split(":")[0].strip() for line in lines[:11]]
    assert names == [
        "Path",
        "VhdFormat",
        "VhdType",
        "FileSize",
        "Size",
        "LogicalSectorSize",
        "PhysicalSectorSize",
        "BlockSize",
        "ParentPath",
        "DiskIdentifier",
        "Alignment",
    ]
    assert lines[1].endswith(": VHDX")
    assert lines[2].endswith(": Differencing")
    assert lines[4].endswith(f": {SIZE} bytes (4 MiB)")
    assert lines[9].endswith(str(an_identity(99)).upper())


def test_info_shows_the_structures_by_their_specified_names(snapshots: Snapshots) -> None:
    text = run("info", snapshots.child).stdout

    if snapshots.child.suffix == ".vhd":
        wanted = ["Hard Disk Footer at 0x", "Dynamic Disk Header at 0x200", "Max Table Entries", "Disk Type"]
    else:
        wanted = ["Region Table at 0x30000", "Parent Locator", "DataWriteGuid", "SequenceNumber"]
    for name in wanted:
        assert name in text


def test_info_lists_findings_at_the_end(vhds: Snapshots) -> None:
    overwrite(vhds.base, -512, b"spoiled!")

    assert (
        run("info", vhds.base).stdout.splitlines()[-2].startswith("  warning: the footer at the end is gone")
    )


def test_chain_shows_each_link(snapshots: Snapshots) -> None:
    text = run("chain", snapshots.child).stdout

    assert text.startswith("2 layers, complete, virtual disk of 4194304 bytes (4 MiB)")
    assert "by the relative path in its child" in text
    assert "base: needs no parent" in text


def test_chain_shouts_when_it_is_broken(snapshots: Snapshots) -> None:
    snapshots.base.unlink()

    text = run("chain", snapshots.child).stdout

    assert "INCOMPLETE" in text
    assert "PARENT IS MISSING" in text
    assert "[chain.parent.missing]" in text


def test_a_moved_and_renamed_parent_is_found_and_that_is_said(snapshots: Snapshots) -> None:
    away = snapshots.folder.parent / "away"
    away.mkdir()
    snapshots.base.rename(away / f"renamed{snapshots.base.suffix}")

    run("map", snapshots.child, code=66)
    text = run("chain", snapshots.child, "--search", away).stdout

    assert "by its identity: no recorded name leads here" in text


def test_a_mapped_parent_is_found(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    make_vhdx(tmp_path / "here" / "base.vhdx", 1, {})
    child = make_vhdx(tmp_path / "child.vhdx", 2, {}, Child(1, "", "D:\\VMs\\base.vhdx"))

    run("map", child, code=66)
    run("map", child, "--map", f"D:\\VMs={tmp_path / 'here'}")


def test_tree_draws_forks_and_names_orphans(tmp_path: Path) -> None:
    make_vhd(tmp_path / "a.vhd", 1, {})
    make_vhd(tmp_path / "b.vhd", 2, {}, Child(1, ".\\a.vhd"))
    make_vhd(tmp_path / "c.vhd", 3, {}, Child(2, ".\\b.vhd"))
    make_vhd(tmp_path / "d.vhd", 4, {}, Child(1, ".\\a.vhd"))
    make_vhd(tmp_path / "e.vhd", 5, {}, Child(77, ".\\x.vhd"))
    (tmp_path / "notes.txt").write_text("nothing")

    result = run("tree", tmp_path)

    shown = [line.split("  VHD")[0].rstrip() for line in result.stdout.splitlines()[:5]]
    assert shown == [f"{tmp_path}/a.vhd", "├── b.vhd", "│   └── c.vhd", "└── d.vhd", f"{tmp_path}/e.vhd"]
    assert "orphan: its parent is missing" in result.stdout
    assert result.stdout.splitlines()[-1] == "5 images, 1 base, 3 leaves, 1 orphan, 1 other file"


def test_tree_leaves_folders_below_alone_when_asked_to(tmp_path: Path) -> None:
    make_snapshots(tmp_path / "below")

    assert "3 images" in run("tree", tmp_path).stdout
    assert run("tree", tmp_path, "--no-recursion").stdout.startswith("0 images")


def test_a_deep_tree_is_drawn_without_growing_lines(tmp_path: Path) -> None:
    make_vhd(tmp_path / "0.vhd", 1, {})
    for i in range(1, 100):
        make_vhd(tmp_path / f"{i}.vhd", i + 1, {}, Child(i, f".\\{i - 1}.vhd"))

    lines = run("tree", tmp_path).stdout.splitlines()

    assert "... depth 99 99.vhd" in lines[99]
    assert max(map(len, lines)) < 300


def test_check_groups_by_severity_and_explains(vhds: Snapshots) -> None:
    overwrite(vhds.base, -512, b"spoiled!")
    overwrite(vhds.base, 1536, b"\0\0\0\1")

    text = run("check", vhds.base, code=1).stdout

    places = [
        text.index(head) for head in ("ERRORS", "vhd.block.meta", "WARNINGS", "vhd.footer.end_bad", "NOTES")
    ]
    assert places == sorted(places)
    assert "What to do: " in text
    assert "Windows reports it as 0xC03A000A." in text
    assert text.splitlines()[-1].startswith("1 image checked: 1 error, 1 warning, ")


def test_check_looks_at_data_only_when_it_is_asked_to(vhds: Snapshots) -> None:
    entry = vhds.base.read_bytes()[1536:1540]
    overwrite(
        vhds.base, int.from_bytes(entry, "big") * 512, b"\x7f"
    )  # the first sector was never written, and holds something

    assert "vhd.bitmap.data" not in run("check", vhds.base).stdout
    assert "vhd.bitmap.data" in run("check", "--deep", vhds.base, code=1).stdout


def test_check_of_folders_looks_at_every_image_once(snapshots: Snapshots) -> None:
    once = run("check", snapshots.folder).stdout.splitlines()[-1]
    twice = run("check", snapshots.folder, snapshots.folder).stdout.splitlines()[-1]

    assert once.startswith("3 images checked: 0 errors")
    assert once == twice


def test_map_is_a_table_with_what_each_file_gives(snapshots: Snapshots) -> None:
    lines = run("map", snapshots.child).stdout.splitlines()

    assert lines[0].split() == ["Start", "Length", "Size", "Layer", "File", "offset"]
    assert lines[1].split()[:5] == ["0x0", "0x80000", "512", "KiB", "0"]
    assert lines[-3].split() == ["0", f"{snapshots.child}:", "1", "MiB"]
    assert lines[-1].split() == ["zeros", "1.5", "MiB"]


@pytest.mark.parametrize(
    ("arguments", "start", "stop"),
    [
        ([], 0, SIZE),
        (["--offset", "512KiB", "--length", "2s"], 512 << 10, (512 << 10) + 1024),
        (["--offset", "0x1FFFFF", "--length", "3"], 0x1FFFFF, 0x200002),
        (["--offset", "4MiB"], SIZE, SIZE),
        (["--length", "0"], 0, 0),
    ],
)
def test_read_gives_the_bytes_of_the_disk(
    arguments: list[str], start: int, stop: int, snapshots: Snapshots
) -> None:
    result = run("read", snapshots.child, *arguments)
    run("read", snapshots.child, *arguments, "-o", snapshots.folder / "piece")

    assert result.stdout_bytes == snapshots.child_disk[start:stop]
    assert (snapshots.folder / "piece").read_bytes() == snapshots.child_disk[start:stop]


def test_read_prints_hex_for_people(snapshots: Snapshots) -> None:
    lines = run("read", snapshots.child, "--hex", "--offset", "512KiB", "--length", "40").stdout.splitlines()

    assert lines[0] == ("000000080000  00 01 02 03 04 05 06 07  08 09 0a 0b 0c 0d 0e 0f  |................|")
    assert lines[2] == "000000080020  20 21 22 23 24 25 26 27                           | !\"#$%&'|"
    assert lines[3] == "000000080028"


def test_export_damaged_zero_lists_what_it_left_out(vhds: Snapshots, tmp_path: Path) -> None:
    overwrite(vhds.base, 1536 + 4, b"\0\0\0\1")  # block 1

    refused = run("export", vhds.child, tmp_path / "a.raw", code=65)
    zeroed = run("export", vhds.child, tmp_path / "a.raw", "--damaged", "zero")

    assert "vhd.block.meta" in refused.stderr
    warnings = [line for line in zeroed.stderr.splitlines() if "chain.damaged_range" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: guest range 0x100000 to 0x200000 exported as zeros")
    disk = vhds.child_disk
    assert (tmp_path / "a.raw").read_bytes() == disk[:BLOCK] + bytes(BLOCK) + disk[2 * BLOCK :]


def test_export_writes_the_manifest_where_it_is_told_to(snapshots: Snapshots, tmp_path: Path) -> None:
    run("export", snapshots.child, tmp_path / "a.raw", "--manifest", tmp_path / "m.json")

    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["a.raw", "m.json"]
    assert "as exported" in run("verify", tmp_path / "a.raw", "--manifest", tmp_path / "m.json").stdout


def test_verify_against_a_chain_takes_a_raw_disk_for_one(tmp_path: Path) -> None:
    # The disk holds an image of its own, whose footer is at the disk's end.
    inner, outer, target = tmp_path / "inner.vhd", tmp_path / "outer.vhd", tmp_path / "out.raw"
    run("create", inner, "--size", "1MiB", "--type", "fixed")
    run("create", outer, "--size", MIB + 512, "--type", "fixed")
    overwrite(outer, 0, inner.read_bytes())
    run("export", outer, target)

    assert "equal" in run("verify", target, "--against", outer, "--raw").stdout
    run("verify", target, "--against", outer, code=1)


def test_a_created_disk_holds_what_it_was_made_from(tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(MIB) + B_CONTENT + bytes(MIB))

    for name, kind in (("a.vhd", "fixed"), ("b.vhd", "dynamic"), ("c.vhdx", "fixed"), ("d.vhdx", "dynamic")):
        run("create", tmp_path / name, "--from", raw, "--type", kind)
        assert "equal" in run("compare", raw, tmp_path / name).stdout


def test_a_differencing_disk_is_created_with_a_parent(snapshots: Snapshots) -> None:
    child = snapshots.folder / f"new{snapshots.base.suffix}"

    run("create", child, "--parent", snapshots.base)

    assert "equal" in run("compare", child, snapshots.base).stdout


def test_help_lists_every_command_without_importing_it() -> None:
    text = run("--help").stdout

    for name, line in COMMANDS.items():
        assert f"{name} " in text
        assert line in " ".join(text.split())
        assert run(name, "-h").stdout == run(name, "--help").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_their_help_says(name: str) -> None:
    import click

    command = cli.get_command(click.Context(cli), name)

    assert command is not None
    assert command.name == name
    assert (command.help or "").split("\n\n")[0].replace("\n", " ") == COMMANDS[name]


def test_commands_leave_their_inputs_alone(snapshots: Snapshots, tmp_path: Path) -> None:
    for path in snapshots.folder.iterdir():
        path.chmod(0o444)
    snapshots.folder.chmod(0o555)
    before = state_of(snapshots.folder)

    try:
        for arguments in (
            ["info", snapshots.child],
            ["chain", snapshots.child],
            ["tree", snapshots.folder],
            ["check", "--deep", "--chain", snapshots.child],
            ["check", "--deep", snapshots.folder],
            ["map", snapshots.child],
            ["read", snapshots.child],
            ["compare", snapshots.child, snapshots.child],
            ["diff", snapshots.child, snapshots.other, "--verify-content"],
            ["export", snapshots.child, tmp_path / "a.raw"],
            ["verify", tmp_path / "a.raw", "--against", snapshots.child],
            ["snapshot", snapshots.child, tmp_path / f"grandchild{snapshots.child.suffix}"],
        ):
            run(*arguments)
            assert state_of(snapshots.folder) == before, arguments
    finally:
        snapshots.folder.chmod(0o755)


def state_of(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything about a folder and its files but the times of the last access."""
    state: dict[str, tuple[object, ...]] = {}
    for path in (folder, *sorted(folder.iterdir())):
        status = path.stat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        state[str(path)] = (digest, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return state

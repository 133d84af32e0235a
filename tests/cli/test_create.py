"""``create`` and ``snapshot`` as a user types them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders.vhd import a_vhd, patched
from tests.cli.helpers import process, run, run_json
from tests.generated import Style, a_chain

WANTED = "ff34003b-11ed-4cf8-a166-b2be05e20b80"


def test_a_lost_parent_can_be_put_back_under_the_identity_that_its_child_asks_for(tmp_path: Path) -> None:
    run("create", tmp_path / "lost.vhdx", "--size", "4MiB", "--write-id", WANTED)
    run("snapshot", tmp_path / "lost.vhdx", tmp_path / "child.avhdx")
    (tmp_path / "lost.vhdx").unlink()

    run("create", tmp_path / "again.vhdx", "--size", "4MiB", "--write-id", WANTED, "--disk-id", WANTED)

    found = run_json("chain", tmp_path / "child.avhdx")
    assert [layer["write_id"] for layer in found["layers"]][1:] == [WANTED]
    assert found["layers"][1]["found_by"] == "identity"
    assert run_json("info", tmp_path / "again.vhdx")["disk_id"] == WANTED


def test_a_parent_with_a_wrong_checksum_can_get_a_child_when_told_so(tmp_path: Path) -> None:
    parent = tmp_path / "base.vhd"
    image = a_vhd()
    for at in (0, len(image) - 512):
        image = patched(image, at + 64, b"\0\0\0\0")
    parent.write_bytes(image)

    run("snapshot", parent, tmp_path / "child.avhd", code=65)
    done = run("snapshot", parent, tmp_path / "child.avhd", "--ignore-checksums")

    assert "warning: " in done.stderr
    assert (tmp_path / "child.avhd").exists()


@pytest.mark.parametrize("name", ["--write-id", "--disk-id"])
def test_an_identity_that_is_none_is_wrong_usage(name: str, tmp_path: Path) -> None:
    run("create", tmp_path / "x.vhdx", "--size", "4MiB", name, "nonsense", code=2)


def test_a_chain_opens_where_few_open_files_are_allowed(tmp_path: Path) -> None:
    """macOS starts programs with a limit of 256."""
    resource = pytest.importorskip("resource")
    leaf = a_chain(tmp_path, 40, Style(format="vhd", block_sizes=(4096,), size=8192), 1).path
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, limits[1]))
    try:
        done = process("map", leaf, "--json")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    assert done.returncode == 0

"""A whole story: a machine is made, backed up, lost, and restored at every point in time that it had.

Each step that writes is a command in a process of its own, as the README shows them.  What every disk must
read as is kept beside, in plain memory, and never asked of vhdtool.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from fixtures.guest import a_guest, noise
from tests.against_others.test_chains_against_others import (
    by_7zip,
    by_libvhdi,
    by_qemu,
    needs_7zip,
    needs_libvhdi,
    needs_qemu,
)
from tests.cli.helpers import process, run, run_json

KIB, MIB = 1 << 10, 1 << 20
SIZE: Final = 24 * MIB
BASE: Final = "mail"
# Each snapshot with what it was made of, in order: forks at monday and at tuesday.
SNAPSHOTS: Final = {
    "monday": BASE,
    "tuesday": "monday",
    "rehearsal": "monday",
    "wednesday": "tuesday",
    "upgrade": "tuesday",
}
POINTS: Final = (BASE, *SNAPSHOTS)
# What each increment is an increment on, and whether that is named by its manifest: a child, a cousin too.
INCREMENTS: Final = {
    "monday": (BASE, False),
    "tuesday": ("monday", True),
    "wednesday": ("tuesday", False),
    "upgrade": ("wednesday", True),
    "rehearsal": ("upgrade", False),
}
# Blocks of 2 MiB: whole ones, parts of one, some that parents have too, and the disk's end.
WRITES: Final = {
    BASE: [(0, 1, 5 * MIB), (16 * MIB, 2, 64 * KIB), (SIZE - 8 * KIB, 3, 8 * KIB)],
    "monday": [(MIB, 4, 300 * KIB), (8 * MIB, 5, 2 * MIB)],
    "tuesday": [(MIB + 4 * KIB, 6, 4 * KIB), (16 * MIB + 32 * KIB, 7, 64 * KIB)],
    "rehearsal": [(MIB + 8 * KIB, 8, 512), (12 * MIB, 9, MIB)],
    "wednesday": [(9 * MIB, 10, 20 * KIB)],
    "upgrade": [(0, 11, 4 * MIB), (SIZE - 512, 12, 512)],
}


@dataclass
class Story:
    """A machine in ``folder`` and its backup; ``disks`` are the truth, ``digests`` what was printed."""

    folder: Path
    format: str
    disks: dict[str, bytearray] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def image(self, name: str) -> Path:
        suffix = self.format if name == BASE else f"a{self.format}"
        return self.folder / "machine" / f"{name}.{suffix}"

    def backup(self, name: str) -> Path:
        return self.folder / "backup" / f"{name}.{self.format}"

    @property
    def set(self) -> Path:
        return self.folder / "set"

    def restored(self, name: str, suffix: str) -> Path:
        return self.folder / "restored" / f"{name}.{suffix}"

    def make_the_machine(self) -> None:
        for folder in ("machine", "backup", "restored"):
            (self.folder / folder).mkdir()
        process("create", self.image(BASE), "--size", SIZE)
        self._run(BASE, bytearray(SIZE))
        for name, parent in SNAPSHOTS.items():
            process("snapshot", self.image(parent), self.image(name))
            self._run(name, bytearray(self.disks[parent]))

    def _run(self, name: str, disk: bytearray) -> None:
        with a_guest(self.image(name)) as guest:
            for offset, seed, length in WRITES[name]:
                data = noise(seed, length)
                guest.write(offset, data)
                disk[offset : offset + length] = data
        self.disks[name] = disk

    def back_it_up(self) -> None:
        self._export(BASE)
        for name, (base, is_by_manifest) in INCREMENTS.items():
            parent = self.backup(base)
            self._export(name, "--base", f"{parent}.manifest.json" if is_by_manifest else parent)
        process("export", "--all", self.folder / "machine", self.set)

    def _export(self, name: str, *options: object) -> None:
        done = process("export", self.image(name), self.backup(name), "--hash", "sha256", *options)
        self.digests[name] = done.stdout.decode().split()[0]

    def lose_it(self) -> None:
        shutil.rmtree(self.folder / "machine")


@pytest.fixture(scope="module", params=["vhdx", "vhd"])
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A machine that has been backed up."""
    story = Story(tmp_path_factory.mktemp(f"story-{request.param}"), request.param)
    story.make_the_machine()
    story.back_it_up()
    return story


@pytest.fixture
def backup(machine: Story, tmp_path: Path) -> Story:
    """The same after the loss: a copy that has nothing of the machine, elsewhere."""
    story = Story(tmp_path / "elsewhere", machine.format, machine.disks, machine.digests)
    shutil.copytree(machine.folder, story.folder)
    story.lose_it()
    return story


def test_what_is_in_a_backup_is_verified_against_the_machine_while_that_is_there(machine: Story) -> None:
    for name in POINTS:
        run("verify", machine.backup(name))
        run("verify", machine.backup(name), "--against", machine.image(name))
        assert machine.digests[name] == hashlib.sha256(machine.disks[name]).hexdigest()
    process("verify", "--set", machine.set)


def test_after_the_loss_every_point_in_time_is_restored_through_the_increments(backup: Story) -> None:
    for name in POINTS:
        target = backup.restored(name, "raw")
        done = process("export", backup.backup(name), target, "--hash", "sha256")

        run("verify", backup.backup(name))
        run("verify", target)
        assert done.stdout.decode().split()[0] == backup.digests[name]
        assert target.read_bytes() == backup.disks[name]


def test_after_the_loss_every_point_in_time_is_merged_into_a_new_full_image(backup: Story) -> None:
    for name in POINTS:
        target = backup.restored(name, backup.format)
        process("merge", backup.backup(name), target, "--hash", "sha256")

        run("verify", target)
        run("compare", target, backup.backup(name))
        assert run_json("info", target)["type"] == "dynamic"
        digests = json.loads(Path(f"{target}.manifest.json").read_text())["content"]["digests"]
        assert digests == {"sha256": backup.digests[name]}


def test_after_the_loss_the_set_has_every_point_in_time(backup: Story) -> None:
    document = json.loads((backup.set / "vhdtool-set.json").read_text())
    targets = {Path(image["point_in_time"]).stem: backup.set / image["path"] for image in document["images"]}

    process("verify", "--set", backup.set)
    assert targets.keys() == set(POINTS)
    for name in POINTS:
        run("compare", targets[name], backup.backup(name))
        run("export", targets[name], backup.restored(name, "raw"), "--no-manifest")
        assert backup.restored(name, "raw").read_bytes() == backup.disks[name]


def test_a_backup_that_lost_an_increment_says_so_and_has_all_that_is_below(backup: Story) -> None:
    backup.backup("wednesday").unlink()

    for name in ("upgrade", "rehearsal"):
        done = run("export", backup.backup(name), backup.restored(name, "raw"), code=66)
        assert "chain.parent.missing" in done.stderr
        run("verify", backup.backup(name), code=66)
    for name in (BASE, "monday", "tuesday"):
        run("verify", backup.backup(name))


@needs_7zip
def test_7zip_reads_every_point_in_time_of_the_backup(backup: Story) -> None:
    for name in POINTS:
        assert by_7zip(backup.backup(name)) == backup.disks[name], name


@needs_libvhdi
def test_libvhdi_reads_every_point_in_time_of_the_backup(backup: Story) -> None:
    for name in POINTS:
        assert by_libvhdi(backup.backup(name)) == backup.disks[name], name


@needs_qemu
def test_qemu_reads_a_merge_of_the_backup(backup: Story) -> None:
    target = backup.restored("rehearsal", backup.format)

    process("merge", backup.backup("rehearsal"), target)

    assert by_qemu(target, backup.restored("theirs", "raw")) == backup.disks["rehearsal"]

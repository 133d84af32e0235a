"""Checks as a library call: many files, huge ones, and files that vanish."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.helpers import Child, Snapshots, make_snapshots, make_vhd, overwrite, run
from vhdtool.chain.check import CheckOptions, check_paths
from vhdtool.errors import FileMissingError, FormatError


def test_a_folder_of_many_images_needs_few_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vhdtool import source

    make_vhd(tmp_path / "0.vhd", 1, {})
    for i in range(1, 60):
        make_vhd(tmp_path / f"{i}.vhd", i + 1, {}, Child(1, ".\\0.vhd"))
    opened: list[int] = []
    peak = 0

    class Counted(source.FileSource):
        def __init__(self, path: str | os.PathLike[str]) -> None:
            nonlocal peak
            super().__init__(path)
            opened.append(id(self))
            peak = max(peak, len(opened))

        def close(self) -> None:
            if id(self) in opened:
                opened.remove(id(self))
            super().close()

    for module in ("vhdtool.formats.registry", "vhdtool.chain.candidates"):
        monkeypatch.setattr(f"{module}.FileSource", Counted)

    report = check_paths([tmp_path])

    assert (report.images, report.errors, report.refused) == (60, 0, ())
    assert peak <= 2


def test_a_finding_stands_once_however_many_paths_lead_to_it(snapshots: Snapshots) -> None:
    if snapshots.base.suffix == ".vhd":
        overwrite(snapshots.base, -512, b"spoiled!")
    else:
        overwrite(snapshots.base, 0x10000, b"spoiled!")

    one = check_paths([snapshots.base])
    both = check_paths([snapshots.child, snapshots.other], CheckOptions(chain=True))

    assert one.warnings == both.warnings == 1


def test_refusals_are_collected_in_the_order_of_the_paths(snapshots: Snapshots, tmp_path: Path) -> None:
    letter = tmp_path / "letter.vhd"
    letter.write_bytes(b"x" * 4096)

    report = check_paths([letter, tmp_path / "gone", snapshots.base])

    assert [type(error) for error in report.refused][1:] == [FileMissingError]
    assert isinstance(report.refused[0], FormatError)
    assert report.errors == 1
    assert report.images == 1


def test_an_image_that_vanishes_meanwhile_is_a_finding(
    snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vhdtool.chain import tree

    find = tree.find_snapshots

    def find_and_remove(*folders: Path, **options: object) -> tree.SnapshotTree:
        found = find(*folders, **options)  # type: ignore[arg-type]
        snapshots.other.unlink()
        return found

    monkeypatch.setattr(tree, "find_snapshots", find_and_remove)

    report = check_paths([snapshots.folder])

    assert "check.unreadable" in [finding.code for finding in report.findings]
    assert report.errors == 1


def test_a_missing_folder_below_is_not_looked_for(tmp_path: Path) -> None:
    report = check_paths([tmp_path])

    assert (report.images, report.findings, report.refused) == (0, (), ())


@pytest.mark.skipif(
    sys.platform != "linux", reason="looks at the peak memory of a process as Linux counts it"
)
@pytest.mark.parametrize(
    ("arguments", "block_size"),
    [
        (["info", "--json"], "1MiB"),
        (["check"], "1MiB"),
        (["check", "--deep"], "1MiB"),
        (["map", "--json"], "32MiB"),
    ],
)
def test_a_disk_of_64_tib_takes_little_time_and_memory(
    arguments: list[str], block_size: str, tmp_path: Path
) -> None:
    image = tmp_path / "huge.vhdx"
    run("create", image, "--size", "64TiB", "--block-size", block_size)
    code = (
        "import resource, subprocess, sys, time\n"
        "start = time.monotonic()\n"
        "done = subprocess.run([sys.executable, '-m', 'vhdtool', *sys.argv[1:]], stdout=subprocess.DEVNULL)\n"
        "usage = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(done.returncode, usage.ru_maxrss, usage.ru_utime + usage.ru_stime)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, str(image)], capture_output=True, text=True, check=True
    )

    returncode, peak_kib, seconds = done.stdout.split()
    assert returncode == "0"
    assert int(peak_kib) < 200 << 10
    # Processor time: the wall clock of a busy machine says nothing.
    assert float(seconds) < 2


def test_check_reads_a_pending_log_or_leaves_it_out(tmp_path: Path) -> None:
    snapshots = make_snapshots(tmp_path)

    assert check_paths([snapshots.base], CheckOptions(log="before")).errors == 0
    assert check_paths([snapshots.base], CheckOptions(log="after")).errors == 0

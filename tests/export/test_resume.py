"""Exports that go on after kills, full disks, lost mounts, Ctrl-C: to the bytes that nobody interrupted."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.export.interrupted import KINDS, Case, a_case
from tests.export.kit import MIB, a_disk, failing_call, names_in, open_raw, some_data
from tests.generated import Style, a_base
from vhdtool.chain.discover import open_chain
from vhdtool.errors import (
    ExportError,
    ReadError,
    SourceChangedError,
    SourceGoneError,
    TargetError,
    TargetExistsError,
)
from vhdtool.export.create import create_image, snapshot_image
from vhdtool.export.job import ExportJob, export_image
from vhdtool.export.journal import Journal
from vhdtool.export.options import ExportOptions
from vhdtool.export.proof.verify import verify_image

ROOT = Path(__file__).resolve().parents[2]
posix_only = pytest.mark.skipif(os.name != "posix", reason="signals, forks and limits of POSIX")
has_pwrite = pytest.mark.skipif(not hasattr(os, "pwrite"), reason="the calls are those of positioned writes")
# The command as it is, with a checkpoint wherever there can be one.
COMMAND = """
import sys
from vhdtool.export import work
notes = work.Notes
work.Notes = lambda *needed, **more: notes(*needed[:4], 0.0, **more)
{before}
from vhdtool.cli.main import main
sys.argv[0] = "vhdtool"
main()
"""


def command(*arguments: object, before: str = "") -> list[str]:
    return [sys.executable, "-c", COMMAND.format(before=before), *map(str, arguments)]


def run(*arguments: object, code: int = 0, before: str = "") -> list[str]:
    """Run the command to its end; the lines that it said on stderr."""
    done = subprocess.run(
        command(*arguments, before=before),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Case]:
    def make(kind: str = "raw", steps: int = 4) -> Case:
        return a_case(tmp_path / "case", kind, monkeypatch.setattr, steps=steps)

    return make


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


# ------------------------------------------------------------ kills


def killed(folder: Path, *arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.export.killed", str(folder), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["wrong"] == []
    return result


@posix_only
@has_pwrite
@pytest.mark.parametrize(("kind", "mode"), [("raw", "new"), ("vhdx", "force"), ("vhdx-increment", "new")])
def test_after_a_kill_at_any_call_an_export_goes_on_to_the_same_bytes(
    kind: str, mode: str, tmp_path: Path
) -> None:
    result = killed(tmp_path, kind, mode, 12)

    assert result["killed"] > 25
    assert result["published"] >= 4
    assert result["gone on with"] > 15


@posix_only
@has_pwrite
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["new", "force"])
@pytest.mark.parametrize("kind", KINDS)
def test_after_a_kill_at_every_call_an_export_goes_on_to_the_same_bytes(
    kind: str, mode: str, tmp_path: Path
) -> None:
    result = killed(tmp_path, kind, mode, 1)

    assert result["killed"] > 80
    assert result["gone on with"] > 50


@posix_only
def test_after_kills_at_random_moments_an_export_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    assert killed(tmp_path, "vhdx-increment", "forks", 12)["killed"] >= 12


@posix_only
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raw", "vhdx-increment", "raw.zst"])
def test_after_200_kills_at_random_moments_of_a_process_an_export_goes_on_to_the_same_bytes(
    kind: str, tmp_path: Path
) -> None:
    result = killed(tmp_path, kind, "processes", 200)

    assert result["killed"] >= 200
    assert result["gone on with"] >= 50


# ------------------------------------------------------------ no room, and disks that fail


def failure_of(job: Case) -> ExportError | None:
    """Why an export ended, when it ran into a full disk."""
    try:
        job.export()
    except ExportError as error:
        if error.exit_code != 74 or "No space left" not in str(error):
            raise
        return error
    return None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["pwrite", "write"])
def test_after_a_full_disk_an_export_goes_on_when_there_is_room(
    kind: str, name: str, case: Callable[..., Case]
) -> None:
    if not hasattr(os, name):
        pytest.skip(f"this platform has no os.{name}")
    job = case(kind)
    kept = 0
    for at in range(1, 100, 5):
        with pytest.MonkeyPatch.context() as patch:
            failing_call(patch, name, errno.ENOSPC, at)
            if failure_of(job) is None:
                break
        kept += job.journal.exists()
        assert job.journal.exists() == bool(list(job.out.glob(".*.partial")))
        assert not job.target.exists()

        assert job.export(resume=True).resumed_at % job.kind.step == 0
        job.require_done()
        job.put_back({})

    assert kept


@pytest.mark.parametrize(
    ("name", "at"), [("fsync", 1), ("fsync", 2), ("ftruncate", 3), ("link", 1), ("link", 2)]
)
def test_an_export_that_fails_at_its_very_end_goes_on(name: str, at: int, case: Callable[..., Case]) -> None:
    if not hasattr(os, name):
        pytest.skip(f"this platform has no os.{name}")
    job = case("vhdx")
    with pytest.MonkeyPatch.context() as patch:
        failing_call(patch, name, errno.EIO, at)
        with pytest.raises(ExportError):
            job.export(sync=True)

    job.export(resume=True)

    job.require_done()


@posix_only
def test_a_full_disk_is_told_with_how_to_go_on(tmp_path: Path, out: Path) -> None:
    source = a_disk(tmp_path / "a.raw", 24 * MIB, {0: some_data(24 * MIB)})
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (12 << 20, 12 << 20))"
    for name, more in (("b.vhdx", ["--block-size", "1MiB"]), ("c.vhd", [])):
        lines = run("export", source, out / name, *more, code=74, before=limit)

        assert lines == [
            "what was done is kept: once the cause is gone, the same command with --resume goes on",
            f"error: cannot write {out / name}: File too large",
        ]
        assert not (out / name).exists()
        assert (out / f".{name}.journal").exists()
        assert run("export", source, out / name, *more, "--resume") == []
        assert verify_image(out / name).ok
        with open_chain(out / name) as chain:
            assert chain.read(0, chain.virtual_size) == source.read_bytes()

    assert names_in(out) == {
        f"{name}{tail}" for name in ("b.vhdx", "c.vhd") for tail in ("", ".manifest.json")
    }


@contextmanager
def a_small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of that size at ``folder``; skips where none can be made."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or mount is None or umount is None:
        pytest.skip("only root can mount a small file system")
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run([umount, "-l", str(folder)], check=True)


@posix_only
def test_an_export_to_a_disk_that_is_really_full_goes_on_after_it_has_grown(
    case: Callable[..., Case],
) -> None:
    job = case("vhdx", steps=12)
    with a_small_disk(job.out, "7m"):
        with pytest.raises(ExportError, match="No space left") as caught:
            job.export()
        assert caught.value.exit_code == 74
        assert job.has_checkpoint()
        with pytest.raises(ExportError, match="No space left"):
            job.export(resume=True)
        assert job.has_checkpoint()
        subprocess.run(["mount", "-o", "remount,size=60m", str(job.out)], check=True)

        assert job.export(resume=True).resumed_at >= 2 * MIB

        job.require_done()


# ------------------------------------------------------------ reads that fail


@pytest.mark.parametrize("kind", KINDS)
def test_wherever_reading_fails_an_export_goes_on_when_it_works_again(
    kind: str, case: Callable[..., Case]
) -> None:
    job = case(kind)
    for after in range(job.kind.step + 650_000, job.source.stat().st_size, job.kind.step):
        job.interrupt(after)
        assert not job.target.exists()

        report = job.export(resume=True)

        assert 0 < report.resumed_at <= after
        job.require_done()
        job.put_back({})


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_can_be_interrupted_again_and_again(kind: str, case: Callable[..., Case]) -> None:
    job = case(kind)
    job.interrupt(job.kind.step + 650_000)
    for step in (1, 1, 2, 3, 2):
        job.interrupt(step * job.kind.step + 650_000, resume=True)

    assert job.export(resume=True).resumed_at >= 2 * job.kind.step
    job.require_done()


@posix_only
def test_layers_that_went_away_with_their_disk_may_come_back(case: Callable[..., Case]) -> None:
    job = case("vhdx")
    away = job.source.with_name("away")

    def hook(reads: int, offset: int, length: int) -> None:
        if offset > 6 * MIB and job.has_checkpoint() and job.source.exists():
            job.source.rename(away)

    with pytest.raises(SourceGoneError, match="it is gone") as caught:
        job.export(hook)
    assert caught.value.exit_code == 75
    assert job.has_checkpoint()
    away.rename(job.source)

    assert job.export(resume=True).resumed_at > 0
    job.require_done()


def test_ranges_that_could_not_be_read_are_listed_once(case: Callable[..., Case]) -> None:
    job = case()
    size = job.source.stat().st_size
    job.source.write_bytes(some_data(size, 9))
    bad = (range(2 * MIB - 4096, 2 * MIB + 4096), range(4 * MIB + 8192, 4 * MIB + 20480))

    def reading_up_to(end: int) -> Callable[[int, int, int], None]:
        def hook(reads: int, offset: int, length: int) -> None:
            if offset + length > end:
                raise KeyboardInterrupt
            if any(offset < part.stop and part.start < offset + length for part in bad):
                raise ReadError("cannot read disk: Input/output error")

        return hook

    whole = job.export(reading_up_to(size), damaged="zero")
    expected = job.kept()
    job.put_back({})
    with pytest.raises(KeyboardInterrupt):
        job.export(reading_up_to(7 * MIB), damaged="zero")
    report = job.export(reading_up_to(size), damaged="zero", resume=True)

    assert report.resumed_at > 0
    assert report.damaged == whole.damaged
    assert [(row.start, row.length) for row in report.damaged] == [(part.start, len(part)) for part in bad]
    assert (report.damaged_count, report.damaged_bytes) == (2, 20480)
    found = job.kept()
    assert found[job.kind.target] == expected[job.kind.target]
    documents = [json.loads(files[f"{job.kind.target}.manifest.json"]) for files in (expected, found)]
    for name in ("content", "damaged", "target"):
        assert documents[0][name] == documents[1][name]


# ------------------------------------------------------------ the same job, or none


REFUSED: dict[str, dict[str, Any]] = {
    "zero_detect": {"zero_detect": False},
    "hashes": {"hashes": ("md5",)},
    "damaged": {"damaged": "zero"},
    "level": {"level": 9},
    "block_size": {"block_size": 2 * MIB},
    "sector_size": {"logical_sector_size": 4096},
    "subformat": {"subformat": "fixed"},
    "manifest": {"manifest": Path("other.json")},
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_job_that_was_begun_otherwise_is_not_gone_on_with(what: str, case: Callable[..., Case]) -> None:
    job = case("vhdx")
    job.interrupt(5 * MIB)
    files = job.kept()

    with pytest.raises(TargetError, match=f"another .*{what}") as caught:
        job.export(resume=True, **REFUSED[what])

    assert caught.value.exit_code == 73
    assert job.kept() == files
    assert job.export(resume=True).resumed_at > 0
    job.require_done()


def test_another_format_or_base_is_another_job(tmp_path: Path, case: Callable[..., Case]) -> None:
    job = case("vhdx-increment")
    job.interrupt(5 * MIB)
    files = job.kept()
    other = tmp_path / "case" / "other.vhdx"
    create_image(other, source=job.source)

    for wanted, word in (
        ({"base": other.name}, "base"),
        ({"compare_content": False}, "compare_content"),
        ({"base": None, "compare_content": False}, "parent"),
    ):
        with pytest.raises(TargetError, match=f"another .*{word}"):
            job.export(resume=True, **wanted)
        assert job.kept() == files


def test_another_leaf_is_another_job(tmp_path: Path, case: Callable[..., Case]) -> None:
    job = case()
    job.interrupt(5 * MIB)
    files = job.kept()
    leaf = tmp_path / "other.raw"
    shutil.copy2(job.source, leaf)

    with pytest.raises(TargetError, match="another leaf"), open_raw(leaf) as chain:
        export_image(chain, job.target, resume=True, hashes=("sha256",))

    assert job.kept() == files


@pytest.mark.parametrize("log", ["before", "after"])
def test_a_log_is_replayed_all_through_or_not_at_all(log: str, tmp_path: Path, out: Path) -> None:
    point = a_base(tmp_path, Style(logs=1.0, size=12 * MIB), np.random.default_rng(3))
    options = ExportOptions(checkpoint_seconds=0.0, sync=False)
    job = ExportJob(point.path, str(out / "a.raw"), log=log, options=options)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        failing_call(patch, "pwrite" if hasattr(os, "pwrite") else "write", errno.ENOSPC, 12)
        with pytest.raises(ExportError):
            job.run()
    assert (out / ".a.raw.journal").exists()
    other = "after" if log == "before" else "before"
    again = ExportOptions(resume=True, checkpoint_seconds=0.0, sync=False)

    with pytest.raises(TargetError, match="another log"):
        ExportJob(point.path, str(out / "a.raw"), log=other, options=again).run()  # type: ignore[arg-type]

    report = ExportJob(point.path, str(out / "a.raw"), log=log, options=again).run()  # type: ignore[arg-type]
    assert report.resumed_at > 0
    with open_chain(point.path, log=log) as chain:  # type: ignore[arg-type]
        assert (out / "a.raw").read_bytes() == chain.read(0, chain.virtual_size)


def payload(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"changed")


def headers_but_not_the_time(path: Path) -> None:
    times = path.stat()
    with path.open("r+b") as file:
        for at in (0, times.st_size - 512):  # both footers of a VHD: a flag, and the sum that goes with it
            file.seek(at)
            footer = bytearray(file.read(512))
            footer[84] ^= 1
            footer[64:68] = (int.from_bytes(footer[64:68], "big") - 1).to_bytes(4, "big")
            file.seek(at)
            file.write(footer)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shorter(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 512)


def another(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


CHANGES = [payload, headers_but_not_the_time, longer, another]


@pytest.mark.parametrize("change", [*CHANGES, shorter], ids=lambda change: change.__name__)
def test_layers_that_changed_meanwhile_are_exit_75(
    change: Callable[[Path], None], tmp_path: Path, out: Path
) -> None:
    base, leaf = tmp_path / "base.vhd", tmp_path / "leaf.vhd"
    create_image(base, source=a_disk(tmp_path / "a.raw", 12 * MIB, {0: some_data(12 * MIB)}), sync=False)
    snapshot_image(base, leaf, sync=False)
    options: dict[str, Any] = {"checkpoint_seconds": 0.0, "sync": False}
    with pytest.MonkeyPatch.context() as patch:
        # Of chunks; without positioned writes, of smaller pieces and of the journal's lines among them.
        name, at = ("pwrite", 4) if hasattr(os, "pwrite") else ("write", 20)
        failing_call(patch, name, errno.ENOSPC, at)
        with pytest.raises(ExportError):
            export_image(leaf, out / "b.raw", **options)
    present = {path.name: path.read_bytes() for path in out.iterdir()}
    assert len(present) == 2
    time.sleep(0.02)  # time stamps have grains
    change(base)

    with pytest.raises((SourceChangedError, Exception)) as caught:
        export_image(leaf, out / "b.raw", resume=True, **options)

    if change is not shorter:  # which is no VHD any more
        assert isinstance(caught.value, SourceChangedError)
        assert caught.value.exit_code == 75
        assert f"{base} changed since it was begun" in str(caught.value)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == present


def test_a_job_that_is_running_is_left_alone(case: Callable[..., Case]) -> None:
    pytest.importorskip("fcntl")
    job = case()
    job.interrupt(5 * MIB)
    files = job.kept()
    running = Journal(job.target)
    for resume in (True, False):
        with pytest.raises(TargetError, match="belongs to a job that is running") as caught:
            job.export(resume=resume)
        assert caught.value.exit_code == 73
    running.close()

    assert job.kept() == files
    job.export(resume=True)
    job.require_done()


@pytest.mark.parametrize("kind", KINDS)
def test_with_nothing_to_go_on_with_an_export_begins(kind: str, case: Callable[..., Case]) -> None:
    job = case(kind)

    assert job.export(resume=True).resumed_at == 0
    job.require_done()
    with pytest.raises(TargetExistsError):
        job.export(resume=True)
    job.require_done()


def test_without_resume_what_an_interrupted_job_left_is_removed(case: Callable[..., Case]) -> None:
    job = case("vhdx")
    job.interrupt(5 * MIB)

    assert job.export().resumed_at == 0

    job.require_done()


def test_what_is_refused_anyway_costs_an_interrupted_job_nothing(case: Callable[..., Case]) -> None:
    job = case()
    job.interrupt(5 * MIB)
    job.target.write_bytes(b"precious")
    files = job.kept()

    for resume in (True, False):
        with pytest.raises(TargetExistsError):
            job.export(resume=resume)
        assert job.kept() == files

    assert job.export(resume=True, force=True).resumed_at > 0
    job.require_done()


@pytest.mark.parametrize("tail", ["manifest.json", "sha256"])
def test_what_others_put_beside_the_target_meanwhile_is_not_replaced(
    tail: str, case: Callable[..., Case]
) -> None:
    job = case()
    job.interrupt(5 * MIB)
    foreign = Path(f"{job.target}.{tail}")
    foreign.write_bytes(b"precious")
    files = job.kept()

    with pytest.raises(TargetExistsError):
        job.export(resume=True)

    assert job.kept() == files
    foreign.unlink()
    job.export(resume=True)
    job.require_done()


@posix_only
def test_a_manifest_of_somebody_else_stands_in_the_way_of_the_last_step_only(
    case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = case("fixed-vhd")
    foreign = Path(f"{job.target}.manifest.json")
    real = os.link

    def link(source: Path, target: Path) -> None:
        if target == foreign and not foreign.exists():
            foreign.write_bytes(b"precious")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", link)
        with pytest.raises(TargetExistsError):
            job.export()
    assert job.target.read_bytes() == job.expected
    with pytest.raises(TargetExistsError):
        job.export(resume=True)
    assert foreign.read_bytes() == b"precious"
    foreign.unlink()

    job.export(resume=True)

    job.require_done()


def test_identities_and_times_are_those_of_the_beginning(tmp_path: Path, out: Path) -> None:
    leaf, target = tmp_path / "a.vhd", out / "b.vhdx"
    create_image(leaf, source=a_disk(tmp_path / "a.raw", 8 * MIB, {0: some_data(8 * MIB)}), sync=False)
    options: dict[str, Any] = {"block_size": MIB, "checkpoint_seconds": 0.0, "sync": False}
    with pytest.MonkeyPatch.context() as patch:
        failing_call(patch, "pwrite" if hasattr(os, "pwrite") else "write", errno.ENOSPC, 14)
        with pytest.raises(ExportError):
            export_image(leaf, target, **options)
    begun = Journal(target)
    begun.close()
    assert begun.job is not None

    with pytest.raises(TargetError, match="another keep_id"):
        export_image(leaf, target, resume=True, keep_id=True, **options)
    report = export_image(leaf, target, resume=True, **options)

    assert report.resumed_at > 0
    assert report.started.isoformat() == begun.job["started"]
    with open_chain(target) as chain:
        assert chain.leaf.write_id is not None
        assert chain.leaf.write_id.raw.hex() == begun.job["shape"]["write_id"]


def test_a_hole_that_an_interruption_cut_is_still_a_hole(case: Callable[..., Case]) -> None:
    """Short ranges are not looked into for holes: of a long one only its end may be left."""
    job = case("vhdx")
    size = 4 * MIB + 100 * 1024
    a_disk(job.source, size, {0: some_data(4 * MIB)})
    job.export(zero_detect=False)
    expected = job.target.read_bytes()
    job.put_back({})
    with pytest.MonkeyPatch.context() as patch:
        failing_call(patch, "fsync", errno.EIO)
        with pytest.raises(ExportError):
            job.export(zero_detect=False, sync=True)
    assert job.journal_lines()[-1]["position"] == 4 * MIB

    assert job.export(zero_detect=False, resume=True).resumed_at == 4 * MIB

    assert job.target.read_bytes() == expected


# ------------------------------------------------------------ signals, and inputs that are written to


class Running:
    """The command while it runs: slowly, with checkpoints behind it."""

    def __init__(self, leaf: Path, target: Path, *more: object) -> None:
        self.process = subprocess.Popen(
            command("export", leaf, target, "--limit-rate", "6MiB", *more),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        journal = target.with_name(f".{target.name}.journal")
        until = time.monotonic() + 60
        while not (journal.exists() and b"position" in journal.read_bytes()):
            assert self.process.poll() is None, "it ended too early"
            assert time.monotonic() < until
            time.sleep(0.01)

    def end(self) -> tuple[int, list[str]]:
        """Its exit code and what it said."""
        try:
            _, stderr = self.process.communicate(timeout=60)
        finally:
            self.process.kill()
        assert "Traceback" not in stderr
        return self.process.returncode, stderr.splitlines()


@posix_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_is_told_with_how_to_go_on(number: signal.Signals, tmp_path: Path, out: Path) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored here, as under nohup, and so in what is started here")
    source = a_disk(tmp_path / "a.raw", 24 * MIB, {0: some_data(24 * MIB)})
    running = Running(source, out / "b.raw")
    running.process.send_signal(number)

    code, lines = running.end()

    assert code == 130
    how = "what was done is kept: the same command with --resume goes on"
    assert lines == [f"error: stopped by the user; {how}"]
    assert len(names_in(out)) == 2
    assert run("export", source, out / "b.raw", "--resume") == []
    assert (out / "b.raw").read_bytes() == source.read_bytes()
    assert names_in(out) == {"b.raw", "b.raw.manifest.json"}


def table_entry(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(0x600 + 4)
        file.write(b"\xff\xff\xff\xff")


def replaced(path: Path) -> None:
    new = path.with_name("new")
    shutil.copyfile(path, new)
    new.replace(path)


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@posix_only
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (payload, "it was written to"),
        (table_entry, "it was written to"),
        (headers_but_not_the_time, "its headers changed"),
        (half, "its size went from"),
        (longer, "its size went from"),
        (replaced, "another file"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_layer_that_is_written_to_ends_the_command_with_nothing_left(
    change: Callable[[Path], None], words: str, tmp_path: Path, out: Path
) -> None:
    base, leaf = tmp_path / "base.vhd", tmp_path / "leaf.vhd"
    create_image(base, source=a_disk(tmp_path / "a.raw", 24 * MIB, {0: some_data(24 * MIB)}), sync=False)
    snapshot_image(base, leaf, sync=False)
    time.sleep(0.02)
    running = Running(leaf, out / "b.raw")
    change(base)

    code, lines = running.end()

    assert code == 75
    (line,) = lines
    assert line.startswith(f"error: {base} changed while it was read: ")
    assert words in line
    assert names_in(out) == set()


@posix_only
def test_a_leaf_that_a_program_goes_on_writing_to_is_never_exported(tmp_path: Path, out: Path) -> None:
    leaf = tmp_path / "leaf.vhdx"
    create_image(leaf, source=a_disk(tmp_path / "a.raw", 16 * MIB, {0: some_data(16 * MIB)}), sync=False)
    code = """
import sys, time
with open(sys.argv[1], "ab") as file:
    while True:
        file.write(bytes(4096))
        file.flush()
        time.sleep(0.01)
"""
    writer = subprocess.Popen([sys.executable, "-c", code, str(leaf)])
    try:
        for more in ([], ["--limit-rate", "64MiB", "--resume"]):
            (line,) = run("export", leaf, out / "b.vhdx", *more, code=75)
            assert line.startswith(f"error: {leaf} changed while it was read: ")
            assert names_in(out) == set()
    finally:
        writer.kill()
        writer.wait()

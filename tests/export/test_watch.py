"""Every change of an input is noticed and named, and nothing else is; waiting for quiet sees what changes."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.helpers import overwrite
from tests.export.kit import some_data
from vhdtool.errors import CorruptError, FileMissingError, ReadError, SourceChangedError
from vhdtool.export.gentle.watch import Settled, Settling, SourceWatch, settle, structures_digest
from vhdtool.export.moving.progress import CancelledError
from vhdtool.source import FileSource

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB


class FakeTime:
    """A clock that sleeping moves on; ``at`` are things that happen then."""

    def __init__(self, at: dict[float, Callable[[], object]] | None = None) -> None:
        self.now = 1000.0
        self._at = dict(at or {})

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 0.1
        self.now += seconds
        for moment in sorted(self._at):
            if moment <= self.passed:
                self._at.pop(moment)()

    @property
    def passed(self) -> float:
        return self.now - 1000.0


@pytest.fixture
def leaf(tmp_path: Path) -> Path:
    path = tmp_path / "leaf.avhdx"
    path.write_bytes(some_data(SIZE))
    return path


def keeping_times(path: Path, change: Callable[[], object]) -> None:
    """Change a file and put its time stamps back, as some writers and shares do."""
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def later(path: Path) -> None:
    """Give a file another time of change, for file systems whose clock ticks slowly."""
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def replaced(path: Path) -> None:
    """Another file with the same content and times under the same name."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    before = path.stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def written(path: Path, offset: int) -> None:
    overwrite(path, offset, b"\xff\x00\xff")
    later(path)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "payload": (lambda path: written(path, 3 * MIB), "it was written to"),
    "header": (lambda path: written(path, 64 * KIB), "it was written to"),
    "touched": (later, "it was written to"),
    "appended": (
        lambda path: os.truncate(path, SIZE + 512),
        f"its size went from {SIZE} to {SIZE + 512} bytes",
    ),
    "truncated": (lambda path: os.truncate(path, 100), f"its size went from {SIZE} to 100 bytes"),
    "replaced": (replaced, "another file stands under its name"),
    "removed": (lambda path: path.unlink(), "it is gone"),
    "renamed": (lambda path: path.rename(path.with_name("moved")), "it is gone"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_noticed_at_the_end_and_named(leaf: Path, kind: str) -> None:
    change, said = CHANGES[kind]
    with FileSource(leaf) as file:
        watch = SourceWatch([file])
        watch.check()
        change(leaf)

        with pytest.raises(SourceChangedError) as caught:
            watch.check()

    assert str(caught.value) == f"{leaf} changed while it was read: {said}"
    assert caught.value.exit_code == 75


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_noticed_while_the_job_runs(leaf: Path, kind: str) -> None:
    change, said = CHANGES[kind]
    time = FakeTime()
    with FileSource(leaf) as file:
        watch = SourceWatch([file], clock=time.clock)
        time.now += 1
        watch.tick()
        change(leaf)
        time.now += 0.5

        with pytest.raises(SourceChangedError, match="changed while it was read") as caught:
            watch.tick()

    assert str(caught.value).endswith(said)


@pytest.mark.parametrize(
    "offset", [0, 512, 2047, 64 * KIB + 8, 128 * KIB, 192 * KIB + 40, 260 * KIB - 3, -3, -512]
)
def test_a_write_to_the_structures_that_hides_its_time_is_noticed(leaf: Path, offset: int) -> None:
    with FileSource(leaf) as file:
        watch = SourceWatch([file])
        keeping_times(leaf, lambda: overwrite(leaf, offset, b"\xff\x00\xff"))
        assert file.opened_as == file.fingerprint()

        with pytest.raises(SourceChangedError, match="its headers changed"):
            watch.check()


def test_structures_that_become_zeros_or_move_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "base.vhdx"
    page = some_data(4096)
    path.write_bytes(page + bytes(60 * KIB) + page + bytes(SIZE - 68 * KIB))
    with FileSource(path) as file:
        watch = SourceWatch([file])
        watch.check()

        keeping_times(path, lambda: overwrite(path, 64 * KIB, bytes(4096)))
        with pytest.raises(SourceChangedError, match="its headers changed"):
            watch.check()

        keeping_times(path, lambda: overwrite(path, 128 * KIB, page))
        with pytest.raises(SourceChangedError, match="its headers changed"):
            watch.check()


@pytest.mark.skipif(os.name != "posix", reason="ctime is the time of making there")
def test_a_hidden_write_to_the_structures_is_noticed_while_the_job_runs(leaf: Path) -> None:
    time = FakeTime()
    with FileSource(leaf) as file:
        watch = SourceWatch([file], clock=time.clock)
        keeping_times(leaf, lambda: overwrite(leaf, 64 * KIB, b"\xff\x00\xff"))
        time.now += 1

        with pytest.raises(SourceChangedError, match="its headers changed"):
            watch.tick()


@pytest.mark.skipif(os.name != "posix", reason="needs links and permissions as POSIX has them")
def test_links_permissions_and_access_times_stop_nothing(leaf: Path) -> None:
    time = FakeTime()
    with FileSource(leaf) as file:
        watch = SourceWatch([file], clock=time.clock)
        leaf.with_name("link").hardlink_to(leaf)
        leaf.chmod(leaf.stat().st_mode ^ stat.S_IXUSR)
        os.utime(leaf, ns=(1, leaf.stat().st_mtime_ns))
        assert file.fingerprint().ctime_ns != file.opened_as.ctime_ns
        time.now += 1

        watch.tick()
        watch.check()


def test_looking_happens_twice_a_second_at_most_and_less_where_it_is_slow(
    leaf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = FakeTime()
    looks: list[float] = []
    cost = 0.001

    def slow(self: FileSource) -> object:
        looks.append(time.passed)
        time.now += cost
        return self.opened_as

    monkeypatch.setattr(FileSource, "fingerprint", slow)
    with FileSource(leaf) as file:
        watch = SourceWatch([file], clock=time.clock)
        while time.passed < 10:
            watch.tick()
            time.now += 0.01
        quick, cost = len(looks), 0.1
        while time.passed < 30:
            watch.tick()
            time.now += 0.01

    assert 18 <= quick <= 20
    # A twentieth of the time at most: two seconds between looks that take a tenth.
    assert 9 <= len(looks) - quick <= 11


def test_the_file_that_changed_is_named_and_one_that_is_shared_is_looked_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("leaf.vhdx", "middle.vhdx", "base.vhdx")]
    for path in paths:
        path.write_bytes(some_data(MIB))
    files = [FileSource(path) for path in (*paths, paths[2])]
    watch = SourceWatch(files)
    assert len(watch._files) == 3
    written(paths[1], 5)

    with pytest.raises(SourceChangedError, match=r"middle\.vhdx changed"):
        watch.check()
    for file in files:
        file.close()


def test_a_file_that_changed_before_the_watch_began_is_noticed(leaf: Path) -> None:
    with FileSource(leaf) as file:
        os.truncate(leaf, 700)

        with pytest.raises(SourceChangedError, match="its size went"):
            SourceWatch([file]).check()


def test_a_damaged_head_is_no_reason_to_stop(leaf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> bytes:
        raise ReadError("cannot read: Input/output error")

    with FileSource(leaf) as file:
        monkeypatch.setattr(FileSource, "read_exact", broken)
        watch = SourceWatch([file])
        watch.check()


def test_a_file_system_that_does_not_answer_is_a_read_error(
    leaf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(_: int) -> os.stat_result:
        raise OSError(116, "Stale file handle")

    with FileSource(leaf) as file:
        watch = SourceWatch([file])
        monkeypatch.setattr(os, "fstat", stale)
        with pytest.raises(ReadError, match="cannot read"):
            watch.check()
        monkeypatch.undo()


def test_what_breaks_a_rule_because_it_was_written_to_is_told_as_that(leaf: Path) -> None:
    with FileSource(leaf) as file:
        watch = SourceWatch([file])
        with pytest.raises(CorruptError, match="broken"), watch.guarding():
            raise CorruptError("broken")

        later(leaf)
        with pytest.raises(SourceChangedError), watch.guarding():
            raise CorruptError("broken")


def test_small_files_have_structures_too(tmp_path: Path) -> None:
    digests = set()
    for data in (b"", b"a", b"b", b"a" * 512, b"a" * (400 * KIB), b"a" * (400 * KIB - 1) + b"b"):
        path = tmp_path / "disk"
        path.write_bytes(data)
        with FileSource(path) as file:
            digests.add(structures_digest(file))

    assert len(digests) == 6
    assert None not in digests


def test_a_file_that_somebody_writes_to_in_a_loop_is_noticed(leaf: Path) -> None:
    stop = threading.Event()

    def writer() -> None:
        with leaf.open("ab") as file:
            while not stop.is_set():
                file.write(b"x" * 512)
                file.flush()
                stop.wait(0.001)

    thread = threading.Thread(target=writer)
    with FileSource(leaf) as file:
        watch = SourceWatch([file])
        thread.start()
        try:
            with pytest.raises(SourceChangedError, match="its size went"):
                until_it_raises(watch.check)
        finally:
            stop.set()
            thread.join()


def until_it_raises(look: Callable[[], None]) -> None:
    for _ in range(100_000):
        look()


# --- settle -------------------------------------------------------------------------------------------------


def settled(
    targets: list[FileSource | Path], seconds: float, time: FakeTime, **options: object
) -> tuple[Settled, list[Settling]]:
    said: list[Settling] = []
    result = settle(
        targets,
        seconds,
        progress=said.append,
        clock=time.clock,
        sleep=time.sleep,
        **options,  # type: ignore[arg-type]
    )
    return result, said


def test_quiet_files_are_waited_for_no_longer_than_asked(leaf: Path) -> None:
    time = FakeTime()
    with FileSource(leaf) as file:
        result, said = settled([file], 10, time)

    assert result.seconds == pytest.approx(10, abs=0.01)
    assert (result.changed, result.reopen) == ((), False)
    assert said[0] == Settling(10)
    assert said[-1].seconds_left == 0
    # Told twice a second.
    assert 20 <= len(said) <= 24
    assert str(said[0]) == "10 s to go without a change"


@pytest.mark.parametrize("seconds", [0, 0.2, 1])
def test_short_waits_look_often_enough(leaf: Path, seconds: float) -> None:
    time = FakeTime()
    with FileSource(leaf) as file:
        result, said = settled([file], seconds, time)

    assert result.seconds == pytest.approx(seconds, abs=0.01)
    # One more where the clock's fractions do not add up.
    assert len(said) in ((1,) if seconds == 0 else (5, 6))


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_starts_the_wait_again_and_asks_for_opening_again(leaf: Path, kind: str) -> None:
    change, said = CHANGES[kind]
    time = FakeTime({4.0: lambda: change(leaf)})
    with FileSource(leaf) as file:
        result, news = settled([file], 10, time)

    assert result.seconds == pytest.approx(14, abs=0.6)
    assert result.changed == (str(leaf),)
    assert result.reopen
    assert news[-1] == Settling(0.0, str(leaf), said)
    assert f"last seen: {leaf}: {said}" in str(news[-1])


def test_a_write_that_hides_its_time_is_waited_for_too(leaf: Path) -> None:
    hidden = lambda: keeping_times(leaf, lambda: overwrite(leaf, 64 * KIB, b"\xff\x00\xff"))  # noqa: E731
    time = FakeTime({4.0: hidden})
    with FileSource(leaf) as file:
        result, news = settled([file], 10, time)

    assert result.reopen
    assert news[-1].change == "its headers changed"


def test_what_changed_between_opening_and_waiting_asks_for_opening_again(leaf: Path) -> None:
    with FileSource(leaf) as file:
        later(leaf)
        result, _ = settled([file], 1, FakeTime())

    assert result.seconds == pytest.approx(1, abs=0.01)
    assert result.reopen


def test_names_can_be_waited_for_before_anything_is_opened(tmp_path: Path, leaf: Path) -> None:
    missing = tmp_path / "not yet"
    time = FakeTime({3.0: lambda: missing.write_bytes(b"x"), 6.0: lambda: written(leaf, 0)})

    result, news = settled([leaf, missing], 5, time)

    assert result.seconds == pytest.approx(11, abs=0.6)
    assert result.changed == (str(leaf), str(missing))
    assert "it is there again" in {each.change for each in news}
    assert news[-1].change == "it was written to"


def test_a_parent_that_goes_on_changing_is_named_until_somebody_gives_up(leaf: Path, tmp_path: Path) -> None:
    parent = tmp_path / "parent.vhdx"
    parent.write_bytes(bytes(1000))
    time = FakeTime({float(second): lambda: later(parent) for second in range(1, 100)})
    said = r"not quiet after 30 s.*parent\.vhdx: it was written to"
    with (
        FileSource(leaf) as file,
        FileSource(parent) as other,
        pytest.raises(SourceChangedError, match=said),
    ):
        settled([file, other], 5, time, give_up=30)

    assert time.passed == pytest.approx(30, abs=0.6)


def test_who_is_quiet_is_not_given_up(leaf: Path) -> None:
    time = FakeTime()
    with FileSource(leaf) as file:
        result, _ = settled([file], 5, time, give_up=1)

    assert not result.reopen


def test_waiting_can_be_stopped(leaf: Path) -> None:
    time = FakeTime()

    def check() -> None:
        if time.passed > 3:
            raise CancelledError("stopped")

    with FileSource(leaf) as file, pytest.raises(CancelledError):
        settled([file], 100, time, check=check)

    assert time.passed <= 3.2


def test_after_the_leaf_was_replaced_the_new_one_is_what_is_opened(leaf: Path) -> None:
    """The loop that ``Settled`` describes."""
    time = FakeTime({2.0: lambda: replaced(leaf)})
    opened: list[int] = []
    while True:
        with FileSource(leaf) as file:
            opened.append(file.opened_as.inode)
            result, _ = settled([file], 5, time)
            if not result.reopen:
                break

    assert len(opened) == 2
    assert opened[-1] == leaf.stat().st_ino


def test_a_missing_name_that_stays_away_is_left_to_whoever_opens_it(tmp_path: Path) -> None:
    result, _ = settled([tmp_path / "nothing"], 1, FakeTime())

    assert not result.reopen
    with pytest.raises(FileMissingError):
        FileSource(tmp_path / "nothing")

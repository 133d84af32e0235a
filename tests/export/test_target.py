"""Targets: whole or not at all, and never an input."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from pathlib import Path

import pytest

from tests.export.kit import allocated, failing_call, names_in, some_data
from vhdtool.errors import ExportError, TargetError, TargetExistsError
from vhdtool.export.containers import target as target_module
from vhdtool.export.containers.target import StdoutTarget, TargetFile, mode_like

posix_only = pytest.mark.skipif(os.name != "posix", reason="links and special files of POSIX")


def test_a_target_has_its_name_only_after_publishing(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with TargetFile(path) as target:
        target.write_at(1 << 20, b"data")
        (partial,) = names_in(tmp_path)
        assert partial.startswith(".disk.raw.")
        assert partial.endswith(".partial")
        target.finish(2 << 20)
        assert not path.exists()
        target.publish()

    assert names_in(tmp_path) == {"disk.raw"}
    content = path.read_bytes()
    assert len(content) == 2 << 20
    assert content[1 << 20 :][:4] == b"data"
    assert content.count(0) == len(content) - 4
    assert allocated(path) < 1 << 20


def test_a_target_that_is_not_published_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with TargetFile(tmp_path / "disk.raw") as target:
            target.write_at(0, b"data")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert names_in(tmp_path) == set()


def test_publishing_before_finishing_is_a_mistake(tmp_path: Path) -> None:
    with TargetFile(tmp_path / "disk.raw") as target, pytest.raises(ValueError, match="finish"):
        target.publish()


def test_an_existing_target_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"precious")

    with pytest.raises(TargetExistsError) as caught:
        TargetFile(path)

    assert caught.value.exit_code == 73
    assert path.read_bytes() == b"precious"
    assert names_in(tmp_path) == {"disk.raw"}


def test_force_replaces_an_existing_target_at_the_end_only(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"old")
    with TargetFile(path, force=True) as target:
        target.write_at(0, b"new!")
        target.finish(4)
        assert path.read_bytes() == b"old"
        target.publish()

    assert path.read_bytes() == b"new!"
    assert names_in(tmp_path) == {"disk.raw"}


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_a_file_that_appears_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    path = tmp_path / "disk.raw"
    if not links:
        failing_call(monkeypatch, "link", errno.EPERM)
    with TargetFile(path) as target:
        target.write_at(0, b"ours")
        target.finish(4)
        path.write_bytes(b"theirs")
        with pytest.raises(TargetExistsError):
            target.publish()

    assert path.read_bytes() == b"theirs"
    assert names_in(tmp_path) == {"disk.raw"}


def test_a_file_system_without_hard_links_is_published_by_renaming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_call(monkeypatch, "link", errno.EPERM)
    with TargetFile(tmp_path / "disk.raw") as target:
        target.write_at(0, b"ours")
        target.finish(4)
        target.publish()

    assert (tmp_path / "disk.raw").read_bytes() == b"ours"
    assert names_in(tmp_path) == {"disk.raw"}


@posix_only
@pytest.mark.parametrize("how", ["itself", "dotted", "hard link", "symlink", "folder link", "chain of links"])
@pytest.mark.parametrize("force", [False, True])
def test_an_input_is_never_the_target_by_any_name(tmp_path: Path, how: str, force: bool) -> None:
    source = tmp_path / "leaf.vhdx"
    source.write_bytes(b"evidence")
    path = tmp_path / "other"
    if how == "itself":
        path = source
    elif how == "dotted":
        (tmp_path / "sub").mkdir()
        path = tmp_path / "sub" / ".." / "leaf.vhdx"
    elif how == "hard link":
        path.hardlink_to(source)
    elif how == "symlink":
        path.symlink_to(source)
    elif how == "folder link":
        (tmp_path / "sub").symlink_to(tmp_path)
        path = tmp_path / "sub" / "leaf.vhdx"
    else:
        (tmp_path / "middle").symlink_to("leaf.vhdx")
        path.symlink_to("middle")
    before = names_in(tmp_path)

    with pytest.raises(TargetError, match="it is the input") as caught:
        TargetFile(path, force=force, inputs=[source])

    assert caught.value.exit_code == 73
    assert source.read_bytes() == b"evidence"
    assert names_in(tmp_path) == before


def test_an_input_is_known_by_name_where_files_have_no_numbers(tmp_path: Path) -> None:
    source = tmp_path / "Leaf.vhdx"
    source.write_bytes(b"evidence")
    real = source.stat()
    numberless = os.stat_result((real.st_mode, 0, real.st_dev, 1, 0, 0, real.st_size, 0, 0, 0))

    assert target_module._is_same(numberless, tmp_path / "lEAF.VHDX", source)
    assert not target_module._is_same(numberless, tmp_path / "other.vhdx", source)


@posix_only
def test_an_input_moved_to_the_targets_name_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    source = tmp_path / "leaf.vhdx"
    source.write_bytes(b"evidence")
    moved = tmp_path / "disk.raw"
    with TargetFile(moved, force=True, inputs=[moved]) as target:
        target.finish(4)
        source.rename(moved)
        with pytest.raises(TargetError, match="it is the input"):
            target.publish()

    assert moved.read_bytes() == b"evidence"


@posix_only
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "link to folder", "link to device"])
def test_what_is_no_regular_file_is_never_a_target(tmp_path: Path, kind: str, force: bool) -> None:
    path = tmp_path / "thing"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/null")
    elif kind == "link to folder":
        path.symlink_to(tmp_path)
    else:
        path.symlink_to("/dev/null")

    with pytest.raises(TargetError) as caught:
        TargetFile(path, force=force)

    assert caught.value.exit_code == 73
    assert not isinstance(caught.value, TargetExistsError)


@posix_only
def test_a_link_is_something_that_exists_and_is_followed_with_force(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    real = tmp_path / "elsewhere" / "real.raw"
    real.write_bytes(b"old")
    link = tmp_path / "disk.raw"
    link.symlink_to(real)
    with pytest.raises(TargetExistsError):
        TargetFile(link)

    with TargetFile(link, force=True) as target:
        target.write_at(0, b"new!")
        assert target.partial.parent == real.parent
        target.finish(4)
        target.publish()

    assert link.is_symlink()
    assert real.read_bytes() == b"new!"


@posix_only
@pytest.mark.parametrize("to", ["nowhere", "disk.raw"], ids=["dangling", "loop"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path, to: str) -> None:
    link = tmp_path / "disk.raw"
    link.symlink_to(to)

    with pytest.raises(TargetExistsError):
        TargetFile(link)
    with pytest.raises(TargetError, match="leads nowhere"):
        TargetFile(link, force=True)

    assert names_in(tmp_path) == {"disk.raw"}


@pytest.mark.parametrize("name", ["", ".", "..", "missing/disk.raw", "a\0b", "x" * 300])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TargetError) as caught:
        TargetFile(f"{tmp_path}/{name}")

    assert caught.value.exit_code == 73
    assert names_in(tmp_path) == set()


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(TargetError):
        TargetFile(tmp_path / "file" / "disk.raw")


@pytest.mark.parametrize("name", ["x" * 250, "ä" * 125, "d.raw"])
def test_a_long_name_leaves_room_for_the_temporary_one(tmp_path: Path, name: str) -> None:
    with TargetFile(tmp_path / name) as target:
        assert len(os.fsencode(target.partial.name)) <= 255
        target.finish(1)
        target.publish()

    assert names_in(tmp_path) == {name}


@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EFBIG])
def test_a_full_or_failing_disk_is_exit_74_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    if not hasattr(os, call):
        pytest.skip(f"this platform has no os.{call}")

    def written() -> None:
        with TargetFile(tmp_path / "disk.raw") as target:
            failing_call(monkeypatch, call, code)
            target.write_at(0, b"data")
            target.finish(1 << 20)

    with pytest.raises(ExportError) as caught:
        written()

    assert caught.value.exit_code == 74
    assert os.strerror(code) in str(caught.value)
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize(("code", "exit_code"), [(errno.EACCES, 73), (errno.EROFS, 73), (errno.ENOSPC, 74)])
def test_a_folder_that_takes_no_file_is_told_from_a_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, exit_code: int
) -> None:
    failing_call(monkeypatch, "open", code)

    with pytest.raises(ExportError) as caught:
        TargetFile(tmp_path / "disk.raw")

    assert caught.value.exit_code == exit_code


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = some_data(1000)
    if hasattr(os, "pwrite"):
        real = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda fd, piece, at: real(fd, bytes(piece)[:7], at))
    with TargetFile(tmp_path / "disk.raw") as target:
        target.write_at(5, data)
        target.finish(1005)
        target.publish()

    assert (tmp_path / "disk.raw").read_bytes() == bytes(5) + data


def test_without_positioned_writes_it_seeks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pwrite", raising=False)
    with TargetFile(tmp_path / "disk.raw") as target:
        target.write_at(4096, b"second")
        target.write_at(0, memoryview(b"first"))
        target.finish(8192)
        target.publish()

    content = (tmp_path / "disk.raw").read_bytes()
    assert (content[:5], content[4096:4102], len(content)) == (b"first", b"second", 8192)


@posix_only
def test_no_one_may_read_a_result_who_could_not_read_all_inputs(tmp_path: Path) -> None:
    for name, mode in (("a", 0o644), ("b", 0o640), ("c", 0o400)):
        (tmp_path / name).write_bytes(b"")
        (tmp_path / name).chmod(mode)

    assert mode_like([]) == 0o666
    assert mode_like([tmp_path / "a"]) == 0o644
    assert mode_like([tmp_path / "a", tmp_path / "b"]) == 0o640
    assert mode_like([tmp_path / "a", tmp_path / "c"]) == 0o600
    with TargetFile(tmp_path / "disk.raw", mode=0o600) as target:
        target.finish(1)
        target.publish()
    assert stat.S_IMODE((tmp_path / "disk.raw").stat().st_mode) == 0o600


def test_a_stream_is_in_order_with_its_zeros() -> None:
    stream = io.BytesIO()
    with StdoutTarget(stream) as target:
        target.write_at(3, b"ab")
        target.write_at(5 + (3 << 20), b"c")
        with pytest.raises(ValueError, match="go back"):
            target.write_at(0, b"d")
        target.finish(10 + (3 << 20))
        target.publish()

    assert stream.getvalue() == bytes(3) + b"ab" + bytes(3 << 20) + b"c" + bytes(4)


@posix_only
def test_a_reader_that_goes_away_is_exit_74() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb", buffering=0) as stream:
        target = StdoutTarget(stream)
        os.close(read_end)
        with pytest.raises(ExportError) as caught:
            target.write_at(0, b"data")

    assert caught.value.exit_code == 74
    assert isinstance(caught.value.__cause__, BrokenPipeError)


@posix_only
def test_a_stream_that_does_not_block_is_waited_for() -> None:
    import threading

    data = some_data(1 << 20)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    received = bytearray()

    def read() -> None:
        while piece := os.read(read_end, 65536):
            received.extend(piece)

    thread = threading.Thread(target=read)
    thread.start()
    with os.fdopen(write_end, "wb") as stream:
        StdoutTarget(stream).write_at(0, data)
    thread.join()
    os.close(read_end)

    assert received == data


@posix_only
def test_a_full_device_is_exit_74() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with full.open("wb", buffering=0) as stream, pytest.raises(ExportError) as caught:
        StdoutTarget(stream).finish(1)

    assert caught.value.exit_code == 74
    assert os.strerror(errno.ENOSPC) in str(caught.value)


def test_an_image_is_not_written_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    with pytest.raises(TargetError, match="terminal"):
        StdoutTarget(Terminal())


def test_standard_output_redirected_to_an_input_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "leaf.vhdx"
    source.write_bytes(b"evidence")

    with source.open("ab") as stream, pytest.raises(TargetError, match="it is the input"):
        StdoutTarget(stream, inputs=[source])

    assert source.read_bytes() == b"evidence"


def test_standard_output_is_the_default(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with StdoutTarget() as target:
        target.write_at(0, b"data")
        target.finish(6)

    sys.stdout.flush()
    assert capfdbinary.readouterr().out == b"data\0\0"


def test_writing_endless_zeros_to_a_stream_can_be_stopped() -> None:
    def check() -> None:
        if len(stream.getvalue()) > 3 << 20:
            raise KeyboardInterrupt

    stream = io.BytesIO()
    target = StdoutTarget(stream, check=check)

    with pytest.raises(KeyboardInterrupt):
        target.finish(1 << 50)


def test_what_is_replaced_can_be_removed_before(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw.manifest.json"
    path.write_bytes(b"old")
    with TargetFile(path, force=True) as target:
        target.remove_old()
        assert not path.exists()
    with TargetFile(path) as target, pytest.raises(ValueError, match="force"):
        target.remove_old()

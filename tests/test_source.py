"""Sources never answer short, never open what is no regular file, and lay patches right."""

from __future__ import annotations

import os
import pickle
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhdtool.errors import CorruptError, FileMissingError, ReadError
from vhdtool.source import FileSource, JoinedSource, MemorySource, Patch, PatchedSource, files_of


def a_file(folder: Path, data: bytes, name: str = "disk.bin") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_a_read_past_the_end_names_file_offset_and_field(tmp_path: Path) -> None:
    path = a_file(tmp_path, bytes(100))

    with FileSource(path) as source, pytest.raises(CorruptError) as caught:
        source.read_exact(90, 20, field="footer")

    finding = caught.value.finding
    assert finding is not None
    assert finding.code == "file.too_short"
    assert str(finding.location) == f"{path} at 0x5a (footer)"
    assert (finding.found, finding.expected) == ("10 bytes", "20 bytes")


def test_a_huge_length_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    with FileSource(a_file(tmp_path, b"x")) as source, pytest.raises(CorruptError):
        source.read_exact(0, 1 << 60, field="table")


def test_a_missing_file_is_missing_and_not_unreadable(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match="no such file"):
        FileSource(tmp_path / "nothing.vhd")
    with pytest.raises(FileMissingError):
        FileSource("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no FIFOs")
def test_what_is_no_regular_file_is_refused_without_being_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.vhd"
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.vhd"))
        for path, kind in [
            (fifo, "a FIFO"),
            (tmp_path, "a directory"),
            (tmp_path / "socket.vhd", "a socket"),
            (Path(os.devnull), "a character device"),
        ]:
            with pytest.raises(CorruptError, match=kind):
                FileSource(path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_a_read_error(tmp_path: Path) -> None:
    path = a_file(tmp_path, b"x")
    path.chmod(0)

    with pytest.raises(ReadError, match="cannot read"):
        FileSource(path)


def test_a_file_that_shrinks_while_open_is_an_error_and_not_a_short_answer(tmp_path: Path) -> None:
    path = a_file(tmp_path, bytes(1000))

    with FileSource(path) as source:
        os.truncate(path, 500)
        with pytest.raises(CorruptError):
            source.read_exact(400, 200, field="payload")
        assert "size went from 1000 to 500" in source.opened_as.difference(source.fingerprint())


def test_a_file_replaced_under_its_name_is_noticed(tmp_path: Path) -> None:
    path = a_file(tmp_path, b"old")

    with FileSource(path) as source:
        a_file(tmp_path, b"new", "other").replace(path)

        assert source.opened_as.difference(source.fingerprint()) == "another file stands under its name"
        assert source.read_exact(0, 3, field="x") == b"old"


def test_a_joined_source_reads_across_its_parts(tmp_path: Path) -> None:
    parts = [FileSource(a_file(tmp_path, data, f"p{i}")) for i, data in enumerate([b"abc", b"", b"defg"])]

    with JoinedSource(parts) as source:
        assert source.size == 7
        assert source.read_exact(1, 5, field="x") == b"bcdef"
        assert files_of(source) == parts


def test_holes_are_found_where_the_file_system_tells_them(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(8 << 20)
        file.seek(4 << 20)
        file.write(b"x" * 4096)

    with FileSource(path) as source:
        ranges = list(source.data_ranges(0, source.size))

    assert all(start < stop for start, stop in ranges)
    assert any(start <= 4 << 20 < stop for start, stop in ranges)


def test_many_threads_read_one_source_without_mixing(tmp_path: Path) -> None:
    data = os.urandom(1 << 16)
    wrong: list[int] = []
    with FileSource(a_file(tmp_path, data)) as source:

        def read(seed: int) -> None:
            for i in range(300):
                at = (seed * 7919 + i * 104729) % (len(data) - 64)
                if source.read_exact(at, 64, field="x") != data[at : at + 64]:
                    wrong.append(at)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert wrong == []


@given(
    below=st.binary(max_size=60),
    patches=st.lists(st.tuples(st.integers(0, 80), st.integers(1, 30), st.booleans()), max_size=8),
    size=st.integers(0, 100),
    data=st.data(),
)
def test_patches_hide_what_is_below_and_later_ones_hide_earlier_ones(
    below: bytes, patches: list[tuple[int, int, bool]], size: int, data: st.DataObject
) -> None:
    expected = bytearray(below[:size].ljust(size, b"\0"))
    given_patches = []
    for i, (offset, length, zeros) in enumerate(patches):
        content = bytes(length) if zeros else bytes((i * 31 + j) % 255 + 1 for j in range(length))
        for j in range(length):
            if offset + j < size:
                expected[offset + j] = content[j]

        def page(skip: int, count: int, content: bytes = content) -> bytes:
            return content[skip : skip + count]

        given_patches.append(Patch(offset, length, None if zeros else page))
    source = PatchedSource(MemorySource("x", below), given_patches, size)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))

    assert source.read_exact(start, stop - start, field="x") == expected[start:stop]
    covered = {i for first, last in source.patched for i in range(first, last)}
    assert covered == {i for o, n, _ in patches for i in range(o, o + n) if i < size}
    assert source.touches(start, stop) == bool(covered & set(range(start, stop)))
    position = start
    for first, last, in_file in source.stretches(start, stop):
        assert first == position < last
        assert {i in covered or i >= len(below) for i in range(first, last)} == {not in_file}
        position = last
    assert position == stop
    assert source.differs(start, stop) == any(not in_file for _, _, in_file in source.stretches(start, stop))
    told = {i for first, last in source.data_ranges(start, stop) for i in range(first, last)}
    assert all(expected[i] == 0 for i in set(range(start, stop)) - told)


def test_a_zero_patch_of_an_exabyte_costs_nothing() -> None:
    source = PatchedSource(MemorySource("x", b"abc"), [Patch(1, 1 << 60)], 1 << 61)

    assert source.read_exact(0, 5, field="x") == b"a\0\0\0\0"


def test_errors_travel_between_processes() -> None:
    with pytest.raises(CorruptError) as caught:
        MemorySource("x", b"").read_exact(0, 1, field="y")

    copy = pickle.loads(pickle.dumps(caught.value))

    assert type(copy) is CorruptError
    assert copy.finding == caught.value.finding
    assert str(copy) == str(caught.value)

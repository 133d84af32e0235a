"""Seekable zstd files: read by position, and refused where table or frames are not what they should be."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders.zst import (
    Packed,
    a_frame,
    a_table,
    content_of,
    packed,
    raw_frame,
    repeated_frame,
    seekable,
    skippable,
    zeros,
)
from tests.export.kit import some_data
from vhdtool.errors import CorruptError, MissingPackageError, UnsupportedError, VhdtoolError
from vhdtool.formats import zstd
from vhdtool.formats.raw import RawImage
from vhdtool.formats.registry import open_image
from vhdtool.formats.seekable import SeekableSource, open_seekable
from vhdtool.source import FileSource, MemorySource, files_of

pytest.importorskip("zstandard", reason="the package zstandard is not installed")

KIB = 1 << 10
MIB = 1 << 20
NAME = "disk.raw.zst"


def source_of(*frames: Packed, **table: int) -> SeekableSource:
    return open_seekable(MemorySource(NAME, seekable(*frames, **table)))


def read_all(data: bytes) -> bytes:
    source = open_seekable(MemorySource(NAME, data))
    return source.read_exact(0, source.size, field="payload")


def refusal(data: bytes) -> Any:
    with pytest.raises((CorruptError, UnsupportedError)) as caught:
        read_all(data)
    assert caught.value.finding is not None
    return caught.value.finding


# ------------------------------------------------------------------ reading


@st.composite
def frames_and_reads(draw: st.DrawFn) -> tuple[list[Packed], int, list[tuple[int, int]]]:
    """Frames of all kinds, empty and skippable ones among them, the table's descriptor, and some reads."""
    kinds = st.sampled_from(["data", "data", "unsized", "zeros", "ones", "empty", "skippable"])
    frames: list[Packed] = []
    for kind in draw(st.lists(kinds, min_size=1, max_size=12)):
        length = draw(st.integers(1, 3000))
        content = some_data(length, seed=length)
        frames.append(
            {
                "data": a_frame(content),
                "unsized": packed(raw_frame(content, has_size=False), content),
                "zeros": zeros(length * 64),
                "ones": packed(repeated_frame(b"\xff", length), b"\xff" * length),
                "empty": a_frame(b""),
                "skippable": packed(skippable(content), b""),
            }[kind]
        )
    size = len(content_of(*frames))
    places = st.integers(0, size)
    reads = [tuple(sorted((draw(places), draw(places)))) for _ in range(6)]
    return frames, draw(st.sampled_from([0, 0x80])), reads  # type: ignore[return-value]


@given(frames_and_reads())
def test_any_read_is_the_slice_of_the_whole(drawn: tuple[list[Packed], int, list[tuple[int, int]]]) -> None:
    frames, descriptor, reads = drawn
    disk = content_of(*frames)

    source = source_of(*frames, descriptor=descriptor)

    assert source.size == len(disk)
    for start, stop in reads:
        assert source.read_exact(start, stop - start, field="payload") == disk[start:stop]


@given(frames_and_reads())
def test_what_lies_between_ranges_of_data_is_zeros(
    drawn: tuple[list[Packed], int, list[tuple[int, int]]],
) -> None:
    frames, descriptor, reads = drawn
    disk = content_of(*frames)
    source = source_of(*frames, descriptor=descriptor)

    for start, stop in reads:
        position = start
        for first, last in source.data_ranges(start, stop):
            assert position <= first < last <= stop
            assert not any(disk[position:first])
            position = last
        assert not any(disk[position:stop])


def test_frames_of_zeros_are_holes_and_frames_of_another_byte_are_not() -> None:
    frames = [
        a_frame(b"x" * 512),
        zeros(4 * MIB),
        packed(repeated_frame(b"\x01", MIB), b"\x01" * MIB),
        zeros(MIB),
    ]

    source = source_of(*frames)

    assert list(source.data_ranges(0, source.size)) == [(0, 512), (4 * MIB + 512, 5 * MIB + 512)]
    assert list(source.data_ranges(MIB, 2 * MIB)) == []


def test_zeros_are_decompressed_once_however_many_frames_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(*[zeros(MIB)] * 50)
    sizes: list[int] = []
    decompress = source._decompressor()

    def counted(frame: bytes, size: int) -> bytes:
        sizes.append(size)
        return decompress(frame, size)

    monkeypatch.setattr(source, "_decompressor", lambda: counted)

    assert list(source.data_ranges(0, source.size)) == []
    assert source.read_exact(7 * MIB, 3 * MIB, field="payload") == bytes(3 * MIB)

    assert sizes == [MIB]


def test_many_threads_read_one_source() -> None:
    frames = [a_frame(some_data(9000 + i, i)) for i in range(60)]
    disk = content_of(*frames)
    source = source_of(*frames)
    chance = random.Random(5)
    places = [(chance.randrange(len(disk)), chance.randrange(40_000)) for _ in range(400)]

    def read(place: tuple[int, int]) -> bool:
        start, length = place[0], min(place[1], len(disk) - place[0])
        return source.read_exact(start, length, field="payload") == disk[start : start + length]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, places))


def test_frames_that_are_kept_have_a_bound() -> None:
    frames = [a_frame(bytes([i]) * (2 * MIB)) for i in range(1, 9)]
    source = source_of(*frames)
    tracemalloc.start()
    try:
        for at in range(0, source.size, 512 * KIB):
            source.read_exact(at, 512 * KIB, field="payload")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    # Eight MiB that are kept, one frame on its way, and what is given out.
    assert peak < 16 * MIB


def test_a_table_of_many_rows_is_not_held_in_memory() -> None:
    one = zeros(512)
    count = 300_000
    data = one.frame * count + a_table([one] * count)
    source = MemorySource(NAME, data)
    tracemalloc.start()
    try:
        disk = open_seekable(source)
        assert disk.read_exact(disk.size - 512, 512, field="payload") == bytes(512)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert disk.size == count * 512
    assert peak < 5 * MIB


def test_a_read_past_the_end_is_too_short() -> None:
    source = source_of(a_frame(b"x" * 1024))

    with pytest.raises(CorruptError) as caught:
        source.read_exact(1000, 25, field="payload")

    assert caught.value.finding is not None
    assert caught.value.finding.code == "file.too_short"


def test_the_file_below_is_found_and_closed(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(seekable(a_frame(b"x" * 1024)))

    file = FileSource(path)
    with open_seekable(file) as source:
        assert files_of(source) == [file]
        assert source.descriptor is None

    assert file._descriptor == -1


# ------------------------------------------------------------------ what is refused

X = a_frame(b"x" * 1000)


@pytest.mark.parametrize(
    ("data", "code", "offset"),
    [
        (X.frame, "zstd.table.missing", len(X.frame) - 9),
        (X.frame[:5], "zstd.table.missing", 0),
        (seekable(X, footer_magic=0x8F92EAB0), "zstd.table.missing", len(X.frame) + 16),
        (seekable(X)[:-1], "zstd.table.missing", len(X.frame) + 15),
        (seekable(X, descriptor=0x04), "zstd.table.descriptor", len(X.frame) + 20),
        (seekable(X, descriptor=0x01), "zstd.table.descriptor", len(X.frame) + 20),
        (seekable(X, count=2**32 - 1), "zstd.table.count", len(X.frame) + 16),
        (seekable(X, count=500), "zstd.table.count", len(X.frame) + 16),
        (seekable(X, magic=0x184D2A5D), "zstd.table.header", len(X.frame)),
        (seekable(X, length=18), "zstd.table.header", len(X.frame)),
        (seekable(X, count=0), "zstd.table.header", len(X.frame) + 8),
        (seekable(X, a_frame(b"y", stored=7)), "zstd.table.row", 1016 + 17 + 8 + 8),
        (seekable(a_frame(b"", size=(64 << 20) + 1)), "zstd.table.row", 16 + 8),
        (seekable(a_frame(b"x" * 1000, stored=1015)), "zstd.table.size", 1016 + 8),
        (b"\x28\xb5\x2f\xfd" + seekable(X), "zstd.table.size", 4 + 1016 + 8),
    ],
)
def test_a_table_that_is_not_this_files_is_refused_with_its_place(
    data: bytes, code: str, offset: int
) -> None:
    finding = refusal(data)

    assert finding.code == code
    assert finding.location.file == NAME
    assert finding.location.offset == offset


@pytest.mark.parametrize(
    "frame",
    [
        a_frame(b"x" * 1000, size=999),
        a_frame(b"x" * 1000, size=1001),
        packed(raw_frame(b"x" * 1000, stated=1 << 50), b"x" * 1000),
        packed(raw_frame(b"x" * 1000, has_size=False), b"x" * 1000, size=999),
        packed(raw_frame(b"x" * 1000, has_size=False), b"x" * 1000, size=1001),
        packed(raw_frame(b"x" * 1000) + b"rest", b"x" * 1000),
        packed(raw_frame(b"x" * 500) + raw_frame(b"x" * 500), b"x" * 1000),
        packed(raw_frame(b"x" * 1000)[:-1], b"x" * 1000),
        packed(skippable(b"x" * 1000), b"x" * 1000),
        packed(b"no frame at all", b"x" * 15),
        packed(raw_frame(b"x" * 100) + bytes(200_000), b"x" * 100),
    ],
    ids=[
        "the row says less",
        "the row says more",
        "its header promises a pebibyte",
        "it holds more than the row says, and does not say so",
        "it holds less",
        "something follows in its place",
        "two frames in the place of one",
        "it is cut off",
        "it is a skippable one",
        "it is none",
        "it is far larger than what it holds",
    ],
)
def test_a_frame_that_is_not_what_its_row_says_is_refused_with_its_place(frame: Packed) -> None:
    before = a_frame(b"b" * 512)

    tracemalloc.start()
    try:
        finding = refusal(seekable(before, frame))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert finding.code == "zstd.frame"
    assert finding.location.offset == len(before.frame)
    assert finding.location.field == "frame 1"
    assert peak < 4 * MIB


def test_a_checksum_in_the_table_is_compared_with_the_frames_own() -> None:
    compress = zstd.codec().compressor(3)
    content = b"some text " * 100
    frame = compress(content)
    own = int.from_bytes(frame[-4:], "little")

    right = source_of(packed(frame, content, checksum=own), descriptor=0x80)
    finding = refusal(seekable(packed(frame, content, checksum=own ^ 1), descriptor=0x80))

    assert right.read_exact(0, right.size, field="payload") == content
    assert finding.code == "zstd.frame"
    assert finding.found == f"{own:#x}"


def test_nothing_of_a_frame_of_zeros_is_believed_for_another_size() -> None:
    """The same bytes of a file, and a row that says something else of them."""
    forged = packed(zeros(MIB).frame, bytes(2 * MIB))
    source = source_of(zeros(MIB), forged)

    with pytest.raises(CorruptError):
        list(source.data_ranges(0, source.size))


GOOD = seekable(a_frame(some_data(700)), zeros(MIB), a_frame(b"text" * 100), descriptor=0x80)
DISK = some_data(700) + bytes(MIB) + b"text" * 100


@given(st.integers(0, len(GOOD) - 1))
def test_a_file_that_is_cut_anywhere_is_refused(length: int) -> None:
    with pytest.raises(VhdtoolError):
        open_seekable(MemorySource(NAME, GOOD[:length]))


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_file_with_any_bytes_changed_reads_or_is_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for at, value in changes:
        data[at] = value

    try:
        source = open_seekable(MemorySource(NAME, bytes(data)))
        read = source.read_exact(0, min(source.size, 4 * MIB), field="payload")
    except VhdtoolError:
        return
    assert len(read) == min(source.size, 4 * MIB)


@given(st.binary(max_size=200), st.integers(0, 2**32 - 1), st.integers(0, 255))
def test_any_rows_are_refused_or_read(rows: bytes, count: int, descriptor: int) -> None:
    body = rows + struct.pack("<IBI", count, descriptor, 0x8F92EAB1)
    data = X.frame + struct.pack("<II", 0x184D2A5E, len(body)) + body

    try:
        source = open_seekable(MemorySource(NAME, data))
        source.read_exact(0, min(source.size, MIB), field="payload")
    except VhdtoolError:
        return


# ------------------------------------------------------------------ as a raw disk


def test_a_seekable_file_is_a_raw_disk(tmp_path: Path) -> None:
    path = tmp_path / NAME
    frames = [a_frame(b"x" * 1024), zeros(MIB)]
    path.write_bytes(seekable(*frames))

    image = open_image(path)

    assert isinstance(image, RawImage)
    assert image.geometry.virtual_size == MIB + 1024
    assert image.findings == ()
    assert dict(image.sections[0].fields)["number_of_frames"] == "2"
    image.close()


def test_a_disk_that_is_no_whole_number_of_sectors_is_one_compressed_too(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(seekable(a_frame(b"x" * 1000)))

    with pytest.raises(CorruptError, match=r"raw\.size"):
        open_image(path)


def test_an_image_in_another_format_inside_is_not_taken_for_a_raw_disk(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(seekable(a_frame(b"vhdxfile".ljust(4096, b"\0"))))

    with pytest.raises(UnsupportedError) as caught:
        open_image(path)

    assert caught.value.finding is not None
    assert caught.value.finding.code == "zstd.content"


def test_a_name_that_claims_a_format_is_believed_first(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    path.write_bytes(seekable(a_frame(b"x" * 1024)))

    with pytest.raises(CorruptError, match=r"image\.unknown"):
        open_image(path)


def test_a_deep_check_decompresses_every_frame(tmp_path: Path) -> None:
    path = tmp_path / NAME
    bad = packed(raw_frame(b"x" * 512)[:-1], b"x" * 512)
    path.write_bytes(seekable(a_frame(b"x" * 512), bad, a_frame(b"y" * 512), bad, a_frame(b"z" * 512)))

    image = open_image(path)
    image.inspect(deep=False)
    before = image.findings
    image.inspect(deep=True)

    assert not before
    assert [finding.code for finding in image.findings] == ["zstd.frame"] * 2
    image.close()


# ------------------------------------------------------------------ the packages


@pytest.fixture
def fresh_codec() -> Any:
    zstd.codec.cache_clear()
    yield
    zstd.codec.cache_clear()


@pytest.mark.usefixtures("fresh_codec")
def test_without_a_package_the_refusal_names_it_and_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("zstandard", "compression", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(MissingPackageError, match=r"zstandard.*vhdtool\[compress\]"):
        source_of(X)


@pytest.fixture(params=["zstandard", "compression.zstd", "backports.zstd"])
def any_codec(request: pytest.FixtureRequest) -> zstd.Codec:
    try:
        module = import_module(request.param)
    except ImportError:
        pytest.skip(f"{request.param} is not here")
    return zstd._Package(module) if request.param == "zstandard" else zstd._Builtin(module)


@pytest.mark.parametrize("content", [b"", b"x", b"text" * 1000, bytes(MIB), some_data(300_000)])
def test_what_is_compressed_is_decompressed(any_codec: zstd.Codec, content: bytes) -> None:
    frame = any_codec.compressor(3)(memoryview(content))

    assert zstd.content_size(frame) == len(content)
    assert zstd.has_checksum(frame)
    assert any_codec.decompressor()(frame, len(content)) == content


@pytest.mark.parametrize(
    ("frame", "size"),
    [
        (raw_frame(b"x" * 100), 99),
        (raw_frame(b"x" * 100), 101),
        (raw_frame(b"x" * 100, has_size=False), 99),
        (raw_frame(b"x" * 100, has_size=False), 101),
        (raw_frame(b"x" * 100)[:-1], 100),
        (raw_frame(b"x" * 100) + b"y", 100),
        (raw_frame(b"x" * 100) + raw_frame(b""), 100),
        (raw_frame(b"x" * 100)[:7], 100),
        (b"\x28\xb5\x2f\xfd\xff" + bytes(20), 100),
        (b"\x28\xb5\x2f\xfd\x10" + raw_frame(b"x" * 100)[5:], 100),
        (b"", 0),
    ],
)
def test_a_wrong_frame_is_an_error_of_one_kind(any_codec: zstd.Codec, frame: bytes, size: int) -> None:
    with pytest.raises(zstd.FrameError):
        any_codec.decompressor()(frame, size)


def test_a_glance_at_another_image_imports_no_package_for_zstd(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    code = (
        f"import sys, vhdtool; vhdtool.open_image({str(path)!r}).close(); print('zstandard' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"

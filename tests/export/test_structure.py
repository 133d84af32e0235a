"""The digest of all that is not guest data: what it covers, by a reference that goes byte by byte."""

from __future__ import annotations

import hashlib
import struct
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders.vhdx import MIB
from tests.chain.fake import FakeImage, fake_images
from tests.generated import FileSink, Style, a_chain
from vhdtool.export.proof import structure
from vhdtool.export.proof.structure import PIECE, _edges, damaged_piece, structure_digest
from vhdtool.formats.image import DiskImage
from vhdtool.formats.registry import open_image
from vhdtool.formats.vhdx.write import VhdxWriter
from vhdtool.model.identity import DiskType, Identity
from vhdtool.model.state import BlockState
from vhdtool.source import FileSource, MemorySource


def guest_bytes(image: DiskImage, size: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which bytes of the file are guest data: one sector after the other, by entry and bitmap."""
    is_guest = np.zeros(size, np.bool_)
    geometry = image.geometry
    for sector in range(geometry.sector_count):
        block, within = divmod(sector, geometry.sectors_per_block)
        state, place = image.entry(block)
        held = state is BlockState.DATA
        if state is BlockState.PARTIAL:
            held = bool(image.bitmap(block)[within // 8] >> within % 8 & 1)
        if held:
            start = place + within * geometry.sector_size
            is_guest[start : start + geometry.sector_size] = True
    return is_guest


def naive_digest(image: DiskImage, data: bytes) -> str:
    """As structure.py defines it, word for word."""
    kept = np.frombuffer(data, np.uint8).copy()
    kept[guest_bytes(image, len(data))] = 0
    digest = hashlib.sha256()
    for at in range(0, len(data), PIECE):
        piece = kept[at : at + PIECE].tobytes().ljust(PIECE, b"\0")
        if any(piece):
            digest.update(struct.pack("<Q", at) + piece)
    return digest.hexdigest()


def digest_of(path: Path) -> str:
    with FileSource(path) as file, closing(open_image(path, strict=False)) as image:
        return structure_digest(image, file)


@settings(max_examples=60)
@given(fake_images(), st.sampled_from([1, 3, 1 << 14]))
def test_any_image_has_the_digest_that_is_defined(image: FakeImage, batch: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structure, "_BLOCKS_PER_BATCH", batch)
        patch.setattr(structure, "_BLOCKS_PER_REGION", batch)
        patch.setattr(structure, "_BLOCKS_PER_WINDOW", 5)
        patch.setattr(structure, "_PIECES_AT_ONCE", 1 + batch % 7)
        found = structure_digest(image, image.source)

    assert found.partition(".")[0] == naive_digest(image, image.data)


@pytest.mark.parametrize("image_format", ["vhd", "vhdx"])
@pytest.mark.parametrize("depth", [1, 2])
def test_images_on_disk_have_the_digest_that_is_defined(
    tmp_path: Path, image_format: str, depth: int
) -> None:
    leaf = a_chain(tmp_path, depth, Style(image_format, size=5 * MIB), seed=depth).path

    with closing(open_image(leaf)) as image:
        assert digest_of(leaf).partition(".")[0] == naive_digest(image, leaf.read_bytes())


@settings(max_examples=60)
@given(st.data())
def test_a_changed_byte_changes_the_digest_unless_it_is_guest_data_and_is_told_with_its_piece(
    data: st.DataObject,
) -> None:
    image = data.draw(fake_images())
    at = data.draw(st.integers(0, len(image.data) - 1))
    value = data.draw(st.integers(1, 255))
    changed = bytearray(image.data)
    changed[at] ^= value
    before = structure_digest(image, image.source)
    after = structure_digest(image, MemorySource("changed", bytes(changed)))

    if guest_bytes(image, len(changed))[at]:
        assert after == before
    else:
        assert after.partition(".")[0] != before.partition(".")[0]
        if value & (value - 1) == 0:
            assert damaged_piece(before, after) == at // PIECE * PIECE


def test_damage_far_out_is_told_with_its_place_and_damage_in_two_places_as_that() -> None:
    class Sparse(MemorySource):
        """A huge file of zeros but for a few bytes."""

        def __init__(self, bytes_at: dict[int, int]) -> None:
            super().__init__("sparse", b"")
            self.size = 1 << 42
            self.bytes_at = bytes_at

        def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
            buffer[:] = bytes(len(buffer))
            for at, value in self.bytes_at.items():
                if offset <= at < offset + len(buffer):
                    buffer[at - offset] = value

        def data_ranges(self, start: int, stop: int):  # type: ignore[no-untyped-def]
            for at in sorted(self.bytes_at):
                if start <= at < stop:
                    yield at, at + 1

    far = (1 << 41) + 12345
    before = structure_digest(None, Sparse({0: 1, 70_000: 2}))

    for damage, place in (
        ({0: 1, 70_000: 2, far: 4}, far),
        ({0: 1, 70_000: 2 ^ 64}, 70_000),
        ({0: 0, 70_000: 2}, 0),
    ):
        after = structure_digest(None, Sparse(damage))
        assert damaged_piece(before, after) == place // PIECE * PIECE
        assert damaged_piece(after, before) == place // PIECE * PIECE
    assert damaged_piece(before, structure_digest(None, Sparse({0: 2, 70_000: 3}))) is None
    assert damaged_piece(before, before) is None


def test_a_hole_and_zeros_are_the_same(tmp_path: Path) -> None:
    sparse, dense = tmp_path / "a", tmp_path / "b"
    with sparse.open("wb") as file:
        file.write(b"x" * 5000)
        file.truncate(MIB)
    dense.write_bytes(sparse.read_bytes())

    with FileSource(sparse) as a, FileSource(dense) as b:
        assert structure_digest(None, a) == structure_digest(None, b)


def test_a_disk_of_64_tib_costs_what_stands_in_it(tmp_path: Path) -> None:
    path = tmp_path / "huge.vhdx"
    with path.open("wb") as file:
        writer = VhdxWriter(
            FileSink(file),
            virtual_size=64 << 40,
            block_size=32 * MIB,
            logical_sector_size=512,
            physical_sector_size=4096,
            disk_type=DiskType.DYNAMIC,
            disk_id=Identity(b"d" * 16),
            write_id=Identity(b"w" * 16),
        )
        for block in (0, 1_000_000, 2_097_151):
            writer.write_block(block, b"data")
        file.truncate(writer.finish())
    before = digest_of(path)
    with closing(open_image(path)) as image:
        state, place = image.entry(1_000_000)
    assert state is BlockState.DATA

    for at, is_structure in ((place, False), (0x30000, True), (MIB - 1, True)):
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))
            file.flush()
            with FileSource(path) as source, closing(open_image(path, strict=False)) as image:
                after = structure_digest(image, source)
            file.seek(at)
            file.write(bytes([byte]))
        assert (after != before) == is_structure, hex(at)
        if is_structure:
            assert damaged_piece(before, after) == at // PIECE * PIECE


@given(
    width=st.sampled_from([1, 2, 4, 8, 16, 24, 256]),
    rows=st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=4),
    is_coarse=st.booleans(),
)
def test_edges_of_bitmaps_are_where_bits_change(width: int, rows: list[bytes], is_coarse: bool) -> None:
    bitmaps = np.array([list(row) for row in rows], np.uint8)[:, : -(-width // 8)]
    if is_coarse:
        bitmaps = np.where(bitmaps < 128, 0, 255).astype(np.uint8)

    row, bit = _edges(bitmaps, width)

    found = list(zip(row.tolist(), bit.tolist()))
    expected = []
    for number, bits in enumerate(np.unpackbits(bitmaps, axis=1, bitorder="little")[:, :width].tolist()):
        padded = [0, *bits, 0]
        expected += [(number, at) for at in range(width + 1) if padded[at] != padded[at + 1]]
    assert found == expected

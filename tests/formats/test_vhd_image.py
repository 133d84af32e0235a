"""A VHD as a layer: bitmaps, counts, inspection, and what opening does not cost."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders.vhd import (
    A_PARENT_ID,
    BLOCK_SIZE,
    DIFFERENCING,
    SIZE,
    a_child_of_bitmap_semantics,
    a_fixed_vhd,
    a_parent_of_bitmap_semantics,
    a_vhd,
    a_windows_differencing_vhd,
    codes,
    content,
    opened,
    patched,
)
from vhdtool.formats import pieces as pieces_module
from vhdtool.formats.image import BLOCK_SIZE_WITHOUT_TABLE, DiskImage, OpenOptions, require_sound
from vhdtool.formats.vhd import inspect as inspect_module
from vhdtool.formats.vhd import layout
from vhdtool.formats.vhd.image import VhdImage, open_vhd
from vhdtool.model.identity import DiskType, ImageFormat
from vhdtool.model.state import BlockCounts, BlockState
from vhdtool.source import FileSource

SECTORS = BLOCK_SIZE // 512


def test_a_vhd_keeps_the_promise_of_every_format() -> None:
    image: DiskImage = opened(a_vhd())

    assert image.format is ImageFormat.VHD
    assert image.log.state == "none"
    assert image.creator == "win 10.0"
    assert image.created is not None
    assert image.created.isoformat() == "2020-10-14T10:23:23+00:00"


def test_a_fixed_disk_is_one_run_of_data() -> None:
    data = bytes(range(256)) * (SIZE // 256)
    image = opened(a_fixed_vhd(data))

    assert image.type is DiskType.FIXED
    assert not image.geometry.has_table
    assert image.geometry.block_size == BLOCK_SIZE_WITHOUT_TABLE
    assert image.counts() == BlockCounts()
    assert image.entry(0) == (BlockState.DATA, 0)
    assert image.block_map(0, 1).state.tolist() == [BlockState.DATA]
    assert content(image) == data
    with pytest.raises(ValueError, match="not partial"):
        image.bitmap(0)
    with pytest.raises(ValueError, match="partial"):
        image.bitmaps(np.array([0]), 8)
    require_sound(image)


def test_blocks_outside_of_the_disk_are_the_callers_mistake() -> None:
    image = opened(a_vhd())

    for block in (-1, 4):
        with pytest.raises(ValueError, match="of 4"):
            image.entry(block)
    with pytest.raises(ValueError, match="not partial"):
        image.bitmap(0)


@pytest.mark.parametrize("disk_type", [3, 4])
def test_bits_come_least_significant_first_one_a_sector(disk_type: int) -> None:
    image = opened(a_vhd(disk_type=disk_type, name="p", blocks={1: (b"", (0, 9, 63))}))

    assert image.bitmap(1) == bytes([1, 2, 0, 0, 0, 0, 0, 0x80])


def test_a_clear_bit_reads_as_zeros_in_a_dynamic_disk_whatever_stands_there() -> None:
    image = opened(a_vhd(blocks={0: (b"\xee" * BLOCK_SIZE, (1,))}))

    assert content(image)[:BLOCK_SIZE] == bytes(512) + b"\xee" * 512 + bytes(BLOCK_SIZE - 1024)


def test_the_synthetic_chain_holds_what_its_bitmaps_say() -> None:
    parent, child = opened(a_parent_of_bitmap_semantics()), opened(a_child_of_bitmap_semantics())

    assert parent.bitmap(0)[:2] == b"\xff\0"
    assert child.bitmap(0)[:2] == b"\x02\x02"
    assert [content(child)[n * 512] for n in range(12)] == [0, 0xC0, 0, 0, 0, 0, 0, 0, 0, 0xC0, 0, 0]
    assert [content(parent)[n * 512] for n in (0, 7, 8, 4096)] == [0x50, 0x50, 0, 0x51]
    assert child.parent is not None
    assert child.parent.identities == (parent.write_id,)


def test_the_bits_of_the_file_that_windows_made() -> None:
    image = opened(a_windows_differencing_vhd())

    bits = np.unpackbits(np.frombuffer(image.bitmap(0), np.uint8), bitorder="little")

    expected = [134, 143, *range(152, 160), 184, 185, 188, 190, 191, 192, 194, 196]
    assert np.flatnonzero(bits).tolist() == expected
    assert image.entry(0) == (BlockState.PARTIAL, 0x14000)
    assert str(image.disk_id) == "36164ff8-9ecd-4190-a69e-dcc2380e416a"
    seen = content(image)
    assert [seen[sector * 512] for sector in (134, 143, 152, 184, 188, 190, 192, 194, 196)] == [
        134, 143, 152, 184, 188, 190, 192, 194, 196,
    ]  # fmt: skip


def test_bits_behind_the_disks_end_are_cleared_and_told_by_check() -> None:
    whole = tuple(range(SECTORS))
    image = opened(a_vhd(blocks={3: (b"", whole)}))

    assert image.bitmap(3) == b"\xff\x0f".ljust(8, b"\0")  # 12 sectors
    assert image.bitmaps(np.array([3 * SECTORS, 3 * SECTORS + 8, 3 * SECTORS + 16]), 8).tolist() == [
        [0xFF], [0x0F], [0],
    ]  # fmt: skip
    image.survey()
    assert "vhd.bitmap.tail" not in codes(image)
    image.inspect()
    assert codes(image)["vhd.bitmap.tail"] == "warning"


def test_blocks_smaller_than_a_byte_of_bits_have_only_their_own() -> None:
    raw = a_vhd(size=512 * 5, block_size=512, blocks={n: (bytes([n]) * 512, range(8)) for n in (4, 1)})
    image = opened(raw)

    assert [image.bitmap(n) for n in (1, 4)] == [b"\x01", b"\x01"]
    assert image.bitmaps(np.array([1, 4]), 1).tolist() == [[1], [1]]
    image.inspect()
    assert "vhd.bitmap.tail" not in codes(image)


partial_blocks = st.dictionaries(
    st.integers(0, 6), st.lists(st.integers(0, 63), max_size=40), min_size=1, max_size=7
)


@given(
    bits=partial_blocks,
    exponent=st.integers(0, 6),
    gap=st.sampled_from([0, 512, 70000]),
    reverse=st.booleans(),
)
def test_pieces_of_many_bitmaps_are_slices_of_the_single_ones(
    bits: dict[int, list[int]], exponent: int, gap: int, reverse: bool
) -> None:
    numbers = sorted(bits, reverse=reverse)
    size = 6 * BLOCK_SIZE + 20 * 512
    image = opened(a_vhd(size=size, blocks={n: (b"", bits[n]) for n in numbers}, block_gap=gap // 512 * 512))
    count = 1 << exponent
    firsts = np.array([b * SECTORS + s for b in sorted(bits) for s in range(0, SECTORS, count)], np.int64)

    pieces = image.bitmaps(firsts, count)

    assert pieces.shape == (len(firsts), -(-count // 8))
    assert pieces.dtype == np.uint8
    singles = {b: np.unpackbits(np.frombuffer(image.bitmap(b), np.uint8), bitorder="little") for b in bits}
    expected = np.concatenate([singles[b].reshape(-1, count) for b in sorted(bits)])
    assert np.array_equal(np.unpackbits(pieces, axis=1, bitorder="little")[:, :count], expected)
    assert not np.unpackbits(pieces, axis=1, bitorder="little")[:, count:].any()


def test_pieces_are_read_in_bounded_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_module, "_BUFFER_MAX", 600)
    image = opened(a_vhd(size=512 * 40, block_size=512, blocks=dict.fromkeys(range(0, 40, 2), (b"", (0,)))))

    pieces = image.bitmaps(np.arange(0, 40, 2), 1)

    assert pieces.tolist() == [[1]] * 20


def test_no_pieces_are_no_pieces() -> None:
    assert opened(a_vhd()).bitmaps(np.empty(0, np.int64), 8).shape == (0, 1)


def test_data_under_clear_bits_are_found_by_a_deep_look_only() -> None:
    data = bytes(512) + b"x" * 1024 + bytes(512) + b"y" + bytes(511)
    image = opened(a_vhd(blocks={1: (data, (0, 2))}))

    image.inspect()
    assert "vhd.bitmap.data" not in codes(image)
    image.inspect(deep=True)

    (finding,) = (f for f in image.findings if f.code == "vhd.bitmap.data")
    assert str(finding.severity) == "error"
    assert finding.found == "sectors 1, 4 of the block"
    assert finding.location.offset == image.entry(1)[1] + 512


def test_what_a_differencing_disk_keeps_under_clear_bits_is_nobodys_business() -> None:
    image = opened(a_vhd(disk_type=DIFFERENCING, name="p", blocks={1: (b"x" * 512, ())}))

    image.inspect(deep=True)

    assert "vhd.bitmap.data" not in codes(image)


def test_space_that_nothing_refers_to_is_named() -> None:
    image = opened(a_vhd(blocks={0: (b"", ()), 1: (b"", ())}, block_gap=8192))
    image.inspect()

    lost = [finding.found for finding in image.findings if finding.code == "vhd.orphan.space"]

    first = 2048 + BLOCK_SIZE + 512
    second = first + 8192 + BLOCK_SIZE + 512
    assert lost == [
        f"{first:#x}-{first + 8192:#x}, 0x2000 bytes",
        f"{second:#x}-{second + 8192:#x}, 0x2000 bytes",
    ]


def test_lost_space_between_very_many_blocks_is_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_module, "_SORTED_MAX", 2)
    blocks: dict[int, tuple[bytes, tuple[int, ...]]] = dict.fromkeys(range(3), (b"", ()))
    lossy, tight = opened(a_vhd(blocks=blocks, block_gap=8192)), opened(a_vhd(blocks=blocks))
    lossy.inspect()
    tight.inspect()

    (finding,) = (f for f in lossy.findings if f.code == "vhd.orphan.space")

    assert finding.found.endswith("between 3 blocks")
    assert "vhd.orphan.space" not in codes(tight)


def test_a_deep_look_finds_what_stands_between_the_holes(tmp_path: Path) -> None:
    path = tmp_path / "sparse.vhd"
    block_size = 64 << 20
    whole = a_vhd(size=block_size, block_size=block_size, bat={0: 8})
    data_at = 8 * 512 + layout.bitmap_size(block_size)
    with path.open("wb") as file:
        file.write(whole[:-512])
        for sector in (3, 81920, 131071):
            file.seek(data_at + sector * 512 + 7)
            file.write(b"lost")
        file.seek(data_at + block_size)
        file.write(whole[-512:])

    with FileSource(path) as source:
        image = open_vhd(source, OpenOptions())
        image.inspect(deep=True)

    (finding,) = (f for f in image.findings if f.code == "vhd.bitmap.data")
    assert finding.found == "sectors 3, 81920, 131071 of the block"


def test_a_lost_block_is_space_that_nothing_refers_to() -> None:
    image = opened(a_vhd(blocks={0: (b"", ()), 1: (b"", ())}, bat={0: 0xFFFF_FFFF}))
    image.inspect()

    assert [f.location.offset for f in image.findings if f.code == "vhd.orphan.space"] == [4096]


def test_inspecting_twice_says_everything_once() -> None:
    image = opened(a_vhd(blocks={0: (b"x" * 512, ()), 1: (b"", ())}, bat={2: 0, 3: 4}, block_gap=8192))

    image.inspect(deep=True)
    first = image.findings
    image.inspect(deep=True)

    assert image.findings == first


def test_many_threads_see_one_image() -> None:
    blocks = {n: (bytes([n]), (n,)) for n in range(60)}
    image = opened(a_vhd(size=60 * BLOCK_SIZE, blocks=blocks, bat={59: 0}))

    def look(number: int) -> tuple[object, bytes]:
        block = number % 59
        return image.entry(block), image.bitmap(block)

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(look, range(600)))

    assert seen == [look(number) for number in range(600)]
    assert [f.code for f in image.findings].count("vhd.block.meta") == 1


def test_headers_and_counts_cost_no_numpy() -> None:
    script = (
        "import sys\n"
        "from vhdtool.formats.image import OpenOptions\n"
        "from vhdtool.formats.vhd.image import open_vhd\n"
        "from vhdtool.source import MemorySource\n"
        "image = open_vhd(MemorySource('x', sys.stdin.buffer.read()), OpenOptions())\n"
        "image.counts(), image.sections, image.findings, image.parent, image.disk_id, image.created\n"
        "assert 'numpy' not in sys.modules and 'numba' not in sys.modules\n"
        "print(image.counts().partial)\n"
    )
    image = a_vhd(disk_type=DIFFERENCING, name="p.vhd", blocks={0: (b"", ())})

    done = subprocess.run([sys.executable, "-c", script], input=image, capture_output=True, check=False)

    assert done.stderr.decode() == ""
    assert done.stdout.split() == [b"1"]


def test_the_identity_of_a_child_is_its_own() -> None:
    image: VhdImage = opened(a_vhd(disk_type=DIFFERENCING, name="p.vhd"))

    assert image.disk_id.raw != A_PARENT_ID


def test_a_footer_that_is_poisoned_reads_on() -> None:
    raw = a_vhd(blocks={0: (b"guest", None)}, footer={"cookie": b"v_poison"})

    assert content(opened(raw)).startswith(b"guest")


def test_damage_under_a_block_map_is_not_followed_by_bitmaps_of_others() -> None:
    raw = a_vhd(blocks={0: (b"", (3,)), 1: (b"", (4,))}, bat={1: 0xFFFF_FFF0})
    image = opened(patched(raw, 0, raw[:1]))

    assert image.entry(1) == (BlockState.DAMAGED, 0)
    assert image.bitmap(0)[0] == 8
    with pytest.raises(ValueError, match="not partial"):
        image.bitmap(1)

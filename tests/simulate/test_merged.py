"""Layers merged in thought: the same disk, the same tables as layers merged for real."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chain.fake import FakeImage, chain_of, fake_chains
from tests.generated import MIB, Style, a_chain
from tests.simulate.merging import contents, merge_for_real
from vhdtool.chain.chain import Chain
from vhdtool.chain.discover import open_chain
from vhdtool.chain.reference import sector_origins
from vhdtool.errors import CorruptError, Finding, Location, Severity
from vhdtool.export.create import create_image, snapshot_image
from vhdtool.formats.probe import Outcome
from vhdtool.model.geometry import Geometry
from vhdtool.model.identity import DiskType, ImageFormat
from vhdtool.model.state import ZEROS, BlockCounts, BlockState
from vhdtool.simulate.merged import MergedImage, merged_chain
from vhdtool.source import MemorySource

RANGES_OF_FIVE = [(first, last) for first in range(5) for last in range(first + 1, 5)]
ABSENT, ZERO, DATA, PARTIAL, DAMAGED = BlockState


def an_image(
    *states: BlockState,
    here: dict[int, list[bool]] | None = None,
    block: int = 2048,
    size: int | None = None,
    **more: object,
) -> FakeImage:
    """Blocks of four sectors unless said otherwise; ``here`` says which sectors partial ones have."""
    return FakeImage(Geometry(size or len(states) * block, block), list(states), here or {}, **more)  # type: ignore[arg-type]


def merged_image(chain: Chain, first: int, last: int) -> MergedImage:
    image = merged_chain(chain, first, last).images[first]
    assert isinstance(image, MergedImage)
    return image


def states_of(image: MergedImage) -> list[BlockState]:
    return [BlockState(int(state)) for state in image.block_map(0, image.geometry.block_count).state]


def a_range_of(draw: st.DrawFn, count: int) -> tuple[int, int]:
    first = draw(st.integers(0, count - 2))
    return first, draw(st.integers(first + 1, count - 1))


@st.composite
def chains_and_ranges(draw: st.DrawFn, damaged: bool = False) -> tuple[list[FakeImage], int, int]:
    images = draw(fake_chains(damaged).filter(lambda images: len(images) > 1))
    if images[0].geometry.sector_size == 512 and draw(st.booleans()):
        for image in images:
            image.format = ImageFormat.VHD
    return images, *a_range_of(draw, len(images))


@given(chains_and_ranges())
def test_a_merged_chain_reads_as_the_chain(case: tuple[list[FakeImage], int, int]) -> None:
    images, first, last = case
    chain = chain_of(*images)

    merged = merged_chain(chain, first, last)

    assert merged.virtual_size == chain.virtual_size
    assert merged.read(0, chain.virtual_size) == chain.read(0, chain.virtual_size)


@given(chains_and_ranges())
def test_every_sector_of_a_merged_chain_has_its_origin(case: tuple[list[FakeImage], int, int]) -> None:
    images, first, last = case
    chain = chain_of(*images)
    count, size = chain.leaf.geometry.sector_count, chain.sector_size

    merged = merged_chain(chain, first, last)

    layers, places = sector_origins(chain.images, 0, count)
    now_layers, now_places = sector_origins(merged.images, 0, count)
    image = merged.images[first]
    assert isinstance(image, MergedImage)
    for sector in range(count):
        layer, now = int(layers[sector]), int(now_layers[sector])
        if now == first:
            place = image.guest_offset(int(now_places[sector]))
            assert place is not None
            assert place[0] == sector * size
            assert first <= layer <= last or layer == ZEROS
        elif now == ZEROS:
            assert layer == ZEROS
        else:
            assert layer == (now if now < first else now + last - first)
            assert places[sector] == now_places[sector]


@given(chains_and_ranges())
def test_a_merged_image_says_of_each_block_what_its_layers_say(
    case: tuple[list[FakeImage], int, int],
) -> None:
    images, first, last = case
    image = merged_image(chain_of(*images), first, last)
    said, _ = contents(tuple(images[first : last + 1]))

    per_block = image.geometry.sectors_per_block
    counted = dict.fromkeys(BlockState, 0)
    for block in range(image.geometry.block_count):
        here = said[block * per_block : (block + 1) * per_block]
        state, place = image.entry(block)
        counted[state] += 1
        assert (place > 0) == (state in (DATA, PARTIAL))
        if image.is_full:
            stored = PARTIAL if image.format is ImageFormat.VHD else DATA
            assert state is (stored if (here == 2).any() else ABSENT)
        elif not here.any():
            assert state is ABSENT
        elif image.format is ImageFormat.VHD or not here.all():
            assert state is PARTIAL
        else:
            assert state is (DATA if (here == 2).any() else ZERO)
        if state is PARTIAL:
            bits = np.unpackbits(np.frombuffer(image.bitmap(block), np.uint8), bitorder="little")
            assert bits[: len(here)].tolist() == ([1] * len(here) if image.is_full else (here > 0).tolist())
            assert not bits[len(here) :].any()
    assert image.counts() == BlockCounts(
        image.geometry.block_count, counted[DATA], counted[PARTIAL], counted[ZERO], counted[ABSENT]
    )


@given(chains_and_ranges(), st.data())
def test_pieces_of_bitmaps_are_those_of_whole_bitmaps(
    case: tuple[list[FakeImage], int, int], data: st.DataObject
) -> None:
    images, first, last = case
    image = merged_image(chain_of(*images), first, last)
    per_block = image.geometry.sectors_per_block
    partial = [b for b, state in enumerate(states_of(image)) if state is PARTIAL]
    count = 1 << data.draw(st.integers(0, per_block.bit_length() - 1))
    sectors = [sector for b in partial for sector in range(b * per_block, (b + 1) * per_block, count)]

    pieces = image.bitmaps(np.array(sectors, np.int64), count)

    for sector, piece in zip(sectors, pieces):
        block, within = divmod(sector, per_block)
        bits = np.unpackbits(np.frombuffer(image.bitmap(block), np.uint8), bitorder="little")
        assert np.unpackbits(piece, bitorder="little")[:count].tolist() == bits[within:][:count].tolist()
        assert len(piece) == -(-count // 8)


@pytest.mark.parametrize("format_", ["vhd", "vhdx"])
@pytest.mark.parametrize("seed", [1, 2])
def test_its_tables_are_those_of_a_file_that_was_merged(tmp_path: Path, format_: str, seed: int) -> None:
    leaf = a_chain(tmp_path / "chain", 5, Style(format_), seed).path
    for first, last in RANGES_OF_FIVE:
        real_leaf = merge_for_real(leaf, first, last, tmp_path / f"{first}-{last}")
        with open_chain(leaf) as chain, open_chain(real_leaf) as real:
            merged = merged_chain(chain, first, last)
            image, wanted = merged.images[first], real.images[first]

            assert len(merged.layers) == len(real.layers)
            assert image.geometry == wanted.geometry
            assert (image.format, image.type) == (wanted.format, wanted.type)
            assert (image.write_id, image.disk_id) == (wanted.write_id, wanted.disk_id) or format_ == "vhd"
            assert image.counts() == wanted.counts()
            count = image.geometry.block_count
            assert image.block_map(0, count).entry.tolist() == wanted.block_map(0, count).entry.tolist()
            per_block = image.geometry.sectors_per_block
            partial = np.flatnonzero(wanted.block_map(0, count).state == PARTIAL) * per_block
            assert (image.bitmaps(partial, per_block) == wanted.bitmaps(partial, per_block)).all()
            assert merged.read(0, merged.virtual_size) == real.read(0, real.virtual_size)


@pytest.mark.parametrize(("format_", "has_table"), [("vhd", False), ("vhdx", True)])
def test_a_merge_into_a_fixed_base_leaves_a_fixed_image(
    tmp_path: Path, format_: str, has_table: bool
) -> None:
    leaf = a_chain_above_a_fixed_base(tmp_path / "chain", format_)
    real_leaf = merge_for_real(leaf, 1, 2, tmp_path / "real")

    with open_chain(leaf) as chain, open_chain(real_leaf) as real:
        merged = merged_chain(chain, 1, 2)
        image, wanted = merged.images[1], real.images[1]

        count = wanted.geometry.block_count
        assert image.type is DiskType.FIXED
        assert image.geometry.has_table is has_table
        assert image.counts() == wanted.counts()
        assert image.next_stored(1) == 1
        assert image.block_map(0, count).entry.tolist() == wanted.block_map(0, count).entry.tolist()
        assert merged.read(0, merged.virtual_size) == real.read(0, real.virtual_size)


def a_chain_above_a_fixed_base(folder: Path, format_: str) -> Path:
    """Three layers of 9 MiB, of which only the base holds something; the leaf."""
    folder.mkdir()
    raw = folder / "raw"
    raw.write_bytes(b"base" * (9 << 18))
    base, middle, leaf = (folder / f"{name}.{format_}" for name in ("base", "middle", "leaf"))
    block_size = MIB if format_ == "vhdx" else None
    create_image(base, subformat="fixed", source=raw, block_size=block_size, sync=False)
    snapshot_image(base, middle, block_size=MIB, sync=False)
    snapshot_image(middle, leaf, block_size=MIB, sync=False)
    return leaf


def test_zeros_past_the_end_of_a_smaller_layer_inside_are_said() -> None:
    # The disk has three blocks, the layer in the middle one and a half: what the last holds past that is
    # never seen, and reads as zeros whatever the parent has there.
    top = an_image(ABSENT, ABSENT, ABSENT, seed=1)
    middle = an_image(ABSENT, ABSENT, size=3072, seed=2)
    bottom = an_image(ABSENT, ABSENT, DATA, seed=3)
    base = an_image(DATA, DATA, DATA, seed=4)

    image = merged_image(chain_of(top, middle, bottom, base), 0, 2)

    assert states_of(image) == [ABSENT, PARTIAL, ZERO]
    assert image.bitmap(1) == b"\x0c"


def test_a_block_of_zeros_hides_data_below_it() -> None:
    top = an_image(ZERO, PARTIAL, ABSENT, here={1: [True, False, False, False]}, seed=1)
    bottom = an_image(DATA, ZERO, ZERO, seed=2)
    base = an_image(DATA, DATA, DATA, seed=3)

    image = merged_image(chain_of(top, bottom, base), 0, 1)

    assert states_of(image) == [ZERO, DATA, ZERO]


def test_a_vhd_has_zeros_written_where_a_vhdx_only_says_so() -> None:
    layers = [an_image(ZERO, ABSENT, seed=i, format=ImageFormat.VHD) for i in (1, 2, 3)]
    chain = chain_of(*layers)

    image = merged_image(chain, 0, 1)

    assert states_of(image) == [PARTIAL, ABSENT]
    assert image.bitmap(0) == b"\x0f"
    assert image.source.read_exact(image.entry(0)[1], 2048, field="test") == bytes(2048)


def test_blocks_of_one_layer_may_be_smaller_or_larger_than_those_of_the_merged_one() -> None:
    small = an_image(ABSENT, DATA, ABSENT, ABSENT, PARTIAL, ABSENT, here={4: [True]}, block=512, size=3072)
    large = an_image(PARTIAL, here={0: [i == 3 for i in range(8)]}, block=4096, size=3072, seed=1)
    bottom = an_image(ABSENT, ABSENT, block=2048, size=3072, seed=2)
    base = an_image(DATA, DATA, size=3072, seed=3)

    image = merged_image(chain_of(small, large, bottom, base), 0, 2)

    assert states_of(image) == [PARTIAL, PARTIAL]
    assert (image.bitmap(0), image.bitmap(1)) == (b"\x0a", b"\x01")


def test_a_block_that_is_damaged_in_a_layer_is_damaged() -> None:
    top = an_image(PARTIAL, ABSENT, here={0: [True, False, False, False]}, seed=1)
    bottom = an_image(DAMAGED, DATA, seed=2)

    assert states_of(merged_image(chain_of(top, bottom), 0, 1)) == [DAMAGED, DATA]
    assert states_of(merged_image(chain_of(top, bottom, top), 0, 1)) == [DAMAGED, DATA]


@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 0), (-1, 1), (0, 3)])
def test_what_is_no_range_of_layers_is_refused(first: int, last: int) -> None:
    chain = chain_of(*(an_image(ABSENT, seed=i) for i in range(3)))

    with pytest.raises(ValueError, match="deepest layer of this chain is 2"):
        merged_chain(chain, first, last)


def test_an_unsound_chain_is_refused() -> None:
    error = Finding("test.error", Severity.ERROR, Location("x"), "broken")

    with pytest.raises(CorruptError, match=r"test\.error"):
        merged_chain(chain_of(an_image(DATA), an_image(DATA, findings=(error,))), 0, 1)


def test_only_payload_can_be_read_of_its_file() -> None:
    image = merged_image(chain_of(an_image(ABSENT, DATA, seed=1), an_image(DATA, ABSENT, seed=2)), 0, 1)
    source = image.source

    with pytest.raises(ValueError, match="no header at 0x0, only payload"):
        source.read_exact(0, 512, field="header")
    with pytest.raises(CorruptError, match=r"file\.too_short"):
        source.read_exact(source.size - 1, 2, field="end")
    assert source.descriptor is None
    assert list(source.data_ranges(0, 1 << 40)) == [(0, source.size)]


def test_a_read_may_go_from_one_block_of_the_file_to_the_next() -> None:
    chain = chain_of(an_image(ABSENT, DATA, seed=1), an_image(DATA, ABSENT, seed=2))
    source = merged_image(chain, 0, 1).source

    data = source.read_exact(source.size - 3000, 2000, field="test")

    assert data == chain.read(4096 - 3000, 2000)


def test_a_probe_shows_the_state_that_a_merge_would_leave() -> None:
    top = an_image(ABSENT, PARTIAL, ABSENT, ABSENT, here={1: [True, False, False, False]}, seed=1)
    bottom = an_image(DATA, ABSENT, ZERO, ABSENT, seed=2)
    image = merged_image(chain_of(top, bottom, bottom), 0, 1)

    looks = [image.probe(offset)[-1] for offset in (0, 2048, 2560, 4096, 6144)]

    assert [look.outcome for look in looks] == [
        Outcome.HERE,
        Outcome.HERE,
        Outcome.PARENT,
        Outcome.ZEROS,
        Outcome.PARENT,
    ]
    assert [look.index for look in looks] == [0, 1, 1, 2, 3]


def test_growth_is_what_the_last_layer_has_no_room_for_yet(tmp_path: Path) -> None:
    # A VHDX with blocks of 1 MiB. The bottom holds block 0 in part, so its chunk has its bitmaps; a chunk is
    # 4096 blocks, and in the second one nothing is stored yet: one more bitmap block.
    count = 4098
    top_states = [ABSENT] * count
    top_states[0], top_states[1], top_states[2], top_states[4097] = DATA, PARTIAL, ZERO, PARTIAL
    bottom_states = [ABSENT] * count
    bottom_states[0], bottom_states[2] = PARTIAL, DATA
    chain = chain_of(
        SparseImage(top_states, seed=1),
        SparseImage(bottom_states, seed=2),
        SparseImage([DATA] * count, seed=3),
    )

    image = merged_image(chain, 0, 1)

    # New are blocks 1 and 4097 and a bitmap block; block 2 becomes zeros and its room stays.
    assert image.growth() == 3 * MIB


def test_a_bitmap_block_beyond_the_end_of_a_disk_that_was_made_smaller_is_there_already() -> None:
    # Of one chunk both; the bottom is partial where the top has no disk any more.
    chain = chain_of(
        SparseImage([PARTIAL, ABSENT], seed=1),
        SparseImage([ABSENT, ABSENT, PARTIAL], seed=2),
        SparseImage([DATA] * 3, seed=3),
    )

    assert merged_image(chain, 0, 1).growth() == MIB


class SparseImage(FakeImage):
    """Blocks of 1 MiB without content; partial ones have their first sector."""

    def __init__(self, states: list[BlockState], seed: int) -> None:
        geometry = Geometry(len(states) * MIB, MIB)
        here = [True] + [False] * 2047
        partial = {block: here for block, state in enumerate(states) if state is PARTIAL}
        self.geometry, self.states, self.sectors_here, self.seed = geometry, states, partial, seed
        self.places = {block: (block + 1) * MIB for block in range(len(states))}
        self.data = b""
        self.source = MemorySource(f"sparse-{seed}", b"")


@pytest.mark.parametrize("is_full", [False, True])
def test_64_tib_take_little_memory_and_time(tmp_path: Path, is_full: bool) -> None:
    base = tmp_path / "base.vhdx"
    size = 64 << 40
    create_image(base, size=size, block_size=MIB, sync=False)
    paths = [base]
    for i in range(3):
        paths.append(tmp_path / f"child{i}.avhdx")
        snapshot_image(paths[-2], paths[-1], block_size=MIB, sync=False)

    with open_chain(paths[-1]) as chain:
        tracemalloc.start()
        image = merged_image(chain, 1, 3 if is_full else 2)
        found = image.next_stored(0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    assert image.geometry.block_count == 64 << 20
    assert found == image.geometry.block_count
    assert image.growth() == 0
    assert peak < 24 * MIB

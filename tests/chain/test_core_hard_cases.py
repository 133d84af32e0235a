"""What an attempt to break the core found hard: small constants, edges of everything, deep and huge chains.

Every answer is compared with the reference, which asks each layer for each sector in turn.
"""

from __future__ import annotations

import os
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import vhdtool
from tests.builders import vhd
from tests.chain.fake import FakeImage, fake_chains
from tests.generated import Point, Style, a_chain
from vhdtool.chain import flatten as flatten_module
from vhdtool.chain import reader as reader_module
from vhdtool.chain import resolved as resolved_module
from vhdtool.chain.engine import NO_FILE, ZERO_FILL, Engine, machine_for
from vhdtool.chain.flatten import flatten, resolve
from vhdtool.chain.naive import NaiveWalk
from vhdtool.chain.reference import sector_origins
from vhdtool.chain.resolved import ResolvedMap
from vhdtool.chain.walk import walk
from vhdtool.errors import ReadError, SourceChangedError, VhdtoolError
from vhdtool.formats.image import BitmapPlaces
from vhdtool.formats.vhd import bat as vhd_bat
from vhdtool.model.blockmap import StoredBlocks, pack
from vhdtool.model.geometry import Geometry
from vhdtool.model.plan import ReadPlan
from vhdtool.model.state import ZEROS, BlockCounts, BlockState
from vhdtool.source import MemorySource

Int64s = npt.NDArray[np.int64]
MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
ENGINES: list[Engine] = ["numpy", "numba"]


class _Opened(MemorySource):
    """Stands for an open file."""

    def __init__(self, descriptor: int) -> None:
        super().__init__("opened", b"")
        self._descriptor = descriptor

    @property
    def descriptor(self) -> int:
        return self._descriptor


@dataclass(eq=False)
class FiledFake(FakeImage):
    """A fake whose bitmaps stand in a file, so that engines may read them there themselves."""

    msb_first: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        # Kept open as long as the image.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        width = -(-self.geometry.sectors_per_block // 8)
        self._bitmap_at = {}
        for number, block in enumerate(sorted(self.sectors_here, reverse=True)):
            self._bitmap_at[block] = 7 + number * (width + 3)
            data = np.frombuffer(self.bitmap(block), np.uint8)
            if self.msb_first:
                data = np.packbits(np.unpackbits(data), bitorder="little")
            self._file.seek(self._bitmap_at[block])
            self._file.write(data.tobytes())
        self._file.flush()

    def bitmap_places(
        self, first_sectors: npt.NDArray[np.int64], file_offsets: npt.NDArray[np.int64]
    ) -> BitmapPlaces | None:
        block, sector = np.divmod(first_sectors, self.geometry.sectors_per_block)
        place = np.array([self._bitmap_at[b] for b in block.tolist()], np.int64) + sector // 8
        return BitmapPlaces(_Opened(self._file.fileno()), place, self.msb_first)

    def close(self) -> None:
        self._file.close()


SMALL_CONSTANTS = st.fixed_dictionaries(
    {
        "CELLS_PER_WINDOW": st.sampled_from([1, 4, 16, 64]),
        "CELLS_PER_WINDOW_MIN": st.just(1),
        "ROWS_PER_WINDOW": st.integers(0, 12),
        "BITMAP_BYTES_PER_BATCH": st.integers(1, 40),
        "RUNS_PER_PLAN": st.integers(1, 9),
    }
)
SMALL_SEGMENTS = st.fixed_dictionaries(
    {
        "_CELLS_PER_SEGMENT": st.sampled_from([1, 2, 8]),
        "_SEGMENT_SIZE_MAX": st.sampled_from([512, 4096, 1 << 20]),
        "_SEGMENTS_MAX": st.sampled_from([1, 3, 1000]),
        "_CELLS_AT_ONCE": st.sampled_from([1, 4, 16]),
        "_CELLS_AT_ONCE_MIN": st.sampled_from([1, 4]),
        "_RUNS_AT_ONCE": st.integers(1, 9),
        "_RUNS_AT_ONCE_MAX": st.integers(1, 9),
    }
)


@contextmanager
def constants(window: dict[str, int], segment: dict[str, int]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, values in ((flatten_module, window), (resolved_module, segment)):
            for name, value in values.items():
                patch.setattr(module, name, value)
        yield


@contextmanager
def in_files(images: Sequence[FakeImage], kinds: Sequence[str]) -> Iterator[list[FakeImage]]:
    """The same images, some of them with their bitmaps in files."""
    filed = [
        image
        if kind == "memory"
        else FiledFake(
            image.geometry, image.states, image.sectors_here, seed=image.seed, msb_first=kind == "msb"
        )
        for image, kind in zip(images, kinds)
    ]
    try:
        yield filed
    finally:
        for image in filed:
            image.close()


def sectors_of_plan(plan: ReadPlan, sector_size: int) -> tuple[list[int], list[int]]:
    layers, places = [], []
    for run in plan:
        for at in range(0, run.length, sector_size):
            layers.append(run.layer)
            places.append(run.file_offset + at if run.layer >= 0 else -1)
    return layers, places


@given(images=fake_chains(damaged=True), data=st.data(), window=SMALL_CONSTANTS, segment=SMALL_SEGMENTS)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_answer_is_the_references_however_small_windows_batches_and_segments_are(
    engine: Engine,
    images: list[FakeImage],
    data: st.DataObject,
    window: dict[str, int],
    segment: dict[str, int],
) -> None:
    kinds = [data.draw(st.sampled_from(["memory", "lsb", "msb"])) for _ in images]
    with in_files(images, kinds) as filed, constants(window, segment):
        check_every_answer(filed, data, engine)


def check_every_answer(images: Sequence[FakeImage], data: st.DataObject, engine: Engine) -> None:
    geometry = images[0].geometry
    sector = geometry.sector_size
    layer, place = sector_origins(images, 0, geometry.sector_count)
    starts = np.arange(geometry.sector_count, dtype=np.int64) * sector
    _, _, probes = NaiveWalk(images, engine="numpy").lookup(starts)
    first = data.draw(st.integers(0, geometry.virtual_size - 1))
    stop = data.draw(st.integers(first + 1, geometry.virtual_size))
    plans = list(flatten(images, 0, geometry.virtual_size, engine=engine))
    windows = list(resolve(images, first, stop, engine=engine))
    resolved = ResolvedMap(images, engine=engine, bytes_max=data.draw(st.sampled_from([1, 500, 1 << 20])))
    if data.draw(st.booleans()):
        resolved.resolve(first, stop)
    shuffled = np.random.default_rng(0).permutation(starts)
    runs = resolved.runs_at(shuffled)
    cell_size = resolved.cell_size
    cells = [resolved.cell_runs(at) for at in range(0, geometry.virtual_size, cell_size)]
    looked_up = resolved.lookup(starts)

    assert sectors_of_plan(ReadPlan.joined(plans), sector) == (layer.tolist(), place.tolist())
    assert all(len(plan) for plan in plans)
    assert_array_equal(looked_up[0], layer)
    assert_array_equal(looked_up[1], place)
    row = shuffled // sector
    assert_array_equal(runs.layer, layer[row])
    assert_array_equal(runs.file_offset, place[row])
    assert_array_equal(runs.probes, probes[row])
    # What a range is resolved to tiles it, and says of every byte what the whole does.
    offset = np.concatenate([one.offset for one in windows])
    length = np.concatenate([one.length for one in windows])
    assert offset[0] == first
    assert_array_equal(offset[1:], (offset + length)[:-1])
    assert offset[-1] + length[-1] == stop
    assert (length > 0).all()
    for one in windows:
        found = np.where(one.layer < ZEROS - 1, ZEROS, one.layer)
        assert_array_equal(found, layer[one.offset // sector])
        within = np.where(place[one.offset // sector] < 0, 0, one.offset % sector)
        assert_array_equal(one.file_offset, place[one.offset // sector] + within)
        assert_array_equal(one.probes, probes[one.offset // sector])
    for at, (begin, layers, places) in zip(range(0, geometry.virtual_size, cell_size), cells):
        inside = begin[begin < geometry.virtual_size]
        assert inside[0] == at
        assert_array_equal(layers[: len(inside)], layer[inside // sector])
        assert_array_equal(places[: len(inside)], place[inside // sector])
    assert [run[:3] for run in ReadPlan.of_runs(list(walk(images, first, stop)))] == [
        run[:3] for run in ReadPlan.joined([one.plan() for one in windows])
    ]


# ---------------------------------------------------------------- deep and huge


class Formula:
    """An image of any size at no cost: states by block number, and one bitmap that all its blocks share."""

    def __init__(
        self,
        geometry: Geometry,
        state_of: Callable[[Int64s], Int64s],
        bits: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self.geometry = geometry
        self.source = MemorySource("formula", b"")
        self._state_of = state_of
        self._bits = bits

    def counts(self) -> BlockCounts:
        return BlockCounts(self.geometry.block_count)

    def next_stored(self, block: int) -> int:
        return block

    def stored(self, start: int, stop: int) -> StoredBlocks:
        assert 0 <= start < stop <= self.geometry.block_count
        block = np.arange(start, stop, dtype=np.int64)
        state = self._state_of(block)
        there = np.flatnonzero(state)
        place = (block + 1) * self.geometry.block_size
        return StoredBlocks(block[there], pack(state[there], place[there]))

    def entry(self, block: int) -> tuple[BlockState, int]:
        entry = self.stored(block, block + 1).entry.tolist()
        return (BlockState(entry[0] & 7), entry[0] >> 3) if entry else (BlockState.ABSENT, 0)

    def bitmap(self, block: int) -> bytes:
        assert self._bits is not None
        return np.packbits(self._bits, bitorder="little").tobytes()

    def bitmap_places(self, first_sectors: Int64s, file_offsets: Int64s) -> None:
        return None

    def bitmaps(self, first_sectors: Int64s, sector_count: int) -> npt.NDArray[np.uint8]:
        whole = np.frombuffer(self.bitmap(0), np.uint8)
        first = first_sectors % self.geometry.sectors_per_block // 8
        return np.lib.stride_tricks.sliding_window_view(whole, sector_count // 8)[first]


def every(state: BlockState) -> Callable[[Int64s], Int64s]:
    return lambda block: np.full(len(block), state, np.int64)


def some(modulus: int, rest: int, state: BlockState) -> Callable[[Int64s], Int64s]:
    return lambda block: np.where(block % modulus == rest, state, BlockState.ABSENT)


def peak_mib(work: Callable[[], object]) -> float:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()


def images_of(*formulas: Formula) -> Any:
    return formulas


@pytest.mark.parametrize("engine", ENGINES)
def test_256_partial_layers_of_which_each_holds_one_sector_in_256(engine: Engine) -> None:
    geometry = Geometry(5 * 512 * 512 - 512, 512 * 512)
    here = {
        depth: {block: [sector % 256 == depth for sector in range(512)] for block in range(5)}
        for depth in range(256)
    }
    images = [FakeImage(geometry, [BlockState.PARTIAL] * 5, here[depth], seed=depth) for depth in range(256)]
    layer, place = sector_origins(images, 0, geometry.sector_count)
    offsets = np.arange(geometry.sector_count, dtype=np.int64) * 512

    rows = ResolvedMap(images, engine=engine).runs_at(offsets)

    assert_array_equal(layer, np.arange(geometry.sector_count) % 256)
    assert_array_equal(rows.layer, layer)
    assert_array_equal(rows.file_offset, place)
    assert_array_equal(rows.probes, layer + 1)
    assert_array_equal(rows.stop, offsets + 512)


@pytest.mark.parametrize("engine", ENGINES)
def test_places_close_to_the_farthest_that_an_entry_can_say(engine: Engine) -> None:
    block = 8 * 512
    geometry = Geometry(16 * block, block)
    states = [BlockState.DATA, BlockState.PARTIAL] * 8
    image = FakeImage(geometry, states, {b: [True, False] * 4 for b in range(1, 16, 2)})
    image.places = {b: (1 << 59) - (b + 1) * block for b in range(16)}
    layer, place = sector_origins([image], 0, geometry.sector_count)
    offsets = np.arange(geometry.sector_count, dtype=np.int64) * 512

    found = ResolvedMap([image], engine=engine).lookup(offsets)

    assert place.max() == (1 << 59) - 512
    naive = NaiveWalk([image], engine="numba" if engine == "numba" else "numpy")
    for one in (found, naive.lookup(offsets)[:2]):
        assert_array_equal(one[0], layer)
        assert_array_equal(one[1], place)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_end_of_a_disk_of_64_tib_with_64_layers(engine: Engine) -> None:
    geometry = Geometry(64 * TIB, 2 * MIB)
    bits = np.arange(4096) % 3 == 0
    images = images_of(
        *(Formula(geometry, some(64, depth, BlockState.PARTIAL), bits) for depth in range(63)),
        Formula(Geometry(64 * TIB - MIB, 2 * MIB), every(BlockState.DATA)),
    )
    offsets = 64 * TIB - np.arange(1, 1000, dtype=np.int64) * 1536
    expected = [run for at in offsets.tolist() for run in walk(images, at, at + 1)]
    resolved = ResolvedMap(images, engine=engine)

    rows = resolved.runs_at(offsets)

    assert rows.layer.tolist() == [run.layer for run in expected]
    assert rows.file_offset.tolist() == [run.file_offset for run in expected]
    # Of each cell of all the terabytes some bytes are kept, and only of the few that were asked for.
    assert resolved.nbytes < 20 * MIB


def test_bitmaps_in_memory_are_bounded_however_deep_the_chain_and_large_its_blocks() -> None:
    geometry = Geometry(16 * GIB, 256 * MIB)
    images = images_of(
        *(
            Formula(geometry, every(BlockState.PARTIAL), np.arange(524288) // 64 % 8192 == depth)
            for depth in range(256)
        )
    )

    assert peak_mib(lambda: next(resolve(images, 0, geometry.virtual_size, engine="numpy"))) < 150


def test_cells_in_memory_are_those_of_the_window_however_large_the_blocks_of_a_layer() -> None:
    images = images_of(
        Formula(Geometry(4 * GIB, 512), some(977, 3, BlockState.ZERO)),
        *(Formula(Geometry(4 * GIB, 2 * GIB), every(BlockState.ABSENT)) for _ in range(2)),
        Formula(Geometry(4 * GIB, 2 * GIB), every(BlockState.DATA)),
    )

    def work() -> None:
        # Both sides of where one block ends and the next begins.
        for window in resolve(images, 2 * GIB - 512, 2 * GIB + (8 << 20), engine="numpy"):
            assert_array_equal(window.layer, np.where(window.offset // 512 % 977 == 3, ZEROS, 3))
            place = np.where(window.layer < 0, -1, window.offset + 2 * GIB)
            assert_array_equal(window.file_offset, place)

    assert peak_mib(work) < 10


def test_a_map_of_a_disk_torn_to_sectors_is_made_in_pieces_of_bounded_size() -> None:
    geometry = Geometry(4 * GIB, 2 * MIB)
    torn = np.arange(4096) % 2 == 0
    images = images_of(
        Formula(geometry, every(BlockState.PARTIAL), torn), Formula(geometry, every(BlockState.ZERO))
    )
    resolved = ResolvedMap(images, engine="numpy")
    offsets = np.arange(0, 4 * GIB, 3 * MIB + 512)

    def work() -> None:
        layer, _ = resolved.lookup(offsets)
        assert_array_equal(layer, np.where(offsets // 512 % 2 == 0, 0, -1))

    # 8 million runs: more than one gigabyte, were they all looked at together.
    assert peak_mib(work) < 250
    assert resolved.covered == 4 * GIB


# ---------------------------------------------------------------- files that close, change, fail


STYLES = {
    "vhdx": Style(size=8 * MIB, states=False, sizes=False),
    "vhd": Style(format="vhd", block_sizes=(256 << 10,), size=8 * MIB, sizes=False),
}


@pytest.fixture(params=STYLES)
def point(request: pytest.FixtureRequest, tmp_path: Path) -> Point:
    return a_chain(tmp_path, 3, STYLES[request.param], 5)


@contextmanager
def descriptors_reused(path: Path, wanted: set[int | None]) -> Iterator[None]:
    """The numbers of files that are closed now belong to another file."""
    held: list[int] = []
    try:
        while not wanted <= set(held):
            held.append(os.open(path, os.O_RDONLY))
        yield
    finally:
        for one in held:
            os.close(one)


needs_positioned = pytest.mark.skipif(not hasattr(os, "preadv"), reason="no positioned reading")


@needs_positioned
@pytest.mark.parametrize("engine", ENGINES)
def test_a_closed_chain_never_reads_from_the_file_that_got_its_descriptor(
    engine: Engine, point: Point, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flatten_module, "BITMAP_BYTES_PER_BATCH", 1)
    other = tmp_path / "other"
    other.write_bytes(b"\xff" * (24 * MIB))
    chain = vhdtool.open_chain(point.path)
    windows = chain.windows(engine=engine)
    next(windows)
    chain.lookup(np.arange(0, len(point.disk) // 2, 512))
    with chain.open() as file:
        for _ in range(40):
            file.seek(0)
            file.read(4096)
        wanted = {image.source.descriptor for image in chain.images}
        chain.close()

        with descriptors_reused(other, wanted):
            with pytest.raises(ReadError, match="Bad file descriptor"):
                list(windows)
            with pytest.raises(ReadError):
                chain.read_many(np.arange(0, len(point.disk) - 4096, 4096), 4096)
            for at in range(0, len(point.disk), 4096):
                file.seek(at)
                with suppress(ReadError):
                    assert file.read(4096) == point.disk[at : at + 4096].tobytes()
                with suppress(ReadError):
                    assert chain.read(at, 4096) == point.disk[at : at + 4096].tobytes()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_that_became_shorter_is_an_error_at_the_place(engine: Engine, point: Point) -> None:
    with vhdtool.open_chain(point.path) as chain:
        chain.require_sound()
        for file in chain.files():
            os.truncate(file.path, 2 * MIB if point.style.format == "vhdx" else 4096)

        for ask in (
            lambda: list(chain.windows(engine=engine)),
            lambda: chain.resolved(engine).resolve(),
            lambda: chain.read_many(np.arange(0, len(point.disk) - 512, 512), 512),
            lambda: [chain.read(at, 512) for at in range(0, len(point.disk), 512)],
        ):
            with pytest.raises(VhdtoolError, match=r"file\.too_short"):
                ask()


@needs_positioned
@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_that_cannot_be_read_is_an_error_at_the_place(
    engine: Engine, point: Point, tmp_path: Path
) -> None:
    """A folder cannot be read as a bad disk cannot: the system refuses each call."""
    with vhdtool.open_chain(point.path) as chain:
        chain.require_sound()
        folder = os.open(tmp_path, os.O_RDONLY)
        try:
            for file in chain.files():
                os.dup2(folder, file._descriptor)
            for ask in (
                lambda: list(chain.windows(engine=engine)),
                lambda: chain.resolved(engine).resolve(),
                lambda: chain.read_many(np.arange(0, len(point.disk) - 512, 512), 512),
                lambda: chain.open().read(),
            ):
                with pytest.raises(ReadError, match=r" at 0x[0-9a-f]+ .*Is a directory"):
                    ask()
        finally:
            os.close(folder)


def test_pieces_that_cannot_be_read_are_told_from_those_that_can(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(100)))
    with file.open("rb") as opened:
        folder = os.open(tmp_path, os.O_RDONLY) if os.name == "posix" else NO_FILE
        numbers = np.array([opened.fileno(), folder, ZERO_FILL, NO_FILE, opened.fileno()], np.int32)
        places = np.array([7, 0, 0, 0, 95], np.int64)
        counts = np.array([10, 10, 10, 10, 10], np.int64)
        for engine in ENGINES:
            out = np.full(60, 255, np.uint8)
            whole = machine_for(engine).read_pieces(numbers, places, counts, np.arange(5) * 10 + 5, out)

            if hasattr(os, "preadv"):
                assert whole.tolist() == [True, False, True, False, False]
                assert out[:15].tolist() == [255] * 5 + list(range(7, 17))
            assert out[25:45].tolist() == [0] * 10 + [255] * 10
            assert out[55:].tolist() == [255] * 5
        if folder >= 0:
            os.close(folder)


def test_a_table_that_changes_while_it_is_read_is_said_to_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vhd_bat, "KEPT_BLOCKS_MAX", 0)
    blocks = dict.fromkeys(range(3), (b"x", (0, 9)))
    path = tmp_path / "disk.vhd"
    path.write_bytes(vhd.a_vhd(blocks=blocks))
    for entry in (bytes([255] * 4), bytes(4)):
        with vhdtool.open_chain(path) as chain:
            chain.require_sound()
            images = chain.images
            before = images[0].stored(0, 3)
            with path.open("r+b") as file:
                file.seek(vhd.TABLE_AT + 4)
                kept = file.read(4)
                file.seek(vhd.TABLE_AT + 4)
                file.write(entry)
            with pytest.raises(SourceChangedError, match="changed while it was read"):
                images[0].bitmaps(before.block * 64, 64)
            with path.open("r+b") as file:
                file.seek(vhd.TABLE_AT + 4)
                file.write(kept)


def test_many_threads_look_up_and_read_while_the_map_forgets_all_the_time(point: Point) -> None:
    with vhdtool.open_chain(point.path) as chain, pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolved_module, "_CELLS_PER_SEGMENT", 1)
        offsets = np.arange(0, len(point.disk), 512)
        expected = ResolvedMap(chain.images, engine="numpy").lookup(offsets)
        for engine in ENGINES:
            chain._maps[engine] = ResolvedMap(chain.images, engine=engine, bytes_max=1)
        chain._maps["auto"] = chain._maps["numba"]
        disk = point.disk.tobytes()

        def work(seed: int) -> bool:
            rng = np.random.default_rng(seed)
            right = True
            with chain.open() as file:
                for engine in ENGINES * 3:
                    some = rng.permutation(len(offsets))[:200]
                    found = chain.resolved(engine).lookup(offsets[some])
                    right &= np.array_equal(found[0], expected[0][some])
                    right &= np.array_equal(found[1], expected[1][some])
                    rows = chain.read_many(offsets[some[:50]], 512)
                    right &= [r.tobytes() for r in rows] == [disk[o : o + 512] for o in offsets[some[:50]]]
                    for at in offsets[some[:50]].tolist() * 2:
                        file.seek(at)
                        right &= file.read(512) == disk[at : at + 512]
            return right

        switch = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        patch.setattr(reader_module, "RUNS_WALKED_MAX", 1)
        try:
            with ThreadPoolExecutor(8) as pool:
                assert list(pool.map(work, range(8))) == [True] * 8
        finally:
            sys.setswitchinterval(switch)

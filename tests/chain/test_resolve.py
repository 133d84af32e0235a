"""Walk, flatten with both engines, and the per-sector reference give one answer, and it is right."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from tests.chain.fake import FakeImage, chain_of, fake_chains, truth
from vhdtool.chain import flatten as flatten_module
from vhdtool.chain.engine import Engine
from vhdtool.chain.flatten import flatten
from vhdtool.chain.reference import read_naively, sector_origins
from vhdtool.chain.walk import first_run, walk
from vhdtool.errors import CorruptError
from vhdtool.model.geometry import Geometry
from vhdtool.model.plan import ReadPlan
from vhdtool.model.state import DAMAGED, BlockState, Run

ENGINES: list[Engine] = ["numpy", "numba"]


def rows(plan: ReadPlan) -> list[Run]:
    return list(plan)


def a_range(data: st.DataObject, size: int) -> tuple[int, int]:
    start = data.draw(st.integers(0, size - 1), "start")
    return start, data.draw(st.integers(start + 1, size), "stop")


@given(images=fake_chains(damaged=True), data=st.data())
def test_walk_flatten_and_the_reference_agree_on_any_range(
    images: list[FakeImage], data: st.DataObject
) -> None:
    start, stop = a_range(data, images[0].geometry.virtual_size)

    walked = ReadPlan.of_runs(list(walk(images, start, stop)))

    for engine in ENGINES:
        assert rows(ReadPlan.joined(list(flatten(images, start, stop, engine=engine)))) == rows(walked)
    sector = images[0].geometry.sector_size
    layer, place = sector_origins(images, start // sector, -(-stop // sector))
    for run in walked:
        first = run.offset // sector
        last = -(-(run.offset + run.length) // sector)
        span = slice(first - start // sector, last - start // sector)
        assert set(layer[span].tolist()) == {run.layer}
        if run.layer >= 0:
            expected = run.file_offset - run.offset % sector + np.arange(last - first) * sector
            assert_array_equal(place[span], expected)


@given(images=fake_chains(), data=st.data())
def test_a_plan_tiles_its_range_with_runs_that_could_not_be_merged(
    images: list[FakeImage], data: st.DataObject
) -> None:
    start, stop = a_range(data, images[0].geometry.virtual_size)

    plan = chain_of(*images).plan(start, stop)

    assert (plan.start, plan.stop) == (start, stop)
    runs = rows(plan)
    for before, after in itertools.pairwise(runs):
        assert before.offset + before.length == after.offset
        goes_on = before.layer < 0 or before.file_offset + before.length == after.file_offset
        assert not (before.layer == after.layer and goes_on)
    assert all(run.length > 0 for run in runs)


@given(images=fake_chains(), data=st.data())
def test_any_read_equals_the_slice_of_the_whole_disk(images: list[FakeImage], data: st.DataObject) -> None:
    disk = truth(images)
    start, stop = a_range(data, len(disk))
    chain = chain_of(*images)

    assert chain.read(start, stop - start) == disk[start:stop]
    assert read_naively(images, start, stop - start) == disk[start:stop]


@pytest.mark.parametrize("engine", ENGINES)
@given(
    images=fake_chains(damaged=True),
    cells=st.integers(1, 9),
    runs=st.integers(1, 9),
    rowsize=st.integers(1, 64),
)
def test_windows_of_any_size_give_the_same_runs(
    engine: Engine, images: list[FakeImage], cells: int, runs: int, rowsize: int
) -> None:
    size = images[0].geometry.virtual_size
    whole = rows(ReadPlan.joined(list(flatten(images, 0, size))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flatten_module, "CELLS_PER_WINDOW", cells)
        patch.setattr(flatten_module, "RUNS_PER_PLAN", runs)
        patch.setattr(flatten_module, "BITMAP_BYTES_PER_BATCH", rowsize)
        pieces = list(flatten(images, 0, size, engine=engine))

    assert all(len(plan) for plan in pieces)
    assert rows(ReadPlan.joined(pieces)) == whole


@given(images=fake_chains(), data=st.data())
@settings(max_examples=30)
def test_the_file_object_reads_as_the_disk_does(images: list[FakeImage], data: st.DataObject) -> None:
    disk = truth(images)
    expected = io.BytesIO(disk)
    with chain_of(*images).open() as file:
        for _ in range(8):
            place = data.draw(st.integers(0, len(disk) + 10))
            count = data.draw(st.integers(0, 3000))
            assert file.seek(place) == expected.seek(place)
            assert file.read(count) == expected.read(count)
            assert file.tell() == expected.tell()
        assert file.seek(-1, io.SEEK_END) == len(disk) - 1
        assert file.readall() == disk[-1:]
        with pytest.raises(ValueError, match="negative"):
            file.seek(-1)
        assert not file.writable()
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


def a_partial_image(here: list[bool], per_block: int = 8, seed: int = 1) -> FakeImage:
    count = -(-len(here) // per_block)
    blocks = {b: here[b * per_block : (b + 1) * per_block] for b in range(count)}
    geometry = Geometry(len(here) * 512, per_block * 512)
    return FakeImage(geometry, [BlockState.PARTIAL] * count, blocks, seed)


def test_a_run_ends_at_its_blocks_end_when_the_next_block_stands_elsewhere() -> None:
    """A reader that takes a whole block's length from the middle of one returns its neighbour in the file."""
    image = a_partial_image([True] * 32)
    middle = 4 * 512

    runs = rows(chain_of(image).plan(middle, middle + 8 * 512))

    assert [(run.offset, run.length) for run in runs] == [(middle, 4 * 512), (8 * 512, 4 * 512)]
    assert runs[1].file_offset == image.places[1]


def test_past_the_end_of_a_smaller_parent_every_layer_below_reads_zeros() -> None:
    base = a_partial_image([True] * 32, seed=1)
    small = a_partial_image([False] * 11, seed=2)
    leaf = a_partial_image([False] * 32, seed=3)

    disk = chain_of(leaf, small, base).read(0, 32 * 512)

    assert disk[: 11 * 512] == truth([base])[: 11 * 512]
    assert disk[11 * 512 :] == bytes(21 * 512)


def test_a_damaged_block_is_refused_by_name_and_its_neighbours_are_read() -> None:
    geometry = Geometry(16 * 512, 8 * 512)
    image = FakeImage(geometry, [BlockState.DAMAGED, BlockState.DATA], {})
    chain = chain_of(image)

    assert chain.read(8 * 512, 100) == truth([image])[8 * 512 :][:100]
    with pytest.raises(CorruptError, match="guest bytes 0x200 to 0x1000"):
        chain.read(512, 5000)
    assert rows(chain.plan())[0] == Run(0, 4096, DAMAGED, -1)


@given(bits=st.lists(st.booleans(), min_size=1, max_size=2000), data=st.data())
def test_the_first_run_of_a_bitmap_is_as_long_as_its_bits_are_alike(
    bits: list[bool], data: st.DataObject
) -> None:
    stretched = [bit for bit in bits for _ in range(data.draw(st.integers(1, 1)) or 1)]
    packed = np.packbits(np.array(stretched, np.uint8), bitorder="little").tobytes()
    first = data.draw(st.integers(0, len(stretched) - 1))
    stop = data.draw(st.integers(first + 1, len(stretched)))

    here, count = first_run(packed, first, stop)

    assert here == stretched[first]
    assert set(stretched[first : first + count]) == {here}
    assert first + count == stop or stretched[first + count] != here


@given(images=fake_chains(damaged=True), data=st.data())
def test_what_lies_behind_the_ends_of_files_is_damaged(images: list[FakeImage], data: st.DataObject) -> None:
    plan = ReadPlan.joined(list(flatten(images, 0, images[0].geometry.virtual_size, engine="numpy")))
    sizes = [data.draw(st.integers(0, len(image.data))) for image in images]

    cut = plan.within_files(np.array(sizes, np.int64))

    assert (cut.start, cut.stop) == (plan.start, plan.stop)
    assert (cut.length > 0).all()
    for run in plan:
        here = cut.clipped(run.offset, run.offset + run.length)
        kept = max(0, min(run.length, sizes[run.layer] - run.file_offset)) if run.layer >= 0 else run.length
        parts = [run._replace(length=kept)] if kept else []
        if kept < run.length:
            parts.append(Run(run.offset + kept, run.length - kept, DAMAGED, -1))
        assert rows(here) == parts


def test_a_window_that_grew_shrinks_to_the_smallest_one_and_not_to_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("CELLS_PER_WINDOW", 4), ("CELLS_PER_WINDOW_MIN", 1), ("ROWS_PER_WINDOW", 8)):
        monkeypatch.setattr(flatten_module, name, value)
    # Many rows in block 0, none in block 1, which the leaf settles, many in 2 and 3.
    states = [BlockState.PARTIAL, BlockState.DATA, BlockState.PARTIAL, BlockState.PARTIAL]
    here = {0: [True, False], 2: [False, True], 3: [True, False]}
    images = [FakeImage(Geometry(4096, 1024), states, here, seed=number) for number in range(5)]

    plan = ReadPlan.joined(list(flatten(images, 0, 4096, engine="numpy")))

    assert rows(plan) == rows(ReadPlan.of_runs(list(walk(images, 0, 4096))))

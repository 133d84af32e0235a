"""The resolved map answers as the walk, the naive lookup and the flattened plan do, for every byte asked."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from tests.chain.fake import FakeImage, chain_of, fake_chains, truth
from vhdtool.chain import engine as engine_module
from vhdtool.chain import resolved as resolved_module
from vhdtool.chain.engine import Engine
from vhdtool.chain.naive import NaiveWalk
from vhdtool.chain.resolved import Lookups, ResolvedMap
from vhdtool.chain.walk import walk
from vhdtool.kernels import rank
from vhdtool.model.state import DAMAGED

ENGINES: list[Engine] = ["numpy", "numba"]


def sector_starts(images: list[FakeImage]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    geometry = images[0].geometry
    return np.arange(geometry.sector_count) * geometry.sector_size


@given(images=fake_chains(damaged=True))
@pytest.mark.parametrize("engine", ENGINES)
def test_every_sector_is_looked_up_as_the_walk_finds_it(engine: Engine, images: list[FakeImage]) -> None:
    expected = {}
    for run in walk(images, 0, images[0].geometry.virtual_size):
        for byte in range(run.offset, run.offset + run.length, images[0].geometry.sector_size):
            place = -1 if run.layer < 0 else run.file_offset + byte - run.offset
            expected[byte] = (run.layer, place)
    offsets = sector_starts(images)

    layer, file_offset = ResolvedMap(images, engine=engine).lookup(offsets)

    assert dict(zip(offsets.tolist(), zip(layer.tolist(), file_offset.tolist()))) == expected


@given(images=fake_chains(damaged=True), data=st.data())
@pytest.mark.parametrize("engine", ENGINES)
def test_runs_end_where_the_origin_changes_and_probes_are_those_of_the_naive_walk(
    engine: Engine, images: list[FakeImage], data: st.DataObject
) -> None:
    size = images[0].geometry.virtual_size
    offsets = np.array(data.draw(st.lists(st.integers(0, size - 1), max_size=40)), np.int64)
    layer, file_offset, probes = NaiveWalk(images, engine="numpy").lookup(offsets)
    resolved = ResolvedMap(images, engine=engine)

    runs = resolved.runs_at(offsets)

    assert_array_equal(runs.layer, layer)
    assert_array_equal(runs.file_offset, file_offset)
    assert_array_equal(runs.probes, probes)
    cell_stop = np.minimum((offsets // resolved.cell_size + 1) * resolved.cell_size, size)
    assert (runs.stop > offsets).all()
    assert (runs.stop <= cell_stop).all()
    for i, offset in enumerate(offsets.tolist()):
        inside = np.arange(offset, int(runs.stop[i]))
        across = resolved.runs_at(inside)
        assert set(across.layer.tolist()) == {int(layer[i])}
        assert set(across.stop.tolist()) == {int(runs.stop[i])}
        if runs.stop[i] < cell_stop[i]:
            after = resolved.runs_at(runs.stop[i : i + 1])
            goes_on = after.layer[0] == layer[i] and (
                layer[i] < 0 or after.file_offset[0] == file_offset[i] + runs.stop[i] - offset
            )
            assert (
                not goes_on
                or after.probes[0] != probes[i]
                or any(image.geometry.virtual_size == runs.stop[i] for image in images)
            )


@given(images=fake_chains(), data=st.data())
@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_forgotten_for_want_of_room_is_found_again(
    engine: Engine, images: list[FakeImage], data: st.DataObject
) -> None:
    size = images[0].geometry.virtual_size
    offsets = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=60)), np.int64)
    expected = ResolvedMap(images, engine=engine).lookup(offsets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolved_module, "_CELLS_PER_SEGMENT", 2)
        patch.setattr(resolved_module, "_CELLS_AT_ONCE_MIN", 2)
        crowded = ResolvedMap(images, engine=engine, bytes_max=data.draw(st.integers(1, 400)))

        for _ in range(2):
            assert_array_equal(crowded.lookup(offsets), expected)


def test_an_offset_outside_of_the_disk_is_refused() -> None:
    chain = chain_of(a_fake())
    size = chain.virtual_size
    for offsets in ([-1], [size], [0, size + 7]):
        with pytest.raises(ValueError, match="inside the disk"):
            chain.lookup(offsets)
    no_offsets: list[tuple[npt.ArrayLike, str]] = [
        ([1.5], "float64"),
        ([True], "bool"),
        (["0"], "<U1"),
        ([1 << 63], "63 bits"),
        ([[1]], "dimensions"),
    ]
    for wrong, why in no_offsets:
        with pytest.raises(ValueError, match=why):
            chain.lookup(wrong)
    with pytest.raises(ValueError, match="inside the disk"):
        chain.read_many([size - 4], 5)
    with pytest.raises(ValueError, match="inside the disk"):
        chain.resolved().resolve(0, size + 1)
    for wrong in (np.empty((1, 3), np.uint8), np.empty((1, 4), np.int8), np.empty((4, 1), np.uint8)):
        with pytest.raises(ValueError, match="out is no"):
            chain.read_many([0], 4, out=wrong)  # type: ignore[arg-type]


@given(images=fake_chains(), data=st.data())
def test_many_reads_are_those_of_the_disk(images: list[FakeImage], data: st.DataObject) -> None:
    disk = truth(images)
    length = data.draw(st.integers(0, min(3000, len(disk))))
    offsets = data.draw(st.lists(st.integers(0, len(disk) - length), max_size=20))
    chain = chain_of(*images)

    rows = chain.read_many(offsets, length)

    assert rows.shape == (len(offsets), length)
    assert chain.read_many(offsets, length, out=np.zeros_like(rows)).tobytes() == rows.tobytes()
    assert [row.tobytes() for row in rows] == [disk[start : start + length] for start in offsets]


def test_the_layout_of_the_map_is_the_one_that_kernels_read() -> None:
    assert (rank.LAYER_BITS, rank.NO_LAYER, rank.LAYER_MASK) == (
        resolved_module.LAYER_BITS,
        resolved_module.NO_LAYER,
        resolved_module.NO_LAYER,
    )
    assert rank.KIND_MASK == (1 << resolved_module.KIND_BITS) - 1
    assert (rank.GRAIN_BITS, rank.GRAIN_MASK) == (
        resolved_module.GRAIN_BITS,
        (1 << resolved_module.GRAIN_BITS) - 1,
    )
    assert rank.MISSING == resolved_module.MISSING < DAMAGED
    positioned = pytest.importorskip("vhdtool.kernels.positioned", exc_type=ImportError)
    assert (positioned.NO_FILE, positioned.ZERO_FILL) == (engine_module.NO_FILE, engine_module.ZERO_FILL)


def a_fake() -> FakeImage:
    from vhdtool.model.geometry import Geometry
    from vhdtool.model.state import BlockState

    return FakeImage(Geometry(64 * 512, 8 * 512), [BlockState.DATA] * 8, {})


def test_lookups_are_the_same_type_whatever_is_asked() -> None:
    runs = chain_of(a_fake()).resolved().runs_at([])

    assert isinstance(runs, Lookups)
    assert [len(runs.layer), len(runs.stop)] == [0, 0]

"""The naive walk is right, and both of its engines give its answers: it judges the resolved map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import vhdtool
from tests.chain.fake import FakeImage, fake_chains
from tests.generated import MIB, Style, a_chain
from vhdtool.chain.naive import ENTRY_BYTES, NaiveWalk
from vhdtool.kernels import walk
from vhdtool.model.geometry import Geometry
from vhdtool.model.state import DAMAGED, STATE_BITS, ZEROS, BlockState


def answer(images: list[FakeImage], offset: int) -> tuple[int, int, int]:
    """Layer, file offset and probes of one byte, as the specifications put it."""
    for depth, image in enumerate(images):
        if offset >= image.geometry.virtual_size:
            return ZEROS, -1, depth
        block, within = divmod(offset, image.geometry.block_size)
        state, place = image.entry(block)
        if (
            state is BlockState.PARTIAL
            and not image.sectors_here[block][within // image.geometry.sector_size]
        ):
            continue
        if state in (BlockState.DATA, BlockState.PARTIAL):
            return depth, place + within, depth + 1
        if state is BlockState.ZERO:
            return ZEROS, -1, depth + 1
        if state is BlockState.DAMAGED:
            return DAMAGED, -1, depth + 1
    return ZEROS, -1, len(images)


@given(images=fake_chains(damaged=True), data=st.data())
def test_each_lookup_is_what_asking_layer_after_layer_finds(
    images: list[FakeImage], data: st.DataObject
) -> None:
    size = images[0].geometry.virtual_size
    start = data.draw(st.integers(0, size - 1), "start")
    stop = data.draw(st.integers(start + 1, size), "stop")
    offsets = data.draw(st.lists(st.integers(start, stop - 1), max_size=40), "offsets")

    for engine in ("numpy", "numba"):
        found = NaiveWalk(images, start, stop, engine=engine).lookup(np.array(offsets, np.int64))

        assert list(zip(*(column.tolist() for column in found))) == [answer(images, o) for o in offsets]


VHDX = Style(logs=0.5)
VHD = Style(format="vhd", block_sizes=(32 << 10, 512 << 10, 2 * MIB))


@pytest.mark.parametrize("style", [VHDX, Style(sector_size=4096), VHD], ids=["vhdx", "vhdx-4k", "vhd"])
@pytest.mark.parametrize(("depth", "seed"), [(1, 1), (3, 2), (9, 3)])
def test_the_walk_and_the_resolved_map_agree_on_every_lookup(
    style: Style, depth: int, seed: int, tmp_path: Path
) -> None:
    point = a_chain(tmp_path, depth, style, seed)
    with vhdtool.open_chain(point.path) as chain:
        chain.require_sound()
        sectors = np.arange(0, chain.virtual_size, chain.sector_size, dtype=np.int64)
        some = np.random.default_rng(seed).integers(0, chain.virtual_size, 5000)
        offsets = np.concatenate((sectors, some))
        for engine in ("numpy", "numba"):
            layer, file_offset, probes = NaiveWalk(chain.images, engine=engine).lookup(offsets)

            resolved = chain.resolved(engine)
            rows = resolved.runs_at(offsets)
            assert_array_equal(rows.layer, layer)
            assert_array_equal(rows.file_offset, file_offset)
            assert_array_equal(rows.probes, probes)
            for mine, other in zip(resolved.lookup(offsets), (layer, file_offset)):
                assert_array_equal(mine, other)


REAL = [
    "dfvfs/ext2.vhd",
    "discutils/btrfs.vhdx",
    "discutils/swap.vhdx",
    "discutils/vhdx-log-replay.vhdx",
    "discutils/xfs.vhdx",
    "dissect.hypervisor/dynamic.vhd",
    "dissect.hypervisor/dynamic.vhdx",
    "dissect.hypervisor/fixed.vhd",
    "plaso/image.vhd",
    "qemu/hyperv2012r2-dynamic.vhd",
    "qemu/iotest-dirtylog-10G-4M.vhdx",
    "qemu/iotest-dynamic-1G.vhdx",
    "qemu/test-disk2vhd.vhdx",
    "qemu/virtualpc-dynamic.vhd",
    "vhd-forensic/minimal.vhd",
    "dfvfs/image-differential.vhd",
]


@pytest.mark.parametrize("name", REAL)
def test_the_walk_the_map_and_the_plan_agree_on_real_images(
    name: str, unpacked: Callable[[str], Path]
) -> None:
    unpacked("dfvfs/image.vhd")
    with vhdtool.open_chain(unpacked(name), ignore_checksums=name.startswith("dfvfs/")) as chain:
        plan = chain.plan()
        some = np.random.default_rng(3).integers(0, chain.virtual_size, 20_000)
        # Both sides of each run's ends, and places anywhere.
        offsets = np.concatenate((plan.offset, plan.offset + plan.length - 1, some))
        row = np.searchsorted(plan.offset, offsets, side="right") - 1
        place = plan.file_offset[row] + np.where(plan.layer[row] < 0, 0, offsets - plan.offset[row])
        for engine in ("numpy", "numba"):
            layer, file_offset, probes = NaiveWalk(chain.images, engine=engine).lookup(offsets)
            found = chain.resolved(engine).runs_at(offsets)

            assert_array_equal(layer, plan.layer[row])
            assert_array_equal(file_offset, place)
            assert_array_equal(found.layer, layer)
            assert_array_equal(found.file_offset, file_offset)
            assert_array_equal(found.probes, probes)


def test_memory_is_that_of_tables_and_bitmaps() -> None:
    geometry = Geometry(64 * 512, 8 * 512)
    states = [BlockState.PARTIAL, BlockState.DATA, *[BlockState.ABSENT] * 6]
    image = FakeImage(geometry, states, {0: [True] * 8})

    walked = NaiveWalk([image], engine="numpy")

    assert walked.nbytes == 8 * ENTRY_BYTES + 1
    assert walked.nbytes <= NaiveWalk.bytes_at_most([image], geometry.virtual_size)


def test_offsets_outside_of_the_range_are_refused() -> None:
    image = FakeImage(Geometry(64 * 512, 8 * 512), [BlockState.DATA] * 8, {})

    with pytest.raises(ValueError, match="not inside the disk"):
        NaiveWalk([image], 0, 65 * 512, engine="numpy")
    walked = NaiveWalk([image], 512, 1024, engine="numpy")
    for offset in (511, 1024, -1):
        with pytest.raises(ValueError, match=r"not inside 512\.\.1024"):
            walked.lookup(np.array([offset]))
    assert len(walked.lookup(np.empty(0, np.int64))[0]) == 0


def test_the_kernels_codes_are_the_models() -> None:
    assert walk.STATE_BITS == STATE_BITS
    codes = (walk.ABSENT, walk.DATA, walk.PARTIAL, walk.DAMAGED)
    assert codes == (BlockState.ABSENT, BlockState.DATA, BlockState.PARTIAL, BlockState.DAMAGED)
    assert (walk.ORIGIN_ZEROS, walk.ORIGIN_DAMAGED) == (ZEROS, DAMAGED)

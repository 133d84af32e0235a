"""The chain as a file: small reads, again and again, give the disk's bytes however they are resolved."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chain.fake import FakeImage, chain_of, fake_chains, truth
from vhdtool.chain import reader as reader_module
from vhdtool.errors import VhdtoolError
from vhdtool.model.geometry import Geometry
from vhdtool.model.state import BlockState


@given(images=fake_chains(), data=st.data())
@pytest.mark.parametrize("walks", [0, 1, 1000])
def test_reads_one_by_one_are_those_of_the_disk(
    walks: int, images: list[FakeImage], data: st.DataObject
) -> None:
    disk = truth(images)
    places = data.draw(st.lists(st.tuples(st.integers(0, len(disk) + 9), st.integers(0, 9000)), max_size=12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader_module, "RUNS_WALKED_MAX", walks)
        patch.setattr(reader_module, "_RUNS_KEPT", data.draw(st.integers(0, 60)))

        with chain_of(*images).open() as file:
            for start, size in places:
                assert file.seek(start) == start
                assert file.read(size) == disk[start : start + size]
                assert file.tell() == max(start, min(start + size, len(disk))) or start > len(disk)
            file.seek(0)
            assert file.read() == disk


def a_chain() -> FakeImage:
    return FakeImage(Geometry(64 * 512, 8 * 512), [BlockState.DATA, BlockState.ZERO] * 4, {})


def test_seeking_is_that_of_files() -> None:
    image = a_chain()
    with chain_of(image).open() as file:
        assert file.seek(-512, io.SEEK_END) == 63 * 512
        assert file.seek(-512, io.SEEK_CUR) == 62 * 512
        assert file.readinto(bytearray(4096)) == 1024
        assert file.read(10) == b""
        assert file.seek(1 << 40) == 1 << 40
        assert file.read(10) == b""
        with pytest.raises(ValueError, match="negative"):
            file.seek(-1)
        with pytest.raises(ValueError, match="whence"):
            file.seek(0, 7)
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


@pytest.mark.parametrize("walks", [0, 1000])
def test_a_damaged_range_is_refused_one_by_one_and_among_many(
    walks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "RUNS_WALKED_MAX", walks)
    image = FakeImage(Geometry(64 * 512, 8 * 512), [BlockState.DATA, BlockState.DAMAGED] * 4, {})
    chain = chain_of(image)

    with chain.open() as file:
        assert file.read(8 * 512) == truth([image])[: 8 * 512]
        with pytest.raises(VhdtoolError, match="cannot be read"):
            file.read(1)
    with pytest.raises(VhdtoolError, match="cannot be read"):
        chain.read_many(np.array([0, 8 * 512 - 100]), 200)

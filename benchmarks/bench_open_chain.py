"""How long opening a deep chain takes, beside other readers and beside the bare reading of headers.

No BAT is read for this.  Each layer has one of 65,536 entries.  dissect opens chains of VHDX only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.chains import GIB, KIB, empty_chain
from benchmarks.contest import Contestant, compete, in_process
from vhdtool import open_chain
from vhdtool.model.identity import ImageFormat

VIRTUAL_SIZE = 128 * GIB
TARGETS = {ImageFormat.VHDX: {"open and 4 reads": 6.0, "libvhdi": 0.6, "dissect": 0.6}, ImageFormat.VHD: {}}
# What no reader can do without: both headers, a region table, the metadata; footer, copy, header, locator.
READS = {
    ImageFormat.VHDX: ((64 * KIB, 4 * KIB), (128 * KIB, 4 * KIB), (192 * KIB, 64 * KIB), (2 << 20, 66 * KIB)),
    ImageFormat.VHD: ((-512, 512), (0, 512), (512, 1024), (4 * KIB, 1 * KIB)),
}


def read_headers(paths: Sequence[Path], reads: Sequence[tuple[int, int]]) -> None:
    """Open each file and read four pieces of it."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        size = os.fstat(descriptor).st_size
        for offset, length in reads:
            os.pread(descriptor, length, offset % size)
        os.close(descriptor)


@pytest.mark.parametrize("image_format", [ImageFormat.VHDX, ImageFormat.VHD], ids=str)
def test_open_chain(
    benchmark: BenchmarkFixture,
    tmp_path: Path,
    measuring: bool,
    libvhdi: Callable[..., dict[str, Contestant]],
    dissect: Callable[..., dict[str, Contestant]],
    image_format: ImageFormat,
) -> None:
    depth = 256 if measuring else 8
    paths = empty_chain(tmp_path, depth, image_format, VIRTUAL_SIZE)

    def ours() -> None:
        with open_chain(paths[0]) as chain:
            assert len(chain.layers) == depth
            assert chain.complete

    names = [str(path) for path in paths]
    is_vhdx = image_format is ImageFormat.VHDX
    peers = {
        **libvhdi(VIRTUAL_SIZE, "open_chain", names),
        **(dissect(VIRTUAL_SIZE, "open_chain_with_dissect", names) if is_vhdx else {}),
        "open and 4 reads": in_process(lambda: read_headers(paths, READS[image_format])),
    }
    compete(benchmark, in_process(ours), peers, rounds=15, targets=TARGETS[image_format])
    benchmark.extra_info.update(depth=depth, bat_entries=VIRTUAL_SIZE >> 21)

"""How long it takes to check the headers of a thousand files, beside libvhdi and the bare reading of them.

dissect cannot take part: it opens the parents of what it opens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.bench_open_chain import READS, read_headers
from benchmarks.chains import GIB, empty_chain
from benchmarks.contest import Contestant, compete, in_process
from vhdtool import open_image
from vhdtool.model.identity import ImageFormat

VIRTUAL_SIZE = 16 * GIB
TARGETS = {ImageFormat.VHDX: {"open and 4 reads": 6.0, "libvhdi": 0.6}, ImageFormat.VHD: {}}
LAYERS = 10


@pytest.mark.parametrize("image_format", [ImageFormat.VHDX, ImageFormat.VHD], ids=str)
def test_list_headers(
    benchmark: BenchmarkFixture,
    tmp_path: Path,
    measuring: bool,
    libvhdi: Callable[..., dict[str, Contestant]],
    image_format: ImageFormat,
) -> None:
    chains = 100 if measuring else 2
    paths = [
        path
        for i in range(chains)
        for path in empty_chain(tmp_path / f"{i}", LAYERS, image_format, VIRTUAL_SIZE)
    ]

    def ours() -> None:
        for path in paths:
            image = open_image(path)
            assert image.geometry.virtual_size == VIRTUAL_SIZE
            assert not image.findings
            image.close()

    peers = {
        **libvhdi(VIRTUAL_SIZE * len(paths), "open_each", [str(path) for path in paths]),
        "open and 4 reads": in_process(lambda: read_headers(paths, READS[image_format])),
    }
    compete(benchmark, in_process(ours), peers, rounds=9, targets=TARGETS[image_format])
    benchmark.extra_info.update(files=len(paths))

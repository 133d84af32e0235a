"""What ``vhdtool info`` costs as a whole process, beside the imports that it cannot do without."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.chains import GIB, empty_chain
from benchmarks.contest import compete, whole_process
from vhdtool.model.identity import ImageFormat


@pytest.mark.parametrize("image_format", [ImageFormat.VHDX, ImageFormat.VHD], ids=str)
def test_info_start(benchmark: BenchmarkFixture, tmp_path: Path, image_format: ImageFormat) -> None:
    leaf, _ = empty_chain(tmp_path, 2, image_format, 128 * GIB)

    peers = {
        "import click, construct": whole_process(sys.executable, "-c", "import click, construct"),
        "pass": whole_process(sys.executable, "-c", "pass"),
    }
    ours = whole_process(sys.executable, "-m", "vhdtool", "info", leaf)
    compete(benchmark, ours, peers, rounds=21)

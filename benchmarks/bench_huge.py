"""What a disk of 64 TiB costs when hardly anything is in it: time and the most memory, by command."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.chains import MIB, TIB, FileSink, writer_for
from benchmarks.contest import compete, peak_mib, whole_process
from vhdtool.model.identity import ImageFormat


def a_huge_image(path: Path, virtual_size: int, block_size: int) -> None:
    """Three blocks: at the start, in the middle and at the end of the disk."""
    sink = FileSink(path)
    writer = writer_for(sink, 0, ImageFormat.VHDX, virtual_size, block_size)
    last = virtual_size // block_size - 1
    for block in (0, last // 2, last):
        writer.write_block(block, b"here" * 1024)
    sink.close(writer.finish())


# A file of 64 TiB is more than most file systems allow: an export writes one of 8 TiB.
@pytest.mark.parametrize("block_size_mib", [1, 32], ids="block={}MiB".format)
@pytest.mark.parametrize("command", ["info", "check", "map", "export"])
def test_huge(
    benchmark: BenchmarkFixture, tmp_path: Path, measuring: bool, command: str, block_size_mib: int
) -> None:
    size = (8 if command == "export" else 64) * TIB if measuring else TIB
    image, target = tmp_path / "huge.vhdx", tmp_path / "huge.raw"
    a_huge_image(image, size, block_size_mib * MIB)
    arguments = [command, str(image), *([str(target)] if command == "export" else [])]

    def prepare() -> None:
        target.unlink(missing_ok=True)
        target.with_name("huge.raw.manifest.json").unlink(missing_ok=True)

    ours = whole_process(sys.executable, "-m", "vhdtool", *arguments)
    compete(benchmark, ours, {}, rounds=3, prepare=prepare)

    if command == "export":
        with target.open("rb") as exported:
            for offset in (0, (size // (block_size_mib * MIB) - 1) // 2 * block_size_mib * MIB):
                exported.seek(offset)
                assert exported.read(8) == b"herehere"
    benchmark.extra_info.update(virtual_size=size, block_size_mib=block_size_mib)
    if sys.platform == "linux":
        prepare()
        benchmark.extra_info["peak MiB"] = round(peak_mib(*arguments), 1)

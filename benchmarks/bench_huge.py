"""What a disk of 64 TiB costs when hardly anything is in it: time and the most memory.

By command for one image, and for lookups in a chain of 64.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.chains import HERE, MIB, TIB, FileSink, a_huge_image, layer_name, writer_for
from benchmarks.contest import Sample, aim, compete, in_process, note, peak_mib, peak_mib_of, whole_process
from vhdtool import open_chain
from vhdtool.chain.resolved import ResolvedMap
from vhdtool.chain.walk import walk
from vhdtool.model.identity import ImageFormat


# A file of 64 TiB is more than most file systems allow: an export writes one of 8 TiB.
@pytest.mark.parametrize("block_size_mib", [1, 32], ids="block={}MiB".format)
@pytest.mark.parametrize("command", ["info", "check", "map", "export"])
def test_huge(
    benchmark: BenchmarkFixture, tmp_path: Path, measuring: bool, command: str, block_size_mib: int
) -> None:
    size = (8 if command == "export" else 64) * TIB if measuring else TIB
    image, target = tmp_path / "huge.vhdx", tmp_path / "huge.raw"
    places = a_huge_image(image, ImageFormat.VHDX, size, block_size_mib * MIB)
    arguments = [command, str(image), *([str(target)] if command == "export" else [])]

    def prepare() -> None:
        target.unlink(missing_ok=True)
        target.with_name("huge.raw.manifest.json").unlink(missing_ok=True)

    ours = whole_process(sys.executable, "-m", "vhdtool", *arguments)
    compete(benchmark, ours, {}, rounds=3, prepare=prepare)

    if command == "export":
        with target.open("rb") as exported:
            for offset in places:
                exported.seek(offset)
                assert exported.read(len(HERE)) == HERE
    benchmark.extra_info.update(virtual_size=size, block_size_mib=block_size_mib)
    if sys.platform == "linux":
        prepare()
        benchmark.extra_info["peak MiB"] = round(peak_mib(*arguments), 1)


LAYERS: Final = 64
BLOCK: Final = 2 * MIB
# Each layer wrote to so many blocks, half of them at random places and half close to each other.
BLOCKS_WRITTEN: Final = 512
WINDOW_MS_TARGET: Final = 50.0

# Opens a chain and looks up as many random bytes as it is told; what it takes to open and survey is in it.
LOOKUPS: Final = """\
import sys
import numpy as np
from vhdtool import open_chain
with open_chain(sys.argv[1]) as chain:
    chain.require_sound()
    offsets = np.random.default_rng(0).integers(0, chain.virtual_size, int(sys.argv[2]))
    chain.resolved("numpy").lookup(offsets)
"""


def a_huge_chain(folder: Path, virtual_size: int, layers: int) -> Path:
    """Layers that each wrote 4 to 64 KiB to some blocks of a disk with nothing else in it; the leaf."""
    dice = random.Random(0)
    block_count = virtual_size // BLOCK
    sectors = BLOCK // 512
    for number in range(layers):
        path = folder / layer_name(number, ImageFormat.VHDX)
        sink = FileSink(path)
        writer = writer_for(sink, number, ImageFormat.VHDX, virtual_size, BLOCK)
        near = block_count // 2 + number * 8
        blocks = {dice.randrange(block_count) for _ in range(BLOCKS_WRITTEN // 2)}
        for block in sorted(blocks | set(range(near, near + BLOCKS_WRITTEN // 2))):
            first, count = dice.randrange(sectors - 128), dice.randrange(8, 129, 8)
            bitmap = (((1 << count) - 1) << first).to_bytes(sectors // 8, "little")
            writer.place_block(block, bitmap if number else None)
        sink.close(writer.finish())
    return path


@pytest.mark.parametrize("lookups", [1, 100_000], ids="lookups={}".format)
def test_lookups_in_a_huge_chain(
    benchmark: BenchmarkFixture, tmp_path: Path, measuring: bool, lookups: int
) -> None:
    size, layers = (64 * TIB, LAYERS) if measuring else (TIB, 8)
    leaf = a_huge_chain(tmp_path, size, layers)
    # One in the middle of what all layers wrote to; many all over the disk.
    offsets = np.array([size // 2 + BLOCKS_WRITTEN // 2 * BLOCK + MIB])
    if lookups > 1:
        offsets = np.random.default_rng(0).integers(0, size, lookups)
    with open_chain(leaf) as chain:
        survey = in_process(chain.require_sound)()

        def ours() -> Sample:
            resolved = ResolvedMap(chain.images)
            sample = in_process(lambda: resolved.lookup(offsets))()
            benchmark.extra_info["map bytes"] = resolved.nbytes
            return sample

        layer, file_offset = ResolvedMap(chain.images).lookup(offsets)
        written = np.flatnonzero(layer >= 0)
        for i in {*range(0, lookups, -(-lookups // 100)), *written[:100].tolist()}:
            run = next(iter(walk(chain.images, int(offsets[i]), int(offsets[i]) + 1)))
            assert (run.layer, run.file_offset) == (layer[i], file_offset[i])
        compete(benchmark, ours, {}, rounds=5)

    if lookups == 1:
        aim(benchmark, "ms for one window", WINDOW_MS_TARGET)
        for clock in ("wall", "cpu"):
            note(benchmark, f"ms for one window {clock}", benchmark.extra_info[f"ours {clock} ms"])
    note(benchmark, "survey wall ms", survey.wall * 1000)
    benchmark.extra_info.update(virtual_size=size, layers=layers, lookups=lookups)
    if sys.platform == "linux":
        note(benchmark, "peak MiB", peak_mib_of(LOOKUPS, leaf, str(lookups)))

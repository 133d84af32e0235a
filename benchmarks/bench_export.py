"""How long a raw export takes as a whole process, beside programs that do the same and ``cp`` of the result.

Outputs are removed right before each run, never after: a machine that gives freed memory back would
make the next writer pay for it.
"""

from __future__ import annotations

import filecmp
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.chains import GIB, MIB, used_chain
from benchmarks.contest import Contestant, compete, whole_process
from vhdtool.model.identity import ImageFormat


class Export:
    """One chain, what it must read as, and where everybody writes it."""

    def __init__(self, folder: Path, measuring: bool, image_format: ImageFormat, layers: int) -> None:
        self.flat = folder / "flat.raw"
        self.target = folder / "target.raw"
        size = GIB if measuring else 32 * MIB
        self.paths = used_chain(folder / "chain", layers, image_format, size, self.flat)
        self.size = size
        self.ours = whole_process(sys.executable, "-m", "vhdtool", "export", self.paths[0], self.target)
        copied = whole_process("cp", self.flat, self.target)
        # Ours waits until the disk has it all; cp by itself does not.
        synced = whole_process("sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", self.flat, self.target)
        self.peers = {"cp": copied, "cp and sync": synced}

    def prepare(self) -> None:
        """Nothing stands where the next one writes."""
        self.target.unlink(missing_ok=True)
        self.target.with_name("target.raw.manifest.json").unlink(missing_ok=True)

    def check(self) -> None:
        """What ours writes is right."""
        self.prepare()
        self.ours()
        assert filecmp.cmp(self.target, self.flat, shallow=False)


@pytest.mark.parametrize("image_format", [ImageFormat.VHDX, ImageFormat.VHD], ids=str)
def test_export_of_a_dynamic_image(
    benchmark: BenchmarkFixture, tmp_path: Path, measuring: bool, image_format: ImageFormat
) -> None:
    export = Export(tmp_path, measuring, image_format, 1)
    peers = dict(export.peers)
    if shutil.which("qemu-img"):
        convert = ["qemu-img", "convert", "-O", "raw"]
        ends = [export.paths[0], export.target]
        peers["qemu-img"] = whole_process(*convert, *ends)
        peers["qemu-img -W -m 8"] = whole_process(*convert, "-W", "-m", "8", *ends)

    compete(benchmark, export.ours, peers, rounds=9, prepare=export.prepare)
    export.check()
    benchmark.extra_info.update(bytes=export.size, depth=0)


@pytest.mark.parametrize("image_format", [ImageFormat.VHDX, ImageFormat.VHD], ids=str)
def test_export_of_a_chain_of_16(
    benchmark: BenchmarkFixture,
    tmp_path: Path,
    measuring: bool,
    libvhdi: Callable[..., dict[str, Contestant]],
    image_format: ImageFormat,
) -> None:
    export = Export(tmp_path, measuring, image_format, 16)
    # libvhdi's time is without the start of its interpreter: it has that advantage.
    names = [str(path) for path in export.paths]
    peers = {**export.peers, **libvhdi(export.size, "export", names, str(export.target))}

    compete(benchmark, export.ours, peers, rounds=5, prepare=export.prepare)
    export.check()
    benchmark.extra_info.update(bytes=export.size, layers=16)

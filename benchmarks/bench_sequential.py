"""What reading a whole disk in pieces of 1 MiB costs, by depth: beside the flat file and other readers.

Every round of ours opens the file object anew, so that it finds out again what is where; other readers keep
their disks open.  7-Zip and qemu-img run as whole processes, and qemu-img reads single images only.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.chains import GIB, MIB, used_chain
from benchmarks.conftest import OtherDisk
from benchmarks.contest import Contestant, Sample, compete, in_process, whole_process
from vhdtool import open_chain
from vhdtool.model.identity import ImageFormat

DEPTHS: Final = (0, 1, 16, 64)
SEVEN_ZIP: Final = shutil.which("7zz") or shutil.which("7z")
QEMU_IMG: Final = shutil.which("qemu-img")


class Readable(Protocol):
    """What gives its bytes piece by piece."""

    def read(self, size: int, /) -> bytes | None: ...


def read_through(disk: Readable, size: int) -> None:
    """Read all of it and let go of it."""
    done = 0
    while data := disk.read(MIB):
        done += len(data)
    assert done == size


def digest(disk: Readable) -> str:
    """The SHA-256 of all of it."""
    digested = sha256()
    while data := disk.read(MIB):
        digested.update(data)
    return digested.hexdigest()


def ours(leaf: Path, size: int) -> Contestant:
    """Reads a chain that was just opened; resolving it is part of the job."""

    def run() -> Sample:
        with open_chain(leaf) as chain:
            chain.require_sound()
            return in_process(lambda: read_through(chain.open(), size))()

    return run


def flat_file(flat: Path, size: int) -> Contestant:
    """Reads the flat disk in the same way."""

    def run() -> Sample:
        with flat.open("rb", buffering=0) as file:
            return in_process(lambda: read_through(file, size))()

    return run


def seven_zip(leaf: Path, truth: str) -> dict[str, Contestant]:
    """Extracts to nowhere; nothing where 7-Zip is not installed."""
    if SEVEN_ZIP is None:
        return {}
    command = [SEVEN_ZIP, "e", "-so", str(leaf)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert digest(process.stdout) == truth, "7-Zip gives other bytes"
    return {"7-Zip": whole_process(*command)}


def qemu_img(leaf: Path, flat: Path) -> dict[str, Contestant]:
    """Converts to a disk that forgets; zeros, which it need not write anywhere, it leaves out."""
    if QEMU_IMG is None:
        return {}
    same = [QEMU_IMG, "compare", "-f", "vhdx", "-F", "raw", str(leaf), str(flat)]
    subprocess.run(same, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    null = f"driver=null-co,size={flat.stat().st_size}"
    command = [QEMU_IMG, "convert", "-n", "--target-image-opts", str(leaf), null]
    return {"qemu-img": whole_process(*command)}


@pytest.mark.parametrize("depth", DEPTHS, ids="depth={}".format)
def test_sequential(
    benchmark: BenchmarkFixture,
    room: Path,
    measuring: bool,
    other_disks: Callable[[list[Path], int], list[OtherDisk]],
    depth: int,
) -> None:
    size = GIB if measuring else 32 * MIB
    folder = room / f"{depth}"
    flat = folder / "flat.raw"
    paths = used_chain(folder / "chain", depth + 1, ImageFormat.VHDX, size, flat)
    with flat.open("rb") as file, open_chain(paths[0]) as chain, chain.open() as disk:
        truth = digest(file)
        assert digest(disk) == truth

    others = other_disks(paths, size)
    for other in others:
        other.contestant(truth, "digest")()  # which answers so, or fails
    peers = {
        "flat file": flat_file(flat, size),
        **{other.reader: other.contestant(size, "read_through") for other in others},
        **seven_zip(paths[0], truth),
        **(qemu_img(paths[0], flat) if depth == 0 else {}),
    }
    compete(benchmark, ours(paths[0], size), peers, rounds=5)
    benchmark.extra_info.update(depth=depth, bytes=size)
    for other in others:
        other.close()
    shutil.rmtree(folder)

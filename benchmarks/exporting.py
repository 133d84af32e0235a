"""What the benchmarks of exports share: who writes what where, and whether it is right.

Outputs are removed right before each run, never after: a machine that gives freed memory back would
make the next writer pay for it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from hashlib import sha256
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

from benchmarks.chains import MIB, Disk
from benchmarks.contest import Contestant, in_process, whole_process
from vhdtool import export_image, open_chain
from vhdtool.export.proof.manifest import manifest_path
from vhdtool.source import FileSource

# Of all flags that qemu-img has for speed, those that count: how many requests at once, and in which order.
QEMU_FLAGS: Final = {
    "qemu-img": [],
    "qemu-img -m 16": ["-m", "16"],
    "qemu-img -W -m 8": ["-W", "-m", "8"],
    "qemu-img -W -m 16": ["-W", "-m", "16"],
}
QEMU_QUICKEST: Final = "qemu-img, its quickest flags"


class Place:
    """Where everybody writes the disk of one point in time, one after the other.

    Attributes:
        disk: the point in time.
        target: the file to write.
    """

    def __init__(self, disk: Disk, target: Path) -> None:
        self.disk = disk
        self.target = target
        self._room = data_bytes(disk.flat)

    def prepare(self) -> None:
        """Nothing stands where the next one writes, and there is memory for what it writes."""
        self.target.unlink(missing_ok=True)
        manifest_path(self.target).unlink(missing_ok=True)
        ask_for_memory(self.target, self._room)

    def ours(self, **options: Any) -> Contestant:
        """Ours in this process, from closed files on; it does not wait for the disk, as cp does not."""
        leaf, target = self.disk.leaf, self.target
        return in_process(lambda: export_image(leaf, target, sync=False, **options))

    def our_command(self, *options: str) -> Contestant:
        """Ours as a whole process."""
        return whole_process(sys.executable, "-m", "vhdtool", "export", *options, self.disk.leaf, self.target)

    def cp(self) -> Contestant:
        """Copies the flat file, holes as holes."""
        return whole_process("cp", self.disk.flat, self.target)

    def cp_then(self, command: str) -> Contestant:
        """``cp`` and then a command of the shell that has the copy as ``$2``."""
        return whole_process("sh", "-c", f'cp "$1" "$2" && {command}', "sh", self.disk.flat, self.target)

    def qemu_img(self, *output: str) -> dict[str, Contestant]:
        """With each set of flags that may be its quickest; nothing where it is not installed."""
        if not shutil.which("qemu-img"):
            return {}
        ends = (self.disk.leaf, self.target)
        return {
            name: whole_process("qemu-img", "convert", *flags, *output, *ends)
            for name, flags in QEMU_FLAGS.items()
        }

    def rehearse(self, contestants: Mapping[str, Contestant]) -> None:
        """Let each write once, outside of the clock: all of them write the right disk."""
        for name, contestant in contestants.items():
            self.prepare()
            contestant()
            assert self.is_right(), name

    def is_right(self) -> bool:
        """Whether the target, raw or an image, is the flat disk."""
        return holds_disk(self.target, self.disk.flat)


def ask_for_memory(path: Path, length: int) -> None:
    """Write and remove so many bytes at ``path``, where nothing stands.

    A hypervisor takes back what was freed seconds ago: whoever writes after a slow contestant would pay for
    getting it again.
    """
    zeros = bytes(MIB)
    with path.open("xb", buffering=0) as file:
        for at in range(0, length, MIB):
            file.write(zeros[: min(MIB, length - at)])
    path.unlink()


def holds_disk(image: Path, flat: Path) -> bool:
    """Whether ``image``, raw or with its parents, has the bytes of ``flat`` and no more."""
    with ExitStack() as stack:
        truth = stack.enter_context(flat.open("rb", buffering=0))
        if image.suffix == ".raw":
            disk = stack.enter_context(image.open("rb"))
        else:
            chain = stack.enter_context(open_chain(image))
            disk = stack.enter_context(BufferedReader(chain.open(), MIB))
        while piece := truth.read(MIB):
            if disk.read(len(piece)) != piece:
                return False
        return not disk.read(1)


def digest_of_data(path: Path) -> Contestant:
    """The SHA-256 of what a file holds, holes left out: read and digested in one thread, piece by piece."""
    buffer = memoryview(bytearray(MIB))

    def job() -> str:
        digest = sha256()
        with FileSource(path) as source:
            for start, stop in source.data_ranges(0, source.size):
                for at in range(start, stop, MIB):
                    view = buffer[: min(MIB, stop - at)]
                    source.read_into(at, view, field="data")
                    digest.update(view)
        return digest.hexdigest()

    return in_process(job)


def digest_in_memory(length: int) -> Contestant:
    """The SHA-256 of so many bytes that need not be read: as fast as hashlib can be."""
    piece = os.urandom(min(length, MIB))

    def job() -> None:
        digest = sha256()
        for at in range(0, length, MIB):
            digest.update(piece[: min(MIB, length - at)])

    return in_process(job)


def data_bytes(path: Path) -> int:
    """How much of a file is no hole."""
    with FileSource(path) as source:
        return sum(stop - start for start, stop in source.data_ranges(0, source.size))


def folder_bytes(paths: Iterable[Path]) -> int:
    """How much of all of them is no hole."""
    return sum(map(data_bytes, paths))

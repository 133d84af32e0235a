"""Exports that are interrupted, in every format, and what they must become in the end: the same bytes.

    python -m tests.export.interrupted FOLDER KIND [resume]

exports in a process of its own what ``a_case`` made in FOLDER.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.export.kit import MIB, HookedSource, a_disk, chain_over, names_in, some_data
from tests.generated import CREATED
from vhdtool.errors import ReadError
from vhdtool.export.containers import shape
from vhdtool.export.create import create_image
from vhdtool.export.job import export_image
from vhdtool.export.options import ExportReport
from vhdtool.export.proof.verify import verify_image
from vhdtool.model.identity import Identity

Hook = Callable[[int, int, int], None]
Patch = Callable[[Any, str, Any], None]


@dataclass(frozen=True)
class Kind:
    """One way to write an image.

    Attributes:
        target: its name.
        step: bytes between the places where going on is possible.
        passes: how often the source is read before it is copied: once where it is compared first.
        options: of the export; ``base`` is a name in the folder of the sources.
    """

    target: str
    step: int = 2 * MIB
    passes: int = 0
    options: dict[str, Any] = field(default_factory=dict)


KINDS = {
    "raw": Kind("disk.raw", options={"hashes": ("sha256",)}),
    "fixed-vhd": Kind("disk.vhd", options={"subformat": "fixed"}),
    "vhd": Kind("disk.vhd"),
    "fixed-vhdx": Kind("disk.vhdx", options={"subformat": "fixed", "block_size": MIB}),
    "vhdx": Kind("disk.vhdx", options={"block_size": MIB, "hashes": ("md5", "sha1")}),
    "vhd-increment": Kind("disk.vhd", passes=1, options={"base": "base.vhd", "compare_content": True}),
    "vhdx-increment": Kind(
        "disk.vhdx",
        passes=1,
        options={"base": "base.vhdx", "compare_content": True, "hashes": ("sha1",)},
    ),
    "raw.zst": Kind("disk.raw.zst", step=16 * MIB),
}


@dataclass(frozen=True)
class Case:
    """A disk that is exported, and what becomes of it.

    Attributes:
        kind: how.
        source: a raw disk.
        out: where the image goes; nothing else is there.
        expected: the image that nobody interrupted.
    """

    kind: Kind
    source: Path
    out: Path
    expected: bytes

    @property
    def target(self) -> Path:
        return self.out / self.kind.target

    @property
    def journal(self) -> Path:
        return self.out / f".{self.kind.target}.journal"

    @property
    def partial(self) -> Path:
        (found,) = self.out.glob(f".{self.kind.target}.*.partial")
        return found

    @property
    def finished(self) -> set[str]:
        """Names of all that is there in the end."""
        sums = self.kind.options.get("hashes", ())
        return {self.kind.target, *(f"{self.kind.target}.{tail}" for tail in ("manifest.json", *sums))}

    def export(self, hook: Hook | None = None, **options: Any) -> ExportReport:
        """Export, with a checkpoint wherever one can be; ``hook`` is called before each read."""
        return export(self.kind, self.source, self.target, hook, **options)

    def has_checkpoint(self) -> bool:
        return self.journal.exists() and b"position" in self.journal.read_bytes()

    def interrupt(self, after: int, **options: Any) -> None:
        """Export until a read fails behind guest byte ``after``; there must be something to go on with."""
        try:
            self.export(failing_behind(after, self.kind.passes, self.has_checkpoint), **options)
        except ReadError:
            assert self.journal.exists()
            return
        raise AssertionError("the export came to its end")

    def require_done(self) -> None:
        """All is as if nothing had happened, and nothing else is there."""
        assert names_in(self.out) == self.finished
        assert self.target.read_bytes() == self.expected
        assert verify_image(self.target).ok

    def kept(self) -> dict[str, bytes]:
        """The files that are there, to put them back."""
        return {path.name: path.read_bytes() for path in self.out.iterdir()}

    def put_back(self, files: dict[str, bytes]) -> None:
        for path in self.out.iterdir():
            path.unlink()
        for name, content in files.items():
            (self.out / name).write_bytes(content)
            (self.out / name).chmod(0o600)

    def journal_lines(self) -> list[dict[str, Any]]:
        """The records of the journal."""
        return [json.loads(line.split(b" ", 1)[1]) for line in self.journal.read_bytes().splitlines()]


def failing_behind(guest: int, passes: int, is_time: Callable[[], bool]) -> Hook:
    """A hook that fails reads of bytes from ``guest`` on, after ``passes`` over all, when it ``is_time``."""
    last = 0

    def hook(reads: int, offset: int, length: int) -> None:
        nonlocal last, passes
        if offset < last:
            passes -= 1
        last = offset
        if offset + length > guest and not passes:
            # What was copied is digested, and noted, in another thread.
            until = time.monotonic() + 10
            while not is_time() and time.monotonic() < until:
                time.sleep(0.001)
            raise ReadError(f"cannot read disk at {offset:#x}: Input/output error")

    return hook


def export(kind: Kind, source: Path, target: Path, hook: Hook | None = None, **options: Any) -> ExportReport:
    """One export of ``kind``, with checkpoints as often as there can be some."""
    wanted = {"checkpoint_seconds": 0.0, "sync": False, **kind.options, **options}
    if wanted.get("base"):
        wanted["base"] = source.parent / wanted["base"]
    with chain_over(HookedSource(source, hook or (lambda reads, offset, length: None)), source) as chain:
        return export_image(chain, target, **wanted)


def a_case(folder: Path, name: str, patch: Patch = setattr, *, steps: int = 4) -> Case:
    """A disk of ``steps`` steps and a bit; some of each step is data, some of it is zeros.

    All images get the same identities and the same time from now on: by ``patch``, which is like ``setattr``.
    """
    kind = KINDS[name]
    size = steps * kind.step + 100 * 1024
    data = {0: some_data(70_000)}
    for at in range(kind.step, size - 512, kind.step):
        data[at] = some_data(3000, at)
        data[at - 300_000] = some_data(200_000, at + 1)
        data[at + 600_000] = some_data(600_000, at + 2)
    data[2 * kind.step] = bytes(kind.step)  # data that are zeros
    data[size - 512] = some_data(512, 5)
    folder.mkdir(exist_ok=True)
    source = a_disk(folder / "source.raw", size, data)
    if "base" in kind.options:
        older = {at: some_data(len(piece), at) if at % 3 == 1 else piece for at, piece in data.items()}
        older |= {at + 1_500_000: some_data(70_000, at) for at in range(0, steps * kind.step, kind.step)}
        raw = a_disk(folder / "older.raw", size, older)
        name_things_alike(patch, 8)
        create_image(folder / kind.options["base"], source=raw)
        raw.unlink()
    out = folder / "out"
    out.mkdir()
    name_things_alike(patch, 7)
    export(kind, source, out / kind.target)
    expected = (out / kind.target).read_bytes()
    shutil.rmtree(out)
    out.mkdir()
    return Case(kind, source, out, expected)


def name_things_alike(patch: Patch, number: int) -> None:
    """Let all images have the same identities and the same time."""
    patch(shape, "_new_identity", lambda: Identity.of_uuid(UUID(int=number)))
    patch(shape.Wanted, "_created", lambda wanted: wanted.identities.created or CREATED)


if __name__ == "__main__":
    name_things_alike(setattr, 7)
    folder, kind = Path(sys.argv[1]), KINDS[sys.argv[2]]
    export(
        kind,
        folder / "source.raw",
        folder / "out" / kind.target,
        checkpoint_seconds=0.02,
        sync=True,
        resume="resume" in sys.argv,
    )

"""Exports that are killed at every call that changes the disk, one after the other.  Run by test_job.py.

    python -m tests.export.killed FOLDER new|force

Each export runs in a fork that kills itself before or after its n-th call; what it left is judged here.
Prints one JSON object: how many were killed, how many had published, and what was wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.export.kit import CHUNK, a_disk, chain_over, open_raw, some_data
from vhdtool.export.job import export_image
from vhdtool.export.verify import verify_image
from vhdtool.source import FileSource

CALLS = ("open", "pwrite", "ftruncate", "fsync", "close", "link", "unlink", "replace", "rename")
OLD = b"what stood there before"


class Killer:
    """Counts calls and kills the process at one of them."""

    def __init__(self, at: int, after: bool) -> None:
        self._left = at
        self._after = after

    def wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **options)
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


def run_killed(source: Path, target: Path, force: bool, at: int, after: bool) -> bool:
    """Export in a fork; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            killer = Killer(at, after)
            with chain_over(FileSource(source), source) as chain:
                for name in CALLS:
                    setattr(os, name, killer.wrapped(getattr(os, name)))
                export_image(chain, target, force=force)
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WIFSIGNALED(status)


def judge(folder: Path, source: Path, target: Path, force: bool) -> tuple[bool, list[str]]:
    """Whether the new image is there, and what is wrong."""
    wrong = []
    manifest = Path(f"{target}.manifest.json")
    published = target.exists() and target.read_bytes() == source.read_bytes()
    if target.exists() and not published and not (force and target.read_bytes() == OLD):
        wrong.append("a target that is not whole")
    if manifest.exists():
        if manifest.read_bytes() == OLD:
            if published:
                wrong.append("an old manifest beside a new image")
        elif not published or not verify_image(target).ok:
            wrong.append("a manifest that does not fit")
    known = {target.name, manifest.name}
    others = {entry.name for entry in folder.iterdir()} - known
    if any(not (name.startswith(".") and name.endswith(".partial")) for name in others):
        wrong.append(f"strange files: {others}")
    return published, wrong


def main(folder: Path, force: bool) -> None:
    data = {0: some_data(CHUNK), 3 * CHUNK: some_data(700_000, 2), 6 * CHUNK: some_data(512, 3)}
    source = a_disk(folder / "source.raw", 7 * CHUNK, data)
    with open_raw(source) as chain:
        # Everything that is imported late is imported now.
        export_image(chain, folder / "warm.raw")
    counts = {"killed": 0, "published": 0}
    wrong: list[str] = []
    for after in (False, True):
        at = 1
        killed = True
        while killed:
            work = folder / "work"
            work.mkdir()
            target = work / "disk.raw"
            if force:
                target.write_bytes(OLD)
                Path(f"{target}.manifest.json").write_bytes(OLD)
            killed = run_killed(source, target, force, at, after)
            published, found = judge(work, source, target, force)
            wrong += [f"killed {'after' if after else 'before'} call {at}: {what}" for what in found]
            counts["killed"] += killed
            counts["published"] += killed and published
            shutil.rmtree(work)
            at += 1
    print(json.dumps({**counts, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "force")

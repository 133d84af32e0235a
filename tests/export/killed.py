"""Exports that are killed at every call that changes the disk, one after the other, and gone on with.

    python -m tests.export.killed FOLDER KIND new|force EVERY
    python -m tests.export.killed FOLDER KIND forks|processes COUNT

Each export runs in a fork that kills itself before a call, or in the middle of a write; what it left is
judged here, gone on with, and judged again.  Of the writes of data only each EVERY-th is taken.  Prints one
JSON object: how many were killed, how many had published, how many were gone on with in their middle, and
what was wrong.  With "forks", and with "processes" that begin from nothing, exports are killed at random
moments instead, and so are, now and then, those that go on with what they left.  Run by test_resume.py.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.export.interrupted import Case, a_case
from tests.export.kit import names_in
from vhdtool.errors import TargetExistsError, VhdtoolError
from vhdtool.export.proof.verify import verify_image

CALLS = ("open", "pwrite", "write", "ftruncate", "fsync", "close", "link", "unlink", "replace", "rename")
OLD = b"what stood there before"


class Calls:
    """Lists the calls of a process, and kills it at one of them.

    Args:
        at: number of that call, the first is 0; -1 is none.
        torn: kill it in the middle of that call, a write, not before it.
    """

    def __init__(self, at: int = -1, torn: bool = False) -> None:
        self.names: list[str] = []
        self._at = at
        self._torn = torn
        self._guard = threading.Lock()

    @contextmanager
    def listed(self) -> Iterator[None]:
        real = {name: getattr(os, name) for name in CALLS}
        for name, call in real.items():
            setattr(os, name, self._wrapped(name, call))
        try:
            yield
        finally:
            for name, call in real.items():
                setattr(os, name, call)

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **options)
            with self._guard:
                number = len(self.names)
                self.names.append(name)
            if number == self._at:
                self._torn = self._torn and name in ("write", "pwrite")
                if self._torn:
                    descriptor, data, *rest = args
                    real(descriptor, memoryview(data)[: len(data) // 2], *rest)
                os.kill(os.getpid(), signal.SIGKILL)
            # A kill loses nothing that was written, so there is no need to wait for the disk.
            return None if name == "fsync" else real(*args, **options)

        return call


def killed(case: Case, at: int, torn: bool, **options: Any) -> bool:
    """Export in a fork; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            with Calls(at, torn).listed():
                case.export(sync=True, **options)
        except BaseException:  # noqa: BLE001 - this process is a copy of one that goes on
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status) and status:
        raise RuntimeError("the export failed")
    return os.WIFSIGNALED(status)


class Judge:
    """Looks at what kills leave.  ``wrong`` lists what should not be."""

    def __init__(self, case: Case, force: bool) -> None:
        self._case = case
        self._force = force
        self._manifest = Path(f"{case.target}.manifest.json")
        self.wrong: list[str] = []

    def prepare(self) -> None:
        """The folder before an export."""
        self._case.put_back({})
        if self._force:
            self._case.target.write_bytes(OLD)
            self._manifest.write_bytes(OLD)

    def is_published(self, when: str) -> bool:
        """Whether the new image is there; what is there must be whole or old."""
        case = self._case
        old = OLD if self._force else None
        content = case.target.read_bytes() if case.target.exists() else None
        published = content == case.expected
        if not published and content != old:
            self.wrong.append(f"{when}: a target that is not whole")
        manifest = self._manifest.read_bytes() if self._manifest.exists() else None
        if manifest == OLD and published:
            self.wrong.append(f"{when}: an old manifest beside a new image")
        if manifest not in (None, OLD) and not (published and verify_image(case.target).ok):
            self.wrong.append(f"{when}: a manifest that does not fit")
        others = names_in(case.out) - case.finished
        if any(not (name.startswith(".") and name.endswith((".partial", ".journal"))) for name in others):
            self.wrong.append(f"{when}: strange files: {others}")
        if len(others) > 1 + len(case.finished):  # the journal, and one of each
            self.wrong.append(f"{when}: too many files: {others}")
        return published

    def go_on(self, when: str) -> int:
        """Go on with what is there, and judge the end; returns where it was gone on."""
        case = self._case
        resumed_at = 0
        is_done = case.target.exists() and case.finished == names_in(case.out)
        try:
            with suppress(*((TargetExistsError,) if is_done else ())):
                resumed_at = case.export(resume=True, force=self._force).resumed_at
            case.require_done()
        except (VhdtoolError, AssertionError) as error:
            self.wrong.append(f"{when}, gone on with: {error!r}, {sorted(names_in(case.out))}")
        return resumed_at


def selected(names: list[str], every: int) -> Iterator[tuple[int, bool]]:
    """Which calls are taken, as (number, in its middle)."""
    writes = 0
    for number, name in enumerate(names):
        is_write = name in ("pwrite", "write")
        if name == "pwrite":
            writes += 1
            if writes % every:
                continue
        yield number, False
        if is_write:
            yield number, True
    yield len(names), False


def main(folder: Path, kind: str, force: bool, every: int) -> None:
    case = a_case(folder, kind)
    judge = Judge(case, force)
    judge.prepare()
    calls = Calls()
    with calls.listed():
        case.export(sync=True, force=force)
    counts: Counter[str] = Counter()
    for number, torn in selected(calls.names, every):
        # Journal and image are written by two threads, so the order is not always the same.
        when = f"killed {'in' if torn else 'before'} call {number} of {len(calls.names)}"
        judge.prepare()
        try:
            was_killed = killed(case, number, torn, force=force)
        except ValueError:
            continue
        published = judge.is_published(when)
        counts["killed"] += was_killed
        counts["published"] += was_killed and published
        counts["gone on with"] += judge.go_on(when) > 0
    print(json.dumps({**counts, "wrong": judge.wrong}))


def started(case: Case, folder: Path, kind: str, of_its_own: bool, resume: bool) -> int:
    """The number of a process that exports."""
    if of_its_own:
        arguments = [sys.executable, "-m", "tests.export.interrupted", str(folder), kind]
        return os.posix_spawn(sys.executable, [*arguments, *(["resume"] if resume else [])], os.environ)
    child = os.fork()
    if child == 0:
        try:
            case.export(sync=True, checkpoint_seconds=0.02, resume=resume)
        except BaseException:  # noqa: BLE001 - this process is a copy of one that goes on
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def ended(child: int, seconds: float) -> tuple[int, float]:
    """Kill a process after so many seconds: its status, and after how many it ended."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status, time.monotonic() - began
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1], seconds


def at_random(folder: Path, kind: str, of_its_own: bool, count: int) -> None:
    """Kill ``count`` exports at random moments between their beginning and their end."""
    case = a_case(folder, kind, steps=6 if kind == "raw.zst" else 32)
    judge = Judge(case, force=False)
    rng = random.Random(count)
    began = time.monotonic()
    child = started(case, folder, kind, of_its_own, resume=False)
    while not case.journal.exists() and not case.target.exists():
        time.sleep(0.001)
    first = time.monotonic() - began
    status, last = ended(child, 60)
    last += first
    if status:
        raise RuntimeError("the export failed")
    counts: Counter[str] = Counter()
    while counts["killed"] < count and counts["jobs"] < 3 * count:
        counts["jobs"] += 1
        when = f"kill {counts['killed']}"
        judge.prepare()
        resume = False
        while not resume or (rng.random() < 0.3 and names_in(case.out) != case.finished):
            child = started(case, folder, kind, of_its_own, resume)
            status, seconds = ended(child, rng.uniform(first, last))
            if not os.WIFSIGNALED(status):
                # The machine is not always equally busy.
                last = max(seconds, first + 0.01)
                if status:
                    judge.wrong.append(f"{when}: the export failed")
                break
            counts["killed"] += 1
            counts["published"] += judge.is_published(when)
            resume = True
            last *= 1.02
        counts["gone on with"] += judge.go_on(when) > 0
    print(json.dumps({**counts, "seconds": [first, last], "wrong": judge.wrong}))


if __name__ == "__main__":
    if sys.argv[3] in ("forks", "processes"):
        at_random(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "processes", int(sys.argv[4]))
    else:
        main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "force", int(sys.argv[4]))

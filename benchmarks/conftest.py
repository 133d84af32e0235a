"""What all benchmarks share: how large to make things, and libvhdi in another interpreter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.contest import Contestant, Sample
from vhdtool.chain import engine

if not hasattr(os, "wait4") or not hasattr(os, "pwrite"):
    collect_ignore_glob = ["bench_*.py"]


@pytest.fixture(scope="session")
def measuring(request: pytest.FixtureRequest) -> bool:
    """Whether anything is measured; otherwise each benchmark runs once, and small, so that it cannot rot."""
    option = request.config.getoption
    return bool(option("--benchmark-enable") or not option("--benchmark-disable"))


class Libvhdi:
    """libvhdi in the interpreter that ``VHDTOOL_ORACLE_PYTHON`` names."""

    def __init__(self, python: str) -> None:
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name("oracle.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, job: str, *arguments: object) -> dict[str, Any]:
        """What ``job`` answered and how long it took, measured over there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"job": job, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        reply: dict[str, Any] = json.loads(self._process.stdout.readline())
        return reply

    def contestant(self, expected: object, job: str, *arguments: object) -> Contestant:
        """A contestant that does ``job`` there and must answer ``expected``."""

        def run() -> Sample:
            reply = self.ask(job, *arguments)
            assert reply["answer"] == expected
            return Sample(reply["wall"], reply["cpu"])

        return run

    def close(self) -> None:
        """End the other program."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="session")
def other_python() -> Iterator[Libvhdi | None]:
    """The program with other readers; None where there is no such interpreter."""
    python = os.environ.get("VHDTOOL_ORACLE_PYTHON")
    if not python:
        yield None
        return
    other = Libvhdi(python)
    yield other
    other.close()


@pytest.fixture(scope="session")
def libvhdi(other_python: Libvhdi | None) -> Callable[..., dict[str, Contestant]]:
    """Gives ``{"libvhdi": contestant}``, or nothing where libvhdi is not at hand."""
    other = other_python
    if other is None:
        return lambda expected, job, *arguments: {}
    return lambda expected, job, *arguments: {"libvhdi": other.contestant(expected, job, *arguments)}


@pytest.fixture(scope="session")
def dissect(other_python: Libvhdi | None) -> Callable[..., dict[str, Contestant]]:
    """The same for dissect; does the job once before, for its import is not to be timed."""

    def contestants(expected: object, job: str, *arguments: object) -> dict[str, Contestant]:
        if other_python is None or "dissect" not in other_python.ask("readers")["answer"]:
            return {}
        contestant = other_python.contestant(expected, job, *arguments)
        contestant()
        return {"dissect": contestant}

    return contestants


class OtherDisk:
    """A chain's disk, opened by another reader and kept open.

    Attributes:
        reader: "libvhdi" or "dissect".
    """

    def __init__(self, other: Libvhdi, reader: str, paths: Sequence[Path], virtual_size: int) -> None:
        self.reader = reader
        self._other = other
        self._leaf = str(paths[0])
        assert other.ask("open_disk", reader, [str(path) for path in paths])["answer"] == virtual_size

    def contestant(self, expected: object, job: str, *arguments: object) -> Contestant:
        """A contestant that does ``job`` with the disk and must answer ``expected``."""
        return self._other.contestant(expected, job, self.reader, self._leaf, *arguments)

    def close(self) -> None:
        """Let go of it."""
        self._other.ask("close_disk", self.reader, self._leaf)


@pytest.fixture(scope="session")
def other_disks(other_python: Libvhdi | None) -> Callable[[Sequence[Path], int], list[OtherDisk]]:
    """Opens a VHDX chain, paths leaf first, of a disk of so many bytes, with each reader that is at hand."""

    def opened(paths: Sequence[Path], virtual_size: int) -> list[OtherDisk]:
        if other_python is None:
            return []
        names = other_python.ask("readers")["answer"]
        return [OtherDisk(other_python, name, paths, virtual_size) for name in names]

    return opened


@pytest.fixture
def fresh_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are chosen as in a process that has just begun.

    An earlier benchmark may have started numba, which is then cheaper than for whoever starts it first.
    """
    monkeypatch.setattr(engine, "_numba", None)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for what a whole file's benchmarks share; gone afterwards, for it may hold gigabytes."""
    folder = tmp_path_factory.mktemp("room")
    yield folder
    shutil.rmtree(folder)

"""What all benchmarks share: how large to make things, and libvhdi in another interpreter."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.contest import Contestant, Sample

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
def libvhdi() -> Iterator[Callable[..., dict[str, Contestant]]]:
    """Gives ``{"libvhdi": contestant}``, or nothing where libvhdi is not at hand."""
    python = os.environ.get("VHDTOOL_ORACLE_PYTHON")
    if not python:
        yield lambda expected, job, *arguments: {}
        return
    other = Libvhdi(python)
    yield lambda expected, job, *arguments: {"libvhdi": other.contestant(expected, job, *arguments)}
    other.close()

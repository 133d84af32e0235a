"""libvhdi's side of the comparisons, run by the interpreter that ``VHDTOOL_ORACLE_PYTHON`` names.

Not a module of ours: it is a program that reads one JSON request a line from stdin and answers each with a
line on stdout: what it found, and the wall and CPU seconds that it took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pyvhdi

PIECE = 1 << 20


def opened(paths: list[str]) -> list[pyvhdi.file]:
    """The images at ``paths``, leaf first, each with its parent set."""
    layers = []
    for path in paths:
        layer = pyvhdi.file()
        layer.open(path)
        layers.append(layer)
    for child, parent in pairwise(layers):
        child.set_parent(parent)
    return layers


def closed(layers: list[pyvhdi.file]) -> None:
    """Let go of ``layers``."""
    for layer in layers:
        layer.close()


def open_chain(paths: list[str]) -> int:
    """Open a chain; the leaf's size."""
    layers = opened(paths)
    size: int = layers[0].get_media_size()
    closed(layers)
    return size


def open_each(paths: list[str]) -> int:
    """Open images one after the other; the sum of their sizes."""
    total = 0
    for path in paths:
        layer = pyvhdi.file()
        layer.open(path)
        total += layer.get_media_size()
        layer.close()
    return total


def export(paths: list[str], target: str) -> int:
    """Write a chain's disk to ``target``, zeros left out; its size."""
    layers = opened(paths)
    leaf = layers[0]
    size: int = leaf.get_media_size()
    zeros = bytes(PIECE)
    with open(target, "wb", buffering=0) as sink:  # noqa: PTH123
        for offset in range(0, size, PIECE):
            data = leaf.read_buffer_at_offset(min(PIECE, size - offset), offset)
            if data != zeros[: len(data)]:
                os.pwrite(sink.fileno(), data, offset)
        sink.truncate(size)
    closed(layers)
    return size


JOBS: dict[str, Callable[..., Any]] = {"open_chain": open_chain, "open_each": open_each, "export": export}


def main() -> None:
    """Answer requests until there are no more."""
    for line in sys.stdin:
        request = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        answer = JOBS[request["job"]](*request["arguments"])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(json.dumps({"answer": answer, "wall": wall, "cpu": cpu}), flush=True)


if __name__ == "__main__":
    main()

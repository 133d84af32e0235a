"""libvhdi's side of the comparisons, run by the interpreter that ``VHDTOOL_ORACLE_PYTHON`` names.

Not a module of ours: it is a program that reads one JSON request a line from stdin and answers each with a
line on stdout: what it found, and the wall and CPU seconds that it took.  A job that answers with a function
has that called after the clock has stopped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyvhdi

PIECE = 1 << 20
# Of 32 KiB, 256 KiB, 1 MiB and 8 MiB the quickest for libvhdi, at depth 16, 64 and 255; 8 MiB is the slowest.
EXPORT_PIECE = 256 << 10


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


def open_chain_with_dissect(paths: list[str]) -> int:
    """Open a VHDX chain, whose parents dissect finds by itself; the leaf's size."""
    from dissect.hypervisor.disk.vhdx import VHDX

    disk = VHDX(Path(paths[0]))
    layer, depth = disk, 1
    while layer.parent is not None:
        layer, depth = layer.parent, depth + 1
    assert depth == len(paths)
    return int(disk.size)


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
    zeros = bytes(EXPORT_PIECE)
    with open(target, "wb", buffering=0) as sink:  # noqa: PTH123
        for offset in range(0, size, EXPORT_PIECE):
            data = leaf.read_buffer_at_offset(min(EXPORT_PIECE, size - offset), offset)
            if data != zeros[: len(data)]:
                os.pwrite(sink.fileno(), data, offset)
        sink.truncate(size)
    closed(layers)
    return size


# ------------------------------------------------------------ disks that stay open between requests

# Reads so many bytes from a guest byte on; by reader and leaf.
Read = Callable[[int, int], bytes]
_disks: dict[tuple[str, str], tuple[Read, int, Callable[[], object]]] = {}


def readers() -> list[str]:
    """Who can open disks here."""
    return ["libvhdi", *(["dissect"] if find_spec("dissect") and find_spec("dissect.hypervisor") else [])]


def open_disk(reader: str, paths: list[str]) -> int:
    """Open a chain for the jobs below; its size."""
    if reader == "libvhdi":
        layers = opened(paths)
        size: int = layers[0].get_media_size()
        _disks[reader, paths[0]] = layers[0].read_buffer_at_offset, size, lambda: closed(layers)
        return size
    from dissect.hypervisor.disk.vhdx import VHDX

    disk = VHDX(Path(paths[0]))

    def read(length: int, offset: int) -> bytes:
        disk.seek(offset)
        data: bytes = disk.read(length)
        return data

    _disks[reader, paths[0]] = read, disk.size, lambda: None
    return int(disk.size)


def close_disk(reader: str, leaf: str) -> None:
    """Let go of one."""
    _, _, close = _disks.pop((reader, leaf))
    close()


def read_each(reader: str, leaf: str, offsets: list[int], length: int) -> Callable[[], str]:
    """Read from each of ``offsets``; the SHA-256 of all of it, computed outside the clock."""
    read, _, _ = _disks[reader, leaf]
    pieces = [read(length, offset) for offset in offsets]
    return lambda: sha256(b"".join(pieces)).hexdigest()


def read_through(reader: str, leaf: str) -> int:
    """Read the whole disk piece by piece and let go of it; how much came."""
    read, size, _ = _disks[reader, leaf]
    return sum(len(read(min(PIECE, size - offset), offset)) for offset in range(0, size, PIECE))


def digest(reader: str, leaf: str) -> str:
    """The SHA-256 of the whole disk."""
    read, size, _ = _disks[reader, leaf]
    digested = sha256()
    for offset in range(0, size, PIECE):
        digested.update(read(min(PIECE, size - offset), offset))
    return digested.hexdigest()


JOBS: dict[str, Callable[..., Any]] = {
    "open_chain": open_chain,
    "open_chain_with_dissect": open_chain_with_dissect,
    "open_each": open_each,
    "export": export,
    "readers": readers,
    "open_disk": open_disk,
    "close_disk": close_disk,
    "read_each": read_each,
    "read_through": read_through,
    "digest": digest,
}


def main() -> None:
    """Answer requests until there are no more."""
    for line in sys.stdin:
        request = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        answer = JOBS[request["job"]](*request["arguments"])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if callable(answer):
            answer = answer()
        print(json.dumps({"answer": answer, "wall": wall, "cpu": cpu}), flush=True)


if __name__ == "__main__":
    main()

"""Small disks, chains over them, and sources that fail when they are told to."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vhdtool.chain.chain import Chain, FoundBy, Layer, LinkVerdict
from vhdtool.errors import ReadError
from vhdtool.formats.raw import RawImage
from vhdtool.source import ByteSource, FileSource

CHUNK = 2 << 20
MIB = 1 << 20


def some_data(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def a_disk(path: Path, size: int = 5 * MIB + 512, data: dict[int, bytes] | None = None) -> Path:
    """A sparse raw disk with ``data`` at those offsets."""
    if data is None:
        data = {0: some_data(70_000), 3 * MIB + 4096: some_data(300_000, 2), size - 512: some_data(512, 3)}
    with path.open("wb") as file:
        for offset, piece in data.items():
            file.seek(offset)
            file.write(piece)
        file.truncate(size)
    return path


def chain_over(source: ByteSource, path: Path | None = None) -> Chain:
    """A chain of one raw image over ``source``."""
    return Chain([Layer(RawImage(source), path or Path(source.name), FoundBy.GIVEN, LinkVerdict.BASE)])


def open_raw(path: Path) -> Chain:
    return chain_over(FileSource(path), path)


class HookedSource(FileSource):
    """Calls ``hook(number, offset, length)`` before every read; the first has number 1."""

    def __init__(self, path: Path, hook: Callable[[int, int, int], None]) -> None:
        super().__init__(path)
        self.reads = 0
        self._hook = hook

    @property
    def descriptor(self) -> None:
        """None: nobody reads past the hook."""

    def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
        self.reads += 1
        self._hook(self.reads, offset, len(buffer))
        super().read_into(offset, buffer, field=field)


def failing_at(number: int) -> Callable[[int, int, int], None]:
    """A hook that fails one read."""

    def hook(reads: int, offset: int, length: int) -> None:
        if reads == number:
            raise ReadError(f"cannot read disk at {offset:#x}: Input/output error")

    return hook


def failing_in(start: int, stop: int) -> Callable[[int, int, int], None]:
    """A hook that fails every read that touches file bytes [start, stop)."""

    def hook(reads: int, offset: int, length: int) -> None:
        if offset < stop and start < offset + length:
            raise ReadError(f"cannot read disk at {offset:#x}: Input/output error")

    return hook


def naive_chunks(disk: bytes, chunk_size: int = CHUNK) -> list[bytes]:
    """The real digest of every chunk."""
    return [hashlib.sha256(disk[at : at + chunk_size]).digest() for at in range(0, len(disk), chunk_size)]


def naive_root(disk: bytes, chunk_size: int = CHUNK) -> str:
    return hashlib.sha256(b"".join(naive_chunks(disk, chunk_size))).hexdigest()


def names_in(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def allocated(path: Path) -> int:
    """Bytes that a file takes on its disk."""
    return path.stat().st_blocks * 512


def failing_call(monkeypatch: Any, name: str, error: int, at: int = 1) -> None:
    """Let the ``at``-th call of ``os.<name>`` and all after it fail with ``error``."""
    real = getattr(os, name)
    calls = 0

    def call(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= at:
            raise OSError(error, os.strerror(error))
        return real(*args, **options)

    monkeypatch.setattr(os, name, call)

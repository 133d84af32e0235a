"""Raw images that begin as the copy of another one: their bytes, and the digests that are not made anew."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.export.kit import MIB, HookedSource, a_disk, allocated, some_data
from vhdtool.export.containers import target as target_module
from vhdtool.export.containers.clone import CloneContainer, FilledGaps, InheritingDigester
from vhdtool.export.containers.target import TargetFile
from vhdtool.export.moving.pipeline import Consumer
from vhdtool.export.proof.digest import ChunkDigester, WholeDigest, zeros_digest
from vhdtool.export.proof.manifest import ChunkRun
from vhdtool.source import FileSource

CHUNK = 1 << 20


class Runs:
    """A sink that keeps the chunks as a manifest has them."""

    def __init__(self) -> None:
        self.rows: list[ChunkRun] = []

    def add(self, digest: bytes | None, count: int) -> None:
        start = self.rows[-1].start + self.rows[-1].count if self.rows else 0
        self.rows.append(ChunkRun(start, count, digest))

    def real(self, size: int) -> list[bytes]:
        """The digest of every chunk, zeros with their own."""
        lengths = [min(CHUNK, size - at) for at in range(0, size, CHUNK)]
        digests = [row.digest for row in self.rows for _ in range(row.count)]
        return [
            zeros_digest(length) if digest is None else digest for digest, length in zip(digests, lengths)
        ]


def chunks_of(disk: bytes) -> Runs:
    runs = Runs()
    digester = ChunkDigester(runs, CHUNK)
    digester.data(memoryview(disk))
    digester.finish()
    return runs


def a_child(rng: random.Random, size: int) -> list[tuple[str, int]]:
    """What a child has, in order: ("data" | "zeros" | "gap", length)."""
    parts = []
    while size:
        odd = 512 * rng.randrange(1, 5000)
        length = min(size, rng.choice([512, 4096, CHUNK // 2, CHUNK, 3 * CHUNK, odd]))
        parts.append((rng.choice(["data", "zeros", "gap", "gap"]), length))
        size -= length
    return parts


@pytest.mark.parametrize("grown", [0, 512, CHUNK, 3 * CHUNK + 1536])
@pytest.mark.parametrize("seed", range(8))
def test_a_clone_is_digested_as_the_whole_disk_that_it_is(grown: int, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    size = 512 * rng.randrange(1, 20_000)
    parent = a_disk(tmp_path / "parent.raw", size, {0: some_data(min(size, 3 * CHUNK + 700), seed)})
    below = parent.read_bytes()
    child = bytearray(below.ljust(size + grown, b"\0"))
    runs, record = Runs(), Runs()
    whole = WholeDigest("sha256")
    with FileSource(parent) as source, TargetFile(tmp_path / "child.raw") as target:
        container = CloneContainer(target, source, len(child))
        consumers: list[Consumer] = [
            InheritingDigester(record, source, iter(chunks_of(below).rows), len(child), CHUNK),
            FilledGaps(ChunkDigester(runs, CHUNK), source),
            FilledGaps(whole, source),
        ]
        position = 0
        for kind, length in a_child(rng, len(child)):
            part = slice(position, position + length)
            if kind == "data":
                child[part] = some_data(length, position)
                container.write_at(position, bytes(child[part]))
                for consumer in consumers:
                    consumer.data(memoryview(bytes(child[part])))
            elif kind == "zeros":
                child[part] = bytes(length)
                container.zeros(position, length)
                for consumer in consumers:
                    consumer.zeros(length)
            else:
                for consumer in consumers:
                    consumer.gap(length)
            position += length
        for consumer in consumers:
            consumer.finish()
        target.finish(container.finish())
        target.publish()

    assert (tmp_path / "child.raw").read_bytes() == child
    expected = chunks_of(bytes(child)).real(len(child))
    assert record.real(len(child)) == runs.real(len(child)) == expected


def test_chunks_that_a_child_does_not_touch_are_not_read(tmp_path: Path) -> None:
    parent = a_disk(tmp_path / "parent.raw", 8 * CHUNK, {0: some_data(8 * CHUNK)})
    read: list[tuple[int, int]] = []
    source = HookedSource(parent, lambda number, offset, length: read.append((offset, length)))
    record = Runs()
    digester = InheritingDigester(record, source, iter(chunks_of(parent.read_bytes()).rows), 8 * CHUNK, CHUNK)

    digester.gap(3 * CHUNK + 4096)
    digester.data(memoryview(some_data(512)))
    digester.gap(5 * CHUNK - 4096 - 512)
    digester.finish()
    source.close()

    assert sum(length for _, length in read) == CHUNK - 512
    assert all(3 * CHUNK <= offset < 4 * CHUNK for offset, _ in read)


def test_without_shared_storage_a_clone_is_a_copy_with_its_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = a_disk(tmp_path / "parent.raw", 64 * MIB, {0: some_data(5 * MIB), 40 * MIB: some_data(9000)})
    monkeypatch.setattr(target_module, "_share", lambda descriptor, source: False)

    with FileSource(parent) as source, TargetFile(tmp_path / "child.raw") as target:
        container = CloneContainer(target, source, 65 * MIB)
        target.finish(container.finish())
        target.publish()

    child = tmp_path / "child.raw"
    assert child.read_bytes() == parent.read_bytes().ljust(65 * MIB, b"\0")
    assert not container.shares
    assert container.shared_bytes == 0
    if hasattr(os, "SEEK_DATA"):
        assert allocated(child) <= allocated(parent) + (8 << 10)

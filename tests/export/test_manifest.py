"""Manifests: what they say, and what a cut or forged one is called."""

from __future__ import annotations

import json
import tracemalloc
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.export.kit import CHUNK, MIB, naive_chunks, naive_root, names_in, some_data
from vhdtool.errors import FileMissingError, FormatError
from vhdtool.export.digest import ChunkDigester, RootDigester, WholeDigest, zeros_digest
from vhdtool.export.manifest import (
    ChunkRecord,
    ChunkRun,
    DamageRecord,
    Manifest,
    manifest_path,
    write_manifest,
)
from vhdtool.export.target import TargetFile

DISK = some_data(CHUNK) + bytes(3 * CHUNK) + some_data(CHUNK, 2) * 2 + some_data(700, 3)


def a_manifest(folder: Path, disk: bytes = DISK, name: str = "disk.raw.manifest.json") -> Path:
    """A manifest as an export of ``disk`` would write it."""
    path = folder / name
    with (
        closing(ChunkRecord(len(disk), folder)) as chunks,
        closing(DamageRecord(folder)) as damaged,
        TargetFile(path, force=True) as target,
    ):
        digester = ChunkDigester(chunks)
        for at in range(0, len(disk), CHUNK):
            piece = disk[at : at + CHUNK]
            if any(piece):
                digester.data(memoryview(piece))
            else:
                digester.zeros(len(piece))
        digester.finish()
        chunks.finish()
        damaged.add(0, 4096, "unreadable")
        damaged.add(4096, 512, "unreadable")
        damaged.add(MIB, 512, "unreadable")
        damaged.finish()
        write_manifest(
            target,
            head={"target": {"path": "disk.raw", "format": "raw"}, "started": "2026-01-01T00:00:00Z"},
            chunks=chunks,
            digests={"md5": "0" * 32},
            tail={"layers": [{"path": "d\udcffsk"}]},
            damaged=damaged,
        )
        target.publish()
    return path


def refused(path: Path) -> str:
    """The finding's code that ``path`` is refused with."""
    with pytest.raises(FormatError) as caught:
        Manifest(path).close()
    assert caught.value.finding is not None
    assert caught.value.finding.location.file == str(path)
    return caught.value.finding.code


def changed(path: Path, **content: Any) -> Path:
    """The manifest at ``path`` with members of ``content`` replaced."""
    document = json.loads(path.read_text())
    document["content"].update(content)
    path.write_text(json.dumps(document))
    return path


def test_a_manifest_is_json_and_tiles_the_disk(tmp_path: Path) -> None:
    document = json.loads(a_manifest(tmp_path).read_text())

    content = document["content"]
    digests: list[str] = []
    for run in content["chunks"]:
        assert run["start"] == len(digests)
        digests += [run["digest"]] * run["count"]
    real = naive_chunks(DISK)
    assert [d if d != "zero" else zeros_digest(CHUNK).hex() for d in digests] == [d.hex() for d in real]
    assert [run["count"] for run in content["chunks"]] == [1, 3, 2, 1]
    assert content["root"] == naive_root(DISK)
    assert content["bytes"] == len(DISK)
    assert content["data_bytes"] == len(DISK) - 3 * CHUNK
    assert content["digests"] == {"md5": "0" * 32}
    assert document["damaged"] == [
        {"start": 0, "length": 4608, "reason": "unreadable"},
        {"start": MIB, "length": 512, "reason": "unreadable"},
    ]
    assert document["layers"] == [{"path": "d\udcffsk"}]
    assert names_in(tmp_path) == {"disk.raw.manifest.json"}


def test_a_manifest_reads_back(tmp_path: Path) -> None:
    with Manifest(a_manifest(tmp_path)) as manifest:
        runs = list(manifest.runs())

        assert manifest.size == len(DISK)
        assert manifest.root == naive_root(DISK)
        assert manifest.target == {"path": "disk.raw", "format": "raw"}
        assert runs == list(manifest.runs())
    assert runs[1] == ChunkRun(1, 3, None)
    assert runs[0] == ChunkRun(0, 1, naive_chunks(DISK)[0])


def test_a_manifest_stands_beside_its_target() -> None:
    assert manifest_path(Path("a/disk.raw")) == Path("a/disk.raw.manifest.json")


def test_another_programs_formatting_reads_back_too(tmp_path: Path) -> None:
    path = a_manifest(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7, sort_keys=True))

    with Manifest(path) as manifest:
        assert manifest.root == naive_root(DISK)


def test_a_manifest_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = a_manifest(tmp_path, DISK[: 4 * CHUNK])
    whole = path.read_bytes().rstrip()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert refused(path) == "manifest.json"


@settings(max_examples=40)
@given(data=st.data())
def test_a_manifest_with_any_byte_changed_is_refused_or_says_the_same_of_its_chunks(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    path = a_manifest(folder, DISK[: 4 * CHUNK])
    with Manifest(path) as manifest:
        before = list(manifest.runs())
    whole = bytearray(path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)

    with suppress(FormatError), Manifest(path) as manifest:
        assert list(manifest.runs()) == before


RUN = {"start": 0, "count": 1, "digest": "00" * 32}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"chunks": []}, "manifest.chunks"),
        ({"chunks": [RUN]}, "manifest.chunks"),
        ({"chunks": [{**RUN, "count": 8}]}, "manifest.chunks"),
        ({"chunks": [{**RUN, "count": 7}]}, "manifest.root"),
        ({"chunks": [{**RUN, "count": 7, "digest": "zero"}]}, "manifest.root"),
        ({"chunks": [{**RUN, "start": 1, "count": 6}]}, "manifest.chunks"),
        ({"chunks": [{**RUN, "count": 4}, {**RUN, "start": 3, "count": 4}]}, "manifest.chunks"),
        ({"chunks": [{**RUN, "digest": "zz" * 32}]}, "manifest.chunks"),
        ({"chunks": [{**RUN, "digest": "00"}]}, "manifest.chunks"),
        ({"chunks": [{**RUN, "digest": 7}]}, "manifest.chunks"),
        ({"chunks": [{**RUN, "count": 0}]}, "manifest.number"),
        ({"chunks": [{**RUN, "count": -1}]}, "manifest.number"),
        ({"chunks": [{**RUN, "count": True}]}, "manifest.number"),
        ({"chunks": [{**RUN, "count": 1.5}]}, "manifest.number"),
        ({"chunks": [{**RUN, "count": 10**400}]}, "manifest.number"),
        ({"chunks": ["zero"]}, "manifest.chunks"),
        ({"chunks": {}}, "manifest.json"),
        ({"chunks": None}, "manifest.json"),
        ({"bytes": 0}, "manifest.number"),
        ({"bytes": 1 << 60}, "manifest.number"),
        ({"bytes": "many"}, "manifest.number"),
        ({"chunk_size": 512}, "manifest.number"),
        ({"chunk_size": 3 * MIB}, "manifest.chunk_size"),
        ({"root": "00" * 32}, "manifest.root"),
        ({"root": None}, "manifest.root"),
        ({"root": "zero"}, "manifest.root"),
        ({"algorithm": "md5"}, "manifest.algorithm"),
    ],
    ids=str,
)
def test_a_forged_manifest_is_refused(tmp_path: Path, change: dict[str, Any], code: str) -> None:
    assert refused(changed(a_manifest(tmp_path), **change)) == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "manifest.json"),
        ("null", "manifest.json"),
        ("[]", "manifest.json"),
        ("{}", "manifest.missing"),
        ("{} {}", "manifest.json"),
        ('{"manifest_version": 2, "target": {}, "content": {"chunks": []}}', "manifest.version"),
        ('{"manifest_version": 1, "target": {}, "content": {}}', "manifest.missing"),
        ('{"target": {}, "target": {}}', "manifest.duplicate"),
        ('{"content": {"chunks": [], "chunks": []}}', "manifest.duplicate"),
        ('{"content": {"root": 1, "root": 2}}', "manifest.duplicate"),
        ('{"a": NaN}', "manifest.json"),
        ('{"a": ' + "[" * 100_000, "manifest.json"),
        ('{"a": {"b": ' * 50_000, "manifest.json"),
        ('{"a": "' + "x" * (3 << 20), "manifest.json"),
        ('{"a": ' + "9" * 100_000 + "}", "manifest.json"),
        ('{"ä": 1}', "manifest.json"),
        ("\0" * 1000, "manifest.json"),
        (" " * 1_000_000, "manifest.json"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str, code: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(text, encoding="utf-8")

    assert refused(path) == code


def test_an_unknown_version_or_digest_is_exit_69(tmp_path: Path) -> None:
    path = changed(a_manifest(tmp_path), algorithm="crc32")

    with pytest.raises(FormatError) as caught:
        Manifest(path)

    assert caught.value.exit_code == 69


def test_a_missing_manifest_is_exit_66(tmp_path: Path) -> None:
    for name in ("missing.json", "a\0b", "."):
        with pytest.raises(FileMissingError):
            Manifest(tmp_path / name)


def test_neither_writing_nor_reading_holds_the_list_of_chunks(tmp_path: Path) -> None:
    count = 20_000
    tracemalloc.start()
    try:
        with (
            closing(ChunkRecord(count * CHUNK, tmp_path)) as chunks,
            closing(DamageRecord(tmp_path)) as damaged,
            TargetFile(tmp_path / "m.json", sync=False) as target,
        ):
            for number in range(count):
                chunks.add(number.to_bytes(32, "big"), 1)
                damaged.add(number * CHUNK, 512, "unreadable")
            chunks.finish()
            damaged.finish()
            assert len(damaged.kept) == DamageRecord.KEPT
            assert damaged.count == count
            write_manifest(target, head={"target": {}}, chunks=chunks, digests={}, tail={}, damaged=damaged)
            target.publish()
        with Manifest(tmp_path / "m.json") as manifest:
            assert sum(run.count for run in manifest.runs()) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert (tmp_path / "m.json").stat().st_size > 3 * MIB
    assert peak < 3 * MIB


def test_the_root_of_a_huge_disk_of_zeros_is_that_of_its_real_digests() -> None:
    size = 100_000 * CHUNK + 5
    digester = RootDigester(size)
    digester.add(None, 60_000)
    digester.add(None, 40_001)

    naive = zeros_digest(CHUNK) * 100_000 + zeros_digest(5)
    import hashlib

    assert digester.hexdigest() == hashlib.sha256(naive).hexdigest()


class Chunks(list[bytes | None]):
    def add(self, digest: bytes | None, count: int) -> None:
        self.extend([digest] * count)


@given(
    pieces=st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=30),
    chunk_size=st.sampled_from([1, 2, 16, 64]),
)
def test_chunks_do_not_depend_on_how_the_disk_arrives(
    pieces: list[tuple[bool, int]], chunk_size: int
) -> None:
    disk = b""
    chunks = Chunks()
    digester = ChunkDigester(chunks, chunk_size)
    whole = WholeDigest("sha256")
    for is_data, length in pieces:
        piece = bytes(range(1, length + 1)) if is_data else bytes(length)
        disk += piece
        for consumer in (digester, whole):
            if is_data:
                consumer.data(memoryview(piece))
            else:
                consumer.zeros(length)
    digester.finish()
    whole.finish()

    blocks = [disk[at : at + chunk_size] for at in range(0, len(disk), chunk_size)]
    import hashlib

    assert chunks == [hashlib.sha256(b).digest() if any(b) else None for b in blocks]
    assert whole.hexdigest() == hashlib.sha256(disk).hexdigest()


def test_an_unknown_digest_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="crc32"):
        WholeDigest("crc32")

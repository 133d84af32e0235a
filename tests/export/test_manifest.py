"""Manifests: what they say, and what a cut or forged one is called."""

from __future__ import annotations

import json
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.export.kit import CHUNK, MIB, naive_chunks, naive_root, names_in, some_data
from vhdtool.errors import FileMissingError, FormatError
from vhdtool.export.containers.target import TargetFile
from vhdtool.export.proof.digest import INHERITED, ChunkDigester, RootDigester, WholeDigest, zeros_digest
from vhdtool.export.proof.manifest import (
    ChunkRecord,
    ChunkRun,
    DamageRecord,
    Manifest,
    manifest_path,
    write_manifest,
)
from vhdtool.export.proof.seal import sealed_text

DISK = some_data(CHUNK) + bytes(3 * CHUNK) + some_data(CHUNK, 2) * 2 + some_data(700, 3)


IDENTITY = "12345678-9abc-def0-1234-56789abcdef0"


def a_target(size: int, **changes: Any) -> dict[str, Any]:
    """``target`` of a raw disk."""
    target = {
        "path": "disk.raw",
        "format": "raw",
        "subformat": "fixed",
        "virtual_size": size,
        "file_size": size,
        "block_size": 0,
        "logical_sector_size": 512,
        "disk_id": None,
        "write_id": None,
        "structure": None,
    }
    return {**target, **changes}


def a_base(**changes: Any) -> dict[str, Any]:
    """``base`` of an increment."""
    base = {
        "path": "base.vhdx",
        "format": "vhdx",
        "virtual_size": 1 << 30,
        "disk_id": IDENTITY,
        "write_id": IDENTITY,
        "point_in_time": "C:/old.avhdx",
        "root": None,
        "differences": "metadata",
    }
    return {**base, **changes}


def a_head(size: int, **changes: Any) -> dict[str, Any]:
    """What stands in front of ``content``."""
    head = {
        "vhdtool_version": "0.1.0",
        "started": "2026-01-01T00:00:00Z",
        "finished": "2026-01-01T00:00:01Z",
        "target": a_target(size),
        "point_in_time": "leaf.avhdx",
        "log_replayed": False,
        "base": None,
    }
    return {**head, **changes}


LAYER = {
    "path": "d\udcffsk",
    "size": 4096,
    "mtime": "2026-01-01T00:00:00Z",
    "write_id": IDENTITY,
    "findings": [],
}


def a_manifest(
    folder: Path,
    disk: bytes = DISK,
    name: str = "disk.raw.manifest.json",
    signer: Any = None,
    **head: Any,
) -> Path:
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
            head=a_head(len(disk), **head),
            chunks=chunks,
            digests={"md5": "0" * 32},
            tail={"layers": [LAYER], "findings": []},
            damaged=damaged,
            signer=signer,
        )
        target.publish()
    return path


def resealed(path: Path, document: dict[str, Any]) -> Path:
    """``document`` at ``path``, sealed as if that were what an export wrote."""
    for name in ("checks", "seal"):
        document.pop(name, None)
    path.write_bytes(sealed_text(document))
    return path


def refused(path: Path) -> str:
    """The finding's code that ``path`` is refused with."""
    with pytest.raises(FormatError) as caught:
        Manifest(path).close()
    assert caught.value.finding is not None
    assert caught.value.finding.location.file == str(path)
    return caught.value.finding.code


def changed(path: Path, **content: Any) -> Path:
    """The manifest at ``path`` with members of ``content`` replaced, and sealed again."""
    document = json.loads(path.read_text())
    document["content"].update(content)
    return resealed(path, document)


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
    assert document["layers"] == [LAYER]
    assert list(document)[-2:] == ["checks", "seal"]
    assert names_in(tmp_path) == {"disk.raw.manifest.json"}


def test_a_manifest_reads_back(tmp_path: Path) -> None:
    with Manifest(a_manifest(tmp_path)) as manifest:
        runs = list(manifest.runs())

        assert manifest.size == len(DISK)
        assert manifest.root == naive_root(DISK)
        assert manifest.target == a_target(len(DISK))
        assert manifest.values["point_in_time"] == "leaf.avhdx"
        assert manifest.layers == [{name: LAYER[name] for name in ("path", "size", "mtime", "write_id")}]
        assert (manifest.base, manifest.case) == (None, {})
        assert manifest.data_chunks == 4
        assert (manifest.damaged_count, manifest.damaged_bytes) == (2, 4608 + 512)
        assert str(manifest.seal) == "sealed, not signed"
        assert runs == list(manifest.runs())
    assert runs[1] == ChunkRun(1, 3, None)
    assert runs[0] == ChunkRun(0, 1, naive_chunks(DISK)[0])


def test_a_manifest_stands_beside_its_target() -> None:
    assert manifest_path(Path("a/disk.raw")) == Path("a/disk.raw.manifest.json")


def test_a_manifest_that_another_program_formatted_has_lost_its_seal(tmp_path: Path) -> None:
    path = a_manifest(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))

    assert refused(path) == "manifest.seal"


def test_a_manifest_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = a_manifest(tmp_path, DISK[: 4 * CHUNK])
    whole = path.read_bytes().rstrip()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert refused(path) == "manifest.json"
    path.write_bytes(whole)
    assert refused(path) == "manifest.seal"


def test_every_single_bit_of_a_manifest_is_guarded_and_damage_is_told_with_its_place(tmp_path: Path) -> None:
    path = a_manifest(tmp_path, DISK[: 4 * CHUNK], case={"examiner": "M. Muster"})
    whole = path.read_bytes()
    tail = whole.index(b',\n "checks"')

    for bit in range(len(whole) * 8):
        at = bit // 8
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(FormatError) as caught:
            Manifest(path)
        finding = caught.value.finding
        assert finding is not None
        offset = finding.location.offset
        if at < tail:
            assert (finding.code, offset) == ("manifest.seal", at), bit
            assert (finding.found, finding.expected) == (hex(damaged[at]), hex(whole[at]))
        elif finding.code != "manifest.duplicate":
            assert offset is not None
            assert abs(offset - at) < 300, bit


@settings(max_examples=40)
@given(data=st.data())
def test_a_manifest_with_any_bytes_changed_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    path = a_manifest(folder, DISK[: 4 * CHUNK])
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole) - 1))
    piece = data.draw(st.binary(max_size=40))
    forged = whole[:start] + piece + whole[start + data.draw(st.integers(0, 40)) :]
    path.write_bytes(forged)

    if forged != whole:
        refused(path)


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
        ({"chunks": [{**RUN, "count": 7, "digest": "inherited"}]}, "manifest.chunks"),
        ({"data_bytes": 0}, "manifest.sum"),
        ({"data_bytes": -1}, "manifest.number"),
        ({"inherited_bytes": 1}, "manifest.sum"),
        ({"inherited_bytes": None}, "manifest.number"),
        ({"digests": []}, "manifest.digests"),
        ({"digests": {"md5": 1}}, "manifest.digests"),
        ({"bytes": 5}, "manifest.size"),
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
        ('{"manifest_version": 1, "target": {}, "content": {"chunks": []}}', "manifest.version"),
        ('{"manifest_version": 3, "layers": [7]}', "manifest.version"),
        ('{"manifest_version": true}', "manifest.version"),
        ('{"target": {}, "content": {"chunks": []}}', "manifest.version"),
        ('{"manifest_version": 2, "target": {}, "content": {}}', "manifest.missing"),
        ('{"checks": "", "checks": ""}', "manifest.duplicate"),
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


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"target": 7}, "manifest.missing"),
        ({"target": a_target(len(DISK), format="qcow2")}, "manifest.format"),
        ({"target": a_target(len(DISK), format=7)}, "manifest.value"),
        ({"target": a_target(len(DISK), subformat="sparse")}, "manifest.value"),
        ({"target": a_target(len(DISK), subformat="differencing")}, "manifest.base"),
        ({"target": a_target(len(DISK) + 512)}, "manifest.size"),
        ({"target": a_target(0)}, "manifest.number"),
        ({"target": a_target(len(DISK), file_size=0)}, "manifest.number"),
        ({"target": a_target(len(DISK), disk_id="{1}")}, "manifest.value"),
        ({"target": a_target(len(DISK), structure="00")}, "manifest.value"),
        ({"target": a_target(len(DISK), format="vhd", disk_id=IDENTITY)}, "manifest.value"),
        ({"target": {"path": "x"}}, "manifest.value"),
        ({"base": a_base()}, "manifest.base"),
        ({"base": []}, "manifest.value"),
        ({"base": a_base(differences="all")}, "manifest.value"),
        ({"base": a_base(root="zero")}, "manifest.value"),
        ({"base": a_base(format="raw")}, "manifest.value"),
        ({"case": []}, "manifest.value"),
        ({"case": {"note": 7}}, "manifest.value"),
        ({"layers": [7]}, "manifest.value"),
        ({"layers": [{**LAYER, "size": -1}]}, "manifest.number"),
        ({"layers": [{**LAYER, "write_id": "x"}]}, "manifest.value"),
        ({"layers": [LAYER] * 1025}, "manifest.layers"),
        ({"damaged": [7]}, "manifest.value"),
        ({"damaged": [{"start": 0, "length": 0}]}, "manifest.number"),
        ({"point_in_time": None}, "manifest.value"),
        ({"log_replayed": 1}, "manifest.value"),
        ({"started": 5}, "manifest.value"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_nonsense_in_any_member_is_refused(tmp_path: Path, change: dict[str, Any], code: str) -> None:
    path = a_manifest(tmp_path)

    assert refused(resealed(path, {**json.loads(path.read_text()), **change})) == code


def test_the_manifest_of_an_increment_says_what_it_is_based_on_and_what_it_leaves_to_that(
    tmp_path: Path,
) -> None:
    size = 4 * CHUNK + 512
    path = tmp_path / "m.json"
    with closing(ChunkRecord(size, tmp_path)) as chunks, closing(DamageRecord(tmp_path)) as damaged:
        digester = ChunkDigester(chunks)
        digester.gap(CHUNK)
        digester.data(memoryview(some_data(CHUNK)))
        digester.zeros(CHUNK)
        digester.gap(CHUNK + 512)
        digester.finish()
        chunks.finish()
        target = a_target(size, format="vhdx", subformat="differencing", structure="0" * 64, disk_id=IDENTITY)
        with TargetFile(path) as file:
            head = a_head(size, target=target, base=a_base(), case={"case": "7", "note": "x"})
            write_manifest(file, head=head, chunks=chunks, digests={}, tail={}, damaged=damaged)
            file.publish()

    with Manifest(path) as manifest:
        assert manifest.base == a_base()
        assert manifest.case == {"case": "7", "note": "x"}
        assert [(run.start, run.count) for run in manifest.runs()] == [(0, 1), (1, 1), (2, 1), (3, 2)]
        digests = [run.digest for run in manifest.runs()]
        assert (digests[0], digests[2], digests[3]) == (INHERITED, None, INHERITED)
    content = json.loads(path.read_text())["content"]
    assert (content["data_bytes"], content["inherited_bytes"]) == (CHUNK, 2 * CHUNK + 512)


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
            head = a_head(count * CHUNK)
            write_manifest(target, head=head, chunks=chunks, digests={}, tail={}, damaged=damaged)
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

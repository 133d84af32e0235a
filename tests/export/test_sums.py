"""Sums: what ``sha256sum -c`` and its relatives read, of the file that stands there."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.export.kit import CHUNK, MIB, a_disk, some_data
from vhdtool.errors import ReadError
from vhdtool.export.containers.target import TargetFile
from vhdtool.export.moving.progress import CancelledError, CancelToken, Progress, Reporter
from vhdtool.export.proof.sums import file_digests, sums_line, sums_path, write_sums
from vhdtool.source import FileSource

NAMES = [
    "disk.raw",
    "disk with spaces.raw",
    " leading",
    "back\\slash",
    "new\nline",
    "\\n",
    "d\udcffsk",
    "日本.raw",
]
PROGRAMS = {
    "md5": "md5sum",
    "sha1": "sha1sum",
    "sha256": "sha256sum",
    "sha512": "sha512sum",
    "blake2b": "b2sum",
}


def written(folder: Path, name: str, algorithm: str, content: bytes) -> Path:
    """A file with its sums."""
    target = folder / name
    target.write_bytes(content)
    with FileSource(target) as file:
        digests = file_digests(file, [algorithm], Reporter("digest", file.size))
    path = sums_path(target, algorithm)
    with TargetFile(path, sync=False) as sink:
        write_sums(sink, target, digests[algorithm])
        sink.publish()
    return path


@pytest.mark.skipif(os.name == "nt", reason="names that this system does not have")
@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("algorithm", PROGRAMS)
def test_the_programs_read_what_is_written(tmp_path: Path, name: str, algorithm: str) -> None:
    program = shutil.which(PROGRAMS[algorithm])
    if program is None:
        pytest.skip(f"{PROGRAMS[algorithm]} is not installed")
    sums = written(tmp_path, name, algorithm, some_data(5000))

    subprocess.run([program, "--strict", "-c", sums.name], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / name).write_bytes(some_data(5000, 2))
    bad = subprocess.run(
        [program, "--strict", "-c", sums.name], cwd=tmp_path, check=False, capture_output=True
    )
    assert bad.returncode == 1


def test_what_is_written_is_one_line(tmp_path: Path) -> None:
    sums = written(tmp_path, "disk.raw", "sha256", b"abc")

    assert sums.name == "disk.raw.sha256"
    assert sums.read_bytes() == hashlib.sha256(b"abc").hexdigest().encode() + b"  disk.raw\n"


def test_names_are_escaped_as_coreutils_do_it() -> None:
    assert sums_line("a\\b\nc\rd", "00") == "\\00  a\\\\b\\nc\\rd"
    assert sums_line("plain", "00") == "00  plain"


def test_several_digests_are_computed_in_one_pass_and_holes_are_zeros(tmp_path: Path) -> None:
    path = a_disk(tmp_path / "a.raw", 5 * CHUNK + 7, {3: some_data(70_000), 4 * CHUNK: b"x"})
    news: list[Progress] = []

    with FileSource(path) as file:
        reporter = Reporter("digest", file.size, progress=news.append)
        digests = file_digests(file, ["sha256", "md5", "sha256"], reporter)

    data = path.read_bytes()
    assert digests == {"sha256": hashlib.sha256(data).hexdigest(), "md5": hashlib.md5(data).hexdigest()}
    assert news[-1].phase == "digest"
    if hasattr(os, "SEEK_DATA"):
        assert news[-1].done < MIB


def test_an_empty_file_and_no_digest_at_all(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"")

    with FileSource(path) as file:
        assert file_digests(file, [], Reporter("digest", 0)) == {}
        assert file_digests(file, ["md5"], Reporter("digest", 0)) == {"md5": hashlib.md5().hexdigest()}


def test_digesting_can_be_stopped_and_errors_are_ours(tmp_path: Path) -> None:
    path = a_disk(tmp_path / "a.raw", MIB, {0: some_data(MIB)})
    token = CancelToken()
    token.cancel()

    with FileSource(path) as file, pytest.raises(CancelledError):
        file_digests(file, ["md5"], Reporter("digest", file.size, cancel=token))

    class Failing(FileSource):
        descriptor = None

        def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
            raise ReadError("cannot read")

    with Failing(path) as failing, pytest.raises(ReadError):
        file_digests(failing, ["md5"], Reporter("digest", MIB))

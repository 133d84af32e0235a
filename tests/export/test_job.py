"""Exports as a whole: exact, sparse, whole or not there, and inputs that stay what they were."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.chain.fake import FakeImage, chain_of, truth
from tests.export.kit import (
    CHUNK,
    MIB,
    HookedSource,
    a_disk,
    allocated,
    chain_over,
    failing_at,
    failing_call,
    failing_in,
    naive_root,
    names_in,
    open_raw,
    some_data,
)
from vhdtool.errors import (
    CorruptError,
    ExportError,
    ReadError,
    SourceChangedError,
    TargetError,
    TargetExistsError,
)
from vhdtool.export.create import create_image, snapshot_image
from vhdtool.export.job import ExportJob, export_image
from vhdtool.export.moving.crew import JOBS_PER_THREAD, crew_size
from vhdtool.export.moving.progress import CancelledError, CancelToken
from vhdtool.export.options import ExportOptions
from vhdtool.export.proof.verify import verify_image
from vhdtool.model.geometry import Geometry
from vhdtool.model.state import BlockState

ROOT = Path(__file__).resolve().parents[2]
posix_only = pytest.mark.skipif(os.name != "posix", reason="signals, links and limits of POSIX")
ABSENT, ZERO, DATA, PARTIAL, DAMAGED = BlockState


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder for results."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def python(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter that can import the tests."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **options,
    )


def test_an_export_is_the_disk_sparse_and_with_a_manifest(tmp_path: Path, out: Path) -> None:
    source = a_disk(tmp_path / "a.raw", 64 * MIB)
    disk = source.read_bytes()
    with open_raw(source) as chain:
        report = export_image(chain, out / "b.raw", hashes=["sha256", "md5"])

    assert (out / "b.raw").read_bytes() == disk
    assert allocated(out / "b.raw") < 2 * MIB
    assert names_in(out) == {"b.raw", "b.raw.manifest.json", "b.raw.sha256", "b.raw.md5"}
    document = json.loads((out / "b.raw.manifest.json").read_text())
    assert document["content"]["root"] == report.root == naive_root(disk)
    digests = {"sha256": hashlib.sha256(disk).hexdigest(), "md5": hashlib.md5(disk).hexdigest()}
    assert document["content"]["digests"] == report.digests == digests
    assert document["content"]["data_bytes"] == report.data_bytes
    assert document["target"] == {
        "path": str(out / "b.raw"),
        "format": "raw",
        "subformat": "fixed",
        "virtual_size": len(disk),
        "file_size": len(disk),
        "block_size": 0,
        "logical_sector_size": 512,
        "disk_id": None,
        "write_id": None,
        "structure": None,
    }
    assert document["point_in_time"] == str(source)
    (layer,) = document["layers"]
    assert (layer["path"], layer["size"], layer["write_id"]) == (str(source), len(disk), None)
    assert layer["mtime"].endswith("Z")
    assert document["log_replayed"] is False
    assert document["damaged"] == document["findings"] == []
    assert document["started"] <= document["finished"]
    assert report.manifest == out / "b.raw.manifest.json"
    assert verify_image(out / "b.raw").ok


def test_a_chain_of_layers_is_exported_as_its_disk(out: Path) -> None:
    geometry = Geometry(40 * 512, 2048)
    leaf = FakeImage(
        geometry, [ABSENT, ZERO, PARTIAL, DATA, ABSENT] * 2, {2: [True, False] * 2, 7: [True] * 4}
    )
    base = FakeImage(geometry, [DATA] * 10, {}, seed=1)

    export_image(chain_of(leaf, base), out / "b.raw")

    assert (out / "b.raw").read_bytes() == truth([leaf, base])


@pytest.mark.parametrize("image_format", ["vhd", "vhdx"])
def test_a_job_is_a_value_that_finds_its_chain(tmp_path: Path, out: Path, image_format: str) -> None:
    raw = a_disk(tmp_path / "a.raw")
    base, leaf = tmp_path / f"base.{image_format}", out / f"leaf.{image_format}"
    create_image(base, source=raw)
    snapshot_image(base, leaf)
    job = ExportJob(leaf, str(out / "b.raw"), options=ExportOptions(hashes=("sha1",)))
    job = pickle.loads(pickle.dumps(job))

    report = job.run()

    assert (out / "b.raw").read_bytes() == raw.read_bytes()
    assert report.digests == {"sha1": hashlib.sha1(raw.read_bytes()).hexdigest()}
    assert pickle.loads(pickle.dumps(report)) == report
    layers = json.loads((out / "b.raw.manifest.json").read_text())["layers"]
    assert [Path(layer["path"]).name for layer in layers] == [leaf.name, base.name]
    assert all(layer["write_id"] for layer in layers)


def test_a_leaf_by_its_path_is_enough(tmp_path: Path, out: Path) -> None:
    source = a_disk(tmp_path / "a.raw", MIB, {0: some_data(512)})

    export_image(source, out / "b.raw", manifest=out / "m.json", sync=False)

    assert (out / "b.raw").read_bytes() == source.read_bytes()
    assert names_in(out) == {"b.raw", "m.json"}
    assert verify_image(out / "b.raw", out / "m.json").ok


@pytest.mark.parametrize("option", [{"format": "qcow2"}, {"damaged": "skip"}, {"hashes": ["crc32"]}])
def test_an_unknown_option_is_a_mistake(tmp_path: Path, out: Path, option: dict[str, Any]) -> None:
    with open_raw(a_disk(tmp_path / "a.raw")) as chain, pytest.raises(ValueError, match=r"'|digest"):
        export_image(chain, out / "b.raw", **option)

    assert names_in(out) == set()


# ------------------------------------------------------------ targets


@pytest.mark.parametrize("name", ["b.raw", "b.raw.manifest.json"])
def test_nothing_is_overwritten_without_force(tmp_path: Path, out: Path, name: str) -> None:
    (out / name).write_bytes(b"precious")
    with open_raw(a_disk(tmp_path / "a.raw")) as chain:
        with pytest.raises(TargetExistsError) as caught:
            export_image(chain, out / "b.raw")
        assert caught.value.exit_code == 73
        assert names_in(out) == {name}
        assert (out / name).read_bytes() == b"precious"

        export_image(chain, out / "b.raw", force=True)

    assert verify_image(out / "b.raw").ok
    assert names_in(out) == {"b.raw", "b.raw.manifest.json"}


@posix_only
@pytest.mark.parametrize("which", ["target", "manifest"])
@pytest.mark.parametrize("how", ["itself", "hard link", "symlink"])
def test_an_input_is_neither_target_nor_manifest(tmp_path: Path, which: str, how: str) -> None:
    base, leaf = tmp_path / "base.vhdx", tmp_path / "leaf.vhdx"
    create_image(base, source=a_disk(tmp_path / "a.raw"))
    snapshot_image(base, leaf)
    name = tmp_path / "x"
    if how == "itself":
        name = base
    elif how == "hard link":
        name.hardlink_to(base)
    else:
        name.symlink_to(base)
    before = {path: path.read_bytes() for path in (base, leaf)}
    present = names_in(tmp_path)
    target, manifest = (name, None) if which == "target" else (tmp_path / "b.raw", name)

    with pytest.raises(TargetError, match="it is the input") as caught:
        export_image(leaf, target, manifest=manifest, force=True)

    assert caught.value.exit_code == 73
    assert {path: path.read_bytes() for path in (base, leaf)} == before
    assert names_in(tmp_path) == present


def test_image_and_manifest_are_two_files(tmp_path: Path, out: Path) -> None:
    (out / "sub").mkdir()
    with open_raw(a_disk(tmp_path / "a.raw")) as chain, pytest.raises(TargetError, match="both"):
        export_image(chain, out / "b.raw", manifest=out / "sub" / ".." / "B.RAW", force=True)

    assert names_in(out) == {"sub"}


@posix_only
def test_a_result_is_as_private_as_its_inputs(tmp_path: Path, out: Path) -> None:
    source = a_disk(tmp_path / "a.raw")
    source.chmod(0o600)
    with open_raw(source) as chain:
        export_image(chain, out / "b.raw")

    assert (out / "b.raw").stat().st_mode & 0o777 == 0o600
    assert (out / "b.raw.manifest.json").stat().st_mode & 0o777 == 0o600


@posix_only
def test_a_stream_is_the_whole_disk_in_order_and_has_no_manifest(tmp_path: Path) -> None:
    source = a_disk(tmp_path / "a.raw")
    code = "import sys; from vhdtool.export.job import export_image; export_image(sys.argv[1], '-')"

    done = subprocess.run([sys.executable, "-c", code, source], cwd=ROOT, capture_output=True, check=True)

    assert done.stdout == source.read_bytes()
    assert names_in(tmp_path) == {"a.raw"}


def test_a_stream_can_have_a_manifest(
    tmp_path: Path, out: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with open_raw(a_disk(tmp_path / "a.raw")) as chain:
        export_image(chain, "-", manifest=out / "m.json")
    (out / "b.raw").write_bytes(capfdbinary.readouterr().out)

    assert verify_image(out / "b.raw", out / "m.json").ok


# ------------------------------------------------------------ inputs that fail or change


def test_every_failing_read_leaves_nothing(tmp_path: Path, out: Path) -> None:
    source = a_disk(tmp_path / "a.raw", 5 * MIB, {0: some_data(5 * MIB)})
    number, failed = 0, True
    while failed:
        number += 1
        with chain_over(HookedSource(source, failing_at(number))) as chain:
            failed = False
            try:
                export_image(chain, out / "b.raw")
            except ReadError:
                failed = True
        assert names_in(out) == (set() if failed else {"b.raw", "b.raw.manifest.json"})

    assert number == 11
    assert verify_image(out / "b.raw").ok
    assert threading.active_count() == 1


def test_damage_is_exported_as_zeros_on_request_and_listed(tmp_path: Path, out: Path) -> None:
    disk = some_data(2 * MIB)
    source = a_disk(tmp_path / "a.raw", 2 * MIB, {0: disk})
    with chain_over(HookedSource(source, failing_in(MIB, MIB + 1))) as chain:
        report = export_image(chain, out / "b.raw", damaged="zero")

    expected = disk[:MIB] + bytes(4096) + disk[MIB + 4096 :]
    assert (out / "b.raw").read_bytes() == expected
    assert report.damaged_count == 1
    assert report.damaged_bytes == 4096
    assert [(r.start, r.length) for r in report.damaged] == [(MIB, 4096)]
    (listed,) = json.loads((out / "b.raw.manifest.json").read_text())["damaged"]
    assert (listed["start"], listed["length"]) == (MIB, 4096)
    assert "Input/output error" in listed["reason"]
    assert verify_image(out / "b.raw").ok


def test_a_damaged_table_entry_is_refused_or_exported_as_zeros(out: Path) -> None:
    image = FakeImage(Geometry(4 * 512, 512), [DATA, DAMAGED, DAMAGED, DATA], {})
    with pytest.raises(CorruptError) as caught:
        export_image(chain_of(image), out / "b.raw")
    assert caught.value.exit_code == 65
    assert "0x200" in str(caught.value)
    assert names_in(out) == set()

    report = export_image(chain_of(image), out / "b.raw", damaged="zero")

    assert [(r.start, r.length) for r in report.damaged] == [(512, 1024)]
    assert (out / "b.raw").read_bytes()[512:1536] == bytes(1024)


def test_an_unsound_chain_is_refused_before_anything_is_made(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr("vhdtool.export.output.TargetFile", lambda *a, **o: made.append(a))
    with open_raw(a_disk(tmp_path / "a.raw", 1000, {})) as chain, pytest.raises(CorruptError):
        export_image(chain, out / "b.raw")

    assert made == []


@posix_only
@pytest.mark.parametrize("how", ["payload", "append", "truncate", "replace", "remove", "same bytes"])
def test_a_source_that_changes_is_exit_75_and_leaves_nothing(tmp_path: Path, out: Path, how: str) -> None:
    source = a_disk(tmp_path / "a.raw", 4 * MIB, {0: some_data(4 * MIB)})
    words = {
        "payload": "written to",
        "append": "its size went",
        "truncate": "its size went",
        "replace": "another file",
        "remove": "it is gone",
        "same bytes": "written to",
    }
    time.sleep(0.02)  # time stamps have grains

    def hook(reads: int, offset: int, length: int) -> None:
        if reads != 4:
            return
        if how == "truncate":
            os.truncate(source, MIB)
        elif how == "replace":
            a_disk(tmp_path / "new.raw", 4 * MIB, {0: some_data(4 * MIB)}).replace(source)
        elif how == "remove":
            source.unlink()
        else:
            with source.open("r+b") as file:
                if how == "same bytes":
                    first = file.read(1)
                    file.seek(0)
                    file.write(first)
                else:
                    file.seek(100 if how == "payload" else 4 * MIB)
                    file.write(b"changed")

    with chain_over(HookedSource(source, hook)) as chain, pytest.raises(SourceChangedError) as caught:
        export_image(chain, out / "b.raw")

    assert caught.value.exit_code == 75
    assert str(source) in str(caught.value)
    assert words[how] in str(caught.value)
    assert names_in(out) == set()


def test_a_changed_parent_is_noticed_too(tmp_path: Path, out: Path) -> None:
    base, leaf = tmp_path / "base.vhdx", tmp_path / "leaf.vhdx"
    create_image(base, source=a_disk(tmp_path / "a.raw"))
    snapshot_image(base, leaf)
    time.sleep(0.02)

    def touch(state: object) -> None:
        os.utime(base)

    with pytest.raises(SourceChangedError, match=r"base\.vhdx"):
        export_image(leaf, out / "b.raw", progress=touch)

    assert names_in(out) == set()


def test_inputs_stay_what_they_were(tmp_path: Path, out: Path) -> None:
    base, leaf = tmp_path / "base.vhd", tmp_path / "leaf.vhd"
    create_image(base, source=a_disk(tmp_path / "a.raw"))
    snapshot_image(base, leaf)

    def state() -> dict[str, tuple[bytes, int, int]]:
        files = [path for path in tmp_path.iterdir() if path.is_file()]
        return {p.name: (p.read_bytes(), p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in files}

    before = state()
    export_image(leaf, out / "b.raw")
    verify_image(out / "b.raw")

    assert state() == before


# ------------------------------------------------------------ full disks, signals, kills


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "fsync"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_full_disk_is_exit_74_and_leaves_nothing(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, at: int
) -> None:
    if not hasattr(os, call):
        pytest.skip(f"this platform has no os.{call}")
    source = a_disk(tmp_path / "a.raw", 4 * MIB, {0: some_data(4 * MIB)})
    with open_raw(source) as chain:
        failing_call(monkeypatch, call, code, at)
        # Only two files are synced before they are published; then a folder, and no one minds.
        if (call, at) == ("fsync", 3):
            export_image(chain, out / "b.raw")
            return
        with pytest.raises(ExportError) as caught:
            export_image(chain, out / "b.raw")

    assert caught.value.exit_code == 74
    assert names_in(out) == set()
    assert threading.active_count() == 1


@posix_only
def test_a_disk_too_large_for_the_file_system_is_known_before_a_byte_moves(tmp_path: Path, out: Path) -> None:
    source = a_disk(tmp_path / "a.raw", 64 * MIB, {63 * MIB: b"x"})
    code = """
import resource, sys
from vhdtool.errors import VhdtoolError
from vhdtool.export.job import export_image
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    export_image(sys.argv[1], sys.argv[2])
except VhdtoolError as error:
    print(error)
    sys.exit(error.exit_code)
"""

    done = python(code, source, out / "b.raw")

    assert done.returncode == 74, done.stderr
    assert "File too large" in done.stdout
    assert names_in(out) == set()


def test_a_token_stops_an_export_and_nothing_is_left(tmp_path: Path, out: Path) -> None:
    token = CancelToken()
    source = a_disk(tmp_path / "a.raw", 8 * MIB, {0: some_data(8 * MIB)})
    with (
        chain_over(
            HookedSource(source, lambda reads, at, length: token.cancel() if reads == 5 else None)
        ) as chain,
        pytest.raises(CancelledError),
    ):
        export_image(chain, out / "b.raw", cancel=token)

    assert names_in(out) == set()


@posix_only
@pytest.mark.parametrize("hashes", [(), ("sha512", "md5")])
def test_ctrl_c_leaves_nothing(tmp_path: Path, out: Path, hashes: tuple[str, ...]) -> None:
    source = a_disk(tmp_path / "a.raw", 64 * MIB, {0: some_data(64 * MIB)})
    code = """
import sys, time
from pathlib import Path
from tests.export.kit import HookedSource, chain_over
from vhdtool.export.job import export_image

def hook(reads, offset, length):
    if reads == 10:
        print("under way", flush=True)
    time.sleep(0.02)

try:
    with chain_over(HookedSource(Path(sys.argv[1]), hook)) as chain:
        export_image(chain, sys.argv[2], hashes=sys.argv[3:])
except KeyboardInterrupt:
    sys.exit(130)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, source, out / "b.raw", *hashes], cwd=ROOT, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"under way\n"
        assert len(names_in(out)) == 3 + len(hashes)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130

    assert names_in(out) == set()


# ------------------------------------------------------------ memory and time


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_64_tib_with_three_blocks_export_in_little_memory_and_time(tmp_path: Path) -> None:
    image = tmp_path / "huge.vhdx"
    raw = a_disk(tmp_path / "a.raw", 40 * MIB, {0: b"first", 20 * MIB: b"same block", 39 * MIB: b"second"})
    create_image(image, source=raw, size=64 << 40)
    code = """
import json, sys, time
from pathlib import Path
from vhdtool.export.job import export_image
import vhdtool.export.output as output

class Counting:
    '''A target on a file system that holds 64 TiB.'''
    name = "counting"
    def __init__(self): self.writes = []
    def write_at(self, offset, data): self.writes.append((offset, len(data)))
    def finish(self, size): self.size = size
    def publish(self): pass
    def abort(self): pass
    def __enter__(self): return self
    def __exit__(self, *error): pass

counting = Counting()
output.StdoutTarget = lambda **options: counting
before = time.monotonic()
report = export_image(sys.argv[1], "-", manifest=sys.argv[2])
print(json.dumps({
    "seconds": time.monotonic() - before,
    # Not ru_maxrss: that remembers the process that started this one.
    "peak": [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")][0] << 10,
    "writes": counting.writes,
    "size": counting.size,
}))
"""

    done = python(code, image, tmp_path / "m.json")

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["size"] == 64 << 40
    assert [offset // MIB for offset, _ in result["writes"]] == [0, 20, 39]
    assert sum(length for _, length in result["writes"]) <= 3 * CHUNK
    assert result["peak"] < 100 * MIB
    assert result["seconds"] < 30
    runs = json.loads((tmp_path / "m.json").read_text())["content"]["chunks"]
    assert [(run["start"], run["count"]) for run in runs] == [
        (0, 1),
        (1, 9),
        (10, 1),
        (11, 8),
        (19, 1),
        (20, (32 << 20) - 20),
    ]


def test_memory_does_not_grow_with_the_data(tmp_path: Path, out: Path) -> None:
    import tracemalloc

    peaks = []
    for size in (32 * MIB, 96 * MIB):
        source = a_disk(tmp_path / f"{size}.raw", size, {0: some_data(8 * MIB) * (size // (8 * MIB))})
        with open_raw(source) as chain:
            tracemalloc.start()
            export_image(chain, out / f"{size}.raw")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()

    # A chunk in each of the crew's buffers, of which there are as many as were needed at once.
    assert max(peaks) < (JOBS_PER_THREAD * crew_size() + 1) * CHUNK + 4 * MIB

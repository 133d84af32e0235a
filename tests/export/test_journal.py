"""Journals that were cut, altered or made up, and temporary files that are not what journals say of them.

Whatever was done to them, an export that goes on makes the right bytes or refuses in words.
"""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.export.interrupted import Case, a_case
from tests.export.kit import MIB, names_in
from vhdtool.chain.discover import open_chain
from vhdtool.errors import ExportError, TargetError, VhdtoolError
from vhdtool.export.journal import Checkpoint, Journal, _chained
from vhdtool.export.proof.verify import verify_image

Lines = list[dict[str, Any]]
Files = dict[str, bytes]


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[Case, Files]]:
    """Makes an export of a kind that stopped behind three quarters, and gives what it left."""

    def make(kind: str) -> tuple[Case, Files]:
        case = a_case(tmp_path / "case", kind, monkeypatch.setattr)
        case.interrupt(3 * case.kind.step + 650_000)
        return case, case.kept()

    return make


def a_journal(records: Lines) -> bytes:
    """A journal of these records, with the right chain."""
    chain, lines = "", []
    for record in records:
        text = json.dumps(record, separators=(",", ":"))
        chain = _chained(chain, text)
        lines.append(f"{chain} {text}\n".encode("ascii"))
    return b"".join(lines)


def go_on(case: Case, files: Files) -> str:
    """Go on with ``files``: "done" when the bytes are right, or else the words of the refusal."""
    case.put_back(files)
    try:
        case.export(resume=True)
    except VhdtoolError as error:
        assert case.kind.target not in names_in(case.out)
        return str(error)
    return "done" if case.target.read_bytes() == case.expected else "another file"


def first_checkpoint(records: Lines) -> int:
    return next(i for i, record in enumerate(records) if "position" in record)


# ------------------------------------------------------------ the file itself


def test_what_is_noted_is_read_again(tmp_path: Path) -> None:
    checkpoints = [
        Checkpoint(2 * MIB, [[0, 2, 1]], [(1, None), (3, bytes(range(32)))], [(512, 512, "läse")], 5, 4),
        Checkpoint(6 * MIB, [], [(2, b"")], [], 7, 6),
    ]
    journal = Journal(tmp_path / "disk.raw")
    journal.begin({"token": "12345678"})
    journal.note(file=77)
    for checkpoint in checkpoints:
        journal.add(checkpoint)
    journal.note(beside={"a": 1})
    journal.close()

    again = Journal(tmp_path / "disk.raw")

    assert again.job == {"token": "12345678", "file": 77, "beside": {"a": 1}}
    assert again.positions == [2 * MIB, 6 * MIB]
    assert list(again.checkpoints()) == checkpoints
    assert again.is_whole
    again.keep_first(1)
    again.add(checkpoints[1])
    assert list(again.checkpoints()) == checkpoints
    again.close()
    third = Journal(tmp_path / "disk.raw")
    assert third.job == {"token": "12345678", "file": 77}
    assert list(third.checkpoints()) == checkpoints
    third.remove()
    assert names_in(tmp_path) == set()


def test_one_job_has_a_journal_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    first = Journal(tmp_path / "disk.raw")
    with pytest.raises(TargetError, match="belongs to a job that is running"):
        Journal(tmp_path / "disk.raw")
    first.close()

    Journal(tmp_path / "disk.raw").remove()


def mutations(journal: bytes) -> Iterator[tuple[str, bytes]]:
    """The journal with one thing changed at a time."""
    for at in range(len(journal)):
        yield f"cut at {at}", journal[:at]
        changed = bytearray(journal)
        changed[at] ^= 1 << at % 8
        yield f"a bit of byte {at}", bytes(changed)
    lines = journal.splitlines(keepends=True)
    for i in range(len(lines)):
        yield f"line {i} twice", b"".join([*lines[: i + 1], *lines[i:]])
        yield f"line {i} left out", b"".join([*lines[:i], *lines[i + 1 :]])
        swapped = [*lines[:i], *lines[i + 1 : i + 2], lines[i], *lines[i + 2 :]]
        if swapped != lines:
            yield f"line {i} behind the next", b"".join(swapped)


def test_of_a_journal_with_any_byte_changed_only_what_is_in_front_is_believed(
    stopped: Callable[[str], tuple[Case, Files]],
) -> None:
    case, files = stopped("raw")
    whole = Journal(case.target)
    job, checkpoints = whole.job, list(whole.checkpoints())
    assert job is not None
    assert len(checkpoints) >= 2
    whole.close()
    ends = [len(line) for line in files[case.journal.name].splitlines(keepends=True)]

    for what, changed in mutations(files[case.journal.name]):
        case.journal.write_bytes(changed)
        journal = Journal(case.target)
        journal.close()

        assert not journal.is_whole or changed.count(b"\n") < len(ends), what
        assert journal.job is None or journal.job.items() <= job.items(), what
        if journal.positions:
            found = list(journal.checkpoints())
            assert found == checkpoints[: len(found)], what
            assert [checkpoint.position for checkpoint in found] == journal.positions, what


@pytest.mark.parametrize("kind", ["raw", "vhdx-increment"])
def test_with_a_changed_journal_the_bytes_are_right_in_the_end(
    kind: str, stopped: Callable[[str], tuple[Case, Files]]
) -> None:
    case, files = stopped(kind)
    name = case.journal.name

    for what, changed in random.Random(kind).sample(list(mutations(files[name])), 16):
        assert go_on(case, {**files, name: changed}) == "done", what
        is_known = changed.split(b"\n")[0] == files[name].split(b"\n")[0]
        left = names_in(case.out) - case.finished
        # Whose temporary file it is, only the first line tells.
        assert left <= (set() if is_known else {n for n in files if n.endswith(".partial")}), what


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\0" * 5000, b"x" * 5000, b"{}", b"\xff\n", b" \n" * 100], ids=repr
)
def test_rubbish_in_place_of_a_journal_is_nothing_to_go_on_with(
    content: bytes, stopped: Callable[[str], tuple[Case, Files]]
) -> None:
    case, files = stopped("raw")

    assert go_on(case, {**files, case.journal.name: content}) == "done"


# ------------------------------------------------------------ made up, with the right chain


def of_checkpoint(**changes: Any) -> Callable[[Lines], None]:
    def change(records: Lines) -> None:
        records[first_checkpoint(records)].update(changes)

    return change


def of_last(**changes: Any) -> Callable[[Lines], None]:
    return lambda records: records[-1].update(changes)


def of_job(**changes: Any) -> Callable[[Lines], None]:
    return lambda records: records[0].update(changes)


DEEP = json.loads("[" * 500 + "]" * 500)
FORGED: dict[str, Callable[[Lines], None]] = {
    "digests of something else": of_checkpoint(chunks=[[1, "ab" * 32]]),
    "zeros where data are": of_checkpoint(chunks=[[1, "zero"]]),
    "inherited where data are": of_checkpoint(chunks=[[1, "inherited"]]),
    "no chunks": of_checkpoint(chunks=[]),
    "no count": of_checkpoint(chunks=[[0, "zero"]]),
    "many chunks": of_checkpoint(chunks=[[1 << 70, "zero"]]),
    "a digest that is too short": of_checkpoint(chunks=[[1, "ab"]]),
    "a digest that is a number": of_checkpoint(chunks=[[1, 5]]),
    "chunks that are no rows": of_checkpoint(chunks=[1, 2]),
    "no chunks at all": lambda records: records[first_checkpoint(records)].pop("chunks"),
    "chunks behind the position": lambda records: records[-1]["chunks"].append([3, "zero"]),
    "a position that is too early": of_last(position=(2 << 20) + 512),
    "a position behind all": of_last(position=1 << 50),
    "a position that is no number": of_last(position="2097152"),
    "a negative position": of_last(position=-(2 << 20)),
    "a position that is true": of_last(position=True),
    "position 0": of_checkpoint(position=0),
    "blocks that are elsewhere": of_last(placed=[[1 << 40, 1, 2]]),
    "too many blocks": of_last(placed=[[0, 1 << 40, 2]]),
    "blocks of no kind": of_last(placed=[[0, 1, 77]]),
    "short rows": of_last(placed=[[0]]),
    "rows that are none": of_last(placed=7),
    "huge numbers": of_last(read=1 << 200, written=1 << 200),
    "numbers that are none": of_last(read=None),
    "deep": of_last(placed=DEEP),
    "a record that is a list": lambda records: records.append([1, 2]),  # type: ignore[arg-type]
    "a record that is text": lambda records: records.append("position"),  # type: ignore[arg-type]
    "an empty record": lambda records: records.append({}),
    "a note that is none": lambda records: records.append({"note": 5}),
    "a note of a position": lambda records: records.append({"note": {"position": 1 << 40}}),
    "a note without a file": lambda records: records.append({"note": {"file": None, "beside": [1]}}),
    "another version": of_job(journal_version=2),
    "a token that leads elsewhere": of_job(token="../../x"),
    "a token that is none": of_job(token=None),
    "a token that is too long": of_job(token="0" * 9),
    "no layers": of_job(layers=[]),
    "layers that are none": of_job(layers=5),
    "layers without paths": of_job(layers=[{}]),
    "layers with odd paths": of_job(layers=[{"path": ["x"]}]),
    "a time that is none": of_job(started="yesterday"),
    "a job that is none": of_job(job=3),
    "another job": lambda records: records[0]["job"].update(zero_detect=False),
    "a shape that is none": of_job(shape=[]),
    "another size": lambda records: records[0]["shape"].update(virtual_size=4096),
    "a negative size": lambda records: records[0]["shape"].update(virtual_size=-1),
    "another format": lambda records: records[0]["shape"].update(format="qcow2"),
    "identities that are none": lambda records: records[0]["shape"].update(disk_id="zz", write_id=[]),
    "a manifest elsewhere": of_job(manifest="/etc/passwd"),
}


@pytest.mark.parametrize("kind", ["raw", "vhdx", "vhd-increment"])
def test_a_forged_journal_never_makes_wrong_bytes(
    kind: str, stopped: Callable[[str], tuple[Case, Files]]
) -> None:
    case, files = stopped(kind)
    records = case.journal_lines()
    outside = case.out.parent / "x"
    outside.write_bytes(b"precious")

    for what, forge in FORGED.items():
        forged = copy.deepcopy(records)
        forge(forged)
        before = names_in(case.out.parent)
        result = go_on(case, {**files, case.journal.name: a_journal(forged)})

        assert result == "done" or "cannot go on with the export" in result, f"{what}: {result}"
        assert names_in(case.out.parent) == before
        assert outside.read_bytes() == b"precious"


def test_the_state_is_taken_over_from_the_last_checkpoint_that_holds(
    stopped: Callable[[str], tuple[Case, Files]],
) -> None:
    case, files = stopped("vhdx")
    records = case.journal_lines()
    positions = [record["position"] for record in records if "position" in record]
    assert len(positions) >= 2
    records[-1]["chunks"] = [[1, "ab" * 32]]
    case.put_back({**files, case.journal.name: a_journal(records)})

    assert case.export(resume=True).resumed_at == positions[-2]
    case.require_done()


def test_damage_that_is_forged_is_told_as_it_is_and_breaks_nothing(
    stopped: Callable[[str], tuple[Case, Files]],
) -> None:
    case, files = stopped("raw")
    for rows in ([[1 << 80, 5, "x"]], [[0, 0, "x\ud800"]], [[5, 5]], [["a", 1, "x"]], 5):
        records = case.journal_lines() if case.journal.exists() else []
        case.put_back(files)
        records = case.journal_lines()
        records[-1]["damaged"] = rows
        assert go_on(case, {**files, case.journal.name: a_journal(records)}) == "done"


# ------------------------------------------------------------ the temporary file


def flipped(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 0x10
    return bytes(changed)


def spoiled(content: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """The temporary file as it can be after a crash, or after somebody had a hand in it."""
    size = len(content)
    yield "empty", b""
    yield "all zeros", bytes(size)
    yield "longer", content + rng.randbytes(70_000)
    yield "much longer", content + bytes(5 << 20) + b"x"
    for _ in range(2):
        yield "cut", content[: rng.randrange(size)]
    # In front of the blocks of a VHDX: headers, log, table, metadata.
    for at in (0, 512, 3000, 64 << 10, 192 << 10, 1 << 20, 2 << 20, (3 << 20) + 8, (4 << 20) - 1):
        if at < size:
            yield f"bit in {at:#x}", flipped(content, at)
    for _ in range(10):
        at = rng.randrange(size)
        yield f"bit in {at:#x}", flipped(content, at)
    for _ in range(3):
        at = rng.randrange(size)
        yield f"page at {at:#x} lost", content[:at] + bytes(4096) + content[at + 4096 :]
    holes = [at for at in range(0, size - 4096, 4096) if not any(content[at : at + 4096])]
    for at in rng.sample(holes, min(len(holes), 5)):
        yield f"rubbish in a hole at {at:#x}", content[:at] + rng.randbytes(4096) + content[at + 4096 :]


@pytest.mark.parametrize("kind", ["raw", "vhd", "fixed-vhdx", "vhdx", "vhdx-increment", "raw.zst"])
def test_a_temporary_file_that_is_not_what_it_was_is_not_believed(
    kind: str, stopped: Callable[[str], tuple[Case, Files]]
) -> None:
    case, files = stopped(kind)
    disk = case.source.read_bytes()
    (name,) = (name for name in files if name.endswith(".partial"))

    for what, content in spoiled(files[name], random.Random(7)):
        result = go_on(case, {**files, name: content})

        assert verify_image(case.target).ok, what
        assert names_in(case.out) == case.finished
        if result != "done":
            # Between the blocks of a VHD, and where an increment has bytes that no bitmap says are its own,
            # nobody reads.
            assert kind in ("vhd", "vhdx-increment"), what
            assert len(case.target.read_bytes()) == len(case.expected)
            with open_chain(case.target) as chain:
                assert chain.read(0, chain.virtual_size) == disk, what


@pytest.mark.parametrize("kind", ["raw", "vhdx"])
def test_without_its_temporary_file_a_job_begins_anew(
    kind: str, stopped: Callable[[str], tuple[Case, Files]]
) -> None:
    case, _ = stopped(kind)
    case.partial.unlink()

    assert case.export(resume=True).resumed_at == 0
    case.require_done()


@pytest.mark.skipif(os.name != "posix", reason="links and owners of POSIX")
@pytest.mark.parametrize("how", ["hard link", "symbolic link", "folder", "fifo", "owner"])
def test_only_a_file_of_ones_own_is_gone_on_with(
    how: str, stopped: Callable[[str], tuple[Case, Files]], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, files = stopped("raw")
    partial = case.partial
    elsewhere = case.out.parent / "elsewhere"
    elsewhere.write_bytes(files[partial.name])
    if how == "owner":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    else:
        partial.unlink()
        if how == "hard link":
            partial.hardlink_to(elsewhere)
        elif how == "symbolic link":
            partial.symlink_to(elsewhere)
        elif how == "folder":
            partial.mkdir()
        else:
            os.mkfifo(partial)
    present = names_in(case.out)

    with pytest.raises(ExportError) as caught:
        case.export(resume=True)

    assert caught.value.exit_code == 73
    assert names_in(case.out) == present
    assert elsewhere.read_bytes() == files[partial.name]
    if how == "folder":
        partial.rmdir()


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
@pytest.mark.parametrize("how", ["hard link", "symbolic link"])
def test_a_journal_that_is_somebody_elses_is_not_written_to(
    how: str, stopped: Callable[[str], tuple[Case, Files]]
) -> None:
    case, _ = stopped("raw")
    elsewhere = case.out.parent / "elsewhere"
    case.journal.replace(elsewhere)
    content = elsewhere.read_bytes()
    if how == "hard link":
        case.journal.hardlink_to(elsewhere)
    else:
        case.journal.symlink_to(elsewhere)

    for resume in (True, False):
        with pytest.raises(TargetError) as caught:
            case.export(resume=resume)
        assert caught.value.exit_code == 73

    assert elsewhere.read_bytes() == content

"""Defects found in other readers, each with the wrong answer that it gives, and vhdtool's right one.

Where the other program is installed its answer is observed too: a version that is right by now is a skip.
Programs of Python are run by the interpreter that ``VHDTOOL_ORACLE_PYTHON`` names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.surgery.healthy import ALL, PARENT_GUID, a_child_vhd, a_child_vhdx, a_vhd, a_vhdx
from tests.surgery.vhdx import MIB, LogEntry, LogWrite, VhdxSurgeon, guid
from vhdtool import open_chain, open_image
from vhdtool.chain.check import check_paths
from vhdtool.errors import (
    ChainLoopError,
    CorruptError,
    ParentMismatchError,
    ParentNotFoundError,
)

QEMU_IMG: Final = shutil.which("qemu-img")
SEVEN_ZIP: Final = shutil.which("7zz") or shutil.which("7z")
ORACLE_PYTHON: Final = os.environ.get("VHDTOOL_ORACLE_PYTHON", "")
OTHER_GUID: Final = "22222222-3f10-4c6c-9f2d-51a4b5a0d0c1"
LOG_GUID: Final = guid("5b1f9a6a-0f7c-4b55-9a53-7f3a4d8a1c11")

needs_qemu = pytest.mark.skipif(QEMU_IMG is None, reason="qemu-img is not installed")
needs_7zip = pytest.mark.skipif(SEVEN_ZIP is None, reason="7-Zip is not installed")
needs_oracle = pytest.mark.skipif(
    not ORACLE_PYTHON, reason="VHDTOOL_ORACLE_PYTHON names no interpreter with other readers"
)

LIBVHDI: Final = """
import sys
import pyvhdi
files = []
for path in sys.argv[3:]:
    file = pyvhdi.file()
    file.open(path)
    if files:
        files[-1].set_parent(file)
    files.append(file)
sys.stdout.buffer.write(files[0].read_buffer_at_offset(int(sys.argv[2]), int(sys.argv[1])))
"""
DISSECT: Final = """
import sys
from dissect.hypervisor.disk.vhdx import VHDX
disk = VHDX(open(sys.argv[3], "rb"))
disk.seek(int(sys.argv[1]))
sys.stdout.buffer.write(disk.read(int(sys.argv[2])))
"""


def tags(data: bytes) -> str:
    """Whose each sector is, as two letters: the tag that it was filled with, ``--`` for zeros."""
    sectors = [data[at : at + 512] for at in range(0, len(data), 512)]
    return " ".join(sector[:2].decode() if any(sector) else "--" for sector in sectors)


def ours(leaf: Path, offset: int, length: int) -> bytes:
    with open_chain(leaf) as chain:
        return chain.read(offset, length)


def theirs(script: str, paths: list[Path], offset: int, length: int) -> bytes | None:
    """What another reader gives for a range; None when it refuses."""
    command = [ORACLE_PYTHON, "-c", script, str(offset), str(length), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, check=False)
    if b"ModuleNotFoundError" in done.stderr:
        pytest.skip("this reader is not installed")
    return done.stdout if done.returncode == 0 else None


def by_7zip(leaf: Path) -> tuple[int, bytes]:
    assert SEVEN_ZIP is not None
    done = subprocess.run(
        [SEVEN_ZIP, "x", "-so", str(leaf)], capture_output=True, check=False, stdin=subprocess.DEVNULL
    )
    return done.returncode, done.stdout


def require_still_wrong(is_wrong: bool, who: str) -> None:
    if not is_wrong:
        pytest.skip(f"this version of {who} is right")


# ------------------------------------------------------------------ qemu


@pytest.fixture
def vhd_pair(tmp_path: Path) -> Path:
    """Section 11.3 of the digest: parent sectors 0-7 of block 0 and block 1; child sectors 1 and 9."""
    a_vhd(size=4 * MIB, blocks={0: range(8), 1: ALL}).save(tmp_path / "parent.vhd")
    return a_child_vhd(size=4 * MIB, blocks={0: (1, 9)}).save(tmp_path / "child.vhd")


def test_a_differencing_vhd_is_not_a_dynamic_one(vhd_pair: Path) -> None:
    """qemu knows no disk type 4: it converts a child with exit code 0, zeros where the parent should be."""
    assert tags(ours(vhd_pair, 0, 4 * 512)) == "50 c0 50 50"

    (vhd_pair.parent / "parent.vhd").unlink()
    with pytest.raises(ParentNotFoundError) as caught:
        open_chain(vhd_pair)
    assert caught.value.exit_code == 66


@needs_qemu
def test_observed_qemu_takes_a_differencing_vhd_for_a_dynamic_one(vhd_pair: Path, tmp_path: Path) -> None:
    target = tmp_path / "qemu.raw"
    done = subprocess.run(
        [str(QEMU_IMG), "convert", "-f", "vpc", "-O", "raw", str(vhd_pair), str(target)],
        capture_output=True,
        check=False,
    )

    require_still_wrong(done.returncode == 0 and tags(target.read_bytes()[:2048]) == "-- c0 -- --", "qemu")


@pytest.fixture
def crossed_vhdx(tmp_path: Path) -> Path:
    surgeon = VhdxSurgeon(a_vhdx())
    surgeon.set_block(1, 6, surgeon.data_at(0))
    return surgeon.patient.save(tmp_path / "crossed.vhdx")


def test_two_bat_entries_on_one_place_are_found(crossed_vhdx: Path) -> None:
    """``qemu-img check`` says "No errors were found on the image", and convert goes on."""
    report = check_paths([crossed_vhdx])

    assert [finding.code for finding in report.findings if finding.severity == "error"] == ["vhdx.bat.cross"]
    with open_chain(crossed_vhdx) as chain, pytest.raises(CorruptError):
        chain.read(0, 512)


@needs_qemu
def test_observed_qemu_does_not_notice_two_entries_on_one_place(crossed_vhdx: Path) -> None:
    done = subprocess.run(
        [str(QEMU_IMG), "check", "-f", "vhdx", str(crossed_vhdx)], capture_output=True, check=False
    )

    require_still_wrong(b"No errors were found" in done.stdout, "qemu")


# ------------------------------------------------------------------ libvhdi


def test_a_vhd_bitmap_has_one_bit_for_each_sector(vhd_pair: Path) -> None:
    """libvhdi shifts without a mask: after the first set bit of a byte every sector counts as present.

    It gives ``-- `` (the child's zeros) for sectors 2 to 7, which are the parent's.
    """
    assert tags(ours(vhd_pair, 0, 12 * 512)) == "50 c0 50 50 50 50 50 50 -- c0 -- --"
    assert tags(ours(vhd_pair, 2 * MIB, 512)) == "50"


@needs_oracle
def test_observed_libvhdi_takes_wrong_sectors_from_vhd_bitmaps(vhd_pair: Path) -> None:
    found = theirs(LIBVHDI, [vhd_pair, vhd_pair.parent / "parent.vhd"], 0, 12 * 512)

    require_still_wrong(found is not None and tags(found) == "50 c0 -- -- -- -- -- -- -- c0 -- --", "libvhdi")


@pytest.fixture
def vhdx_pair(tmp_path: Path) -> Path:
    """Section 11.5: the child's blocks are partial, UNDEFINED, ZERO, UNMAPPED and absent."""
    a_vhdx(blocks=dict.fromkeys(range(5), 6)).save(tmp_path / "parent.vhdx")
    return a_child_vhdx(blocks={0: 7, 1: 1, 2: 2, 3: 3}, bits={0: (1, 7, 8)}).save(tmp_path / "child.avhdx")


def test_zeroed_and_trimmed_blocks_do_not_fall_through_to_the_parent(vhdx_pair: Path) -> None:
    """libvhdi takes every state below 6 from the parent: what was deleted comes back."""
    assert tags(ours(vhdx_pair, 0, 9 * 512)) == "50 c0 50 50 50 50 50 c0 c0"
    assert [tags(ours(vhdx_pair, mib * MIB, 512)) for mib in range(5)] == ["50", "--", "--", "--", "50"]


@needs_oracle
def test_observed_libvhdi_brings_deleted_blocks_back(vhdx_pair: Path) -> None:
    paths = [vhdx_pair, vhdx_pair.parent / "parent.vhdx"]
    found = [theirs(LIBVHDI, paths, mib * MIB, 512) for mib in range(1, 4)]

    require_still_wrong([tags(data or b"") for data in found] == ["50", "50", "50"], "libvhdi")


@pytest.fixture
def dirty_vhdx(tmp_path: Path) -> Path:
    """On disk the BAT is empty; the log holds the page that says where block 0 is."""
    surgeon = VhdxSurgeon(a_vhdx(blocks={0: 6}))
    page = surgeon.patient.read(surgeon.bat_at, 4096)
    surgeon.patient.write(surgeon.bat_at, bytes(4096))
    surgeon.write_log([LogEntry([LogWrite(surgeon.bat_at, page)], sequence=70)], log_guid=LOG_GUID)
    return surgeon.patient.save(tmp_path / "dirty.vhdx")


def test_a_pending_log_is_replayed_in_memory(dirty_vhdx: Path) -> None:
    """libvhdi, dissect and 7-Zip show the file as it is without the log: a disk that looks empty."""
    before = dirty_vhdx.read_bytes()

    assert tags(ours(dirty_vhdx, 0, 512)) == "50"
    with open_chain(dirty_vhdx, log="before") as chain:
        assert tags(chain.read(0, 512)) == "--"
    assert dirty_vhdx.read_bytes() == before


@needs_oracle
@pytest.mark.parametrize(
    ("script", "who"), [(LIBVHDI, "libvhdi"), (DISSECT, "dissect")], ids=["libvhdi", "dissect"]
)
def test_observed_a_pending_log_is_ignored(dirty_vhdx: Path, script: str, who: str) -> None:
    found = theirs(script, [dirty_vhdx], 0, 512)

    require_still_wrong(found == bytes(512), who)


@needs_7zip
def test_observed_7zip_extracts_the_state_before_the_log(dirty_vhdx: Path) -> None:
    code, data = by_7zip(dirty_vhdx)

    require_still_wrong(code != 0 or not any(data), "7-Zip")


# ------------------------------------------------------------------ dissect


@pytest.fixture
def backwards_vhdx(tmp_path: Path) -> Path:
    """Blocks of 1 MiB that stand in the file in the opposite order."""
    blocks = dict.fromkeys(reversed(range(4)), 6)
    return a_vhdx(size=4 * MIB, blocks=blocks).save(tmp_path / "backwards.vhdx")


def test_a_read_that_starts_in_a_block_ends_with_it(backwards_vhdx: Path) -> None:
    """dissect cuts a run to a block's length, not to what is left of the block, and reads past its end."""
    data = ours(backwards_vhdx, MIB // 2, MIB)
    whole = ours(backwards_vhdx, 0, 4 * MIB)

    assert data == whole[MIB // 2 :][:MIB]
    # The second half begins with block 1, sector 0.
    assert data[MIB // 2 :].startswith(b"50/000001/000000")


@needs_oracle
def test_observed_dissect_reads_past_a_blocks_end(backwards_vhdx: Path) -> None:
    right = ours(backwards_vhdx, MIB // 2, MIB)
    assert theirs(DISSECT, [backwards_vhdx], MIB // 2, MIB // 2) == right[: MIB // 2]

    found = theirs(DISSECT, [backwards_vhdx], MIB // 2, MIB)

    require_still_wrong(found is not None and found != right, "dissect")


@pytest.fixture
def vhdx_with_user_item(tmp_path: Path) -> Path:
    surgeon = VhdxSurgeon(a_vhdx())
    surgeon.add_item(guid(OTHER_GUID), b"a program's own note", 1)
    return surgeon.patient.save(tmp_path / "noted.vhdx")


def test_an_unknown_user_item_is_no_reason_to_refuse(vhdx_with_user_item: Path) -> None:
    """dissect raises a KeyError on opening."""
    with open_chain(vhdx_with_user_item) as chain:
        assert tags(chain.read(0, 512)) == "50"
        assert not chain.leaf.findings


@needs_oracle
def test_observed_dissect_refuses_an_unknown_user_item(vhdx_with_user_item: Path, tmp_path: Path) -> None:
    plain = a_vhdx().save(tmp_path / "plain.vhdx")
    assert tags(theirs(DISSECT, [plain], 0, 512) or b"") == "50"

    require_still_wrong(theirs(DISSECT, [vhdx_with_user_item], 0, 512) is None, "dissect")


@pytest.fixture
def cut_vhdx(tmp_path: Path) -> Path:
    patient = a_vhdx(size=2 * MIB, blocks={0: 6, 1: 6})
    patient.resize(patient.size - MIB // 2)
    return patient.save(tmp_path / "cut.vhdx")


def test_a_cut_file_is_an_error_at_its_place(cut_vhdx: Path) -> None:
    """dissect gives less than was asked for, and no error."""
    with open_chain(cut_vhdx) as chain, pytest.raises(CorruptError) as caught:
        chain.read(0, 2 * MIB)

    assert caught.value.finding is not None
    assert caught.value.finding.code == "vhdx.bat.eof"
    assert "BAT[1]" in str(caught.value)


@needs_oracle
def test_observed_dissect_gives_short_data_of_a_cut_file(cut_vhdx: Path) -> None:
    found = theirs(DISSECT, [cut_vhdx], 0, 2 * MIB)

    require_still_wrong(found is not None and len(found) < 2 * MIB, "dissect")


def test_a_wrong_parent_is_refused_with_both_identities(tmp_path: Path) -> None:
    """dissect reads through whatever stands under the parent's name."""
    a_vhdx(data_write_guid=OTHER_GUID).save(tmp_path / "parent.vhdx")
    child = a_child_vhdx().save(tmp_path / "child.avhdx")

    with pytest.raises(ParentMismatchError) as caught:
        open_chain(child)

    assert OTHER_GUID in str(caught.value)
    assert PARENT_GUID in str(caught.value)


def test_a_disk_that_is_its_own_parent_ends_in_one_line(tmp_path: Path) -> None:
    """dissect goes on to Python's recursion limit and ends in a message of 62,000 characters."""
    child = a_child_vhdx(data_write_guid=PARENT_GUID, relative=".\\child.avhdx").save(
        tmp_path / "child.avhdx"
    )

    with pytest.raises(ChainLoopError) as caught:
        open_chain(child)

    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


# ------------------------------------------------------------------ 7-Zip


@pytest.fixture
def one_headed_vhdx(tmp_path: Path) -> Path:
    surgeon = VhdxSurgeon(a_vhdx())
    surgeon.header(1)["Checksum"] ^= 1
    return surgeon.patient.save(tmp_path / "one-headed.vhdx")


def test_a_lost_first_header_is_a_warning(one_headed_vhdx: Path) -> None:
    """7-Zip refuses the file, though the second header is good and nothing is lost."""
    with open_chain(one_headed_vhdx) as chain:
        assert tags(chain.read(0, 512)) == "50"
        assert [finding.code for finding in chain.warnings()] == ["vhdx.header.one"]


@needs_7zip
def test_observed_7zip_refuses_a_lost_first_header(one_headed_vhdx: Path) -> None:
    sound = by_7zip(a_vhdx().save(one_headed_vhdx.parent / "sound.vhdx"))
    assert sound[0] == 0
    assert tags(sound[1][:512]) == "50"

    code, data = by_7zip(one_headed_vhdx)

    require_still_wrong(code != 0 or not data, "7-Zip")


@pytest.fixture
def grown_child(tmp_path: Path) -> Path:
    """A child of 5 MiB over a parent of 2 MiB."""
    a_vhdx(size=2 * MIB, blocks={0: 6, 1: 6}).save(tmp_path / "parent.vhdx")
    return a_child_vhdx(size=5 * MIB, blocks={0: 7, 4: 6}, bits={0: (1,)}).save(tmp_path / "child.avhdx")


def test_a_child_may_be_larger_than_its_parent(grown_child: Path) -> None:
    """7-Zip, libvhdi and dissect fail at the parent's end; behind it every layer below reads zeros."""
    tags_of_blocks = [tags(ours(grown_child, mib * MIB, 512)) for mib in range(5)]

    assert tags_of_blocks == ["50", "50", "--", "--", "c0"]
    assert len(ours(grown_child, 0, 5 * MIB)) == 5 * MIB


@needs_7zip
def test_observed_7zip_fails_at_the_end_of_a_smaller_parent(grown_child: Path) -> None:
    code, data = by_7zip(grown_child)

    require_still_wrong(code != 0 or len(data) < 5 * MIB, "7-Zip")


@pytest.fixture
def moved_parent(tmp_path: Path) -> Path:
    """The recorded relative path has gone, and the parent lies beside its child."""
    a_vhdx().save(tmp_path / "parent.vhdx")
    child = a_child_vhdx(relative="..\\templates\\gen2\\parent.vhdx")
    return child.save(tmp_path / "child.avhdx")


def test_a_moved_parent_is_found_beside_its_child(moved_parent: Path) -> None:
    """7-Zip follows the recorded relative path and nothing else."""
    with open_chain(moved_parent) as chain:
        assert [str(layer.found_by) for layer in chain.layers] == ["given", "name"]
        assert tags(chain.read(0, 3 * 512)) == "50 c0 50"


def test_a_moved_and_renamed_parent_is_found_by_its_identity(moved_parent: Path) -> None:
    """No other reader looks for a parent by identity."""
    (moved_parent.parent / "parent.vhdx").rename(moved_parent.parent / "gold image.vhdx")

    with open_chain(moved_parent) as chain:
        assert [str(layer.found_by) for layer in chain.layers] == ["given", "identity"]


@needs_7zip
def test_observed_7zip_does_not_find_a_moved_parent(moved_parent: Path) -> None:
    code, data = by_7zip(moved_parent)

    require_still_wrong(code != 0 or len(data) < 4 * MIB, "7-Zip")


def test_opening_an_image_never_opens_its_parent(vhdx_pair: Path) -> None:
    (vhdx_pair.parent / "parent.vhdx").unlink()

    image = open_image(vhdx_pair)

    assert image.parent is not None
    image.close()

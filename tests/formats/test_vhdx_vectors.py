"""The test vectors of the format digest, on the real files that they were measured on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from vhdtool.checksum import crc32c, crc32c_without_field
from vhdtool.errors import FindingLog, Severity
from vhdtool.formats.image import OpenOptions, require_sound
from vhdtool.formats.vhdx.header import read_headers
from vhdtool.formats.vhdx.image import VhdxImage, open_vhdx
from vhdtool.formats.vhdx.log import find_active_sequence
from vhdtool.model.identity import DiskType
from vhdtool.model.state import BlockCounts, BlockState
from vhdtool.source import FileSource

Unpacked = Callable[[str], Path]
MIB = 1 << 20
ABSENT, ZERO, DATA, PARTIAL, DAMAGED = BlockState

DYNAMIC_1G = "qemu/iotest-dynamic-1G.vhdx"
DISK2VHD = "qemu/test-disk2vhd.vhdx"
DIRTY_QEMU = "qemu/iotest-dirtylog-10G-4M.vhdx"
DIRTY_WINDOWS = "discutils/vhdx-log-replay.vhdx"
CHECKPOINT = "dissect.hypervisor/differencing.avhdx"


@contextmanager
def opened(path: Path, options: OpenOptions | None = None) -> Iterator[VhdxImage]:
    with FileSource(path) as source:
        yield open_vhdx(source, options or OpenOptions())


def virtual_sha256(image: VhdxImage) -> str:
    """Digest of the disk of an image without parent, read block by block."""
    digest = hashlib.sha256()
    zeros = bytes(MIB)
    for block in range(image.geometry.block_count):
        state, offset = image.entry(block)
        assert state in (ABSENT, ZERO, DATA)
        length = image.geometry.block_length(block)
        for at in range(0, length, MIB):
            size = min(MIB, length - at)
            data = (
                image.source.read_exact(offset + at, size, field="block") if state is DATA else zeros[:size]
            )
            digest.update(data)
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("data", "crc"),
    [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43)],
)
def test_crc_check_values(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc


@pytest.mark.parametrize(
    ("name", "sequences", "crcs", "region_crc"),
    [
        (DYNAMIC_1G, (14, 15), (0x37FABB18, 0xB502276F), 0xC66B8CAE),
        (DISK2VHD, (1, 1), (0x0F5CF62B, 0x0F5CF62B), 0x1C142859),
        (DIRTY_WINDOWS, (8, 9), (0x6D6209C8, 0xEF9A95BF), 0xC66B8CAE),
    ],
)
def test_headers_and_region_tables_have_their_checksums(
    unpacked: Unpacked, name: str, sequences: tuple[int, int], crcs: tuple[int, int], region_crc: int
) -> None:
    with FileSource(unpacked(name)) as source:
        for offset, sequence, crc in zip((0x10000, 0x20000), sequences, crcs):
            raw = source.read_exact(offset, 4096, field="header")
            assert crc32c_without_field(raw, 4) == crc == int.from_bytes(raw[4:8], "little")
            assert int.from_bytes(raw[8:16], "little") == sequence
        for offset in (0x30000, 0x40000):
            table = source.read_exact(offset, 65536, field="region table")
            assert crc32c_without_field(table, 4) == region_crc


def test_11_1_a_dynamic_disk_of_windows_2012(unpacked: Unpacked) -> None:
    with opened(unpacked(DYNAMIC_1G)) as image:
        require_sound(image)
        assert image.findings == ()
        assert image.header.sequence_number == 15
        assert str(image.header.file_write_guid) == "8e90ea6d-b636-1c49-b7d4-35109e600c0c"
        assert str(image.write_id) == "d247cbb2-15b6-404b-9133-790733d694c0"
        assert str(image.disk_id) == "fc7209f1-f6eb-4616-9b77-e994e3017ddd"
        assert image.creator == "Microsoft Windows 6.2.9200.16384"
        assert (image.regions.bat.file_offset, image.regions.metadata.file_offset) == (3 * MIB, 2 * MIB)
        geometry = image.geometry
        assert (geometry.virtual_size, geometry.block_size) == (1 << 30, 32 * MIB)
        assert (geometry.sector_size, geometry.physical_sector_size) == (512, 4096)
        assert (image.chunks.ratio, image.chunks.block_count) == (128, 32)
        assert image.counts() == BlockCounts(total=32, data=3, zero=29)
        assert [image.entry(b) for b in range(4)] == [
            (DATA, 0x400000),
            (DATA, 0x2400000),
            (DATA, 0x4400000),
            (ZERO, 0),
        ]
        assert virtual_sha256(image) == "d3d112d8dab7fd360609f7d5a7b769904b7a2a7d7b6b8c535f65a23293c05478"


def test_11_2_equal_headers_and_a_region_table_in_another_order(unpacked: Unpacked) -> None:
    with opened(unpacked(DISK2VHD)) as image:
        require_sound(image)
        assert image.findings == ()
        assert image.creator == "d2v"
        assert str(image.disk_id) == "7a5a2cd2-ee6e-459f-aab5-195a3a5892b9"
        assert [region.name for region in image.regions.regions] == ["Metadata", "BAT"]
        assert image.counts() == BlockCounts(total=128, data=128)
        assert image.entry(0) == (DATA, 0x400000)
        assert image.entry(1) == (DATA, 0x800000)
        assert image.entry(127) == (DATA, 0x600000)
        assert virtual_sha256(image) == "96d964042be9b58dda1725567abfb0cf9fd8380e2118754afa979c2ad445938a"


def test_11_3_one_active_entry_behind_six_stale_ones(unpacked: Unpacked) -> None:
    with opened(unpacked(DIRTY_QEMU)) as image, opened(unpacked(DIRTY_QEMU), OpenOptions("before")) as before:
        require_sound(image)
        header, _ = read_headers(before.source, FindingLog("x"))
        (entry,) = find_active_sequence(before.source, header)
        assert (header.sequence_number, header.checksum) == (932638741, 0x13576C3C)
        assert (entry.position, entry.length, entry.tail) == (0xC000, 0x2000, 0xC000)
        assert (entry.sequence_number, entry.descriptor_count, entry.checksum) == (7, 1, 0xDE751B77)
        assert (entry.flushed_file_offset, entry.last_file_offset) == (0x1E00000, 0x1E00000)

        page = image.source.read_exact(0x200000, 4096, field="BAT")
        assert page[:8] == bytes.fromhex("0600800000000000")
        assert (
            hashlib.sha256(page).hexdigest()
            == "11c704e9beb0fd65ccdab143466685ba2ccde384f7049d3e30763947625c50f6"
        )
        old = before.source.read_exact(0x200000, 4096, field="BAT")
        assert [i for i in range(512) if page[8 * i : 8 * i + 8] != old[8 * i : 8 * i + 8]] == [17]
        assert before.entry(17) == (ABSENT, 0)
        assert image.entry(17) == (DATA, 0x1D00000)
        assert (image.chunks.ratio, image.chunks.block_count, image.chunks.entry_count) == (
            4096,
            10240,
            10242,
        )
        assert {f.code for f in image.findings} == {
            "vhdx.header.differ",
            "vhdx.log.pending",
            "vhdx.region.not_required",
        }


def test_11_4_a_disk_that_is_empty_when_its_log_is_ignored(unpacked: Unpacked) -> None:
    with (
        opened(unpacked(DIRTY_WINDOWS)) as image,
        opened(unpacked(DIRTY_WINDOWS), OpenOptions("before")) as before,
    ):
        require_sound(image)
        header, _ = read_headers(before.source, FindingLog("x"))
        found = [
            (
                e.position,
                e.length,
                e.tail,
                e.sequence_number - 80117443871106387,
                e.descriptor_count,
                e.flushed_file_offset,
                e.last_file_offset,
                e.checksum,
            )
            for e in find_active_sequence(before.source, header)
        ]
        assert found == [
            (0x0, 0x1000, 0x0, 0, 0, 0x400000, 0x400000, 0xF08D8991),
            (0x1000, 0x2000, 0x1000, 1, 1, 0x400000, 0x400000, 0x8A4B81F5),
            (0x3000, 0x2000, 0x1000, 2, 1, 0x400000, 0x400000, 0xE8F5F9BC),
            (0x5000, 0x2000, 0x1000, 3, 1, 0x400000, 0x2400000, 0x9ABDE529),
            (0x7000, 0x2000, 0x5000, 4, 1, 0x2400000, 0x2400000, 0xA967B19F),
        ]
        assert image.log.entries == 2
        assert [f.code for f in image.findings] == ["vhdx.log.pending"]

        page = image.source.read_exact(0x300000, 4096, field="BAT")
        assert (
            hashlib.sha256(page).hexdigest()
            == "94e3f013c261d056081c825229bdc9d3c604ef949aa5a4e89a06be4fc9c21d76"
        )
        raw = np.frombuffer(page, "<u8")
        assert {int(i): int(raw[i]) for i in np.flatnonzero(raw)} == {0: 0x400006, 3: 2, 9: 2, 31: 2}
        assert virtual_sha256(image) == "3ba3b309425b7ff5e8e0199edceed95226250f880c53b24e8eae93865f3fad5e"

        assert [(f.code, f.severity) for f in before.findings] == [("vhdx.log.left_out", Severity.WARNING)]
        assert before.counts() == BlockCounts(total=32, absent=32)


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        (
            "dissect.hypervisor/dynamic.vhdx",
            "8e2b5e9265d694b42b81819e3bff29770eff4ed0f4f9f311693ff3dbdc93efac",
        ),
        ("discutils/btrfs.vhdx", "0b959f9cb4e18348ad8b646f152178282542c8304f02fddf765e3fd1a1de6864"),
    ],
)
def test_other_small_disks_read_as_stated(unpacked: Unpacked, name: str, sha256: str) -> None:
    with opened(unpacked(name)) as image:
        require_sound(image)
        assert image.findings == ()
        assert virtual_sha256(image) == sha256


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("discutils/swap.vhdx", BlockCounts(total=320, data=1, zero=1, absent=318)),
        ("discutils/xfs.vhdx", BlockCounts(total=320, data=20, zero=58, absent=242)),
    ],
)
def test_disks_of_several_chunks_count_as_stated(unpacked: Unpacked, name: str, counts: BlockCounts) -> None:
    with opened(unpacked(name)) as image:
        require_sound(image)
        assert image.findings == ()
        assert image.counts() == counts
        states = image.block_map(0, 320).state.tolist()
        assert (states.count(DATA), states.count(ZERO), states.count(ABSENT)) == (
            counts.data,
            counts.zero,
            counts.absent,
        )
        assert image.chunks.index_of_block(319) == 321


def test_a_real_checkpoint(unpacked: Unpacked) -> None:
    with opened(unpacked(CHECKPOINT)) as image:
        require_sound(image)
        assert image.findings == ()
        assert image.type is DiskType.DIFFERENCING
        assert str(image.write_id) == "b298d413-f67e-412a-9a72-c7c7fc9b6cb5"
        assert str(image.disk_id) == "89ca62b5-b00d-4b8e-b79a-87e20cad5a40"
        assert image.parent is not None
        assert [str(i) for i in image.parent.identities] == ["ff34003b-11ed-4cf8-a166-b2be05e20b80"]
        name = "Generation 1_49C4BAF3-4B25-4406-8C4B-D39E65C32385.avhdx"
        assert [p.locator for p in image.parent.paths] == [
            "relative_path",
            "volume_path",
            "absolute_win32_path",
        ]
        assert image.parent.paths[0].path == f".\\{name}"
        assert image.parent.name == name
        assert image.counts() == BlockCounts(total=4096, partial=32, absent=4064)
        assert image.chunks.chunk_count == 2

        bits, present = _present_sectors(image)
        assert int(bits.sum()) == 6200
        edges = np.flatnonzero(np.diff(np.concatenate(([0], bits, [0])).astype(np.int8)))
        runs = edges.reshape(-1, 2)
        assert len(runs) == 179
        assert runs[[0, 1, 2, -1]].tolist() == [
            [2048, 2056],
            [1050624, 1050656],
            [3780608, 3780632],
            [14395872, 14395904],
        ]
        assert present == "5bb6800ac0903f0897a2fb4cd304a9d033856d8ba12cbc8f7bf555fe29bfcbb7"


def _present_sectors(image: VhdxImage) -> tuple[np.ndarray[tuple[int], np.dtype[np.uint8]], str]:
    """One byte a sector of the disk, 1 where it is here, and the digest of those sectors' bytes."""
    digest = hashlib.sha256()
    bits = np.zeros(image.geometry.sector_count, np.uint8)
    per_block = image.geometry.sectors_per_block
    for block in np.flatnonzero(image.block_map(0, 4096).state == PARTIAL).tolist():
        _, offset = image.entry(block)
        here = np.unpackbits(np.frombuffer(image.bitmap(block), np.uint8), bitorder="little")
        bits[block * per_block : (block + 1) * per_block] = here
        for sector in np.flatnonzero(here).tolist():
            digest.update(image.source.read_exact(offset + sector * 512, 512, field="sector"))
    return bits, digest.hexdigest()


def test_opening_and_counting_imports_no_numpy(unpacked: Unpacked) -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "from vhdtool.source import FileSource\n"
        "from vhdtool.formats.image import OpenOptions\n"
        "from vhdtool.formats.vhdx.image import open_vhdx\n"
        "image = open_vhdx(FileSource(sys.argv[1]), OpenOptions())\n"
        "image.counts(), image.findings, image.sections, image.bitmap(1)\n"
        "image.close()\n"
        "assert 'numpy' not in sys.modules and 'numba' not in sys.modules\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    path = unpacked(CHECKPOINT)
    with opened(path) as image:
        first = int(np.flatnonzero(image.block_map(0, 4096).state == PARTIAL)[0])
    code = code.replace("bitmap(1)", f"bitmap({first})")
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=environment)

"""Files that other programs made read as their ground truth says; skips without the collection."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.builders.vhd import codes, content
from vhdtool.errors import CorruptError
from vhdtool.formats.image import OpenOptions, require_sound
from vhdtool.formats.registry import open_image, recognise
from vhdtool.formats.vhd.image import VhdImage, open_vhd
from vhdtool.model.identity import DiskType, ImageFormat
from vhdtool.source import FileSource

Unpacked = Callable[[str], Path]

PLASO = "c6db12a7db548e193c29420c1b4533e4708b20c5033db5cc29ef075d48316d25"
FIXED = "459325ab1fcd1d5ec9854cba790ee26378317cda177ffc1072008a1df88e6463"
DYNAMIC = "ecff2ef6615a3cddc6a6885f1c6d9cf13a232697e1dc6575f2c2f01f57247784"
EXT2 = "870be7ae16c1fa8faab05c6eb9205dc9a7ae35c5f552c5cf8a267c0bc6a5cb99"
MINIMAL = "79f45ff4dce008350fe8cf6463e3c35c3fb93e2ac4ee20bb1483439f63658b1f"
BOTH = {"vhd.footer.checksum", "vhd.header.checksum"}
TAIL = {"vhd.bitmap.tail"}  # qemu sets the bits of sectors that the disk does not have
TABLE = [
    # file, creator, type, size, (total, stored), identity as raw bytes, sha256, findings that are no info
    ("dissect.hypervisor/fixed.vhd", "win 10.0", "fixed", 10485760, (0, 0),
     "b895e4183894e7449a889a420be4e5ca", FIXED, set()),
    ("dissect.hypervisor/dynamic.vhd", "win 10.0", "dynamic", 10485760, (5, 3),
     "4b6a0d04f946d74e836fd3dc87e1816b", DYNAMIC, set()),
    ("qemu/hyperv2012r2-dynamic.vhd", "win 6.3", "dynamic", 136365211648, (65024, 0),
     "6d2d5fc8eebade4c8ceede3a12db7c98", None, set()),
    ("qemu/virtualpc-dynamic.vhd", "vpc 1.0", "dynamic", 136365211648, (65024, 0),
     "33ea001361914d02b93f88af84296f85", None, set()),
    ("dfvfs/ext2.vhd", "qemu 5.3", "dynamic", 4212736, (3, 1),
     "b61f53caa786452890e255ba791a1c4c", EXT2, set()),
    ("plaso/image.vhd", "qemu 5.3", "dynamic", 104448, (1, 1),
     "00" * 16, PLASO, {"vhd.uuid.null"} | TAIL),
    ("dfvfs/image.vhd", "qemu 5.3", "dynamic", 104448, (1, 1),
     "d49c5c80350a4a89898a5ad6d10f6578", PLASO, {"vhd.footer.checksum"} | TAIL),
    ("dfvfs/image-differential.vhd", "qemu 5.3", "differencing", 104448, (1, 1),
     "40d56d369ab84fe4a31a121fe2bf15eb", PLASO, BOTH | TAIL),
    ("vhd-forensic/minimal.vhd", "qemu 5.3", "dynamic", 1079296, (1, 0),
     "5481f005d3114b4eafe66a2449fb7019", MINIMAL, set()),
]  # fmt: skip


@contextmanager
def real(path: Path, *, ignore_checksums: bool = True) -> Iterator[VhdImage]:
    with FileSource(path) as source:
        assert recognise(source) is ImageFormat.VHD
        yield open_vhd(source, OpenOptions(ignore_checksums=ignore_checksums))


@pytest.mark.parametrize(
    ("name", "creator", "disk_type", "size", "blocks", "identity", "sha256", "loud"),
    TABLE,
    ids=[row[0] for row in TABLE],
)
def test_a_real_image_is_what_its_makers_say(
    unpacked: Unpacked,
    name: str,
    creator: str,
    disk_type: str,
    size: int,
    blocks: tuple[int, int],
    identity: str,
    sha256: str | None,
    loud: set[str],
) -> None:
    with real(unpacked(name)) as image:
        image.inspect(deep=True)
        counts = image.counts()

        assert image.creator == creator
        assert str(image.type) == disk_type
        assert image.geometry.virtual_size == size
        assert (counts.total, counts.partial) == blocks
        assert counts.absent == counts.total - counts.partial
        assert image.write_id.raw.hex() == identity
        assert {code for code, severity in codes(image).items() if severity != "info"} == loud
        require_sound(image)
        if sha256 is not None:
            assert hashlib.sha256(content(image)).hexdigest() == sha256


def test_blocks_need_not_be_in_order(unpacked: Unpacked) -> None:
    with real(unpacked("dissect.hypervisor/dynamic.vhd")) as image:
        stored = [image.entry(block)[1] // 512 - 1 for block in range(5) if image.entry(block)[1]]

    assert stored == [15, 8223, 4119]


@pytest.mark.parametrize("name", ["dfvfs/image.vhd", "dfvfs/image-differential.vhd"])
def test_the_pair_with_wrong_checksums_is_refused_unless_asked(unpacked: Unpacked, name: str) -> None:
    with pytest.raises(CorruptError) as caught:
        open_image(unpacked(name))

    assert caught.value.finding is not None
    assert caught.value.finding.code == "vhd.footer.checksum"
    assert caught.value.finding.found == "0xfffff683"
    with real(unpacked(name), ignore_checksums=False) as image:
        assert codes(image)["vhd.footer.checksum"] == "error"


def test_the_differencing_one_names_its_parent(unpacked: Unpacked) -> None:
    with real(unpacked("dfvfs/image-differential.vhd")) as image:
        assert image.type is DiskType.DIFFERENCING
        assert image.parent is not None
        assert image.parent.name == "image.vhd"
        assert image.parent.identities[0].raw.hex() == "d49c5c80350a4a89898a5ad6d10f6578"
        assert image.parent.timestamp is None


@pytest.mark.parametrize(
    "name", ["dissect.hypervisor/dynamic.vhd", "qemu/hyperv2012r2-dynamic.vhd", "qemu/virtualpc-dynamic.vhd"]
)
def test_the_table_is_the_files_own(unpacked: Unpacked, name: str) -> None:
    path = unpacked(name)
    with real(path) as image:
        assert image.header is not None
        count, at = image.geometry.block_count, image.header.table_offset
        table = struct.unpack_from(f">{count}I", path.read_bytes(), at)
        whole = image.block_map(0, count)

    expected = [0 if entry == 0xFFFF_FFFF else entry * 512 + 512 for entry in table]
    assert whole.file_offset.tolist() == expected


def test_a_damaged_end_changes_nothing_but_a_warning(unpacked: Unpacked, tmp_path: Path) -> None:
    raw = unpacked("dfvfs/ext2.vhd").read_bytes()
    damaged = tmp_path / "ext2.vhd"
    damaged.write_bytes(raw[:-512])

    with real(damaged) as image:
        image.inspect(deep=True)

        assert {c for c, severity in codes(image).items() if severity != "info"} == {"vhd.footer.end_bad"}
        assert hashlib.sha256(content(image)).hexdigest() == EXT2

"""Images that other programs made read as their ground truth says, and are not changed by it.

The collection lies beside the checkout (its README states who made each file and what is in it); without it
these tests skip.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

import vhdtool
from vhdtool.chain.chain import Chain
from vhdtool.export.create import Identities
from vhdtool.model.identity import DiskType, Identity, ImageFormat
from vhdtool.model.state import ZEROS

Unpacked = Callable[[str], Path]
MIB = 1 << 20


@dataclass(frozen=True)
class Truth:
    """What the collection's README states of one image."""

    name: str
    size: int
    block: int
    sha256: str
    disk_id: str
    type: DiskType = DiskType.DYNAMIC
    creator: str = ""
    write_id: str = ""
    sectors: tuple[int, int] = (512, 512)
    log: str = "clean"
    blocks: tuple[int, int, int] | None = None  # stored, zero, absent


ZEROS_127_GIB = "dcb4f171cbcedb416d5da34e48d5a17ecc2828a0f14c416de3669b8463cb1d8e"
WIN10 = "Microsoft Windows 10.0."

VHD = [
    Truth(
        "dissect.hypervisor/fixed.vhd",
        10485760,
        0,
        "459325ab1fcd1d5ec9854cba790ee26378317cda177ffc1072008a1df88e6463",
        "b895e418-3894-e744-9a88-9a420be4e5ca",
        DiskType.FIXED,
        "win",
    ),
    Truth(
        "dissect.hypervisor/dynamic.vhd",
        10485760,
        2 * MIB,
        "ecff2ef6615a3cddc6a6885f1c6d9cf13a232697e1dc6575f2c2f01f57247784",
        "4b6a0d04-f946-d74e-836f-d3dc87e1816b",
        creator="win",
        blocks=(3, 0, 2),
    ),
    Truth(
        "dfvfs/ext2.vhd",
        4212736,
        2 * MIB,
        "870be7ae16c1fa8faab05c6eb9205dc9a7ae35c5f552c5cf8a267c0bc6a5cb99",
        "b61f53ca-a786-4528-90e2-55ba791a1c4c",
        creator="qemu",
        blocks=(1, 0, 2),
    ),
    Truth(
        "plaso/image.vhd",
        104448,
        2 * MIB,
        "c6db12a7db548e193c29420c1b4533e4708b20c5033db5cc29ef075d48316d25",
        "00000000-0000-0000-0000-000000000000",
        creator="qemu",
    ),
    Truth(
        "vhd-forensic/minimal.vhd",
        1079296,
        2 * MIB,
        "79f45ff4dce008350fe8cf6463e3c35c3fb93e2ac4ee20bb1483439f63658b1f",
        "5481f005-d311-4b4e-afe6-6a2449fb7019",
        creator="qemu",
        blocks=(0, 0, 1),
    ),
    Truth(
        "qemu/hyperv2012r2-dynamic.vhd",
        136365211648,
        2 * MIB,
        ZEROS_127_GIB,
        "6d2d5fc8-eeba-de4c-8cee-de3a12db7c98",
        creator="win",
        blocks=(0, 0, 65024),
    ),
    Truth(
        "qemu/virtualpc-dynamic.vhd",
        136365211648,
        2 * MIB,
        ZEROS_127_GIB,
        "33ea0013-6191-4d02-b93f-88af84296f85",
        creator="vpc",
        blocks=(0, 0, 65024),
    ),
]
VHDX = [
    Truth(
        "dissect.hypervisor/dynamic.vhdx",
        10485760,
        32 * MIB,
        "8e2b5e9265d694b42b81819e3bff29770eff4ed0f4f9f311693ff3dbdc93efac",
        "788015f0-5e93-4bd2-a5de-b0cd8459db11",
        creator=WIN10 + "18363.0",
        write_id="28e09ae1-ab94-4815-a155-f143e2d00a3f",
        sectors=(512, 4096),
    ),
    Truth(
        "qemu/iotest-dynamic-1G.vhdx",
        1 << 30,
        32 * MIB,
        "d3d112d8dab7fd360609f7d5a7b769904b7a2a7d7b6b8c535f65a23293c05478",
        "fc7209f1-f6eb-4616-9b77-e994e3017ddd",
        creator="Microsoft Windows 6.2.9200.16384",
        write_id="d247cbb2-15b6-404b-9133-790733d694c0",
        sectors=(512, 4096),
        blocks=(3, 29, 0),
    ),
    Truth(
        "qemu/test-disk2vhd.vhdx",
        268435456,
        2 * MIB,
        "96d964042be9b58dda1725567abfb0cf9fd8380e2118754afa979c2ad445938a",
        "7a5a2cd2-ee6e-459f-aab5-195a3a5892b9",
        creator="d2v",
        blocks=(128, 0, 0),
    ),
    Truth(
        "qemu/iotest-dirtylog-10G-4M.vhdx",
        10737418240,
        MIB,
        "179cefe8b0587f123393eedf2aa7aa8d25798591178e6bc3950a09762f38f96f",
        "",
        creator="QEMU v1.6.50",
        log="pending",
    ),
    Truth(
        "discutils/vhdx-log-replay.vhdx",
        1 << 30,
        32 * MIB,
        "3ba3b309425b7ff5e8e0199edceed95226250f880c53b24e8eae93865f3fad5e",
        "",
        creator=WIN10 + "15063.0",
        sectors=(512, 4096),
        log="pending",
        blocks=(1, 3, 28),
    ),
    Truth(
        "discutils/swap.vhdx",
        10737418240,
        32 * MIB,
        "60dd30b4c74361427d1089510cabb36e2eeda0cc4747f467ea43173acd358c49",
        "d2aa69e7-866c-428d-bd27-1c5776845258",
        creator=WIN10 + "14393.0",
        sectors=(512, 4096),
        blocks=(1, 1, 318),
    ),
    Truth(
        "discutils/btrfs.vhdx",
        1 << 30,
        32 * MIB,
        "0b959f9cb4e18348ad8b646f152178282542c8304f02fddf765e3fd1a1de6864",
        "d38d4f63-596a-467e-b103-506dab1b3208",
        creator=WIN10 + "15063.0",
        sectors=(512, 4096),
        blocks=(2, 1, 29),
    ),
    Truth(
        "discutils/xfs.vhdx",
        10737418240,
        32 * MIB,
        "8ca2bd2d91f1c6ada47128fc2f8d38587e73954ede5a664fe2bb09c19606060e",
        "91523608-24f0-4aa3-820b-39e05db975df",
        creator=WIN10 + "14393.0",
        sectors=(512, 4096),
        blocks=(20, 58, 242),
    ),
]


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_disk(chain: Chain) -> str:
    """Of the whole virtual disk, by way of its plan: holes are fed from one buffer of zeros."""
    digest = hashlib.sha256()
    zeros = bytes(4 * MIB)
    for plan in chain.windows():
        for run in plan:
            for at in range(0, run.length, len(zeros)):
                count = min(len(zeros), run.length - at)
                if run.layer == ZEROS:
                    digest.update(zeros if count == len(zeros) else bytes(count))
                else:
                    source = chain.layers[run.layer].image.source
                    digest.update(source.read_exact(run.file_offset + at, count, field="payload"))
    return digest.hexdigest()


@pytest.mark.parametrize("truth", [*VHD, *VHDX], ids=lambda truth: truth.name)
def test_headers_say_what_the_ground_truth_says(truth: Truth, unpacked: Unpacked) -> None:
    path = unpacked(truth.name)
    image = vhdtool.open_image(path)
    is_vhdx = truth in VHDX

    assert image.format is (ImageFormat.VHDX if is_vhdx else ImageFormat.VHD)
    assert image.type is truth.type
    assert image.geometry.virtual_size == truth.size
    assert (image.geometry.block_size if image.geometry.has_table else 0) == truth.block
    assert (image.geometry.sector_size, image.geometry.physical_sector_size) == truth.sectors
    assert image.creator.startswith(truth.creator)
    assert image.log.state == (truth.log if is_vhdx else "none")
    assert image.parent is None
    assert image.disk_id is not None
    assert image.write_id is not None
    if truth.disk_id:
        expected = UUID(truth.disk_id)
        assert image.disk_id.raw == (expected.bytes_le if is_vhdx else expected.bytes)
    if truth.write_id:
        assert image.write_id.raw == UUID(truth.write_id).bytes_le
    counts = image.counts()
    if truth.blocks:
        assert (counts.data + counts.partial, counts.zero, counts.absent) == truth.blocks
    assert counts.total == counts.data + counts.partial + counts.zero + counts.absent
    image.close()


@pytest.mark.parametrize("truth", [*VHD, *VHDX], ids=lambda truth: truth.name)
def test_the_virtual_disk_is_the_one_that_was_written_and_the_file_is_not_touched(
    truth: Truth, unpacked: Unpacked
) -> None:
    path = unpacked(truth.name)
    before = sha256_of_file(path), path.stat().st_mtime_ns

    with vhdtool.open_chain(path) as chain:
        if truth.size > 16 << 30:
            # 127 GiB without one stored block: the map says zeros, no need to hash them.
            assert truth.sha256 == ZEROS_127_GIB
            assert [(run.offset, run.length, run.layer) for run in chain.plan()] == [(0, truth.size, ZEROS)]
        else:
            assert sha256_of_disk(chain) == truth.sha256

    assert (sha256_of_file(path), path.stat().st_mtime_ns) == before


@pytest.mark.parametrize(
    ("name", "stale"),
    [
        (
            "qemu/iotest-dirtylog-10G-4M.vhdx",
            "cc3d67a6bfea2ec826b5d0f77ac755bdbca18479ed13f64ee8b3d3f0d64859ca",
        ),
        (
            "discutils/vhdx-log-replay.vhdx",
            "49bc20df15e412a64472421e13fe86ff1c5165e18b2afccf160d4dc19fe68a14",
        ),
    ],
)
def test_a_pending_log_can_be_left_out_on_request(name: str, stale: str, unpacked: Unpacked) -> None:
    """What readers that ignore the log return; vhdtool shows it when asked for, and says so."""
    with vhdtool.open_chain(unpacked(name), log="before") as chain:
        assert sha256_of_disk(chain) == stale
        assert not chain.leaf.log.replayed


def test_the_pair_with_wrong_checksums_is_refused_and_right_when_told_to_ignore_them(
    unpacked: Unpacked,
) -> None:
    unpacked("dfvfs/image.vhd")
    child = unpacked("dfvfs/image-differential.vhd")

    with pytest.raises(vhdtool.CorruptError, match="checksum"):
        vhdtool.open_chain(child)
    with vhdtool.open_chain(child, ignore_checksums=True) as chain:
        assert [layer.image.type for layer in chain.layers] == [DiskType.DIFFERENCING, DiskType.DYNAMIC]
        wanted = UUID("d49c5c80-350a-4a89-898a-5ad6d10f6578").bytes
        assert chain.layers[1].image.write_id is not None
        assert chain.layers[1].image.write_id.raw == wanted
        assert sha256_of_disk(chain) == "c6db12a7db548e193c29420c1b4533e4708b20c5033db5cc29ef075d48316d25"


def test_a_real_checkpoint_without_its_parent_is_described_and_refused(unpacked: Unpacked) -> None:
    path = unpacked("dissect.hypervisor/differencing.avhdx")

    image = vhdtool.open_image(path)

    assert image.type is DiskType.DIFFERENCING
    assert image.geometry.virtual_size == 8 << 30
    assert image.geometry.block_size == 2 * MIB
    assert image.disk_id is not None
    assert image.write_id is not None
    assert image.parent is not None
    assert str(image.disk_id) == "89ca62b5-b00d-4b8e-b79a-87e20cad5a40"
    assert str(image.write_id) == "b298d413-f67e-412a-9a72-c7c7fc9b6cb5"
    assert [str(i) for i in image.parent.identities] == ["ff34003b-11ed-4cf8-a166-b2be05e20b80"]
    assert image.parent.name == "Generation 1_49C4BAF3-4B25-4406-8C4B-D39E65C32385.avhdx"
    assert (image.counts().partial, image.counts().absent) == (32, 4064)
    image.close()
    with pytest.raises(vhdtool.ParentNotFoundError, match="ff34003b-11ed-4cf8-a166-b2be05e20b80"):
        vhdtool.open_chain(path)


def test_a_real_checkpoint_over_an_empty_parent_gives_the_stated_sectors(
    unpacked: Unpacked, tmp_path: Path
) -> None:
    path = unpacked("dissect.hypervisor/differencing.avhdx")
    vhdtool.create_image(
        tmp_path / "renamed-parent.vhdx",
        format="vhdx",
        size=8 << 30,
        identities=Identities(write_id=Identity.of_uuid(UUID("ff34003b-11ed-4cf8-a166-b2be05e20b80"))),
    )

    with vhdtool.open_chain(path, search=[tmp_path]) as chain:
        assert [layer.found_by for layer in chain.layers] == ["given", "identity"]
        here = [run for run in chain.plan() if run.layer == 0]
        sectors = [(run.offset // 512, (run.offset + run.length) // 512) for run in here]
        # Runs that are neighbours on the disk but not in the file count once in the stated figures.
        joined: list[tuple[int, int]] = []
        for start, stop in sectors:
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], stop)
            else:
                joined.append((start, stop))
        assert joined[:3] == [(2048, 2056), (1050624, 1050656), (3780608, 3780632)]
        assert joined[-1] == (14395872, 14395904)
        assert sum(stop - start for start, stop in sectors) == 6200
        assert len(joined) == 179
        digest = hashlib.sha256()
        for run in here:
            digest.update(chain.read(run.offset, run.length))
        assert digest.hexdigest() == "5bb6800ac0903f0897a2fb4cd304a9d033856d8ba12cbc8f7bf555fe29bfcbb7"
        assert sha256_of_disk(chain) == "fc5c91bfd8f7ee388cf482dc7eb6cef64b39a7e1bd043516ee95887b839f2b78"


def test_a_vhd_set_is_named_and_not_read_as_a_disk(unpacked: Unpacked) -> None:
    with pytest.raises(vhdtool.UnsupportedError, match="VHD Set"):
        vhdtool.open_image(unpacked("windows-protocol-test-suites/rsvd.vhds"))


def test_known_bytes_stand_at_their_places(unpacked: Unpacked) -> None:
    for name in ("fixed.vhd", "dynamic.vhd", "dynamic.vhdx"):
        with vhdtool.open_chain(unpacked(f"dissect.hypervisor/{name}")) as chain:
            assert chain.read(0x200000, 512) == b"\xff" * 512
    with vhdtool.open_chain(unpacked("dissect.hypervisor/dynamic.vhd")) as chain:
        assert chain.read(0x3FFF * 512, 16 * 512) == bytes(16 * 512)


def test_walking_a_real_disk_gives_what_flattening_gives(unpacked: Unpacked) -> None:
    from vhdtool.chain.walk import walk
    from vhdtool.model.plan import ReadPlan

    with vhdtool.open_chain(unpacked("discutils/btrfs.vhdx")) as chain:
        plan = chain.plan()
        walked = ReadPlan.of_runs(list(walk(chain.images, 0, chain.virtual_size)))
        for column in ("offset", "length", "layer", "file_offset"):
            np.testing.assert_array_equal(getattr(plan, column), getattr(walked, column))

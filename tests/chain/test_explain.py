"""Explanations, step by step, against walks worked out by hand, and against plans and reads of the chain."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from shutil import rmtree
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings

import vhdtool
from tests.builders import vhd, vhdx
from tests.builders.vhdx import BAT, KIB, LOG, MIB, Block, a_locator, a_vhdx, an_entry, full, partial, save
from tests.catalogue.table import ROWS as CATALOGUE
from tests.chain import by_hand
from tests.chain.by_hand import Row
from tests.chain.fake import FakeImage, chain_of, fake_chains, truth
from tests.generated import Style, a_chain
from tests.test_real_images import VHD, VHDX
from vhdtool.chain.chain import Chain
from vhdtool.chain.explain import Explanation, Step, explain
from vhdtool.chain.walk import walk
from vhdtool.export.create import Identities
from vhdtool.model.identity import Identity
from vhdtool.model.state import DAMAGED, ZEROS

Unpacked = Callable[[str], Path]
CHILD_ID = UUID(int=0xC411D)


def row(step: Step) -> Row:
    return Row(
        step.structure, step.index, step.file_offset, step.value, step.mask, step.state, str(step.outcome)
    )


def rows(explanation: Explanation) -> list[tuple[int, Row]]:
    return [(step.layer, row(step)) for step in explanation.steps]


def explained(path: Path, offset: int) -> Explanation:
    with vhdtool.open_chain(path) as chain:
        return explain(chain, offset)


def offsets_of(chain: Chain, seed: int, count: int) -> list[int]:
    """Guest bytes by chance, around the edges of the plan's runs, and at both ends of the disk."""
    rng = np.random.default_rng(seed)
    edges = np.concatenate([plan.offset for plan in chain.windows()])
    edges = rng.choice(edges, min(len(edges), count), replace=False)
    chance = rng.integers(0, chain.virtual_size, count)
    both = [0, chain.virtual_size - 1, *chance.tolist(), *edges.tolist(), *(edges - 1).tolist()]
    return [offset for offset in both if 0 <= offset < chain.virtual_size]


def assert_agrees_with_plan_and_read(chain: Chain, explanation: Explanation) -> None:
    """The place is that of the walk and of the flattened plan, the bytes are those of a read."""
    start, size = explanation.start, explanation.sector_size
    assert start <= explanation.offset < start + size
    (run,) = chain.plan(start, start + size)
    assert [run] == list(walk(chain.images, start, start + size))
    result, last = explanation.result, explanation.steps[-1]
    assert (result.layer, result.path) == (last.layer, chain.layers[last.layer].path)
    assert result.zero == (run.layer == ZEROS)
    assert not result.damaged
    if run.layer == ZEROS:
        assert result.file_offset is None
    else:
        assert (result.layer, last.file_offset) == (run.layer, run.file_offset)
        assert result.file_offset == (None if result.in_log else run.file_offset)
    assert explanation.data == chain.read(start, size)


def assert_agrees_with_hand(chain: Chain, seed: int, count: int) -> set[tuple[str, str]]:
    """Every step at many places; the structures with their states that occurred."""
    files = [by_hand.opened(layer.path) for layer in chain.layers]
    seen = set()
    for offset in offsets_of(chain, seed, count):
        explanation = explain(chain, offset)
        expected = by_hand.walk(files, explanation.start)
        assert rows(explanation) == expected, offset
        assert explanation.data == by_hand.bytes_of(files, expected)
        assert_agrees_with_plan_and_read(chain, explanation)
        seen |= {(step.structure, step.state) for step in explanation.steps}
    for file in files:
        file.close()
    return seen


# ---------------------------------------------------------------- generated chains and real images


BITS = {("sector bitmap", "bit 0"), ("sector bitmap", "bit 1")}
VHDX_SEEN = {
    *BITS,
    *(("BAT", name) for name in by_hand.PAYLOAD_STATES.values()),
    ("BAT", "SB_BLOCK_PRESENT"),
    ("payload", "in the file"),
    ("virtual disk size", "smaller than its child"),
}
VHD_SEEN = {
    *BITS,
    ("BAT", "used"),
    ("BAT", "unused"),
    ("payload", "in the file"),
    ("virtual disk size", "smaller than its child"),
}
STYLES = {
    "vhdx": (Style(), VHDX_SEEN),
    "vhdx-4k": (Style(sector_size=4096, block_sizes=(MIB, 4 * MIB)), VHDX_SEEN),
    "vhd": (Style(format="vhd", block_sizes=(512 << 10, 2 * MIB)), VHD_SEEN),
    "vhd-small-blocks": (
        Style(format="vhd", block_sizes=(512, 1024, 4096, 32 << 10), size=192 << 10),
        VHD_SEEN,
    ),
}


@pytest.mark.parametrize(("style", "wanted"), STYLES.values(), ids=STYLES)
def test_every_step_in_generated_chains_is_what_stands_in_the_files(
    style: Style, wanted: set[tuple[str, str]], tmp_path: Path
) -> None:
    seen = set()
    for seed, depth in enumerate((1, 2, 3, 5, 9)):
        point = a_chain(tmp_path / str(seed), depth, style, seed + 50)
        with vhdtool.open_chain(point.path) as chain:
            seen |= assert_agrees_with_hand(chain, seed, 60)
            explanation = explain(chain, 0)
            assert explanation.data == point.disk[: chain.sector_size].tobytes()

    assert seen == wanted


@pytest.mark.parametrize("seed", range(4))
def test_chains_with_pending_logs_are_explained_as_they_are_read(seed: int, tmp_path: Path) -> None:
    point = a_chain(tmp_path, 4, Style(logs=0.7), seed + 70)
    overridden = 0
    with vhdtool.open_chain(point.path) as chain:
        for offset in offsets_of(chain, seed, 60):
            explanation = explain(chain, offset)
            assert_agrees_with_plan_and_read(chain, explanation)
            start = explanation.start
            assert explanation.data == point.disk[start : start + 512].tobytes()
            overridden += sum(step.structure == "log override" for step in explanation.steps)

    assert overridden > 0


@pytest.mark.parametrize("truth", [*VHD, *VHDX], ids=lambda truth: truth.name)
def test_real_images_are_explained_as_they_are_read(truth: object, unpacked: Unpacked) -> None:
    assert hasattr(truth, "name")
    assert hasattr(truth, "log")
    with vhdtool.open_chain(unpacked(truth.name)) as chain:
        if truth.log == "clean":
            assert_agrees_with_hand(chain, 1, 150)
        for offset in offsets_of(chain, 2, 150):
            assert_agrees_with_plan_and_read(chain, explain(chain, offset))


def test_real_files_with_pending_logs_show_what_the_log_overrides(unpacked: Unpacked) -> None:
    """The numbers are those of the digest's test vectors (vhdx.md, 11.3 and 11.4)."""
    qemu = explained(unpacked("qemu/iotest-dirtylog-10G-4M.vhdx"), 17 * MIB + 512)
    windows = explained(unpacked("discutils/vhdx-log-replay.vhdx"), 0)

    assert [row(step) for step in qemu.steps] == [
        # The log begins at 1 MiB; its entry at 0xc000 has its descriptor there and the page in 0xd000.
        Row("log override", 7, LOG + 0xD000, None, None, "data descriptor", "next"),
        Row("BAT", 17, 0x200088, 0x1D00006, None, "PAYLOAD_BLOCK_FULLY_PRESENT", "next"),
        Row("payload", 1, 0x1D00200, None, None, "in the file", "here"),
    ]
    assert "not from the file, where 0x0 stands" in qemu.steps[0].note
    override, entry, _ = (row(step) for step in windows.steps)
    # Two entries are replayed and both write the page: the one at 0x7000 last.
    assert override.index == 80117443871106387 + 4
    assert override.file_offset == LOG + 0x8000
    assert (entry.index, entry.file_offset, entry.value) == (0, 0x300000, 0x400006)


def test_the_real_pair_of_vhds_is_explained(unpacked: Unpacked) -> None:
    unpacked("dfvfs/image.vhd")
    with vhdtool.open_chain(unpacked("dfvfs/image-differential.vhd"), ignore_checksums=True) as chain:
        assert_agrees_with_hand(chain, 3, 100)


def test_a_real_checkpoint_over_an_empty_parent_is_explained(unpacked: Unpacked, tmp_path: Path) -> None:
    linkage = Identity.of_uuid(UUID("ff34003b-11ed-4cf8-a166-b2be05e20b80"))
    vhdtool.create_image(
        tmp_path / "p.vhdx", format="vhdx", size=8 << 30, identities=Identities(write_id=linkage)
    )

    path = unpacked("dissect.hypervisor/differencing.avhdx")
    with vhdtool.open_chain(path, search=[tmp_path]) as chain:
        seen = assert_agrees_with_hand(chain, 4, 200)
        here, below = explain(chain, 2048 * 512), explain(chain, 2056 * 512)

    assert seen >= BITS
    # The first sectors that are its own are 2048 to 2055.
    assert (here.result.layer, here.steps[-2].state) == (0, "bit 1")
    assert (below.result.layer, below.result.zero) == (1, True)


def test_every_image_of_the_catalogue_is_explained_as_it_is_walked(tmp_path: Path) -> None:
    """Damaged and hostile images: what can be opened is explained, wherever one looks."""
    reasons = set()
    for number, catalogued in enumerate(CATALOGUE):
        if catalogued.needs:  # what not every platform has; these break no table
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        leaf = catalogued.make(folder)
        # Sparse tables of gigabytes take their time where a platform cannot tell where the holes are.
        if max((path.stat().st_size for path in folder.rglob("*") if path.is_file()), default=0) > 64 * MIB:
            continue
        with suppress(vhdtool.VhdtoolError), vhdtool.open_chain(leaf) as chain:
            for image in chain.images:
                size, block = chain.virtual_size, image.geometry.block_size
                places = (
                    0,
                    size - 1,
                    image.geometry.virtual_size,
                    *(n * block + block // 2 for n in range(6)),
                )
                for offset in places:
                    if offset < size:
                        reasons.add(reason_of_damage(chain, offset))
        rmtree(folder)

    assert len(reasons) >= 15


def reason_of_damage(chain: Chain, offset: int) -> str:
    """Empty where the sector can be read; the numbers in it are left out."""
    explanation = explain(chain, offset)
    result, last = explanation.result, explanation.steps[-1]
    (run,) = walk(chain.images, explanation.start, explanation.start + chain.sector_size)
    if run.layer >= 0:
        assert (result.layer, last.file_offset) == (run.layer, run.file_offset)
        assert (last.state == "beyond the end of the file") == result.damaged
    else:
        assert (result.damaged, result.zero) == (run.layer == DAMAGED, run.layer == ZEROS)
    if not result.damaged:
        return ""
    assert explanation.data is None
    return re.sub("0x[0-9a-f]+", "N", last.note)


@settings(max_examples=60)
@given(images=fake_chains(damaged=True))
def test_the_walk_of_any_chain_ends_where_its_plan_says(images: list[FakeImage]) -> None:
    chain = chain_of(*images)
    disk = truth(images)
    size = chain.sector_size
    for sector in range(chain.virtual_size // size):
        explanation = explain(chain, sector * size + sector % size)
        (run,) = walk(images, sector * size, (sector + 1) * size)
        result = explanation.result
        assert explanation.sector == sector
        assert result.damaged == (run.layer == DAMAGED)
        assert result.zero == (run.layer == ZEROS)
        if run.layer >= 0:
            assert (result.layer, result.file_offset) == (run.layer, run.file_offset)
        if run.layer != DAMAGED:
            assert explanation.data == disk[sector * size : (sector + 1) * size]
        else:
            assert explanation.data is None


# ---------------------------------------------------------------- VHDX by hand


def a_pair(tmp_path: Path, child: bytearray, parent: bytearray | None = None) -> Path:
    save(vhdx.the_parent() if parent is None else parent, tmp_path / "parent.vhdx")
    return save(child, tmp_path / "child.vhdx")


def test_each_state_of_the_child_of_the_digest_is_named(tmp_path: Path) -> None:
    """The pair of vhdx.md, 11.5: block 0 partial (sectors 1, 7, 8), 1 absent, 2 zero, 3 full, 4 absent."""
    path = a_pair(tmp_path, vhdx.the_child())
    image = path.read_bytes()
    placed = [struct.unpack_from("<Q", image, BAT + 8 * i)[0] for i in range(5)]
    (bitmap,) = struct.unpack_from("<Q", image, BAT + 8 * 4096)
    entry = Row("BAT", 4096, BAT + 8 * 4096, bitmap, None, "SB_BLOCK_PRESENT", "next")
    block_0 = Row("BAT", 0, BAT, placed[0], None, "PAYLOAD_BLOCK_PARTIALLY_PRESENT", "next")

    def base(block: int, sector: int) -> list[tuple[int, Row]]:
        parent = (tmp_path / "parent.vhdx").read_bytes()
        (value,) = struct.unpack_from("<Q", parent, BAT + 8 * block)
        return [
            (1, Row("BAT", block, BAT + 8 * block, value, None, "PAYLOAD_BLOCK_FULLY_PRESENT", "next")),
            (1, Row("payload", sector, value - 6 + sector * 512, None, None, "in the file", "here")),
        ]

    here = explained(path, 8 * 512)
    assert rows(here) == [
        (0, block_0),
        (0, entry),
        (0, Row("sector bitmap", 8, bitmap - 6 + 1, 0x01, 0x01, "bit 1", "next")),
        (0, Row("payload", 8, placed[0] - 7 + 8 * 512, None, None, "in the file", "here")),
    ]
    assert here.data == b"\xc0" * 512
    below = explained(path, 2 * 512 + 511)
    assert rows(below) == [
        (0, block_0),
        (0, entry),
        (0, Row("sector bitmap", 2, bitmap - 6, 0x82, 0x04, "bit 0", "parent")),
        *base(0, 2),
    ]
    assert (below.sector, below.data) == (2, b"\x50" * 512)
    absent = explained(path, MIB)
    assert rows(absent) == [
        (0, Row("BAT", 1, BAT + 8, 0, None, "PAYLOAD_BLOCK_NOT_PRESENT", "parent")),
        *base(1, 0),
    ]
    zero = explained(path, 2 * MIB)
    assert rows(zero) == [(0, Row("BAT", 2, BAT + 16, 2, None, "PAYLOAD_BLOCK_ZERO", "zeros"))]
    assert (zero.result.zero, zero.result.layer, zero.result.file_offset) == (True, 0, None)
    assert zero.data == bytes(512)
    whole = explained(path, 3 * MIB + 5 * 512)
    assert rows(whole) == [
        (0, Row("BAT", 3, BAT + 24, placed[3], None, "PAYLOAD_BLOCK_FULLY_PRESENT", "next")),
        (0, Row("payload", 5, placed[3] - 6 + 5 * 512, None, None, "in the file", "here")),
    ]
    assert whole.data == b"\xc3" * 512
    assert explained(path, 4 * MIB + 1023).data == b"\x54" * 512


def test_undefined_and_unmapped_blocks_are_zeros_and_tell_of_their_old_content(tmp_path: Path) -> None:
    path = a_pair(tmp_path, vhdx.the_child(vhdx.undefined(), vhdx.unmapped(7 * MIB)))

    undefined, unmapped = explained(path, MIB), explained(path, 2 * MIB)

    assert rows(undefined) == [(0, Row("BAT", 1, BAT + 8, 1, None, "PAYLOAD_BLOCK_UNDEFINED", "zeros"))]
    assert undefined.steps[0].note == "zeros, whatever the parent has"
    wanted = Row("BAT", 2, BAT + 16, 7 * MIB + 3, None, "PAYLOAD_BLOCK_UNMAPPED", "zeros")
    assert rows(unmapped) == [(0, wanted)]
    assert "old content may stand at 0x700000" in unmapped.steps[0].note
    assert undefined.data == unmapped.data == bytes(512)


def test_a_smaller_parent_ends_the_walk(tmp_path: Path) -> None:
    child = a_vhdx(size=8 * MIB, parent=a_locator(), data_write=CHILD_ID)
    path = a_pair(tmp_path, child)

    explanation = explained(path, 6 * MIB)

    assert rows(explanation) == [
        (0, Row("BAT", 6, BAT + 48, 0, None, "PAYLOAD_BLOCK_NOT_PRESENT", "parent")),
        (1, Row("virtual disk size", None, None, 4 * MIB + KIB, None, "smaller than its child", "zeros")),
    ]
    assert (explanation.result.zero, explanation.result.layer) == (True, 1)
    # The last sector of the parent is its own; one further is past its end.
    assert not explained(path, 4 * MIB + 1023).result.zero
    assert explained(path, 4 * MIB + 1024).steps[-1].structure == "virtual disk size"


def test_bits_of_the_second_chunk_and_of_large_sectors_are_counted_in_their_chunk(tmp_path: Path) -> None:
    """256 MiB blocks of 512-byte sectors: 16 a chunk, so block 17 is the second of chunk 1."""
    size, block_size = 18 * 256 * MIB, 256 * MIB
    sectors = block_size // 512
    # Blocks are placed far out, in a file that is sparse.
    entries = {17 + 1: 1024 * MIB | 7, 33: 8 * MIB | 6}
    child = a_vhdx(size=size, block_size=block_size, parent=a_locator(), entries=entries, data_write=CHILD_ID)
    bit = 1 * sectors + 77
    vhdx.put(child, 8 * MIB + bit // 8, bytes([1 << bit % 8]))
    parent = a_vhdx(size=size, block_size=block_size)
    save(parent, tmp_path / "parent.vhdx")
    path = save(child, tmp_path / "child.vhdx", 2048 * MIB)

    at = 17 * block_size + 77 * 512

    assert rows(explained(path, at)) == [
        (0, Row("BAT", 18, BAT + 8 * 18, 1024 * MIB | 7, None, "PAYLOAD_BLOCK_PARTIALLY_PRESENT", "next")),
        (0, Row("BAT", 33, BAT + 8 * 33, 8 * MIB | 6, None, "SB_BLOCK_PRESENT", "next")),
        (0, Row("sector bitmap", bit, 8 * MIB + bit // 8, 1 << bit % 8, 1 << bit % 8, "bit 1", "next")),
        (0, Row("payload", 77, 1024 * MIB + 77 * 512, None, None, "in the file", "here")),
    ]
    assert explained(path, at - 512).steps[2].state == "bit 0"
    assert explained(path, at + 512).steps[3].layer == 1


def test_a_partial_block_without_a_parent_is_read_as_full(tmp_path: Path) -> None:
    path = save(a_vhdx(blocks={1: Block(7, b"x")}), tmp_path / "x.vhdx")

    explanation = explained(path, MIB)

    assert [step.state for step in explanation.steps] == ["PAYLOAD_BLOCK_PARTIALLY_PRESENT", "in the file"]
    assert "no parent" in explanation.steps[0].note
    assert explanation.data == b"x" * 512
    assert [finding.code for finding in explanation.findings] == ["vhdx.bat.state"]


# ---------------------------------------------------------------- VHDX, what is damaged


def damaged_vhdx(tmp_path: Path, entry: int, *, size: int | None = None) -> Explanation:
    """Block 1 of a dynamic disk has this entry; block 0 is sound and at 4 MiB."""
    image = a_vhdx(blocks={0: full(b"a")}, entries={1: entry})
    path = save(image[:size] if size else image, tmp_path / "x.vhdx")
    with vhdtool.open_chain(path) as chain:
        assert explain(chain, 0).data == b"a" * 512 or entry >> 20 == 4
        explanation = explain(chain, MIB)
    assert explanation.result.damaged
    assert explanation.data is None
    assert (explanation.result.layer, explanation.result.zero) == (0, False)
    assert [finding.code.rpartition(".")[0] for finding in explanation.findings] == ["vhdx.bat"]
    return explanation


@pytest.mark.parametrize("state", [4, 5])
def test_a_reserved_state_is_explained_as_such(state: int, tmp_path: Path) -> None:
    explanation = damaged_vhdx(tmp_path, state)

    assert rows(explanation) == [(0, Row("BAT", 1, BAT + 8, state, None, f"reserved ({state})", "damaged"))]
    assert explanation.result.file_offset is None


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (6, "has no place: FileOffsetMB is 0"),
        (900 * MIB | 6, "would stand at 0x38400000, beyond the end of the file at 0x500000"),
        ((1 << 63) | 6, "would stand at 0x8000000000000000, beyond the end"),
        (1 * MIB | 6, "at 0x100000 overlaps the headers, the log or a region"),
        (4 * MIB | 6, "at 0x400000 shares bytes of the file with another block"),
    ],
)
def test_a_block_that_cannot_stand_there_is_explained(entry: int, reason: str, tmp_path: Path) -> None:
    explanation = damaged_vhdx(tmp_path, entry)

    wanted = Row("BAT", 1, BAT + 8, entry, None, "PAYLOAD_BLOCK_FULLY_PRESENT", "damaged")
    assert rows(explanation) == [(0, wanted)]
    assert reason in explanation.steps[0].note


def test_blocks_that_overlap_are_each_told_with_whom_and_of_no_others(tmp_path: Path) -> None:
    # Blocks 0 and 1 share one place, 2 and 3 another.
    image = a_vhdx(
        blocks={0: full(b"a"), 2: full(b"c")}, entries={1: 4 * MIB | 6, 3: 5 * MIB | 6}, size=8 * MIB
    )
    path = save(image, tmp_path / "x.vhdx")

    with vhdtool.open_chain(path) as chain:
        told = [[finding.found for finding in explain(chain, block * MIB).findings] for block in range(5)]

    first = [f"BAT[1], block 1 and BAT[0], block 0 at {4 * MIB:#x}"]
    second = [f"BAT[3], block 3 and BAT[2], block 2 at {5 * MIB:#x}"]
    assert told == [first, first, second, second, []]


def test_a_block_that_the_end_of_the_file_cuts_off_is_read_up_to_there(tmp_path: Path) -> None:
    image = a_vhdx(blocks={0: full(b"a"), 1: full(b"b")})
    path = save(image[: 5 * MIB + 1536], tmp_path / "x.vhdx")

    with vhdtool.open_chain(path) as chain:
        there, cut = explain(chain, MIB + 1024), explain(chain, MIB + 1536)

    assert there.data == b"b" * 512
    assert row(cut.steps[-1]) == Row(
        "payload", 3, 5 * MIB + 1536, None, None, "beyond the end of the file", "damaged"
    )
    # As in plans, such a block keeps its place.
    assert (cut.result.damaged, cut.result.file_offset, cut.data) == (True, 5 * MIB + 1536, None)


@pytest.mark.parametrize(
    ("entry", "state", "reason"),
    [
        (0, "SB_BLOCK_NOT_PRESENT", "there is no sector bitmap"),
        (7, "reserved (7)", "a reserved state"),
        (6, "SB_BLOCK_PRESENT", "FileOffsetMB is 0"),
        (4 * MIB | 6, "SB_BLOCK_PRESENT", "shares bytes of the file"),
        (2 * MIB | 6, "SB_BLOCK_PRESENT", "overlaps the headers, the log or a region"),
    ],
)
def test_a_bitmap_that_cannot_be_read_is_explained(
    entry: int, state: str, reason: str, tmp_path: Path
) -> None:
    child = a_vhdx(
        parent=a_locator(),
        # The block's own sectors stand at 4 MiB, behind one that is not concerned.
        entries={0: 6 * MIB | 7, 1: 4 * MIB | 6, 4096: entry},
        data_write=CHILD_ID,
        extra_mib=4,
    )
    path = a_pair(tmp_path, child, a_vhdx())

    explanation = explained(path, 512)

    assert rows(explanation) == [
        (0, Row("BAT", 0, BAT, 6 * MIB | 7, None, "PAYLOAD_BLOCK_PARTIALLY_PRESENT", "next")),
        (0, Row("BAT", 4096, BAT + 8 * 4096, entry, None, state, "damaged")),
    ]
    assert reason in explanation.steps[-1].note
    assert (explanation.result.damaged, explanation.data) == (True, None)


def test_a_bitmap_that_the_end_of_the_file_cuts_off_is_explained(tmp_path: Path) -> None:
    child = a_vhdx(parent=a_locator(), entries={0: 4 * MIB | 7, 4096: 5 * MIB | 6}, data_write=CHILD_ID)
    path = save(child, tmp_path / "child.vhdx", 5 * MIB + 4096)
    a_pair(tmp_path, child, a_vhdx())
    save(child, path, 5 * MIB + 4096)

    explanation = explained(path, 0)

    note = "the sector bitmap block at 0x500000 is cut off by the end of the file at 0x501000"
    assert explanation.steps[-1].note == note
    assert explanation.result.damaged


def test_an_entry_that_the_file_has_not_is_explained(tmp_path: Path) -> None:
    """The BAT stands at the end of the file, which is cut inside it."""
    image = a_vhdx(
        size=600 * MIB,
        regions=[(vhdx.BAT_REGION, 4 * MIB, MIB, 1), (vhdx.METADATA_REGION, 2 * MIB, MIB, 1)],
        extra_mib=1,
    )
    path = save(image[: 4 * MIB + 8 * 100], tmp_path / "x.vhdx")

    with closing(vhdtool.open_image(path, strict=False)) as disk:
        first, last = disk.probe(99 * MIB), disk.probe(100 * MIB)

    assert first[0].file_offset == 4 * MIB + 8 * 99
    assert (last[0].index, last[0].file_offset, last[0].value) == (100, None, None)
    assert (last[0].state, str(last[0].outcome)) == ("no entry", "damaged")
    assert "100 entries are there" in last[0].note


# ---------------------------------------------------------------- VHDX, a pending log


def test_what_the_log_overrides_is_said_before_it(tmp_path: Path) -> None:
    """Entry 5 brings the BAT's page, entry 6 a page of bitmap, then one of payload, then zeros."""
    child = a_vhdx(
        parent=a_locator(),
        blocks={0: partial(b"c", {3})},  # at 4 MiB, its bitmap at 5 MiB
        data_write=CHILD_ID,
    )
    bat_page = vhdx.bat_page(child, 0, struct.unpack_from("<Q", child, BAT)[0])
    bits = vhdx.page(5 * MIB, bytes([0b1001]) + b"\xff")
    dirty = vhdx.with_log(
        child,
        [
            an_entry(5, bat_page),
            an_entry(6, bits, vhdx.page(4 * MIB, b"log"), vhdx.Zero(4 * MIB + 4096, 8192), tail=0),
        ],
    )
    dirty[BAT : BAT + 8] = bytes(8)  # what the file itself says
    path = a_pair(tmp_path, dirty, a_vhdx())
    # Entry 5 takes a sector for its descriptor and one for its page; so the pages of 6 come behind its own.
    second = LOG + 2 * 4096
    block = Row("BAT", 0, BAT, 4 * MIB | 7, None, "PAYLOAD_BLOCK_PARTIALLY_PRESENT", "next")
    bitmap = Row("BAT", 4096, BAT + 8 * 4096, 5 * MIB | 6, None, "SB_BLOCK_PRESENT", "next")

    explanation = explained(path, 3 * 512)

    assert rows(explanation) == [
        (0, Row("log override", 5, LOG + 4096, None, None, "data descriptor", "next")),
        (0, block),
        (0, bitmap),
        (0, Row("log override", 6, second + 4096, None, None, "data descriptor", "next")),
        (0, Row("sector bitmap", 3, 5 * MIB, 0b1001, 0b1000, "bit 1", "next")),
        (0, Row("log override", 6, second + 8192, None, None, "data descriptor", "next")),
        (0, Row("payload", 3, 4 * MIB + 1536, None, None, "in the log", "here")),
    ]
    notes = [step.note for step in explanation.steps if step.structure == "log override"]
    assert notes == [
        "entry 0 of the BAT is read from log entry 5, not from the file, where 0x0 stands",
        "the byte of the sector bitmap is read from log entry 6, not from the file, where 0x8 stands",
        "the payload is read from log entry 6, not from the file",
    ]
    assert (explanation.result.in_log, explanation.result.file_offset) == (True, None)
    assert explanation.data == bytes(512)
    first = explained(path, 0)
    assert first.data == b"log".ljust(512, b"\0")
    # A page that a zero descriptor clears: its bytes stand nowhere, the descriptor does.
    cleared = explained(path, 8 * 512)
    assert row(cleared.steps[-2]) == Row(
        "log override", 6, second + 64 + 2 * 32, None, None, "zero descriptor", "next"
    )
    assert cleared.data == bytes(512)
    with vhdtool.open_chain(path) as chain:
        for offset in range(0, 64 * 512, 512):
            assert_agrees_with_plan_and_read(chain, explain(chain, offset))


def test_the_log_can_be_left_out(tmp_path: Path) -> None:
    image = a_vhdx(blocks={0: full(b"new")})
    dirty = vhdx.with_log(image, [an_entry(1, vhdx.bat_page(image, 0, 4 * MIB | 6))])
    dirty[BAT : BAT + 8] = bytes(8)
    path = save(dirty, tmp_path / "x.vhdx")

    with vhdtool.open_chain(path, log="before") as chain:
        explanation = explain(chain, 0)

    assert rows(explanation) == [(0, Row("BAT", 0, BAT, 0, None, "PAYLOAD_BLOCK_NOT_PRESENT", "zeros"))]
    assert explained(path, 0).steps[0].structure == "log override"


def test_the_last_of_several_writes_of_a_page_is_named(tmp_path: Path) -> None:
    image = a_vhdx(blocks={0: full(b"x"), 1: full(b"y")})
    sound, swapped = vhdx.bat_page(image, 0, 5 * MIB | 6), vhdx.bat_page(image, 0, 4 * MIB | 6)
    dirty = vhdx.with_log(image, [an_entry(8, sound), an_entry(9, vhdx.Zero(BAT, 4096), swapped, tail=0)])
    path = save(dirty, tmp_path / "x.vhdx")

    override = explained(path, 0).steps[0]

    assert (override.index, override.state) == (9, "data descriptor")
    assert override.file_offset == LOG + 2 * 4096 + 4096


def test_where_the_log_makes_the_file_longer_nothing_stands(tmp_path: Path) -> None:
    """The log gives block 0 a place behind the file's end, and the file a length that holds it."""
    image = a_vhdx(size=2 * MIB)
    assert len(image) == 4 * MIB
    entry = an_entry(3, vhdx.bat_page(image, 0, 4 * MIB | 6), last=5 * MIB)
    path = save(vhdx.with_log(image, [entry]), tmp_path / "x.vhdx")

    explanation = explained(path, 4096)

    assert [row(step) for step in explanation.steps[2:]] == [
        Row("log override", None, None, None, None, "LastFileOffset", "next"),
        Row("payload", 8, 4 * MIB + 4096, None, None, "in the log", "here"),
    ]
    assert "beyond the end of the file at 0x400000" in explanation.steps[2].note
    assert explanation.data == bytes(512)


# ---------------------------------------------------------------- VHD by hand


def a_vhd_at(tmp_path: Path, image: bytes, name: str = "x.vhd") -> Path:
    path = tmp_path / name
    path.write_bytes(image)
    return path


def test_the_pair_of_bitmap_semantics_is_explained(tmp_path: Path) -> None:
    """vhd.md, 11.3: the child has sectors 1 and 9 of block 0; bits count from the most significant."""
    a_vhd_at(tmp_path, vhd.a_parent_of_bitmap_semantics(), "parent.vhd")
    path = a_vhd_at(tmp_path, vhd.a_child_of_bitmap_semantics(), "child.vhd")
    child, parent = path.read_bytes(), (tmp_path / "parent.vhd").read_bytes()
    (mine,) = struct.unpack_from(">I", child, 1536)
    theirs = struct.unpack_from(">2I", parent, 1536)
    first = (0, Row("BAT", 0, 1536, mine, None, "used", "next"))
    below = (1, Row("BAT", 0, 1536, theirs[0], None, "used", "next"))

    with vhdtool.open_chain(path) as chain:
        assert [explain(chain, 512 * s).data[0] for s in range(12)] == list(  # type: ignore[index]
            bytes.fromhex("50c0505050505050 00c00000")
        )
        sector_1, sector_2, sector_8 = (explain(chain, 512 * s) for s in (1, 2, 8))
        other = explain(chain, 4096 * 512)

    assert rows(sector_1) == [
        first,
        (0, Row("sector bitmap", 1, mine * 512, 0x40, 0x40, "bit 1", "next")),
        (0, Row("payload", 1, mine * 512 + 512 + 512, None, None, "in the file", "here")),
    ]
    assert rows(sector_2) == [
        first,
        (0, Row("sector bitmap", 2, mine * 512, 0x40, 0x20, "bit 0", "parent")),
        below,
        (1, Row("sector bitmap", 2, theirs[0] * 512, 0xFF, 0x20, "bit 1", "next")),
        (1, Row("payload", 2, theirs[0] * 512 + 512 + 1024, None, None, "in the file", "here")),
    ]
    # Sector 8 is in neither: a clear bit of a dynamic disk is zeros, whatever stands in its block.
    assert rows(sector_8) == [
        first,
        (0, Row("sector bitmap", 8, mine * 512 + 1, 0x40, 0x80, "bit 0", "parent")),
        below,
        (1, Row("sector bitmap", 8, theirs[0] * 512 + 1, 0x00, 0x80, "bit 0", "zeros")),
    ]
    assert (sector_8.result.zero, sector_8.result.layer) == (True, 1)
    assert rows(other)[0] == (0, Row("BAT", 1, 1540, 0xFFFFFFFF, None, "unused", "parent"))


def test_a_clear_bit_hides_what_stands_in_the_block(tmp_path: Path) -> None:
    path = a_vhd_at(tmp_path, vhd.a_vhd(blocks={0: (b"\xee" * vhd.BLOCK_SIZE, (0,))}))

    explanation = explained(path, 512)

    assert explanation.steps[-1].state == "bit 0"
    assert explanation.data == bytes(512)
    assert explained(path, 0).data == b"\xee" * 512
    # An unused entry of a dynamic disk.
    assert row(explained(path, vhd.BLOCK_SIZE).steps[-1]) == Row(
        "BAT", 1, 1540, 0xFFFFFFFF, None, "unused", "zeros"
    )


def test_bits_of_old_xen_disks_count_from_the_least_significant(tmp_path: Path) -> None:
    footer: vhd.Fields = {"creator_application": b"tap\0", "creator_version": 1}
    path = a_vhd_at(tmp_path, vhd.a_vhd(blocks={0: (b"x" * vhd.BLOCK_SIZE, (7,))}, footer=footer))

    first, last = explained(path, 0), explained(path, 7 * 512)

    assert (first.steps[1].mask, first.steps[1].state) == (1, "bit 1")
    assert (last.steps[1].mask, last.steps[1].state) == (0x80, "bit 0")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (0, "the block at 0x0 overlaps the footer_copy at 0x0-0x200"),
        (1, "the block at 0x200 overlaps the header at 0x200-0x600"),
        (0x7FFFFFFF, "reaches beyond"),
    ],
)
def test_a_vhds_block_that_cannot_stand_there_is_explained(entry: int, reason: str, tmp_path: Path) -> None:
    image = vhd.a_vhd(blocks={0: (b"a" * vhd.BLOCK_SIZE, None)}, bat={1: entry})

    explanation = explained(a_vhd_at(tmp_path, image), vhd.BLOCK_SIZE)

    assert rows(explanation) == [(0, Row("BAT", 1, 1540, entry, None, "used", "damaged"))]
    assert reason in explanation.steps[0].note
    assert (explanation.result.damaged, explanation.data) == (True, None)
    assert [finding.code.rpartition(".")[0] for finding in explanation.findings] == ["vhd.block"]


def test_cross_linked_blocks_of_a_vhd_are_explained(tmp_path: Path) -> None:
    image = vhd.a_vhd(blocks={0: (b"a" * vhd.BLOCK_SIZE, None)})
    (entry,) = struct.unpack_from(">I", image, 1536)
    image = vhd.patched(image, 1540, struct.pack(">I", entry))

    for block in (0, 1):
        explanation = explained(a_vhd_at(tmp_path, image), block * vhd.BLOCK_SIZE)
        assert explanation.steps[-1].note == "the block shares bytes of the file with another block"
        assert explanation.result.damaged
        # Noted at the second entry, true of both.
        assert [finding.code for finding in explanation.findings] == ["vhd.block.cross"]


def test_an_entry_that_the_file_has_not_is_explained_in_a_vhd(tmp_path: Path) -> None:
    """The table claims more than the file holds: the file ends in the middle of it."""
    size = 1000 * vhd.BLOCK_SIZE
    image = vhd.a_vhd(size=size)[: 1536 + 4 * 300]
    with closing(vhdtool.open_image(a_vhd_at(tmp_path, image), strict=False)) as disk:
        there, beyond = disk.probe(299 * vhd.BLOCK_SIZE), disk.probe(300 * vhd.BLOCK_SIZE)

    assert there[-1].state == "unused"
    assert (beyond[-1].state, beyond[-1].value, beyond[-1].file_offset) == ("no entry", None, None)
    assert "300 entries are there" in beyond[-1].note


def test_what_is_left_of_a_vhd_that_was_cut_off_is_explained(tmp_path: Path) -> None:
    whole = vhd.a_vhd(blocks={0: (b"a" * vhd.BLOCK_SIZE, None)})
    (entry,) = struct.unpack_from(">I", whole, 1536)
    data = entry * 512 + 512
    path = a_vhd_at(tmp_path, whole[: data + 3 * 512])

    there, cut = explained(path, 2 * 512), explained(path, 3 * 512)

    assert there.data == b"a" * 512
    last = Row("payload", 3, data + 3 * 512, None, None, "beyond the end of the file", "damaged")
    assert row(cut.steps[-1]) == last
    assert (cut.result.damaged, cut.data) == (True, None)


# ---------------------------------------------------------------- images without a table, split ones


def test_a_fixed_vhd_has_one_step(tmp_path: Path) -> None:
    data = bytes(range(256)) * (vhd.SIZE // 256)
    path = a_vhd_at(tmp_path, vhd.a_fixed_vhd(data))

    explanation = explained(path, 5 * 512 + 1)

    assert rows(explanation) == [(0, Row("payload", 5, 2560, None, None, "in the file", "here"))]
    assert "no BAT" in explanation.steps[0].note
    assert explanation.data == data[2560:3072]


def test_a_raw_disk_has_one_step(tmp_path: Path) -> None:
    path = a_vhd_at(tmp_path, bytes(512) + b"r" * 512, "disk.img")

    explanation = explained(path, 1023)

    assert rows(explanation) == [(0, Row("payload", 1, 512, None, None, "in the file", "here"))]
    assert explanation.steps[0].note.startswith("a raw disk")
    assert explanation.data == b"r" * 512


def test_a_fixed_vhdx_has_a_bat_like_any_other(tmp_path: Path) -> None:
    path = save(a_vhdx(fixed=True, blocks={b: full(bytes([b])) for b in range(4)}), tmp_path / "x.vhdx")

    assert [step.structure for step in explained(path, 3 * MIB).steps] == ["BAT", "payload"]


def test_a_split_vhd_names_the_piece(tmp_path: Path) -> None:
    image = vhd.a_vhd(blocks={0: (b"a" * vhd.BLOCK_SIZE, None)})
    (entry,) = struct.unpack_from(">I", image, 1536)
    data = entry * 512 + 512
    cut = data + 4 * 512
    path = a_vhd_at(tmp_path, image[:cut])
    a_vhd_at(tmp_path, image[cut:], "x.v01")

    first, second = explained(path, 3 * 512), explained(path, 5 * 512)

    assert (first.result.part, first.result.part_offset) == (path, data + 3 * 512)
    assert (second.result.part, second.result.part_offset) == (tmp_path / "x.v01", 512)
    assert (second.result.file_offset, second.data) == (data + 5 * 512, b"a" * 512)


# ---------------------------------------------------------------- what refuses


def test_an_offset_outside_of_the_disk_is_the_callers_mistake(tmp_path: Path) -> None:
    with vhdtool.open_chain(save(a_vhdx(), tmp_path / "x.vhdx")) as chain:
        for offset in (-1, 4 * MIB):
            with pytest.raises(ValueError, match="not inside the disk"):
                explain(chain, offset)


def test_an_error_that_concerns_the_whole_refuses(tmp_path: Path) -> None:
    path = save(a_vhdx(bat_length=MIB, size=200 * 1024 * MIB), tmp_path / "x.vhdx")

    with vhdtool.open_chain(path, strict=False) as chain, pytest.raises(vhdtool.CorruptError):
        explain(chain, 0)

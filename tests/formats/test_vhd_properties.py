"""Any bytes are an image or one of our errors: nothing else comes out, whatever stands in them."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders.vhd import (
    DIFFERENCING,
    DYNAMIC,
    FOOTER_FIELDS,
    HEADER_FIELDS,
    SIZE,
    a_dynamic_header,
    a_fixed_vhd,
    a_footer,
    a_vhd,
    checksum,
    opened,
    patched,
    repaired,
)
from vhdtool.errors import FormatError, VhdtoolError
from vhdtool.formats.image import OpenOptions, require_sound
from vhdtool.formats.vhd.image import VhdImage, open_vhd
from vhdtool.model.state import BlockState
from vhdtool.source import MemorySource

LOCATORS = ((b"W2ru", ".\\p.vhd".encode("utf-16-le")), (b"W2ku", "C:\\p.vhd".encode("utf-16-le")))
SEEDS = [
    a_vhd(blocks={0: (b"a" * 512, (0, 5)), 3: (b"b" * 512, None)}),
    a_vhd(disk_type=DIFFERENCING, name="p.vhd", locators=LOCATORS, blocks={2: (b"c" * 512, (0,))}),
    a_vhd(size=512 * 9, block_size=512, blocks={n: (bytes([n]), (0,)) for n in range(9)}),
    a_vhd(footer={"creator_application": b"tap\0", "creator_version": 0x0001_0003}, blocks={1: (b"", ())}),
    a_fixed_vhd(bytes(2048)),
    a_fixed_vhd(bytes(2048))[:-1],
]


def exercise(image: VhdImage) -> None:
    """Everything that anybody may ask of an image that opened."""
    assert image.sections
    assert str(image.disk_id)
    counts = image.counts()
    image.inspect(deep=True)
    blocks = min(image.geometry.block_count, 64)
    whole = image.block_map(0, blocks)
    partial = []
    for block in range(blocks):
        state, offset = image.entry(block)
        assert (state, offset) == (whole.state[block], whole.file_offset[block])
        if state is BlockState.PARTIAL:
            partial.append(block)
            assert len(image.bitmap(block)) == -(-image.geometry.sectors_per_block // 8)
            length = image.geometry.block_length(block)
            if length < 1 << 22:
                image.source.read_exact(offset, length, field="block")
    if partial:
        count = min(8, image.geometry.sectors_per_block)
        firsts = np.array(partial, np.int64) * image.geometry.sectors_per_block
        assert image.bitmaps(firsts, count).shape == (len(partial), 1)
    assert len(image.findings) < 200
    assert all(str(finding).isprintable() for finding in image.findings)
    assert counts.partial >= len(partial)
    with suppress(FormatError):
        require_sound(image)


def open_and_exercise(raw: bytes) -> None:
    for ignore in (False, True):
        with suppress(VhdtoolError):
            exercise(open_vhd(MemorySource("any.vhd", raw), OpenOptions(ignore_checksums=ignore)))


changes = st.lists(st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6)


@settings(max_examples=150)
@given(seed=st.sampled_from(SEEDS), edits=changes, cut=st.integers(0, 3000), grow=st.integers(0, 700))
def test_mutated_images_with_repaired_checksums_open_or_are_refused(
    seed: bytes, edits: list[tuple[int, bytes]], cut: int, grow: int
) -> None:
    raw = bytearray(seed)
    for at, data in edits:
        at = at * 7919 % len(raw) if at > 2560 else at % len(raw)
        raw[at : at + len(data)] = data
    raw = raw[: len(seed)]
    for at in (0, len(raw) - 512):
        raw[at : at + 512] = repaired(bytes(raw[at : at + 512]))
    if len(raw) >= 2048:
        raw[512:1536] = repaired(bytes(raw[512:1536]))
    if cut > 2900:
        raw = raw[: len(raw) - cut % 1500]

    open_and_exercise(bytes(raw) + bytes(grow if grow > 600 else 0))


interesting = st.one_of(
    st.integers(0, 4096),
    st.sampled_from([1 << 9, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]),
    st.integers(0, (1 << 32) - 1),
)
large = st.one_of(interesting, st.sampled_from([1 << 41, (1 << 63) - 512, (1 << 64) - 512, (1 << 64) - 1]))
WIDE = {"data_offset", "original_size", "current_size", "table_offset"}
NARROW = {"cylinders": 2, "heads": 1, "sectors_per_track": 1, "saved_state": 1}
FOOTER_NUMBERS = [
    n for n in FOOTER_FIELDS
    if n not in ("cookie", "creator_application", "creator_host_os", "unique_id", "reserved", "checksum")
]  # fmt: skip
HEADER_NUMBERS = [
    n for n in HEADER_FIELDS if n not in ("cookie", "checksum") and not n.startswith(("parent", "reserved_2"))
]


def values(names: list[str]) -> st.SearchStrategy[dict[str, int | bytes]]:
    def number(name: str) -> st.SearchStrategy[int | bytes]:
        if name in NARROW:
            return st.integers(0, 256 ** NARROW[name] - 1)
        return large if name in WIDE else interesting

    return st.lists(st.sampled_from(names), max_size=3, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: number(name) for name in chosen})
    )


@settings(max_examples=200)
@given(
    footer=values(FOOTER_NUMBERS),
    header=values(HEADER_NUMBERS),
    entries=st.lists(interesting, max_size=4),
    disk_type=st.sampled_from([DYNAMIC, DIFFERENCING]),
)
def test_any_numbers_in_the_headers_open_or_are_refused(
    footer: dict[str, int | bytes],
    header: dict[str, int | bytes],
    entries: list[int],
    disk_type: int,
) -> None:
    bat = {n: entry & 0xFFFF_FFFF for n, entry in enumerate(entries)}
    plain = a_vhd(disk_type=disk_type, name="p.vhd", blocks={0: (b"a", None), 1: (b"b", (1,))}, bat=bat)
    whole = a_footer(**{"current_size": SIZE, "disk_type": disk_type, **footer})
    plain_header = (
        {"parent_unique_id": b"x" * 16, "parent_unicode_name": b"\0p"} if disk_type == DIFFERENCING else {}
    )
    raw = patched(plain, 512, a_dynamic_header(**{**plain_header, **header}))
    raw = patched(patched(raw, 0, whole), -512, whole)

    open_and_exercise(raw)


@given(data=st.binary(max_size=3000), front=st.booleans(), end=st.booleans())
def test_any_bytes_with_a_cookie_open_or_are_refused(data: bytes, front: bool, end: bool) -> None:
    raw = bytearray(data.ljust(2048, b"\0"))
    for at in [0] * front + [len(raw) - 512] * end:
        raw[at : at + 8] = b"conectix"
        raw[at + 12 : at + 16] = b"\0\1\0\0"
        raw[at + 64 : at + 68] = bytes(4)
        raw[at + 64 : at + 68] = checksum(raw[at : at + 512]).to_bytes(4, "big")

    open_and_exercise(bytes(raw))


@given(cut=st.integers(0, 70000))
def test_an_image_cut_anywhere_opens_or_is_refused(cut: int) -> None:
    open_and_exercise(SEEDS[0][:cut])


def test_the_seeds_themselves_are_exercised_without_a_refusal() -> None:
    for seed in SEEDS:
        exercise(opened(seed))

"""Properties of mutated images, fields changed to awkward values, checksums right again.

Whatever the change: the image is read, every way to an answer giving the same one, or it is refused with one
of vhdtool's own errors.  Nothing else, and in bounded time (see ``targets.exercise``).
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import exercise
from tests.surgery import vhd, vhdx
from tests.surgery.healthy import ALL, a_child_vhd, a_child_vhdx, a_vhd, a_vhdx
from tests.surgery.patient import Patient, Record
from tests.surgery.vhd import VhdSurgeon
from tests.surgery.vhdx import BAT_REGION, METADATA_REGION, MIB, VhdxSurgeon
from vhdtool.errors import VhdtoolError
from vhdtool.formats.image import OpenOptions
from vhdtool.formats.registry import open_source

SECONDS_MAX: Final = 5.0
PEAK_BYTES_MAX: Final = 100 << 20


@dataclass(frozen=True, slots=True)
class Change:
    """One field of one structure, or bytes of a table, and what is put there."""

    structure: int
    field: int
    value: int


# What arithmetic goes wrong on: the ends of all widths, and their neighbours.
AWKWARD: Final = sorted(
    {0, 1, 2, 3, 7, 511, 512, 513, 4095, 4096, 1 << 20, (1 << 20) + 1, 3 << 20}
    | {
        (1 << bits) + near
        for bits in (15, 16, 31, 32, 40, 44, 47, 53, 62, 63, 64)
        for near in (-512, -1, 0, 1)
    }
)
values = st.one_of(st.sampled_from(AWKWARD), st.integers(0, (1 << 64) - 1), st.integers(0, 64))
changes = st.lists(st.builds(Change, st.integers(0, 63), st.integers(0, 63), values), min_size=1, max_size=4)
options = st.builds(
    OpenOptions,
    st.sampled_from(("before", "after")).map(lambda log: _LOG[log]),
    st.booleans(),
)
_LOG: Final[dict[str, Literal["before", "after"]]] = {"before": "before", "after": "after"}


def _apply(records: Sequence[Record], tables: Sequence[tuple[int, int]], made: Sequence[Change]) -> None:
    """Carry out changes: a field of a record, or an entry of a table (offset, bytes of an entry)."""
    patient = records[0].patient
    for change in made:
        choice = change.structure % (len(records) + len(tables))
        if choice < len(records):
            record = records[choice]
            name = sorted(record.fields)[change.field % len(record.fields)]
            length = len(record.raw(name))
            if record.place(name) + length <= patient.size:
                bits = 8 * min(length, 8)
                record[name] = (change.value & (1 << bits) - 1).to_bytes(bits // 8, record.byteorder)
            continue
        offset, width = tables[choice - len(records)]
        place = offset + change.field * width
        if place + width <= patient.size:
            patient.write(place, (change.value & (1 << 8 * width) - 1).to_bytes(width, "little"))


def _mutate_vhd(patient: Patient, made: Sequence[Change]) -> Patient:
    surgeon = VhdSurgeon(patient.copy())
    records = [surgeon.footer, surgeon.copy, surgeon.header, *(surgeon.locator(n) for n in (1, 2, 3))]
    header_at, table_at = surgeon.header.offset, surgeon.header["Table Offset"]
    tables = [(table_at, 4), (table_at, 4), (surgeon.bitmap_at(0), 1)]
    _apply(records, tables, made)
    for record in records[:2]:
        surgeon.repair(record)
    surgeon.repair(Record(surgeon.patient, header_at, vhd.HEADER, "big"))
    return surgeon.patient


def _mutate_vhdx(patient: Patient, made: Sequence[Change]) -> Patient:
    surgeon = VhdxSurgeon(patient.copy())
    items = [
        Record(surgeon.patient, surgeon.metadata_at + 32 + 32 * i, vhdx.ITEM, "little")
        for i in range(surgeon.metadata_table["EntryCount"])
    ]
    records = [
        surgeon.header(1),
        surgeon.header(2),
        surgeon.region_table(1),
        surgeon.region_table(2),
        *(surgeon.region(guid, table) for guid in (BAT_REGION, METADATA_REGION) for table in (1, 2)),
        surgeon.metadata_table,
        *items,
        Record(surgeon.patient, MIB + 0x5000, vhdx.LOG_ENTRY, "little"),
    ]
    bitmap = surgeon.bitmap_at(0)
    tables = [(surgeon.bat_at, 8), (surgeon.bat_at, 8), (surgeon.metadata_at + 0x10000, 4)]
    _apply(records, [*tables, (bitmap, 1)] if bitmap else tables, made)
    return surgeon.close_up()


@cache
def _seeds(name: str) -> tuple[Patient, tuple[Patient, ...]]:
    below = a_vhd(size=64 << 10, block_size=4096, blocks={0: ALL, 2: (0, 7), 9: ALL})
    seeds: dict[str, Callable[[], tuple[Patient, tuple[Patient, ...]]]] = {
        "vhd dynamic": lambda: (a_vhd(size=72 << 10, block_size=4096, blocks={0: ALL, 3: (1, 2)}), ()),
        "vhd usual": lambda: (a_vhd(size=(6 << 20) - 512), ()),
        "vhd chain": lambda: (
            a_child_vhd(size=72 << 10, block_size=8192, blocks={0: (1, 9), 4: ALL}),
            (below,),
        ),
        "vhdx dynamic": lambda: (a_vhdx(), ()),
        "vhdx chain": lambda: (a_child_vhdx(), (a_vhdx(blocks={0: 6, 1: 6, 4: 6}),)),
        "vhdx 4096": lambda: (
            a_child_vhdx(sector_size=4096, bits={0: (1, 7, 255)}),
            (a_vhdx(sector_size=4096),),
        ),
    }
    return seeds[name]()


NAMES: Final = ("vhd dynamic", "vhd usual", "vhd chain", "vhdx dynamic", "vhdx chain", "vhdx 4096")


def _mutate(name: str, patient: Patient, made: Sequence[Change]) -> Patient:
    return (_mutate_vhd if name.startswith("vhd ") else _mutate_vhdx)(patient, made)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(made=changes, chosen=options)
def test_a_mutated_image_is_read_or_refused(name: str, made: list[Change], chosen: OpenOptions) -> None:
    leaf, parents = _seeds(name)

    started = time.perf_counter()
    exercise(_mutate(name, leaf, made), parents, chosen)

    assert time.perf_counter() - started < SECONDS_MAX


@pytest.mark.parametrize("name", [name for name in NAMES if _seeds(name)[1]])
@settings(max_examples=40)
@given(made=changes, chosen=options)
def test_a_mutated_parent_is_read_through_or_refused(
    name: str, made: list[Change], chosen: OpenOptions
) -> None:
    leaf, parents = _seeds(name)

    exercise(leaf, [_mutate(name, parents[0], made)], chosen)


def _judge(patient: Patient) -> None:
    """What ``check --deep`` does with an image."""
    with suppress(VhdtoolError):
        image = open_source(patient.source())
        image.counts()
        image.inspect(deep=True)


@pytest.mark.parametrize("name", NAMES)
def test_memory_stays_small_whatever_a_field_claims(name: str) -> None:
    """Every field of every structure as large as it can be, one at a time."""
    leaf, _ = _seeds(name)
    _judge(leaf)

    tracemalloc.start()
    try:
        for structure in range(16):
            for field in range(18):
                _judge(_mutate(name, leaf, [Change(structure, field, (1 << 64) - (1 << 20))]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < PEAK_BYTES_MAX

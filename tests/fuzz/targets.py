"""The fuzz targets: ``fuzz_vhd(data)`` and ``fuzz_vhdx(data)``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final, Literal

import numpy as np

from tests.surgery.healthy import ALL, a_child_vhd, a_child_vhdx, a_vhd, a_vhdx
from tests.surgery.patient import Patient, Record
from tests.surgery.vhd import LOCATORS_AT, UNUSED, VhdSurgeon
from tests.surgery.vhdx import (
    LOG_ENTRY,
    METADATA_REGION,
    MIB,
    LogEntry,
    LogWrite,
    LogZero,
    VhdxSurgeon,
    crc32c,
    encode_locator,
    guid,
)
from vhdtool.chain.chain import Chain, FoundBy, Layer, LinkVerdict
from vhdtool.chain.explain import explain
from vhdtool.chain.flatten import flatten
from vhdtool.chain.reader import execute
from vhdtool.chain.reference import read_naively, sector_origins
from vhdtool.chain.walk import walk
from vhdtool.errors import Severity, VhdtoolError
from vhdtool.formats.image import DiskImage, OpenOptions
from vhdtool.formats.registry import open_source
from vhdtool.model.identity import DiskType
from vhdtool.model.plan import ReadPlan
from vhdtool.model.state import DAMAGED, STATE_BITS, ZEROS, BlockState, Run
from vhdtool.report.explain import explain_json, explain_text

SECONDS_MAX: Final = 5.0
_SECTORS_COMPARED: Final = 512
_READ_MAX: Final = 16 << 10
_BLOCKS_COMPARED: Final = 24
_LOG_GUID: Final = guid("5b1f9a6a-0f7c-4b55-9a53-7f3a4d8a1c11")


class DisagreementError(AssertionError):
    """Two ways to the same answer gave two answers."""


@dataclass(frozen=True, slots=True, eq=False)
class Seed:
    """A sound image, the structures in it that patches hit, and what is below it in its chain."""

    name: str
    patient: Patient
    places: Sequence[tuple[int, int]]
    parents: Sequence[Patient] = ()
    log_positions: Sequence[int] = ()


@dataclass(slots=True)
class Recipe:
    """A fuzz input, decoded."""

    seed: Seed
    options: OpenOptions
    repairs: bool
    patient: Patient
    tail: bytes = field(default=b"", repr=False)


def fuzz_vhd(data: bytes) -> None:
    """Read the VHD that ``data`` describes in every way there is."""
    _timed(data, _vhd_seeds(), _repair_vhd)


def fuzz_vhdx(data: bytes) -> None:
    """Read the VHDX that ``data`` describes in every way there is."""
    _timed(data, _vhdx_seeds(), _repair_vhdx)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {"vhd": fuzz_vhd, "vhdx": fuzz_vhdx}


def describe(target: str, data: bytes) -> Recipe:
    """The recipe that ``data`` is for ``target``: for whoever looks into a crash."""
    seeds, repair = (_vhd_seeds(), _repair_vhd) if target == "vhd" else (_vhdx_seeds(), _repair_vhdx)
    return _decode(data, seeds, repair)


def _timed(data: bytes, seeds: Sequence[Seed], repair: Callable[[Recipe], None]) -> None:
    started = time.perf_counter()
    recipe = _decode(data, seeds, repair)
    exercise(recipe.patient, recipe.seed.parents, recipe.options)
    took = time.perf_counter() - started
    if took > SECONDS_MAX:
        raise DisagreementError(f"{took:.1f} seconds for an input of {len(data)} bytes")


# ------------------------------------------------------------------ recipes


def _decode(data: bytes, seeds: Sequence[Seed], repair: Callable[[Recipe], None]) -> Recipe:
    data = data.ljust(2, b"\0")
    seed = seeds[data[0] % len(seeds)]
    flags = data[1]
    log: Literal["before", "after"] = "before" if flags & 1 else "after"
    recipe = Recipe(seed, OpenOptions(log, bool(flags & 2)), not flags & 4, seed.patient.copy())
    size = seed.patient.size
    at = 2
    if flags & 0x18:
        amount = int.from_bytes(data[at : at + 4], "little")
        at += 4
        # A cut counts from either end, so that footers and headers are both in reach of small numbers.
        if flags & 8:
            size = amount % (size + 1) if amount & 1 else size - amount % (size + 1)
        else:
            size += amount % (1 << 26)
        recipe.patient.resize(size)
    while at + 4 < len(data):
        start, span = seed.places[data[at] % len(seed.places)]
        offset = start + int.from_bytes(data[at + 1 : at + 3], "little") % span
        value = data[at + 4 : at + 5 + (data[at + 3] & 15)]
        at += 4 + len(value)
        if offset + len(value) <= size:
            recipe.patient.write(offset, value)
    if recipe.repairs:
        repair(recipe)
    return recipe


def _repair_vhd(recipe: Recipe) -> None:
    surgeon = VhdSurgeon(recipe.patient)
    if recipe.patient.size >= 512:
        surgeon.repair(surgeon.footer)
        if recipe.patient.read(0, 8) in (b"conectix", b"v_poison"):
            surgeon.repair(surgeon.copy)
    if recipe.patient.size >= 2048:
        # Where seeds have it; a mutated Data Offset would have the surgeon follow it.
        recipe.patient.write(512 + 36, bytes(4))
        total = sum(recipe.patient.read(512, 1024))
        if recipe.patient.read(512, 8) == b"cxsparse":
            recipe.patient.write(512 + 36, (~total & 0xFFFFFFFF).to_bytes(4, "big"))


def _repair_vhdx(recipe: Recipe) -> None:
    patient = recipe.patient
    if patient.size < 0x50000:
        return
    surgeon = VhdxSurgeon(patient)
    surgeon.close_up()
    base, length = MIB, MIB
    for position in recipe.seed.log_positions:
        if base + length > patient.size:
            break
        entry = Record(patient, base + position, LOG_ENTRY, "little")
        size = min(entry["EntryLength"], length)
        entry["Checksum"] = 0
        first = patient.read(base + position, min(size, length - position))
        entry["Checksum"] = crc32c(first + patient.read(base, size - len(first)))


# ------------------------------------------------------------------ what is done with an image


def exercise(patient: Patient, parents: Sequence[Patient], options: OpenOptions) -> None:
    """Everything that vhdtool does with an image, and with the chain that it heads.

    Raises:
        DisagreementError: two ways to one answer gave two.
        Exception: anything else is a crash of vhdtool; its own errors are not raised.
    """
    try:
        image = open_source(patient.source(), options)
    except VhdtoolError as error:
        _look_at_error(error)
        return
    try:
        _look_at(image)
    except VhdtoolError as error:
        _look_at_error(error)
    if image.type is not DiskType.DIFFERENCING:
        parents = []
    try:
        below = [open_source(p.source(f"parent {i}"), options) for i, p in enumerate(parents)]
    except VhdtoolError as error:
        _look_at_error(error)
        return
    if any(b.geometry.sector_size != image.geometry.sector_size for b in below):
        return
    layers = [
        Layer(one, Path(str(i)), FoundBy.GIVEN, LinkVerdict.OK if i < len(below) else LinkVerdict.BASE)
        for i, one in enumerate([image, *below])
    ]
    with Chain(layers) as chain:
        try:
            _read_through(chain)
        except VhdtoolError as error:
            _look_at_error(error)


def _look_at_error(error: VhdtoolError) -> None:
    if error.exit_code not in (65, 66, 69):
        raise DisagreementError(f"exit code {error.exit_code} for {error}")
    str(error).encode()


def _look_at(image: DiskImage) -> None:
    counts = image.counts()
    geometry = image.geometry
    if counts.total not in (0, geometry.block_count):
        raise DisagreementError(f"{counts} of {geometry.block_count} blocks")
    if min(counts.data, counts.partial, counts.zero, counts.absent) < 0:
        raise DisagreementError(f"{counts}")
    for section in image.sections:
        for name, value in section.fields:
            f"{section.name} {name} {value}".encode(errors="backslashreplace")
    last = geometry.block_count
    for first in sorted({0, max(0, last // 2), max(0, last - _BLOCKS_COMPARED)}):
        _compare_entries(image, first, min(last, first + _BLOCKS_COMPARED))
    image.inspect(deep=True)
    image.survey()
    image.inspect()
    for finding in image.findings:
        str(finding).encode()
    if image.counts() != counts:
        raise DisagreementError("counts change when they are asked for again")


def _compare_entries(image: DiskImage, first: int, stop: int) -> None:
    """The array of a window against single entries, bitmaps by array against single ones."""
    window = image.block_map(first, stop)
    geometry = image.geometry
    partial = []
    for block in range(first, stop):
        state, offset = image.entry(block)
        packed = int(window.entry[block - first])
        if packed & ((1 << STATE_BITS) - 1) != state:
            raise DisagreementError(f"block {block}: {state!r} alone, {packed:#x} in the map")
        placed = state in (BlockState.DATA, BlockState.PARTIAL)
        if packed >> STATE_BITS != (offset if placed else 0):
            raise DisagreementError(f"block {block}: data at {offset:#x} alone, {packed:#x} in the map")
        # A block that the file ends in keeps its place for those who ask for what is left of it.
        is_cut = placed and geometry.block_length(block) > image.source.size - offset
        if is_cut and not any(f.severity is Severity.ERROR for f in image.findings):
            raise DisagreementError(f"block {block}: sound, and beyond the file at {offset:#x}")
        if state is BlockState.PARTIAL:
            partial.append(block)
    for block in partial[:4]:
        per_block = geometry.sectors_per_block
        alone = image.bitmap(block)
        whole = image.bitmaps(np.array([block * per_block], np.int64), per_block)[0].tobytes()
        if alone != whole:
            raise DisagreementError(f"block {block}: its bitmap alone and by array differ")
        if per_block >= 16:
            half = per_block // 2
            pair = image.bitmaps(np.array([block * per_block, block * per_block + half], np.int64), half)
            if pair.tobytes() != alone:
                raise DisagreementError(f"block {block}: its bitmap in halves differs")


def _windows(chain: Chain) -> list[tuple[int, int]]:
    """Guest ranges that are compared: both ends of the disk, the middle, the ends of smaller parents."""
    size, sector = chain.virtual_size, chain.sector_size
    span = _SECTORS_COMPARED * sector
    starts = {0, max(0, size - span), size // 2}
    for image in chain.images:
        starts |= {max(0, image.geometry.virtual_size - span // 2), image.geometry.block_size}
    ranges = []
    for start in sorted(starts):
        start -= start % sector
        if start < size:
            ranges.append((start, min(size, start + span)))
    return ranges


def _read_through(chain: Chain) -> None:
    sound = True
    try:
        chain.require_sound()
    except VhdtoolError as error:
        _look_at_error(error)
        sound = False
    if any(f.severity is Severity.ERROR for layer in chain.layers for f in layer.image.findings) == sound:
        raise DisagreementError("refused without an error, or accepted with one")
    if not sound:
        try:
            chain.require_sound(allow_damaged=True)
        except VhdtoolError as error:
            _look_at_error(error)
            return
    for start, stop in _windows(chain):
        _compare_ways(chain, start, stop)
        _explain(chain, (start, (start + stop) // 2, stop - 1))
        if sound:
            _compare_bytes(chain, start + 100, min(stop, start + _READ_MAX))
    if sound and chain.virtual_size < 1 << 24:
        list(chain.windows())


def _compare_ways(chain: Chain, start: int, stop: int) -> None:
    """walk == flatten == the per-sector reference, on one range."""
    flat = ReadPlan.joined(list(flatten(chain.images, start, stop)))
    walked = ReadPlan.of_runs(list(walk(chain.images, start, stop)))
    # Where a file ends decides nothing about runs, so plans are compared as plain rows.
    if list(flat) != list(walked):
        raise DisagreementError(f"walk and flatten disagree on {start:#x}-{stop:#x}")
    if len(flat) and (flat.start, flat.stop) != (start, stop):
        raise DisagreementError(f"the plan of {start:#x}-{stop:#x} tiles {flat.start:#x}-{flat.stop:#x}")
    sector = chain.sector_size
    layer, place = sector_origins(chain.images, start // sector, stop // sector)
    for run in flat:
        first, last = (run.offset - start) // sector, (run.offset + run.length - start) // sector
        if (layer[first:last] != run.layer).any():
            raise DisagreementError(f"the reference has another layer for {run}")
        if run.layer >= 0:
            expected = run.file_offset + sector * np.arange(last - first)
            if (place[first:last] != expected).any():
                raise DisagreementError(f"the reference has another place for {run}")


def _explain(chain: Chain, offsets: Sequence[int]) -> None:
    """explain == walk, at single places; its bytes are those of the place, damaged or not."""
    for offset in offsets:
        explanation = explain(chain, offset)
        result, start = explanation.result, explanation.start
        (run,) = walk(chain.images, start, start + chain.sector_size)
        is_cut = result.damaged and result.file_offset is not None
        if (run.layer == DAMAGED) != (result.damaged and not is_cut) or (run.layer == ZEROS) != result.zero:
            raise DisagreementError(f"walk and explanation disagree on {offset:#x}")
        if run.layer >= 0:
            if (result.layer, explanation.steps[-1].file_offset) != (run.layer, run.file_offset):
                raise DisagreementError(f"the explanation has another place for {run}")
            source = chain.images[run.layer].source
            if is_cut != (run.file_offset + chain.sector_size > source.size):
                raise DisagreementError(
                    f"cut off for {'the explanation' if is_cut else 'the walk'} only: {run}"
                )
        explain_text(explanation).encode()
        explain_json(explanation)


def _compare_bytes(chain: Chain, start: int, stop: int) -> None:
    if start >= stop:
        return
    found = chain.read(start, stop - start)
    if found != read_naively(chain.images, start, stop - start):
        raise DisagreementError(f"other bytes than the reference in {start:#x}-{stop:#x}")
    again = bytearray(stop - start)
    runs: list[Run] = [run for plan in flatten(chain.images, start, stop) for run in plan]
    if any(run.layer == DAMAGED for run in runs):
        raise DisagreementError("a sound chain has a damaged run")
    execute(chain, runs, start, memoryview(again))
    if bytes(again) != found:
        raise DisagreementError(f"walked and flattened bytes differ in {start:#x}-{stop:#x}")


# ------------------------------------------------------------------ seeds


@cache
def _vhd_seeds() -> tuple[Seed, ...]:
    small = a_vhd(size=72 << 10, block_size=4096, blocks={0: ALL, 3: (1, 2), 17: ALL})
    usual = a_vhd(size=(8 << 20) - 512)
    below = a_vhd(size=64 << 10, block_size=4096, blocks={0: ALL, 2: (0, 7), 9: ALL})
    child = a_child_vhd(size=72 << 10, block_size=8192, blocks={0: (1, 9), 4: ALL, 8: (3,)})
    xen = VhdSurgeon(a_vhd(size=8 << 20, blocks={1: ALL}, entries=128))
    batmap_at = xen.batmap.offset
    xen.both_footers(Creator_Application=b"tap", Creator_Version=0x10003)
    batmap = xen.batmap
    batmap["cookie"] = b"tdbatmap"
    batmap["batmap_offset"] = batmap_at + 512
    batmap["batmap_size"] = 1
    batmap["batmap_version"] = 0x10002
    xen.repair_batmap()
    xen.close_up()
    short = small.copy()
    short.resize(short.size - 1)
    other = VhdSurgeon(
        a_vhd(
            kind=4,
            size=64 << 10,
            block_size=4096,
            blocks={1: (0, 1, 2)},
            parent_id="d49c5c80-350a-4a89-898a-5ad6d10f6578",
            parent_name="C:\\x\\parent.vhd",
            locators={
                b"MacX": b"file://localhost/a%20b/parent.vhd",
                b"Wi2r": b"..\\x\\parent.vhd",
                b"Wi2k": b"D:\\parent.vhd",
                b"Mac ": b"\1\2\3",
                b"W2ru": "..\\..\\etc\\passwd".encode("utf-16-le"),
            },
        )
    )
    seeds = [
        Seed("fixed", a_vhd(kind=2, size=64 << 10), [(0, 512), ((64 << 10), 85)]),
        Seed("small blocks", small, _vhd_places(small)),
        Seed("usual blocks", usual, _vhd_places(usual)),
        Seed("child", child, _vhd_places(child), [below]),
        Seed("grandchild", child, _vhd_places(child), [child, below]),
        Seed("Xen", xen.patient, [*_vhd_places(xen.patient), (batmap_at, 1024)]),
        Seed("short footer", short, _vhd_places(small)),
        Seed("child of every locator", other.patient, _vhd_places(other.patient), [below]),
    ]
    return tuple(seeds)


def _vhd_places(patient: Patient) -> list[tuple[int, int]]:
    surgeon = VhdSurgeon(patient)
    table = surgeon.header["Table Offset"]
    places = [
        (patient.size - 512, 86),
        (0, 86),
        (512, 64),
        (512 + 64, 512),
        (512 + LOCATORS_AT, 192),
        (table, min(512, 4 * surgeon.header["Max Table Entries"])),
    ]
    for number in range(1, 9):
        entry = surgeon.locator(number)
        if entry["Platform Data Length"]:
            places.append((entry["Platform Data Offset"], entry["Platform Data Length"]))
    stored = [b for b in range(min(32, surgeon.header["Max Table Entries"])) if surgeon.bat(b) != UNUSED]
    return places + [(surgeon.bitmap_at(block), min(64, surgeon.bitmap_size)) for block in stored]


@cache
def _vhdx_seeds() -> tuple[Seed, ...]:
    parent = a_vhdx(blocks={0: 6, 1: 6, 2: 6, 4: 6})
    parent_4k = a_vhdx(sector_size=4096, blocks={0: 6, 2: 6})
    two_chunks = a_child_vhdx(
        size=5 << 30,
        block_size=256 * MIB,
        blocks={0: 7, 3: 3, 16: 7, 19: 6},
        bits={0: (1, 2, 9), 16: ALL},
    )
    huge = a_vhdx(size=64 << 40, block_size=32 * MIB, bat_mib=17, blocks={0: 6, 1 << 20: 6, (2 << 20) - 1: 6})
    nearly_any = encode_locator(
        {
            "parent_linkage": "{83ed0ec3-24c8-49a6-a959-5e4bf1288bfb}",
            "parent_linkage2": "{83ed0ec3-24c8-49a6-a959-5e4bf1288bfc}",
            "relative_path": "..\\..\\x\\parent.vhdx",
            "volume_path": "\\\\?\\Volume{0eba351e-5634-46d6-a8cf-4ddc2d6ac0b9}\\parent.vhdx",
            "absolute_win32_path": "\\\\?\\UNC\\server\\share\\parent.vhdx",
        }
    )
    seeds = [
        _vhdx_seed("dynamic", a_vhdx()),
        _vhdx_seed("fixed", a_vhdx(flags=1, size=2 * MIB)),
        _vhdx_seed("child", a_child_vhdx(), [parent]),
        _vhdx_seed("child with all keys", a_child_vhdx(locator=nearly_any), [a_child_vhdx(), parent]),
        _vhdx_seed(
            "child with 4096-byte sectors",
            a_child_vhdx(sector_size=4096, bits={0: (1, 7, 8, 255)}),
            [parent_4k],
        ),
        _vhdx_seed("two chunks", two_chunks, [parent]),
        _vhdx_seed("64 TiB", huge),
        _logged("one entry", a_vhdx(blocks={0: 6})),
        _logged("entries that wrap", a_child_vhdx(), [parent], start=0xFE000),
    ]
    return tuple(seeds)


def _vhdx_seed(name: str, patient: Patient, parents: Sequence[Patient] = ()) -> Seed:
    surgeon = VhdxSurgeon(patient)
    metadata = surgeon.region(METADATA_REGION)["FileOffset"]
    places = [
        (0x10000, 80),
        (0x20000, 80),
        (0x30000, 80),
        (0x40000, 80),
        (metadata, 32 + 32 * surgeon.metadata_table["EntryCount"]),
        (metadata + 0x10000, 64),
        (surgeon.bat_at, 64),
        (surgeon.bat_at + 8 * surgeon.bitmap_index(0), 8),
    ]
    if surgeon.metadata_table["EntryCount"] > 5:
        places.append((surgeon.item_at("ParentLocator"), surgeon.item("ParentLocator")["Length"]))
    if surgeon.bat(surgeon.bitmap_index(0)):
        places.append((surgeon.bitmap_at(0), 64))
    return Seed(name, patient, places, parents)


def _logged(name: str, patient: Patient, parents: Sequence[Patient] = (), *, start: int = 0x5000) -> Seed:
    """A pending log: a page of the BAT, a range of zeros, then the same page again, in two entries."""
    plain = _vhdx_seed(name, patient, parents)
    surgeon = VhdxSurgeon(patient)
    page = patient.read(surgeon.bat_at, 4096)
    at = patient.size
    patient.resize(at + 2 * MIB)
    changed = bytearray(page)
    changed[8:16] = (at | 6).to_bytes(8, "little")
    positions = surgeon.write_log(
        [
            LogEntry([LogWrite(surgeon.bat_at, page), LogZero(surgeon.bat_at + 0x1000, 0x2000)], sequence=70),
            LogEntry([LogWrite(surgeon.bat_at, bytes(changed))], sequence=71, tail=start),
        ],
        log_guid=_LOG_GUID,
        start=start,
    )
    places = list(plain.places)
    for position in positions:
        places += [
            (MIB + position, 64),
            (MIB + (position + 64) % MIB, 96),
            (MIB + (position + 4096) % MIB, 4096),
        ]
    return Seed(name, patient, places, parents, positions)


def seed_inputs(target: str) -> list[bytes]:
    """One plain input for each seed and set of options: what a corpus begins with."""
    seeds = _vhd_seeds() if target == "vhd" else _vhdx_seeds()
    plain = [bytes([number, flags]) for number in range(len(seeds)) for flags in (0, 1, 2, 4, 6)]
    patched = [
        bytes([number, 0, place, offset, 0, 3, 0, 0, 0, 1])
        for number, seed in enumerate(seeds)
        for place in range(len(seed.places))
        for offset in (0, 12, 24)
    ]
    cut = [bytes([number, 8, low, 2, 0, 0]) for number in range(len(seeds)) for low in (0, 1)]
    return plain + patched + cut

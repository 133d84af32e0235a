"""Walks worked out from the bytes of files with ``struct`` alone, to hold explanations against.

Nothing of the package is used: the places of tables come from footers, headers and region tables, read
here by the offsets that the specifications give.  No log is replayed, and nothing is checked.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

MIB = 1 << 20
PAYLOAD_STATES = {
    0: "PAYLOAD_BLOCK_NOT_PRESENT",
    1: "PAYLOAD_BLOCK_UNDEFINED",
    2: "PAYLOAD_BLOCK_ZERO",
    3: "PAYLOAD_BLOCK_UNMAPPED",
    6: "PAYLOAD_BLOCK_FULLY_PRESENT",
    7: "PAYLOAD_BLOCK_PARTIALLY_PRESENT",
}
_BAT_REGION = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
_METADATA_REGION = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_FILE_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_VIRTUAL_DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_LOGICAL_SECTOR_SIZE = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f").bytes_le


@dataclass(frozen=True)
class Row:
    """One step, without its layer, path and note."""

    structure: str
    index: int | None
    file_offset: int | None
    value: int | None
    mask: int | None
    state: str
    outcome: str


def bit_row(index: int, place: int, byte: int, mask: int, clear: str) -> Row:
    here = bool(byte & mask)
    return Row("sector bitmap", index, place, byte, mask, f"bit {int(here)}", "next" if here else clear)


def payload_row(index: int, place: int) -> Row:
    return Row("payload", index, place, None, None, "in the file", "here")


class _File:
    sector_size = 512
    size = 0

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")

    def at(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)

    def number(self, layout: str, offset: int) -> int:
        (value,) = struct.unpack(layout, self.at(offset, struct.calcsize(layout)))
        assert isinstance(value, int)
        return value

    def rows(self, offset: int) -> list[Row]:
        raise NotImplementedError

    def close(self) -> None:
        self._file.close()


class Vhd(_File):
    """A VHD whose footer stands in its last 512 bytes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        footer = path.stat().st_size - 512
        assert self.at(footer, 8) == b"conectix"
        self.size = self.number(">Q", footer + 48)
        self.type = self.number(">I", footer + 60)
        if self.type != 2:
            header = self.number(">Q", footer + 16)
            self.table = self.number(">Q", header + 16)
            self.block_size = self.number(">I", header + 32)

    def rows(self, offset: int) -> list[Row]:
        if self.type == 2:
            return [payload_row(offset // 512, offset)]
        below = "parent" if self.type == 4 else "zeros"
        block, sector = divmod(offset // 512, self.block_size // 512)
        entry = self.number(">I", self.table + 4 * block)
        if entry == 0xFFFFFFFF:
            return [Row("BAT", block, self.table + 4 * block, entry, None, "unused", below)]
        place = entry * 512 + sector // 8
        byte = self.at(place, 1)[0]
        bitmap_sectors = -(-(self.block_size // 512) // 4096)
        rows = [
            Row("BAT", block, self.table + 4 * block, entry, None, "used", "next"),
            bit_row(sector, place, byte, 0x80 >> sector % 8, below),
        ]
        if rows[-1].outcome == "next":
            rows.append(payload_row(sector, (entry + bitmap_sectors + sector) * 512))
        return rows


class Vhdx(_File):
    """A VHDX whose first region table is good."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        count = self.number("<I", 192 * 1024 + 8)
        entries = [self.at(192 * 1024 + 16 + 32 * i, 32) for i in range(count)]
        regions = {entry[:16]: struct.unpack("<Q", entry[16:24])[0] for entry in entries}
        self.table = regions[_BAT_REGION]
        metadata = regions[_METADATA_REGION]
        rows = [self.at(metadata + 32 * i, 32) for i in range(1, 1 + self.number("<H", metadata + 10))]
        items = {row[:16]: metadata + struct.unpack("<I", row[16:20])[0] for row in rows}
        self.block_size, flags = struct.unpack("<II", self.at(items[_FILE_PARAMETERS], 8))
        self.differencing = bool(flags & 2)
        self.size = self.number("<Q", items[_VIRTUAL_DISK_SIZE])
        self.sector_size = self.number("<I", items[_LOGICAL_SECTOR_SIZE])
        self.ratio = (1 << 23) * self.sector_size // self.block_size

    def entry(self, index: int) -> int:
        return self.number("<Q", self.table + 8 * index)

    def rows(self, offset: int) -> list[Row]:
        block, within = divmod(offset, self.block_size)
        index = block + block // self.ratio
        entry = self.entry(index)
        state = entry & 7
        here = state in (6, 7)
        below = "parent" if self.differencing else "zeros"
        outcome = "next" if here else below if state == 0 else "zeros"
        name = PAYLOAD_STATES[state]
        rows = [Row("BAT", index, self.table + 8 * index, entry, None, name, outcome)]
        if not here:
            return rows
        sector = within // self.sector_size
        if state == 7 and self.differencing:
            rows += self._bitmap_rows(block, sector)
        if rows[-1].outcome == "next":
            rows.append(payload_row(sector, (entry >> 20) * MIB + within))
        return rows

    def _bitmap_rows(self, block: int, sector: int) -> list[Row]:
        chunk, place_in_chunk = divmod(block, self.ratio)
        index = (chunk + 1) * self.ratio + chunk
        entry = self.entry(index)
        assert entry & 7 == 6
        bit = place_in_chunk * (self.block_size // self.sector_size) + sector
        place = (entry >> 20) * MIB + bit // 8
        return [
            Row("BAT", index, self.table + 8 * index, entry, None, "SB_BLOCK_PRESENT", "next"),
            bit_row(bit, place, self.at(place, 1)[0], 1 << bit % 8, "parent"),
        ]


def opened(path: Path) -> Vhd | Vhdx:
    with path.open("rb") as file:
        return Vhdx(path) if file.read(8) == b"vhdxfile" else Vhd(path)


def walk(files: Sequence[Vhd | Vhdx], offset: int) -> list[tuple[int, Row]]:
    """Layer and row of each step for the sector at guest byte ``offset``."""
    steps: list[tuple[int, Row]] = []
    for layer, file in enumerate(files):
        if offset >= file.size:
            past = Row("virtual disk size", None, None, file.size, None, "smaller than its child", "zeros")
            return [*steps, (layer, past)]
        rows = file.rows(offset)
        steps += [(layer, row) for row in rows]
        if rows[-1].outcome != "parent":
            break
    return steps


def bytes_of(files: Sequence[Vhd | Vhdx], steps: Sequence[tuple[int, Row]]) -> bytes:
    """The sector that ``steps`` lead to."""
    layer, last = steps[-1]
    size = files[0].sector_size
    if last.outcome == "zeros":
        return bytes(size)
    assert last.outcome == "here"
    assert last.file_offset is not None
    return files[layer].at(last.file_offset, size)

"""One sector of a VHDX as a walk meets it: BAT entries, bit of the sector bitmap, payload, and the log.

States have the names of [MS-VHDX] sections 2.5.1.1 and 2.5.1.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from vhdtool.formats.probe import BAT, BITMAP, LOG_OVERRIDE, Look, Outcome, look_at_payload
from vhdtool.formats.vhdx import chunk
from vhdtool.formats.vhdx.layout import MIB
from vhdtool.formats.vhdx.log import LogWrite
from vhdtool.formats.vhdx.table import BatReader
from vhdtool.source import ByteSource, PatchedSource

_PAYLOAD_STATES: Final = {
    chunk.NOT_PRESENT: "PAYLOAD_BLOCK_NOT_PRESENT",
    chunk.UNDEFINED: "PAYLOAD_BLOCK_UNDEFINED",
    chunk.ZERO: "PAYLOAD_BLOCK_ZERO",
    chunk.UNMAPPED: "PAYLOAD_BLOCK_UNMAPPED",
    chunk.FULLY_PRESENT: "PAYLOAD_BLOCK_FULLY_PRESENT",
    chunk.PARTIALLY_PRESENT: "PAYLOAD_BLOCK_PARTIALLY_PRESENT",
}
_BITMAP_STATES: Final = {
    chunk.BITMAP_NOT_PRESENT: "SB_BLOCK_NOT_PRESENT",
    chunk.BITMAP_PRESENT: "SB_BLOCK_PRESENT",
}
_CROSSED: Final = "shares bytes of the file with another block"


@dataclass(frozen=True, slots=True)
class Prober:
    """Looks at single sectors of one image.

    Attributes:
        bat: the table; its source is ``source``.
        source: the file, a replayed log laid over it.
        is_crossed: whether the block or bitmap of a BAT entry shares bytes of the file with another one.
        find_write: what the replayed log says of one byte of the file.
    """

    bat: BatReader
    source: ByteSource
    is_crossed: Callable[[int], bool]
    find_write: Callable[[int], LogWrite | None]

    def looks(self, offset: int) -> Iterator[Look]:
        """The looks at the sector at guest byte ``offset``, in order; the last one settles it."""
        chunks, geometry = self.bat.table.chunks, self.bat.table.geometry
        block, within = divmod(offset, geometry.block_size)
        index = chunks.index_of_block(block)
        yield from self._entry_override(index)
        look = self._look_at_block(index, block)
        yield look
        if look.outcome is not Outcome.NEXT:
            return
        assert look.value is not None
        state, place = look.value & chunk.STATE_MASK, _place(look.value) + within
        if state == chunk.PARTIALLY_PRESENT and chunks.differencing:
            looks = list(self._bitmap_looks(block, within // geometry.sector_size))
            yield from looks
            if looks[-1].outcome is not Outcome.NEXT:
                return
        override = list(self._override(place, geometry.sector_size, "the payload"))
        yield from override
        sector = within // geometry.sector_size
        yield look_at_payload(self.source, sector, place, geometry.sector_size, is_in_log=bool(override))

    def _look_at_block(self, index: int, block: int) -> Look:
        value = self.bat.entry(index)
        if value is None:
            return self._missing(index)
        state = value & chunk.STATE_MASK
        differencing = self.bat.table.chunks.differencing
        outcome, note = Outcome.ZEROS, ""
        if state in (chunk.FULLY_PRESENT, chunk.PARTIALLY_PRESENT):
            outcome, note = self._judge_present(index, block, value)
        elif state == chunk.NOT_PRESENT:
            if differencing:
                outcome, note = Outcome.PARENT, "the block is not in this file: look in the parent"
            else:
                note = "the block is not in this file, which has no parent: zeros"
        elif state in _PAYLOAD_STATES:
            note = "zeros, whatever the parent has" if differencing else "zeros"
            if state != chunk.ZERO and _place(value):
                note += f"; old content may stand at {_place(value):#x}"
        else:
            outcome, note = Outcome.DAMAGED, "a reserved state: nobody can say what the block holds"
        return self._entry_look(index, value, _PAYLOAD_STATES, outcome, note)

    def _judge_present(self, index: int, block: int, value: int) -> tuple[Outcome, str]:
        table = self.bat.table
        fault = self._fault(index, value, table.stored_length(block))
        if fault:
            return Outcome.DAMAGED, f"the block {fault}"
        if value & chunk.STATE_MASK == chunk.FULLY_PRESENT:
            return Outcome.NEXT, f"the whole block is in this file, at {_place(value):#x}"
        if table.chunks.differencing:
            number = table.chunks.chunk_of_block(block)
            return Outcome.NEXT, f"the sector bitmap of chunk {number} decides"
        return Outcome.NEXT, f"read as fully present, at {_place(value):#x}: the disk has no parent"

    def _bitmap_looks(self, block: int, sector: int) -> Iterator[Look]:
        """The looks at the bitmap of a partially present block: its own BAT entry, then the bit."""
        chunks, geometry = self.bat.table.chunks, self.bat.table.geometry
        number, position = divmod(block, chunks.ratio)
        index = chunks.index_of_bitmap(number)
        yield from self._entry_override(index)
        look = self._look_at_bitmap_entry(index)
        yield look
        if look.outcome is not Outcome.NEXT:
            return
        assert look.value is not None
        bit = position * geometry.sectors_per_block + sector
        place = _place(look.value) + bit // 8
        yield from self._override(place, 1, "the byte of the sector bitmap")
        byte, mask = self.source.read_exact(place, 1, field="sector bitmap")[0], 1 << bit % 8
        here = bool(byte & mask)
        yield Look(
            structure=BITMAP,
            index=bit,
            file_offset=place,
            value=byte,
            mask=mask,
            state="bit 1" if here else "bit 0",
            outcome=Outcome.NEXT if here else Outcome.PARENT,
            note="the sector is in this layer" if here else "the sector is not here: look in the parent",
        )

    def _look_at_bitmap_entry(self, index: int) -> Look:
        value = self.bat.entry(index)
        if value is None:
            return self._missing(index)
        fault = self._bitmap_fault(index, value)
        outcome = Outcome.DAMAGED if fault else Outcome.NEXT
        note = fault or f"the sector bitmap is at {_place(value):#x}"
        return self._entry_look(index, value, _BITMAP_STATES, outcome, note)

    def _bitmap_fault(self, index: int, value: int) -> str:
        """Why a bitmap cannot be read; empty when it can."""
        state, end = value & chunk.STATE_MASK, self.bat.table.file_size
        if state == chunk.BITMAP_NOT_PRESENT:
            return "a block of the chunk is partially present, and there is no sector bitmap"
        if state != chunk.BITMAP_PRESENT:
            return "a reserved state: there is no sector bitmap to decide"
        fault = self._fault(index, value, chunk.BITMAP_BLOCK_SIZE)
        if not fault and _place(value) + chunk.BITMAP_BLOCK_SIZE > end:
            fault = f"at {_place(value):#x} is cut off by the end of the file at {end:#x}"
        return f"the sector bitmap block {fault}" if fault else ""

    def _fault(self, index: int, value: int, length: int) -> str:
        """What is wrong with the place that an entry gives; empty when nothing is."""
        table, place = self.bat.table, _place(value)
        if not place:
            return "is present and has no place: FileOffsetMB is 0"
        if place >= table.file_size:
            return f"would stand at {place:#x}, beyond the end of the file at {table.file_size:#x}"
        if table.place(value, length) is None:
            return f"at {place:#x} overlaps the headers, the log or a region"
        return f"at {place:#x} {_CROSSED}" if self.is_crossed(index) else ""

    def _entry_look(self, index: int, value: int, names: dict[int, str], outcome: Outcome, note: str) -> Look:
        state = value & chunk.STATE_MASK
        return Look(
            structure=BAT,
            index=index,
            file_offset=self._entry_offset(index),
            value=value,
            state=names.get(state, f"reserved ({state})"),
            outcome=outcome,
            note=note,
        )

    def _missing(self, index: int) -> Look:
        note = f"the BAT ends before it: {self.bat.entry_count} entries are there"
        return Look(structure=BAT, index=index, state="no entry", outcome=Outcome.DAMAGED, note=note)

    def _entry_offset(self, index: int) -> int:
        return self.bat.offset + index * chunk.ENTRY_SIZE

    def _entry_override(self, index: int) -> Iterator[Look]:
        if index < self.bat.entry_count:
            what = f"entry {index} of the BAT"
            yield from self._override(self._entry_offset(index), chunk.ENTRY_SIZE, what)

    def _override(self, start: int, length: int, what: str) -> Iterator[Look]:
        """The look at the log for file bytes ``[start, start + length)`` that it changed, if it did.

        They lie within one page of 4096 bytes, so one descriptor has written all of them.
        """
        source = self.source
        if not isinstance(source, PatchedSource) or not source.differs(start, start + length):
            return
        end = source.below.size
        beside = f"beyond the end of the file at {end:#x}"
        if start + length <= end:
            beside = "not from the file"
            if length <= chunk.ENTRY_SIZE:
                value = int.from_bytes(source.below.read_exact(start, length, field=what), "little")
                beside = f"not from the file, where {value:#x} stands"
        write = self.find_write(start)
        if write is None:
            note = f"{what} lies {beside}: the log makes the file longer, with zeros"
            yield Look(structure=LOG_OVERRIDE, state="LastFileOffset", outcome=Outcome.NEXT, note=note)
            return
        yield Look(
            structure=LOG_OVERRIDE,
            index=write.sequence_number,
            file_offset=write.descriptor if write.page is None else write.page,
            state="zero descriptor" if write.page is None else "data descriptor",
            outcome=Outcome.NEXT,
            note=f"{what} is read from log entry {write.sequence_number}, {beside}",
        )


def _place(entry: int) -> int:
    """File offset that an entry gives, 0 where it gives none."""
    return (entry >> chunk.OFFSET_SHIFT) * MIB

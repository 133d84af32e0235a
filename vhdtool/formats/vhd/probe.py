"""One sector of a VHD as a walk meets it: entry of the BAT, bit of the sector bitmap, payload."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vhdtool.formats.probe import BAT, BITMAP, Look, Outcome, look_at_payload
from vhdtool.formats.vhd import layout
from vhdtool.formats.vhd.table import Table
from vhdtool.model.state import BlockState


def probe_sector(
    table: Table,
    offset: int,
    *,
    differencing: bool,
    is_msb_first: bool,
    is_crossed: Callable[[int], bool],
) -> Iterator[Look]:
    """The looks at the sector at guest byte ``offset``, in order; the last one settles it.

    Args:
        is_crossed: whether a block shares bytes of the file with another one.
    """
    block, within = divmod(offset, table.block_size)
    sector = within // layout.SECTOR_SIZE
    look, data_offset = _look_at_entry(table, block, differencing=differencing, is_crossed=is_crossed)
    yield look
    if look.outcome is not Outcome.NEXT:
        return
    look = _look_at_bit(table, sector, data_offset, differencing=differencing, is_msb_first=is_msb_first)
    yield look
    if look.outcome is Outcome.NEXT:
        place = data_offset + sector * layout.SECTOR_SIZE
        yield look_at_payload(table.source, sector, place, layout.SECTOR_SIZE)


def _look_at_entry(
    table: Table, block: int, *, differencing: bool, is_crossed: Callable[[int], bool]
) -> tuple[Look, int]:
    """The look at a block's entry, and where the block's data begin when there are any to look at."""
    if block >= table.blocks_there:
        note = f"the BAT ends before it: {table.entries_there} entries are there"
        missing = Look(structure=BAT, index=block, state="no entry", outcome=Outcome.DAMAGED, note=note)
        return missing, 0
    value = table.entry(block)
    state, data_offset = table.judge(block)
    name = "used"
    if state is BlockState.ABSENT:
        name = "unused"
        outcome, note = _not_here(differencing, "the block is not in this file")
    elif state is BlockState.DAMAGED:
        outcome, note = Outcome.DAMAGED, _fault(table, value)
    elif is_crossed(block):
        outcome, note = Outcome.DAMAGED, "the block shares bytes of the file with another block"
    else:
        outcome, note = Outcome.NEXT, f"its sector bitmap decides, at {value * layout.SECTOR_SIZE:#x}"
    look = Look(
        structure=BAT,
        index=block,
        file_offset=table.place(block),
        value=value,
        state=name,
        outcome=outcome,
        note=note,
    )
    return look, data_offset


def _fault(table: Table, entry: int) -> str:
    """Why a block cannot stand where its entry puts it."""
    start = entry * layout.SECTOR_SIZE
    stop = start + table.stored_size
    for low, high, name in table.metadata:
        if start < high and low < stop:
            return f"the block at {start:#x} overlaps the {name} at {low:#x}-{high:#x}"
    return f"the block at {start:#x} reaches beyond {table.data_stop:#x}, where blocks must end"


def _look_at_bit(
    table: Table, sector: int, data_offset: int, *, differencing: bool, is_msb_first: bool
) -> Look:
    place = data_offset - table.bitmap_size + sector // 8
    mask = 0x80 >> sector % 8 if is_msb_first else 1 << sector % 8
    value = table.source.read_exact(place, 1, field="sector_bitmap")[0]
    if value & mask:
        outcome, note = Outcome.NEXT, "the sector is in this layer"
    else:
        outcome, note = _not_here(differencing, "the sector is not in this layer")
    return Look(
        structure=BITMAP,
        index=sector,
        file_offset=place,
        value=value,
        mask=mask,
        state="bit 1" if value & mask else "bit 0",
        outcome=outcome,
        note=note,
    )


def _not_here(differencing: bool, what: str) -> tuple[Outcome, str]:
    if differencing:
        return Outcome.PARENT, f"{what}: look in the parent"
    return Outcome.ZEROS, f"{what}, which has no parent: zeros"

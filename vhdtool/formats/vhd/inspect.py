"""What only ``check`` asks for: bits behind the disk's end, lost space, data under clear bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from vhdtool.errors import FINDINGS_PER_CODE, FindingLog, Severity
from vhdtool.formats.overlap import Overlaps
from vhdtool.formats.vhd import layout
from vhdtool.formats.vhd.bat import Judged, decode_entries
from vhdtool.formats.vhd.header import DynamicHeader
from vhdtool.formats.vhd.table import Table
from vhdtool.model.state import BlockState

if TYPE_CHECKING:
    from vhdtool.formats.vhd.image import VhdImage

Int64s = npt.NDArray[np.int64]

# Windows keeps data at multiples of 4096 bytes: the gaps in front of its blocks are not lost.
_GAP_MIN: Final = 4096
# Above this many blocks the lost space is only summed up.
_SORTED_MAX: Final = 1 << 20
_READ_MAX: Final = 1 << 20
_RUNS_SHOWN: Final = 8


def inspect_space(table: Table, header: DynamicHeader, overlaps: Overlaps, log: FindingLog) -> None:
    """Ranges of the file that nothing refers to: blocks that were lost."""
    parts: list[Int64s] = []
    count = 0
    for window in table.windows(0, table.block_count):
        if window.data is None:
            continue
        judged = Judged.of_window(table, window.first, decode_entries(window.data))
        starts = judged.start[judged.placed]
        count += len(starts)
        if count <= _SORTED_MAX:
            parts.append(starts)
    used = _metadata_in_use(table, header)
    if count > _SORTED_MAX:
        _note_total(table, used, count, overlaps, log)
        return
    starts = np.concatenate([np.empty(0, np.int64), *parts])
    starts = np.concatenate((starts, np.array([low for low, _ in used], np.int64)))
    stops = np.concatenate([np.empty(0, np.int64), *parts]) + table.stored_size
    stops = np.concatenate((stops, np.array([high for _, high in used], np.int64)))
    order = np.argsort(starts, kind="stable")
    starts, stops = starts[order], stops[order]
    gap_start = np.concatenate(([0], np.maximum.accumulate(stops)))
    gap_stop = np.concatenate((starts, [table.data_stop]))
    gaps = np.flatnonzero(gap_stop - gap_start >= _GAP_MIN)
    for i, gap in enumerate(gaps[:FINDINGS_PER_CODE].tolist()):
        low, high = int(gap_start[gap]), int(gap_stop[gap])
        is_last = i == FINDINGS_PER_CODE - 1
        log.note(
            Severity.INFO,
            "vhd.orphan.space",
            "nothing refers to this part of the file",
            offset=low,
            found=f"{low:#x}-{high:#x}, {high - low:#x} bytes",
            times=len(gaps) - i if is_last else 1,
        )


def _metadata_in_use(table: Table, header: DynamicHeader) -> list[tuple[int, int]]:
    """Metadata with the space that was set aside for it."""
    ranges = [(low, high) for low, high, _ in table.metadata]
    ranges += [
        (entry.offset, min(table.data_stop, entry.offset + entry.space_bytes))
        for entry in header.locators
        if entry.code != b"\0\0\0\0" and entry.offset < table.data_stop
    ]
    # Windows fills up the BAT to a multiple of 4096.
    table_stop = layout.round_up(header.table_stop, _GAP_MIN)
    if table.offset < table.data_stop:
        ranges.append((table.offset, min(table.data_stop, table_stop)))
    return ranges


def _note_total(
    table: Table, used: list[tuple[int, int]], count: int, overlaps: Overlaps, log: FindingLog
) -> None:
    lost = table.data_stop - count * table.stored_size - sum(high - low for low, high in used)
    if not overlaps and lost > count * _GAP_MIN:
        log.note(
            Severity.INFO,
            "vhd.orphan.space",
            "nothing refers to parts of the file",
            found=f"{lost:#x} bytes between {count} blocks",
        )


def inspect_bitmaps(image: VhdImage, table: Table, log: FindingLog, *, deep: bool) -> None:
    """Bits for sectors behind the disk's end; ``deep``: what stands in sectors whose bit is clear."""
    _inspect_last_bitmap(image, log)
    if not deep:
        return
    for window in table.windows(0, table.block_count):
        if window.data is None:
            continue
        judged = Judged.of_window(table, window.first, decode_entries(window.data))
        for block in judged.block[judged.sound].tolist():
            _inspect_clear_sectors(image, block, log)


def _inspect_last_bitmap(image: VhdImage, log: FindingLog) -> None:
    geometry = image.geometry
    block = geometry.block_count - 1
    sectors = geometry.block_length(block) // layout.SECTOR_SIZE
    state, offset = image.entry(block)
    if sectors == geometry.sectors_per_block or state is not BlockState.PARTIAL:
        return
    beyond = int.from_bytes(image.raw_bitmap(block), "little") >> sectors
    if beyond:
        log.note(
            Severity.WARNING,
            "vhd.bitmap.tail",
            "the last block's bitmap has bits for sectors behind the disk's end",
            offset=offset - layout.bitmap_size(geometry.block_size),
            field=f"sector_bitmap[{block}]",
            found=f"{beyond.bit_count()} bits",
            expected="none",
        )


def _inspect_clear_sectors(image: VhdImage, block: int, log: FindingLog) -> None:
    """One block of a dynamic disk: sectors whose bit is clear are to be zero."""
    state, offset = image.entry(block)
    if state is not BlockState.PARTIAL:
        return
    length = image.geometry.block_length(block)
    bits = np.unpackbits(np.frombuffer(image.bitmap(block), np.uint8), bitorder="little")
    clear = bits[: length // layout.SECTOR_SIZE] == 0
    if not clear.any():
        return
    filled: list[Int64s] = []
    for low, high in image.source.data_ranges(offset, offset + length):
        first = (low - offset) // layout.SECTOR_SIZE
        last = -(-(high - offset) // layout.SECTOR_SIZE)
        step = _READ_MAX // layout.SECTOR_SIZE
        for start in range(first, last, step):
            stop = min(last, start + step)
            if not clear[start:stop].any():
                continue
            data = image.source.read_exact(
                offset + start * layout.SECTOR_SIZE,
                (stop - start) * layout.SECTOR_SIZE,
                field=f"block[{block}]",
            )
            words = np.frombuffer(data, np.uint64).reshape(stop - start, -1)
            filled.append(np.flatnonzero(words.any(axis=1) & clear[start:stop]) + start)
    sectors = np.unique(np.concatenate(filled)) if filled else np.empty(0, np.int64)
    if len(sectors):
        log.note(
            Severity.ERROR,
            "vhd.bitmap.data",
            f"data in {len(sectors)} sectors of block {block} whose bitmap bit is clear",
            offset=offset + int(sectors[0]) * layout.SECTOR_SIZE,
            field=f"block[{block}]",
            found=f"sectors {_as_runs(sectors)} of the block",
            expected="zeros",
        )


def _as_runs(sectors: Int64s) -> str:
    """``8-15, 20``: the first few runs of ascending numbers."""
    edges = np.flatnonzero(np.diff(sectors) != 1)
    firsts = sectors[np.concatenate(([0], edges + 1))]
    lasts = sectors[np.concatenate((edges, [len(sectors) - 1]))]
    shown = [
        f"{first}" if first == last else f"{first}-{last}"
        for first, last in zip(firsts[:_RUNS_SHOWN].tolist(), lasts[:_RUNS_SHOWN].tolist())
    ]
    return ", ".join(shown) + (", ..." if len(firsts) > _RUNS_SHOWN else "")

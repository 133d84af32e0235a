"""What only ``check`` asks of a VHDX: sector bitmaps that say nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vhdtool.errors import FindingLog, Severity
from vhdtool.formats.vhdx import chunk
from vhdtool.formats.vhdx.bat import BatSurvey, Bools, Int64s
from vhdtool.model.geometry import Geometry
from vhdtool.source import ByteSource

Bytes = npt.NDArray[np.uint8]


def inspect_bitmaps(survey: BatSurvey, source: ByteSource, geometry: Geometry, log: FindingLog) -> None:
    """Count partial blocks whose bitmap is all clear or all set; reads one bitmap block at a time.

    A bitmap block that is a hole of the file is not read: all its bits are clear.
    """
    empty: list[tuple[int, int]] = []  # first such block of a chunk, how many
    full: list[tuple[int, int]] = []
    for number, offset, blocks in survey.partial_blocks():
        stop = offset + chunk.BITMAP_BLOCK_SIZE
        if next(source.data_ranges(offset, stop), None) is None:
            empty.append((int(blocks[0]), len(blocks)))
            continue
        raw = source.read_exact(offset, chunk.BITMAP_BLOCK_SIZE, field=f"sector bitmap of chunk {number}")
        clear, whole = _judge(np.frombuffer(raw, np.uint8), blocks, geometry)
        if clear.any():
            empty.append((int(blocks[clear][0]), int(clear.sum())))
        if whole.any():
            full.append((int(blocks[whole][0]), int(whole.sum())))
    for found, rule, what in (
        (empty, "empty", "partially present blocks whose bitmap is all clear"),
        (full, "full", "partially present blocks whose bitmap is all set"),
    ):
        if found:
            log.note(
                Severity.INFO,
                f"vhdx.bitmap.{rule}",
                what,
                field=f"block {found[0][0]}",
                found=f"{sum(count for _, count in found)} blocks",
            )


def _judge(bitmap: Bytes, blocks: Int64s, geometry: Geometry) -> tuple[Bools, Bools]:
    """Which of ``blocks`` have no bit set and which have all; bits past the end of the disk do not count.

    Args:
        bitmap: the sector bitmap block of their chunk.
        blocks: int64[n], ascending.
    """
    rows = bitmap.reshape(-1, geometry.sectors_per_block // 8)
    rows = rows[blocks % len(rows)]
    clear: Bools = np.logical_not(rows.any(axis=1))
    whole: Bools = np.all(rows == 0xFF, axis=1)
    if blocks[-1] == geometry.block_count - 1:
        sectors = geometry.block_length(int(blocks[-1])) // geometry.sector_size
        bits = np.unpackbits(rows[-1], bitorder="little")[:sectors]
        clear[-1], whole[-1] = not bits.any(), bits.all()
    return clear, whole

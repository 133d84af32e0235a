"""Seekable zstd files from their parts, by hand: nothing of them comes from our writer or from a library.

Frames hold raw blocks, or RLE blocks for one byte repeated; so what they hold can be seen in them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

BLOCK_MAX = 128 << 10
MAGIC = 0xFD2FB528
TABLE_MAGIC = 0x184D2A5E
FOOTER_MAGIC = 0x8F92EAB1
_RAW, _RLE = 0, 1


@dataclass(frozen=True, slots=True)
class Packed:
    """A frame as it stands in the file, what it holds, and what the table says of it."""

    frame: bytes
    content: bytes
    stored: int
    size: int
    checksum: int = 0


def packed(frame: bytes, content: bytes, **changes: int) -> Packed:
    """A frame with the row that it should have, unless ``changes`` say otherwise."""
    row = {"stored": len(frame), "size": len(content), **changes}
    return Packed(frame, content, **row)


def raw_frame(content: bytes, *, has_size: bool = True, stated: int | None = None) -> bytes:
    """A frame of raw blocks; ``stated`` is the size in its header, when it is a lie."""
    return _header(len(content) if stated is None else stated, has_size) + _blocks(content, _RAW)


def repeated_frame(byte: bytes, length: int) -> bytes:
    """A frame of one byte over and over, and nothing else."""
    return _header(length, True) + _blocks(byte * length, _RLE)


def skippable(content: bytes) -> bytes:
    """A frame that every reader passes over."""
    return struct.pack("<II", 0x184D2A50, len(content)) + content


def a_frame(content: bytes, **changes: int) -> Packed:
    """A plain frame of these bytes."""
    return packed(raw_frame(content), content, **changes)


def zeros(length: int) -> Packed:
    """A frame of zeros, as small as they are."""
    return packed(repeated_frame(b"\0", length), bytes(length))


def a_table(
    rows: Sequence[Packed],
    *,
    descriptor: int = 0,
    count: int | None = None,
    magic: int = TABLE_MAGIC,
    length: int | None = None,
    footer_magic: int = FOOTER_MAGIC,
) -> bytes:
    """The table of these frames, right unless something else is said."""
    width = 3 if descriptor & 0x80 else 2
    body = b"".join(struct.pack(f"<{width}I", *(r.stored, r.size, r.checksum)[:width]) for r in rows)
    body += struct.pack("<IBI", len(rows) if count is None else count, descriptor, footer_magic)
    return struct.pack("<II", magic, len(body) if length is None else length) + body


def seekable(*frames: Packed, **table: int) -> bytes:
    """A whole file."""
    return b"".join(f.frame for f in frames) + a_table(frames, **table)


def content_of(*frames: Packed) -> bytes:
    """The disk in a file of these frames."""
    return b"".join(f.content for f in frames)


def _header(size: int, has_size: bool) -> bytes:
    if has_size:  # single segment, eight bytes of size
        return struct.pack("<IBQ", MAGIC, 0xE0, size)
    return struct.pack("<IBB", MAGIC, 0x00, 0x60)  # a window of 4 MiB


def _blocks(content: bytes, kind: int) -> bytes:
    out = []
    starts = range(0, len(content), BLOCK_MAX) or range(1)
    for start in starts:
        piece = content[start : start + BLOCK_MAX]
        is_last = start + BLOCK_MAX >= len(content)
        out.append(struct.pack("<I", is_last | kind << 1 | len(piece) << 3)[:3])
        out.append(piece[:1] if kind == _RLE else piece)
    return b"".join(out)

"""Bytes for people: offset, sixteen bytes, and the printable ASCII among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

_ROW: Final = 16
# Whatever is no printable ASCII shows as a dot: nothing of a disk's content can steer a terminal.
_SHOWN: Final = bytes(byte if 0x20 <= byte < 0x7F else ord(".") for byte in range(256))


def hexdump(pieces: Iterable[bytes], offset: int) -> Iterator[str]:
    """Lines with their line ends; rows like the one before are one ``*``.

    Args:
        pieces: the bytes in order; all but the last a multiple of 16 long.
        offset: guest byte of the first.
    """
    last = b""
    starred = False
    for piece in pieces:
        for at in range(0, len(piece), _ROW):
            row = piece[at : at + _ROW]
            if row == last:
                if not starred:
                    yield "*\n"
                    starred = True
                continue
            last, starred = row, False
            left, right = row[:8].hex(" "), row[8:].hex(" ")
            yield f"{offset + at:012x}  {left:<23}  {right:<23}  |{row.translate(_SHOWN).decode('ascii')}|\n"
        offset += len(piece)
    yield f"{offset:012x}\n"

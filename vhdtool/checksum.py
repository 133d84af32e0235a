"""CRC-32C (Castagnoli), the checksum of every VHDX structure.

One function in front of google-crc32c, with a table of our own for platforms that have no wheel.
Check value: ``crc32c(b"123456789") == 0xE3069283``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_POLYNOMIAL: Final = 0x82F63B78  # 0x1EDC6F41 with its bits reversed


def _make_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return table


def _portable_extend() -> Callable[[int, bytes], int]:
    table = _make_table()

    def extend(crc: int, data: bytes) -> int:
        crc ^= 0xFFFFFFFF
        for byte in data:
            crc = (crc >> 8) ^ table[(crc ^ byte) & 0xFF]
        return crc ^ 0xFFFFFFFF

    return extend


try:
    from google_crc32c import extend as _extend
except ImportError:  # pragma: no cover - a test runs the table against the library
    _extend = _portable_extend()


def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC-32C of ``data``, going on from ``crc`` (that of the bytes before it)."""
    result: int = _extend(crc, data)
    return result


def crc32c_without_field(data: bytes, offset: int) -> int:
    """CRC-32C of a structure whose own 4 checksum bytes at ``offset`` count as zero."""
    result: int = _extend(_extend(0, data[:offset] + bytes(4)), data[offset + 4 :])
    return result

"""The disk geometry that a footer records, by the specification's algorithm ("CHS Calculation")."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

_SECTORS_MAX: Final = 65535 * 16 * 255


class Chs(NamedTuple):
    """Cylinders, heads and sectors per track."""

    cylinders: int
    heads: int
    sectors_per_track: int

    @property
    def size(self) -> int:
        """Bytes that the geometry can address."""
        return self.cylinders * self.heads * self.sectors_per_track * 512

    def __str__(self) -> str:
        return f"{self.cylinders}/{self.heads}/{self.sectors_per_track}"


GEOMETRY_MAX: Final = Chs(65535, 16, 255)


@lru_cache(maxsize=64)
def geometry_of(virtual_size: int) -> Chs:
    """The geometry for a disk of ``virtual_size`` bytes: the largest that is not larger than the disk."""
    sectors = min(virtual_size // 512, _SECTORS_MAX)
    if sectors >= 65535 * 16 * 63:
        return Chs(sectors // 255 // 16, 16, 255)
    sectors_per_track = 17
    tracks = sectors // 17
    heads = max(4, (tracks + 1023) // 1024)
    if tracks >= heads * 1024 or heads > 16:
        sectors_per_track, heads = 31, 16
        tracks = sectors // 31
    if tracks >= heads * 1024:
        sectors_per_track, heads = 63, 16
        tracks = sectors // 63
    return Chs(tracks // heads, heads, sectors_per_track)

"""Small things that every report for people is made of: sizes, times, columns, colours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from vhdtool.errors import printable

if TYPE_CHECKING:
    from vhdtool.model.identity import Identity

# (text, role) -> text: how a terminal shows "error", "warning", "info", "good", "name", "faint".
Paint = Callable[[str, str], str]

_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def plain(text: str, role: str) -> str:
    """The paint of files and pipes: none."""
    return text


def size_text(size: int) -> str:
    """``4 MiB``, ``127.0 GiB``, ``1536 bytes``: short, and exact when it has no decimals."""
    unit = 0
    value = float(size)
    while value >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    if unit == 0:
        return f"{size} bytes"
    exact = size % (1 << 10 * unit) == 0
    return f"{size >> 10 * unit if exact else format(value, '.1f')} {_UNITS[unit]}"


def size_both(size: int) -> str:
    """``4194304 bytes (4 MiB)``: exact, and readable."""
    return f"{size} bytes ({size_text(size)})" if size >= 1024 else size_text(size)


def instant(moment: datetime | None) -> str | None:
    """ISO 8601 in UTC with a ``Z``; None stays None."""
    if moment is None:
        return None
    if moment.tzinfo is not None:
        moment = (moment - (moment.utcoffset() or timedelta())).replace(tzinfo=None)
    return moment.isoformat() + "Z"


def instant_text(moment: datetime | None) -> str:
    """``2024-03-01 12:30:00 UTC``; empty for None."""
    return "" if moment is None else f"{(instant(moment) or '')[:19].replace('T', ' ')} UTC"


def identity_text(identity: Identity | None) -> str | None:
    """A GUID in lower case without braces; None stays None."""
    return None if identity is None else str(identity)


def name_of(value: object) -> str:
    """A path or a string from an image, fit for a terminal."""
    return printable(str(value))


def fields(rows: Iterable[tuple[str, object]], *, indent: int = 0, width: int = 0) -> str:
    """``Name : value`` lines with the colons below each other, as ``Get-VHD | Format-List`` prints them."""
    listed = [(name, printable(str(value))) for name, value in rows]
    width = max([width, *(len(name) for name, _ in listed)])
    return "\n".join(f"{' ' * indent}{name:<{width}} : {value}".rstrip() for name, value in listed)


def table(
    header: Sequence[str], rows: Sequence[Sequence[object]], *, right: Iterable[int] = (), indent: int = 0
) -> str:
    """Columns with a head line; those in ``right`` are aligned to the right."""
    cells = [list(header), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    rightward = frozenset(right)

    def line(row: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if i in rightward else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ]
        return (" " * indent + "  ".join(parts)).rstrip()

    return "\n".join(map(line, cells))


def count(number: int, one: str, many: str | None = None) -> str:
    """``1 error``, ``3 errors``."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def wrapped(text: str, *, indent: int = 0, width: int = 100) -> list[str]:
    """``text`` in lines of at most ``width`` characters where its words allow."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and indent + len(line) + 1 + len(word) > width:
            lines.append(" " * indent + line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, " " * indent + line]


Document = dict[str, Any]

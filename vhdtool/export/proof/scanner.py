"""JSON documents from strangers, read piece by piece: what is in memory is what was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NoReturn

from vhdtool.errors import FindingLog
from vhdtool.source import ByteSource

_VALUE_BYTES_MAX: Final = 2 << 20
_PIECE: Final = 64 << 10
_SPACE: Final = re.compile(rb"[ \t\r\n]*")


class Scanner:
    """Reads a JSON document piece by piece: objects and arrays are entered, small values decoded.

    Only what is asked for is in memory: at most one value of ``_VALUE_BYTES_MAX``.  What is broken is a
    finding ``manifest.json``.
    """

    def __init__(self, source: ByteSource, log: FindingLog) -> None:
        self._source = source
        self._log = log
        self._read = 0  # bytes of the file that were taken into the buffer
        self._buffer = b""
        self._at = 0  # the next byte in the buffer
        self._dropped = 0  # bytes of the file in front of the buffer
        self._decoder = json.JSONDecoder(parse_constant=_no_constant)

    def members(self) -> Iterator[str]:
        """The names of an object's members; the caller takes each one's value before the next."""
        self._expect(b"{")
        if self._take_if(b"}"):
            return
        while True:
            name = self.value()
            if not isinstance(name, str):
                self._broken("a member without a name")
            self._expect(b":")
            yield name
            if not self._take_if(b","):
                break
        self._expect(b"}")

    def rows(self) -> Iterator[object]:
        """The values of an array."""
        self._expect(b"[")
        if self._take_if(b"]"):
            return
        while True:
            yield self.value()
            if not self._take_if(b","):
                break
        self._expect(b"]")

    def skip(self) -> None:
        """Pass over a value, an array row by row."""
        if self._peek() == b"[":
            for _ in self.rows():
                pass
        else:
            self.value()

    def value(self) -> object:
        """One whole value."""
        self._peek()
        wanted = 512
        while True:
            self._fill(wanted)
            there = len(self._buffer) - self._at
            found = self._decode(self._buffer[self._at : self._at + wanted])
            # A number at the end of what was read may go on behind it.
            if found is not None and (found[1] < wanted or there < wanted):
                self._at += found[1]
                return found[0]
            if there < wanted:
                self._broken("it ends in the middle of a value, or this is no JSON")
            if wanted >= _VALUE_BYTES_MAX:
                self._broken("a value that is too long, or no JSON")
            wanted *= 4

    def end(self) -> None:
        """Nothing but white space may follow."""
        if self._peek():
            self._broken("something behind its end")

    def _decode(self, data: bytes) -> tuple[object, int] | None:
        """A value and the bytes it takes; None when ``data`` does not hold all of it.

        Manifests are ASCII: json.dumps escapes the rest.  So bytes and characters count alike.
        """
        try:
            value, length = self._decoder.raw_decode(data.decode("latin-1"))
        except (ValueError, RecursionError):
            return None
        return (value, length) if data[:length].isascii() else None

    def _expect(self, character: bytes) -> None:
        if not self._take_if(character):
            there = self._at < len(self._buffer)
            self._broken(f"{character.decode()} is missing" if there else "it ends too early")

    def _take_if(self, character: bytes) -> bool:
        if self._peek() != character:
            return False
        self._at += 1
        return True

    def _peek(self) -> bytes:
        """The next byte that is no white space; empty at the end."""
        while True:
            space = _SPACE.match(self._buffer, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at : self._at + 1]
            self._fill(1)
            if self._at == len(self._buffer):
                return b""

    def _fill(self, wanted: int) -> None:
        """Have ``wanted`` bytes in the buffer, fewer at the end of the file only."""
        while len(self._buffer) - self._at < wanted:
            count = min(max(_PIECE, wanted), self._source.size - self._read)
            if not count:
                return
            piece = self._source.read_exact(self._read, count, field="manifest")
            self._read += count
            self._dropped += self._at
            self._buffer = self._buffer[self._at :] + piece
            self._at = 0

    def _broken(self, what: str) -> NoReturn:
        self._log.refuse(
            "manifest.json", f"this is no whole manifest: {what}", offset=self._dropped + self._at
        )


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


class Claims:
    """A stranger's JSON object: its members are asked for by name, and refused when they are nonsense.

    Args:
        values: what the scanner gave.
        where: what it is called: ``content``, ``layers[3]``.
    """

    def __init__(self, values: object, log: FindingLog, where: str) -> None:
        self._log = log
        self._where = where
        if not isinstance(values, dict):
            log.refuse("manifest.value", f"{where!r} is no object", field=where, found=type(values).__name__)
        self._values: Mapping[str, Any] = values

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def integer(self, name: str, low: int, high: int) -> int:
        """A number of [low, high]."""
        value = self._values.get(name)
        # A bool is an int to Python, not to JSON.
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self._refuse("manifest.number", name, f"{name!r} is no integer between {low} and {high}")
        return value

    def boolean(self, name: str) -> bool:
        """True or false."""
        value = self._values.get(name)
        if not isinstance(value, bool):
            self._refuse("manifest.value", name, f"{name!r} is neither true nor false")
        return value

    def text(self, name: str, pattern: str = "(?s:.*)") -> str:
        """Text that is ``pattern`` from end to end."""
        value = self._values.get(name)
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            self._refuse("manifest.value", name, f"{name!r} is not what it should be")
        return value

    def text_or_none(self, name: str, pattern: str = "(?s:.*)") -> str | None:
        """The same, or null; the member must be there."""
        if name in self._values and self._values[name] is None:
            return None
        return self.text(name, pattern)

    def _refuse(self, code: str, name: str, what: str) -> NoReturn:
        value = self._values.get(name)
        # A stranger's: nothing long, and nothing that is no text or number.
        shown = value if isinstance(value, int | str) else type(value).__name__
        self._log.refuse(code, what, field=f"{self._where}.{name}".strip("."), found=str(shown)[:100])

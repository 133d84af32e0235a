"""A file on the operating table: sparse bytes in memory, and structures in them whose fields have names."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

from vhdtool.source import too_short

PAGE: Final = 4096

# Where a field stands in its structure, and what it is: a number of that many bytes, or bytes.
Fields = Mapping[str, tuple[int, str]]
_INTEGERS: Final = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}


class Patient:
    """Bytes of any size, of which only the pages that were written take memory; the rest is zeros."""

    def __init__(self, size: int = 0) -> None:
        self.size = size
        self.pages: dict[int, bytearray] = {}

    @classmethod
    def of_bytes(cls, data: bytes) -> Patient:
        """A patient with these bytes."""
        patient = cls(len(data))
        patient.write(0, data)
        return patient

    @classmethod
    def load(cls, path: Path) -> Patient:
        """A patient with a small file's bytes."""
        return cls.of_bytes(path.read_bytes())

    def copy(self) -> Patient:
        """A twin, so that a sound image is made once and damaged many times."""
        twin = Patient(self.size)
        twin.pages = {number: bytearray(page) for number, page in self.pages.items()}
        return twin

    def read(self, offset: int, length: int) -> bytes:
        """Bytes, zeros where nothing was written, also behind the end."""
        parts = []
        while length > 0:
            number, within = divmod(offset, PAGE)
            count = min(length, PAGE - within)
            page = self.pages.get(number)
            parts.append(bytes(count) if page is None else bytes(page[within : within + count]))
            offset += count
            length -= count
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        """Write ``data``; the file grows when it has to.  Pages of zeros that are not there stay holes."""
        self.size = max(self.size, offset + len(data))
        done = 0
        while done < len(data):
            number, within = divmod(offset + done, PAGE)
            count = min(len(data) - done, PAGE - within)
            piece = data[done : done + count]
            done += count
            if number not in self.pages:
                if not any(piece):
                    continue
                self.pages[number] = bytearray(PAGE)
            self.pages[number][within : within + count] = piece

    def resize(self, size: int) -> None:
        """Cut the file or make it longer."""
        if size < self.size:
            last = size // PAGE
            for number in [n for n in self.pages if n > last]:
                del self.pages[number]
            if last in self.pages:
                self.pages[last][size % PAGE :] = bytes(PAGE - size % PAGE)
        self.size = size

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Runs of written pages in ``[start, stop)``."""
        stop = min(stop, self.size)
        run: tuple[int, int] | None = None
        for number in sorted(self.pages):
            first, last = max(start, number * PAGE), min(stop, (number + 1) * PAGE)
            if first >= last:
                continue
            if run is not None and run[1] == first:
                run = (run[0], last)
            else:
                if run is not None:
                    yield run
                run = (first, last)
        if run is not None:
            yield run

    def save(self, path: Path) -> Path:
        """Write it to a sparse file."""
        with path.open("wb") as file:
            for number in sorted(self.pages):
                file.seek(number * PAGE)
                file.write(self.pages[number])
            file.truncate(self.size)
        return path

    def source(self, name: str = "patient") -> PatientSource:
        """The patient as vhdtool reads it, without a file."""
        return PatientSource(self, name)


class PatientSource:
    """A :class:`vhdtool.source.ByteSource` over a patient, holes and all."""

    def __init__(self, patient: Patient, name: str) -> None:
        self._patient = patient
        self.name = name

    @property
    def size(self) -> int:
        return self._patient.size

    @property
    def descriptor(self) -> int | None:
        return None

    def read_exact(self, offset: int, length: int, *, field: str) -> bytes:
        if offset < 0 or length < 0:
            raise ValueError(f"offset {offset} and length {length} must not be negative")
        if offset + length > self.size:
            raise too_short(self.name, offset, field, max(0, self.size - offset), length)
        return self._patient.read(offset, length)

    def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
        buffer[:] = self.read_exact(offset, len(buffer), field=field)

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        return self._patient.data_ranges(start, stop)

    def close(self) -> None:
        """Nothing to let go of."""


class Record:
    """A structure at a place in a patient: ``record["Block Size"] = 3``."""

    def __init__(
        self, patient: Patient, offset: int, fields: Fields, byteorder: Literal["little", "big"]
    ) -> None:
        self.patient = patient
        self.offset = offset
        self.fields = fields
        self.byteorder: Literal["little", "big"] = byteorder

    def place(self, name: str) -> int:
        """File offset of a field."""
        return self.offset + self.fields[name][0]

    def _length(self, name: str) -> int:
        kind = self.fields[name][1]
        return struct.calcsize(_INTEGERS[kind]) if kind in _INTEGERS else int(kind)

    def raw(self, name: str) -> bytes:
        """A field's bytes."""
        return self.patient.read(self.place(name), self._length(name))

    def __getitem__(self, name: str) -> int:
        return int.from_bytes(self.raw(name), self.byteorder)

    def __setitem__(self, name: str, value: int | bytes) -> None:
        length = self._length(name)
        data = (
            value.ljust(length, b"\0") if isinstance(value, bytes) else value.to_bytes(length, self.byteorder)
        )
        if len(data) != length:
            raise ValueError(f"{name} has {length} bytes, not {len(data)}")
        self.patient.write(self.place(name), data)

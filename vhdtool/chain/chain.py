"""A chain: the images behind one point in time, leaf first, as one virtual disk.

::

    chain.plan / chain.windows ──► ReadPlan ──► reader.execute ──► bytes
         (no payload byte is read)                (map, export, diff, ... stop before here)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from vhdtool.errors import Finding, Severity, raise_first_error
from vhdtool.formats.image import DiskImage
from vhdtool.source import FileSource, files_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vhdtool.chain.engine import Engine
    from vhdtool.chain.reader import ChainReader
    from vhdtool.chain.resolved import ResolvedMap
    from vhdtool.model.plan import ReadPlan

DEPTH_MAX: Final = 256


class FoundBy(StrEnum):
    """How a layer's file was found."""

    GIVEN = "given"
    RELATIVE_PATH = "relative_path"
    ABSOLUTE_PATH = "absolute_path"
    VOLUME_PATH = "volume_path"
    NAME = "name"
    IDENTITY = "identity"


class LinkVerdict(StrEnum):
    """What can be said of a layer's link to its parent; BASE is a layer that needs none."""

    BASE = "base"
    OK = "ok"
    MISMATCH = "mismatch"
    MISSING = "missing"
    LOOP = "loop"


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One image's place in a chain.

    Attributes:
        path: where its file is.
        found_by: how it was found.
        link: the verdict on its link to its own parent.
        findings: about that link; those about the image itself are ``image.findings``.
    """

    image: DiskImage
    path: Path
    found_by: FoundBy
    link: LinkVerdict
    findings: tuple[Finding, ...] = ()


class Chain:
    """Images, leaf first, read as the one disk that the leaf's guest would see.

    Attributes:
        layers: 0 is the leaf.
        findings: those of links and of the chain as a whole, in order.
    """

    def __init__(self, layers: Sequence[Layer], findings: Iterable[Finding] = ()) -> None:
        if not layers:
            raise ValueError("a chain has at least one layer")
        self.layers = tuple(layers)
        self.findings = (*(f for layer in layers for f in layer.findings), *findings)
        # A survey adds errors later: each of those spoils blocks, these spoil the whole.
        self._opening_errors = tuple(error for layer in layers for error in layer.image.errors)
        self._sound: set[bool] = set()
        self._maps: dict[Engine, ResolvedMap] = {}

    @property
    def leaf(self) -> DiskImage:
        """The image whose disk the chain is."""
        return self.layers[0].image

    @property
    def virtual_size(self) -> int:
        """Bytes of the leaf's disk."""
        return self.leaf.geometry.virtual_size

    @property
    def sector_size(self) -> int:
        """Logical sector size in bytes, the same in every layer."""
        return self.leaf.geometry.sector_size

    @property
    def complete(self) -> bool:
        """Whether every layer down to the base is there."""
        return self.layers[-1].link is LinkVerdict.BASE

    @property
    def images(self) -> tuple[DiskImage, ...]:
        """The layers' images, leaf first."""
        return tuple(layer.image for layer in self.layers)

    def files(self) -> list[FileSource]:
        """Every file that the chain reads."""
        return [file for layer in self.layers for file in files_of(layer.image.source)]

    def all_findings(self) -> tuple[Finding, ...]:
        """Findings of every layer, then those of links and chain; grows with a survey."""
        return (*(f for layer in self.layers for f in layer.image.findings), *self.findings)

    def warnings(self) -> tuple[Finding, ...]:
        """What strict reading goes on in spite of, and says."""
        return tuple(f for f in self.all_findings() if f.severity is Severity.WARNING)

    def require_sound(self, *, allow_damaged: bool = False) -> None:
        """Refuse the chain because of its first ERROR: before a byte of content moves.

        Args:
            allow_damaged: let errors pass that spoil single blocks only; plans show those as DAMAGED.

        Raises:
            FormatError, ChainError: that finding.
        """
        if allow_damaged in self._sound:
            return
        raise_first_error(self._opening_errors)
        raise_first_error(self.findings)
        for image in self.images:
            image.survey()
            if not allow_damaged:
                raise_first_error(image.errors)
        self._sound.add(allow_damaged)

    def windows(
        self,
        start: int = 0,
        stop: int | None = None,
        *,
        allow_damaged: bool = False,
        engine: Engine = "auto",
    ) -> Iterator[ReadPlan]:
        """Plans that tile guest range ``[start, stop)`` in order, each of bounded size.

        Bytes; ``stop`` None is the disk's end.  Runs are merged within a plan, not from one to the next.

        Raises:
            FormatError, ChainError: the chain is not sound (see ``require_sound``).
        """
        from vhdtool.chain.flatten import flatten

        stop = self._range_stop(start, stop)
        self.require_sound(allow_damaged=allow_damaged)
        return flatten(self.images, start, stop, engine=engine)

    def plan(self, start: int = 0, stop: int | None = None) -> ReadPlan:
        """Guest range ``[start, stop)`` in bytes as one plan; no payload is read.

        Memory grows with the number of runs; ``windows`` gives the same in pieces.
        """
        from vhdtool.model.plan import ReadPlan

        return ReadPlan.joined(list(self.windows(start, stop)))

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes of the virtual disk from byte ``offset``.

        Raises:
            ValueError: the range leaves the disk.
            FormatError, ChainError: the chain is not sound, or a layer's file ends early.
            ReadError: the operating system could not read.
        """
        from vhdtool.chain.reader import read_into

        self._range_stop(offset, offset + length)
        buffer = bytearray(length)
        read_into(self, offset, memoryview(buffer))
        return bytes(buffer)

    def resolved(self, engine: Engine = "auto") -> ResolvedMap:
        """The chain's resolved map, made when first asked for and kept, one for each ``engine``.

        Raises:
            FormatError, ChainError: the chain is not sound.
        """
        from vhdtool.chain.resolved import ResolvedMap

        self.require_sound()
        if engine not in self._maps:
            self._maps[engine] = ResolvedMap(self.images, engine=engine)
        return self._maps[engine]

    def lookup(
        self, offsets: npt.ArrayLike, *, engine: Engine = "auto"
    ) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
        """Layers and file offsets of guest bytes ``offsets`` (int64[n]): see ``ResolvedMap.lookup``.

        Raises:
            ValueError: an offset is outside of the disk.
            FormatError, ChainError: the chain is not sound.
        """
        return self.resolved(engine).lookup(offsets)

    def read_many(
        self,
        offsets: npt.ArrayLike,
        length: int,
        *,
        out: npt.NDArray[np.uint8] | None = None,
        engine: Engine = "auto",
    ) -> npt.NDArray[np.uint8]:
        """``length`` bytes of the virtual disk from each of ``offsets`` (int64[n]), as uint8[n, length].

        Args:
            out: uint8[n, length], C-contiguous, filled and returned: fresh memory costs as much as reads do.

        Raises:
            ValueError: a range leaves the disk, or ``out`` is something else.
            FormatError, ChainError, ReadError: as ``read``.
        """
        from vhdtool.chain.reader import read_many

        return read_many(self, offsets, length, out, engine)

    def open(self) -> ChainReader:
        """The virtual disk as a read-only, seekable binary file object; does not own the chain."""
        from vhdtool.chain.reader import ChainReader

        self.require_sound()
        return ChainReader(self)

    def close(self) -> None:
        """Let go of every file."""
        for layer in self.layers:
            layer.image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _range_stop(self, start: int, stop: int | None) -> int:
        stop = self.virtual_size if stop is None else stop
        if not 0 <= start <= stop <= self.virtual_size:
            raise ValueError(f"range {start}..{stop} is not inside the disk of {self.virtual_size} bytes")
        return stop

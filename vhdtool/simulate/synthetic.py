"""Synthetic chains: a base with noise in a share of it, and layers that each write some of that anew.

::

    recipe ──► the guest's writes, layer by layer ──┬──► writer of either format ──► layer000, layer001, ...
               (same arguments, same bytes)         └──► the flat disk: what this point in time must read as

The writes are made before any format is thought of, so a VHD and a VHDX chain of one recipe are the same disk
at every point in time, and a chain of a few layers is the lower end of a chain of many.  Places are drawn
evenly over what the base holds: a hard case, real guests write less scattered.

Random numbers are the raw output of PCG64, which NumPy promises to keep: its other methods may change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID

import numpy as np
import numpy.typing as npt

from vhdtool.chain.chain import DEPTH_MAX
from vhdtool.errors import printable
from vhdtool.formats.image import Sink
from vhdtool.formats.vhd.write import ParentRecord as VhdParent
from vhdtool.formats.vhd.write import VhdWriter
from vhdtool.formats.vhdx.write import ParentRecord as VhdxParent
from vhdtool.formats.vhdx.write import VhdxWriter
from vhdtool.model.identity import DiskType, Identity, ImageFormat, utc_from_2000

Int64s = npt.NDArray[np.int64]

SECTOR_SIZE: Final = 512
GRAIN_MAX: Final = 64 << 10
# Drawing places until more than this share is covered takes ever longer, and tells nothing new.
REWRITE_MAX: Final = 0.9
VIRTUAL_SIZE_MIN: Final = 1 << 20
BLOCK_SIZE: Final = 2 << 20

_STRETCH_MAX: Final = 32 << 20
_RUN_GRAINS_MAX: Final = 16
# They are drawn all at once: some hundred bytes each.
_WRITES_MAX: Final = 1 << 24
_NOISE_BYTES: Final = 1 << 20
_PAGE: Final = 4096


class Output(Sink, Protocol):
    """A file in the making, as ``vhdtool.export.containers.target.TargetFile`` is one."""

    @property
    def partial(self) -> Path:
        """Where its bytes are until it has its name."""
        ...

    def finish(self, size: int) -> None:
        """Give the file its size and close it."""
        ...

    def publish(self) -> None:
        """Give it its name."""
        ...


# Begins the file at a path; leaving the context before ``publish`` removes it.
Create = Callable[[Path], AbstractContextManager[Output]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the guest writes.  Sizes are bytes.

    Attributes:
        virtual_size: a multiple of 512, at least 1 MiB.
        layers: images, the base among them.
        fill: share of the disk that the base holds, in stretches of a quarter of the disk or 32 MiB.
        rewrite: share of the base's data that each layer above writes anew, at most ``REWRITE_MAX``; met
            exactly, to the grain.
        grain: every write begins and ends at a multiple of this power of two from a sector to 64 KiB.
        run_length_min, run_length_max: of one write, multiples of ``grain``, drawn evenly; writes of a layer
            that meet become one.  0 is ``grain``, and 16 of them.
        seed: another one makes another disk.

    Raises:
        ValueError: no chain can be like that.
    """

    virtual_size: int
    layers: int
    fill: float = 0.5
    rewrite: float = 0.02
    grain: int = 4096
    run_length_min: int = 0
    run_length_max: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _require(
            self.virtual_size >= VIRTUAL_SIZE_MIN and self.virtual_size % SECTOR_SIZE == 0,
            f"a disk of {self.virtual_size} bytes: whole sectors, 1 MiB at least",
        )
        _require(
            1 <= self.layers <= DEPTH_MAX,
            f"{self.layers} layers: a chain has 1 to {DEPTH_MAX}, base included",
        )
        _require(0 < self.fill <= 1, f"{self.fill} of the disk filled: more than 0, 1 at most")
        _require(
            0 <= self.rewrite <= REWRITE_MAX,
            f"a share of {self.rewrite} written anew by each layer: 0 to {REWRITE_MAX}",
        )
        _require(
            SECTOR_SIZE <= self.grain <= GRAIN_MAX and self.grain & (self.grain - 1) == 0,
            f"a grain of {self.grain} bytes: a power of two from {SECTOR_SIZE} to {GRAIN_MAX}",
        )
        _require(self.seed >= 0, f"seed {self.seed}: 0 or more")
        low, high = self.run_lengths
        _require(
            0 < low <= high and low % self.grain == 0 and high % self.grain == 0,
            f"writes of {low} to {high} bytes: multiples of the grain, {self.grain} bytes",
        )
        _require(
            self.rewritten // low <= _WRITES_MAX,
            f"{self.rewritten} bytes in writes of {low} or more: {_WRITES_MAX} writes a layer at most",
        )

    @property
    def run_lengths(self) -> tuple[int, int]:
        """Bytes of the shortest and of the longest write."""
        low = self.run_length_min or self.grain
        return low, self.run_length_max or max(low, _RUN_GRAINS_MAX * self.grain)

    @property
    def stretch(self) -> int:
        """Bytes that the base holds all of or nothing of: a power of two."""
        return min(_STRETCH_MAX, 1 << (self.virtual_size // 4).bit_length() - 1)

    @property
    def allocated(self) -> int:
        """Bytes of the disk that the base holds."""
        return self.stretch * self._filled

    @property
    def rewritten(self) -> int:
        """Bytes that each layer above the base writes."""
        return round(self.rewrite * (self.allocated // self.grain)) * self.grain

    @property
    def _filled(self) -> int:
        return max(1, round(self.fill * (self.virtual_size // self.stretch)))

    def stretches(self) -> Int64s:
        """int64[k], ascending: guest bytes where the base's stretches begin."""
        chances = _raw(self.seed, 0).random_raw(self.virtual_size // self.stretch)
        return np.sort(np.argsort(chances, kind="stable")[: self._filled]) * self.stretch

    def guest_offsets(self, places: Int64s) -> Int64s:
        """Where in the disk bytes of the base's data are, counted as if there were no holes."""
        stretches = self.stretches()
        return stretches[places // self.stretch] + places % self.stretch

    def draws(self, stream: int, count: int, stop: int) -> Int64s:
        """``count`` numbers from 0 to ``stop - 1``, drawn for other purposes; each ``stream`` has its own."""
        return _below(_raw(self.seed, 3, stream), count, stop)

    def writes(self, layer: int) -> tuple[Int64s, Int64s]:
        """Starts and stops of what ``layer`` writes, counted from the base, which is 0.

        Returns:
            int64[n] each, guest bytes, ascending and apart; none crosses the end of a stretch.
        """
        if layer == 0:
            starts = self.stretches()
            return starts, starts + self.stretch
        first, last = _split(*self._drawn(layer), self.stretch)
        starts = self.guest_offsets(first)
        return starts, starts + (last - first)

    def _drawn(self, layer: int) -> tuple[Int64s, Int64s]:
        """Writes in the base's data as if there were no holes, drawn until the share is met."""
        bits = _raw(self.seed, 1, layer)
        low, high = (length // self.grain for length in self.run_lengths)
        grains, target = self.allocated // self.grain, self.rewritten // self.grain
        starts = stops = np.empty(0, np.int64)
        while (missing := target - int((stops - starts).sum())) > 0:
            count = 2 * missing // (low + high) + 1
            first = _below(bits, count, grains)
            length = low + _below(bits, count, high - low + 1)
            # No more than is missing: so the share is never passed, and met by what did not overlap.
            length = np.minimum(length, missing - np.minimum(missing, np.cumsum(length) - length))
            last = np.minimum(first + length, grains)
            starts, stops = _united(np.concatenate((starts, first)), np.concatenate((stops, last)))
        return starts * self.grain, stops * self.grain


@dataclass(frozen=True, slots=True)
class Layout:
    """How a chain keeps what the guest writes.

    Attributes:
        base_block_size: bytes; None is what Windows takes (VHD 2 MiB, VHDX 32 MiB), less for small disks.
        block_size: bytes, of the layers above.
    """

    format: ImageFormat
    base_block_size: int | None = None
    block_size: int = BLOCK_SIZE

    def block_size_of(self, layer: int, recipe: Recipe) -> int:
        """Bytes; ``layer`` is counted from the base."""
        if layer:
            return self.block_size
        usual = _STRETCH_MAX if self.format is ImageFormat.VHDX else BLOCK_SIZE
        return self.base_block_size or max(1 << 20, min(usual, recipe.stretch))


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes that a chain takes: with holes kept as holes, and without."""

    sparse: int
    full: int


def layer_name(layer: int, image_format: ImageFormat) -> str:
    """The file name of ``layer``, counted from the base."""
    return f"layer{layer:03d}.{'a' if layer else ''}{image_format}"


def layer_writer(
    sink: Sink, layer: int, image_format: ImageFormat, virtual_size: int, block_size: int
) -> VhdWriter | VhdxWriter:
    """A writer for ``layer``, counted from the base, of a chain whose layers lie in one folder.

    Raises:
        ValueError: the format cannot do that.
    """
    mine, parents = (Identity.of_uuid(UUID(int=(1 << 64) + i)) for i in (layer, layer - 1))
    parent = f".\\{layer_name(layer - 1, image_format)}"
    kind = DiskType.DIFFERENCING if layer else DiskType.DYNAMIC
    if image_format is ImageFormat.VHDX:
        return VhdxWriter(
            sink,
            virtual_size=virtual_size,
            block_size=block_size,
            disk_type=kind,
            disk_id=Identity.of_uuid(UUID(int=1 << 65)),
            write_id=mine,
            parent=VhdxParent(parents, parent, "") if layer else None,
        )
    return VhdWriter(
        sink,
        virtual_size=virtual_size,
        block_size=block_size,
        disk_type=kind,
        unique_id=mine,
        timestamp=utc_from_2000(layer),
        parent=VhdParent(parents, "", parent) if layer else None,
    )


def make_chain(
    folder: Path,
    recipe: Recipe,
    layout: Layout,
    create: Create,
    *,
    flat: Sink | None = None,
    payload: bool = True,
) -> Iterator[Path]:
    """Make the layers of a chain in ``folder``, from the base on.

    Args:
        create: begins a file, see ``Create``.
        flat: also gets the guest's writes: whenever a layer's path comes, it reads as that point in time.
        payload: False leaves data out: tables and bitmaps are the same, and what the guest wrote is holes.

    Yields:
        The path of each layer, once it is whole.

    Raises:
        ValueError: the format cannot do that.
        ExportError: a file is there already, or cannot be written.
    """
    for layer in range(recipe.layers):
        path = folder / layer_name(layer, layout.format)
        with create(path) as output:
            block_size = layout.block_size_of(layer, recipe)
            writer = layer_writer(output, layer, layout.format, recipe.virtual_size, block_size)
            writes = recipe.writes(layer)
            places = _place_blocks(writer, writes, block_size, is_partial=layer > 0)
            noise = _noise(writes, _raw(recipe.seed, 2, layer)) if payload else ()
            for offset, data in noise:
                if flat is not None:
                    flat.write_at(offset, data)
                _write_blocks(output, places, block_size, offset, data)
            output.finish(writer.finish())
            output.publish()
        yield path


def require_possible(recipe: Recipe, layout: Layout) -> None:
    """Refuse what a format cannot hold, before anything is made.

    Raises:
        ValueError: it cannot.
    """
    for layer in {0, recipe.layers - 1}:
        block_size = layout.block_size_of(layer, recipe)
        layer_writer(_Nowhere(), layer, layout.format, recipe.virtual_size, block_size)


class _Nowhere:
    """A sink for nothing."""

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Forget it."""


def space_needed(recipe: Recipe, layout: Layout) -> Space:
    """At most what a chain takes in its folder; its flat disk takes ``recipe.allocated`` more."""
    entry_bytes = 4 if layout.format is ImageFormat.VHD else 8
    # Headers, log and metadata of a VHDX lie in MiB of their own, as do bitmaps, for 4 GiB of disk each.
    regions = (6 << 20) + (recipe.virtual_size >> 32 << 20)
    writes = 2 * recipe.rewritten // sum(recipe.run_lengths) + 1
    sparse = full = 0
    for layer in range(recipe.layers):
        block_size = layout.block_size_of(layer, recipe)
        blocks = -(-recipe.allocated // block_size)
        touched = min(blocks, 2 * writes) if layer else blocks
        # A bitmap takes one page or two, and a write that is no whole number of pages up to two more.
        pages = touched + (writes if layer and recipe.grain < _PAGE else 0)
        table = entry_bytes * -(-recipe.virtual_size // block_size)
        sparse += (recipe.rewritten if layer else recipe.allocated) + 2 * _PAGE * pages + table + (1 << 20)
        full += touched * (block_size + 2 * _PAGE) + table + regions
    return Space(sparse, max(full, sparse))


# ------------------------------------------------------------ the guest's writes


def _require(fulfilled: bool, what: str) -> None:
    if not fulfilled:
        raise ValueError(printable(what))


def _raw(seed: int, *key: int) -> np.random.PCG64:
    """A stream of random numbers of its own for each ``key``."""
    return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key))


def _below(bits: np.random.PCG64, count: int, stop: int) -> Int64s:
    """``count`` numbers from 0 to ``stop - 1``."""
    drawn: npt.NDArray[np.uint64] = bits.random_raw(count)
    return (drawn % np.uint64(stop)).astype(np.int64)


def _united(starts: Int64s, stops: Int64s) -> tuple[Int64s, Int64s]:
    """Ranges in order, those that overlap or meet as one; empty ones vanish."""
    order = np.argsort(starts, kind="stable")
    order = order[stops[order] > starts[order]]
    starts, stops = starts[order], np.maximum.accumulate(stops[order])
    first = np.flatnonzero(np.append(True, starts[1:] > stops[:-1])[: len(starts)])
    return starts[first], stops[np.append(first[1:], len(starts))[: len(first)] - 1]


def _split(starts: Int64s, stops: Int64s, size: int) -> tuple[Int64s, Int64s]:
    """Ranges cut at the multiples of ``size``."""
    first = starts // size
    counts = (stops - 1) // size - first + 1
    of = np.repeat(np.arange(len(starts)), counts)
    cell = first[of] + np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.maximum(starts[of], cell * size), np.minimum(stops[of], (cell + 1) * size)


def _noise(writes: tuple[Int64s, Int64s], bits: np.random.PCG64) -> Iterator[tuple[int, memoryview]]:
    """The guest's writes in pieces: an offset, and noise."""
    noise = memoryview(b"")
    for start, stop in zip(writes[0].tolist(), writes[1].tolist()):
        for offset in range(start, stop, _NOISE_BYTES):
            length = min(_NOISE_BYTES, stop - offset)
            if len(noise) < length:
                words: npt.NDArray[np.uint64] = bits.random_raw(_NOISE_BYTES // 8)
                noise = memoryview(words.astype("<u8", copy=False).view(np.uint8).data)
            yield offset, noise[:length]
            noise = noise[length:]


# ------------------------------------------------------------ the images


def _place_blocks(
    writer: VhdWriter | VhdxWriter, writes: tuple[Int64s, Int64s], block_size: int, *, is_partial: bool
) -> dict[int, int]:
    """Make room for every block that is written to; the file offsets of their data.

    A block is there as a whole, with zeros where nothing is written, unless ``is_partial``.
    """
    starts, stops = _split(*writes, block_size)
    blocks = starts // block_size
    edges = [*np.flatnonzero(np.diff(blocks, prepend=-1)).tolist(), len(blocks)]
    sectors = ((starts % block_size) // SECTOR_SIZE).tolist()
    counts = ((stops - starts) // SECTOR_SIZE).tolist()
    places = {}
    for first, last in pairwise(edges):
        block = int(blocks[first])
        runs = zip(sectors[first:last], counts[first:last])
        places[block] = writer.place_block(block, _bitmap(runs, block_size) if is_partial else None)
    return places


def _bitmap(runs: Iterable[tuple[int, int]], block_size: int) -> bytes:
    """The bitmap with ``runs`` set, each a first sector and a count."""
    bits = 0
    for first, count in runs:
        bits |= ((1 << count) - 1) << first
    return bits.to_bytes(-(-block_size // SECTOR_SIZE // 8), "little")


def _write_blocks(sink: Sink, places: dict[int, int], block_size: int, offset: int, data: memoryview) -> None:
    """Put guest bytes from ``offset`` on where their blocks are."""
    while len(data):
        block, within = divmod(offset, block_size)
        count = min(len(data), block_size - within)
        sink.write_at(places[block] + within, data[:count])
        data = data[count:]
        offset += count

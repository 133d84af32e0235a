"""Images in memory with any block states, and the disk that their chain must show, sector by sector."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from vhdtool.chain.chain import Chain, FoundBy, Layer, LinkVerdict
from vhdtool.errors import Finding, Severity
from vhdtool.formats.image import BitmapPlaces, Section
from vhdtool.formats.probe import BAT, BITMAP, Look, Outcome, look_at_payload
from vhdtool.model.blockmap import BlockMap, StoredBlocks, pack
from vhdtool.model.geometry import Geometry
from vhdtool.model.identity import DiskType, Identity, ImageFormat, ParentLink
from vhdtool.model.state import BlockCounts, BlockState, LogState
from vhdtool.source import MemorySource


@dataclass(eq=False)
class FakeImage:
    """An image whose blocks are said outright: ``states[b]``, ``sectors_here[b]`` for PARTIAL ones."""

    geometry: Geometry
    states: list[BlockState]
    sectors_here: dict[int, list[bool]]
    seed: int = 0
    format: ImageFormat = ImageFormat.VHDX
    type: DiskType = DiskType.DIFFERENCING
    disk_id: Identity | None = None
    write_id: Identity | None = None
    parent: ParentLink | None = None
    creator: str = "fake"
    created: datetime | None = None
    log: LogState = field(default_factory=LogState)
    sections: tuple[Section, ...] = ()
    findings: tuple[Finding, ...] = ()

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        # Blocks stand in the file in a shuffled order, with gaps.
        order = rng.permutation(len(self.states))
        self.places = {int(b): 512 + int(i) * (self.geometry.block_size + 512) for i, b in enumerate(order)}
        size = 512 + len(self.states) * (self.geometry.block_size + 512)
        self.data = rng.integers(1, 256, size, np.uint8).tobytes()
        self.source = MemorySource(f"fake-{self.seed}", self.data)

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)

    def counts(self) -> BlockCounts:
        return BlockCounts(len(self.states))

    def entry(self, block: int) -> tuple[BlockState, int]:
        state = self.states[block]
        return state, self.places[block] if state in (BlockState.DATA, BlockState.PARTIAL) else 0

    def bitmap(self, block: int) -> bytes:
        bits = np.zeros(-(-self.geometry.sectors_per_block // 8) * 8, np.uint8)
        here = self.sectors_here[block]
        bits[: len(here)] = here
        return np.packbits(bits, bitorder="little").tobytes()

    def probe(self, offset: int) -> tuple[Look, ...]:
        block, within = divmod(offset, self.geometry.block_size)
        sector = within // self.geometry.sector_size
        state = self.states[block]
        outcome = {
            BlockState.ABSENT: Outcome.PARENT,
            BlockState.ZERO: Outcome.ZEROS,
            BlockState.DAMAGED: Outcome.DAMAGED,
        }.get(state, Outcome.NEXT)
        looks = [Look(structure=BAT, index=block, state=state.name, outcome=outcome, note="")]
        if state is BlockState.PARTIAL:
            outcome = Outcome.NEXT if self.sectors_here[block][sector] else Outcome.PARENT
            looks.append(Look(structure=BITMAP, index=sector, outcome=outcome, note=""))
        if outcome is Outcome.NEXT:
            place = self.places[block] + within
            looks.append(look_at_payload(self.source, sector, place, self.geometry.sector_size))
        return tuple(looks)

    def survey(self) -> None:
        pass

    def block_map(self, start: int, stop: int) -> BlockMap:
        pairs = [self.entry(block) for block in range(start, stop)]
        states = np.array([state for state, _ in pairs], np.int64)
        return BlockMap(start, pack(states, np.array([place for _, place in pairs], np.int64)))

    def stored(self, start: int, stop: int) -> StoredBlocks:
        entry = self.block_map(start, stop).entry
        there = np.flatnonzero(entry)
        return StoredBlocks(there + start, entry[there])

    def bitmap_places(
        self, first_sectors: npt.NDArray[np.int64], file_offsets: npt.NDArray[np.int64]
    ) -> BitmapPlaces | None:
        return None

    def next_stored(self, block: int) -> int:
        return next((b for b in range(block, len(self.states)) if self.states[b]), len(self.states))

    def bitmaps(self, first_sectors: npt.NDArray[np.int64], sector_count: int) -> npt.NDArray[np.uint8]:
        rows = []
        for sector in first_sectors.tolist():
            block, within = divmod(sector, self.geometry.sectors_per_block)
            bits = np.unpackbits(np.frombuffer(self.bitmap(block), np.uint8), bitorder="little")
            rows.append(np.packbits(bits[within : within + sector_count], bitorder="little"))
        return np.array(rows, np.uint8)

    def inspect(self, *, deep: bool = False) -> None:
        pass

    def close(self) -> None:
        pass


def chain_of(*images: Any) -> Chain:
    """A chain of these images, leaf first."""
    last = len(images) - 1
    return Chain(
        [
            Layer(
                image,
                Path(image.source.name),
                FoundBy.GIVEN if i == 0 else FoundBy.NAME,
                LinkVerdict.BASE if i == last else LinkVerdict.OK,
            )
            for i, image in enumerate(images)
        ]
    )


def truth(images: list[FakeImage]) -> bytes:
    """The disk of the chain, worked out from the bottom layer upwards, each laid over the one below."""
    disk = b""
    for image in reversed(images):
        size = image.geometry.virtual_size
        below = disk[:size] + bytes(max(0, size - len(disk)))
        layer = bytearray(below)
        sector = image.geometry.sector_size
        for number in range(size // sector):
            block, within = divmod(number, image.geometry.sectors_per_block)
            state, place = image.entry(block)
            at = slice(number * sector, (number + 1) * sector)
            if state is BlockState.ZERO:
                layer[at] = bytes(sector)
            elif state is BlockState.DATA or (
                state is BlockState.PARTIAL and image.sectors_here[block][within]
            ):
                layer[at] = image.data[place + within * sector :][:sector]
        disk = bytes(layer)
    return disk


@st.composite
def fake_images(draw: st.DrawFn, sector_size: int = 512, damaged: bool = False) -> FakeImage:
    """One image: any size, any block size, any states."""
    per_block = 1 << draw(st.integers(0, 6))
    sectors = draw(st.integers(1, 200))
    geometry = Geometry(sectors * sector_size, per_block * sector_size, sector_size)
    choices = [BlockState.ABSENT, BlockState.ZERO, BlockState.DATA, BlockState.PARTIAL]
    if damaged:
        choices.append(BlockState.DAMAGED)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = rng.dirichlet(np.ones(len(choices)))
    states = [choices[i] for i in rng.choice(len(choices), geometry.block_count, p=weights).tolist()]
    density = rng.random()
    here: dict[int, list[bool]] = {}
    for block, state in enumerate(states):
        if state is BlockState.PARTIAL:
            bits = rng.random(per_block) < density
            # As formats give them: nothing is set beyond the disk's end.
            bits[max(0, sectors - block * per_block) :] = False
            here[block] = bits.tolist()
    return FakeImage(geometry, states, here, seed=int(rng.integers(2**31)))


def fake_chains(damaged: bool = False) -> st.SearchStrategy[list[FakeImage]]:
    """Chains of one to six images of any sizes with one sector size."""
    return st.sampled_from([512, 4096]).flatmap(
        lambda size: st.lists(fake_images(size, damaged=damaged), min_size=1, max_size=6)
    )

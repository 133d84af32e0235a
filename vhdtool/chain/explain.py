"""Explain: the walk of one sector down the layers, step by step, in the words of the specifications.

What ``walk`` does for an answer is done here for the way to it: each layer's image is probed for what it
looks at, and the first layer whose last look does not point to its parent settles the sector::

    layer 0   BAT 5 ──► bitmap's BAT 2048 ──► bit 0   look in the parent
    layer 1   BAT 5 ──► payload                       here

A broken place is explained like any other: the steps end at what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vhdtool.errors import Finding, Severity
from vhdtool.formats.probe import BAT, IN_LOG, PAYLOAD, Look, Outcome
from vhdtool.source import JoinedSource

if TYPE_CHECKING:
    from vhdtool.chain.chain import Chain, Layer

# What is looked at before any table where a layer's disk may be too small.
VIRTUAL_DISK_SIZE: Final = "virtual disk size"
# How findings call the two entries of blocks that overlap: of a VHD, and of a VHDX.
_ENTRIES: Final = re.compile(r"blocks ([0-9]+) and ([0-9]+)|BAT\[([0-9]+)\].* and BAT\[([0-9]+)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Look):
    """One look of the walk, and whose file it looks at; ``layer`` 0 is the leaf."""

    layer: int
    path: Path


@dataclass(frozen=True, slots=True)
class Result:
    """What the walk came to.

    Attributes:
        layer, path: the layer that settled it: with its bytes, with zeros, or with a broken rule.
        file_offset: where the bytes stand in that file; of a split VHD, in all its pieces together.  None
            for zeros, for what is damaged, and where the bytes stand in a replayed log instead.
        zero: the sector is zeros that no layer stores.
        damaged: the sector cannot be read, as the last step says.
        in_log: its bytes stand in a log that was replayed in memory; the step before the last says where.
        part, part_offset: of a split VHD the piece that the bytes stand in, and where; else None.
    """

    layer: int
    path: Path
    file_offset: int | None
    zero: bool
    damaged: bool
    in_log: bool
    part: Path | None = None
    part_offset: int | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """How one sector of a chain is read.

    Attributes:
        offset: the guest byte that was asked about.
        sector: the logical sector that it lies in.
        sector_size: bytes.
        steps: in the order of the walk; at least one.
        data: the sector's bytes; None where they cannot be read.
        findings: warnings and errors about the BAT entries that the steps looked at.
    """

    offset: int
    sector: int
    sector_size: int
    steps: tuple[Step, ...]
    result: Result
    data: bytes | None
    findings: tuple[Finding, ...]

    @property
    def start(self) -> int:
        """The guest byte that the sector begins at."""
        return self.sector * self.sector_size


def explain(chain: Chain, offset: int) -> Explanation:
    """The walk of the sector that holds guest byte ``offset``, and its bytes.

    Raises:
        ValueError: the offset is outside of the disk.
        FormatError, ChainError: an error that concerns more than single blocks.
        ReadError: the operating system could not read.
    """
    if not 0 <= offset < chain.virtual_size:
        raise ValueError(f"offset {offset} is not inside the disk of {chain.virtual_size} bytes")
    chain.require_sound(allow_damaged=True)
    sector = offset // chain.sector_size
    steps = tuple(_walk(chain.layers, sector * chain.sector_size))
    result = _result(chain, steps[-1])
    return Explanation(
        offset,
        sector,
        chain.sector_size,
        steps,
        result,
        _data(chain, steps[-1], result),
        tuple(_findings(chain, steps)),
    )


def _walk(layers: Sequence[Layer], start: int) -> Iterator[Step]:
    """The steps for the sector at guest byte ``start``; the last one settles it."""
    for depth, layer in enumerate(layers):
        size = layer.image.geometry.virtual_size
        looks = layer.image.probe(start) if start < size else (_look_past_the_end(size),)
        for look in looks:
            values = {column.name: getattr(look, column.name) for column in fields(look)}
            yield Step(layer=depth, path=layer.path, **values)
        if looks[-1].outcome is not Outcome.PARENT:
            return


def _look_past_the_end(size: int) -> Look:
    return Look(
        structure=VIRTUAL_DISK_SIZE,
        value=size,
        state="smaller than its child",
        outcome=Outcome.ZEROS,
        note="past the end of this disk every layer below reads zeros",
    )


def _result(chain: Chain, last: Step) -> Result:
    source = chain.layers[last.layer].image.source
    in_log = last.state == IN_LOG
    place = None if last.structure != PAYLOAD or in_log else last.file_offset
    part = part_offset = None
    if isinstance(source, JoinedSource) and place is not None and place < source.size:
        piece, part_offset = source.place(place)
        part = piece.path
    return Result(
        last.layer,
        last.path,
        place,
        # A chain put together by hand may end in a layer that points further down: nothing is zeros.
        zero=last.outcome in (Outcome.ZEROS, Outcome.PARENT),
        damaged=last.outcome is Outcome.DAMAGED,
        in_log=in_log,
        part=part,
        part_offset=part_offset,
    )


def _data(chain: Chain, last: Step, result: Result) -> bytes | None:
    if result.damaged:
        return None
    if result.zero:
        return bytes(chain.sector_size)
    assert last.file_offset is not None
    source = chain.layers[last.layer].image.source
    return source.read_exact(last.file_offset, chain.sector_size, field="payload")


def _findings(chain: Chain, steps: Sequence[Step]) -> list[Finding]:
    """What the surveys have against the entries that were looked at.

    Of a rule that is broken often only the first few places are kept; the steps say it each time.
    """
    return [
        finding
        for step in steps
        if step.structure == BAT and step.file_offset is not None
        for finding in chain.layers[step.layer].image.findings
        if finding.severity is not Severity.INFO
        and (finding.location.offset == step.file_offset or _crosses(finding, step))
    ]


def _crosses(finding: Finding, step: Step) -> bool:
    """Whether ``finding``, which stands at one of two entries, is that the blocks of both overlap."""
    if not finding.code.endswith(".cross") or step.outcome is not Outcome.DAMAGED:
        return False
    entries = [number for pair in _ENTRIES.findall(f"{finding.what} {finding.found}") for number in pair]
    return not entries or str(step.index) in entries

"""Block states, apart from the arrays that hold them: looking at headers needs no NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

STATE_BITS: Final = 3

# Origins of a run that no layer holds: it reads as zeros, or cannot be read.
ZEROS: Final = -1
DAMAGED: Final = -2
# Zeros because no layer says anything: below the last layer a parent could still hold the run.
UNHELD: Final = -3


class BlockState(IntEnum):
    """What a block holds in one layer.

    ABSENT: nothing, look in the layer below.  ZERO: zeros, whatever is below.  DATA: all of it.
    PARTIAL: the sectors whose bitmap bit is set; the rest is below.  DAMAGED: its table entry breaks a
    rule, so nobody can say.
    """

    ABSENT = 0
    ZERO = 1
    DATA = 2
    PARTIAL = 3
    DAMAGED = 4


assert max(BlockState) < 1 << STATE_BITS


class Run(NamedTuple):
    """Guest bytes [offset, offset + length) with one origin.

    ``layer`` 0 is the leaf; it may be ``ZEROS`` or ``DAMAGED``, and ``file_offset`` is -1 then.
    """

    offset: int
    length: int
    layer: int
    file_offset: int


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """How many blocks of an image are in which state; ``total`` is 0 for images without a table."""

    total: int = 0
    data: int = 0
    partial: int = 0
    zero: int = 0
    absent: int = 0


@dataclass(frozen=True, slots=True)
class LogState:
    """The state of a VHDX log: "none" where the format has none, else "clean" or "pending".

    ``entries``, ``patched_bytes``: how much of a pending log was replayed in memory (0 when it was left
    out on request, as ``replayed`` says).
    """

    state: str = "none"
    entries: int = 0
    patched_bytes: int = 0
    replayed: bool = False

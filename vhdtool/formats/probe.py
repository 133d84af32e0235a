"""What a walk looks at in one image on its way to one sector, one look after the other, for people.

::

    BAT entry ──► bitmap's BAT entry ──► bit of the sector bitmap ──► payload
      each of them may stand in a pending log instead of the file: a look of its own, in front of it

Walks that only want the answer ask for ``DiskImage.entry`` and ``bitmap``; a probe says where the answer
comes from, also where it is that something is broken.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from vhdtool.source import ByteSource

# What can be looked at, in the specifications' words.
BAT: Final = "BAT"
BITMAP: Final = "sector bitmap"
PAYLOAD: Final = "payload"
LOG_OVERRIDE: Final = "log override"

# States of payload.
IN_FILE: Final = "in the file"
IN_LOG: Final = "in the log"
CUT_OFF: Final = "beyond the end of the file"


class Outcome(StrEnum):
    """What a look leads to.

    NEXT: another look in the same layer.  PARENT: the same sector one layer below.  HERE: the sector's
    bytes.  ZEROS: zeros, whatever is below.  DAMAGED: a rule is broken, so nobody can say.
    """

    NEXT = "next"
    PARENT = "parent"
    HERE = "here"
    ZEROS = "zeros"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at one place of one image.

    Attributes:
        structure: what was looked at: ``BAT``, ``BITMAP``, ``PAYLOAD``, ``LOG_OVERRIDE`` above.
        index: which one: the entry of the BAT, the bit of the bitmap (counted in sectors), the sector of
            the block, the SequenceNumber of the log entry; None where there is nothing to count.
        file_offset: where it stands, bytes from the file's start; None where it stands nowhere.
        value: as it was read; of a bitmap the byte that holds the bit.
        mask: of a bitmap, which bit of that byte it is; else None.
        state: of the value by the specification's name.
        outcome: what it leads to.
        note: the same in words, and for DAMAGED the reason.
    """

    structure: str
    index: int | None = None
    file_offset: int | None = None
    value: int | None = None
    mask: int | None = None
    state: str = ""
    outcome: Outcome
    note: str


def look_at_payload(
    source: ByteSource, index: int, file_offset: int, length: int, *, is_in_log: bool = False, note: str = ""
) -> Look:
    """The last look: sector ``index`` of its block, ``length`` bytes at ``file_offset``.

    DAMAGED where the file ends before them.
    """
    if file_offset + length > source.size:
        state, outcome = CUT_OFF, Outcome.DAMAGED
        note = f"the file ends at {source.size:#x} and cuts the block off"
    else:
        state, outcome = IN_LOG if is_in_log else IN_FILE, Outcome.HERE
        note = note or "the sector's bytes"
    return Look(
        structure=PAYLOAD, index=index, file_offset=file_offset, state=state, outcome=outcome, note=note
    )

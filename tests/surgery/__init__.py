"""The surgery kit: opens a sound image, changes one field by its specified name, and sews it up again.

::

    healthy.a_vhd() / a_vhdx() ──► Patient ──► VhdSurgeon / VhdxSurgeon ──► save() or as a ByteSource
         a sound image         sparse bytes      fields by name, checksums repaired on ``close_up``

Everything here is written from the format digests alone and shares no code with ``vhdtool.formats``: it
is to judge it.
"""

from tests.surgery.healthy import (
    CHILD_GUID,
    PARENT_GUID,
    a_child_vhd,
    a_child_vhdx,
    a_vhd,
    a_vhdx,
    filling,
)
from tests.surgery.patient import Patient, PatientSource, Record
from tests.surgery.vhd import VhdSurgeon
from tests.surgery.vhdx import VhdxSurgeon

__all__ = [
    "CHILD_GUID",
    "PARENT_GUID",
    "Patient",
    "PatientSource",
    "Record",
    "VhdSurgeon",
    "VhdxSurgeon",
    "a_child_vhd",
    "a_child_vhdx",
    "a_vhd",
    "a_vhdx",
    "filling",
]

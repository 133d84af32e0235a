"""Positioned reads in bulk: a system call each and nothing else, without the GIL.

Needs ``pread`` with 64-bit offsets among the symbols of the process: POSIX systems of 64 bits.

Raises on import:
    ImportError: there is none.
"""

from __future__ import annotations

import sys
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import numpy.typing as npt
from numba import types

from vhdtool.kernels.compiled import kernel

if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
    raise ImportError("only compiled kernels can call pread")
if sys.maxsize < 1 << 32 or llvmlite.binding.address_of_symbol("pread") is None:
    raise ImportError("this platform has no pread that kernels could call")

# Addresses pass as integers.  An external function, unlike a pointer from ctypes, can be cached.
pread: Any = types.ExternalFunction("pread", types.intp(types.int32, types.intp, types.uintp, types.int64))

NO_FILE = -1
ZERO_FILL = -2


@kernel
def read_pieces(
    descriptors: npt.NDArray[np.int32],
    places: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    out: npt.NDArray[np.uint8],
    done: npt.NDArray[np.bool_],
) -> None:
    """Read pieces of files to their places in a buffer.

    Args:
        descriptors: int32[n], open files; ``ZERO_FILL`` writes zeros, ``NO_FILE`` leaves the piece undone.
        places, counts: int64[n], file offset and length in bytes.
        starts: int64[n], where in ``out`` each piece begins; inside it with its length.
        out: uint8[m], C-contiguous.
        done: bool[n], filled: whether all of the piece was read; if not, what it holds means nothing.
    """
    for i in range(len(places)):
        descriptor = descriptors[i]
        count = counts[i]
        if descriptor == ZERO_FILL:
            out[starts[i] : starts[i] + count] = 0
            done[i] = True
        elif descriptor == NO_FILE:
            done[i] = False
        else:
            done[i] = pread(descriptor, out.ctypes.data + np.uint64(starts[i]), count, places[i]) == count

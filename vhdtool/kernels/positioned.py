"""Positioned reads in bulk: system calls and nothing else, without the GIL.

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
# Kinds of runs, and of spans; of model/state.py and export/moving/spans.py.
DATA = np.int64(0)
ZEROS = -1
DAMAGED = -2


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


@kernel
def gather(
    lengths: npt.NDArray[np.int64],
    layers: npt.NDArray[np.int16],
    places: npt.NDArray[np.int64],
    descriptors: npt.NDArray[np.int32],
    state: npt.NDArray[np.int64],
    full: int,
    stop: int,
    small: int,
    out: npt.NDArray[np.uint8],
    spans: npt.NDArray[np.int64],
) -> None:
    """Read runs until the buffer is full, the disk's byte ``stop`` is reached, or one cannot be read here.

    Args:
        lengths, layers, places: int64[n], int16[n], int64[n], of the runs; as in a plan.
        descriptors: int32[layers], open files; negative for what is none.
        state: int64[6], changed: the run at hand, how much of it is done, bytes in the buffer, the disk's
            byte that comes next, spans, bytes read from files.  A run that is not done in the end, with room
            left for it, is the caller's: damaged, of no plain file, or its reading failed.
        full: bytes that the buffer is filled up to.
        stop: byte of the disk up to which is read.
        small: zeros of fewer bytes are put into the buffer like data.
        out: uint8[m], the buffer; ``m >= full``.
        spans: int64[s, 3], changed: kind, length, place in the buffer.
    """
    row, within, filled, position, count = state[0], state[1], state[2], state[3], state[4]
    read = state[5]
    while row < len(lengths) and position < stop and count < len(spans):
        layer = layers[row]
        length = min(lengths[row] - within, stop - position)
        kind = np.int64(layer)
        at = filled
        if layer >= 0:
            length = min(length, full - filled)
            descriptor = descriptors[layer]
            if descriptor < 0 or length == 0:
                break
            address = out.ctypes.data + np.uint64(filled)
            if pread(descriptor, address, length, places[row] + within) != length:
                break
            kind = DATA
            read += length
        elif layer == ZEROS and lengths[row] < small:
            length = min(length, full - filled)
            if length == 0:
                break
            out[filled : filled + length] = 0
            kind = DATA
        elif layer == DAMAGED:
            break
        if kind == DATA:
            filled += length
        if count > 0 and spans[count - 1, 0] == kind:
            spans[count - 1, 1] += length
        else:
            spans[count, 0], spans[count, 1], spans[count, 2] = kind, length, at
            count += 1
        position += length
        within += length
        if within == lengths[row]:
            row += 1
            within = 0
    state[0], state[1], state[2], state[3], state[4] = row, within, filled, position, count
    state[5] = read


@kernel
def all_zeros(data: npt.NDArray[np.uint8], words: npt.NDArray[np.uint64], start: int, stop: int) -> bool:
    """Whether bytes [start, stop) of ``data`` are zeros; ``words`` is the same as uint64."""
    first, last = -(-start // 8), stop // 8
    if first >= last:
        first = last = 0
        middle = stop
    else:
        middle = first * 8
    for byte in range(start, middle):
        if data[byte] != 0:
            return False
    for word in range(first, last):
        if words[word] != 0:
            return False
    # A generator is nothing that numba knows.
    for byte in range(max(middle, last * 8), stop):  # noqa: SIM110
        if data[byte] != 0:
            return False
    return True


@kernel
def zeros_found(
    spans: npt.NDArray[np.int64],
    count: int,
    position: int,
    cell_size: int,
    data: npt.NDArray[np.uint8],
    words: npt.NDArray[np.uint64],
    out: npt.NDArray[np.int64],
) -> int:
    """Spans with zeros among their data found, cell by cell.

    Args:
        spans: int64[s, 3], kind, length, place in the buffer; ``count`` of them.
        position: the disk's byte that they begin with; cells are aligned in the disk.
        data: uint8[m], the buffer; ``words`` is the same as uint64[m / 8].
        out: int64[t, 3], filled alike; t at least ``2 * count`` and the cells that the spans touch.

    Returns:
        How many there are now.
    """
    found = 0
    for i in range(count):
        kind, left, at = spans[i, 0], spans[i, 1], spans[i, 2]
        while left > 0:
            length = left
            here = kind
            if kind == DATA:
                length = min(left, cell_size - position % cell_size)
                if all_zeros(data, words, at, at + length):
                    here = np.int64(ZEROS)
            if found > 0 and out[found - 1, 0] == here:
                out[found - 1, 1] += length
            else:
                out[found, 0], out[found, 1], out[found, 2] = here, length, at
                found += 1
            position += length
            at += length
            left -= length
    return found

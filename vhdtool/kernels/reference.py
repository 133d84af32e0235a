"""NumPy twins of the numba kernels: the engine of short-lived commands, and the judge of the kernels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_POPCOUNT = np.array([bin(value).count("1") for value in range(256)], np.uint8)


def claim(bits: npt.NDArray[np.uint8], group_first: npt.NDArray[np.int64]) -> None:
    """Leave every bit in the first row of its group that has it; see :func:`vhdtool.kernels.bitmap.claim`."""
    row_count, width = bits.shape
    words = bits.view(np.uint64) if width % 8 == 0 and bits.flags.c_contiguous else bits
    sizes = np.diff(group_first)
    taken = np.zeros((len(sizes), words.shape[1]), words.dtype)
    group = np.repeat(np.arange(len(sizes)), sizes)
    rank = np.arange(row_count) - group_first[group]
    order = np.argsort(rank, kind="stable")
    edges = np.searchsorted(rank[order], np.arange(int(sizes.max(initial=0)) + 1))
    for first, stop in zip(edges[:-1].tolist(), edges[1:].tolist()):
        rows = order[first:stop]
        groups = group[rows]
        claimed = words[rows] & ~taken[groups]
        words[rows] = claimed
        taken[groups] |= claimed


def transitions(bits: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Where rows of bits change, as bits: one more byte a row than ``bits``, so that every run ends."""
    rows, width = bits.shape
    changes = np.empty((rows, width + 1), np.uint8)
    np.left_shift(bits, 1, out=changes[:, :width])
    changes[:, 1:width] |= bits[:, :-1] >> 7
    changes[:, :width] ^= bits
    changes[:, width] = bits[:, -1] >> 7
    return changes


def count_runs(bits: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Runs of ones in each row; see :func:`vhdtool.kernels.bitmap.count_runs`."""
    changes = transitions(bits)
    at = np.flatnonzero(changes)
    weight = _POPCOUNT[changes.reshape(-1)[at]]
    row = at // changes.shape[1]
    return np.bincount(row, weight, minlength=len(bits)).astype(np.int64) // 2


def find_runs(
    bits: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Runs of ones as rows, starts and stops; see :func:`vhdtool.kernels.bitmap.find_runs`."""
    changes = transitions(bits)
    at = np.flatnonzero(changes)
    set_bits = np.flatnonzero(np.unpackbits(changes.reshape(-1)[at], bitorder="little"))
    position = at[set_bits >> 3] * 8 + (set_bits & 7)
    row, start = np.divmod(position[0::2], changes.shape[1] * 8)
    return row, start, position[1::2] - row * (changes.shape[1] * 8)

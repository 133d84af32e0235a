"""One face for the two engines that claim sectors and split bitmaps into runs.

NumPy is the default: a numba kernel costs about 0.7 s to start in a fresh process, as much as copying
1.7 GiB, and pays that back only above about half a million bitmaps.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from vhdtool.errors import MissingPackageError
from vhdtool.kernels import reference

Engine = Literal["numpy", "numba"]
Int64s = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]


class BitmapEngine(Protocol):
    """What flattening needs of an engine; ``bits`` is uint8[rows, width], C-contiguous."""

    def claim(self, bits: Bits, group_first: Int64s) -> None:
        """Leave every bit in the first row of its group that has it."""
        ...

    def count_runs(self, bits: Bits) -> Int64s:
        """Runs of ones in each row."""
        ...

    def find_runs(self, bits: Bits) -> tuple[Int64s, Int64s, Int64s]:
        """Rows, first bits and ends of all runs of ones, in order."""
        ...


class NumpyEngine:
    """The NumPy twins."""

    claim = staticmethod(reference.claim)
    count_runs = staticmethod(reference.count_runs)
    find_runs = staticmethod(reference.find_runs)


class NumbaEngine:
    """The kernels, with outputs made to measure.

    Raises:
        MissingPackageError: numba is not installed.
    """

    def __init__(self) -> None:
        try:
            from vhdtool.kernels import bitmap
        except ImportError as error:
            raise MissingPackageError("the numba engine needs the package numba") from error
        self._kernels = bitmap

    def claim(self, bits: Bits, group_first: Int64s) -> None:
        """Leave every bit in the first row of its group that has it."""
        self._kernels.claim(bits, group_first)

    def count_runs(self, bits: Bits) -> Int64s:
        """Runs of ones in each row."""
        counts = np.empty(len(bits), np.int64)
        self._kernels.count_runs(bits, counts)
        return counts

    def find_runs(self, bits: Bits) -> tuple[Int64s, Int64s, Int64s]:
        """Rows, first bits and ends of all runs of ones, in order."""
        size = int(self.count_runs(bits).sum())
        rows, starts, stops = (np.empty(size, np.int64) for _ in range(3))
        self._kernels.find_runs(bits, rows, starts, stops)
        return rows, starts, stops


def engine_named(name: Engine) -> BitmapEngine:
    """The engine that ``name`` asks for."""
    return NumbaEngine() if name == "numba" else NumpyEngine()

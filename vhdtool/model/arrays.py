"""What NumPy has, and what it costs a command that has just begun too much to use."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


def distinct(*values: Int64s) -> Int64s:
    """All different ones of ``values``, ascending.

    As ``numpy.unique``, which imports ``numpy.ma`` when it is first called: an eighth of importing NumPy.
    """
    ordered: Int64s = np.sort(np.concatenate(values))
    is_new = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=is_new[1:])
    return ordered[is_new]

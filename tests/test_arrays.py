"""Arrays: ``distinct`` is ``numpy.unique``, without what that imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhdtool.export.containers.target import TargetFile
from vhdtool.model.arrays import distinct
from vhdtool.model.identity import ImageFormat
from vhdtool.simulate.synthetic import Layout, Recipe, make_chain

numbers = st.lists(st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 5))


@given(one=numbers, other=numbers)
def test_distinct_is_what_numpy_calls_unique(one: list[int], other: list[int]) -> None:
    a, b = (np.array(values, np.int64) for values in (one, other))

    assert distinct(a, b).tolist() == sorted({*one, *other})
    assert distinct(a).dtype == np.int64


def test_an_export_imports_no_masked_arrays(tmp_path: Path) -> None:
    """``numpy.unique`` imports them, and takes longer for that than for what it is asked for."""
    *_, leaf = make_chain(tmp_path, Recipe(64 << 20, 3), Layout(ImageFormat.VHDX), TargetFile)
    code = """
import sys, numpy, vhdtool
if "numpy.ma" in sys.modules:
    sys.exit("old versions import it at once")
vhdtool.export_image(sys.argv[1], sys.argv[2])
print("numpy.ma" in sys.modules)
"""
    command = [sys.executable, "-c", code, str(leaf), str(tmp_path / "out.raw")]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    if "at once" in done.stderr:
        pytest.skip("this NumPy imports numpy.ma at once")
    assert done.stdout == "False\n"

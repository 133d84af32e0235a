"""The numba kernels and their NumPy twins give one answer for any bitmaps."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from vhdtool.chain.engine import NumbaEngine, NumpyEngine


@st.composite
def bitmaps(draw: st.DrawFn) -> npt.NDArray[np.uint8]:
    shape = (draw(st.integers(0, 12)), draw(st.integers(1, 24)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    return np.packbits(rng.random((shape[0], shape[1] * 8)) < density, axis=1, bitorder="little")


@given(bits=bitmaps(), data=st.data())
def test_both_engines_claim_alike_and_as_the_definition_says(
    bits: npt.NDArray[np.uint8], data: st.DataObject
) -> None:
    cuts = data.draw(st.sets(st.integers(1, max(1, len(bits) - 1))))
    group_first = np.array(sorted({0, len(bits), *(c for c in cuts if c < len(bits))}), np.int64)
    expected = bits.copy()
    for first, stop in itertools.pairwise(group_first):
        for row in range(first, stop):
            expected[row] = bits[row] & ~np.bitwise_or.reduce(bits[first:row], axis=0, initial=0)

    for engine in (NumpyEngine(), NumbaEngine()):
        mine = bits.copy()
        engine.claim(mine, group_first)
        assert_array_equal(mine, expected)


@given(bits=bitmaps())
def test_both_engines_find_the_runs_that_are_there(bits: npt.NDArray[np.uint8]) -> None:
    expected = []
    for row, line in enumerate(np.unpackbits(bits, axis=1, bitorder="little").tolist()):
        for i, bit in enumerate(line):
            if bit and (i == 0 or not line[i - 1]):
                stop = next((j for j in range(i, len(line)) if not line[j]), len(line))
                expected.append((row, i, stop))

    for engine in (NumpyEngine(), NumbaEngine()):
        found = engine.find_runs(bits)
        assert list(zip(*(column.tolist() for column in found))) == expected
        assert engine.count_runs(bits).sum() == len(expected)

"""The numba kernels and their NumPy twins give one answer for any bitmaps."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhdtool.chain.engine import Engine, machine_for
from vhdtool.kernels import reference

ENGINES: list[Engine] = ["numpy", "numba"]


@st.composite
def bitmaps(draw: st.DrawFn) -> npt.NDArray[np.uint64]:
    rows, width = draw(st.integers(0, 12)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    bits = np.packbits(rng.random((rows, width * 64)) < density, axis=1, bitorder="little")
    return bits.view(np.uint64)


def groups_of(data: st.DataObject, rows: int) -> npt.NDArray[np.int64]:
    cuts = data.draw(st.sets(st.integers(1, max(1, rows - 1))))
    return np.array(sorted({0, rows, *(c for c in cuts if c < rows)}), np.int64)


def claimed(words: npt.NDArray[np.uint64], group_first: npt.NDArray[np.int64]) -> list[list[tuple[int, int]]]:
    """By the definition, bit by bit: for each group the runs of what its rows claim, as (start, row)."""
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").tolist()
    groups = []
    for first, stop in itertools.pairwise(group_first.tolist()):
        owner = [next((row for row in range(first, stop) if bits[row][i]), -1) for i in range(len(bits[0]))]
        changes = [(i, row) for i, row in enumerate(owner) if row >= 0 and (i == 0 or owner[i - 1] != row)]
        groups.append(changes)
    return groups


@given(words=bitmaps(), data=st.data())
@pytest.mark.parametrize("engine", ENGINES)
def test_the_runs_that_rows_claim_come_in_the_order_of_their_starts(
    engine: Engine, words: npt.NDArray[np.uint64], data: st.DataObject
) -> None:
    machine, group_first = machine_for(engine), groups_of(data, len(words))
    expected = claimed(words, group_first)
    counts = np.empty(len(group_first) - 1, np.int64)

    machine.claim(words, group_first, counts)
    rows, starts = machine.claimed_runs(words, group_first, counts)

    assert counts.tolist() == [len(runs) for runs in expected]
    assert list(zip(starts.tolist(), rows.tolist())) == [run for runs in expected for run in runs]


def test_bits_are_counted_with_and_without_what_numpy_2_brought(monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.array([[0, 1, 2**63, 2**64 - 1], [0x5555, 3, 7, 1 << 40]], np.uint64)
    expected = [[0, 1, 1, 64], [8, 2, 3, 1]]

    assert reference.bit_count(words).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert reference.bit_count(words).tolist() == expected

"""Two engines behind one face, and the cost model that chooses between them.

NumPy is there from the start.  numba does each thing several times faster and has to be started first,
which a short-lived command never earns back.  What is known of a job before it begins are three counts:
sector bitmaps to claim, lookups, and real reads; each costs so much with either engine.

    cost(engine) = start(engine) + bitmaps * bitmap(engine) + lookups * lookup(engine) + reads * read(engine)

The figures below are of benchmarks/bench_engines.py; ARCHITECTURE.md holds them with machine and date.
They are ratios at heart: a machine twice as fast chooses alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from vhdtool.errors import MissingPackageError
from vhdtool.kernels import reference

if TYPE_CHECKING:
    from vhdtool.source import ByteSource

Engine = Literal["auto", "numpy", "numba"]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]

# Descriptors that name no file: the piece stays undone, or is filled with zeros.
NO_FILE: Final = -1
ZERO_FILL: Final = -2


# Starting a thread costs as much as some hundred reads.
PIECES_PER_THREAD: Final = 1 << 10


def checked_offsets(offsets: npt.ArrayLike) -> Int64s:
    """Guest offsets as int64[n].

    Raises:
        ValueError: they are no list of whole numbers of 63 bits.
    """
    given = np.asarray(offsets)
    if given.ndim != 1:
        raise ValueError(f"offsets have {given.ndim} dimensions, not one")
    if given.size and given.dtype.kind not in "iu":
        raise ValueError(f"offsets are {given.dtype}, not whole numbers")
    if given.dtype == np.uint64 and given.size and given.max() > np.iinfo(np.int64).max:
        raise ValueError("offsets do not fit into 63 bits")
    return np.ascontiguousarray(given, np.int64)


def descriptors_of(sources: Sequence[ByteSource | None]) -> Int32s:
    """Descriptors of plain files, ``NO_FILE`` for what is none.  Good as long as nobody closes them."""
    numbers = [None if source is None else source.descriptor for source in sources]
    return np.array([NO_FILE if number is None else number for number in numbers], np.int32)


def cpu_count() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds: to start an engine in a fresh process, and for each thing it does."""

    start: float
    bitmap: float
    lookup: float
    read: float

    def of(self, bitmaps: int, lookups: int, reads: int) -> float:
        """Seconds for a job of so many."""
        return self.start + bitmaps * self.bitmap + lookups * self.lookup + reads * self.read


NUMPY_COSTS: Final = Costs(start=0.0, bitmap=4.8e-6, lookup=70e-9, read=1.6e-6)
NUMBA_COSTS: Final = Costs(start=1.0, bitmap=1.3e-6, lookup=5e-9, read=1.0e-6)


class Machine:
    """What an engine does; :class:`NumpyMachine` says how, slowly and clearly.

    Attributes:
        name: of the engine.
        claim, place_runs: see :mod:`vhdtool.kernels.bitmap`.
        lookup, runs_at: see :mod:`vhdtool.kernels.rank`.
        gather, zeros_found: see :mod:`vhdtool.kernels.positioned`; None where that is done in Python.
    """

    name: Literal["numpy", "numba"]
    claim: Callable[..., None]
    place_runs: Callable[..., None]
    lookup: Callable[..., int]
    runs_at: Callable[..., int]
    gather: Callable[..., None] | None = None
    zeros_found: Callable[..., int] | None = None

    def read_pieces(
        self, descriptors: Int32s, places: Int64s, counts: Int64s, starts: Int64s, out: Bytes
    ) -> npt.NDArray[np.bool_]:
        """Read pieces of files into ``out``; which of them are whole.

        See :func:`vhdtool.kernels.positioned.read_pieces`.
        """
        raise NotImplementedError

    def claimed_runs(self, words: Words, group_first: Int64s, counts: Int64s) -> tuple[Int64s, Int64s]:
        """Rows and first bits of the runs of claimed ``words``, group by group, by their starts."""
        rows, starts = (np.empty(int(counts.sum()), np.int64) for _ in range(2))
        self.place_runs(words, group_first, rows, starts)
        return rows, starts


class NumpyMachine(Machine):
    """The NumPy twins."""

    name: Literal["numpy", "numba"] = "numpy"
    claim = staticmethod(reference.claim)
    place_runs = staticmethod(reference.place_runs)
    lookup = staticmethod(reference.lookup)
    runs_at = staticmethod(reference.runs_at)

    def read_pieces(
        self, descriptors: Int32s, places: Int64s, counts: Int64s, starts: Int64s, out: Bytes
    ) -> npt.NDArray[np.bool_]:
        """One system call after the other; without positioned reads nothing gets done here."""
        done = np.zeros(len(places), np.bool_)
        preadv: Any = getattr(os, "preadv", None)
        buffer = memoryview(out.data).cast("B")
        columns = (descriptors.tolist(), places.tolist(), counts.tolist(), starts.tolist())
        for i, (descriptor, place, count, start) in enumerate(zip(*columns)):
            if descriptor == ZERO_FILL:
                out[start : start + count] = 0
                done[i] = True
            elif descriptor != NO_FILE and preadv is not None:
                try:
                    done[i] = preadv(descriptor, [buffer[start : start + count]], place) == count
                except OSError:  # who asks again, in the place where errors are told, will hear of it
                    done[i] = False
        return done


class NumbaMachine(Machine):
    """The kernels.

    Raises:
        MissingPackageError: numba is not installed.
    """

    name = "numba"

    def __init__(self) -> None:
        try:
            from vhdtool.kernels import bitmap, rank
        except ImportError as error:
            raise MissingPackageError("the numba engine needs the package numba") from error
        try:
            from vhdtool.kernels.positioned import gather, read_pieces, zeros_found
        except ImportError:  # not on this platform
            self._read_pieces: Callable[..., None] | None = None
        else:
            self._read_pieces = read_pieces
            self.gather, self.zeros_found = gather, zeros_found
        self.claim = bitmap.claim
        self.place_runs = bitmap.place_runs
        self.lookup = rank.lookup
        self.runs_at = rank.runs_at

    def read_pieces(
        self, descriptors: Int32s, places: Int64s, counts: Int64s, starts: Int64s, out: Bytes
    ) -> npt.NDArray[np.bool_]:
        """All of them in one kernel, where the platform has what it calls; many by a thread for each CPU."""
        if self._read_pieces is None:
            return _numpy.read_pieces(descriptors, places, counts, starts, out)
        done = np.empty(len(places), np.bool_)
        share = max(PIECES_PER_THREAD, -(-len(places) // cpu_count()))

        def read(first: int) -> None:
            assert self._read_pieces is not None
            part = slice(first, first + share)
            columns = (descriptors[part], places[part], counts[part], starts[part])
            self._read_pieces(*columns, out, done[part])

        # Threads that are started for the call and gone after it: none is missing after a fork.
        threads = [Thread(target=read, args=(first,)) for first in range(share, len(places), share)]
        for thread in threads:
            thread.start()
        read(0)
        for thread in threads:
            thread.join()
        return done


_numpy: Final = NumpyMachine()
_numba: NumbaMachine | None = None


def cheaper(*, bitmaps: int = 0, lookups: int = 0, reads: int = 0) -> Literal["numpy", "numba"]:
    """The engine that does a job of so many at the lower cost; nothing is started."""
    numba = NUMBA_COSTS if _numba is None else replace(NUMBA_COSTS, start=0.0)
    is_numba = numba.of(bitmaps, lookups, reads) < NUMPY_COSTS.of(bitmaps, lookups, reads)
    return "numba" if is_numba else "numpy"


def machine_for(engine: Engine, *, bitmaps: int = 0, lookups: int = 0, reads: int = 0) -> Machine:
    """The engine to use, started.

    Args:
        engine: a name forces it; "auto" takes the cheaper one for a job of so many bitmaps, lookups, reads.

    Raises:
        MissingPackageError: numba is asked for by name and not installed.
    """
    global _numba
    name = cheaper(bitmaps=bitmaps, lookups=lookups, reads=reads) if engine == "auto" else engine
    if name == "numpy":
        return _numpy
    try:
        _numba = _numba or NumbaMachine()
    except MissingPackageError:
        if engine == "numba":
            raise
        return _numpy
    return _numba

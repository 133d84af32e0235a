"""Workloads: the reads of a virtual disk as columns, in order, in batches of bounded size.

A made-up workload reads *slots*: pieces of ``size`` bytes, aligned to ``size``, of an :class:`Area`.  Which
slot comes next is all that tells its kinds apart::

    seed ──► draws ──► slot number in the area ──► offset, length
                       sequential  0, 1, 2, ... and from the start again
                       random      each slot as often as any other
                       zipf        rank k with a share of 1 / k ** theta; ranks scattered over the area
                       hotspot     most reads in a small part that lies together

Nothing here grows with the disk or with the number of reads.  One seed gives one workload, whatever the size
of the batches: each read uses up a fixed number of draws.  Recorded workloads are in ``traces``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Protocol, Self

import numpy as np

from vhdtool.errors import WorkloadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64s = NDArray[np.int64]
    UInt64s = NDArray[np.uint64]
    Floats = NDArray[np.float64]

Kind = Literal["sequential", "random", "zipf", "hotspot"]
KINDS: Final[tuple[Kind, ...]] = ("sequential", "random", "zipf", "hotspot")

BATCH_ROWS: Final = 1 << 16
THETA: Final = 0.99
HOT_READS: Final = 0.9
HOT_AREA: Final = 0.1

_SIZE_MAX: Final = 1 << 62
# So many of the lowest ranks have their share summed up one by one; above, an integral stands for the sum.
_RANKS_SUMMED: Final = 1 << 12
_ROUND_KEYS: Final = 4


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Reads in the order in which they come.

    Attributes:
        offset, length: int64[n], guest bytes; length > 0; n is 1 to ``BATCH_ROWS``.
    """

    offset: Int64s
    length: Int64s

    def __post_init__(self) -> None:
        self.offset.setflags(write=False)
        self.length.setflags(write=False)


class Workload(Protocol):
    """Reads of a disk; every call of ``batches`` gives the same ones from the first on."""

    @property
    def name(self) -> str:
        """One word: ``zipf``."""
        ...

    def describe(self) -> str:
        """The workload in words, with its parameters."""
        ...

    def batches(self) -> Iterator[Batch]:
        """The reads in order; no batch is empty."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Area:
    """The part of a disk that is read, as slots of ``size`` bytes.

    Slot ``k`` of the disk begins at ``k * size`` and ends ``size`` bytes on, or at the disk's end: where the
    disk's size is no multiple of ``size``, its last slot is short, and is read in its whole length.  The
    area has the slots that lie wholly in one of its ranges; ranges that touch count as one.

    Attributes:
        virtual_size, size: bytes.
        first_slot: int64[m], number on the disk of each range's first slot; ascending.
        slots_before: int64[m], how many slots of the area come before that one.
        slot_count: of the whole area, at least 1.
        nbytes: that all slots have together.
        text: which part of the disk it is, in words.
    """

    virtual_size: int
    size: int
    first_slot: Int64s
    slots_before: Int64s
    slot_count: int
    nbytes: int
    text: str

    @classmethod
    def whole(cls, virtual_size: int, size: int) -> Self:
        """All of a disk of ``virtual_size`` bytes.

        Raises:
            WorkloadError: the disk is empty, or no read can have that size.
        """
        whole = np.array([0], np.int64), np.array([max(virtual_size, 0)], np.int64)
        return cls._of(virtual_size, size, *whole, "the whole disk")

    @classmethod
    def allocated(cls, virtual_size: int, size: int, start: Int64s, length: Int64s) -> Self:
        """The part of a disk that some layer holds.

        Args:
            start, length: int64[n], bytes of the disk: ascending, disjoint, none empty, none past its end.

        Raises:
            WorkloadError: no slot of ``size`` bytes lies in a range, or no read can have that size.
        """
        return cls._of(virtual_size, size, start, length, "the allocated part of the disk")

    @classmethod
    def _of(cls, virtual_size: int, size: int, start: Int64s, length: Int64s, text: str) -> Self:
        if not 0 < size <= _SIZE_MAX:
            raise WorkloadError(f"no read can have {size} bytes")
        start, stop = _joined(virtual_size, start, length)
        first = -(-start // size)
        # The disk's last slot ends with the disk, however short that makes it.
        after = np.where(stop == virtual_size, -(-stop // size), stop // size)
        kept = after > first
        first, count = first[kept], (after - first)[kept]
        slot_count = int(count.sum())
        if slot_count == 0:
            raise WorkloadError(f"nothing to read: {text} has no aligned {size} bytes in one piece")
        nbytes = slot_count * size
        if int(first[-1] + count[-1]) * size > virtual_size:
            nbytes -= size - virtual_size % size
        return cls(virtual_size, size, first, np.cumsum(count) - count, slot_count, nbytes, text)

    def batch(self, slot: Int64s) -> Batch:
        """The reads of the area's slots with these numbers: int64[n], each in ``[0, slot_count)``."""
        if len(self.first_slot) == 1:
            offset = (slot + self.first_slot[0]) * self.size
        else:
            row = np.searchsorted(self.slots_before, slot, side="right") - 1
            offset = (slot + (self.first_slot - self.slots_before)[row]) * self.size
        return Batch(offset, np.minimum(self.size, self.virtual_size - offset))


def _joined(virtual_size: int, start: Int64s, length: Int64s) -> tuple[Int64s, Int64s]:
    """Ranges as (start, stop), those that touch joined.

    Raises:
        ValueError: they are no ranges of the disk.
    """
    start = np.asarray(start, np.int64)
    stop = start + np.asarray(length, np.int64)
    if len(start) == 0 or virtual_size <= 0:
        return start[:0], stop[:0]
    if start[0] < 0 or stop[-1] > virtual_size or (stop <= start).any() or (start[1:] < stop[:-1]).any():
        raise ValueError("ranges must be ascending, disjoint, not empty, and end with the disk")
    apart = start[1:] > stop[:-1]
    return start[np.append(True, apart)], stop[np.append(apart, True)]


# Given how many reads come before and how many are wanted: their slots, int64[n].
_Chooser = Callable[[int, int], "Int64s"]


@dataclass(frozen=True, slots=True)
class _Synthetic:
    """What all made-up workloads share: so many reads of slots of one area.

    Raises:
        WorkloadError: a parameter is out of its range.
    """

    name: ClassVar[str]

    area: Area
    reads: int

    def __post_init__(self) -> None:
        _require("reads", self.reads, self.reads >= 1, "at least 1")

    def describe(self) -> str:
        """The workload in words, with its parameters."""
        words = [f"{self.reads} reads of {self.area.size} bytes over {self.area.text}", *self._parameters()]
        return f"{self.name}: {', '.join(words)}"

    def batches(self, *, rows: int = BATCH_ROWS) -> Iterator[Batch]:
        """The reads in order, ``rows`` of them at a time; the same ones each time and for any ``rows``."""
        choose = self._chooser()
        for first in range(0, self.reads, rows):
            yield self.area.batch(choose(first, min(rows, self.reads - first)))

    def _parameters(self) -> list[str]:
        return []

    def _chooser(self) -> _Chooser:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Sequential(_Synthetic):
    """The slots one after the other; after the area's last one its first again."""

    name = "sequential"

    def _chooser(self) -> _Chooser:
        slot_count = self.area.slot_count
        return lambda first, count: np.arange(first, first + count, dtype=np.int64) % slot_count


@dataclass(frozen=True, slots=True)
class _Seeded(_Synthetic):
    seed: int = 0

    def __post_init__(self) -> None:
        _Synthetic.__post_init__(self)
        _require("seed", self.seed, self.seed >= 0, "not negative")

    def _parameters(self) -> list[str]:
        return [f"seed {self.seed}"]

    def _draws(self) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(self.seed))


@dataclass(frozen=True, slots=True)
class Random(_Seeded):
    """Each slot as likely as any other."""

    name = "random"

    def _chooser(self) -> _Chooser:
        draws = self._draws()
        return lambda first, count: _pick(draws.random(count), self.area.slot_count)


@dataclass(frozen=True, slots=True)
class Zipf(_Seeded):
    """Few slots are read often: the k-th in rank with a share in proportion to ``1 / k ** theta``.

    The distribution that YCSB calls zipfian, in its scrambled form.  Theta may be 1 and above as well, and
    the shares are those of the formula to about one part in 10 million, where Gray's generator (SIGMOD 1994),
    which YCSB uses, has them for the first two ranks only and is made for theta below 1.
    """

    name = "zipf"

    theta: float = THETA

    def __post_init__(self) -> None:
        _Seeded.__post_init__(self)
        _require("theta", self.theta, 0 < self.theta < math.inf, "above 0")

    def _parameters(self) -> list[str]:
        return [f"theta {self.theta:g}", *_Seeded._parameters(self)]

    def _chooser(self) -> _Chooser:
        draws = self._draws()
        ranks = ZipfRanks(self.area.slot_count, self.theta)
        scatter = Scatter(self.area.slot_count, draws)
        return lambda first, count: scatter(ranks(draws.random(count)))


@dataclass(frozen=True, slots=True)
class Hotspot(_Seeded):
    """A share of the reads in a share of the slots that lie together, the rest in the rest.

    Attributes:
        hot_reads: the share of reads, 0 to 1; more precisely, each read is a hot one with this likelihood.
        hot_area: the share of slots, above 0 up to 1, rounded to whole ones, at least one.  Where that is
            all of them, every read is a hot one.
    """

    name = "hotspot"

    hot_reads: float = HOT_READS
    hot_area: float = HOT_AREA

    def __post_init__(self) -> None:
        _Seeded.__post_init__(self)
        _require("share of hot reads", self.hot_reads, 0 <= self.hot_reads <= 1, "0 to 1")
        _require("hot share of the area", self.hot_area, 0 < self.hot_area <= 1, "above 0, up to 1")

    def _parameters(self) -> list[str]:
        shares = f"{self.hot_reads:g} of the reads in {self.hot_area:g} of it"
        return [shares, *_Seeded._parameters(self)]

    def _chooser(self) -> _Chooser:
        draws = self._draws()
        slot_count = self.area.slot_count
        hot_count = min(max(1, round(slot_count * self.hot_area)), slot_count)
        cold_count = slot_count - hot_count
        hot_first = int(_pick(draws.random(1), cold_count + 1)[0])
        hot_reads = self.hot_reads if cold_count else 1.0

        def choose(first: int, count: int) -> Int64s:
            draw = draws.random((count, 2))
            hot = hot_first + _pick(draw[:, 1], hot_count)
            cold = _pick(draw[:, 1], cold_count)
            cold += np.where(cold >= hot_first, hot_count, 0)
            return np.where(draw[:, 0] < hot_reads, hot, cold)

        return choose


def synthetic(
    kind: Kind,
    area: Area,
    *,
    reads: int,
    seed: int = 0,
    theta: float = THETA,
    hot_reads: float = HOT_READS,
    hot_area: float = HOT_AREA,
) -> Sequential | Random | Zipf | Hotspot:
    """The workload of this kind; parameters that it does not have are left unused.

    Raises:
        WorkloadError: the kind is none, or a parameter is out of its range.
    """
    if kind == "sequential":
        return Sequential(area, reads)
    if kind == "random":
        return Random(area, reads, seed)
    if kind == "zipf":
        return Zipf(area, reads, seed, theta)
    if kind == "hotspot":
        return Hotspot(area, reads, seed, hot_reads, hot_area)
    raise WorkloadError(f"{kind} is none of {', '.join(KINDS)}")


class ZipfRanks:
    """Turns draws from [0, 1) into ranks 0 to ``count - 1``; the k-th has a share of ``1 / k ** theta``.

    By inversion: the sum of the first shares is looked up in a table for the m lowest ranks.  Above them the
    sum from m + 1 to k is taken as the integral of ``x ** -theta`` from m + 1/2 to k + 1/2 (the midpoint
    rule), which is off by a factor of 1 + theta (theta + 1) / (24 m ** 2) at most, and is solved for k.
    """

    def __init__(self, count: int, theta: float) -> None:
        self._count = count
        self._slope = 1.0 - theta
        self._summed = np.cumsum(np.arange(1, min(count, _RANKS_SUMMED) + 1, dtype=np.float64) ** -theta)
        # The integral is taken in units of where it begins, so that it neither overflows nor cancels out.
        self._from = len(self._summed) + 0.5
        self._scale = self._from**self._slope
        self._total = float(self._summed[-1]) + self._scale * self._integral((count + 0.5) / self._from)

    def __call__(self, draw: Floats) -> Int64s:
        """Ranks, int64[n], for draws, float64[n] in [0, 1)."""
        target = draw * self._total
        rank: Int64s = np.searchsorted(self._summed, target, side="right").astype(np.int64, copy=False)
        above = np.flatnonzero(rank == len(self._summed))
        if above.size:
            reached = self._solved((target[above] - self._summed[-1]) / self._scale) * self._from
            rank[above] = np.minimum(np.floor(reached + 0.5), self._count).astype(np.int64) - 1
        return rank

    def _integral(self, ratio: float) -> float:
        """Of ``x ** -theta`` from 1 to ``ratio``."""
        if self._slope == 0:
            return math.log(ratio)
        return math.expm1(self._slope * math.log(ratio)) / self._slope

    def _solved(self, integral: Floats) -> Floats:
        """The ratio up to which the integral has this value; infinity past what theta above 1 can reach."""
        if self._slope == 0:
            return np.exp(integral)
        with np.errstate(divide="ignore", over="ignore"):
            ratio: Floats = np.exp(np.log1p(np.maximum(self._slope * integral, -1.0)) / self._slope)
        return ratio


class Scatter:
    """A bijection of the numbers below ``count`` onto themselves that looks random and needs no table.

    A Feistel network on (row, column) of a table that is as square as can be, after Black and Rogaway
    ("Ciphers with Arbitrary Finite Domains", 2002).  A number that lands in the unused rest of the table's
    last row goes through once more, until it lands below ``count``: it does, for its cycle began there.
    """

    def __init__(self, count: int, draws: np.random.Generator) -> None:
        self._count = count
        columns = math.isqrt(count - 1) + 1
        self._columns = np.uint64(columns)
        self._rows = np.uint64(-(-count // columns))
        self._keys = draws.integers(0, 1 << 64, _ROUND_KEYS, np.uint64)

    def __call__(self, number: Int64s) -> Int64s:
        """The images of ``number``, int64[n], each in ``[0, count)``."""
        image = self._once(number)
        while (outside := np.flatnonzero(image >= self._count)).size:
            image[outside] = self._once(image[outside])
        return image

    def _once(self, number: Int64s) -> Int64s:
        row, column = np.divmod(number.astype(np.uint64), self._columns)
        for i in range(0, _ROUND_KEYS, 2):
            _shift(row, self._rows, column, self._keys[i])
            _shift(column, self._columns, row, self._keys[i + 1])
        return (row * self._columns + column).astype(np.int64)


def _shift(half: UInt64s, modulus: np.uint64, other: UInt64s, key: np.uint64) -> None:
    """Move ``half`` on, modulo ``modulus``, by what ``other`` and ``key`` are hashed to; both below 2**32."""
    mixed = other ^ key
    # The finalizer of SplitMix64 (Steele, Lea and Flood, 2014); uint64 wraps round, as it must.
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed >>= np.uint64(32)
    mixed *= modulus
    mixed >>= np.uint64(32)
    half += mixed
    half -= np.where(half >= modulus, modulus, np.uint64(0))


def _pick(draw: Floats, count: int) -> Int64s:
    """Draws from [0, 1) as whole numbers below ``count``, int64[n]: one each, so batches do not matter."""
    # Rounding can reach count itself where count has more than the 53 bits of a draw.
    return np.minimum((draw * count).astype(np.int64), max(count - 1, 0))


def _require(name: str, value: Any, holds: bool, range_text: str) -> None:
    if not holds:
        raise WorkloadError(f"the {name} must be {range_text}, not {value}")

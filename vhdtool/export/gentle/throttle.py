"""Gentle reading: no faster than asked for, slower when the storage suffers, nothing left in the cache.

::

    mover ──► PacedSource ──► turn ──► governor: a pause? ──► quotas: how much may be read now? ──► read
                                            ▲                     ▲                                  │
                                            └── how long it took ─┴── how much, and when ────────────┘

A *quota* holds in two ways.  A token bucket spreads reads evenly; it is a quarter of a second deep, for who
waits for slow storage may read more at once.  A record of the last second, in slots of a millisecond, is what
makes "never more than R in any second" exact: a bucket alone would let its depth pass on top.  What is being
read counts from when it begins; what was read counts as of its end less the time that the fastest read takes,
so that slow storage does not make the second longer than it is.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from vhdtool.export.gentle.cache import CacheKeeper
from vhdtool.export.gentle.priority import LowPriority
from vhdtool.source import ByteSource, WrappingSource

Clock = Callable[[], float]
Sleep = Callable[[float], None]

# Sleeps are so short at most: who stops a job does not wait longer.
_NAP_SECONDS: Final = 0.1
# And so long at least: a thousand small reads are not a thousand sleeps.
_WAIT_SECONDS_MIN: Final = 0.002
_SLOT_SECONDS: Final = 0.001
_SLOTS: Final = 1000
_BURST_SECONDS: Final = 0.25
# Reads are split into pieces of about this much of a second's quota.
_PIECE_SHARE: Final = 100
_PIECE_MAX: Final = 4 << 20
# A quota is told of for so long after somebody had to wait for it.
_SHOWN_SECONDS: Final = 1.0

# The governor: looks back a second, judges four times in one.
_LOOK_BACK_SECONDS: Final = 1.0
_JUDGE_SECONDS: Final = 0.25
_READS_KEPT: Final = 4096
_SLOW_DOWN: Final = 0.5
_SPEED_UP: Final = 1.25
_SPEED_MIN: Final = 1 / 64
_PAUSE_SECONDS_MAX: Final = 2.0
_PERCENTILE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Limits:
    """How gentle a job is.  Picklable; false when it need not be.

    Attributes:
        rate: bytes a second that are read at most.
        iops: reads a second at most.
        max_latency: seconds; reading slows down while the p95 of its own reads is above.
        idle: lowest CPU and I/O priority.
        drop_cache: what was read leaves the page cache, except what was there before.

    Raises:
        ValueError: a limit is not positive.
    """

    rate: int | None = None
    iops: int | None = None
    max_latency: float | None = None
    idle: bool = False
    drop_cache: bool = False

    def __post_init__(self) -> None:
        for name in ("rate", "iops", "max_latency"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, not {value}")

    @property
    def active(self) -> bool:
        """Whether anything is asked for."""
        return self.touches_reads or self.idle

    @property
    def touches_reads(self) -> bool:
        """Whether reads are other than without limits."""
        return self.drop_cache or not (self.rate is self.iops is self.max_latency is None)

    def __bool__(self) -> bool:
        return self.active


class Quota:
    """So much in any second, and evenly.  Not thread-safe.

    Args:
        per_second: bytes or reads.
        piece: what may always pass at once.
        now: the clock's time.
    """

    def __init__(self, per_second: int, piece: int, now: float) -> None:
        self.per_second = per_second
        self._depth = min(float(per_second), max(1.0, piece, per_second * _BURST_SECONDS))
        self._tokens = float(piece)
        self._filled_at = now
        self._in_flight = 0
        # (slot, amount) of the last second, and their sum.
        self._slots: deque[tuple[int, int]] = deque()
        self._passed = 0

    def allowance(self, now: float) -> int:
        """How much may begin now; 0 or less is nothing."""
        self._tokens = min(self._depth, self._tokens + max(0.0, now - self._filled_at) * self.per_second)
        self._filled_at = now
        last = int(now // _SLOT_SECONDS) - _SLOTS
        # A slot counts until a second after its end: more than a second, and never less.
        while self._slots and self._slots[0][0] < last:
            self._passed -= self._slots.popleft()[1]
        return min(int(self._tokens), self.per_second - self._passed - self._in_flight)

    def seconds_until(self, amount: int, now: float) -> float:
        """When ``amount`` may begin, from now, if what is in flight ended now; ``allowance`` came before."""
        wait = (amount - self._tokens) / self.per_second
        missing = self._passed + self._in_flight + amount - self.per_second
        for slot, passed in self._slots:
            if missing <= 0:
                break
            missing -= passed
            wait = max(wait, (slot + 1 + _SLOTS) * _SLOT_SECONDS - now)
        return wait

    def begin(self, amount: int) -> None:
        """``amount`` begins."""
        self._tokens -= amount
        self._in_flight += amount

    def end(self, amount: int, moment: float) -> None:
        """``amount`` that began has passed, at ``moment``."""
        self._in_flight -= amount
        self._passed += amount
        slot = int(moment // _SLOT_SECONDS)
        if self._slots and self._slots[-1][0] >= slot:
            slot, before = self._slots.pop()
            amount += before
        self._slots.append((slot, amount))


class Governor:
    """Slows down while the p95 of reads is above a limit, and speeds up again.  Not thread-safe.

    Speed is the share of the time that goes into reading: a read of 10 ms at speed 1/4 is followed by a
    pause of 30 ms.  It is halved at each look that finds reads too slow and grows by a quarter at each other,
    between 1/64 and 1; no pause is longer than 2 seconds, so however slow the storage is, reading goes on.

    Args:
        limit: seconds.
        now: the clock's time.
    """

    def __init__(self, limit: float, now: float) -> None:
        self.limit = limit
        self.speed = 1.0
        self.p95 = 0.0
        self.pause_until = now
        self._judge_at = now + _JUDGE_SECONDS
        self._reads: deque[tuple[float, float]] = deque(maxlen=_READS_KEPT)

    def add(self, now: float, seconds: float) -> None:
        """A read ended now and took so long."""
        self._reads.append((now, seconds))
        if now >= self._judge_at:
            self._judge_at = now + _JUDGE_SECONDS
            self._judge(now)
        if self.speed < 1:
            pause = seconds * (1 / self.speed - 1)
            self.pause_until = min(max(now, self.pause_until) + pause, now + _PAUSE_SECONDS_MAX)

    def _judge(self, now: float) -> None:
        while self._reads[0][0] < now - _LOOK_BACK_SECONDS:
            self._reads.popleft()
        reads = sorted(seconds for _, seconds in self._reads)
        self.p95 = reads[math.ceil(len(reads) * _PERCENTILE) - 1]
        factor = _SLOW_DOWN if self.p95 > self.limit else _SPEED_UP
        self.speed = min(1.0, max(_SPEED_MIN, self.speed * factor))

    @property
    def slowed(self) -> str:
        """Why it is slowed, if it is."""
        if self.speed == 1:
            return ""
        limit = milliseconds_text(self.limit)
        if self.p95 > self.limit:
            return f"reads take {milliseconds_text(self.p95)} (p95), more than {limit}"
        return f"reads took more than {limit} (p95), speeding up again"


class _Quickest:
    """The shortest of the reads of the last second or two."""

    def __init__(self) -> None:
        self._before = self._now = math.inf
        self._since = -math.inf

    def add(self, now: float, seconds: float) -> float:
        """A read ended now and took so long; the shortest of late."""
        if now - self._since > 1:
            self._before = self._now
            self._now = math.inf
            self._since = now
        self._now = min(self._now, seconds)
        return min(self._before, self._now)


class Pace:
    """Keeps a job's reads within its limits.  One for a job, whatever it reads from; thread-safe.

    As a context it lowers the priority, if that is asked for, and drops the rest from the page cache at its
    end.

    Args:
        check: called before each read and ten times a second while waiting; may raise to stop the job.
        clock, sleep: of a monotonic clock, in seconds.

    Attributes:
        notes: what was asked for and cannot be done here, each a line for a warning.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        check: Callable[[], None] = lambda: None,
        clock: Clock = time.monotonic,
        sleep: Sleep = time.sleep,
    ) -> None:
        self.limits = limits
        self._check = check
        self._clock = clock
        self._sleep = sleep
        now = clock()
        self._piece = _piece_of(limits)
        self._bytes = None if limits.rate is None else Quota(limits.rate, self._piece, now)
        self._reads = None if limits.iops is None else Quota(limits.iops, 1, now)
        self._governor = None if limits.max_latency is None else Governor(limits.max_latency, now)
        self._keeper = CacheKeeper() if limits.drop_cache else None
        self._priority = LowPriority() if limits.idle else None
        self.notes: tuple[str, ...] = () if self._priority is None else self._priority.notes
        self._quickest = _Quickest()
        self._shown_until: dict[Quota, float] = {}
        # Who waits has the turn, in the order of coming; quotas and governor change under the guard.
        self._turn = threading.Lock()
        self._guard = threading.Lock()
        self._stack = ExitStack()

    def source(self, source: ByteSource) -> ByteSource:
        """``source``, read at this pace; itself when there is nothing to keep to."""
        return PacedSource(source, self) if self.limits.touches_reads else source

    @property
    def slowed(self) -> str:
        """Why reading is not as fast as it could be just now; empty when it is."""
        now = self._clock()
        reasons = []
        for quota, text in ((self._bytes, rate_text), (self._reads, "{} reads/s".format)):
            if quota is not None and now < self._shown_until.get(quota, -math.inf):
                reasons.append(f"limited to {text(quota.per_second)}")
        if self._governor is not None and self._governor.slowed:
            reasons.append(self._governor.slowed)
        return "; ".join(reasons)

    def __enter__(self) -> Self:
        if self._priority is not None:
            self._stack.enter_context(self._priority)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if self._keeper is not None:
            self._keeper.finish()

    def read(self, source: ByteSource, offset: int, buffer: memoryview, *, field: str) -> None:
        """Fill ``buffer`` from ``source``, in pieces and with pauses; errors as ``ByteSource.read_into``."""
        done = 0
        while done < len(buffer):
            count = self._admit(len(buffer) - done)
            began = self._clock()
            try:
                if self._keeper is not None:
                    self._keeper.reading(source, offset + done, count)
                    began = self._clock()
                source.read_into(offset + done, buffer[done : done + count], field=field)
            finally:
                self._ended(count, began)
            done += count

    def _admit(self, wanted: int) -> int:
        """Wait until something may be read; how much of the ``wanted`` bytes.  It is in flight then."""
        with self._turn:
            self._check()
            if self._governor is not None:
                self._wait_until(self._governor.pause_until)
            while True:
                now = self._clock()
                with self._guard:
                    wait = self._wait_for_quotas(wanted, now)
                    if wait <= 0:
                        return self._begin(wanted, now)
                self._wait_until(now + max(wait, _WAIT_SECONDS_MIN))

    def _wait_for_quotas(self, wanted: int, now: float) -> float:
        """Seconds until a piece may be read; 0 for now."""
        longest = 0.0
        for quota, amount in ((self._bytes, min(wanted, self._piece)), (self._reads, 1)):
            if quota is not None and quota.allowance(now) < amount:
                wait = max(quota.seconds_until(amount, now), _WAIT_SECONDS_MIN)
                self._shown_until[quota] = now + wait + _SHOWN_SECONDS
                longest = max(longest, wait)
        return longest

    def _begin(self, wanted: int, now: float) -> int:
        count = min(wanted, _PIECE_MAX)
        if self._bytes is not None:
            count = min(count, self._bytes.allowance(now))
            self._bytes.begin(count)
        if self._reads is not None:
            self._reads.begin(1)
        return count

    def _ended(self, count: int, began: float) -> None:
        now = self._clock()
        with self._guard:
            moment = now - self._quickest.add(now, now - began)
            if self._bytes is not None:
                self._bytes.end(count, moment)
            if self._reads is not None:
                self._reads.end(1, moment)
            if self._governor is not None:
                self._governor.add(now, now - began)

    def _wait_until(self, moment: float) -> None:
        """Sleep in naps.

        Raises:
            CancelledError, or whatever ``check`` raises.
        """
        while (left := moment - self._clock()) > 0:
            self._check()
            self._sleep(min(left, _NAP_SECONDS))


class PacedSource(WrappingSource):
    """Another source, read at the pace of a job.  It has no descriptor: nobody reads past the limits."""

    def __init__(self, below: ByteSource, pace: Pace) -> None:
        super().__init__(below)
        self._pace = pace

    def read_into(self, offset: int, buffer: memoryview, *, field: str) -> None:
        self._check(offset, len(buffer), field)
        self._pace.read(self.below, offset, buffer, field=field)


def _piece_of(limits: Limits) -> int:
    """Bytes that reads are split into: small beside a second's quota, but not too many for ``iops``."""
    if limits.rate is None:
        return _PIECE_MAX
    piece = limits.rate // _PIECE_SHARE
    if limits.iops is not None:
        piece = max(piece, 2 * limits.rate // limits.iops)
    return max(1, min(piece, limits.rate, _PIECE_MAX))


def rate_text(per_second: int) -> str:
    """``10.0 MiB/s``."""
    value, unit = float(per_second), "bytes"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}/s" if unit == "bytes" else f"{value:.1f} {unit}/s"


def milliseconds_text(seconds: float) -> str:
    """``45 ms``, ``0.8 ms``."""
    value = seconds * 1000
    return f"{value:.0f} ms" if value >= 10 else f"{round(value, 2):g} ms"

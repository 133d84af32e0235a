"""Digests of a virtual disk: of its chunks, of the list of those, and of the whole.

A *chunk* is ``CHUNK_SIZE`` bytes of the disk (the last may be shorter).  Its digest is the SHA-256 of its
bytes.  A chunk of zeros is only counted while it passes; its real digest is known beforehand.

An *increment* leaves parts of the disk to its parent.  A chunk of which it holds a part is digested range by
range: the bytes of each range that it holds, and behind them where the range begins in the disk and its
length (64 bits each, little-endian).  A chunk of which it holds nothing is ``INHERITED``.

The *root* is the SHA-256 over the digests (32 bytes each, not their text) of all chunks in order, chunks of
zeros with the real digest of their zeros, chunks of which nothing is held with 32 zero bytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol

from vhdtool.errors import MissingPackageError
from vhdtool.export.containers.target import ZERO_PIECE

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK_SIZE: Final = 2 << 20
ALGORITHM: Final = "sha256"
DIGEST_SIZE: Final = 32
# Stands where the digest of a chunk would: an increment holds nothing of it.
INHERITED: Final = b""
WHOLE_ALGORITHMS: Final = ("md5", "sha1", "sha256", "sha512", "blake2b", "blake3")
# The root of a huge disk is mostly one digest over and over: hashed in pieces of this many.
_REPEATS: Final = 1 << 15
_RANGE: Final = struct.Struct("<QQ")


class ChunkSink(Protocol):
    """Takes the chunks of a disk in order."""

    def add(self, digest: bytes | None, count: int) -> None:
        """``count`` chunks with this digest; None is a chunk of zeros, ``INHERITED`` one that is not here."""
        ...


@lru_cache(maxsize=64)
def zeros_digest(length: int) -> bytes:
    """SHA-256 of ``length`` zero bytes."""
    digest = hashlib.sha256()
    feed_zeros(digest, length)
    return digest.digest()


def feed_zeros(digest: _Hash, length: int) -> None:
    """Update ``digest`` with ``length`` zero bytes."""
    zeros = memoryview(ZERO_PIECE)
    while length > 0:
        count = min(length, len(zeros))
        digest.update(zeros[:count])
        length -= count


class ChunkDigester:
    """Consumer that cuts the bytes of a disk into chunks and digests them.

    Args:
        sink: is given each chunk, neighbouring chunks of zeros, or of nothing, together.
        chunk_size: bytes.
        start: the guest byte that comes first; a multiple of ``chunk_size``.
    """

    def __init__(self, sink: ChunkSink, chunk_size: int = CHUNK_SIZE, start: int = 0) -> None:
        self._sink = sink
        self._chunk_size = chunk_size
        self._position = start
        self._within = 0
        # None as long as the chunk has nothing but zeros, or nothing but a gap.
        self._digest: _Hash | None = None
        self._has_gap = False
        # Guest byte at which the range that is held began; None in a gap.
        self._held_from: int | None = None

    def data(self, view: memoryview) -> None:
        """The next bytes."""
        length = len(view)
        if length < self._chunk_size - self._within:  # as nearly always
            self._hold().update(view)
            self._position += length
            self._within += length
            return
        done = 0
        while done < length:
            count = min(length - done, self._chunk_size - self._within)
            self._hold().update(view[done : done + count])
            self._advance(count)
            done += count

    def zeros(self, length: int) -> None:
        """The next ``length`` bytes are zeros."""
        for count in self._pieces(length, None):
            if self._digest is not None or self._has_gap:
                feed_zeros(self._hold(), count)
            self._advance(count)

    def gap(self, length: int) -> None:
        """The next ``length`` bytes are left to a parent."""
        if length < self._chunk_size - self._within:  # as between small runs
            self._leave(length)
            return
        for count in self._pieces(length, INHERITED):
            self._leave(count)

    def finish(self) -> None:
        """Close the last chunk, a short one."""
        if self._within:
            self._close()

    def _pieces(self, length: int, digest: bytes | None) -> Iterator[int]:
        """``length`` bytes of one kind as parts of chunks; whole chunks of them are told at once."""
        if self._within:
            count = min(length, self._chunk_size - self._within)
            yield count
            length -= count
        whole, rest = divmod(length, self._chunk_size)
        if whole:
            self._sink.add(digest, whole)
            self._position += whole * self._chunk_size
        if rest:
            yield rest

    def _hold(self) -> _Hash:
        """The digest of a chunk that holds something; zeros that passed before are in it."""
        if self._digest is None:
            self._digest = hashlib.sha256()
            if not self._has_gap:
                self._held_from = self._position - self._within
                feed_zeros(self._digest, self._within)
        if self._held_from is None:
            self._held_from = self._position
        return self._digest

    def _leave(self, count: int) -> None:
        """The next ``count`` bytes, inside the chunk, are left to a parent."""
        if self._within and not self._has_gap:
            self._hold()
        self._end_range()
        self._has_gap = True
        self._advance(count)

    def _end_range(self) -> None:
        if self._digest is not None and self._held_from is not None:
            self._digest.update(_RANGE.pack(self._held_from, self._position - self._held_from))
        self._held_from = None

    def _advance(self, count: int) -> None:
        self._position += count
        self._within += count
        if self._within == self._chunk_size:
            self._close()

    def _close(self) -> None:
        if self._has_gap:
            self._end_range()
        if self._digest is not None:
            self._sink.add(self._digest.digest(), 1)
        else:
            self._sink.add(INHERITED if self._has_gap else None, 1)
        self._digest = None
        self._held_from = None
        self._has_gap = False
        self._within = 0


class RootDigester:
    """The root over the chunks of a disk.

    Args:
        size: bytes of the disk.
        chunk_size: bytes.
    """

    def __init__(self, size: int, chunk_size: int = CHUNK_SIZE) -> None:
        self._digest = hashlib.sha256()
        self._count = 0
        self._chunk_count = -(-size // chunk_size)
        self._zeros = zeros_digest(chunk_size)
        self._last_zeros = zeros_digest(size - (self._chunk_count - 1) * chunk_size)

    def add(self, digest: bytes | None, count: int) -> None:
        """``count`` chunks with this digest; None is a chunk of zeros, ``INHERITED`` one that is not here."""
        self._count += count
        if digest is not None:
            self._repeat(digest or bytes(DIGEST_SIZE), count)
            return
        short = 1 if self._count == self._chunk_count else 0
        self._repeat(self._zeros, count - short)
        if short:
            self._digest.update(self._last_zeros)

    def hexdigest(self) -> str:
        """The root, in lower-case hexadecimal."""
        return self._digest.hexdigest()

    def _repeat(self, digest: bytes, count: int) -> None:
        if count > 1:
            piece = digest * min(count, _REPEATS)
            for _ in range(count // _REPEATS):
                self._digest.update(piece)
            self._digest.update(piece[: count % _REPEATS * len(digest)])
        elif count:
            self._digest.update(digest)


class WholeDigest:
    """Consumer that digests the whole disk, zeros and all.

    Args:
        name: one of ``WHOLE_ALGORITHMS``.

    Raises:
        ValueError: no such algorithm.
        MissingPackageError: blake3 is not installed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._digest = _new_digest(name)

    def data(self, view: memoryview) -> None:
        """The next bytes."""
        self._digest.update(view)

    def zeros(self, length: int) -> None:
        """The next ``length`` bytes are zeros."""
        feed_zeros(self._digest, length)

    def gap(self, length: int) -> None:
        """The whole disk is what is digested."""
        raise ValueError("a digest of the whole disk has no gaps")

    def finish(self) -> None:
        """Nothing is left over."""

    def hexdigest(self) -> str:
        """The digest, in lower-case hexadecimal."""
        return self._digest.hexdigest()


def _new_digest(name: str) -> _Hash:
    if name not in WHOLE_ALGORITHMS:
        raise ValueError(f"unknown digest {name!r}: one of {', '.join(WHOLE_ALGORITHMS)}")
    if name == "blake3":
        try:
            digest: _Hash = import_module("blake3").blake3()
        except ImportError as error:
            raise MissingPackageError(
                "the digest blake3 needs the package blake3 (the extra 'fast-hash':"
                " pip install 'vhdtool[fast-hash]')"
            ) from error
        return digest
    # Digests of evidence, not of secrets: md5 and sha1 are what others quote.
    return hashlib.new(name, usedforsecurity=False)

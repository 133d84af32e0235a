"""Zstandard frames, one at a time: the package zstandard, or Python 3.14's own module.

A frame comes with its size, or is refused: what a frame says of its own size is compared with the size that
is expected before anything is allocated, and the size is the most that is ever made.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, Final, Protocol

from vhdtool.errors import MissingPackageError

FRAME_MAGIC: Final = b"\x28\xb5\x2f\xfd"
# A frame without content: magic, descriptor, window or size, one empty block.
FRAME_SIZE_MIN: Final = 9
# One bit is reserved, one unused; decoders pass over the second, and no program sets it.
_DESCRIPTOR_UNUSED: Final = 0x18
LEVEL_DEFAULT: Final = 3
LEVEL_MAX: Final = 19

Compress = Callable[[bytes | memoryview], bytes]
Decompress = Callable[[bytes, int], bytes]


class FrameError(Exception):
    """A frame is none, does not end where it should, or has another size; or it could not be made.

    Whoever asks for a frame knows which it is, and says so in an error of ours.
    """


class Codec(Protocol):
    """Makes compressors and decompressors; each of them is for one thread."""

    def compressor(self, level: int) -> Compress:
        """Gives for bytes one frame, with their size in its header and a checksum behind it."""
        ...

    def decompressor(self) -> Decompress:
        """Gives for a frame, and nothing but it, exactly so many bytes; raises FrameError otherwise."""
        ...


@cache
def codec() -> Codec:
    """What is installed.

    Raises:
        MissingPackageError: nothing is.
    """
    for module, adapter in (("zstandard", _Package), ("compression.zstd", _Builtin)):
        try:
            return adapter(import_module(module))
        except ImportError:
            continue
    raise MissingPackageError('zstd files need the package zstandard: pip install "vhdtool[compress]"')


def content_size(frame: bytes) -> int | None:
    """The size that the header of ``frame`` states; None where it states none.

    Source: RFC 8878, 3.1.1.1.

    Raises:
        FrameError: this is no header.
    """
    if len(frame) < FRAME_SIZE_MIN or not frame.startswith(FRAME_MAGIC):
        raise FrameError("it does not begin like a frame")
    descriptor = frame[4]
    if descriptor & _DESCRIPTOR_UNUSED:
        raise FrameError("its header uses what is reserved")
    is_single_segment = bool(descriptor & 0x20)
    size_bytes = (1 if is_single_segment else 0, 2, 4, 8)[descriptor >> 6]
    if not size_bytes:
        return None
    start = 5 + (not is_single_segment) + (0, 1, 2, 4)[descriptor & 3]
    value = frame[start : start + size_bytes]
    if len(value) < size_bytes:
        raise FrameError("its header is cut off")
    # Two bytes count from 256 on: what is smaller takes one.
    return int.from_bytes(value, "little") + (256 if size_bytes == 2 else 0)


def has_checksum(frame: bytes) -> bool:
    """Whether ``frame`` ends in the low 32 bits of the XXH64 of its content."""
    return len(frame) >= FRAME_SIZE_MIN and bool(frame[4] & 0x04)


class _Package:
    """The package zstandard."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def compressor(self, level: int) -> Compress:
        context = self._module.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)

        def compress(data: bytes | memoryview) -> bytes:
            try:
                frame: bytes = context.compress(data)
            except self._module.ZstdError as error:
                raise FrameError(str(error)) from error
            return frame

        return compress

    def decompressor(self) -> Decompress:
        context = self._module.ZstdDecompressor()

        def decompress(frame: bytes, size: int) -> bytes:
            _compare_size(frame, size)
            try:
                data: bytes = context.decompress(frame, max_output_size=size, allow_extra_data=False)
            except self._module.ZstdError as error:
                raise FrameError(str(error)) from error
            return _of_size(data, size)

        return decompress


class _Builtin:
    """``compression.zstd`` of Python 3.14."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def compressor(self, level: int) -> Compress:
        names = self._module.CompressionParameter
        options = {names.compression_level: level, names.checksum_flag: 1, names.content_size_flag: 1}

        def compress(data: bytes | memoryview) -> bytes:
            try:
                context = self._module.ZstdCompressor(options=options)
                frame: bytes = context.compress(data, mode=context.FLUSH_FRAME)
            except self._module.ZstdError as error:
                raise FrameError(str(error)) from error
            return frame

        return compress

    def decompressor(self) -> Decompress:
        def decompress(frame: bytes, size: int) -> bytes:
            _compare_size(frame, size)
            context = self._module.ZstdDecompressor()
            try:
                # One byte more than there should be, and it is known that there are more.
                data: bytes = context.decompress(frame, max_length=size + 1)
            except self._module.ZstdError as error:
                raise FrameError(str(error)) from error
            if not context.eof or context.unused_data:
                raise FrameError("it does not end where it should")
            return _of_size(data, size)

        return decompress


def _compare_size(frame: bytes, size: int) -> None:
    """The libraries take a frame's own word for its size: it is compared before they are asked."""
    stated = content_size(frame)
    if stated is not None and stated != size:
        raise FrameError(f"its header states {stated} bytes")


def _of_size(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise FrameError(f"it holds {len(data)} bytes")
    return data

"""Which format a file is in: content decides, never the name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Final

from vhdtool.errors import EXIT_UNSUPPORTED, FindingLog, raise_first_error
from vhdtool.formats.image import DiskImage, OpenOptions
from vhdtool.model.identity import ImageFormat
from vhdtool.source import ByteSource, FileSource, JoinedSource

_VHDX_SIGNATURE: Final = b"vhdxfile"
_VHD_SET_SIGNATURE: Final = b"vhdsetv1"
# Names that claim a format: such a file is never taken for a raw disk because its signature is lost.
CLAIMING_SUFFIXES: Final = frozenset({".vhd", ".avhd", ".vud", ".vhdx", ".avhdx", ".vhds"})
_SPLIT_PARTS_MAX: Final = 64


def recognise(source: ByteSource) -> ImageFormat | None:
    """The format whose signature ``source`` carries, None when it carries none."""
    start = source.read_exact(0, min(8, source.size), field="signature")
    if start == _VHDX_SIGNATURE:
        return ImageFormat.VHDX
    from vhdtool.formats.vhd.footer import has_footer_cookie

    return ImageFormat.VHD if has_footer_cookie(source) else None


def open_source(source: ByteSource, options: OpenOptions | None = None, *, raw: bool = False) -> DiskImage:
    """The image in ``source``, with whatever findings opening it made.

    Args:
        raw: take a file without a signature for a raw disk, unless its name claims another format.

    Raises:
        FormatError: it is no image, or cannot be parsed at all.
    """
    return open_recognised(recognise(source), source, options or OpenOptions(), raw=raw)


def open_recognised(
    recognised: ImageFormat | None, source: ByteSource, options: OpenOptions, *, raw: bool = False
) -> DiskImage:
    """As ``open_source``, for who has called ``recognise`` already."""
    if recognised is not None:
        return _reader_of(recognised)(source, options)
    log = FindingLog(source.name)
    if source.read_exact(0, min(8, source.size), field="signature") == _VHD_SET_SIGNATURE:
        log.refuse(
            "image.vhd_set",
            "this is a VHD Set, not a disk; open the .avhdx that it names",
            offset=0,
            field="signature",
            exit_code=EXIT_UNSUPPORTED,
        )
    if raw and Path(source.name).suffix.lower() not in CLAIMING_SUFFIXES:
        return _open_raw(source)
    from vhdtool.formats.vhdx.header import find_valid_header

    if find_valid_header(source):
        # A VHDX whose identifier was destroyed: its own reader says so.
        return _reader_of(ImageFormat.VHDX)(source, options)
    # Nothing of the content is quoted: the file may be anything, and anybody's.
    log.refuse(
        "image.unknown", "neither a VHD nor a VHDX signature in this file", expected="conectix or vhdxfile"
    )


def raw_content(source: ByteSource) -> ByteSource:
    """The raw disk in ``source``: its bytes, or what is compressed in it (seekable zstd).

    Raises:
        FormatError: it is compressed and cannot be read by position, or is an image in another format.
        MissingPackageError: it is compressed, and no package for that is installed.
    """
    from vhdtool.formats.seekable import is_zstd, open_seekable

    if not is_zstd(source):
        return source
    content = open_seekable(source)
    inside = recognise(content)
    if inside is not None:
        FindingLog(source.name).refuse(
            "zstd.content",
            "what is compressed here is no raw disk; decompress it first (zstd -d)",
            found=inside,
            expected="raw",
            exit_code=EXIT_UNSUPPORTED,
        )
    return content


def _open_raw(source: ByteSource) -> DiskImage:
    from vhdtool.formats.raw import RawImage
    from vhdtool.formats.seekable import SeekableSource

    content = raw_content(source)
    return RawImage(content, (content.section,) if isinstance(content, SeekableSource) else ())


@cache
def _reader_of(format_: ImageFormat) -> Callable[[ByteSource, OpenOptions], DiskImage]:
    """Who opens images of a format; imported when there is one to open."""
    if format_ is ImageFormat.VHDX:
        from vhdtool.formats.vhdx.image import open_vhdx

        return open_vhdx
    from vhdtool.formats.vhd.image import open_vhd

    return open_vhd


def open_image(
    path: str | os.PathLike[str],
    options: OpenOptions | None = None,
    *,
    raw: bool = True,
    strict: bool = True,
) -> DiskImage:
    """Open one image file; never its parent.

    Args:
        path: a regular file.
        raw: accept a raw disk (see ``open_source``).
        strict: refuse an image with an ERROR among the findings of its headers; otherwise those are
            left in ``findings`` for the caller to look at.

    Raises:
        FileMissingError, ReadError: it cannot be opened.
        FormatError: it is no image, or one that breaks its format's rules.
    """
    source: ByteSource = FileSource(path)
    try:
        recognised = recognise(source)
        if recognised is None or has_more_pieces(source, recognised):
            source = _with_split_parts(source, recognised)
            recognised = recognise(source)
        image = open_recognised(recognised, source, options or OpenOptions(), raw=raw)
        if strict:
            raise_first_error(image.errors)
    except BaseException:
        source.close()
        raise
    return image


def has_more_pieces(source: ByteSource, recognised: ImageFormat | None) -> bool:
    """Whether ``source`` may be the first piece of a split VHD: no footer at its end, ``x.v01`` beside it.

    A split dynamic disk carries a footer all the same: the copy at the start of its first piece.
    """
    if recognised is ImageFormat.VHDX or not isinstance(source, FileSource):
        return False
    if source.path.suffix.lower() != ".vhd":
        return False
    from vhdtool.formats.vhd.footer import has_cookie_at_end

    return not has_cookie_at_end(source) and _piece(source.path, 1) is not None


def _with_split_parts(first: ByteSource, recognised: ImageFormat | None) -> ByteSource:
    """``first`` and the pieces behind it (``x.vhd``, ``x.v01``, ``x.v02`` ...) when there are any.

    Virtual PC cut images for FAT32 so; the pieces are plain continuation bytes, the footer ends the last.

    Args:
        recognised: what ``first`` is by itself; unless None, pieces that do not end in a footer are others'.
    """
    from vhdtool.formats.vhd.footer import has_cookie_at_end

    assert isinstance(first, FileSource)
    if first.path.suffix.lower() != ".vhd":
        return first
    parts = [first]
    try:
        for number in range(1, _SPLIT_PARTS_MAX):
            path = _piece(first.path, number)
            if path is None:
                break
            parts.append(FileSource(path))
        joined = JoinedSource(parts)
        if len(parts) > 1 and (recognised is None or has_cookie_at_end(joined)):
            return joined
    except BaseException:
        _close(parts[1:])
        raise
    _close(parts[1:])
    return first


def _piece(first: Path, number: int) -> Path | None:
    """The piece ``number`` of the split image that begins with ``first``, None when it is not there."""
    names = (f".v{number:02}", f".V{number:02}")
    return next((path for path in map(first.with_suffix, names) if path.is_file()), None)


def _close(sources: Iterable[ByteSource]) -> None:
    for source in sources:
        source.close()

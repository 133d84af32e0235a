"""Merges: a chain, or a base and its increments, folded into one new full image; never in place.

A merge is an export with other defaults: the leaf's format and block size, dynamic.  The rest of it is for
hosts that are full: it says beforehand how much storage the result can take at most, and refuses when there
is less; and it names the images that go on needing the old files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vhdtool.chain.tree import find_snapshots
from vhdtool.errors import ExportError, InputError, printable
from vhdtool.export.containers.shape import Shape, TargetFormat, claimed_format
from vhdtool.export.containers.target import free_bytes
from vhdtool.export.job import export_chain, wanted_shape
from vhdtool.export.moving.progress import CancelToken, ProgressCallback
from vhdtool.export.options import ExportOptions, ExportReport
from vhdtool.source import files_of

if TYPE_CHECKING:
    from vhdtool.chain.chain import Chain
    from vhdtool.source import ByteSource

AnyPath = str | os.PathLike[str]

_PAGE: Final = 4 << 10
# Headers, log and metadata, and an entry for each block: not less than any format takes.
_TABLES: Final = 5 << 20
_ENTRY: Final = 9
# A manifest takes so much, and more for each chunk with data.
_MANIFEST: Final = 64 << 10
_CHUNK_ROW: Final = 128
_CHUNK_SIZE: Final = 2 << 20


@dataclass(frozen=True, slots=True)
class Room:
    """Storage, in bytes.

    Attributes:
        needed: what the result and its manifest can take at most: less where data turn out to be zeros.
        free: what there is.
    """

    needed: int
    free: int


@dataclass(frozen=True, slots=True)
class StillNeeded:
    """An image that is no layer of the merged chain, and needs one: ``parent``."""

    path: Path
    parent: Path


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did.  Picklable.

    Attributes:
        export: as of any other export.
        room: as it was before.
        still_needed: images beside the layers that go on needing them.
        keeps_id: whether the result carries the leaf's identities.
    """

    export: ExportReport
    room: Room
    still_needed: tuple[StillNeeded, ...]
    keeps_id: bool


def merge_image(
    chain: Chain,
    target: AnyPath,
    options: ExportOptions | None = None,
    *,
    check_room: bool = True,
    tell: Callable[[Room], None] | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> MergeReport:
    """Fold ``chain`` into one new image.

    Args:
        options: as for an export, without a base; format, type and block size are the leaf's when they are
            not given.  ``keep_id`` lets what was made from the leaf find the result as its parent.
        check_room: refuse when the result might not fit.
        tell: hears beforehand how much storage the result can take.

    Raises:
        As :func:`~vhdtool.export.job.export_image`.
        ExportError: there is too little room.
        ValueError: a base is given.
    """
    options = merge_options(chain, target, options or ExportOptions())
    shape = wanted_shape(chain, os.fspath(target), options, None)
    room = room_for(chain, shape, Path(target).parent, allow_damaged=options.damaged == "zero")
    if tell is not None:
        tell(room)
    # What an interrupted merge wrote already takes no more room.
    if check_room and not options.resume and room.needed > room.free:
        raise ExportError(
            f"cannot write {printable(os.fspath(target))}: it takes up to {room.needed} bytes, and its file"
            f" system has {room.free} free; --no-room-check tries it all the same"
        )
    report = export_chain(chain, os.fspath(target), options, progress=progress, cancel=cancel)
    return MergeReport(report, room, still_needed(chain), options.keep_id)


def merge_options(chain: Chain, target: AnyPath, options: ExportOptions) -> ExportOptions:
    """``options`` with what a merge of ``chain`` is by default."""
    if options.base is not None:
        raise ValueError("a merge makes a full image: it has no base")
    leaf = chain.leaf
    kind = TargetFormat(options.format or claimed_format(target) or leaf.format)
    block_size, subformat = options.block_size, options.subformat
    if kind.has_structures and subformat is None and not options.azure:
        subformat = "dynamic"
    if block_size is None and leaf.format.value == kind.value and leaf.geometry.has_table:
        block_size = leaf.geometry.block_size
    return replace(options, format=kind.value, subformat=subformat, block_size=block_size)


def room_for(chain: Chain, shape: Shape, folder: Path, *, allow_damaged: bool = False) -> Room:
    """Storage that an export of ``chain`` as ``shape`` needs at most, and what there is in ``folder``.

    From tables alone, and from the holes of the layers' files; zeros among the data make it less.

    Raises:
        FormatError, ChainError: the chain is not sound.
    """
    held = np.zeros(len(chain.layers), np.int64)
    pages = extents = blocks = 0
    block_size = shape.block_size or shape.virtual_size
    for plan in chain.windows(allow_damaged=allow_damaged):
        rows = np.flatnonzero(plan.layer >= 0)
        start, stop = plan.offset[rows], plan.offset[rows] + plan.length[rows]
        held += np.bincount(plan.layer[rows], plan.length[rows], len(held)).astype(np.int64)
        # A page in which one run ends and the next begins counts once.
        first, last = start // _PAGE, -(-stop // _PAGE)
        pages += int((last - first).sum()) - int(np.count_nonzero(first[1:] < last[:-1]))
        blocks += int(((stop - 1) // block_size - start // block_size + 1).sum())
        extents += len(rows)
    stored = [_stored_bytes(image.source) for image in chain.images]
    # Not more than the pages that are touched, nor than what the layers' files have, moved to other pages.
    data = min(pages * _PAGE, int(np.minimum(held, stored).sum()) + 2 * _PAGE * extents)
    block_count = -(-shape.virtual_size // block_size)
    tables = _TABLES + _ENTRY * block_count
    if shape.format is TargetFormat.VHD:
        # A stored block has a bitmap in whole pages, and at least one page of data.
        bitmap = -(-(block_size >> 12) // _PAGE) * _PAGE
        tables += bitmap * min(blocks, block_count, data // _PAGE)
    manifest = _MANIFEST + -(-data // _CHUNK_SIZE) * _CHUNK_ROW
    return Room(data + tables + manifest, free_bytes(folder))


def _stored_bytes(source: ByteSource) -> int:
    """Bytes of a layer's file that are no holes."""
    return sum(stop - start for start, stop in source.data_ranges(0, source.size))


def still_needed(chain: Chain) -> tuple[StillNeeded, ...]:
    """Images beside the layers of ``chain`` that were made from one of them, and are none themselves."""
    layers = {
        os.path.realpath(file.path): layer.path
        for layer in chain.layers
        for file in files_of(layer.image.source)
    }
    found: list[StillNeeded] = []
    for folder in dict.fromkeys(layer.path.parent for layer in chain.layers):
        try:
            tree = find_snapshots(folder, recursive=False)
        except InputError:  # a folder that can be entered and not listed
            continue
        for node in tree:
            parent = None if node.parent is None else layers.get(os.path.realpath(node.parent))
            if parent is not None and os.path.realpath(node.path) not in layers:
                found.append(StillNeeded(node.path, parent))
    return tuple(dict.fromkeys(found))

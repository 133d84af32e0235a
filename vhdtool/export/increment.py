"""Increments: what of a point in time its base does not have, as plans; and what can be a base.

::

    leaf, base ──side_by_side──► pieces ──┬── same ──────────────────────► UNHELD: the parent has it
                                          └── can differ ──(compared)──► where the leaf takes it from

The plans tile the leaf's disk.  What lies behind the base's end reads as zeros through it, so zeros there are
not held; zeros of the leaf against anything else of the base are.

A base is an image of the tree, which becomes the increment's parent itself; or an earlier export, whose image
becomes the parent, while the point in time that it was made of says what differs, as long as that is still
there as it was.  When it is not, the leaf is compared with the exported image, byte by byte.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

from vhdtool.chain.chain import Chain
from vhdtool.chain.diff import SideBySide, side_by_side
from vhdtool.chain.discover import open_chain
from vhdtool.errors import (
    FormatError,
    InputError,
    ParentMismatchError,
    UnsupportedError,
    VhdtoolError,
    hexadecimal,
    printable,
)
from vhdtool.export.containers.shape import ParentFacts, cannot_create
from vhdtool.export.proof.compare import Comparer, unequal_pieces
from vhdtool.export.proof.manifest import SUFFIX, Manifest, manifest_path
from vhdtool.export.work import layer_record
from vhdtool.formats.image import DiskImage
from vhdtool.formats.registry import open_image, recognise
from vhdtool.model.arrays import distinct
from vhdtool.model.identity import ImageFormat
from vhdtool.model.plan import ReadPlan, merged
from vhdtool.model.state import UNHELD, ZEROS
from vhdtool.source import ByteSource, FileSource, files_of

if TYPE_CHECKING:
    from vhdtool.chain.paths import PathMap

Int64s = npt.NDArray[np.int64]
AnyPath = str | os.PathLike[str]
Differences = Literal["metadata", "content"]

# A plan is given out when so many bytes were compared, or so many ranges were found to differ.
_COMPARED_BYTES: Final = 256 << 20
_COMPARED_RANGES: Final = 1 << 16


def increment_plans(
    leaf: Chain,
    base: Chain,
    *,
    sector_size: int,
    compare_content: bool = False,
    sources: tuple[Sequence[ByteSource], Sequence[ByteSource]] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[ReadPlan]:
    """Plans that tile the disk of ``leaf``: ``UNHELD`` where its bytes are those of ``base``'s disk.

    Args:
        base: not larger than ``leaf``.
        sector_size: of the image that is made: what it holds and what not changes at whole sectors only.
        compare_content: read both sides of what can differ, and hold only what does.
        sources: the bytes of both chains' layers, when they are not those of their images.
        check: called while comparing; may raise.

    Raises:
        FormatError, ChainError: one of the chains is not sound.
        ReadError: one of them cannot be read.
        UnsupportedError: what differs does not begin or end at a whole sector.
    """
    if base.virtual_size > leaf.virtual_size:
        raise ValueError("an increment is not smaller than its base")
    # What tables say are whole sectors of the leaf.
    grain = sector_size if sector_size > leaf.sector_size else 1
    comparing = None
    if compare_content:
        comparing = _Comparing(sources or (_sources_of(leaf), _sources_of(base)), sector_size, check)
    for window in _windows(leaf, base):
        if comparing is not None:
            yield from comparing.plans(window)
        else:
            yield _held(window.a, ~window.same, grain)


def _windows(leaf: Chain, base: Chain) -> Iterator[SideBySide]:
    """Both disks side by side, up to the end of ``leaf``: behind its own end the base reads as zeros."""
    yield from side_by_side(leaf, base)
    if base.virtual_size < leaf.virtual_size:
        for plan in leaf.windows(base.virtual_size):
            nothing = np.full(len(plan), -1, np.int64)
            zeros = ReadPlan(plan.offset, plan.length, np.full(len(plan), ZEROS, np.int16), nothing)
            yield SideBySide(plan, zeros, plan.layer == ZEROS)


def _sources_of(chain: Chain) -> Sequence[ByteSource]:
    return [image.source for image in chain.images]


def _held(plan: ReadPlan, is_held: npt.NDArray[np.bool_], grain: int) -> ReadPlan:
    """``plan`` with all runs but those of ``is_held`` (bool[n]) left to the parent."""
    if grain > 1:
        rows = np.flatnonzero(is_held)
        return _held_ranges(plan, plan.offset[rows], plan.offset[rows] + plan.length[rows], grain)
    layer = np.where(is_held, plan.layer, np.int16(UNHELD))
    return merged(plan.offset, plan.length, layer, np.where(is_held, plan.file_offset, -1))


def _held_ranges(plan: ReadPlan, start: Int64s, stop: Int64s, grain: int) -> ReadPlan:
    """``plan`` with all but guest ranges [start, stop) left to the parent.

    Args:
        start, stop: int64[n], in order, not overlapping, inside of the plan.
        grain: bytes; ranges are widened to multiples of it.

    Raises:
        UnsupportedError: where they are to be widened, the plan does not say where bytes come from.
    """
    if not len(start):
        return _held(plan, np.zeros(len(plan), np.bool_), 1)
    wide_start = np.maximum(start - start % grain, plan.start)
    wide_stop = np.minimum(-(-stop // grain) * grain, plan.stop)
    offset = distinct(plan.offset, wide_start, wide_stop[wide_stop < plan.stop])
    cut = plan.cut(offset, plan.stop)
    last = np.searchsorted(wide_start, offset, "right") - 1
    is_held = (last >= 0) & (offset < wide_stop[last])
    uneven = np.flatnonzero((wide_start % grain != 0) | (wide_stop % grain != 0))
    unknown = np.flatnonzero(is_held & (cut.layer == UNHELD))
    if len(uneven) or len(unknown):
        at = int(wide_start[uneven[0]] if len(uneven) else offset[unknown[0]])
        raise UnsupportedError(
            f"the base has sectors of {grain} bytes, and what differs from it does not begin or end with one"
            f" at guest byte {hexadecimal(at)}: take a base with the sectors of the leaf"
        )
    return _held(cut, is_held, 1)


class _Comparing:
    """Turns pieces that can differ into plans of what does."""

    def __init__(
        self,
        sources: tuple[Sequence[ByteSource], Sequence[ByteSource]],
        grain: int,
        check: Callable[[], None],
    ) -> None:
        self._sources = sources
        self._grain = grain
        self._check = check
        self._comparer = Comparer(self._differs)
        self._starts: list[int] = []
        self._stops: list[int] = []

    def plans(self, window: SideBySide) -> Iterator[ReadPlan]:
        """Plans that tile ``window``."""
        position, compared = window.start, 0
        for piece in unequal_pieces(window, *self._sources):
            self._check()
            self._comparer.add(piece)
            compared += piece.length
            stop = piece.start + piece.length
            enough = compared >= _COMPARED_BYTES or len(self._starts) >= _COMPARED_RANGES
            if enough and stop % self._grain == 0:
                yield self._taken(window.a.clipped(position, stop))
                position, compared = stop, 0
        if position < window.stop:
            yield self._taken(window.a.clipped(position, window.stop))

    def _taken(self, plan: ReadPlan) -> ReadPlan:
        """``plan`` with what was found to differ in it; that is forgotten."""
        self._comparer.flush()
        start, stop = np.array(self._starts, np.int64), np.array(self._stops, np.int64)
        self._starts.clear()
        self._stops.clear()
        return _held_ranges(plan, start, stop, self._grain)

    def _differs(self, start: int, length: int) -> None:
        self._starts.append(start)
        self._stops.append(start + length)


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """What an increment is made on; close it.

    Attributes:
        parent: the image that becomes the increment's parent, read through its own parents.
        disk: what the leaf is laid beside; the same disk as ``parent``'s.
        differences: "metadata" when that is enough to know what can differ, "content" when both are to be
            compared.
        point_in_time: the image whose disk the base is.
        root: over the chunks of an earlier export; None for an image of the tree.
    """

    parent: Chain
    disk: Chain
    differences: Differences
    point_in_time: str
    root: str | None

    @property
    def image(self) -> DiskImage:
        """The increment's parent."""
        return self.parent.leaf

    @property
    def path(self) -> Path:
        """Where that is."""
        return self.parent.layers[0].path

    def files(self) -> list[FileSource]:
        """Every file that must stay as it is while the increment is made."""
        return list(dict.fromkeys((*self.parent.files(), *self.disk.files())))

    def require_fit(self, leaf: Chain, target: AnyPath) -> None:
        """Refuse a leaf that cannot be an increment on this base.

        Raises:
            TargetError: its disk is smaller than the base's.
        """
        smallest = max(self.image.geometry.virtual_size, self.disk.virtual_size)
        if leaf.virtual_size < smallest:
            raise cannot_create(
                target,
                f"its disk of {leaf.virtual_size} bytes is smaller than the base's of {smallest} bytes,"
                " and no child is smaller than its parent",
            )

    def plans(
        self,
        leaf: Chain,
        *,
        compare_content: bool = False,
        sources: tuple[Sequence[ByteSource], Sequence[ByteSource]] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[ReadPlan]:
        """As :func:`increment_plans`."""
        return increment_plans(
            leaf,
            self.disk,
            sector_size=self.image.geometry.sector_size,
            compare_content=compare_content or self.differences == "content",
            sources=sources,
            check=check,
        )

    def record(self, folder: AnyPath, *, compare_content: bool = False) -> dict[str, Any]:
        """What the manifest in ``folder`` says of the base."""
        differences = "content" if compare_content else self.differences
        return base_record(
            ParentFacts.of_image(self.image), folder, self.point_in_time, self.root, differences
        )

    def close(self) -> None:
        """Let go of every file."""
        self.parent.close()
        if self.disk is not self.parent:
            self.disk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def base_record(
    parent: ParentFacts, folder: AnyPath, point_in_time: str, root: str | None, differences: Differences
) -> dict[str, Any]:
    """What the manifest in ``folder`` says of an increment's ``parent``; see records.py."""
    return {
        "path": relative_path(parent.path, Path(folder)),
        "format": str(parent.format),
        "virtual_size": parent.virtual_size,
        "disk_id": None if parent.disk_id is None else str(parent.disk_id),
        "write_id": None if parent.write_id is None else str(parent.write_id),
        "point_in_time": point_in_time,
        "root": root,
        "differences": differences,
    }


def relative_path(path: Path, folder: Path) -> str:
    """``path`` from ``folder``, with ``/`` between its parts; the full path on another drive."""
    full = os.path.join(os.path.realpath(path.parent), path.name)  # noqa: PTH118 - the name stays as it is
    try:
        return Path(os.path.relpath(full, os.path.realpath(folder))).as_posix()
    except ValueError:
        return Path(full).as_posix()


def open_base(
    base: AnyPath,
    *,
    leaf: Chain | None = None,
    search: Sequence[AnyPath] | AnyPath = (),
    maps: Sequence[PathMap | str] = (),
    ignore_checksums: bool = False,
    allow_mismatch: bool = False,
) -> Base:
    """Open what an increment is to be made on.

    A pending log of the base is always replayed: whoever reads the increment sees its parent so.

    Args:
        base: an image of the tree, an earlier export with its manifest beside it, or that manifest.
        leaf: what is going to be laid beside it.
        search, maps, ignore_checksums, allow_mismatch: as for ``open_chain``.

    Raises:
        FileMissingError, ReadError: it cannot be opened.
        UnsupportedError: it is raw, or packed: no image can have such a parent.
        ParentMismatchError: an earlier export is not the file any more that its manifest tells of.
        FormatError, ChainError: it, its parents, or its manifest are not sound.
    """

    def opened(path: Path) -> Chain:
        return open_chain(
            path,
            search=search,
            maps=maps,
            ignore_checksums=ignore_checksums,
            allow_mismatch=allow_mismatch,
        )

    path = Path(base)
    manifest = _manifest_of(path)
    with ExitStack() as stack:
        if manifest is None:
            parent = opened(path)
            stack.callback(parent.close)
            _require_parent(parent.leaf)
            parent.require_sound()
            stack.pop_all()
            return Base(parent, parent, "metadata", str(path), None)
        stack.enter_context(manifest)
        image_path = _exported_image(path, manifest)
        _require_parent_format(manifest.target["format"], image_path)
        parent = opened(image_path)
        closing = stack.enter_context(ExitStack())
        closing.callback(parent.close)
        _require_parent(parent.leaf)
        _require_as_exported(parent.leaf, manifest)
        parent.require_sound()
        point_in_time = manifest.values["point_in_time"]
        if leaf is not None and _is_layer(parent.leaf, leaf):
            # Somebody went on with the exported image itself: nothing tells more of what was written since.
            closing.pop_all()
            return Base(parent, parent, "metadata", point_in_time, manifest.root)
        origin = _origin_of(manifest, opened)
        closing.pop_all()
        if origin is None:
            return Base(parent, parent, "content", point_in_time, manifest.root)
        return Base(parent, origin, "metadata", point_in_time, manifest.root)


def _is_layer(image: DiskImage, chain: Chain) -> bool:
    """Whether the file of ``image`` is one that ``chain`` reads."""
    known = {file.key for file in chain.files() if file.key[1]}
    return any(file.key in known for file in files_of(image.source))


def _manifest_of(path: Path) -> Manifest | None:
    """The manifest that ``path`` is, or that stands beside the image ``path``; None for a plain image."""
    with FileSource(path) as source:
        start = source.read_exact(0, min(1, source.size), field="start")
        if start == b"{" and recognise(source) is None:
            return Manifest(path)
    beside = manifest_path(path)
    return Manifest(beside) if beside.is_file() else None


def _exported_image(path: Path, manifest: Manifest) -> Path:
    """The image that ``manifest`` tells of: what was named, or what stands beside the manifest."""
    if manifest.path != path:
        return path
    recorded = manifest.target["path"]
    names = [path.name.removesuffix(SUFFIX)] if path.name.endswith(SUFFIX) else []
    names.append(recorded.replace("\\", "/").rsplit("/", 1)[-1])
    beside = [path.with_name(name) for name in names if name not in ("", ".", "..", path.name)]
    return next((candidate for candidate in beside if candidate.is_file()), Path(recorded))


def _require_parent(image: DiskImage) -> None:
    if image.write_id is None:
        _require_parent_format(image.format, image.source.name)
    if image.write_id is not None and image.write_id.is_null:
        raise UnsupportedError(
            f"{printable(image.source.name)} has no identity that a child could be bound to"
        )


def _require_parent_format(kind: object, name: object) -> None:
    if kind not in (ImageFormat.VHD, ImageFormat.VHDX):
        raise UnsupportedError(
            f"{printable(str(name))} cannot be the base of an increment: only a VHD or a VHDX can be a parent"
            " (export the base with --format vhdx)"
        )


def _require_as_exported(image: DiskImage, manifest: Manifest) -> None:
    """Refuse an image that is not the file that ``manifest`` tells of: by what can be seen at once.

    Raises:
        ParentMismatchError: it has another format, identity or size.
    """
    for name, found in _seen(image).items():
        expected = manifest.target[name]
        if found != expected:
            raise ParentMismatchError(
                f"{printable(image.source.name)} is not what {printable(str(manifest.path))} tells of:"
                f" {name} is {found}, expected {printable(str(expected)[:100])}"
            )


def is_as_made(manifest: Manifest, path: Path) -> bool:
    """Whether the image at ``path`` is the file that ``manifest`` tells of: by what can be seen at once."""
    try:
        if manifest.target["format"] == ImageFormat.RAW:
            with FileSource(path) as source:
                expected: int = manifest.target["file_size"]
                return source.size == expected
        with closing(open_image(path)) as image:
            return not any(manifest.target[name] != found for name, found in _seen(image).items())
    except (FormatError, InputError):
        return False


def _seen(image: DiskImage) -> dict[str, Any]:
    """What an image shows of itself without being read."""
    return {
        "format": str(image.format),
        "virtual_size": image.geometry.virtual_size,
        "file_size": image.source.size,
        "disk_id": None if image.disk_id is None else str(image.disk_id),
        "write_id": None if image.write_id is None else str(image.write_id),
    }


def _origin_of(manifest: Manifest, opened: Callable[[Path], Chain]) -> Chain | None:
    """The chain that was exported, if every layer of it is still there as it was, and none besides."""
    recorded: str = manifest.values["point_in_time"]
    # A manifest may come from a stranger: a network path in it is not followed.
    if recorded.startswith(("\\\\", "//")) or manifest.damaged_count:
        return None
    try:
        chain = opened(Path(recorded))
    except (VhdtoolError, ValueError):
        return None
    try:
        chain.require_sound()
        if is_made_of(manifest, chain):
            return chain
    except VhdtoolError:
        pass
    except BaseException:
        chain.close()
        raise
    chain.close()
    return None


def is_made_of(manifest: Manifest, chain: Chain) -> bool:
    """Whether ``manifest`` lists the layers of ``chain``, unchanged since, and none besides."""
    replayed = any(image.log.replayed for image in chain.images)
    if manifest.values["log_replayed"] is not replayed:
        return False
    known = ("size", "mtime", "write_id")
    return [[layer[name] for name in known] for layer in manifest.layers] == [
        [layer_record(layer)[name] for name in known] for layer in chain.layers
    ]

"""New images: empty or filled from a raw disk, and differencing children of images that are there.

::

    create    raw disk ──► plans ──► mover ──► by block ──► writer of the format ──► TargetFile
    snapshot  parent's identity and path ─────────────────► writer of the format ──► TargetFile

Blocks of zeros are not stored in dynamic images.  A fixed image has its full size, its zeros are holes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol
from uuid import uuid4

from vhdtool.chain.paths import path_fault
from vhdtool.errors import EXIT_UNSUPPORTED, Finding, FindingLog, TargetError, printable
from vhdtool.export.copy import CancelToken, Mover, ProgressCallback, Reporter
from vhdtool.export.target import TargetFile, mode_like
from vhdtool.export.watch import SourceWatch
from vhdtool.formats.image import OpenOptions, Sink
from vhdtool.formats.raw import note_other_format
from vhdtool.formats.registry import open_image, recognise
from vhdtool.model.identity import DiskType, Identity, ImageFormat
from vhdtool.model.state import Run
from vhdtool.source import FileSource, files_of

if TYPE_CHECKING:
    from vhdtool.formats.image import DiskImage

AnyPath = str | os.PathLike[str]
Subformat = Literal["fixed", "dynamic", "differencing"]
Format = Literal["vhd", "vhdx"]

_GIB: Final = 1 << 30
_SIZE_MAX: Final = {ImageFormat.VHD: 2040 * _GIB, ImageFormat.VHDX: 64 * 1024 * _GIB}
_BLOCK_SIZE: Final = {ImageFormat.VHD: (512, 256 << 20), ImageFormat.VHDX: (1 << 20, 256 << 20)}
_BLOCK_SIZE_DEFAULT: Final = {
    (ImageFormat.VHD, False): 2 << 20,
    (ImageFormat.VHD, True): 2 << 20,
    (ImageFormat.VHDX, False): 32 << 20,
    # As Windows makes checkpoints: a small write must not claim much.
    (ImageFormat.VHDX, True): 2 << 20,
}
# A VHD's writer keeps its whole table: so many blocks are 64 MiB of it.
_VHD_BLOCKS_MAX: Final = 1 << 24
_SUFFIXES: Final = {
    ".vhd": ImageFormat.VHD,
    ".avhd": ImageFormat.VHD,
    ".vud": ImageFormat.VHD,
    ".vhdx": ImageFormat.VHDX,
    ".avhdx": ImageFormat.VHDX,
}


@dataclass(frozen=True, slots=True)
class CreateReport:
    """What was made.  Picklable.  Sizes are bytes.

    Attributes:
        disk_id, write_id: as ``info`` shows them; the same for a VHD.
        data_bytes: taken from the raw disk.
        parent: the path recorded of the parent, relative, with Windows separators; None for all others.
        findings: about the parent, or about the raw disk.
    """

    target: str
    format: ImageFormat
    type: DiskType
    virtual_size: int
    file_size: int
    block_size: int
    disk_id: Identity
    write_id: Identity
    data_bytes: int = 0
    parent: str | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Identities:
    """The identities and the time that a new image gets; None is a new one, or now.

    A VHD has one identity: either of the two.
    """

    disk_id: Identity | None = None
    write_id: Identity | None = None
    created: datetime | None = None


def create_image(
    target: AnyPath,
    *,
    format: Format | None = None,  # noqa: A002 - the name is promised
    subformat: Subformat = "dynamic",
    size: int | None = None,
    block_size: int | None = None,
    logical_sector_size: int | None = None,
    physical_sector_size: int | None = None,
    source: AnyPath | None = None,
    parent: AnyPath | None = None,
    force: bool = False,
    sync: bool = True,
    identities: Identities | None = None,
    options: OpenOptions | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> CreateReport:
    """Make a new image; it appears under its name when it is whole.

    Args:
        target: where.
        format: None takes the parent's, or the one that the target's name claims.
        subformat: "differencing" goes with a ``parent``, and only with one.
        size: of the disk in bytes; None is the size of ``source`` (rounded up to a whole sector) or of
            ``parent``.
        block_size: bytes; None is what Windows takes.
        logical_sector_size, physical_sector_size: 512 or 4096; VHD has 512 only; None is 512 and 4096 for a
            VHDX, and a parent's for its child.
        source: a raw disk to fill it from.
        parent: see :func:`snapshot_image`.
        force: replace what stands under the name (never one of the inputs).
        sync: wait until the disk has it before it appears.
        identities: instead of new ones.
        options: how to open ``parent``.
        progress, cancel: as for an export.

    Raises:
        TargetExistsError, TargetError: the target is there already, or a format cannot do what was asked.
        FileMissingError, ReadError: ``source`` or ``parent`` cannot be read.
        FormatError: ``source`` is no raw disk, ``parent`` no image that can have children.
        SourceChangedError: ``source`` was written to meanwhile.
        ExportError: the target cannot be written.
        CancelledError: stopped through ``cancel``.
        ValueError: options that exclude each other.
    """
    if (subformat == "differencing") != (parent is not None):
        raise ValueError("a differencing image has a parent, and no other has")
    if source is not None and parent is not None:
        raise ValueError("a child begins empty: a source and a parent exclude each other")
    log = FindingLog(str(source or parent))
    with ExitStack() as stack:
        above = None
        if parent is not None:
            above = open_image(parent, options)
            stack.callback(above.close)
        shape = _Shape(
            str(target),
            _wanted_format(target, format, above),
            DiskType(subformat),
            virtual_size=size,
            block_size=block_size,
            sector_size=logical_sector_size,
            physical_sector_size=physical_sector_size,
            identities=identities or Identities(),
        )
        file = None
        inputs: list[Path] = []
        if above is not None:
            inputs = _become_child(shape, above)
        elif source is not None:
            file = _open_raw(source, log, stack)
            inputs = [file.path]
            _fit_source(shape, file)
        shape.settle()
        output = stack.enter_context(
            TargetFile(target, force=force, inputs=inputs, mode=mode_like(inputs), sync=sync)
        )
        report = _write(shape, output, file, progress, cancel)
        output.publish()
    return replace(report, findings=log.all() if above is None else above.findings)


def snapshot_image(
    parent: AnyPath,
    child: AnyPath,
    *,
    size: int | None = None,
    block_size: int | None = None,
    force: bool = False,
    sync: bool = True,
    identities: Identities | None = None,
    options: OpenOptions | None = None,
) -> CreateReport:
    r"""Make an empty differencing child of ``parent``, in the parent's format.

    The child records the parent's identity, the path from its own folder (``..\base\disk.vhdx``) and
    the full path: on Windows with the drive, elsewhere from the root (``\srv\vms\disk.vhdx``), which no
    reader follows without being told to.  A VHDX child takes over the VirtualDiskId and both sector
    sizes; a VHD child records no time stamp of its parent, as Windows does.

    From now on the parent must not be written to; that is the caller's to see to.

    Args:
        size: may be larger than the parent's.

    Raises:
        As :func:`create_image`.
    """
    return create_image(
        child,
        subformat="differencing",
        size=size,
        block_size=block_size,
        parent=parent,
        force=force,
        sync=sync,
        identities=identities,
        options=options,
    )


@dataclass(frozen=True, slots=True)
class _ParentPaths:
    """Where a child finds its parent, with Windows' separators; ``absolute`` may be empty."""

    identity: Identity
    relative: str
    absolute: str


@dataclass(slots=True)
class _Shape:
    """What is to be made, as far as it is known; ``settle`` fills in the rest and checks it."""

    target: str
    format: ImageFormat
    type: DiskType
    virtual_size: int | None = None
    block_size: int | None = None
    sector_size: int | None = None
    physical_sector_size: int | None = None
    parent: _ParentPaths | None = None
    identities: Identities = Identities()

    def settle(self) -> None:
        """Put defaults where nothing was said.

        Raises:
            TargetError: the format cannot do that.
        """
        name = self.format.upper()
        is_vhd = self.format is ImageFormat.VHD
        self.sector_size = self.sector_size or 512
        self.physical_sector_size = self.physical_sector_size or (512 if is_vhd else 4096)
        allowed = (512,) if is_vhd else (512, 4096)
        if self.sector_size not in allowed or self.physical_sector_size not in allowed:
            sizes = " or ".join(map(str, allowed))
            raise _cannot(self.target, f"a {name} has sectors of {sizes} bytes")
        if self.virtual_size is None:
            raise _cannot(self.target, "no size was given")
        given = self.identities
        if is_vhd and given.disk_id and given.write_id and given.disk_id != given.write_id:
            raise _cannot(self.target, "a VHD has one identity, and two were given")
        limit = _SIZE_MAX[self.format]
        if not 0 < self.virtual_size <= limit:
            raise _cannot(
                self.target,
                f"a {name} holds 1 sector to {limit // _GIB} GiB, not {self.virtual_size} bytes",
            )
        if self.virtual_size % self.sector_size:
            raise _cannot(
                self.target,
                f"{self.virtual_size} bytes are no whole number of {self.sector_size}-byte sectors",
            )
        self._settle_block_size(name)

    def _settle_block_size(self, name: str) -> None:
        assert self.virtual_size is not None
        if self.block_size is None:
            self.block_size = _BLOCK_SIZE_DEFAULT[self.format, self.type is DiskType.DIFFERENCING]
        low, high = _BLOCK_SIZE[self.format]
        if not low <= self.block_size <= high or self.block_size & (self.block_size - 1):
            raise _cannot(
                self.target,
                f"the block size of a {name} is a power of two from {low} to {high} bytes,"
                f" not {self.block_size}",
            )
        if self.format is ImageFormat.VHD and self.virtual_size > self.block_size * _VHD_BLOCKS_MAX:
            raise _cannot(self.target, f"blocks of {self.block_size} bytes are too small for so large a disk")


class _Writer(Protocol):
    """What the writers of both formats have in common."""

    def place_block(self, block: int) -> int:
        """The file offset where ``block`` is to be written."""
        ...

    def finish(self) -> int:
        """Write the tables; the file's size."""
        ...


class _ByBlock:
    """Sink for guest bytes in ascending order: gives each block that comes up its place in the file."""

    def __init__(self, sink: Sink, block_size: int, place: Callable[[int], int]) -> None:
        self._sink = sink
        self._block_size = block_size
        self._place = place
        self._block = -1
        self._file_offset = 0

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while len(view):
            block, within = divmod(offset, self._block_size)
            if block != self._block:
                self._file_offset = self._place(block)
                self._block = block
            count = min(len(view), self._block_size - within)
            self._sink.write_at(self._file_offset + within, view[:count])
            view = view[count:]
            offset += count


def _write(
    shape: _Shape,
    output: TargetFile,
    source: FileSource | None,
    progress: ProgressCallback | None,
    cancel: CancelToken | None,
) -> CreateReport:
    """Write all of the image and finish the file; publishing is the caller's."""
    assert shape.virtual_size is not None
    assert shape.block_size is not None
    given = shape.identities
    only = given.write_id if shape.format is ImageFormat.VHD else None
    disk_id = given.disk_id or only or Identity.of_uuid(uuid4())
    write_id = disk_id
    is_fixed_vhd = shape.format is ImageFormat.VHD and shape.type is DiskType.FIXED
    data_bytes = 0
    writer: _Writer | None = None
    if shape.format is ImageFormat.VHDX:
        write_id = shape.identities.write_id or Identity.of_uuid(uuid4())
        writer = _vhdx_writer(shape, output, disk_id, write_id)
    elif not is_fixed_vhd:
        writer = _vhd_writer(shape, output, disk_id)
    if source is not None:
        sink = output if writer is None else _ByBlock(output, shape.block_size, writer.place_block)
        data_bytes = _fill(sink, source, progress, cancel)
    size = _fixed_vhd(shape, output, disk_id) if writer is None else writer.finish()
    output.finish(size)
    return CreateReport(
        target=shape.target,
        format=shape.format,
        type=shape.type,
        virtual_size=shape.virtual_size,
        file_size=size,
        block_size=0 if is_fixed_vhd else shape.block_size,
        disk_id=disk_id,
        write_id=write_id,
        data_bytes=data_bytes,
        parent=None if shape.parent is None else shape.parent.relative,
    )


def _fill(
    sink: Sink, source: FileSource, progress: ProgressCallback | None, cancel: CancelToken | None
) -> int:
    """Move the raw disk; returns how many bytes of it are data."""
    watch = SourceWatch([source])
    reporter = Reporter("copy", source.size, estimate=source.size, progress=progress, cancel=cancel)
    with watch.guarding():
        moved = Mover([source], sink, reporter=reporter).run([[Run(0, source.size, 0, 0)]])
    watch.check()
    return moved.written


def _created(shape: _Shape) -> datetime:
    return shape.identities.created or datetime.now(UTC)


def _fixed_vhd(shape: _Shape, output: TargetFile, disk_id: Identity) -> int:
    from vhdtool.formats.vhd.write import write_fixed_footer

    assert shape.virtual_size is not None
    return write_fixed_footer(
        output, virtual_size=shape.virtual_size, unique_id=disk_id, timestamp=_created(shape)
    )


def _vhd_writer(shape: _Shape, output: TargetFile, disk_id: Identity) -> _Writer:
    from vhdtool.formats.vhd.write import ParentRecord, VhdWriter

    assert shape.virtual_size is not None
    assert shape.block_size is not None
    parent = shape.parent
    record = None if parent is None else ParentRecord(parent.identity, parent.absolute, parent.relative)
    return VhdWriter(
        output,
        virtual_size=shape.virtual_size,
        unique_id=disk_id,
        timestamp=_created(shape),
        disk_type=shape.type,
        block_size=shape.block_size,
        parent=record,
    )


def _vhdx_writer(shape: _Shape, output: TargetFile, disk_id: Identity, write_id: Identity) -> _Writer:
    from vhdtool.formats.vhdx.write import ParentRecord, VhdxWriter

    assert shape.virtual_size is not None
    assert shape.block_size is not None
    assert shape.sector_size is not None
    assert shape.physical_sector_size is not None
    parent = shape.parent
    record = None if parent is None else ParentRecord(parent.identity, parent.relative, parent.absolute)
    return VhdxWriter(
        output,
        virtual_size=shape.virtual_size,
        block_size=shape.block_size,
        logical_sector_size=shape.sector_size,
        physical_sector_size=shape.physical_sector_size,
        disk_type=shape.type,
        disk_id=disk_id,
        write_id=write_id,
        parent=record,
    )


def _wanted_format(target: AnyPath, wanted: Format | None, parent: DiskImage | None) -> ImageFormat:
    """What was asked for, else the parent's format, else what the name claims."""
    if wanted is not None:
        return ImageFormat(wanted)
    claimed = _SUFFIXES.get(Path(target).suffix.lower())
    if parent is not None:
        # A raw disk is no parent in any format; that is said where the parent is looked at.
        inherited = parent.format if parent.format is not ImageFormat.RAW else claimed or ImageFormat.VHDX
        if claimed not in (None, inherited):
            names = f"a {claimed.upper()}, and its parent is a {inherited.upper()}"
            raise _cannot(target, f"its name claims {names}")
        return inherited
    if claimed is None:
        raise _cannot(target, "its name does not say which format it is to have")
    return claimed


def _open_raw(path: AnyPath, log: FindingLog, stack: ExitStack) -> FileSource:
    """The raw disk; an image with a format of its own is refused, it would be wrapped whole."""
    source = stack.enter_context(FileSource(path))
    note_other_format(source, log)
    if source.size == 0:
        log.refuse("raw.empty", "the file is empty", found="0 bytes", expected="a disk")
    recognised = recognise(source)
    if recognised is not None:
        log.refuse(
            "create.source",
            "a new image is filled from a raw disk; export this one first",
            found=recognised,
            expected="raw",
            exit_code=EXIT_UNSUPPORTED,
        )
    return source


def _fit_source(shape: _Shape, source: FileSource) -> None:
    sector_size = shape.sector_size or 512
    if shape.virtual_size is None:
        shape.virtual_size = -(-source.size // sector_size) * sector_size
    elif shape.virtual_size < source.size:
        raise _cannot(
            shape.target,
            f"{printable(source.name)} has {source.size} bytes, more than a disk of {shape.virtual_size}",
        )


def _become_child(shape: _Shape, image: DiskImage) -> list[Path]:
    """Take over from the parent what a child has of it; returns the parent's files."""
    log = FindingLog(image.source.name)
    if image.write_id is None or image.format is not shape.format:
        log.refuse(
            "create.parent_format",
            f"this cannot be the parent of a {shape.format.upper()}",
            found=image.format,
            expected=shape.format,
            exit_code=EXIT_UNSUPPORTED,
        )
    geometry = image.geometry
    if shape.virtual_size is None:
        shape.virtual_size = geometry.virtual_size
    if shape.virtual_size < geometry.virtual_size:
        raise _cannot(
            shape.target, f"a child is not smaller than its parent of {geometry.virtual_size} bytes"
        )
    if shape.sector_size not in (None, geometry.sector_size):
        raise _cannot(shape.target, f"its parent has logical sectors of {geometry.sector_size} bytes")
    shape.sector_size = geometry.sector_size
    if shape.format is ImageFormat.VHDX:
        _inherit_disk(shape, image)
    files = [file.path for file in files_of(image.source)]
    shape.parent = _parent_paths(shape.target, files[0], image.write_id)
    return files


def _inherit_disk(shape: _Shape, image: DiskImage) -> None:
    given = shape.identities
    shape.identities = Identities(given.disk_id or image.disk_id, given.write_id, given.created)
    shape.physical_sector_size = shape.physical_sector_size or image.geometry.physical_sector_size


def _parent_paths(target: str, parent: Path, identity: Identity) -> _ParentPaths:
    """The paths that lead from the child's folder, and from the root, to ``parent``.

    Folders are resolved, because ``..`` means another folder behind a link; the parent's own name stays.

    Raises:
        TargetError: its path cannot be written as a Windows path.
    """
    folder = os.path.realpath(parent.parent)
    child_folder = os.path.realpath(Path(target).parent)
    full = os.path.join(folder, parent.name)  # noqa: PTH118 - text, not a path to open
    absolute = full.replace(os.sep, "\\")
    if os.sep == "/" and _fault(full[1:].split("/")):
        absolute = ""
    try:
        parts = list(Path(os.path.relpath(full, child_folder)).parts)
    except ValueError:  # another drive
        return _ParentPaths(identity, "", absolute)
    fault = _fault(parts)
    if fault:
        shown = printable(str(parent))
        raise _cannot(target, f"the path of its parent {shown} cannot be recorded for Windows: {fault}")
    relative = "\\".join(parts)
    return _ParentPaths(identity, relative if parts[0] == ".." else f".\\{relative}", absolute)


def _fault(parts: list[str]) -> str:
    """Why a path of these parts is none for Windows; empty when it is one."""
    try:
        "".join(parts).encode("utf-16-le")
    except UnicodeEncodeError:
        return "a name is no text"
    return path_fault(parts)


def _cannot(target: AnyPath, why: str) -> TargetError:
    return TargetError(f"cannot create {printable(str(target))}: {why}")

"""New images: empty or filled from a raw disk, and differencing children of images that are there.

::

    create    raw disk ──► plans ──► mover ──► container of the format ──► TargetFile
    snapshot  parent's identity and path ────► container of the format ──► TargetFile

Blocks of zeros are not stored in dynamic images.  A fixed image has its full size, its zeros are holes.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vhdtool.errors import EXIT_UNSUPPORTED, Finding, FindingLog, printable
from vhdtool.export.containers.container import Container, container_for
from vhdtool.export.containers.shape import (
    AnyPath,
    ParentFacts,
    Shape,
    Subformat,
    TargetFormat,
    Wanted,
    cannot_create,
    claimed_format,
    shape_of_child,
)
from vhdtool.export.containers.shape import Identities as Identities
from vhdtool.export.containers.target import TargetFile, mode_like
from vhdtool.export.gentle.watch import SourceWatch
from vhdtool.export.moving.copy import Mover
from vhdtool.export.moving.progress import CancelToken, ProgressCallback, Reporter
from vhdtool.formats.image import OpenOptions
from vhdtool.formats.raw import note_other_format
from vhdtool.formats.registry import open_image, raw_content, recognise
from vhdtool.model.identity import DiskType, Identity, ImageFormat
from vhdtool.model.state import Run
from vhdtool.source import ByteSource, FileSource, files_of

if TYPE_CHECKING:
    from vhdtool.formats.image import DiskImage

Format = Literal["vhd", "vhdx"]


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
        file: ByteSource | None = None
        above: DiskImage | None = None
        inputs: list[Path] = []
        if parent is not None:
            above = open_image(parent, options)
            stack.callback(above.close)
            inputs = [part.path for part in files_of(above.source)]
            shape = shape_of_child(
                target,
                ParentFacts.of_image(above),
                format=format,
                virtual_size=size,
                block_size=block_size,
                sector_size=logical_sector_size,
                physical_sector_size=physical_sector_size,
                identities=identities,
            )
        else:
            kind = _wanted_format(target, format)
            if source is not None:
                file = _open_raw(source, log, stack)
                inputs = [part.path for part in files_of(file)]
                size = _size_for(file, target, size, logical_sector_size or 512)
            shape = Wanted(
                target=str(target),
                format=kind,
                type=DiskType(subformat),
                virtual_size=size,
                block_size=block_size,
                sector_size=logical_sector_size,
                physical_sector_size=physical_sector_size,
                identities=identities or Identities(),
            ).settle()
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


def _write(
    shape: Shape,
    output: TargetFile,
    source: ByteSource | None,
    progress: ProgressCallback | None,
    cancel: CancelToken | None,
) -> CreateReport:
    """Write all of the image and finish the file; publishing is the caller's."""
    container = container_for(shape, output, record=False)
    data_bytes = 0 if source is None else _fill(container, source, progress, cancel)
    size = container.finish()
    output.finish(size)
    assert shape.disk_id is not None
    assert shape.write_id is not None
    return CreateReport(
        target=shape.target,
        format=shape.image_format,
        type=shape.type,
        virtual_size=shape.virtual_size,
        file_size=size,
        block_size=shape.block_size,
        disk_id=shape.disk_id,
        write_id=shape.write_id,
        data_bytes=data_bytes,
        parent=None if shape.parent is None else shape.parent.relative,
    )


def _fill(
    container: Container,
    source: ByteSource,
    progress: ProgressCallback | None,
    cancel: CancelToken | None,
) -> int:
    """Move the raw disk; returns how many bytes of it are data."""
    watch = SourceWatch(files_of(source))
    reporter = Reporter("copy", source.size, estimate=source.size, progress=progress, cancel=cancel)
    with watch.guarding():
        moved = Mover([source], container, reporter=reporter).run([[Run(0, source.size, 0, 0)]])
    watch.check()
    return moved.written


def _wanted_format(target: AnyPath, wanted: Format | None) -> TargetFormat:
    """What was asked for, else what the name claims."""
    kind = claimed_format(target) if wanted is None else TargetFormat(wanted)
    if kind is None or not kind.has_structures:
        raise cannot_create(target, "its name does not say which format it is to have")
    return kind


def _open_raw(path: AnyPath, log: FindingLog, stack: ExitStack) -> ByteSource:
    """The raw disk; an image with a format of its own is refused, it would be wrapped whole."""
    source = raw_content(stack.enter_context(FileSource(path)))
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


def _size_for(source: ByteSource, target: AnyPath, size: int | None, sector_size: int) -> int:
    """Of a disk that ``source`` fills: what was asked for, or its own."""
    if size is None:
        return -(-source.size // sector_size) * sector_size
    if size < source.size:
        raise cannot_create(
            target, f"{printable(source.name)} has {source.size} bytes, more than a disk of {size}"
        )
    return size

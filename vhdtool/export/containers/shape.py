r"""What an image is to be, settled before anything of it is made.

::

    what was asked for ──► Wanted ──► settle: defaults, checks ──► Shape ──► container_for (container.py)
         shape_of_export  a full image of a disk that is there
         shape_of_child   a differencing image over a parent: a snapshot, or an increment

A :class:`Shape` holds everything that decides about an image's bytes besides its content: its identities and
its time too.  So an export that goes on another day (``document`` and ``shape_of_document`` bring a shape
through a journal) makes the very image that it began.

Which identities an image gets when it is to keep those of another one (``kept_identities``): a VHDX has two,
the disk's and that of what was written; a VHD has one, which is both.  A VHD made of a VHDX gets the one of
what was written, because that is the one by which children know their parent; a VHDX made of a VHD gets the
VHD's one for both.  A way back so ends with what children of the VHD look for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import uuid4

from vhdtool.chain.paths import path_fault
from vhdtool.errors import EXIT_UNSUPPORTED, FindingLog, TargetError, printable
from vhdtool.model.identity import DiskType, Identity, ImageFormat
from vhdtool.source import files_of

if TYPE_CHECKING:
    from vhdtool.formats.image import DiskImage

AnyPath = str | os.PathLike[str]
Subformat = Literal["fixed", "dynamic", "differencing"]

_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
_SIZE_MAX: Final = {"vhd": 2040 * _GIB, "vhdx": 64 * 1024 * _GIB}
_BLOCK_SIZE: Final = {"vhd": (512, 256 << 20), "vhdx": (1 << 20, 256 << 20)}
_BLOCK_SIZE_DEFAULT: Final = {
    ("vhd", False): 2 << 20,
    ("vhd", True): 2 << 20,
    ("vhdx", False): 32 << 20,
    # As Windows makes checkpoints: a small write must not claim much.
    ("vhdx", True): 2 << 20,
}
# A VHD's writer keeps its whole table: so many blocks are 64 MiB of it.
_VHD_BLOCKS_MAX: Final = 1 << 24


class TargetFormat(StrEnum):
    """What an export can be written as; the last two hold a raw disk, packed."""

    RAW = "raw"
    VHD = "vhd"
    VHDX = "vhdx"
    RAW_ZST = "raw.zst"
    E01 = "e01"

    @property
    def has_structures(self) -> bool:
        """Whether it is more than a raw disk: with tables, blocks, identities."""
        return self in (TargetFormat.VHD, TargetFormat.VHDX)


_SUFFIXES: Final = {
    ".vhd": TargetFormat.VHD,
    ".avhd": TargetFormat.VHD,
    ".vud": TargetFormat.VHD,
    ".vhdx": TargetFormat.VHDX,
    ".avhdx": TargetFormat.VHDX,
    ".raw": TargetFormat.RAW,
}
_PACKED_SUFFIXES: Final = {".zst": TargetFormat.RAW_ZST, ".e01": TargetFormat.E01}
# Who gives one of these names does not want a raw disk behind it.
_FOREIGN_SUFFIXES: Final = {
    ".qcow2": "a qcow2 image",
    ".vmdk": "a VMDK",
    ".vdi": "a VDI",
    ".vhds": "a VHD Set",
}


@dataclass(frozen=True, slots=True)
class Identities:
    """The identities and the time that a new image gets; None is a new one, or now.

    A VHD has one identity: either of the two.
    """

    disk_id: Identity | None = None
    write_id: Identity | None = None
    created: datetime | None = None


@dataclass(frozen=True, slots=True)
class ParentPaths:
    """Where a child finds its parent, with Windows' separators; one of the two paths may be empty."""

    identity: Identity
    relative: str
    absolute: str


@dataclass(frozen=True, slots=True)
class Shape:
    """What an image is to be; nothing is left open, and its format can do it.  Sizes are bytes.

    Attributes:
        target: where, as it was given; for messages.
        virtual_size: whole logical sectors, but for formats without structures.
        block_size: 0 where an image has no blocks.
        sector_size, physical_sector_size: as the guest sees them.
        disk_id, write_id: the same for a VHD; None where a format has none.
        created: UTC.
        parent: of a differencing image, and only of one.
    """

    target: str
    format: TargetFormat
    type: DiskType
    virtual_size: int
    block_size: int
    sector_size: int
    physical_sector_size: int
    disk_id: Identity | None
    write_id: Identity | None
    created: datetime
    parent: ParentPaths | None = None

    @property
    def image_format(self) -> ImageFormat:
        """What a reader of the image, unpacked, calls it."""
        return ImageFormat(self.format) if self.format.has_structures else ImageFormat.RAW

    def facts(self) -> dict[str, Any]:
        """For a manifest: format, subformat, sizes and identities."""
        return {
            "format": str(self.format),
            "subformat": str(self.type),
            "virtual_size": self.virtual_size,
            "block_size": self.block_size,
            "logical_sector_size": self.sector_size,
            "disk_id": None if self.disk_id is None else str(self.disk_id),
            "write_id": None if self.write_id is None else str(self.write_id),
        }

    def document(self) -> dict[str, Any]:
        """All of it but the target, as JSON; ``shape_of_document`` reads it."""
        parent = self.parent
        return {
            "format": str(self.format),
            "subformat": str(self.type),
            "virtual_size": self.virtual_size,
            "block_size": self.block_size,
            "sector_size": self.sector_size,
            "physical_sector_size": self.physical_sector_size,
            "disk_id": _hex(self.disk_id),
            "write_id": _hex(self.write_id),
            "created": self.created.isoformat(),
            "parent": None if parent is None else [_hex(parent.identity), parent.relative, parent.absolute],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What was asked for; None is left to ``settle``.

    Attributes: as those of :class:`Shape`.
    """

    target: str
    format: TargetFormat
    type: DiskType
    virtual_size: int | None = None
    block_size: int | None = None
    sector_size: int | None = None
    physical_sector_size: int | None = None
    parent: ParentPaths | None = None
    identities: Identities = Identities()

    def settle(self) -> Shape:
        """Put defaults where nothing was said, and check all of it.

        Raises:
            TargetError: the format cannot do that.
        """
        assert (self.type is DiskType.DIFFERENCING) == (self.parent is not None)
        if self.virtual_size is None:
            raise cannot_create(self.target, "no size was given")
        if not self.format.has_structures:
            return self._settle_raw(self.virtual_size)
        sector_size, physical_sector_size = self._settle_sectors()
        disk_id, write_id = self._settle_identities()
        self._check_size(self.virtual_size, sector_size)
        return Shape(
            self.target,
            self.format,
            self.type,
            virtual_size=self.virtual_size,
            block_size=self._settle_block_size(self.virtual_size),
            sector_size=sector_size,
            physical_sector_size=physical_sector_size,
            disk_id=disk_id,
            write_id=write_id,
            created=self._created(),
            parent=self.parent,
        )

    def _settle_raw(self, virtual_size: int) -> Shape:
        name = _a(self.format)
        if self.type is not DiskType.FIXED:
            raise cannot_create(self.target, f"{name} is always fixed, never {self.type}")
        if self.block_size is not None:
            raise cannot_create(self.target, f"{name} has no blocks")
        if self.identities.disk_id or self.identities.write_id:
            raise cannot_create(self.target, f"{name} has no identities")
        if virtual_size <= 0:
            raise cannot_create(self.target, f"a disk has at least one byte, not {virtual_size}")
        sector_size = self.sector_size or 512
        return Shape(
            self.target,
            self.format,
            self.type,
            virtual_size=virtual_size,
            block_size=0,
            sector_size=sector_size,
            physical_sector_size=self.physical_sector_size or sector_size,
            disk_id=None,
            write_id=None,
            created=self._created(),
        )

    def _settle_sectors(self) -> tuple[int, int]:
        is_vhd = self.format is TargetFormat.VHD
        sector_size = self.sector_size or 512
        physical_sector_size = self.physical_sector_size or (512 if is_vhd else 4096)
        allowed = (512,) if is_vhd else (512, 4096)
        if sector_size not in allowed or physical_sector_size not in allowed:
            sizes = " or ".join(map(str, allowed))
            raise cannot_create(self.target, f"{_a(self.format)} has sectors of {sizes} bytes")
        return sector_size, physical_sector_size

    def _settle_identities(self) -> tuple[Identity, Identity]:
        given = self.identities
        if self.format is TargetFormat.VHDX:
            return given.disk_id or _new_identity(), given.write_id or _new_identity()
        if given.disk_id and given.write_id and given.disk_id != given.write_id:
            raise cannot_create(self.target, "a VHD has one identity, and two were given")
        only = given.disk_id or given.write_id or _new_identity()
        return only, only

    def _check_size(self, virtual_size: int, sector_size: int) -> None:
        limit = _SIZE_MAX[self.format]
        if not 0 < virtual_size <= limit:
            raise cannot_create(
                self.target,
                f"{_a(self.format)} holds 1 sector to {limit // _GIB} GiB, not {virtual_size} bytes",
            )
        if virtual_size % sector_size:
            raise cannot_create(
                self.target, f"{virtual_size} bytes are no whole number of {sector_size}-byte sectors"
            )

    def _settle_block_size(self, virtual_size: int) -> int:
        block_size = self.block_size
        if block_size is None:
            block_size = _BLOCK_SIZE_DEFAULT[self.format, self.type is DiskType.DIFFERENCING]
        low, high = _BLOCK_SIZE[self.format]
        if not low <= block_size <= high or block_size & (block_size - 1):
            raise cannot_create(
                self.target,
                f"the block size of {_a(self.format)} is a power of two from {low} to {high} bytes,"
                f" not {block_size}",
            )
        if self.format is TargetFormat.VHD:
            if virtual_size > block_size * _VHD_BLOCKS_MAX:
                raise cannot_create(
                    self.target, f"blocks of {block_size} bytes are too small for so large a disk"
                )
            if self.type is DiskType.FIXED:
                return 0
        return block_size

    def _created(self) -> datetime:
        return (self.identities.created or datetime.now(UTC)).astimezone(UTC)


# ------------------------------------------------------------ full images


def shape_of_export(
    target: AnyPath,
    leaf: DiskImage,
    *,
    format: str | None = None,  # noqa: A002 - as everywhere else
    subformat: str | None = None,
    virtual_size: int | None = None,
    block_size: int | None = None,
    logical_sector_size: int | None = None,
    keep_id: bool = False,
    azure: bool = False,
    created: datetime | None = None,
) -> Shape:
    """The full image that the disk of ``leaf`` is exported as.

    Args:
        target: where; ``-`` for standard output.
        leaf: whose disk it is.
        format: a :class:`TargetFormat`; None is what the target's name claims, else raw.
        subformat: "fixed" or "dynamic"; None is dynamic, and fixed where a format is nothing else.
        virtual_size: of the disk; None is the leaf's.  In a VHD or VHDX it is rounded up to a whole sector
            (for Azure: to a whole MiB), and what is new reads as zeros.
        block_size: None is what Windows takes.
        logical_sector_size: None is the leaf's, and 512 for a VHD.
        keep_id: see :func:`kept_identities`; otherwise the image gets new ones.
        azure: a fixed VHD as Azure takes it up, which asks for whole MiB.  Azure's disks have up to 32 TiB,
            but a VHD holds 2040 GiB, which is below the 2 TiB of a disk that boots a machine of generation
            1 too.  Not asked for here: the 20 MiB that an upload to a managed disk has at least.

    Raises:
        TargetError: the format cannot do what was asked, or the target's name claims another one.
        ValueError: an unknown format or subformat.
    """
    kind = _export_format(target, format, azure)
    disk_type = _export_type(target, kind, subformat, azure)
    geometry = leaf.geometry
    size = geometry.virtual_size if virtual_size is None else virtual_size
    sector_size = logical_sector_size
    if sector_size is None:
        sector_size = 512 if kind is TargetFormat.VHD else geometry.sector_size
    elif not kind.has_structures:
        raise cannot_create(target, f"{_a(kind)} has no sectors of its own")
    physical_sector_size = None
    if kind is TargetFormat.VHDX:
        physical_sector_size = geometry.physical_sector_size if leaf.format is ImageFormat.VHDX else None
        physical_sector_size = max(physical_sector_size or 4096, sector_size)
    if kind.has_structures:
        unit = _MIB if azure else sector_size
        size = -(-size // unit) * unit
    return Wanted(
        target=os.fspath(target),
        format=kind,
        type=disk_type,
        virtual_size=size,
        block_size=block_size,
        sector_size=sector_size,
        physical_sector_size=physical_sector_size,
        identities=kept_identities(target, leaf, kind, created) if keep_id else Identities(created=created),
    ).settle()


def kept_identities(
    target: AnyPath,
    image: DiskImage,
    format: TargetFormat,  # noqa: A002 - as everywhere else
    created: datetime | None = None,
) -> Identities:
    """Those of ``image``, for another image with its content; the module's head says which become which.

    Raises:
        TargetError: ``image`` has none, or the target's format has no place for them.
    """
    if not format.has_structures:
        raise cannot_create(target, f"{_a(format)} has no identities to keep")
    if image.write_id is None:
        raise cannot_create(target, f"{printable(image.source.name)} has no identities to keep")
    if format is TargetFormat.VHD:
        return Identities(image.write_id, image.write_id, created)
    return Identities(image.disk_id, image.write_id, created)


def _export_format(target: AnyPath, wanted: str | None, azure: bool) -> TargetFormat:
    """What was asked for, else what the name claims, else raw; the two must not contradict each other."""
    claimed = claimed_format(target)
    if wanted is None:
        foreign = _FOREIGN_SUFFIXES.get(Path(target).suffix.lower())
        if foreign is not None:
            raise cannot_create(
                target, f"its name claims {foreign}, and --format does not say what it is to be"
            )
        kind = claimed or (TargetFormat.VHD if azure else TargetFormat.RAW)
    else:
        kind = TargetFormat(wanted)
        if claimed not in (None, kind):
            raise cannot_create(target, f"its name claims {_a(claimed)}, and it is to be {_a(kind)}")
    if azure and kind is not TargetFormat.VHD:
        raise cannot_create(target, f"Azure takes a fixed VHD, not {_a(kind)}")
    return kind


def _export_type(target: AnyPath, kind: TargetFormat, subformat: str | None, azure: bool) -> DiskType:
    if subformat is None:
        return DiskType.FIXED if azure or not kind.has_structures else DiskType.DYNAMIC
    wanted = DiskType(subformat)
    if wanted is DiskType.DIFFERENCING:
        raise ValueError("a full image is fixed or dynamic")
    if azure and wanted is not DiskType.FIXED:
        raise cannot_create(target, f"Azure takes a fixed VHD, not a {wanted} one")
    return wanted


def claimed_format(target: AnyPath) -> TargetFormat | None:
    """The format that a target's name claims; None where any may have it."""
    suffix = Path(target).suffix.lower()
    return _SUFFIXES.get(suffix) or _PACKED_SUFFIXES.get(suffix)


# ------------------------------------------------------------ children


@dataclass(frozen=True, slots=True)
class ParentFacts:
    """What a child takes over from, and records of, its parent.

    Attributes:
        name: what messages call it.
        path: where it is, or will be.
        format, virtual_size, sector_size, physical_sector_size, disk_id, write_id: as its own.
    """

    name: str
    path: Path
    format: ImageFormat
    virtual_size: int
    sector_size: int
    physical_sector_size: int
    disk_id: Identity | None
    write_id: Identity | None

    @classmethod
    def of_image(cls, image: DiskImage) -> ParentFacts:
        """Of an image that is there."""
        geometry = image.geometry
        files = files_of(image.source)
        return cls(
            image.source.name,
            files[0].path if files else Path(image.source.name),
            image.format,
            geometry.virtual_size,
            geometry.sector_size,
            geometry.physical_sector_size,
            image.disk_id,
            image.write_id,
        )

    @classmethod
    def of_shape(cls, shape: Shape) -> ParentFacts:
        """Of an image that is being made."""
        return cls(
            shape.target,
            Path(shape.target),
            shape.image_format,
            shape.virtual_size,
            shape.sector_size,
            shape.physical_sector_size,
            shape.disk_id,
            shape.write_id,
        )


def shape_of_child(
    target: AnyPath,
    parent: ParentFacts,
    *,
    format: str | None = None,  # noqa: A002 - as everywhere else
    virtual_size: int | None = None,
    block_size: int | None = None,
    sector_size: int | None = None,
    physical_sector_size: int | None = None,
    identities: Identities | None = None,
    keep_id_of: DiskImage | None = None,
) -> Shape:
    r"""The differencing image over ``parent``: a snapshot's, or an increment's.

    It records the parent's identity, the path from its own folder (``..\base\disk.vhdx``) and the full path.
    It takes over the parent's logical sector size, and a VHDX the VirtualDiskId and the physical sector size.

    Args:
        format: None is the parent's; the target's name must not claim another one then.
        virtual_size: None is the parent's; not less.
        block_size: None is what Windows takes.
        sector_size: what it is expected to be; another one than the parent's is refused.
        identities: instead of new ones.
        keep_id_of: the image with the same disk whose children are to know this one too: it gets the identity
            of what was written (:func:`kept_identities`), but its VirtualDiskId is its parent's as ever.

    Raises:
        FormatError: the parent is none in that format.
        TargetError: the format cannot do what was asked, there is no identity to keep, or the parent's path
            cannot be recorded.
    """
    kind = _child_format(target, format, parent)
    if parent.write_id is None or str(parent.format) != str(kind):
        FindingLog(parent.name).refuse(
            "create.parent_format",
            f"this cannot be the parent of a {kind.upper()}",
            found=parent.format,
            expected=kind,
            exit_code=EXIT_UNSUPPORTED,
        )
    size = parent.virtual_size if virtual_size is None else virtual_size
    if size < parent.virtual_size:
        raise cannot_create(target, f"a child is not smaller than its parent of {parent.virtual_size} bytes")
    if sector_size not in (None, parent.sector_size):
        raise cannot_create(target, f"its parent has logical sectors of {parent.sector_size} bytes")
    given = identities or Identities()
    if keep_id_of is not None:
        given = Identities(None, kept_identities(target, keep_id_of, kind).write_id, given.created)
    if kind is TargetFormat.VHDX:
        given = Identities(given.disk_id or parent.disk_id, given.write_id, given.created)
        physical_sector_size = physical_sector_size or parent.physical_sector_size
    return Wanted(
        target=os.fspath(target),
        format=kind,
        type=DiskType.DIFFERENCING,
        virtual_size=size,
        block_size=block_size,
        sector_size=parent.sector_size,
        physical_sector_size=physical_sector_size,
        parent=_parent_paths(target, parent.path, parent.write_id),
        identities=given,
    ).settle()


def _child_format(target: AnyPath, wanted: str | None, parent: ParentFacts) -> TargetFormat:
    if wanted is not None:
        return TargetFormat(wanted)
    claimed = claimed_format(target)
    # A raw disk is no parent in any format; that is said where the parent is looked at.
    inherited = TargetFormat.VHDX if claimed is None or not claimed.has_structures else claimed
    if parent.format is not ImageFormat.RAW:
        inherited = TargetFormat(parent.format)
    if claimed not in (None, inherited):
        names = f"{_a(claimed)}, and its parent is {_a(inherited)}"
        raise cannot_create(target, f"its name claims {names}")
    return inherited


def _parent_paths(target: AnyPath, parent: Path, identity: Identity) -> ParentPaths:
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
        return ParentPaths(identity, "", absolute)
    fault = _fault(parts)
    if fault:
        shown = printable(str(parent))
        raise cannot_create(target, f"the path of its parent {shown} cannot be recorded for Windows: {fault}")
    relative = "\\".join(parts)
    return ParentPaths(identity, relative if parts[0] == ".." else f".\\{relative}", absolute)


def _fault(parts: list[str]) -> str:
    """Why a path of these parts is none for Windows; empty when it is one."""
    try:
        "".join(parts).encode("utf-16-le")
    except UnicodeEncodeError:
        return "a name is no text"
    return path_fault(parts)


# ------------------------------------------------------------ through a journal


def shape_of_document(target: str, document: Mapping[str, Any]) -> Shape:
    """What ``Shape.document`` wrote, checked as if it had been asked for just now.

    Raises:
        ValueError: it is nothing of the kind.
    """
    try:
        parent = document["parent"]
        wanted = Wanted(
            target=target,
            format=TargetFormat(document["format"]),
            type=DiskType(document["subformat"]),
            virtual_size=_count(document["virtual_size"]),
            block_size=_count(document["block_size"]) or None,
            sector_size=_count(document["sector_size"]),
            physical_sector_size=_count(document["physical_sector_size"]),
            parent=None if parent is None else _parent_of_document(*parent),
            identities=Identities(
                _identity(document["disk_id"]),
                _identity(document["write_id"]),
                datetime.fromisoformat(document["created"]),
            ),
        )
        if (wanted.type is DiskType.DIFFERENCING) != (wanted.parent is not None):
            raise ValueError("a differencing image has a parent, and no other has")
        shape = wanted.settle()
    except (KeyError, TypeError, AttributeError, TargetError, OverflowError) as error:
        raise ValueError(f"no description of an image: {error}") from error
    if shape.document() != dict(document):
        raise ValueError("no description of an image: something is missing, or too much")
    return shape


def _parent_of_document(identity: str, relative: str, absolute: str) -> ParentPaths:
    if not (isinstance(relative, str) and isinstance(absolute, str)):
        raise TypeError("a path is text")
    return ParentPaths(Identity(bytes.fromhex(identity)), relative, absolute)


def _count(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no size")
    return value


def _identity(text: str | None) -> Identity | None:
    return None if text is None else Identity(bytes.fromhex(text))


def _hex(identity: Identity | None) -> str | None:
    return None if identity is None else identity.raw.hex()


def _new_identity() -> Identity:
    return Identity.of_uuid(uuid4())


def _a(kind: TargetFormat) -> str:
    """What an image of that format is called."""
    if kind.has_structures:
        return f"a {kind.upper()}"
    return "an E01 image" if kind is TargetFormat.E01 else f"a {kind} image"


def cannot_create(target: AnyPath, why: str) -> TargetError:
    """The error for a target that cannot be what it is to be."""
    return TargetError(f"cannot create {printable(str(target))}: {why}")

"""Who an image is, and whose child: identities and parent links."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal
from uuid import UUID


class ImageFormat(StrEnum):
    """The formats, by content."""

    VHD = "vhd"
    VHDX = "vhdx"
    RAW = "raw"


class DiskType(StrEnum):
    """What an image is, in the specifications' words."""

    FIXED = "fixed"
    DYNAMIC = "dynamic"
    DIFFERENCING = "differencing"


@dataclass(frozen=True, slots=True)
class Identity:
    """A 16-byte identifier.  Two are equal when their raw bytes are, however they are printed.

    ``byteorder`` says how to print: "little" as Windows keeps a GUID in memory, "big" in network order.
    """

    raw: bytes
    byteorder: Literal["little", "big"] = field(default="little", compare=False)

    def __post_init__(self) -> None:
        if len(self.raw) != 16:
            raise ValueError(f"an identity has 16 bytes, not {len(self.raw)}")

    @classmethod
    def of_uuid(cls, value: UUID) -> Identity:
        """The identity that Windows would store for ``value``."""
        return cls(value.bytes_le)

    @property
    def is_null(self) -> bool:
        """Whether all bytes are zero: no identity at all."""
        return not any(self.raw)

    @property
    def uuid(self) -> UUID:
        """As a UUID, in the byte order that it prints in."""
        return UUID(bytes_le=self.raw) if self.byteorder == "little" else UUID(bytes=self.raw)

    def __str__(self) -> str:
        return str(self.uuid)


class PathKind(StrEnum):
    """Which of a child's records a candidate path comes from."""

    RELATIVE_PATH = "relative_path"
    ABSOLUTE_PATH = "absolute_path"
    VOLUME_PATH = "volume_path"
    NAME = "name"


@dataclass(frozen=True, slots=True)
class ParentPath:
    """One path by which a child names its parent, as it is stored; from a stranger, not to be trusted.

    ``locator`` is the specification's name of the record (``W2ru``, ``relative_path``, ...).
    """

    kind: PathKind
    path: str
    locator: str


@dataclass(frozen=True, slots=True)
class ParentLink:
    """What a child records of its parent.

    Attributes:
        identities: any of these may be the parent's ``write_id``; the first is the one to name.
        paths: in the order in which they are to be tried.
        timestamp: the parent file's modification time as recorded (VHD only), None when not recorded.
    """

    identities: tuple[Identity, ...]
    paths: tuple[ParentPath, ...]
    timestamp: datetime | None = None

    @property
    def name(self) -> str | None:
        """The parent's file name, from the first path that has one."""
        for candidate in self.paths:
            base = base_name(candidate.path)
            if base:
                return base
        return None


def base_name(path: str) -> str:
    """The last component of a Windows path or a URL path, as text; empty when there is none."""
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def utc_from_2000(seconds: int) -> datetime:
    """The time stamp of a VHD: ``seconds`` since 2000-01-01T00:00:00Z."""
    return datetime.fromtimestamp(946_684_800 + seconds, UTC)

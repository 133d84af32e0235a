"""Small image files on disk in families: parents and children of either format, by numbered identities."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from uuid import UUID

import pytest

from tests.builders import vhd, vhdx
from vhdtool.model.identity import Identity

SIZE = 1 << 20
_ZEROS = bytes(1 << 16)


def an_identity(number: int) -> Identity:
    """The identity that tests call ``number``; 0 is the one of all zeros."""
    return Identity.of_uuid(UUID(int=number))


def make_vhd(
    path: Path,
    number: int,
    parent: int | None = None,
    *,
    relative: str = "",
    absolute: str = "",
    size: int = SIZE,
    timestamp: datetime | None = None,
    locators: tuple[tuple[bytes, bytes], ...] = (),
    name: str = "",
) -> Path:
    """An empty VHD with identity ``number``; with ``parent``, a child of whatever carries that identity."""
    if absolute:
        locators = ((b"W2ku", absolute.encode("utf-16-le", "surrogatepass")), *locators)
    if relative:
        locators = ((b"W2ru", relative.encode("utf-16-le", "surrogatepass")), *locators)
    header: dict[str, int | bytes] = {}
    if parent is not None:
        seconds = 0 if timestamp is None else int(timestamp.timestamp()) - 946_684_800
        header = {"parent_unique_id": an_identity(parent).raw, "parent_time_stamp": seconds}
    image = vhd.a_vhd(
        size=size,
        disk_type=vhd.DYNAMIC if parent is None else vhd.DIFFERENCING,
        footer={"unique_id": an_identity(number).raw},
        header=header,
        locators=locators,
        name=name,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)
    return path


def make_vhdx(
    path: Path,
    number: int,
    parent: int | None = None,
    *,
    relative: str = "",
    absolute: str = "",
    volume: str = "",
    second: int | None = None,
    size: int = SIZE,
    sector: int = 512,
    disk: UUID = vhdx.DISK_ID,
) -> Path:
    """The same as a VHDX; ``second`` is its parent_linkage2."""
    keys = {"relative_path": relative, "volume_path": volume, "absolute_win32_path": absolute}
    paths = {key: text for key, text in keys.items() if text} or {
        "absolute_win32_path": "Z:\\nowhere\\x.vhdx"
    }
    if second is not None:
        paths["parent_linkage2"] = f"{{{UUID(int=second)}}}"
    locator = None if parent is None else vhdx.a_locator(UUID(int=parent), values=paths)
    items = vhdx.the_items(size, vhdx.MIB, sector, 4096, 2 if locator is not None else 0, locator)
    items = [
        vhdx.Item(i.guid, disk.bytes_le, i.flags) if i.guid == vhdx.VIRTUAL_DISK_ID else i for i in items
    ]
    image = vhdx.a_vhdx(size=size, sector=sector, parent=locator, items=items, data_write=UUID(int=number))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the builder's own saving: chains of hundreds are made here, and most of an image is zeros.
    with path.open("wb") as file:
        for at in range(0, len(image), len(_ZEROS)):
            piece = image[at : at + len(_ZEROS)]
            if piece != _ZEROS:
                file.seek(at)
                file.write(piece)
        file.truncate(len(image))
    return path


class Family:
    """One format's way of making images."""

    def __init__(self, suffix: str, make: Callable[..., Path]) -> None:
        self.suffix = suffix
        self.make = make

    def chain(self, folder: Path, depth: int) -> Path:
        """A chain of ``depth`` layers with identities 1 (its base) to ``depth``; the leaf's path."""
        path = self.make(folder / f"layer0{self.suffix}", 1)
        for i in range(1, depth):
            relative = f".\\layer{i - 1}{self.suffix}"
            path = self.make(folder / f"layer{i}{self.suffix}", i + 1, i, relative=relative)
        return path


VHD = Family(".vhd", make_vhd)
VHDX = Family(".vhdx", make_vhdx)


def damage(path: Path) -> Path:
    """Spoil an image so that its signature stays and its reader refuses it."""
    with path.open("r+b") as file:
        if path.suffix.lower().endswith("x"):
            for at in (vhdx.HEADER_1, vhdx.HEADER_2):
                file.seek(at)
                file.write(bytes(4))
        else:
            file.seek(512)  # the dynamic header, of which there is one only
            file.write(struct.pack(">8s", b"nothing!"))
    return path


def record_paths(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every path that the process asks the system about or opens from now on."""
    seen: list[str] = []
    for name in ("stat", "lstat", "open", "scandir", "readlink"):
        real = getattr(os, name)

        def call(
            path: object, *args: object, _real: Callable[..., object] = real, **kwargs: object
        ) -> object:
            if isinstance(path, (str, os.PathLike)):
                seen.append(os.fspath(path))
            return _real(path, *args, **kwargs)

        monkeypatch.setattr(os, name, call)
    return seen


def record_opens(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that the process opens from now on."""
    opened: list[Path] = []
    real = os.open

    def call(path: str | os.PathLike[str], flags: int, *rest: int) -> int:
        opened.append(Path(path))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", call)
    return opened

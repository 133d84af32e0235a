"""Hostile chains: parents that loop, lie or are no files; locators from an attacker; strangers."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.builders.zst import a_frame, seekable
from tests.catalogue.row import SECRET, Maker, Row, child_vhd, child_vhdx, file_of, row, vhd
from tests.surgery.healthy import (
    CHILD_GUID,
    PARENT_GUID,
    a_child_vhd,
    a_child_vhdx,
    a_vhd,
    a_vhdx,
)
from tests.surgery.patient import Patient
from tests.surgery.vhd import VhdSurgeon
from tests.surgery.vhdx import MIB, VhdxSurgeon, encode_locator, guid

OTHER_GUID: Final = "22222222-3f10-4c6c-9f2d-51a4b5a0d0c1"
SEARCH: Final = ("--search", "{folder}/elsewhere")
_PACKED: Final = a_frame(b"p" * 4096)
_dynamic = functools.cache(lambda: a_vhd())
_dynamic_vhdx = functools.cache(lambda: a_vhdx())
Put = Callable[[Path], object]


def _child(put: Put, child: Callable[[], Patient] = a_child_vhdx, name: str = "child.avhdx") -> Maker:
    """A child whose parent's name ``put`` fills with something."""

    def make(folder: Path) -> Path:
        put(folder)
        return child().save(folder / name)

    return make


def _text(name: str) -> Put:
    return lambda folder: (folder / name).write_text(f"{SECRET}\n" * 64)


def _secret(folder: Path) -> None:
    """A file that is nobody's business, where climbing paths and absolute ones would lead."""
    (folder / "etc").mkdir(exist_ok=True)
    (folder / "etc" / "passwd").write_text(f"root:{SECRET}:0:0\n" * 20)


def _climber(relative: str) -> Maker:
    """A child two folders down whose relative path is ``relative``."""

    def make(folder: Path) -> Path:
        _secret(folder)
        deep = folder / "a" / "b"
        deep.mkdir(parents=True)
        child = a_child_vhdx(locator=_only(relative_path=relative))
        return child.save(deep / "child.avhdx")

    return make


def _only(**paths: str | bytes) -> bytes:
    return encode_locator({"parent_linkage": "{" + PARENT_GUID + "}", **paths})


def _liar(**paths: str | bytes) -> Maker:
    """A child that names its parent so; the real parent lies beside it under its right name."""
    return child_vhdx(base=lambda: a_child_vhdx(locator=_only(**paths)))


def _lost_liar(**paths: str | bytes) -> Maker:
    """The same without a parent anywhere."""
    return child_vhdx(base=lambda: a_child_vhdx(locator=_only(**paths)), parent=None)


def _vhd_liar(code: bytes, text: str, encoding: str = "utf-16-le") -> Maker:
    """A VHD child with one locator, its parent beside it."""

    def base() -> Patient:
        return a_vhd(
            kind=4,
            blocks={0: (1, 9)},
            tag=0xC0,
            unique_id=CHILD_GUID,
            parent_id=PARENT_GUID,
            locators={code: text.encode(encoding, "surrogatepass")},
        )

    return child_vhd(lambda s: None, base)


def _self_parent(folder: Path) -> Path:
    child = a_child_vhdx(data_write_guid=PARENT_GUID, relative=".\\child.avhdx")
    return child.save(folder / "child.avhdx")


def _self_by_name(folder: Path) -> Path:
    """A child that names itself, and records an identity that is nobody's."""
    child = a_child_vhdx(data_write_guid=CHILD_GUID, relative=".\\child.avhdx", parent_id=OTHER_GUID)
    return child.save(folder / "child.avhdx")


def _ring(length: int) -> Maker:
    """``length`` VHDXs, each the parent of the one before, the first the parent of the last."""

    def make(folder: Path) -> Path:
        ids = [f"{i:08x}-3f10-4c6c-9f2d-51a4b5a0d0c1" for i in range(length)]
        for i in range(length):
            following = (i + 1) % length
            child = a_child_vhdx(
                data_write_guid=ids[i], parent_id=ids[following], relative=f".\\disk{following}.avhdx"
            )
            child.save(folder / f"disk{i}.avhdx")
        return folder / "disk0.avhdx"

    return make


def _vhd_ring(folder: Path) -> Path:
    for i, (own, parent) in enumerate([(CHILD_GUID, PARENT_GUID), (PARENT_GUID, CHILD_GUID)]):
        a_child_vhd(parent_name=f"disk{1 - i}.vhd", unique_id=own, parent_id=parent).save(
            folder / f"disk{i}.vhd"
        )
    return folder / "disk0.vhd"


def _vhd_self(folder: Path) -> Path:
    return a_child_vhd(parent_name="child.vhd", unique_id=PARENT_GUID).save(folder / "child.vhd")


def _deep(layers: int) -> Maker:
    """A chain of so many layers, small VHDs."""

    def make(folder: Path) -> Path:
        for i in range(layers):
            own = f"{i:08x}-3f10-4c6c-9f2d-51a4b5a0d0c1"
            parent = f"{i + 1:08x}-3f10-4c6c-9f2d-51a4b5a0d0c1"
            path = folder / f"disk{i}.vhd"
            if i == layers - 1:
                a_vhd(size=64 << 10, block_size=4096, blocks={0: (0,)}, unique_id=own).save(path)
                continue
            a_child_vhd(
                size=64 << 10,
                block_size=4096,
                blocks={i % 16: (i % 8,)},
                unique_id=own,
                parent_id=parent,
                parent_name=f"disk{i + 1}.vhd",
            ).save(path)
        return folder / "disk0.vhd"

    return make


def _link(target: str, *, name: str = "parent.vhdx", put: Put = lambda folder: None) -> Put:
    def make(folder: Path) -> None:
        put(folder)
        (folder / name).symlink_to(target)

    return make


def _in_elsewhere(put: Put) -> Put:
    def make(folder: Path) -> None:
        (folder / "elsewhere").mkdir()
        put(folder / "elsewhere")

    return make


def _twins(folder: Path) -> None:
    """Two different files with the parent's identity, under names that nobody recorded."""
    _dynamic_vhdx().save(folder / "one.vhdx")
    a_vhdx(tag=0x77).save(folder / "two.vhdx")


def _parent(patient: Callable[[], Patient], name: str = "parent.vhdx") -> Put:
    return lambda folder: patient().save(folder / name)


def _other_disk_id() -> Patient:
    surgeon = VhdxSurgeon(a_vhdx())
    surgeon.set_item("VirtualDiskId", guid(OTHER_GUID))
    return surgeon.patient


def _broken_parent() -> Patient:
    surgeon = VhdxSurgeon(a_vhdx())
    surgeon.patient.write(0x10000, bytes(4))
    surgeon.patient.write(0x20000, bytes(4))
    return surgeon.patient


def _crossed_parent() -> Patient:
    surgeon = VhdxSurgeon(a_vhdx())
    surgeon.set_block(1, 6, surgeon.data_at(0))
    return surgeon.patient


def _stamped(folder: Path) -> Path:
    """The child recorded when its parent was last written, and the parent was written since."""
    _dynamic().save(folder / "parent.vhd")
    os.utime(folder / "parent.vhd", (946_684_800 + 800_000_000,) * 2)
    surgeon = VhdSurgeon(a_child_vhd())
    surgeon.header["Parent Time Stamp"] = 700_000_000
    return surgeon.close_up().save(folder / "child.vhd")


def _vhd_set(folder: Path) -> Path:
    (folder / "disk.vhds").write_bytes(b"vhdsetv1".ljust(4096, b"\0"))
    return folder / "disk.vhds"


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "disk.vhd")
    return folder / "disk.vhd"


def _as_leaf(put: Put, name: str) -> Maker:
    def make(folder: Path) -> Path:
        put(folder)
        return folder / name

    return make


def _nothing(folder: Path) -> None:
    """No parent at all."""


_LONG: Final = "A" * 16000
ROWS: Final[list[Row]] = [
    # ------------------------------------------------------------ what is given as an image
    row(
        "a text file is given as an image",
        _as_leaf(_text("disk.vhd"), "disk.vhd"),
        "E image.unknown",
        opens=False,
    ),
    row("a VHD Set is given as an image", _vhd_set, "E image.vhd_set", exit_code=69, opens=False),
    row(
        "a folder is given as an image",
        _as_leaf(lambda f: (f / "disk.vhd").mkdir(), "disk.vhd"),
        exit_code=65,
        opens=False,
        check=0,
    ),
    row("a FIFO is given as an image", _fifo, "E file.not_regular", opens=False, needs=["fifo"]),
    row(
        "a link to /dev/zero is given as an image",
        _as_leaf(_link("/dev/zero", name="disk.vhd"), "disk.vhd"),
        "E file.not_regular",
        opens=False,
        needs=["symlink"],
    ),
    row(
        "a link to nothing is given as an image",
        _as_leaf(_link("gone", name="disk.vhd"), "disk.vhd"),
        exit_code=66,
        opens=False,
        needs=["symlink"],
    ),
    row(
        "a link to itself is given as an image",
        _as_leaf(_link("disk.vhd", name="disk.vhd"), "disk.vhd"),
        exit_code=74,
        opens=False,
        needs=["symlink"],
    ),
    row("a name that nothing stands under", _as_leaf(_nothing, "disk.vhd"), exit_code=66, opens=False),
    row("an empty raw disk", file_of(b"", "disk.img"), "E raw.empty", opens=False),
    row("a raw disk of 700 bytes", file_of(b"r" * 700, "disk.img"), "E raw.size"),
    row("a qcow2 image", file_of(b"QFI\xfb".ljust(4096, b"\0"), "disk.img"), "W raw.other_format"),
    row("a packed disk", file_of(b"\x1f\x8b".ljust(4096, b"\0"), "disk.img.gz"), "W raw.other_format"),
    row(
        "a raw disk in a seekable zstd file", file_of(seekable(_PACKED), "disk.raw.zst"), needs=["zstandard"]
    ),
    *(
        row(name, file_of(data, "disk.raw.zst"), finding, exit_code=code, opens=False, needs=["zstandard"])
        for name, data, finding, code in (
            ("a zstd file without a seek table", _PACKED.frame, "E zstd.table.missing", 69),
            ("a seekable zstd file that was cut off", seekable(_PACKED)[:-4], "E zstd.table.missing", 69),
            (
                "a seek table of an unknown kind",
                seekable(_PACKED, descriptor=4),
                "E zstd.table.descriptor",
                69,
            ),
            (
                "a seek table with more rows than the file has room for",
                seekable(_PACKED, count=2**32 - 1),
                "E zstd.table.count",
                65,
            ),
            ("a seek table that does not begin", seekable(_PACKED, length=1), "E zstd.table.header", 65),
            (
                "a frame of a gibibyte in the seek table",
                seekable(a_frame(b"x" * 512, size=1 << 30)),
                "E zstd.table.row",
                65,
            ),
            (
                "a seekable zstd file that lacks a frame",
                seekable(_PACKED, _PACKED)[len(_PACKED.frame) :],
                "E zstd.table.size",
                65,
            ),
            (
                "a frame that holds more than the seek table says",
                seekable(a_frame(b"x" * 1024, size=512)),
                "E zstd.frame",
                65,
            ),
            (
                "a VHDX in a seekable zstd file",
                seekable(a_frame(b"vhdxfile".ljust(4096, b"\0"))),
                "E zstd.content",
                69,
            ),
        )
    ),
    row(
        "a raw disk whose sector 0 is a footer's cookie",
        file_of(b"conectix".ljust(4096, b"\0"), "disk.img"),
        "E vhd.footer.missing",
        opens=False,
    ),
    # ------------------------------------------------------------ parents
    row("the parent is not there", _child(_nothing), "E chain.parent.missing", exit_code=66),
    row(
        "a VHD's parent is not there",
        child_vhd(lambda s: None, parent=None),
        "E chain.parent.missing",
        exit_code=66,
    ),
    row(
        "another disk stands under the parent's name",
        _child(_parent(lambda: a_vhdx(data_write_guid=OTHER_GUID))),
        "E chain.parent.mismatch",
        exit_code=66,
    ),
    row(
        "another disk stands under a VHD's parent's name",
        child_vhd(lambda s: None, parent=lambda: a_vhd(unique_id=OTHER_GUID)),
        "E chain.parent.mismatch",
        exit_code=66,
    ),
    row(
        "another disk stands under the parent's name and is wanted",
        _child(_parent(lambda: a_vhdx(data_write_guid=OTHER_GUID))),
        "W chain.parent.mismatch",
        options=["--allow-mismatch"],
    ),
    row(
        "a VHD stands under a VHDX's parent's name",
        _child(_parent(_dynamic)),
        "E chain.parent.format",
        exit_code=66,
    ),
    row(
        "a raw disk stands under the parent's name",
        _child(
            _parent(lambda: Patient(4 * MIB), "parent.img"), lambda: a_child_vhdx(relative=".\\parent.img")
        ),
        "E chain.parent.format",
        exit_code=69,
    ),
    row(
        "a secret stands under the parent's name",
        _child(_text("parent.vhdx")),
        "E chain.parent.format",
        exit_code=66,
    ),
    row(
        "a folder stands under the parent's name",
        _child(lambda f: (f / "parent.vhdx").mkdir()),
        "E chain.parent.missing",
        exit_code=66,
    ),
    row(
        "a FIFO stands under the parent's name",
        _child(lambda f: os.mkfifo(f / "parent.vhdx")),
        "E chain.parent.missing",
        exit_code=66,
        needs=["fifo"],
    ),
    row(
        "a link to /dev/zero stands under the parent's name",
        _child(_link("/dev/zero")),
        "E chain.parent.missing",
        exit_code=66,
        needs=["symlink"],
    ),
    row(
        "a link to a secret stands under the parent's name",
        _child(_link("secret", put=_text("secret"))),
        "E chain.parent.format",
        exit_code=66,
        needs=["symlink"],
    ),
    row(
        "a link to nothing stands under the parent's name",
        _child(_link("gone")),
        "E chain.parent.missing",
        exit_code=66,
        needs=["symlink"],
    ),
    row(
        "a link to itself stands under the parent's name",
        _child(_link("parent.vhdx")),
        "E chain.parent.missing",
        "E file.unreadable",
        exit_code=74,
        needs=["symlink"],
    ),
    row(
        "a good link stands under the parent's name",
        _child(_link("real", put=_parent(_dynamic_vhdx, "real"))),
        needs=["symlink"],
    ),
    row(
        "a link to the child stands under the parent's name",
        _child(_link("child.avhdx")),
        "E chain.parent.mismatch",
        exit_code=66,
        needs=["symlink"],
    ),
    row(
        "the parent has lost both headers",
        _child(_parent(_broken_parent)),
        "E vhdx.header.none",
        "E chain.parent.missing",
        exit_code=65,
    ),
    row("the parent has cross-linked blocks", _child(_parent(_crossed_parent)), "E vhdx.bat.cross"),
    row(
        "the parent is found in a search folder by another name",
        _child(_in_elsewhere(_parent(_dynamic_vhdx, "renamed.vhdx"))),
        options=SEARCH,
    ),
    row(
        "two files in a search folder carry the parent's identity",
        _child(_in_elsewhere(_twins)),
        "E chain.parent.ambiguous",
        options=SEARCH,
        exit_code=66,
    ),
    row("the parent was renamed beside the child", _child(_parent(_dynamic_vhdx, "renamed.vhdx"))),
    row(
        "the parent has 4096-byte sectors",
        _child(_parent(lambda: a_vhdx(sector_size=4096))),
        "E chain.parent.sector_size",
    ),
    row(
        "the child is larger than its parent",
        _child(_parent(lambda: a_vhdx(size=2 * MIB, blocks={0: 6}))),
        "W chain.parent.size",
    ),
    row(
        "the child is smaller than its parent",
        _child(_parent(lambda: a_vhdx(size=9 * MIB))),
        "W chain.parent.size",
    ),
    row(
        "a VHD child is larger than its parent",
        child_vhd(lambda s: None, parent=lambda: a_vhd(size=2 * MIB, blocks={0: (1,)})),
        "W chain.parent.size",
    ),
    row("the parent has another virtual disk id", _child(_parent(_other_disk_id)), "W chain.parent.disk_id"),
    row("the parent was written after the child was made", _stamped, "W chain.parent.timestamp"),
    # ------------------------------------------------------------ loops and depth
    row("a child is its own parent", _self_parent, "E chain.loop"),
    row("a VHD child is its own parent", _vhd_self, "E chain.loop"),
    row(
        "a child names itself as a parent with another identity",
        _self_by_name,
        "E chain.parent.mismatch",
        exit_code=66,
    ),
    row("two children are each other's parent", _ring(2), "E chain.loop"),
    row("two VHD children are each other's parent", _vhd_ring, "E chain.loop"),
    row("three children are a ring", _ring(3), "E chain.loop"),
    row("a chain has 256 layers", _deep(256), "I vhd.header.block_size"),
    row("a chain has 257 layers", _deep(257), "E chain.depth"),
    # ------------------------------------------------------------ paths that lie or climb
    row(
        "a relative path climbs to a secret",
        _climber("..\\..\\etc\\passwd"),
        "E chain.parent.format",
        exit_code=69,
    ),
    row(
        "a relative path climbs above the root",
        _climber("..\\" * 200 + "no-such-folder\\x.vhdx"),
        "E chain.parent.missing",
        exit_code=66,
    ),
    row(
        "a relative path climbs with slashes",
        _climber("../../etc/passwd"),
        "E chain.parent.format",
        exit_code=69,
    ),
    row(
        "a relative path begins with a drive",
        _liar(relative_path="C:\\Windows\\parent.vhdx"),
        "W vhdx.parent.path",
    ),
    row("a relative path begins with a slash", _liar(relative_path="/etc/parent.vhdx"), "W vhdx.parent.path"),
    row(
        "a relative path is a share",
        _liar(relative_path="\\\\server\\share\\parent.vhdx"),
        "W vhdx.parent.path",
    ),
    row(
        "a relative path is a device",
        _lost_liar(relative_path="\\\\.\\PhysicalDrive0"),
        "W vhdx.parent.path",
        "E chain.parent.missing",
        exit_code=66,
    ),
    row(
        "an absolute path is a device",
        _liar(absolute_win32_path="\\\\.\\PhysicalDrive0"),
        "W vhdx.parent.path",
    ),
    row(
        "an absolute path leaves the object tree",
        _liar(absolute_win32_path="\\\\?\\GLOBALROOT\\Device\\Harddisk0\\Partition0"),
        "W vhdx.parent.path",
    ),
    row("a relative path is CON", _lost_liar(relative_path=".\\CON"), "E chain.parent.missing", exit_code=66),
    row(
        "an absolute path is a share",
        _lost_liar(absolute_win32_path="\\\\server\\share\\secret.vhdx"),
        "E chain.parent.missing",
        exit_code=66,
    ),
    row(
        "an absolute path is a long share",
        _lost_liar(absolute_win32_path="\\\\?\\UNC\\server\\share\\x.vhdx"),
        "E chain.parent.missing",
        exit_code=66,
    ),
    row(
        "a volume path leads to the parent's name",
        _liar(volume_path="\\\\?\\Volume{0eba351e-5634-46d6-a8cf-4ddc2d6ac0b9}\\parent.vhdx"),
    ),
    row("a path is a URL", _liar(relative_path="file:///etc/parent.vhdx")),
    row(
        "a path has an embedded NUL",
        _lost_liar(relative_path=".\\parent.vhdx\0.txt"),
        "W vhdx.parent.keys",
        "E chain.parent.missing",
        exit_code=66,
    ),
    row(
        "a path is an escape sequence",
        _lost_liar(relative_path=".\\\x1b]0;pwned\x07\x1b[2J\x1b[31m.vhdx"),
        "E chain.parent.missing",
        exit_code=66,
    ),
    row(
        "a path reverses its letters",
        _lost_liar(relative_path=".\\\u202exdhv.exe\u2066"),
        "E chain.parent.missing",
        exit_code=66,
    ),
    row(
        "a path has line breaks",
        _lost_liar(relative_path=".\\x\r\nerror: all is well\n.vhdx"),
        "E chain.parent.missing",
        exit_code=66,
    ),
    row(
        "a path has lone surrogates",
        _lost_liar(relative_path=b".\0\\\0\x00\xd8x\0"),
        "W vhdx.parent.keys",
        "E chain.parent.missing",
        exit_code=66,
    ),
    row(
        "a path has 64 KiB",
        _lost_liar(relative_path=".\\" + _LONG + _LONG),
        "E chain.parent.missing",
        exit_code=66,
    ),
    row(
        "a path has a name of 16000 letters",
        _lost_liar(relative_path=".\\" + _LONG),
        "E chain.parent.missing",
        exit_code=66,
    ),
    row(
        "a path has 8000 folders",
        _lost_liar(relative_path=".\\" + "a\\" * 8000 + "x"),
        "E chain.parent.missing",
        exit_code=66,
    ),
    row(
        "a path has 8000 steps up",
        _lost_liar(relative_path="..\\" * 8000 + "x"),
        "E chain.parent.missing",
        exit_code=66,
    ),
    row("a path is dots only", _lost_liar(relative_path="..\\.."), "E chain.parent.missing", exit_code=66),
    row(
        "a VHD's relative path begins with a drive",
        _vhd_liar(b"W2ru", "C:\\Windows\\parent.vhd"),
        "W vhd.locator.path",
    ),
    row(
        "a VHD's relative path is a device", _vhd_liar(b"W2ru", "\\\\.\\PhysicalDrive0"), "W vhd.locator.path"
    ),
    row(
        "a VHD's absolute path is a pipe", _vhd_liar(b"W2ku", "\\\\.\\pipe\\parent.vhd"), "W vhd.locator.path"
    ),
    row(
        "a VHD's path is a URL of another host", _vhd_liar(b"MacX", "file://server/share/parent.vhd", "utf-8")
    ),
    row(
        "a VHD's path is a URL that climbs",
        _vhd_liar(b"MacX", "file:///..%2f..%2f..%2fetc/parent.vhd", "utf-8"),
    ),
    row("a VHD's path is a URL with a NUL", _vhd_liar(b"MacX", "file:///x%00y/parent.vhd", "utf-8")),
    row("a VHD's path has lone surrogates", _vhd_liar(b"W2ru", ".\\\ud800\udfff\udc00.vhd")),
    row("a VHD's path has an embedded NUL", _vhd_liar(b"W2ru", ".\\parent.vhd\0\\etc\\passwd")),
    row("a VHD's path is an escape sequence", _vhd_liar(b"W2ru", ".\\\x1b[2J\x9b31m.vhd")),
    row("a VHD's path has 64 KiB", _vhd_liar(b"W2ru", ".\\" + _LONG * 2 + "xxxxx")),
    row(
        "a VHD's path is longer than 64 KiB",
        _vhd_liar(b"W2ru", ".\\" + _LONG * 3),
        "W vhd.locator.range",
        "W vhd.locator.none",
    ),
    row("a case differs in the parent's name", _child(_parent(_dynamic_vhdx, "PARENT.VHDX"))),
    row(
        "the child is a VHD and its parent a VHDX",
        child_vhd(lambda s: None, lambda: a_child_vhd(parent_name="parent.vhd"), parent=_dynamic_vhdx),
        "E chain.parent.format",
        exit_code=66,
    ),
    row("a dynamic disk stands alone", vhd(lambda s: None)),
]

"""Damaged VHDs: each rule of the digest broken on its own, then cuts and hostile tables."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

from tests.catalogue.row import Maker, Row, child_vhd, file_of, row, vhd
from tests.surgery.healthy import ALL, a_footer, a_vhd
from tests.surgery.patient import Patient
from tests.surgery.vhd import SECTOR, UNUSED, VhdSurgeon
from tests.surgery.vhdx import guid

MIB: Final = 1 << 20

_dynamic = functools.cache(lambda: a_vhd())
_one_block = functools.cache(lambda: a_vhd(blocks={0: ALL}))
_fixed = functools.cache(lambda: a_vhd(kind=2, size=MIB))
# Three blocks of disk in the last of which only a half belongs to it.
_odd_end = functools.cache(lambda: a_vhd(size=5 * MIB, blocks={0: ALL, 2: ALL}))


@functools.cache
def _xen() -> Patient:
    """A disk by tapdisk 1.3 with a sound batmap."""
    surgeon = VhdSurgeon(a_vhd(blocks={1: ALL}))
    # The batmap goes where the BAT ends; the block lies behind it.
    surgeon.both_footers(Creator_Application=b"tap", Creator_Version=0x10003)
    batmap = surgeon.batmap
    batmap["cookie"] = b"tdbatmap"
    batmap["batmap_offset"] = batmap.offset + 512
    batmap["batmap_size"] = 1
    batmap["batmap_version"] = 0x10002
    surgeon.patient.write(batmap.offset + 512, b"\x40")
    surgeon.repair_batmap()
    return surgeon.close_up()


def _xen_with(field: str, value: int | bytes) -> Maker:
    def change(surgeon: VhdSurgeon) -> None:
        surgeon.batmap[field] = value

    return vhd(change, _xen)


def _footers(**values: int | bytes) -> Maker:
    return vhd(lambda s: s.both_footers(**values))


def _header(**values: int | bytes) -> Maker:
    def change(surgeon: VhdSurgeon) -> None:
        for name, value in values.items():
            surgeon.header[name.replace("_", " ")] = value

    return vhd(change)


def _end_footer(repair: bool, **values: int | bytes) -> Maker:
    def change(surgeon: VhdSurgeon) -> None:
        for name, value in values.items():
            surgeon.footer[name.replace("_", " ")] = value
        if repair:
            surgeon.repair(surgeon.footer)

    return vhd(change, repair=False)


def _copy(repair: bool, **values: int | bytes) -> Maker:
    def change(surgeon: VhdSurgeon) -> None:
        for name, value in values.items():
            surgeon.copy[name.replace("_", " ")] = value
        if repair:
            surgeon.repair(surgeon.copy)

    return vhd(change, repair=False)


def _bad_sums(surgeon: VhdSurgeon) -> None:
    surgeon.footer["Checksum"] ^= 1
    surgeon.copy["Checksum"] ^= 1


def _bad_header_sum(surgeon: VhdSurgeon) -> None:
    surgeon.header["Checksum"] ^= 1


def _append(data: bytes) -> Maker:
    def change(surgeon: VhdSurgeon) -> None:
        surgeon.patient.write(surgeon.patient.size, data)

    return vhd(change, repair=False)


def _guest_with_a_footer(folder: Path) -> Path:
    """A fixed disk whose guest keeps a fixed disk's footer in its sector 0, and whose own footer is gone."""
    patient = Patient(MIB)
    patient.write(0, a_footer(MIB, 2, guid("0" * 32)))
    return patient.save(folder / "disk.vhd")


def _cut(size: int) -> Maker:
    return vhd(lambda s: s.cut(s.patient.size + size if size < 0 else size), repair=False)


def _sparse_table(folder: Path) -> Path:
    """2**32 - 1 table entries in a sparse file of 17 GB, all of them a hole."""
    surgeon = VhdSurgeon(a_vhd(blocks={}, entries=4))
    surgeon.header["Max Table Entries"] = 0xFFFFFFFF
    surgeon.move_footer(17 << 30)
    return surgeon.close_up().save(folder / "disk.vhd")


def _unused_sparse_table(folder: Path) -> Path:
    """The same, with the disk's own entries sound: the rest is outside of the disk."""
    surgeon = VhdSurgeon(a_vhd(entries=128))
    first, second = surgeon.bitmap_at(0), surgeon.bitmap_at(2)
    behind = 17 << 30
    patient = surgeon.patient
    stored = surgeon.bitmap_size + surgeon.header["Block Size"]
    blocks = [patient.read(at, stored) for at in (first, second)]
    footer = patient.read(patient.size - 512, 512)
    patient.resize(1536 + 512)
    for number, (block, data) in enumerate(zip((0, 2), blocks)):
        at = behind + number * 4 * MIB + 4096 - 512
        patient.write(at, data)
        patient.write(1536 + 4 * block, (at // SECTOR).to_bytes(4, "big"))
    patient.write(behind + 16 * MIB, footer)
    surgeon.header["Max Table Entries"] = 0xFFFFFFFF
    return surgeon.close_up().save(folder / "disk.vhd")


def _split(last_piece: bool) -> Maker:
    def make(folder: Path) -> Path:
        data = _fixed().read(0, _fixed().size)
        third = MIB // 3
        pieces = [data[:third], data[third : 2 * third], data[2 * third :]]
        for number, piece in enumerate(pieces if last_piece else pieces[:2]):
            (folder / f"disk.{f'v{number:02}' if number else 'vhd'}").write_bytes(piece)
        return folder / "disk.vhd"

    return make


def _block_cut_behind_the_disk(surgeon: VhdSurgeon) -> None:
    """The last block loses what lies behind the disk's end, and the footer follows."""
    raw = surgeon.patient.read(surgeon.patient.size - 512, 512)
    end = surgeon.data_at(2) + MIB
    surgeon.patient.resize(end)
    surgeon.patient.write(end, raw)


def _moved_by_a_sector(surgeon: VhdSurgeon) -> None:
    """Block 2 lies one sector nearer to the start, so that its first sector is block 0's last."""
    surgeon.set_bat(2, surgeon.bat(0) + (surgeon.bitmap_size + 2 * MIB) // SECTOR - 1)


def _off_by_three_sectors(surgeon: VhdSurgeon) -> None:
    start, stop = surgeon.bitmap_at(0), surgeon.patient.size
    rest = surgeon.patient.read(start, stop - start)
    surgeon.patient.write(start, bytes(3 * SECTOR))
    surgeon.patient.write(start + 3 * SECTOR, rest)
    surgeon.set_bat(0, surgeon.bat(0) + 3)


def _locator(code: bytes, data: bytes) -> Maker:
    return child_vhd(lambda s: s.write_locator(3, code, data, at=s.bitmap_at(0) - 0x200 - 0x1000), _roomy)


@functools.cache
def _roomy() -> Patient:
    """A child with room for a third locator in front of its first block."""
    return a_vhd(
        kind=4,
        blocks={0: (1, 9)},
        tag=0xC0,
        unique_id="0c3bb3a7-3f10-4c6c-9f2d-51a4b5a0d0c1",
        parent_id="83ed0ec3-24c8-49a6-a959-5e4bf1288bfb",
        parent_name="parent.vhd",
        locators={
            b"W2ku": "C:\\VMs\\parent.vhd".encode("utf-16-le"),
            b"W2ru": ".\\parent.vhd".encode("utf-16-le"),
            b"Mac ": bytes(8192),
        },
    )


def _third(**values: int | bytes) -> Maker:
    def change(surgeon: VhdSurgeon) -> None:
        for name, value in values.items():
            surgeon.locator(3)[name.replace("_", " ")] = value

    return child_vhd(change, _roomy)


def _hidden_by_xen(surgeon: VhdSurgeon) -> None:
    surgeon.both_footers(Creator_Application=b"tap", Creator_Version=0x10001)
    surgeon.patient.write(surgeon.footer.offset + 85, b"\1")


def _all_one_block(surgeon: VhdSurgeon) -> None:
    for block in range(4):
        surgeon.set_bat(block, surgeon.bat(0))


def _raw_parent_of_xen(surgeon: VhdSurgeon) -> None:
    surgeon.both_footers(Creator_Application=b"tap", Creator_Version=1)
    surgeon.header["Parent Unique ID"] = bytes(16)


def _no_locators(surgeon: VhdSurgeon) -> None:
    surgeon.patient.write(surgeon.header.offset + 576, bytes(192))
    surgeon.header["Parent Unicode Name"] = bytes(512)


ROWS: Final[list[Row]] = [
    # ------------------------------------------------------------ footers
    row(
        "a fixed disk has lost its footer",
        vhd(lambda s: s.cut(MIB), _fixed, repair=False),
        "E image.unknown",
        opens=False,
    ),
    row(
        "only the guest's own data look like a footer",
        _guest_with_a_footer,
        "E vhd.footer.missing",
        opens=False,
    ),
    row(
        "the end footer's cookie is destroyed", _end_footer(False, Cookie=b"xxxxxxxx"), "W vhd.footer.end_bad"
    ),
    row("the end footer's checksum is wrong", _end_footer(False, Checksum=0), "W vhd.footer.end_bad"),
    row(
        "the end footer is of another version",
        _end_footer(True, File_Format_Version=0x20000),
        "W vhd.footer.end_bad",
    ),
    row("the end footer is cut off", _cut(-512), "W vhd.footer.end_bad"),
    row("the footer's copy has a wrong checksum", _copy(False, Checksum=1), "W vhd.footer.copy_bad"),
    row(
        "the footer's copy is gone",
        vhd(lambda s: s.patient.write(0, bytes(512)), repair=False),
        "W vhd.footer.copy_bad",
    ),
    row("footer and copy are sound and differ", _copy(True, Time_Stamp=7), "W vhd.footer.differ"),
    row("footer and copy give two sizes", _copy(True, Current_Size=4 * MIB), "W vhd.footer.differ"),
    row(
        "Xen's hidden flag was not mirrored",
        vhd(_hidden_by_xen),
        "I vhd.footer.differ",
    ),
    row("the footer has 511 bytes", _cut(-1), "I vhd.footer.511"),
    row("a hundred bytes follow the footer", _append(b"z" * 100), "W vhd.file.size", "W vhd.footer.end_bad"),
    row("a sector of zeros follows the footer", _append(bytes(512)), "W vhd.footer.end_bad"),
    row("an interrupted operation left its mark", _footers(Cookie=b"v_poison"), "W vhd.cookie.poison"),
    row("both footers' checksums are wrong", vhd(_bad_sums, repair=False), "E vhd.footer.checksum"),
    row(
        "both footers' checksums are wrong and to be ignored",
        vhd(_bad_sums, repair=False),
        "W vhd.footer.checksum",
        options=["--ignore-checksums"],
    ),
    row(
        "a fixed disk's only footer has a wrong checksum",
        vhd(lambda s: s.patient.write(s.footer.offset + 64, b"\1\2\3\4"), _fixed, repair=False),
        "E vhd.footer.checksum",
    ),
    row("unknown feature bits are set", _footers(Features=0x12), "W vhd.footer.features"),
    row("the feature bit that is always set is clear", _footers(Features=0), "W vhd.footer.features"),
    row("the disk is marked as temporary", _footers(Features=3), "I vhd.footer.temporary"),
    row(
        "the format's major version is unknown",
        _footers(File_Format_Version=0x20000),
        "E vhd.footer.version",
        exit_code=69,
        opens=False,
    ),
    row(
        "the format's minor version is unknown", _footers(File_Format_Version=0x10001), "W vhd.footer.version"
    ),
    row("the data offset is not at a sector", _footers(Data_Offset=513), "E vhd.header.align", opens=False),
    row(
        "the data offset lies beyond the file",
        _footers(Data_Offset=1 << 40),
        "E vhd.footer.data_offset",
        opens=False,
    ),
    row("the data offset is zero", _footers(Data_Offset=0), "E vhd.footer.data_offset", opens=False),
    row(
        "the data offset is 2**64 - 512",
        _footers(Data_Offset=(1 << 64) - 512),
        "E vhd.footer.data_offset",
        opens=False,
    ),
    row(
        "a fixed disk has a data offset",
        vhd(lambda s: s.footer.__setitem__("Data Offset", 512), _fixed),
        "W vhd.footer.data_offset",
    ),
    row(
        "a fixed disk's data offset has 32 ones only",
        vhd(lambda s: s.footer.__setitem__("Data Offset", 0xFFFFFFFF), _fixed),
        "W vhd.footer.data_offset",
    ),
    row("the disk type is 7", _footers(Disk_Type=7), "E vhd.footer.type", opens=False),
    row("the disk type is 0, none", _footers(Disk_Type=0), "E vhd.footer.type", opens=False),
    *(
        row(
            f"the disk type is {kind}, reserved",
            _footers(Disk_Type=kind),
            "E vhd.footer.type",
            exit_code=69,
            opens=False,
        )
        for kind in (1, 5, 6)
    ),
    row("the disk has no size", _footers(Current_Size=0), "E vhd.size.zero", opens=False),
    row(
        "the disk is no whole number of sectors",
        _footers(Current_Size=8 * MIB - 1),
        "E vhd.size.align",
        "I vhd.size.original",
    ),
    row("the disk has 2041 GiB", _footers(Current_Size=2041 << 30), "E vhd.size.max", "E vhd.bat.small"),
    row("the disk has 2**63 bytes", _footers(Current_Size=1 << 63), "E vhd.size.max", opens=False),
    row("the disk was resized", _footers(Original_Size=4 * MIB), "I vhd.size.original"),
    row("the geometry is smaller than the disk", _footers(Cylinders=3), "I vhd.geometry.mismatch"),
    row("the geometry is larger than the disk", _footers(Cylinders=60000), "W vhd.geometry.mismatch"),
    row(
        "Virtual PC shows less than the disk has",
        _footers(Creator_Application=b"vpc ", Creator_Version=0x50000),
        "I vhd.geometry.chs",
    ),
    row("the time stamp lies in the future", _footers(Time_Stamp=0xFFFFFFFF), "I vhd.time.future"),
    row("the disk has no identity", _footers(Unique_Id=bytes(16)), "W vhd.uuid.null"),
    row("the saved state is 9", _footers(Saved_State=9), "W vhd.footer.saved_state"),
    row("the disk belongs to a saved machine", _footers(Saved_State=1), "I vhd.footer.saved_state"),
    row(
        "reserved bytes of the footer are set", _footers(Reserved=b"\0" * 5 + b"\7"), "I vhd.reserved.nonzero"
    ),
    row(
        "the creator is an escape sequence", _footers(Creator_Application=b"\x1b[2J"), "I vhd.footer.creator"
    ),
    row("the host system is unknown", _footers(Creator_Host_OS=b"BeOS"), "I vhd.footer.host_os"),
    row(
        "a fixed disk is shorter than its size",
        vhd(lambda s: s.both_footers(Current_Size=2 * MIB), _fixed),
        "E vhd.fixed.short",
    ),
    row(
        "a fixed disk claims 2**58 bytes",
        vhd(lambda s: s.both_footers(Current_Size=1 << 58), _fixed),
        "E vhd.fixed.short",
        "E vhd.size.max",
    ),
    row(
        "bytes stand between a fixed disk and its footer",
        vhd(lambda s: s.move_footer(4096), _fixed),
        "W vhd.fixed.long",
    ),
    # ------------------------------------------------------------ dynamic headers
    row("the dynamic header is gone", _header(Cookie=b"nothing!"), "E vhd.header.missing", opens=False),
    row(
        "the dynamic header's checksum is wrong", vhd(_bad_header_sum, repair=False), "E vhd.header.checksum"
    ),
    row(
        "the dynamic header's checksum is wrong and to be ignored",
        vhd(_bad_header_sum, repair=False),
        "W vhd.header.checksum",
        options=["--ignore-checksums"],
    ),
    row("the header's next offset has 32 ones only", _header(Data_Offset=0xFFFFFFFF), "W vhd.header.next"),
    row("the header points to a next one", _header(Data_Offset=512), "W vhd.header.next"),
    row(
        "the header's version is unknown",
        _header(Header_Version=0x20000),
        "E vhd.header.version",
        exit_code=69,
    ),
    row("the block size is 3 MiB", _header(Block_Size=3 * MIB), "E vhd.header.block_size", opens=False),
    row("the block size is 0", _header(Block_Size=0), "E vhd.header.block_size", opens=False),
    row("the block size is 256 bytes", _header(Block_Size=256), "E vhd.header.block_size", opens=False),
    row(
        "the block size is 2 GiB in a small file",
        _header(Block_Size=1 << 31),
        "I vhd.header.block_size",
        "E vhd.block.eof",
        "I vhd.bat.large",
    ),
    row(
        "the block size is unusual",
        vhd(lambda s: None, lambda: a_vhd(size=64 << 10, block_size=4096, blocks={0: ALL})),
        "I vhd.header.block_size",
    ),
    row("reserved bytes of the header are set", _header(Reserved=9), "I vhd.reserved.nonzero"),
    row(
        "a dynamic disk names a parent",
        _header(Parent_Unicode_Name="x.vhd".encode("utf-16-be")),
        "W vhd.parent.fields",
    ),
    row(
        "a dynamic disk carries a parent's identity",
        _header(Parent_Unique_ID=b"\1" * 16),
        "W vhd.parent.fields",
    ),
    # ------------------------------------------------------------ block tables
    row("the BAT is too small for the disk", _header(Max_Table_Entries=3), "E vhd.bat.small"),
    row("the BAT has no entries", _header(Max_Table_Entries=0), "E vhd.bat.small"),
    row(
        "the BAT is larger than the disk needs",
        vhd(lambda s: None, lambda: a_vhd(entries=100)),
        "I vhd.bat.large",
    ),
    row("the BAT lies beyond the file", _header(Table_Offset=1 << 50), "E vhd.bat.eof"),
    row("the BAT lies at 2**64 - 512", _header(Table_Offset=(1 << 64) - 512), "E vhd.bat.eof"),
    row(
        "the BAT runs over the footer",
        vhd(lambda s: s.header.__setitem__("Table Offset", s.patient.size - 512)),
        "E vhd.bat.eof",
        "E vhd.block.eof",
        "E vhd.block.meta",
    ),
    row("the BAT lies in the header", _header(Table_Offset=1024), "E vhd.bat.overlap", "E vhd.block.meta"),
    row(
        "the BAT lies at byte zero",
        _header(Table_Offset=0),
        "E vhd.bat.overlap",
        "E vhd.block.eof",
        "E vhd.block.meta",
    ),
    row(
        "the BAT is not at a sector",
        _header(Table_Offset=1537),
        "E vhd.bat.align",
        "E vhd.block.eof",
        "E vhd.bitmap.data",
    ),
    row(
        "the BAT claims 2**32 - 1 entries in a small file",
        _header(Max_Table_Entries=0xFFFFFFFF),
        "E vhd.bat.eof",
        "I vhd.bat.large",
        "E vhd.block.meta",
    ),
    row("the BAT has 2**32 - 1 entries, a hole of 17 GB", _sparse_table, "I vhd.bat.large", "I vhd.bat.tail"),
    row(
        "the BAT has 2**32 - 1 entries and the disk's are sound",
        _unused_sparse_table,
        "I vhd.bat.large",
        "I vhd.bat.tail",
    ),
    row(
        "the BAT is followed by zeros", vhd(lambda s: s.patient.write(1536 + 16, bytes(496))), "I vhd.bat.pad"
    ),
    row(
        "an entry behind the disk is used",
        vhd(lambda s: s.set_bat(7, 0x77), lambda: a_vhd(entries=8)),
        "I vhd.bat.large",
        "I vhd.bat.tail",
    ),
    row("a block lies over the footer's copy", vhd(lambda s: s.set_bat(1, 0)), "E vhd.block.meta"),
    row("a block lies over the dynamic header", vhd(lambda s: s.set_bat(1, 2)), "E vhd.block.meta"),
    row("a block lies over the BAT", vhd(lambda s: s.set_bat(1, 3)), "E vhd.block.meta"),
    row("a block lies beyond the file", vhd(lambda s: s.set_bat(1, 0xFFFFFFFE)), "E vhd.block.eof"),
    row(
        "a block lies over the footer",
        vhd(lambda s: s.set_bat(2, s.bat(2) + 1)),
        "E vhd.block.eof",
        "I vhd.block.unaligned",
    ),
    row("two entries name one block", vhd(lambda s: s.set_bat(1, s.bat(0))), "E vhd.block.cross"),
    row(
        "all entries name one block",
        vhd(_all_one_block),
        "E vhd.block.cross",
        "I vhd.orphan.space",
    ),
    row("two blocks share one sector", vhd(_moved_by_a_sector), "E vhd.block.cross", "I vhd.orphan.space"),
    row(
        "a block's data are not at 4096 bytes",
        vhd(_off_by_three_sectors, _one_block),
        "I vhd.block.unaligned",
    ),
    row("a lost block lies in the file", vhd(lambda s: s.set_bat(2, UNUSED)), "I vhd.orphan.space"),
    row(
        "the last block is cut behind the disk's end",
        vhd(_block_cut_behind_the_disk, _odd_end),
        "W vhd.block.truncated",
    ),
    # ------------------------------------------------------------ bitmaps
    row(
        "bits are set behind the disk's end",
        vhd(lambda s: s.set_bit(2, 3000, 1), _odd_end),
        "W vhd.bitmap.tail",
    ),
    row(
        "data stand under a clear bit of a dynamic disk",
        vhd(lambda s: s.set_bit(0, 3, 0)),
        "E vhd.bitmap.data",
        exit_code=0,
    ),
    # ------------------------------------------------------------ Xen
    row("a sound batmap is no finding", vhd(lambda s: None, _xen)),
    row("the batmap's cookie is gone", _xen_with("cookie", b"tdbatmaX"), "W vhd.batmap.cookie"),
    row("the batmap's version is unknown", _xen_with("batmap_version", 7), "W vhd.batmap.version"),
    row("the batmap's checksum is wrong", _xen_with("checksum", 7), "W vhd.batmap.checksum"),
    row("the batmap lies beyond the file", _xen_with("batmap_offset", 1 << 60), "W vhd.batmap.range"),
    row("the batmap is too small", _xen_with("batmap_size", 0), "W vhd.batmap.small"),
    row("the disk is encrypted by tapdisk", _xen_with("keyhash", 1), "W vhd.batmap.encrypted"),
    # ------------------------------------------------------------ locators
    row("a locator has an unknown code", _third(Platform_Code=b"W9zz"), "W vhd.locator.code"),
    row("a locator's code is an escape sequence", _third(Platform_Code=b"\x1b]0;"), "W vhd.locator.code"),
    row("a locator lies beyond the file", _third(Platform_Data_Offset=1 << 62), "W vhd.locator.range"),
    row(
        "a locator claims 4 GiB",
        _third(Platform_Code=b"W2ku", Platform_Data_Length=0xFFFFFFFF),
        "W vhd.locator.range",
    ),
    row("a locator is empty", _third(Platform_Data_Length=0), "W vhd.locator.empty"),
    row("an unused locator has a length", _third(Platform_Code=bytes(4)), "W vhd.locator.nonzero"),
    row("a locator has an odd length", _locator(b"W2ku", b"C\0:\0\\\0x"), "W vhd.locator.odd_length"),
    row(
        "a locator is in an unstated encoding",
        _locator(b"Wi2k", b"C:\\VMs\\parent.vhd"),
        "I vhd.locator.encoding",
    ),
    row("a child does not name its parent", child_vhd(_no_locators), "W vhd.locator.none"),
    row(
        "a block lies over a locator",
        child_vhd(lambda s: s.set_bat(1, s.locator(1)["Platform Data Offset"] // 512)),
        "E vhd.block.meta",
    ),
    row(
        "the BAT lies over a locator",
        child_vhd(lambda s: s.header.__setitem__("Table Offset", s.locator(1)["Platform Data Offset"])),
        "E vhd.bat.overlap",
        "E vhd.block.eof",
    ),
    row(
        "a child has no parent identity",
        child_vhd(lambda s: s.header.__setitem__("Parent Unique ID", bytes(16))),
        "E vhd.parent.null",
        "E chain.parent.missing",
    ),
    row(
        "Xen means a raw parent",
        child_vhd(_raw_parent_of_xen),
        "E vhd.parent.raw",
        "E chain.parent.missing",
        exit_code=69,
    ),
    # ------------------------------------------------------------ cuts
    row("an empty file is called .vhd", file_of(b"", "disk.vhd"), "E image.unknown", opens=False),
    row("a file of one byte is called .vhd", file_of(b"c", "disk.vhd"), "E image.unknown", opens=False),
    row(
        "a file holds a VHD's cookie and nothing else",
        file_of(b"conectix", "disk.vhd"),
        "E image.unknown",
        opens=False,
    ),
    row(
        "a file holds 63 footers' cookies",
        file_of(b"conectix" * 63 + b"conecti", "disk.vhd"),
        "E vhd.footer.checksum",
        opens=False,
    ),
    row("a file holds 511 bytes of a footer", _cut(511), "E vhd.footer.data_offset", opens=False),
    row("a file holds a dynamic footer and nothing else", _cut(512), "E vhd.footer.data_offset", opens=False),
    row("a dynamic disk ends in its header", _cut(1024), "E vhd.footer.data_offset", opens=False),
    row("a dynamic disk ends behind its header", _cut(1536), "W vhd.footer.end_bad", "E vhd.bat.eof"),
    row(
        "a dynamic disk ends in its BAT",
        _cut(1540),
        "W vhd.footer.end_bad",
        "W vhd.file.size",
        "E vhd.bat.eof",
        "E vhd.block.eof",
    ),
    row("a dynamic disk ends behind its BAT", _cut(2048), "W vhd.footer.end_bad", "E vhd.block.eof"),
    row(
        "a dynamic disk ends in a bitmap",
        _cut(0xF01),
        "W vhd.footer.end_bad",
        "W vhd.file.size",
        "E vhd.block.eof",
    ),
    row("a dynamic disk ends in its first block", _cut(MIB), "W vhd.footer.end_bad", "E vhd.block.eof"),
    row(
        "a dynamic disk ends one sector early in its last block",
        _cut(-1024),
        "W vhd.footer.end_bad",
        "E vhd.block.eof",
    ),
    row("a split disk is whole", _split(True)),
    row("a split disk lacks its last piece", _split(False), "E image.unknown", opens=False),
    row("a VHD is called .vhdx", vhd(lambda s: None, name="disk.vhdx")),
    row("a VHD is called .avhdx", vhd(lambda s: None, name="disk.avhdx")),
    row("a VHD is called .txt", vhd(lambda s: None, name="disk.txt")),
]

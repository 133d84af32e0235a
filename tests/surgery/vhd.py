"""Surgery on VHDs: every structure by its name, every field by the specification's."""

from __future__ import annotations

from typing import Final

from tests.surgery.patient import Patient, Record

SECTOR: Final = 512
FOOTER_SIZE: Final = 512
HEADER_SIZE: Final = 1024
UNUSED: Final = 0xFFFFFFFF

FOOTER: Final = {
    "Cookie": (0, "8"),
    "Features": (8, "u32"),
    "File Format Version": (12, "u32"),
    "Data Offset": (16, "u64"),
    "Time Stamp": (24, "u32"),
    "Creator Application": (28, "4"),
    "Creator Version": (32, "u32"),
    "Creator Host OS": (36, "4"),
    "Original Size": (40, "u64"),
    "Current Size": (48, "u64"),
    "Cylinders": (56, "u16"),
    "Heads": (58, "u8"),
    "Sectors per track": (59, "u8"),
    "Disk Type": (60, "u32"),
    "Checksum": (64, "u32"),
    "Unique Id": (68, "16"),
    "Saved State": (84, "u8"),
    "Reserved": (85, "427"),
}
HEADER: Final = {
    "Cookie": (0, "8"),
    "Data Offset": (8, "u64"),
    "Table Offset": (16, "u64"),
    "Header Version": (24, "u32"),
    "Max Table Entries": (28, "u32"),
    "Block Size": (32, "u32"),
    "Checksum": (36, "u32"),
    "Parent Unique ID": (40, "16"),
    "Parent Time Stamp": (56, "u32"),
    "Reserved": (60, "u32"),
    "Parent Unicode Name": (64, "512"),
    "Reserved 2": (768, "256"),
}
LOCATORS_AT: Final = 576
LOCATOR: Final = {
    "Platform Code": (0, "4"),
    "Platform Data Space": (4, "u32"),
    "Platform Data Length": (8, "u32"),
    "Reserved": (12, "u32"),
    "Platform Data Offset": (16, "u64"),
}
BATMAP: Final = {
    "cookie": (0, "8"),
    "batmap_offset": (8, "u64"),
    "batmap_size": (16, "u32"),
    "batmap_version": (20, "u32"),
    "checksum": (24, "u32"),
    "marker": (28, "u8"),
    "keyhash": (29, "u8"),
}


def byte_sum(data: bytes, checksum_at: int) -> int:
    """The format's checksum: the inverted sum of all bytes but its own four."""
    return ~(sum(data) - sum(data[checksum_at : checksum_at + 4])) & 0xFFFFFFFF


class VhdSurgeon:
    """A VHD with its structures by name.  ``close_up`` repairs checksums.

    Attributes:
        footer_size: 512, 511, or 0 when the footer was cut off.
    """

    def __init__(self, patient: Patient) -> None:
        self.patient = patient
        self.footer_size = FOOTER_SIZE

    # ------------------------------------------------------------ structures

    @property
    def footer(self) -> Record:
        """The footer at the end."""
        return Record(self.patient, self.patient.size - FOOTER_SIZE, FOOTER, "big")

    @property
    def copy(self) -> Record:
        """The footer's copy at offset 0 (not on fixed disks)."""
        return Record(self.patient, 0, FOOTER, "big")

    @property
    def header(self) -> Record:
        """The dynamic header, where the footer says it is."""
        return Record(self.patient, self.footer["Data Offset"], HEADER, "big")

    def locator(self, number: int) -> Record:
        """Parent Locator Entry ``number``, from 1 to 8."""
        return Record(self.patient, self.header.offset + LOCATORS_AT + 24 * (number - 1), LOCATOR, "big")

    @property
    def batmap(self) -> Record:
        """Xen's batmap header, behind the BAT's last sector."""
        table = self.header["Table Offset"] + 4 * self.header["Max Table Entries"]
        return Record(self.patient, -(-table // SECTOR) * SECTOR, BATMAP, "big")

    # ------------------------------------------------------------ tables

    def bat(self, block: int) -> int:
        """A BAT entry: the sector number of the block's bitmap."""
        return int.from_bytes(self.patient.read(self.header["Table Offset"] + 4 * block, 4), "big")

    def set_bat(self, block: int, sector: int) -> None:
        """Change a BAT entry."""
        self.patient.write(self.header["Table Offset"] + 4 * block, sector.to_bytes(4, "big"))

    @property
    def bitmap_size(self) -> int:
        """Bytes of each block's bitmap, in whole sectors."""
        bits = self.header["Block Size"] // SECTOR
        return -(-bits // (8 * SECTOR)) * SECTOR

    def bitmap_at(self, block: int) -> int:
        """File offset of a stored block's bitmap."""
        return self.bat(block) * SECTOR

    def data_at(self, block: int, sector: int = 0) -> int:
        """File offset of a sector of a stored block."""
        return self.bitmap_at(block) + self.bitmap_size + sector * SECTOR

    def set_bit(self, block: int, sector: int, value: int) -> None:
        """Change one sector's bit: the most significant one is the first."""
        place = self.bitmap_at(block) + sector // 8
        byte = self.patient.read(place, 1)[0]
        mask = 0x80 >> sector % 8
        self.patient.write(place, bytes([byte | mask if value else byte & ~mask]))

    # ------------------------------------------------------------ sewing up

    def both_footers(self, **values: int | bytes) -> None:
        """Change a field, ``Disk_Type=5``, in the footer and in its copy, and repair them."""
        is_dynamic = self.patient.read(0, 8) in (b"conectix", b"v_poison")
        for name, value in values.items():
            self.footer[name.replace("_", " ")] = value
            if is_dynamic:
                self.copy[name.replace("_", " ")] = value
        self.repair_footers()

    def repair_footers(self) -> None:
        """Right checksums in footer and copy."""
        self.repair(self.footer)
        if self.patient.read(0, 8) in (b"conectix", b"v_poison"):
            self.repair(self.copy)

    def repair(self, record: Record) -> None:
        """The right checksum in a footer or header."""
        size = FOOTER_SIZE if record.fields is FOOTER else HEADER_SIZE
        at = record.fields["Checksum"][0]
        record["Checksum"] = byte_sum(self.patient.read(record.offset, size), at)

    def close_up(self) -> Patient:
        """Repair every checksum that can be found; the patient is done."""
        self.repair_footers()
        header_at = self.footer["Data Offset"]
        if header_at + HEADER_SIZE <= self.patient.size:
            self.repair(self.header)
        return self.patient

    # ------------------------------------------------------------ operations

    def cut(self, size: int) -> Patient:
        """The file loses everything from byte ``size`` on."""
        self.patient.resize(size)
        return self.patient

    def move_footer(self, by: int) -> None:
        """Move the footer ``by`` bytes towards the end; zeros stand where it was."""
        raw = self.patient.read(self.patient.size - FOOTER_SIZE, FOOTER_SIZE)
        old = self.patient.size - FOOTER_SIZE
        self.patient.resize(old)
        self.patient.write(old + by, raw)

    def write_locator(self, number: int, code: bytes, data: bytes, *, at: int) -> None:
        """Fill a Parent Locator Entry and write its data to byte ``at``."""
        entry = self.locator(number)
        entry["Platform Code"] = code
        entry["Platform Data Space"] = max(4096, -(-len(data) // 4096) * 4096)
        entry["Platform Data Length"] = len(data)
        entry["Platform Data Offset"] = at
        self.patient.write(at, data)

    def repair_batmap(self) -> None:
        """The batmap's checksum over the bytes that the disk's size asks for."""
        # Whole sectors, and one for the smallest disks.
        length = -(-max(1, (self.footer["Current Size"] >> 21) // 8) // SECTOR) * SECTOR
        data = self.patient.read(self.batmap["batmap_offset"], length)
        self.batmap["checksum"] = ~sum(data) & 0xFFFFFFFF

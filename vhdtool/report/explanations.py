"""What each finding means in one sentence, and what an administrator would do about it.

A test keeps this table and the codes in the source in step, and the reference page is made from it.  The
numbers are those that Windows reports for the same fault (facility 0x3A, ``ERROR_VHD_...``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Explanation:
    """One sentence each, without knowing the file.

    Attributes:
        windows: the error that Windows gives for it, empty where none is known.
    """

    meaning: str
    advice: str
    windows: str = ""


_NOTHING: Final = "Nothing: the disk is read in full."
_COPY_AGAIN: Final = (
    "Copy the file again from its source, from a shadow copy if the machine runs, or restore it "
    "from a backup."
)
_RESTORE: Final = "Restore the file from a backup; work on a copy if you try to rescue what is in it."
_SECOND_COPY: Final = (
    "Export or convert the disk to get a clean file; find out what damaged this one before you "
    "trust its storage."
)
_EXPORT_REST: Final = (
    "Restore the file from a backup; what is not damaged can be had with export --damaged zero, "
    "which lists the rest."
)
_CUT_OFF: Final = (
    "Copy the file again: its end is missing; else restore it, or export the rest with --damaged zero."
)
_EXPORT_AGAIN: Final = "Export the point in time again, and find out what changed this copy."
_COPY_ZSTD: Final = (
    "Copy the file again; zstd -t says whether its frames are whole, and zstd -d reads those that are."
)
_NEWER: Final = "Open it with the program that wrote it, and convert it there."
_FOREIGN: Final = "Nothing, unless you meant another file: it was made by a program with habits of its own."
_REPAIR_PATH: Final = (
    "Nothing for reading, if the parent is found; Set-VHD -ParentPath writes a right path on a copy."
)
_PARENT_WRITTEN: Final = (
    "Find the parent as it was when the child was made; with another one the blocks of two states are mixed. "
    "After a look, --allow-mismatch reads it all the same, as Set-VHD -IgnoreIdMismatch would."
)

EXPLANATIONS: Final[dict[str, Explanation]] = {
    # Files
    "file.not_regular": Explanation(
        "A folder, device, pipe or socket stands where an image file should.",
        "Name the image file itself; copy a disk device to a file first.",
    ),
    "file.too_short": Explanation(
        "The file ends inside a structure that it says it has.",
        _COPY_AGAIN,
        "0xC03A0013",
    ),
    "file.unreadable": Explanation(
        "The operating system could not open or read the file.",
        "Look at its permissions and at the health of the disk or the connection that it lies on.",
        "0xC03A0016",
    ),
    "check.unreadable": Explanation(
        "An image that was there a moment ago can no longer be read.",
        "Check again when nothing moves or writes these files.",
    ),
    "image.unknown": Explanation(
        "The file carries neither the signature of a VHD nor that of a VHDX.",
        "Check that it is the file you meant; a raw disk is read under a name that does not claim a format.",
        "0xC03A0015",
    ),
    "image.vhd_set": Explanation(
        "This is a VHD Set, a small file that only names the disks of a shared set.",
        "Open the .avhdx that stands beside it and carries the set's name.",
        "0xC03A0004",
    ),
    "raw.empty": Explanation("The file has no bytes at all.", "Copy it again: the disk is elsewhere."),
    "raw.other_format": Explanation(
        "A file that is taken for a raw disk begins like an image or an archive of another format.",
        "Convert or unpack it first, unless it really is a raw disk.",
    ),
    "raw.size": Explanation(
        "A raw disk is a whole number of sectors, and this file is not.",
        "Copy it again; if it is complete, it is no disk image.",
        "0xC03A0012",
    ),
    # Compressed raw disks, E01
    "zstd.table.missing": Explanation(
        "A zstd file without a table of its frames, or one that was cut off, cannot be read by position.",
        "Decompress it with zstd -d and read what comes out; export --format raw.zst writes the table.",
    ),
    "zstd.table.descriptor": Explanation(
        "The seek table of a zstd file uses what its specification reserves.",
        "Decompress it with zstd -d and read what comes out.",
    ),
    "zstd.table.count": Explanation("The seek table is longer than the whole file.", _COPY_ZSTD),
    "zstd.table.header": Explanation("No skippable frame begins where the seek table should.", _COPY_ZSTD),
    "zstd.table.row": Explanation(
        "The seek table has a frame that holds more than 64 MiB, or takes fewer bytes than a frame can.",
        "Decompress it with zstd -d, which does not need the table.",
    ),
    "zstd.table.size": Explanation(
        "The frames of the seek table do not fill the space in front of it: the file was cut or patched.",
        _COPY_ZSTD,
    ),
    "zstd.frame": Explanation(
        "A frame cannot be decompressed, or does not hold what the seek table says.", _COPY_ZSTD
    ),
    "zstd.content": Explanation(
        "What is compressed is an image of another format, not a raw disk.",
        "Decompress it with zstd -d and open what comes out.",
    ),
    "ewf.damaged": Explanation(
        "The program that reads the E01 found places whose checksums are wrong, or that are missing.",
        "See that all its segments are there, and copy them again.",
    ),
    # VHD: footer
    "vhd.footer.missing": Explanation(
        "No footer stands at the end of the file, and no copy of one at its start.",
        "If the file was cut off or padded, copy it again; without a footer it is no VHD.",
        "0xC03A0001",
    ),
    "vhd.footer.end_bad": Explanation(
        "The footer at the end is damaged or gone; its copy at the start of the file is used.",
        _SECOND_COPY,
        "0xC03A0003",
    ),
    "vhd.footer.copy_bad": Explanation(
        "The footer's copy at the start of the file is damaged; the footer itself is good and used.",
        _SECOND_COPY,
    ),
    "vhd.footer.differ": Explanation(
        "The footer and its copy are both valid and not the same: an update was interrupted; the "
        "footer is used.",
        _SECOND_COPY,
    ),
    "vhd.footer.511": Explanation(
        "The footer has 511 bytes, as programs before Virtual PC 2004 wrote it.", _NOTHING
    ),
    "vhd.footer.checksum": Explanation(
        "The footer's checksum does not fit its bytes, in any copy: a field in it may be wrong.",
        "Restore the file; if its fields look right, --ignore-checksums reads it.",
        "0xC03A0002",
    ),
    "vhd.footer.version": Explanation(
        "The footer states a version of the format other than 1.0.", _NEWER, "0xC03A0005"
    ),
    "vhd.footer.type": Explanation(
        "The footer states a disk type that is none of fixed, dynamic and differencing.", _NEWER, "0xC03A001B"
    ),
    "vhd.footer.features": Explanation("The footer has feature bits set that nobody defined.", _FOREIGN),
    "vhd.footer.temporary": Explanation(
        "The disk is marked as temporary: its program may delete it at the next shutdown.",
        "Copy it to a safe place if you need it.",
    ),
    "vhd.footer.saved_state": Explanation(
        "The disk belongs to a machine in saved state, or the field that says so holds nonsense.",
        "Do not change the disk before that machine was resumed and shut down; reading is safe.",
    ),
    "vhd.footer.creator": Explanation("The program that made the file is not one we know.", _FOREIGN),
    "vhd.footer.host_os": Explanation(
        "The operating system that made the file is not one we know.", _FOREIGN
    ),
    "vhd.footer.data_offset": Explanation(
        "The footer points to no place where a dynamic header can be, or a fixed disk's points to "
        "one at all.",
        "Nothing if the disk is fixed; otherwise restore the file from a backup.",
        "0xC03A0003",
    ),
    "vhd.cookie.poison": Explanation(
        "A program marked the file because an operation on it was interrupted.",
        "Let the program that did it (Xen's tapdisk) finish or undo the operation; check the file "
        "system inside.",
    ),
    "vhd.file.size": Explanation(
        "The file is no whole number of 512-byte sectors: it was cut off or something was appended.",
        _COPY_AGAIN,
    ),
    "vhd.fixed.short": Explanation(
        "The file of a fixed disk is shorter than the disk: its end is missing.", _COPY_AGAIN, "0xC03A0013"
    ),
    "vhd.fixed.long": Explanation(
        "Bytes lie between the end of a fixed disk and its footer; they are no part of the disk.", _NOTHING
    ),
    "vhd.geometry.mismatch": Explanation(
        "The geometry in cylinders, heads and sectors is not what the disk's size gives.", _NOTHING
    ),
    "vhd.geometry.chs": Explanation(
        "Virtual PC shows its guests only what the geometry can address, less than the disk's size.",
        "Nothing: the whole disk is read; a guest in Virtual PC saw its first part only.",
    ),
    "vhd.reserved.nonzero": Explanation("Bytes that the format reserves are not zero.", _FOREIGN),
    "vhd.size.zero": Explanation("The disk's size is zero.", _RESTORE, "0xC03A0012"),
    "vhd.size.align": Explanation("The disk's size is no whole number of sectors.", _RESTORE, "0xC03A0012"),
    "vhd.size.max": Explanation(
        "The disk is larger than the 2040 GiB that a VHD can have.", _RESTORE, "0xC03A0012"
    ),
    "vhd.size.original": Explanation("The disk was resized after it was made.", _NOTHING),
    "vhd.time.future": Explanation(
        "A time stamp lies in the future: the clock of the machine that wrote it, or of this one, is wrong.",
        "Trust no time that this file states.",
    ),
    "vhd.uuid.null": Explanation(
        "The disk has no identity, so no child can be bound to it safely.",
        "Set-VHD -ResetDiskIdentifier gives a copy of it one; never do so to a disk that has children.",
    ),
    # VHD: dynamic header, BAT, blocks
    "vhd.header.missing": Explanation(
        "No dynamic header stands where the footer points: no block can be found.", _RESTORE, "0xC03A0008"
    ),
    "vhd.header.align": Explanation("The dynamic header does not begin at a sector.", _RESTORE, "0xC03A0008"),
    "vhd.header.checksum": Explanation(
        "The dynamic header's checksum does not fit its bytes, and the format keeps no copy of it.",
        "Restore the file; if its fields look right, --ignore-checksums reads it.",
        "0xC03A0006",
    ),
    "vhd.header.version": Explanation(
        "The dynamic header states a version other than 1.0.", _NEWER, "0xC03A0007"
    ),
    "vhd.header.next": Explanation(
        "The dynamic header points to a further header, which the format does not define.", _FOREIGN
    ),
    "vhd.header.block_size": Explanation(
        "The block size is not one of those in use (a note), or cannot be one at all (an error).",
        "Nothing if it is a note; otherwise restore the file from a backup.",
        "0xC03A000B",
    ),
    "vhd.bat.small": Explanation(
        "The block allocation table has fewer entries than the disk has blocks: the disk's end "
        "cannot be found.",
        _RESTORE,
        "0xC03A000A",
    ),
    "vhd.bat.large": Explanation(
        "The block allocation table has room for a larger disk, as Xen makes it.", _NOTHING
    ),
    "vhd.bat.align": Explanation(
        "The block allocation table does not begin at a sector.", _RESTORE, "0xC03A000A"
    ),
    "vhd.bat.eof": Explanation(
        "The block allocation table reaches beyond the end of the file.", _COPY_AGAIN, "0xC03A000A"
    ),
    "vhd.bat.overlap": Explanation(
        "The block allocation table lies over another structure of the file.", _RESTORE, "0xC03A000A"
    ),
    "vhd.bat.pad": Explanation(
        "What fills up the block allocation table's last sector is not all ones.", _NOTHING
    ),
    "vhd.bat.tail": Explanation(
        "Blocks are stored beyond the end of the disk, as a disk that was made smaller leaves them.", _NOTHING
    ),
    "vhd.block.meta": Explanation(
        "A block's table entry points into the headers, the table or a locator: its content is not there.",
        _EXPORT_REST,
        "0xC03A000A",
    ),
    "vhd.block.eof": Explanation(
        "A block lies beyond the end of the file, or over its footer.", _CUT_OFF, "0xC03A000A"
    ),
    "vhd.block.cross": Explanation(
        "Two blocks of the disk share bytes of the file: one of them was overwritten by the other.",
        _EXPORT_REST,
        "0xC03A000A",
    ),
    "vhd.block.truncated": Explanation(
        "The last block is cut off behind the end of the disk; all that belongs to the disk is there.",
        _NOTHING,
    ),
    "vhd.block.unaligned": Explanation(
        "Blocks do not stand at multiples of 4096 bytes, which makes disks with such sectors slow.",
        "Convert-VHD makes an aligned copy; Get-VHD calls this Alignment 0.",
    ),
    "vhd.bitmap.tail": Explanation(
        "The last block's bitmap marks sectors behind the end of the disk.", _NOTHING, "0xC03A000C"
    ),
    "vhd.bitmap.data": Explanation(
        "Sectors that the bitmap marks as never written hold data; they read as zeros here, as the "
        "format says.",
        "Compare with what the machine saw: programs that ignore bitmaps show that data.",
        "0xC03A000C",
    ),
    "vhd.orphan.space": Explanation(
        "Parts of the file belong to nothing: blocks that were lost or given up.",
        "Nothing for reading; Optimize-VHD or a conversion gets the space back, a carver may want "
        "to look first.",
    ),
    # VHD: parents
    "vhd.locator.code": Explanation("A parent locator is of a kind that nobody defined.", _REPAIR_PATH),
    "vhd.locator.range": Explanation(
        "A parent locator's text lies beyond the end of the file or is impossibly long.", _REPAIR_PATH
    ),
    "vhd.locator.empty": Explanation("A parent locator states a kind and has no text.", _REPAIR_PATH),
    "vhd.locator.nonzero": Explanation(
        "A parent locator that is not used has fields that are not zero.", _NOTHING
    ),
    "vhd.locator.odd_length": Explanation(
        "A parent locator's UTF-16 text has an odd number of bytes; the last one is dropped.", _REPAIR_PATH
    ),
    "vhd.locator.encoding": Explanation(
        "A parent locator holds 8-bit text whose encoding is not stated; it is taken for Windows-1252.",
        _REPAIR_PATH,
    ),
    "vhd.locator.path": Explanation(
        "A recorded path of the parent is not what it claims to be, or names a device; it is not followed.",
        _REPAIR_PATH,
    ),
    "vhd.locator.none": Explanation(
        "The disk needs a parent and names none.",
        "Name the folder of the parent with --search: it is found there by its identity.",
    ),
    "vhd.parent.fields": Explanation("A disk that has no parent carries fields of one.", _NOTHING),
    "vhd.parent.null": Explanation(
        "The disk needs a parent, and does not record the identity by which to accept one.", _RESTORE
    ),
    "vhd.parent.raw": Explanation(
        "The parent is a raw disk, as Xen allows: it has no identity by which to accept it.",
        "Let Xen's tools coalesce the chain into one VHD.",
    ),
    # VHD: Xen's batmap
    "vhd.batmap.cookie": Explanation("Xen's batmap is not where its programs keep one.", _NOTHING),
    "vhd.batmap.version": Explanation("Xen's batmap is of an unknown version.", _NOTHING),
    "vhd.batmap.checksum": Explanation(
        "The checksum of Xen's batmap does not fit it; it is not used here.", _NOTHING
    ),
    "vhd.batmap.range": Explanation("Xen's batmap is not inside the file; it is not used here.", _NOTHING),
    "vhd.batmap.small": Explanation("Xen's batmap is too small for the disk; it is not used here.", _NOTHING),
    "vhd.batmap.encrypted": Explanation(
        "Xen encrypted the disk's content.", "Read it with the key, through Xen's tools."
    ),
    # VHDX: headers
    "vhdx.signature": Explanation(
        "The file identifier at the start of the file is not that of a VHDX.", _RESTORE, "0xC03A0004"
    ),
    "vhdx.header.none": Explanation(
        "Neither of the two headers is valid.",
        "Restore the file; if only checksums are wrong, --ignore-checksums reads it.",
        "0xC03A0008",
    ),
    "vhdx.header.one": Explanation(
        "One of the two headers is not valid, as after a crash during its update; the other one is used.",
        "Nothing if it happened once; Windows writes it anew when it next opens the disk for writing.",
    ),
    "vhdx.header.checksum": Explanation(
        "A header's checksum is wrong and was ignored as asked.",
        "Compare what you read with a backup before you rely on it.",
        "0xC03A0006",
    ),
    "vhdx.header.equal": Explanation(
        "Both headers claim to be the newer one, and they differ: nobody can say which is right.",
        _RESTORE,
        "0xC03A0008",
    ),
    "vhdx.header.differ": Explanation(
        "The two headers carry different GUIDs, as after a crash between two updates; the newer one counts.",
        _NOTHING,
    ),
    "vhdx.header.version": Explanation(
        "The header states a version of the format other than 1.", _NEWER, "0xC03A0007"
    ),
    "vhdx.header.log_version": Explanation(
        "The log is of an unknown version, and without it the file is not whole.", _NEWER, "0xC03A0007"
    ),
    "vhdx.header.reserved": Explanation(
        "Bytes that the format reserves in the header are not zero.", _FOREIGN
    ),
    # VHDX: log
    "vhdx.log.pending": Explanation(
        "The disk was not closed properly; its last changes stand in the log, and are replayed in memory.",
        "Nothing for reading; Windows replays the log into the file when it next opens the disk.",
    ),
    "vhdx.log.left_out": Explanation(
        "A pending log was left out as asked: tables and content may be in the middle of a change.",
        "Use --log after for anything but a look at the state before the replay.",
    ),
    "vhdx.log.no_sequence": Explanation(
        "The log must be replayed, and no valid sequence of entries is in it: the file may be torn.",
        "Copy the file again; --log before shows it without the log, at your own risk.",
        "0xC03A0010",
    ),
    "vhdx.log.zero_length": Explanation(
        "The log must be replayed, and has no length.", _RESTORE, "0xC03A0008"
    ),
    "vhdx.log.align": Explanation("The log is not where a log can be.", _RESTORE, "0xC03A0008"),
    "vhdx.log.eof": Explanation("The log lies beyond the end of the file.", _COPY_AGAIN, "0xC03A0013"),
    "vhdx.log.limit": Explanation(
        "The log asks for more work than an honest one can.",
        "Do not trust this file: it looks made to do harm.",
    ),
    "vhdx.log.truncated": Explanation(
        "The file is shorter than it was when its log was written: its end is missing.",
        _COPY_AGAIN,
        "0xC03A0013",
    ),
    "vhdx.log.last_offset": Explanation(
        "The log makes the file larger than any VHDX can be.", _RESTORE, "0xC03A0013"
    ),
    "vhdx.log.extends": Explanation(
        "The log makes the file longer than it is, as after a crash while it grew; the new part "
        "reads as zeros.",
        "Check the file system inside: what was being written then may be missing.",
    ),
    "vhdx.log.target": Explanation(
        "A log entry would write where no entry may: into the headers, the log, or beyond the file.", _RESTORE
    ),
    "vhdx.log.payload": Explanation(
        "The log writes into the content of a block, which no writer does.",
        "Trust the file only if you know what wrote it: its log may have been made by hand.",
    ),
    # VHDX: region table
    "vhdx.region.both": Explanation(
        "Neither copy of the region table is valid: nothing in the file can be found.", _RESTORE, "0xC03A0008"
    ),
    "vhdx.region.one": Explanation(
        "One copy of the region table is not valid; the other one is used.", _SECOND_COPY
    ),
    "vhdx.region.differ": Explanation(
        "The two copies of the region table are both valid and differ; the first one is used.", _SECOND_COPY
    ),
    "vhdx.region.checksum": Explanation(
        "A region table's checksum is wrong and was ignored as asked.",
        "Compare what you read with a backup before you rely on it.",
    ),
    "vhdx.region.count": Explanation("The region table claims more entries than it can hold.", _RESTORE),
    "vhdx.region.reserved": Explanation(
        "Bits that the format reserves in the region table are not zero.", _FOREIGN
    ),
    "vhdx.region.duplicate": Explanation("A region stands in the region table twice.", _RESTORE),
    "vhdx.region.align": Explanation(
        "A region does not lie on whole MiB, or lies in the header area.", _RESTORE
    ),
    "vhdx.region.overlap": Explanation("A region lies over another one or over the log.", _RESTORE),
    "vhdx.region.eof": Explanation("A region lies beyond the end of the file.", _COPY_AGAIN, "0xC03A0013"),
    "vhdx.region.unknown_required": Explanation(
        "The file has a region that we do not know and that one must know to read it.", _NEWER, "0xC03A0005"
    ),
    "vhdx.region.missing": Explanation(
        "The file lacks its block allocation table or its metadata.", _RESTORE, "0xC03A0008"
    ),
    "vhdx.region.not_required": Explanation(
        "A region that every VHDX needs is not marked as required.", _NOTHING
    ),
    # VHDX: metadata
    "vhdx.metadata.signature": Explanation("No metadata table stands in its region.", _RESTORE, "0xC03A0010"),
    "vhdx.metadata.count": Explanation(
        "The metadata table claims more entries than it may have.", _RESTORE, "0xC03A0010"
    ),
    "vhdx.metadata.reserved": Explanation(
        "Bits that the format reserves in the metadata are not zero.", _FOREIGN
    ),
    "vhdx.metadata.range": Explanation(
        "A metadata item does not lie where items can be.", _RESTORE, "0xC03A0010"
    ),
    "vhdx.metadata.overlap": Explanation("Two metadata items lie over each other.", _RESTORE, "0xC03A0010"),
    "vhdx.metadata.duplicate": Explanation(
        "A metadata item stands in the table twice.", _RESTORE, "0xC03A0010"
    ),
    "vhdx.metadata.size": Explanation("A metadata item has the wrong length.", _RESTORE, "0xC03A0010"),
    "vhdx.metadata.zero_id": Explanation("A metadata item has no id.", _RESTORE, "0xC03A0010"),
    "vhdx.metadata.user_required": Explanation(
        "A metadata item of a user claims to be required, which only the format's own may.", _RESTORE
    ),
    "vhdx.metadata.unknown_required": Explanation(
        "The file has a metadata item that we do not know and that one must know to read it.",
        _NEWER,
        "0xC03A0005",
    ),
    "vhdx.metadata.missing": Explanation(
        "A metadata item that every VHDX needs is not there, or not usable.", _RESTORE, "0xC03A0010"
    ),
    "vhdx.metadata.flags": Explanation(
        "A known metadata item is marked otherwise than the format says.", _NOTHING
    ),
    "vhdx.metadata.incomplete": Explanation(
        "The creation of this file never completed.", "Make the disk again from its source."
    ),
    "vhdx.block_size": Explanation(
        "The block size is no power of two from 1 MiB to 256 MiB.", _RESTORE, "0xC03A000B"
    ),
    "vhdx.disk_size": Explanation(
        "The disk's size is zero, no whole number of sectors, or more than 64 TiB.", _RESTORE, "0xC03A0012"
    ),
    "vhdx.sector_size": Explanation("A sector size is neither 512 nor 4096 bytes.", _RESTORE, "0xC03A001D"),
    # VHDX: BAT and blocks
    "vhdx.bat.small": Explanation(
        "The block allocation table is shorter than the disk needs: the disk's end cannot be found.",
        _RESTORE,
        "0xC03A000A",
    ),
    "vhdx.bat.state": Explanation(
        "A table entry has a state that the format does not define, or not for this type of disk.",
        _EXPORT_REST,
        "0xC03A000A",
    ),
    "vhdx.bat.reserved": Explanation(
        "Bits that the format reserves in a table entry are not zero.", _FOREIGN
    ),
    "vhdx.bat.zero_offset": Explanation(
        "A block is marked as stored, and its table entry points to the start of the file.",
        _EXPORT_REST,
        "0xC03A000A",
    ),
    "vhdx.bat.eof": Explanation(
        "A block lies beyond the end of the file (an error), or what is left of its old content "
        "does (a warning).",
        _CUT_OFF,
        "0xC03A000A",
    ),
    "vhdx.bat.cross": Explanation(
        "Two blocks share bytes of the file (an error), or old content of one does (a warning).",
        _EXPORT_REST,
        "0xC03A000A",
    ),
    "vhdx.bat.region": Explanation(
        "A block lies over the headers, the log or a region (an error), or its old content does (a warning).",
        _EXPORT_REST,
        "0xC03A000A",
    ),
    "vhdx.bat.no_bitmap": Explanation(
        "A block is marked as partly present, and its sector bitmap is not there.", _EXPORT_REST, "0xC03A000C"
    ),
    "vhdx.bat.short_block": Explanation(
        "The last block is stored short; all that belongs to the disk is there.", _NOTHING
    ),
    "vhdx.bat.anchor": Explanation(
        "Blocks that read as zeros still point to their old content.",
        "Nothing for reading; deleted data may be recovered there, so do not optimize the disk "
        "before you looked.",
    ),
    "vhdx.bitmap.empty": Explanation(
        "Blocks are marked as partly present, and no sector of them is.", _NOTHING
    ),
    "vhdx.bitmap.full": Explanation(
        "Blocks are marked as partly present, and all of their sectors are.", _NOTHING
    ),
    "vhdx.fixed.holes": Explanation(
        "A fixed disk has blocks that are not stored; they read as zeros.",
        "Nothing for reading; a fixed disk that a program made sparse is no longer one for Windows.",
    ),
    "vhdx.space": Explanation(
        "Parts of the file belong to nothing.",
        "Nothing for reading; Optimize-VHD or a conversion gets the space back, a carver may want "
        "to look first.",
    ),
    # VHDX: parents
    "vhdx.parent.no_locator": Explanation(
        "The disk needs a parent, and its parent locator is missing or not usable.", _RESTORE, "0xC03A000D"
    ),
    "vhdx.parent.type": Explanation("The parent locator says that the parent is no VHDX.", _NEWER),
    "vhdx.parent.keys": Explanation(
        "An entry of the parent locator is malformed or doubled, or it has no path.", _REPAIR_PATH
    ),
    "vhdx.parent.linkage": Explanation(
        "The disk needs a parent, and does not record the identity by which to accept one.",
        _RESTORE,
        "0xC03A000E",
    ),
    "vhdx.parent.linkage2": Explanation(
        "A second identity of the parent is recorded, as it is only while a merge into the parent "
        "is under way.",
        "Look for event 19100 in the Hyper-V-VMMS log, free space, and let Hyper-V finish the merge.",
    ),
    "vhdx.parent.path": Explanation(
        "A recorded path of the parent is not what it claims to be, or names a device; it is not followed.",
        _REPAIR_PATH,
    ),
    "vhdx.locator.unused": Explanation("A parent locator stands in a disk that has no parent.", _NOTHING),
    # Chains
    "chain.parent.missing": Explanation(
        "No file with the parent's identity was found by any recorded path, by name or in the folders named.",
        "Name the folder where it lies with --search, or where its Windows folder lies here with --map; "
        "restore it if it was deleted.",
        "0xC03A000D",
    ),
    "chain.parent.mismatch": Explanation(
        "The parent found is not the one that the child was made from, or was written to since.",
        _PARENT_WRITTEN,
        "0xC03A000E",
    ),
    "chain.parent.ambiguous": Explanation(
        "Several files carry the parent's identity, and no recorded path says which one is meant.",
        "Put the right one beside the child, or leave only it in the folders that are searched.",
        "0xC03A000D",
    ),
    "chain.parent.format": Explanation(
        "What stands under the parent's name is of another format, a raw disk, or no image.",
        "Name the folder of the right file with --search; a raw parent cannot be told from any other file.",
        "0xC03A000D",
    ),
    "chain.parent.linkage2": Explanation(
        "The parent carries only the second identity recorded, as while a merge into it is under way.",
        "Look for event 19100 in the Hyper-V-VMMS log, free space, and let Hyper-V finish the merge.",
    ),
    "chain.parent.sector_size": Explanation(
        "Child and parent have different logical sector sizes: no bitmap can fit both.",
        _RESTORE,
        "0xC03A001D",
    ),
    "chain.parent.size": Explanation(
        "Child and parent have disks of different size; what the parent lacks reads as zeros.",
        "Nothing if the disk was resized with checkpoints; otherwise restore the old size.",
        "0xC03A0017",
    ),
    "chain.parent.disk_id": Explanation(
        "Child and parent state different virtual disk ids.",
        "Nothing if the id was reset on purpose; otherwise make sure that the parent is the right file.",
    ),
    "chain.parent.timestamp": Explanation(
        "The parent was written after the child was made, going by time stamps, which copying changes too.",
        "Nothing if the parent was only copied; otherwise check the file system in an export.",
        "0xC03A000F",
    ),
    "chain.depth": Explanation(
        "The chain is deeper than 256 layers, more than Windows opens.",
        "Merge layers on a copy until the chain is short enough.",
        "0xC03A001A",
    ),
    "chain.loop": Explanation(
        "An image is its own ancestor: no disk has such a chain.", _RESTORE, "0xC03A0018"
    ),
    "chain.damaged_range": Explanation(
        "A range of the virtual disk lies in a block whose table entry breaks a rule.", _EXPORT_REST
    ),
    # Folders
    "tree.duplicate": Explanation(
        "Several files carry one identity: copies, of which some may have been written to since.",
        "Keep the one that the machine uses; compare shows whether they differ.",
    ),
    "tree.link": Explanation(
        "A symbolic link to a folder is not followed: it may lead out of what was asked for.",
        "Name the folder that it leads to as well, if you mean it.",
    ),
    "tree.parent_outside": Explanation(
        "A file stands where the parent's path leads, outside the folders that were asked for.",
        "Name its folder as well.",
    ),
    "tree.stranger": Explanation(
        "A file has an image's name and is none, or has lost its signature.",
        "If it should be an image, copy it again or restore it.",
        "0xC03A0015",
    ),
    "tree.unreadable": Explanation("A folder cannot be listed.", "Look at its permissions."),
    "tree.vhd_set": Explanation(
        "A VHD Set names the disks of a shared set, and holds none itself.",
        "Nothing: its .avhdx files are listed by themselves.",
    ),
    # New images and exports
    "create.source": Explanation(
        "The file to fill a new image from is an image itself, and would be wrapped whole.",
        "Export it as a raw disk first.",
    ),
    "create.parent_format": Explanation(
        "A child has the format of its parent, and a raw disk cannot be one.",
        "Make the child in the parent's format; an image made --from the raw disk can be its parent.",
    ),
    "verify.size": Explanation("The exported disk has another size than its manifest says.", _EXPORT_AGAIN),
    "verify.digest": Explanation(
        "A digest of the whole exported disk is not the one in its manifest.", _EXPORT_AGAIN
    ),
    "verify.chunk": Explanation(
        "Bytes of the exported disk are not those that were exported.", _EXPORT_AGAIN
    ),
    "verify.set_manifest": Explanation(
        "An image's manifest is whole, and not the one that the set was sealed with.",
        "Find out who replaced it; the other images of the set are not touched by this.",
    ),
    "verify.set_parent": Explanation(
        "An increment of a set is not bound to the image of the set that is its parent.",
        "Keep the files of a set together in one folder, under their names.",
    ),
    "manifest.images": Explanation(
        "The images that the manifest of a set lists cannot be a set.", _EXPORT_AGAIN
    ),
    "verify.file_size": Explanation(
        "The exported file has another size than its manifest says.", _EXPORT_AGAIN
    ),
    "verify.identity": Explanation(
        "The exported image has another format, identity or block size than its manifest says.",
        _EXPORT_AGAIN,
    ),
    "verify.structure": Explanation(
        "What an exported image holds besides guest data (headers, tables, bitmaps, padding) was changed.",
        _EXPORT_AGAIN,
    ),
    "verify.parent": Explanation(
        "The parent of an increment is not the one that its manifest names, or cannot be opened.",
        "Put the right parent back, or name its folder with --search.",
    ),
    "verify.sample": Explanation(
        "An E01 is read from end to end by another program; there is no sample of one.",
        "Verify it without --sample.",
    ),
    "manifest.json": Explanation("The manifest is cut off, or is no JSON document.", _EXPORT_AGAIN),
    "manifest.missing": Explanation("The manifest lacks something that every manifest has.", _EXPORT_AGAIN),
    "manifest.digests": Explanation("The manifest's digests of the whole disk are none.", _EXPORT_AGAIN),
    "manifest.duplicate": Explanation("Something stands in the manifest twice.", _EXPORT_AGAIN),
    "manifest.seal": Explanation(
        "The manifest is not what was sealed when it was written: it was changed, formatted anew or damaged.",
        _EXPORT_AGAIN,
    ),
    "manifest.signature": Explanation(
        "The manifest's signature is wrong or missing, or it is not that of the key that was asked for.",
        "Find out who wrote this manifest; do not trust it.",
    ),
    "manifest.value": Explanation("Something in the manifest is not what belongs there.", _EXPORT_AGAIN),
    "manifest.size": Explanation("The sizes in the manifest contradict each other.", _EXPORT_AGAIN),
    "manifest.sum": Explanation("The manifest's sums are not those of its chunks.", _EXPORT_AGAIN),
    "manifest.base": Explanation(
        "The manifest names a base and is not of an increment, or the other way round.", _EXPORT_AGAIN
    ),
    "manifest.layers": Explanation("The manifest lists more layers than any chain has.", _EXPORT_AGAIN),
    "manifest.number": Explanation("A number in the manifest is impossible.", _EXPORT_AGAIN),
    "manifest.version": Explanation(
        "The manifest is of an unknown version.", "Verify it with a newer vhdtool."
    ),
    "manifest.algorithm": Explanation(
        "The manifest's chunk digests are of an unknown kind.", "Verify it with a newer vhdtool."
    ),
    "manifest.format": Explanation(
        "The manifest states a format of its image that is not known.", "Verify it with a newer vhdtool."
    ),
    "manifest.chunk_size": Explanation("The manifest's chunk size is impossible.", _EXPORT_AGAIN),
    "manifest.chunks": Explanation("The manifest's chunks do not tile the disk.", _EXPORT_AGAIN),
    "manifest.root": Explanation(
        "The manifest's root digest does not fit its chunk digests: it was changed or damaged.", _EXPORT_AGAIN
    ),
    # Recorded workloads
    "trace.format": Explanation(
        "The file is no recorded workload of a known format.",
        "Give a fio iolog (version 2 or 3), the text of blkparse, MSR Cambridge CSV, or offset,length[,op].",
    ),
    "trace.line": Explanation(
        "A line of a trace is cut off, too long, or no text.",
        "Look at the line that the message names; record or copy the trace again.",
    ),
    "trace.field": Explanation(
        "A field of a trace's line is not what its format says.",
        "Look at the line that the message names; record or copy the trace again.",
    ),
    "trace.device": Explanation(
        "The trace has requests of several devices, or none of the chosen one.",
        "Choose one of those that the message names.",
    ),
    "trace.beyond": Explanation(
        "A request of the trace leaves the disk: it was recorded on a larger one.",
        "Take a trace of this disk, or have such requests skipped or wrapped round.",
    ),
    "trace.empty": Explanation(
        "The trace has no request of the kind that was asked for.",
        "Look at what the message counts: writes are not taken unless they are asked for.",
    ),
}


def explanation_of(code: str) -> Explanation | None:
    """What ``code`` means; None for a code that is not ours."""
    return EXPLANATIONS.get(code)

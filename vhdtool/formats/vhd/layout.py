"""VHD on-disk structures: shapes only, no judgement.

Source: Virtual Hard Disk Image Format Specification 1.0 (Microsoft, October 2006): "Hard Disk Footer
Format", "Dynamic Disk Header Format", "Parent Locator Entry".  The batmap is Xen's (blktap, libvhd).
All integers are big-endian and unsigned.
"""

from __future__ import annotations

from typing import Any, Final

from construct import Array, Bytes, Int8ub, Int16ub, Int32ub, Int64ub, Struct

from vhdtool.formats.packed import parser_of

SECTOR_SIZE: Final = 512
FOOTER_SIZE: Final = 512
# Virtual PC before 2004 wrote footers without their last byte.
FOOTER_SIZE_SHORT: Final = 511
DYNAMIC_HEADER_SIZE: Final = 1024
PARENT_LOCATOR_ENTRY_SIZE: Final = 24
PARENT_LOCATOR_ENTRIES: Final = 8
BATMAP_HEADER_SIZE: Final = 512

FOOTER_COOKIE: Final = b"conectix"
# blktap's mark of a journalled operation that was interrupted.
POISON_COOKIE: Final = b"v_poison"
HEADER_COOKIE: Final = b"cxsparse"
BATMAP_COOKIE: Final = b"tdbatmap"

VERSION_1_0: Final = 0x0001_0000
ALL_ONES_64: Final = 0xFFFF_FFFF_FFFF_FFFF
FEATURE_TEMPORARY: Final = 1
FEATURE_RESERVED: Final = 2

DISK_TYPE_FIXED: Final = 2
DISK_TYPE_DYNAMIC: Final = 3
DISK_TYPE_DIFFERENCING: Final = 4
DISK_TYPES_RESERVED: Final = frozenset({1, 5, 6})

# 0xFF000000 sectors: what fits under 32-bit sector numbers with room for bitmaps.
VIRTUAL_SIZE_MAX: Final = 0xFF00_0000 * SECTOR_SIZE
BLOCK_SIZE_DEFAULT: Final = 2 << 20
BLOCK_SIZES_USUAL: Final = frozenset({512 << 10, 2 << 20})

BAT_ENTRY_SIZE: Final = 4
BAT_UNUSED: Final = 0xFFFF_FFFF

# On disk the most significant bit of a bitmap's byte is its first sector; vhdtool counts from the least.
MSB_TO_LSB: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

# offset  size  field                meaning
#      0     8  cookie               b"conectix"
#      8     4  features             bit 0 temporary, bit 1 always set
#     12     4  file_format_version  major in the high 16 bits, minor in the low
#     16     8  data_offset          bytes to the dynamic header; all ones on a fixed disk
#     24     4  time_stamp           creation, seconds since 2000-01-01T00:00:00Z
#     28     4  creator_application  b"win ", b"vpc ", b"qemu", ...; padded with spaces or NULs
#     32     4  creator_version      major in the high 16 bits, minor in the low
#     36     4  creator_host_os      b"Wi2k" or b"Mac "
#     40     8  original_size        bytes, at creation
#     48     8  current_size         bytes, as the guest sees the disk now
#     56     2  cylinders            disk geometry
#     58     1  heads
#     59     1  sectors_per_track
#     60     4  disk_type            2 fixed, 3 dynamic, 4 differencing
#     64     4  checksum             ones' complement of the byte sum, this field as zero
#     68    16  unique_id            what a child records of its parent
#     84     1  saved_state          1: belongs to a machine in saved state
#     85   427  reserved             zero; Xen keeps a "hidden" flag in the first byte
FOOTER: Final = Struct(
    "cookie" / Bytes(8),
    "features" / Int32ub,
    "file_format_version" / Int32ub,
    "data_offset" / Int64ub,
    "time_stamp" / Int32ub,
    "creator_application" / Bytes(4),
    "creator_version" / Int32ub,
    "creator_host_os" / Bytes(4),
    "original_size" / Int64ub,
    "current_size" / Int64ub,
    "cylinders" / Int16ub,
    "heads" / Int8ub,
    "sectors_per_track" / Int8ub,
    "disk_type" / Int32ub,
    "checksum" / Int32ub,
    "unique_id" / Bytes(16),
    "saved_state" / Int8ub,
    "reserved" / Bytes(427),
)
assert FOOTER.sizeof() == FOOTER_SIZE

# offset  size  field                 meaning
#      0     4  platform_code         0 unused, b"W2ru", b"W2ku", ...
#      4     4  platform_data_space   sectors by the specification, bytes in real files
#      8     4  platform_data_length  bytes of the path, without terminator
#     12     4  reserved              zero
#     16     8  platform_data_offset  bytes from the file's start
PARENT_LOCATOR_ENTRY: Final = Struct(
    "platform_code" / Bytes(4),
    "platform_data_space" / Int32ub,
    "platform_data_length" / Int32ub,
    "reserved" / Int32ub,
    "platform_data_offset" / Int64ub,
)
assert PARENT_LOCATOR_ENTRY.sizeof() == PARENT_LOCATOR_ENTRY_SIZE

# offset  size  field                   meaning
#      0     8  cookie                  b"cxsparse"
#      8     8  data_offset             next structure: unused, all ones
#     16     8  table_offset            bytes to the BAT
#     24     4  header_version          0x00010000
#     28     4  max_table_entries       entries of the BAT; at least the disk's blocks
#     32     4  block_size              bytes of data in a block, its bitmap apart; a power of two
#     36     4  checksum                as the footer's, over these 1024 bytes
#     40    16  parent_unique_id        the parent footer's unique_id
#     56     4  parent_time_stamp       modification time of the parent's file, seconds since 2000
#     60     4  reserved                zero
#     64   512  parent_unicode_name     UTF-16, big-endian, NUL-padded
#    576   192  parent_locator_entries  8 of the above
#    768   256  reserved_2              zero
DYNAMIC_HEADER: Final = Struct(
    "cookie" / Bytes(8),
    "data_offset" / Int64ub,
    "table_offset" / Int64ub,
    "header_version" / Int32ub,
    "max_table_entries" / Int32ub,
    "block_size" / Int32ub,
    "checksum" / Int32ub,
    "parent_unique_id" / Bytes(16),
    "parent_time_stamp" / Int32ub,
    "reserved" / Int32ub,
    "parent_unicode_name" / Bytes(512),
    "parent_locator_entries" / Bytes(PARENT_LOCATOR_ENTRIES * PARENT_LOCATOR_ENTRY_SIZE),
    "reserved_2" / Bytes(256),
)
assert DYNAMIC_HEADER.sizeof() == DYNAMIC_HEADER_SIZE

# The eight entries are all zero in most files: they are parsed apart, and only those that are not.
PARENT_LOCATORS: Final = Array(PARENT_LOCATOR_ENTRIES, PARENT_LOCATOR_ENTRY)

# offset  size  field           meaning
#      0     8  cookie          b"tdbatmap"
#      8     8  batmap_offset   bytes to the map: one bit a block, most significant first
#     16     4  batmap_size     sectors
#     20     4  batmap_version  0x00010001 (checksum over signed bytes) or 0x00010002 (unsigned)
#     24     4  checksum        ones' complement of the map's byte sum
#     28     1  marker
#     29     1  keyhash_flag    1: the data are encrypted; the key is checked against the hash
#     30    32  keyhash_nonce
#     62    32  keyhash_hash
#     94   418  reserved
BATMAP_HEADER: Final = Struct(
    "cookie" / Bytes(8),
    "batmap_offset" / Int64ub,
    "batmap_size" / Int32ub,
    "batmap_version" / Int32ub,
    "checksum" / Int32ub,
    "marker" / Int8ub,
    "keyhash_flag" / Int8ub,
    "keyhash_nonce" / Bytes(32),
    "keyhash_hash" / Bytes(32),
    "reserved" / Bytes(418),
)
assert BATMAP_HEADER.sizeof() == BATMAP_HEADER_SIZE


def _field_offsets(shape: Any) -> dict[str, int]:
    offsets = {}
    offset = 0
    for part in shape.subcons:
        offsets[part.name] = offset
        offset += part.sizeof()
    return offsets


parse_footer: Final = parser_of(FOOTER, ">")
parse_dynamic_header: Final = parser_of(DYNAMIC_HEADER, ">")
parse_parent_locator: Final = parser_of(PARENT_LOCATOR_ENTRY, ">")
parse_batmap_header: Final = parser_of(BATMAP_HEADER, ">")

FOOTER_OFFSETS: Final = _field_offsets(FOOTER)
DYNAMIC_HEADER_OFFSETS: Final = _field_offsets(DYNAMIC_HEADER)
PARENT_LOCATOR_OFFSETS: Final = _field_offsets(PARENT_LOCATOR_ENTRY)
BATMAP_OFFSETS: Final = _field_offsets(BATMAP_HEADER)


def byte_sum_checksum(data: bytes, offset: int) -> int:
    """Ones' complement of the byte sum of ``data``, its own 4 checksum bytes at ``offset`` as zero."""
    # Zeros add nothing, and most bytes of most structures are zeros.
    filled = data.translate(None, b"\0")
    return ~(sum(filled) - sum(data[offset : offset + 4])) & 0xFFFF_FFFF


def round_up(value: int, unit: int) -> int:
    """The next multiple of ``unit`` at or above ``value``."""
    return -(-value // unit) * unit


def bitmap_size(block_size: int) -> int:
    """Bytes of the sector bitmap in front of each block: whole sectors."""
    return round_up(-(-block_size // SECTOR_SIZE // 8), SECTOR_SIZE)

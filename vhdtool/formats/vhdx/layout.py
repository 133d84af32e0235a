"""VHDX on-disk structures: shapes only, no judgement.

Source: [MS-VHDX] "Virtual Hard Disk v2 (VHDX) File Format", revision 8.0 (Microsoft, April 2024),
sections 2.1 to 2.6.  All integers are little-endian; GUIDs are 16 bytes in Windows' memory order.
Signatures are compared as the ASCII bytes that stand in files; the specification prints them as
numbers in either byte order.

Tables of many entries (BAT, sector bitmaps) are not declared here; the ring of the log is, twice: once
as a structure to look at, once as a ``struct`` for the scan over all of it.
"""

from __future__ import annotations

from struct import Struct as Packed
from typing import Final
from uuid import UUID

from construct import Bytes, Int16ul, Int32ul, Int64ul, Struct

from vhdtool.formats.packed import parser_of

KIB: Final = 1 << 10
MIB: Final = 1 << 20

# ---------------------------------------------------------------- where things are (section 2.2)

IDENTIFIER_OFFSET: Final = 0
HEADER_OFFSETS: Final = (64 * KIB, 128 * KIB)
REGION_TABLE_OFFSETS: Final = (192 * KIB, 256 * KIB)
HEADER_AREA_SIZE: Final = MIB
"""Nothing but the structures above may stand in the first mebibyte."""

# ---------------------------------------------------------------- file type identifier (2.2.1)

IDENTIFIER_SIZE: Final = 520
IDENTIFIER_SIGNATURE: Final = b"vhdxfile"

# offset  size  field      meaning
#      0     8  signature  b"vhdxfile"
#      8   512  creator    UTF-16, may end at a NUL; for diagnostics only
FILE_IDENTIFIER: Final = Struct("signature" / Bytes(8), "creator" / Bytes(512))
assert FILE_IDENTIFIER.sizeof() == IDENTIFIER_SIZE

# ---------------------------------------------------------------- header (2.2.2)

HEADER_SIZE: Final = 4096
HEADER_SIGNATURE: Final = b"head"
CHECKSUM_OFFSET: Final = 4
"""In headers, region tables and log entries alike."""
HEADER_RESERVED_OFFSET: Final = 80

# offset  size  field            meaning
#      0     4  signature        b"head"
#      4     4  checksum         CRC-32C of the 4096 bytes, this field as zero
#      8     8  sequence_number  the larger one of two valid headers is current
#     16    16  file_write_guid  new before the first write after each open
#     32    16  data_write_guid  new before the first write that the guest sees; children bind to it
#     48    16  log_guid         zero: the log is empty; otherwise it must be replayed
#     64     2  log_version      0
#     66     2  version          1
#     68     4  log_length       bytes, multiple of 1 MiB
#     72     8  log_offset       bytes, multiple of 1 MiB
#     80  4016  reserved         0
HEADER: Final = Struct(
    "signature" / Bytes(4),
    "checksum" / Int32ul,
    "sequence_number" / Int64ul,
    "file_write_guid" / Bytes(16),
    "data_write_guid" / Bytes(16),
    "log_guid" / Bytes(16),
    "log_version" / Int16ul,
    "version" / Int16ul,
    "log_length" / Int32ul,
    "log_offset" / Int64ul,
)
assert HEADER.sizeof() == HEADER_RESERVED_OFFSET

# ---------------------------------------------------------------- region table (2.2.3)

REGION_TABLE_SIZE: Final = 64 * KIB
REGION_TABLE_SIGNATURE: Final = b"regi"
REGION_TABLE_HEADER_SIZE: Final = 16
REGION_ENTRY_SIZE: Final = 32
REGION_COUNT_MAX: Final = 2047

# offset  size  field        meaning
#      0     4  signature    b"regi"
#      4     4  checksum     CRC-32C of the 65536 bytes, this field as zero
#      8     4  entry_count  at most 2047
#     12     4  reserved     0
REGION_TABLE_HEADER: Final = Struct(
    "signature" / Bytes(4),
    "checksum" / Int32ul,
    "entry_count" / Int32ul,
    "reserved" / Int32ul,
)
assert REGION_TABLE_HEADER.sizeof() == REGION_TABLE_HEADER_SIZE

# offset  size  field        meaning
#      0    16  guid         which region
#     16     8  file_offset  bytes, multiple of 1 MiB
#     24     4  length       bytes, multiple of 1 MiB
#     28     4  required     bit 0: who does not know the region must not open the file
REGION_TABLE_ENTRY: Final = Struct(
    "guid" / Bytes(16),
    "file_offset" / Int64ul,
    "length" / Int32ul,
    "required" / Int32ul,
)
assert REGION_TABLE_ENTRY.sizeof() == REGION_ENTRY_SIZE
assert REGION_TABLE_HEADER_SIZE + REGION_COUNT_MAX * REGION_ENTRY_SIZE <= REGION_TABLE_SIZE

BAT_REGION: Final = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08").bytes_le
METADATA_REGION: Final = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le

# ---------------------------------------------------------------- log (2.3)

LOG_SECTOR_SIZE: Final = 4096
LOG_ENTRY_SIGNATURE: Final = b"loge"
LOG_ENTRY_HEADER_SIZE: Final = 64
DESCRIPTOR_SIZE: Final = 32
DATA_DESCRIPTOR_SIGNATURE: Final = b"desc"
ZERO_DESCRIPTOR_SIGNATURE: Final = b"zero"
DATA_SECTOR_SIGNATURE: Final = b"data"
LEADING_SIZE: Final = 8
TRAILING_SIZE: Final = 4
REPLAY_OFFSET_MIN: Final = REGION_TABLE_OFFSETS[0]
"""Identifier and headers never go through the log."""

# offset  size  field                meaning
#      0     4  signature            b"loge"
#      4     4  checksum             CRC-32C of entry_length bytes, this field as zero
#      8     4  entry_length         bytes, multiple of 4096
#     12     4  tail                 position in the ring of the oldest entry that still counts
#     16     8  sequence_number      one more than the entry before; > 0
#     24     4  descriptor_count     may be 0
#     28     4  reserved             0
#     32    16  log_guid             the header's
#     48     8  flushed_file_offset  the file was at least this long when the entry was written
#     56     8  last_file_offset     all structures fit into a file of this length
LOG_ENTRY_HEADER: Final = Struct(
    "signature" / Bytes(4),
    "checksum" / Int32ul,
    "entry_length" / Int32ul,
    "tail" / Int32ul,
    "sequence_number" / Int64ul,
    "descriptor_count" / Int32ul,
    "reserved" / Int32ul,
    "log_guid" / Bytes(16),
    "flushed_file_offset" / Int64ul,
    "last_file_offset" / Int64ul,
)
LOG_ENTRY_FIELDS: Final = Packed("<4sIIIQII16sQQ")
assert LOG_ENTRY_HEADER.sizeof() == LOG_ENTRY_FIELDS.size == LOG_ENTRY_HEADER_SIZE

# offset  size  field            meaning
#      0     4  signature        b"desc"
#      4     4  trailing_bytes   bytes 4092 to 4095 of the page
#      8     8  leading_bytes    bytes 0 to 7 of the page
#     16     8  file_offset      where the page belongs; multiple of 4096
#     24     8  sequence_number  the entry's
DATA_DESCRIPTOR: Final = Struct(
    "signature" / Bytes(4),
    "trailing_bytes" / Bytes(4),
    "leading_bytes" / Bytes(8),
    "file_offset" / Int64ul,
    "sequence_number" / Int64ul,
)

# offset  size  field            meaning
#      0     4  signature        b"zero"
#      4     4  reserved         0
#      8     8  zero_length      bytes, multiple of 4096
#     16     8  file_offset      multiple of 4096
#     24     8  sequence_number  the entry's
ZERO_DESCRIPTOR: Final = Struct(
    "signature" / Bytes(4),
    "reserved" / Int32ul,
    "zero_length" / Int64ul,
    "file_offset" / Int64ul,
    "sequence_number" / Int64ul,
)
DESCRIPTOR_FIELDS: Final = Packed("<4s4s8sQQ")
"""Either descriptor: signature, bytes 4 to 7, bytes 8 to 15, file_offset, sequence_number."""
assert DATA_DESCRIPTOR.sizeof() == ZERO_DESCRIPTOR.sizeof() == DESCRIPTOR_FIELDS.size == DESCRIPTOR_SIZE

# offset  size  field          meaning
#      0     4  signature      b"data"
#      4     4  sequence_high  upper half of the entry's sequence number
#      8  4084  data           bytes 8 to 4091 of the page
#   4092     4  sequence_low   lower half
DATA_SECTOR: Final = Struct(
    "signature" / Bytes(4),
    "sequence_high" / Int32ul,
    "data" / Bytes(4084),
    "sequence_low" / Int32ul,
)
assert DATA_SECTOR.sizeof() == LOG_SECTOR_SIZE

# ---------------------------------------------------------------- metadata (2.6)

METADATA_TABLE_SIZE: Final = 64 * KIB
METADATA_SIGNATURE: Final = b"metadata"
METADATA_TABLE_HEADER_SIZE: Final = 32
METADATA_ENTRY_SIZE: Final = 32
METADATA_COUNT_MAX: Final = 2047
METADATA_USER_COUNT_MAX: Final = 1024
METADATA_ITEM_SIZE_MAX: Final = MIB
IS_USER: Final = 1
IS_VIRTUAL_DISK: Final = 2
IS_REQUIRED: Final = 4

# offset  size  field        meaning
#      0     8  signature    b"metadata"
#      8     2  reserved     0
#     10     2  entry_count  at most 2047
#     12    20  reserved2    0
METADATA_TABLE_HEADER: Final = Struct(
    "signature" / Bytes(8),
    "reserved" / Int16ul,
    "entry_count" / Int16ul,
    "reserved2" / Bytes(20),
)
assert METADATA_TABLE_HEADER.sizeof() == METADATA_TABLE_HEADER_SIZE

# offset  size  field      meaning
#      0    16  item_id    which item; unique together with IsUser
#     16     4  offset     bytes from the start of the region, at least 64 KiB
#     20     4  length     bytes
#     24     4  flags      bit 0 IsUser, bit 1 IsVirtualDisk, bit 2 IsRequired
#     28     4  reserved2  0
METADATA_TABLE_ENTRY: Final = Struct(
    "item_id" / Bytes(16),
    "offset" / Int32ul,
    "length" / Int32ul,
    "flags" / Int32ul,
    "reserved2" / Int32ul,
)
assert METADATA_TABLE_ENTRY.sizeof() == METADATA_ENTRY_SIZE

FILE_PARAMETERS_ITEM: Final = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
VIRTUAL_DISK_SIZE_ITEM: Final = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
VIRTUAL_DISK_ID_ITEM: Final = UUID("beca12ab-b2e6-4523-93ef-c309e000c746").bytes_le
LOGICAL_SECTOR_SIZE_ITEM: Final = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f").bytes_le
PHYSICAL_SECTOR_SIZE_ITEM: Final = UUID("cda348c7-445d-4471-9cc9-e9885251c556").bytes_le
PARENT_LOCATOR_ITEM: Final = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le
# The next three are not in the specification; OpenVMM's engine knows them.
CHS_PARAMETERS_ITEM: Final = UUID("da02d7bc-3d3a-423c-ac88-2a36ab21479b").bytes_le
INCOMPLETE_FILE_ITEM: Final = UUID("71cc85f0-1b69-4e28-9558-c3bf83ae75d3").bytes_le
PMEM_LABEL_ITEM: Final = UUID("10e1ae8a-4b7e-4169-a40f-cd70de928393").bytes_le

LEAVE_BLOCK_ALLOCATED: Final = 1
HAS_PARENT: Final = 2

# offset  size  field       meaning
#      0     4  block_size  bytes, 1 to 256 MiB, a power of two
#      4     4  flags       bit 0 LeaveBlockAllocated (fixed), bit 1 HasParent (differencing)
FILE_PARAMETERS: Final = Struct("block_size" / Int32ul, "flags" / Int32ul)
assert FILE_PARAMETERS.sizeof() == 8

# offset  size  field               meaning
#      0     4  heads_per_cylinder
#      4     4  sectors_per_track
CHS_PARAMETERS: Final = Struct("heads_per_cylinder" / Int32ul, "sectors_per_track" / Int32ul)
assert CHS_PARAMETERS.sizeof() == 8

# ---------------------------------------------------------------- parent locator (2.6.2.6)

LOCATOR_HEADER_SIZE: Final = 20
LOCATOR_ENTRY_SIZE: Final = 12
VHDX_LOCATOR_TYPE: Final = UUID("b04aefb7-d19e-4a81-b789-25b8e9445913").bytes_le

# offset  size  field            meaning
#      0    16  locator_type     which kind of parent
#     16     2  reserved         0
#     18     2  key_value_count
PARENT_LOCATOR_HEADER: Final = Struct(
    "locator_type" / Bytes(16), "reserved" / Int16ul, "key_value_count" / Int16ul
)
assert PARENT_LOCATOR_HEADER.sizeof() == LOCATOR_HEADER_SIZE

# offset  size  field         meaning
#      0     4  key_offset    bytes from the start of the item
#      4     4  value_offset  bytes from the start of the item
#      8     2  key_length    bytes of UTF-16, no terminator
#     10     2  value_length  bytes of UTF-16, no terminator
PARENT_LOCATOR_ENTRY: Final = Struct(
    "key_offset" / Int32ul, "value_offset" / Int32ul, "key_length" / Int16ul, "value_length" / Int16ul
)
assert PARENT_LOCATOR_ENTRY.sizeof() == LOCATOR_ENTRY_SIZE

# ---------------------------------------------------------------- parsers

parse_file_identifier: Final = parser_of(FILE_IDENTIFIER, "<")
parse_header: Final = parser_of(HEADER, "<")
parse_region_table_header: Final = parser_of(REGION_TABLE_HEADER, "<")
parse_region_table_entry: Final = parser_of(REGION_TABLE_ENTRY, "<")
parse_metadata_table_header: Final = parser_of(METADATA_TABLE_HEADER, "<")
parse_metadata_table_entry: Final = parser_of(METADATA_TABLE_ENTRY, "<")
parse_file_parameters: Final = parser_of(FILE_PARAMETERS, "<")
parse_chs_parameters: Final = parser_of(CHS_PARAMETERS, "<")
parse_parent_locator_header: Final = parser_of(PARENT_LOCATOR_HEADER, "<")
parse_parent_locator_entry: Final = parser_of(PARENT_LOCATOR_ENTRY, "<")

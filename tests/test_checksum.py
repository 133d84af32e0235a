"""CRC-32C is right, with the library and with our own table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhdtool import checksum


@pytest.mark.parametrize(
    ("data", "crc"),
    [(b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43)],
)
def test_the_check_values_of_the_specification(data: bytes, crc: int) -> None:
    assert checksum.crc32c(data) == crc
    assert checksum._portable_extend()(0, data) == crc


@given(data=st.binary(max_size=300), cut=st.integers(0, 300))
def test_library_and_table_agree_and_go_on_from_any_place(data: bytes, cut: int) -> None:
    whole = checksum.crc32c(data)

    assert checksum.crc32c(data[cut:], checksum.crc32c(data[:cut])) == whole
    assert checksum._portable_extend()(0, data) == whole


@given(data=st.binary(min_size=8, max_size=64), field=st.binary(min_size=4, max_size=4))
def test_a_structures_own_checksum_counts_as_zero(data: bytes, field: bytes) -> None:
    structure = data[:4] + field + data[4:]

    assert checksum.crc32c_without_field(structure, 4) == checksum.crc32c(data[:4] + bytes(4) + data[4:])

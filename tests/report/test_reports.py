"""The small parts of reports."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhdtool.errors import Finding, Location, Severity
from vhdtool.model.plan import ReadPlan
from vhdtool.model.state import ZEROS, Run
from vhdtool.report.export import digest_lines
from vhdtool.report.extents import extent_json, map_json, map_text, merged_runs
from vhdtool.report.findings import finding_lines
from vhdtool.report.hexdump import hexdump
from vhdtool.report.text import count, fields, instant, instant_text, size_both, size_text, table, wrapped


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (127 << 30, "127 GiB"),
        ((127 << 30) + 1, "127.0 GiB"),
        (64 << 40, "64 TiB"),
        (1 << 63, "8 EiB"),
    ],
)
def test_sizes_are_short_and_exact_when_they_have_no_decimals(size: int, text: str) -> None:
    assert size_text(size) == text


def test_sizes_are_given_in_bytes_too() -> None:
    assert size_both(4 << 20) == "4194304 bytes (4 MiB)"
    assert size_both(512) == "512 bytes"


def test_times_are_utc_whatever_zone_they_come_in() -> None:
    moment = datetime(2024, 3, 1, 14, 30, 5, tzinfo=timezone(timedelta(hours=2)))

    assert instant(moment) == "2024-03-01T12:30:05Z"
    assert instant(moment.replace(microsecond=1000)) == "2024-03-01T12:30:05.001000Z"
    assert instant_text(moment.astimezone(UTC)) == "2024-03-01 12:30:05 UTC"
    assert (instant(None), instant_text(None)) == (None, "")


def test_columns_line_up() -> None:
    assert table(("a", "bb"), [(1, "x"), (100, "yyy")], right=(0,)) == "  a  bb\n  1  x\n100  yyy"
    assert fields([("a", 1), ("long", "")]) == "a    : 1\nlong :"
    assert (count(1, "leaf", "leaves"), count(2, "leaf", "leaves")) == ("1 leaf", "2 leaves")


def test_text_from_images_cannot_steer_a_terminal() -> None:
    assert "\x1b" not in fields([("Path", "a\x1b[31mb\n")]) + table(("x",), [("\x1b]0;",)])


@given(st.text(alphabet="ab ", max_size=300), st.integers(0, 8))
def test_wrapped_lines_keep_every_word_and_their_width(text: str, indent: int) -> None:
    lines = wrapped(text, indent=indent, width=40)

    assert " ".join(lines).split() == text.split()
    assert all(len(line) <= 40 or " " not in line.strip() for line in lines)


FINDING = Finding(
    "vhd.footer.checksum", Severity.WARNING, Location("x.vhd", 64, "footer.checksum"), "wrong", "1", "2"
)


def test_a_finding_has_the_message_that_people_see() -> None:
    assert FINDING.document() == {
        "code": "vhd.footer.checksum",
        "severity": "warning",
        "file": "x.vhd",
        "offset": 64,
        "field": "footer.checksum",
        "found": "1",
        "expected": "2",
        "message": "wrong: x.vhd at 0x40 (footer.checksum): found 1, expected 2 [vhd.footer.checksum]",
    }


def test_the_worst_findings_come_first() -> None:
    error = Finding("a.b", Severity.ERROR, Location("x"), "bad")
    info = Finding("c.d", Severity.INFO, Location("x"), "so")

    lines = finding_lines([info, FINDING, error])

    assert [line.split(":")[0] for line in lines] == ["error", "warning", "info"]


def test_runs_are_merged_from_one_window_to_the_next() -> None:
    windows = [
        ReadPlan.of_runs([Run(0, 10, ZEROS, -1)]),
        ReadPlan.of_runs([Run(10, 10, ZEROS, -1), Run(20, 5, 0, 100)]),
        ReadPlan.of_runs([Run(25, 5, 0, 105), Run(30, 5, 0, 200), Run(35, 5, 1, 205)]),
    ]

    assert list(merged_runs(windows)) == [
        Run(0, 20, ZEROS, -1),
        Run(20, 10, 0, 100),
        Run(30, 5, 0, 200),
        Run(35, 5, 1, 205),
    ]
    assert list(merged_runs([])) == []


def test_zeros_have_the_depth_of_the_base() -> None:
    assert extent_json(Run(0, 512, ZEROS, -1), ["leaf", "base"])["depth"] == 1
    assert "offset" not in extent_json(Run(0, 512, ZEROS, -1), ["leaf", "base"])


def test_a_map_without_extents_is_still_an_array() -> None:
    assert "".join(map_json([], ["x"])) == "[]\n"
    assert "0 extents" in "".join(map_text([], ["x"], 0))


def test_a_map_is_made_piece_by_piece() -> None:
    runs = (Run(i, 1, ZEROS, -1) for i in iter(int, 1))

    assert next(iter(map_json(runs, ["x"]))).startswith('[{"start": 0')


@given(st.binary(max_size=300), st.integers(0, 1 << 40))
def test_a_hexdump_holds_every_byte(data: bytes, offset: int) -> None:
    pieces = [data[i : i + 64] for i in range(0, len(data), 64)]
    lines = list(hexdump(pieces, offset))

    found = bytearray()
    for line in lines:
        if line == "*\n":
            continue
        at = int(line[:12], 16) - offset
        row = bytes.fromhex(line[14:62]) if len(line) > 14 else b""
        while len(found) < at:  # rows that a star stands for
            found += found[-16:]
        found += row
    assert bytes(found) == data
    assert lines[-1] == f"{offset + len(data):012x}\n"


def test_digests_of_strange_names_are_escaped_as_sha256sum_does() -> None:
    assert list(digest_lines({"md5": "00"}, "a b")) == ["00  a b"]
    assert list(digest_lines({"md5": "00"}, "a\\b\nc")) == ["\\00  a\\\\b\\nc"]

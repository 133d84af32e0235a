"""Findings print as promised, are bounded, and refuse with the right exit code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhdtool.errors import (
    FINDINGS_PER_CODE,
    ChainLoopError,
    CorruptError,
    Finding,
    FindingLog,
    Location,
    ParentMismatchError,
    Severity,
    UnsupportedError,
    printable,
    raise_first_error,
)


def a_finding(code: str = "vhd.footer.checksum", exit_code: int = 65) -> Finding:
    location = Location("child.vhd", 0x1040, "footer.checksum")
    return Finding(code, Severity.ERROR, location, "the checksum is wrong", "0x1", "0x2", exit_code)


def test_a_finding_says_what_where_found_and_expected_in_one_line() -> None:
    assert str(a_finding()) == (
        "the checksum is wrong: child.vhd at 0x1040 (footer.checksum): found 0x1, expected 0x2 "
        "[vhd.footer.checksum]"
    )


@given(st.text())
def test_text_from_an_image_never_reaches_a_terminal_as_control_characters(text: str) -> None:
    shown = printable(text)

    assert shown.isprintable()
    shown.encode("utf-8")


def test_values_print_in_hex_and_bytes_as_bytes() -> None:
    finding = FindingLog("x").note(Severity.INFO, "a.b", "w", found=4096, expected=b"\x01\xff")

    assert (finding.found, finding.expected) == ("0x1000", "bytes 01ff")


@pytest.mark.parametrize(
    ("code", "exit_code", "error"),
    [
        ("vhd.footer.checksum", 65, CorruptError),
        ("vhdx.header.version", 69, UnsupportedError),
        ("chain.parent.mismatch", 66, ParentMismatchError),
        ("chain.loop", 65, ChainLoopError),
    ],
)
def test_a_finding_is_raised_as_the_error_that_fits_it(
    code: str, exit_code: int, error: type[Exception]
) -> None:
    finding = a_finding(code, exit_code)

    with pytest.raises(error) as caught:
        raise_first_error([finding])

    assert getattr(caught.value, "finding") is finding  # noqa: B009
    assert getattr(caught.value, "exit_code") == exit_code  # noqa: B009


def test_a_rule_broken_a_million_times_is_told_a_few_times_and_counted() -> None:
    log = FindingLog("x")
    for offset in range(FINDINGS_PER_CODE + 5):
        log.note(Severity.ERROR, "a.b", "broken", offset=offset)
    log.note(Severity.ERROR, "a.b", "broken", offset=999, times=1000)

    kept = log.all()

    assert len(kept) == FINDINGS_PER_CODE
    assert kept[-1].what == "broken (and 1005 more like it)"
    assert kept[0].what == "broken"


def test_one_fact_is_kept_once() -> None:
    log = FindingLog("x")
    log.note(Severity.INFO, "a.b", "w")
    log.note(Severity.INFO, "a.b", "w")

    assert len(log.all()) == 1

"""Every row of the catalogue, in this process by the library and in one of its own by the commands."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

from tests.catalogue.row import SECRET, Row
from tests.catalogue.rules import CHAIN_RULES, FILE_RULES, VHD_RULES, VHDX_RULES
from tests.catalogue.runner import Outcome, Runner
from tests.catalogue.table import BY_NAME, ROWS
from vhdtool.chain.discover import open_chain
from vhdtool.errors import VhdtoolError
from vhdtool.report.explanations import EXPLANATIONS

PEAK_MIB_MAX: Final = 300
SECONDS_MAX: Final = 60
# What formats and chains find; the rest is about folders, manifests and writing.
JUDGED: Final = ("vhd.", "vhdx.", "image.", "file.", "raw.", "zstd.", "chain.")
# What only a read through --damaged, or a parent that the system refuses to read, makes.
ELSEWHERE: Final = frozenset({"chain.damaged_range", "chain.parent.unreadable"})


def _skip_unless_possible(row: Row) -> None:
    if "fifo" in row.needs and not hasattr(os, "mkfifo"):
        pytest.skip("no FIFOs on this platform")
    if "symlink" in row.needs and os.name == "nt":
        pytest.skip("symbolic links need a privilege on this platform")
    if "zstandard" in row.needs and find_spec("zstandard") is None:
        pytest.skip("the package zstandard is not installed")


def _options(row: Row, folder: Path) -> list[str]:
    return [option.replace("{folder}", str(folder)) for option in row.options]


# ------------------------------------------------------------------ the list itself


def test_every_row_has_a_sentence_of_its_own() -> None:
    assert len(BY_NAME) == len(ROWS) >= 120


def test_every_rule_of_the_formats_is_broken_by_a_row() -> None:
    expected = {finding for row in ROWS for finding in row.findings}
    rules = {**VHD_RULES, **{f"X {k}": v for k, v in VHDX_RULES.items()}, **CHAIN_RULES, **FILE_RULES}

    missing = {
        name: finding for name, findings in rules.items() for finding in findings if finding not in expected
    }

    assert not missing


def test_every_finding_that_vhdtool_explains_is_made_by_a_row() -> None:
    expected = {finding.split()[1] for row in ROWS for finding in row.findings}

    judged = {code for code in EXPLANATIONS if code.startswith(JUDGED)}

    assert judged - ELSEWHERE <= expected


# ------------------------------------------------------------------ by the library


@pytest.mark.parametrize("name", BY_NAME)
def test_the_library_reads_or_refuses(name: str, tmp_path: Path) -> None:
    row = BY_NAME[name]
    _skip_unless_possible(row)
    leaf = row.make(tmp_path)
    options = _options(row, tmp_path)
    search = [options[i + 1] for i, option in enumerate(options) if option == "--search"]

    def read() -> None:
        with open_chain(
            leaf,
            search=search,
            log="before" if "before" in options else "after",
            ignore_checksums="--ignore-checksums" in options,
            allow_mismatch="--allow-mismatch" in options,
        ) as chain:
            assert len(chain.read(0, chain.sector_size)) == chain.sector_size

    if row.exit_code == 0:
        read()
        return
    with pytest.raises(VhdtoolError) as caught:
        read()
    assert caught.value.exit_code == row.exit_code
    assert SECRET not in str(caught.value)


# ------------------------------------------------------------------ by the commands


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this platform")
    with Runner(tmp_path_factory.mktemp("runner")) as started:
        yield started


@pytest.mark.parametrize("name", BY_NAME)
def test_the_commands_report_and_refuse(name: str, runner: Runner, tmp_path: Path) -> None:
    row = BY_NAME[name]
    _skip_unless_possible(row)
    leaf = row.make(tmp_path)
    options = _options(row, tmp_path)
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}

    check = runner.run(["check", "--json", "--deep", "--chain", *options, str(leaf)], seconds=SECONDS_MAX)

    assert check.exit_code == row.check_exit_code, check.text
    document = json.loads(check.stdout)
    found = {(finding["severity"], finding["code"]) for finding in document["findings"]}
    assert {pair for pair in found if pair[0] != "info"} == row.of_severity("E", "W"), check.text
    assert row.of_severity("I") <= found, check.text
    _require_clean(check)

    for_image = [o for o in options if o in ("--log", "before", "--ignore-checksums")]
    # The one for people prints strings from images, the other must be right JSON whatever they hold.
    for more in ([], ["--json"]):
        info = runner.run(["info", *more, *for_image, str(leaf)], seconds=SECONDS_MAX)
        assert info.exit_code == (0 if row.opens else row.exit_code), info.text
        if row.opens and more:
            assert json.loads(info.stdout)["format"] in ("vhd", "vhdx", "raw")
        _require_clean(info)

    target = tmp_path / "target.raw"
    if row.exports:
        strict = runner.run(["export", *options, str(leaf), str(target)], seconds=SECONDS_MAX)
        assert target.exists() == (row.exit_code == 0)
        _require_clean(strict)
    else:
        strict = runner.run(
            ["read", *options, str(leaf), "--offset", "0", "--length", "512"], seconds=SECONDS_MAX
        )
        assert len(strict.stdout) == (512 if row.exit_code == 0 else 0)
        _require_clean(Outcome(0, b"", strict.stderr, strict.peak_mib, strict.seconds))
    assert strict.exit_code == row.exit_code, strict.stderr.decode()

    mine = {target, Path(f"{target}.manifest.json")}
    after = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*") if path not in mine}
    # A folder's own time changes when the target appears in it.
    assert {p for p in after if not p.is_dir()} == {p for p in before if not p.is_dir()}
    assert all(after[path] == before[path] for path in before if not path.is_dir())


def _require_clean(outcome: Outcome) -> None:
    """Whatever the command had to say: no traceback, nothing quoted, nothing that a terminal obeys."""
    text = outcome.text
    assert "Traceback" not in text
    assert "fault in vhdtool" not in text
    assert SECRET not in text
    assert all(c.isprintable() or c == "\n" for c in text), repr(text)
    assert outcome.peak_mib < PEAK_MIB_MAX

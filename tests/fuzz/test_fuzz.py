"""The fuzz targets on every kept case, on their own seeds, and on random recipes."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.fuzz.run import main
from tests.fuzz.targets import TARGETS, describe, seed_inputs
from tests.surgery.vhdx import crc32c, crc32c_slowly

KEPT: Final = Path(__file__).resolve().parents[2] / "fixtures" / "fuzz"
CASES: Final = sorted(path.relative_to(KEPT).as_posix() for path in KEPT.glob("*/*") if path.is_file())


@pytest.mark.parametrize("case", CASES)
def test_what_once_went_wrong_is_right_now(case: str) -> None:
    TARGETS[case.split("/")[0]]((KEPT / case).read_bytes())


def test_a_case_is_kept_for_each_format() -> None:
    assert {case.split("/")[0] for case in CASES} == set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_every_seed_is_read_with_every_option(target: str) -> None:
    for data in seed_inputs(target):
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("number", range(4))
def test_random_recipes_are_read_or_refused(target: str, number: int) -> None:
    rng = random.Random(f"{target} {number}")
    for _ in range(75):
        flags = rng.choice((0, 0, 0, 1, 2, 4, 8, 16))
        patches = b"".join(
            bytes([rng.randrange(32), rng.randrange(256), rng.choice((0, 0, 1)), rng.randrange(8)])
            + rng.randbytes(8)
            for _ in range(rng.randrange(4))
        )
        TARGETS[target](bytes([rng.randrange(16), flags]) + patches)


@pytest.mark.parametrize("target", TARGETS)
def test_the_empty_recipe_is_a_sound_image(target: str) -> None:
    recipe = describe(target, b"")

    assert recipe.repairs
    assert recipe.patient.size == recipe.seed.patient.size


def test_a_corpus_begins_with_the_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz_vhd", "--write-seeds", str(tmp_path / "corpus")])

    main("vhd")

    written = {path.read_bytes() for path in (tmp_path / "corpus").iterdir()}
    assert written == set(seed_inputs("vhd"))


def test_without_atheris_the_script_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz_vhd"])
    monkeypatch.setitem(sys.modules, "atheris", None)

    with pytest.raises(SystemExit, match="pip install atheris"):
        main("vhd")


def test_the_kit_knows_the_checksum_by_its_definition() -> None:
    assert crc32c(b"123456789") == crc32c_slowly(b"123456789") == 0xE3069283
    assert crc32c(b"\xff" * 32) == crc32c_slowly(b"\xff" * 32) == 0x62A8AB43

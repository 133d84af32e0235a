"""One row of the catalogue, and the common ways to make one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.surgery.healthy import a_child_vhd, a_child_vhdx, a_vhd, a_vhdx
from tests.surgery.patient import Patient
from tests.surgery.vhd import VhdSurgeon
from tests.surgery.vhdx import VhdxSurgeon

# Stands in files that are no images; must never reach any output.
SECRET: Final = "hunter2-correct-horse-battery-staple"

Maker = Callable[[Path], Path]
_SEVERITIES: Final = {"E": "error", "W": "warning", "I": "info"}


@dataclass(frozen=True, slots=True)
class Row:
    """A damaged or hostile image and what is promised about it.

    Attributes:
        name: what is wrong, as a sentence.
        make: writes it into an empty folder and gives the path of the leaf.
        findings: "E vhd.footer.missing" and so on: exactly the errors and warnings, and at least the notes,
            of ``check --deep --chain``.
        exit_code: of commands that read content: ``read`` and ``export``.
        opens: whether ``info`` can show it.
        options: for all commands that read through parents.
        exports: False where the disk is larger than a test can write.
        check: the exit code of ``check`` where it is not what follows from the findings.
        needs: "fifo", "symlink" or "zstandard": what the platform must have, or be installed.
    """

    name: str
    make: Maker
    findings: tuple[str, ...] = ()
    exit_code: int = 0
    opens: bool = True
    options: tuple[str, ...] = ()
    exports: bool = True
    needs: tuple[str, ...] = ()
    check: int | None = None

    def of_severity(self, *letters: str) -> set[tuple[str, str]]:
        """The expected findings as pairs of severity and code."""
        return {
            (_SEVERITIES[letter], code)
            for letter, code in (finding.split() for finding in self.findings)
            if letter in letters
        }

    @property
    def check_exit_code(self) -> int:
        """Of ``check``: 1 for an error that was found, the refusal's code when it cannot look."""
        if self.check is not None:
            return self.check
        if not self.opens:
            return self.exit_code
        return 1 if self.of_severity("E") else 0


def row(
    name: str,
    make: Maker,
    *findings: str,
    exit_code: int | None = None,
    opens: bool = True,
    options: Sequence[str] = (),
    exports: bool = True,
    needs: Sequence[str] = (),
    check: int | None = None,
) -> Row:
    """A row whose exit code, unless it is given, is 65 when an error is among the findings."""
    if exit_code is None:
        exit_code = 65 if any(f.startswith("E") for f in findings) else 0
    return Row(name, make, findings, exit_code, opens, tuple(options), exports, tuple(needs), check)


_dynamic = functools.cache(lambda: a_vhd())
_dynamic_vhdx = functools.cache(lambda: a_vhdx())


def vhd(
    change: Callable[[VhdSurgeon], object],
    base: Callable[[], Patient] = _dynamic,
    *,
    repair: bool = True,
    name: str = "disk.vhd",
) -> Maker:
    """A sound VHD with ``change`` done to it; checksums are right afterwards unless ``repair`` is False."""

    def make(folder: Path) -> Path:
        surgeon = VhdSurgeon(base().copy())
        change(surgeon)
        if repair:
            surgeon.close_up()
        return surgeon.patient.save(folder / name)

    return make


def child_vhd(
    change: Callable[[VhdSurgeon], object],
    base: Callable[[], Patient] = a_child_vhd,
    *,
    repair: bool = True,
    parent: Callable[[], Patient] | None = _dynamic,
) -> Maker:
    """The same with a differencing VHD, its parent beside it."""

    def make(folder: Path) -> Path:
        if parent is not None:
            parent().save(folder / "parent.vhd")
        return vhd(change, base, repair=repair, name="child.vhd")(folder)

    return make


def vhdx(
    change: Callable[[VhdxSurgeon], object],
    base: Callable[[], Patient] = _dynamic_vhdx,
    *,
    repair: bool = True,
    name: str = "disk.vhdx",
) -> Maker:
    """A sound VHDX with ``change`` done to it; checksums are right afterwards unless ``repair`` is False."""

    def make(folder: Path) -> Path:
        surgeon = VhdxSurgeon(base().copy())
        change(surgeon)
        if repair:
            surgeon.close_up()
        return surgeon.patient.save(folder / name)

    return make


def child_vhdx(
    change: Callable[[VhdxSurgeon], object] = lambda s: None,
    base: Callable[[], Patient] = a_child_vhdx,
    *,
    parent: Callable[[], Patient] | None = _dynamic_vhdx,
    repair: bool = True,
) -> Maker:
    """The same with a differencing VHDX, its parent beside it."""

    def make(folder: Path) -> Path:
        if parent is not None:
            parent().save(folder / "parent.vhdx")
        return vhdx(change, base, repair=repair, name="child.avhdx")(folder)

    return make


def file_of(data: bytes, name: str) -> Maker:
    """A file with these bytes."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make

"""How commands print: text with colours on terminals only, JSON, warnings."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from vhdtool.cli.faults import say
from vhdtool.cli.options import Access
from vhdtool.errors import CorruptError, Finding, Location, Severity, TargetError
from vhdtool.report.text import Paint, plain

if TYPE_CHECKING:
    from vhdtool.chain.chain import Chain
    from vhdtool.report.palette import Rgb
    from vhdtool.report.strip import Shade

_PIECES_AT_ONCE: Final = 1 << 16
_STYLES: Final[dict[str, dict[str, Any]]] = {
    "error": {"fg": "red", "bold": True},
    "warning": {"fg": "yellow"},
    "info": {"fg": "cyan"},
    "good": {"fg": "green"},
    "name": {"bold": True},
    "faint": {"dim": True},
}


def paint() -> Paint:
    """Colours when stdout is a terminal that has them and nobody asked for none (https://no-color.org)."""
    unwanted = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if unwanted or sys.stdout is None or not sys.stdout.isatty():
        return plain
    return lambda text, role: click.style(text, **_STYLES[role])


def shade() -> Shade | None:
    """How cells are coloured; None where ``paint`` has no colours either.

    True colours where the terminal says that it has them, else the nearest of the 6 x 6 x 6 that all have.
    """
    if paint() is plain:
        return None
    has_all = os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit")

    def shaded(text: str, colour: Rgb | None) -> str:
        if colour is None:
            return click.style(text, dim=True)
        if has_all:
            return click.style(text, bg=colour)
        red, green, blue = (round(channel * 5 / 255) for channel in colour)
        return click.style(text, bg=16 + 36 * red + 6 * green + blue)

    return shaded


def print_text(text: str) -> None:
    """A report to stdout."""
    click.echo(text)


def print_file_names(text: str) -> None:
    """Text for other programs, in which file names keep their bytes."""
    click.echo(os.fsencode(text) if os.name == "posix" else text)


def print_json(document: object) -> None:
    """One JSON document to stdout: ASCII, so that no encoding can spoil a name in it."""
    import json

    click.echo(json.dumps(document, indent=2))


def print_pieces(pieces: Iterable[str]) -> None:
    """Text of any length to stdout, without holding it."""
    gathered: list[str] = []
    length = 0
    for piece in pieces:
        gathered.append(piece)
        length += len(piece)
        if length >= _PIECES_AT_ONCE:
            click.echo("".join(gathered), nl=False)
            gathered.clear()
            length = 0
    click.echo("".join(gathered), nl=False)


def can_draw(characters: str) -> bool:
    """Whether stdout's encoding has all of ``characters``."""
    try:
        characters.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True


@contextmanager
def open_sound(leaf: Path, access: Access, *, allow_damaged: bool = False) -> Iterator[Chain]:
    """LEAF's chain for reading content: an error finding of any layer refuses, warnings are printed.

    Args:
        allow_damaged: let errors pass that spoil single blocks only.

    Raises:
        VhdtoolError: what refuses.
    """
    with access.open_chain(leaf, strict=True) as chain:
        chain.require_sound(allow_damaged=allow_damaged)
        print_warnings(chain.warnings())
        yield chain


@contextmanager
def open_both_sound(a: Path, b: Path, access: Access) -> Iterator[tuple[Chain, Chain]]:
    """The same for two chains, which may share layers: a layer's warnings are printed once."""
    with access.open_chain(a, strict=True) as chain_a, access.open_chain(b, strict=True) as chain_b:
        chain_a.require_sound()
        chain_b.require_sound()
        print_warnings([*chain_a.warnings(), *chain_b.warnings()])
        yield chain_a, chain_b


def refuse_folder(path: Path, hint: str) -> None:
    """Refuse a folder where a file is asked for, and say what takes one.

    Raises:
        CorruptError: it is one.
    """
    if path.is_dir():
        what = f"this is no file; {hint}"
        place = Location(str(path))
        raise CorruptError(
            Finding("file.not_regular", Severity.ERROR, place, what, "a directory", "a regular file")
        )


def require_stdout() -> None:
    """Refuse to write bytes to a standard output that the caller closed.

    Raises:
        TargetError: that.
    """
    if sys.stdout is None:
        raise TargetError("standard output is closed")


def print_warnings(findings: Iterable[Finding]) -> None:
    """What strict reading goes on in spite of: one line each on stderr, none twice."""
    for finding in dict.fromkeys(findings):
        if finding.severity is Severity.WARNING:
            say(f"warning: {finding}")

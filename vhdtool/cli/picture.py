"""``--picture FILE``: the option, what made the picture, and where it is written."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from vhdtool.errors import printable

if TYPE_CHECKING:
    from vhdtool.report.pictures import Made, Suffix

    PathType = click.ParamType[Path]
else:
    PathType = click.ParamType

_SUFFIXES: Final = (".html", ".svg")


class PictureType(PathType):
    """A file whose name says what kind of picture it is to be: ``.html`` or ``.svg``."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Text to a path with one of the suffixes."""
        path = Path(value)
        if path.suffix.lower() not in _SUFFIXES:
            self.fail(f"{printable(str(value))!r} ends neither in .html nor in .svg", param, ctx)
        return path


def picture_option(shows: str) -> Callable[[Any], Any]:
    """The option ``--picture FILE``, given to the command as ``picture``; ``shows`` says of what."""
    return click.option(
        "--picture",
        type=PictureType(),
        metavar="FILE.html|.svg",
        help=f"Write {shows} as a page or a drawing.",
    )


def suffix_of(path: Path) -> Suffix:
    """Which of the two a picture's name asks for."""
    return ".svg" if path.suffix.lower() == ".svg" else ".html"


def made_now(ctx: click.Context) -> Made:
    """What the running command is, for the foot of its pictures."""
    from vhdtool.report.pictures import Made

    words = ctx.find_root().obj or ()
    return Made(shlex.join(["vhdtool", *map(str, words)]), datetime.now(UTC))


def require_picture(path: Path, *, force: bool) -> None:
    """Find out before the work begins that a picture cannot be made or written.

    Raises:
        MissingPackageError: what pages are made with is not installed.
        TargetExistsError: something stands under the name.
    """
    from vhdtool.export.target import exists_error
    from vhdtool.report.templates import require_templates

    require_templates()
    if not force and os.path.lexists(path):
        raise exists_error(str(path))


def write_picture(path: Path, text: str, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Write a page or a drawing: to a temporary file first, which then gets the name.

    Args:
        force: replace what stands there.
        inputs: files that must not be the target; nobody may read the picture who may not read them.

    Raises:
        TargetExistsError: something stands under the name.
        TargetError, ExportError: the file cannot be made.
    """
    from vhdtool.export.target import TargetFile, mode_like

    inputs = tuple(inputs)
    data = text.encode("utf-8", "backslashreplace")
    with TargetFile(path, force=force, inputs=inputs, mode=mode_like(inputs)) as target:
        target.write_at(0, data)
        target.finish(len(data))
        target.publish()
